// SPDX-License-Identifier: MPL-2.0
//! The policy on a clock of sound, with a model that knows what is said.

#![allow(clippy::unwrap_used)]

use proptest::prelude::*;

use super::ladder::{Ladder, Level};
use super::policy::{Answer, Ask, LiveParams, Outcome, Policy, Reason, Said};
use crate::audio::speech::FRAME;
use crate::audio::{SAMPLE_RATE, SampleIndex};
use crate::transcribe::{RawWord, folded};

const SECOND: u64 = SAMPLE_RATE as u64;
const MS: u64 = SECOND / 1000;

/// A word of the script: what is said, when.
#[derive(Clone, Debug)]
struct Line {
    text: String,
    start: u64,
    end: u64,
}

/// Words of 300 ms; pauses are given behind each, in milliseconds.
fn script(pauses: &[u64]) -> Vec<Line> {
    let mut at = SECOND;
    let line = |(n, pause): (usize, &u64)| {
        let start = at;
        let end = at + 300 * MS;
        at = end + pause * MS;
        let text = format!(" w{n}");
        Line { text, start, end }
    };
    pauses.iter().enumerate().map(line).collect()
}

/// How the model that is asked behaves.
#[derive(Clone, Copy, Debug)]
struct Model {
    /// Sound that comes in while it works.
    cost: u64,
    /// It guesses the words that end so near to the end.
    guesses: u64,
    /// Writes a full stop behind the last word.
    stops: bool,
    avg_logprob: f32,
    no_speech: f32,
}

const MODEL: Model = Model {
    cost: 300 * MS,
    guesses: 200 * MS,
    stops: true,
    avg_logprob: -0.2,
    no_speech: 0.05,
};

fn said(line: &Line, text: &str, stop: bool) -> Said {
    let number = line.text[2..].parse::<u32>().unwrap();
    let mut tokens = vec![number];
    let mut text = text.to_owned();
    if stop {
        text.push('.');
        tokens.push(99_999);
    }
    Said {
        bare: 1,
        word: RawWord {
            text,
            start: SampleIndex(line.start),
            end: SampleIndex(line.end),
            probability: 0.9,
            confidence: 0.9,
        },
        tokens,
    }
}

impl Model {
    fn answer(&self, ask: &Ask, script: &[Line]) -> Answer {
        let told = ask.prefix.last().map_or(0, |s| s.word.end.0);
        let heard = script
            .iter()
            .filter(|l| l.end <= ask.to.0 && l.start >= ask.from.0 && l.end > told);
        let heard: Vec<&Line> = heard.collect();
        let last = heard.len();
        let words = heard.iter().enumerate().map(|(n, line)| {
            let near = ask.to.0 - line.end < self.guesses && ask.reason == Reason::Step;
            let guess = format!(" guess{}", ask.to.0);
            let text = if near { &guess } else { &line.text };
            said(line, text, self.stops && n + 1 == last)
        });
        Answer {
            words: words.collect(),
            heard_to: heard.last().map(|l| SampleIndex(l.end)),
            avg_logprob: self.avg_logprob,
            no_speech: self.no_speech,
            ..Answer::default()
        }
    }
}

/// What came out, and when: samples of sound that had come in.
#[derive(Debug, Default)]
struct Run {
    words: Vec<(Said, u64)>,
    skipped: Vec<(u64, u64)>,
    ends: usize,
    asks: Vec<(Ask, u64)>,
    settled: Vec<(u64, u64)>,
    most_buffered: u64,
    revisions: usize,
    level: Level,
}

fn play(script: &[Line], params: LiveParams, model: Model, seconds: u64) -> Run {
    play_with(script, params, |_| model, seconds)
}

