// SPDX-License-Identifier: MPL-2.0
//! The registry on a made-up card: nothing is loaded without room, what is idle goes, every fallback is taken.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod common;

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use common::{GUARD, eventually};
use gstscribe::inference::card::{self, Card, CardSpec};
use gstscribe::inference::fake::{self, FakeSpeech};
use gstscribe::inference::{
    BatchParams, CancelToken, Decoded, DeviceId, EngineError, Footprint, Window,
};
use gstscribe::registry::clock::{Clock, SystemClock};
use gstscribe::registry::device::simulated::Simulated;
use gstscribe::registry::ledger::{Bound, Demand, DeviceSpec, Ledger};
use gstscribe::registry::limit::MemoryLimit;
use gstscribe::registry::replay::{Policy, Scenario, Switches, play};
use gstscribe::registry::{
    Class, FirstOf, Lease, OrNone, Registry, RegistrySettings, Request, Ticket, Whisper,
    WhisperSpec,
};
use proptest::prelude::*;

const GIB: u64 = 1 << 30;
const MIB: u64 = 1 << 20;

/// A card of its own with a number of its own, and a registry on it. Without lag, context or reserve: plain sums.
fn plain(gib: u64, cores: usize) -> (u32, Arc<Card>, Registry) {
    static NUMBERS: AtomicU32 = AtomicU32::new(100);
    let number = NUMBERS.fetch_add(1, Ordering::SeqCst);
    let clock = SystemClock::default();
    let spec = CardSpec {
        driver_reserve: 0,
        context_bytes: 0,
        lag: Duration::ZERO,
        ..CardSpec::of_gib(gib)
    };
    let card = Card::new(spec, move || clock.now());
    card::insert(number, &card);
    let device = Simulated::new(number, &card, std::process::id());
    let settings = RegistrySettings {
        lanes: cores,
        keep_alive: Duration::from_secs(300),
        ..RegistrySettings::default()
    };
    let registry = Registry::on(settings, vec![DeviceSpec::own(Arc::new(device), None)]);
    (number, card, registry)
}

/// A fake that takes `weights` MiB and `lane` MiB for each lane of card `number`.
fn model(name: &str, number: u32, weights: u64, lane: u64) -> FakeSpeech {
    let mut fake = FakeSpeech::saying("done");
    fake.device = DeviceId::Simulated(number);
    fake.footprint = Footprint {
        weights_bytes: weights * MIB,
        lane_bytes: lane * MIB,
        ..Footprint::default()
    };
    fake.register(name)
}

fn spec(name: &str) -> WhisperSpec {
    WhisperSpec::Fake(name.to_owned())
}

fn lease(registry: &Registry, name: &str) -> Result<Lease<Whisper>, EngineError> {
    registry.acquire(Request(spec(name)), &CancelToken::new())
}

fn window(seconds: usize) -> Window {
    Window {
        id: 0,
        samples: vec![0.3; seconds * 16_000].into(),
        language: Default::default(),
        task: Default::default(),
        prompt: String::new(),
        vocabulary: Vec::new(),
        prefix: Vec::new(),
        most_tokens: 0,
        cancel: CancelToken::new(),
    }
}

fn submit(lease: &Lease<Whisper>) -> Ticket<Decoded> {
    lease.submit(window(1), BatchParams::default(), Class::File, None)
}

fn answer(ticket: &mut Ticket<Decoded>) -> Result<usize, EngineError> {
    ticket
        .wait(GUARD)
        .expect("an answer")
        .map(|d| d.tokens.len())
}

#[test]
fn what_can_never_fit_fails_at_once_with_the_figures_and_loads_nothing() {
    let (number, card, registry) = plain(4, 2);
    let fake = model("never", number, 4000, 100);

    let error = lease(&registry, "never").unwrap_err();

    let EngineError::NoRoom { what, figures } = &error else {
        panic!("{error}");
    };
    assert_eq!(what, "never");
    assert!(
        figures.contains("4.0 GB") && figures.contains("3.2 GB"),
        "{figures}"
    );
    assert_eq!(fake.loads.load(Ordering::SeqCst), 0);
    assert_eq!(card.peak(), 0);
    assert_eq!(registry.memory()[0].reserved, 0);
}

