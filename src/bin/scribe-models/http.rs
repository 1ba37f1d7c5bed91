// SPDX-License-Identifier: MPL-2.0
//! One file over HTTP: resumed after a broken connection, also one of an earlier run of the
//! program, and compared with its length and digest before anybody sees it.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use ureq::http::{HeaderName, Response, StatusCode, header};
use ureq::tls::{RootCerts, TlsConfig};
use ureq::{Agent, Body, ResponseExt};

use crate::failure::{Failure, Trouble};
use crate::progress::Progress;
use crate::settings::Settings;
use crate::store::{self, Expected};

const USER_AGENT: &str = concat!("scribe-models/", env!("CARGO_PKG_VERSION"));
/// A page of a package index is far shorter.
const PAGE_BYTES_MAX: u64 = 64 << 20;
/// A connection that brought this much counts as working: the retries begin anew.
const FRUITFUL_BYTES: u64 = 1 << 20;
const FIRST_PAUSE: Duration = Duration::from_millis(500);
const PAUSE_MAX: Duration = Duration::from_secs(8);
const PAUSE_ASKED_FOR_MAX: Duration = Duration::from_secs(30);

/// Our side of HTTP.
pub struct Web {
    agent: Agent,
    retries: u32,
    offline: bool,
}

/// A page of text.
pub struct Page {
    /// Where it came from, after redirects.
    pub url: String,
    /// What the server says it is.
    pub content_type: String,
    /// The page itself.
    pub text: String,
}

/// What a hub says of a file before it sends it.
pub struct Announced {
    /// Its SHA-256, of a file that is kept apart from the repository.
    pub sha256: Option<String>,
    /// Its length.
    pub size_bytes: Option<u64>,
    /// The commit that was asked for.
    pub commit: Option<String>,
}

/// Why one request did not bring what it should.
enum Setback {
    /// Worth another try, perhaps after the pause that the server asks for.
    Broken(String, Option<Duration>),
    /// Not worth one.
    Final(Trouble),
}

impl From<Failure> for Setback {
    fn from(failure: Failure) -> Self {
        Self::Final(failure.into())
    }
}

fn refused(reason: impl Into<String>) -> Setback {
    Setback::Final(Trouble::Source(reason.into()))
}

fn broken(reason: impl Into<String>) -> Setback {
    Setback::Broken(reason.into(), None)
}

impl Web {
    /// With the certificates and proxies of this machine.
    pub fn new(settings: &Settings) -> Self {
        let config = Agent::config_builder()
            .user_agent(USER_AGENT)
            // Lengths are compared, so nobody may compress on the way.
            .accept_encoding("identity")
            .http_status_as_error(false)
            .tls_config(
                TlsConfig::builder()
                    .root_certs(RootCerts::PlatformVerifier)
                    .build(),
            )
            .timeout_resolve(Some(settings.timeout))
            .timeout_connect(Some(settings.timeout))
            .timeout_recv_response(Some(settings.timeout))
            // For each read: a slow download of hours is fine, a silent one is not.
            .timeout_per_read(Some(settings.timeout))
            .build();
        Self {
            agent: config.into(),
            retries: settings.retries,
            offline: settings.offline,
        }
    }

    /// Gets a page, such as the list of a package's files.
    pub fn page(&self, url: &str, accept: &str) -> Result<Page, Trouble> {
        self.check_online()?;
        let mut patience = Patience::new(self.retries);
        loop {
            match self.page_once(url, accept) {
                Ok(page) => return Ok(page),
                Err(setback) => thread::sleep(patience.after(setback)?.0),
            }
        }
    }

    /// Gets a file to `part`, going on after what is there already.
    ///
    /// On success `part` is as expected. On failure what is left there may be gone on with later;
    /// wrong bytes are never left.
    pub fn download(&self, url: &str, expected: &Expected<'_>, part: &Path) -> Result<(), Trouble> {
        self.check_online()?;
        let mut progress = Progress::new(expected.name, expected.size_bytes);
        progress.start_at(length(part));
        let mut download = Download {
            web: self,
            url,
            expected,
            part,
            progress,
        };
        let mut left_by_earlier = length(part) > 0;
        loop {
            download.complete()?;
            Note::remove(part);
            let Some(difference) = expected.difference(part)? else {
                return Ok(());
            };
            store::remove(part);
            if !left_by_earlier {
                return Err(Trouble::Source(format!(
                    "it serves another file: {difference}"
                )));
            }
            download
                .progress
                .say("what an earlier download left does not fit, starting anew");
            left_by_earlier = false;
        }
    }