fn play_with(
    script: &[Line],
    params: LiveParams,
    model: impl Fn(u64) -> Model,
    seconds: u64,
) -> Run {
    let step = params.step;
    let mut policy = Policy::new(SampleIndex(0), params, Ladder::for_step(step));
    let mut run = Run::default();
    let mut working: Option<(Ask, u64)> = None;
    let mut partial = String::new();
    let mut at = 0;
    let mut rest = 0;
    loop {
        if at < seconds * SECOND {
            let speaks = |l: &Line| l.start < at + FRAME && l.end > at;
            let prob = if script.iter().any(speaks) {
                0.95
            } else {
                0.05
            };
            at += FRAME;
            policy.sound(SampleIndex(at));
            policy.hear(&[prob]);
        } else {
            // Time goes on without sound.
            policy.end();
            rest += FRAME;
            if policy.is_idle() && working.is_none() {
                break;
            }
            assert!(rest < 120 * SECOND, "it does not come to an end");
        }
        if working.as_ref().is_some_and(|(_, due)| *due <= at + rest) {
            let (ask, _) = working.take().unwrap();
            policy.answer(model(at).answer(&ask, script));
        }
        if let Some(ask) = policy.question() {
            assert!(working.is_none(), "two questions at once");
            assert!(ask.to.since(ask.from) <= 28 * SECOND + 1, "{ask:?}");
            assert!(ask.to > ask.from, "{ask:?}");
            let due = at + rest + model(at).cost;
            run.asks.push((ask.clone(), at));
            working = Some((ask, due));
        }
        while let Some(outcome) = policy.take() {
            match outcome {
                Outcome::Words { words, ends } => {
                    run.words.extend(words.into_iter().map(|w| (w, at + rest)));
                    run.ends += usize::from(ends);
                }
                Outcome::Skipped { from, to } => run.skipped.push((from.0, to.0)),
            }
        }
        let open: String = policy.open_words().map(|s| s.word.text.as_str()).collect();
        if open != partial {
            run.revisions += 1;
            partial = open;
        }
        run.settled.push((policy.settled_until().0, at));
        run.most_buffered = run.most_buffered.max(at - policy.oldest_needed().0.min(at));
        run.level = policy.ladder().level();
    }
    run
}

fn texts(run: &Run) -> Vec<String> {
    run.words
        .iter()
        .map(|(s, _)| folded(&s.word.text))
        .collect()
}

fn wanted(script: &[Line]) -> Vec<String> {
    script.iter().map(|l| folded(&l.text)).collect()
}

fn delays(run: &Run) -> Vec<u64> {
    let mut out: Vec<u64> = run.words.iter().map(|(s, at)| at - s.word.end.0).collect();
    out.sort_unstable();
    out
}

#[test]
fn words_stand_when_two_decodings_agree_and_none_is_guessed_or_said_twice() {
    // Half a minute without a pause.
    let lines = script(&[0; 100]);

    let run = play(&lines, LiveParams::default(), MODEL, 40);

    assert_eq!(texts(&run), wanted(&lines));
    let delays = delays(&run);
    assert!(delays[delays.len() / 2] < 2 * SECOND, "{delays:?}");
    assert!(run.skipped.is_empty());
    assert!(run.most_buffered < 30 * SECOND, "{}", run.most_buffered);
}

#[test]
fn what_was_said_stands_soon_after_somebody_stops() {
    let mut pauses = vec![0; 10];
    pauses[9] = 5_000;
    let lines = script(&pauses);

    let run = play(&lines, LiveParams::default(), MODEL, 20);

    assert_eq!(texts(&run), wanted(&lines));
    let (last, at) = run.words.last().unwrap();
    assert_eq!(last.word.text, " w9.");
    // The silence that ends it, the decoding, and how long the full stop waits for what follows it.
    assert!(
        at - last.word.end.0 < 2 * SECOND,
        "{}",
        at - last.word.end.0
    );
    assert_eq!(run.ends, 1);
}

