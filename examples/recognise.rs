// SPDX-License-Identifier: MPL-2.0
//! How well voices are known again: what `scripts/bench-voices.sh` measures, in raw figures, one JSON object a line.
//!
//! ```sh
//! recognise trials voices.tsv >trials.jsonl           # SPEAKER, RECORDING, FILE.f32: one recording a line
//! recognise files enrolled.tsv talk.f32 >talk.jsonl   # SPEAKER, RECORDING, FILE.f32 of those who are enrolled; recordings
//! recognise two voices.tsv >two.jsonl                 # takes of one person and of two, by the check of enrolment
//! recognise speed
//! ```
//!
//! Sound is 16 kHz, mono, 32-bit floats. Everything goes through the registry and the parts that the elements are made of.

#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a program for the terminal"
)]

use std::collections::BTreeMap;
use std::error::Error;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use clap::{Parser, Subcommand};
use gstscribe::diarize::models::segmentation_spec;
use gstscribe::diarize::offline::{Diarization, Offline, OfflineOptions};
use gstscribe::diarize::reconstruct::Cutting;
use gstscribe::diarize::voice::{VoiceModel, voice_model};
use gstscribe::enroll::hearing::Hearing;
use gstscribe::enroll::judge::Limits;
use gstscribe::enroll::pieces::Pieces;
use gstscribe::enroll::{self, EnrollOptions};
use gstscribe::inference::CancelToken;
use gstscribe::registry::{Embedding, Lease, Registry, Request, Segmentation, VoiceActivity};
use gstscribe::transcribe::file::vad_spec;
use gstscribe::voices::matching::{Gallery, Probe, Thresholds};
use gstscribe::voices::{ModelKey, Quality, Take, Voice, VoiceId, print};
use serde_json::{Value, json};

const SECOND: usize = 16_000;
/// A pause of this parts speech, milliseconds: as in an enrolment.
const MIN_SILENCE_MS: u32 = 100;
/// Seconds of speech that are enrolled.
const ENROLLED: [usize; 3] = [3, 10, 30];
/// Seconds of speech that are tried.
const TRIED: [usize; 5] = [1, 2, 3, 5, 10];
/// Seconds of speech of a take that is looked at for a second voice.
const TAKEN: [usize; 4] = [8, 15, 30, 60];
/// Recordings of a speaker who is enrolled at least.
const RECORDINGS_LEAST: usize = 4;
/// Other choices of the enrolled recordings.
const TURNS_OF_CHOICE: usize = 4;

type Failure = Box<dyn Error>;

/// How well voices are known again.
#[derive(Parser)]
struct Options {
    /// Embedding model.
    #[arg(long, default_value = "")]
    embedding: String,
    /// Threads that compute.
    #[arg(long, default_value_t = 2)]
    threads: usize,
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand)]
enum What {
    /// Each piece of a speaker's other recordings beside those who are enrolled.
    Trials {
        /// SPEAKER, RECORDING, FILE of one recording a line.
        list: PathBuf,
    },
    /// Who talks in recordings. A speaker's takes of the same RECORDING as the file's name are not enrolled for it.
    Files {
        /// SPEAKER, RECORDING, FILE of what is enrolled, one a line.
        list: PathBuf,
        /// Recordings.
        files: Vec<PathBuf>,
    },
    /// Takes of one person and of two, by the check of enrolment.
    Two {
        /// SPEAKER, RECORDING, FILE of one recording a line.
        list: PathBuf,
    },
    /// How long it takes to find a voice among 10,000.
    Speed,
}

