// SPDX-License-Identifier: MPL-2.0
//! The registry from outside: one load however many ask, jobs in their order, nothing lost to a panic.
//!
//! That leases of different kinds are different types is shown by the doc test of `gstscribe::registry`.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod common;

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Barrier, Mutex, mpsc};
use std::time::Duration;

use common::{GUARD, at_once, eventually, registry};
use gstscribe::inference::fake::{self, FakeSpeech};
use gstscribe::inference::{
    BatchParams, CancelToken, Decoded, EngineError, VadBlock, VadState, Window,
};
use gstscribe::registry::{
    Class, Lease, Registry, Request, Ticket, VadSpec, VoiceActivity, Whisper, WhisperSpec,
};

fn request(name: &str) -> Request<Whisper> {
    Request(WhisperSpec::Fake(name.to_owned()))
}

fn lease(registry: &Registry, name: &str) -> Lease<Whisper> {
    registry
        .acquire(request(name), &CancelToken::new())
        .unwrap()
}

/// A window of `seconds` that a fake finds again by its prompt.
fn window(prompt: &str, seconds: usize) -> Window {
    Window {
        id: 0,
        samples: vec![0.3; seconds * 16_000].into(),
        language: Default::default(),
        task: Default::default(),
        prompt: prompt.to_owned(),
        vocabulary: Vec::new(),
        prefix: Vec::new(),
        most_tokens: 0,
        cancel: CancelToken::new(),
    }
}

fn submit(lease: &Lease<Whisper>, prompt: &str, class: Class) -> Ticket<Decoded> {
    lease.submit(window(prompt, 1), BatchParams::default(), class, None)
}

fn text(ticket: &mut Ticket<Decoded>) -> Result<String, EngineError> {
    let decoded = ticket.wait(GUARD).expect("an answer")?;
    let bytes: Vec<u8> = decoded
        .tokens
        .iter()
        .flat_map(|t| t.bytes.clone())
        .collect();
    Ok(String::from_utf8(bytes).unwrap())
}

/// A fake that holds its first job until the gate opens and writes down the prompts it was given.
fn gated(name: &str) -> (Arc<AtomicBool>, Arc<Mutex<Vec<String>>>) {
    let gate = Arc::new(AtomicBool::new(false));
    let seen: Arc<Mutex<Vec<String>>> = Arc::default();
    let (own_gate, own_seen) = (Arc::clone(&gate), Arc::clone(&seen));
    FakeSpeech::new(move |window, _| {
        own_seen.lock().unwrap().push(window.prompt.clone());
        while !own_gate.load(Ordering::SeqCst) {
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(fake::spread("done", window))
    })
    .register(name);
    (gate, seen)
}

#[test]
fn many_askers_cause_one_load() {
    let mut model = FakeSpeech::saying("x");
    model.load_delay = Duration::from_millis(100);
    let loads = Arc::clone(&model.loads);
    model.register("many_askers");
    let registry = registry();
    let barrier = Barrier::new(8);

    let leases: Vec<_> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..8)
            .map(|_| {
                scope.spawn(|| {
                    barrier.wait();
                    lease(&registry, "many_askers")
                })
            })
            .collect();
        threads.into_iter().map(|t| t.join().unwrap()).collect()
    });

    assert_eq!(loads.load(Ordering::SeqCst), 1);
    assert_eq!(registry.stats().len(), 1);
    assert_eq!(registry.stats()[0].leases, 8);
    drop(leases);
    assert_eq!(registry.stats()[0].leases, 0);
}

#[test]
fn equal_specs_share_a_model_and_others_do_not() {
    FakeSpeech::saying("x").register("equal_a");
    FakeSpeech::saying("x").register("equal_b");
    let registry = registry();

    let _leases = ["equal_a", "equal_a", "equal_b"].map(|name| lease(&registry, name));

    let mut leases: Vec<usize> = registry.stats().iter().map(|s| s.leases).collect();
    leases.sort_unstable();
    assert_eq!(leases, [1, 2]);
}

