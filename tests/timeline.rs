// SPDX-License-Identifier: MPL-2.0
//! `examples/timeline`, and its page as Chromium shows it: looked at, clicked, searched.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

#[path = "common/browser.rs"]
mod browser;
mod common;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, MutexGuard, PoisonError};

use browser::Browser;
use common::{MS, eventually, there};
use gstscribe::audio::time::{RunningNs, StreamNs};
use gstscribe::transcript::formats::{Format, Options, write};
use gstscribe::transcript::{Segment, SegmentInfo, Transcript, Turn, Word};
use serde_json::{Value, json};

/// What somebody might be called, or say, who means harm.
const HOSTILE: [&str; 5] = [
    "</script><script>owned=1;alert(1)</script>",
    "<img src=x onerror=owned=2>",
    "\"><svg onload=owned=3>",
    "<!--<script>",
    "{{script}}\u{2028}&lt;b&gt;",
];

/// One browser at a time: there are two cores.
fn one_at_a_time() -> MutexGuard<'static, ()> {
    static BROWSER: Mutex<()> = Mutex::new(());
    BROWSER.lock().unwrap_or_else(PoisonError::into_inner)
}

fn program() -> PathBuf {
    let own = std::env::current_exe().unwrap();
    let built = own.parent().unwrap().parent().unwrap();
    built.join("examples/timeline")
}

fn is_built() -> bool {
    there(
        &program(),
        "cargo build --release --features cli --example timeline",
    )
}

fn at(ms: u64) -> StreamNs {
    StreamNs(ms * MS)
}

/// The words of a sentence, each 300 ms long, a word every 400 ms.
fn segment(start_ms: u64, speaker: Option<(&str, &str)>, sentence: &str) -> Segment {
    let words = sentence.split(' ').zip(0..).map(|(text, n)| Word {
        text: format!(" {text}"),
        start: at(start_ms + n * 400),
        end: at(start_ms + n * 400 + 300),
        running_start: RunningNs::default(),
        running_end: RunningNs::default(),
        probability: 0.9,
        confidence: if text.starts_with("perhaps") {
            0.2
        } else {
            0.9
        },
        speaker_id: speaker.map(|(id, _)| id.to_owned()),
        speaker: speaker.map(|(_, name)| name.to_owned()),
    });
    Segment {
        info: SegmentInfo {
            id: start_ms,
            ..SegmentInfo::default()
        },
        words: words.collect(),
    }
}

fn turn(start_ms: u64, end_ms: u64, (id, name): (&str, &str)) -> Turn {
    Turn {
        speaker_id: id.to_owned(),
        speaker: Some(name.to_owned()),
        start: at(start_ms),
        end: at(end_ms),
        confidence: 0.9,
    }
}

const ADA: (&str, &str) = ("spk_1", "Ada");
const BEN: (&str, &str) = ("spk_2", HOSTILE[0]);
const CLEO: (&str, &str) = ("spk_3", HOSTILE[2]);

/// Three people, two of whom mean harm by their names and speak at once from 6 to 7 s.
fn talk() -> Transcript {
    Transcript {
        language: "en".to_owned(),
        duration: at(12_000),
        segments: vec![
            segment(500, Some(ADA), "Good morning, perhaps we can begin."),
            segment(
                4_000,
                Some(BEN),
                &format!("Good {} morning Naïve-Olé {}", HOSTILE[1], HOSTILE[3]),
            ),
            segment(
                6_000,
                Some(CLEO),
                &format!("{} NAIVE ole", HOSTILE[4].replace('\u{2028}', "")),
            ),
            segment(9_000, Some(ADA), "Good-morning: again."),
        ],
        turns: vec![
            turn(400, 3_500, ADA),
            turn(4_000, 7_000, BEN),
            turn(6_000, 8_500, CLEO),
            turn(9_000, 10_000, ADA),
        ],
        ..Transcript::default()
    }
}