#[test]
fn a_word_that_is_cut_in_two_is_not_lost() {
    let pauses = [
        4, 0, 378, 61, 86, 1151, 13, 318, 92, 58, 82, 34, 47, 218, 99, 340, 44, 1, 45, 62, 0,
    ];
    let lines = script(&pauses);
    let params = LiveParams {
        step: 300 * MS,
        ..LiveParams::default()
    };
    let model = Model {
        cost: 513 * MS,
        guesses: 0,
        ..MODEL
    };

    let run = play(&lines, params, model, 16);

    assert_eq!(texts(&run), wanted(&lines));
}

#[test]
fn a_full_stop_goes_where_somebody_speaks_on() {
    let mut pauses = vec![0; 12];
    pauses[5] = 600;
    let lines = script(&pauses);

    let run = play(&lines, LiveParams::default(), MODEL, 20);

    assert_eq!(texts(&run), wanted(&lines));
    let fifth = &run.words[5].0.word.text;
    assert_eq!(fifth, " w5", "the pause is none between sentences");
}

#[test]
fn the_prefix_is_what_was_said_and_its_sound_is_there() {
    let lines = script(&[100; 80]);

    let run = play(&lines, LiveParams::default(), MODEL, 45);

    for (ask, _) in &run.asks {
        for said in &ask.prefix {
            assert!(said.word.start >= ask.from && said.word.end <= ask.to);
        }
    }
    let longest = run.asks.iter().map(|(a, _)| a.prefix.len()).max();
    assert!(longest > Some(10), "{longest:?}");
}

#[test]
fn context_is_kept_across_pauses_and_forgotten_behind_long_ones() {
    let mut pauses = vec![50; 40];
    pauses[19] = 2_000;
    pauses[29] = 4_000;
    let lines = script(&pauses);

    let run = play(&lines, LiveParams::default(), MODEL, 40);

    assert_eq!(texts(&run), wanted(&lines));
    let behind = |word: usize| {
        let later = run.asks.iter().find(|(a, _)| a.to.0 > lines[word].start);
        later.unwrap().0.clone()
    };
    assert!(!behind(20).prefix.is_empty());
    assert!(behind(30).prefix.is_empty());
    let kept = behind(20);
    assert!(kept.to.since(kept.from) < 15 * SECOND);
}

#[test]
fn silence_and_clicks_are_not_decoded_and_time_goes_on() {
    let click = Line {
        text: " w0".into(),
        start: 5 * SECOND,
        end: 5 * SECOND + 20 * MS,
    };

    let run = play(&[click], LiveParams::default(), MODEL, 60);

    assert!(run.asks.is_empty(), "{:?}", run.asks);
    let (settled, at) = run.settled[run.settled.len() / 2];
    assert!(at - settled < SECOND / 2);
    assert!(run.most_buffered < 3 * SECOND);
}

#[test]
fn noise_that_the_model_does_not_believe_gives_no_words() {
    let lines = script(&[0; 150]);
    let model = Model {
        avg_logprob: -1.5,
        ..MODEL
    };

    let run = play(&lines, LiveParams::default(), model, 44);

    assert!(run.words.is_empty(), "{:?}", texts(&run));
    assert!(run.most_buffered < 30 * SECOND);
    let late = run
        .settled
        .iter()
        .map(|(s, at)| at.saturating_sub(*s))
        .max();
    assert!(late.unwrap() <= 4 * SECOND + FRAME, "{late:?}");
}

#[test]
fn a_text_in_which_the_model_hears_no_speech_is_none_until_there_is_some() {
    let lines = script(&[0; 150]);
    let model = |at: u64| Model {
        no_speech: if at < 20 * SECOND { 0.6 } else { 0.1 },
        ..MODEL
    };

    let run = play_with(&lines, LiveParams::default(), model, 44);

    let early = run.words.iter().filter(|(_, at)| *at < 20 * SECOND);
    assert_eq!(early.count(), 0);
    assert!(run.words.len() > 60, "{}", run.words.len());
}

