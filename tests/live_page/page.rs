// SPDX-License-Identifier: MPL-2.0
//! The page as Chromium shows it, with updates that are made up.

use std::sync::{Mutex, MutexGuard, PoisonError};

use serde_json::{Value, json};

use super::browser::Browser;
use super::common::eventually;
use super::feed::{Status, Update};
use super::pictures::{colours, contrast, folder, keep, rgb};
use super::served::{Relay, Served, between, by, line, partial, relabel, said};

/// What somebody might be called, or say, who means harm.
const HOSTILE: [&str; 4] = [
    "<img src=x onerror=owned=1>",
    "</p><script>owned=2</script>",
    "&lt;b&gt; \"quoted\" 'too'",
    "<svg onload=owned=3>",
];

/// One browser at a time: there are two cores.
pub fn one_at_a_time() -> MutexGuard<'static, ()> {
    static BROWSER: Mutex<()> = Mutex::new(());
    BROWSER.lock().unwrap_or_else(PoisonError::into_inner)
}

fn finals(browser: &Browser) -> String {
    browser.text("return [...document.querySelectorAll('.said > span:not(.partial)')].filter(s => !s.closest('.partial')).map(s => s.textContent.trim()).join('|')")
}

fn guess(browser: &Browser) -> String {
    browser.text(
        "return document.querySelector('span.partial, .partial .said')?.textContent.trim() ?? ''",
    )
}

fn colour_of(browser: &Browser, selector: &str) -> String {
    browser.text(&format!(
        "return getComputedStyle(document.querySelector({})).color",
        json!(selector)
    ))
}

/// A variable of the style, as a colour.
fn variable(browser: &Browser, name: &str) -> [u8; 3] {
    rgb(&browser.text(&format!(
        "const probe = document.createElement('i'); document.body.append(probe); probe.style.color = 'var({name})'; \
         const colour = getComputedStyle(probe).color; probe.remove(); return colour"
    )))
}

fn emulate(browser: &Browser, media: &[(&str, &str)]) {
    let features: Vec<Value> = media
        .iter()
        .map(|(name, value)| json!({"name": name, "value": value}))
        .collect();
    browser.devtools("Emulation.setEmulatedMedia", &json!({"features": features}));
}

fn size(browser: &Browser, width: u32, height: u32, is_mobile: bool) {
    browser.devtools(
        "Emulation.setDeviceMetricsOverride",
        &json!({"width": width, "height": height, "deviceScaleFactor": if is_mobile { 2 } else { 1 }, "mobile": is_mobile}),
    );
}

fn is_at_end(browser: &Browser) -> bool {
    browser.holds("const r = document.scrollingElement; return r.scrollHeight - r.clientHeight - r.scrollTop < 2")
}

fn status(browser: &Browser) -> String {
    browser.text("return document.getElementById('status').textContent.trim()")
}

/// What a screen reader finds: role and name of everything that is not hidden from it.
fn told_to_readers(browser: &Browser) -> Vec<(String, String)> {
    browser.devtools("Accessibility.enable", &json!({}));
    let tree = browser.devtools("Accessibility.getFullAXTree", &json!({}));
    let nodes = tree["nodes"].as_array().unwrap().iter();
    nodes
        .filter(|node| node["ignored"] == false)
        .map(|node| {
            ["role", "name"].map(|key| node[key]["value"].as_str().unwrap_or("").to_owned())
        })
        .map(|[role, name]| (role, name))
        .collect()
}

