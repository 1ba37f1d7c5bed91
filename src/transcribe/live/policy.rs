// SPDX-License-Identifier: MPL-2.0
//! What is decoded when, and which words stand. A machine without threads and without a clock: it is told what was heard
//! and what the model answered, and its only time is the sound's.
//!
//! A word stands when two decodings in a row agree on it (LocalAgreement-2: Macháček, Dabre, Bojar, "Turning Whisper into
//! Real-Time Transcription System", 2023), when somebody has stopped speaking, or when it is due. What stands is told to
//! the model as the beginning of its text, and never changes. The last fifteen seconds and their words are kept across
//! pauses: short pieces of sound by themselves are what a model makes up phrases for.

use std::collections::VecDeque;

use super::super::packer::Plan;
use super::super::{RawWord, folded};
use super::ladder::{Ladder, Level};
use crate::audio::speech::{Speech, SpeechParams};
use crate::audio::{SAMPLE_RATE, SampleIndex};

const MS: u64 = SAMPLE_RATE as u64 / 1000;
const SECOND: u64 = SAMPLE_RATE as u64;
/// Sound before speech that is decoded with it.
const PRE_ROLL: u64 = 500 * MS;
/// Speech shorter than this is a click.
const LEAST_SPEECH: u64 = 64 * MS;
/// Silence that ends an utterance, behind what looks like the end of a sentence and behind anything else.
const HANG_SENTENCE: u64 = 300 * MS;
const HANG: u64 = 700 * MS;
/// Sound behind an utterance that is decoded with it.
const TAIL: u64 = 300 * MS;
/// Nothing stands that ends so near to the end of what was decoded, while somebody speaks.
const KEEP_BACK: u64 = 300 * MS;
/// A last word that ends so near to it is a guess.
const EDGE: u64 = 250 * MS;
/// Context kept across pauses, and how far from that length a good place to cut is looked for.
const CONTEXT: u64 = 15 * SECOND;
const CONTEXT_SLACK: f32 = 4.0 * SECOND as f32;
/// A pause behind which nothing is kept.
const FORGET: u64 = 3 * SECOND;
/// Most sound that is decoded at once, before it is cut.
const CAP: u64 = 25 * SECOND;
/// Longest sound that is asked about.
const WINDOW: u64 = 28 * SECOND;
/// Words younger than this are not cut off.
const CUT_AGE: u64 = 5 * SECOND;
/// A decoding that the model believes less is passed over, mean log-probability.
const BAD_LOGPROB: f32 = -1.2;
/// What is taken before two decodings agree on it must be believed more.
const SURE_LOGPROB: f32 = -0.7;
/// A rest that is decoded by itself must be believed so much.
const TAIL_LOGPROB: f32 = -1.0;
/// Speech behind the place where the model listened last that is decoded by itself.
const UNCOVERED: u64 = 800 * MS;
/// Speech without any words, behind which decoding begins anew.
const RESYNC: u64 = 2 * SECOND;
/// Sound without a word that stands, behind which what there is must do.
const STUCK: u64 = 12 * SECOND;
/// How old a word is then at least, and what is kept of the sound.
const STUCK_AGE: u64 = 3 * SECOND;
/// A full stop behind the last word is not certain while that word is so young.
const STOP_AGE: u64 = 2 * SECOND;
/// How long a last word with a full stop waits for what follows it.
const HOLD: u64 = 1_000 * MS;
/// Words of an utterance's end of only one word that are less likely are noise.
const LONE_PROBABILITY: f32 = 0.3;
/// Probability of no speech from which a text that follows on nothing, or is not believed, is none. Of 722 decodings of speech
/// two lay above 0.3; noise that voice activity takes for speech lay above 0.5 in all of them.
const NO_SPEECH: f32 = 0.5;
const DOUBTFUL_LOGPROB: f32 = -0.5;
/// Most tokens for a second of sound, and for none.
const TOKENS_A_SECOND: f64 = 8.0;
const TOKENS_FREE: f64 = 12.0;
/// Shortest word.
const LEAST_WORD: u64 = 60 * MS;
/// Words on either side of a seam that are compared.
const SEAM: usize = 4;
/// Utterances are ended after so long where nothing is decoded in between.
const ENDPOINT_CAP: u64 = 8 * SECOND;
/// A word begins so much before its speech at most.
const ONSET: u64 = 200 * MS;
const SENTENCE_ENDS: [char; 6] = ['.', '?', '!', '。', '？', '！'];

