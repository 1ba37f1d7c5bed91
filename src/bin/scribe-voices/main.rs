// SPDX-License-Identifier: MPL-2.0
//! `scribe-voices`: the voices store from the shell.

fn main() {}