    fn page_once(&self, url: &str, accept: &str) -> Result<Page, Setback> {
        let response = self
            .agent
            .get(url)
            .header(header::ACCEPT, accept)
            .call()
            .map_err(describe)?;
        check_status(&response)?;
        let mut page = Page {
            url: response.get_uri().to_string(),
            content_type: header_text(&response, header::CONTENT_TYPE).unwrap_or_default(),
            text: String::new(),
        };
        let mut body = response
            .into_body()
            .into_with_config()
            .limit(PAGE_BYTES_MAX)
            .reader();
        body.read_to_string(&mut page.text)
            .map_err(|err| broken(err.to_string()))?;
        Ok(page)
    }

    /// What Hugging Face says of a file, without following it to where its bytes lie.
    pub fn announced(&self, url: &str) -> Result<Announced, Trouble> {
        self.check_online()?;
        let mut patience = Patience::new(self.retries);
        loop {
            match self.announced_once(url) {
                Ok(announced) => return Ok(announced),
                Err(setback) => thread::sleep(patience.after(setback)?.0),
            }
        }
    }

    fn announced_once(&self, url: &str) -> Result<Announced, Setback> {
        let request = self.agent.head(url).config();
        let request = request.max_redirects(0).max_redirects_will_error(false);
        let response = request.build().call().map_err(describe)?;
        if !response.status().is_redirection() {
            check_status(&response)?;
        }
        let text = |name: &'static str| header_text(&response, HeaderName::from_static(name));
        let is_digest = |text: &String| {
            text.len() == 64 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
        };
        let tag = text("x-linked-etag").map(|tag| tag.trim_matches('"').to_owned());
        let plain = |commit: &String| commit.bytes().all(|b| b.is_ascii_hexdigit());
        Ok(Announced {
            sha256: tag.filter(is_digest),
            size_bytes: text("x-linked-size").and_then(|size| size.parse().ok()),
            commit: text("x-repo-commit").filter(plain),
        })
    }

    fn check_online(&self) -> Result<(), Trouble> {
        if self.offline {
            return Err(Trouble::Source(
                "SCRIBE_OFFLINE is set, so it is not asked".into(),
            ));
        }
        Ok(())
    }
}

/// How often a request is made again, and after what pause.
struct Patience {
    failures: u32,
    retries: u32,
}

impl Patience {
    fn new(retries: u32) -> Self {
        Self {
            failures: 0,
            retries,
        }
    }

    /// The pause before the next try and why there is one; an error if there should be none.
    fn after(&mut self, setback: Setback) -> Result<(Duration, String), Trouble> {
        let (reason, asked_for) = match setback {
            Setback::Broken(reason, asked_for) => (reason, asked_for),
            Setback::Final(trouble) => return Err(trouble),
        };
        if self.failures >= self.retries {
            return Err(Trouble::Source(format!(
                "{reason}; given up after {} tries",
                self.failures + 1
            )));
        }
        let pause = FIRST_PAUSE
            .saturating_mul(1_u32.checked_shl(self.failures).unwrap_or(u32::MAX))
            .min(PAUSE_MAX);
        self.failures += 1;
        Ok((
            asked_for.map_or(pause, |asked| asked.min(PAUSE_ASKED_FOR_MAX)),
            reason,
        ))
    }
}

/// One file on its way.
struct Download<'a> {
    web: &'a Web,
    url: &'a str,
    expected: &'a Expected<'a>,
    part: &'a Path,
    progress: Progress,
}

