// SPDX-License-Identifier: MPL-2.0
//! What is done with voices.

use std::env;
use std::fs::{self, File, OpenOptions as FileOptions};
use std::io::{self, Read};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use gstscribe::voices::{
    Consent, Key, OpenOptions, Problem, Purge, Store, StoreError, VoiceId, time_text,
};
use jiff::Timestamp;
use rustix::fs::{CWD, RenameFlags, renameat_with};
use serde_json::json;

use crate::failure::Failure;
use crate::print::{
    answer, count, json_of, json_of_removed, json_of_take, table_of, text_of, visible,
};
use crate::question::ask;
use crate::{Common, Term, when};

/// `scribe-voices list`.
pub fn list(common: &Common) -> Result<(), Failure> {
    let store = open_to_read(common)?;
    let voices = store.voices()?;
    let expired = store.expired(now())?;
    if common.json {
        let voices: Vec<_> = voices.iter().map(json_of).collect();
        answer(format_args!("{:#}", json!(voices)));
    } else if voices.is_empty() {
        answer("nobody is in the store");
    } else {
        answer(table_of(&voices));
    }
    let still_there = match expired.len() {
        0 => return Ok(()),
        1 => "1 voice has expired and is still in the file".to_owned(),
        number => format!("{number} voices have expired and are still in the file"),
    };
    eprintln!("scribe-voices: {still_there}: `scribe-voices expire` removes what has expired");
    Ok(())
}

/// `scribe-voices show`.
pub fn show(common: &Common, who: &str) -> Result<(), Failure> {
    let store = open_to_read(common)?;
    let voice = store.find(who)?;
    let former_ids = store.former_ids(voice.id)?;
    let former_ids: Vec<_> = former_ids.iter().map(VoiceId::to_string).collect();
    if common.json {
        let mut shown = json_of(&voice);
        shown["former_ids"] = json!(former_ids);
        shown["recordings"] = voice.takes.iter().map(json_of_take).collect();
        answer(format_args!("{shown:#}"));
    } else {
        answer(text_of(&voice, &former_ids));
    }
    Ok(())
}

/// `scribe-voices rename`.
pub fn rename(common: &Common, who: &str, name: &str) -> Result<(), Failure> {
    let mut store = open_to_write(common)?;
    let voice = store.find(who)?;
    store.rename(voice.id, name)?;
    let renamed = store.find(&voice.id.to_string())?;
    if common.json {
        answer(format_args!("{:#}", json_of(&renamed)));
    } else {
        let (from, to) = (visible(&voice.label()), visible(&renamed.label()));
        answer(format_args!("{from} is {to} now ({})", voice.id));
    }
    Ok(())
}

/// `scribe-voices merge`.
pub fn merge(common: &Common, from: &str, into: &str) -> Result<(), Failure> {
    let mut store = open_to_write(common)?;
    let (from, into) = (store.find(from)?, store.find(into)?);
    let (was, is) = (visible(&from.label()), visible(&into.label()));
    if from.id != into.id {
        ask(
            common,
            &format!(
                "{was} ({}) and {is} ({}) become one voice, which cannot be undone. Merge them?",
                from.id, into.id
            ),
        )?;
    }
    let left_out = store.merge(from.id, into.id, true)?;
    let merged = store.find(&into.id.to_string())?;
    if common.json {
        answer(format_args!("{:#}", json_of(&merged)));
    } else {
        answer(format_args!(
            "{was} is {} now, known from {}",
            visible(&merged.label()),
            count(merged.takes.len(), "take")
        ));
    }
    if left_out > 0 {
        eprintln!(
            "scribe-voices: {} with the least speech had no room",
            count(left_out, "take")
        );
    }
    Ok(())
}

/// `scribe-voices export`.
pub fn export(common: &Common, file: &Path, only: &[String], force: bool) -> Result<(), Failure> {
    let store = open_to_read(common)?;
    let ids = only.iter().map(|who| Ok(store.find(who)?.id));
    let ids: Vec<_> = ids.collect::<Result<_, Failure>>()?;
    let only = (!ids.is_empty()).then_some(&ids[..]);
    if file == Path::new("-") {
        store.export(only, &mut io::BufWriter::new(io::stdout().lock()))?;
        return Ok(());
    }
    let failed = |source| Failure::file("write", file, source);
    if file.exists() && !force {
        return Err(Failure::Usage(format!(
            "{} is there already: --force overwrites it",
            file.display()
        )));
    }
    // Whole under its name, or not there at all.
    let part = beside(file, &format!(".part-{}", std::process::id()));
    let written: Result<_, Failure> = (|| {
        let part_file = FileOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&part)
            .map_err(failed)?;
        let exported = store.export(only, &mut io::BufWriter::new(&part_file))?;
        part_file.sync_all().map_err(failed)?;
        if force {
            fs::rename(&part, file).map_err(failed)?;
        } else {
            // Fails if somebody else has put a file there meanwhile.
            let put = renameat_with(CWD, &part, CWD, file, RenameFlags::NOREPLACE);
            put.map_err(|err| failed(err.into()))?;
        }
        Ok(exported)
    })();
    if written.is_err() {
        let _ = fs::remove_file(&part);
    }
    let exported = written?;
    if common.json {
        answer(format_args!(
            "{:#}",
            json!({ "exported": exported, "file": file })
        ));
    } else {
        answer(format_args!(
            "{} in {}: not encrypted, keep it as safe as the people would",
            count(exported, "voice"),
            file.display()
        ));
    }
    Ok(())
}

