// SPDX-License-Identifier: MPL-2.0
//! One home for all models of the process: each is loaded once, however many elements ask.
//!
//! [`Registry::acquire`] gives typed [`Lease`]s, all that an element needs or none; [`Lease::submit`] gives a
//! [`Ticket`] for a job. Loads and inference run on the registry's own threads.
//!
//! Lock order: the registry's index, then an entry's locks (see `entry`), then permits.
//!
//! A lease on one kind of model never stands where another is wanted:
//!
//! ```compile_fail,E0308
//! use gstscribe::registry::{Lease, VoiceActivity, Whisper};
//!
//! fn hears(_: &Lease<VoiceActivity>) {}
//!
//! fn speaks(lease: &Lease<Whisper>) {
//!     hears(lease);
//! }
//! ```

mod entry;
mod kind;
mod permits;
mod queue;
mod ticket;

use std::any::{Any, TypeId};
use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, Once, PoisonError, Weak};
use std::time::{Duration, Instant};

use once_cell::sync::Lazy;

use crate::inference::{CancelToken, EngineError};
use entry::Entry;
use permits::Permits;

pub use kind::{Feed, FileStamp, Kind, VadSpec, VoiceActivity, Whisper, WhisperSpec};
pub use queue::Class;
pub use ticket::Ticket;

/// A model stays this long after its last lease, unless `SCRIBE_KEEP_ALIVE` says otherwise (seconds).
const KEEP_ALIVE: Duration = Duration::from_secs(300);
const HOUSEKEEPING: Duration = Duration::from_secs(2);

/// Identity of a stream, for fairness.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct StreamId(u64);

/// A model as others see it.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelStats {
    /// `speech`, `voice activity`.
    pub kind: &'static str,
    /// File and options.
    pub spec: String,
    /// Whether its weights are there.
    pub loaded: bool,
    /// Who holds it.
    pub leases: usize,
    /// Threads that run it.
    pub lanes: usize,
    /// Jobs that wait.
    pub queued: usize,
    /// Jobs done.
    pub jobs: u64,
    /// Jobs that failed.
    pub failed: u64,
    /// Seconds of sound done.
    pub audio_seconds: f64,
    /// Seconds spent in batches, over all lanes.
    pub busy_seconds: f64,
}

/// See the module. Clones are the same registry.
#[derive(Clone)]
pub struct Registry {
    inner: Arc<Inner>,
}

struct Inner {
    index: Mutex<HashMap<TypeId, Box<dyn Shelf>>>,
    permits: Arc<Permits>,
    cores: usize,
    keep_alive: Duration,
    next_stream: AtomicU64,
    housekeeper: Once,
}

/// The entries of one kind.
trait Shelf: Any + Send {
    fn evict(&mut self, keep_alive: Duration);
    fn close(&mut self);
    fn stats(&self) -> Vec<ModelStats>;
    fn any(&mut self) -> &mut dyn Any;
}

struct Entries<K: Kind>(HashMap<K::Spec, Arc<Entry<K>>>);

impl<K: Kind> Shelf for Entries<K> {
    fn evict(&mut self, keep_alive: Duration) {
        self.0.retain(|_, entry| {
            let stays = !entry.expired(keep_alive);
            if !stays {
                entry.close();
            }
            stays
        });
    }

    fn close(&mut self) {
        for entry in self.0.values() {
            entry.close();
        }
        self.0.clear();
    }

    fn stats(&self) -> Vec<ModelStats> {
        self.0.values().map(|entry| entry.stats()).collect()
    }

    fn any(&mut self) -> &mut dyn Any {
        self
    }
}

