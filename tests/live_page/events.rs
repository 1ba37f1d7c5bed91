// SPDX-License-Identifier: MPL-2.0
//! What a viewer hears, without a socket; and how messages are read.

use proptest::prelude::*;
use serde_json::json;

use super::common::MS;
use super::feed::{Event, Feed, Line, Status, Update, Viewer};
use super::served::{between, by, data, line, partial, relabel, said};
use super::updates::update_of;

/// All that there is now.
fn all(viewer: &mut Viewer) -> Vec<Event> {
    std::iter::from_fn(|| viewer.ready()).collect()
}

fn names(events: &[Event]) -> Vec<&'static str> {
    events.iter().map(|e| e.name).collect()
}

fn texts(events: &[Event]) -> Vec<String> {
    let lines = events.iter().filter(|e| e.name == "line");
    lines
        .map(|e| data(e)["text"].as_str().unwrap().to_owned())
        .collect()
}

#[test]
fn a_viewer_hears_the_history_then_that_it_is_up_to_date_then_what_is_new() {
    let feed = Feed::new("talk", 10);
    feed.take(Update::Status(Status::Live));
    feed.take(line(0, "one"));
    feed.take(partial(1_000, "tw"));
    let mut viewer = feed.viewer(None);

    let first = all(&mut viewer);
    feed.take(line(1_000, "two"));
    feed.take(Update::Notice("less".into()));
    let then = all(&mut viewer);

    assert_eq!(names(&first), ["hello", "line", "partial", "ready"]);
    let hello = data(&first[0]);
    assert_eq!(hello["title"], "talk");
    assert_eq!(hello["resumed"], false);
    assert_eq!(hello["status"], json!({"state": "live"}));
    assert_eq!(data(&first[2])["text"], "tw");
    assert_eq!(names(&then), ["line", "notice", "partial"]);
    assert_eq!(data(&then[2]), json!(null));
    assert!(all(&mut viewer).is_empty());
}

#[test]
fn of_texts_that_may_change_the_newest_alone_is_told_and_a_final_line_takes_it_back() {
    let feed = Feed::new("", 10);
    let mut viewer = feed.viewer(None);
    all(&mut viewer);

    for text in ["a", "a b", "a b c"] {
        feed.take(partial(0, text));
    }
    let newest = all(&mut viewer);
    feed.take(line(0, "a b"));
    feed.take(partial(1_000, "c"));
    let settled = all(&mut viewer);
    feed.take(partial(1_000, ""));
    let taken_back = all(&mut viewer);

    assert_eq!(newest.len(), 1);
    assert_eq!(data(&newest[0])["text"], "a b c");
    assert_eq!(newest[0].id, None);
    assert_eq!(names(&settled), ["line", "partial"]);
    assert_eq!(data(&settled[1])["text"], "c");
    assert_eq!(data(&taken_back[0]), json!(null));
}

#[test]
fn what_a_final_line_leaves_of_a_guess_stands_until_the_next_one() {
    for (guess, settled, left) in [
        (
            "Good mourning every body",
            "Good morning,\neverybody",
            "body",
        ),
        ("Good morning.", "Good morning.", ""),
        ("Good", "Good morning.", ""),
        ("皆さん、こんばんは。始め", "皆さん、こんばんは。", "始め"),
    ] {
        let feed = Feed::new("", 10);
        let mut viewer = feed.viewer(None);
        feed.take(partial(0, guess));
        all(&mut viewer);

        feed.take(line(0, settled));

        let told = all(&mut viewer);
        assert_eq!(names(&told), ["line", "partial"]);
        let wanted = if left.is_empty() {
            json!(null)
        } else {
            json!(left)
        };
        let partial = data(&told[1]);
        assert_eq!(partial.get("text").unwrap_or(&json!(null)), &wanted);
        feed.take(Update::Status(Status::Ended));
        assert_eq!(data(&all(&mut viewer)[0]), json!(null));
    }
}

#[test]
fn who_comes_back_hears_what_was_missed_and_nothing_twice() {
    let feed = Feed::new("", 10);
    for text in ["one", "two", "three"] {
        feed.take(line(0, text));
    }
    let before = all(&mut feed.viewer(None));
    let id = before[2].id.clone().unwrap();
    assert_eq!(texts(&before[2..3]), ["two"]);
    feed.take(line(0, "four"));

    let after = all(&mut feed.viewer(Some(&id)));

    assert_eq!(names(&after), ["hello", "line", "line", "ready"]);
    // A guess that was there is taken back from one who comes back, and not told to one who never saw it.
    feed.take(partial(0, "fi"));
    feed.take(partial(0, ""));
    let back = all(&mut feed.viewer(Some(&id)));
    assert_eq!(names(&back), ["hello", "line", "line", "partial", "ready"]);
    assert!(!names(&all(&mut feed.viewer(None))).contains(&"partial"));
    assert_eq!(data(&after[0])["resumed"], true);
    assert_eq!(texts(&after), ["three", "four"]);
}