#[test]
fn a_guess_is_grey_and_settles_into_black() {
    let _guard = one_at_a_time();
    let Some(browser) = Browser::open() else {
        return;
    };
    let served = Served::new("talk", 100);
    served.feed.take(Update::Status(Status::Live));
    browser.go(&served.url());
    let (ink, unsure) = (variable(&browser, "--ink"), variable(&browser, "--unsure"));
    assert_ne!(ink, unsure);
    browser.run(
        "window.began = []; document.getElementById('log').addEventListener('animationstart', e => began.push(e.animationName))",
    );

    served.feed.take(partial(0, "Good mourning"));
    eventually("the guess is shown", || guess(&browser) == "Good mourning");
    assert_eq!(rgb(&colour_of(&browser, ".partial .said")), unsure);
    served.feed.take(partial(0, "Good morning every"));
    eventually("the guess is replaced", || {
        guess(&browser) == "Good morning every"
    });
    served.feed.take(line(0, "Good morning."));
    served.feed.take(partial(1_000, "Every"));

    eventually("it is final", || finals(&browser) == "Good morning.");
    eventually("the next guess goes on in its line", || {
        guess(&browser) == "Every"
    });
    assert_eq!(
        browser.text("return document.querySelector('.said').textContent"),
        "Good morning. Every"
    );
    assert_eq!(rgb(&colour_of(&browser, "span.partial")), unsure);
    eventually("it has settled", || {
        rgb(&colour_of(&browser, ".said > span:not(.partial)")) == ink
    });
    assert_eq!(browser.text("return began.join()"), "settle");
    served.feed.take(partial(1_000, ""));
    eventually("the guess is taken back", || guess(&browser).is_empty());
    assert_eq!(finals(&browser), "Good morning.");
    // Who wants no motion has none.
    emulate(&browser, &[("prefers-reduced-motion", "reduce")]);
    served.feed.take(line(1_000, "Everybody."));
    eventually("it is final", || {
        finals(&browser) == "Good morning.|Everybody."
    });
    assert_eq!(rgb(&colour_of(&browser, ".said > span:last-child")), ink);
    assert_eq!(browser.text("return began.join()"), "settle");
}

#[test]
fn text_settles_without_vanishing_for_a_moment() {
    let _guard = one_at_a_time();
    let Some(browser) = Browser::open() else {
        return;
    };
    let served = Served::new("talk", 100);
    served.feed.take(Update::Status(Status::Live));
    browser.go(&served.url());
    eventually("it is live", || status(&browser) == "Live");
    // What stands there each time the window is drawn.
    browser.run(
        "window.drawn = []; const look = () => { drawn.push(document.getElementById('log').innerText.replace(/\\s+/g, ' ').length); \
         requestAnimationFrame(look) }; look()",
    );

    let words = "one two three four five six seven eight nine ten eleven twelve thirteen fourteen";
    let words: Vec<&str> = words.split(' ').collect();
    let mut settled = 0;
    for n in 1..=words.len() {
        served
            .feed
            .take(partial(settled as u64 * 300, &words[settled..n].join(" ")));
        eventually("the guess is shown", || {
            guess(&browser) == words[settled..n].join(" ")
        });
        if n - settled == 5 {
            served
                .feed
                .take(line(settled as u64 * 300, &words[settled..n - 2].join(" ")));
            settled = n - 2;
            // The element's next guess comes in a message of its own.
            eventually("the rest stands there", || {
                guess(&browser) == words[settled..n].join(" ")
            });
        }
    }

    assert!(browser.number("return drawn.length") > 10.0);
    assert!(
        browser.holds("return drawn.every((n, i) => i === 0 || n >= drawn[i - 1])"),
        "{}",
        browser.run("return drawn")
    );
}