#[test]
fn what_is_reserved_is_what_is_held_and_all_of_it_comes_back() {
    let (number, card, registry) = plain(8, 2);
    model("held", number, 3000, 200);

    let held = lease(&registry, "held").unwrap();
    assert_eq!(answer(&mut submit(&held)), Ok(1));
    let reserved = registry.memory()[0].reserved;
    let peak = card.peak();
    drop(held);
    registry.evict_idle();

    assert!(
        reserved >= 3200 * MIB && peak <= reserved,
        "{peak} of {reserved}"
    );
    eventually("registry.memory()[0].reserved == 0", || {
        registry.memory()[0].reserved == 0
    });
    eventually("card.free() == 8 * GIB", || card.free() == 8 * GIB);
}

#[test]
fn an_idle_model_goes_for_another_and_a_leased_one_is_waited_for() {
    let (number, card, registry) = plain(4, 1);
    for name in ["first", "second"] {
        model(name, number, 2000, 100);
    }
    drop(lease(&registry, "first").unwrap());

    let second = lease(&registry, "second").unwrap();
    assert_eq!(registry.evicted(), 1);
    let waiting = {
        let registry = registry.clone();
        std::thread::spawn(move || lease(&registry, "first").map(drop))
    };
    eventually("registry.waiting() == 1", || registry.waiting() == 1);
    // In use: it is not taken away.
    assert_eq!(answer(&mut submit(&second)), Ok(1));
    drop(second);

    assert_eq!(waiting.join().unwrap(), Ok(()));
    assert_eq!(card.refused(), 0);
    assert!(card.peak() <= 4 * GIB * 8 / 10, "{}", card.peak() / MIB);
}

#[test]
fn a_wait_in_line_ends_with_its_cancel_token() {
    let (number, _card, registry) = plain(4, 1);
    for name in ["holds", "waits"] {
        model(name, number, 2500, 100);
    }
    let _held = lease(&registry, "holds").unwrap();
    let cancel = CancelToken::new();
    let waiting = {
        let (registry, cancel) = (registry.clone(), cancel.clone());
        std::thread::spawn(move || {
            registry
                .acquire(Request::<Whisper>(spec("waits")), &cancel)
                .map(drop)
        })
    };
    eventually("registry.waiting() == 1", || registry.waiting() == 1);

    cancel.cancel();

    assert_eq!(waiting.join().unwrap(), Err(EngineError::Cancelled));
    eventually("registry.waiting() == 0", || registry.waiting() == 0);
}

#[test]
fn two_sets_that_share_a_model_never_lock_each_other_out() {
    // Each pair fits, three models do not.
    let (number, card, registry) = plain(4, 2);
    for name in ["pair_a", "pair_b", "pair_c"] {
        model(name, number, 1300, 50);
    }
    let done = AtomicU64::new(0);

    std::thread::scope(|scope| {
        for (one, other) in [
            ("pair_a", "pair_b"),
            ("pair_b", "pair_c"),
            ("pair_c", "pair_a"),
        ] {
            let (registry, done) = (&registry, &done);
            scope.spawn(move || {
                for _ in 0..5 {
                    let request = (
                        Request::<Whisper>(spec(one)),
                        Request::<Whisper>(spec(other)),
                    );
                    let (a, b) = registry.acquire(request, &CancelToken::new()).unwrap();
                    assert_eq!(answer(&mut submit(&a)), Ok(1));
                    assert_eq!(answer(&mut submit(&b)), Ok(1));
                    done.fetch_add(1, Ordering::SeqCst);
                }
            });
        }
    });

    assert_eq!(done.load(Ordering::SeqCst), 15);
    assert_eq!(card.refused(), 0);
    assert!(card.peak() <= 4 * GIB * 8 / 10, "{}", card.peak() / MIB);
}