/// `scribe-voices import`.
pub fn import(common: &Common, file: &Path, require_consent: bool) -> Result<(), Failure> {
    let mut from: Box<dyn Read> = if file == Path::new("-") {
        Box::new(io::stdin().lock())
    } else {
        let opened = File::open(file);
        Box::new(opened.map_err(|source| Failure::file("read", file, source))?)
    };
    let options = OpenOptions {
        create: true,
        require_consent,
        key: Key::find(common.key_file.as_deref())?,
        ..OpenOptions::default()
    };
    let imported = Store::open(&store_path(common)?, &options)?.import(&mut from)?;
    if common.json {
        answer(format_args!(
            "{:#}",
            json!({
                "voices_new": imported.voices_new,
                "voices_known": imported.voices_known,
                "takes_new": imported.takes_new,
                "takes_known": imported.takes_known,
                "takes_left_out": imported.takes_left_out,
                "expired": imported.expired,
            })
        ));
        return Ok(());
    }
    answer(format_args!(
        "{} and {} are new, {} were known",
        count(imported.voices_new, "voice"),
        count(imported.takes_new, "take"),
        count(imported.voices_known, "voice")
    ));
    for (number, why) in [
        (imported.takes_left_out, "takes had no room"),
        (imported.expired, "voices have expired and were not taken"),
    ] {
        if number > 0 {
            eprintln!("scribe-voices: {number} {why}");
        }
    }
    Ok(())
}

/// `scribe-voices delete`.
pub fn delete(common: &Common, people: &[String]) -> Result<(), Failure> {
    let mut store = open_to_write(common)?;
    let mut going = Vec::new();
    for who in people {
        let (id, label) = whom_to_delete(&store, who)?;
        if going.iter().all(|(other, _)| *other != id) {
            going.push((id, label));
        }
    }
    let labels: Vec<_> = going
        .iter()
        .map(|(id, label)| format!("{label} ({id})"))
        .collect();
    ask(
        common,
        &format!("{} will be forgotten for good. Delete?", labels.join(", ")),
    )?;
    let path = store.path().to_owned();
    let mut purge = Purge::Done;
    for (id, _) in &going {
        purge = store.delete(*id)?;
    }
    after_deletion(&path, &purge);
    if common.json {
        let ids: Vec<_> = going.iter().map(|(id, _)| id.to_string()).collect();
        let is_purged = purge == Purge::Done;
        answer(format_args!(
            "{:#}",
            json!({ "deleted": ids, "purged": is_purged })
        ));
    } else {
        answer(format_args!("deleted {}", labels.join(", ")));
    }
    Ok(())
}

/// Who is meant, also who has expired, or whose row does not open any more and who is named by an id.
fn whom_to_delete(store: &Store, who: &str) -> Result<(VoiceId, String), Failure> {
    let id = store.find_id(who)?;
    match store.find(&id.to_string()) {
        Ok(voice) => Ok((id, visible(&voice.label()))),
        Err(StoreError {
            problem: Problem::Expired { who },
            ..
        }) => Ok((id, visible(&who))),
        Err(StoreError {
            problem: Problem::Damaged(_),
            ..
        }) => Ok((id, "a damaged voice".into())),
        Err(error) => Err(error.into()),
    }
}

/// `scribe-voices expire` without a voice.
pub fn expire(common: &Common, is_dry_run: bool) -> Result<(), Failure> {
    let (gone, purge) = if is_dry_run {
        (open_to_read(common)?.expired(now())?, Purge::Done)
    } else {
        open_to_write(common)?.expire(now())?
    };
    if !is_dry_run && !gone.is_empty() {
        after_deletion(&store_path(common)?, &purge);
    }
    if common.json {
        let people: Vec<_> = gone.iter().map(json_of_removed).collect();
        let word = if is_dry_run {
            "would_remove"
        } else {
            "removed"
        };
        answer(format_args!("{:#}", json!({ word: people })));
        return Ok(());
    }
    let word = if is_dry_run {
        "would remove"
    } else {
        "removed"
    };
    for voice in &gone {
        answer(format_args!(
            "{word} {} ({}), expired {}",
            visible(&voice.label),
            voice.id,
            voice.expires.map_or(String::new(), time_text)
        ));
    }
    if gone.is_empty() {
        answer("nobody has expired");
    }
    Ok(())
}

