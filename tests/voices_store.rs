// SPDX-License-Identifier: MPL-2.0
//! The voices store: what it promises to people, and what it does when everything around it breaks.
//!
//! Some tests are two programs in one: started by the test runner they judge; started by themselves, with
//! `SCRIBE_STORE_CHILD`, they write to a store until they are killed.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]
#![allow(
    clippy::print_stdout,
    reason = "children tell what they have done, and who asks gets figures"
)]
#![allow(clippy::print_stderr, reason = "a skipped test says why")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use gstscribe::voices::{
    Consent, Grade, Key, ModelKey, OpenOptions, Problem, Purge, Quality, Store, StoreError,
    TAKES_MAX, Take, Voice, VoiceId, Who,
};
use tempfile::TempDir;

const DIMENSION: usize = 64;

// ---------------------------------------------------------------- what the tests share

/// Numbers that look random and are the same each time.
struct Dice(u64);

impl Dice {
    fn roll(&mut self) -> u64 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        self.0 >> 24
    }

    fn below(&mut self, end: u64) -> u64 {
        self.roll() % end
    }
}

fn vector(seed: u64, dimension: usize) -> Vec<f32> {
    let mut dice = Dice(seed);
    let mut values: Vec<f32> = (0..dimension)
        .map(|_| dice.below(1 << 20) as f32 / (1 << 20) as f32 - 0.5)
        .collect();
    let length = values.iter().map(|v| v * v).sum::<f32>().sqrt();
    values.iter_mut().for_each(|v| *v /= length);
    values
}

fn take_of(seed: u64, dimension: usize) -> Take {
    Take {
        model: ModelKey {
            name: "fake-embedding".into(),
            version: "0123456789abcdef".repeat(4),
            dimension,
        },
        mean: vector(seed, dimension),
        exemplars: vec![vector(seed + 1_000_000, dimension)],
        quality: Quality {
            net_speech_s: 9.0,
            segments: 3,
            snr_db: Some(21.5),
            level_dbfs: -23.0,
            ..Quality::default()
        },
        at: 1_750_000_000 + seed,
    }
}

fn take(seed: u64) -> Take {
    take_of(seed, DIMENSION)
}

fn consent() -> Option<Consent> {
    Some(Consent {
        who: "Alice Consenting".into(),
        when: "2026-11-26".into(),
        purpose: "names in minutes".into(),
    })
}

fn making() -> OpenOptions {
    OpenOptions {
        create: true,
        ..OpenOptions::default()
    }
}

fn sealed(key: &Key) -> OpenOptions {
    OpenOptions {
        create: true,
        key: Some(key.clone()),
        ..OpenOptions::default()
    }
}

fn reading() -> OpenOptions {
    OpenOptions {
        read_only: true,
        ..OpenOptions::default()
    }
}

/// An empty store in a folder of its own.
fn store() -> (TempDir, Store) {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(&folder.path().join("voices.db"), &making()).unwrap();
    (folder, store)
}

fn open(folder: &TempDir) -> Store {
    Store::open(&folder.path().join("voices.db"), &OpenOptions::default()).unwrap()
}

fn problem<T: std::fmt::Debug>(result: Result<T, StoreError>) -> Problem {
    result.unwrap_err().problem
}

/// Every byte that lies in a folder: the store, its log, and whatever else was left.
fn bytes_in(folder: &Path) -> Vec<u8> {
    let files = fs::read_dir(folder).unwrap().map(|e| e.unwrap().path());
    files.flat_map(|file| fs::read(file).unwrap()).collect()
}

fn has(bytes: &[u8], part: &[u8]) -> bool {
    bytes.windows(part.len()).any(|w| w == part)
}

/// Some of a vector's values, as they would lie in a file.
fn trace_of(take: &Take) -> Vec<u8> {
    take.mean[..4]
        .iter()
        .flat_map(|v| v.to_le_bytes())
        .collect()
}

// ---------------------------------------------------------------- people

#[test]
fn who_is_enrolled_is_found_by_name_by_id_and_by_number() {
    let (_folder, mut store) = store();

    let alice = store
        .enrol(Who::Named(" Zoë "), &take(1), consent(), None)
        .unwrap();
    let nobody = store.enrol(Who::Nobody, &take(2), None, None).unwrap();

    assert_eq!(
        (alice.number, alice.label.as_str(), alice.is_new),
        (1, "Zoë", true)
    );
    assert_eq!((nobody.number, nobody.label.as_str()), (2, "Speaker 2"));
    for who in ["Zoë", "Zoe\u{308}", "zOË", &alice.id.to_string()] {
        let voice = store.find(who).unwrap();
        assert_eq!(voice.id, alice.id, "{who}");
        assert_eq!(voice.takes, [take(1)]);
        assert_eq!(voice.consent, consent());
    }
    assert_eq!(store.find("speaker 2").unwrap().id, nobody.id);
    assert_eq!(store.voices().unwrap().len(), 2);
    store.rename(nobody.id, "Bob").unwrap();
    assert!(matches!(
        problem(store.find("Speaker 2")),
        Problem::Unknown { .. }
    ));
    assert_eq!(store.find("Bob").unwrap().number, 2);
}

#[test]
fn an_unknown_name_brings_the_nearest_and_an_unclear_one_all_that_could_be_meant() {
    let (_folder, mut store) = store();
    for (seed, name) in ["Alice", "alice", "Roberta"].into_iter().enumerate() {
        store
            .enrol(Who::Named(name), &take(seed as u64), None, None)
            .unwrap();
    }

    let unknown = store.find("Robert").unwrap_err();

    assert!(
        unknown.to_string().contains("did you mean \"Roberta\"?"),
        "{unknown}"
    );
    assert_eq!(store.find("alice").unwrap().name.as_deref(), Some("alice"));
    let unclear = store.find("ALICE").unwrap_err().to_string();
    assert!(unclear.contains("\"Alice\" or \"alice\""), "{unclear}");
}

