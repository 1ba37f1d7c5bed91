// SPDX-License-Identifier: MPL-2.0
//! What came of all recordings.

use std::fmt::Write;
use std::time::Duration;

use super::job::Outcome;
use super::plan::Work;

/// Counts of outcomes.
#[derive(Debug)]
pub struct Summary {
    total: usize,
    transcribed: usize,
    from_sidecars: usize,
    skipped: usize,
    degraded: usize,
    audio: Duration,
    failures: Vec<String>,
}

impl Summary {
    /// Of so many recordings.
    pub fn new(total: usize) -> Self {
        Self {
            total,
            transcribed: 0,
            from_sidecars: 0,
            skipped: 0,
            degraded: 0,
            audio: Duration::ZERO,
            failures: Vec::new(),
        }
    }

    /// Counts one.
    pub fn add(&mut self, work: &Work, outcome: Outcome) {
        match outcome {
            Outcome::Transcribed {
                audio, degraded, ..
            } => {
                self.transcribed += 1;
                self.audio += audio;
                self.degraded += degraded;
            }
            Outcome::FromSidecar { .. } => self.from_sidecars += 1,
            Outcome::Skipped => self.skipped += 1,
            Outcome::Stopped => {}
            Outcome::Failed { why } => {
                self.failures
                    .push(format!("{}: {why}", work.source.display()));
            }
        }
    }

    /// Some could not be done.
    pub fn has_failures(&self) -> bool {
        !self.failures.is_empty()
    }

    /// A line for each figure, then one for each recording that failed.
    pub fn text(&self, took: Duration, peak_bytes: u64) -> String {
        let processed = self.transcribed + self.from_sidecars;
        let there = processed + self.skipped;
        let left = self.total - there - self.failures.len();
        let seconds = took.as_secs_f64();
        let audio = self.audio.as_secs_f64();
        let mut out = String::new();
        let mut line = |name: &str, value: String| {
            let _ = writeln!(out, "{name:<16} {value}");
        };
        line("Total", self.total.to_string());
        line(
            "Processed",
            match self.from_sidecars {
                0 => processed.to_string(),
                n => format!("{processed} ({n} from sidecars)"),
            },
        );
        line("Skipped", self.skipped.to_string());
        line("Errors", self.failures.len().to_string());
        if left > 0 {
            line("Not done", left.to_string());
        }
        line(
            "Success",
            format!("{:.1} %", 100.0 * there as f64 / self.total as f64),
        );
        line(
            "Audio",
            format!("{:.2} h in {seconds:.1} s", audio / 3600.0),
        );
        line(
            "Times real time",
            format!("{:.1}", audio / seconds.max(0.001)),
        );
        line("Peak memory", format!("{:.0} MB", peak_bytes as f64 / 1e6));
        line("Degraded", self.degraded.to_string());
        for failure in &self.failures {
            line("Error", failure.clone());
        }
        out
    }
}
