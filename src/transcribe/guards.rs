// SPDX-License-Identifier: MPL-2.0
//! Judges what a model has written, against what was heard.
//!
//! A window that loops, breaks off, jumps over speech or is unsure is decoded again in another way; text
//! without speech under it does not leave. Sources: openai-whisper's thresholds (transcribe.py), asr.md 1.4
//! and engine.md 1.1 in the research notes.

use std::io::Write;

use flate2::Compression;
use flate2::write::ZlibEncoder;

use crate::audio::SAMPLE_RATE;
use crate::audio::speech;
use crate::inference::{Decoded, Token};

use super::packer::Plan;
use super::{RawWord, folded};

const SECOND: u32 = SAMPLE_RATE;
/// Shorter texts cannot be judged by their compression.
const LEAST_JUDGED_BYTES: usize = 60;
/// Tokens for which there is time in a second of speech, and in no time at all.
const TOKENS_A_SECOND: f32 = 12.0;
const TOKENS_FREE: f32 = 20.0;

/// When a text is refused.
#[derive(Clone, Debug, PartialEq)]
pub struct GuardParams {
    /// Most bytes of text for a byte of its compressed form.
    pub compression_most: f32,
    /// Least mean log-probability.
    pub logprob_least: f32,
    /// No-speech probability above which a doubtful text is silence.
    pub no_speech_most: f32,
    /// Mean log-probability below which a text is doubtful.
    pub logprob_doubtful: f32,
    /// No-speech probability above which a text with a fault is silence, and not decoded again.
    pub no_speech_faulty: f32,
    /// Speech after the place where the model last listened, seconds.
    pub early_end_s: f32,
    /// The same, for less of it: no fault of the text, but worth being heard by itself.
    pub tail_s: f32,
    /// Speech that the model has jumped over, seconds.
    pub gap_s: f32,
    /// Leave words alone that have no speech under them, and known phrases.
    pub verbatim: bool,
}

impl Default for GuardParams {
    fn default() -> Self {
        Self {
            compression_most: 2.4,
            logprob_least: -1.0,
            no_speech_most: 0.6,
            // whisper.cpp's own figure is near 0 always, OpenAI's threshold of -1 stands for models that are more
            // often unsure. Read after the start token alone, speech of the development set stays under 0.4, noise
            // and music that voice activity lets through lie above 0.5.
            logprob_doubtful: -0.5,
            no_speech_faulty: 0.5,
            early_end_s: 2.5,
            tail_s: 1.0,
            gap_s: 2.0,
            verbatim: false,
        }
    }
}

/// What was heard in a window.
#[derive(Clone, Debug)]
pub struct WindowFacts {
    /// Speech in samples of the window.
    pub speech: Vec<(u32, u32)>,
    /// Nothing louder than two steps of 16 bits.
    pub silent: bool,
    /// What the model was told beforehand.
    pub prompt: String,
}

impl WindowFacts {
    /// Facts of `plan` with these samples and this prompt.
    pub fn of(plan: &Plan, samples: &[f32], prompt: &str) -> Self {
        Self {
            speech: plan.speech().to_vec(),
            silent: speech::is_silent(samples),
            prompt: prompt.trim().to_owned(),
        }
    }

    fn speech_seconds(&self) -> f32 {
        self.speech_between(0, u32::MAX) as f32 / SECOND as f32
    }

    fn speech_between(&self, from: u32, to: u32) -> u32 {
        self.speech
            .iter()
            .map(|(a, b)| (*b).min(to).saturating_sub((*a).max(from)))
            .sum()
    }
}

/// What is wrong with a text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// It repeats itself.
    Loop,
    /// The model does not believe it.
    Unsure,
    /// It ends long before the speech does.
    EarlyEnd,
    /// It ends a little before the speech does.
    Tail,
    /// It jumps over speech.
    Gap {
        /// Behind the last word before, in samples of the window; 0 where there is none.
        from: u32,
    },
    /// There is speech and no text.
    NoText,
    /// It has more words than there is time for.
    Dense,
    /// It is the prompt.
    Prompt,
}

/// What to think of a text.
#[derive(Clone, Debug, PartialEq)]
pub enum Judgement {
    /// Nothing is wrong.
    Good,
    /// There is no speech.
    Silence,
    /// It should be decoded again.
    Bad(Vec<Fault>),
}

