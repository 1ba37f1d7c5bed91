// SPDX-License-Identifier: MPL-2.0
//! Batches through the registry: they form across streams, heed bounds, and what does not fit is halved and goes on.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use common::{GUARD, registry};
use gstscribe::enroll::{Progress, embed};
use gstscribe::inference::fake::FakeBatches;
use gstscribe::inference::{CancelToken, EngineError, VoiceVector};
use gstscribe::registry::{Class, Embedding, EmbeddingSpec, Lease, Registry, Request, Ticket};

fn lease(registry: &Registry, name: &str) -> Lease<Embedding> {
    let request = Request::<Embedding>(EmbeddingSpec::Fake(name.to_owned()));
    registry.acquire(request, &CancelToken::new()).unwrap()
}

/// A segment that the fake answers with a vector of this angle.
fn submit(lease: &Lease<Embedding>, number: usize) -> Ticket<VoiceVector> {
    let segment: Arc<[f32]> = vec![angle(number); 16].into();
    lease.submit(segment, (), Class::File, None)
}

fn angle(number: usize) -> f32 {
    number as f32 / 1000.0
}

/// Whether the answer is the one to segment `number`.
fn is_right(ticket: &mut Ticket<VoiceVector>, number: usize) -> bool {
    let vector = ticket.wait(GUARD).expect("an answer").unwrap();
    (vector.values[1].atan2(vector.values[0]) - angle(number)).abs() < 1e-4
}

fn sizes(model: &FakeBatches) -> Vec<usize> {
    model.batches.lock().unwrap().clone()
}

/// A fake that takes two milliseconds a batch, whatever its size: larger ones pay.
fn steady(model: FakeBatches, name: &str) -> FakeBatches {
    FakeBatches {
        delay: Duration::from_millis(2),
        ..model
    }
    .register(name)
}

#[test]
fn batches_form_across_streams_and_each_gets_its_own_answers() {
    let model = steady(FakeBatches::default(), "across");
    let registry = registry();
    let streams: Vec<_> = (0..4).map(|_| lease(&registry, "across")).collect();

    let mut tickets: Vec<_> = (0..400).map(|n| (n, submit(&streams[n % 4], n))).collect();

    assert!(tickets.iter_mut().all(|(n, ticket)| is_right(ticket, *n)));
    let sizes = sizes(&model);
    assert_eq!(sizes.iter().sum::<usize>(), 400);
    assert_eq!(sizes.iter().max(), Some(&32), "{sizes:?}");
    assert_eq!(model.loads.load(Ordering::SeqCst), 1);
}

#[test]
fn no_batch_is_larger_than_a_stream_asks_for() {
    let model = steady(FakeBatches::default(), "bound");
    let registry = registry();
    let mut held = lease(&registry, "bound");
    held.set_batch_size(5);

    let mut tickets: Vec<_> = (0..60).map(|n| (n, submit(&held, n))).collect();

    assert!(tickets.iter_mut().all(|(n, ticket)| is_right(ticket, *n)));
    let sizes = sizes(&model);
    assert_eq!(sizes.iter().max(), Some(&5), "{sizes:?}");
}

#[test]
fn a_batch_that_does_not_fit_is_halved_and_nothing_is_lost_or_done_twice() {
    let model = steady(FakeBatches::fitting(8), "halved");
    let registry = registry();
    let held = lease(&registry, "halved");

    let mut tickets: Vec<_> = (0..150).map(|n| (n, submit(&held, n))).collect();

    assert!(tickets.iter_mut().all(|(n, ticket)| is_right(ticket, *n)));
    let sizes = sizes(&model);
    assert_eq!(sizes.iter().sum::<usize>(), 150, "{sizes:?}");
    assert_eq!(sizes.iter().max(), Some(&8));
    assert!(model.shrinks.load(Ordering::SeqCst) > 0);
    let told = held.degraded();
    assert!(told.iter().any(|d| d.what == "batch"), "{told:?}");
}

#[test]
fn when_memory_is_there_again_batches_grow_to_their_full_size() {
    let fits = Arc::new(AtomicUsize::new(8));
    let now = Arc::clone(&fits);
    let model = FakeBatches {
        before: Arc::new(move |items| {
            if items <= now.load(Ordering::SeqCst) {
                return Ok(());
            }
            let what = format!("a batch of {items}");
            Err(EngineError::OutOfMemory { what })
        }),
        ..FakeBatches::default()
    };
    let model = steady(model, "grows");
    let registry = registry();
    let held = lease(&registry, "grows");
    let work = |from: usize, to: usize| {
        let mut tickets: Vec<_> = (from..to).map(|n| (n, submit(&held, n))).collect();
        assert!(tickets.iter_mut().all(|(n, ticket)| is_right(ticket, *n)));
    };
    work(0, 100);
    assert_eq!(sizes(&model).iter().max(), Some(&8));

    fits.store(32, Ordering::SeqCst);
    work(100, 1200);

    assert_eq!(sizes(&model).iter().max(), Some(&32), "{:?}", sizes(&model));
}