/// Writes `transcript` as JSON.
fn json_of(folder: &Path, transcript: &Transcript) -> PathBuf {
    let path = folder.join("talk.json");
    let mut out = Vec::new();
    write(Format::Json, transcript, &Options::default(), &mut out).unwrap();
    std::fs::write(&path, out).unwrap();
    path
}

/// A quiet tone, 8 kHz and 16 bits.
fn wav(path: &Path, seconds: u32) {
    let samples = 8_000 * seconds;
    let data = samples * 2;
    let mut out = Vec::new();
    out.extend(b"RIFF");
    out.extend((36 + data).to_le_bytes());
    out.extend(b"WAVEfmt ");
    out.extend(16u32.to_le_bytes());
    out.extend(1u16.to_le_bytes());
    out.extend(1u16.to_le_bytes());
    out.extend(8_000u32.to_le_bytes());
    out.extend(16_000u32.to_le_bytes());
    out.extend(2u16.to_le_bytes());
    out.extend(16u16.to_le_bytes());
    out.extend(b"data");
    out.extend(data.to_le_bytes());
    for n in 0..samples {
        let value = if n / 20 % 2 == 0 { 300i16 } else { -300 };
        out.extend(value.to_le_bytes());
    }
    std::fs::write(path, out).unwrap();
}

fn run(arguments: &[&Path]) -> (Option<i32>, String) {
    let out = Command::new(program()).args(arguments).output().unwrap();
    let said = String::from_utf8_lossy(&out.stderr).into_owned();
    (out.status.code(), said)
}

/// The page of `transcript`, with the sound inside.
fn page_of(folder: &Path, transcript: &Transcript) -> PathBuf {
    let sound = folder.join("talk.wav");
    wav(&sound, 12);
    let json = json_of(folder, transcript);
    let (code, said) = run(&[&json, "--audio".as_ref(), &sound, "--embed".as_ref()]);
    assert_eq!(code, Some(0), "{said}");
    std::fs::remove_file(sound).unwrap();
    folder.join("talk.html")
}

/// The page of `transcript`, without sound.
fn mute_page_of(folder: &Path, transcript: &Transcript) -> PathBuf {
    let (code, said) = run(&[&json_of(folder, transcript)]);
    assert_eq!(code, Some(0), "{said}");
    folder.join("talk.html")
}

fn names(browser: &Browser) -> Vec<String> {
    let names = browser
        .run("return [...document.querySelectorAll('#labels .name')].map(e => e.textContent)");
    serde_json::from_value(names).unwrap()
}

/// How many points of the lane `n` of the picture are painted in full colour: neither empty nor a tint.
fn painted(browser: &Browser, lane: usize) -> f64 {
    browser.number(&format!(
        "const c = document.getElementById('picture');
         const row = c.height / document.querySelectorAll('#labels li').length;
         const p = c.getContext('2d').getImageData(0, Math.round({lane} * row + row / 2), c.width, 1).data;
         let n = 0;
         for (let i = 3; i < p.length; i += 4) n += p[i] > 240 && Math.max(p[i - 1], p[i - 2], p[i - 3])
             - Math.min(p[i - 1], p[i - 2], p[i - 3]) > 40;
         return n / c.width"
    ))
}

/// Nothing in the console, nothing loaded but the file itself and what is in it.
fn assert_quiet(browser: &Browser) {
    let console = browser.log("browser");
    assert!(console.is_empty(), "{console:#?}");
    let mut loaded = 0;
    for entry in browser.log("performance") {
        let message: Value = serde_json::from_str(entry["message"].as_str().unwrap()).unwrap();
        let asked = &message["message"]["params"];
        // The browser's own first tab.
        let of = asked["documentURL"].as_str().unwrap_or_default();
        let is_request = message["message"]["method"] == "Network.requestWillBeSent";
        if is_request && !of.starts_with("chrome:") {
            let url = asked["request"]["url"].as_str().unwrap();
            let is_own = ["file:", "data:", "blob:"]
                .iter()
                .any(|own| url.starts_with(own));
            assert!(is_own, "the page asks for {url}");
            loaded += 1;
        }
    }
    assert!(
        loaded > 0,
        "the log of requests is empty: it cannot have looked"
    );
}