impl Download<'_> {
    /// Asks until the part has the file's length.
    fn complete(&mut self) -> Result<(), Trouble> {
        let mut patience = Patience::new(self.web.retries);
        loop {
            let before = length(self.part);
            let Err(setback) = self.ask_once() else {
                return Ok(());
            };
            if length(self.part) >= before + FRUITFUL_BYTES {
                patience.failures = 0;
            }
            let (pause, reason) = patience.after(setback)?;
            self.progress.say(&format!("{reason}; trying again"));
            thread::sleep(pause);
        }
    }

    fn ask_once(&mut self) -> Result<(), Setback> {
        let have = length(self.part);
        if have == self.expected.size_bytes {
            return Ok(());
        }
        if have > self.expected.size_bytes {
            self.discard();
            return self.ask_once();
        }
        let note = Note::read(self.part).filter(|note| note.url == self.url);
        let mut request = self.web.agent.get(self.url);
        if have > 0 {
            request = request.header(header::RANGE, format!("bytes={have}-"));
            if let Some(version) = note.as_ref().and_then(|note| note.version.as_deref()) {
                request = request.header(header::IF_RANGE, version);
            }
        }
        let response = request.call().map_err(describe)?;
        if response.status() == StatusCode::RANGE_NOT_SATISFIABLE && have > 0 {
            self.discard();
            return Err(broken(
                "the server cannot go on where an earlier download stopped",
            ));
        }
        check_status(&response)?;
        let start = self.start_of(&response, have, note)?;
        Note {
            url: self.url.into(),
            version: version_of(&response),
        }
        .write(self.part)?;
        self.take_body(response.into_body(), start)
    }

    /// Where in the file the answer begins: after what we have, or at the front.
    fn start_of(
        &self,
        response: &Response<Body>,
        have: u64,
        note: Option<Note>,
    ) -> Result<u64, Setback> {
        if response.status() != StatusCode::PARTIAL_CONTENT {
            self.check_total(
                header_text(response, header::CONTENT_LENGTH).and_then(|text| text.parse().ok()),
            )?;
            return Ok(0);
        }
        let old = note.and_then(|note| note.version);
        let changed = old.is_some() && version_of(response).is_some_and(|new| Some(new) != old);
        let range =
            header_text(response, header::CONTENT_RANGE).and_then(|text| content_range(&text));
        match range {
            Some((start, total)) if start == have && !changed => {
                self.check_total(total)?;
                Ok(have)
            }
            _ => {
                self.discard();
                Err(broken(
                    "the file has changed on the server or it sends another part than asked for, starting anew",
                ))
            }
        }
    }

    fn check_total(&self, announced: Option<u64>) -> Result<(), Setback> {
        match announced {
            Some(bytes) if bytes != self.expected.size_bytes => Err(refused(format!(
                "it announces {bytes} bytes, and the file has {}",
                self.expected.size_bytes
            ))),
            _ => Ok(()),
        }
    }

    fn take_body(&mut self, body: Body, start: u64) -> Result<(), Setback> {
        let mut file = self.open_part(start)?;
        let mut input = body.into_reader();
        let mut piece = vec![0_u8; 1 << 16];
        let mut have = start;
        loop {
            let n = input.read(&mut piece).map_err(|err| {
                broken(format!("the connection broke after {have} bytes ({err})"))
            })?;
            if n == 0 {
                break;
            }
            have += n as u64;
            if have > self.expected.size_bytes {
                self.discard();
                return Err(refused(format!(
                    "it sends more than the file's {} bytes",
                    self.expected.size_bytes
                )));
            }
            file.write_all(&piece[..n])
                .map_err(|err| Failure::file("write", self.part, err))?;
            self.progress.set(have);
        }
        if have < self.expected.size_bytes {
            return Err(broken(format!(
                "the server stopped after {have} of {} bytes",
                self.expected.size_bytes
            )));
        }
        Ok(())
    }

    fn open_part(&self, start: u64) -> Result<File, Failure> {
        let mut options = OpenOptions::new();
        let opened = match start {
            0 => options
                .create(true)
                .write(true)
                .truncate(true)
                .open(self.part),
            _ => options.append(true).open(self.part),
        };
        opened.map_err(|err| Failure::file("write", self.part, err))
    }

    fn discard(&self) {
        store::remove(self.part);
        Note::remove(self.part);
    }
}

/// What a part is a part of, beside it on disk: a later run must not go on with another file.
#[derive(Serialize, Deserialize)]
struct Note {
    url: String,
    /// The server's word for the file's version, in a form that If-Range takes.
    version: Option<String>,
}

