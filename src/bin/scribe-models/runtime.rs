// SPDX-License-Identifier: MPL-2.0
//! `scribe-models runtime`: ONNX Runtime's shared library and what belongs to it, out of Python wheels.

use std::env::consts::ARCH;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use gstscribe::inference::manifest::{Catalog, Library};

use crate::archive;
use crate::failure::{Failure, Trouble};
use crate::fetch::{Fetcher, trouble};
use crate::settings::Settings;
use crate::store::{self, Expected, Lock};

/// Puts the library into the settings' folder under its full name, with a link of the name that programs ask for, and
/// beside it what it opens and is linked with.
pub fn install(
    catalog: &Catalog,
    settings: &Settings,
    provider: Option<&str>,
) -> Result<(), Failure> {
    let runtime = catalog.manifest().runtime(ARCH, provider).ok_or_else(|| {
        let on = provider.map(|p| format!(" with the provider {p}")).unwrap_or_default();
        Failure::Input(format!(
            "no ONNX Runtime{on} is known for {ARCH}: install one and name its library in SCRIBE_ORT_LIB"
        ))
    })?;
    // One for all: archives stay until it goes.
    let fetcher = Fetcher::new(settings);
    // The library itself comes last: where it is, the others are.
    for library in runtime.libraries.iter().chain([&runtime.library]) {
        let place = settings.dir.join(&library.file);
        let expected = Expected {
            name: &library.file,
            size_bytes: library.size_bytes,
            sha256: &library.sha256,
        };
        if !expected.is_at(&place)? {
            let lock = Lock::wait(&settings.work_dir(), &library.file)?;
            get(settings, &fetcher, library, &expected, &place)?;
            drop(lock);
        }
    }
    drop(fetcher);
    let _ = fs::remove_dir(settings.work_dir());
    link(&settings.dir.join(&runtime.soname), &runtime.library.file)?;
    crate::answer(format_args!(
        "onnxruntime {}  {}",
        runtime.library.package.version,
        settings.dir.join(&runtime.library.file).display()
    ));
    Ok(())
}

/// Where the library goes: to the folder named, else beside the repository's plugin, else to the user's own folder. One with
/// a provider goes where GStreamer does not look for plugins.
pub fn target_dir(
    catalog: &Catalog,
    dir: Option<PathBuf>,
    provider: Option<&str>,
) -> Result<PathBuf, Failure> {
    let places = catalog.places();
    let in_repository = || {
        places.repository().map(|repo| match provider {
            Some(provider) => repo.join("target/scribe").join(provider),
            None => repo.join("target/release/scribe"),
        })
    };
    let of_user = || {
        let home = places.data_home.as_ref()?.join("scribe/lib");
        Some(match provider {
            Some(provider) => home.join(provider),
            None => home,
        })
    };
    let folder = dir.or_else(in_repository).or_else(of_user);
    folder
        .ok_or_else(|| Failure::Usage("there is no home folder: say where the library goes".into()))
}

fn get(
    settings: &Settings,
    fetcher: &Fetcher<'_>,
    library: &Library,
    expected: &Expected<'_>,
    place: &Path,
) -> Result<(), Failure> {
    let part = settings.work_dir().join(format!("{}.part", library.file));
    let taken = take(settings, fetcher, library, expected, &part);
    if taken.is_err() {
        store::remove(&part);
    }
    taken.map_err(|trouble| match trouble {
        Trouble::Local(failure) => failure,
        Trouble::Source(reason) => {
            let package = &library.package;
            let what = format!("{} {}", library.file, package.version);
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
    fetcher: &Fetcher<'_>,
    library: &Library,
    expected: &Expected<'_>,
    part: &Path,
) -> Result<(), Trouble> {
    if let Some(file) = settings
        .from
        .as_deref()
        .map(|from| from.join(&library.file))
        .filter(|file| file.is_file())
    {
        match store::copy_checked(&file, part, expected)? {
            None => return Ok(()),
            Some(difference) => eprintln!("{}: {difference}; left aside", file.display()),
        }
    }
    let wheel = fetcher.archive(&library.package)?;
    archive::extract(&wheel.path, &library.member, part).map_err(|err| trouble(err, part))?;
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
