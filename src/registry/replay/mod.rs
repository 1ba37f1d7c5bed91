// SPDX-License-Identifier: MPL-2.0
//! The accident replayed on a made-up card, in virtual time: twenty long videos are transcribed, diarized and enrolled
//! with the models of the system that scribe replaces. Only with `test-support`.
//!
//! The ledger, the line, the choice of what to evict, the queue and the batcher are those of the registry, unmodified.
//! What the registry does with threads around them is played here by events.

mod old;
mod run;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::clock::Clock;
use super::ledger::LedgerPolicy;
use crate::inference::card::{Card, CardSpec};

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

/// What the desktop holds of the card.
const DESKTOP: u64 = 300 * MIB;
/// Videos that are worked on at a time.
const AT_ONCE: usize = 2;
/// Kernels that the card runs at a time.
const KERNELS: usize = 2;
/// Windows of 29 s in 45 minutes and 15 seconds.
const SPEECH_WINDOWS: u32 = 94;
/// Windows of 10 s, every 2 s.
const DIARIZER_WINDOWS: u32 = 1353;
/// Segments of 3 s that are enrolled.
const SEGMENTS: u32 = 500;
/// One window in so many is difficult: a temperature fallback.
const DIFFICULT: u64 = 12;

/// Parts of the registry that a test switches off one by one, to show that each is needed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Switches {
    /// Memory is reserved before a load begins, not after it.
    pub reserve_before_load: bool,
    /// What is being unloaded counts.
    pub count_draining: bool,
    /// A lane is reserved with its cache at its widest.
    pub widest_cache: bool,
    /// Freed memory counts until the card has it back.
    pub wait_for_lag: bool,
    /// Arenas take what is asked for, not the next power of two.
    pub exact_arena: bool,
    /// The largest batch comes first into an empty arena.
    pub largest_first: bool,
}

impl Default for Switches {
    fn default() -> Self {
        Self {
            reserve_before_load: true,
            count_draining: true,
            widest_cache: true,
            wait_for_lag: true,
            exact_arena: true,
            largest_first: true,
        }
    }
}

impl Switches {
    /// All on but one, with its name, for each of them.
    pub fn each_off() -> Vec<(&'static str, Self)> {
        let on = Self::default();
        vec![
            (
                "reserve before load",
                Self {
                    reserve_before_load: false,
                    ..on
                },
            ),
            (
                "count what is being unloaded",
                Self {
                    count_draining: false,
                    ..on
                },
            ),
            (
                "caches at their widest",
                Self {
                    widest_cache: false,
                    ..on
                },
            ),
            (
                "wait for the card",
                Self {
                    wait_for_lag: false,
                    ..on
                },
            ),
            (
                "exact arenas",
                Self {
                    exact_arena: false,
                    ..on
                },
            ),
            (
                "largest batch first",
                Self {
                    largest_first: false,
                    ..on
                },
            ),
        ]
    }

    fn ledger(self) -> LedgerPolicy {
        LedgerPolicy {
            count_draining: self.count_draining,
            wait_for_lag: self.wait_for_lag,
        }
    }
}

/// What others do on the card.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Strangers {
    /// A desktop.
    Desktop,
    /// After ten minutes another process takes 2 GiB and keeps them.
    HalfWay,
    /// What they hold changes all the time, between nothing and 1.3 GiB.
    Restless,
}

/// Who runs the job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Policy {
    /// Three processes that load what they need and hope, as the old system did.
    Old,
    /// The registry.
    Registry(Switches),
}

/// One replay.
#[derive(Clone, Copy, Debug)]
pub struct Scenario {
    /// Memory of the card, GiB.
    pub card_gib: u64,
    /// Videos.
    pub videos: usize,
    /// Enrolment uses the diarizer's embedding, not one of its own.
    pub shared_embedding: bool,
    /// Most segments in a batch.
    pub batch: usize,
    /// Others on the card.
    pub strangers: Strangers,
    /// What is random follows from it.
    pub seed: u64,
    /// Who runs it.
    pub policy: Policy,
}

