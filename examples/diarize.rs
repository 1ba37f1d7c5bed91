// SPDX-License-Identifier: MPL-2.0
//! Who spoke when, without a pipeline: raw sound in (16 kHz, mono, 32-bit floats), RTTM out.
//!
//! ```sh
//! ffmpeg -v error -i talk.mp3 -ac 1 -ar 16000 -f f32le talk.f32
//! diarize --out turns talk.f32                                  # turns/talk.rttm
//! diarize --out turns --link 0.4,0.45,0.5 --merge 0.13,0.15 *.f32   # turns/LINK-MERGE-LEAST/…: thresholds of a new model
//! ```
//!
//! The models run once a recording whatever the number of thresholds. `scribediarizer` does the same in a pipeline.

#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a program for the terminal"
)]

use std::error::Error;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use clap::Parser;
use gstscribe::audio::StreamNs;
use gstscribe::audio::time::samples_to_ns;
use gstscribe::diarize::models::segmentation_spec;
use gstscribe::diarize::offline::{Diarization, Heard, Offline, OfflineOptions};
use gstscribe::diarize::reconstruct::Cutting;
use gstscribe::diarize::voice::{VoiceModel, voice_model};
use gstscribe::inference::CancelToken;
use gstscribe::registry::{Embedding, Registry, Request, Segmentation};
use gstscribe::transcript::formats::{self, Format};
use gstscribe::transcript::{Transcript, Turn};

/// Who spoke when in raw sound: 16 kHz, mono, 32-bit floats.
#[derive(Parser)]
struct Options {
    /// Recordings.
    #[arg(required = true)]
    files: Vec<PathBuf>,
    /// Where the RTTM files go.
    #[arg(long, default_value = ".")]
    out: PathBuf,
    /// Segmentation model.
    #[arg(long, default_value = "")]
    segmentation: String,
    /// Embedding model.
    #[arg(long, default_value = "")]
    embedding: String,
    /// Seconds from the start of one window to that of the next.
    #[arg(long, default_value_t = 2.0)]
    step: f64,
    /// Threads that compute.
    #[arg(long, default_value_t = 2)]
    threads: usize,
    /// Thresholds to try, for those of the model.
    #[arg(long, value_delimiter = ',')]
    link: Vec<f32>,
    /// The same of the second stage.
    #[arg(long, value_delimiter = ',')]
    merge: Vec<f32>,
    /// Least seconds of a person.
    #[arg(long, value_delimiter = ',')]
    least: Vec<f32>,
    /// Pauses that are filled, in milliseconds.
    #[arg(long, default_value_t = 300)]
    min_silence: u64,
    /// Fewest people.
    #[arg(long, default_value_t = 1)]
    min_speakers: usize,
    /// Most people.
    #[arg(long, default_value_t = 20)]
    max_speakers: usize,
}

fn main() -> ExitCode {
    match run(&Options::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("diarize: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(options: &Options) -> Result<(), Box<dyn Error>> {
    let registry = Registry::new(options.threads, Duration::from_secs(60));
    let cancel = CancelToken::new();
    let segmentation = segmentation_spec(&options.segmentation)?;
    let voice = voice_model(&options.embedding)?;
    for file in &options.files {
        let request = (
            Request::<Segmentation>(segmentation.clone()),
            Request::<Embedding>(voice.spec.clone()),
        );
        let (seg, emb) = registry.acquire(request, &cancel)?;
        let samples = read(file)?;
        let (began, cpu_before) = (Instant::now(), cpu_seconds());
        let step = (options.step * 16_000.0) as usize;
        let mut at = 0;
        let mut offline = Offline::new(
            Arc::new(seg),
            Arc::new(emb),
            step,
            voice.input,
            cancel.clone(),
        );
        for piece in samples.chunks(16_000) {
            offline.push(at, piece)?;
            at += piece.len() as u64;
        }
        let heard = offline.finish()?;
        let (took, cpu) = (began.elapsed().as_secs_f64(), cpu_seconds() - cpu_before);
        write_all(options, &voice, &heard, file)?;
        let seconds = samples.len() as f64 / 16_000.0;
        println!(
            "{}: {seconds:.3} s in {took:.3} s, {cpu:.2} s of CPU, {:.4} of real time",
            file.display(),
            took / seconds
        );
    }
    Ok(())
}

/// What all threads of this process have computed, in hundredths of a second; 0 where the system does not say it.
fn cpu_seconds() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    // The program's name may have blanks in it: fields count from the bracket behind it.
    let fields = stat.rsplit(')').next().unwrap_or_default();
    let ticks = fields.split_whitespace().skip(11).take(2);
    ticks.filter_map(|t| t.parse::<f64>().ok()).sum::<f64>() / 100.0
}

fn read(file: &Path) -> Result<Vec<f32>, Box<dyn Error>> {
    let bytes = std::fs::read(file).map_err(|e| format!("{}: {e}", file.display()))?;
    Ok(bytes
        .chunks_exact(4)
        .map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]))
        .collect())
}

fn write_all(
    options: &Options,
    voice: &VoiceModel,
    heard: &Heard,
    file: &Path,
) -> Result<(), Box<dyn Error>> {
    let own = voice.thresholds;
    let or = |given: &[f32], own: f32| {
        if given.is_empty() {
            vec![own]
        } else {
            given.to_vec()
        }
    };
    let (links, merges) = (or(&options.link, own.link), or(&options.merge, own.merge));
    let leasts = or(&options.least, own.least_seconds);
    let several = links.len() * merges.len() * leasts.len() > 1;
    for link in links {
        for &merge in &merges {
            for &least_seconds in &leasts {
                let mut folder = options.out.clone();
                if several {
                    folder.push(format!("{link}-{merge}-{least_seconds}"));
                }
                let mut thresholds = own;
                thresholds.link = link;
                thresholds.merge = merge;
                thresholds.least_seconds = least_seconds;
                let how = OfflineOptions {
                    thresholds,
                    min_speakers: options.min_speakers,
                    max_speakers: options.max_speakers,
                    cutting: Cutting {
                        min_silence: options.min_silence * 16,
                        min_turn: 0,
                        at_once: 3,
                    },
                };
                write(&heard.diarization(&how), &folder, file)?;
            }
        }
    }
    Ok(())
}

fn write(found: &Diarization, folder: &Path, file: &Path) -> Result<(), Box<dyn Error>> {
    std::fs::create_dir_all(folder)?;
    let stem = file.file_stem().ok_or("a file without a name")?;
    let stem = stem.to_string_lossy();
    let ns = |samples: u64| StreamNs(samples_to_ns(samples));
    let turns = found.turns.all.iter().map(|turn| Turn {
        speaker_id: format!("speaker-{}", turn.speaker + 1),
        speaker: None,
        start: ns(turn.start),
        end: ns(turn.end),
        confidence: turn.confidence,
    });
    let transcript = Transcript {
        turns: turns.collect(),
        ..Transcript::default()
    };
    let options = formats::Options {
        file_id: stem.clone().into_owned(),
        ..formats::Options::default()
    };
    let mut out = Vec::new();
    formats::write(Format::Rttm, &transcript, &options, &mut out)?;
    std::fs::write(folder.join(format!("{stem}.rttm")), out)?;
    Ok(())
}
