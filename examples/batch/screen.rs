// SPDX-License-Identifier: MPL-2.0
//! The terminal: a bar for each recording that is being done, one for all of them and one for memory. Where there is no
//! terminal, a line when a recording is done.

use std::io::{IsTerminal, stderr};
use std::time::Duration;

use indicatif::{HumanBytes, MultiProgress, ProgressBar, ProgressStyle};

use super::job::Outcome;
use gstscribe::registry::limit::MemoryLimit;

use super::memory;
use super::plan::Work;

/// See the module. Clones are the same screen.
#[derive(Clone)]
pub struct Screen(Option<Bars>);

#[derive(Clone)]
struct Bars {
    all: MultiProgress,
    files: ProgressBar,
    memory: ProgressBar,
}

/// A recording's place on it.
pub struct Line {
    name: String,
    screen: Screen,
    bar: Option<ProgressBar>,
}

fn style(template: &str) -> ProgressStyle {
    // The templates are below: right.
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar())
}

impl Screen {
    /// For so many recordings.
    pub fn new(files: usize, limit: Option<&MemoryLimit>) -> Self {
        if !stderr().is_terminal() {
            return Self(None);
        }
        let all = MultiProgress::new();
        let bar = |length: u64, template: &str| {
            let bar = all.add(ProgressBar::new(length).with_style(style(template)));
            bar.tick();
            bar
        };
        let files = bar(
            files as u64,
            "all     {wide_bar} {pos}/{len} files {elapsed_precise}",
        );
        files.enable_steady_tick(Duration::from_secs(1));
        let most = limit.map_or_else(memory::total, |limit| limit.bytes_of(memory::total()));
        let memory = bar(most, "memory  {wide_bar} {bytes}/{total_bytes} {msg}");
        Self(Some(Bars { all, files, memory }))
    }

    /// A recording is begun.
    pub fn begin(&self, work: &Work) -> Line {
        let name = work
            .source
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        let bar = self.0.as_ref().map(|bars| {
            let bar = ProgressBar::new(1000)
                .with_style(style(
                    "{prefix:32!} {wide_bar} {percent:>3} % {elapsed_precise}",
                ))
                .with_prefix(name.clone());
            bars.all.insert_before(&bars.files, bar)
        });
        Line {
            name,
            screen: self.clone(),
            bar,
        }
    }

    /// It is over.
    pub fn end(&self, work: &Work, line: &Line, outcome: &Outcome) {
        if let Some(bar) = &line.bar {
            bar.finish_and_clear();
        }
        if let Some(bars) = &self.0 {
            bars.files.inc(1);
        }
        self.note(&outcome.line(work));
    }

    /// Something that a person should know.
    pub fn note(&self, text: &str) {
        match &self.0 {
            // Nothing to be done about a terminal that cannot be written to.
            Some(bars) => {
                let _ = bars.all.println(text);
            }
            None => eprintln!("{text}"),
        }
    }

    /// So much memory is in use.
    pub fn memory(&self, bytes: u64) {
        if let Some(bars) = &self.0 {
            bars.memory.set_position(bytes);
            bars.memory
                .set_message(format!("most {}", HumanBytes(memory::peak())));
        }
    }

    /// Takes the bars away.
    pub fn clear(&self) {
        if let Some(bars) = &self.0 {
            bars.files.finish_and_clear();
            bars.memory.finish_and_clear();
        }
    }
}

impl Line {
    /// How far it is, 0 to 100; below 0 where nobody knows.
    pub fn percent(&self, percent: f64) {
        if let Some(bar) = &self.bar {
            bar.set_position((percent.clamp(0.0, 100.0) * 10.0) as u64);
        }
    }

    /// Something about it that a person should know.
    pub fn note(&self, text: &str) {
        self.screen.note(&format!("note     {}: {text}", self.name));
    }
}