fn main() -> ExitCode {
    match run(&Options::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("recognise: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(options: &Options) -> Result<(), Failure> {
    if matches!(options.what, What::Speed) {
        return speed();
    }
    let mut ear = Ear::new(options)?;
    match &options.what {
        What::Trials { list } => trials(&mut ear, &read_list(list)?),
        What::Files { list, files } => recordings(&mut ear, &read_list(list)?, files),
        What::Two { list } => two(&mut ear, &read_list(list)?),
        What::Speed => Ok(()),
    }
}

/// A recording of a speaker.
struct Listed {
    speaker: String,
    recording: String,
    file: PathBuf,
}

fn read_list(path: &Path) -> Result<Vec<Listed>, Failure> {
    let text = std::fs::read_to_string(path).map_err(|e| format!("{}: {e}", path.display()))?;
    let line = |line: &str| match line.split('\t').collect::<Vec<_>>()[..] {
        [speaker, recording, file] => Ok(Listed {
            speaker: speaker.to_owned(),
            recording: recording.to_owned(),
            file: file.into(),
        }),
        _ => Err(format!("{}: no three fields in {line:?}", path.display()).into()),
    };
    text.lines().map(line).collect()
}

fn read(file: &Path) -> Result<Vec<f32>, Failure> {
    let bytes = std::fs::read(file).map_err(|e| format!("{}: {e}", file.display()))?;
    Ok(bytes
        .chunks_exact(4)
        .map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]))
        .collect())
}

/// The models, and what is made with them.
struct Ear {
    registry: Registry,
    cancel: CancelToken,
    vad: Arc<Lease<VoiceActivity>>,
    segmentation: Arc<Lease<Segmentation>>,
    embedding: Lease<Embedding>,
    voice: VoiceModel,
    thresholds: Thresholds,
}

impl Ear {
    fn new(options: &Options) -> Result<Self, Failure> {
        let registry = Registry::new(options.threads, Duration::from_secs(60));
        let cancel = CancelToken::new();
        let voice = voice_model(&options.embedding)?;
        let request = (
            Request::<VoiceActivity>(vad_spec("")?),
            Request::<Segmentation>(segmentation_spec("")?),
            Request::<Embedding>(voice.spec.clone()),
        );
        let (vad, segmentation, embedding) = registry.acquire(request, &cancel)?;
        let thresholds = voice.matching()?;
        Ok(Self {
            registry,
            cancel,
            vad: Arc::new(vad),
            segmentation: Arc::new(segmentation),
            embedding,
            voice,
            thresholds,
        })
    }

    /// What one person says alone in a recording, end to end, as enrolment hears it.
    fn speech(&self, samples: &[f32]) -> Result<Vec<f32>, Failure> {
        let (vad, segmentation) = (Arc::clone(&self.vad), Arc::clone(&self.segmentation));
        let mut hearing = Hearing::new(vad, segmentation, MIN_SILENCE_MS, self.cancel.clone());
        hearing.push(0, samples)?;
        hearing.finish()?;
        let mut out = Vec::new();
        for block in hearing.take() {
            for range in &block.clean {
                out.extend_from_slice(&block.samples[range.clone()]);
            }
        }
        Ok(out)
    }

    /// The vectors of pieces, in their order.
    fn vectors(&mut self, pieces: Vec<Arc<[f32]>>) -> Result<Vec<Vec<f32>>, Failure> {
        let found = enroll::embed(
            &self.embedding,
            pieces.into_iter(),
            None,
            &self.cancel,
            &mut |_| (),
        )?;
        Ok(found.into_iter().map(|v| v.values.to_vec()).collect())
    }

    /// What enrolment makes of speech.
    fn take(&mut self, speech: &[f32]) -> Result<Option<Take>, Failure> {
        let vectors = self.vectors(pieces(speech))?;
        let quality = Quality {
            net_speech_s: seconds(speech),
            ..Quality::default()
        };
        Ok(print::take(key(&vectors), &vectors, quality, 0))
    }

    /// The vector of a piece of speech as the diarizer makes it.
    fn probe(&mut self, speech: &[f32]) -> Result<Vec<f32>, Failure> {
        let piece = self.voice.input.piece.min(speech.len());
        let spare = speech.len() - piece;
        let count = spare.div_ceil(20_000) + 1;
        let starts = (0..count).map(|n| spare * n / (count - 1).max(1));
        let pieces = starts.map(|at| Arc::from(&speech[at..at + piece]));
        let vectors = self.vectors(pieces.collect())?;
        Ok(mean(&vectors))
    }
}

