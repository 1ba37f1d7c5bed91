// SPDX-License-Identifier: MPL-2.0
//! `list`, `verify` and `where`: what is here.

use std::path::{Path, PathBuf};
use std::{fs, io};

use gstscribe::inference::manifest::{Catalog, Entry, ModelError, sha256_file};
use indicatif::DecimalBytes;
use serde_json::json;

use crate::failure::Failure;
use crate::fetch;
use crate::store::Expected;

/// A model in the list.
struct Row {
    entry: Entry,
    place: Option<PathBuf>,
}

/// `scribe-models list`.
pub fn list(catalog: &Catalog, as_json: bool) -> Result<(), Failure> {
    let rows = rows(catalog);
    if as_json {
        let default = catalog.manifest().default_asr();
        let models: Vec<_> = rows.iter().map(|row| row_as_json(row, default)).collect();
        crate::answer(format_args!(
            "{:#}",
            json!({ "models": models, "folders": catalog.places().folders() })
        ));
        return Ok(());
    }
    let id_width = rows.iter().map(|row| row.entry.id.len()).max().unwrap_or(0);
    let licence_width = rows
        .iter()
        .map(|row| row.entry.licence.len())
        .max()
        .unwrap_or(0);
    crate::answer(format_args!(
        "{:id_width$}  {:12}  {:>9}  {:licence_width$}  HERE",
        "ID", "TASK", "SIZE", "LICENCE"
    ));
    for Row { entry, place } in &rows {
        let size = DecimalBytes(entry.total_bytes()).to_string();
        let place = place
            .as_ref()
            .map_or("-".into(), |path| path.display().to_string());
        crate::answer(format_args!(
            "{:id_width$}  {:12}  {size:>9}  {:licence_width$}  {place}",
            entry.id,
            entry.task.word(),
            entry.licence
        ));
    }
    Ok(())
}

fn row_as_json(Row { entry, place }: &Row, default: &str) -> serde_json::Value {
    let companions: Vec<_> = entry
        .companions
        .iter()
        .map(
            |other| json!({ "file": other.file, "size": other.size_bytes, "sha256": other.sha256 }),
        )
        .collect();
    json!({
        "id": entry.id,
        "names": entry.names(),
        "task": entry.task,
        "engine": entry.engine,
        "file": entry.file,
        "size": entry.size_bytes,
        "sha256": entry.sha256,
        "companions": companions,
        "licence": entry.licence,
        "attribution": entry.attribution,
        "default": entry.id == default,
        "path": place,
    })
}

/// The manifest's models, then those that users have added.
fn rows(catalog: &Catalog) -> Vec<Row> {
    let known = catalog.manifest().entries().iter().map(|entry| Row {
        entry: entry.clone(),
        place: catalog.locate(entry),
    });
    let added = catalog.sidecars().into_iter().map(|(path, entry)| Row {
        entry,
        place: Some(path),
    });
    known.chain(added).collect()
}

/// `scribe-models verify`: reads every byte, whatever is remembered of the files.
pub fn verify(catalog: &Catalog, names: &[String], dir: Option<&Path>) -> Result<(), Failure> {
    let rows = match names {
        [] => rows(catalog),
        names => names
            .iter()
            .map(|name| row_named(catalog, name))
            .collect::<Result<_, _>>()?,
    };
    let (mut checked, mut failed) = (0, 0);
    for Row { entry, place } in rows {
        let place = match dir {
            Some(dir) => Some(dir.join(&entry.file)).filter(|path| path.is_file()),
            None => place,
        };
        if place.is_none() && names.is_empty() {
            continue;
        }
        checked += 1;
        match check(catalog, &entry, place) {
            Ok(path) => crate::answer(format_args!("ok       {}  {}", entry.id, path.display())),
            Err(failure) => {
                failed += 1;
                crate::answer(format_args!("FAILED   {}  {failure}", entry.id));
            }
        }
    }
    match (checked, failed) {
        (0, _) => Err(Failure::Input(
            "there is no model to verify: `scribe-models fetch --default` gets some".into(),
        )),
        (_, 0) => Ok(()),
        (all, failed) => Err(Failure::Some { failed, all }),
    }
}

fn check(catalog: &Catalog, entry: &Entry, place: Option<PathBuf>) -> Result<PathBuf, Failure> {
    let id = entry.id.clone();
    let Some(path) = place else {
        return Err(ModelError::Missing {
            id,
            present: Vec::new(),
            folders: catalog.places().folders(),
        }
        .into());
    };
    for (n, file) in Expected::files_of(entry).iter().enumerate() {
        match n {
            0 => check_file(&path, &id, file)?,
            _ => check_file(&path.with_file_name(file.name), &id, file)?,
        }
    }
    Ok(path)
}

fn check_file(path: &Path, id: &str, expected: &Expected<'_>) -> Result<(), ModelError> {
    let (path, id) = (path.to_owned(), id.to_owned());
    let unreadable = |source: io::Error| match source.kind() {
        io::ErrorKind::NotFound => ModelError::MissingCompanion {
            path: path.clone(),
            id: id.clone(),
        },
        _ => ModelError::Read {
            path: path.clone(),
            source,
        },
    };
    let actual_bytes = fs::metadata(&path).map_err(unreadable)?.len();
    if actual_bytes != expected.size_bytes {
        return Err(ModelError::WrongSize {
            path,
            id,
            expected_bytes: expected.size_bytes,
            actual_bytes,
        });
    }
    let actual = sha256_file(&path).map_err(unreadable)?;
    if actual != expected.sha256 {
        return Err(ModelError::WrongDigest {
            path,
            id,
            expected: expected.sha256.to_owned(),
            actual,
        });
    }
    Ok(())
}

/// `scribe-models where`.
pub fn place_of(catalog: &Catalog, name: &str) -> Result<(), Failure> {
    let Row { entry, place } = row_named(catalog, name)?;
    let missing = || ModelError::Missing {
        id: entry.id,
        present: Vec::new(),
        folders: catalog.places().folders(),
    };
    crate::answer(format_args!("{}", place.ok_or_else(missing)?.display()));
    Ok(())
}

fn row_named(catalog: &Catalog, name: &str) -> Result<Row, Failure> {
    if let Some(row) = catalog
        .sidecars()
        .into_iter()
        .find(|(_, entry)| entry.names().contains(&name))
    {
        return Ok(Row {
            entry: row.1,
            place: Some(row.0),
        });
    }
    let entry = fetch::known(catalog, name)?.clone();
    let place = catalog.locate(&entry);
    Ok(Row { entry, place })
}
