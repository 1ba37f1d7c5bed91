// SPDX-License-Identifier: MPL-2.0

use std::sync::LazyLock;
use std::sync::atomic::{AtomicBool, Ordering};

use super::super::activity::centre_of;
use super::super::activity::tests::scores;
use super::super::reconstruct::Talk;
use super::*;
use crate::inference::fake::FakeBatches;
use crate::registry::{EmbeddingSpec, Registry, Request, SegmentationSpec};

const SECOND: u64 = 16_000;
const THRESHOLDS: VoiceThresholds = VoiceThresholds {
    link: 0.45,
    merge: 0.15,
    least_seconds: 4.0,
};
const CUTTING: Cutting = Cutting {
    min_silence: 4_800,
    min_turn: 0,
    at_once: 3,
};

/// Who talks from and to which second, as the models hear it.
type Script = [(f64, f64, usize)];

/// A voice: people are far from each other, but those of 100 and more are between 0 and the next.
fn voice(person: usize) -> Arc<[f32]> {
    let mut vector = vec![0.0; 8];
    match person {
        100.. => {
            let angle = (person - 100) as f32;
            vector[0] = angle.to_radians().cos();
            vector[7] = angle.to_radians().sin();
        }
        _ => vector[person] = 1.0,
    }
    vector.into()
}

/// Turns of a script whose windows come every `step` samples.
struct Hearing<'a> {
    script: &'a Script,
    turns: LiveTurns,
    step: u64,
    all: Vec<Talk>,
    mended: Vec<Talk>,
    relabels: Vec<Relabelled>,
    watermark: u64,
}

impl<'a> Hearing<'a> {
    fn new(script: &'a Script, latency: u64, step: u64, cutting: Cutting) -> Self {
        let how = Making {
            thresholds: THRESHOLDS,
            lookahead: latency - step,
            max_speakers: 20,
            cutting,
        };
        Self {
            script,
            turns: LiveTurns::new(how, KnownVoices::default()),
            step,
            all: Vec::new(),
            mended: Vec::new(),
            relabels: Vec::new(),
            watermark: 0,
        }
    }

    fn take(&mut self) {
        let told = self.turns.take();
        for turn in told.turns.iter().chain(&told.exclusive) {
            assert!(turn.start >= self.watermark, "{turn:?} is told late");
            assert!(turn.end <= told.watermark, "{turn:?} is told early");
        }
        assert!(told.watermark >= self.watermark);
        self.watermark = told.watermark;
        self.all.extend(&told.turns);
        self.mended.extend(&told.turns);
        for relabel in told.relabels {
            let range = relabel.from..relabel.to;
            for turn in &mut self.mended {
                if turn.speaker == relabel.old && range.contains(&turn.start) {
                    turn.speaker = relabel.new;
                }
            }
            self.relabels.push(relabel);
        }
    }

    /// Hears so many seconds. Who is heard in a window is a local speaker in the order in which he appears there.
    fn hear(mut self, seconds: u64) -> Self {
        self.turns.begin_piece(0);
        let step = self.step;
        for end in (1..).map(|n| n * step) {
            if end > seconds * SECOND {
                break;
            }
            let start = end.saturating_sub(SEGMENTATION_WINDOW as u64);
            self.window(start, end);
            self.take();
        }
        self.turns.end_piece(seconds * SECOND);
        self.turns.finish();
        self.take();
        assert_eq!(self.watermark, seconds * SECOND);
        self
    }

    fn window(&mut self, start: u64, end: u64) {
        let talking = |frame: usize| {
            let at = (start as f64 + centre_of(frame) as f64) / SECOND as f64;
            let now = self.script.iter().filter(move |s| at >= s.0 && at < s.1);
            now.map(|s| s.2).collect::<Vec<usize>>()
        };
        let mut locals: Vec<usize> = Vec::new();
        let len = (end - start) as usize;
        for frame in (0..589).filter(|f| centre_of(*f) < len) {
            for person in talking(frame) {
                if !locals.contains(&person) && locals.len() < LOCAL_SPEAKERS {
                    locals.push(person);
                }
            }
        }
        let class = |frame: usize| {
            let now = talking(frame);
            let mut bits = now
                .iter()
                .filter_map(|p| locals.iter().position(|l| l == p));
            match (bits.next(), bits.next()) {
                (None, _) => 0,
                (Some(a), None) => a + 1,
                (Some(a), Some(b)) => a + b + 3,
            }
        };
        let activity = Activity::of(&scores(589, |frame| (class(frame), 0.97)), len);
        let voices = std::array::from_fn(|local| {
            let person = *locals.get(local)?;
            (activity.clean_frames(local) >= 24).then(|| voice(person))
        });
        self.turns.window(start, end, activity, voices);
    }