#[test]
fn a_failed_load_is_shared_and_then_forgotten() {
    let mut broken = FakeSpeech::saying("x");
    broken.load_delay = Duration::from_millis(300);
    broken.load_error = Some(EngineError::OutOfMemory {
        what: "loading".into(),
    });
    let loads = Arc::clone(&broken.loads);
    broken.register("load_fails");
    let registry = registry();

    let errors: Vec<_> = std::thread::scope(|scope| {
        let ask = || {
            registry
                .acquire(request("load_fails"), &CancelToken::new())
                .unwrap_err()
        };
        let threads: Vec<_> = (0..4).map(|_| scope.spawn(ask)).collect();
        threads.into_iter().map(|t| t.join().unwrap()).collect()
    });

    assert_eq!(loads.load(Ordering::SeqCst), 1);
    assert!(
        errors
            .iter()
            .all(|e| matches!(e, EngineError::OutOfMemory { .. })),
        "{errors:?}"
    );
    assert!(registry.stats().iter().all(|s| s.leases == 0));
    FakeSpeech::saying("mended").register("load_fails");
    let mut ticket = submit(&lease(&registry, "load_fails"), "", Class::File);
    assert!(text(&mut ticket).is_ok() || ticket.is_ready());
}

#[test]
fn all_models_are_leased_or_none() {
    let registry = registry();
    FakeSpeech::saying("x").register("all_or_none");
    let vad = Request::<VoiceActivity>(VadSpec::Fake);

    let failed = registry.acquire((request("nobody"), vad.clone()), &CancelToken::new());
    assert!(failed.is_err());
    assert!(
        registry.stats().iter().all(|s| s.leases == 0),
        "{:?}",
        registry.stats()
    );
    let both = registry.acquire((request("all_or_none"), Some(vad)), &CancelToken::new());

    let (speech, vad) = both.unwrap();
    assert!(speech.model().is_some() && vad.unwrap().model().is_some());
}

#[test]
fn a_wait_for_a_load_can_be_left_and_the_load_serves_others() {
    let mut slow = FakeSpeech::saying("x");
    slow.load_delay = Duration::from_millis(800);
    let loads = Arc::clone(&slow.loads);
    slow.register("cancel_load");
    let registry = registry();
    let cancel = CancelToken::new();

    std::thread::scope(|scope| {
        let left = scope.spawn(|| registry.acquire(request("cancel_load"), &cancel));
        std::thread::sleep(Duration::from_millis(100));
        cancel.cancel();
        let outcome = at_once("leaving", || left.join().unwrap());
        assert_eq!(outcome.unwrap_err(), EngineError::Cancelled);
    });
    let _lease = lease(&registry, "cancel_load");

    assert_eq!(loads.load(Ordering::SeqCst), 1);
}

#[test]
fn a_model_loads_once_even_where_nothing_is_kept() {
    for n in 0..5 {
        let name = format!("no_keep_alive_{n}");
        let mut model = FakeSpeech::saying("x");
        model.load_delay = Duration::from_millis(150);
        let loads = Arc::clone(&model.loads);
        model.register(&name);
        let registry = Registry::new(2, Duration::ZERO);

        registry.preload(&request(&name));
        // Housekeeping comes by while it loads.
        std::thread::sleep(Duration::from_millis(100));
        let _lease = lease(&registry, &name);

        assert_eq!(loads.load(Ordering::SeqCst), 1);
    }
}

#[test]
fn a_model_that_was_just_loaded_waits_for_whoever_asked_for_it() {
    let model = FakeSpeech::saying("x");
    let loads = Arc::clone(&model.loads);
    model.register("just_loaded");
    let registry = Registry::new(2, Duration::ZERO);

    registry.preload(&request("just_loaded"));
    eventually("it is loaded", || registry.stats()[0].loaded);
    // Housekeeping comes by before whoever waits has woken.
    std::thread::sleep(Duration::from_millis(200));
    drop(lease(&registry, "just_loaded"));

    assert_eq!(loads.load(Ordering::SeqCst), 1);
    // Once it was used nothing is kept.
    eventually("it is gone", || registry.stats().is_empty());
}

#[test]
fn a_dropped_ticket_cancels_its_job() {
    let (gate, seen) = gated("drop_ticket");
    let registry = Registry::new(1, Duration::from_secs(1));
    let lease = lease(&registry, "drop_ticket");
    let mut first = submit(&lease, "first", Class::File);
    eventually("the first runs", || !seen.lock().unwrap().is_empty());

    let unwanted = submit(&lease, "unwanted", Class::File);
    let mut last = submit(&lease, "last", Class::File);
    drop(unwanted);
    gate.store(true, Ordering::SeqCst);

    text(&mut first).unwrap();
    text(&mut last).unwrap();
    assert_eq!(*seen.lock().unwrap(), ["first", "last"]);
}