#[test]
fn takes_of_one_person_add_up_and_the_weakest_goes_when_there_are_too_many() {
    let (_folder, mut store) = store();
    let mut weak = take(0);
    weak.quality.net_speech_s = 1.0;
    let first = store.enrol(Who::Named("Alice"), &weak, None, None).unwrap();
    assert_eq!((first.grade, first.takes), (Grade::Weak, 1));

    for seed in 1..TAKES_MAX as u64 {
        let again = store
            .enrol(Who::Named("Alice"), &take(seed), None, None)
            .unwrap();
        assert_eq!(
            (again.id, again.is_new, again.left_out),
            (first.id, false, None)
        );
    }
    let full = store
        .enrol(Who::Known(first.id), &take(1_000), None, None)
        .unwrap();
    weak.at += 1;
    let weaker = store
        .enrol(Who::Known(first.id), &weak, None, None)
        .unwrap();

    assert_eq!((full.takes, full.grade), (TAKES_MAX, Grade::Good));
    let left_out = full.left_out.unwrap();
    assert_eq!((left_out.at, left_out.is_new), (take(0).at, false));
    assert!(weaker.left_out.unwrap().is_new);
    let voice = store.find("Alice").unwrap();
    assert_eq!(voice.takes.len(), TAKES_MAX);
    assert!(voice.takes.contains(&take(1_000)));
    assert!(voice.takes.is_sorted_by_key(|take| take.at));
}

#[test]
fn vectors_of_another_model_are_refused_with_both_names() {
    let (_folder, mut store) = store();
    store
        .enrol(Who::Named("Alice"), &take(1), None, None)
        .unwrap();
    let mut other = take(2);
    other.model.name = "campplus".into();
    other.model.version = "ff".repeat(32);

    let refused = store
        .enrol(Who::Named("Bob"), &other, None, None)
        .unwrap_err();
    let longer = store.enrol(Who::Named("Bob"), &take_of(2, 128), None, None);

    let text = refused.to_string();
    for part in [
        "fake-embedding (01234567, 64 values)",
        "campplus (ffffffff",
        "enrol everybody again",
    ] {
        assert!(text.contains(part), "{text}");
    }
    assert!(matches!(problem(longer), Problem::OtherModel { .. }));
    assert_eq!(store.voices().unwrap().len(), 1);
    assert_eq!(store.model().unwrap(), Some(take(1).model));
    // An empty store is free for any model.
    let alice = store.find("Alice").unwrap().id;
    assert_eq!(store.delete(alice).unwrap(), Purge::Done);
    assert_eq!(store.model().unwrap(), None);
    store.enrol(Who::Named("Bob"), &other, None, None).unwrap();
}

#[test]
fn a_merged_voice_has_the_takes_of_both_and_answers_to_both_ids() {
    let (folder, mut store) = store();
    let nobody = store
        .enrol(Who::Nobody, &take(1), consent(), Some(4_000_000_000))
        .unwrap()
        .id;
    let earlier = store.enrol(Who::Nobody, &take(2), None, None).unwrap().id;
    let alice = store
        .enrol(Who::Named("Alice"), &take(3), None, None)
        .unwrap()
        .id;
    let bob = store
        .enrol(Who::Named("Bob"), &take(4), None, None)
        .unwrap()
        .id;

    store.merge(earlier, nobody, false).unwrap();
    store.merge(nobody, alice, false).unwrap();
    let two_names = store.merge(bob, alice, false);

    assert!(matches!(problem(two_names), Problem::TwoNames { .. }));
    assert!(matches!(
        problem(store.merge(nobody, alice, true)),
        Problem::SameVoice(_)
    ));
    for id in [nobody, earlier, alice] {
        assert_eq!(store.find(&id.to_string()).unwrap().id, alice);
    }
    let voice = store.find("Alice").unwrap();
    assert_eq!(voice.takes, [take(1), take(2), take(3)]);
    assert_eq!(voice.consent, consent());
    assert_eq!(voice.expires, Some(4_000_000_000));
    assert_eq!(store.former_ids(alice).unwrap().len(), 2);
    // Who is forgotten is forgotten under every id.
    assert_eq!(store.delete(nobody).unwrap(), Purge::Done);
    drop(store);
    let store = open(&folder);
    for id in [nobody, earlier, alice] {
        assert!(matches!(
            problem(store.find(&id.to_string())),
            Problem::Unknown { .. }
        ));
    }
    store.check().unwrap();
}

#[test]
fn two_people_cannot_have_one_name() {
    let (_folder, mut store) = store();
    store
        .enrol(Who::Named("Alice"), &take(1), None, None)
        .unwrap();
    let bob = store
        .enrol(Who::Named("Bob"), &take(2), None, None)
        .unwrap()
        .id;

    let taken = store.rename(bob, "Alice");

    assert!(matches!(problem(taken), Problem::NameTaken { .. }));
    assert_eq!(store.find("Bob").unwrap().id, bob);
    // Who has expired holds the name until they are removed.
    let alice = store.find("Alice").unwrap().id;
    store.set_expiry(alice, Some(1)).unwrap();
    let held = problem(store.rename(bob, "Alice"));
    assert!(matches!(held, Problem::Expired { .. }), "{held}");
    let _ = store.expire(2).unwrap();
    store.rename(bob, "Alice").unwrap();
    for wrong in ["", "Speaker 9", "voice-0000000000000001", "a\u{7}"] {
        assert!(matches!(
            problem(store.rename(bob, wrong)),
            Problem::BadName { .. }
        ));
        let enrolled = store.enrol(Who::Named(wrong), &take(3), None, None);
        assert!(matches!(problem(enrolled), Problem::BadName { .. }));
    }
}

