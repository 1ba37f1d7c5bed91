// SPDX-License-Identifier: MPL-2.0
//! One home for all models of the process: each is loaded once, however many elements ask.
//!
//! [`Registry::acquire`] gives typed [`Lease`]s, all that an element needs or none; [`Lease::submit`] gives a
//! [`Ticket`] for a job. Loads and inference run on the registry's own threads. Nothing is loaded or grown before the
//! [`ledger`] has reserved the memory for it.
//!
//! Lock order: the registry's index, then an entry's locks (see `entry`), then the ledger, which is a leaf. Permits are
//! taken under none.
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

mod admission;
mod batch;
pub mod clock;
pub mod device;
mod entry;
mod event;
mod kind;
pub mod ledger;
pub mod limit;
#[cfg(feature = "prometheus")]
pub mod metrics;
#[cfg(all(test, feature = "model-check"))]
mod model_check;
mod permits;
pub mod plan;
mod queue;
#[cfg(any(test, feature = "test-support"))]
pub mod replay;
mod settings;
mod shared;
mod sync;
mod ticket;

use std::any::{Any, TypeId};
use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use once_cell::sync::OnceCell;

use crate::inference::onnx::arena::{DEFAULT_ARENA_CAP, set_arena_cap};
use crate::inference::{CancelToken, DeviceId, EngineError};
use admission::{Activity, Admission, Demands, Refused};
use clock::SystemClock;
use device::{Cpu, Cuda, Device};
use entry::{AnyEntry, Entry, Order, Part, Settled, Shared};
use ledger::{Bound, Demand, DeviceMemory, DeviceSpec, Ledger, Shortage};
use limit::MemoryLimit;
use permits::Permits;
use plan::{Idle, Need};
use sync::{Guard, Once, Rank, Ranked, thread};

pub use event::Degraded;
pub use kind::{
    Embedding, EmbeddingSpec, Feed, FileStamp, Kind, Segmentation, SegmentationSpec, VadSpec,
    VoiceActivity, Whisper, WhisperSpec,
};
pub use queue::Class;
pub use settings::RegistrySettings;
pub use ticket::Ticket;

const HOUSEKEEPING: Duration = Duration::from_secs(2);

/// Identity of a stream, for fairness.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StreamId(u64);

impl StreamId {
    /// No stream: numbers begin with 1.
    const NOBODY: Self = Self(0);
}

/// A model as others see it.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelStats {
    /// `speech`, `voice activity`.
    pub kind: &'static str,
    /// Its name, for people.
    pub name: String,
    /// File and options.
    pub spec: String,
    /// Where it runs.
    pub device: DeviceId,
    /// Whether its weights are there.
    pub loaded: bool,
    /// Who holds it.
    pub leases: usize,
    /// Threads that run it.
    pub lanes: usize,
    /// Those that do so now.
    pub busy_lanes: usize,
    /// Jobs that wait.
    pub queued: usize,
    /// Bytes reserved for its weights.
    pub weights_bytes: u64,
    /// Bytes reserved for its lanes.
    pub lanes_bytes: u64,
    /// Items of its next batch, at most.
    pub batch: usize,
    /// Batches run.
    pub batches: u64,
    /// Jobs done.
    pub jobs: u64,
    /// Jobs that failed.
    pub failed: u64,
    /// Batches that found no memory.
    pub out_of_memory: u64,
    /// Seconds of sound done.
    pub audio_seconds: f64,
    /// Seconds spent in batches, over all lanes.
    pub busy_seconds: f64,
    /// Seconds that its load took.
    pub load_seconds: f64,
}

/// See the module. Clones are the same registry.
#[derive(Clone)]
pub struct Registry {
    inner: Arc<Inner>,
}

/// What a registry is.
pub(crate) struct Inner {
    index: Ranked<HashMap<TypeId, Box<dyn Shelf>>>,
    shared: Arc<Shared>,
    admission: Admission,
    next_stream: AtomicU64,
    next_entry: AtomicU64,
    evicted: AtomicU64,
    settings: RegistrySettings,
    housekeeper: Once,
}

/// The entries of one kind.
trait Shelf: Any + Send {
    fn evict(&mut self, keep_alive: Option<Duration>, gone: &mut Gone);
    fn idle(&self) -> Vec<Idle<(u64, Part)>>;
    fn give_up(&mut self, number: u64, part: Part, gone: &mut Gone) -> bool;
    fn take_all(&mut self, gone: &mut Gone);
    fn stats(&self) -> Vec<ModelStats>;
    fn any(&mut self) -> &mut dyn Any;
}

/// Models that were taken from the index. They are closed after its lock is given back: what they hold may take a while
/// to free, and who still waits for an answer is told.
type Gone = Vec<Arc<dyn AnyEntry>>;

