// SPDX-License-Identifier: MPL-2.0
//! Leases, loads and evictions under shuttle (<https://github.com/awslabs/shuttle>): the registry's own code, on locks and
//! threads whose interleavings are chosen at random, thousands of them. A wait that no one ends is found, because time does
//! not pass here: only the wait for memory looks again by itself, as strangers give no sign when they free some.
//!
//! `scripts/test.sh` runs them; alone: `cargo test --release --lib --features "cli test-support model-check" model_check`.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::sync::Arc;
use std::time::Duration;

use shuttle::scheduler::{PctScheduler, RandomScheduler};
use shuttle::{Config, Runner, thread};

use super::device::{Device, MemoryView};
use super::ledger::DeviceSpec;
use super::{
    Class, FirstOf, Lease, OrNone, Registry, RegistrySettings, Request, Whisper, WhisperSpec,
};
use crate::inference::fake::FakeSpeech;
use crate::inference::{CancelToken, DeviceId, EngineError, Footprint, Language, Window};

const LONG: Duration = Duration::from_secs(3600);
/// Runs by each of the two schedulers.
const RUNS: usize = 1500;

/// A device of 1,000 bytes that nobody else uses: 800 may be taken.
struct Thousand;

impl Device for Thousand {
    fn id(&self) -> DeviceId {
        DeviceId::Cpu
    }

    fn probe(&self) -> Result<MemoryView, String> {
        Ok(MemoryView {
            total: 1000,
            available: 1000,
            own: Some(0),
        })
    }

    fn held_by(&self, _pid: u32) -> Option<u64> {
        None
    }

    fn granule(&self) -> u64 {
        1
    }

    fn context_bytes(&self) -> u64 {
        0
    }

    fn lag(&self) -> Duration {
        Duration::ZERO
    }
}

fn registry() -> Registry {
    let settings = RegistrySettings {
        lanes: 2,
        keep_alive: LONG,
        ..RegistrySettings::default()
    };
    Registry::on(settings, vec![DeviceSpec::own(Arc::new(Thousand), None)])
}

/// A model of `weights` bytes with lanes of `lane`.
fn model(name: &str, weights: u64, lane: u64) -> FakeSpeech {
    FakeSpeech {
        footprint: Footprint {
            weights_bytes: weights,
            lane_bytes: lane,
            ..Footprint::default()
        },
        ..FakeSpeech::saying(name)
    }
    .register(name)
}

fn spec(name: &str) -> WhisperSpec {
    WhisperSpec::Fake(name.into())
}

fn lease(registry: &Registry, name: &str) -> Lease<Whisper> {
    registry
        .acquire(Request(spec(name)), &CancelToken::new())
        .unwrap()
}

fn text(lease: &Lease<Whisper>) -> String {
    let window = Window {
        id: 0,
        samples: vec![0.5; 160].into(),
        language: Language::Auto,
        task: Default::default(),
        prompt: String::new(),
        vocabulary: Vec::new(),
        prefix: Vec::new(),
        most_tokens: 0,
        cancel: CancelToken::new(),
    };
    let params = crate::inference::BatchParams::default();
    let mut ticket = lease.submit(window, params, Class::File, None);
    let decoded = ticket.wait(LONG).unwrap().unwrap();
    let bytes: Vec<u8> = decoded
        .tokens
        .iter()
        .flat_map(|t| t.bytes.clone())
        .collect();
    String::from_utf8(bytes).unwrap().trim().to_owned()
}

/// Never more than 80 %, whoever looks, whenever.
fn within(registry: &Registry) {
    let memory = registry.memory()[0];
    assert!(memory.reserved <= 800, "{memory:?}");
}

/// Runs `scenario` under both schedulers: evenly at random, and with priorities that change three times, which finds what
/// needs one thread to be slow at one place.
fn explore(scenario: fn()) {
    let config = || {
        let mut config = Config::new();
        config.stack_size = 1 << 20;
        config.max_steps = shuttle::MaxSteps::FailAfter(200_000);
        config
    };
    Runner::new(RandomScheduler::new(RUNS), config()).run(scenario);
    Runner::new(PctScheduler::new(3, RUNS), config()).run(scenario);
}