#[test]
fn a_name_is_data_and_never_a_path_or_a_statement() {
    let (folder, mut store) = store();
    let names = [
        "../../escape",
        "'; DROP TABLE voice; --",
        "%00",
        "/etc/passwd",
        "🦀 naïve",
    ];

    for (seed, name) in names.iter().enumerate() {
        store
            .enrol(Who::Named(name), &take(seed as u64), None, None)
            .unwrap();
    }

    for name in names {
        assert_eq!(store.find(name).unwrap().name.as_deref(), Some(name));
    }
    drop(store);
    let files: Vec<_> = fs::read_dir(folder.path()).unwrap().collect();
    assert_eq!(files.len(), 1, "{files:?}");
}

#[test]
fn without_consent_nobody_is_enrolled_where_it_is_required() {
    let folder = tempfile::tempdir().unwrap();
    let options = OpenOptions {
        require_consent: true,
        ..making()
    };
    let mut store = Store::open(&folder.path().join("voices.db"), &options).unwrap();

    let refused = store.enrol(Who::Named("Alice"), &take(1), None, None);
    assert!(matches!(problem(refused), Problem::NoConsent { .. }));
    assert!(store.voices().unwrap().is_empty());
    let half = Consent {
        purpose: String::new(),
        ..consent().unwrap()
    };
    let refused = store.enrol(Who::Named("Alice"), &take(1), Some(half), None);
    assert!(matches!(problem(refused), Problem::BadConsent(_)));
    store
        .enrol(Who::Named("Alice"), &take(1), consent(), None)
        .unwrap();
    // Given once, it holds.
    store
        .enrol(Who::Named("Alice"), &take(2), None, None)
        .unwrap();
}

#[test]
fn who_has_expired_is_never_seen_and_leaves_with_the_next_expire() {
    let (folder, mut store) = store();
    store
        .enrol(Who::Named("Alice"), &take(1), None, Some(1))
        .unwrap();
    store
        .enrol(Who::Named("Bob"), &take(2), None, Some(4_000_000_000))
        .unwrap();

    assert_eq!(store.voices().unwrap().len(), 1);
    assert!(matches!(
        problem(store.find("Alice")),
        Problem::Expired { .. }
    ));
    let mut export = Vec::new();
    assert_eq!(store.export(None, &mut export).unwrap(), 1);
    assert_eq!(store.expired(2).unwrap()[0].label, "Alice");

    let (removed, purge) = store.expire(2).unwrap();

    assert_eq!((removed.len(), removed[0].label.as_str()), (1, "Alice"));
    assert_eq!(purge, Purge::Done);
    assert!(store.expire(2).unwrap().0.is_empty());
    drop(store);
    let bytes = bytes_in(folder.path());
    assert!(!has(&bytes, b"Alice") && has(&bytes, b"Bob"));
}

#[test]
fn who_is_enrolled_again_after_their_time_is_somebody_new() {
    let (_folder, mut store) = store();
    let before = store
        .enrol(Who::Named("Alice"), &take(1), consent(), Some(1))
        .unwrap();

    let after = store
        .enrol(Who::Named("Alice"), &take(2), None, None)
        .unwrap();

    assert!(after.is_new);
    assert_ne!((after.id, after.number), (before.id, before.number));
    let voice = store.find("Alice").unwrap();
    assert_eq!((voice.takes, voice.consent), (vec![take(2)], None));
}

#[test]
fn a_number_is_never_given_twice() {
    let (folder, mut store) = store();
    let first = store.enrol(Who::Nobody, &take(1), None, None).unwrap();
    assert_eq!(store.delete(first.id).unwrap(), Purge::Done);
    drop(store);

    let second = open(&folder)
        .enrol(Who::Nobody, &take(2), None, None)
        .unwrap();

    assert_eq!((first.number, second.number), (1, 2));
}

// ---------------------------------------------------------------- forgetting

#[test]
fn who_is_deleted_leaves_no_byte_behind() {
    let (folder, mut store) = store();
    for seed in 0..40 {
        let name = format!("Person Nr. {seed}.");
        store
            .enrol(Who::Named(&name), &take_of(seed, 512), consent(), None)
            .unwrap();
        store
            .enrol(Who::Named(&name), &take_of(seed + 500, 512), None, None)
            .unwrap();
    }
    store
        .rename(store.find("Person Nr. 3.").unwrap().id, "Somebody Else")
        .unwrap();
    let before = open(&folder);
    let gone = store.find("Person Nr. 7.").unwrap();

    assert_eq!(store.delete(gone.id).unwrap(), Purge::Done);

    // While both are open: the log is there.
    drop((store, before));
    let bytes = bytes_in(folder.path());
    assert!(has(&bytes, b"Person Nr. 8.") && has(&bytes, &trace_of(&take_of(8, 512))));
    assert!(!has(&bytes, b"Person Nr. 7."));
    assert!(!has(&bytes, b"Person Nr. 3."), "the former name");
    for take in &gone.takes {
        assert!(!has(&bytes, &trace_of(take)));
    }
}

#[test]
fn what_a_reader_holds_back_leaves_when_the_store_is_opened_next() {
    let (folder, mut store) = store();
    for seed in 0..5 {
        let name = format!("Person Nr. {seed}.");
        store
            .enrol(Who::Named(&name), &take(seed), None, None)
            .unwrap();
    }
    // Of another program, in the middle of a look.
    let reader = rusqlite::Connection::open(folder.path().join("voices.db")).unwrap();
    reader
        .execute_batch("BEGIN; SELECT count(*) FROM voice;")
        .unwrap();
    let _: i64 = reader
        .query_row("SELECT count(*) FROM voice", [], |r| r.get(0))
        .unwrap();

    let gone = store.find("Person Nr. 2.").unwrap();
    let purge = store.delete(gone.id).unwrap();

    assert!(matches!(purge, Purge::Pending(_)));
    assert!(store.find("Person Nr. 2.").is_err());
    drop((reader, store));
    drop(open(&folder));
    let bytes = bytes_in(folder.path());
    assert!(!has(&bytes, b"Person Nr. 2.") && has(&bytes, b"Person Nr. 1."));
    assert!(!has(&bytes, &trace_of(&gone.takes[0])));
}

