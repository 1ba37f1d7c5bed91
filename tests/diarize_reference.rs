// SPDX-License-Identifier: MPL-2.0
//! The diarizer's stages beside pyannote.audio's, scipy's and Resemblyzer's: arrays that tests/reference/diarization.py has
//! made of a recording of our own with the same two models. Linkage is compared beside its code, in src/diarize/cluster.rs.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod common;
#[path = "common/process.rs"]
mod process;

use std::collections::BTreeMap;
use std::sync::Arc;

use common::{GUARD, registry, repository, there};
use gst::prelude::*;
use gstscribe::diarize::activity::{Activity, LOCAL_SPEAKERS, WINDOW_FRAMES, frame_of};
use gstscribe::diarize::cluster::assign;
use gstscribe::diarize::models::{embedding_spec, segmentation_spec};
use gstscribe::diarize::offline::{Offline, OfflineOptions};
use gstscribe::diarize::reconstruct::Cutting;
use gstscribe::diarize::voice::voice_model;
use gstscribe::inference::{
    CancelToken, SEGMENTATION_CLASSES, SEGMENTATION_WINDOW, SegmentationScores,
};
use gstscribe::registry::{Class, Embedding, Lease, Request, Segmentation};

const MODELS: [&str; 3] = [
    "models/segmentation-3.0.onnx",
    "models/ge2e-resemblyzer.onnx",
    "target/release/scribe/libonnxruntime.so.1",
];
/// Samples from window to window, as in diarization.py.
const STEP: usize = 32_000;
/// Every so many frames of the scores are there.
const EVERY: usize = 10;
/// First sample and length of the pieces with vectors there; the last one comes once more at a hundredth of its level.
const PIECES: [(usize, usize); 9] = [
    (108_000, 25_840),
    (128_000, 25_840),
    (175_000, 25_840),
    (249_000, 25_840),
    (356_000, 25_840),
    (510_000, 25_840),
    (180_000, 16_000),
    (60_000, 8_000),
    (130_000, 6_400),
];
const QUIET: f32 = 0.01;

fn models() -> bool {
    MODELS
        .iter()
        .all(|model| there(&repository(model), "make models"))
}

fn bytes(name: &str) -> Vec<u8> {
    std::fs::read(repository("tests/reference").join(name)).unwrap()
}

fn floats(name: &str) -> Vec<f32> {
    let bytes = bytes(name);
    let (floats, rest) = bytes.as_chunks::<4>();
    assert!(rest.is_empty(), "{name}");
    floats.iter().map(|f| f32::from_le_bytes(*f)).collect()
}

/// Samples of a FLAC file of 16 bits, the channels of each one after the other.
fn flac(name: &str) -> Vec<f32> {
    common::init();
    let pipeline = gst::parse::launch(&format!(
        "filesrc location={} ! decodebin ! audio/x-raw,format=S16LE,rate=16000 ! appsink name=out sync=false",
        repository("tests/data").join(name).display()
    ))
    .unwrap()
    .downcast::<gst::Pipeline>()
    .unwrap();
    let sink = pipeline.by_name("out").unwrap();
    let sink = sink.downcast::<gst_app::AppSink>().unwrap();
    pipeline.set_state(gst::State::Playing).unwrap();
    let mut samples = Vec::new();
    while let Ok(sample) = sink.pull_sample() {
        let bytes = sample.buffer().unwrap().map_readable().unwrap();
        let (words, _) = bytes.as_chunks::<2>();
        samples.extend(words.iter().map(|s| f32::from(i16::from_le_bytes(*s))));
    }
    pipeline.set_state(gst::State::Null).unwrap();
    samples
}

/// The recording, as diarization.py puts it together: each of two, one who is another, and both at once.
fn sound() -> Vec<f32> {
    let two = flac("stereo.flac");
    let (two, _) = two.as_chunks::<2>();
    let left = two.iter().map(|[left, _]| *left);
    let right = two.iter().map(|[_, right]| *right);
    let both = two.iter().map(|[left, right]| (left + right) / 2.0);
    let all = right
        .chain(flac("speech_short.flac"))
        .chain(left)
        .chain(both);
    all.map(|sample| sample / 32_768.0).collect()
}