#[test]
fn words_leave_before_they_are_due() {
    // Nothing is ever agreed on: each decoding reads the last two seconds in another way.
    let lines = script(&[0; 60]);
    let model = Model {
        guesses: 2 * SECOND,
        ..MODEL
    };
    let params = LiveParams::default();
    let latency = params.latency.unwrap();

    let run = play(&lines, params, model, 20);

    for (said, at) in &run.words {
        let late = at - said.word.start.0;
        assert!(late <= latency + MODEL.cost, "{late}: {said:?}");
    }
    for pair in run.settled.windows(2) {
        assert!(pair[0].0 <= pair[1].0);
    }
}

#[test]
fn a_machine_that_is_too_slow_widens_the_step_and_then_tells_ends_alone() {
    let lines = script(&[0; 200]);
    let slow = |cost| Model { cost, ..MODEL };

    let busy = play(&lines, LiveParams::default(), slow(900 * MS), 62);
    let busier = play(&lines, LiveParams::default(), slow(3 * SECOND), 62);

    assert!(busy.level > Level::Full && busy.level < Level::Ends);
    assert_eq!(texts(&busy), wanted(&lines));
    assert!(busier.level >= Level::Ends);
    assert!(busy.revisions > 0);
}

#[test]
fn no_word_is_later_than_allowed_and_what_is_given_up_is_told() {
    let lines = script(&[0; 300]);
    let params = LiveParams::default();
    let most = params.max_delay.unwrap();

    for cost in [2, 4, 7, 15, 40] {
        let model = Model {
            cost: cost * SECOND,
            ..MODEL
        };
        let run = play(&lines, params.clone(), model, 93);

        let late = delays(&run).last().copied().unwrap_or(0);
        assert!(late <= most, "{cost}: {}", late / MS);
        let heard = texts(&run);
        let lost = wanted(&lines).iter().filter(|w| !heard.contains(w)).count();
        let told: u64 = run.skipped.iter().map(|(a, b)| b - a).sum();
        assert!(lost == 0 || told > 0, "{cost}: {lost} words");
        // Words are 300 ms apart: what is lost is told, and not much more.
        let lost = lost as u64 * 300 * MS;
        assert!(told + 2 * SECOND >= lost, "{cost}: {told} {lost}");
        assert!(run.most_buffered < 60 * SECOND);
    }
}

#[test]
fn it_recovers_when_the_machine_is_free_again() {
    let lines = script(&[0; 700]);
    let model = |at: u64| Model {
        cost: if (20..50).contains(&(at / SECOND)) {
            3 * SECOND
        } else {
            200 * MS
        },
        ..MODEL
    };

    let run = play_with(&lines, LiveParams::default(), model, 212);

    assert_eq!(run.level, Level::Full);
    let free: Vec<_> = run
        .words
        .iter()
        .filter(|(_, at)| *at > 190 * SECOND)
        .collect();
    let late = free.iter().map(|(s, at)| at - s.word.end.0).max();
    assert!(late.unwrap() < 3 * SECOND, "{late:?}");
}

