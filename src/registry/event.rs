// SPDX-License-Identifier: MPL-2.0
//! What was given up to go on: told to whoever leases the model.

use std::collections::VecDeque;

/// Events that a model keeps for those who have not read them.
const KEPT: usize = 64;

/// Quality or speed was given up to go on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Degraded {
    /// What it concerns: `speech model`, `batch`, `lane`.
    pub what: String,
    /// What was wanted.
    pub from: String,
    /// What is done.
    pub to: String,
    /// Why.
    pub reason: String,
}

/// The last events of a model, each with its number.
#[derive(Debug, Default)]
pub(super) struct Events {
    next: u64,
    kept: VecDeque<(u64, Degraded)>,
}

impl Events {
    pub(super) fn push(&mut self, event: Degraded) {
        // The same again is no news.
        if self.kept.back().is_some_and(|(_, last)| *last == event) {
            return;
        }
        self.next += 1;
        self.kept.push_back((self.next, event));
        if self.kept.len() > KEPT {
            self.kept.pop_front();
        }
    }

    /// Events after number `seen`, which moves on.
    pub(super) fn since(&self, seen: &mut u64) -> Vec<Degraded> {
        let new = self.kept.iter().filter(|(n, _)| *n > *seen);
        let out = new.map(|(_, event)| event.clone()).collect();
        *seen = self.next;
        out
    }

    /// Number of the last event: who comes now has not missed those before.
    pub(super) fn last(&self) -> u64 {
        self.next
    }
}
