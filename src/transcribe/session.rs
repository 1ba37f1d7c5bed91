// SPDX-License-Identifier: MPL-2.0
//! One channel of a stream, heard as a file or live.

use crate::audio::SampleIndex;
use crate::inference::{EngineError, ProcessStats};
use crate::registry::Degraded;

use super::file::{self, Models, SessionStats, Spoken};
use super::live::{self, Partial, Skipped};

/// See the module.
pub enum Session {
    /// Best text, as fast as the machine can.
    File(Box<file::Session>),
    /// Words while somebody speaks.
    Live(Box<live::Session>),
}

macro_rules! both {
    ($self:ident, $session:ident => $what:expr) => {
        match $self {
            Self::File($session) => $what,
            Self::Live($session) => $what,
        }
    };
}

impl Session {
    /// The models it uses.
    pub fn models(&self) -> &Models {
        both!(self, s => s.models())
    }

    /// Takes in sound that begins at `start`; it follows on what came since the last piece ended.
    pub fn push(&mut self, start: SampleIndex, samples: &[f32]) {
        both!(self, s => s.push(start, samples));
    }

    /// Takes in `count` samples of silence at `start`.
    pub fn push_silence(&mut self, start: SampleIndex, count: u64) {
        both!(self, s => s.push_silence(start, count));
    }

    /// What comes next does not follow on.
    pub fn end_piece(&mut self) {
        both!(self, s => s.end_piece());
    }

    /// Whether more sound is wanted now.
    pub fn wants_input(&mut self) -> bool {
        both!(self, s => s.wants_input())
    }

    /// Whether all that came in has gone out.
    pub fn is_idle(&self) -> bool {
        both!(self, s => s.is_idle())
    }

    /// No word will come that begins before this.
    pub fn settled_until(&self) -> SampleIndex {
        both!(self, s => s.settled_until())
    }

    /// What was done so far.
    pub fn stats(&self) -> SessionStats {
        both!(self, s => s.stats())
    }

    /// The process that the speech model runs in; `None` for ours.
    pub fn process(&self) -> Option<ProcessStats> {
        both!(self, s => s.process())
    }

    /// Goes on with everything that can go on, and returns what is complete.
    pub fn poll(&mut self) -> Result<Vec<Spoken>, EngineError> {
        both!(self, s => s.poll())
    }

    /// Text that may still change, if it is another than last time.
    pub fn partial(&mut self) -> Option<Partial> {
        self.live()?.partial()
    }

    /// Speech that was given up since the last call.
    pub fn skipped(&mut self) -> Vec<Skipped> {
        self.live().map(live::Session::skipped).unwrap_or_default()
    }

    /// What was given up to keep up since the last call, and what was taken up again.
    pub fn degraded(&mut self) -> Vec<Degraded> {
        self.live().map(live::Session::degraded).unwrap_or_default()
    }

    /// No sound comes for a while: what was said so far is complete.
    pub fn stall(&mut self) {
        if let Some(session) = self.live() {
            session.stall();
        }
    }

    /// The session, where it is live.
    pub fn live(&mut self) -> Option<&mut live::Session> {
        match self {
            Self::File(_) => None,
            Self::Live(session) => Some(session),
        }
    }
}
