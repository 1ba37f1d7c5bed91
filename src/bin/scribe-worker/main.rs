// SPDX-License-Identifier: MPL-2.0
//! `scribe-worker`: runs a speech model for the plugin, in a process that may die. Started by
//! `scribetranscriber isolation=process`, never by hand.
#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a person who starts it by hand is told what it is"
)]

use std::process::ExitCode;

use gstscribe::inference::isolated::EngineSpec;
use gstscribe::inference::isolated::serve::{Refusal, serve};

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let refusal = match arguments[..] {
        ["--parent", parent] => match parent.parse() {
            Ok(parent) => serve(parent, &EngineSpec::load),
            Err(_) => Refusal::Alone,
        },
        ["--version" | "-V"] => {
            println!("scribe-worker {}", env!("CARGO_PKG_VERSION"));
            return ExitCode::SUCCESS;
        }
        _ => Refusal::Alone,
    };
    eprintln!("{refusal}");
    ExitCode::from(2)
}
