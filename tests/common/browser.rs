// SPDX-License-Identifier: MPL-2.0
//! Chromium without a screen, driven through chromedriver: W3C WebDriver, which is JSON over HTTP.

#![allow(dead_code, reason = "each test program uses a part of it")]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::Duration;

use base64::Engine;
use serde_json::{Value, json};

use super::common::runs;

const REMEDY: &str = "scripts/setup.sh --test, or apt install chromium chromium-driver";
/// Whatever an answer takes longer than hangs.
const ANSWER: Duration = Duration::from_secs(120);

/// One browser with one window. Both end with it.
pub struct Browser {
    driver: Child,
    port: u16,
    session: String,
    // What it says goes nowhere, but a closed pipe would end it.
    _said: BufReader<ChildStdout>,
    // Where the browser keeps what it keeps; goes last.
    _folder: tempfile::TempDir,
}

impl Browser {
    /// `None` where there is none and need not be; says so past the capture of tests' output.
    pub fn open() -> Option<Self> {
        if is_ubuntu()
            && Command::new("chromedriver")
                .arg("--version")
                .output()
                .is_err()
        {
            let _ = writeln!(
                std::io::stderr(),
                "SKIPPED: no page is looked at. Ubuntu has Chromium as a snap alone, which set-up does not install: \
                 to have it looked at, bring chromium and chromedriver of one version onto PATH"
            );
            return None;
        }
        if !runs("chromium", &["--version"], REMEDY)
            || !runs("chromedriver", &["--version"], REMEDY)
        {
            return None;
        }

        let folder = tempfile::tempdir().unwrap();
        let mut driver = Command::new("chromedriver")
            .arg("--port=0")
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut said = BufReader::new(driver.stdout.take().unwrap());
        let port = said.by_ref().lines().find_map(|line| {
            let line = line.unwrap();
            let port = line.rsplit_once("successfully on port ")?.1;
            port.trim_end_matches('.').parse().ok()
        });
        let mut browser = Self {
            driver,
            port: port.unwrap(),
            session: String::new(),
            _said: said,
            _folder: folder,
        };
        browser.begin();
        Some(browser)
    }

    fn begin(&mut self) {
        let folder = format!("--user-data-dir={}", self._folder.path().display());
        let options = json!({
            "binary": on_path("chromium"),
            "args": [
                // Tests run as root and in containers: no sandbox there, and little shared memory.
                "--headless", "--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu", folder,
                // A script's click is as good as a person's.
                "--autoplay-policy=no-user-gesture-required",
                // Nothing of its own goes out.
                "--no-first-run", "--disable-background-networking", "--disable-component-update",
                "--disable-sync", "--disable-quic", "--disable-default-apps", "--disable-extensions",
                "--window-size=1280,900",
            ],
        });
        let answer = self.ask(
            "POST",
            "/session",
            &json!({"capabilities": {"alwaysMatch": {
                "browserName": "chrome",
                "unhandledPromptBehavior": "ignore",
                "goog:chromeOptions": options,
                "goog:loggingPrefs": {"browser": "ALL", "performance": "ALL"},
            }}}),
        );
        self.session = answer["sessionId"].as_str().unwrap().to_owned();
    }

    /// Opens a file and waits until it has been read.
    pub fn show(&self, page: &Path) {
        self.go(&url_of(page));
    }

    /// Opens an address and waits until what is there has been read.
    pub fn go(&self, url: &str) {
        self.command("url", &json!({"url": url}));
    }

    /// What the window shows, as PNG.
    pub fn picture(&self) -> Vec<u8> {
        let answer = self.devtools("Page.captureScreenshot", &json!({"format": "png"}));
        let text = answer["data"].as_str().unwrap();
        base64::engine::general_purpose::STANDARD
            .decode(text)
            .unwrap()
    }

    /// What the body of a function returns; `arguments` are its `arguments`.
    pub fn run(&self, script: &str) -> Value {
        self.command("execute/sync", &json!({"script": script, "args": []}))
    }

    /// The same of a script that must give a text.
    pub fn text(&self, script: &str) -> String {
        let answer = self.run(script);
        let text = answer.as_str();
        text.unwrap_or_else(|| panic!("{script}: {answer}"))
            .to_owned()
    }

