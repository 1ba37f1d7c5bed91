// SPDX-License-Identifier: MPL-2.0
//! What was typed.

use std::path::PathBuf;

use clap::Parser;

/// A stream in, HLS with captions out.
#[derive(Debug, Parser)]
#[command(name = "hls", version)]
pub struct Options {
    /// A file, or a URI such as rtsp://… or rtmp://…
    #[arg(value_name = "FILE|URI")]
    pub input: String,
    /// Where the files go; players open index.m3u8 there.
    #[arg(value_name = "FOLDER")]
    pub folder: PathBuf,
    /// Length of a segment in seconds. Pictures in H.264 are cut where the stream allows it.
    #[arg(long, value_name = "SECONDS", default_value_t = 6, value_parser = clap::value_parser!(u32).range(1..=60))]
    pub segment: u32,
    /// Segments that playlists hold; older ones are deleted. 0: all stay.
    #[arg(long, value_name = "SEGMENTS", default_value_t = 0)]
    pub window: usize,
    /// Encode pictures that are H.264 already, so that segments have their length exactly.
    #[arg(long)]
    pub encode: bool,
    /// A model's name, id or file.
    #[arg(long)]
    pub model: Option<String>,
    /// Language that is spoken, such as en or de-DE [default: heard from the speech].
    #[arg(long, value_name = "CODE")]
    pub language: Option<String>,
    /// Tell who speaks.
    #[arg(long)]
    pub speakers: bool,
    /// How long captions may trail a live stream, in milliseconds [default: the transcriber's].
    #[arg(long, value_name = "MS")]
    pub latency: Option<u32>,
}

impl Options {
    /// Whether the input comes in its own time, whatever its source says of itself: `rtmpsrc` says nothing.
    pub fn is_live(&self) -> bool {
        let scheme = self.input.split_once("://").map(|(scheme, _)| scheme);
        scheme.is_some_and(|s| !["file", "http", "https"].contains(&s))
    }
}
