// SPDX-License-Identifier: MPL-2.0
//! Who spoke when, without a pipeline: raw sound in (16 kHz, mono, 32-bit floats), RTTM out.
//!
//! ```sh
//! ffmpeg -v error -i talk.mp3 -ac 1 -ar 16000 -f f32le talk.f32
//! diarize --out turns talk.f32                                  # turns/talk.rttm
//! diarize --out turns --link 0.4,0.45,0.5 --merge 0.13,0.15 *.f32   # turns/LINK-MERGE-LEAST/…: thresholds of a new model
//! diarize --out turns --online --latency 0.5,5 talk.f32         # as it is told live: turns/5/told/… and turns/5/mended/…
//! ```
//!
//! Live, `told` has turns as they were told, and `mended` the same after all relabels, as a document would have them.
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
use gstscribe::diarize::offline::{Heard, Offline, OfflineOptions};
use gstscribe::diarize::online::{KnownVoices, Online, OnlineOptions, Told};
use gstscribe::diarize::reconstruct::{Cutting, Talk};
use gstscribe::diarize::voice::{VoiceModel, voice_model};
use gstscribe::inference::CancelToken;
use gstscribe::registry::{Embedding, Lease, Registry, Request, Segmentation};
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
    /// Shorter turns are none, in milliseconds.
    #[arg(long, default_value_t = 100)]
    min_turn: u64,
    /// Fewest people.
    #[arg(long, default_value_t = 1)]
    min_speakers: usize,
    /// Most people.
    #[arg(long, default_value_t = 20)]
    max_speakers: usize,
    /// Live: turns while the sound comes, in pieces of 100 ms.
    #[arg(long)]
    online: bool,
    /// Seconds behind the newest sound at which turns are final, live.
    #[arg(long, value_delimiter = ',', default_value = "5")]
    latency: Vec<f64>,
}

impl Options {
    fn cutting(&self) -> Cutting {
        Cutting {
            min_silence: self.min_silence * 16,
            min_turn: self.min_turn * 16,
            at_once: 3,
        }
    }
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
        if options.online {
            let models = (Arc::new(seg), Arc::new(emb));
            for &latency in &options.latency {
                live(options, &voice, &models, &samples, latency, file)?;
            }
            continue;
        }
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

/// As it would be told live, but that the models are waited for.
fn live(
    options: &Options,
    voice: &VoiceModel,
    models: &(Arc<Lease<Segmentation>>, Arc<Lease<Embedding>>),
    samples: &[f32],
    latency: f64,
    file: &Path,
) -> Result<(), Box<dyn Error>> {
    let how = OnlineOptions {
        thresholds: voice.thresholds,
        latency: (latency * 16_000.0) as usize,
        max_speakers: options.max_speakers,
        cutting: options.cutting(),
        lockstep: true,
    };
    let began = Instant::now();
    let (seg, emb) = (Arc::clone(&models.0), Arc::clone(&models.1));
    let known = KnownVoices::default();
    let mut online = Online::new(seg, emb, voice.input, how, known, CancelToken::new());
    let (mut told, mut mended): (Vec<Talk>, Vec<Talk>) = (Vec::new(), Vec::new());
    let mut relabels = 0;
    let mut take = |new: Told| {
        told.extend(&new.turns);
        mended.extend(&new.turns);
        relabels += new.relabels.len();
        for relabel in new.relabels {
            let range = relabel.from..relabel.to;
            let theirs = |t: &&mut Talk| t.speaker == relabel.old && range.contains(&t.start);
            let turns = mended.iter_mut().filter(theirs);
            turns.for_each(|t| t.speaker = relabel.new);
        }
    };
    let mut at = 0;
    for piece in samples.chunks(1_600) {
        online.push(at, piece)?;
        at += piece.len() as u64;
        take(online.poll()?);
    }
    take(online.finish()?);
    let took = began.elapsed().as_secs_f64();
    let folder = options.out.join(latency.to_string());
    write(&told, &folder.join("told"), file)?;
    write(&mended, &folder.join("mended"), file)?;
    let seconds = samples.len() as f64 / 16_000.0;
    println!(
        "{} at {latency} s: {seconds:.1} s in {took:.2} s, {:.4} of real time, {} parts of turns, {relabels} relabels",
        file.display(),
        took / seconds,
        told.len()
    );
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
                    cutting: options.cutting(),
                };
                write(&heard.diarization(&how).turns.all, &folder, file)?;
            }
        }
    }
    Ok(())
}

fn write(turns: &[Talk], folder: &Path, file: &Path) -> Result<(), Box<dyn Error>> {
    std::fs::create_dir_all(folder)?;
    let stem = file.file_stem().ok_or("a file without a name")?;
    let stem = stem.to_string_lossy();
    let ns = |samples: u64| StreamNs(samples_to_ns(samples));
    let turns = turns.iter().map(|turn| Turn {
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