/// What a stream asks of the policy. Lengths are samples.
#[derive(Clone, Debug, PartialEq)]
pub struct LiveParams {
    /// New sound from one decoding to the next while somebody speaks.
    pub step: u64,
    /// When a word is due after its sound began; `None` where nobody waits.
    pub latency: Option<u64>,
    /// No word goes out later than this after its sound ended: what would is given up. `None` where nobody waits.
    pub max_delay: Option<u64>,
    /// Voice activity thresholds.
    pub speech: SpeechParams,
    /// No word is taken for noise.
    pub verbatim: bool,
}

impl Default for LiveParams {
    fn default() -> Self {
        Self {
            step: SECOND * 4 / 5,
            latency: Some(4 * SECOND),
            max_delay: Some(10 * SECOND),
            speech: SpeechParams::default(),
            verbatim: false,
        }
    }
}

/// A word with its tokens.
#[derive(Clone, Debug, PartialEq)]
pub struct Said {
    /// The word.
    pub word: RawWord,
    /// What the model wrote.
    pub tokens: Vec<u32>,
    /// How many of them come before the punctuation at its end.
    pub bare: usize,
}

impl Said {
    fn ends_sentence(&self) -> bool {
        self.word.text.trim_end().ends_with(SENTENCE_ENDS)
    }

    fn bare_text(&self) -> &str {
        self.word
            .text
            .trim_end()
            .trim_end_matches(|c: char| !c.is_alphanumeric())
    }
}

/// Why something is decoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// Somebody goes on speaking.
    Step,
    /// Somebody has stopped.
    End,
    /// Somebody speaks for so long that it does not wait for the end.
    Cut,
    /// What a decoding at an end left out.
    Rest,
}

/// Something to be decoded.
#[derive(Clone, Debug, PartialEq)]
pub struct Ask {
    /// Why.
    pub reason: Reason,
    /// The sound.
    pub from: SampleIndex,
    /// Behind its last sample.
    pub to: SampleIndex,
    /// The words that it begins with.
    pub prefix: Vec<Said>,
    /// Most tokens behind them.
    pub most_tokens: u32,
}

impl Ask {
    /// Tokens of the words that it begins with.
    pub fn prefix_tokens(&self) -> Vec<u32> {
        let tokens = self.prefix.iter().flat_map(|s| &s.tokens);
        tokens.copied().collect()
    }
}

/// What the model has answered.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Answer {
    /// The words behind the prefix, in order.
    pub words: Vec<Said>,
    /// What it wrote to the last word of the prefix, which is punctuation as a rule: text and tokens.
    pub appendix: Option<(String, Vec<u32>)>,
    /// It goes round, or is longer than speech can be.
    pub loops: bool,
    /// Mean log-probability of what follows the prefix.
    pub avg_logprob: f32,
    /// Probability of no speech.
    pub no_speech: f32,
    /// Where it listened last; `None` where it does not tell.
    pub heard_to: Option<SampleIndex>,
    /// The sound holds nothing.
    pub silent: bool,
}

/// What comes of it.
#[derive(Clone, Debug, PartialEq)]
pub enum Outcome {
    /// Words that stand. `ends`: an utterance ends behind the last.
    Words {
        /// In order.
        words: Vec<Said>,
        /// See above.
        ends: bool,
    },
    /// Sound that no words will come from, because there is no time for it.
    Skipped {
        /// From here.
        from: SampleIndex,
        /// To there.
        to: SampleIndex,
    },
}

/// See the module. One for each stretch of sound without a hole.
#[derive(Debug)]
pub struct Policy {
    params: LiveParams,
    ladder: Ladder,
    speech: Speech,
    /// What has come, whether heard by voice activity or not.
    sound_end: SampleIndex,
    ended: bool,
    stalled: bool,
    /// Where the sound that is decoded begins; `None` before anybody spoke.
    from: Option<SampleIndex>,
    /// Words that stand, in that sound.
    said: Vec<Said>,
    /// The last of them has not gone out: whether a full stop follows is not known yet.
    held: bool,
    /// Words that may still change.
    open: Vec<Said>,
    /// The last decoding ended like a sentence.
    sentence: bool,
    /// Everything before stands, or is silence.
    done: SampleIndex,
    /// End of the last decoding.
    decoded_to: SampleIndex,
    /// Speech up to here is part of an utterance that has ended.
    closed: SampleIndex,
    /// An utterance that has ended, or is cut, and is to be decoded up to there.
    end_due: Option<(SampleIndex, Reason)>,
    asked: Option<(Ask, SampleIndex)>,
    rest: Option<Ask>,
    /// Whether the last decodings in between were good, the newest first.
    good: VecDeque<bool>,
    /// End of the sound that was decoded when a word stood last.
    progress: SampleIndex,
    out: VecDeque<Outcome>,
    settled: SampleIndex,
}

