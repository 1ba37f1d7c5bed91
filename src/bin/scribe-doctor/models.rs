// SPDX-License-Identifier: MPL-2.0
//! Models that are here, and whether they are what they say.

use gstscribe::inference::manifest::{Catalog, ModelError, Task};

use crate::report::Report;

/// Adds what is found.
pub fn look(report: &mut Report) {
    report.section("models");
    let catalog = match Catalog::from_env() {
        Ok(catalog) => catalog,
        Err(error) => {
            report.missing(
                "manifest",
                error.to_string(),
                "mend the file, or unset SCRIBE_MANIFEST",
            );
            return;
        }
    };
    let added = catalog.sidecars().into_iter();
    let known = catalog.manifest().entries().iter();
    let here: Vec<_> = known
        .filter_map(|entry| Some((catalog.locate(entry)?, entry.clone())))
        .chain(added)
        .collect();
    for (path, entry) in &here {
        let size = format!("{:.0} MB", entry.total_bytes() as f64 / 1e6);
        // Read once for each state of the file.
        match catalog.resolve(&entry.id, entry.task) {
            Ok(_) => report.ok(
                &entry.id,
                format!(
                    "{size}, {}, {}, digest right, {}",
                    entry.task,
                    entry.licence,
                    path.display()
                ),
            ),
            Err(error) => report.note(
                &entry.id,
                error.to_string(),
                Some(&format!("scribe-models fetch {}", entry.id)),
            ),
        }
    }
    // What a transcriber takes as it comes.
    for task in [Task::Asr, Task::Vad] {
        let name = format!("default for {task}");
        match catalog.resolve("auto", task) {
            Ok(model) => report.ok(&name, model.id),
            Err(error) => report.missing(&name, error.to_string(), remedy(&error)),
        }
    }
    let folders: Vec<String> = catalog
        .places()
        .folders()
        .iter()
        .map(|folder| folder.display().to_string())
        .collect();
    report.ok("searched", folders.join(", "));
}

fn remedy(error: &ModelError) -> String {
    match error {
        ModelError::Missing { id, .. }
        | ModelError::MissingCompanion { id, .. }
        | ModelError::WrongSize { id, .. }
        | ModelError::WrongDigest { id, .. } => format!("scribe-models fetch {id}"),
        _ => "scribe-models fetch --default".into(),
    }
}