/// As they are cut for enrolment.
fn pieces(speech: &[f32]) -> Vec<Arc<[f32]>> {
    let how = EnrollOptions::default();
    let mut pieces = Pieces::new(how.duration, how.hop, how.max_segments);
    pieces.push(speech);
    pieces.finish()
}

fn seconds(samples: &[f32]) -> f64 {
    samples.len() as f64 / SECOND as f64
}

fn mean(vectors: &[Vec<f32>]) -> Vec<f32> {
    let mut sum = vec![0.0; vectors.first().map_or(0, Vec::len)];
    for vector in vectors {
        sum.iter_mut().zip(vector).for_each(|(s, v)| *s += v);
    }
    let length = sum.iter().map(|v| v * v).sum::<f32>().sqrt().max(1e-9);
    sum.iter_mut().for_each(|v| *v /= length);
    sum
}

/// There is one model here.
fn key(vectors: &[Vec<f32>]) -> ModelKey {
    ModelKey {
        name: "measured".into(),
        version: String::new(),
        dimension: vectors.first().map_or(0, Vec::len),
    }
}

fn voice(id: usize, takes: Vec<Take>) -> Voice {
    Voice {
        id: VoiceId(id as u64),
        number: id as u32,
        name: None,
        consent: None,
        created: 0,
        updated: 0,
        expires: None,
        takes,
    }
}

fn gallery(voices: &[Voice], thresholds: Thresholds) -> Gallery {
    let model = voices.iter().flat_map(|v| &v.takes).next();
    let model = model.map_or_else(|| key(&[]), |take| take.model.clone());
    Gallery::new(voices, &model, thresholds, 0)
}

/// Recordings of a speaker: what is said in each.
type Said = BTreeMap<String, Vec<Vec<f32>>>;

fn all_said(ear: &Ear, list: &[Listed]) -> Result<Said, Failure> {
    let mut said = Said::new();
    for listed in list {
        let speech = ear.speech(&read(&listed.file)?)?;
        if speech.len() >= ear.voice.input.min_samples {
            let own = said.entry(listed.speaker.clone()).or_default();
            own.push(speech);
        }
    }
    Ok(said)
}

/// A test piece of somebody.
struct Test {
    speaker: String,
    choice: usize,
    seconds: usize,
    vector: Vec<f32>,
}