#[test]
fn an_id_that_means_nothing_here_begins_at_the_beginning() {
    let feed = Feed::new("", 10);
    feed.take(line(0, "one"));
    let id = all(&mut feed.viewer(None))[1].id.clone().unwrap();
    let run = id.rsplit_once('-').unwrap().0;
    let ids = [
        "",
        "-",
        "1",
        "other-1",
        &format!("{run}-2"),
        &format!("{run}--1"),
        &format!("{run}-18446744073709551615"),
    ];

    for id in ids {
        let events = all(&mut feed.viewer(Some(id)));

        assert_eq!(data(&events[0])["resumed"], false, "{id}");
        assert_eq!(texts(&events), ["one"], "{id}");
    }
}

#[test]
fn an_id_of_a_program_that_ran_before_means_nothing() {
    let [old, new] = ["old", "new"].map(|title| Feed::new(title, 10));
    for feed in [&old, &new] {
        feed.take(line(0, "one"));
    }
    let id = all(&mut old.viewer(None))[1].id.clone();

    let events = all(&mut new.viewer(id.as_deref()));

    assert_eq!(data(&events[0])["resumed"], false);
    assert_eq!(texts(&events), ["one"]);
}

#[test]
fn a_history_that_was_cut_says_so_to_those_who_come_return_or_are_slow() {
    let feed = Feed::new("", 3);
    feed.take(line(0, "1"));
    let id = all(&mut feed.viewer(None))[1].id.clone().unwrap();
    let mut slow = feed.viewer(None);
    slow.ready();
    slow.ready();
    for n in 2..=8 {
        feed.take(line(0, &n.to_string()));
    }

    let new = all(&mut feed.viewer(None));
    let back = all(&mut feed.viewer(Some(&id)));
    let slow = all(&mut slow);

    let missed = |events: &[Event]| {
        let cut = events.iter().find(|e| e.name == "cut");
        cut.map(|e| data(e)["missed"].as_u64().unwrap())
    };
    assert_eq!((missed(&new), texts(&new).len()), (Some(5), 3));
    assert_eq!((missed(&back), texts(&back).len()), (Some(4), 3));
    assert_eq!((missed(&slow), texts(&slow).len()), (Some(4), 3));
    // Where it was cut is a place to come back to.
    let at = new.iter().find(|e| e.name == "cut").unwrap().id.clone();
    assert_eq!(texts(&all(&mut feed.viewer(at.as_deref()))).len(), 3);
}

#[test]
fn a_speaker_keeps_the_colour_and_a_name_is_told_for_lines_before_and_behind_it() {
    let feed = Feed::new("", 10);
    feed.take(Update::Final(by(said(0, "a"), "speaker-1", "Speaker 1")));
    feed.take(Update::Final(by(
        said(2_000, "b"),
        "speaker-2",
        "Speaker 2",
    )));
    let mut early = feed.viewer(None);
    all(&mut early);

    feed.take(Update::Relabel(relabel(
        "speaker-1",
        Some("voice-1"),
        Some("Ada"),
    )));
    // The transcriber had not heard of it yet.
    feed.take(Update::Final(by(
        said(4_000, "c"),
        "speaker-1",
        "Speaker 1",
    )));

    let told = all(&mut early);
    assert_eq!(
        data(&told[0]),
        json!({"old": "speaker-1", "from": null, "to": null,
            "speaker": {"id": "voice-1", "name": "Ada", "colour": 0}})
    );
    let late = all(&mut feed.viewer(None));
    let speakers: Vec<_> = late
        .iter()
        .filter(|e| e.name == "line")
        .map(|e| data(e)["speaker"].clone())
        .collect();
    let ada = json!({"id": "voice-1", "name": "Ada", "colour": 0});
    assert_eq!(speakers[0], ada);
    assert_eq!(
        speakers[1],
        json!({"id": "speaker-2", "name": "Speaker 2", "colour": 1})
    );
    assert_eq!(speakers[2], ada);
}