struct Entries<K: Kind>(HashMap<K::Spec, Arc<Entry<K>>>);

impl<K: Kind> Shelf for Entries<K> {
    fn evict(&mut self, keep_alive: Option<Duration>, gone: &mut Gone) {
        for (_, entry) in self.0.extract_if(|_, entry| entry.expired(keep_alive)) {
            entry.shut();
            gone.push(entry);
        }
    }

    fn idle(&self) -> Vec<Idle<(u64, Part)>> {
        self.0.values().flat_map(|entry| entry.idle()).collect()
    }

    fn give_up(&mut self, number: u64, part: Part, gone: &mut Gone) -> bool {
        let found = self.0.iter().find(|(_, entry)| entry.number() == number);
        let Some((spec, entry)) = found.map(|(s, e)| (s.clone(), Arc::clone(e))) else {
            return false;
        };
        match part {
            Part::SpareLanes => entry.shed(),
            // Leased since it was looked at: it stays.
            Part::Model if !entry.expired(None) => return false,
            Part::Model => {
                self.0.remove(&spec);
                entry.shut();
                gone.push(entry);
            }
        }
        true
    }

    fn take_all(&mut self, gone: &mut Gone) {
        gone.extend(self.0.drain().map(|(_, entry)| entry as Arc<dyn AnyEntry>));
    }

    fn stats(&self) -> Vec<ModelStats> {
        self.0.values().map(|entry| entry.stats()).collect()
    }

    fn any(&mut self) -> &mut dyn Any {
        self
    }
}

/// The process's own, with what it was configured to be before it was first used.
static GLOBAL: OnceCell<Registry> = OnceCell::new();