#[test]
fn hostile_words_and_names_are_only_text() {
    let _one = one_at_a_time();
    let Some(browser) = Browser::open().filter(|_| is_built()) else {
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let page = page_of(folder.path(), &talk());

    browser.show(&page);

    assert_eq!(names(&browser), ["Ada", HOSTILE[0], HOSTILE[2]]);
    let text = browser.text("return document.getElementById('text').textContent");
    for said in [
        HOSTILE[0],
        HOSTILE[1],
        HOSTILE[2],
        HOSTILE[3],
        "{{script}}&lt;b&gt;",
    ] {
        assert!(text.contains(said), "{said} in {text}");
    }
    assert!(browser.holds("return typeof owned === 'undefined'"));
    assert!(browser.holds(
        "return document.querySelector('img, main svg, main script, #labels svg') === null"
    ));
    assert_quiet(&browser);

    // Should the page's script err one day: its policy still lets nobody else's run.
    browser.run("document.body.insertAdjacentHTML('beforeend', '<img src=\"data:,\" onerror=\"owned = 4\">')");
    eventually("the policy refuses", || !browser.log("browser").is_empty());
    assert!(browser.holds("return typeof owned === 'undefined'"));
}

#[test]
fn a_lane_a_speaker_shows_turns_where_they_are() {
    let _one = one_at_a_time();
    let Some(browser) = Browser::open().filter(|_| is_built()) else {
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    browser.show(&page_of(folder.path(), &talk()));

    // Ada's turns are 4.1 of 12 s, Ben's 3, Cleo's 2.5; words are drawn in them where there is room.
    browser.run("document.getElementById('fit').click()");
    eventually("lanes are painted", || painted(&browser, 2) > 0.0);
    let shares = browser
        .run("return [...document.querySelectorAll('#labels .share')].map(e => e.textContent)");
    assert_eq!(shares, json!(["43 % · 0:04", "31 % · 0:03", "26 % · 0:02"]));
    let facts = browser.text("return document.getElementById('facts').innerText");
    for fact in [
        "0:12",
        "3 speakers",
        "4 turns",
        "English",
        "1 unsure",
        "0:01 two at once",
    ] {
        assert!(facts.contains(fact), "{fact} in {facts}");
    }

    // A click on a lane goes there: 5.0 s is in Ben's turn.
    let clicked =
        "const c = document.getElementById('picture'); const b = c.getBoundingClientRect();
        c.dispatchEvent(new MouseEvent('click', {bubbles: true, clientX: b.left + b.width * 5 / 12,
            clientY: b.top + b.height / 2}))";
    browser.run(clicked);
    eventually("the player is there", || {
        (browser.number("return document.getElementById('audio').currentTime") - 5.0).abs() < 0.05
    });
    // A name leads to that person's next turn.
    browser.click("#labels li:first-child button");
    eventually("the player is at Ada's second turn", || {
        browser.number("return document.getElementById('audio').currentTime") == 9.0
    });

    browser.click("#in");
    browser.click("#in");
    assert!(browser.holds(
        "const s = document.getElementById('scroller'); return s.scrollWidth > s.clientWidth * 3.9"
    ));
    browser.click("#fit");
    assert!(browser.holds(
        "const s = document.getElementById('scroller'); return s.scrollWidth === s.clientWidth"
    ));
    assert_quiet(&browser);
}

#[test]
fn a_word_that_is_clicked_is_played_and_marked() {
    let _one = one_at_a_time();
    let Some(browser) = Browser::open().filter(|_| is_built()) else {
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    browser.show(&page_of(folder.path(), &talk()));
    let time = || browser.number("return document.getElementById('audio').currentTime");

    // "morning," is the second word.
    browser.click("[data-word='1'].w");

    eventually("it plays", || time() > 1.0);
    assert!(time() >= 0.9 && !browser.holds("return document.getElementById('audio').paused"));
    eventually("a later word is marked", || {
        browser.holds("const s = document.querySelector('.w.spoken'); return !!s && Number(s.dataset.word) > 1")
    });
    browser.type_into("body", " ");
    eventually("the space bar halts it", || {
        browser.holds("return document.getElementById('audio').paused")
    });

    browser.click("[data-word='1'].w");
    browser.click("#play");
    assert!(browser.holds("return document.getElementById('audio').paused"));
    browser.run("document.activeElement.blur()");
    let before = time();
    browser.type_into("body", "\u{e014}");
    eventually("an arrow is 5 s", || (time() - before - 5.0).abs() < 0.01);
    browser.type_into("body", "\u{e012}\u{e012}\u{e012}");
    eventually("and stops at the beginning", || time() == 0.0);

    // Two speak at once.
    browser.run(
        "document.getElementById('seek').value = 6.05;
        document.getElementById('seek').dispatchEvent(new Event('input'))",
    );
    eventually("both words are marked", || {
        browser.number("return document.querySelectorAll('.w.spoken').length") == 2.0
    });
    assert_eq!(
        browser.text("return document.querySelector('.unsure').textContent"),
        "perhaps"
    );
    assert_quiet(&browser);
}

#[test]
fn search_finds_phrases_whatever_case_accents_and_marks() {
    let _one = one_at_a_time();
    let Some(browser) = Browser::open().filter(|_| is_built()) else {
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    browser.show(&page_of(folder.path(), &talk()));
    let hits = || browser.text("return document.getElementById('hits').textContent");
    let marked = |which: &str| {
        browser.run(&format!(
            "return [...document.querySelectorAll('{which}')].map(e => Number(e.dataset.word))"
        ))
    };

    browser.type_into("body", "/");
    browser.type_into("#search", "good  MORNING");
    eventually("it is counted", || hits() == "2 hits");
    // Words 0 and 1, and the one word "Good-morning:"; in Ben's sentence something stands between.
    let last = browser.number("return document.querySelectorAll('.w').length") - 2.0;
    assert_eq!(marked(".hit"), json!([0, 1, last as u64]));

    browser.type_into("#search", "\u{e007}");
    assert_eq!(
        (hits().as_str(), marked(".here")),
        ("1 of 2", json!([0, 1]))
    );
    browser.click("#next");
    assert_eq!(
        (hits().as_str(), marked(".here")),
        ("2 of 2", json!([last as u64]))
    );
    browser.click("#next");
    assert_eq!(hits(), "1 of 2");
    browser.click("#previous");
    assert_eq!(hits(), "2 of 2");

    browser.type_into("#search", "\u{e00c}");
    eventually("Escape clears", || {
        hits().is_empty() && marked(".hit") == json!([])
    });
    browser.type_into("#search", "naive olé");
    eventually("accents do not count", || hits() == "2 hits");
    browser.type_into("#search", "\u{e00c}");
    browser.type_into("#search", "nowhere said");
    eventually("nothing is nothing", || hits() == "no hit");
    assert!(browser.holds("return document.getElementById('next').disabled"));
    assert_quiet(&browser);
}

#[test]
fn the_page_fits_a_phone_in_both_colour_schemes() {
    let _one = one_at_a_time();
    let Some(browser) = Browser::open().filter(|_| is_built()) else {
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let page = page_of(folder.path(), &talk());
    let size = json!({"width": 360, "height": 740, "deviceScaleFactor": 2, "mobile": true});
    browser.devtools("Emulation.setDeviceMetricsOverride", &size);
    let mut grounds = Vec::new();
    for scheme in ["light", "dark"] {
        let media = json!({"features": [{"name": "prefers-color-scheme", "value": scheme}]});
        browser.devtools("Emulation.setEmulatedMedia", &media);
        browser.show(&page);

        assert_eq!(browser.number("return innerWidth"), 360.0);
        let wide = browser.number("return document.documentElement.scrollWidth");
        assert!(wide <= 360.0, "{wide} px in the {scheme} scheme");
        let out = browser.run(
            "return [...document.querySelectorAll('button, input, select, canvas, .w')]
                .filter(e => e.checkVisibility() && e.getBoundingClientRect().right > 360.5).map(e => e.outerHTML)",
        );
        assert_eq!(out, json!([]), "in the {scheme} scheme");
        grounds.push(browser.text("return getComputedStyle(document.body).backgroundColor"));
    }
    assert_ne!(grounds[0], grounds[1]);
    assert_quiet(&browser);
}

#[test]
fn a_recording_beside_the_page_is_played_whatever_its_name() {
    let _one = one_at_a_time();
    let Some(browser) = Browser::open().filter(|_| is_built()) else {
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let sounds = folder.path().join("sounds");
    let pages = folder.path().join("pages");
    std::fs::create_dir_all(&sounds).unwrap();
    std::fs::create_dir_all(&pages).unwrap();
    let sound = sounds.join("a:b #1?é\"<%41>.wav");
    wav(&sound, 14);
    let json = json_of(folder.path(), &talk());
    let page = pages.join("shown.html");

    let (code, said) = run(&[&json, "--audio".as_ref(), &sound, "-o".as_ref(), &page]);
    assert_eq!(code, Some(0), "{said}");
    browser.show(&page);

    eventually("the recording is there", || {
        browser.holds("return document.getElementById('audio').readyState > 0")
    });
    assert_eq!(
        browser.text("return document.getElementById('length').textContent"),
        "0:14"
    );
    assert_eq!(browser.text("return document.title"), "a:b #1?é\"<%41>.wav");
    assert!(browser.holds("return document.getElementById('notice').hidden"));
    assert_quiet(&browser);

    std::fs::remove_file(sound).unwrap();
    browser.show(&page);
    eventually("its absence is said", || {
        browser
            .text("return document.getElementById('notice').innerText")
            .contains("is not where it was")
    });
}

#[test]
fn a_transcript_without_turns_without_words_or_without_both_is_drawn_too() {
    let _one = one_at_a_time();
    let Some(browser) = Browser::open().filter(|_| is_built()) else {
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let words = Transcript {
        segments: vec![segment(500, None, "Nobody knows who says this.")],
        turns: Vec::new(),
        ..talk()
    };
    browser.show(&mute_page_of(folder.path(), &words));
    assert_eq!(names(&browser), ["Words"]);
    eventually("words are painted", || {
        browser.number("return document.querySelectorAll('.w').length") == 5.0
    });
    assert!(browser.holds(
        "return document.getElementById('player').hidden && !document.querySelector('audio')"
    ));
    // Without a player a click still says where.
    browser.click("[data-word='2'].w");
    assert_eq!(
        browser.text("return document.getElementById('now').textContent"),
        "0:01"
    );

    let turns = Transcript {
        segments: Vec::new(),
        ..talk()
    };
    browser.show(&mute_page_of(folder.path(), &turns));
    assert_eq!(names(&browser).len(), 3);
    eventually("turns are painted", || {
        (painted(&browser, 0) - 4.1 / 12.0).abs() < 0.15
    });
    assert!(
        browser
            .text("return document.getElementById('text').innerText")
            .contains("no words")
    );

    browser.show(&mute_page_of(folder.path(), &Transcript::default()));
    assert_eq!(names(&browser), ["Words"]);
    assert_quiet(&browser);
}

#[test]
fn three_hours_of_twelve_people_open_and_are_searched() {
    let _one = one_at_a_time();
    let Some(browser) = Browser::open().filter(|_| is_built()) else {
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let people: Vec<(String, String)> = (0..12)
        .map(|n| (format!("spk_{n}"), format!("Person {n}")))
        .collect();
    let person = |n: usize| (people[n % 12].0.as_str(), people[n % 12].1.as_str());
    let sentence =
        "one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen";
    // 2000 turns of 15 words, 5.4 s apart.
    let starts = (0..2_000).map(|n| (n, n as u64 * 5_400));
    let long = Transcript {
        duration: at(3 * 3_600_000),
        segments: starts
            .clone()
            .map(|(n, start)| segment(start, Some(person(n * 7)), sentence))
            .collect(),
        turns: starts
            .map(|(n, start)| turn(start, start + 6_000, person(n * 7)))
            .collect(),
        ..Transcript::default()
    };
    browser.show(&mute_page_of(folder.path(), &long));

    assert_eq!(
        browser.number("return document.querySelectorAll('.w').length"),
        30_000.0
    );
    browser.type_into("#search", "seven eight\u{e007}");
    assert_eq!(
        browser.text("return document.getElementById('hits').textContent"),
        "1 of 2,000"
    );
    browser.run("document.getElementById('previous').click()");
    assert_eq!(
        browser.text("return document.getElementById('hits').textContent"),
        "2,000 of 2,000"
    );
    eventually("the last hit is in view", || {
        browser.holds("const b = document.querySelector('.here').getBoundingClientRect();
            return b.top > document.getElementById('stage').getBoundingClientRect().bottom && b.bottom < innerHeight")
    });
    // What is out of view is not laid out.
    let far = "document.querySelector('[data-word=\"9000\"].w')";
    assert!(browser.holds(&format!(
        "return !{far}.checkVisibility({{contentVisibilityAuto: true}})"
    )));
    for _ in 0..14 {
        browser.click("#in");
    }
    assert!(browser.holds("return document.getElementById('in').disabled"));
    assert_quiet(&browser);
}

#[test]
fn wrong_input_is_an_error_with_its_remedy_and_leaves_no_page() {
    if !is_built() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let here = |name: &str| folder.path().join(name);
    std::fs::write(here("captions.json"), "WEBVTT\n").unwrap();
    std::fs::write(
        here("other.json"),
        r#"{"schema":"else/9","task":"transcribe","language":"","duration":1,"segments":[]}"#,
    )
    .unwrap();
    std::fs::write(here("bytes.json"), [0xff, 0xfe]).unwrap();
    std::fs::write(here("notes.txt"), "no sound").unwrap();
    std::fs::File::create(here("long.wav"))
        .unwrap()
        .set_len((64 << 20) + 1)
        .unwrap();
    let good = json_of(folder.path(), &talk());
    let (audio, embed, out) = (Path::new("--audio"), Path::new("--embed"), Path::new("-o"));
    let cases: [(&[&Path], &str); 9] = [
        (&[&here("absent.json")], "absent.json: No such file"),
        (&[&here("captions.json")], "cannot read the transcript"),
        (&[&here("other.json")], "schema is \"else/9\""),
        (&[&here("bytes.json")], "bytes.json"),
        (
            &[&good, audio, &here("absent.wav")],
            "absent.wav: No such file",
        ),
        (&[&good, audio, folder.path()], "is no file"),
        (
            &[&good, audio, &here("notes.txt"), embed],
            "browsers play no such file",
        ),
        (
            &[&good, audio, &here("long.wav"), embed],
            "65 MiB, and --embed takes 64 MiB",
        ),
        (&[&good, out, &here("absent/out.html")], "cannot write"),
    ];
    for (arguments, what) in cases {
        let (code, said) = run(arguments);

        assert_eq!(code, Some(1), "{arguments:?}: {said}");
        assert!(
            said.contains(what) && said.contains("\n  remedy: "),
            "{arguments:?}: {said}"
        );
    }

    let (code, said) = run(&[&good, out, &good]);
    assert!(code == Some(1) && said.contains("over itself"), "{said}");
    let left = std::fs::read_dir(folder.path()).unwrap();
    let left: Vec<_> = left.map(|e| e.unwrap().file_name()).collect();
    assert!(
        left.iter()
            .all(|name| !name.to_string_lossy().contains("html")),
        "{left:?}"
    );
    let (code, said) = run(&[&good, embed]);
    assert!(code == Some(2) && said.contains("--audio"), "{said}");
}
