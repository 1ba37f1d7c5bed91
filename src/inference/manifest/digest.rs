// SPDX-License-Identifier: MPL-2.0
//! SHA-256 of files, worked out once per file.
//!
//! A file is told by device, inode, length and time of change; what is known of it is kept in the
//! process and, as far as that works, in `$XDG_CACHE_HOME/scribe/digests` for later ones.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write as _};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use sha2::{Digest, Sha256};

/// A longer file of digests is begun anew: it is a cache, and hundreds of models fit in this.
const CACHE_FILE_BYTES_MAX: u64 = 64 * 1024;

/// Digests of this process. A cache of facts about files: sharing it can surprise nobody.
static KNOWN: OnceLock<Mutex<HashMap<Stamp, String>>> = OnceLock::new();

/// Tells one state of one file from every other.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct Stamp {
    device: u64,
    inode: u64,
    size_bytes: u64,
    changed_ns: i128,
}

impl Stamp {
    fn of(meta: &fs::Metadata) -> Self {
        Self {
            device: meta.dev(),
            inode: meta.ino(),
            size_bytes: meta.len(),
            changed_ns: i128::from(meta.mtime()) * 1_000_000_000 + i128::from(meta.mtime_nsec()),
        }
    }
}

/// Digests that survive the process, in a folder that may be missing or read-only.
pub(super) struct Cache {
    file: Option<PathBuf>,
}

impl Cache {
    pub(super) fn new(cache_home: Option<&Path>) -> Self {
        Self {
            file: cache_home.map(|home| home.join("scribe/digests")),
        }
    }

    /// SHA-256 of a file in lower-case hex, from memory if the file has not changed.
    pub(super) fn sha256(&self, path: &Path) -> io::Result<String> {
        let stamp = Stamp::of(&fs::metadata(path)?);
        let in_process = known().get(&stamp).cloned();
        if let Some(digest) = in_process.or_else(|| self.look_up(stamp)) {
            known().insert(stamp, digest.clone());
            return Ok(digest);
        }
        let digest = sha256_file(path)?;
        // Remembered only if nobody wrote to the file meanwhile.
        if Stamp::of(&fs::metadata(path)?) == stamp {
            known().insert(stamp, digest.clone());
            let _ = self.remember(stamp, &digest);
        }
        Ok(digest)
    }

    fn look_up(&self, stamp: Stamp) -> Option<String> {
        let text = fs::read_to_string(self.file.as_deref()?).ok()?;
        let start = line_start(stamp);
        text.lines().rev().find_map(|line| {
            line.strip_prefix(&start)
                .filter(|hex| is_sha256(hex))
                .map(str::to_owned)
        })
    }

    fn remember(&self, stamp: Stamp, digest: &str) -> io::Result<()> {
        let Some(file) = self.file.as_deref() else {
            return Ok(());
        };
        if let Some(folder) = file.parent() {
            fs::create_dir_all(folder)?;
        }
        if fs::metadata(file).is_ok_and(|meta| meta.len() > CACHE_FILE_BYTES_MAX) {
            fs::remove_file(file)?;
        }
        // One short write at the end: lines of several processes do not mix.
        let line = format!("{}{digest}\n", line_start(stamp));
        OpenOptions::new()
            .create(true)
            .append(true)
            .open(file)?
            .write_all(line.as_bytes())
    }
}

fn line_start(stamp: Stamp) -> String {
    format!(
        "{} {} {} {} ",
        stamp.device, stamp.inode, stamp.size_bytes, stamp.changed_ns
    )
}

fn known() -> MutexGuard<'static, HashMap<Stamp, String>> {
    KNOWN
        .get_or_init(Mutex::default)
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
}

/// SHA-256 of a file's bytes as they are now, in lower-case hex.
pub fn sha256_file(path: &Path) -> io::Result<String> {
    let mut file = File::open(path)?;
    let mut hasher = Sha256::new();
    let mut piece = vec![0_u8; 1 << 18];
    loop {
        match file.read(&mut piece) {
            Ok(0) => return Ok(hex(&hasher.finalize())),
            Ok(n) => hasher.update(&piece[..n]),
            Err(err) if err.kind() == io::ErrorKind::Interrupted => {}
            Err(err) => return Err(err),
        }
    }
}

/// Bytes in lower-case hex.
pub fn hex(bytes: &[u8]) -> String {
    bytes
        .iter()
        .fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
            let _ = write!(text, "{byte:02x}");
            text
        })
}

/// Whether a text is a SHA-256 in lower-case hex.
pub(super) fn is_sha256(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}