// ---------------------------------------------------------------- encryption

#[test]
fn an_encrypted_store_shows_neither_names_nor_vectors_nor_consents() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("voices.db");
    let key = Key::random().unwrap();
    let mut store = Store::open(&path, &sealed(&key)).unwrap();
    store
        .enrol(Who::Named("Alice Secret"), &take(1), consent(), None)
        .unwrap();
    store
        .enrol(Who::Named("Alice Secret"), &take(2), None, None)
        .unwrap();
    assert_eq!(
        store.find("alice secret").unwrap().takes,
        [take(1), take(2)]
    );

    let while_open = Command::new("cat")
        .arg(&path)
        .arg(folder.path().join("voices.db-wal"))
        .output();
    drop(store);

    for bytes in [while_open.unwrap().stdout, bytes_in(folder.path())] {
        assert!(bytes.len() > 4_096);
        for secret in [
            &b"Alice"[..],
            b"Secret",
            b"Consenting",
            b"minutes",
            &trace_of(&take(1)),
        ] {
            assert!(!has(&bytes, secret));
        }
    }
}

#[test]
fn a_store_opens_with_its_own_key_alone() {
    let folder = tempfile::tempdir().unwrap();
    let (path, plain) = (
        folder.path().join("voices.db"),
        folder.path().join("plain.db"),
    );
    let (key, other) = (Key::random().unwrap(), Key::random().unwrap());
    drop(Store::open(&path, &sealed(&key)).unwrap());
    drop(Store::open(&plain, &making()).unwrap());

    assert!(matches!(
        problem(Store::open(&path, &sealed(&other))),
        Problem::WrongKey
    ));
    assert!(matches!(
        problem(Store::open(&path, &making())),
        Problem::NeedsKey
    ));
    let needless = Store::open(&plain, &sealed(&key)).unwrap_err();
    assert!(
        needless.to_string().contains("scribe-voices encrypt"),
        "{needless}"
    );
    assert!(Store::open(&path, &sealed(&key)).unwrap().is_sealed());
}

#[test]
fn rows_that_change_places_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("voices.db");
    let key = Key::random().unwrap();
    for options in [making(), sealed(&key)] {
        for swap in [
            "UPDATE voice SET content = (SELECT content FROM voice AS o WHERE o.number = 3 - voice.number)",
            "UPDATE take SET content = (SELECT content FROM take AS o WHERE o.id <> take.id)",
            "UPDATE take SET voice = (SELECT id FROM voice WHERE id <> take.voice)",
            "UPDATE voice SET expires = 4000000000",
            "UPDATE voice SET number = number + 10",
            "UPDATE voice SET name_tag = zeroblob(9) WHERE number = 1",
            "UPDATE model SET version = replace(version, '0', '1')",
            "UPDATE store SET identity = zeroblob(16)",
        ] {
            let mut store = Store::open(&path, &options).unwrap();
            store
                .enrol(Who::Named("Alice"), &take(1), None, None)
                .unwrap();
            store
                .enrol(Who::Named("Bob"), &take(2), None, None)
                .unwrap();
            drop(store);
            rusqlite::Connection::open(&path)
                .unwrap()
                .execute_batch(swap)
                .unwrap();

            let opened = Store::open(&path, &options);
            let read = opened.and_then(|store| store.voices());

            let refused = read.unwrap_err().problem;
            assert!(
                matches!(refused, Problem::Damaged(_) | Problem::WrongKey),
                "{swap}: {refused}"
            );
            fs::remove_file(&path).unwrap();
        }
    }
}

#[test]
fn a_store_is_encrypted_rekeyed_and_decrypted_without_a_trace() {
    let (folder, mut store) = store();
    let path = folder.path().join("voices.db");
    for seed in 0..20 {
        store
            .enrol(
                Who::Named(&format!("Person {seed}")),
                &take(seed),
                consent(),
                None,
            )
            .unwrap();
    }
    let voices = store.voices().unwrap();
    let (key, other) = (Key::random().unwrap(), Key::random().unwrap());
    let witness = open(&folder);

    assert_eq!(store.reseal(Some(&key)).unwrap(), Purge::Done);

    assert_eq!(store.voices().unwrap(), voices);
    assert!(matches!(problem(witness.voices()), Problem::KeyChanged));
    drop((store, witness));
    let bytes = bytes_in(folder.path());
    assert!(!has(&bytes, b"Person ") && !has(&bytes, &trace_of(&take(3))));

    let mut store = Store::open(&path, &sealed(&key)).unwrap();
    assert_eq!(store.reseal(Some(&other)).unwrap(), Purge::Done);
    drop(store);
    assert!(matches!(
        problem(Store::open(&path, &sealed(&key))),
        Problem::WrongKey
    ));
    let mut store = Store::open(&path, &sealed(&other)).unwrap();
    assert_eq!(store.reseal(None).unwrap(), Purge::Done);
    drop(store);
    assert_eq!(open(&folder).voices().unwrap(), voices);
}

// ---------------------------------------------------------------- from store to store