impl Registry {
    /// The process's own, by the environment unless [`Registry::configure`] came first.
    pub fn global() -> &'static Self {
        GLOBAL.get_or_init(|| Registry::first(RegistrySettings::from_environment()))
    }

    /// Says what the process's own registry is to be. Once it is in use it stays as it is: then equal settings are
    /// accepted, and for others the error tells both.
    pub fn configure(settings: RegistrySettings) -> Result<(), String> {
        let registry = GLOBAL.get_or_init(|| Registry::first(settings.clone()));
        let stands = &registry.inner.settings;
        if *stands == settings {
            return Ok(());
        }
        Err(format!(
            "the registry is in use with {stands}, which cannot be changed into {settings} any more: configure it before \
             the first element works"
        ))
    }

    /// The process's own: ONNX Runtime's arena, of which a process has one, gets no more than the registry may use.
    fn first(settings: RegistrySettings) -> Self {
        let registry = Self::with_settings(settings);
        let ceiling = registry.memory().first().map_or(u64::MAX, |m| m.ceiling);
        // Somebody has used ONNX Runtime before: then the cap that it had stays.
        let _ = set_arena_cap(ceiling.min(DEFAULT_ARENA_CAP));
        registry
    }

    /// One of its own on this machine's devices, which it shares with other scribe processes of the user.
    pub fn with_settings(settings: RegistrySettings) -> Self {
        let cpu: Arc<dyn Device> = Arc::new(Cpu::new());
        let devices = vec![DeviceSpec::shared(cpu, settings.memory_limit)];
        Self::on(settings, devices)
    }

    /// One of its own, for tests and programs: `cores` threads compute at once, a model goes `keep_alive`
    /// after its last lease.
    pub fn new(cores: usize, keep_alive: Duration) -> Self {
        Self::with_settings(RegistrySettings {
            lanes: cores,
            keep_alive,
            ..RegistrySettings::default()
        })
    }

    /// One on these devices.
    pub fn on(settings: RegistrySettings, devices: Vec<DeviceSpec>) -> Self {
        let ledger = Ledger::new(devices, Arc::new(SystemClock::default()));
        let cores = settings.lanes.max(1);
        let inner = Arc::new_cyclic(|inner| Inner {
            index: Ranked::new(Rank::Index, HashMap::new()),
            shared: Arc::new(Shared {
                permits: Permits::new(cores),
                ledger,
                cores,
                keep_alive: settings.keep_alive,
                registry: Weak::clone(inner),
                pressure: AtomicBool::new(false),
                activity: Activity::default(),
            }),
            admission: Admission::default(),
            next_stream: AtomicU64::new(1),
            next_entry: AtomicU64::new(1),
            evicted: AtomicU64::new(0),
            settings,
            housekeeper: Once::new(),
        });
        Self { inner }
    }

    /// Leases on all models of `request`, or an error and none.
    ///
    /// Waits for memory and while they load: never call it on a streaming thread. A set `cancel` ends the wait with
    /// [`EngineError::Cancelled`]; a load that has begun goes on for others.
    pub fn acquire<R: RequestSet>(
        &self,
        request: R,
        cancel: &CancelToken,
    ) -> Result<R::Leases, EngineError> {
        self.acquire_as(request, Class::File, cancel)
    }

    /// The same for a stream of this class: live goes before files in the line for memory too.
    pub fn acquire_as<R: RequestSet>(
        &self,
        request: R,
        class: Class,
        cancel: &CancelToken,
    ) -> Result<R::Leases, EngineError> {
        self.start_housekeeper();
        let stream = StreamId(self.inner.next_stream.fetch_add(1, Ordering::Relaxed));
        let mut wants = Vec::new();
        request.wants(&mut wants);
        let mut choices: Vec<Choice> = wants.into_iter().map(Choice::new).collect();
        loop {
            match self.try_acquire(&mut choices, stream, class, cancel) {
                Ok(()) => break,
                Err((_, EngineError::Cancelled)) => return Err(EngineError::Cancelled),
                Err((at, error)) => step_down(&mut choices, at, &error)?,
            }
        }
        let mut granted = Granted {
            choices: choices.into_iter(),
        };
        request.leases(&mut granted)
    }

    /// Waits until all choices are loaded and held. The error comes with the choice it concerns.
    fn try_acquire(
        &self,
        choices: &mut [Choice],
        stream: StreamId,
        class: Class,
        cancel: &CancelToken,
    ) -> Result<(), (usize, EngineError)> {
        let devices: Vec<DeviceId> = choices.iter().filter_map(Choice::device).collect();
        self.inner
            .admission
            .wait_behind(&self.inner.shared.ledger, &devices, class, cancel);
        // What a request that was first in line holds for us, until we hold it ourselves.
        let mut before: Option<Held> = None;
        loop {
            for choice in choices.iter_mut() {
                choice.pin(self, stream);
            }
            drop(before.take());
            let held = held();
            if choices
                .iter()
                .filter_map(Choice::entry)
                .all(|e| e.is_ready())
            {
                return Ok(());
            }
            // What we do not load ourselves is not held while we wait: others before us may need its memory. What is
            // there already is held from when we are first in line.
            let (mut claimed, mut ready, mut waited_for) = (Vec::new(), Vec::new(), Vec::new());
            for (at, choice) in choices.iter_mut().enumerate() {
                let Some(entry) = choice.entry() else {
                    continue;
                };
                waited_for.push((at, Arc::clone(&entry)));
                if entry.claim() {
                    claimed.push(entry);
                } else {
                    choice.pinned = None;
                    if entry.is_ready() {
                        ready.push(entry);
                    }
                }
            }
            let own = claimed.clone();
            if !own.is_empty() {
                self.ask_for(Ask {
                    claimed,
                    ready,
                    held: Arc::clone(&held),
                    stream,
                    class,
                    cancel: cancel.clone(),
                });
            }
            // Our own loads first. What they gave is not held either while others load what we lack: they may be waiting
            // for its memory.
            let (ours, theirs): (Vec<_>, Vec<_>) = waited_for
                .into_iter()
                .partition(|(_, entry)| own.iter().any(|o| Arc::ptr_eq(o, entry)));
            let mut let_go = false;
            for (at, entry) in ours.into_iter().chain(theirs) {
                let is_ours = own.iter().any(|o| Arc::ptr_eq(o, &entry));
                if !is_ours && !let_go && !entry.is_ready() {
                    let_go = true;
                    for choice in choices.iter_mut() {
                        choice.pinned = None;
                    }
                    held.lock().clear();
                }
                match entry.wait(cancel) {
                    Settled::Ready | Settled::New => {}
                    Settled::Cancelled => return Err((at, EngineError::Cancelled)),
                    Settled::Failed(error) => return Err((at, error)),
                }
            }
            if cancel.is_cancelled() {
                return Err((0, EngineError::Cancelled));
            }
            before = Some(held);
        }
    }

    /// Stands in line for memory, on a thread that can be left behind.
    fn ask_for(&self, ask: Ask) {
        let inner = Arc::clone(&self.inner);
        let claimed = ask.claimed.clone();
        let spawned = thread::Builder::new()
            .name("scribe-admit".into())
            .spawn(move || inner.ask_for(&ask));
        if let Err(e) = spawned {
            for entry in claimed {
                entry.fail(EngineError::Failed {
                    what: "starting a thread to ask for memory".into(),
                    why: e.to_string(),
                });
            }
        }
    }

    /// Begins to load what `request` names, without waiting.
    pub fn preload<R: RequestSet>(&self, request: &R) {
        self.start_housekeeper();
        let mut wants = Vec::new();
        request.wants(&mut wants);
        let claimed: Vec<Arc<dyn AnyEntry>> = wants
            .iter()
            .filter_map(|want| want.chain.first())
            .map(|find| find(self, false))
            .filter(|entry| entry.claim())
            .collect();
        if !claimed.is_empty() {
            self.ask_for(Ask {
                claimed,
                ready: Vec::new(),
                held: held(),
                stream: StreamId::NOBODY,
                class: Class::Background,
                cancel: CancelToken::new(),
            });
        }
    }

    /// What is loaded and what it has done.
    pub fn stats(&self) -> Vec<ModelStats> {
        self.inner
            .index()
            .values()
            .flat_map(|shelf| shelf.stats())
            .collect()
    }

    /// Memory of the devices that were used so far.
    pub fn memory(&self) -> Vec<DeviceMemory> {
        self.inner.shared.ledger.memory()
    }

    /// Requests that wait for memory.
    pub fn waiting(&self) -> usize {
        self.inner.admission.waiting()
    }

    /// Models that were unloaded so far.
    pub fn evicted(&self) -> u64 {
        self.inner.evicted.load(Ordering::Relaxed)
    }

    /// Asks for a lower limit of memory than there is. An element may ask for less, not for more, and only before
    /// anything is loaded: otherwise the error tells both values.
    pub fn lower_limit(&self, limit: MemoryLimit) -> Result<(), String> {
        self.inner.shared.ledger.lower_limit(limit).map_err(|stands| {
            let stands = stands.map_or("all of the device's memory".to_owned(), |l| l.to_string());
            format!(
                "memory-limit {limit} has no effect: {stands} is in force, which can be lowered only before the first model \
                 is loaded and not be raised. Set SCRIBE_MEMORY_LIMIT for the process"
            )
        })
    }

    /// What the registry works by.
    pub fn settings(&self) -> &RegistrySettings {
        &self.inner.settings
    }

    /// The ledger, to look at or to reserve what an application loads beside scribe's models.
    pub fn ledger(&self) -> &Arc<Ledger> {
        &self.inner.shared.ledger
    }

    /// Drops every model that nobody holds.
    pub fn evict_idle(&self) {
        self.inner.evict(None);
    }

    /// Threads that compute at once.
    pub fn cores(&self) -> usize {
        self.inner.shared.cores
    }

    fn start_housekeeper(&self) {
        // Nothing grows old in the model, and a thread without end would be all that it looks at.
        if cfg!(all(test, feature = "model-check")) {
            return;
        }
        self.inner.housekeeper.call_once(|| {
            let inner = Arc::downgrade(&self.inner);
            let tick = self
                .inner
                .settings
                .keep_alive
                .clamp(Duration::from_millis(50), HOUSEKEEPING);
            // Without the thread idle models merely stay: nothing to report.
            let _ = thread::Builder::new()
                .name("scribe-idle".into())
                .spawn(move || housekeep(&inner, tick));
        });
    }
}