#[test]
fn each_speaker_has_a_name_and_a_colour_that_can_be_read_in_both_schemes() {
    let _guard = one_at_a_time();
    let Some(browser) = Browser::open() else {
        return;
    };
    let served = Served::new("talk", 100);
    let people: Vec<String> = (1..=8).map(|n| format!("Speaker {n}")).collect();
    for (n, name) in people.iter().enumerate() {
        let start = n as u64 * 1_000;
        let id = format!("speaker-{}", n + 1);
        served
            .feed
            .take(Update::Final(by(said(start, "I said this."), &id, name)));
    }
    browser.go(&served.url());

    eventually("all are there", || {
        browser.number("return document.querySelectorAll('.who').length") == 8.0
    });
    let shown = browser
        .text("return [...document.querySelectorAll('.who')].map(n => n.textContent).join('|')");
    assert_eq!(shown, people.join("|"));
    for scheme in ["light", "dark"] {
        emulate(&browser, &[("prefers-color-scheme", scheme)]);
        let grounds = [
            variable(&browser, "--ground"),
            variable(&browser, "--paper"),
        ];
        let mut seen = Vec::new();
        for n in 1..=8 {
            let colour = rgb(&colour_of(&browser, &format!(".turn:nth-child({n}) .who")));
            assert!(!seen.contains(&colour), "{scheme}: two of {colour:?}");
            seen.push(colour);
        }
        for name in ["--ink", "--soft", "--unsure", "--good", "--busy", "--bad"] {
            seen.push(variable(&browser, name));
        }
        for colour in seen {
            for ground in grounds {
                let contrast = contrast(colour, ground);
                assert!(
                    contrast >= 4.5,
                    "{scheme}: {colour:?} on {ground:?}: {contrast:.2}"
                );
            }
        }
        for (text, ground) in [("--on-accent", "--accent"), ("--bad", "--bad-ground")] {
            let contrast = contrast(variable(&browser, text), variable(&browser, ground));
            assert!(contrast >= 4.5, "{scheme}: {text}: {contrast:.2}");
        }
    }

    // Somebody is somebody else: for all lines, and for one of them.
    served.feed.take(Update::Relabel(relabel(
        "speaker-2",
        Some("voice-2"),
        Some("Ada"),
    )));
    served.feed.take(Update::Relabel(relabel(
        "speaker-4",
        Some("speaker-3"),
        None,
    )));
    let part = relabel("speaker-8", Some("voice-2"), Some("Ada"));
    served
        .feed
        .take(Update::Relabel(between(part, 7_000, 8_000)));

    let wanted = "Speaker 1|Ada|Speaker 3|Speaker 5|Speaker 6|Speaker 7|Ada";
    let who = "return [...document.querySelectorAll('.who')].map(n => n.textContent).join('|')";
    eventually("the names are mended", || browser.text(who) == wanted);
    // Two blocks that are one person's now are one.
    assert_eq!(
        browser.text("return document.querySelectorAll('.said')[2].textContent"),
        "I said this. I said this."
    );
    assert_eq!(finals(&browser).matches("I said this.").count(), 8);
    let same = "const [a, b] = [1, 6].map(n => getComputedStyle(document.querySelectorAll('.who')[n]).color); return a === b";
    assert!(browser.holds(same));
    // And a page that comes now shows the same.
    browser.go(&served.url());
    eventually("the names are there", || browser.text(who) == wanted);
}

#[test]
fn what_looks_like_markup_is_shown_as_it_is() {
    let _guard = one_at_a_time();
    let Some(browser) = Browser::open() else {
        return;
    };
    let served = Served::new(HOSTILE[1], 100);
    let lines = |n: usize| {
        by(
            said(0, HOSTILE[n]),
            &format!("id-{n}"),
            HOSTILE[(n + 1) % 4],
        )
    };
    for n in 0..4 {
        served.feed.take(Update::Final(lines(n)));
    }
    served.feed.take(Update::Notice(HOSTILE[0].into()));
    served.feed.take(Update::Partial(lines(3)));
    served.feed.take(Update::Relabel(relabel(
        "id-0",
        Some("\"><script>owned=4</script>"),
        Some(HOSTILE[3]),
    )));
    browser.go(&served.url());
    eventually("all is there", || guess(&browser) == HOSTILE[3]);
    served
        .feed
        .take(Update::Status(Status::Failed(HOSTILE[3].into())));
    eventually("the failure is told", || status(&browser) == "Failed");

    assert_eq!(finals(&browser), HOSTILE.join("|"));
    let text = |selector: &str| {
        browser.text(&format!(
            "return document.querySelector('{selector}').textContent"
        ))
    };
    assert_eq!(text("#title"), HOSTILE[1]);
    assert_eq!(text(".who"), HOSTILE[3]);
    assert_eq!(text(".notice"), HOSTILE[0]);
    assert_eq!(
        text("#banner"),
        format!("The stream has failed: {}", HOSTILE[3])
    );
    assert_eq!(browser.text("return document.title"), HOSTILE[1]);
    assert!(browser.holds("return typeof owned === 'undefined'"));
    assert_eq!(
        browser.number("return document.querySelectorAll('img, svg:not(#jump svg), script:not([src=\"page.js\"])').length"),
        0.0
    );
}

