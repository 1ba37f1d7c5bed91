// SPDX-License-Identifier: MPL-2.0
//! How the work on a stream goes, as it is told: messages for applications, INFO lines for people.

use std::time::{Duration, Instant};

use gst::prelude::*;
use gst::subclass::prelude::*;

use super::imp::CAT;
use crate::audio::{SampleIndex, Timeline};
use crate::messages;
use crate::registry::Registry;
use crate::registry::limit::human_bytes;
use crate::transcribe::file::SessionStats;

const PROGRESS_EVERY: Duration = Duration::from_millis(500);
const LOG_EVERY: Duration = Duration::from_secs(10);

/// See the module.
pub(super) struct Report {
    began: Instant,
    told: Option<Instant>,
    looked: Option<Instant>,
    logged: Instant,
    announced: bool,
    heard_ns: u64,
}

impl Report {
    pub(super) fn new() -> Self {
        let now = Instant::now();
        Self {
            began: now,
            told: None,
            looked: None,
            logged: now,
            announced: false,
            heard_ns: 0,
        }
    }

    /// Whether it is time to look at the models again.
    pub(super) fn looks(&mut self) -> bool {
        let due = self.looked.is_none_or(|at| at.elapsed() >= PROGRESS_EVERY);
        if due {
            self.looked = Some(Instant::now());
        }
        due
    }

    pub(super) fn tell(
        &mut self,
        element: &super::Transcriber,
        until: SampleIndex,
        timeline: &Timeline,
        stats: &SessionStats,
        registry: &Registry,
        post: bool,
    ) {
        if self.logged.elapsed() >= LOG_EVERY {
            self.logged = Instant::now();
            gst::info!(CAT, obj = element, "{stats}");
            for memory in registry.memory().iter().filter(|m| m.reserved > 0) {
                gst::info!(
                    CAT,
                    obj = element,
                    "memory {:.1} % of {} on {}",
                    memory.percent(),
                    human_bytes(memory.capacity),
                    memory.device
                );
                if post {
                    let _ = element.post_message(messages::memory(element, memory));
                }
            }
        }
        if !self.announced {
            self.announced = true;
            let duration = element
                .imp()
                .sinkpad()
                .peer_query_duration::<gst::ClockTime>();
            match duration {
                Some(duration) => gst::info!(
                    CAT,
                    obj = element,
                    "Processing audio with duration {}",
                    minutes(duration.nseconds())
                ),
                None => gst::info!(CAT, obj = element, "Processing audio of unknown duration"),
            }
        }
        if !post || self.told.is_some_and(|t| t.elapsed() < PROGRESS_EVERY) {
            return;
        }
        let position = timeline.stream_ns(until).0;
        if position == self.heard_ns {
            return;
        }
        self.told = Some(Instant::now());
        self.heard_ns = position;
        let duration = element
            .imp()
            .sinkpad()
            .peer_query_duration::<gst::ClockTime>();
        let percent = duration
            .filter(|d| !d.is_zero())
            .map(|d| (position as f64 / d.nseconds() as f64 * 100.0).min(100.0));
        let text = match (percent, duration) {
            (Some(percent), Some(duration)) => {
                format!(
                    "{percent:.0} % of {:.3} s",
                    duration.nseconds() as f64 / 1e9
                )
            }
            _ => format!("{:.3} s", position as f64 / 1e9),
        };
        let _ = element.post_message(messages::progress(element, percent, position, &text));
    }

    pub(super) fn done(&mut self, element: &super::Transcriber, post: bool) {
        let took = self.began.elapsed().as_secs_f64();
        gst::info!(CAT, obj = element, "Finished after {took:.1} s");
        if post {
            let _ = element.post_message(messages::progress(
                element,
                Some(100.0),
                self.heard_ns,
                "Finished",
            ));
        }
    }
}

/// `45:14.877`.
fn minutes(ns: u64) -> String {
    let ms = ns / 1_000_000;
    format!("{}:{:02}.{:03}", ms / 60_000, ms / 1000 % 60, ms % 1000)
}
