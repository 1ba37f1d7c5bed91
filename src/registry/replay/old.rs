// SPDX-License-Identifier: MPL-2.0
//! The old system: three processes load their models at the start, arenas double, caches grow when a window is difficult,
//! and whoever finds no memory loses his video.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use super::{
    AT_ONCE, DIARIZER_WINDOWS, DIFFICULT, GIB, KERNELS, MIB, Random, Report, SEGMENTS,
    SPEECH_WINDOWS, Scenario, VirtualClock, card, strangers,
};
use crate::inference::card::{Block, Card};

const SPEECH: u32 = 1;
const SPEAKERS: u32 = 2;
const ENROLMENT: u32 = 3;

/// A step of a video on the card.
#[derive(Clone, Copy)]
enum Work {
    Window { difficult: bool },
    Diarize,
    Enrol { items: usize },
}

struct Video {
    work: VecDeque<Work>,
    state: Option<Block>,
    wide: Option<Block>,
}

/// What an arena has taken: it never gives anything back.
#[derive(Default)]
struct Arena {
    blocks: Vec<Block>,
    bytes: u64,
}

impl Arena {
    /// Room for `bytes` as a doubling arena takes it: two and a half times as much (registry.md 3.4).
    fn need(&mut self, card: &Arc<Card>, owner: u32, bytes: u64) -> bool {
        let wanted = bytes * 5 / 2;
        if wanted <= self.bytes {
            return true;
        }
        match card.alloc(owner, wanted - self.bytes) {
            Ok(block) => {
                self.blocks.push(block);
                self.bytes = wanted;
                true
            }
            Err(_) => false,
        }
    }
}

pub(super) fn play(scenario: &Scenario) -> Report {
    let clock = Arc::new(VirtualClock::default());
    let card = card(scenario, &clock);
    let mut random = Random::new(scenario.seed);
    let mut others: VecDeque<(Duration, u64)> = strangers(scenario, &mut random).into();
    card.set_strangers(others.front().map_or(0, |s| s.1));

    let mut models = vec![(SPEECH, 3 * GIB), (SPEAKERS, 3 * GIB), (ENROLMENT, GIB)];
    if !scenario.shared_embedding {
        models.push((ENROLMENT, 4 * GIB));
    }
    let loaded: Vec<Block> = models
        .iter()
        .filter_map(|(owner, bytes)| card.alloc(*owner, *bytes).ok())
        .collect();
    let mut report = Report {
        loads: loaded.len() as u64,
        ..Report::default()
    };
    if loaded.len() < models.len() {
        report.lost = scenario.videos;
        report.out_of_memory = card.refused();
        report.peak = card.peak();
        return report;
    }

    let (mut speakers, mut voices) = (Arena::default(), Arena::default());
    let mut waiting = scenario.videos;
    let mut running: Vec<Option<Video>> = (0..AT_ONCE).map(|_| None).collect();
    // When a step ends, and of which video.
    let mut events: BinaryHeap<Reverse<(Duration, usize)>> = BinaryHeap::new();
    let mut now = Duration::ZERO;
    let mut busy: Vec<bool> = vec![false; AT_ONCE];
    let (mut enrol_seconds, mut enrol_batches) = (0.0, 0.0);
    loop {
        for slot in 0..AT_ONCE {
            if running[slot].is_none() && waiting > 0 {
                waiting -= 1;
                match card.alloc(SPEECH, 650 * MIB) {
                    Ok(state) => running[slot] = Some(video(scenario, &mut random, state)),
                    Err(_) => report.lost += 1,
                }
            }
            let free = busy.iter().filter(|b| **b).count() < KERNELS;
            if busy[slot] || !free {
                continue;
            }
            let Some(own) = &mut running[slot] else {
                continue;
            };
            let Some(work) = own.work.front().copied() else {
                running[slot] = None;
                report.done += 1;
                report.seconds = now.as_secs_f64();
                continue;
            };
            let fits = match work {
                Work::Window { difficult } => {
                    if difficult && own.wide.is_none() {
                        own.wide = card.alloc(SPEECH, 480 * MIB).ok();
                        own.wide.is_some()
                    } else {
                        true
                    }
                }
                Work::Diarize => speakers.need(&card, SPEAKERS, 32 * 2 * MIB),
                Work::Enrol { items } => voices.need(&card, ENROLMENT, items as u64 * 16 * MIB),
            };
            if !fits {
                running[slot] = None;
                report.lost += 1;
                continue;
            }
            own.work.pop_front();
            if matches!(work, Work::Diarize) {
                // What the windows needed goes when the last of them is done.
                own.wide = None;
                own.state = None;
            }
            let seconds = match work {
                Work::Window { .. } => 0.5,
                Work::Diarize => 0.4,
                Work::Enrol { .. } => {
                    enrol_seconds += 1.5;
                    enrol_batches += 1.0;
                    1.5
                }
            };
            busy[slot] = true;
            events.push(Reverse((now + Duration::from_secs_f64(seconds), slot)));
        }
        let Some(Reverse((at, slot))) = events.pop() else {
            if waiting == 0 && running.iter().all(Option::is_none) {
                break;
            }
            continue;
        };
        now = at;
        clock.set(now);
        busy[slot] = false;
        while others.front().is_some_and(|(t, _)| *t <= now) {
            if let Some((_, bytes)) = others.pop_front() {
                card.set_strangers(bytes);
            }
        }
    }
    let enrolled = report.done.max(1) as f64;
    report.enrol_seconds = enrol_seconds / enrolled;
    report.enrol_batches = enrol_batches / enrolled;
    report.out_of_memory = card.refused();
    report.peak = card.peak();
    report.peak_percent = card.peak() as f64 / card.spec().total as f64 * 100.0;
    report
}

fn video(scenario: &Scenario, random: &mut Random, state: Block) -> Video {
    let mut work: VecDeque<Work> = (0..SPEECH_WINDOWS)
        .map(|_| Work::Window {
            difficult: random.below(DIFFICULT) == 0,
        })
        .collect();
    work.extend((0..DIARIZER_WINDOWS.div_ceil(32)).map(|_| Work::Diarize));
    let mut left = SEGMENTS as usize;
    while left > 0 {
        let items = left.min(scenario.batch);
        work.push_back(Work::Enrol { items });
        left -= items;
    }
    Video {
        work,
        state: Some(state),
        wide: None,
    }
}

impl Drop for Video {
    fn drop(&mut self) {
        self.wide = None;
        self.state = None;
    }
}