#[test]
fn a_smaller_model_before_none_and_it_is_told() {
    let (number, _card, registry) = plain(4, 1);
    model("chain_large", number, 6000, 100);
    let mut broken = model("chain_broken", number, 500, 100);
    broken.load_error = Some(EngineError::InvalidModel {
        path: "x".into(),
        why: "damaged".into(),
    });
    broken.register("chain_broken");
    model("chain_small", number, 500, 100);
    let chain = ["chain_large", "chain_broken", "chain_small"]
        .map(spec)
        .to_vec();

    let chosen = registry
        .acquire(FirstOf::<Whisper>(chain), &CancelToken::new())
        .unwrap();

    assert_eq!(chosen.step, 2);
    let steps: Vec<(&str, &str)> = chosen
        .degraded
        .iter()
        .map(|d| (d.from.as_str(), d.to.as_str()))
        .collect();
    assert_eq!(
        steps,
        [
            ("chain_large", "chain_broken"),
            ("chain_broken", "chain_small")
        ]
    );
    assert!(
        chosen.degraded[0].reason.contains("4.8 GB")
            || chosen.degraded[0].reason.contains("needed")
    );
    assert!(chosen.degraded[1].reason.contains("damaged"));
    assert_eq!(answer(&mut submit(&chosen.lease)), Ok(1));
}

#[test]
fn a_transcript_without_speakers_before_none() {
    // Both do not fit together: the one that may be done without goes.
    let (number, _card, registry) = plain(4, 1);
    model("needed", number, 2000, 100);
    model("welcome", number, 2000, 100);
    let request = (
        FirstOf::<Whisper>(vec![spec("needed")]),
        OrNone(FirstOf::<Whisper>(vec![spec("welcome")])),
    );

    let (needed, welcome) = registry.acquire(request, &CancelToken::new()).unwrap();

    assert!(
        matches!(welcome, Err(EngineError::NoRoom { .. })),
        "{welcome:?}"
    );
    assert_eq!(answer(&mut submit(&needed.lease)), Ok(1));
}

#[test]
fn spare_lanes_come_only_while_memory_is_plenty_and_go_first() {
    let (number, card, registry) = plain(4, 4);
    let mut slow = model("lanes", number, 2000, 250);
    slow.delay = Duration::from_millis(20);
    slow.register("lanes");
    model("late", number, 900, 100);
    let held = lease(&registry, "lanes").unwrap();

    // 2000 + 3 * 250 is under 70 %, a fourth lane is not.
    let mut tickets: Vec<_> = (0..40).map(|_| submit(&held)).collect();
    assert!(tickets.iter_mut().all(|t| answer(t) == Ok(1)));
    let lanes = held.stats().lanes;
    let late = lease(&registry, "late").unwrap();

    assert_eq!(lanes, 3);
    assert_eq!(answer(&mut submit(&late)), Ok(1));
    assert!(held.stats().lanes < 3);
    assert_eq!(answer(&mut submit(&held)), Ok(1));
    assert_eq!(card.refused(), 0);
}

#[test]
fn a_window_that_finds_no_memory_is_done_again_and_nothing_is_lost() {
    let (number, _card, registry) = plain(4, 1);
    let fake = model("short", number, 500, 100);
    let held = lease(&registry, "short").unwrap();

    // Trim, evict, rebuild: three failures are mended.
    fake.out_of_memory.store(3, Ordering::SeqCst);
    let mut tickets: Vec<_> = (0..5).map(|_| submit(&held)).collect();

    assert!(tickets.iter_mut().all(|t| answer(t) == Ok(1)));
    assert_eq!(fake.windows.load(Ordering::SeqCst), 5);
    assert_eq!(held.stats().out_of_memory, 3);
    assert!(held.degraded().iter().any(|d| d.what == "lane"));
    assert!(fake.lanes.load(Ordering::SeqCst) >= 2);
}