/// Each speaker with enough recordings is enrolled from some of them, in several turns, and all else is tried: the other
/// recordings beside all who are enrolled, those of everybody beside all others.
fn trials(ear: &mut Ear, list: &[Listed]) -> Result<(), Failure> {
    let said = all_said(ear, list)?;
    let names: Vec<&String> = said.keys().collect();
    let id = |name: &str| names.iter().position(|n| *n == name).unwrap_or(0);
    // (turn, seconds) to voices.
    let mut enrolled: BTreeMap<(usize, usize), Vec<Voice>> = BTreeMap::new();
    // Of those with few recordings: enrolled from all of it, to be beside the others in a large store.
    let mut others: Vec<Voice> = Vec::new();
    let mut tests: Vec<Test> = Vec::new();
    for (speaker, recordings) in &said {
        if recordings.len() < RECORDINGS_LEAST {
            let all = recordings.concat();
            others.extend(ear.take(&all)?.map(|take| voice(id(speaker), vec![take])));
            test(ear, speaker, 0, &all, 2, &mut tests)?;
            continue;
        }
        for choice in 0..TURNS_OF_CHOICE {
            let (first, rest) = chosen(recordings, choice);
            for length in ENROLLED {
                // A little less will do: pauses inside recordings are not speech.
                if first.len() * 10 < length * SECOND * 9 {
                    continue;
                }
                let speech = &first[..first.len().min(length * SECOND)];
                let own = enrolled.entry((choice, length)).or_default();
                own.extend(ear.take(speech)?.map(|take| voice(id(speaker), vec![take])));
            }
            test(ear, speaker, choice, &rest, 5, &mut tests)?;
        }
    }
    for ((choice, length), voices) in &enrolled {
        let own = tests
            .iter()
            .filter(|t| t.choice == *choice || said[&t.speaker].len() < RECORDINGS_LEAST);
        for test in own {
            let owner = id(&test.speaker);
            for (size, fill) in [("small", &[][..]), ("large", &others)] {
                let beside = |with_owner: bool| {
                    let all = voices.iter().chain(fill);
                    let all = all.filter(|v| with_owner || v.id.0 != owner as u64);
                    all.cloned().collect::<Vec<Voice>>()
                };
                let is_enrolled = voices.iter().any(|v| v.id.0 == owner as u64);
                for with_owner in [true, false] {
                    if with_owner && !is_enrolled {
                        continue;
                    }
                    let store = gallery(&beside(with_owner), ear.thresholds);
                    let probe = Probe {
                        vector: &test.vector,
                        seconds: test.seconds as f64,
                    };
                    let ranked = store.rank(probe, if size == "small" { store.len() } else { 3 });
                    let decision = store.decide(probe);
                    let scores: Vec<Value> = ranked
                        .iter()
                        .map(|l| json!([names[l.id.0 as usize], (l.score * 1e4).round() / 1e4]))
                        .collect();
                    println!(
                        "{}",
                        json!({
                            "store": size, "people": store.len(), "choice": choice, "enrolled_s": length,
                            "tried_s": test.seconds, "speaker": test.speaker, "is_enrolled": with_owner,
                            "named": decision.id().map(|id| names[id.0 as usize]),
                            "bound": decision.bound, "scores": scores,
                        })
                    );
                }
            }
        }
    }
    Ok(())
}

/// Three recordings and more until there are 30 s or a third is left, and the rest.
fn chosen(recordings: &[Vec<f32>], choice: usize) -> (Vec<f32>, Vec<f32>) {
    let count = recordings.len();
    let order = |n: usize| &recordings[(n + choice * count / TURNS_OF_CHOICE) % count];
    let (mut first, mut rest) = (Vec::new(), Vec::new());
    for n in 0..count {
        let is_enough = n >= 3 && (first.len() >= ENROLLED[2] * SECOND || n * 3 >= count * 2);
        if is_enough || !rest.is_empty() {
            rest.extend_from_slice(order(n));
        } else {
            first.extend_from_slice(order(n));
        }
    }
    (first, rest)
}

/// Pieces of each length, at most `most` of them, spread over what there is.
fn test(
    ear: &mut Ear,
    speaker: &str,
    choice: usize,
    speech: &[f32],
    most: usize,
    out: &mut Vec<Test>,
) -> Result<(), Failure> {
    for seconds in TRIED {
        let length = seconds * SECOND;
        let count = (speech.len() / length).min(most);
        for n in 0..count {
            let at = (speech.len() - length) * n / (count - 1).max(1);
            out.push(Test {
                speaker: speaker.to_owned(),
                choice,
                seconds,
                vector: ear.probe(&speech[at..at + length])?,
            });
        }
    }
    Ok(())
}