#[test]
fn a_stall_ends_what_was_said_and_it_goes_on_behind() {
    let lines = script(&[0; 20]);
    let params = LiveParams::default();
    let mut policy = Policy::new(
        SampleIndex(0),
        params.clone(),
        Ladder::for_step(params.step),
    );
    let feed = |policy: &mut Policy, from: u64, to: u64| {
        for at in (from..to).step_by(FRAME as usize) {
            let speaks = lines.iter().any(|l| l.start < at + FRAME && l.end > at);
            policy.sound(SampleIndex(at + FRAME));
            policy.hear(&[if speaks { 0.95 } else { 0.05 }]);
        }
    };
    let mut out = Vec::new();
    let mut drain = |policy: &mut Policy| {
        while let Some(outcome) = policy.take() {
            if let Outcome::Words { words, .. } = outcome {
                out.extend(words.into_iter().map(|s| folded(&s.word.text)));
            }
        }
        out.clone()
    };
    feed(&mut policy, 0, 2 * SECOND);
    let first = policy.question().map(|ask| MODEL.answer(&ask, &lines));
    if let Some(answer) = first {
        policy.answer(answer);
    }

    policy.stall();
    while let Some(ask) = policy.question() {
        policy.answer(MODEL.answer(&ask, &lines));
    }
    policy.question();
    let stalled = drain(&mut policy);
    assert_eq!(stalled, ["w0", "w1", "w2"]);

    feed(&mut policy, 2 * SECOND, 9 * SECOND);
    policy.end();
    while let Some(ask) = policy.question() {
        policy.answer(MODEL.answer(&ask, &lines));
    }
    // The word that the stall cut in two is heard once or not at all.
    let all = drain(&mut policy);
    assert!(all.len() >= 18, "{all:?}");
    let mut sorted = all.clone();
    sorted.dedup();
    assert_eq!(all, sorted);
    assert!(policy.is_idle());
}

#[test]
fn another_model_is_told_nothing_in_the_tokens_of_the_one_before() {
    let lines = script(&[0; 40]);
    let params = LiveParams::default();
    let mut policy = Policy::new(
        SampleIndex(0),
        params.clone(),
        Ladder::for_step(params.step),
    );
    let mut out = Vec::new();
    let mut changed = false;
    let mut first_behind = None;
    for at in (0..16 * SECOND).step_by(FRAME as usize) {
        let speaks = lines.iter().any(|l| l.start < at + FRAME && l.end > at);
        policy.sound(SampleIndex(at + FRAME));
        policy.hear(&[if speaks { 0.95 } else { 0.05 }]);
        if let Some(ask) = policy.question() {
            if at > 6 * SECOND && !changed {
                // In the middle of a decoding.
                changed = true;
                policy.begin_anew();
                continue;
            }
            if changed {
                first_behind.get_or_insert_with(|| ask.clone());
            }
            policy.answer(MODEL.answer(&ask, &lines));
        }
        while let Some(outcome) = policy.take() {
            if let Outcome::Words { words, .. } = outcome {
                out.extend(words.into_iter().map(|s| folded(&s.word.text)));
            }
        }
    }

    assert!(first_behind.unwrap().prefix.is_empty());
    assert_eq!(out, wanted(&lines));
}