#[test]
fn live_jobs_overtake_files_and_a_short_stream_a_long_one() {
    let (gate, seen) = gated("order");
    let registry = Registry::new(1, Duration::from_secs(1));
    let (long, short) = (lease(&registry, "order"), lease(&registry, "order"));
    let urgent = lease(&registry, "order");
    let mut tickets = vec![submit(&long, "running", Class::File)];
    eventually("it runs", || !seen.lock().unwrap().is_empty());

    tickets.push(submit(&long, "background", Class::Background));
    for n in 0..3 {
        tickets.push(submit(&long, &format!("long {n}"), Class::File));
    }
    tickets.push(submit(&short, "short 0", Class::File));
    tickets.push(submit(&urgent, "live", Class::Live));
    tickets.push(submit(&urgent, "due", Class::LiveDeadline));
    gate.store(true, Ordering::SeqCst);
    for ticket in &mut tickets {
        text(ticket).unwrap();
    }

    let seen = seen.lock().unwrap();
    assert_eq!(seen[..3], ["running", "due", "live"]);
    assert_eq!(seen.last().unwrap(), "background");
    let place = |name: &str| seen.iter().position(|s| s == name).unwrap();
    assert!(place("short 0") < place("long 2"), "{seen:?}");
}

#[test]
fn a_live_job_waits_for_what_runs_and_for_no_file_behind_it() {
    let (steps, step) = mpsc::channel::<()>();
    let (running, runs) = mpsc::channel();
    let (running, step) = (Mutex::new(running), Mutex::new(step));
    FakeSpeech::new(move |window, _| {
        running.lock().unwrap().send(window.prompt.clone()).unwrap();
        step.lock().unwrap().recv().unwrap();
        Ok(fake::spread("x", window))
    })
    .register("live_first");
    let registry = Registry::new(1, Duration::from_secs(1));
    let (live, file) = (
        lease(&registry, "live_first"),
        lease(&registry, "live_first"),
    );
    let samples: Arc<[f32]> = vec![0.3; 27 * 16_000].into();
    let ask = |lease: &Lease<Whisper>, prompt: &str, class| {
        let job = Window {
            samples: Arc::clone(&samples),
            ..window(prompt, 0)
        };
        lease.submit(job, BatchParams::default(), class, None)
    };
    let next = || runs.recv_timeout(GUARD).unwrap();

    // The live stream asks while a file's window runs and two more wait: the file gets half of all, far more than a
    // tenth.
    let mut tickets: Vec<_> = (0..3).map(|_| ask(&file, "file", Class::File)).collect();
    assert_eq!(next(), "file");
    for n in 0..40 {
        tickets.push(ask(&live, "live", Class::LiveDeadline));
        tickets.push(ask(&file, "file", Class::File));
        steps.send(()).unwrap();
        assert_eq!(next(), "live", "round {n}");
        steps.send(()).unwrap();
        assert_eq!(next(), "file", "round {n}");
    }
    drop(steps);
}

/// A fake whose lanes work on four windows side by side, each for as many milliseconds as its prompt says.
fn four_places(name: &str) {
    let mut fake = FakeSpeech::new(|window, _| Ok(fake::spread(&window.prompt, window)));
    fake.places = 4;
    fake.delays = Some(Arc::new(|window| {
        Duration::from_millis(window.prompt.parse().unwrap())
    }));
    fake.register(name);
}

/// Longer than any test.
const NEVER_DONE: &str = "3600000";

#[test]
fn a_lane_takes_another_window_whenever_one_is_done() {
    four_places("one_by_one");
    let registry = Registry::new(1, Duration::from_secs(1));
    let lease = lease(&registry, "one_by_one");

    let slow = submit(&lease, NEVER_DONE, Class::File);
    let mut quick: Vec<_> = (0..20).map(|_| submit(&lease, "1", Class::File)).collect();
    for ticket in &mut quick {
        assert_eq!(text(ticket).unwrap(), " 1");
    }

    assert_eq!(registry.stats()[0].batches, 0, "the batch goes on");
    drop(slow);
    eventually("the batch is over", || registry.stats()[0].batches == 1);
}