#[test]
fn when_the_card_has_no_memory_for_good_the_cpu_takes_over() {
    let (number, _card, registry) = plain(4, 1);
    FakeSpeech::saying("from the cpu").register("on_cpu");
    let mut fake = model("on_card", number, 500, 100);
    fake.on_cpu = Some("on_cpu".into());
    let fake = fake.register("on_card");
    let held = lease(&registry, "on_card").unwrap();

    fake.out_of_memory.store(1000, Ordering::SeqCst);
    let mut tickets: Vec<_> = (0..3).map(|_| submit(&held)).collect();

    assert!(tickets.iter_mut().all(|t| answer(t) == Ok(3)));
    let told = held.degraded();
    assert!(told.iter().any(|d| d.to == "cpu"), "{told:?}");
    assert_eq!(answer(&mut submit(&held)), Ok(3));
}

#[test]
fn a_window_that_fits_nowhere_is_an_error_and_the_stream_goes_on() {
    let (number, _card, registry) = plain(4, 1);
    let fake = model("nowhere", number, 500, 100);
    let held = lease(&registry, "nowhere").unwrap();

    fake.out_of_memory.store(1000, Ordering::SeqCst);
    let failed = answer(&mut submit(&held));
    fake.out_of_memory.store(0, Ordering::SeqCst);

    assert!(
        matches!(failed, Err(EngineError::OutOfMemory { .. })),
        "{failed:?}"
    );
    assert_eq!(answer(&mut submit(&held)), Ok(1));
}

#[test]
fn more_beams_than_there_is_room_for_become_those_that_fit_and_it_is_told() {
    let (number, _card, registry) = plain(4, 1);
    let beams: Arc<Mutex<Vec<u32>>> = Arc::default();
    let seen = Arc::clone(&beams);
    let mut wide = FakeSpeech::new(move |window, params| {
        seen.lock().unwrap().push(params.beam);
        Ok(fake::spread("done", window))
    });
    wide.device = DeviceId::Simulated(number);
    wide.footprint = Footprint {
        weights_bytes: 2000 * MIB,
        lane_bytes: 500 * MIB,
        decoder_bytes: 300 * MIB,
        ..Footprint::default()
    };
    wide.register("wide");
    let held = lease(&registry, "wide").unwrap();
    let ask = |beam| {
        let params = BatchParams {
            beam,
            ..BatchParams::default()
        };
        answer(&mut held.submit(window(1), params, Class::File, None))
    };

    // 2.5 GB and two decoders more are under 3.2 GB, four are not.
    assert_eq!([ask(4), ask(6), ask(8)], [Ok(1), Ok(1), Ok(1)]);

    assert_eq!(*beams.lock().unwrap(), [4, 6, 4]);
    assert!(held.degraded().iter().any(|d| d.what.contains("options")));
}

#[test]
fn one_job_for_a_new_model_makes_one_lane() {
    let (number, _card, registry) = plain(8, 4);
    let fake = model("one_lane", number, 500, 100);

    let held = lease(&registry, "one_lane").unwrap();
    assert_eq!(answer(&mut submit(&held)), Ok(1));

    assert_eq!(fake.lanes.load(Ordering::SeqCst), 1);
}

#[test]
fn strangers_lower_what_may_be_loaded() {
    let (number, card, registry) = plain(8, 1);
    model("beside", number, 3000, 100);
    card.set_strangers(5 * GIB);

    let (held, memory) = {
        let cancel = CancelToken::new();
        let waiting = {
            let (registry, cancel) = (registry.clone(), cancel.clone());
            std::thread::spawn(move || {
                registry.acquire(Request::<Whisper>(spec("beside")), &cancel)
            })
        };
        eventually("registry.waiting() == 1", || registry.waiting() == 1);
        let memory = registry.memory()[0];
        card.set_strangers(GIB);
        (waiting.join().unwrap(), memory)
    };

    assert_eq!(memory.foreign, 5 * GIB);
    assert_eq!(memory.capacity, 3 * GIB);
    assert!(held.is_ok());
}