#[test]
fn what_is_left_out_at_an_end_is_heard_by_itself() {
    let lines = script(&[0; 12]);
    let params = LiveParams::default();
    let mut policy = Policy::new(
        SampleIndex(0),
        params.clone(),
        Ladder::for_step(params.step),
    );
    let mut asked = Vec::new();
    let mut out = Vec::new();
    for at in (0..8 * SECOND).step_by(FRAME as usize) {
        let speaks = lines.iter().any(|l| l.start < at + FRAME && l.end > at);
        policy.sound(SampleIndex(at + FRAME));
        policy.hear(&[if speaks { 0.95 } else { 0.05 }]);
        if let Some(ask) = policy.question() {
            asked.push(ask.reason);
            let mut answer = MODEL.answer(&ask, &lines);
            if ask.reason == Reason::End {
                answer.words.truncate(2);
                answer.heard_to = answer.words.last().map(|s| s.word.end);
            }
            policy.answer(answer);
        }
        while let Some(outcome) = policy.take() {
            if let Outcome::Words { words, .. } = outcome {
                out.extend(words.into_iter().map(|s| folded(&s.word.text)));
            }
        }
    }

    assert!(asked.contains(&Reason::Rest), "{asked:?}");
    assert_eq!(out, wanted(&lines));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    #[test]
    fn every_word_comes_once_and_in_order(
        pauses in prop::collection::vec(prop_oneof![8 => 0u64..100, 2 => 100u64..1_500, 1 => 1_500u64..8_000], 1..120),
        cost in 0u64..700,
        guesses in 0u64..500,
        stops: bool,
        step in 300u64..2_000,
    ) {
        let lines = script(&pauses);
        let model = Model { cost: cost * MS, guesses: guesses * MS, stops, ..MODEL };
        let params = LiveParams { step: step * MS, ..LiveParams::default() };
        let seconds = lines.last().unwrap().end / SECOND + 6;

        let run = play(&lines, params, model, seconds);

        // A guess may be due before it is known better; its place is then taken.
        let heard = texts(&run);
        prop_assert_eq!(heard.len(), lines.len(), "{:?}", heard);
        let wrong = heard.iter().zip(wanted(&lines)).filter(|(a, b)| *a != b).count();
        prop_assert!(wrong == 0 || step + cost > 1_500, "{:?}", heard);
        for pair in run.words.windows(2) {
            prop_assert!(pair[0].0.word.end <= pair[1].0.word.start);
        }
        for pair in run.settled.windows(2) {
            prop_assert!(pair[0].0 <= pair[1].0);
        }
        prop_assert!(run.most_buffered < 40 * SECOND);
        prop_assert!(run.skipped.is_empty());
    }

    #[test]
    fn nothing_that_a_model_answers_stops_it(
        answers in prop::collection::vec((0usize..6, -2.0f32..0.0, any::<bool>(), 0.0f32..1.0, any::<bool>()), 1..60),
        speech in prop::collection::vec(any::<bool>(), 10..400),
        cost in 0u64..4_000,
    ) {
        let params = LiveParams::default();
        let most = params.max_delay.unwrap();
        let mut policy = Policy::new(SampleIndex(0), params.clone(), Ladder::for_step(params.step));
        let mut working: Option<(Ask, u64)> = None;
        let mut answers = answers.iter().cycle();
        let (mut at, mut last_end, mut last_settled) = (0, 0, 0);
        for n in 0..speech.len() * 8 + 4_000 {
            let frame = speech.get(n / 8).copied();
            match frame {
                Some(speaks) => {
                    at += FRAME;
                    policy.sound(SampleIndex(at));
                    policy.hear(&[if speaks { 0.9 } else { 0.1 }]);
                }
                None => policy.end(),
            }
            let now = n as u64 * FRAME;
            if working.as_ref().is_some_and(|(_, due)| *due <= now) {
                let (ask, _) = working.take().unwrap();
                let (count, avg_logprob, loops, no_speech, told) = *answers.next().unwrap();
                let from = ask.prefix.last().map_or(ask.from, |s| s.word.end).0;
                let each = ask.to.0.saturating_sub(from) / (count as u64 + 1);
                let words = (0..count as u64).map(|i| {
                    let line = Line { text: format!(" w{i}"), start: from + i * each, end: from + (i + 1) * each };
                    said(&line, &line.text, told)
                });
                policy.answer(Answer {
                    words: if each > 0 { words.collect() } else { Vec::new() },
                    appendix: told.then(|| (".".to_owned(), vec![99_999])),
                    loops,
                    avg_logprob,
                    no_speech,
                    heard_to: told.then_some(ask.to),
                    silent: false,
                });
            }
            if let Some(ask) = policy.question() {
                prop_assert!(working.is_none());
                prop_assert!(ask.to > ask.from && ask.to.since(ask.from) <= 28 * SECOND + 1, "{:?}", ask);
                working = Some((ask, now + cost * MS));
            }
            while let Some(outcome) = policy.take() {
                if let Outcome::Words { words, .. } = outcome {
                    for said in words {
                        prop_assert!(said.word.start.0 >= last_end, "{:?} {}", said, last_end);
                        prop_assert!(said.word.end.0 + most >= at, "late by {}", at - said.word.end.0);
                        last_end = said.word.end.0;
                    }
                }
            }
            let settled = policy.settled_until().0;
            prop_assert!(settled >= last_settled);
            last_settled = settled;
        }
        prop_assert!(policy.is_idle());
    }
}