impl Policy {
    /// For sound that begins at `start`.
    pub fn new(start: SampleIndex, params: LiveParams, ladder: Ladder) -> Self {
        Self {
            speech: Speech::new(start, params.speech),
            params,
            ladder,
            sound_end: start,
            ended: false,
            stalled: false,
            from: None,
            said: Vec::new(),
            held: false,
            open: Vec::new(),
            sentence: false,
            done: start,
            decoded_to: start,
            closed: start,
            end_due: None,
            asked: None,
            rest: None,
            good: VecDeque::new(),
            progress: start,
            out: VecDeque::new(),
            settled: start,
        }
    }

    /// Sound has come, up to there.
    pub fn sound(&mut self, end: SampleIndex) {
        self.stalled = false;
        self.sound_end = self.sound_end.max(end);
    }

    /// No more sound will come.
    pub fn end(&mut self) {
        self.ended = true;
    }

    /// No sound comes for a while: what there is counts as said.
    pub fn stall(&mut self) {
        self.stalled = true;
    }

    /// What the load allows, for the policy that comes after this one.
    pub fn ladder(&self) -> &Ladder {
        &self.ladder
    }

    /// Another model: the tokens of what stands mean nothing to it, and what was measured of the one before says nothing
    /// of it. What was asked has no answer.
    pub fn begin_anew(&mut self) {
        self.ladder.begin_anew();
        if self.held {
            self.release();
        }
        self.failed();
        if let Some(from) = self.from {
            self.from = Some(SampleIndex(self.done.0.saturating_sub(100 * MS)).max(from));
        }
        self.said.clear();
        self.open.clear();
    }

    /// When a word is due, from now on.
    pub fn set_latency(&mut self, latency: Option<u64>) {
        self.params.latency = latency;
    }

    /// Voice activity of the next frames.
    pub fn hear(&mut self, probs: &[f32]) {
        self.speech.push(probs);
        self.follow();
    }

    /// Voice activity is known up to here.
    pub fn heard(&self) -> SampleIndex {
        self.speech.end().min(self.sound_end)
    }

    /// Nobody asks for sound before this any more.
    pub fn oldest_needed(&self) -> SampleIndex {
        let lead = SampleIndex(self.heard().0.saturating_sub(PRE_ROLL + SECOND));
        self.from.map_or(lead, |from| from.min(lead))
    }

    /// The sound of a question, and where in it there is speech.
    pub fn plan(&self, ask: &Ask) -> Plan {
        Plan::whole(ask.from, ask.to, &self.speech)
    }

    /// Speech in `[from, to)`.
    fn speech_between(&self, from: SampleIndex, to: SampleIndex) -> u64 {
        let within = |s: crate::audio::speech::Stretch| s.end.min(to).since(s.start.max(from));
        self.speech.stretches().map(within).sum()
    }

    /// The first speech that is not part of an utterance that has ended.
    fn utterance(&self) -> Option<SampleIndex> {
        let fresh = |s: &crate::audio::speech::Stretch| {
            s.end.since(s.start.max(self.closed)) >= LEAST_SPEECH
        };
        let first = self.speech.stretches().find(fresh)?;
        Some(first.start.max(self.closed))
    }

    fn last_speech(&self) -> Option<SampleIndex> {
        let long = |s: &crate::audio::speech::Stretch| s.end.since(s.start) >= LEAST_SPEECH;
        self.speech.stretches().filter(long).last().map(|s| s.end)
    }

    fn quiet(&self) -> u64 {
        self.last_speech().map_or(0, |end| self.heard().since(end))
    }