/// Who talks when in each file, and who that is by those who are enrolled: all of them, and without each in turn.
fn recordings(ear: &mut Ear, list: &[Listed], files: &[PathBuf]) -> Result<(), Failure> {
    let mut takes: Vec<(&Listed, Take)> = Vec::new();
    for listed in list {
        let speech = ear.speech(&read(&listed.file)?)?;
        if speech.len() >= 2 * SECOND {
            takes.extend(ear.take(&speech)?.map(|take| (listed, take)));
        }
    }
    for file in files {
        let name = file.file_stem().unwrap_or_default().to_string_lossy();
        let began = Instant::now();
        let found = diarize(ear, &read(file)?)?;
        let took = began.elapsed().as_secs_f64();
        let alone = found.turns.alone(found.voices.len());
        let probes: Vec<Probe<'_>> = found
            .voices
            .iter()
            .zip(&alone)
            .map(|(vector, samples)| Probe {
                vector,
                seconds: *samples as f64 / SECOND as f64,
            })
            .collect();
        let mut own: BTreeMap<&str, Vec<Take>> = BTreeMap::new();
        for (listed, take) in takes.iter().filter(|(l, _)| l.recording != name) {
            own.entry(&listed.speaker).or_default().push(take.clone());
        }
        let names: Vec<&str> = own.keys().copied().collect();
        let mut variants = Vec::new();
        for left_out in std::iter::once(None).chain(names.iter().copied().map(Some)) {
            let kept = own.iter().enumerate();
            let kept = kept.filter(|(_, (name, _))| Some(**name) != left_out);
            let voices: Vec<Voice> = kept.map(|(n, (_, t))| voice(n, t.clone())).collect();
            let decisions = gallery(&voices, ear.thresholds).name(&probes);
            let told = decisions.iter().map(|d| {
                json!({
                    "named": d.id().map(|id| names[id.0 as usize]),
                    "why": with_names(&d.to_string(), &names), "verdict": format!("{:?}", d.verdict),
                    "best": d.best.map(|b| json!([names[b.id.0 as usize], b.score])), "bound": d.bound,
                })
            });
            variants.push(json!({"left_out": left_out, "voices": told.collect::<Vec<_>>()}));
        }
        let turns = |list: &[gstscribe::diarize::reconstruct::Talk]| {
            let one = |t: &gstscribe::diarize::reconstruct::Talk| {
                let at = |n: u64| n as f64 / SECOND as f64;
                json!([at(t.start), at(t.end), t.speaker])
            };
            list.iter().map(one).collect::<Vec<Value>>()
        };
        println!(
            "{}",
            json!({
                "file": name, "took_s": took,
                "alone_s": probes.iter().map(|p| p.seconds).collect::<Vec<_>>(),
                "exclusive": turns(&found.turns.exclusive), "all": turns(&found.turns.all),
                "vectors": found.voices, "variants": variants,
            })
        );
    }
    Ok(())
}

/// Names for ids.
fn with_names(text: &str, names: &[&str]) -> String {
    let all = names.iter().enumerate();
    all.fold(text.to_owned(), |text, (n, name)| {
        text.replace(&VoiceId(n as u64).to_string(), name)
    })
}

fn diarize(ear: &Ear, samples: &[f32]) -> Result<Diarization, Failure> {
    let request = (
        Request::<Segmentation>(segmentation_spec("")?),
        Request::<Embedding>(ear.voice.spec.clone()),
    );
    let (seg, emb) = ear.registry.acquire(request, &ear.cancel)?;
    let (seg, emb) = (Arc::new(seg), Arc::new(emb));
    let mut offline = Offline::new(seg, emb, 2 * SECOND, ear.voice.input, ear.cancel.clone());
    let mut at = 0;
    for piece in samples.chunks(SECOND) {
        offline.push(at, piece)?;
        at += piece.len() as u64;
    }
    Ok(offline.finish()?.diarization(&OfflineOptions {
        thresholds: ear.voice.thresholds,
        min_speakers: 1,
        max_speakers: 20,
        cutting: Cutting {
            min_silence: 300 * 16,
            min_turn: 100 * 16,
            at_once: 3,
        },
    }))
}

