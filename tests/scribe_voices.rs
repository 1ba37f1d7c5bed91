// SPDX-License-Identifier: MPL-2.0
//! `scribe-voices`, as people and programs use it.

#![cfg(feature = "cli")]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]
#![allow(clippy::print_stderr, reason = "a skipped test says why")]

use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use gstscribe::voices::{Key, ModelKey, OpenOptions, Quality, Store, Take, Who};
use serde_json::Value;
use tempfile::TempDir;

/// A folder with a store in it.
struct Place {
    folder: TempDir,
}

/// What a command has said.
struct Said {
    code: Option<i32>,
    out: String,
    err: String,
}

impl Said {
    fn json(&self) -> Value {
        serde_json::from_str(&self.out).unwrap_or_else(|e| panic!("{e}: {}{}", self.out, self.err))
    }
}

fn take(seed: u32) -> Take {
    let mut mean = vec![0.0; 16];
    mean[(seed % 16) as usize] = 1.0;
    Take {
        model: ModelKey {
            name: "fake-embedding".into(),
            version: "ab".repeat(32),
            dimension: 16,
        },
        exemplars: vec![mean.clone()],
        mean,
        quality: Quality {
            net_speech_s: 12.0,
            segments: 4,
            snr_db: Some(20.0),
            level_dbfs: -21.0,
            agreement: Some(0.8),
            ..Quality::default()
        },
        at: 1_750_000_000 + u64::from(seed),
    }
}

impl Place {
    /// With Alice, Bob, and one without a name.
    fn new() -> Self {
        let place = Self::empty();
        let mut store = Store::open(&place.path("voices.db"), &making(None)).unwrap();
        store
            .enrol(Who::Named("Alice"), &take(1), None, None)
            .unwrap();
        store
            .enrol(Who::Named("Alice"), &take(2), None, None)
            .unwrap();
        store
            .enrol(Who::Named("Bob"), &take(3), None, None)
            .unwrap();
        store.enrol(Who::Nobody, &take(4), None, None).unwrap();
        place
    }

