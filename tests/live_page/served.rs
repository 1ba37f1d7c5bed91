// SPDX-License-Identifier: MPL-2.0
//! A feed that is served, updates to put in, and a relay whose connections can be cut.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use gstscribe::audio::StreamNs;
use gstscribe::transcript::formats::Relabel;
use serde_json::Value;

use super::common::{GUARD, MS};
use super::feed::{Event, Feed, Line, Update};
use super::server;

/// `text` from `at_ms` on, for a second.
pub fn said(at_ms: u64, text: &str) -> Line {
    Line {
        text: text.into(),
        start: at_ms * MS,
        end: (at_ms + 1_000) * MS,
        language: "en".into(),
        confidence: Some(0.9),
        speaker_id: None,
        speaker: None,
    }
}

pub fn by(line: Line, id: &str, name: &str) -> Line {
    Line {
        speaker_id: Some(id.into()),
        speaker: Some(name.into()),
        ..line
    }
}

pub fn line(at_ms: u64, text: &str) -> Update {
    Update::Final(said(at_ms, text))
}

pub fn partial(at_ms: u64, text: &str) -> Update {
    Update::Partial(said(at_ms, text))
}

pub fn relabel(old: &str, new: Option<&str>, name: Option<&str>) -> Relabel {
    Relabel {
        old_id: old.into(),
        new_id: new.map(str::to_owned),
        name: name.map(str::to_owned),
        from: None,
        to: None,
    }
}

pub fn between(relabel: Relabel, from_ms: u64, to_ms: u64) -> Relabel {
    Relabel {
        from: Some(StreamNs(from_ms * MS)),
        to: Some(StreamNs(to_ms * MS)),
        ..relabel
    }
}

pub fn data(event: &Event) -> Value {
    serde_json::from_str(&event.data).unwrap()
}

/// A feed that is served until this is dropped.
pub struct Served {
    pub feed: Arc<Feed>,
    pub address: SocketAddr,
    runtime: Option<tokio::runtime::Runtime>,
}

impl Served {
    pub fn new(title: &str, history_max: usize) -> Self {
        let feed = Feed::new(title, history_max);
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let listener = runtime
            .block_on(tokio::net::TcpListener::bind("127.0.0.1:0"))
            .unwrap();
        let address = listener.local_addr().unwrap();
        let hosts = vec!["captions.example".to_owned()];
        runtime.spawn(server::serve(listener, Arc::clone(&feed), hosts));
        Self {
            feed,
            address,
            runtime: Some(runtime),
        }
    }

    pub fn url(&self) -> String {
        format!("http://{}/", self.address)
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        self.feed.close();
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_timeout(Duration::from_millis(100));
        }
    }
}

/// One connection, of HTTP 1.0, whose body ends with it and is not in chunks.
pub struct Client(BufReader<TcpStream>);

impl Client {
    pub fn ask(address: SocketAddr, path: &str, headers: &str) -> Self {
        let mut stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(GUARD)).unwrap();
        write!(
            stream,
            "GET {path} HTTP/1.0\r\nHost: {address}\r\n{headers}\r\n"
        )
        .unwrap();
        Self(BufReader::new(stream))
    }

    /// Events, behind what an earlier connection has had.
    pub fn events(address: SocketAddr, last: Option<&str>) -> Self {
        let header = last.map_or_else(String::new, |id| format!("Last-Event-ID: {id}\r\n"));
        let mut client = Self::ask(address, "/events", &header);
        let head = client.head();
        assert!(head.starts_with("HTTP/1.0 200 "), "{head}");
        assert!(head.contains("text/event-stream"), "{head}");
        client
    }

    /// Status line and headers.
    pub fn head(&mut self) -> String {
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            assert_ne!(self.0.read_line(&mut head).unwrap(), 0, "{head}");
        }
        head
    }

    pub fn rest(mut self) -> String {
        let mut rest = String::new();
        self.0.read_to_string(&mut rest).unwrap();
        rest
    }

    /// The next event but a beat; `None` at the end.
    pub fn next(&mut self) -> Option<(String, Value, Option<String>)> {
        let (mut name, mut data, mut id) = (String::new(), Value::Null, None);
        loop {
            let mut line = String::new();
            if self.0.read_line(&mut line).unwrap() == 0 {
                return None;
            }
            match line.trim_end().split_once(": ") {
                Some(("event", text)) => name = text.to_owned(),
                Some(("data", text)) => data = serde_json::from_str(text).unwrap(),
                Some(("id", text)) => id = Some(text.to_owned()),
                None if line == "\n" && name == "beat" => name.clear(),
                None if line == "\n" => return Some((name, data, id)),
                _ => {}
            }
        }
    }

    /// Texts of all lines until one is `last`, and the id of that one.
    pub fn lines_until(&mut self, last: &str) -> (Vec<String>, String) {
        let mut texts = Vec::new();
        loop {
            let (name, data, id) = self.next().unwrap();
            if name == "line" {
                texts.push(data["text"].as_str().unwrap().to_owned());
                if data["text"] == last {
                    return (texts, id.unwrap());
                }
            }
        }
    }
}

/// Stands between a browser and the server, as a network does that can fail.
pub struct Relay {
    pub address: SocketAddr,
    target: Arc<Mutex<SocketAddr>>,
    is_cut: Arc<AtomicBool>,
    open: Arc<Mutex<Vec<TcpStream>>>,
}

impl Relay {
    pub fn to(target: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let relay = Self {
            address: listener.local_addr().unwrap(),
            target: Arc::new(Mutex::new(target)),
            is_cut: Arc::default(),
            open: Arc::default(),
        };
        let (is_cut, open) = (Arc::clone(&relay.is_cut), Arc::clone(&relay.open));
        let target = Arc::clone(&relay.target);
        // Ends with the test program.
        std::thread::spawn(move || {
            for near in listener.incoming() {
                let near = near.unwrap();
                if is_cut.load(Ordering::SeqCst) {
                    continue;
                }
                let far = TcpStream::connect(*target.lock().unwrap()).unwrap();
                let ends = [&near, &far].map(|s| s.try_clone().unwrap());
                open.lock().unwrap().extend(ends);
                let (mut back, mut forth) = (far.try_clone().unwrap(), near.try_clone().unwrap());
                let (mut near, mut far) = (near, far);
                std::thread::spawn(move || std::io::copy(&mut near, &mut far));
                std::thread::spawn(move || std::io::copy(&mut back, &mut forth));
            }
        });
        relay
    }

    pub fn url(&self) -> String {
        format!("http://{}/", self.address)
    }

    /// All connections end, and new ones do at once.
    pub fn cut(&self) {
        self.is_cut.store(true, Ordering::SeqCst);
        for stream in self.open.lock().unwrap().drain(..) {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }

    pub fn turn_to(&self, target: SocketAddr) {
        *self.target.lock().unwrap() = target;
    }

    pub fn mend(&self) {
        self.is_cut.store(false, Ordering::SeqCst);
    }
}