#[test]
fn a_limit_can_be_lowered_before_the_first_load_and_not_after() {
    let (number, _card, registry) = plain(8, 1);
    model("limited", number, 2000, 100);

    assert_eq!(registry.lower_limit(MemoryLimit::Bytes(4 * GIB)), Ok(()));
    let _held = lease(&registry, "limited").unwrap();
    let refused = registry
        .lower_limit(MemoryLimit::Bytes(3 * GIB))
        .unwrap_err();

    assert!(
        refused.contains("3.0 GB") && refused.contains("4.0 GB"),
        "{refused}"
    );
    assert_eq!(registry.memory()[0].capacity, 4 * GIB);
}

#[test]
fn a_cancelled_ticket_answers_at_once_though_the_engine_does_not_look() {
    let (number, _card, registry) = plain(4, 1);
    let gate = Arc::new(AtomicBool::new(false));
    let own = Arc::clone(&gate);
    let mut deaf = FakeSpeech::new(move |window, _| {
        while !own.load(Ordering::SeqCst) {
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(fake::spread("late", window))
    });
    deaf.device = DeviceId::Simulated(number);
    deaf.register("deaf");
    let held = lease(&registry, "deaf").unwrap();
    let mut ticket = submit(&held);
    eventually("held.stats().busy_lanes == 1", || {
        held.stats().busy_lanes == 1
    });

    ticket.cancel();

    assert_eq!(ticket.poll(), Some(Err(EngineError::Cancelled)));
    gate.store(true, Ordering::SeqCst);
}

#[test]
fn the_accident_does_not_happen_again() {
    let scenario = Scenario::default();
    let unlimited = play(&Scenario {
        card_gib: 1024,
        ..scenario
    });

    let old = play(&Scenario {
        policy: Policy::Old,
        shared_embedding: false,
        ..scenario
    });
    let now = play(&scenario);

    assert!(old.lost >= 10 && old.out_of_memory > 0, "{old:?}");
    assert!(now.is_good(20), "{now:?}");
    assert!(now.seconds <= unlimited.seconds * 1.05, "{now:?}");
    assert!(
        now.enrol_seconds <= 24.0 && now.enrol_batches <= 16.0,
        "{now:?}"
    );
    for seed in 1..=40 {
        let report = play(&Scenario::restless(seed));
        assert!(report.is_good(20), "seed {seed}: {report:?}");
    }
}

#[test]
fn every_mechanism_of_the_registry_is_needed() {
    for (name, switches) in Switches::each_off() {
        let fails = Scenario::breaks(switches).is_some();
        assert!(fails, "without \"{name}\" all goes well too");
    }
}

/// A step of somebody who uses the ledger.
#[derive(Clone, Debug)]
enum Step {
    Reserve(u64, bool),
    Resize(usize, u64),
    Drain(usize),
    Drop(usize),
    Strangers(u64),
    Wait,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        4 => (1u64..3000, any::<bool>()).prop_map(|(mib, soft)| Step::Reserve(mib, soft)),
        2 => (any::<usize>(), 0u64..3000).prop_map(|(at, mib)| Step::Resize(at, mib)),
        1 => any::<usize>().prop_map(Step::Drain),
        3 => any::<usize>().prop_map(Step::Drop),
        1 => (0u64..6000).prop_map(Step::Strangers),
        1 => Just(Step::Wait),
    ];
    prop::collection::vec(step, 1..80)
}

struct Hand(AtomicU64);

impl Clock for Hand {
    fn now(&self) -> Duration {
        Duration::from_millis(self.0.load(Ordering::SeqCst))
    }
}