#[test]
fn an_export_makes_the_same_people_in_another_store_and_a_second_time_nothing() {
    let (_from, mut store) = store();
    let alice = store
        .enrol(
            Who::Named("Alice"),
            &take(1),
            consent(),
            Some(4_000_000_000),
        )
        .unwrap()
        .id;
    let nobody = store.enrol(Who::Nobody, &take(2), None, None).unwrap().id;
    let merged = store.enrol(Who::Nobody, &take(3), None, None).unwrap().id;
    store.merge(merged, alice, false).unwrap();
    let mut json = Vec::new();
    assert_eq!(store.export(None, &mut json).unwrap(), 2);

    let folder = tempfile::tempdir().unwrap();
    let key = Key::random().unwrap();
    let mut other = Store::open(&folder.path().join("o.db"), &sealed(&key)).unwrap();
    let first = other.import(&mut &json[..]).unwrap();
    let second = other.import(&mut &json[..]).unwrap();

    assert_eq!((first.voices_new, first.takes_new), (2, 3));
    assert_eq!(
        (second.voices_new, second.takes_new, second.takes_known),
        (0, 0, 3)
    );
    let here = other.find(&merged.to_string()).unwrap();
    let there = store.find("Alice").unwrap();
    assert_eq!(
        Voice {
            number: there.number,
            ..here
        },
        there
    );
    assert_eq!(other.find(&nobody.to_string()).unwrap().takes, [take(2)]);
    // And back, with news.
    other
        .enrol(Who::Named("Alice"), &take(9), None, None)
        .unwrap();
    let mut json = Vec::new();
    other.export(Some(&[alice]), &mut json).unwrap();
    let back = store.import(&mut &json[..]).unwrap();
    assert_eq!(
        (back.voices_known, back.takes_new, back.takes_known),
        (1, 1, 2)
    );
    assert_eq!(store.find("Alice").unwrap().takes.len(), 3);
}

#[test]
fn an_import_takes_all_or_nothing_and_nothing_that_is_wrong() {
    let (_folder, mut from) = store();
    from.enrol(Who::Named("Alice"), &take(1), None, None)
        .unwrap();
    from.enrol(Who::Named("Bob"), &take(2), None, None).unwrap();
    let mut json = Vec::new();
    from.export(None, &mut json).unwrap();
    let good: serde_json::Value = serde_json::from_slice(&json).unwrap();
    let (_folder, mut store) = store();
    let spoil = |path: &str, value: serde_json::Value| {
        let mut bad = good.clone();
        *bad.pointer_mut(path).unwrap() = value;
        bad.to_string()
    };
    let short = "AAAA";
    let zeros = base64_of(&[0.0; DIMENSION]);
    let mut not_a_number = vector(1, DIMENSION);
    not_a_number[5] = f32::NAN;

    for bad in [
        String::new(),
        "[]".into(),
        spoil("/schema", "scribe-voices/2".into()),
        spoil("/voices/1/id", "voice-1".into()),
        spoil("/voices/1/id", good["voices"][0]["id"].clone()),
        spoil("/voices/1/name", "Alice".into()),
        spoil("/voices/1/name", "a\u{1b}b".into()),
        spoil("/voices/1/created", "yesterday".into()),
        spoil("/voices/1/takes/0/mean", short.into()),
        spoil("/voices/1/takes/0/mean", "?".into()),
        spoil("/voices/1/takes/0/mean", zeros.into()),
        spoil("/voices/1/takes/0/mean", base64_of(&not_a_number).into()),
        spoil("/voices/1/takes/0/net_speech_s", (-1.0).into()),
        spoil("/voices/1/takes/0/exemplars", vec!["AAAA"; 9].into()),
        spoil("/model", serde_json::Value::Null),
        spoil("/model/dimension", 1e15.into()),
        spoil("/model/version", "1".into()),
        String::from_utf8(json[..json.len() / 2].to_vec()).unwrap(),
    ] {
        let refused = problem(store.import(&mut bad.as_bytes()));
        let is_said = matches!(refused, Problem::BadImport(_) | Problem::NameTaken { .. });
        assert!(is_said, "{refused}");
        assert!(store.voices().unwrap().is_empty(), "{refused}");
    }
    store.import(&mut &json[..]).unwrap();
}

fn base64_of(values: &[f32]) -> String {
    use base64::Engine;
    let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
    base64::engine::general_purpose::STANDARD.encode(bytes)
}

// ---------------------------------------------------------------- the file

#[test]
fn a_store_is_for_its_owner_alone_and_so_is_all_beside_it() {
    let (folder, mut store) = store();
    store
        .enrol(Who::Named("Alice"), &take(1), None, None)
        .unwrap();

    let mut names = Vec::new();
    for entry in fs::read_dir(folder.path()).unwrap() {
        let entry = entry.unwrap();
        assert_eq!(
            entry.metadata().unwrap().permissions().mode() & 0o777,
            0o600
        );
        names.push(entry.file_name().into_string().unwrap());
    }
    names.sort();
    assert_eq!(names, ["voices.db", "voices.db-shm", "voices.db-wal"]);
}

#[test]
fn a_path_is_a_path_whatever_is_in_it() {
    let folder = tempfile::tempdir().unwrap();
    for name in [
        "file:x?mode=memory",
        "50% #1?.db",
        "-wal",
        "ü b.db",
        ":memory:",
    ] {
        let path = folder.path().join(name);

        let mut store = Store::open(&path, &making()).unwrap();
        store
            .enrol(Who::Named("Alice"), &take(1), None, None)
            .unwrap();
        drop(store);

        assert!(path.is_file(), "{name}");
        assert_eq!(
            Store::open(&path, &reading())
                .unwrap()
                .voices()
                .unwrap()
                .len(),
            1
        );
    }
}

#[test]
fn what_is_no_store_is_said_to_be_none_and_is_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    fs::write(
        path("text"),
        "this is a text, and long enough to be looked at ".repeat(40),
    )
    .unwrap();
    fs::write(path("short"), "x").unwrap();
    fs::write(path("empty"), "").unwrap();
    fs::create_dir(path("folder")).unwrap();
    symlink(path("nowhere"), path("dangling")).unwrap();
    let other = rusqlite::Connection::open(path("other")).unwrap();
    other
        .execute_batch("CREATE TABLE bookmarks (url); PRAGMA user_version = 1;")
        .unwrap();
    drop(other);
    let before = fs::read(path("other")).unwrap();

    for (name, part) in [
        ("missing", "enrol someone first"),
        ("text", "no SQLite file"),
        ("short", "no SQLite file"),
        ("empty", "it is empty"),
        ("folder", "it is no file"),
        ("dangling", "nowhere, and nothing is there"),
        ("other", "another program"),
    ] {
        for options in [OpenOptions::default(), reading()] {
            let error = Store::open(&path(name), &options).unwrap_err().to_string();
            assert!(
                error.contains(part) && error.contains(name),
                "{name}: {error}"
            );
        }
    }
    for name in ["text", "short", "folder", "dangling", "other"] {
        assert!(Store::open(&path(name), &making()).is_err(), "{name}");
    }
    assert!(!path("nowhere").exists() && !path("missing").exists());
    assert_eq!(fs::read(path("other")).unwrap(), before);
}

