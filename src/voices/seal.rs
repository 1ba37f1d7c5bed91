// SPDX-License-Identifier: MPL-2.0
//! The bytes of a row as they lie in the file: sealed with a key, or plain with a checksum.
//!
//! Both are bound to their place: the bytes of one row are refused in another.

use std::ffi::OsString;
use std::fmt;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use base64::Engine;
use base64::alphabet;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use chacha20poly1305::aead::{Aead, Payload};
use chacha20poly1305::{KeyInit, XChaCha20Poly1305, XNonce};
use hmac::{Hmac, Mac};
use sha2::Sha256;
use zeroize::{Zeroize, Zeroizing};

use super::error::Problem;

/// The key, as text.
pub const KEY_VARIABLE: &str = "SCRIBE_VOICES_KEY";
/// A file with the key.
pub const KEY_FILE_VARIABLE: &str = "SCRIBE_VOICES_KEY_FILE";

const KEY_BYTES: usize = 32;
const NONCE_BYTES: usize = 24;
const CHECKSUM_BYTES: usize = 4;
/// Nothing that is a key is longer.
const KEY_TEXT_BYTES_MAX: u64 = 4_096;
/// What a row's name is told apart by.
pub(super) const TAG_BYTES: usize = 32;

/// What opens an encrypted store: 32 random bytes. They are wiped when it goes.
#[derive(Clone)]
pub struct Key(Box<[u8; KEY_BYTES]>);

impl Key {
    /// A new one.
    ///
    /// # Errors
    /// If the system has no random numbers.
    pub fn random() -> Result<Self, KeyError> {
        let mut key = Self(Box::new([0; KEY_BYTES]));
        getrandom::fill(&mut *key.0).map_err(KeyError::NoRandom)?;
        Ok(key)
    }

    /// The key that was given: `file`, else the variable `SCRIBE_VOICES_KEY`, else the file that
    /// `SCRIBE_VOICES_KEY_FILE` names.
    ///
    /// # Errors
    /// If one was given that cannot be read or is no key.
    pub fn find(file: Option<&Path>) -> Result<Option<Self>, KeyError> {
        let set = |variable| std::env::var_os(variable).filter(|v: &OsString| !v.is_empty());
        if let Some(file) = file {
            return Self::read(file).map(Some);
        }
        if let Some(text) = set(KEY_VARIABLE) {
            let text = Zeroizing::new(text.into_encoded_bytes());
            let key = Self::from_text(&text);
            return key.map(Some).ok_or(KeyError::NotAKey {
                place: KEY_VARIABLE.into(),
            });
        }
        set(KEY_FILE_VARIABLE)
            .map(|file| Self::read(Path::new(&file)))
            .transpose()
    }

    /// From a file: 64 hexadecimal digits, base64 of 32 bytes, or 32 bytes as they are. A pipe will do.
    ///
    /// # Errors
    /// If it cannot be read or is no key.
    pub fn read(file: &Path) -> Result<Self, KeyError> {
        let unreadable = |source| KeyError::Unreadable {
            path: file.into(),
            source,
        };
        let opened = std::fs::File::open(file).map_err(unreadable)?;
        let mut bytes = Zeroizing::new(Vec::with_capacity(KEY_TEXT_BYTES_MAX as usize));
        opened
            .take(KEY_TEXT_BYTES_MAX)
            .read_to_end(&mut bytes)
            .map_err(unreadable)?;
        // 32 letters that somebody thought of are no key, though they have its length.
        let is_raw = bytes.len() == KEY_BYTES && !bytes.iter().all(u8::is_ascii);
        let key = if is_raw {
            Self::from_bytes(&bytes)
        } else {
            Self::from_text(&bytes)
        };
        key.ok_or_else(|| KeyError::NotAKey {
            place: file.display().to_string(),
        })
    }

    /// As text for a file: 64 hexadecimal digits.
    pub fn to_text(&self) -> Zeroizing<String> {
        const DIGITS: &[u8; 16] = b"0123456789abcdef";
        // Of its full size at once: what grows leaves copies behind.
        let mut text = Zeroizing::new(String::with_capacity(2 * KEY_BYTES));
        for byte in self.0.iter() {
            for digit in [byte >> 4, byte & 15] {
                text.push(char::from(DIGITS[usize::from(digit)]));
            }
        }
        text
    }