#[test]
fn nothing_is_lost_when_a_page_is_loaded_again_or_its_connection_breaks() {
    let _guard = one_at_a_time();
    let Some(browser) = Browser::open() else {
        return;
    };
    let served = Served::new("talk", 100);
    let relay = Relay::to(served.address);
    served.feed.take(Update::Status(Status::Live));
    served.feed.take(line(0, "one"));
    served.feed.take(line(1_000, "two"));
    browser.go(&relay.url());
    eventually("the first lines are there", || {
        finals(&browser) == "one|two"
    });
    assert_eq!(status(&browser), "Live");

    browser.go(&relay.url());
    eventually("they are there again", || finals(&browser) == "one|two");

    browser.run("document.querySelector('.said').marked = true");
    relay.cut();
    eventually("the loss is told", || status(&browser) == "Reconnecting");
    for (n, text) in ["three", "four"].iter().enumerate() {
        served.feed.take(line(2_000 + n as u64 * 1_000, text));
    }
    served.feed.take(partial(4_000, "fi"));
    relay.mend();
    eventually("the rest is there", || {
        finals(&browser) == "one|two|three|four"
    });
    eventually("the guess, too", || guess(&browser) == "fi");
    assert_eq!(status(&browser), "Live");
    // It went on where it was.
    assert!(browser.holds("return document.querySelector('.said').marked"));

    // More went by than is kept.
    relay.cut();
    eventually("the loss is told", || status(&browser) == "Reconnecting");
    for n in 0..105 {
        served.feed.take(line(5_000, &format!("n{n}")));
    }
    relay.mend();
    eventually("the hole is told", || {
        browser.text("return document.querySelector('.gap')?.textContent ?? ''")
            == "5 lines are missing here."
    });
    eventually("what is kept is there", || {
        finals(&browser).starts_with("one|two|three|four|n5|n6|")
            && finals(&browser).ends_with("|n104")
    });
    assert!(browser.holds("return document.getElementById('cut').hidden"));
    browser.go(&relay.url());
    eventually("what is kept is there", || {
        finals(&browser).starts_with("n5|n6|")
    });
    assert!(browser.holds("return !document.getElementById('cut').hidden"));
}

#[test]
fn a_page_finds_a_server_that_was_started_anew() {
    let _guard = one_at_a_time();
    let Some(browser) = Browser::open() else {
        return;
    };
    let old = Served::new("old", 100);
    let new = Served::new("new", 100);
    old.feed.take(line(0, "old"));
    new.feed.take(line(0, "new"));
    let relay = Relay::to(old.address);
    browser.go(&relay.url());
    eventually("the old text is there", || finals(&browser) == "old");

    relay.cut();
    relay.turn_to(new.address);
    relay.mend();

    eventually("the new text is there alone", || finals(&browser) == "new");
    assert_eq!(browser.text("return document.title"), "new");
}

#[test]
fn who_scrolls_up_is_left_in_peace_and_may_jump_back() {
    let _guard = one_at_a_time();
    let Some(browser) = Browser::open() else {
        return;
    };
    let served = Served::new("talk", 1_000);
    for n in 0..60 {
        // A pause before each: paragraphs of their own.
        served.feed.take(line(n * 10_000, &format!("Line {n}.")));
    }
    browser.go(&served.url());
    eventually("all is there", || finals(&browser).ends_with("|Line 59."));
    eventually("the newest is in sight", || is_at_end(&browser));
    assert!(browser.holds("return document.getElementById('jump').hidden"));

    served.feed.take(line(600_000, "Line 60."));
    eventually("it came", || finals(&browser).ends_with("|Line 60."));
    eventually("it is followed", || is_at_end(&browser));

    browser.run("window.scrollBy({top: -600, behavior: 'instant'})");
    eventually("the button is there", || {
        browser.holds("return !document.getElementById('jump').hidden")
    });
    let place = browser.number("return document.scrollingElement.scrollTop");
    served.feed.take(line(610_000, "Line 61."));
    served.feed.take(partial(620_000, "Line 6"));
    eventually("it came", || finals(&browser).ends_with("|Line 61."));
    eventually("the guess came", || guess(&browser) == "Line 6");
    assert_eq!(
        browser.number("return document.scrollingElement.scrollTop"),
        place
    );

    browser.click("#jump");
    eventually("back at the end", || is_at_end(&browser));
    assert!(browser.holds("return document.getElementById('jump').hidden"));
    served.feed.take(line(620_000, "Line 62."));
    eventually("it came", || finals(&browser).ends_with("|Line 62."));
    eventually("it is followed again", || is_at_end(&browser));
}