#[test]
fn a_relabel_with_times_means_the_lines_between_them() {
    let feed = Feed::new("", 10);
    feed.take(Update::Final(by(said(0, "other"), "speaker-2", "Ben")));
    for at in [1_000, 2_000, 3_000] {
        feed.take(Update::Final(by(said(at, "x"), "speaker-1", "Ada")));
    }

    let one = relabel("speaker-1", Some("speaker-2"), None);
    feed.take(Update::Relabel(between(one, 2_000, 3_000)));

    let names: Vec<_> = all(&mut feed.viewer(None))
        .iter()
        .filter(|e| e.name == "line")
        .map(|e| data(e)["speaker"]["name"].as_str().unwrap().to_owned())
        .collect();
    assert_eq!(names, ["Ben", "Ada", "Ben", "Ada"]);
}

#[test]
fn colours_are_for_those_who_are_seen_and_news_is_what_changes_something() {
    let feed = Feed::new("", 10);
    let mut viewer = feed.viewer(None);
    all(&mut viewer);

    // A diarizer mends turns before their words are there.
    let early = relabel("speaker-1", Some("speaker-2"), Some("Speaker 2"));
    feed.take(Update::Relabel(between(early, 2_000, 3_000)));
    feed.take(Update::Final(by(said(0, "a"), "speaker-1", "Speaker 1")));
    feed.take(Update::Final(by(
        said(2_000, "b"),
        "speaker-1",
        "Speaker 1",
    )));
    feed.take(Update::Relabel(relabel(
        "speaker-1",
        None,
        Some("Speaker 1"),
    )));

    let told = all(&mut viewer);
    assert_eq!(names(&told), ["line", "line"]);
    let speaker = |n: usize| data(&told[n])["speaker"].clone();
    assert_eq!(
        speaker(0),
        json!({"id": "speaker-1", "name": "Speaker 1", "colour": 0})
    );
    assert_eq!(
        speaker(1),
        json!({"id": "speaker-2", "name": "Speaker 2", "colour": 1})
    );
}

#[test]
fn a_closed_feed_is_heard_to_its_end() {
    let feed = Feed::new("", 10);
    let mut viewer = feed.viewer(None);
    feed.take(line(0, "last"));
    feed.take(Update::Status(Status::Failed("no such device".into())));
    feed.close();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()
        .unwrap();

    let mut heard = Vec::new();
    runtime.block_on(async {
        while let Some(event) = viewer.next().await {
            heard.push(event);
        }
        feed.closed().await;
    });

    assert_eq!(texts(&heard), ["last"]);
    let status = heard.iter().find(|e| e.name == "status").unwrap();
    assert_eq!(
        data(status),
        json!({"state": "failed", "why": "no such device"})
    );
}

#[test]
fn the_last_words_are_heard_whenever_the_feed_is_closed_behind_them() {
    for _ in 0..2_000 {
        let feed = Feed::new("", 10);
        let mut viewer = feed.viewer(None);
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .build()
            .unwrap();

        let mut heard = Vec::new();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                feed.take(Update::Status(Status::Ended));
                feed.close();
            });
            runtime.block_on(async {
                while let Some(event) = viewer.next().await {
                    heard.push(event);
                }
            });
        });

        // It came with the greeting or behind it.
        assert!(heard.iter().any(|e| e.data.contains("ended")), "{heard:?}");
    }
}

#[derive(Clone, Debug)]
enum Step {
    Say,
    Guess,
    Listen(usize),
    ComeBack,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        4 => Just(Step::Say),
        2 => Just(Step::Guess),
        3 => (1usize..6).prop_map(Step::Listen),
        1 => Just(Step::ComeBack),
    ];
    proptest::collection::vec(step, 0..80)
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]
    /// Whatever comes when, and however often the viewer is cut off: each line is heard once and in order, or counted as missed.
    #[test]
    fn every_line_is_heard_once_or_counted(steps in steps(), history_max in 1usize..8) {
        let feed = Feed::new("", history_max);
        let mut viewer = feed.viewer(None);
        let (mut said_so_far, mut accounted, mut last_id) = (0u64, 0u64, None);
        let steps = steps.into_iter().chain([Step::Listen(usize::MAX)]);
        for step in steps {
            match step {
                Step::Say => {
                    said_so_far += 1;
                    feed.take(line(0, &said_so_far.to_string()));
                }
                Step::Guess => feed.take(partial(0, "perhaps")),
                Step::ComeBack => viewer = feed.viewer(last_id.as_deref()),
                Step::Listen(most) => {
                    for event in std::iter::from_fn(|| viewer.ready()).take(most) {
                        match event.name {
                            "hello" if data(&event)["resumed"] == false => accounted = 0,
                            "cut" => accounted += data(&event)["missed"].as_u64().unwrap(),
                            "line" => {
                                accounted += 1;
                                prop_assert_eq!(&data(&event)["text"], &json!(accounted.to_string()));
                            }
                            _ => {}
                        }
                        last_id = event.id.or(last_id);
                    }
                }
            }
        }
        prop_assert_eq!(accounted, said_so_far);
    }
}

