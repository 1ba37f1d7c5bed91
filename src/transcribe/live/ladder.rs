// SPDX-License-Identifier: MPL-2.0
//! How much is decoded, by how long it takes: wider steps, then the ends of utterances alone, then a smaller model.
//!
//! It is measured in sound: what came in while a decoding was under way. A backlog says nothing, since no decoding ever
//! waits behind another (live.md 3 in the research notes).

use crate::audio::SAMPLE_RATE;

const SECOND: u64 = SAMPLE_RATE as u64;
/// Decodings take more than this part of the step: there is no time for so many.
const BUSY: f64 = 0.8;
/// Decodings that must be so in a row.
const BUSY_TIMES: u32 = 3;
/// They would take less than this part of the step before.
const CALM: f64 = 0.5;
/// For so long, before it is tried again.
const CALM_FOR: u64 = 30 * SECOND;
/// A larger model may be tried where decodings take less than this part of the step.
const SPARE: f64 = 0.25;
/// How fast a long decoding is forgotten.
const DECAY: f64 = 0.8;

/// What is done, the most first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// The step that was asked for.
    #[default]
    Full,
    /// Half as many decodings.
    Wide,
    /// A third.
    Wider,
    /// Utterances are decoded when they end; nothing is told before.
    Ends,
    /// The same, and even that is too much: a smaller model is wanted.
    Smaller,
}

impl Level {
    fn down(self) -> Self {
        match self {
            Self::Full => Self::Wide,
            Self::Wide => Self::Wider,
            Self::Wider => Self::Ends,
            Self::Ends | Self::Smaller => Self::Smaller,
        }
    }

    fn up(self) -> Self {
        match self {
            Self::Full | Self::Wide => Self::Full,
            Self::Wider => Self::Wide,
            Self::Ends => Self::Wider,
            Self::Smaller => Self::Ends,
        }
    }

    fn times(self) -> f64 {
        match self {
            Self::Full => 1.0,
            Self::Wide => 1.5,
            Self::Wider => 2.0,
            Self::Ends | Self::Smaller => 4.0,
        }
    }

    /// For messages.
    pub fn name(self) -> &'static str {
        match self {
            Self::Full => "every step",
            Self::Wide => "steps half as wide again",
            Self::Wider => "steps twice as wide",
            Self::Ends => "the ends of utterances, without partial text",
            Self::Smaller => "a smaller model",
        }
    }
}

/// See the module.
#[derive(Clone, Debug, Default)]
pub struct Ladder {
    level: Level,
    /// The step that was asked for, samples.
    step: u64,
    /// What a decoding takes, samples: the longest of late.
    cost: f64,
    busy: u32,
    calm: u64,
    /// Sound since the full step was taken up with much time to spare, samples.
    spare: u64,
}

impl Ladder {
    /// What is done.
    pub fn level(&self) -> Level {
        self.level
    }

    /// New sound between decodings, where `step` was asked for.
    pub fn step(&self, step: u64) -> u64 {
        (step as f64 * self.level.times()) as u64
    }

    /// Sound that comes in during a decoding.
    pub fn cost(&self) -> u64 {
        self.cost as u64
    }

    /// A decoding took as long as it takes for `took` samples to come, and there was one for `every` samples.
    pub fn took(&mut self, took: u64, every: u64) {
        self.cost = (self.cost * DECAY).max(took as f64);
        let step = self.step.max(1) as f64;
        let spare = self.level == Level::Full && self.cost / step < SPARE;
        self.spare = if spare { self.spare + every } else { 0 };
        let now = self.cost / (step * self.level.times());
        if took as f64 / (step * self.level.times()) > BUSY {
            self.busy += 1;
            self.calm = 0;
        } else {
            self.busy = 0;
        }
        if self.busy >= BUSY_TIMES {
            self.set(self.level.down());
            return;
        }
        let before = now * self.level.times() / self.level.up().times();
        if self.level > Level::Full && before < CALM {
            self.calm += every;
            if self.calm >= CALM_FOR {
                self.set(self.level.up());
            }
        } else {
            self.calm = 0;
        }
    }

    /// Sound for which there has been much time to spare.
    pub fn spare(&self) -> u64 {
        self.spare
    }

    /// Something was given up: there is far too much to do.
    pub fn behind(&mut self) {
        self.set(self.level.down());
    }

    /// Another model: what was measured says nothing of it.
    pub fn begin_anew(&mut self) {
        *self = Self {
            level: Level::Ends,
            step: self.step,
            ..Self::default()
        };
    }

    /// With the step that was asked for, samples.
    pub fn for_step(step: u64) -> Self {
        Self {
            step,
            ..Self::default()
        }
    }

    fn set(&mut self, level: Level) {
        self.level = level;
        self.busy = 0;
        self.calm = 0;
    }
}
