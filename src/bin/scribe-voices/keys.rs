// SPDX-License-Identifier: MPL-2.0
//! Keys, and what a store is encrypted with.

use std::fs::OpenOptions as FileOptions;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use gstscribe::voices::{Key, OpenOptions, Store};
use serde_json::json;

use crate::Common;
use crate::commands::{after_deletion, store_path};
use crate::failure::Failure;
use crate::print::answer;
use crate::question::ask;

/// `scribe-voices keygen`.
pub fn generate(common: &Common, file: &Path) -> Result<(), Failure> {
    let failed = |source| Failure::file("write the key", file, source);
    let key = Key::random()?;
    let mut written = FileOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(file)
        .map_err(failed)?;
    let text = key.to_text();
    written.write_all(text.as_bytes()).map_err(failed)?;
    written.write_all(b"\n").map_err(failed)?;
    written.sync_all().map_err(failed)?;
    if common.json {
        answer(format_args!("{:#}", json!({ "key_file": file })));
    } else {
        answer(format_args!(
            "{} holds a new key. Who loses it loses the voices: keep a copy elsewhere, and not beside the store",
            file.display()
        ));
    }
    Ok(())
}

/// `scribe-voices encrypt`.
pub fn encrypt(common: &Common) -> Result<(), Failure> {
    let key = given_key(common)?;
    let path = store_path(common)?;
    // Without a key: what is encrypted already is not opened by mistake with the new one.
    let mut store = Store::open(&path, &OpenOptions::default()).map_err(|mut error| {
        if matches!(error.problem, gstscribe::voices::Problem::NeedsKey) {
            error.problem = gstscribe::voices::Problem::IsSealed;
        }
        error
    })?;
    after_deletion(&path, &store.reseal(Some(&key))?);
    done(common, "encrypted", &path);
    Ok(())
}

/// `scribe-voices decrypt`.
pub fn decrypt(common: &Common) -> Result<(), Failure> {
    let path = store_path(common)?;
    let mut store = Store::open(&path, &with_key(given_key(common)?))?;
    ask(
        common,
        "Anyone who can read the file will then have names and voiceprints. Decrypt it?",
    )?;
    after_deletion(&path, &store.reseal(None)?);
    done(common, "decrypted", &path);
    Ok(())
}

/// `scribe-voices rekey`.
pub fn rekey(common: &Common, new_key_file: &Path) -> Result<(), Failure> {
    let new = Key::read(new_key_file)?;
    let path = store_path(common)?;
    let mut store = Store::open(&path, &with_key(given_key(common)?))?;
    after_deletion(&path, &store.reseal(Some(&new))?);
    done(common, "rekeyed", &path);
    Ok(())
}

fn with_key(key: Key) -> OpenOptions {
    OpenOptions {
        key: Some(key),
        ..OpenOptions::default()
    }
}

fn given_key(common: &Common) -> Result<Key, Failure> {
    Key::find(common.key_file.as_deref())?.ok_or_else(|| {
        Failure::Usage(
            "no key was given: --key-file FILE, SCRIBE_VOICES_KEY or SCRIBE_VOICES_KEY_FILE; `scribe-voices keygen FILE` makes one"
                .into(),
        )
    })
}

fn done(common: &Common, what: &str, path: &Path) {
    if common.json {
        answer(format_args!("{:#}", json!({ what: path })));
    } else {
        answer(format_args!("{what} {}", path.display()));
    }
}
