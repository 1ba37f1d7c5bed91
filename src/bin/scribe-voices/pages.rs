// SPDX-License-Identifier: MPL-2.0
//! What is made from the description of the command line: completions and the manual page.

use std::io::{self, Write};

use clap::CommandFactory;
use clap_complete::Shell;
use clap_mangen::Man;

use crate::Arguments;
use crate::failure::Failure;
use crate::print::answer;

/// `scribe-voices completions`.
pub fn completions(shell: Shell) -> Result<(), Failure> {
    let mut text = Vec::new();
    clap_complete::generate(shell, &mut Arguments::command(), "scribe-voices", &mut text);
    answer(String::from_utf8_lossy(&text).trim_end());
    Ok(())
}

/// `scribe-voices man`: one page, the commands with their options in it.
pub fn manual() -> Result<(), Failure> {
    let page =
        page().map_err(|source| Failure::file("make", "the manual page".as_ref(), source))?;
    answer(String::from_utf8_lossy(&page).trim_end());
    Ok(())
}

fn page() -> io::Result<Vec<u8>> {
    let command = Arguments::command();
    let mut page = Vec::new();
    let man = Man::new(command.clone()).manual("scribe");
    man.render_title(&mut page)?;
    man.render_name_section(&mut page)?;
    man.render_synopsis_section(&mut page)?;
    man.render_description_section(&mut page)?;
    man.render_options_section(&mut page)?;
    writeln!(page, ".SH COMMANDS")?;
    for sub in command.get_subcommands() {
        let name = sub.get_name();
        let about = sub.get_about().map(ToString::to_string).unwrap_or_default();
        writeln!(page, ".SS {name}\n{about}\n.PP")?;
        // What all have in common is not said again: it comes to a command when it is built, and this one is not.
        let own = sub.clone().disable_help_flag(true);
        let man = Man::new(own.bin_name(format!("scribe-voices {name}")));
        let mut part = Vec::new();
        man.render_synopsis_section(&mut part)?;
        man.render_options_section(&mut part)?;
        // Headings of their own would end the section.
        let part = String::from_utf8_lossy(&part).into_owned();
        for line in part.lines().filter(|line| !line.starts_with(".SH")) {
            writeln!(page, "{line}")?;
        }
    }
    man.render_extra_section(&mut page)?;
    man.render_version_section(&mut page)?;
    Ok(page)
}