impl Default for Scenario {
    fn default() -> Self {
        Self {
            card_gib: 16,
            videos: 20,
            shared_embedding: true,
            batch: 32,
            strangers: Strangers::Desktop,
            seed: 1,
            policy: Policy::Registry(Switches::default()),
        }
    }
}

impl Scenario {
    /// Strangers that never rest, on a card of 16, 8 or 4 GB, with or without an embedding of its own: all by the seed.
    pub fn restless(seed: u64) -> Self {
        Self {
            seed,
            shared_embedding: seed.is_multiple_of(2),
            card_gib: [16, 16, 8, 4][(seed / 2 % 4) as usize],
            strangers: Strangers::Restless,
            ..Self::default()
        }
    }

    /// Whether a registry with these switches fails in any of the first 40 restless replays on 16 and 8 GB: the seed
    /// and what came of it.
    pub fn breaks(switches: Switches) -> Option<(u64, Report)> {
        (1..=40).find_map(|seed| {
            let scenario = Self {
                card_gib: if seed % 2 == 0 { 8 } else { 16 },
                shared_embedding: seed % 4 < 2,
                policy: Policy::Registry(switches),
                ..Self::restless(seed)
            };
            let report = play(&scenario);
            (!report.is_good(scenario.videos)).then_some((seed, report))
        })
    }
}

/// What came of it.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Report {
    /// Videos with all three results.
    pub done: usize,
    /// Videos lost.
    pub lost: usize,
    /// Allocations that the card refused.
    pub out_of_memory: u64,
    /// Most that scribe held, bytes.
    pub peak: u64,
    /// Most that scribe held of what others left, percent.
    pub peak_percent: f64,
    /// Until the last video was done, seconds.
    pub seconds: f64,
    /// Seconds that enrolling a video took on the card, on average.
    pub enrol_seconds: f64,
    /// Batches that enrolling a video took, on average.
    pub enrol_batches: f64,
    /// Models loaded.
    pub loads: u64,
    /// Steps down a fallback chain.
    pub fallbacks: u64,
}

impl Report {
    /// Nothing lost, nothing refused, never above the ceiling: but for the card's pieces of 2 MiB, which two parts of
    /// one reservation may each round up to.
    pub fn is_good(&self, videos: usize) -> bool {
        self.done == videos && self.out_of_memory == 0 && self.peak_percent < 80.1
    }
}

/// Plays a scenario.
pub fn play(scenario: &Scenario) -> Report {
    match scenario.policy {
        Policy::Old => old::play(scenario),
        Policy::Registry(switches) => run::play(scenario, switches),
    }
}

/// Time of the replay.
#[derive(Debug, Default)]
struct VirtualClock(AtomicU64);

impl VirtualClock {
    fn set(&self, now: Duration) {
        let ns = u64::try_from(now.as_nanos()).unwrap_or(u64::MAX);
        self.0.store(ns, Ordering::Relaxed);
    }
}

impl Clock for VirtualClock {
    fn now(&self) -> Duration {
        Duration::from_nanos(self.0.load(Ordering::Relaxed))
    }
}

fn card(scenario: &Scenario, clock: &Arc<VirtualClock>) -> Arc<Card> {
    let clock = Arc::clone(clock);
    Card::new(CardSpec::of_gib(scenario.card_gib), move || clock.now())
}

/// A sequence that follows from its seed (xorshift64*, Vigna 2016).
struct Random(u64);

impl Random {
    fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// Below `end`.
    fn below(&mut self, end: u64) -> u64 {
        self.next() % end.max(1)
    }
}

/// What strangers hold at which second.
fn strangers(scenario: &Scenario, random: &mut Random) -> Vec<(Duration, u64)> {
    let mut out = vec![(Duration::ZERO, DESKTOP)];
    match scenario.strangers {
        Strangers::Desktop => {}
        Strangers::HalfWay => out.push((Duration::from_secs(600), DESKTOP + 2 * GIB)),
        Strangers::Restless => {
            let mut at = 0;
            while at < 7200 {
                at += 5 + random.below(60);
                out.push((Duration::from_secs(at), random.below(DESKTOP + GIB)));
            }
        }
    }
    out
}