/// Judges one decoding of one window.
pub fn judge(decoded: &Decoded, facts: &WindowFacts, params: &GuardParams) -> Judgement {
    let seconds = facts.speech_seconds();
    let unsure = decoded.avg_logprob < params.logprob_least;
    let doubtful = decoded.avg_logprob < params.logprob_doubtful;
    if facts.silent || (doubtful && decoded.sot_no_speech > params.no_speech_most) {
        return Judgement::Silence;
    }
    let mut faults = Vec::new();
    if decoded.tokens.is_empty() {
        return if seconds > 3.0 {
            Judgement::Bad(vec![Fault::NoText])
        } else {
            Judgement::Silence
        };
    }
    let text = text(decoded);
    if compression(&text) > params.compression_most || loops(&text) {
        faults.push(Fault::Loop);
    }
    if unsure {
        faults.push(Fault::Unsure);
    }
    if decoded.tokens.len() as f32 > TOKENS_A_SECOND * seconds.max(0.5) + TOKENS_FREE {
        faults.push(Fault::Dense);
    }
    let behind = decoded
        .alignment_end
        .map_or(0, |end| facts.speech_between(end, u32::MAX)) as f32
        / SECOND as f32;
    if behind > params.early_end_s {
        faults.push(Fault::EarlyEnd);
    }
    let gap =
        |(a, b): &(u32, u32)| facts.speech_between(*a, *b) as f32 > params.gap_s * SECOND as f32;
    if let Some((from, _)) = decoded.gaps.iter().copied().find(gap) {
        faults.push(Fault::Gap { from });
    }
    if leaks(&text, &facts.prompt) && (decoded.sot_no_speech > 0.3 || seconds < 1.0) {
        faults.push(Fault::Prompt);
    }
    if faults.is_empty() && behind > params.tail_s {
        Judgement::Bad(vec![Fault::Tail])
    } else if faults.is_empty() {
        Judgement::Good
    } else if decoded.sot_no_speech > params.no_speech_faulty {
        Judgement::Silence
    } else {
        Judgement::Bad(faults)
    }
}

/// A way to decode a window.
#[derive(Clone, Debug, PartialEq)]
pub enum Pass {
    /// Several texts followed at once, without the prompt.
    Beam {
        /// How many.
        beam: u32,
    },
    /// Each half on its own.
    Split,
    /// What was said before the model jumped over speech is kept, and all behind it heard again; if nothing was, what lies
    /// before the first pause is heard by itself.
    Gap {
        /// Behind the last word before, in samples of the window; 0 where there is none.
        from: u32,
    },
    /// What was said is kept, and the speech behind it heard by itself.
    Tail {
        /// Where the model last listened, in samples of the window.
        from: u32,
    },
    /// Sampling.
    Temperature(f32),
}

/// What to do with a window.
#[derive(Clone, Debug, PartialEq)]
pub enum Verdict {
    /// This is its text.
    Done(Decoded),
    /// Decode it again.
    Again(Pass),
}

/// The passes over one window.
#[derive(Clone, Debug)]
pub struct Ladder {
    passes: Vec<Pass>,
    /// It may be cut where there is a pause, and heard again.
    may_halve: bool,
    /// It may be cut where the model jumped.
    may_divide: bool,
    /// A tail: it has a text that is good, or none.
    only_good: bool,
    candidates: Vec<(f32, Decoded)>,
}

/// Texts followed where one was not good enough.
const BEAMS: u32 = 5;

impl Ladder {
    /// After a first pass with `beam`: beams if it was greedy, then the temperatures in turn.
    pub fn new(beam: u32, temperatures: &[f32]) -> Self {
        let beams = (beam <= 1 && !temperatures.is_empty()).then_some(Pass::Beam { beam: BEAMS });
        let mut passes: Vec<Pass> = beams
            .into_iter()
            .chain(temperatures.iter().copied().map(Pass::Temperature))
            .collect();
        passes.reverse();
        Self {
            passes,
            may_halve: !temperatures.is_empty(),
            may_divide: !temperatures.is_empty(),
            only_good: false,
            candidates: Vec::new(),
        }
    }

    /// This window is a half already: it is divided only where the model jumped.
    pub fn no_halves(&mut self) {
        self.may_halve = false;
    }

    /// This window is the end of another, for which the model had no words: what it has for it now must be good at once.
    pub fn only_good(&mut self) {
        self.only_good = true;
    }

