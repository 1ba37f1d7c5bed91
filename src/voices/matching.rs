// SPDX-License-Identifier: MPL-2.0
//! Whose voice it is: vectors of a recording beside those of a store, with "nobody's" as an answer.
//!
//! A *likeness* is a cosine divided by what the seconds behind both vectors let it reach: a vector of few seconds is short of
//! its voice's true direction, and that lowers cosines of the same person and of strangers alike. With [`Thresholds::half_s`]
//! one bound then holds for one second and for thirty.
//!
//! A voice is known if its likeness to a person reaches [`Thresholds::accept`], and more where another person of the store,
//! or another voice of the recording, comes near too: the bound rises by half of what that runner-up is above
//! [`Thresholds::stranger`]. So the bound follows the size of the store (the best of many strangers is a better one) and the
//! room and the line (in which all voices are more alike), and no voices of others have to be shipped with a model.
//! docs/benchmarks.md ("Voices") has what that was chosen from, and what did not pay.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use ndarray::Array2;

use super::{ModelKey, Take, Voice, VoiceId};
use crate::dsp::vectors::normalise;

/// Takes of a person that are compared, the newest: bounds memory.
const TAKES_MOST: usize = 8;
/// People that an ambiguous answer names at most.
const AMBIGUOUS_MOST: usize = 5;
/// By how much of the runner-up's lead over a stranger the bound rises.
const RUNNER_UP_PART: f32 = 0.5;

/// When a voice is a person's. Likenesses unless said otherwise; each model has its own, in its manifest entry.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Thresholds {
    /// Least likeness of a known voice. `voice_accept`.
    pub accept: f32,
    /// What the nearest of a few strangers has: a runner-up above it raises the bound. `voice_stranger`.
    pub stranger: f32,
    /// Likeness from which a match is good enough to learn from. `voice_strong`.
    pub strong: f32,
    /// Likeness from which two voices of a recording that are one person's by the store are taken for one. `voice_same`.
    pub same: f32,
    /// Likeness under which the two halves of an enrolment that differ most are two people. `voice_two`.
    pub two: f32,
    /// By how much likeness may fall below its bound before a name that was told live is taken back. `voice_slack`.
    pub slack: f32,
    /// Seconds of speech at which a vector has half the power of its voice's own direction; 0 for cosines as they are.
    /// `voice_half_s`.
    pub half_s: f32,
    /// Least seconds of speech for any answer. `voice_least_s`.
    pub least_s: f32,
}

/// A model whose entry in the manifest lacks a number of [`Thresholds`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "its manifest entry has no threshold {name} from 0 to {most}, so its voices cannot be told by name: measure it, or take a \
     model that has it (docs/models.md says how)"
)]
pub struct MissingThreshold {
    name: &'static str,
    most: u32,
}

impl Thresholds {
    /// From a manifest entry's numbers.
    pub fn read(number: impl Fn(&str) -> Option<f64>) -> Result<Self, MissingThreshold> {
        let get = |name: &'static str, most: u32| {
            let value = number(name).filter(|v| (0.0..=f64::from(most)).contains(v));
            let value = value.map(|v| v as f32);
            value.ok_or(MissingThreshold { name, most })
        };
        Ok(Self {
            accept: get("voice_accept", 1)?,
            stranger: get("voice_stranger", 1)?,
            strong: get("voice_strong", 1)?,
            same: get("voice_same", 1)?,
            two: get("voice_two", 1)?,
            slack: get("voice_slack", 1)?,
            half_s: get("voice_half_s", 60)?,
            least_s: get("voice_least_s", 3_600)?,
        })
    }

    /// The likeness of two vectors with this cosine, of so many seconds each.
    pub fn likeness(&self, cosine: f32, seconds: [f64; 2]) -> f32 {
        cosine / seconds.map(|s| self.reach(s)).iter().product::<f32>()
    }

    /// What a cosine of vectors of so many seconds reaches, 0 to 1.
    fn reach(&self, seconds: f64) -> f32 {
        let seconds = seconds.max(0.1) as f32;
        (seconds / (seconds + self.half_s)).sqrt()
    }

    /// The bound beside a runner-up.
    fn bound(&self, runner_up: f32) -> f32 {
        self.accept + RUNNER_UP_PART * (runner_up - self.stranger).max(0.0)
    }
}