impl Registry {
    /// The process's own.
    pub fn global() -> &'static Self {
        static GLOBAL: Lazy<Registry> = Lazy::new(|| {
            let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
            let lanes = number("SCRIBE_LANES").map_or(cores, |n| n as usize);
            let keep_alive = number("SCRIBE_KEEP_ALIVE").map_or(KEEP_ALIVE, Duration::from_secs);
            Registry::new(lanes, keep_alive)
        });
        &GLOBAL
    }

    /// One of its own, for tests and programs: `cores` threads compute at once, a model goes `keep_alive`
    /// after its last lease.
    pub fn new(cores: usize, keep_alive: Duration) -> Self {
        let cores = cores.max(1);
        let inner = Inner {
            index: Mutex::default(),
            permits: Arc::new(Permits::new(cores)),
            cores,
            keep_alive,
            next_stream: AtomicU64::new(1),
            housekeeper: Once::new(),
        };
        Self {
            inner: Arc::new(inner),
        }
    }

    /// Leases on all models of `request`, or an error and none.
    ///
    /// Waits while they load: never call it on a streaming thread. A set `cancel` ends the wait with
    /// [`EngineError::Cancelled`]; the load goes on for others.
    pub fn acquire<R: RequestSet>(
        &self,
        request: R,
        cancel: &CancelToken,
    ) -> Result<R::Leases, EngineError> {
        self.start_housekeeper();
        let stream = StreamId(self.inner.next_stream.fetch_add(1, Ordering::Relaxed));
        // All loads begin before the first is waited for.
        request.begin(self);
        request.acquire(self, stream, cancel)
    }

    /// Begins to load what `request` names, without waiting.
    pub fn preload<R: RequestSet>(&self, request: &R) {
        self.start_housekeeper();
        request.begin(self);
    }

    /// What is loaded and what it has done.
    pub fn stats(&self) -> Vec<ModelStats> {
        self.index()
            .values()
            .flat_map(|shelf| shelf.stats())
            .collect()
    }

    /// Drops every model that nobody holds.
    pub fn evict_idle(&self) {
        self.inner.evict(Duration::ZERO);
    }

    /// Threads that compute at once.
    pub fn cores(&self) -> usize {
        self.inner.cores
    }

    fn index(&self) -> MutexGuard<'_, HashMap<TypeId, Box<dyn Shelf>>> {
        self.inner
            .index
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// The entry of `spec`, its load begun. `lease` counts a lease under the index's lock, so that no eviction
    /// comes between.
    fn entry<K: Kind>(&self, spec: &K::Spec, lease: bool) -> Arc<Entry<K>> {
        let mut index = self.index();
        let shelf = index
            .entry(TypeId::of::<K>())
            .or_insert_with(|| Box::new(Entries::<K>(HashMap::new())));
        let Some(entries) = shelf.any().downcast_mut::<Entries<K>>() else {
            unreachable!("a shelf is kept under its own kind's TypeId")
        };
        // A failed load is forgotten, so that a corrected file is read again.
        if entries.0.get(spec).is_some_and(|entry| entry.has_failed()) {
            entries.0.remove(spec);
        }
        let entry = entries.0.entry(spec.clone()).or_insert_with(|| {
            Entry::start(
                spec.clone(),
                Arc::clone(&self.inner.permits),
                self.inner.cores,
            )
        });
        if lease {
            entry.lease();
        }
        Arc::clone(entry)
    }

    fn lease<K: Kind>(
        &self,
        spec: &K::Spec,
        stream: StreamId,
        cancel: &CancelToken,
    ) -> Result<Lease<K>, EngineError> {
        let entry = self.entry::<K>(spec, true);
        // From here on the lease gives itself back on every path.
        let mut lease = Lease {
            entry,
            stream,
            model: None,
        };
        lease.model = Some(lease.entry.model(cancel)?);
        Ok(lease)
    }

    fn start_housekeeper(&self) {
        self.inner.housekeeper.call_once(|| {
            let inner = Arc::downgrade(&self.inner);
            let tick = self
                .inner
                .keep_alive
                .clamp(Duration::from_millis(50), HOUSEKEEPING);
            // Without the thread idle models merely stay: nothing to report.
            let _ = std::thread::Builder::new()
                .name("scribe-idle".into())
                .spawn(move || housekeep(&inner, tick));
        });
    }
}

