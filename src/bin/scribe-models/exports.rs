// SPDX-License-Identifier: MPL-2.0
//! Whisper models in Optimum's layout, from those who publish them on Hugging Face.
//!
//! The manifest has no digests of them: there are dozens, and they are exported anew now and then. What is compared is what the
//! hub says of a file before it sends it: its SHA-256 and length (`X-Linked-ETag`, `X-Linked-Size`), which come from the hub
//! itself, while the bytes may come from elsewhere. All files are of the commit that the first one had. Their digests are kept
//! beside them.

use std::collections::VecDeque;
use std::fs;
use std::path::{Path, PathBuf};

use gstscribe::inference::manifest::{Export, sha256_file};

use crate::failure::{Failure, Trouble};
use crate::http::Web;
use crate::settings::Settings;
use crate::store::{self, Expected, Lock};

/// Where the hub is, as Hugging Face's own programs are told.
const ENDPOINT: &str = "HF_ENDPOINT";
const HUB: &str = "https://huggingface.co";
/// Who publishes such models.
const PUBLISHERS: [&str; 2] = ["onnx-community/", "Xenova/"];
/// What every repository has beside the graphs.
const TEXTS: [&str; 3] = ["config.json", "generation_config.json", "tokenizer.json"];
/// Precisions as they are asked for, and as files' names end.
const PRECISIONS: [(&str, &str); 8] = [
    ("fp32", ""),
    ("fp16", "_fp16"),
    ("q8", "_quantized"),
    ("uint8", "_uint8"),
    ("int8", "_int8"),
    ("q4", "_q4"),
    ("q4f16", "_q4f16"),
    ("bnb4", "_bnb4"),
];
/// The digests of a folder's files, as `sha256sum -c` takes them.
const SUMS: &str = "SHA256SUMS";

/// A model of one of the publishers, and its precision.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Official<'a> {
    repository: &'a str,
    ending: &'static str,
}

impl<'a> Official<'a> {
    /// The model that `onnx-community/whisper-base` or `onnx-community/whisper-base:q8` names; `None` for another name.
    pub fn of(name: &'a str) -> Option<Result<Self, Failure>> {
        let (repository, precision) = name.split_once(':').unwrap_or((name, "fp32"));
        let model = PUBLISHERS
            .iter()
            .find_map(|publisher| repository.strip_prefix(publisher))?;
        let plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
        if !model.contains("whisper") || !model.chars().all(plain) || model.starts_with('.') {
            return None;
        }
        let known = PRECISIONS.iter().find(|(word, _)| *word == precision);
        let words: Vec<&str> = PRECISIONS.iter().map(|(word, _)| *word).collect();
        Some(match known {
            Some((_, ending)) => Ok(Self { repository, ending }),
            None => Err(Failure::Usage(format!(
                "'{precision}' is no precision of {repository}: {}",
                words.join(", ")
            ))),
        })
    }

    /// Gets its files, as far as they are not there, and returns their folder.
    pub fn fetch(self, settings: &Settings, web: &Web) -> Result<PathBuf, Failure> {
        let work = settings.work_dir();
        let folder = settings.dir.join(self.repository);
        let lock = Lock::wait(&work, &self.own(""))?;
        store::make_folder(&folder.join("onnx"))?;
        let outcome = self.get(web, &work, &folder);
        // Goes only if it is empty.
        drop(lock);
        let _ = fs::remove_dir(&work);
        outcome.map_err(|trouble| match trouble {
            Trouble::Local(failure) => failure,
            Trouble::Source(reason) => Failure::NoSource {
                what: self.repository.into(),
                reasons: vec![reason],
            },
        })?;
        // What is there is looked at as an element would.
        let whole = Export::find(&folder);
        whole.map_err(Failure::Input)?;
        Ok(folder)
    }

    /// A name in the folder for unfinished things that no other repository has.
    fn own(self, file: &str) -> String {
        format!("{}--{file}", self.repository.replace('/', "--"))
    }