#[test]
fn one_item_that_fits_nowhere_fails_and_the_next_ones_do_not() {
    let model = FakeBatches {
        before: Arc::new({
            let seen = AtomicUsize::new(0);
            // The warm-up fits, then nothing does for a while.
            move |_| {
                let n = seen.fetch_add(1, Ordering::SeqCst);
                if n == 0 || n > 60 {
                    return Ok(());
                }
                let what = "anything".into();
                Err(EngineError::OutOfMemory { what })
            }
        }),
        ..FakeBatches::default()
    };
    steady(model, "nowhere");
    let registry = registry();
    let held = lease(&registry, "nowhere");

    let first = submit(&held, 1).wait(GUARD).expect("an answer");
    let mut later = (2..40).map(|n| submit(&held, n));

    assert!(
        matches!(first, Err(EngineError::OutOfMemory { .. })),
        "{first:?}"
    );
    assert!(later.any(|mut ticket| ticket.wait(GUARD).expect("an answer").is_ok()));
}

#[test]
fn a_session_that_has_no_room_any_more_is_made_anew_and_goes_on() {
    let rebuilds = Arc::new(AtomicUsize::new(0));
    let seen = Arc::clone(&rebuilds);
    let warmed = AtomicUsize::new(0);
    let model = FakeBatches {
        // The warm-up fits; after it nothing does, as if the session had lost its memory, until it is made anew.
        before: Arc::new(move |_| {
            if warmed.fetch_add(1, Ordering::SeqCst) == 0 || seen.load(Ordering::SeqCst) > 0 {
                return Ok(());
            }
            let what = "anything".into();
            Err(EngineError::OutOfMemory { what })
        }),
        rebuilds: Arc::clone(&rebuilds),
        ..FakeBatches::default()
    };
    let model = steady(model, "rebuilt");
    let registry = registry();
    let held = lease(&registry, "rebuilt");

    let mut tickets: Vec<_> = (0..40).map(|n| (n, submit(&held, n))).collect();

    assert!(tickets.iter_mut().all(|(n, ticket)| is_right(ticket, *n)));
    assert_eq!(rebuilds.load(Ordering::SeqCst), 1);
    assert_eq!(sizes(&model).iter().sum::<usize>(), 40);
    let told = held.degraded();
    assert!(told.iter().any(|d| d.to == "made anew"), "{told:?}");
}

/// What `embed` tells while it enrols `count` segments in batches of at most `batch_size`.
fn enrolled(name: &str, count: usize, batch_size: usize) -> (Vec<VoiceVector>, Vec<String>) {
    let registry = registry();
    let mut held = lease(&registry, name);
    let segments = (0..count).map(|n| vec![angle(n); 16]);
    held.set_batch_size(batch_size);
    let mut lines = Vec::new();

    let vectors = embed(
        &held,
        segments,
        None,
        &CancelToken::new(),
        &mut |progress| lines.push(progress.to_string()),
    );

    (vectors.unwrap(), lines)
}

#[test]
fn five_hundred_segments_are_sixteen_batches_of_thirty_two() {
    let model = steady(FakeBatches::default(), "enrolled");

    let (vectors, lines) = enrolled("enrolled", 500, 0);

    assert_eq!(vectors.len(), 500);
    for (n, vector) in vectors.iter().enumerate() {
        assert!((vector.values[1].atan2(vector.values[0]) - angle(n)).abs() < 1e-4);
    }
    assert_eq!(
        lines.first().unwrap(),
        "Processing 500 segments in 16 batches of 32"
    );
    assert_eq!(
        lines.last().unwrap(),
        "16/16 batches (500 embeddings extracted)"
    );
    assert_eq!(lines.len(), 17);
    assert_eq!(sizes(&model).len(), 16, "{:?}", sizes(&model));
}

#[test]
fn an_enrolment_heeds_the_batch_size_that_is_asked_for() {
    let model = steady(FakeBatches::default(), "enrolled by five");

    let (vectors, lines) = enrolled("enrolled by five", 12, 5);

    assert_eq!(vectors.len(), 12);
    assert_eq!(
        lines.last().unwrap(),
        "3/3 batches (12 embeddings extracted)"
    );
    assert!(
        sizes(&model).iter().all(|size| *size <= 5),
        "{:?}",
        sizes(&model)
    );
}

#[test]
fn an_enrolment_that_nobody_wants_any_more_ends() {
    steady(FakeBatches::default(), "unwanted");
    let registry = registry();
    let held = lease(&registry, "unwanted");
    let cancel = CancelToken::new();
    let inner = cancel.clone();

    let outcome = embed(
        &held,
        (0..10_000).map(|n| vec![angle(n); 16]),
        None,
        &cancel,
        &mut |progress| {
            if matches!(progress, Progress::Done { .. }) {
                inner.cancel();
            }
        },
    );

    assert_eq!(outcome, Err(EngineError::Cancelled));
}