#[test]
fn a_store_behind_a_link_is_the_store() {
    let (folder, store) = store();
    drop(store);
    let link = folder.path().join("link.db");
    symlink("voices.db", &link).unwrap();

    let mut store = Store::open(&link, &OpenOptions::default()).unwrap();
    store
        .enrol(Who::Named("Alice"), &take(1), None, None)
        .unwrap();
    drop(store);

    assert_eq!(open(&folder).voices().unwrap().len(), 1);
    assert!(link.is_symlink());
}

#[test]
fn a_newer_store_says_which_version_it_has() {
    let (folder, store) = store();
    let path = folder.path().join("voices.db");
    drop(store);
    let conn = rusqlite::Connection::open(&path).unwrap();
    conn.execute_batch("PRAGMA user_version = 77").unwrap();
    drop(conn);

    let error = Store::open(&path, &OpenOptions::default())
        .unwrap_err()
        .to_string();

    assert!(
        error.contains("version 77") && error.contains("update scribe"),
        "{error}"
    );
}

#[test]
fn another_writers_news_are_seen() {
    let (folder, mut store) = store();
    let reader = Store::open(&folder.path().join("voices.db"), &reading()).unwrap();
    let before = reader.version().unwrap();
    assert_eq!(reader.version().unwrap(), before);

    store
        .enrol(Who::Named("Alice"), &take(1), None, None)
        .unwrap();

    assert_ne!(reader.version().unwrap(), before);
    assert_eq!(reader.voices().unwrap().len(), 1);
}

#[test]
fn a_store_opened_for_reading_changes_nothing() {
    let (folder, mut store) = store();
    let alice = store
        .enrol(Who::Named("Alice"), &take(1), None, None)
        .unwrap()
        .id;
    let mut reader = Store::open(&folder.path().join("voices.db"), &reading()).unwrap();

    let refused = [
        problem(reader.enrol(Who::Nobody, &take(2), None, None)),
        problem(reader.rename(alice, "Bob")),
        problem(reader.delete(alice)),
        problem(reader.expire(0)),
        problem(reader.reseal(None)),
    ];

    for problem in refused {
        assert!(matches!(problem, Problem::OpenedForReading), "{problem}");
    }
}

#[test]
fn a_truncated_store_is_an_error_and_no_panic() {
    let (folder, mut store) = store();
    let path = folder.path().join("voices.db");
    for seed in 0..10 {
        store.enrol(Who::Nobody, &take(seed), None, None).unwrap();
    }
    let voices = store.voices().unwrap();
    drop(store);
    let whole = fs::read(&path).unwrap();

    for len in (0..whole.len())
        .step_by(1_111)
        .chain([1, 99, 100, 101, 4_095, 4_096])
    {
        fs::write(&path, &whole[..len]).unwrap();
        let read = Store::open(&path, &OpenOptions::default()).and_then(|store| store.voices());
        assert!(read.is_err(), "{len} of {} bytes", whole.len());
    }
    fs::write(&path, &whole).unwrap();
    assert_eq!(open(&folder).voices().unwrap(), voices);
}

#[test]
fn other_bytes_in_the_file_are_an_error_or_change_nothing() {
    for key in [None, Some(Key::random().unwrap())] {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("voices.db");
        let options = OpenOptions { key, ..making() };
        let mut store = Store::open(&path, &options).unwrap();
        for seed in 0..50 {
            let name = format!("Person {seed}");
            store
                .enrol(Who::Named(&name), &take_of(seed, 64), consent(), None)
                .unwrap();
        }
        let voices = store.voices().unwrap();
        drop(store);
        let whole = fs::read(&path).unwrap();
        let mut dice = Dice(7);
        let mut found = 0;

        for _ in 0..400 {
            let mut bytes = whole.clone();
            let at = dice.below(whole.len() as u64) as usize;
            for byte in bytes.iter_mut().skip(at).take(1 + dice.below(3) as usize) {
                *byte ^= 1 << dice.below(8);
            }
            fs::write(&path, &bytes).unwrap();
            match Store::open(&path, &options).and_then(|store| store.voices()) {
                Ok(read) => assert_eq!(read, voices, "bytes from {at} on"),
                Err(_) => found += 1,
            }
            for companion in ["voices.db-wal", "voices.db-shm"] {
                let _ = fs::remove_file(folder.path().join(companion));
            }
        }
        assert!(found > 100, "{found}");
    }
}

// ---------------------------------------------------------------- processes

const CHILD: &str = "SCRIBE_STORE_CHILD";

/// This program, as a writer that tells each thing it has done.
fn child(what: &str, path: &Path, first: u64) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command
        .args(["--exact", "a_child_that_writes", "--nocapture"])
        .env(CHILD, what)
        .env("SCRIBE_STORE_PATH", path)
        .env("SCRIBE_STORE_FIRST", first.to_string())
        .stdout(Stdio::piped())
        .stderr(Stdio::null());
    command
}

