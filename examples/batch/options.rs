// SPDX-License-Identifier: MPL-2.0
//! What was typed.

use std::path::PathBuf;

use clap::Parser;
use gst::glib;
use gst::prelude::*;
use gstscribe::diarize::names::Voices;
use gstscribe::transcript::formats::Format;

use gstscribe::registry::limit::MemoryLimit;

/// Transcribes many recordings with one model.
#[derive(Debug, Parser)]
#[command(name = "batch", version)]
pub struct Options {
    /// Recordings at once [default: one more than there are cores, so that they are busy while a file begins or ends].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=256))]
    jobs: Option<u16>,
    /// Memory that scribe may use: bytes, 12G or 75%.
    #[arg(long, value_name = "LIMIT")]
    pub memory_limit: Option<MemoryLimit>,
    /// A model's name, id or file; the same as --property model=MODEL.
    #[arg(long)]
    model: Option<String>,
    /// vtt, srt, json, jsonl, ttml, text, rttm, stm or ctm.
    #[arg(long, default_value = "vtt")]
    pub format: Format,
    /// Tell who speaks.
    #[arg(long)]
    pub speakers: bool,
    /// Tell who speaks, by name: the voices that scribeenroller has learnt.
    #[arg(long, value_name = "FILE")]
    pub voices: Option<PathBuf>,
    /// Where a .vtt or .srt lies beside a recording, take that instead of transcribing: copied where it has the form that
    /// is asked for, else converted. ctm, rttm and speakers need what no such file has: there the recording is transcribed.
    #[arg(long)]
    pub use_sidecar: bool,
    /// Folder for the transcripts. Recordings below a FOLDER keep their place in it.
    #[arg(long, value_name = "DIR", default_value = "transcripts")]
    pub out: PathBuf,
    /// Do again what is there already. Without, a transcript that is newer than its recording is kept, whatever model
    /// or properties it was made with.
    #[arg(long)]
    pub overwrite: bool,
    /// A property of scribetranscriber; may be given many times.
    #[arg(long = "property", value_name = "NAME=VALUE")]
    property: Vec<String>,
    /// Recordings, and folders of them.
    #[arg(required = true, value_name = "FOLDER|FILE")]
    pub paths: Vec<PathBuf>,
}

impl Options {
    /// Recordings at once.
    pub fn jobs(&self) -> usize {
        self.jobs.map_or_else(
            || std::thread::available_parallelism().map_or(2, usize::from) + 1,
            usize::from,
        )
    }

    /// Whether it is to be told who speaks.
    pub fn tells_speakers(&self) -> bool {
        self.speakers || self.voices.is_some()
    }

    /// Whether the voices can be used: told before any file is begun.
    pub fn look_at_voices(&self) -> Result<(), String> {
        match &self.voices {
            Some(path) if path.to_str().is_none() => {
                Err(format!("--voices {}: the name is no UTF-8", path.display()))
            }
            Some(path) => Voices::open(path, None)
                .map(drop)
                .map_err(|e| e.to_string()),
            None => Ok(()),
        }
    }

    /// Properties of the transcriber, tried on one: a wrong one is told before any file is begun.
    pub fn properties(&self) -> Result<Vec<(String, String)>, String> {
        let transcriber = gst::ElementFactory::make("scribetranscriber")
            .build()
            .map_err(|e| e.to_string())?;
        let model = self.model.iter().map(|model| Ok(("model", model.as_str())));
        let given = self.property.iter().map(|given| {
            given
                .split_once('=')
                .ok_or_else(|| format!("--property {given}: NAME=VALUE is wanted"))
        });
        model
            .chain(given)
            .map(|pair: Result<_, String>| {
                let (name, text) = pair?;
                set(&transcriber, name, text)?;
                Ok((name.to_owned(), text.to_owned()))
            })
            .collect()
    }
}

/// Sets a property from text.
pub fn set(element: &gst::Element, name: &str, text: &str) -> Result<(), String> {
    let spec = element
        .find_property(name)
        .filter(|spec| spec.flags().contains(glib::ParamFlags::WRITABLE))
        .ok_or_else(|| {
            let factory = element.factory().map(|f| f.name());
            format!(
                "{0} has no property {name} to set: gst-inspect-1.0 {0} lists them",
                factory.as_deref().unwrap_or("the element")
            )
        })?;
    // A string needs no quotes here.
    let value = if spec.value_type() == glib::Type::STRING {
        text.to_value()
    } else {
        glib::Value::deserialize_with_pspec(text, &spec)
            .map_err(|_| format!("property {name} cannot be \"{text}\""))?
    };
    element.set_property_from_value(name, &value);
    Ok(())
}