#[test]
fn a_live_window_has_a_place_among_those_of_files() {
    four_places("live_place");
    let registry = Registry::new(1, Duration::from_secs(1));
    let (live, file) = (
        lease(&registry, "live_place"),
        lease(&registry, "live_place"),
    );
    text(&mut submit(&live, "1", Class::Live)).unwrap();

    let mut files: Vec<_> = (0..8)
        .map(|_| submit(&file, NEVER_DONE, Class::File))
        .collect();
    eventually("three are in work", || registry.stats()[0].queued == 5);
    for _ in 0..10 {
        assert_eq!(text(&mut submit(&live, "1", Class::Live)).unwrap(), " 1");
    }

    assert_eq!(registry.stats()[0].queued, 5);
    assert!(files.iter_mut().all(|f| f.poll().is_none()));
}

#[test]
fn no_file_comes_beside_a_live_window() {
    four_places("live_alone");
    let registry = Registry::new(1, Duration::from_secs(1));
    let lease = lease(&registry, "live_alone");

    let live = submit(&lease, NEVER_DONE, Class::Live);
    eventually("it is in work", || registry.stats()[0].queued == 0);
    let mut file = submit(&lease, "1", Class::File);
    assert!(file.wait(Duration::from_millis(100)).is_none());
    let mut other = submit(&lease, "1", Class::Live);
    text(&mut other).unwrap();
    assert!(file.poll().is_none());

    drop(live);
    text(&mut file).unwrap();
}

#[test]
fn windows_with_other_params_have_their_turn() {
    four_places("other_params");
    let registry = Registry::new(1, Duration::from_secs(1));
    let lease = lease(&registry, "other_params");
    let mut same: VecDeque<_> = (0..12).map(|_| submit(&lease, "20", Class::File)).collect();
    let with_beams = BatchParams {
        beam: 5,
        ..BatchParams::default()
    };

    let mut other = lease.submit(window("1", 1), with_beams, Class::File, None);
    let mut before = 0;
    while other.poll().is_none() {
        text(&mut same.pop_front().unwrap()).unwrap();
        same.push_back(submit(&lease, "20", Class::File));
        before += 1;
        assert!(before < 5000, "others go before it for ever");
    }
}

#[test]
fn a_few_windows_are_worked_on_by_all_lanes() {
    four_places("all_lanes");
    let registry = registry();
    let lease = lease(&registry, "all_lanes");

    let _tickets: Vec<_> = (0..6)
        .map(|_| submit(&lease, NEVER_DONE, Class::File))
        .collect();

    eventually("both lanes work", || {
        let stats = &registry.stats()[0];
        stats.busy_lanes == 2 && stats.queued == 0
    });
}

#[test]
fn of_lanes_whose_time_is_over_at_the_same_moment_one_stays() {
    let mut model = FakeSpeech::saying("x");
    model.delay = Duration::from_millis(5);
    model.register("last_lane");
    let registry = Registry::new(2, Duration::ZERO);
    let lease = lease(&registry, "last_lane");

    for _ in 0..40 {
        let mut tickets: Vec<_> = (0..4).map(|_| submit(&lease, "", Class::File)).collect();
        for ticket in &mut tickets {
            text(ticket).unwrap();
        }
        eventually("one lane is left", || registry.stats()[0].lanes <= 1);
        assert_eq!(registry.stats()[0].lanes, 1);
    }
}