/// Not a test: what [`child`] runs.
#[test]
fn a_child_that_writes() {
    let Ok(what) = std::env::var(CHILD) else {
        return;
    };
    let path = PathBuf::from(std::env::var_os("SCRIBE_STORE_PATH").unwrap());
    let first: u64 = std::env::var("SCRIBE_STORE_FIRST")
        .unwrap()
        .parse()
        .unwrap();
    println!("\nready");
    let mut store = Store::open(&path, &making()).unwrap();
    let person = |number: u64| format!("Person Nr. {number}.");
    match what.as_str() {
        "enrol" => {
            for number in first.. {
                store
                    .enrol(Who::Named(&person(number)), &take(number), consent(), None)
                    .unwrap();
                println!("\nack {number}");
            }
        }
        "delete" => {
            for number in first.. {
                let Ok(id) = store.find_id(&person(number)) else {
                    // All are gone: waits to be killed.
                    thread::sleep(Duration::from_secs(60));
                    return;
                };
                let _ = store.delete(id).unwrap();
                println!("\nack {number}");
            }
        }
        "share" => {
            for number in first..first + 12 {
                store
                    .enrol(Who::Named(&person(number)), &take(number), consent(), None)
                    .unwrap();
                if number % 3 == 0 {
                    store
                        .enrol(Who::Named("Everybody"), &take(number), None, None)
                        .unwrap();
                }
            }
        }
        // Until the disk is full.
        "fill" => {
            for number in first.. {
                match store.enrol(Who::Named(&person(number)), &take(number), consent(), None) {
                    Ok(_) => println!("\nack {number}"),
                    Err(error) => {
                        println!("\nfull {error}");
                        return;
                    }
                }
            }
        }
        other => panic!("{other}"),
    }
}

/// Kills a child when it has done `acks` things and some time has passed; returns all that it said it had done.
fn kill_in(mut child: Child, acks: u64, after: Duration) -> Vec<u64> {
    let (said, lines) = mpsc::channel();
    let stdout = BufReader::new(child.stdout.take().unwrap());
    let listener = thread::spawn(move || {
        for line in stdout.lines().map_while(Result::ok) {
            let _ = said.send(line);
        }
    });
    let mut done = Vec::new();
    let mut is_ready = false;
    while !is_ready || (done.len() as u64) < acks {
        let line = lines.recv_timeout(Duration::from_secs(60)).unwrap();
        // Its start takes longer than all that is to be interrupted.
        is_ready |= line == "ready";
        done.extend(acknowledged(&line));
    }
    thread::sleep(after);
    child.kill().unwrap();
    child.wait().unwrap();
    listener.join().unwrap();
    done.extend(lines.try_iter().filter_map(|line| acknowledged(&line)));
    done
}

fn acknowledged(line: &str) -> Option<u64> {
    line.strip_prefix("ack ")?.parse().ok()
}

/// Who is in the store, by the number in their name; each is looked at closely.
fn people(store: &Store) -> BTreeMap<u64, VoiceId> {
    store.check().unwrap();
    let voices = store.voices().unwrap();
    let people = voices.into_iter().map(|voice| {
        let name = voice.name.unwrap();
        let number = name.trim_start_matches("Person Nr. ").trim_end_matches('.');
        let number = number.parse().unwrap();
        assert_eq!(voice.takes, [take(number)], "{name}");
        assert_eq!(voice.consent, consent());
        (number, voice.id)
    });
    people.collect()
}

#[test]
fn who_was_enrolled_before_a_kill_is_there_and_nobody_is_there_in_part() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("voices.db");
    let mut dice = Dice(1);
    let (mut acknowledged, mut next) = (BTreeSet::new(), 0);

    for round in 0..100 {
        let writer = child("enrol", &path, next).spawn().unwrap();
        let acks = kill_in(
            writer,
            dice.below(4),
            Duration::from_micros(dice.below(6_000)),
        );
        acknowledged.extend(acks.iter().copied());

        let store = Store::open(&path, &making()).unwrap();
        let people = people(&store);
        let there: BTreeSet<_> = people.keys().copied().collect();
        assert!(there.is_superset(&acknowledged), "round {round}");
        // One may have been written and not told of.
        let untold = there.range(next..).count() - acks.len();
        assert!(untold <= 1, "round {round}: {untold}");
        next = there.last().map_or(0, |last| last + 1);
    }
    assert!(acknowledged.len() > 50, "{} writes", acknowledged.len());
}

#[test]
fn who_was_deleted_before_a_kill_is_gone_to_the_last_byte_and_nobody_else_is() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("voices.db");
    let (mut dice, mut next) = (Dice(2), 0);
    // Whoever is deleted in all rounds, and some who stay.
    let mut enrolled = 0;

    for round in 0..100 {
        let mut store = Store::open(&path, &making()).unwrap();
        while enrolled < next + 12 {
            let name = format!("Person Nr. {enrolled}.");
            store
                .enrol(Who::Named(&name), &take(enrolled), consent(), None)
                .unwrap();
            enrolled += 1;
        }
        drop(store);
        let deleter = child("delete", &path, next).spawn().unwrap();
        let acks = kill_in(
            deleter,
            dice.below(3),
            Duration::from_micros(dice.below(15_000)),
        );

        let store = Store::open(&path, &OpenOptions::default()).unwrap();
        let there: BTreeSet<_> = people(&store).keys().copied().collect();
        drop(store);
        let told = acks.last().map_or(next, |last| last + 1);
        let first = there.first().copied().unwrap_or(enrolled);
        assert!(
            first == told || first == told + 1,
            "round {round}: {told}, {first}"
        );
        assert!(there.iter().copied().eq(first..enrolled), "round {round}");
        let bytes = bytes_in(folder.path());
        for gone in next..first {
            let name = format!("Person Nr. {gone}.");
            assert!(!has(&bytes, name.as_bytes()), "round {round}: {name}");
            assert!(
                !has(&bytes, &trace_of(&take(gone))),
                "round {round}: {name}"
            );
        }
        next = first;
    }
    assert!(next > 20, "{next} deletions");
}