    fn get(self, web: &Web, work: &Path, folder: &Path) -> Result<(), Trouble> {
        let hub = std::env::var(ENDPOINT).unwrap_or_default();
        let hub = match hub.trim_end_matches('/') {
            "" => HUB,
            named => named,
        };
        let address =
            |commit: &str, file: &str| format!("{hub}/{}/resolve/{commit}/{file}", self.repository);
        let first = web.announced(&address("main", TEXTS[0]))?;
        let commit = first.commit.unwrap_or_else(|| "main".into());
        let graphs = ["encoder_model", "decoder_model_merged"];
        let graphs = graphs.map(|graph| format!("onnx/{graph}{}.onnx", self.ending));
        let texts = TEXTS.iter().map(|text| (*text).to_owned());
        let mut wanted: VecDeque<String> = texts.chain(graphs).collect();
        while let Some(file) = wanted.pop_front() {
            let file = file.as_str();
            let url = address(&commit, file);
            let place = folder.join(file);
            let announced = web.announced(&url)?;
            match (announced.sha256, announced.size_bytes) {
                (Some(sha256), Some(size_bytes)) => {
                    let name = file.rsplit('/').next().unwrap_or(file);
                    let expected = Expected {
                        name,
                        size_bytes,
                        sha256: &sha256,
                    };
                    if !expected.is_at(&place)? {
                        let part = work.join(self.own(&format!("{name}.part")));
                        web.download(&url, &expected, &part)?;
                        store::put_in_place(&part, &place)?;
                    }
                    if file.ends_with(".onnx") && keeps_data_outside(&place)? {
                        wanted.push_back(format!("{file}_data"));
                    }
                }
                // A short text, which the hub sends itself.
                _ if TEXTS.contains(&file) => {
                    let page = web.page(&url, "*/*")?;
                    let part = work.join(self.own(&format!("{file}.part")));
                    let written = fs::write(&part, page.text);
                    written.map_err(|err| Failure::file("write", &part, err))?;
                    store::put_in_place(&part, &place)?;
                }
                _ => {
                    return Err(Trouble::Source(format!(
                        "{url}: the hub does not say what its SHA-256 is, so that nobody could tell whether it is whole"
                    )));
                }
            }
        }
        Ok(write_sums(folder)?)
    }
}

/// Whether a graph has its data in another file.
fn keeps_data_outside(graph: &Path) -> Result<bool, Failure> {
    let bytes = fs::read(graph).map_err(|err| Failure::file("read", graph, err))?;
    gstscribe::inference::onnx::keeps_data_outside(&bytes)
        .map_err(|why| Failure::Input(format!("{}: {why}", graph.display())))
}

/// Writes down the digests of all that is in the folder.
fn write_sums(folder: &Path) -> Result<(), Failure> {
    let mut files: Vec<String> = TEXTS.iter().map(|text| (*text).to_owned()).collect();
    let graphs = folder.join("onnx");
    let listing = fs::read_dir(&graphs).map_err(|err| Failure::file("read", &graphs, err))?;
    let names = listing.flatten().map(|file| file.file_name());
    let names = names.map(|name| format!("onnx/{}", name.to_string_lossy()));
    files.extend(names.filter(|name| name.ends_with(".onnx") || name.ends_with(".onnx_data")));
    files.sort();
    let mut text = String::new();
    for name in files {
        let file = folder.join(&name);
        let digest = sha256_file(&file).map_err(|err| Failure::file("read", &file, err))?;
        text.push_str(&format!("{digest}  {name}\n"));
    }
    let place = folder.join(SUMS);
    fs::write(&place, text).map_err(|err| Failure::file("write", &place, err))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn publishers_and_precisions_are_known_and_nothing_else() {
        let of = |name| Official::of(name).map(Result::ok);
        let known = |repository, ending| Some(Some(Official { repository, ending }));

        let base = "onnx-community/whisper-base";
        assert_eq!(of(base), known(base, ""));
        let turbo = "Xenova/whisper-large-v3";
        assert_eq!(of("Xenova/whisper-large-v3:q8"), known(turbo, "_quantized"));
        assert_eq!(of("onnx-community/whisper-base:q9"), Some(None));
        for other in [
            "base",
            "onnx-community/bert",
            "onnx-community/../whisper",
            "onnx-community/whisper/../../x",
            "somebody/whisper-base",
        ] {
            assert_eq!(of(other), None, "{other}");
        }
    }
}