/// A person and how like.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Likeness {
    /// Who.
    pub id: VoiceId,
    /// See the module; may pass 1 a little.
    pub score: f32,
}

/// Whose voice it is.
#[derive(Clone, Debug, PartialEq)]
pub enum Verdict {
    /// A person's.
    Known(VoiceId),
    /// That of the voice of the recording with this index, which is known as this person's: two clusters are one person.
    Merge {
        /// Index of the other.
        into: usize,
        /// Who.
        id: VoiceId,
    },
    /// Nobody's of the store.
    Unknown,
    /// One of these, the most alike first, and it cannot be told which.
    Ambiguous(Vec<VoiceId>),
    /// Too little is said to tell.
    TooShort,
}

/// A verdict and why. Written out it is the end of a line for the log.
#[derive(Clone, Debug, PartialEq)]
pub struct Decision {
    /// Whose voice it is.
    pub verdict: Verdict,
    /// Who is most alike, whatever the verdict. None for an empty store, and where too little is said.
    pub best: Option<Likeness>,
    /// The likeness that was asked for.
    pub bound: f32,
    /// Whether the match is good enough to learn from.
    pub is_strong: bool,
}

impl Decision {
    /// Who it is, also as a second voice of the recording.
    pub fn id(&self) -> Option<VoiceId> {
        match self.verdict {
            Verdict::Known(id) | Verdict::Merge { id, .. } => Some(id),
            _ => None,
        }
    }

    fn too_short() -> Self {
        Self {
            verdict: Verdict::TooShort,
            best: None,
            bound: 0.0,
            is_strong: false,
        }
    }
}

impl fmt::Display for Decision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.verdict {
            Verdict::Known(id) => write!(f, "{id}")?,
            Verdict::Merge { id, .. } => write!(f, "{id} again")?,
            Verdict::Unknown => f.write_str("unknown")?,
            Verdict::Ambiguous(ids) => {
                let ids: Vec<String> = ids.iter().map(VoiceId::to_string).collect();
                write!(f, "one of {}", ids.join(", "))?;
            }
            Verdict::TooShort => return f.write_str("too little speech to tell"),
        }
        let Some(best) = self.best else {
            return f.write_str(" (nobody is enrolled)");
        };
        let bound = self.bound;
        match self.verdict {
            Verdict::Known(_) | Verdict::Merge { .. } => {
                write!(f, " (likeness {:.2}, {bound:.2} needed)", best.score)
            }
            _ => write!(
                f,
                " (most like {}: {:.2}, {bound:.2} needed)",
                best.id, best.score
            ),
        }
    }
}

/// A voice of a recording.
#[derive(Clone, Copy, Debug)]
pub struct Probe<'a> {
    /// Its vector, of length 1.
    pub vector: &'a [f32],
    /// Seconds of speech behind it, without that of others.
    pub seconds: f64,
}

/// The voices of a store that one model made, ready to be compared: one row a recording of a person, and one for all of
/// them together where there are several.
#[derive(Clone, Debug)]
pub struct Gallery {
    thresholds: Thresholds,
    dimension: usize,
    /// One after the other.
    rows: Vec<f32>,
    /// For each row the person, as an index of `people`; rising.
    owners: Vec<u32>,
    /// For each row what its cosines reach.
    reaches: Vec<f32>,
    people: Vec<VoiceId>,
    other_models: usize,
}

impl Gallery {
    /// Of those who have a take of `model` and are not to be forgotten by `now`, in seconds since 1970. Vectors of another
    /// length than the model's are left out like those of another model.
    pub fn new(voices: &[Voice], model: &ModelKey, thresholds: Thresholds, now: u64) -> Self {
        let mut gallery = Self {
            thresholds,
            dimension: model.dimension.max(1),
            rows: Vec::new(),
            owners: Vec::new(),
            reaches: Vec::new(),
            people: Vec::new(),
            other_models: 0,
        };
        for voice in voices {
            if voice.expires.is_some_and(|at| at <= now) {
                continue;
            }
            let usable = |t: &&Take| t.model == *model && t.mean.len() == model.dimension;
            let takes: Vec<&Take> = voice.takes.iter().filter(usable).collect();
            if takes.is_empty() {
                gallery.other_models += usize::from(!voice.takes.is_empty());
                continue;
            }
            let owner = gallery.people.len() as u32;
            gallery.people.push(voice.id);
            let mut row = |vector: &[f32], seconds: f64| {
                gallery.rows.extend_from_slice(vector);
                gallery.owners.push(owner);
                gallery.reaches.push(thresholds.reach(seconds));
            };
            for take in takes.iter().rev().take(TAKES_MOST) {
                row(&take.mean, take.quality.net_speech_s);
            }
            if takes.len() > 1 {
                let (all, seconds) = together(&takes);
                row(&all, seconds);
            }
        }
        gallery
    }

