// SPDX-License-Identifier: MPL-2.0
//! How far a download is: a bar on a terminal, elsewhere a line for each tenth.

use std::io::{IsTerminal, stderr};

use indicatif::{HumanBytes, ProgressBar, ProgressStyle};

/// Progress of one file.
pub struct Progress {
    name: String,
    total_bytes: u64,
    bar: Option<ProgressBar>,
    told_tenth: u64,
}

impl Progress {
    /// For a file of that length.
    pub fn new(name: &str, total_bytes: u64) -> Self {
        let bar = stderr().is_terminal().then(|| {
            let style = ProgressStyle::with_template(
                "{prefix} {wide_bar} {bytes}/{total_bytes} {bytes_per_sec} {eta}",
            );
            let bar = ProgressBar::new(total_bytes).with_prefix(name.to_owned());
            style
                .map(|style| bar.clone().with_style(style))
                .unwrap_or(bar)
        });
        Self {
            name: name.into(),
            total_bytes,
            bar,
            told_tenth: 0,
        }
    }

    /// So much is on disk.
    pub fn set(&mut self, bytes: u64) {
        match &self.bar {
            Some(bar) => bar.set_position(bytes),
            None => self.tell_tenth(bytes),
        }
    }

    /// What is on disk when a download begins: lines go on from there.
    pub fn start_at(&mut self, bytes: u64) {
        self.told_tenth = self.tenth(bytes);
        if let Some(bar) = &self.bar {
            bar.set_position(bytes);
        }
    }

    /// Something that a person should know.
    pub fn say(&self, news: &str) {
        match &self.bar {
            Some(bar) => bar.suspend(|| eprintln!("{}: {news}", self.name)),
            None => eprintln!("{}: {news}", self.name),
        }
    }

    fn tell_tenth(&mut self, bytes: u64) {
        let tenth = self.tenth(bytes);
        if tenth > self.told_tenth {
            self.told_tenth = tenth;
            eprintln!(
                "{}: {} % of {}",
                self.name,
                tenth * 10,
                HumanBytes(self.total_bytes)
            );
        }
    }

    fn tenth(&self, bytes: u64) -> u64 {
        bytes
            .saturating_mul(10)
            .checked_div(self.total_bytes)
            .unwrap_or(10)
            .min(10)
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