fn housekeep(inner: &Weak<Inner>, tick: Duration) {
    let mut seen = 0;
    loop {
        thread::sleep(tick);
        let Some(inner) = inner.upgrade() else { return };
        inner.evict(Some(inner.settings.keep_alive));
        let at_work = inner.shared.activity.any_since(&mut seen);
        inner.shared.ledger.tell(at_work);
        // Others may have taken memory, or wait for some: what is idle goes before anybody is refused.
        for memory in inner.shared.ledger.memory() {
            let excess = inner.shared.ledger.excess(memory.device, Bound::Soft);
            if excess > 0 && memory.reserved > 0 {
                inner.give_up_what_there_is(memory.device, excess, Need::Comfort);
            }
            let excess = inner.shared.ledger.excess(memory.device, Bound::Ceiling);
            if excess > 0 && memory.reserved > 0 {
                inner.give_up_what_there_is(memory.device, excess, Need::Room);
            }
        }
    }
}

/// After `error` with the choice `at`: the next of its chain, or of another's where that would help, or without it.
fn step_down(choices: &mut [Choice], at: usize, error: &EngineError) -> Result<(), EngineError> {
    for choice in choices.iter_mut() {
        // What is pinned for a set that failed is not held while the next one is waited for.
        choice.pinned = None;
    }
    let reason = error.to_string();
    if choices.get_mut(at).is_some_and(|c| c.next(&reason)) {
        return Ok(());
    }
    if let Some(choice) = choices.get_mut(at).filter(|c| c.want.optional) {
        choice.go_without(error.clone());
        return Ok(());
    }
    // Memory that one has no way to need less of may be given by another.
    if matches!(
        error,
        EngineError::NoRoom { .. } | EngineError::OutOfMemory { .. }
    ) {
        if choices.iter_mut().rev().any(|c| c.next(&reason)) {
            return Ok(());
        }
        if let Some(choice) = choices
            .iter_mut()
            .rev()
            .find(|c| c.want.optional && c.without.is_none())
        {
            choice.go_without(error.clone());
            return Ok(());
        }
    }
    Err(error.clone())
}