#[test]
fn eight_processes_write_at_once_and_nothing_is_lost() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("voices.db");

    let children: Vec<_> = (0..8)
        .map(|number| child("share", &path, 1_000 * number).spawn().unwrap())
        .collect();
    for child in children {
        let out = child.wait_with_output().unwrap();
        assert!(
            out.status.success(),
            "{}",
            String::from_utf8_lossy(&out.stdout)
        );
    }

    let store = Store::open(&path, &OpenOptions::default()).unwrap();
    store.check().unwrap();
    let voices = store.voices().unwrap();
    assert_eq!(voices.len(), 8 * 12 + 1);
    let numbers: BTreeSet<_> = voices.iter().map(|voice| voice.number).collect();
    assert_eq!(numbers.len(), voices.len());
    assert_eq!(store.find("Everybody").unwrap().takes.len(), 8 * 4);
}

#[test]
fn a_full_disk_is_an_error_and_the_store_is_as_it_was_before() {
    let folder = tempfile::tempdir().unwrap();
    let disk = folder.path().join("disk");
    fs::create_dir(&disk).unwrap();
    let mounted = Command::new("mount")
        .args(["-t", "tmpfs", "-o", "size=512k", "tmpfs"])
        .arg(&disk)
        .status();
    let is_mounted = mounted.is_ok_and(|status| status.success());
    if !is_mounted {
        eprintln!(
            "a small disk cannot be mounted here: a limit to the size of files stands in for it"
        );
    }
    // Comes off again whatever fails.
    struct Mount(PathBuf, bool);
    impl Drop for Mount {
        fn drop(&mut self) {
            if self.1 {
                let _ = Command::new("umount").arg(&self.0).status();
            }
        }
    }
    let disk = Mount(disk, is_mounted);
    let path = disk.0.join("voices.db");
    let filler = child("fill", &path, 0);
    let mut limited = Command::new("sh");
    limited
        .args([
            "-c",
            "trap '' XFSZ; [ $LIMIT = 0 ] || ulimit -f $LIMIT; exec \"$@\"",
            "sh",
        ])
        .arg(filler.get_program())
        .args(filler.get_args())
        .envs(
            filler
                .get_envs()
                .filter_map(|(name, value)| Some((name, value?))),
        )
        .env("LIMIT", if is_mounted { "0" } else { "4000" })
        .stderr(Stdio::null());

    let said = String::from_utf8(limited.output().unwrap().stdout).unwrap();

    let acks = said
        .lines()
        .filter_map(|line| line.strip_prefix("ack ")?.parse().ok());
    let acks: BTreeSet<u64> = acks.collect();
    let error = said.lines().find(|line| line.starts_with("full ")).unwrap();
    assert!(acks.len() > 10, "{said}");
    let cause = if is_mounted {
        "the disk is full"
    } else {
        "ulimit -f"
    };
    assert!(error.contains(cause), "{error}");
    // Looked at on the full disk, too.
    let store = Store::open(&path, &reading()).unwrap();
    let there: BTreeSet<_> = people(&store).keys().copied().collect();
    assert_eq!(there, acks);
}

#[test]
fn a_writer_that_never_ends_is_named() {
    let (folder, mut store) = store();
    let holder = rusqlite::Connection::open(folder.path().join("voices.db")).unwrap();
    holder.execute_batch("BEGIN IMMEDIATE").unwrap();

    let busy = problem(store.enrol(Who::Nobody, &take(1), None, None));

    assert!(matches!(busy, Problem::Busy { .. }), "{busy}");
    // Readers go on.
    assert!(store.voices().unwrap().is_empty());
}

// ---------------------------------------------------------------- many

/// Prints how long it takes: `-- ten_thousand --nocapture`.
#[test]
fn ten_thousand_voices_are_opened_and_read() {
    const VOICES: u64 = 10_000;
    let folder = tempfile::tempdir().unwrap();
    let from = folder.path().join("from.json");
    write_many(&from, VOICES);
    let key = Key::random().unwrap();
    for (name, options) in [("plain", making()), ("encrypted", sealed(&key))] {
        let path = folder.path().join(name);
        let begun = Instant::now();
        let mut store = Store::open(&path, &options).unwrap();
        store.import(&mut fs::File::open(&from).unwrap()).unwrap();
        drop(store);
        let imported = begun.elapsed();

        let begun = Instant::now();
        let store = Store::open(&path, &options).unwrap();
        let voices = store.voices().unwrap();
        let loaded = begun.elapsed();

        assert_eq!(voices.len(), VOICES as usize);
        assert!(voices.iter().all(|voice| voice.takes.len() == 2));
        let begun = Instant::now();
        assert_eq!(
            store.find("Person 7777").unwrap().takes[0].mean,
            vector(2 * 7_777, 256)
        );
        println!(
            "{name}: {} MB, imported in {imported:.1?}, opened and read in {loaded:.0?}, one found in {:.1?}",
            fs::metadata(&path).unwrap().len() / 1_000_000,
            begun.elapsed()
        );
    }
}

/// An export of so many people with two takes each, 256 values a vector.
fn write_many(path: &Path, voices: u64) {
    let recording = |seed: u64| {
        serde_json::json!({
            "at": format!("2026-01-01T00:00:0{}Z", seed % 2), "net_speech_s": 10.0, "segments": 4, "snr_db": 20.0,
            "level_dbfs": -20.0, "clipping": 0.0, "agreement": null, "is_telephone": false,
            "mean": base64_of(&vector(seed, 256)), "exemplars": [base64_of(&vector(seed + 500_000, 256))],
        })
    };
    let people: Vec<_> = (0..voices)
        .map(|number| {
            serde_json::json!({
                "id": VoiceId(number + 1).to_string(), "name": format!("Person {number}"), "consent": null,
                "created": "2026-01-01T00:00:00Z", "updated": "2026-01-01T00:00:00Z", "expires": null,
                "takes": [recording(2 * number), recording(2 * number + 1)],
            })
        })
        .collect();
    let document = serde_json::json!({
        "schema": "scribe-voices/1",
        "model": { "name": "fake", "version": "ab".repeat(32), "dimension": 256 },
        "voices": people,
    });
    fs::write(path, document.to_string()).unwrap();
}