    /// Utterances begin and end.
    fn follow(&mut self) {
        let Some(start) = self.utterance() else {
            self.forget();
            return;
        };
        let Some(last) = self.last_speech() else {
            return;
        };
        if self.open.is_empty() && self.decoded_to <= start && self.asked.is_none() {
            self.begin(start);
        }
        if self.end_due.is_some() {
            return;
        }
        let quiet = self.heard().since(last);
        let hang = if self.sentence && self.decoded_to > start {
            HANG_SENTENCE
        } else {
            HANG
        };
        let cap = self.params.max_delay.unwrap_or(u64::MAX) / 2;
        let long = self.ladder.level() >= Level::Ends
            && self.heard().since(start.max(self.done)) >= ENDPOINT_CAP.min(cap);
        if quiet >= hang {
            self.end_due = Some((last.plus(TAIL).min(self.heard()), Reason::End));
        } else if long {
            self.end_due = Some((self.heard(), Reason::Cut));
        }
    }

    /// Somebody begins to speak.
    fn begin(&mut self, start: SampleIndex) {
        let pause = start.since(self.closed);
        let first = self.from.is_none();
        if first || pause > FORGET {
            if self.held {
                self.release();
            }
            let lead = SampleIndex(start.0.saturating_sub(PRE_ROLL));
            self.from = Some(lead.max(self.closed));
            self.said.clear();
            self.progress = start;
        } else {
            self.progress = self.progress.max(start);
            self.trim(start, CONTEXT, CONTEXT_SLACK);
        }
        self.decoded_to = self.decoded_to.max(start);
    }

    /// Nobody speaks: in the end nothing is kept.
    fn forget(&mut self) {
        if self.from.is_some() && self.asked.is_none() && self.rest.is_none() && !self.held {
            let idle = self.heard().since(self.closed);
            if idle > FORGET && self.open.is_empty() {
                self.from = None;
                self.said.clear();
            }
        }
        if self.from.is_none() {
            let keep = self.heard().0.saturating_sub(5 * SECOND);
            self.speech.drop_before(SampleIndex(keep));
        }
    }

    /// What is to be decoded now, if anything. One at a time: the answer comes first.
    pub fn question(&mut self) -> Option<Ask> {
        self.release_when_due();
        if self.asked.is_some() {
            return None;
        }
        let ask = match self.rest.take() {
            Some(rest) => Some(rest),
            None => self.due(),
        }?;
        self.asked = Some((ask.clone(), self.sound_end));
        Some(ask)
    }

    fn due(&mut self) -> Option<Ask> {
        if self.end_due.is_none() && (self.ended || self.stalled) {
            let all = self.ended || self.heard().plus(SECOND) > self.sound_end;
            if self.utterance().is_some() && all {
                self.end_due = Some((self.heard(), Reason::End));
            }
        }
        self.skip();
        let start = self.utterance()?;
        let from = self.from?;
        if let Some((end, reason)) = self.end_due {
            let (from, to) = self.fit(from, end);
            let reason = if to < end { Reason::Cut } else { reason };
            return Some(self.ask(reason, from, to));
        }
        let level = self.ladder.level();
        if level >= Level::Ends {
            return None;
        }
        let to = self.heard();
        let fresh = to.since(self.decoded_to.max(start));
        let news = self.last_speech().is_some_and(|end| end > self.decoded_to);
        let waits = self.quiet() > HANG_SENTENCE && !news;
        let mut step = self.ladder.step(self.params.step);
        if self.held {
            // A word waits for what follows it.
            step /= 2;
        }
        if fresh < step || waits {
            return None;
        }
        let (from, to) = self.fit(from, to);
        Some(self.ask(Reason::Step, from, to))
    }

    /// No more sound than a window holds: context goes first.
    fn fit(&mut self, from: SampleIndex, to: SampleIndex) -> (SampleIndex, SampleIndex) {
        if to.since(from) <= WINDOW {
            return (from, to);
        }
        if self.held {
            self.release();
        }
        let from = SampleIndex(self.done.0.saturating_sub(100 * MS)).max(from);
        self.said.clear();
        self.from = Some(from);
        (from, to.min(from.plus(WINDOW)))
    }

    fn ask(&self, reason: Reason, from: SampleIndex, to: SampleIndex) -> Ask {
        let mut prefix = self.said.clone();
        if let Some(last) = prefix.last_mut() {
            let young = to.since(last.word.end) < STOP_AGE || self.held;
            if young && last.bare > 0 {
                last.tokens.truncate(last.bare);
            }
        }
        let uncovered = to.since(self.done.max(from)) as f64 / SECOND as f64;
        Ask {
            reason,
            from,
            to,
            prefix,
            most_tokens: (TOKENS_A_SECOND * uncovered + TOKENS_FREE) as u32,
        }
    }