#[test]
fn two_models_of_which_one_fits_take_turns() {
    explore(|| {
        model("ping", 500, 100);
        model("pong", 500, 100);
        let registry = registry();
        let streams: Vec<_> = ["ping", "pong", "ping"]
            .into_iter()
            .map(|name| {
                let registry = registry.clone();
                thread::spawn(move || {
                    let held = lease(&registry, name);
                    within(&registry);
                    assert_eq!(text(&held), name);
                })
            })
            .collect();

        for stream in streams {
            stream.join().unwrap();
        }
        registry.evict_idle();

        within(&registry);
    });
}

#[test]
fn a_leased_model_is_never_evicted() {
    explore(|| {
        let fake = model("kept", 500, 100);
        let registry = registry();
        let held = lease(&registry, "kept");
        let evictor = {
            let registry = registry.clone();
            thread::spawn(move || registry.evict_idle())
        };
        let other = {
            let registry = registry.clone();
            thread::spawn(move || drop(lease(&registry, "kept")))
        };

        assert_eq!(text(&held), "kept");
        evictor.join().unwrap();
        other.join().unwrap();

        assert_eq!(text(&held), "kept");
        assert_eq!(fake.loads.load(std::sync::atomic::Ordering::SeqCst), 1);
    });
}

#[test]
fn sets_that_share_models_never_lock_each_other_out() {
    explore(|| {
        for name in ["one", "two", "three"] {
            model(name, 250, 50);
        }
        let registry = registry();
        let streams: Vec<_> = [["one", "two"], ["two", "three"], ["three", "one"]]
            .into_iter()
            .map(|[a, b]| {
                let registry = registry.clone();
                thread::spawn(move || {
                    let request = (Request::<Whisper>(spec(a)), Request::<Whisper>(spec(b)));
                    let (first, second) = registry.acquire(request, &CancelToken::new()).unwrap();
                    within(&registry);
                    assert_eq!((text(&first), text(&second)), (a.into(), b.into()));
                })
            })
            .collect();

        for stream in streams {
            stream.join().unwrap();
        }
    });
}

#[test]
fn who_leaves_the_line_keeps_nobody_else_waiting() {
    explore(|| {
        model("large", 600, 100);
        model("other", 600, 100);
        let registry = registry();
        let held = lease(&registry, "large");
        let cancel = CancelToken::new();
        let leaves = {
            let (registry, cancel) = (registry.clone(), cancel.clone());
            thread::spawn(move || {
                let outcome = registry.acquire(Request::<Whisper>(spec("other")), &cancel);
                assert!(
                    matches!(outcome, Ok(_) | Err(EngineError::Cancelled)),
                    "{outcome:?}"
                );
            })
        };
        let stays = {
            let registry = registry.clone();
            thread::spawn(move || assert_eq!(text(&lease(&registry, "other")), "other"))
        };

        cancel.cancel();
        assert_eq!(text(&held), "large");
        drop(held);

        leaves.join().unwrap();
        stays.join().unwrap();
    });
}

#[test]
fn a_failed_load_leaves_nothing_reserved_and_the_fallback_is_used() {
    explore(|| {
        FakeSpeech {
            load_error: Some(EngineError::Unsupported("broken".into())),
            ..model("broken", 500, 100)
        }
        .register("broken");
        model("spare", 500, 100);
        let registry = registry();
        let streams: Vec<_> = (0..2)
            .map(|_| {
                let registry = registry.clone();
                thread::spawn(move || {
                    let chain = FirstOf::<Whisper>(vec![spec("broken"), spec("spare")]);
                    let chosen = registry.acquire(chain, &CancelToken::new()).unwrap();
                    assert_eq!(text(&chosen.lease), "spare");
                    // Who holds one model and asks for another waits for himself: it is to be one request.
                    drop(chosen);
                    let none = OrNone(FirstOf::<Whisper>(vec![spec("broken")]));
                    assert!(
                        registry
                            .acquire(none, &CancelToken::new())
                            .unwrap()
                            .is_err()
                    );
                })
            })
            .collect();

        for stream in streams {
            stream.join().unwrap();
        }
        assert!(registry.memory()[0].reserved <= 800);
    });
}