/// Where windows begin in so many samples: the last is the first that sees the end.
fn starts(samples: usize) -> Vec<usize> {
    let beyond = samples.saturating_sub(SEGMENTATION_WINDOW).div_ceil(STEP);
    (0..=beyond).map(|n| n * STEP).collect()
}

/// Each window's scores and how many samples it has.
fn windows(sound: &[f32]) -> Vec<(SegmentationScores, usize)> {
    let registry = registry();
    let request = Request::<Segmentation>(segmentation_spec("segmentation-3.0").unwrap());
    let lease: Lease<Segmentation> = registry.acquire(request, &CancelToken::new()).unwrap();
    let tickets: Vec<_> = starts(sound.len())
        .into_iter()
        .map(|start| {
            let end = sound.len().min(start + SEGMENTATION_WINDOW);
            let samples: Arc<[f32]> = sound[start..end].into();
            (lease.submit(samples, (), Class::File, None), end - start)
        })
        .collect();
    tickets
        .into_iter()
        .map(|(mut ticket, len)| (ticket.wait(GUARD).expect("an answer").unwrap(), len))
        .collect()
}

/// A frame's local speakers as bits.
fn bits(activity: &Activity, frame: usize) -> u8 {
    let speakers = (0..LOCAL_SPEAKERS).filter(|s| activity.talks(frame, *s));
    speakers.map(|s| 1 << s).sum()
}

#[test]
fn windows_have_the_scores_that_pyannote_has() {
    if !models() {
        return;
    }
    let reference = floats("diarization-scores.f32");

    let windows = windows(&sound());

    let ours: Vec<f32> = windows
        .iter()
        .flat_map(|(w, _)| w.scores.chunks_exact(SEGMENTATION_CLASSES).step_by(EVERY))
        .flatten()
        .copied()
        .collect();
    assert_eq!(ours.len(), reference.len());
    let far = ours.iter().zip(&reference);
    let far = far.map(|(a, b)| (a.exp() - b.exp()).abs());
    let far = far.fold(0.0, f32::max);
    assert!(far < 1e-3, "{far}");
}

#[test]
fn local_speakers_talk_where_pyannote_has_them_talk() {
    if !models() {
        return;
    }
    let reference = bytes("diarization-activity.u8");

    let windows = windows(&sound());

    assert_eq!(reference.len(), windows.len() * WINDOW_FRAMES);
    let (mut frames, mut same) = (0, 0);
    for ((scores, samples), reference) in windows.iter().zip(reference.chunks(WINDOW_FRAMES)) {
        let activity = Activity::of(scores, *samples);
        // Ours ends with the sound, pyannote's with the silence that fills up the last window.
        frames += activity.len();
        same += (0..activity.len())
            .filter(|n| bits(&activity, *n) == reference[*n])
            .count();
    }
    assert!(frames > (windows.len() - 1) * WINDOW_FRAMES);
    assert!(same as f64 >= 0.999 * frames as f64, "{same} of {frames}");
}

/// Scribe counts with probabilities (`Reconstruction`), pyannote.audio with likeliest classes and halves rounded to even.
/// Compared is that count, taken of our activity on our grid of frames: both lie as pyannote's do.
#[test]
fn as_many_talk_at_once_as_pyannote_counts() {
    if !models() {
        return;
    }
    let reference = bytes("diarization-count.u8");
    let sound = sound();

    let windows = windows(&sound);

    let mut seen: BTreeMap<usize, (u32, u32, f32)> = BTreeMap::new();
    for (start, (scores, samples)) in starts(sound.len()).into_iter().zip(&windows) {
        let activity = Activity::of(scores, *samples);
        for frame in 0..activity.len() {
            let own = seen.entry(frame_of(start as u64) + frame).or_default();
            own.0 += 1;
            own.1 += bits(&activity, frame).count_ones();
            own.2 += (0..LOCAL_SPEAKERS)
                .map(|s| activity.probability(frame, s))
                .sum::<f32>();
        }
    }
    let frames = seen.len();
    assert_eq!(seen.keys().copied().max(), Some(frames - 1), "no hole");
    let hard = seen
        .iter()
        .filter(|(frame, (windows, talking, _))| {
            let count = f64::from(*talking) / f64::from(*windows);
            count.round_ties_even() as u8 == reference[**frame]
        })
        .count();
    let soft = seen
        .iter()
        .filter(|(frame, (windows, _, talking))| {
            (talking / *windows as f32).round() as u8 == reference[**frame]
        })
        .count();
    assert!(hard as f64 >= 0.999 * frames as f64, "{hard} of {frames}");
    // Where they differ is where turns begin and end.
    assert!(soft as f64 >= 0.97 * frames as f64, "{soft} of {frames}");
}