impl Note {
    fn path(part: &Path) -> PathBuf {
        let mut path = part.as_os_str().to_owned();
        path.push(".json");
        path.into()
    }

    fn read(part: &Path) -> Option<Self> {
        serde_json::from_slice(&fs::read(Self::path(part)).ok()?).ok()
    }

    fn write(&self, part: &Path) -> Result<(), Failure> {
        let path = Self::path(part);
        let text = serde_json::to_vec(self).unwrap_or_default();
        fs::write(&path, text).map_err(|err| Failure::file("write", &path, err))
    }

    fn remove(part: &Path) {
        store::remove(&Self::path(part));
    }
}

/// Length of a file, 0 if there is none.
fn length(path: &Path) -> u64 {
    fs::metadata(path).map(|meta| meta.len()).unwrap_or(0)
}

fn version_of(response: &Response<Body>) -> Option<String> {
    let strong_tag = header_text(response, header::ETAG).filter(|tag| !tag.starts_with("W/"));
    strong_tag.or_else(|| header_text(response, header::LAST_MODIFIED))
}

fn header_text(response: &Response<Body>, name: HeaderName) -> Option<String> {
    Some(response.headers().get(name)?.to_str().ok()?.to_owned())
}

/// `bytes START-END/TOTAL`, where the total may be `*`.
fn content_range(text: &str) -> Option<(u64, Option<u64>)> {
    let (range, total) = text.strip_prefix("bytes ")?.split_once('/')?;
    Some((range.split_once('-')?.0.parse().ok()?, total.parse().ok()))
}

fn check_status(response: &Response<Body>) -> Result<(), Setback> {
    let status = response.status();
    match status {
        StatusCode::OK | StatusCode::PARTIAL_CONTENT => Ok(()),
        StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_MANY_REQUESTS => Err(Setback::Broken(
            format!("it answers {status}"),
            pause_asked_for(response),
        )),
        _ if status.is_server_error() => Err(Setback::Broken(
            format!("it answers {status}"),
            pause_asked_for(response),
        )),
        _ => Err(refused(format!("it answers {status}"))),
    }
}

fn pause_asked_for(response: &Response<Body>) -> Option<Duration> {
    header_text(response, header::RETRY_AFTER)?
        .parse()
        .ok()
        .map(Duration::from_secs)
}

/// A broken connection may work the next time; a wrong name or certificate will not.
fn describe(err: ureq::Error) -> Setback {
    match err {
        ureq::Error::Timeout(_) => broken("it does not answer in time"),
        ureq::Error::Io(err) if err.kind() == std::io::ErrorKind::ConnectionRefused => {
            refused("nobody answers there")
        }
        // Names that do not resolve come as input/output errors of no kind of their own.
        ureq::Error::Io(err) if err.to_string().contains("lookup address") => {
            refused(err.to_string())
        }
        ureq::Error::Io(err) => broken(err.to_string()),
        ureq::Error::ConnectionFailed | ureq::Error::Protocol(_) => broken(err.to_string()),
        err => refused(err.to_string()),
    }
}

/// An address as it may be shown: without user name and password.
pub fn shown(url: &str) -> String {
    match url
        .split_once("://")
        .map(|(scheme, rest)| (scheme, rest.split_once('/').unwrap_or((rest, ""))))
    {
        Some((scheme, (host, path))) if host.contains('@') => {
            format!(
                "{scheme}://{}/{path}",
                host.rsplit('@').next().unwrap_or_default()
            )
        }
        _ => url.to_owned(),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_password_in_an_address_is_not_shown() {
        assert_eq!(
            shown("https://me:secret@host.example/simple/"),
            "https://host.example/simple/"
        );
        assert_eq!(
            shown("https://host.example/a@b"),
            "https://host.example/a@b"
        );
    }

    #[test]
    fn pauses_grow_and_tries_are_counted() {
        let mut patience = Patience::new(2);

        assert_eq!(
            patience.after(broken("a")).unwrap().0,
            Duration::from_millis(500)
        );
        assert_eq!(
            patience.after(broken("b")).unwrap().0,
            Duration::from_secs(1)
        );
        assert!(
            matches!(patience.after(broken("c")), Err(Trouble::Source(reason)) if reason == "c; given up after 3 tries")
        );
    }
}