#[test]
fn a_screen_reader_is_told_what_is_final_and_nothing_else() {
    let _guard = one_at_a_time();
    let Some(browser) = Browser::open() else {
        return;
    };
    let served = Served::new("talk", 100);
    served.feed.take(Update::Status(Status::Live));
    served.feed.take(Update::Final(by(
        said(0, "Settled words."),
        "speaker-1",
        "Ada",
    )));
    browser.go(&served.url());
    let live = "return document.getElementById('log').getAttribute('aria-live')";
    eventually("news is told", || browser.text(live) == "polite");

    for guess_of in [
        // Goes on in the same line.
        by(said(1_000, "guessed words"), "speaker-1", "Ada"),
        // A block of its own.
        by(said(1_000, "guessed words"), "speaker-2", "Somebody Else"),
    ] {
        served.feed.take(Update::Partial(guess_of));
        eventually("the guess is shown", || guess(&browser) == "guessed words");
        let told = told_to_readers(&browser);
        let has = |role: &str, name: &str| told.iter().any(|(r, n)| r == role && n.contains(name));
        for (role, name) in [
            ("banner", ""),
            ("main", ""),
            ("log", "Captions"),
            ("status", ""),
            ("heading", "talk"),
            ("heading", "Ada"),
            ("StaticText", "Settled words."),
            ("StaticText", "Live"),
        ] {
            assert!(has(role, name), "no {role} {name}: {told:?}");
        }
        let hidden = |name: &str| !told.iter().any(|(_, n)| n.contains(name));
        assert!(hidden("guessed") && hidden("Somebody Else"), "{told:?}");
        served.feed.take(partial(0, ""));
        eventually("the guess is gone", || guess(&browser).is_empty());
    }
    assert!(browser.holds("return document.documentElement.lang === 'en'"));
    assert_eq!(
        browser.text("return document.querySelector('.said > span').lang"),
        "en"
    );

    // Names that are mended are not read out as if they were news.
    browser.run(
        "window.said = []; new MutationObserver(() => said.push(document.getElementById('log').getAttribute('aria-live'))) \
         .observe(document.getElementById('log'), {childList: true, subtree: true, characterData: true})",
    );
    served.feed.take(Update::Relabel(relabel(
        "speaker-1",
        None,
        Some("Ada Lovelace"),
    )));
    eventually("the name is new", || {
        browser.text("return document.querySelector('.who').textContent") == "Ada Lovelace"
    });
    assert_eq!(browser.text("return said.join()"), "off");
    eventually("news is told", || browser.text(live) == "polite");
}

#[test]
fn the_end_and_a_failure_are_told() {
    let _guard = one_at_a_time();
    let Some(browser) = Browser::open() else {
        return;
    };
    let served = Served::new("talk", 100);
    browser.go(&served.url());
    eventually("it starts", || status(&browser) == "Starting");
    served.feed.take(Update::Status(Status::Live));
    eventually("it is live", || status(&browser) == "Live");
    assert!(browser.holds("return !document.getElementById('empty').hidden"));
    served.feed.take(partial(0, "the last wor"));
    served.feed.take(Update::Notice(
        "model: tiny instead of base (no memory)".into(),
    ));
    served.feed.take(line(0, "The last word."));
    served.feed.take(Update::Status(Status::Ended));

    eventually("it has ended", || status(&browser) == "Ended");
    assert_eq!(finals(&browser), "The last word.");
    assert!(browser.holds(
        "return document.getElementById('empty').hidden && !document.getElementById('end').hidden"
    ));
    assert_eq!(
        browser.text("return document.querySelector('.notice').textContent"),
        "model: tiny instead of base (no memory)"
    );
    // The server goes, too: what was said stays.
    drop(served);
    assert_eq!(status(&browser), "Ended");
    assert_eq!(finals(&browser), "The last word.");

    let served = Served::new("talk", 100);
    served
        .feed
        .take(Update::Status(Status::Failed("no such device".into())));
    browser.go(&served.url());
    eventually("it has failed", || status(&browser) == "Failed");
    assert_eq!(
        browser.text("return document.querySelector('[role=alert]').textContent"),
        "The stream has failed: no such device"
    );
}