impl Inner {
    fn index(&self) -> Guard<'_, HashMap<TypeId, Box<dyn Shelf>>> {
        self.index.lock()
    }

    /// The entry of `spec`. `lease` counts a lease under the index's lock, so that no eviction comes between.
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
            let number = self.next_entry.fetch_add(1, Ordering::Relaxed);
            Entry::new(spec.clone(), number, Arc::clone(&self.shared))
        });
        if lease {
            entry.lease();
        }
        Arc::clone(entry)
    }

    /// The same model on the CPU, leased by nobody in particular, loaded. Called by a lane that has run out of memory.
    fn entry_on_cpu<K: Kind>(&self, spec: &K::Spec) -> Result<Arc<Entry<K>>, EngineError> {
        let entry = self.entry::<K>(spec, true);
        let any: Arc<dyn AnyEntry> = Arc::clone(&entry) as Arc<dyn AnyEntry>;
        let cancel = CancelToken::new();
        loop {
            if any.claim() {
                self.ask_for(&Ask {
                    claimed: vec![Arc::clone(&any)],
                    ready: Vec::new(),
                    held: held(),
                    stream: StreamId::NOBODY,
                    class: Class::File,
                    cancel: cancel.clone(),
                });
            }
            match any.wait(&cancel) {
                Settled::Ready => return Ok(entry),
                Settled::New => {}
                Settled::Cancelled => {
                    any.release(StreamId::NOBODY);
                    return Err(EngineError::Cancelled);
                }
                Settled::Failed(error) => {
                    any.release(StreamId::NOBODY);
                    return Err(error);
                }
            }
        }
    }

    fn ask_for(&self, ask: &Ask) {
        let Ask { claimed, .. } = ask;
        let mut demands: Vec<Demand> = Vec::new();
        let mut counts = Vec::new();
        for entry in claimed {
            match entry.demands() {
                Ok(own) => {
                    counts.push(own.len());
                    demands.extend(own);
                }
                Err(error) => {
                    for other in claimed {
                        other.unclaim();
                    }
                    entry.fail(error);
                    return;
                }
            }
        }
        let evict = |device, missing, need| self.give_up(device, missing, need);
        let hold = || self.hold(ask);
        let request = Demands {
            demands: &demands,
            class: ask.class,
            cancel: &ask.cancel,
            activity: &self.shared.activity,
            first: &hold,
            evict: &evict,
        };
        let outcome = self.admission.admit(&self.shared.ledger, &request);
        self.shared.pressure.store(false, Ordering::Relaxed);
        match outcome {
            Ok(reservations) => {
                let mut reservations = reservations.into_iter();
                for (entry, count) in claimed.iter().zip(counts) {
                    Arc::clone(entry).grant(reservations.by_ref().take(count).collect());
                }
            }
            Err(Refused::Cancelled) => claimed.iter().for_each(|entry| entry.unclaim()),
            Err(Refused::NoRoom(shortage)) => {
                let mut begin = 0;
                let mut largest = (0, 0);
                for (at, count) in counts.iter().enumerate() {
                    let own = &demands[begin..begin + count];
                    begin += count;
                    let bytes: u64 = own.iter().map(|d| d.bytes).sum();
                    if bytes > largest.1 {
                        largest = (at, bytes);
                    }
                }
                for other in claimed {
                    other.unclaim();
                }
                if let Some(entry) = claimed.get(largest.0) {
                    entry.fail(no_room(&entry.title(), &shortage));
                }
            }
        }
    }

    /// Holds what a request has of what it wants, now that it is first in line. False if something has gone meanwhile.
    fn hold(&self, ask: &Ask) -> bool {
        // Under the index's lock, so that nothing is evicted between the look and the lease.
        let _index = self.index();
        let mut held = ask.held.lock();
        if !held.is_empty() {
            return true;
        }
        if ask.ready.iter().any(|entry| !entry.is_ready()) {
            return false;
        }
        for entry in &ask.ready {
            entry.lease();
            held.push(Pinned::new(Arc::clone(entry), ask.stream));
        }
        true
    }

    /// Makes sure that the ledger knows a device.
    fn know_device(&self, device: DeviceId) -> Result<(), EngineError> {
        if self.shared.ledger.has(device) {
            return Ok(());
        }
        match device {
            DeviceId::Cuda(number) => {
                let card = Cuda::new(number).map_err(|why| {
                    EngineError::Unsupported(format!(
                        "device {device} cannot be used: {why}. Set device=cpu"
                    ))
                })?;
                let spec = DeviceSpec::shared(Arc::new(card), self.settings.memory_limit);
                self.shared.ledger.add(spec);
            }
            #[cfg(any(test, feature = "test-support"))]
            DeviceId::Simulated(number) => {
                let card = crate::inference::card::get(number).ok_or_else(|| {
                    EngineError::Unsupported(format!("there is no card {device}"))
                })?;
                let card = device::simulated::Simulated::new(number, &card, std::process::id());
                let spec = DeviceSpec::shared(Arc::new(card), self.settings.memory_limit);
                self.shared.ledger.add(spec);
            }
            DeviceId::Cpu => {
                let spec = DeviceSpec::shared(Arc::new(Cpu::new()), self.settings.memory_limit);
                self.shared.ledger.add(spec);
            }
        }
        Ok(())
    }

    /// Gives up one set of idle things that suffices. Where there is none, lanes are asked to give back what batches
    /// took.
    fn give_up(&self, device: DeviceId, missing: u64, need: Need) -> bool {
        let mut index = self.index();
        let idle = plan::eligible(idle_things(&index), need);
        let Some(chosen) = plan::give_up(&idle, device, missing) else {
            if need == Need::Room {
                self.shared.pressure.store(true, Ordering::Relaxed);
            }
            return false;
        };
        let mut gone = Gone::new();
        let any = self.take_things(&mut index, chosen, &mut gone);
        drop(index);
        gone.iter().for_each(|entry| entry.close());
        any
    }

    /// The same, and if nothing suffices, all that there is.
    fn give_up_what_there_is(&self, device: DeviceId, wanted: u64, need: Need) {
        let mut index = self.index();
        let idle = plan::eligible(idle_things(&index), need);
        let all: u64 = idle
            .iter()
            .filter(|i| i.device == device)
            .map(|i| i.bytes)
            .sum();
        let mut gone = Gone::new();
        if let Some(chosen) = plan::give_up(&idle, device, wanted.min(all)) {
            self.take_things(&mut index, chosen, &mut gone);
        }
        drop(index);
        gone.iter().for_each(|entry| entry.close());
    }

    fn take_things(
        &self,
        index: &mut HashMap<TypeId, Box<dyn Shelf>>,
        things: Vec<(TypeId, u64, Part)>,
        gone: &mut Gone,
    ) -> bool {
        let mut any = false;
        for (kind, number, part) in things {
            let given = index
                .get_mut(&kind)
                .is_some_and(|shelf| shelf.give_up(number, part, gone));
            if given && part == Part::Model {
                self.evicted.fetch_add(1, Ordering::Relaxed);
            }
            any |= given;
        }
        any
    }

    /// Gives up all that is idle on `device`.
    fn evict_on(&self, device: DeviceId) {
        self.give_up_what_there_is(device, u64::MAX, Need::Room);
    }

    fn evict(&self, keep_alive: Option<Duration>) {
        let mut gone = Gone::new();
        for shelf in self.index().values_mut() {
            shelf.evict(keep_alive, &mut gone);
        }
        self.evicted.fetch_add(gone.len() as u64, Ordering::Relaxed);
        gone.iter().for_each(|entry| entry.close());
    }
}