    /// Takes a decoding and its judgement, says what to do.
    pub fn next(&mut self, decoded: Decoded, judgement: Judgement, facts: &WindowFacts) -> Verdict {
        let faults = match judgement {
            Judgement::Good => return Verdict::Done(decoded),
            Judgement::Silence => return Verdict::Done(silence(&decoded)),
            // A tail with a tail of its own is still a text.
            Judgement::Bad(faults)
                if self.only_good && matches!(faults[..], [Fault::EarlyEnd | Fault::Tail]) =>
            {
                return Verdict::Done(decoded);
            }
            Judgement::Bad(_) if self.only_good => return Verdict::Done(silence(&decoded)),
            Judgement::Bad(faults) => faults,
        };
        let from = decoded.alignment_end;
        let missing = faults.iter().any(|f| {
            matches!(
                f,
                Fault::EarlyEnd | Fault::Tail | Fault::Gap { .. } | Fault::NoText
            )
        });
        let wrong = faults
            .iter()
            .any(|f| matches!(f, Fault::Loop | Fault::Dense | Fault::Prompt));
        let mut worth = decoded.avg_logprob - 0.5 * uncovered(&decoded, facts);
        if wrong {
            worth -= 10.0;
        }
        self.candidates.push((worth, decoded));
        let may_halve = std::mem::take(&mut self.may_halve);
        if missing && std::mem::take(&mut self.may_divide) {
            let pass = match (faults.as_slice(), from) {
                ([Fault::EarlyEnd | Fault::Tail], Some(from)) => Pass::Tail { from },
                ([Fault::Gap { from }] | [Fault::EarlyEnd, Fault::Gap { from }], _) => {
                    Pass::Gap { from: *from }
                }
                _ => Pass::Split,
            };
            if may_halve || matches!(pass, Pass::Gap { .. }) {
                return Verdict::Again(pass);
            }
        }
        if missing && !wrong && !faults.contains(&Fault::Unsure) && !faults.contains(&Fault::NoText)
        {
            return Verdict::Done(self.best());
        }
        match self.passes.pop() {
            Some(pass) => Verdict::Again(pass),
            None => Verdict::Done(self.best()),
        }
    }

    /// The last text, as far as it goes to `until`, in samples of the window.
    pub fn last_until(&self, until: u32) -> Decoded {
        let last = self.candidates.last().map(|(_, decoded)| decoded);
        let mut kept = last.cloned().unwrap_or_default();
        let within = |t: &Token| t.end.is_none_or(|end| end <= until);
        let count = kept.tokens.iter().take_while(|t| within(t)).count();
        kept.tokens.truncate(count);
        kept.alignment_end = kept.alignment_end.map(|end| end.min(until));
        kept.gaps.retain(|(_, end)| *end <= until);
        kept
    }

    /// The best text so far, its loops cut out.
    pub fn best(&self) -> Decoded {
        let best = self.candidates.iter().max_by(|a, b| a.0.total_cmp(&b.0));
        best.map(|(_, decoded)| cut_loop(decoded.clone()))
            .unwrap_or_default()
    }
}

fn silence(decoded: &Decoded) -> Decoded {
    Decoded {
        tokens: Vec::new(),
        ..decoded.clone()
    }
}

/// Share of the speech that lies behind the last word.
fn uncovered(decoded: &Decoded, facts: &WindowFacts) -> f32 {
    let all = facts.speech_between(0, u32::MAX);
    let Some(end) = decoded.alignment_end.filter(|_| all > 0) else {
        return 0.0;
    };
    facts.speech_between(end, u32::MAX) as f32 / all as f32
}

