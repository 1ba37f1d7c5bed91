// SPDX-License-Identifier: MPL-2.0
//! Time as the ledger sees it, so that a replay can run hours in milliseconds.

use std::time::{Duration, Instant};

/// Time since some beginning. Never goes back.
pub trait Clock: Send + Sync {
    /// Now.
    fn now(&self) -> Duration;
}

/// The machine's.
#[derive(Debug)]
pub struct SystemClock(Instant);

impl Default for SystemClock {
    fn default() -> Self {
        Self(Instant::now())
    }
}

impl Clock for SystemClock {
    fn now(&self) -> Duration {
        self.0.elapsed()
    }
}