fn housekeep(inner: &Weak<Inner>, tick: Duration) {
    loop {
        std::thread::sleep(tick);
        let Some(inner) = inner.upgrade() else { return };
        inner.evict(inner.keep_alive);
    }
}

impl Inner {
    fn evict(&self, keep_alive: Duration) {
        for shelf in self
            .index
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .values_mut()
        {
            shelf.evict(keep_alive);
        }
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        for shelf in self
            .index
            .get_mut()
            .unwrap_or_else(PoisonError::into_inner)
            .values_mut()
        {
            shelf.close();
        }
    }
}

impl std::fmt::Debug for Registry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Registry")
            .field("models", &self.stats())
            .finish()
    }
}

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok()?.trim().parse().ok()
}

/// A wish for one model of kind `K`.
#[derive(Debug)]
pub struct Request<K: Kind>(pub K::Spec);

impl<K: Kind> Clone for Request<K> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

/// What an element needs, in one piece: nobody holds one model and waits for another.
pub trait RequestSet {
    /// Leases in the shape of the request.
    type Leases;
    #[doc(hidden)]
    fn begin(&self, registry: &Registry);
    #[doc(hidden)]
    fn acquire(
        self,
        registry: &Registry,
        stream: StreamId,
        cancel: &CancelToken,
    ) -> Result<Self::Leases, EngineError>;
}

impl<K: Kind> RequestSet for Request<K> {
    type Leases = Lease<K>;

    fn begin(&self, registry: &Registry) {
        registry.entry::<K>(&self.0, false);
    }

    fn acquire(
        self,
        registry: &Registry,
        stream: StreamId,
        cancel: &CancelToken,
    ) -> Result<Lease<K>, EngineError> {
        registry.lease(&self.0, stream, cancel)
    }
}

impl<R: RequestSet> RequestSet for Option<R> {
    type Leases = Option<R::Leases>;

    fn begin(&self, registry: &Registry) {
        if let Some(request) = self {
            request.begin(registry);
        }
    }

    fn acquire(
        self,
        registry: &Registry,
        stream: StreamId,
        cancel: &CancelToken,
    ) -> Result<Self::Leases, EngineError> {
        self.map(|request| request.acquire(registry, stream, cancel))
            .transpose()
    }
}

impl<A: RequestSet, B: RequestSet> RequestSet for (A, B) {
    type Leases = (A::Leases, B::Leases);

    fn begin(&self, registry: &Registry) {
        self.0.begin(registry);
        self.1.begin(registry);
    }

    fn acquire(
        self,
        registry: &Registry,
        stream: StreamId,
        cancel: &CancelToken,
    ) -> Result<Self::Leases, EngineError> {
        let a = self.0.acquire(registry, stream, cancel)?;
        let b = self.1.acquire(registry, stream, cancel)?;
        Ok((a, b))
    }
}

/// The right to use a loaded model. The model stays while there is one.
pub struct Lease<K: Kind> {
    entry: Arc<Entry<K>>,
    stream: StreamId,
    model: Option<Arc<K::Model>>,
}

impl<K: Kind> Lease<K> {
    /// Asks for a job to be done. `deadline` orders jobs of one class; it does not cancel.
    pub fn submit(
        &self,
        job: K::Job,
        params: K::Params,
        class: Class,
        deadline: Option<Instant>,
    ) -> Ticket<K::Out> {
        self.entry.submit(self.stream, job, params, class, deadline)
    }

    /// The model, to ask what it can do.
    pub fn model(&self) -> Option<&K::Model> {
        self.model.as_deref()
    }

    /// What it has done.
    pub fn stats(&self) -> ModelStats {
        self.entry.stats()
    }
}

impl<K: Kind> Drop for Lease<K> {
    fn drop(&mut self) {
        self.entry.release(self.stream);
    }
}

impl<K: Kind> std::fmt::Debug for Lease<K> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Lease")
            .field("model", &self.entry.stats())
            .finish()
    }
}