#[test]
fn voices_are_those_of_resemblyzer() {
    if !models() {
        return;
    }
    let reference = floats("diarization-voices.f32");
    let sound = sound();
    let registry = registry();
    let request = Request::<Embedding>(embedding_spec("ge2e").unwrap());
    let lease = registry.acquire(request, &CancelToken::new()).unwrap();
    let (start, length) = PIECES[PIECES.len() - 1];
    let quiet = sound[start..start + length].iter().map(|s| s * QUIET);
    let pieces = PIECES
        .iter()
        .map(|(start, length)| Arc::from(&sound[*start..start + length]));
    let pieces: Vec<Arc<[f32]>> = pieces.chain([quiet.collect()]).collect();

    let tickets = pieces
        .iter()
        .map(|piece| lease.submit(Arc::clone(piece), (), Class::File, None));
    let tickets: Vec<_> = tickets.collect();

    assert_eq!(reference.len(), pieces.len() * 256);
    for (n, (mut ticket, theirs)) in tickets.into_iter().zip(reference.chunks(256)).enumerate() {
        let ours = ticket.wait(GUARD).expect("an answer").unwrap().values;
        let cosine: f32 = ours.iter().zip(theirs).map(|(a, b)| a * b).sum();
        assert!(cosine >= 0.9999, "piece {n}: {cosine}");
    }
}

/// Scribe pays 0.15 for two local speakers of a window that are one person: between pyannote.audio's free choice (the default
/// there) and its constrained one, which forbids it. Where both are the same or their likeness is further apart, one of them
/// is ours.
#[test]
fn local_speakers_are_assigned_as_pyannote_assigns_them() {
    let unit = |name, width: usize| {
        let all = floats(name);
        all.chunks(width).map(<[f32]>::to_vec).collect::<Vec<_>>()
    };
    let centroids = unit("assignment-centroids.f32", 8);
    let vectors = unit("assignment-vectors.f32", 8);
    let reference = bytes("assignment.u8");
    let like = |vector: &[f32], person: u8| -> f32 {
        let centroid = &centroids[usize::from(person)];
        vector.iter().zip(centroid).map(|(a, b)| a * b).sum()
    };
    let (mut free_ones, mut constrained_ones, mut same_ones) = (0, 0, 0);
    for (window, both) in vectors.chunks(3).zip(reference.chunks(6)) {
        let (free, constrained) = both.split_at(3);
        let sum = |who: &[u8]| -> f32 { window.iter().zip(who).map(|(v, p)| like(v, *p)).sum() };
        let twice = free
            .iter()
            .enumerate()
            .filter(|(n, p)| free[..*n].contains(p))
            .count();

        let own: Vec<Option<&[f32]>> = window.iter().map(|v| Some(v.as_slice())).collect();
        let ours: Vec<u8> = assign(&centroids, &own)
            .iter()
            .map(|p| p.unwrap() as u8)
            .collect();

        let lost = sum(free) - sum(constrained);
        if twice == 0 {
            assert_eq!(free, constrained);
            assert_eq!(ours, free);
            same_ones += 1;
        } else if twice == 1 && lost < 0.15 - 1e-4 {
            assert_eq!(ours, constrained, "{lost}");
            constrained_ones += 1;
        } else if twice == 1 && lost > 0.15 + 1e-4 {
            assert_eq!(ours, free, "{lost}");
            free_ones += 1;
        }
    }
    assert!(
        same_ones > 3 && constrained_ones > 3 && free_ones > 3,
        "{same_ones} {constrained_ones} {free_ones}"
    );
}