    /// People in it.
    pub fn len(&self) -> usize {
        self.people.len()
    }

    /// Nobody is in it.
    pub fn is_empty(&self) -> bool {
        self.people.is_empty()
    }

    /// People who were left out because another model made all of their vectors: to be enrolled again.
    pub fn of_other_models(&self) -> usize {
        self.other_models
    }

    /// When a voice is known.
    pub fn thresholds(&self) -> &Thresholds {
        &self.thresholds
    }

    /// Who is most like a voice, the best first, `most` of them.
    pub fn rank(&self, probe: Probe<'_>, most: usize) -> Vec<Likeness> {
        let likeness = self.likeness(&[probe]);
        let mut all: Vec<Likeness> = likeness
            .iter()
            .zip(&self.people)
            .map(|(score, id)| Likeness {
                id: *id,
                score: *score,
            })
            .collect();
        let falling = |a: &Likeness, b: &Likeness| b.score.total_cmp(&a.score);
        if most < all.len() {
            all.select_nth_unstable_by(most, falling);
            all.truncate(most);
        }
        all.sort_by(falling);
        all
    }

    /// Whose a single voice is.
    pub fn decide(&self, probe: Probe<'_>) -> Decision {
        let mut all = self.name(&[probe]);
        all.pop().unwrap_or_else(Decision::too_short)
    }