/// People who plan a garden.
fn conversation(served: &Served) {
    let feed = &served.feed;
    let [ada, ben, cleo] = [
        ("speaker-1", "Ada Lindqvist"),
        ("speaker-2", "Ben"),
        ("speaker-3", "Speaker 3"),
    ];
    let talk = [
        (3, ada, "Good evening, everybody. I think\nwe can begin."),
        (
            7,
            ada,
            "There are three things on the list for tonight,\nand the water comes first.",
        ),
        (
            13,
            ben,
            "Before that: did anyone hear back\nfrom the town hall about the second tap?",
        ),
        (
            19,
            cleo,
            "I did. They want a drawing, and they want it\nbefore the end of the month.",
        ),
        (
            26,
            ada,
            "Then let us do the drawing now, while we are all here.",
        ),
        (31, ben, "I have brought paper."),
        (
            34,
            cleo,
            "The bed along the wall is four metres and twenty,\nthe other one is three metres sixty.",
        ),
        (41, cleo, "And the pear tree has to stay where it is."),
    ];
    feed.take(Update::Status(Status::Live));
    for (n, (at, (id, name), text)) in talk.into_iter().enumerate() {
        let mut line = by(said(at * 1_000, text), id, name);
        line.end += 3_000_000_000;
        feed.take(Update::Final(line));
        if n == 4 {
            feed.take(Update::Notice(
                "model: tiny.en instead of base.en (no memory for both)".into(),
            ));
        }
    }
    feed.take(Update::Final(by(
        said(47_000, "Nobody wants to move the pear tree."),
        ada.0,
        ada.1,
    )));
    feed.take(Update::Partial(by(
        said(48_500, "What I would like to know is whether"),
        ada.0,
        ada.1,
    )));
}

#[test]
fn it_looks_right_on_phones_and_desktops_by_day_and_night() {
    let _guard = one_at_a_time();
    let Some(browser) = Browser::open() else {
        return;
    };
    println!("pictures are in {}", folder().display());
    let served = Served::new("Garden meeting, Tuesday", 100);
    conversation(&served);

    for (device, width, height, is_mobile) in [
        ("phone", 390, 844, true),
        ("desktop", 1280, 900, false),
        ("narrow", 320, 640, true),
    ] {
        size(&browser, width, height, is_mobile);
        for scheme in ["light", "dark"] {
            emulate(
                &browser,
                &[
                    ("prefers-color-scheme", scheme),
                    ("prefers-reduced-motion", "reduce"),
                ],
            );
            browser.go(&served.url());
            eventually("the guess is there", || {
                guess(&browser).starts_with("What I would")
            });
            eventually("the newest is in sight", || is_at_end(&browser));
            look(&browser, &format!("{device}-{scheme}.png"), scheme);
            if device == "phone" {
                browser.run("window.scrollTo({top: 120, behavior: 'instant'})");
                eventually("the button is there", || {
                    browser.holds("return !document.getElementById('jump').hidden")
                });
                look(&browser, &format!("{device}-{scheme}-above.png"), scheme);
            }
        }
    }

    // Somebody else begins to speak.
    let served = Served::new("Garden meeting, Tuesday", 100);
    conversation(&served);
    size(&browser, 390, 844, true);
    served.feed.take(Update::Partial(by(
        said(50_000, "It gives no pears, though, and"),
        "speaker-2",
        "Ben",
    )));
    browser.go(&served.url());
    eventually("the guess is there", || {
        guess(&browser).starts_with("It gives")
    });
    eventually("the newest is in sight", || is_at_end(&browser));
    look(&browser, "phone-another.png", "dark");

    // Before the first word, after the last one, and when it fails; with all that is too long.
    let long = "Donaudampfschifffahrtselektrizitätenhauptbetriebswerkbauunterbeamtengesellschaft"
        .repeat(3);
    let served = Served::new(&long, 100);
    served.feed.take(Update::Status(Status::Live));
    size(&browser, 390, 844, true);
    emulate(
        &browser,
        &[
            ("prefers-color-scheme", "light"),
            ("prefers-reduced-motion", "reduce"),
        ],
    );
    browser.go(&served.url());
    eventually("it is live", || status(&browser) == "Live");
    look(&browser, "phone-empty.png", "light");
    served
        .feed
        .take(Update::Final(by(said(1_000, &long), "speaker-1", &long)));
    served.feed.take(Update::Final(by(
        said(3_725_000, "مرحبا بالجميع في هذا المساء"),
        "speaker-2",
        "ليلى",
    )));
    served.feed.take(Update::Notice(long.clone()));
    served.feed.take(line(3_730_000, "皆さん、こんばんは。"));
    served.feed.take(line(3_731_000, "始めましょう。"));
    served.feed.take(Update::Status(Status::Ended));
    eventually("it has ended", || status(&browser) == "Ended");
    look(&browser, "phone-long.png", "light");
    assert!(finals(&browser).ends_with("|皆さん、こんばんは。|始めましょう。"));
    assert_eq!(
        browser.text("return [...document.querySelectorAll('.said')].pop().textContent"),
        "皆さん、こんばんは。始めましょう。"
    );
    served.feed.take(Update::Status(Status::Failed(format!(
        "Could not open {long}"
    ))));
    eventually("it has failed", || status(&browser) == "Failed");
    look(&browser, "phone-failed.png", "light");
}

