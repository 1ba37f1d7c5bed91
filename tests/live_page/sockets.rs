// SPDX-License-Identifier: MPL-2.0
//! The server over real sockets.

use super::feed::Update;
use super::served::{Client, Served, line};

#[test]
fn a_connection_that_comes_back_with_its_last_id_loses_nothing() {
    let served = Served::new("talk", 100);
    served.feed.take(line(0, "one"));
    let mut client = Client::events(served.address, None);
    let (_, id) = client.lines_until("one");
    drop(client);
    served.feed.take(line(0, "two"));
    served.feed.take(line(0, "three"));

    let mut client = Client::events(served.address, Some(&id));
    let hello = client.next().unwrap();
    let (texts, _) = client.lines_until("three");
    served.feed.take(line(0, "four"));
    let (live, last) = client.lines_until("four");

    assert_eq!((&*hello.0, &hello.1["resumed"]), ("hello", &true.into()));
    assert_eq!(texts, ["two", "three"]);
    assert_eq!(live, ["four"]);
    // A page that opens a connection anew cannot set a header.
    served.feed.take(line(0, "five"));
    let mut client = Client::ask(served.address, &format!("/events?after={last}"), "");
    client.head();
    assert_eq!(client.lines_until("five").0, ["five"]);
}

#[test]
fn a_viewer_that_reads_nothing_holds_up_nobody() {
    let served = Served::new("talk", 50);
    let mut stuck = Client::events(served.address, None);
    let mut other = Client::events(served.address, None);
    // More than sockets hold between the two ends.
    let long = "word ".repeat(2_000);

    for _ in 0..4_000 {
        served.feed.take(line(0, &long));
    }
    served.feed.take(line(0, "last"));

    other.lines_until("last");
    let mut missed = 0;
    loop {
        let (name, data, _) = stuck.next().unwrap();
        if name == "cut" {
            missed += data["missed"].as_u64().unwrap();
        } else if name == "line" && data["text"] == "last" {
            break;
        }
    }
    assert!(missed > 0);
}

#[test]
fn streams_end_when_the_feed_is_closed() {
    let served = Served::new("talk", 50);
    let mut client = Client::events(served.address, None);
    served.feed.take(Update::Notice("the end is near".into()));

    served.feed.close();

    let heard: Vec<_> = std::iter::from_fn(|| client.next()).collect();
    assert!(heard.iter().any(|(name, ..)| name == "notice"), "{heard:?}");
}

#[test]
fn a_name_that_is_not_ours_is_refused() {
    let served = Served::new("talk", 50);
    let status = |host: &str| {
        // The last of two headers would be a trick: there is one alone here.
        let stream = std::net::TcpStream::connect(served.address).unwrap();
        use std::io::Write;
        write!(&stream, "GET / HTTP/1.0\r\nHost: {host}\r\n\r\n").unwrap();
        let text = std::io::read_to_string(stream).unwrap();
        text.split(' ').nth(1).unwrap().to_owned()
    };

    for known in [
        "127.0.0.1:8080",
        "localhost:1",
        "LOCALHOST",
        "[::1]:8080",
        "192.168.1.5",
        "captions.example:8080",
    ] {
        assert_eq!(status(known), "200", "{known}");
    }
    for foreign in [
        "evil.example",
        "evil.example:8080",
        "127.0.0.1.evil.example",
        "",
    ] {
        assert_eq!(status(foreign), "421", "{foreign}");
    }
}

#[test]
fn there_are_so_many_seats_and_those_that_are_left_are_free_again() {
    let served = Served::new("talk", 50);
    let mut clients: Vec<_> = (0..256)
        .map(|_| Client::events(served.address, None))
        .collect();

    let refused = Client::ask(served.address, "/events", "").head();

    assert!(refused.starts_with("HTTP/1.0 503 "), "{refused}");
    clients.truncate(200);
    super::common::eventually("a seat is free", || {
        // Those who left are noticed when something is said to them.
        served.feed.take(line(0, "anybody there?"));
        let head = Client::ask(served.address, "/events", "").head();
        head.starts_with("HTTP/1.0 200 ")
    });
}

#[test]
fn pages_may_load_nothing_from_elsewhere_and_put_text_in_as_text() {
    let served = Served::new("talk", 50);
    for path in ["/", "/page.css", "/page.js"] {
        let mut client = Client::ask(served.address, path, "");
        let head = client.head();
        let text = client.rest();

        assert!(
            head.contains("content-security-policy: default-src 'none';"),
            "{head}"
        );
        assert!(head.contains("x-content-type-options: nosniff"), "{head}");
        for foreign in ["http:", "https:", "src=\"//", "@import", "url("] {
            assert!(!text.contains(foreign), "{path}: {foreign}");
        }
        for dangerous in [
            "innerHTML",
            "outerHTML",
            "insertAdjacentHTML",
            "document.write",
            "eval(",
            "srcdoc",
        ] {
            assert!(!text.contains(dangerous), "{path}: {dangerous}");
        }
    }
}