    /// Speech that there is no time for any more.
    fn skip(&mut self) {
        let Some(most) = self.params.max_delay else {
            return;
        };
        let Some(start) = self.utterance() else {
            return;
        };
        // What was decoded and does not stand yet does so in time, or is dropped by itself.
        let oldest = start.max(self.done).max(self.decoded_to);
        // It is told at the earliest when the next decoding is over.
        let behind = self.sound_end.since(oldest) + self.ladder.cost();
        if behind <= most || self.sound_end.since(oldest) <= self.params.step {
            return;
        }
        // What is left has as much time as it needs.
        let keep = most.saturating_sub(self.ladder.cost()).min(most / 2);
        let to = SampleIndex(self.heard().0.saturating_sub(keep)).max(oldest);
        if to <= oldest {
            return;
        }
        let open = std::mem::take(&mut self.open);
        self.commit(open, oldest, false);
        if self.held {
            self.release();
        }
        self.out.push_back(Outcome::Skipped { from: oldest, to });
        self.ladder.behind();
        self.said.clear();
        self.from = Some(to);
        self.done = self.done.max(to);
        self.closed = self.closed.max(to);
        self.progress = to;
        self.end_due = self.end_due.filter(|(end, _)| *end > to);
    }

    /// Takes what was answered to the last question.
    pub fn answer(&mut self, answer: Answer) {
        let Some((ask, asked_at)) = self.asked.take() else {
            return;
        };
        if self.params.latency.is_some() {
            self.ladder.took(
                self.sound_end.since(asked_at),
                ask.to.since(self.decoded_to).max(self.params.step),
            );
        }
        self.decoded_to = self.decoded_to.max(ask.to);
        let answer = self.place(&ask, answer);
        match ask.reason {
            Reason::Step => self.step(&ask, answer),
            Reason::End => self.finish(&ask, answer),
            Reason::Cut => self.finish_part(&ask, answer),
            Reason::Rest => self.finish_rest(&ask, answer),
        }
        let keep = self.oldest_needed().0.saturating_sub(SECOND);
        self.speech.drop_before(SampleIndex(keep));
        self.follow();
    }

    /// Words lie behind what stands: those of sound that is heard again are no news.
    fn place(&self, ask: &Ask, mut answer: Answer) -> Answer {
        if ask.prefix.is_empty() {
            let middle = |s: &Said| SampleIndex((s.word.start.0 + s.word.end.0) / 2);
            let known = |s: &&Said| middle(s) < self.done;
            let count = answer.words.iter().take_while(known).count();
            answer.words.drain(..count);
        }
        let mut at = self.done;
        for said in &mut answer.words {
            said.word.start = said.word.start.max(at);
            said.word.end = said.word.end.max(said.word.start.plus(LEAST_WORD));
            at = said.word.end;
        }
        answer
    }

    /// The last question has no answer. The next step asks for the same sound; what ends an utterance is asked again.
    pub fn failed(&mut self) {
        let Some((ask, _)) = self.asked.take() else {
            return;
        };
        match ask.reason {
            Reason::Step => self.decoded_to = self.decoded_to.max(ask.to),
            Reason::End | Reason::Cut => {}
            Reason::Rest => self.rest = Some(ask),
        }
    }

    fn step(&mut self, ask: &Ask, mut answer: Answer) {
        let nobody = self.is_nobody(ask, &answer);
        let bad = answer.loops || answer.silent || nobody || answer.avg_logprob < BAD_LOGPROB;
        self.good.push_front(!bad);
        self.good.truncate(3);
        if !bad {
            self.sentence = answer.words.last().is_some_and(Said::ends_sentence);
            let speaks = self
                .last_speech()
                .is_some_and(|end| end.plus(EDGE) > ask.to);
            let guessed = |s: &Said| s.word.end.plus(EDGE) > ask.to;
            if speaks && answer.words.last().is_some_and(guessed) {
                answer.words.pop();
            }
            self.append(&answer);
            let agreed = agreement(&self.open, &answer.words);
            let sure = answer.avg_logprob > SURE_LOGPROB;
            let mut stands = 0;
            for (n, said) in answer.words.iter().enumerate() {
                let twice = n < agreed && said.word.end.plus(KEEP_BACK) < ask.to;
                let due = sure && self.is_due(&said.word);
                if !twice && !due {
                    break;
                }
                stands = n + 1;
            }
            let open = answer.words.split_off(stands);
            let nothing = open.is_empty() && answer.words.is_empty();
            self.open = open;
            self.commit(answer.words, ask.to, false);
            if nothing && self.speech_between(self.done, ask.to) > RESYNC {
                self.resync(ask.to);
            }
        }
        if ask.to.since(self.progress) > STUCK {
            self.unstick(ask, answer.avg_logprob);
        }
        if ask.to.since(self.from.unwrap_or(ask.to)) > CAP {
            self.cut(ask.to);
        }
    }

