// SPDX-License-Identifier: MPL-2.0
//! `scribe-models runtime`: ONNX Runtime's shared library, out of its Python wheel.

use std::env::consts::ARCH;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use gstscribe::inference::manifest::{Catalog, Runtime};

use crate::archive;
use crate::failure::{Failure, Trouble};
use crate::fetch::{Fetcher, trouble};
use crate::settings::Settings;
use crate::store::{self, Expected, Lock};

/// Puts the library into the settings' folder under its full name, with a link of the name that
/// programs ask for.
pub fn install(catalog: &Catalog, settings: &Settings) -> Result<(), Failure> {
    let runtime = catalog.manifest().runtime(ARCH).ok_or_else(|| {
        Failure::Input(format!("no ONNX Runtime is known for {ARCH}: install one and name its library in SCRIBE_ORT_LIB"))
    })?;
    let place = settings.dir.join(&runtime.file);
    let expected = Expected {
        name: &runtime.file,
        size_bytes: runtime.size_bytes,
        sha256: &runtime.sha256,
    };
    if !expected.is_at(&place)? {
        let lock = Lock::wait(&settings.work_dir(), &runtime.file)?;
        get(settings, runtime, &expected, &place)?;
        drop(lock);
        let _ = fs::remove_dir(settings.work_dir());
    }
    link(&settings.dir.join(&runtime.soname), &runtime.file)?;
    crate::answer(format_args!(
        "onnxruntime {}  {}",
        runtime.package.version,
        place.display()
    ));
    Ok(())
}

/// Where the library goes: to the folder named, else beside the repository's plugin, else to the
/// user's own folder.
pub fn target_dir(catalog: &Catalog, dir: Option<PathBuf>) -> Result<PathBuf, Failure> {
    let places = catalog.places();
    let in_repository = || {
        places
            .repository()
            .map(|repo| repo.join("target/release/scribe"))
    };
    let of_user = || {
        places
            .data_home
            .as_ref()
            .map(|home| home.join("scribe/lib"))
    };
    let folder = dir.or_else(in_repository).or_else(of_user);
    folder
        .ok_or_else(|| Failure::Usage("there is no home folder: say where the library goes".into()))
}

fn get(
    settings: &Settings,
    runtime: &Runtime,
    expected: &Expected<'_>,
    place: &Path,
) -> Result<(), Failure> {
    let part = settings.work_dir().join(format!("{}.part", runtime.file));
    let taken = take(settings, runtime, expected, &part);
    if taken.is_err() {
        store::remove(&part);
    }
    taken.map_err(|trouble| match trouble {
        Trouble::Local(failure) => failure,
        Trouble::Source(reason) => {
            let package = &runtime.package;
            let what = format!("ONNX Runtime {}", package.version);
            Failure::NoSource {
                what,
                reasons: vec![format!(
                    "PyPI, {} {}: {reason}",
                    package.name, package.version
                )],
            }
        }
    })?;
    store::put_in_place(&part, place)
}

fn take(
    settings: &Settings,
    runtime: &Runtime,
    expected: &Expected<'_>,
    part: &Path,
) -> Result<(), Trouble> {
    if let Some(file) = settings
        .from
        .as_deref()
        .map(|from| from.join(&runtime.file))
        .filter(|file| file.is_file())
    {
        match store::copy_checked(&file, part, expected)? {
            None => return Ok(()),
            Some(difference) => eprintln!("{}: {difference}; left aside", file.display()),
        }
    }
    let fetcher = Fetcher::new(settings);
    let wheel = fetcher.archive(&runtime.package)?;
    archive::extract(&wheel.path, &runtime.member, part).map_err(|err| trouble(err, part))?;
    match expected.difference(part)? {
        None => Ok(()),
        Some(difference) => Err(Trouble::Source(format!(
            "what came out of it is another file: {difference}"
        ))),
    }
}

fn link(link: &Path, target: &str) -> Result<(), Failure> {
    if fs::read_link(link).is_ok_and(|now| now == Path::new(target)) {
        return Ok(());
    }
    let new = link.with_extension("new");
    store::remove(&new);
    symlink(target, &new)
        .and_then(|()| fs::rename(&new, link))
        .map_err(|err| Failure::file("make the link", link, err))
}
