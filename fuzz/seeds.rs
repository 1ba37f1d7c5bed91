// SPDX-License-Identifier: MPL-2.0
//! Writes the fuzzer's first inputs: whole files of each type of weights, and what the table of tests/malformed.rs does
//! to a file. `seeds FOLDER`

#![allow(clippy::print_stdout, reason = "a program")]

#[path = "../src/inference/whisper_cpp/header.rs"]
#[allow(dead_code)]
mod header;
#[path = "../src/inference/whisper_cpp/made.rs"]
#[allow(dead_code)]
mod made;

use made::Made;

fn main() -> std::io::Result<()> {
    let folder = std::path::PathBuf::from(std::env::args().nth(1).unwrap_or_else(|| ".".into()));
    std::fs::create_dir_all(&folder)?;
    let mut count = 0;
    let mut write = |bytes: &[u8]| {
        count += 1;
        std::fs::write(folder.join(format!("seed-{count:03}")), bytes)
    };
    for (width, ftype) in [(8, 0), (8, 1), (32, 2), (32, 3), (32, 7), (32, 8), (32, 9)] {
        write(&made::small(width, ftype).bytes)?;
    }
    let whole = made::small(8, 1);
    let mut changed = |change: &dyn Fn(&mut Made)| {
        let mut made = whole.clone();
        change(&mut made);
        write(&made.bytes)
    };
    for field in 0..=11 {
        for value in [-1, 0, 1 << 28, i32::MAX] {
            changed(&|m| {
                m.dimension(field, value);
            })?;
        }
    }
    let first = whole.tensors[0].at;
    #[rustfmt::skip]
    let places = [
        whole.filters, whole.filters + 4, whole.filters + 8, whole.vocabulary, whole.tokens[0], whole.tokens[2],
        first, first + 4, first + 8, first + 12, whole.tensors[1].at + 16, whole.tensors[0].data,
        whole.tensors[9].data - 2,
    ];
    for at in places {
        for value in [-1, 0, 2, 1000, i32::MAX] {
            changed(&|m| {
                m.put(at, value);
            })?;
        }
        changed(&|m| {
            m.cut(at);
        })?;
        changed(&|m| {
            m.cut(at + 3);
        })?;
    }
    changed(&|m| {
        m.bytes.extend([7; 100]);
    })?;
    changed(&|m| {
        let twice = m.bytes[m.tensors[2].at..m.tensors[2].end].to_vec();
        m.bytes.splice(m.tensors[4].at..m.tensors[4].end, twice);
    })?;
    println!("{count} seeds in {}", folder.display());
    Ok(())
}
