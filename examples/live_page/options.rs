// SPDX-License-Identifier: MPL-2.0
//! What was typed.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use clap::Parser;

/// A live stream's captions in a browser, with speakers.
#[derive(Debug, Parser)]
#[command(name = "live_page", version)]
pub struct Options {
    /// A file, played as fast as it was spoken, or a URI such as rtsp://…
    #[arg(
        value_name = "FILE|URI",
        required_unless_present = "source",
        conflicts_with = "source"
    )]
    pub input: Option<String>,
    /// A source as gst-launch-1.0 would have it: pulsesrc, or 'alsasrc device=hw:1'.
    #[arg(long, value_name = "DESCRIPTION")]
    pub source: Option<String>,
    /// Where browsers find the page. 0.0.0.0:8080 lets everybody on the network read along.
    #[arg(long, value_name = "ADDRESS:PORT", default_value = "127.0.0.1:8080")]
    pub listen: SocketAddr,
    /// A name of this machine that browsers may use, beside its addresses and localhost; may be given many times.
    #[arg(long, value_name = "NAME")]
    pub host: Vec<String>,
    /// A model's name, id or file.
    #[arg(long)]
    pub model: Option<String>,
    /// Language that is spoken, such as en or de-DE [default: heard from the speech].
    #[arg(long, value_name = "CODE")]
    pub language: Option<String>,
    /// Tell who speaks.
    #[arg(long)]
    pub speakers: bool,
    /// Tell who speaks, by name: the voices that scribeenroller has learnt.
    #[arg(long, value_name = "FILE")]
    pub voices: Option<PathBuf>,
    /// What stands above the text [default: the file's name, or "Live captions"].
    #[arg(long)]
    pub title: Option<String>,
    /// Lines that are kept for those who come late, come back or load the page again.
    #[arg(long, value_name = "LINES", default_value_t = 2000, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub history: u32,
    /// End with the stream instead of showing the text until Ctrl-C.
    #[arg(long)]
    pub exit_at_end: bool,
}

impl Options {
    /// Whether it is to be told who speaks.
    pub fn tells_speakers(&self) -> bool {
        self.speakers || self.voices.is_some()
    }

    /// What stands above the text.
    pub fn title(&self) -> String {
        let file = || {
            let name = Path::new(self.input.as_deref()?).file_name()?;
            Some(name.to_string_lossy().into_owned())
        };
        self.title
            .clone()
            .or_else(file)
            .unwrap_or_else(|| "Live captions".into())
    }
}