    /// Turns with their bits joined, in tenths of seconds.
    fn joined(&self, turns: &[Talk]) -> Vec<(u64, u64, usize)> {
        let mut out: Vec<Talk> = Vec::new();
        for turn in turns {
            let same = out.iter_mut().rev();
            match same.filter(|o| o.speaker == turn.speaker).take(1).next() {
                Some(last) if last.end == turn.start => last.end = turn.end,
                _ => out.push(*turn),
            }
        }
        out.sort_by_key(|t| (t.start, t.end));
        let tenths = |samples: u64| (samples + 800) / 1_600;
        let all = out
            .iter()
            .map(|t| (tenths(t.start), tenths(t.end), t.speaker));
        all.collect()
    }
}

#[test]
fn turns_are_told_as_they_are_at_each_latency_and_step() {
    let script = [
        (1.0, 9.0, 0),
        (10.0, 24.0, 1),
        (30.0, 41.0, 0),
        (41.5, 50.0, 2),
    ];

    for (latency, step) in [(2, 1), (5, 1), (10, 1)] {
        let heard = Hearing::new(&script, latency * SECOND, step * SECOND, CUTTING).hear(55);

        let right = [(10, 90, 0), (100, 240, 1), (300, 410, 0), (415, 500, 2)];
        assert_eq!(heard.joined(&heard.mended), right, "at {latency} s");
        let ids: Vec<usize> = heard.turns.known().ids().collect();
        assert_eq!(ids, [0, 1, 2]);
    }
}

#[test]
fn what_was_told_before_a_new_voice_was_known_is_mended() {
    let script = [(0.0, 20.0, 0), (20.5, 40.0, 1)];

    let heard = Hearing::new(&script, SECOND / 2, SECOND / 2, CUTTING).hear(45);

    assert!(
        heard
            .all
            .iter()
            .any(|t| t.start > 20 * SECOND && t.speaker == 0)
    );
    assert!(!heard.relabels.is_empty());
    assert!(heard.relabels.iter().all(|r| !r.is_everywhere()));
    assert_eq!(heard.joined(&heard.mended), [(0, 200, 0), (205, 400, 1)]);
}

#[test]
fn who_returns_after_an_hour_has_the_same_id() {
    let mut script = vec![(0.0, 8.0, 0)];
    script.extend((1..360).map(|n| (f64::from(n) * 10.0, f64::from(n) * 10.0 + 8.0, 1)));
    script.push((3_620.0, 3_628.0, 0));

    let heard = Hearing::new(&script, 5 * SECOND, SECOND, CUTTING).hear(3_640);

    let mended = heard.joined(&heard.mended);
    assert_eq!(mended.first(), Some(&(0, 80, 0)));
    assert_eq!(mended.last(), Some(&(36_200, 36_280, 0)));
    assert_eq!(heard.turns.known().len(), 2);
}

#[test]
fn two_at_once_are_two_ids() {
    let script = [(0.0, 6.0, 0), (4.0, 12.0, 1), (11.0, 20.0, 0)];

    let heard = Hearing::new(&script, 5 * SECOND, SECOND, CUTTING).hear(25);

    assert_eq!(
        heard.joined(&heard.mended),
        [(0, 60, 0), (40, 120, 1), (110, 200, 0)]
    );
}

#[test]
fn one_person_who_was_taken_for_two_becomes_one_everywhere() {
    // The voice at 26 degrees is what lies between: with it, the one at 50 is no other person.
    let script = [(0.0, 8.0, 100), (20.0, 24.0, 150), (35.0, 60.0, 126)];

    let heard = Hearing::new(&script, 5 * SECOND, SECOND, CUTTING).hear(70);

    assert!(heard.all.iter().any(|t| t.speaker == 1));
    let merges: Vec<_> = heard
        .relabels
        .iter()
        .filter(|r| r.is_everywhere())
        .collect();
    assert!(
        merges.iter().any(|r| (r.old, r.new) == (1, 0)),
        "{merges:?}"
    );
    assert!(heard.mended.iter().all(|t| t.speaker == 0));
}

#[test]
fn two_people_who_were_taken_for_one_are_parted_where_they_were_told() {
    // 40 degrees are too near for a new person at once.
    let script = [(0.0, 20.0, 100), (31.0, 37.0, 140), (48.0, 70.0, 140)];

    let heard = Hearing::new(&script, 5 * SECOND, SECOND, CUTTING).hear(80);

    assert!(
        heard
            .all
            .iter()
            .any(|t| t.start > 31 * SECOND && t.speaker == 0)
    );
    assert_eq!(
        heard.joined(&heard.mended),
        [(0, 200, 0), (310, 370, 1), (480, 700, 1)]
    );
}

