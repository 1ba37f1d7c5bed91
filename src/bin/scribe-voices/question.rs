// SPDX-License-Identifier: MPL-2.0
//! Questions before what cannot be undone.

use std::io::{self, BufRead, IsTerminal};

use crate::Common;
use crate::failure::Failure;

/// Goes on if the answer is yes. Without a terminal nobody can answer: then `--yes` must have been given.
pub fn ask(common: &Common, question: &str) -> Result<(), Failure> {
    if common.yes {
        return Ok(());
    }
    if !io::stdin().is_terminal() {
        return Err(Failure::Usage(format!(
            "{question} There is no terminal to answer on: --yes says so"
        )));
    }
    eprint!("{question} [y/N] ");
    let mut answer = String::new();
    let read = io::stdin().lock().read_line(&mut answer);
    match answer.trim().to_lowercase().as_str() {
        "y" | "yes" if read.is_ok() => Ok(()),
        _ => Err(Failure::Declined),
    }
}