#[test]
fn every_event_is_in_the_documents_with_its_fields() {
    let page = std::fs::read_to_string(super::common::repository("docs/embedding.md")).unwrap();
    let feed = Feed::new("talk", 2);
    feed.take(Update::Notice("old".into()));
    feed.take(Update::Final(by(said(0, "one"), "speaker-1", "Ada")));
    feed.take(Update::Relabel(relabel("speaker-1", None, Some("Ben"))));
    let mut viewer = feed.viewer(None);
    let mut events = all(&mut viewer);
    feed.take(Update::Notice("less".into()));
    feed.take(partial(0, "two"));
    feed.take(Update::Status(Status::Live));
    events.extend(all(&mut viewer));

    let mut seen = names(&events);
    seen.sort_unstable();
    assert_eq!(
        seen,
        [
            "cut", "hello", "line", "notice", "partial", "ready", "relabel", "status"
        ]
    );
    for event in &events {
        let row = page
            .lines()
            .find(|l| l.starts_with(&format!("| `{}` |", event.name)))
            .unwrap_or_else(|| panic!("no row for {}", event.name));
        let has_id = ["cut", "line", "notice", "relabel"].contains(&event.name);
        assert_eq!(event.id.is_some(), has_id, "{event:?}");
        for field in data(event).as_object().unwrap().keys() {
            // A guess has those of a line.
            let known = row.contains(&format!("`{field}`")) || event.name == "partial";
            assert!(known, "{field} is not in {row}");
        }
    }
    assert!(page.contains("| `beat` |"));
}

#[test]
fn messages_are_read_whatever_is_missing_in_them() {
    super::common::init();
    let transcript = |is_final: bool| {
        gst::Structure::builder("scribe/transcript")
            .field("text", "Good morning.")
            .field("start", 1_500 * MS)
            .field("end", 2_500 * MS)
            .field("final", is_final)
            .field("language", "en")
    };
    let finished = transcript(true)
        .field("confidence", 0.5)
        .field("speaker", "Ada")
        .field("speaker-id", "speaker-1")
        .build();
    let guess = transcript(false).field("revision", 7u32).build();

    let Some(Update::Final(line)) = update_of(&finished) else {
        panic!("{finished:?}");
    };
    assert_eq!(
        (line.start, line.end, line.confidence),
        (1_500 * MS, 2_500 * MS, Some(0.5))
    );
    assert_eq!(line.speaker.as_deref(), Some("Ada"));
    assert_eq!(line.speaker_id.as_deref(), Some("speaker-1"));
    assert!(matches!(
        update_of(&guess),
        Some(Update::Partial(Line { speaker: None, .. }))
    ));
    // Nothing in it, or times that run backwards.
    let empty = gst::Structure::new_empty("scribe/transcript");
    assert!(matches!(update_of(&empty), Some(Update::Final(Line { text, .. })) if text.is_empty()));
    let backwards = gst::Structure::builder("scribe/transcript")
        .field("start", 5u64)
        .field("end", 3u64)
        .build();
    assert!(matches!(
        update_of(&backwards),
        Some(Update::Final(Line { end: 5, .. }))
    ));
    let degraded = gst::Structure::builder("scribe/degraded")
        .field("what", "model")
        .field("from", "base")
        .field("to", "tiny")
        .field("reason", "no memory")
        .build();
    assert!(
        matches!(update_of(&degraded), Some(Update::Notice(text)) if text == "model: tiny instead of base (no memory)")
    );
    let renamed = gst::Structure::builder("scribe/relabel")
        .field("old-id", "speaker-1")
        .field("name", "Ada")
        .build();
    assert!(
        matches!(update_of(&renamed), Some(Update::Relabel(r)) if r == relabel("speaker-1", None, Some("Ada")))
    );
    for other in ["scribe/relabel", "scribe/memory", "application/other"] {
        assert!(update_of(&gst::Structure::new_empty(other)).is_none());
    }
}