pub(super) fn text(decoded: &Decoded) -> String {
    let bytes: Vec<u8> = decoded
        .tokens
        .iter()
        .flat_map(|t| t.bytes.iter().copied())
        .collect();
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Bytes of a decoding's text over its bytes after zlib.
pub fn compression_ratio(decoded: &Decoded) -> f32 {
    ratio(text(decoded).trim())
}

pub(super) fn compression(text: &str) -> f32 {
    if text.len() < LEAST_JUDGED_BYTES {
        1.0
    } else {
        ratio(text.trim())
    }
}

fn ratio(text: &str) -> f32 {
    if text.is_empty() {
        return 1.0;
    }
    let mut encoder = ZlibEncoder::new(Vec::new(), Compression::new(6));
    let packed = encoder
        .write_all(text.as_bytes())
        .and_then(|()| encoder.finish());
    packed.map_or(1.0, |packed| text.len() as f32 / packed.len().max(1) as f32)
}

/// The same word eight times, the same few words three times running over at least twelve words, or the same
/// few characters where there are no spaces.
pub(super) fn loops(text: &str) -> bool {
    let words: Vec<String> = text
        .split_whitespace()
        .map(folded)
        .filter(|w| !w.is_empty())
        .collect();
    if (1..=8).any(|n| {
        repeats(
            &words,
            n,
            if n == 1 { 8 } else { 3 },
            if n == 1 { 8 } else { 12 },
        )
    }) {
        return true;
    }
    let characters: Vec<char> = text.chars().filter(|c| !c.is_whitespace()).collect();
    words.len() * 12 < characters.len() && (4..=12).any(|n| repeats(&characters, n, 4, 16))
}

fn repeats<T: PartialEq>(items: &[T], n: usize, times: usize, least: usize) -> bool {
    let mut run = n;
    for i in n..items.len() {
        run = if items[i] == items[i - n] { run + 1 } else { n };
        if run >= n * times && run >= least {
            return true;
        }
    }
    false
}

/// Keeps the first of the copies that a text ends in.
fn cut_loop(mut decoded: Decoded) -> Decoded {
    for n in 1..=16usize {
        let ids: Vec<u32> = decoded.tokens.iter().map(|t| t.id).collect();
        let mut run = n;
        for i in n..ids.len() {
            run = if ids[i] == ids[i - n] { run + 1 } else { n };
            if run >= 3 * n && run >= 8 {
                // The loop began `run` tokens ago; one copy stays.
                let begin = i + 1 - run;
                let end = (i + 1..ids.len())
                    .find(|j| ids[*j] != ids[*j - n])
                    .unwrap_or(ids.len());
                decoded.tokens.drain(begin + n..end);
                return cut_loop(decoded);
            }
        }
    }
    decoded
}

fn leaks(text: &str, prompt: &str) -> bool {
    if prompt.is_empty() {
        return false;
    }
    let told: Vec<String> = prompt.split_whitespace().map(folded).collect();
    let said: Vec<String> = text
        .split_whitespace()
        .map(folded)
        .filter(|w| !w.is_empty())
        .collect();
    let known = said.iter().filter(|w| told.contains(w)).count();
    !said.is_empty() && known * 5 >= said.len() * 4
}

/// What models write when there is nothing to hear, having learnt from subtitles. Weighed, never decisive.
const FORMULAS: [&str; 14] = [
    "thank you",
    "thanks",
    "thank you for watching",
    "thanks for watching",
    "thank you very much",
    "please subscribe",
    "subtitles by the amaraorg community",
    "you",
    "bye",
    "bye bye",
    "untertitel der amaraorg community",
    "soustitres réalisés par la communauté damaraorg",
    "subtítulos realizados por la comunidad de amaraorg",
    "ご視聴ありがとうございました",
];

/// What subtitles write over music: no words.
const NOTES: &str = "♩♪♫♬♭♮♯*#.…-–—";

/// Takes out what has no speech under it. `words` are in order, with their token ids.
pub fn clean(
    words: Vec<(RawWord, Vec<u32>)>,
    facts: &WindowFacts,
    plan: &Plan,
    no_speech: f32,
    params: &GuardParams,
) -> Vec<(RawWord, Vec<u32>)> {
    if params.verbatim || facts.speech.is_empty() {
        return words;
    }
    let all: String = words
        .iter()
        .map(|(w, _)| folded(&w.text))
        .collect::<Vec<_>>()
        .join(" ");
    let mean = words.iter().map(|(w, _)| w.probability).sum::<f32>() / words.len().max(1) as f32;
    let alone = FORMULAS.contains(&all.as_str());
    if alone && (mean < 0.8 || no_speech > 0.3) && facts.speech_seconds() < 2.0 {
        return Vec::new();
    }
    let speech: Vec<_> = facts
        .speech
        .iter()
        .map(|(a, b)| (plan.stream(*a), plan.stream(*b)))
        .collect();
    let supported = |word: &RawWord| {
        let margin = u64::from(SECOND / 10);
        let from = word.start.0.saturating_sub(margin);
        let to = word.end.0 + margin;
        let heard: u64 = speech
            .iter()
            .map(|(a, b)| b.0.min(to).saturating_sub(a.0.max(from)))
            .sum();
        heard as f32 / (to - from).max(1) as f32 >= 0.2 || word.probability >= 0.7
    };
    let said = |word: &RawWord| !word.text.trim().chars().all(|c| NOTES.contains(c));
    words
        .into_iter()
        .filter(|(word, _)| said(word) && supported(word))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::audio::SampleIndex;
    use crate::audio::speech::{Speech, SpeechParams};
    use crate::inference::Token;
    use crate::transcribe::packer::Packer;

    fn decoded(text: &str) -> Decoded {
        let words: Vec<&str> = text.split_inclusive(' ').collect();
        let tokens: Vec<Token> = words
            .iter()
            .enumerate()
            .map(|(i, w)| Token {
                id: w.bytes().map(u32::from).sum(),
                bytes: w.as_bytes().to_vec(),
                probability: 0.9,
                start: Some(i as u32 * 8_000),
                end: Some((i as u32 + 1) * 8_000),
            })
            .collect();
        let alignment_end = tokens.last().and_then(|t| t.end);
        Decoded {
            tokens,
            avg_logprob: -0.3,
            alignment_end,
            language: "en".into(),
            ..Decoded::default()
        }
    }

    fn facts(seconds: u32) -> WindowFacts {
        WindowFacts {
            speech: vec![(0, seconds * SECOND)],
            silent: false,
            prompt: String::new(),
        }
    }

    fn faults(decoded: &Decoded, facts: &WindowFacts) -> Vec<Fault> {
        match judge(decoded, facts, &GuardParams::default()) {
            Judgement::Bad(faults) => faults,
            _ => Vec::new(),
        }
    }

    #[test]
    fn ordinary_text_is_good() {
        let text = decoded("the quick brown fox jumps over the lazy dog and runs away from it ");

        assert_eq!(
            judge(&text, &facts(7), &GuardParams::default()),
            Judgement::Good
        );
    }

    #[test]
    fn a_loop_is_bad_and_cut_to_one_copy() {
        let text = decoded(&format!("and then {}", "we went to the shop ".repeat(8)));

        assert!(faults(&text, &facts(20)).contains(&Fault::Loop));
        let cut = super::text(&cut_loop(text));
        assert_eq!(cut.matches("shop").count(), 1, "{cut}");
    }

    #[test]
    fn speech_behind_the_last_word_is_an_early_end() {
        assert!(faults(&decoded("one two three "), &facts(20)).contains(&Fault::EarlyEnd));
    }

    #[test]
    fn a_little_speech_behind_the_text_is_a_tail_and_no_reason_for_silence() {
        let mut text = decoded("one two three ");
        text.sot_no_speech = 0.55;

        assert_eq!(faults(&text, &facts(3)), [Fault::Tail]);
        assert_eq!(faults(&text, &facts(2)), []);
    }

    #[test]
    fn a_jump_over_speech_is_a_gap_and_over_silence_is_none() {
        let mut text = decoded("one two three ");
        text.gaps = vec![(8_000, 100_000)];
        text.alignment_end = Some(120_000);

        assert_eq!(faults(&text, &facts(7)), [Fault::Gap { from: 8_000 }]);
        let quiet = WindowFacts {
            speech: vec![(0, 9_000), (99_000, 120_000)],
            ..facts(0)
        };
        assert_eq!(faults(&text, &quiet), []);
    }

    #[test]
    fn nothing_louder_than_a_whisper_is_silence() {
        let quiet = WindowFacts {
            silent: true,
            ..facts(5)
        };

        assert_eq!(
            judge(&decoded("thank you "), &quiet, &GuardParams::default()),
            Judgement::Silence
        );
    }

    #[test]
    fn the_prompt_on_faint_speech_is_no_text() {
        let told = WindowFacts {
            prompt: "Ada Lovelace and Charles Babbage".into(),
            speech: vec![(0, 8_000)],
            silent: false,
        };

        assert!(faults(&decoded("ada lovelace charles "), &told).contains(&Fault::Prompt));
    }

    #[test]
    fn a_doubtful_text_on_what_is_probably_no_speech_is_silence() {
        let mut text = decoded("we chose one of the patients ");
        text.sot_no_speech = 0.7;
        text.avg_logprob = -0.6;
        assert_eq!(
            judge(&text, &facts(5), &GuardParams::default()),
            Judgement::Silence
        );

        text.avg_logprob = -0.2;
        assert_eq!(
            judge(&text, &facts(3), &GuardParams::default()),
            Judgement::Good
        );
    }

    #[test]
    fn a_note_without_a_letter_is_no_word() {
        let word = |text: &str| RawWord {
            text: text.into(),
            start: SampleIndex(0),
            end: SampleIndex(8_000),
            probability: 0.9,
            confidence: 0.9,
        };
        let words = vec![
            (word(" ♪"), vec![1]),
            (word(" one,"), vec![2]),
            (word(" 😀"), vec![3]),
        ];
        let mut speech = Speech::new(SampleIndex(0), SpeechParams::default());
        speech.push(&[0.9; 100]);
        let plan = Packer::new(SampleIndex(0), true)
            .plan(&speech, speech.end(), true)
            .remove(0);

        let left = clean(words, &facts(3), &plan, 0.1, &GuardParams::default());

        let texts: Vec<&str> = left.iter().map(|(w, _)| w.text.as_str()).collect();
        assert_eq!(texts, [" one,", " 😀"]);
    }

    #[test]
    fn the_ladder_ends_and_takes_the_best() {
        let bad = Judgement::Bad(vec![Fault::Unsure]);
        let mut ladder = Ladder::new(1, &[0.4, 0.8]);
        let mut passes = Vec::new();
        let mut text = decoded("one ");

        let done = loop {
            text.avg_logprob -= 0.1;
            match ladder.next(text.clone(), bad.clone(), &facts(1)) {
                Verdict::Again(pass) => passes.push(pass),
                Verdict::Done(best) => break best,
            }
        };

        assert_eq!(
            passes,
            [
                Pass::Beam { beam: 5 },
                Pass::Temperature(0.4),
                Pass::Temperature(0.8)
            ]
        );
        assert!(
            (done.avg_logprob + 0.4).abs() < 1e-6,
            "the first pass was the most certain"
        );
    }

    #[test]
    fn missing_text_is_sought_in_the_halves() {
        let mut ladder = Ladder::new(5, &[0.4]);

        let verdict = ladder.next(
            decoded("one "),
            Judgement::Bad(vec![Fault::Unsure, Fault::EarlyEnd]),
            &facts(20),
        );

        assert_eq!(verdict, Verdict::Again(Pass::Split));
    }

    #[test]
    fn what_was_jumped_over_is_heard_again_with_all_behind_it() {
        let mut ladder = Ladder::new(5, &[0.4]);
        let mut text = decoded("one two three ");
        text.gaps = vec![(8_000, 100_000)];
        text.tokens[1].end = Some(100_000);
        text.tokens[2].end = Some(108_000);
        text.alignment_end = Some(108_000);

        let verdict = ladder.next(
            text,
            Judgement::Bad(vec![Fault::EarlyEnd, Fault::Gap { from: 8_000 }]),
            &facts(20),
        );

        assert_eq!(verdict, Verdict::Again(Pass::Gap { from: 8_000 }));
        let kept = ladder.last_until(8_000);
        assert_eq!(super::text(&kept), "one ");
        assert_eq!((kept.alignment_end, kept.gaps), (Some(8_000), vec![]));
    }

    #[test]
    fn an_early_end_alone_is_mended_behind_the_text() {
        let mut ladder = Ladder::new(5, &[0.4]);

        let verdict = ladder.next(
            decoded("one "),
            Judgement::Bad(vec![Fault::EarlyEnd]),
            &facts(20),
        );

        assert_eq!(verdict, Verdict::Again(Pass::Tail { from: 8_000 }));
    }

    #[test]
    fn a_tail_has_good_text_or_none() {
        let mut ladder = Ladder::new(5, &[0.4]);
        ladder.only_good();

        let verdict = ladder.next(
            decoded("one "),
            Judgement::Bad(vec![Fault::Unsure]),
            &facts(2),
        );

        assert!(matches!(verdict, Verdict::Done(text) if text.tokens.is_empty()));
    }

    #[test]
    fn a_tail_that_ends_early_keeps_its_text() {
        let mut ladder = Ladder::new(5, &[0.4]);
        ladder.only_good();

        let verdict = ladder.next(
            decoded("one "),
            Judgement::Bad(vec![Fault::Tail]),
            &facts(2),
        );

        assert!(matches!(verdict, Verdict::Done(text) if !text.tokens.is_empty()));
    }

    #[test]
    fn without_temperatures_nothing_is_decoded_again() {
        let mut ladder = Ladder::new(1, &[]);

        let verdict = ladder.next(
            decoded("one "),
            Judgement::Bad(vec![Fault::Loop]),
            &facts(20),
        );

        assert!(matches!(verdict, Verdict::Done(_)));
    }
}