    fn from_text(text: &[u8]) -> Option<Self> {
        let text = text.trim_ascii();
        let mut bytes = Zeroizing::new([0; KEY_BYTES + 1]);
        let len = if text.len() == 2 * KEY_BYTES {
            let digit = |d: u8| char::from(d).to_digit(16);
            for (byte, pair) in bytes.iter_mut().zip(text.chunks_exact(2)) {
                *byte = (digit(pair[0])? << 4 | digit(pair[1])?) as u8;
            }
            KEY_BYTES
        } else {
            let config = GeneralPurposeConfig::new()
                .with_decode_padding_mode(DecodePaddingMode::Indifferent);
            let decoder = GeneralPurpose::new(&alphabet::STANDARD, config);
            decoder.decode_slice(text, &mut *bytes).ok()?
        };
        Self::from_bytes(bytes.get(..len)?)
    }

    fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let mut key = Self(Box::new([0; KEY_BYTES]));
        (bytes.len() == KEY_BYTES).then(|| key.0.copy_from_slice(bytes))?;
        Some(key)
    }

    /// A key for one purpose. Finding one does not tell another.
    fn derived(&self, purpose: &[u8]) -> Zeroizing<[u8; KEY_BYTES]> {
        Zeroizing::new(hmac(&self.0, &[purpose]))
    }
}

impl Drop for Key {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Key(…)")
    }
}

/// Why there is no key.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum KeyError {
    /// The file.
    #[error("cannot read the key file {}: {source}", path.display())]
    Unreadable {
        /// Which.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// What was read.
    #[error(
        "{place} holds no key: a key is 32 random bytes, as 64 hexadecimal digits or base64. `scribe-voices keygen FILE` makes one"
    )]
    NotAKey {
        /// Variable or file.
        place: String,
    },
    /// None can be made.
    #[error("the system gives no random numbers: {0}")]
    NoRandom(getrandom::Error),
}

/// Turns a row's content into what lies in the file, and back.
pub(super) enum Seal {
    /// As it is, with a checksum behind it.
    Plain,
    /// XChaCha20-Poly1305: 24 random bytes, then the sealed content. So many never repeat.
    Key {
        cipher: Box<XChaCha20Poly1305>,
        names: Zeroizing<[u8; KEY_BYTES]>,
    },
}

impl Seal {
    pub(super) fn new(key: Option<&Key>) -> Self {
        let Some(key) = key else {
            return Self::Plain;
        };
        let cipher = XChaCha20Poly1305::new(&(*key.derived(b"scribe-voices rows")).into());
        Self::Key {
            cipher: Box::new(cipher),
            names: key.derived(b"scribe-voices names"),
        }
    }

    pub(super) fn is_sealed(&self) -> bool {
        matches!(self, Self::Key { .. })
    }

    /// `content` for the row that `place` says.
    pub(super) fn close(&self, place: &[u8], content: &[u8]) -> Result<Vec<u8>, Problem> {
        match self {
            Self::Plain => {
                let mut bytes = content.to_vec();
                bytes.extend(checksum(place, content));
                Ok(bytes)
            }
            Self::Key { cipher, .. } => {
                let mut nonce = [0; NONCE_BYTES];
                getrandom::fill(&mut nonce)?;
                let payload = Payload {
                    msg: content,
                    aad: place,
                };
                let sealed = cipher.encrypt(&XNonce::from(nonce), payload);
                // Fails beyond 256 GiB.
                let sealed = sealed.map_err(|_| Problem::BadTake("it is too large"))?;
                Ok([&nonce[..], &sealed].concat())
            }
        }
    }

    /// What [`close`](Self::close) was given. None if key, place or bytes are others.
    pub(super) fn open(&self, place: &[u8], bytes: &[u8]) -> Option<Zeroizing<Vec<u8>>> {
        match self {
            Self::Plain => {
                let (content, sum) = bytes.split_last_chunk::<CHECKSUM_BYTES>()?;
                let is_whole = checksum(place, content) == *sum;
                is_whole.then(|| Zeroizing::new(content.to_vec()))
            }
            Self::Key { cipher, .. } => {
                let (nonce, msg) = bytes.split_first_chunk::<NONCE_BYTES>()?;
                let payload = Payload { msg, aad: place };
                let content = cipher.decrypt(&XNonce::from(*nonce), payload).ok()?;
                Some(Zeroizing::new(content))
            }
        }
    }

    /// What tells names apart in the file: the name itself, or what only the key can make of it.
    pub(super) fn name_tag(&self, store: &[u8], name: &str) -> Vec<u8> {
        match self {
            Self::Plain => name.as_bytes().to_vec(),
            Self::Key { names, .. } => hmac(names, &[store, name.as_bytes()]).to_vec(),
        }
    }
}

/// CRC-32: tells accidents, not attackers.
fn checksum(place: &[u8], content: &[u8]) -> [u8; CHECKSUM_BYTES] {
    let mut crc = flate2::Crc::new();
    crc.update(place);
    crc.update(content);
    crc.sum().to_le_bytes()
}

