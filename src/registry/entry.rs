// SPDX-License-Identifier: MPL-2.0
//! One loaded model with its lanes: threads that own what inference needs.
//!
//! Lock order: `life`, then `work`. Neither is held during a load, a batch or a wait for permits.

use std::cell::RefCell;
use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::kind::{Feed, Kind};
use super::permits::Permits;
use super::queue::{Class, Queue, Queued};
use super::ticket::{Slot, Ticket};
use super::{ModelStats, StreamId};
use crate::inference::{CancelToken, EngineError, exit};

/// whisper.cpp's tokeniser recurses over the prompt.
const LANE_STACK_BYTES: usize = 8 << 20;

/// How often somebody who waits for a load looks at his cancel token.
const CANCEL_POLL: Duration = Duration::from_millis(20);

pub(super) struct Job<K: Kind> {
    job: K::Job,
    params: K::Params,
    slot: Arc<Slot<K::Out>>,
    cancel: CancelToken,
}

enum Life<M: ?Sized> {
    Loading,
    Ready(Arc<M>),
    Failed(EngineError),
}

struct Work<K: Kind> {
    queue: Queue<Job<K>>,
    lanes: usize,
    idle: usize,
    closed: bool,
}

struct Leases {
    count: usize,
    idle_since: Option<Instant>,
}

/// What an entry has done so far.
#[derive(Default)]
struct Counters {
    jobs: AtomicU64,
    failed: AtomicU64,
    audio_ms: AtomicU64,
    busy_ms: AtomicU64,
}