#[test]
fn a_page_that_is_open_for_hours_holds_so_much_and_no_more() {
    let _guard = one_at_a_time();
    let Some(browser) = Browser::open() else {
        return;
    };
    let served = Served::new("talk", 10_000);
    for n in 0..4_300 {
        // Two lines in each paragraph.
        served
            .feed
            .take(line(n / 2 * 10_000 + n % 2 * 1_000, &format!("Line {n}.")));
    }
    browser.go(&served.url());

    eventually("all has come", || finals(&browser).ends_with("|Line 4299."));

    eventually("the oldest have gone", || {
        browser.number("return document.querySelectorAll('.said > span').length") == 4_000.0
    });
    assert!(finals(&browser).starts_with("Line 300.|Line 301.|"));
    assert!(browser.holds("return !document.getElementById('cut').hidden"));
}

/// Keeps a picture; it must show something, in the scheme's colours, and nothing may stand out to the right.
fn look(browser: &Browser, name: &str, scheme: &str) {
    let png = browser.picture();
    keep(name, &png);
    let (width, height, colours) = colours(&png);
    let all = width * height;
    let (ground, most) = colours.iter().max_by_key(|(_, n)| **n).unwrap();
    assert_eq!(*ground, variable(browser, "--ground"), "{name}");
    assert_eq!(ground.iter().all(|v| *v < 64), scheme == "dark", "{name}");
    assert!(*most < all * 99 / 100, "{name} is blank");
    assert!(colours.len() > 20, "{name} has {} colours", colours.len());
    assert!(
        browser.holds("const r = document.scrollingElement; return r.scrollWidth <= r.clientWidth"),
        "{name} is wider than the window"
    );
    let out = browser.text(
        "return [...document.querySelectorAll('body *')].filter(n => n.getClientRects().length && \
         n.getBoundingClientRect().right > innerWidth + 0.5).map(n => n.tagName + '.' + n.className).join()",
    );
    assert_eq!(out, "", "{name}");
}

#[test]
fn a_page_asks_its_own_server_and_nobody_else() {
    let _guard = one_at_a_time();
    let Some(browser) = Browser::open() else {
        return;
    };
    let served = Served::new("talk", 100);
    conversation(&served);
    browser.log("performance");
    browser.go(&served.url());
    eventually("the guess is there", || !guess(&browser).is_empty());

    let mut asked = Vec::new();
    for entry in browser.log("performance") {
        let message: Value = serde_json::from_str(entry["message"].as_str().unwrap()).unwrap();
        let message = &message["message"];
        // The browser's own first page is still at it.
        let is_ours = message["params"]["documentURL"] == served.url();
        if message["method"] == "Network.requestWillBeSent" && is_ours {
            asked.push(
                message["params"]["request"]["url"]
                    .as_str()
                    .unwrap()
                    .to_owned(),
            );
        }
    }
    asked.retain(|url| !url.starts_with("data:"));
    asked.sort();
    let own = ["", "events", "page.css", "page.js"].map(|path| served.url() + path);
    assert_eq!(asked, own);
    // Nor does its own policy forbid it anything.
    let complaints = browser.log("browser");
    assert!(complaints.is_empty(), "{complaints:?}");
}
