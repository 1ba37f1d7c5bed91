// SPDX-License-Identifier: MPL-2.0
//! Whisper models as Hugging Face's transformers keep them: a folder with `model.safetensors`, or the parts that
//! `model.safetensors.index.json` names, and the vocabulary.
//!
//! ```text
//! u64 length of the header, little endian
//! JSON  {"NAME": {"dtype": "F16", "shape": [n, …], "data_offsets": [from, to]}, …, "__metadata__": {…}}
//! data  what the offsets count in
//! ```
//!
//! Source: safetensors' README; transformers, `modeling_whisper.py`.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::path::Path;

use super::checkpoint::{Array, Names, Tensors};
use super::ct2::small_text;
use super::{ConvertError, Converted, halves};

/// The file of a model that is not cut in parts.
pub const WHOLE: &str = "model.safetensors";
/// Says which part has which tensor.
pub const INDEX: &str = "model.safetensors.index.json";
/// A header of a large model has some hundred kilobytes.
const HEADER_BYTES_MAX: u64 = 16 << 20;
const PARTS_MAX: usize = 64;
/// What most files begin the names with.
const PREFIX: &str = "model.";

/// A model's weights.
pub struct Safetensors {
    files: Vec<File>,
    tensors: BTreeMap<String, Tensor>,
    heads: [Option<i64>; 2],
}

struct Tensor {
    file: usize,
    shape: Vec<usize>,
    kind: Kind,
    offset: u64,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    F32,
    F16,
    Bf16,
    /// Nothing that weights are.
    Other,
}

impl Kind {
    fn bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::Bf16 => 2,
            Self::Other => 0,
        }
    }
}

#[derive(serde::Deserialize)]
struct Entry {
    dtype: String,
    shape: Vec<u64>,
    data_offsets: [u64; 2],
}

#[derive(serde::Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

/// The dimensions that shapes do not show.
#[derive(Default, serde::Deserialize)]
struct Config {
    encoder_attention_heads: Option<i64>,
    decoder_attention_heads: Option<i64>,
}

/// Whether a folder has such a model.
pub fn is_in(folder: &Path) -> bool {
    [WHOLE, INDEX]
        .iter()
        .any(|name| folder.join(name).is_file())
}

impl Safetensors {
    /// Reads the headers, and checks that all tensors lie within their files.
    pub fn open(folder: &Path) -> Converted<Self> {
        let mut model = Self {
            files: Vec::new(),
            tensors: BTreeMap::new(),
            heads: [None, None],
        };
        for name in files(folder)? {
            model
                .add(&folder.join(&name))
                .map_err(|err| err.within(&name))?;
        }
        if let Some(text) = small_text(&folder.join("config.json"))? {
            let config: Config = serde_json::from_str(&text)
                .map_err(|err| ConvertError::input(format!("config.json: {err}")))?;
            model.heads = [
                config.encoder_attention_heads,
                config.decoder_attention_heads,
            ];
        }
        Ok(model)
    }

    fn add(&mut self, path: &Path) -> Converted<()> {
        let mut file = File::open(path)?;
        let length = file.metadata()?.len();
        let mut own = [0; 8];
        if length < 8 {
            return Err(ConvertError::input("it is cut short"));
        }
        file.read_exact(&mut own)?;
        let header = u64::from_le_bytes(own);
        if header > HEADER_BYTES_MAX || header > length - 8 {
            return Err(ConvertError::input(format!(
                "its header is said to have {header} bytes, and the file has {length}"
            )));
        }
        let mut text = vec![0; header as usize];
        file.read_exact(&mut text)?;
        let entries: BTreeMap<String, serde_json::Value> = serde_json::from_slice(&text)
            .map_err(|err| ConvertError::input(format!("its header: {err}")))?;
        let data = 8 + header;
        for (name, entry) in entries {
            if name == "__metadata__" {
                continue;
            }
            let entry: Entry = serde_json::from_value(entry)
                .map_err(|err| ConvertError::input(format!("its header, {name}: {err}")))?;
            let tensor = tensor(&entry, data, length, self.files.len()).ok_or_else(|| {
                ConvertError::input(format!("{name} does not lie within it as its shape says"))
            })?;
            let name = name.strip_prefix(PREFIX).unwrap_or(&name).to_owned();
            self.tensors.insert(name, tensor);
        }
        self.files.push(file);
        Ok(())
    }
}

/// Names of the files that the model lies in.
fn files(folder: &Path) -> Converted<BTreeSet<String>> {
    if folder.join(WHOLE).is_file() {
        return Ok(BTreeSet::from([WHOLE.to_owned()]));
    }
    let text = small_text(&folder.join(INDEX))?
        .ok_or_else(|| ConvertError::input(format!("there is neither {WHOLE} nor {INDEX}")))?;
    let index: Index = serde_json::from_str(&text)
        .map_err(|err| ConvertError::input(format!("{INDEX}: {err}")))?;
    let files: BTreeSet<String> = index.weight_map.into_values().collect();
    // A part lies beside the index, and nowhere else.
    let plain = |name: &&String| {
        Path::new(name.as_str()).components().count() == 1 && name.ends_with(".safetensors")
    };
    match files.iter().find(|name| !plain(name)) {
        Some(odd) => Err(ConvertError::input(format!(
            "{INDEX} names the file \"{odd}\""
        ))),
        None if files.len() > PARTS_MAX => Err(ConvertError::input(format!(
            "{INDEX} names {} files",
            files.len()
        ))),
        None => Ok(files),
    }
}