pub(super) struct Entry<K: Kind> {
    spec: K::Spec,
    permits: Arc<Permits>,
    most_lanes: usize,
    life: Mutex<Life<K::Model>>,
    loaded: Condvar,
    work: Mutex<Work<K>>,
    more: Condvar,
    leases: Mutex<Leases>,
    counters: Counters,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<K: Kind> Entry<K> {
    /// Makes an entry and begins its load on a thread of its own, so that whoever asked can leave.
    pub(super) fn start(spec: K::Spec, permits: Arc<Permits>, cores: usize) -> Arc<Self> {
        let entry = Arc::new(Self {
            most_lanes: K::lanes(&spec, cores),
            spec,
            permits,
            life: Mutex::new(Life::Loading),
            loaded: Condvar::new(),
            work: Mutex::new(Work {
                queue: Queue::default(),
                lanes: 0,
                idle: 0,
                closed: false,
            }),
            more: Condvar::new(),
            leases: Mutex::new(Leases {
                count: 0,
                idle_since: Some(Instant::now()),
            }),
            counters: Counters::default(),
        });
        let loader = Arc::clone(&entry);
        let spawned = std::thread::Builder::new()
            .name("scribe-load".into())
            .spawn(move || loader.load());
        if let Err(e) = spawned {
            entry.settle(Err(EngineError::Failed {
                what: "starting a thread to load a model".into(),
                why: e.to_string(),
            }));
        }
        entry
    }

    fn load(&self) {
        let _inside = exit::enter();
        let outcome = catch_unwind(AssertUnwindSafe(|| K::load(&self.spec)));
        self.settle(outcome.unwrap_or_else(|panic| {
            Err(EngineError::Failed {
                what: format!("loading a {} model", K::NAME),
                why: panic_text(&*panic),
            })
        }));
    }

    fn settle(&self, outcome: Result<Arc<K::Model>, EngineError>) {
        *lock(&self.life) = match outcome {
            Ok(model) => Life::Ready(model),
            Err(error) => Life::Failed(error),
        };
        self.loaded.notify_all();
    }

    /// Waits for the load. Its outcome, error too, is shared by all who wait.
    pub(super) fn model(&self, cancel: &CancelToken) -> Result<Arc<K::Model>, EngineError> {
        let mut life = lock(&self.life);
        loop {
            match &*life {
                Life::Ready(model) => return Ok(Arc::clone(model)),
                Life::Failed(error) => return Err(error.clone()),
                Life::Loading if cancel.is_cancelled() => return Err(EngineError::Cancelled),
                Life::Loading => {}
            }
            life = self
                .loaded
                .wait_timeout(life, CANCEL_POLL)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
    }

    pub(super) fn has_failed(&self) -> bool {
        matches!(*lock(&self.life), Life::Failed(_))
    }

    pub(super) fn lease(&self) {
        let mut leases = lock(&self.leases);
        leases.count += 1;
        leases.idle_since = None;
    }

    pub(super) fn release(&self, stream: StreamId) {
        let mut leases = lock(&self.leases);
        leases.count = leases.count.saturating_sub(1);
        if leases.count == 0 {
            leases.idle_since = Some(Instant::now());
        }
        drop(leases);
        let mut work = lock(&self.work);
        work.queue.sweep(|job| job.cancel.is_cancelled());
        work.queue.forget(stream);
    }

    /// Whether nobody has leased it for `keep_alive`. What still loads is waited for, or soon will be.
    pub(super) fn expired(&self, keep_alive: Duration) -> bool {
        if matches!(*lock(&self.life), Life::Loading) {
            return false;
        }
        let leases = lock(&self.leases);
        leases.count == 0
            && leases
                .idle_since
                .is_some_and(|since| since.elapsed() >= keep_alive)
    }

    pub(super) fn submit(
        self: &Arc<Self>,
        stream: StreamId,
        job: K::Job,
        params: K::Params,
        class: Class,
        deadline: Option<Instant>,
    ) -> Ticket<K::Out> {
        let slot = Slot::new();
        let cancel = CancelToken::new();
        let seconds = K::seconds(&job);
        let ticket = Ticket {
            slot: Arc::clone(&slot),
            cancel: cancel.clone(),
        };
        let mut work = lock(&self.work);
        if work.closed {
            drop(work);
            slot.put(Err(EngineError::Cancelled));
            return ticket;
        }
        work.queue.push(Queued {
            stream,
            class,
            deadline,
            seconds,
            job: Job {
                job,
                params,
                slot,
                cancel,
            },
        });
        let spawn = work.queue.len() > work.idle && work.lanes < self.most_lanes;
        if spawn {
            work.lanes += 1;
        }
        drop(work);
        self.more.notify_one();
        if spawn {
            self.spawn_lane();
        }
        ticket
    }

    fn spawn_lane(self: &Arc<Self>) {
        let entry = Arc::clone(self);
        let spawned = std::thread::Builder::new()
            .name("scribe-lane".into())
            .stack_size(LANE_STACK_BYTES)
            .spawn(move || entry.lane_loop());
        if let Err(e) = spawned {
            let mut work = lock(&self.work);
            work.lanes -= 1;
            if work.lanes == 0 {
                let error = EngineError::Failed {
                    what: "starting a lane".into(),
                    why: e.to_string(),
                };
                for job in work.queue.drain() {
                    job.slot.put(Err(error.clone()));
                }
            }
        }
    }

    fn lane_loop(&self) {
        let mut lane: Option<K::Lane> = None;
        while let Some(first) = self.wait_for_job() {
            let model = match self.model(&first.cancel) {
                Ok(model) => model,
                Err(error) => {
                    first.slot.put(Err(error));
                    continue;
                }
            };
            let _permit = self.permits.take(K::permits(&self.spec));
            if first.cancel.is_cancelled() {
                first.slot.put(Err(EngineError::Cancelled));
                continue;
            }
            let _inside = exit::enter();
            let mut own = match lane.take().map_or_else(|| K::lane(&model), Ok) {
                Ok(own) => own,
                Err(error) => {
                    first.slot.put(Err(error));
                    continue;
                }
            };
            if self.run_batch(&mut own, first, K::max_batch(&model)) {
                lane = Some(own);
            }
        }
        lock(&self.work).lanes -= 1;
    }

    /// Runs one batch; false if the lane must not be used again.
    fn run_batch(&self, lane: &mut K::Lane, first: Job<K>, most: usize) -> bool {
        let params = first.params.clone();
        let batch = Batch {
            entry: self,
            params: &params,
            first: RefCell::new(Some(first)),
            running: RefCell::default(),
            left: RefCell::new(most.max(1)),
        };
        let began = Instant::now();
        let outcome = catch_unwind(AssertUnwindSafe(|| K::run(lane, &batch, &params)));
        let busy_ms = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.counters.busy_ms.fetch_add(busy_ms, Ordering::Relaxed);
        let (usable, error) = match outcome {
            Ok(Ok(())) => (
                true,
                EngineError::Failed {
                    what: format!("a {} job", K::NAME),
                    why: "the engine gave no answer".into(),
                },
            ),
            Ok(Err(error)) => (false, error),
            Err(panic) => (
                false,
                EngineError::Failed {
                    what: format!("a {} job", K::NAME),
                    why: panic_text(&*panic),
                },
            ),
        };
        let unanswered: Vec<Running<K>> = batch.running.take().into_values().collect();
        if let Some(job) = batch.first.take() {
            job.slot.put(Err(error.clone()));
        }
        for running in unanswered {
            self.counters.failed.fetch_add(1, Ordering::Relaxed);
            running.slot.put(Err(error.clone()));
        }
        usable
    }

    fn wait_for_job(&self) -> Option<Job<K>> {
        let mut work = lock(&self.work);
        loop {
            if work.closed {
                return None;
            }
            while let Some(queued) = work.queue.pop(|_| true) {
                if !queued.job.cancel.is_cancelled() {
                    return Some(queued.job);
                }
                queued.job.slot.put(Err(EngineError::Cancelled));
            }
            work.idle += 1;
            work = self.more.wait(work).unwrap_or_else(PoisonError::into_inner);
            work.idle -= 1;
        }
    }

    /// Ends the lanes when they are done with what they do, and refuses what waits.
    pub(super) fn close(&self) {
        let mut work = lock(&self.work);
        work.closed = true;
        let waiting = work.queue.drain();
        drop(work);
        self.more.notify_all();
        for job in waiting {
            job.slot.put(Err(EngineError::Cancelled));
        }
    }

    pub(super) fn stats(&self) -> ModelStats {
        let (queued, lanes) = {
            let work = lock(&self.work);
            (work.queue.len(), work.lanes)
        };
        ModelStats {
            kind: K::NAME,
            spec: format!("{:?}", self.spec),
            loaded: matches!(*lock(&self.life), Life::Ready(_)),
            leases: lock(&self.leases).count,
            lanes,
            queued,
            jobs: self.counters.jobs.load(Ordering::Relaxed),
            failed: self.counters.failed.load(Ordering::Relaxed),
            audio_seconds: self.counters.audio_ms.load(Ordering::Relaxed) as f64 / 1e3,
            busy_seconds: self.counters.busy_ms.load(Ordering::Relaxed) as f64 / 1e3,
        }
    }
}

struct Running<K: Kind> {
    slot: Arc<Slot<K::Out>>,
    seconds: f64,
}

/// The jobs of one run of a lane. Used by that lane's thread alone.
struct Batch<'a, K: Kind> {
    entry: &'a Entry<K>,
    params: &'a K::Params,
    first: RefCell<Option<Job<K>>>,
    running: RefCell<HashMap<u64, Running<K>>>,
    left: RefCell<usize>,
}

impl<K: Kind> Feed<K> for Batch<'_, K> {
    fn next(&self) -> Option<(u64, K::Job, CancelToken)> {
        let left = &mut *self.left.borrow_mut();
        *left = left.checked_sub(1)?;
        let job = self.first.take().or_else(|| {
            let mut work = lock(&self.entry.work);
            let fits =
                |q: &Queued<Job<K>>| q.job.params == *self.params && !q.job.cancel.is_cancelled();
            work.queue.pop(fits).map(|q| q.job)
        })?;
        let id = *left as u64;
        let seconds = K::seconds(&job.job);
        self.running.borrow_mut().insert(
            id,
            Running {
                slot: job.slot,
                seconds,
            },
        );
        Some((id, job.job, job.cancel))
    }

    fn finish(&self, id: u64, result: Result<K::Out, EngineError>) {
        let Some(running) = self.running.borrow_mut().remove(&id) else {
            return;
        };
        let counters = &self.entry.counters;
        match &result {
            Ok(_) => {
                counters.jobs.fetch_add(1, Ordering::Relaxed);
                counters
                    .audio_ms
                    .fetch_add((running.seconds * 1e3) as u64, Ordering::Relaxed);
            }
            Err(EngineError::Cancelled) => {}
            Err(_) => {
                counters.failed.fetch_add(1, Ordering::Relaxed);
            }
        }
        running.slot.put(result);
    }
}

fn panic_text(panic: &(dyn std::any::Any + Send)) -> String {
    panic
        .downcast_ref::<&str>()
        .map(|s| (*s).to_owned())
        .or_else(|| panic.downcast_ref::<String>().cloned())
        .map_or_else(
            || "it panicked".to_owned(),
            |text| format!("it panicked: {text}"),
        )
}