proptest! {
    #[test]
    fn reservations_never_pass_the_ceiling_and_end_at_nothing(steps in steps()) {
        let clock = Arc::new(Hand(AtomicU64::new(0)));
        let own = Arc::clone(&clock);
        let card = Card::new(CardSpec::of_gib(8), move || own.now());
        let device = Simulated::new(7, &card, 1);
        let spec = DeviceSpec::own(Arc::new(device), Some(MemoryLimit::Bytes(6 * GIB)));
        let ledger = Ledger::new(vec![spec], clock.clone());
        let id = DeviceId::Simulated(7);
        let mut held = Vec::new();

        for step in steps {
            match step {
                Step::Reserve(mib, soft) => {
                    let before = ledger.memory()[0];
                    let bound = if soft { Bound::Soft } else { Bound::Ceiling };
                    let demand = Demand { device: id, bytes: mib * MIB, what: "x".into(), apart: false };
                    match ledger.try_reserve(&[demand], bound) {
                        Ok(mut new) => {
                            held.append(&mut new);
                            let after = ledger.memory()[0];
                            let most = if soft { after.capacity / 100 * 71 } else { after.ceiling };
                            prop_assert!(after.booked <= most.max(1), "{after:?}");
                        }
                        Err(shortage) => {
                            prop_assert!(shortage.missing > 0);
                            prop_assert_eq!(ledger.memory()[0].reserved, before.reserved);
                        }
                    }
                }
                Step::Resize(at, mib) if !held.is_empty() => {
                    let one = &held[at % held.len()];
                    let before = one.bytes();
                    if one.resize(mib * MIB, Bound::Ceiling).is_ok() {
                        prop_assert_eq!(one.bytes(), (mib * MIB).div_ceil(2 * MIB) * 2 * MIB);
                        if one.bytes() > before {
                            let now = ledger.memory()[0];
                            prop_assert!(now.booked <= now.ceiling, "{now:?}");
                        }
                    } else {
                        prop_assert!(mib * MIB > before);
                        prop_assert_eq!(one.bytes(), before);
                    }
                }
                Step::Drain(at) if !held.is_empty() => held[at % held.len()].begin_drain(),
                Step::Drop(at) if !held.is_empty() => drop(held.swap_remove(at % held.len())),
                Step::Strangers(mib) => { card.set_strangers(mib * MIB); }
                Step::Wait => { clock.0.fetch_add(700, Ordering::SeqCst); }
                _ => {}
            }
            let sum: u64 = held.iter().map(|r| r.bytes()).sum();
            prop_assert_eq!(ledger.memory()[0].reserved, sum);
        }

        held.clear();
        clock.0.fetch_add(5_000, Ordering::SeqCst);
        let end = ledger.memory()[0];
        prop_assert_eq!(end.reserved, 0);
        prop_assert!(end.booked <= CardSpec::of_gib(8).context_bytes);
    }
}

#[test]
fn a_set_is_reserved_whole_or_not_at_all() {
    let (number, card, registry) = plain(4, 1);
    let ledger = registry.ledger();
    let demand = |gib: u64| Demand {
        device: DeviceId::Simulated(number),
        bytes: gib * GIB,
        what: "x".into(),
        apart: false,
    };

    let refused = ledger.try_reserve(&[demand(2), demand(2)], Bound::Ceiling);
    let granted = ledger.try_reserve(&[demand(2), demand(1)], Bound::Ceiling);

    assert!(refused.is_err());
    assert_eq!(granted.map(|r| r.len()).unwrap_or(0), 2);
    assert_eq!(card.peak(), 0);
}