fn idle_things(index: &HashMap<TypeId, Box<dyn Shelf>>) -> Vec<Idle<(TypeId, u64, Part)>> {
    let mut out = Vec::new();
    for (kind, shelf) in index {
        out.extend(shelf.idle().into_iter().map(|i| Idle {
            id: (*kind, i.id.0, i.id.1),
            device: i.device,
            bytes: i.bytes,
            unused: i.unused,
            reload_s: i.reload_s,
            is_spare: i.is_spare,
        }));
    }
    out
}

fn no_room(what: &str, shortage: &Shortage) -> EngineError {
    EngineError::NoRoom {
        what: what.to_owned(),
        figures: shortage.to_string(),
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        let mut gone = Gone::new();
        for shelf in self.index.get_mut().values_mut() {
            shelf.take_all(&mut gone);
        }
        gone.iter().for_each(|entry| entry.close());
    }
}

impl std::fmt::Debug for Registry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Registry")
            .field("models", &self.stats())
            .field("memory", &self.memory())
            .finish()
    }
}

/// Finds the entry of one spec; `true` counts a lease.
type Find = Box<dyn Fn(&Registry, bool) -> Arc<dyn AnyEntry> + Send + Sync>;

/// One model that is wanted: the first of the chain that can be had, or, where it is optional, none.
#[doc(hidden)]
pub struct Want {
    chain: Vec<Find>,
    names: Vec<String>,
    devices: Vec<DeviceId>,
    what: &'static str,
    optional: bool,
}

/// A want and where it stands.
struct Choice {
    want: Want,
    at: usize,
    pinned: Option<Pinned>,
    degraded: Vec<Degraded>,
    without: Option<EngineError>,
}

/// A lease of some kind, given back when dropped.
struct Pinned {
    /// `None` once somebody else has taken the lease over.
    entry: Option<Arc<dyn AnyEntry>>,
    stream: StreamId,
}

