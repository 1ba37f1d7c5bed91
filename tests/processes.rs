// SPDX-License-Identifier: MPL-2.0
//! Several processes of one user on one made-up card: together they never take more than one of them may.
//!
//! Most of them are `gst-launch-1.0` with the plugin as this program has it: with fakes. The card is a file and keeps the
//! most that was ever taken of it.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]
#![allow(clippy::print_stderr, reason = "a skipped test says why")]

mod common;
#[path = "common/process.rs"]
mod process;

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use common::{eventually, repository, runs};
use gstscribe::inference::card::{Card, CardSpec};
use gstscribe::inference::{CancelToken, DeviceId};
use gstscribe::registry::clock::SystemClock;
use gstscribe::registry::device::simulated::Simulated;
use gstscribe::registry::ledger::{Bound, Demand, DeviceSpec, Ledger};
use gstscribe::registry::{Registry, Request, Whisper, WhisperSpec};

const MIB: u64 = 1 << 20;
const SOUND: &str = "tests/data/speech_short.flac";

/// A folder with what processes share: a card, a book, a gate, and the plugin alone.
struct Shared {
    folder: tempfile::TempDir,
    card: Arc<Card>,
    plugin: bool,
}

/// A transcription in a process of its own.
struct Launched {
    child: Child,
    out: PathBuf,
}

impl Shared {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let card = Card::in_file(CardSpec::of_gib(16), &folder.path().join("card"));
        let plugin = install(&folder.path().join("plugin"));
        Self {
            folder,
            card,
            plugin,
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Memory that scribe's processes could have.
    fn capacity(&self) -> u64 {
        self.card.spec().total - self.card.spec().driver_reserve
    }

    /// What a model and a lane of so many MiB in all take with their process's context.
    fn of_process(&self, mib: u64) -> u64 {
        mib * MIB + self.card.spec().context_bytes
    }

    /// The most that was taken by scribe's processes, as a part of what they could have.
    fn peak(&self) -> f64 {
        let peak = self.card.peak() - self.card.spec().driver_reserve;
        peak as f64 / self.capacity() as f64
    }

    /// Lines in the book of the card.
    fn lines(&self) -> Vec<String> {
        let text = std::fs::read_to_string(self.path("run/ledger-simulated-0"));
        let lines = text.unwrap_or_default();
        lines
            .lines()
            .take_while(|l| *l != ".")
            .map(str::to_owned)
            .collect()
    }

    fn environment<'a>(&self, command: &'a mut Command) -> &'a mut Command {
        command
            .env("SCRIBE_SIMULATED_CARD", self.path("card"))
            .env("SCRIBE_RUNTIME_DIR", self.path("run"))
            .env("GST_PLUGIN_PATH", self.path("plugin"))
            .env("LC_ALL", "C")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
    }

    /// Begins to transcribe with a model of `weights` and lanes of `lane` MiB, which ends when the gate opens.
    fn launch(&self, name: &str, weights: u64, lane: u64) -> Launched {
        let out = self.path(&format!("{name}.txt"));
        let gate = self.path("gate").display().to_string();
        let model = format!(
            "fake:card=0,weights={weights},lane={lane},load=50,says={name}+speaks,gate={gate}"
        );
        let mut command = Command::new("gst-launch-1.0");
        command
            .args(["-q", "filesrc"])
            .arg(format!("location={}", repository(SOUND).display()))
            .args(["!", "decodebin", "!", "audioconvert", "!"])
            .args(["scribetranscriber", "vad-model=fake:"])
            .arg(format!("model={model}"))
            .args(["!", "scribeenc", "format=text", "!", "filesink"])
            .arg(format!("location={}", out.display()))
            .env("GST_REGISTRY", self.path(&format!("{name}.registry")));
        let child = self.environment(&mut command).spawn().unwrap();
        Launched { child, out }
    }

    fn open_gate(&self) {
        std::fs::write(self.path("gate"), "").unwrap();
    }
}

impl Launched {
    /// Waits for the end, which must be a good one: the text that it wrote.
    fn text(self) -> String {
        let out = finished(self.child);
        assert!(
            out.status.success(),
            "{}\n{}",
            out.status,
            String::from_utf8_lossy(&out.stderr)
        );
        std::fs::read_to_string(&self.out).unwrap()
    }
}