    /// Whose the voices of a recording are, which are taken for different people. No person is given to two of them, but as
    /// [`Verdict::Merge`].
    pub fn name(&self, probes: &[Probe<'_>]) -> Vec<Decision> {
        let is_long = |p: &Probe<'_>| p.seconds >= f64::from(self.thresholds.least_s);
        let long: Vec<usize> = (0..probes.len()).filter(|n| is_long(&probes[*n])).collect();
        let heard: Vec<Probe<'_>> = long.iter().map(|n| probes[*n]).collect();
        let mut out = vec![Decision::too_short(); probes.len()];
        for (n, mut decision) in long.iter().zip(self.name_heard(&heard)) {
            if let Verdict::Merge { into, .. } = &mut decision.verdict {
                *into = long[*into];
            }
            out[*n] = decision;
        }
        out
    }

    fn name_heard(&self, probes: &[Probe<'_>]) -> Vec<Decision> {
        let likeness = self.likeness(probes);
        let same = self.same(probes);
        let candidates: Vec<Option<Candidate>> = (0..probes.len())
            .map(|n| self.candidate(&likeness, n, &same))
            .collect();
        let mut order: Vec<usize> = (0..probes.len()).collect();
        let score = |n: &usize| candidates[*n].as_ref().map_or(0.0, |c| c.best.score);
        order.sort_by(|a, b| score(b).total_cmp(&score(a)));
        let mut holders: BTreeMap<VoiceId, usize> = BTreeMap::new();
        let mut out = vec![Decision::too_short(); probes.len()];
        for n in order {
            let Some(candidate) = &candidates[n] else {
                out[n].verdict = Verdict::Unknown;
                continue;
            };
            let id = candidate.best.id;
            let verdict = match holders.get(&id) {
                _ if !candidate.is_certain() => candidate.uncertain(&self.thresholds),
                Some(&into) if same[[n, into]] => Verdict::Merge { into, id },
                Some(_) => Verdict::Unknown,
                None => {
                    holders.insert(id, n);
                    Verdict::Known(id)
                }
            };
            let is_strong = matches!(verdict, Verdict::Known(_) | Verdict::Merge { .. })
                && candidate.best.score >= self.thresholds.strong.max(candidate.bound);
            out[n] = Decision {
                verdict,
                best: Some(candidate.best),
                bound: candidate.bound,
                is_strong,
            };
        }
        out
    }

    /// Who a voice is most like, and the bound for it.
    fn candidate(
        &self,
        likeness: &Array2<f32>,
        n: usize,
        same: &Array2<bool>,
    ) -> Option<Candidate> {
        let scores = likeness.column(n);
        let best = (0..scores.len()).max_by(|a, b| scores[*a].total_cmp(&scores[*b]));
        let best = best.filter(|n| scores[*n].is_finite())?;
        let person = |n: usize| Likeness {
            id: self.people[n],
            score: scores[n],
        };
        let others = (0..scores.len()).filter(|other| *other != best);
        let second = others.clone().map(|n| scores[n]).fold(0.0, f32::max);
        // In a room where all voices are alike, somebody else in it is as like the person as this one.
        let beside = likeness.row(best).into_iter().enumerate();
        let beside = beside.filter(|(other, _)| *other != n && !same[[n, *other]]);
        let beside = beside.map(|(_, score)| *score).fold(0.0, f32::max);
        // Each of whom is enough to put the best in doubt.
        let mut rivals: Vec<Likeness> = others
            .filter(|n| self.thresholds.bound(scores[*n]) > scores[best])
            .map(person)
            .collect();
        rivals.sort_by(|a, b| b.score.total_cmp(&a.score));
        rivals.truncate(AMBIGUOUS_MOST - 1);
        Some(Candidate {
            best: person(best),
            rivals,
            bound: self.thresholds.bound(second.max(beside)),
        })
    }

    /// People down, voices across.
    fn likeness(&self, probes: &[Probe<'_>]) -> Array2<f32> {
        let mut out = Array2::from_elem((self.people.len(), probes.len()), f32::NEG_INFINITY);
        let reach = |p: &Probe<'_>| self.thresholds.reach(p.seconds);
        let reaches: Vec<f32> = probes.iter().map(reach).collect();
        // Each row is fetched once for all voices: it is memory that takes the time.
        for (n, row) in self.rows.chunks_exact(self.dimension).enumerate() {
            let mut own = out.row_mut(self.owners[n] as usize);
            for (m, probe) in probes.iter().enumerate() {
                let likeness = dot(row, probe.vector) / (reaches[m] * self.reaches[n]);
                own[m] = own[m].max(likeness);
            }
        }
        out
    }

    /// Which voices of a recording may be one person's.
    fn same(&self, probes: &[Probe<'_>]) -> Array2<bool> {
        Array2::from_shape_fn((probes.len(), probes.len()), |(a, b)| {
            let cosine = dot(probes[a].vector, probes[b].vector);
            let seconds = [a, b].map(|n| probes[n].seconds);
            self.thresholds.likeness(cosine, seconds) >= self.thresholds.same
        })
    }
}

/// Who a voice may be.
struct Candidate {
    best: Likeness,
    /// Others of the store who come too near, falling.
    rivals: Vec<Likeness>,
    bound: f32,
}

impl Candidate {
    fn is_certain(&self) -> bool {
        self.best.score >= self.bound
    }

    /// What it is if it is not certain.
    fn uncertain(&self, thresholds: &Thresholds) -> Verdict {
        if self.best.score < thresholds.accept || self.rivals.is_empty() {
            return Verdict::Unknown;
        }
        let all = std::iter::once(&self.best).chain(&self.rivals);
        Verdict::Ambiguous(all.map(|l| l.id).collect())
    }
}

/// One vector of several takes, and its seconds: each counts by its own.
fn together(takes: &[&Take]) -> (Vec<f32>, f64) {
    let mut sum = vec![0.0; takes.first().map_or(0, |t| t.mean.len())];
    let mut seconds = 0.0;
    for take in takes {
        let own = take.quality.net_speech_s.max(0.1);
        seconds += own;
        for (s, v) in sum.iter_mut().zip(&take.mean) {
            *s += v * own as f32;
        }
    }
    normalise(&mut sum);
    (sum, seconds)
}

/// Cosine of vectors of length 1. One of another length, which no model gives, is like nobody. In lanes, which the compiler
/// makes vector instructions of: it may not reorder a plain sum.
fn dot(a: &[f32], b: &[f32]) -> f32 {
    const LANES: usize = 16;
    if a.len() != b.len() {
        return 0.0;
    }
    let (whole_a, rest_a) = a.as_chunks::<LANES>();
    let (whole_b, rest_b) = b.as_chunks::<LANES>();
    let mut sums = [0.0_f32; LANES];
    for (x, y) in whole_a.iter().zip(whole_b) {
        for n in 0..LANES {
            sums[n] += x[n] * y[n];
        }
    }
    let rest: f32 = rest_a.iter().zip(rest_b).map(|(x, y)| x * y).sum();
    sums.iter().sum::<f32>() + rest
}

/// A speaker of a live stream as known so far.
#[derive(Clone, Copy, Debug)]
pub struct SpeakerState<'a> {
    /// The diarizer's number.
    pub speaker: usize,
    /// The voice so far.
    pub probe: Probe<'a>,
}

/// What is new about who is who, live.
#[derive(Clone, Debug, PartialEq)]
pub enum Change {
    /// A speaker has a name from now on, and has had it all along.
    Named {
        /// The diarizer's number.
        speaker: usize,
        /// Who.
        id: VoiceId,
        /// Why.
        decision: Decision,
    },
    /// The name was wrong, or is not certain any more.
    TakenBack {
        /// The diarizer's number.
        speaker: usize,
        /// Who it is not.
        id: VoiceId,
        /// Why.
        decision: Decision,
    },
}

/// Names of the speakers of a live stream. It is told how they stand again and again, and says what changes: a name comes
/// with the first certain match and goes only when the match has become clearly less than certain, so that names do not
/// flicker.
#[derive(Clone, Debug)]
pub struct Naming {
    gallery: Arc<Gallery>,
    named: BTreeMap<usize, VoiceId>,
}

impl Naming {
    /// Nobody is named yet.
    pub fn new(gallery: Arc<Gallery>) -> Self {
        Self {
            gallery,
            named: BTreeMap::new(),
        }
    }

    /// The store has changed. Who was named stays so until the next update.
    pub fn set_gallery(&mut self, gallery: Arc<Gallery>) {
        self.gallery = gallery;
    }

    /// The name of a speaker as told.
    pub fn id(&self, speaker: usize) -> Option<VoiceId> {
        self.named.get(&speaker).copied()
    }

    /// How all speakers stand now. What is taken back comes before what is named.
    pub fn update(&mut self, speakers: &[SpeakerState<'_>]) -> Vec<Change> {
        let probes: Vec<Probe<'_>> = speakers.iter().map(|s| s.probe).collect();
        let decisions = self.gallery.name(&probes);
        let mut changes = Vec::new();
        for (state, decision) in speakers.iter().zip(&decisions) {
            let Some(&id) = self.named.get(&state.speaker) else {
                continue;
            };
            if !self.stays(id, decision) {
                self.named.remove(&state.speaker);
                changes.push(Change::TakenBack {
                    speaker: state.speaker,
                    id,
                    decision: decision.clone(),
                });
            }
        }
        let mut certain: Vec<usize> = (0..decisions.len())
            .filter(|n| decisions[*n].id().is_some())
            .collect();
        // Who holds a name by himself before who is a second voice of his.
        certain.sort_by_key(|n| Reverse(matches!(decisions[*n].verdict, Verdict::Known(_))));
        for n in certain {
            let (speaker, decision) = (speakers[n].speaker, &decisions[n]);
            let Some(id) = decision.id().filter(|_| self.id(speaker).is_none()) else {
                continue;
            };
            let is_second = |holder: usize| {
                is_one_voice(&decisions, n, holder) || is_one_voice(&decisions, holder, n)
            };
            let mut holders =
                (0..speakers.len()).filter(|h| self.id(speakers[*h].speaker) == Some(id));
            if holders.all(is_second) {
                self.named.insert(speaker, id);
                changes.push(Change::Named {
                    speaker,
                    id,
                    decision: decision.clone(),
                });
            }
        }
        changes
    }

    /// Whether a name that was told still stands.
    fn stays(&self, id: VoiceId, decision: &Decision) -> bool {
        if decision.verdict == Verdict::TooShort {
            return true;
        }
        match decision.id() {
            Some(now) => now == id,
            None => decision.best.is_some_and(|best| {
                best.id == id && best.score >= decision.bound - self.gallery.thresholds.slack
            }),
        }
    }
}

/// Whether voice `a` is a second one of the person who voice `b` is.
fn is_one_voice(decisions: &[Decision], a: usize, b: usize) -> bool {
    matches!(decisions[a].verdict, Verdict::Merge { into, .. } if into == b)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::voices::Quality;

    const HOW: Thresholds = Thresholds {
        accept: 0.8,
        stranger: 0.5,
        strong: 0.95,
        same: 0.9,
        two: 0.78,
        slack: 0.1,
        half_s: 0.0,
        least_s: 2.0,
    };
    const DIMENSION: usize = 6;

    fn model() -> ModelKey {
        ModelKey {
            name: "test".into(),
            version: "0".repeat(64),
            dimension: DIMENSION,
        }
    }

    /// Of length 1 with these cosines to the axes; the last takes the rest.
    fn vector(cosines: &[f32]) -> Vec<f32> {
        let mut vector = cosines.to_vec();
        vector.resize(DIMENSION, 0.0);
        let rest = 1.0 - vector.iter().map(|v| v * v).sum::<f32>();
        vector[DIMENSION - 1] = rest.max(0.0).sqrt();
        vector
    }

    fn taken(mean: Vec<f32>) -> Take {
        Take {
            model: model(),
            exemplars: Vec::new(),
            quality: Quality {
                net_speech_s: 30.0,
                ..Quality::default()
            },
            at: 0,
            mean,
        }
    }

    fn voice(id: u64, takes: &[Vec<f32>]) -> Voice {
        Voice {
            id: VoiceId(id),
            number: id as u32,
            name: None,
            consent: None,
            created: 0,
            updated: 0,
            expires: None,
            takes: takes.iter().cloned().map(taken).collect(),
        }
    }

    /// Two people, along the first two axes.
    fn two() -> Gallery {
        let voices = [
            voice(1, &[vector(&[1.0])]),
            voice(2, &[vector(&[0.0, 1.0])]),
        ];
        Gallery::new(&voices, &model(), HOW, 0)
    }

    fn probe(vector: &[f32]) -> Probe<'_> {
        Probe {
            vector,
            seconds: 10.0,
        }
    }

    fn verdicts(gallery: &Gallery, vectors: &[Vec<f32>]) -> Vec<Verdict> {
        let probes: Vec<Probe<'_>> = vectors.iter().map(|v| probe(v)).collect();
        let decisions = gallery.name(&probes).into_iter();
        decisions.map(|d| d.verdict).collect()
    }

    const A: VoiceId = VoiceId(1);
    const B: VoiceId = VoiceId(2);

    #[test]
    fn a_person_is_known_and_a_stranger_is_not() {
        let found = verdicts(
            &two(),
            &[
                vector(&[0.9, 0.1]),
                vector(&[0.1, 0.85]),
                vector(&[0.5, 0.4]),
            ],
        );

        assert_eq!(
            found,
            [Verdict::Known(A), Verdict::Known(B), Verdict::Unknown]
        );
    }

    #[test]
    fn a_runner_up_raises_the_bound_by_half_of_what_it_is_above_a_stranger() {
        let voices = [
            voice(1, &[vector(&[1.0])]),
            voice(2, &[vector(&[0.7, 0.7])]),
        ];
        let gallery = Gallery::new(&voices, &model(), HOW, 0);
        let (near, clear) = (vector(&[0.85, 0.15]), vector(&[0.95, 0.0]));

        let doubtful = gallery.decide(probe(&near));
        let certain = gallery.decide(probe(&clear));

        // 0.7 * 0.85 + 0.7 * 0.15 and what both have of the last axis.
        let runner_up = gallery.rank(probe(&near), 2)[1].score;
        assert!((doubtful.bound - (0.8 + (runner_up - 0.5) / 2.0)).abs() < 1e-6);
        assert_eq!(doubtful.verdict, Verdict::Ambiguous(vec![A, B]));
        assert_eq!(certain.verdict, Verdict::Known(A));
    }

    #[test]
    fn too_little_speech_and_an_empty_store_name_nobody() {
        let own = vector(&[1.0]);
        let short = Probe {
            vector: &own,
            seconds: 1.9,
        };
        let empty = Gallery::new(&[], &model(), HOW, 0);

        assert_eq!(two().decide(short).verdict, Verdict::TooShort);
        assert_eq!(empty.decide(probe(&own)).verdict, Verdict::Unknown);
        assert!(empty.rank(probe(&own), 3).is_empty());
    }

    #[test]
    fn few_seconds_lower_the_cosine_that_is_asked_for() {
        let voices = [voice(1, &[vector(&[1.0])])];
        let how = Thresholds { half_s: 1.0, ..HOW };
        let gallery = Gallery::new(&voices, &model(), how, 0);
        let own = vector(&[0.7]);
        let of = |seconds: f64| {
            let probe = Probe {
                vector: &own,
                seconds,
            };
            gallery.decide(probe).verdict
        };

        assert_eq!(of(2.0), Verdict::Known(A));
        assert_eq!(of(20.0), Verdict::Unknown);
    }

    #[test]
    fn vectors_of_other_models_and_voices_that_are_to_be_forgotten_are_left_out() {
        let mut other = voice(2, &[vector(&[0.0, 1.0])]);
        other.takes[0].model.version = "1".repeat(64);
        let mut old = voice(3, &[vector(&[0.0, 0.0, 1.0])]);
        old.expires = Some(100);
        let mut short = voice(4, &[vector(&[0.0, 0.0, 0.0, 1.0])]);
        short.takes[0].mean.truncate(2);
        let voices = [voice(1, &[vector(&[1.0])]), other, old, short];

        let before = Gallery::new(&voices, &model(), HOW, 99);
        let after = Gallery::new(&voices, &model(), HOW, 100);

        assert_eq!((before.len(), before.of_other_models()), (2, 2));
        assert_eq!(after.len(), 1);
        assert_eq!(verdicts(&after, &[vector(&[0.0, 1.0])]), [Verdict::Unknown]);
    }

    #[test]
    fn any_recording_of_a_person_will_do_and_so_will_all_together() {
        let voices = [voice(1, &[vector(&[1.0]), vector(&[0.0, 1.0])])];
        let gallery = Gallery::new(&voices, &model(), HOW, 0);

        for own in [vector(&[0.9]), vector(&[0.1, 0.9]), vector(&[0.7, 0.7])] {
            assert_eq!(gallery.decide(probe(&own)).verdict, Verdict::Known(A));
        }
        assert!(gallery.decide(probe(&vector(&[0.7, 0.7]))).is_strong);
    }

    #[test]
    fn of_two_voices_of_a_recording_one_is_the_person_and_the_other_is_merged_only_if_it_is_the_same_voice()
     {
        let gallery = two();
        let (best, near) = (vector(&[0.99]), vector(&[0.97]));
        let (left, right) = (vector(&[0.9, 0.0, 0.4]), vector(&[0.9, 0.0, -0.4]));

        let same = verdicts(&gallery, &[near, best]);
        let apart = verdicts(&gallery, &[left, right]);

        assert_eq!(same, [Verdict::Merge { into: 1, id: A }, Verdict::Known(A)]);
        assert_eq!(apart, [Verdict::Unknown, Verdict::Unknown]);
    }

    #[test]
    fn indices_of_a_merge_count_voices_that_are_too_short() {
        let (best, near) = (vector(&[0.99]), vector(&[0.97]));
        let short = Probe {
            vector: &best,
            seconds: 1.0,
        };

        let found = two().name(&[short, probe(&best), probe(&near)]);

        assert_eq!(found[0].verdict, Verdict::TooShort);
        assert_eq!(found[2].verdict, Verdict::Merge { into: 1, id: A });
    }

    #[test]
    fn a_large_store_gives_what_a_loop_over_it_gives() {
        let mut state = 9_u32;
        let mut random = move || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as f32 / (1 << 24) as f32
        };
        let mut any = || {
            let mut vector: Vec<f32> = (0..DIMENSION).map(|_| random()).collect();
            normalise(&mut vector);
            vector
        };
        let voices: Vec<Voice> = (0..1500).map(|id| voice(id, &[any(), any()])).collect();
        let gallery = Gallery::new(&voices, &model(), HOW, 0);
        let own = any();

        let found = gallery.rank(probe(&own), 4);

        let cosine = |take: &Take| take.mean.iter().zip(&own).map(|(a, b)| a * b).sum::<f32>();
        let mut by_hand: Vec<f32> = voices
            .iter()
            .map(|v| {
                let takes: Vec<&Take> = v.takes.iter().collect();
                let all = taken(together(&takes).0);
                let scores = v.takes.iter().chain([&all]).map(cosine);
                scores.fold(f32::NEG_INFINITY, f32::max)
            })
            .collect();
        by_hand.sort_by(|a, b| b.total_cmp(a));
        assert_eq!(found.len(), 4);
        for (likeness, score) in found.iter().zip(by_hand) {
            assert!((likeness.score - score).abs() < 1e-5);
        }
    }

    #[test]
    fn a_vector_that_is_no_vector_is_like_nobody() {
        let found = verdicts(&two(), &[vec![1.0], vec![f32::NAN; DIMENSION], Vec::new()]);

        assert_eq!(
            found,
            [Verdict::Unknown, Verdict::Unknown, Verdict::Unknown]
        );
    }

    #[test]
    fn a_decision_says_why() {
        let gallery = two();
        let known = gallery.decide(probe(&vector(&[0.9, 0.1])));
        let unknown = gallery.decide(probe(&vector(&[0.5, 0.4])));

        assert_eq!(
            known.to_string(),
            "voice-0000000000000001 (likeness 0.90, 0.80 needed)"
        );
        assert_eq!(
            unknown.to_string(),
            "unknown (most like voice-0000000000000001: 0.50, 0.80 needed)"
        );
        let empty = Gallery::new(&[], &model(), HOW, 0);
        let nobody = empty.decide(probe(&vector(&[1.0])));
        assert_eq!(nobody.to_string(), "unknown (nobody is enrolled)");
    }

    #[test]
    fn a_model_without_thresholds_is_told_what_it_lacks() {
        let lacking = Thresholds::read(|name| (name != "voice_half_s").then_some(0.5));
        let wrong = Thresholds::read(|_| Some(-1.0));

        let text = lacking.unwrap_err().to_string();
        assert!(
            text.contains("voice_half_s") && text.contains("docs/models.md"),
            "{text}"
        );
        assert!(wrong.is_err());
        assert!(Thresholds::read(|_| Some(0.5)).is_ok());
    }

    fn state(speaker: usize, vector: &[f32], seconds: f64) -> SpeakerState<'_> {
        SpeakerState {
            speaker,
            probe: Probe { vector, seconds },
        }
    }

    /// What changes, without reasons.
    fn told(changes: &[Change]) -> Vec<(usize, VoiceId, bool)> {
        let short = |change: &Change| match change {
            Change::Named { speaker, id, .. } => (*speaker, *id, true),
            Change::TakenBack { speaker, id, .. } => (*speaker, *id, false),
        };
        changes.iter().map(short).collect()
    }

    #[test]
    fn a_live_name_comes_with_certainty_and_goes_only_well_below_it() {
        let mut naming = Naming::new(Arc::new(two()));
        let (unsure, certain) = (vector(&[0.75]), vector(&[0.85]));
        let (less, gone) = (vector(&[0.72]), vector(&[0.68]));

        assert!(naming.update(&[state(3, &certain, 1.0)]).is_empty());
        assert!(naming.update(&[state(3, &unsure, 3.0)]).is_empty());
        assert_eq!(
            told(&naming.update(&[state(3, &certain, 4.0)])),
            [(3, A, true)]
        );
        assert!(naming.update(&[state(3, &certain, 5.0)]).is_empty());
        assert!(naming.update(&[state(3, &less, 6.0)]).is_empty());
        assert_eq!(naming.id(3), Some(A));
        assert_eq!(
            told(&naming.update(&[state(3, &gone, 7.0)])),
            [(3, A, false)]
        );
        assert_eq!(naming.id(3), None);
    }

    #[test]
    fn a_live_speaker_who_turns_out_to_be_another_is_renamed_at_once() {
        let mut naming = Naming::new(Arc::new(two()));
        let (first, then) = (vector(&[0.9]), vector(&[0.0, 0.9]));
        naming.update(&[state(0, &first, 3.0)]);

        let changes = naming.update(&[state(0, &then, 9.0)]);

        assert_eq!(told(&changes), [(0, A, false), (0, B, true)]);
    }

    #[test]
    fn two_live_speakers_share_a_name_only_if_they_are_one_voice() {
        let mut naming = Naming::new(Arc::new(two()));
        let (best, near) = (vector(&[0.99]), vector(&[0.97]));
        let another = vector(&[0.82, 0.0, 0.57]);
        naming.update(&[state(0, &near, 5.0)]);

        let changes = naming.update(&[
            state(0, &near, 5.0),
            state(1, &best, 5.0),
            state(2, &another, 5.0),
        ]);

        assert_eq!(told(&changes), [(1, A, true)]);
        assert_eq!(naming.id(2), None);
    }
}