#[test]
fn short_pauses_are_filled_and_short_turns_are_none() {
    let script = [
        (2.0, 12.9, 0),
        (13.1, 18.0, 0),
        (19.0, 19.15, 0),
        (20.0, 25.0, 0),
    ];
    let cutting = Cutting {
        min_turn: 4_800,
        ..CUTTING
    };

    let heard = Hearing::new(&script, 5 * SECOND, SECOND, cutting).hear(30);

    assert_eq!(heard.joined(&heard.all), [(20, 180, 0), (200, 250, 0)]);
}

/// The fakes: whoever is louder than 0.01 talks, and the loudness is the voice, as an angle in radians.
fn models(name: &str, script: FakeBatches) -> (Arc<Lease<Segmentation>>, Arc<Lease<Embedding>>) {
    script.register(name);
    // It stays: what is in flight ends with it.
    static REGISTRY: LazyLock<Registry> =
        LazyLock::new(|| Registry::new(2, Duration::from_secs(60)));
    let request = (
        Request::<Segmentation>(SegmentationSpec::Fake(name.into())),
        Request::<Embedding>(EmbeddingSpec::Fake(name.into())),
    );
    let (segmentation, embedding) = REGISTRY.acquire(request, &CancelToken::new()).unwrap();
    (Arc::new(segmentation), Arc::new(embedding))
}

fn online(
    name: &str,
    script: FakeBatches,
    latency: usize,
    lockstep: bool,
) -> (Online, CancelToken) {
    after(name, script, latency, lockstep, KnownVoices::default())
}

fn after(
    name: &str,
    script: FakeBatches,
    latency: usize,
    lockstep: bool,
    known: KnownVoices,
) -> (Online, CancelToken) {
    let (segmentation, embedding) = models(name, script);
    let cancel = CancelToken::new();
    let options = OnlineOptions {
        thresholds: THRESHOLDS,
        latency,
        max_speakers: 20,
        cutting: CUTTING,
        lockstep,
    };
    let voice = VoiceInput {
        piece: 0,
        min_samples: 400,
    };
    let online = Online::new(
        segmentation,
        embedding,
        voice,
        options,
        known,
        cancel.clone(),
    );
    (online, cancel)
}

fn sound(seconds: f64, level: f32) -> Vec<f32> {
    vec![level; (seconds * SECOND as f64) as usize]
}

#[test]
fn no_turn_is_told_later_than_the_latency() {
    let fakes = FakeBatches::default();
    for latency in [8_000, 16_000, 32_000, 80_000, 160_000] {
        let (mut online, _) = online("online latency", fakes.clone(), latency, true);
        let sound = [sound(3.0, 0.3), sound(12.0, 0.0), sound(20.0, 1.8)].concat();
        let (mut at, mut watermark) = (0, 0);
        let mut turns = Vec::new();
        for piece in sound.chunks(1_600) {
            online.push(at, piece).unwrap();
            at += piece.len() as u64;
            let told = online.poll().unwrap();
            assert!(
                told.turns
                    .iter()
                    .all(|t| t.start >= watermark && t.end <= told.watermark)
            );
            assert!(told.watermark >= watermark);
            watermark = told.watermark;
            // What no frame of the newest window is for, and half a frame.
            assert!(
                watermark + latency as u64 + 1_000 >= at,
                "{latency}: {watermark} of {at}"
            );
            turns.extend(told.turns);
        }
        let told = online.finish().unwrap();
        turns.extend(told.turns);

        assert_eq!(told.watermark, at);
        let length: u64 = turns.iter().map(|t| t.end - t.start).sum();
        assert!(length.abs_diff(23 * SECOND) < 2_000, "{turns:?}");
        // A new voice is known after two seconds; with less latency they are the likest's at first.
        let late = turns.iter().filter(|t| t.start > (15 + 3) * SECOND);
        assert!(late.map(|t| t.speaker).all(|s| s == 1), "{turns:?}");
    }
}

#[test]
fn nobody_is_told_in_silence() {
    let (mut online, _) = online("online silence", FakeBatches::default(), 16_000, true);

    online.push(0, &sound(30.0, 0.0)).unwrap();
    let told = online.finish().unwrap();

    assert_eq!(told.turns, []);
    assert_eq!(told.watermark, 30 * SECOND);
    assert!(online.known().is_empty());
}

