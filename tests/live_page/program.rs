// SPDX-License-Identifier: MPL-2.0
//! The program itself: real speech through the real models, as fast as it was spoken, into a page.

use std::io::{BufRead, BufReader, Read};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

use super::browser::Browser;
use super::common::{plugin, repository, there};
use super::page::one_at_a_time;
use super::served::Client;

/// Speech is played in its own time, and models are loaded before: what takes longer hangs.
const GUARD: Duration = Duration::from_secs(120);

fn program() -> PathBuf {
    let own = std::env::current_exe().unwrap();
    let built = own.parent().unwrap().parent().unwrap();
    built.join("examples/live_page")
}

fn is_ready() -> bool {
    let remedy = "cargo build --release --features cli --example live_page";
    there(&program(), remedy)
        && there(&repository("models/ggml-tiny.en-q8_0.bin"), "make models")
        && there(&plugin(), "make build")
}

/// The program at work. Ends with it.
struct Running {
    child: Child,
    url: String,
}

impl Running {
    fn start(arguments: &[&str]) -> Self {
        let mut child = Command::new(program())
            .args(["--listen", "127.0.0.1:0"])
            .args(arguments)
            .current_dir(repository("tests/data"))
            .env("SCRIBE_MODELS", repository("models"))
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut said = String::new();
        BufReader::new(child.stdout.take().unwrap())
            .read_line(&mut said)
            .unwrap();
        let url = said.split(' ').find(|word| word.starts_with("http://"));
        let url = url.unwrap_or_else(|| panic!("{said}")).to_owned();
        Self { child, url }
    }

    fn client(&self) -> Client {
        let address = self.url.trim_start_matches("http://").trim_end_matches('/');
        Client::events(address.parse().unwrap(), None)
    }

    fn interrupt(&self) {
        let sent = Command::new("kill")
            .args(["-INT", &self.child.id().to_string()])
            .status();
        assert!(sent.unwrap().success());
    }

    /// Its exit status and what it said of errors.
    fn end(mut self) -> (ExitStatus, String) {
        let deadline = Instant::now() + GUARD;
        while self.child.try_wait().unwrap().is_none() {
            assert!(Instant::now() < deadline, "it does not end");
            std::thread::sleep(Duration::from_millis(20));
        }
        let mut said = String::new();
        let mut errors = self.child.stderr.take().unwrap();
        errors.read_to_string(&mut said).unwrap();
        (self.child.wait().unwrap(), said)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn eventually(what: &str, holds: impl Fn() -> bool) {
    let deadline = Instant::now() + GUARD;
    while !holds() {
        assert!(Instant::now() < deadline, "never: {what}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Words alone: a model writes its stops as it likes.
fn words(text: &str) -> String {
    let text = text
        .to_lowercase()
        .replace(['.', ',', ';', ':', '!', '?'], " ");
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[test]
fn what_is_said_in_a_recording_is_read_in_the_page() {
    let _guard = one_at_a_time();
    if !is_ready() {
        return;
    }
    let Some(browser) = Browser::open() else {
        return;
    };
    let running = Running::start(&["speech_short.flac"]);
    browser.go(&running.url);

    eventually("the stream ends", || {
        browser.text("return document.getElementById('status').dataset.state") == "ended"
    });

    let said = "return [...document.querySelectorAll('.said > span:not(.partial)')].map(s => s.textContent).join(' ')";
    let wanted = "made amiable himself";
    let read = words(&browser.text(said));
    assert!(read.contains(wanted), "{read}");
    assert_eq!(browser.text("return document.title"), "speech_short.flac");
    // The page is still there for those who come late.
    browser.go(&running.url);
    eventually("the words are there", || words(&browser.text(said)) == read);
    running.interrupt();
    let (status, errors) = running.end();
    assert!(status.success(), "{errors}");
}

#[test]
fn who_speaks_is_told_in_the_page_too() {
    let _guard = one_at_a_time();
    let needed = [
        "models/segmentation-3.0.onnx",
        "models/ge2e-resemblyzer.onnx",
    ];
    if !is_ready() || !needed.iter().all(|m| there(&repository(m), "make models")) {
        return;
    }
    let running = Running::start(&["--speakers", "--exit-at-end", "stereo.flac"]);
    let mut client = running.client();

    // Streams end with the program, and what was said and that it has ended come before.
    let heard: Vec<_> = std::iter::from_fn(|| client.next()).collect();

    let lines: Vec<_> = heard.iter().filter(|(name, ..)| name == "line").collect();
    let name = |line: &Value| line["speaker"]["name"].as_str().map(str::to_owned);
    let names: Vec<_> = lines.iter().filter_map(|(_, line, _)| name(line)).collect();
    assert!(!names.is_empty(), "{heard:?}");
    assert!(
        names.iter().all(|name| name.starts_with("Speaker ")),
        "{names:?}"
    );
    let last = heard.iter().rfind(|(name, ..)| name == "status").unwrap();
    assert_eq!(last.1["state"], "ended");
    let (status, errors) = running.end();
    assert!(status.success(), "{errors}");
}

#[test]
fn a_live_source_is_heard_until_ctrl_c() {
    if !is_ready() {
        return;
    }
    let running = Running::start(&["--source", "audiotestsrc is-live=true wave=silence"]);
    let mut client = running.client();
    // Said at once where it plays already.
    let is_live = |(name, data): (String, Value)| match name.as_str() {
        "hello" => data["status"]["state"] == "live",
        "status" => data["state"] == "live",
        _ => false,
    };
    loop {
        let (name, data, _) = client.next().unwrap();
        if is_live((name, data)) {
            break;
        }
    }

    running.interrupt();

    let rest: Vec<_> = std::iter::from_fn(|| client.next()).collect();
    let ended = rest
        .iter()
        .any(|(name, data, _)| name == "status" && data["state"] == "ended");
    assert!(ended, "{rest:?}");
    let (status, errors) = running.end();
    assert!(status.success(), "{errors}");
}

#[test]
fn a_stream_that_fails_says_so_in_the_terminal_and_in_the_page() {
    if !is_ready() {
        return;
    }
    let running = Running::start(&["no_such_file.flac"]);
    let mut client = running.client();
    let why = loop {
        let (name, data, _) = client.next().unwrap();
        let status = if name == "hello" {
            &data["status"]
        } else {
            &data
        };
        if status["state"] == "failed" {
            break status["why"].as_str().unwrap().to_owned();
        }
    };

    // The page stays until somebody has had enough.
    running.interrupt();
    let (status, errors) = running.end();

    assert_eq!(status.code(), Some(1), "{errors}");
    assert!(errors.contains(&why), "{errors}");
}

#[test]
fn wrong_use_is_told_before_anything_begins() {
    if !is_ready() {
        return;
    }
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    for arguments in [
        &[][..],
        &["one.flac", "--source", "pulsesrc"],
        &["--source", "no-such-element"],
        &["--listen", &address, "one.flac"],
        &["--listen", "nonsense", "one.flac"],
    ] {
        let out = Command::new(program()).args(arguments).output().unwrap();

        assert_eq!(out.status.code(), Some(2), "{arguments:?}: {out:?}");
        assert!(!out.stderr.is_empty(), "{arguments:?}");
    }
}
