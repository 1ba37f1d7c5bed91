// SPDX-License-Identifier: MPL-2.0
//! `scribe-voices`: looks after a voices store: who is in it, who they are called, how long they stay.

// A program's news goes to stderr.
#![allow(clippy::print_stderr)]

mod commands;
mod failure;
mod keys;
mod pages;
mod print;
mod question;
mod when;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};
use clap_complete::Shell;

use failure::Failure;

const ENVIRONMENT: &str = "\
A VOICE is a name, an id (voice-…), or \"Speaker 7\" for one without a name.

Environment:
  SCRIBE_VOICES           the store, where --voices is not given
  SCRIBE_VOICES_KEY       key of an encrypted store: 64 hexadecimal digits, or base64 of 32 bytes
  SCRIBE_VOICES_KEY_FILE  file with the key

Exit status: 0 done, 1 something failed, 2 wrong use or nobody of that name.";

/// Looks after a voices store: who is in it, what they are called, how long they stay
#[derive(Parser)]
#[command(name = "scribe-voices", version, after_help = ENVIRONMENT)]
struct Arguments {
    #[command(flatten)]
    common: Common,
    #[command(subcommand)]
    command: Command,
}

/// What all commands have in common.
#[derive(Args)]
struct Common {
    /// The store
    #[arg(long, global = true, value_name = "FILE")]
    voices: Option<PathBuf>,
    /// File with the key of an encrypted store
    #[arg(long, global = true, value_name = "FILE")]
    key_file: Option<PathBuf>,
    /// Answer in JSON
    #[arg(long, global = true)]
    json: bool,
    /// Answer every question with yes
    #[arg(long, short, global = true)]
    yes: bool,
}

#[derive(Subcommand)]
enum Command {
    /// Show everybody in the store
    List,
    /// Show all that is known of one voice, but never its vectors
    Show {
        /// Name, id or "Speaker 7"
        voice: String,
    },
    /// Give a voice a name, or another one
    Rename {
        /// Name, id or "Speaker 7"
        voice: String,
        /// The name from now on
        name: String,
    },
    /// Make two voices one person; the id of the first leads to the second from now on
    Merge {
        /// Whose takes go over
        from: String,
        /// Who stays
        into: String,
    },
    /// Write voices as JSON, for another store: names, consents and vectors, readable by anyone
    Export {
        /// Where to, "-" for standard output
        #[arg(default_value = "-")]
        file: PathBuf,
        /// Only this voice; may be given several times
        #[arg(long, value_name = "VOICE")]
        only: Vec<String>,
        /// Overwrite the file
        #[arg(long)]
        force: bool,
    },
    /// Take in what export has written; makes the store if there is none
    Import {
        /// Where from, "-" for standard input
        file: PathBuf,
        /// Take nobody without consent
        #[arg(long)]
        require_consent: bool,
    },
    /// Forget voices: nothing of them stays in the file
    Delete {
        /// Names, ids or "Speaker 7"
        #[arg(required = true, value_name = "VOICE")]
        people: Vec<String>,
    },
    /// Forget everybody whose time is up, or say when that is for one voice
    Expire {
        /// Whose time to set; without it, who has expired is removed
        voice: Option<String>,
        #[command(flatten)]
        term: Term,
        /// Only show who would be removed
        #[arg(long, conflicts_with = "voice")]
        dry_run: bool,
    },
    /// Write down who allowed to keep a voice, when and for what
    Consent {
        /// Name, id or "Speaker 7"
        voice: String,
        /// Who gave it
        #[arg(long, value_name = "PERSON")]
        who: String,
        /// The day it was given
        #[arg(long, value_name = "YYYY-MM-DD")]
        when: String,
        /// For what
        #[arg(long = "for", value_name = "PURPOSE")]
        purpose: String,
    },
    /// Make a key for an encrypted store
    Keygen {
        /// The key's file, which must not be there
        file: PathBuf,
    },
    /// Encrypt a plain store with the key that is given
    Encrypt,
    /// Make an encrypted store plain
    Decrypt,
    /// Encrypt a store with another key
    Rekey {
        /// File with the other key
        #[arg(long, value_name = "FILE")]
        new_key_file: PathBuf,
    },
    /// Read every byte of a store and say whether it is whole; an old one is brought up to date
    Check,
    /// Print completions for a shell
    Completions {
        /// Which
        shell: Shell,
    },
    /// Print the manual page
    Man,
}

/// When a voice is to be forgotten.
#[derive(Args)]
#[group(multiple = false, requires = "voice")]
struct Term {
    /// After so long: 90d, 12w, 3y
    #[arg(long = "in", value_name = "TIME")]
    after: Option<String>,
    /// From this day on
    #[arg(long, value_name = "YYYY-MM-DD")]
    on: Option<String>,
    /// Never
    #[arg(long)]
    never: bool,
}

fn main() -> ExitCode {
    match run(Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("scribe-voices: {failure}");
            ExitCode::from(failure.exit_code())
        }
    }
}

fn run(Arguments { common, command }: Arguments) -> Result<(), Failure> {
    match command {
        Command::List => commands::list(&common),
        Command::Show { voice } => commands::show(&common, &voice),
        Command::Rename { voice, name } => commands::rename(&common, &voice, &name),
        Command::Merge { from, into } => commands::merge(&common, &from, &into),
        Command::Export { file, only, force } => commands::export(&common, &file, &only, force),
        Command::Import {
            file,
            require_consent,
        } => commands::import(&common, &file, require_consent),
        Command::Delete { people } => commands::delete(&common, &people),
        Command::Expire {
            voice: Some(voice),
            term,
            ..
        } => commands::set_expiry(&common, &voice, &term),
        Command::Expire { dry_run, .. } => commands::expire(&common, dry_run),
        Command::Consent {
            voice,
            who,
            when,
            purpose,
        } => commands::consent(&common, &voice, who, when, purpose),
        Command::Keygen { file } => keys::generate(&common, &file),
        Command::Encrypt => keys::encrypt(&common),
        Command::Decrypt => keys::decrypt(&common),
        Command::Rekey { new_key_file } => keys::rekey(&common, &new_key_file),
        Command::Check => commands::check(&common),
        Command::Completions { shell } => pages::completions(shell),
        Command::Man => pages::manual(),
    }
}