    fn empty() -> Self {
        Self {
            folder: tempfile::tempdir().unwrap(),
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_scribe-voices"));
        command
            .current_dir(self.folder.path())
            .args(arguments)
            .env("SCRIBE_VOICES", "voices.db")
            .env_remove("SCRIBE_VOICES_KEY")
            .env_remove("SCRIBE_VOICES_KEY_FILE")
            .stdin(Stdio::null());
        command
    }

    fn say(&self, arguments: &[&str]) -> Said {
        run(&mut self.command(arguments))
    }

    /// A command that must succeed.
    fn done(&self, arguments: &[&str]) -> Said {
        let said = self.say(arguments);
        assert_eq!(
            said.code,
            Some(0),
            "{arguments:?}: {}{}",
            said.out,
            said.err
        );
        said
    }

    /// The labels in the list.
    fn labels(&self) -> Vec<String> {
        let list = self.done(&["list", "--json"]).json();
        let label = |voice: &Value| voice["label"].as_str().unwrap().to_owned();
        list.as_array().unwrap().iter().map(label).collect()
    }
}

fn run(command: &mut Command) -> Said {
    let output = command.output().unwrap();
    Said {
        code: output.status.code(),
        out: String::from_utf8(output.stdout).unwrap(),
        err: String::from_utf8(output.stderr).unwrap(),
    }
}

fn making(key: Option<Key>) -> OpenOptions {
    OpenOptions {
        create: true,
        key,
        ..OpenOptions::default()
    }
}

#[test]
fn the_list_is_a_table_for_people_and_json_for_programs_and_has_no_vectors() {
    let place = Place::new();

    let table = place.done(&["list"]).out;
    let json = place
        .done(&["--voices", "voices.db", "list", "--json"])
        .json();

    let rows: Vec<_> = table.lines().collect();
    assert_eq!(rows.len(), 4, "{table}");
    assert!(rows[0].contains("NAME") && rows[1].contains("Alice") && rows[3].contains("Speaker 3"));
    let keys: Vec<_> = json[0].as_object().unwrap().keys().cloned().collect();
    assert_eq!(
        keys,
        [
            "id",
            "number",
            "name",
            "label",
            "grade",
            "net_speech_s",
            "takes",
            "model",
            "consent",
            "created",
            "updated",
            "expires"
        ]
    );
    assert_eq!(json[0]["takes"], 2);
    assert_eq!(json[0]["grade"], "good");
    assert_eq!(json[0]["model"]["name"], "fake-embedding");
    assert_eq!(json[2]["name"], Value::Null);
    assert_eq!(json[2]["label"], "Speaker 3");
}

#[test]
fn a_voice_is_shown_by_name_number_and_id() {
    let place = Place::new();
    let alice = place.done(&["show", "Alice", "--json"]).json();

    assert_eq!(alice["recordings"].as_array().unwrap().len(), 2);
    assert_eq!(alice["recordings"][0]["snr_db"], 20.0);
    for who in ["alice", alice["id"].as_str().unwrap()] {
        let text = place.done(&["show", who]).out;
        assert!(text.starts_with("Alice  (number 1)"), "{text}");
        assert!(text.contains("good: 24.0 s of speech in 2 takes"), "{text}");
    }
    assert!(
        place
            .done(&["show", "speaker 3"])
            .out
            .starts_with("Speaker 3")
    );
    let unknown = place.say(&["show", "Alise"]);
    assert_eq!(unknown.code, Some(2));
    assert!(
        unknown.err.contains("did you mean \"Alice\"?"),
        "{}",
        unknown.err
    );
}

#[test]
fn voices_are_renamed_and_merged() {
    let place = Place::new();
    let id = place.done(&["show", "Speaker 3", "--json"]).json()["id"].clone();

    place.done(&["rename", "Speaker 3", "Carla"]);
    assert_eq!(place.labels(), ["Alice", "Bob", "Carla"]);
    assert_eq!(place.say(&["rename", "Carla", "Bob"]).code, Some(1));
    let unanswered = place.say(&["merge", "Carla", "Alice"]);
    assert_eq!(unanswered.code, Some(2), "{}", unanswered.err);
    assert!(unanswered.err.contains("--yes"), "{}", unanswered.err);
    let merged = place
        .done(&["merge", "Carla", "Alice", "--yes", "--json"])
        .json();

    assert_eq!(merged["takes"], 3);
    assert_eq!(place.labels(), ["Alice", "Bob"]);
    let text = place.done(&["show", id.as_str().unwrap()]).out;
    assert!(
        text.starts_with("Alice") && text.contains(id.as_str().unwrap()),
        "{text}"
    );
}

#[test]
fn deleting_asks_and_leaves_nothing_and_names_the_backups() {
    let place = Place::new();
    fs::write(place.path("voices.db.v0.bak"), "old").unwrap();
    fs::write(place.path("other.bak"), "old").unwrap();

    let unanswered = place.say(&["delete", "Bob"]);
    assert_eq!(unanswered.code, Some(2));
    assert!(unanswered.err.contains("--yes"), "{}", unanswered.err);
    assert_eq!(place.labels().len(), 3);
    let deleted = place.done(&["delete", "Bob", "speaker 3", "bob", "--yes"]);

    assert!(deleted.out.contains("Bob (voice-"), "{}", deleted.out);
    assert!(deleted.err.contains("voices.db.v0.bak"), "{}", deleted.err);
    assert!(!deleted.err.contains("other.bak"), "{}", deleted.err);
    assert_eq!(place.labels(), ["Alice"]);
    let bytes = fs::read(place.path("voices.db")).unwrap();
    assert!(!bytes.windows(3).any(|w| w == b"Bob"));
    assert_eq!(place.say(&["delete", "Bob", "--yes"]).code, Some(2));
}

#[test]
fn an_export_is_for_its_owner_and_makes_the_same_people_elsewhere() {
    let place = Place::new();

    place.done(&["export", "all.json"]);
    place.done(&["export", "--only", "Bob", "bob.json"]);
    let again = place.say(&["export", "all.json"]);
    assert_eq!(again.code, Some(2));
    assert!(again.err.contains("--force"), "{}", again.err);
    place.done(&["export", "all.json", "--force"]);

    let mode = fs::metadata(place.path("all.json"))
        .unwrap()
        .permissions()
        .mode();
    assert_eq!(mode & 0o777, 0o600);
    let one: Value = serde_json::from_slice(&fs::read(place.path("bob.json")).unwrap()).unwrap();
    assert_eq!(one["schema"], "scribe-voices/1");
    assert_eq!(one["voices"].as_array().unwrap().len(), 1);
    // Through a pipe.
    let exported = place.done(&["export"]).out;
    let mut import = place.command(&["--voices", "new.db", "import", "-", "--json"]);
    let mut import = import
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    import
        .stdin
        .take()
        .unwrap()
        .write_all(exported.as_bytes())
        .unwrap();
    let imported = import.wait_with_output().unwrap();
    let imported: Value = serde_json::from_slice(&imported.stdout).unwrap();
    assert_eq!(
        (&imported["voices_new"], &imported["takes_new"]),
        (&3.into(), &4.into())
    );
    let list = |store| place.done(&["--voices", store, "list", "--json"]).json();
    assert_eq!(list("new.db"), list("voices.db"));
    let refused = place.say(&[
        "--voices",
        "strict.db",
        "import",
        "all.json",
        "--require-consent",
    ]);
    assert!(
        refused.err.contains("has given no consent"),
        "{}",
        refused.err
    );
    let files: Vec<_> = fs::read_dir(place.folder.path())
        .unwrap()
        .map(|e| e.unwrap().file_name())
        .collect();
    assert!(
        files.iter().all(|f| !f.to_string_lossy().contains("part")),
        "{files:?}"
    );
}

#[test]
fn terms_are_set_and_kept() {
    let place = Place::new();

    place.done(&["expire", "Alice", "--in", "90d"]);
    place.done(&["expire", "Bob", "--on", "2020-01-01"]);
    assert_eq!(
        place.say(&["expire", "Alice", "--in", "soon"]).code,
        Some(2)
    );
    assert_eq!(place.say(&["expire", "Alice"]).code, Some(2));
    assert_eq!(place.say(&["expire", "--never"]).code, Some(2));
    let list = place.done(&["list", "--json"]);
    assert!(list.json()[0]["expires"].is_string());
    assert!(
        list.err.contains("1 voice has expired and is still"),
        "{}",
        list.err
    );
    let dry = place.done(&["expire", "--dry-run"]).out;
    assert!(dry.starts_with("would remove Bob"), "{dry}");
    let gone = place.done(&["expire", "--json"]).json();

    assert_eq!(gone["removed"][0]["label"], "Bob");
    assert_eq!(place.done(&["expire"]).out.trim(), "nobody has expired");
    place.done(&["expire", "Alice", "--never"]);
    assert_eq!(
        place.done(&["list", "--json"]).json()[0]["expires"],
        Value::Null
    );
}

#[test]
fn a_consent_is_written_down_when_it_says_all() {
    let place = Place::new();
    let consent = |when: &str| {
        place.say(&[
            "consent", "Alice", "--who", "Alice A.", "--when", when, "--for", "minutes",
        ])
    };

    assert_eq!(consent("yesterday").code, Some(2));
    assert_eq!(consent("2026-11-26").code, Some(0));

    let shown = place.done(&["show", "Alice", "--json"]).json();
    assert_eq!(shown["consent"]["who"], "Alice A.");
    assert_eq!(shown["consent"]["for"], "minutes");
    assert!(
        place
            .done(&["show", "Alice"])
            .out
            .contains("given by Alice A. on 2026-11-26 for minutes")
    );
}

#[test]
fn a_store_is_encrypted_with_a_key_that_only_its_owner_reads() {
    let place = Place::new();
    let plain = place.done(&["list", "--json"]).json();
    place.done(&["keygen", "one.key"]);
    place.done(&["keygen", "two.key"]);
    assert_eq!(place.say(&["keygen", "one.key"]).code, Some(1));
    let mode = fs::metadata(place.path("one.key"))
        .unwrap()
        .permissions()
        .mode();
    assert_eq!(mode & 0o777, 0o600);

    assert_eq!(place.say(&["encrypt"]).code, Some(2));
    place.done(&["encrypt", "--key-file", "one.key"]);

    let locked = place.say(&["list"]);
    assert_eq!(locked.code, Some(1));
    assert!(locked.err.contains("SCRIBE_VOICES_KEY"), "{}", locked.err);
    let wrong = place.say(&["list", "--key-file", "two.key"]);
    assert!(
        wrong.err.contains("not the key of the store"),
        "{}",
        wrong.err
    );
    assert_eq!(
        place.say(&["encrypt", "--key-file", "two.key"]).code,
        Some(1)
    );
    assert_eq!(
        place
            .done(&["list", "--json", "--key-file", "one.key"])
            .json(),
        plain
    );
    place.done(&[
        "rekey",
        "--key-file",
        "one.key",
        "--new-key-file",
        "two.key",
    ]);
    let text = fs::read_to_string(place.path("two.key")).unwrap();
    let by_variable = run(place
        .command(&["list", "--json"])
        .env("SCRIBE_VOICES_KEY", text.trim()));
    assert_eq!(by_variable.json(), plain);
    let not_a_key = run(place.command(&["list"]).env("SCRIBE_VOICES_KEY", "secret"));
    assert!(
        not_a_key.err.contains("SCRIBE_VOICES_KEY holds no key")
            && !not_a_key.err.contains("secret")
    );
    let by_file = run(place
        .command(&["decrypt", "--yes"])
        .env("SCRIBE_VOICES_KEY_FILE", "two.key"));
    assert_eq!(by_file.code, Some(0), "{}", by_file.err);
    assert_eq!(place.done(&["list", "--json"]).json(), plain);
}

#[test]
fn a_check_says_what_is_damaged_and_a_damaged_voice_can_be_deleted() {
    let place = Place::new();
    fs::set_permissions(place.path("voices.db"), fs::Permissions::from_mode(0o644)).unwrap();
    let whole = place.done(&["check", "--json"]);
    assert_eq!(
        (&whole.json()["voices"], &whole.json()["takes"]),
        (&3.into(), &4.into())
    );
    assert!(whole.err.contains("chmod 600"), "{}", whole.err);
    let id = place.done(&["show", "Bob", "--json"]).json()["id"]
        .as_str()
        .unwrap()
        .to_owned();
    let conn = rusqlite::Connection::open(place.path("voices.db")).unwrap();
    conn.execute_batch("UPDATE voice SET content = x'00' WHERE number = 2")
        .unwrap();
    drop(conn);

    let damaged = place.say(&["check"]);

    assert_eq!(damaged.code, Some(1));
    assert!(
        damaged.err.contains(&format!("{id} does not open")),
        "{}",
        damaged.err
    );
    place.done(&["delete", &id, "--yes"]);
    assert_eq!(place.labels(), ["Alice", "Speaker 3"]);
}

#[test]
fn without_a_store_the_remedy_is_named() {
    let place = Place::empty();

    let missing = place.say(&["list"]);
    let unnamed = run(place.command(&["list"]).env_remove("SCRIBE_VOICES"));

    assert_eq!(missing.code, Some(1));
    assert!(
        missing.err.contains("enrol someone first"),
        "{}",
        missing.err
    );
    assert_eq!(unnamed.code, Some(2));
    assert!(unnamed.err.contains("--voices"), "{}", unnamed.err);
    assert!(!place.path("voices.db").exists());
}

#[test]
fn names_cannot_steer_the_terminal() {
    let place = Place::empty();
    let mut store = Store::open(&place.path("voices.db"), &making(None)).unwrap();
    store
        .enrol(Who::Named("evil\u{202e}eman"), &take(1), None, None)
        .unwrap();
    drop(store);

    for arguments in [
        &["list"][..],
        &["show", "evil\u{202e}eman"],
        &["delete", "evil\u{202e}eman", "--yes"],
    ] {
        let said = place.done(arguments);
        assert!(said.out.contains("evil\\u{202e}eman"), "{}", said.out);
    }
}

#[test]
fn who_may_only_read_can_read_and_is_told_why_not_to_write() {
    let place = Place::new();
    // Another user than root, whom no mode stops.
    let program = place.path("scribe-voices");
    let copied = Command::new("cp")
        .arg(env!("CARGO_BIN_EXE_scribe-voices"))
        .arg(&program)
        .status();
    assert!(copied.unwrap().success());
    let set =
        |path: &Path, mode| fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    let is_root = rustix::process::getuid().is_root();
    let nobody = |arguments: &[&str]| {
        let mut command = Command::new(&program);
        command
            .args(arguments)
            .env("SCRIBE_VOICES", place.path("voices.db"));
        if is_root {
            command.uid(65_534).gid(65_534);
        }
        run(&mut command)
    };
    set(&place.path("voices.db"), 0o444);
    set(place.folder.path(), 0o555);

    let list = nobody(&["list", "--json"]);
    let rename = nobody(&["rename", "Bob", "Robert"]);
    let check = nobody(&["check"]);

    set(place.folder.path(), 0o777);
    let file_alone = nobody(&["list", "--json"]);
    set(&place.path("voices.db"), 0);
    let unreadable = nobody(&["list"]);
    set(place.folder.path(), 0o700);
    assert!(unreadable.err.contains("read access"), "{}", unreadable.err);
    assert_eq!(list.code, Some(0), "{}", list.err);
    assert_eq!(list.json().as_array().unwrap().len(), 3);
    assert_eq!(rename.code, Some(1));
    assert!(rename.err.contains("write access"), "{}", rename.err);
    assert_eq!(check.code, Some(0), "{}", check.err);
    assert_eq!(file_alone.code, Some(0), "{}", file_alone.err);
}

#[test]
fn completions_and_the_manual_page_know_every_command() {
    let place = Place::empty();

    for shell in ["bash", "zsh", "fish"] {
        let text = place.done(&["completions", shell]).out;
        for word in ["rename", "keygen", "dry-run"] {
            assert!(text.contains(word), "{shell}: no {word}");
        }
    }
    let page = place.done(&["man"]).out;
    fs::write(place.path("scribe-voices.1"), &page).unwrap();
    for command in ["list", "merge", "export", "consent", "rekey", "check"] {
        assert!(page.contains(&format!(".SS {command}\n")), "{command}");
    }
    match Command::new("man")
        .arg("-l")
        .arg(place.path("scribe-voices.1"))
        .env("MANPAGER", "cat")
        .output()
    {
        Ok(shown) if shown.status.success() => {
            let text = String::from_utf8_lossy(&shown.stdout).into_owned();
            assert!(
                text.contains("COMMANDS") && text.contains("SCRIBE_VOICES_KEY"),
                "{text}"
            );
        }
        _ => eprintln!("no man here: the page was looked at as text alone"),
    }
}