impl Pinned {
    fn new(entry: Arc<dyn AnyEntry>, stream: StreamId) -> Self {
        Self {
            entry: Some(entry),
            stream,
        }
    }

    /// Hands the lease over: whoever takes it gives it back.
    fn take(mut self) -> Option<Arc<dyn AnyEntry>> {
        self.entry.take()
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        if let Some(entry) = &self.entry {
            entry.release(self.stream);
        }
    }
}

/// Leases that a request in line holds for whoever waits for it.
type Held = Arc<Ranked<Vec<Pinned>>>;

fn held() -> Held {
    Arc::new(Ranked::new(Rank::Held, Vec::new()))
}

/// A request that stands in line.
struct Ask {
    /// Models that it will load.
    claimed: Vec<Arc<dyn AnyEntry>>,
    /// Those of the same set that are loaded already.
    ready: Vec<Arc<dyn AnyEntry>>,
    held: Held,
    stream: StreamId,
    class: Class,
    cancel: CancelToken,
}

impl Choice {
    fn new(want: Want) -> Self {
        let empty = want.chain.is_empty();
        Self {
            want,
            at: 0,
            pinned: None,
            degraded: Vec::new(),
            without: empty.then(|| EngineError::Unsupported("nothing was asked for".into())),
        }
    }

    fn pin(&mut self, registry: &Registry, stream: StreamId) {
        if self.without.is_some() {
            return;
        }
        if let Some(find) = self.want.chain.get(self.at) {
            self.pinned = Some(Pinned::new(find(registry, true), stream));
        }
    }

    fn entry(&self) -> Option<Arc<dyn AnyEntry>> {
        self.pinned.as_ref()?.entry.clone()
    }

    fn device(&self) -> Option<DeviceId> {
        self.want.devices.get(self.at).copied()
    }

    /// The next of the chain, if there is one.
    fn next(&mut self, reason: &str) -> bool {
        if self.without.is_some() || self.at + 1 >= self.want.chain.len() {
            return false;
        }
        self.at += 1;
        self.degraded.push(Degraded {
            what: format!("{} model", self.want.what),
            from: self.want.names[self.at - 1].clone(),
            to: self.want.names[self.at].clone(),
            reason: reason.to_owned(),
        });
        true
    }

    fn go_without(&mut self, error: EngineError) {
        self.degraded.push(Degraded {
            what: format!("{} model", self.want.what),
            from: self.want.names.get(self.at).cloned().unwrap_or_default(),
            to: "none".into(),
            reason: error.to_string(),
        });
        self.without = Some(error);
    }
}

/// Models that were granted, in the order of the wants.
#[doc(hidden)]
pub struct Granted {
    choices: std::vec::IntoIter<Choice>,
}

impl Granted {
    /// The next of them, as what it is.
    fn take<K: Kind>(&mut self) -> Result<Chosen<K>, EngineError> {
        let Some(choice) = self.choices.next() else {
            unreachable!("as many are taken as are wanted")
        };
        let Some(pinned) = choice.pinned else {
            return Err(choice.without.unwrap_or(EngineError::Cancelled));
        };
        let stream = pinned.stream;
        let any = pinned.take().map(AnyEntry::any);
        let Some(Ok(entry)) = any.map(Arc::downcast::<Entry<K>>) else {
            unreachable!("a want of this kind finds entries of this kind")
        };
        // From here on the lease gives itself back.
        let model = entry.model();
        let lease = Lease {
            model: model.as_ref().ok().cloned(),
            seen: Ranked::new(Rank::Seen, entry.last_event()),
            entry,
            stream,
            batch_bound: 0,
        };
        model?;
        Ok(Chosen {
            lease,
            degraded: choice.degraded,
            step: choice.at,
        })
    }
}

/// A wish for one model of kind `K`.
#[derive(Debug)]
pub struct Request<K: Kind>(pub K::Spec);

impl<K: Kind> Clone for Request<K> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

/// A wish for the first of several models of kind `K` that can be had: a smaller one before none.
#[derive(Debug)]
pub struct FirstOf<K: Kind>(pub Vec<K::Spec>);

impl<K: Kind> Clone for FirstOf<K> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

/// A wish that may be left unfulfilled: a transcript without speakers before none. Its lease is an error that says why.
#[derive(Clone, Debug)]
pub struct OrNone<R>(pub R);

/// What [`FirstOf`] gives.
#[derive(Debug)]
pub struct Chosen<K: Kind> {
    /// The lease.
    pub lease: Lease<K>,
    /// What was tried before it.
    pub degraded: Vec<Degraded>,
    /// Which of the chain it is.
    pub step: usize,
}

