// SPDX-License-Identifier: MPL-2.0
//! A recording as a picture: who speaks when, and every word, in one HTML file that needs nothing else.
//!
//! ```sh
//! timeline talk.json                          # writes talk.html: what `scribeenc format=json` wrote, to look at
//! timeline talk.json --audio talk.mp3         # the same with a player for the file beside it
//! timeline talk.json --audio talk.opus --embed -o shown.html       # the sound inside, to send to somebody
//! ```
//!
//! The file asks nothing of any network: script, style and data are inside, and its own policy forbids the rest.
//! `timeline --help` lists the options; the exit status is 0 if the file was written, 1 if not, 2 for wrong use.

#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a program for the terminal"
)]

#[path = "timeline/page.rs"]
mod page;
#[path = "timeline/sound.rs"]
mod sound;
#[path = "timeline/view.rs"]
mod view;

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Parser;
use gstscribe::transcript::formats::json;

use sound::Sound;
use view::View;

/// Draws turns and words of a recording as one HTML file.
#[derive(Debug, Parser)]
#[command(name = "timeline", version)]
struct Options {
    /// What `scribeenc format=json` wrote.
    #[arg(value_name = "TRANSCRIPT.json")]
    transcript: PathBuf,
    /// The recording, for a player: the page refers to it, so the two must stay where they are to each other.
    #[arg(long, value_name = "FILE")]
    audio: Option<PathBuf>,
    /// Put the recording into the page; 64 MiB at most.
    #[arg(long, requires = "audio")]
    embed: bool,
    /// Where to write [default: beside the transcript, with the ending .html].
    #[arg(short, long, value_name = "OUT.html")]
    out: Option<PathBuf>,
}

/// What went wrong, and what a person can do.
#[derive(Debug)]
struct Failure {
    what: String,
    remedy: String,
}

impl Failure {
    fn new(what: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self {
            what: what.into(),
            remedy: remedy.into(),
        }
    }
}

fn main() -> ExitCode {
    // Ends the program with status 2 where the options are wrong.
    let options = Options::parse();
    match run(&options) {
        Ok(written) => {
            println!("{}", written.display());
            ExitCode::SUCCESS
        }
        Err(failure) => {
            eprintln!("timeline: {}", failure.what);
            eprintln!("  remedy: {}", failure.remedy);
            ExitCode::FAILURE
        }
    }
}

/// The file that was written.
fn run(options: &Options) -> Result<PathBuf, Failure> {
    let source = &options.transcript;
    let document = std::fs::read_to_string(source).map_err(|err| {
        Failure::new(
            format!("cannot read {}: {err}", source.display()),
            "give the file that `scribeenc format=json` wrote",
        )
    })?;
    let transcript = json::read(&document).map_err(|err| {
        Failure::new(
            format!("{}: {err}", source.display()),
            "give a file that `scribeenc format=json` of this version wrote: other formats cannot be drawn",
        )
    })?;

    let out = options
        .out
        .clone()
        .unwrap_or_else(|| source.with_extension("html"));
    for input in [Some(source), options.audio.as_ref()].into_iter().flatten() {
        if is_same_file(input, &out) {
            return Err(Failure::new(
                format!("{} would be written over itself", input.display()),
                "name another file with -o",
            ));
        }
    }
    let sound = options
        .audio
        .as_deref()
        .map(|audio| match options.embed {
            true => Sound::embedded(audio),
            false => Sound::beside(audio, &out),
        })
        .transpose()?;

    let named = options.audio.as_ref().unwrap_or(source);
    let title = match options.audio {
        Some(_) => named.file_name(),
        None => named.file_stem(),
    };
    let title = title.unwrap_or_default().to_string_lossy();
    let view = View::new(&transcript, &title, sound.as_ref());
    write_whole(&out, &page::html(&view, sound.as_ref())).map_err(|err| {
        Failure::new(
            format!("cannot write {}: {err}", out.display()),
            "choose with -o a file in a folder that is there and may be written",
        )
    })?;
    Ok(out)
}

fn is_same_file(one: &Path, other: &Path) -> bool {
    matches!((one.canonicalize(), other.canonicalize()), (Ok(a), Ok(b)) if a == b)
}

/// Under a name of its own first: whoever has the page open never sees half of it.
fn write_whole(out: &Path, text: &str) -> std::io::Result<()> {
    let name = out.file_name().unwrap_or_default();
    let mut part = std::ffi::OsString::from(".");
    part.push(name);
    part.push(".part");
    let part = out.with_file_name(part);
    let written = std::fs::File::create(&part)
        .and_then(|mut file| {
            file.write_all(text.as_bytes())?;
            file.sync_all()
        })
        .and_then(|()| std::fs::rename(&part, out));
    if written.is_err() {
        let _ = std::fs::remove_file(&part);
    }
    written
}