/// A tensor of a file with so many bytes, whose data begin at `data`; `None` if it is not all there.
fn tensor(entry: &Entry, data: u64, length: u64, file: usize) -> Option<Tensor> {
    let kind = match entry.dtype.as_str() {
        "F32" => Kind::F32,
        "F16" => Kind::F16,
        "BF16" => Kind::Bf16,
        _ => Kind::Other,
    };
    let [from, to] = entry.data_offsets;
    let end = data.checked_add(to)?;
    let shape: Option<Vec<usize>> = entry
        .shape
        .iter()
        .map(|n| usize::try_from(*n).ok())
        .collect();
    let shape = shape?;
    let count = shape
        .iter()
        .try_fold(1_usize, |n, dim| n.checked_mul(*dim))?;
    let needed = count.checked_mul(kind.bytes())? as u64;
    let fits = from <= to && end <= length && (kind == Kind::Other || to - from == needed);
    fits.then_some(Tensor {
        file,
        shape,
        kind,
        offset: data + from,
    })
}

impl Tensors for Safetensors {
    fn names(&self) -> Names {
        Names::Transformers
    }

    fn dimensions(&self, name: &str) -> Option<Vec<usize>> {
        Some(self.tensors.get(name)?.shape.clone())
    }

    fn read(&self, name: &str) -> Converted<Array> {
        let missing = || ConvertError::input(format!("there is no tensor {name} in it"));
        let tensor = self.tensors.get(name).ok_or_else(missing)?;
        let file = self.files.get(tensor.file).ok_or_else(missing)?;
        if tensor.kind == Kind::Other {
            return Err(ConvertError::input(format!(
                "{name} is not of 32-bit or 16-bit floats: take the model's form in float16 or float32"
            )));
        }
        // Cannot overflow: the tensor lies in the file, as was checked.
        let count: usize = tensor.shape.iter().product();
        let mut bytes = vec![0; count * tensor.kind.bytes()];
        file.read_exact_at(&mut bytes, tensor.offset)?;
        let pairs = bytes
            .as_chunks::<2>()
            .0
            .iter()
            .map(|b| u16::from_le_bytes(*b));
        let values = match tensor.kind {
            Kind::F32 => {
                let words = bytes.as_chunks::<4>().0.iter();
                words.map(|b| f32::from_le_bytes(*b)).collect()
            }
            Kind::F16 => pairs.map(halves::to_f32).collect(),
            _ => pairs
                .map(|half| f32::from_bits(u32::from(half) << 16))
                .collect(),
        };
        Ok(Array {
            shape: tensor.shape.clone(),
            values,
        })
    }

    fn heads_of(&self, side: &str) -> Option<i64> {
        self.heads[usize::from(side == "decoder")]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(header: &str, data: &[u8]) -> Vec<u8> {
        let length = (header.len() as u64).to_le_bytes();
        [&length[..], header.as_bytes(), data].concat()
    }

    fn open(files: &[(&str, Vec<u8>)]) -> Result<Safetensors, String> {
        let folder = tempfile::tempdir().unwrap();
        for (name, bytes) in files {
            std::fs::write(folder.path().join(name), bytes).unwrap();
        }
        Safetensors::open(folder.path()).map_err(|err| err.to_string())
    }

    #[test]
    fn floats_of_three_kinds_are_read_from_all_parts() {
        let first = r#"{"__metadata__":{"format":"pt"},"model.a.weight":{"dtype":"F32","shape":[1,2],"data_offsets":[0,8]},
            "b.weight":{"dtype":"F16","shape":[2],"data_offsets":[8,12]}}"#;
        let second = r#"{"model.c":{"dtype":"BF16","shape":[1],"data_offsets":[2,4]}}"#;
        let data = [
            &1.5_f32.to_le_bytes()[..],
            &(-2.0_f32).to_le_bytes(),
            &[0, 0x3c, 0, 0xc0],
        ]
        .concat();
        let index =
            r#"{"weight_map":{"x":"1.safetensors","y":"2.safetensors","z":"1.safetensors"}}"#;

        let model = open(&[
            ("1.safetensors", file(first, &data)),
            ("2.safetensors", file(second, &[0, 0, 0x80, 0x40])),
            (INDEX, index.into()),
        ])
        .unwrap();

        let values = |name| model.read(name).unwrap().values;
        assert_eq!(model.dimensions("a.weight"), Some(vec![1, 2]));
        assert_eq!(values("a.weight"), [1.5, -2.0]);
        assert_eq!(values("b.weight"), [1.0, -2.0]);
        assert_eq!(values("c"), [4.0]);
        assert!(model.read("d").is_err());
    }

    #[test]
    fn what_does_not_lie_in_the_file_is_refused_with_the_name() {
        let entry = |shape: &str, offsets: &str| {
            let header =
                format!(r#"{{"a":{{"dtype":"F32","shape":{shape},"data_offsets":{offsets}}}}}"#);
            open(&[(WHOLE, file(&header, &[0; 8]))])
        };
        for (shape, offsets) in [
            ("[2]", "[0,4]"),
            ("[3]", "[0,12]"),
            ("[2]", "[8,0]"),
            ("[18446744073709551615,2]", "[0,8]"),
            ("[2]", "[0,18446744073709551615]"),
        ] {
            let why = entry(shape, offsets).err().unwrap();
            assert!(why.contains("a does not lie"), "{why}");
        }
        assert!(entry("[2]", "[0,8]").is_ok());
        let why = |files: &[(&str, Vec<u8>)]| open(files).err().unwrap();
        assert!(why(&[(WHOLE, vec![0; 4])]).contains("cut short"));
        assert!(why(&[(WHOLE, vec![0xff; 16])]).contains("its header is said"));
        assert!(why(&[(WHOLE, file("{", b""))]).contains("its header"));
        let up = br#"{"weight_map":{"x":"../up.safetensors"}}"#.to_vec();
        assert!(why(&[(INDEX, up)]).contains("../up"));
        assert!(why(&[]).contains("neither"));
    }
}