/// What an element needs, in one piece: nobody holds one model and waits for another.
pub trait RequestSet {
    /// Leases in the shape of the request.
    type Leases;
    #[doc(hidden)]
    fn wants(&self, wants: &mut Vec<Want>);
    #[doc(hidden)]
    fn leases(self, granted: &mut Granted) -> Result<Self::Leases, EngineError>;
}

fn want<K: Kind>(specs: &[K::Spec]) -> Want {
    let find = |spec: &K::Spec| -> Find {
        let spec = spec.clone();
        Box::new(move |registry: &Registry, lease| registry.inner.entry::<K>(&spec, lease))
    };
    Want {
        chain: specs.iter().map(find).collect(),
        names: specs.iter().map(K::name).collect(),
        devices: specs.iter().map(K::device).collect(),
        what: K::NAME,
        optional: false,
    }
}

impl<K: Kind> RequestSet for Request<K> {
    type Leases = Lease<K>;

    fn wants(&self, wants: &mut Vec<Want>) {
        wants.push(want::<K>(std::slice::from_ref(&self.0)));
    }

    fn leases(self, granted: &mut Granted) -> Result<Lease<K>, EngineError> {
        Ok(granted.take::<K>()?.lease)
    }
}

impl<K: Kind> RequestSet for FirstOf<K> {
    type Leases = Chosen<K>;

    fn wants(&self, wants: &mut Vec<Want>) {
        wants.push(want::<K>(&self.0));
    }

    fn leases(self, granted: &mut Granted) -> Result<Chosen<K>, EngineError> {
        granted.take()
    }
}

impl<K: Kind> RequestSet for OrNone<FirstOf<K>> {
    type Leases = Result<Chosen<K>, EngineError>;

    fn wants(&self, wants: &mut Vec<Want>) {
        let mut want = want::<K>(&self.0.0);
        want.optional = true;
        wants.push(want);
    }

    fn leases(self, granted: &mut Granted) -> Result<Self::Leases, EngineError> {
        Ok(granted.take())
    }
}

impl<R: RequestSet> RequestSet for Option<R> {
    type Leases = Option<R::Leases>;

    fn wants(&self, wants: &mut Vec<Want>) {
        if let Some(request) = self {
            request.wants(wants);
        }
    }

    fn leases(self, granted: &mut Granted) -> Result<Self::Leases, EngineError> {
        self.map(|request| request.leases(granted)).transpose()
    }
}

impl<A: RequestSet, B: RequestSet> RequestSet for (A, B) {
    type Leases = (A::Leases, B::Leases);

    fn wants(&self, wants: &mut Vec<Want>) {
        self.0.wants(wants);
        self.1.wants(wants);
    }

    fn leases(self, granted: &mut Granted) -> Result<Self::Leases, EngineError> {
        let a = self.0.leases(granted)?;
        let b = self.1.leases(granted)?;
        Ok((a, b))
    }
}

impl<A: RequestSet, B: RequestSet, C: RequestSet> RequestSet for (A, B, C) {
    type Leases = (A::Leases, B::Leases, C::Leases);

    fn wants(&self, wants: &mut Vec<Want>) {
        self.0.wants(wants);
        self.1.wants(wants);
        self.2.wants(wants);
    }

    fn leases(self, granted: &mut Granted) -> Result<Self::Leases, EngineError> {
        let a = self.0.leases(granted)?;
        let b = self.1.leases(granted)?;
        let c = self.2.leases(granted)?;
        Ok((a, b, c))
    }
}

/// The right to use a loaded model. The model stays while there is one.
// The model goes before the entry, which holds the memory reserved for it.
pub struct Lease<K: Kind> {
    model: Option<Arc<K::Model>>,
    seen: Ranked<u64>,
    entry: Arc<Entry<K>>,
    stream: StreamId,
    batch_bound: usize,
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
        let order = Order {
            class,
            deadline,
            batch_bound: self.batch_bound,
        };
        self.entry.submit(self.stream, job, params, order)
    }

    /// Has this lease's jobs run in batches of at most `items`, those of others among them; 0 leaves it to the registry.
    pub fn set_batch_size(&mut self, items: usize) {
        self.batch_bound = items;
    }

    /// Items of a full batch as things are: what the registry has found best and has memory for, within the bound of
    /// this lease.
    pub fn batch_size(&self) -> usize {
        self.entry.batch_size(self.batch_bound)
    }

    /// The model, to ask what it can do.
    pub fn model(&self) -> Option<&K::Model> {
        self.model.as_deref()
    }

    /// What it has done.
    pub fn stats(&self) -> ModelStats {
        self.entry.stats()
    }

    /// What was given up to go on since the last call.
    pub fn degraded(&self) -> Vec<Degraded> {
        let mut seen = self.seen.lock();
        self.entry.events(&mut seen)
    }
}

impl<K: Kind> Drop for Lease<K> {
    fn drop(&mut self) {
        self.model = None;
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