/// Turns by speaker, in steps of 10 ms.
fn grid(turns: &[(String, f64, f64)], steps: usize) -> BTreeMap<String, Vec<bool>> {
    let mut out: BTreeMap<String, Vec<bool>> = BTreeMap::new();
    for (speaker, start, end) in turns {
        let own = out
            .entry(speaker.clone())
            .or_insert_with(|| vec![false; steps]);
        let (start, end) = (
            (start * 100.0).round() as usize,
            (end * 100.0).round() as usize,
        );
        own[start.min(steps)..end.min(steps)].fill(true);
    }
    out
}

/// Diarization error rate without a collar, overlaps counted, under the best of all ways to name the speakers.
fn error_rate(
    reference: &BTreeMap<String, Vec<bool>>,
    ours: &BTreeMap<String, Vec<bool>>,
    steps: usize,
) -> f64 {
    fn correct(reference: &[&Vec<bool>], ours: &[&Vec<bool>], free: &mut Vec<bool>) -> usize {
        let Some((own, rest)) = reference.split_first() else {
            return 0;
        };
        let mut most = correct(rest, ours, free);
        for (n, other) in ours.iter().enumerate() {
            if std::mem::take(&mut free[n]) {
                let both = own.iter().zip(*other).filter(|(a, b)| **a && **b).count();
                most = most.max(both + correct(rest, ours, free));
                free[n] = true;
            }
        }
        most
    }
    let count =
        |of: &BTreeMap<String, Vec<bool>>, step: usize| of.values().filter(|s| s[step]).count();
    let wrong: usize = (0..steps)
        .map(|n| count(reference, n).max(count(ours, n)))
        .sum();
    let speech: usize = (0..steps).map(|n| count(reference, n)).sum();
    let (theirs, own): (Vec<_>, Vec<_>) = (reference.values().collect(), ours.values().collect());
    let correct = correct(&theirs, &own, &mut vec![true; own.len()]);
    (wrong - correct) as f64 / speech as f64
}

/// Counting, clustering and edges are scribe's own, and yet what comes out is nearly the same.
#[test]
fn turns_are_nearly_those_of_pyannote() {
    if !models() {
        return;
    }
    let rttm = String::from_utf8(bytes("diarization.rttm")).unwrap();
    let theirs: Vec<_> = rttm
        .lines()
        .map(|line| {
            let columns: Vec<&str> = line.split_whitespace().collect();
            let (start, length): (f64, f64) =
                (columns[3].parse().unwrap(), columns[4].parse().unwrap());
            (columns[7].to_owned(), start, start + length)
        })
        .collect();
    let sound = sound();
    let (registry, cancel) = (registry(), CancelToken::new());
    let voice = voice_model("ge2e").unwrap();
    let request = (
        Request::<Segmentation>(segmentation_spec("segmentation-3.0").unwrap()),
        Request::<Embedding>(voice.spec.clone()),
    );
    let (segmentation, embedding) = registry.acquire(request, &cancel).unwrap();

    let mut offline = Offline::new(
        Arc::new(segmentation),
        Arc::new(embedding),
        STEP,
        voice.input,
        cancel,
    );
    offline.push(0, &sound).unwrap();
    let found = offline.finish().unwrap().diarization(&OfflineOptions {
        thresholds: voice.thresholds,
        min_speakers: 1,
        max_speakers: 20,
        cutting: Cutting {
            min_silence: 4_800,
            min_turn: 0,
            at_once: 3,
        },
    });

    let seconds = |samples: u64| samples as f64 / 16_000.0;
    let ours = found.turns.all.iter();
    let ours: Vec<_> = ours
        .map(|t| (t.speaker.to_string(), seconds(t.start), seconds(t.end)))
        .collect();
    let steps = sound.len() / 160;
    let (theirs, ours) = (grid(&theirs, steps), grid(&ours, steps));
    assert_eq!(ours.len(), theirs.len());
    let rate = error_rate(&theirs, &ours, steps);
    assert!(rate < 0.1, "{rate}");
}