#[test]
fn twenty_jobs_with_real_threads_stay_under_the_ceiling() {
    // The accident's models in megabytes for gigabytes, on real threads of the real registry.
    let (number, card, registry) = plain(16, 2);
    model("t_whisper", number, 3000, 1130);
    model("t_speakers", number, 3000, 64);
    model("t_enrol", number, 1000, 16);
    model("t_voices", number, 4000, 512);
    let queue = Mutex::new((0..20).collect::<Vec<u32>>());
    let done = AtomicU32::new(0);

    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                loop {
                    let Some(_video) = queue.lock().unwrap().pop() else {
                        return;
                    };
                    for stage in [
                        vec!["t_whisper"],
                        vec!["t_speakers"],
                        vec!["t_enrol", "t_voices"],
                    ] {
                        let request: Vec<_> =
                            stage.iter().map(|n| Request::<Whisper>(spec(n))).collect();
                        let leases = match request.as_slice() {
                            [one] => {
                                vec![registry.acquire(one.clone(), &CancelToken::new()).unwrap()]
                            }
                            [one, two] => {
                                let set = (one.clone(), two.clone());
                                let (a, b) = registry.acquire(set, &CancelToken::new()).unwrap();
                                vec![a, b]
                            }
                            _ => unreachable!(),
                        };
                        for lease in &leases {
                            let mut tickets: Vec<_> = (0..6).map(|_| submit(lease)).collect();
                            assert!(tickets.iter_mut().all(|t| answer(t) == Ok(1)));
                        }
                    }
                    done.fetch_add(1, Ordering::SeqCst);
                }
            });
        }
    });

    assert_eq!(done.load(Ordering::SeqCst), 20);
    assert_eq!(card.refused(), 0);
    assert!(card.peak() <= 16 * GIB * 8 / 10, "{}", card.peak() / MIB);
}

/// A ledger on a card that others use too, as this process sees it.
fn on(card: &Arc<Card>, number: u32) -> Arc<Ledger> {
    let device = Simulated::new(number, card, std::process::id());
    let spec = DeviceSpec::own(Arc::new(device), None);
    Ledger::new(vec![spec], Arc::new(SystemClock::default()))
}

#[test]
fn on_a_card_that_lists_nobody_what_is_ours_is_not_counted_twice() {
    let spec = CardSpec {
        driver_reserve: 0,
        lag: Duration::ZERO,
        tells_processes: false,
        ..CardSpec::of_gib(16)
    };
    let context = spec.context_bytes;
    let card = Card::new(spec, || Duration::ZERO);
    card.set_strangers(2 * GIB);
    let ledger = on(&card, 8);
    let demand = |gib: u64| Demand {
        device: DeviceId::Simulated(8),
        bytes: gib * GIB,
        what: "x".into(),
        apart: false,
    };

    let held = ledger.try_reserve(&[demand(6)], Bound::Ceiling).unwrap();
    let reserved = ledger.memory()[0];
    let model = card.alloc(std::process::id(), 6 * GIB).unwrap();
    let loaded = ledger.memory()[0];
    card.set_strangers(5 * GIB);
    let joined = ledger.memory()[0];
    drop(model);
    drop(held);
    card.set_strangers(GIB);
    let again = ledger.try_reserve(&[demand(6)], Bound::Ceiling).unwrap();
    let later = ledger.memory()[0];

    assert_eq!(reserved.foreign, 2 * GIB);
    assert_eq!(loaded.foreign, 2 * GIB);
    assert_eq!(loaded.booked, 6 * GIB + context);
    // Who came later is seen.
    assert_eq!(joined.foreign, 5 * GIB);
    assert_eq!(later.foreign, GIB);
    drop(again);
}

#[test]
fn a_worker_brings_its_own_context_and_this_process_needs_none_for_it() {
    let spec = CardSpec {
        lag: Duration::ZERO,
        ..CardSpec::of_gib(16)
    };
    let context = spec.context_bytes;
    let card = Card::new(spec, || Duration::ZERO);
    let ledger = on(&card, 9);
    let demand = |apart| Demand {
        device: DeviceId::Simulated(9),
        bytes: 2 * GIB,
        what: "x".into(),
        apart,
    };

    let worker = ledger.try_reserve(&[demand(true)], Bound::Ceiling).unwrap();
    let apart = ledger.memory()[0].booked;
    let ours = ledger
        .try_reserve(&[demand(false)], Bound::Ceiling)
        .unwrap();
    let both = ledger.memory()[0].booked;
    drop(ours);
    drop(worker);

    assert_eq!(apart, 2 * GIB);
    assert_eq!(both, 4 * GIB + context);
    // A context stays for the life of its process.
    assert_eq!(ledger.memory()[0].booked, context);
}
