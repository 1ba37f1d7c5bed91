// SPDX-License-Identifier: MPL-2.0
//! `scribe-doctor`: what is here of all that scribe needs, and how to get what is missing.
//!
//! Looks only: nothing is changed, fetched or written but caches (GStreamer's of plugins, ours of digests).

mod engines;
mod machine;
mod models;
mod plugin;
mod report;

use std::io::{self, Write};
use std::process::ExitCode;

use clap::Parser;

use report::Report;

/// Says what is here of all that scribe needs, and how to get what is missing.
#[derive(Parser)]
#[command(
    name = "scribe-doctor",
    version,
    after_help = "Exit status: 0 all that is needed is here, 1 something is missing, 2 wrong use."
)]
struct Arguments {
    /// As JSON
    #[arg(long)]
    json: bool,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let mut report = Report::default();
    // First: where the plugin lies decides where models and libraries are looked for.
    plugin::look(&mut report);
    engines::look(&mut report);
    models::look(&mut report);
    machine::look(&mut report);

    let text = if arguments.json {
        report.json()
    } else {
        report.text()
    };
    // A reader who has seen enough, such as `head`, is no error.
    let _ = io::stdout().lock().write_all(text.as_bytes());
    if report.is_complete() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}