/// HMAC-SHA-256 (RFC 2104).
fn hmac(key: &[u8; KEY_BYTES], parts: &[&[u8]]) -> [u8; TAG_BYTES] {
    let mut mac = <Hmac<Sha256> as KeyInit>::new(&block(key).into());
    for part in parts {
        mac.update(part);
    }
    mac.finalize().into_bytes().into()
}

/// A key as HMAC takes it: filled with zeros to the hash's block.
fn block(key: &[u8; KEY_BYTES]) -> [u8; 64] {
    let mut block = [0; 64];
    block[..KEY_BYTES].copy_from_slice(key);
    block
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(fill: u8) -> Key {
        Key::from_bytes(&[fill; KEY_BYTES]).unwrap()
    }

    #[test]
    fn what_is_sealed_opens_with_its_key_at_its_place_and_nowhere_else() {
        let seal = Seal::new(Some(&key(1)));
        let bytes = seal.close(b"row 1", b"Alice").unwrap();

        assert_eq!(**seal.open(b"row 1", &bytes).unwrap(), *b"Alice");
        assert!(seal.open(b"row 2", &bytes).is_none());
        assert!(Seal::new(Some(&key(2))).open(b"row 1", &bytes).is_none());
        assert!(Seal::Plain.open(b"row 1", &bytes).is_none());
        for cut in 0..bytes.len() {
            assert!(seal.open(b"row 1", &bytes[..cut]).is_none(), "{cut}");
        }
    }

    #[test]
    fn no_two_sealings_are_alike() {
        let seal = Seal::new(Some(&key(1)));

        assert_ne!(
            seal.close(b"row", b"Alice").unwrap(),
            seal.close(b"row", b"Alice").unwrap()
        );
    }

    #[test]
    fn a_plain_row_with_one_other_bit_is_refused() {
        let bytes = Seal::Plain.close(b"row", b"Alice").unwrap();
        assert_eq!(**Seal::Plain.open(b"row", &bytes).unwrap(), *b"Alice");

        for bit in 0..8 * bytes.len() {
            let mut other = bytes.clone();
            other[bit / 8] ^= 1 << (bit % 8);
            assert!(Seal::Plain.open(b"row", &other).is_none(), "{bit}");
        }
    }

    #[test]
    fn tags_of_names_need_the_key_and_the_store() {
        let seal = Seal::new(Some(&key(1)));

        let tag = seal.name_tag(b"store", "Alice");

        assert_eq!(tag, seal.name_tag(b"store", "Alice"));
        assert_ne!(tag, seal.name_tag(b"other", "Alice"));
        assert_ne!(tag, seal.name_tag(b"store", "Bob"));
        assert_ne!(tag, Seal::new(Some(&key(2))).name_tag(b"store", "Alice"));
    }

    #[test]
    fn hmac_is_that_of_rfc_4231() {
        // Test case 1 has a key of 20 bytes 0x0b: with zeros behind it, it is the same key.
        let mut key = [0; KEY_BYTES];
        key[..20].fill(0x0b);

        let tag = hmac(&key, &[b"Hi ", b"There"]);

        assert_eq!(tag[..8], [0xb0, 0x34, 0x4c, 0x61, 0xd8, 0xdb, 0x38, 0x53]);
    }

    #[test]
    fn a_key_is_hexadecimal_or_base64_or_raw_and_a_passphrase_is_none() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("key");
        let raw: Vec<u8> = (0..32_u8)
            .map(|i| i.wrapping_mul(7).wrapping_add(200))
            .collect();
        let read = |bytes: &[u8]| {
            std::fs::write(&file, bytes).unwrap();
            Key::read(&file)
        };
        let key = Key::from_bytes(&raw).unwrap();
        let base64 = base64::engine::general_purpose::STANDARD.encode(&raw);

        for text in [
            format!("{}\n", *key.to_text()),
            key.to_text().to_uppercase(),
            format!("  {base64}\r\n"),
            base64.trim_end_matches('=').to_owned(),
        ] {
            assert_eq!(read(text.as_bytes()).unwrap().0, key.0, "{text}");
        }
        assert_eq!(read(&raw).unwrap().0, key.0);
        for wrong in [
            &b""[..],
            b"secret",
            b"correct horse battery staple 123",
            &key.to_text().as_bytes()[1..],
            &[200; 33],
            &[b'a'; 5_000],
        ] {
            assert!(matches!(read(wrong), Err(KeyError::NotAKey { .. })));
        }
        let debug = format!("{key:?}");
        assert_eq!(debug, "Key(…)");
    }
}