/// Takes of each speaker alone, all of it too, and of a speaker with some of another behind.
fn two(ear: &mut Ear, list: &[Listed]) -> Result<(), Failure> {
    let said = all_said(ear, list)?;
    let said: Vec<(&String, Vec<f32>)> = said.iter().map(|(who, r)| (who, r.concat())).collect();
    for (who, speech) in &said {
        for seconds in TAKEN {
            let length = seconds * SECOND;
            let count = (speech.len() / length).min(4);
            for n in 0..count {
                let at = (speech.len() - length) * n / (count - 1).max(1);
                tell_two(ear, [who, ""], seconds, 0.0, &speech[at..at + length])?;
            }
        }
        if speech.len() >= TAKEN[0] * SECOND {
            tell_two(ear, [who, ""], speech.len() / SECOND, 0.0, speech)?;
        }
    }
    let long: Vec<&(&String, Vec<f32>)> =
        said.iter().filter(|s| s.1.len() >= 45 * SECOND).collect();
    for (n, (who, speech)) in long.iter().enumerate() {
        for step in [1, 4, 7] {
            let (other, theirs) = long[(n + step) % long.len()];
            for seconds in TAKEN {
                for part in [0.2, 0.35, 0.5] {
                    let behind = (part * (seconds * SECOND) as f64) as usize;
                    let before = seconds * SECOND - behind;
                    if speech.len() < before || theirs.len() < behind {
                        continue;
                    }
                    let take = [&speech[..before], &theirs[..behind]].concat();
                    tell_two(ear, [who, other], seconds, part, &take)?;
                }
            }
        }
    }
    Ok(())
}

fn tell_two(
    ear: &mut Ear,
    speakers: [&str; 2],
    seconds: usize,
    part: f64,
    take: &[f32],
) -> Result<(), Failure> {
    let vectors = ear.vectors(pieces(take))?;
    let hop = EnrollOptions::default().hop as f64 / SECOND as f64;
    let found = Limits::default().voices(&vectors, hop, &ear.voice);
    let agreement = print::take(key(&vectors), &vectors, Quality::default(), 0);
    println!(
        "{}",
        json!({
            "speakers": speakers, "seconds": seconds, "part": part,
            "two": found.err().map(|refusal| refusal.to_string()),
            "agreement": agreement.and_then(|t| t.quality.agreement),
        })
    );
    Ok(())
}

/// 10,000 people of nine vectors, on one thread.
fn speed() -> Result<(), Failure> {
    const PEOPLE: usize = 10_000;
    const DIMENSION: usize = 256;
    let mut state = 1_u32;
    let mut random = || {
        let mut vector: Vec<f32> = (0..DIMENSION)
            .map(|_| {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                (state >> 8) as f32 / (1 << 24) as f32
            })
            .collect();
        let length = vector.iter().map(|v| v * v).sum::<f32>().sqrt();
        vector.iter_mut().for_each(|v| *v /= length);
        vector
    };
    let thresholds = voice_model("")?.matching()?;
    let quality = Quality {
        net_speech_s: 30.0,
        ..Quality::default()
    };
    for takes in [1, 8] {
        let voices: Vec<Voice> = (0..PEOPLE)
            .map(|id| {
                let take = |mean: Vec<f32>| Take {
                    model: key(std::slice::from_ref(&mean)),
                    mean,
                    exemplars: Vec::new(),
                    quality: quality.clone(),
                    at: 0,
                };
                voice(id, (0..takes).map(|_| take(random())).collect())
            })
            .collect();
        let began = Instant::now();
        let store = gallery(&voices, thresholds);
        let built = began.elapsed().as_secs_f64();
        for probes in [1, 10] {
            let vectors: Vec<Vec<f32>> = (0..probes).map(|_| random()).collect();
            let probes: Vec<Probe<'_>> = vectors
                .iter()
                .map(|vector| Probe {
                    vector,
                    seconds: 10.0,
                })
                .collect();
            let mut times: Vec<f64> = (0..21)
                .map(|_| {
                    let began = Instant::now();
                    std::hint::black_box(store.name(std::hint::black_box(&probes)));
                    began.elapsed().as_secs_f64() * 1e3
                })
                .collect();
            times.sort_by(f64::total_cmp);
            println!(
                "{}",
                json!({
                    "people": PEOPLE, "takes": takes, "voices": probes.len(), "built_ms": built * 1e3,
                    "median_ms": times[10], "least_ms": times[0], "most_ms": times[20],
                })
            );
        }
    }
    Ok(())
}