    /// The model hears no speech in it, and nothing says otherwise.
    fn is_nobody(&self, ask: &Ask, answer: &Answer) -> bool {
        let alone = ask.prefix.is_empty() || answer.avg_logprob < DOUBTFUL_LOGPROB;
        !self.params.verbatim && answer.no_speech > NO_SPEECH && alone
    }

    /// Whether a word is late by the time that the next decoding is over.
    fn is_due(&self, word: &RawWord) -> bool {
        let Some(latency) = self.params.latency else {
            return false;
        };
        let next = self
            .sound_end
            .plus(self.ladder.step(self.params.step))
            .plus(self.ladder.cost());
        word.start.plus(latency) <= next
    }

    /// What the model writes to the word that is held back is part of it; another one has gone out.
    fn append(&mut self, answer: &Answer) {
        if !self.held || (answer.appendix.is_none() && answer.words.is_empty()) {
            return;
        }
        self.held = false;
        let Some(last) = self.said.last_mut() else {
            return;
        };
        last.word.text = last.bare_text().to_owned();
        last.tokens.truncate(last.bare.max(1));
        if let Some((text, tokens)) = &answer.appendix {
            last.word.text.push_str(text);
            last.tokens.extend(tokens);
        }
        let ends = last.ends_sentence();
        let words = vec![last.clone()];
        self.out.push_back(Outcome::Words { words, ends });
    }

    /// The word that is held back goes out as it is.
    fn release(&mut self) {
        if std::mem::take(&mut self.held)
            && let Some(last) = self.said.last()
        {
            let words = vec![last.clone()];
            self.out.push_back(Outcome::Words { words, ends: true });
        }
    }

    fn release_when_due(&mut self) {
        if !self.held {
            return;
        }
        let Some(last) = self.said.last() else {
            self.held = false;
            return;
        };
        let waited = self.heard().since(self.closed) >= HOLD && self.utterance().is_none();
        let due = self
            .params
            .latency
            .is_some_and(|l| last.word.start.plus(l) <= self.sound_end.plus(SECOND / 2));
        // While it is decoded behind that word, the answer is near.
        let over = (self.ended || self.stalled) && self.asked.is_none() && self.rest.is_none();
        if waited || due || (over && self.utterance().is_none()) {
            self.release();
        }
    }

    /// Words that stand from now on.
    fn commit(&mut self, mut words: Vec<Said>, to: SampleIndex, end: bool) {
        if self.held && !words.is_empty() {
            self.release();
        }
        if let Some(most) = self.params.max_delay {
            let late = |s: &Said| s.word.end.plus(most) < self.sound_end;
            let count = words.iter().take_while(|s| late(s)).count();
            if count > 0 {
                let (from, last) = (words[0].word.start, words[count - 1].word.end);
                self.out.push_back(Outcome::Skipped { from, to: last });
                self.ladder.behind();
                // The model knows of them all the same.
                for said in words.drain(..count) {
                    self.said.push(said);
                }
                self.done = self.done.max(last);
            }
        }
        let Some(last) = words.last() else {
            return;
        };
        self.done = self.done.max(last.word.end);
        self.progress = self.progress.max(to);
        let hold = end && last.ends_sentence() && last.bare > 0 && !self.is_due(&last.word);
        self.said.extend(words.iter().cloned());
        if hold {
            words.pop();
            self.held = true;
        }
        if !words.is_empty() {
            let ends = end && !hold;
            self.out.push_back(Outcome::Words { words, ends });
        }
    }

    /// There is speech and the model writes nothing: it takes what stands for the whole.
    fn resync(&mut self, to: SampleIndex) {
        if self.held {
            self.release();
        }
        let from = SampleIndex(self.done.0.saturating_sub(100 * MS));
        self.from = Some(from.max(self.from.unwrap_or(from)).min(to));
        self.said.clear();
        self.open.clear();
    }