/// Waits for the end of `child`; one that hangs is killed.
fn finished(mut child: Child) -> Output {
    let guard = Instant::now() + 4 * common::GUARD;
    while child.try_wait().unwrap().is_none() {
        if Instant::now() > guard {
            child.kill().unwrap();
            let out = child.wait_with_output().unwrap();
            panic!("it hangs: {}", String::from_utf8_lossy(&out.stderr));
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    child.wait_with_output().unwrap()
}

/// Puts the plugin that was built with this program into a folder of its own. False where the test cannot run.
fn install(folder: &Path) -> bool {
    if !runs("gst-launch-1.0", &["--version"], "make setup") {
        return false;
    }
    let built = std::env::current_exe()
        .unwrap()
        .with_file_name("libgstscribe.so");
    let bytes = std::fs::read(&built).unwrap_or_default();
    let marker = b"SCRIBE_SIMULATED_CARD";
    if !bytes.windows(marker.len()).any(|w| w == marker) {
        let complete = std::env::var("SCRIBE_TEST_COMPLETE").is_ok_and(|v| v == "1");
        assert!(
            !complete,
            "{} has no fakes: another build has replaced it. touch src/lib.rs, and test again",
            built.display()
        );
        eprintln!(
            "skipped: {} has no fakes: touch src/lib.rs, and test again",
            built.display()
        );
        return false;
    }
    std::fs::create_dir(folder).unwrap();
    std::fs::write(folder.join("libgstscribe.so"), bytes).unwrap();
    true
}

/// Four at once, of which `together` fit beside each other: those that do not wait until the others have ended.
fn four_at_once(weights: u64, lane: u64, together: u64) {
    let shared = Shared::new();
    if !shared.plugin {
        return;
    }
    let one = shared.of_process(weights + lane);
    let names = ["anna", "ben", "cleo", "dan"];

    let launched = names.map(|name| shared.launch(name, weights, lane));
    eventually("as many have loaded as fit", || {
        shared.card.taken_by_processes() >= together * one
    });
    eventually("all have asked", || shared.lines().len() == 4);
    shared.open_gate();
    let texts = launched.map(Launched::text);

    for (name, text) in names.iter().zip(&texts) {
        assert_eq!(text.trim(), format!("{name} speaks"));
    }
    assert!(shared.peak() <= 0.8, "{}", shared.peak());
    assert_eq!(shared.card.refused(), 0);
    assert_eq!(shared.card.taken_by_processes(), 0);
}

#[test]
fn four_processes_of_which_two_fit_never_pass_the_ceiling() {
    // Of what the driver leaves each takes 35 %.
    four_at_once(4400, 750, 2);
}

#[test]
fn four_processes_of_which_the_third_would_just_not_fit_never_pass_the_ceiling() {
    // Three would take 80.3 %.
    four_at_once(3300, 540, 2);
}

#[test]
fn the_memory_of_a_killed_process_goes_to_one_that_waits() {
    let shared = Shared::new();
    if !shared.plugin {
        return;
    }
    let one = shared.of_process(5150);
    let mut victim = shared.launch("victim", 4400, 750);
    eventually("the first has loaded", || {
        shared.card.taken_by_processes() == one
    });
    let others = ["ben", "cleo"].map(|name| shared.launch(name, 4400, 750));
    eventually("the second has loaded and the third waits", || {
        shared.card.taken_by_processes() == 2 * one && shared.lines().len() == 3
    });

    victim.child.kill().unwrap();
    victim.child.wait().unwrap();

    eventually("the third has loaded", || {
        others
            .iter()
            .all(|o| shared.card.held_by(o.child.id()) == one)
    });
    let pid = format!("{} ", victim.child.id());
    assert!(!shared.lines().iter().any(|l| l.starts_with(&pid)));
    shared.open_gate();
    let texts = others.map(Launched::text);
    assert_eq!(
        texts.map(|t| t.trim().to_owned()),
        ["ben speaks", "cleo speaks"]
    );
    assert!(shared.peak() <= 0.8, "{}", shared.peak());
}

/// Whoever waits gives up after ten seconds in which nothing is done. Here something is, in another process.
#[test]
fn a_process_waits_as_long_as_another_works() {
    let shared = Shared::new();
    if !shared.plugin {
        return;
    }
    let first = shared.launch("first", 7000, 750);
    eventually("the first has loaded", || {
        shared.card.taken_by_processes() > 7000 * MIB
    });
    let mut second = shared.launch("second", 7000, 750);
    eventually("the second waits", || shared.lines().len() == 2);

    std::thread::sleep(Duration::from_secs(14));
    let ended = second.child.try_wait().unwrap();
    shared.open_gate();

    let texts = [first, second].map(Launched::text);
    assert_eq!(ended, None);
    assert_eq!(
        texts.map(|t| t.trim().to_owned()),
        ["first speaks", "second speaks"]
    );
    assert!(shared.peak() <= 0.8, "{}", shared.peak());
}

/// Holds an idle model until it is told to end.
fn holder() {
    let registry = Registry::new(1, Duration::from_secs(300));
    let spec = WhisperSpec::Fake("card=0,weights=7000,lane=700".into());
    let request = Request::<Whisper>(spec);
    drop(registry.acquire(request, &CancelToken::new()).unwrap());
    process::tell(&format!("loaded {}", registry.stats().len()));
    let mut line = String::new();
    std::io::stdin().read_line(&mut line).unwrap();
    process::tell(&format!("loaded {}", registry.stats().len()));
}

#[test]
fn a_model_that_idles_in_one_process_goes_when_another_waits_for_its_memory() {
    if process::task().is_some() {
        return holder();
    }
    let shared = Shared::new();
    if !shared.plugin {
        return;
    }
    let name = "a_model_that_idles_in_one_process_goes_when_another_waits_for_its_memory";
    let mut command = process::command(name, "hold");
    let mut holder = shared
        .environment(&mut command)
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    let mut told = BufReader::new(holder.stdout.take().unwrap())
        .lines()
        .filter_map(|line| process::told(&line.unwrap()));
    assert_eq!(told.next().as_deref(), Some("loaded 1"));
    shared.open_gate();

    let text = shared.launch("guest", 7000, 700).text();

    holder.stdin.take().unwrap().write_all(b"end\n").unwrap();
    assert_eq!(told.next().as_deref(), Some("loaded 0"));
    assert!(finished(holder).status.success());
    assert_eq!(text.trim(), "guest speaks");
    assert!(shared.peak() <= 0.8, "{}", shared.peak());
}

/// The card of the storm gives memory back sooner than a real one does.
fn storm_card(file: &Path) -> Arc<Card> {
    let spec = CardSpec {
        lag: Duration::from_millis(15),
        ..CardSpec::of_gib(16)
    };
    Card::in_file(spec, file)
}

/// Reserves, takes and gives back as fast as it can, at sizes of its own.
fn storm(seed: u64) {
    let card = storm_card(std::env::var_os("SCRIBE_TEST_CARD").unwrap().as_ref());
    let own = std::process::id();
    let device = Arc::new(Simulated::new(0, &card, own));
    let ledger = Ledger::new(
        vec![DeviceSpec::shared(device, None)],
        Arc::new(SystemClock::default()),
    );
    let reserve = |bytes| {
        let demand = Demand {
            device: DeviceId::Simulated(0),
            bytes,
            what: "storm".into(),
            apart: false,
        };
        ledger.try_reserve(&[demand], Bound::Ceiling)
    };
    // Something is always held: a context without any reservation would count as a stranger's.
    let room = loop {
        // Others may have been here for a while.
        match reserve(MIB) {
            Ok(room) => break room,
            Err(_) => std::thread::sleep(Duration::from_millis(1)),
        }
    };
    let _held = (room, card.alloc(own, MIB).unwrap());
    let mut state = seed;
    let mut random = || {
        // Xorshift.
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    let mut got = 0;
    while got < 60 {
        let Ok(room) = reserve((500 + random() % 5000) * MIB) else {
            std::thread::sleep(Duration::from_millis(1));
            continue;
        };
        got += 1;
        // In two pieces, as a model and its lane are taken.
        let bytes: u64 = room.iter().map(|r| r.bytes()).sum();
        let first = card.alloc(own, bytes / 2).unwrap();
        std::thread::sleep(Duration::from_micros(random() % 3000));
        let second = card.alloc(own, bytes - bytes / 2).unwrap();
        std::thread::sleep(Duration::from_micros(random() % 3000));
        drop((first, second));
    }
    process::tell("done");
}

#[test]
fn four_processes_that_take_and_give_back_all_the_time_never_pass_the_ceiling() {
    if let Some(seed) = process::task() {
        return storm(seed.parse().unwrap());
    }
    let name = "four_processes_that_take_and_give_back_all_the_time_never_pass_the_ceiling";
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("card");

    let children: Vec<Child> = (1..=4u64)
        .map(|n| {
            process::command(name, &(n * 0x9e37_79b9).to_string())
                .env("SCRIBE_TEST_CARD", &file)
                .env("SCRIBE_RUNTIME_DIR", folder.path().join("run"))
                .spawn()
                .unwrap()
        })
        .collect();
    for child in children {
        let out = finished(child);
        assert!(out.status.success(), "{out:?}");
    }

    let card = storm_card(&file);
    let left = (card.spec().total - card.spec().driver_reserve) as f64;
    let peak = (card.peak() - card.spec().driver_reserve) as f64 / left;
    assert!(peak <= 0.8, "{peak}");
    // They did get in each other's way.
    assert!(peak > 0.6, "{peak}");
    assert_eq!(card.refused(), 0);
}