#[test]
fn no_more_lanes_run_at_once_than_there_are_cores() {
    let (running, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    for name in ["lanes_a", "lanes_b"] {
        let (running, most) = (Arc::clone(&running), Arc::clone(&most));
        FakeSpeech::new(move |window, _| {
            most.fetch_max(running.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
            std::thread::sleep(Duration::from_millis(5));
            running.fetch_sub(1, Ordering::SeqCst);
            Ok(fake::spread("x", window))
        })
        .register(name);
    }
    let registry = registry();
    let leases = ["lanes_a", "lanes_b"].map(|name| lease(&registry, name));

    let mut tickets: Vec<_> = (0..40)
        .map(|n| submit(&leases[n % 2], "", Class::File))
        .collect();
    for ticket in &mut tickets {
        text(ticket).unwrap();
    }

    assert_eq!(most.load(Ordering::SeqCst), 2);
    let stats = registry.stats();
    assert!(stats.iter().all(|s| s.lanes <= 2), "{stats:?}");
    assert_eq!(stats.iter().map(|s| s.jobs).sum::<u64>(), 40);
    assert!((stats.iter().map(|s| s.audio_seconds).sum::<f64>() - 40.0).abs() < 0.1);
}

#[test]
fn a_panic_in_a_lane_fails_its_job_alone() {
    FakeSpeech::new(|window, _| {
        assert!(window.prompt != "bad", "as the test wants");
        Ok(fake::spread("fine", window))
    })
    .register("panics");
    let registry = Registry::new(1, Duration::from_secs(1));
    let lease = lease(&registry, "panics");

    let mut tickets: Vec<_> = ["good", "bad", "good", "bad", "good"]
        .map(|prompt| (prompt, submit(&lease, prompt, Class::File)))
        .into();

    for (prompt, ticket) in &mut tickets {
        let answer = text(ticket);
        assert_eq!(answer.is_ok(), *prompt == "good", "{answer:?}");
        if let Err(error) = answer {
            assert!(
                error.to_string().contains("panicked: as the test wants"),
                "{error}"
            );
        }
    }
    let stats = &registry.stats()[0];
    assert_eq!((stats.jobs, stats.failed, stats.queued), (3, 2, 0));
}

#[test]
fn a_load_that_panics_is_an_error() {
    // A model name is data: no name may stop the loader.
    let error = registry()
        .acquire(request("\u{0}nobody"), &CancelToken::new())
        .unwrap_err();

    assert!(matches!(error, EngineError::Unsupported(_)), "{error}");
}

#[test]
fn an_idle_model_goes_after_its_time_and_a_leased_one_stays() {
    FakeSpeech::saying("x").register("idle");
    FakeSpeech::saying("x").register("leased");
    let registry = Registry::new(2, Duration::from_millis(300));
    let leased = lease(&registry, "leased");

    drop(lease(&registry, "idle"));
    assert_eq!(registry.stats().len(), 2);

    eventually("the idle one is gone", || registry.stats().len() == 1);
    assert_eq!(leased.stats().leases, 1);
    assert!(text(&mut submit(&leased, "", Class::File)).is_ok());
}

#[test]
fn a_model_that_is_asked_for_again_in_time_is_not_loaded_again() {
    let model = FakeSpeech::saying("x");
    let loads = Arc::clone(&model.loads);
    model.register("kept");
    let registry = Registry::new(2, Duration::from_secs(60));

    for _ in 0..5 {
        drop(lease(&registry, "kept"));
    }
    assert_eq!(loads.load(Ordering::SeqCst), 1);

    registry.evict_idle();
    assert_eq!(registry.stats(), []);
}

#[test]
fn the_end_of_the_registry_answers_every_ticket() {
    let (gate, seen) = gated("ends");
    let registry = Registry::new(1, Duration::from_secs(1));
    let lease = lease(&registry, "ends");
    let mut first = submit(&lease, "first", Class::File);
    let mut waits = submit(&lease, "waits", Class::File);
    eventually("it runs", || !seen.lock().unwrap().is_empty());

    at_once("the end", || drop(registry));
    gate.store(true, Ordering::SeqCst);

    assert!(text(&mut first).is_ok());
    assert_eq!(text(&mut waits), Err(EngineError::Cancelled));
    assert_eq!(
        text(&mut submit(&lease, "late", Class::File)),
        Err(EngineError::Cancelled)
    );
}

#[test]
fn an_answer_wakes_whoever_wants_to_be_woken() {
    FakeSpeech::saying("x").register("wakes");
    let registry = registry();
    let lease = lease(&registry, "wakes");
    let woken = Arc::new(AtomicUsize::new(0));

    let mut ticket = submit(&lease, "", Class::File);
    let own = Arc::clone(&woken);
    ticket.on_ready(move || {
        own.fetch_add(1, Ordering::SeqCst);
    });
    text(&mut ticket).unwrap();

    eventually("woken", || woken.load(Ordering::SeqCst) == 1);
}

#[test]
fn voice_activity_runs_beside_speech() {
    let registry = registry();
    let lease = registry
        .acquire(Request::<VoiceActivity>(VadSpec::Fake), &CancelToken::new())
        .unwrap();
    let block = VadBlock {
        samples: [vec![0.0; 512], vec![0.5; 512]].concat(),
        state: VadState::default(),
    };

    let mut ticket = lease.submit(block, (), Class::File, None);

    let probs = ticket.wait(GUARD).unwrap().unwrap().probs;
    assert!(probs[0] < 0.5 && probs[1] > 0.5, "{probs:?}");
}