    /// Nothing stands for long: what is believed does, and the rest is noise.
    fn unstick(&mut self, ask: &Ask, avg_logprob: f32) {
        let sure = avg_logprob > SURE_LOGPROB && self.good.len() == 3;
        if sure && self.good.iter().all(|good| *good) {
            let old = |s: &&Said| s.word.end.plus(STUCK_AGE) < ask.to;
            let count = self.open.iter().take_while(old).count();
            let rest = self.open.split_off(count);
            let words = std::mem::replace(&mut self.open, rest);
            self.commit(words, ask.to, false);
        }
        if ask.to.since(self.progress) > STUCK {
            let from = SampleIndex(ask.to.0.saturating_sub(STUCK_AGE));
            if self.held {
                self.release();
            }
            self.from = Some(from);
            self.done = self.done.max(from);
            self.said.clear();
            self.open.clear();
            self.progress = ask.to;
        }
    }

    fn finish(&mut self, ask: &Ask, mut answer: Answer) {
        let nobody = self.is_nobody(ask, &answer);
        let lone = answer.words.len() == 1
            && ask.prefix.is_empty()
            && answer.words[0].word.probability < LONE_PROBABILITY;
        let doubted = answer.avg_logprob < BAD_LOGPROB && self.good.iter().all(|good| !good);
        let doubted = doubted && (!self.good.is_empty() || self.ladder.level() >= Level::Ends);
        if answer.silent || nobody || (!self.params.verbatim && (lone || doubted)) {
            answer.words.clear();
            answer.appendix = None;
        } else if answer.loops {
            // What the decoding before has said of it.
            answer.words = std::mem::take(&mut self.open);
            answer.appendix = None;
        }
        self.append(&answer);
        let listened = answer.words.last().map(|s| s.word.end);
        let listened = answer.heard_to.or(listened).unwrap_or(self.done);
        let behind = self.speech_between(listened.max(self.done), ask.to);
        self.open.clear();
        let rest = behind > UNCOVERED && !answer.silent && !nobody;
        self.commit(answer.words, ask.to, !rest);
        if rest {
            let from = SampleIndex(listened.max(self.done).0.saturating_sub(100 * MS));
            let ask = Ask {
                prefix: Vec::new(),
                ..self.ask(Reason::Rest, from, ask.to)
            };
            self.rest = Some(ask);
        } else {
            self.close(ask.to);
        }
    }

    /// The last word may be cut in two: what lies near the end is heard again with what comes.
    fn finish_part(&mut self, ask: &Ask, mut answer: Answer) {
        let unsure = answer.loops || answer.silent || answer.avg_logprob < BAD_LOGPROB;
        let whole = |s: &&Said| s.word.end.plus(KEEP_BACK) < ask.to;
        let count = answer.words.iter().take_while(whole).count();
        answer.words.truncate(count);
        if unsure || self.is_nobody(ask, &answer) || count == 0 {
            self.close(ask.to);
            return;
        }
        self.append(&answer);
        self.commit(answer.words, ask.to, false);
        self.close(self.done);
    }

    fn finish_rest(&mut self, ask: &Ask, mut answer: Answer) {
        let unsure = answer.loops || answer.silent || answer.avg_logprob < TAIL_LOGPROB;
        if !unsure {
            let again = repeated(&self.said, &answer.words);
            answer.words.drain(..again);
            self.commit(answer.words, ask.to, true);
        }
        self.close(ask.to);
    }

    /// What was said before `to` is done with.
    fn close(&mut self, to: SampleIndex) {
        self.end_due = None;
        self.open.clear();
        self.good.clear();
        self.done = self.done.max(to);
        self.closed = self.closed.max(to);
        self.progress = self.progress.max(to);
        self.trim(to, CONTEXT, CONTEXT_SLACK);
    }

    /// Leaves about `keep` of what was said before `end`: a word and its sound go together.
    fn trim(&mut self, end: SampleIndex, keep: u64, slack: f32) {
        let Some(from) = self.from else { return };
        let aim = SampleIndex(end.0.saturating_sub(keep));
        if from >= aim {
            return;
        }
        let worth = |at: SampleIndex, sentence: bool, pause: u64| {
            let far = at.0.abs_diff(aim.0) as f32;
            let pause = (pause as f32 / SECOND as f32).min(1.0);
            f32::from(sentence) + 2.0 * pause - far / slack
        };
        let near = |at: SampleIndex| at.0.abs_diff(aim.0) as f32 <= slack;
        self.cut_best(worth, near);
    }