    pub fn number(&self, script: &str) -> f64 {
        let answer = self.run(script);
        answer
            .as_f64()
            .unwrap_or_else(|| panic!("{script}: {answer}"))
    }

    pub fn holds(&self, script: &str) -> bool {
        let answer = self.run(script);
        answer
            .as_bool()
            .unwrap_or_else(|| panic!("{script}: {answer}"))
    }

    /// Clicks as a person does: scrolled to, in the middle, and an error where something lies over it.
    pub fn click(&self, selector: &str) {
        let element = self.element(selector);
        self.command(&format!("element/{element}/click"), &json!({}));
    }

    /// Types into what `selector` names. `\u{e007}` is Enter, `\u{e00c}` Escape.
    pub fn type_into(&self, selector: &str, keys: &str) {
        let element = self.element(selector);
        self.command(&format!("element/{element}/value"), &json!({"text": keys}));
    }

    fn element(&self, selector: &str) -> String {
        let query = json!({"using": "css selector", "value": selector});
        let found = self.command("element", &query);
        let id = found.as_object().and_then(|o| o.values().next()?.as_str());
        id.unwrap_or_else(|| panic!("{selector}: {found}"))
            .to_owned()
    }

    /// A command of Chromium's own protocol.
    pub fn devtools(&self, command: &str, parameters: &Value) -> Value {
        let body = json!({"cmd": command, "params": parameters});
        self.command("goog/cdp/execute", &body)
    }

    /// What came since the last call: of `browser` what stands in the console, of `performance` what was loaded.
    pub fn log(&self, kind: &str) -> Vec<Value> {
        let lines = self.command("se/log", &json!({"type": kind}));
        lines.as_array().unwrap().clone()
    }

    fn command(&self, name: &str, body: &Value) -> Value {
        self.ask("POST", &format!("/session/{}/{name}", self.session), body)
    }

    fn ask(&self, method: &str, path: &str, body: &Value) -> Value {
        let (status, answer) = self.try_ask(method, path, body).unwrap();
        assert!(status == 200, "{path} {body}: {answer}");
        answer["value"].clone()
    }

    fn try_ask(&self, method: &str, path: &str, body: &Value) -> std::io::Result<(u16, Value)> {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port))?;
        stream.set_read_timeout(Some(ANSWER))?;
        let body = body.to_string();
        write!(
            stream,
            "{method} {path} HTTP/1.1\r\nHost: 127.0.0.1:{}\r\nContent-Type: application/json\r\n\
             Content-Length: {}\r\nConnection: close\r\n\r\n{body}",
            self.port,
            body.len()
        )?;
        let mut answer = BufReader::new(stream);
        let mut line = String::new();
        answer.read_line(&mut line)?;
        let status = line.split(' ').nth(1).and_then(|s| s.parse().ok());
        let mut length = 0;
        loop {
            line.clear();
            answer.read_line(&mut line)?;
            let Some((name, value)) = line.split_once(':') else {
                break;
            };
            if name.eq_ignore_ascii_case("content-length") {
                length = value.trim().parse().unwrap_or(0);
            }
        }
        let mut bytes = vec![0; length];
        answer.read_exact(&mut bytes)?;
        Ok((status.unwrap_or(0), serde_json::from_slice(&bytes)?))
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        // Else the browser outlives its driver.
        if !self.session.is_empty() {
            let _ = self.try_ask("DELETE", &format!("/session/{}", self.session), &json!({}));
        }
        let _ = self.driver.kill();
        let _ = self.driver.wait();
    }
}

/// The paths of tests are plain but for what a test names itself.
fn url_of(page: &Path) -> String {
    format!("file://{}", page.display())
}

/// The driver wants the whole path of a program.
fn on_path(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path)
        .map(|folder| folder.join(program))
        .find(|file| file.is_file())
}

fn is_ubuntu() -> bool {
    let about = std::fs::read_to_string("/etc/os-release").unwrap_or_default();
    about.lines().any(|line| line == "ID=ubuntu")
}
