// SPDX-License-Identifier: MPL-2.0
//! The recording, as the page gets at it.

use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use gst::glib;

use super::Failure;

/// A browser holds the sound several times over while it unpacks it.
const EMBEDDED_BYTES_MAX: u64 = 64 << 20;

/// What browsers play, by the ending of the file's name.
const MEDIA_TYPES: [(&str, &str); 14] = [
    ("aac", "audio/aac"),
    ("flac", "audio/flac"),
    ("m4a", "audio/mp4"),
    ("m4v", "video/mp4"),
    ("mka", "audio/webm"),
    ("mkv", "video/webm"),
    ("mov", "video/mp4"),
    ("mp3", "audio/mpeg"),
    ("mp4", "video/mp4"),
    ("oga", "audio/ogg"),
    ("ogg", "audio/ogg"),
    ("opus", "audio/ogg"),
    ("wav", "audio/wav"),
    ("webm", "video/webm"),
];

/// How the page gets at the recording.
#[derive(Debug)]
pub enum Sound {
    /// A reference, relative to the page, as it stands in a URL.
    Beside(String),
    /// The whole of it as a `data:` URI.
    Embedded(String),
}

impl Sound {
    /// Refers from the page `out` to `audio`.
    pub fn beside(audio: &Path, out: &Path) -> Result<Self, Failure> {
        size_of(audio)?;
        let page_folder = folder_of(out).canonicalize().map_err(|err| {
            Failure::new(
                format!("cannot write into {}: {err}", folder_of(out).display()),
                "make that folder, or choose another file with -o",
            )
        })?;
        // Not the file itself: a link beside the page stays the name beside the page.
        let audio_folder = folder_of(audio).canonicalize().map_err(unreadable(audio))?;
        let mut path = relative(&audio_folder, &page_folder);
        path.push(audio.file_name().unwrap_or_default());
        Ok(Self::Beside(as_url(&path)))
    }

    /// Reads `audio` whole.
    pub fn embedded(audio: &Path) -> Result<Self, Failure> {
        let bytes = size_of(audio)?;
        if bytes > EMBEDDED_BYTES_MAX {
            return Err(Failure::new(
                format!(
                    "{} has {} MiB, and --embed takes 64 MiB at most",
                    audio.display(),
                    bytes.div_ceil(1 << 20)
                ),
                "leave --embed out and keep the recording beside the page, or make it smaller:\n    \
                 gst-launch-1.0 filesrc location=IN ! decodebin ! audioconvert ! audioresample ! opusenc bitrate=32000 \
                 ! oggmux ! filesink location=OUT.opus",
            ));
        }
        let media_type = media_type(audio)?;
        let sound = std::fs::read(audio).map_err(unreadable(audio))?;
        Ok(Self::Embedded(format!(
            "data:{media_type};base64,{}",
            glib::base64_encode(&sound)
        )))
    }
}

fn unreadable(audio: &Path) -> impl Fn(std::io::Error) -> Failure {
    move |err| {
        Failure::new(
            format!("cannot read {}: {err}", audio.display()),
            "give the recording itself with --audio, or leave --audio out",
        )
    }
}

fn size_of(audio: &Path) -> Result<u64, Failure> {
    let about = std::fs::metadata(audio).map_err(unreadable(audio))?;
    if !about.is_file() {
        return Err(Failure::new(
            format!("{} is no file", audio.display()),
            "give the recording itself with --audio",
        ));
    }
    Ok(about.len())
}

fn media_type(audio: &Path) -> Result<&'static str, Failure> {
    let ending = audio.extension().unwrap_or_default().to_ascii_lowercase();
    MEDIA_TYPES
        .iter()
        .find(|(known, _)| ending == *known)
        .map(|(_, media_type)| *media_type)
        .ok_or_else(|| {
            let known: Vec<&str> = MEDIA_TYPES.iter().map(|(known, _)| *known).collect();
            Failure::new(
                format!("browsers play no such file as {}", audio.display()),
                format!(
                    "convert it to one that ends in {}; or leave --embed out",
                    known.join(", ")
                ),
            )
        })
}

/// The folder that `path` lies in.
fn folder_of(path: &Path) -> &Path {
    path.parent()
        .filter(|p| !p.as_os_str().is_empty())
        .unwrap_or(Path::new("."))
}

/// The way to folder `to` from folder `from`, both whole and without links.
fn relative(to: &Path, from: &Path) -> PathBuf {
    let shared = to
        .components()
        .zip(from.components())
        .take_while(|(a, b)| a == b)
        .count();
    let up = from.components().skip(shared).map(|_| Component::ParentDir);
    up.chain(to.components().skip(shared)).collect()
}

/// `path` as a URL has it: what is no plain letter, digit or mark is written as `%XX`, byte for byte. A colon too: a
/// first name with one would be a scheme.
fn as_url(path: &Path) -> String {
    let mut url = String::new();
    for &byte in path.as_os_str().as_bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' | b'/' => {
                url.push(char::from(byte));
            }
            other => url.push_str(&format!("%{other:02X}")),
        }
    }
    url
}