#[test]
fn people_keep_their_ids_over_a_hole_and_no_turn_goes_over_it() {
    let (mut online, _) = online("online hole", FakeBatches::default(), 32_000, true);
    let mut told = Vec::new();
    for (start, level) in [(0, 0.3), (100, 1.8), (200, 0.3)] {
        let start = start * SECOND + 7;
        online.push(start, &sound(15.0, level)).unwrap();
        online.end_piece().unwrap();
        told.push(online.poll().unwrap());
        let last = told.last().unwrap();
        assert_eq!(last.watermark, start + 15 * SECOND);
        let (first, end) = (last.turns[0], last.turns.last().unwrap());
        assert_eq!((first.start, end.end), (start, start + 15 * SECOND));
    }

    let who = |n: usize| told[n].turns.last().unwrap().speaker;
    assert_eq!([who(0), who(1), who(2)], [0, 1, 0]);
    let known = online.into_known();
    assert_eq!(known.ids().collect::<Vec<_>>(), [0, 1]);
}

#[test]
fn who_was_known_before_keeps_the_id_in_the_next() {
    let fakes = FakeBatches::default();
    let (mut first, _) = online("online known", fakes.clone(), 32_000, true);
    first.push(0, &sound(15.0, 0.3)).unwrap();
    first.finish().unwrap();
    let (mut next, _) = after("online known", fakes, 32_000, true, first.into_known());
    next.push(
        0,
        &[sound(15.0, 1.8), sound(11.0, 0.0), sound(15.0, 0.3)].concat(),
    )
    .unwrap();
    let told = next.finish().unwrap();

    let second = told.turns.iter().find(|t| t.start > 5 * SECOND);
    assert_eq!(second.unwrap().speaker, 1);
    assert_eq!(told.turns.last().unwrap().speaker, 0);
}

#[test]
fn push_never_waits_for_models_that_hang_and_the_watermark_goes_on() {
    let gate = Arc::new(AtomicBool::new(false));
    let (opened, began) = (Arc::clone(&gate), Arc::new(AtomicBool::new(false)));
    let is_on = Arc::clone(&began);
    let fakes = FakeBatches {
        before: Arc::new(move |_| {
            while is_on.load(Ordering::SeqCst) && !opened.load(Ordering::SeqCst) {
                std::thread::sleep(Duration::from_millis(1));
            }
            Ok(())
        }),
        ..FakeBatches::default()
    };
    let (mut online, _) = online("online hangs", fakes, 16_000, false);
    began.store(true, Ordering::SeqCst);

    let mut at = 0;
    let mut watermark = 0;
    for _ in 0..600 {
        let piece = sound(0.1, 0.3);
        online.push(at, &piece).unwrap();
        at += piece.len() as u64;
        watermark = online.poll().unwrap().watermark;
        assert!(online.windows() <= AHEAD);
        assert!(online.buffer.len() <= SEGMENTATION_WINDOW);
    }
    assert!(watermark + 12 * SECOND >= at, "{watermark} of {at}");
    gate.store(true, Ordering::SeqCst);
    let told = online.finish().unwrap();

    assert_eq!(told.watermark, at);
    assert!(told.turns.iter().all(|t| t.start >= watermark));
    assert!(told.turns.iter().any(|t| t.end == at), "{told:?}");
}

#[test]
fn nothing_is_told_after_a_cancel() {
    let (mut online, cancel) = online("online cancel", FakeBatches::default(), 16_000, true);
    online.push(0, &sound(3.0, 0.3)).unwrap();
    cancel.cancel();

    let cancelled = |r: Result<(), EngineError>| matches!(r, Err(EngineError::Cancelled));
    assert!(cancelled(online.push(0, &sound(1.0, 0.3))));
    assert!(cancelled(online.end_piece()));
    assert!(cancelled(online.poll().map(drop)));
    assert!(cancelled(online.finish().map(drop)));
}

#[test]
fn hours_take_no_more_memory_than_minutes() {
    let (mut online, _) = online("online hours", FakeBatches::default(), 5 * 16_000, true);
    let talk: Vec<Vec<f32>> = [0.3, 0.0, 1.8, 0.0]
        .iter()
        .map(|l| sound(9.0, *l))
        .collect();
    let (mut at, mut turns) = (0, 0);
    for hour in 0..3_u64 {
        while at < (hour + 1) * 3_600 * SECOND {
            for piece in &talk {
                online.push(at, piece).unwrap();
                at += piece.len() as u64;
                turns += online.poll().unwrap().turns.len();
            }
        }
        let [windows, frames, parts] = online.turns.sizes();
        assert!(
            windows <= 25 && frames <= 1_500 && parts <= 4_100,
            "{windows} {frames} {parts}"
        );
        assert!(online.flights.len() <= 4 && online.buffer.len() <= SEGMENTATION_WINDOW);
        assert!(online.known().kept() <= 1_000);
    }

    assert!(turns > 3 * 600, "{turns}");
    assert_eq!(online.known().ids().collect::<Vec<_>>(), [0, 1]);
}