/// `scribe-voices expire VOICE`.
pub fn set_expiry(common: &Common, who: &str, term: &Term) -> Result<(), Failure> {
    let expires = when::term(term, Timestamp::now())?;
    let mut store = open_to_write(common)?;
    let voice = store.find(who)?;
    store.set_expiry(voice.id, expires)?;
    if common.json {
        let id = voice.id.to_string();
        answer(format_args!(
            "{:#}",
            json!({ "id": id, "expires": expires.map(time_text) })
        ));
    } else {
        let label = visible(&voice.label());
        match expires {
            Some(at) => answer(format_args!("{label} expires {}", time_text(at))),
            None => answer(format_args!("{label} never expires")),
        }
    }
    Ok(())
}

/// `scribe-voices consent`.
pub fn consent(
    common: &Common,
    voice: &str,
    who: String,
    when: String,
    purpose: String,
) -> Result<(), Failure> {
    let mut store = open_to_write(common)?;
    let voice = store.find(voice)?;
    store.set_consent(voice.id, Consent { who, when, purpose })?;
    let voice = store.find(&voice.id.to_string())?;
    if common.json {
        answer(format_args!("{:#}", json_of(&voice)));
    } else {
        let label = visible(&voice.label());
        answer(format_args!("the consent for {label} is written down"));
    }
    Ok(())
}

/// `scribe-voices check`.
pub fn check(common: &Common) -> Result<(), Failure> {
    let path = store_path(common)?;
    let store = match open_to_write(common) {
        Err(Failure::Store(StoreError {
            problem: Problem::ReadOnly | Problem::NoCompanions,
            ..
        })) => open_to_read(common)?,
        opened => opened?,
    };
    let checked = store.check()?;
    let mode = fs::metadata(&path).map(|m| m.permissions().mode() & 0o777);
    let mode = mode.map_err(|source| Failure::file("look at", &path, source))?;
    let model = store.model()?;
    if common.json {
        answer(format_args!(
            "{:#}",
            json!({
                "voices": checked.voices,
                "takes": checked.takes,
                "expired": checked.expired,
                "encrypted": checked.is_sealed,
                "version": checked.version,
                "mode": format!("{mode:04o}"),
                "model": model.map(|m| json!({ "name": m.name, "version": m.version, "dimension": m.dimension })),
            })
        ));
    } else {
        let kind = if checked.is_sealed {
            "encrypted"
        } else {
            "not encrypted"
        };
        answer(format_args!(
            "{} is whole: {}, {}, {} expired; version {}, {kind}",
            path.display(),
            count(checked.voices, "voice"),
            count(checked.takes, "take"),
            checked.expired,
            checked.version
        ));
        if let Some(model) = model {
            answer(format_args!("model: {}", visible(&model.to_string())));
        }
    }
    if mode & 0o077 != 0 {
        eprintln!(
            "scribe-voices: others than its owner may use the file (mode {mode:04o}): chmod 600 {}",
            path.display()
        );
    }
    Ok(())
}

/// The store that was named.
pub fn store_path(common: &Common) -> Result<PathBuf, Failure> {
    let from_env = || env::var_os("SCRIBE_VOICES").filter(|v| !v.is_empty());
    common
        .voices
        .clone()
        .or_else(|| from_env().map(PathBuf::from))
        .ok_or_else(|| {
            Failure::Usage(
                "say which store: --voices voices.db, or the variable SCRIBE_VOICES".into(),
            )
        })
}

/// Says what deleting has not reached.
pub fn after_deletion(path: &Path, purge: &Purge) {
    if let Purge::Pending(why) = purge {
        eprintln!(
            "scribe-voices: deleted, and nobody finds it any more, but its bytes may still be in the file: {why}. They go \
             when a command that changes something next opens the store"
        );
    }
    let backups = backups_of(path);
    if !backups.is_empty() {
        eprintln!(
            "scribe-voices: these backups still hold what was there before: {}",
            backups.join(", ")
        );
    }
}

/// Files named like the store that end in `.bak`.
fn backups_of(path: &Path) -> Vec<String> {
    let real = fs::canonicalize(path).unwrap_or_else(|_| path.into());
    let (Some(folder), Some(name)) = (real.parent(), real.file_name()) else {
        return Vec::new();
    };
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let is_backup = |other: &std::ffi::OsStr| {
        let (other, name) = (other.as_encoded_bytes(), name.as_encoded_bytes());
        other.starts_with(name) && other.ends_with(b".bak")
    };
    let mut backups: Vec<_> = entries
        .filter(|entry| is_backup(&entry.file_name()))
        .map(|entry| entry.path().display().to_string())
        .collect();
    backups.sort();
    backups
}

fn open_to_read(common: &Common) -> Result<Store, Failure> {
    open(common, true)
}

fn open_to_write(common: &Common) -> Result<Store, Failure> {
    open(common, false)
}

fn open(common: &Common, read_only: bool) -> Result<Store, Failure> {
    let path = store_path(common)?;
    let options = OpenOptions {
        read_only,
        key: Key::find(common.key_file.as_deref())?,
        ..OpenOptions::default()
    };
    Ok(Store::open(&path, &options)?)
}

fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut text = path.as_os_str().to_owned();
    text.push(suffix);
    text.into()
}

fn now() -> u64 {
    u64::try_from(Timestamp::now().as_second()).unwrap_or_default()
}