    /// Too much to decode at once.
    fn cut(&mut self, end: SampleIndex) {
        let Some(from) = self.from else { return };
        let length = end.since(from).max(1) as f32;
        let worth = |at: SampleIndex, sentence: bool, pause: u64| {
            let pause = (pause as f32 / SECOND as f32).min(1.0);
            2.0 * f32::from(sentence) + 2.0 * pause + at.since(from) as f32 / length
        };
        let old = |at: SampleIndex| at.plus(CUT_AGE) < end && at > from;
        self.cut_best(worth, old);
        // Nothing stands in it: what is kept is a guess.
        let left = end.since(self.from.unwrap_or(end));
        if left > CAP {
            let from = SampleIndex(end.0.saturating_sub(CUT_AGE));
            self.said.retain(|s| s.word.start >= from);
            self.from = Some(from);
        }
    }

    /// Cuts behind the word where it is worth most, if there is a place that will do.
    fn cut_best(
        &mut self,
        worth: impl Fn(SampleIndex, bool, u64) -> f32,
        will_do: impl Fn(SampleIndex) -> bool,
    ) {
        let places = (0..self.said.len()).filter_map(|n| {
            let end = self.said[n].word.end;
            let next = self.said.get(n + 1).map(|s| s.word.start);
            // Behind the last word that stands there may be others that do not.
            let next = next.unwrap_or_else(|| end.plus(100 * MS)).max(end);
            let at = SampleIndex((end.0 + next.0) / 2);
            let score = worth(at, self.said[n].ends_sentence(), next.since(end));
            will_do(at).then_some((score, n, at))
        });
        let best = places.max_by(|a, b| a.0.total_cmp(&b.0));
        let Some((_, n, at)) = best else { return };
        if self.held && n + 1 == self.said.len() {
            return;
        }
        self.said.drain(..=n);
        self.from = Some(at);
    }

    /// What has come of it, in order.
    pub fn take(&mut self) -> Option<Outcome> {
        self.out.pop_front()
    }

    /// Words that may still change, the one that is held back among them.
    pub fn open_words(&self) -> impl Iterator<Item = &Said> {
        let held = self.said.last().filter(|_| self.held);
        let shown = self.ladder.level() < Level::Ends;
        held.into_iter()
            .chain(self.open.iter())
            .filter(move |_| shown)
    }

    /// No word will come that begins before this.
    pub fn settled_until(&mut self) -> SampleIndex {
        let held = self.said.last().filter(|_| self.held).map(|s| s.word.start);
        let speaking = self
            .utterance()
            .map(|start| SampleIndex(start.0.saturating_sub(ONSET)).max(self.done));
        let silence = SampleIndex(self.heard().0.saturating_sub(ONSET)).max(self.done);
        let open = held.into_iter().chain(speaking).min();
        let base = open.unwrap_or(silence);
        let due = self
            .params
            .latency
            .map(|l| SampleIndex(self.sound_end.0.saturating_sub(l)));
        self.settled = self.settled.max(base).max(due.unwrap_or(base));
        self.settled
    }

    /// Nobody speaks, and nothing waits.
    pub fn is_quiet(&self) -> bool {
        self.is_idle() && !self.speech.is_open()
    }

    /// Whether all that came has been dealt with.
    pub fn is_idle(&self) -> bool {
        self.asked.is_none()
            && self.rest.is_none()
            && !self.held
            && self.out.is_empty()
            && self.utterance().is_none()
    }
}

/// Words that both begin with.
fn agreement(a: &[Said], b: &[Said]) -> usize {
    let same = |(a, b): &(&Said, &Said)| folded(&a.word.text) == folded(&b.word.text);
    a.iter().zip(b).take_while(same).count()
}

/// Words at the start of `next` that repeat the end of `said`: up to four.
fn repeated(said: &[Said], next: &[Said]) -> usize {
    let most = SEAM.min(said.len()).min(next.len());
    let repeats = |n: &usize| agreement(&said[said.len() - n..], &next[..*n]) == *n;
    (1..=most).rev().find(repeats).unwrap_or(0)
}
