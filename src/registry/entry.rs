// SPDX-License-Identifier: MPL-2.0
//! One model with its lanes: threads that own what inference needs.
//!
//! Its locks have ranks (see `sync`). None is held during a load, a batch or a wait for permits or memory.

use std::any::Any;
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, HashSet};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use once_cell::sync::OnceCell;

use super::admission::Activity;
use super::batch::{Batcher, Step};
use super::event::{Degraded, Events};
use super::kind::{Feed, Kind};
use super::ledger::{Bound, Demand, Ledger, Reservation};
use super::permits::{Permit, Permits};
use super::plan::{Idle, Need};
use super::queue::{Class, Queue, Queued};
use super::sync::{Condvar, Rank, Ranked, holds_none, thread};
use super::ticket::{Slot, Ticket};
use super::{Inner, ModelStats, StreamId};
use crate::inference::{CancelToken, DeviceId, EngineError, Footprint, exit, pages};

/// whisper.cpp's tokeniser recurses over the prompt.
const LANE_STACK_BYTES: usize = 8 << 20;

/// How often somebody who waits for a load looks at his cancel token.
const CANCEL_POLL: Duration = Duration::from_millis(20);

/// How long a lane waits for a batch to fill, where nobody is in a hurry.
const BATCH_DELAY: Duration = Duration::from_millis(5);

/// How long a batch waits for memory that is on its way back.
const COMING_PATIENCE: Duration = Duration::from_secs(3);

/// After a refusal of a further lane it is not asked for again before this.
const SPARE_AGAIN: Duration = Duration::from_secs(1);

/// How long a model that was loaded stays for those who waited for it, whatever is kept otherwise.
const FIRST_LEASE: Duration = Duration::from_secs(2);

/// How often a job that found no memory on any rung of the ladder begins again at its foot: other streams may have given
/// memory back meanwhile.
const PASSES: u32 = 2;

pub(super) struct Job<K: Kind> {
    job: K::Job,
    params: K::Params,
    /// Most items of a batch that it may be part of; 0 for no bound of its own.
    batch_bound: usize,
    /// Times it was found too large for any memory.
    given_up: u32,
    slot: Arc<Slot<K::Out>>,
    cancel: CancelToken,
}

enum Life<M: ?Sized> {
    /// Nothing is reserved.
    New,
    /// Somebody stands in line for its memory.
    Asking,
    Loading,
    Ready(Arc<M>),
    Failed(EngineError),
    Gone,
}

/// How a wait for a load ended.
pub(super) enum Settled {
    Ready,
    Failed(EngineError),
    /// Whoever stood in line for its memory has gone away.
    New,
    Cancelled,
}

struct LaneInfo {
    room: Arc<Reservation>,
    /// Still being made: it will take a job in a moment.
    new: bool,
    busy: bool,
}

struct Work<K: Kind> {
    queue: Queue<Job<K>>,
    lanes: BTreeMap<u64, LaneInfo>,
    /// Lanes that are to end.
    leaving: HashSet<u64>,
    next_lane: u64,
    idle: usize,
    closed: bool,
    /// Room for the first lane, reserved with the weights.
    first_room: Option<Reservation>,
    spare_refused: Option<Instant>,
    /// When a live job last came.
    live_at: Option<Instant>,
    /// Where jobs go since memory ran out here for good.
    moved: Option<Arc<Entry<K>>>,
}

/// What is reserved for a model that is loaded.
struct Kept {
    /// Where it runs.
    device: Reservation,
    /// In the processor's memory, where it runs on a card.
    host: Option<Reservation>,
}

struct Leases {
    count: usize,
    was_lent: bool,
    idle_since: Option<Instant>,
}

/// What an entry has done so far.
#[derive(Default)]
struct Counters {
    jobs: AtomicU64,
    failed: AtomicU64,
    batches: AtomicU64,
    out_of_memory: AtomicU64,
    audio_ms: AtomicU64,
    busy_ms: AtomicU64,
    load_ms: AtomicU64,
}

/// What all entries of a registry share.
pub(super) struct Shared {
    pub permits: Permits,
    pub ledger: Arc<Ledger>,
    pub cores: usize,
    pub keep_alive: Duration,
    pub registry: Weak<Inner>,
    /// Set while somebody waits for memory that idle things cannot give: lanes then give back what batches took.
    pub pressure: AtomicBool,
    pub activity: Activity,
}

impl Shared {
    /// Gives up idle things on `device` that free `missing` bytes.
    fn evict(&self, device: DeviceId, missing: u64) -> bool {
        self.registry
            .upgrade()
            .is_some_and(|inner| inner.give_up(device, missing, Need::Room))
    }
}

// Fields are dropped in this order: the model before the memory that is reserved for it.
pub(super) struct Entry<K: Kind> {
    life: Ranked<Life<K::Model>>,
    spec: K::Spec,
    number: u64,
    name: String,
    device: DeviceId,
    shared: Arc<Shared>,
    most_lanes: usize,
    footprint: OnceCell<Footprint>,
    changed: Condvar,
    work: Ranked<Work<K>>,
    more: Condvar,
    leases: Ranked<Leases>,
    batcher: Ranked<Option<Batcher>>,
    events: Ranked<Events>,
    counters: Counters,
    weights: Ranked<Option<Kept>>,
    /// Behind what the thread that loaded the model has allocated.
    lid: OnceCell<pages::Lid>,
}

/// What can be given up of an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Part {
    /// All of it: nobody has leased it.
    Model,
    /// Its lanes beyond the first that do nothing.
    SpareLanes,
}

/// An entry whatever its kind.
pub(super) trait AnyEntry: Send + Sync {
    /// Takes it upon the caller to have memory reserved and the load begun.
    fn claim(&self) -> bool;
    /// What a load needs. Reads the model's header.
    fn demands(&self) -> Result<Vec<Demand>, EngineError>;
    /// Begins the load, with what `demands` asked for.
    fn grant(self: Arc<Self>, room: Vec<Reservation>);
    /// Leaves it to the next who wants it.
    fn unclaim(&self);
    /// Ends the claim with an error for all who wait.
    fn fail(&self, error: EngineError);
    fn wait(&self, cancel: &CancelToken) -> Settled;
    /// Whether it is loaded, and not about to go.
    fn is_ready(&self) -> bool;
    fn lease(&self);
    fn release(&self, stream: StreamId);
    /// Ends the lanes when they are done with what they do, and refuses what waits.
    fn close(&self);
    fn any(self: Arc<Self>) -> Arc<dyn Any + Send + Sync>;
    /// For people.
    fn title(&self) -> String;
}

impl<K: Kind> Entry<K> {
    pub(super) fn new(spec: K::Spec, number: u64, shared: Arc<Shared>) -> Arc<Self> {
        Arc::new(Self {
            life: Ranked::new(Rank::Life, Life::New),
            name: K::name(&spec),
            device: K::device(&spec),
            most_lanes: K::lanes(&spec, shared.cores).max(1),
            spec,
            number,
            shared,
            footprint: OnceCell::new(),
            changed: Condvar::new(),
            work: Ranked::new(
                Rank::Work,
                Work {
                    queue: Queue::default(),
                    lanes: BTreeMap::new(),
                    leaving: HashSet::new(),
                    next_lane: 0,
                    idle: 0,
                    closed: false,
                    first_room: None,
                    spare_refused: None,
                    live_at: None,
                    moved: None,
                },
            ),
            more: Condvar::new(),
            leases: Ranked::new(
                Rank::Leases,
                Leases {
                    count: 0,
                    was_lent: false,
                    idle_since: Some(Instant::now()),
                },
            ),
            batcher: Ranked::new(Rank::Batcher, None),
            events: Ranked::new(Rank::Events, Events::default()),
            counters: Counters::default(),
            weights: Ranked::new(Rank::Weights, None),
            lid: OnceCell::new(),
        })
    }

    pub(super) fn number(&self) -> u64 {
        self.number
    }

    fn footprint(&self) -> Result<Footprint, EngineError> {
        self.footprint
            .get_or_try_init(|| K::footprint(&self.spec))
            .copied()
    }

    fn load(self: &Arc<Self>) {
        let began = Instant::now();
        holds_none("a load");
        let outcome = {
            let _busy = self.shared.activity.begin();
            let _inside = exit::enter();
            catch_unwind(AssertUnwindSafe(|| K::load(&self.spec)))
        };
        let outcome = outcome.unwrap_or_else(|panic| {
            Err(EngineError::Failed {
                what: format!("loading a {} model", K::NAME),
                why: panic_text(&*panic),
            })
        });
        let ms = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.counters.load_ms.store(ms, Ordering::Relaxed);
        match outcome {
            Ok(model) => {
                // What the load took for a moment goes, and the rest will when the model does, whoever drops it.
                let _ = self.lid.set(pages::Lid::put());
                let most = K::max_batch(&model).max(1);
                let has_cpu = K::on_cpu(&self.spec).is_some();
                *self.batcher.lock() = Some(Batcher::new(most, K::likes_batch(&model), has_cpu));
                if let Ok(footprint) = self.footprint() {
                    self.settle_room(footprint);
                }
                {
                    // Who waits for it was not counted meanwhile, and its time begins now.
                    let mut leases = self.leases.lock();
                    leases.was_lent = leases.count > 0;
                    leases.idle_since = leases.idle_since.map(|_| Instant::now());
                }
                *self.life.lock() = Life::Ready(model);
                self.changed.notify_all();
                // Ready for the first job before it comes.
                self.spawn_first_lane();
            }
            Err(error) => {
                *self.weights.lock() = None;
                self.work.lock().first_room = None;
                *self.life.lock() = Life::Failed(error);
                self.changed.notify_all();
            }
        }
    }

    /// What the load took on top is free again.
    fn settle_room(&self, footprint: Footprint) {
        if let Some(weights) = &*self.weights.lock() {
            // Less never fails.
            let _ = weights
                .device
                .resize(footprint.weights_bytes + self.context(), Bound::Ceiling);
        }
    }

    /// What a process of its own takes by using the device at all.
    fn context(&self) -> u64 {
        if K::apart(&self.spec) {
            self.shared.ledger.context_bytes(self.device)
        } else {
            0
        }
    }

    fn demand(&self, bytes: u64) -> Demand {
        Demand {
            device: self.device,
            bytes,
            what: self.name.clone(),
            apart: K::apart(&self.spec),
        }
    }

    /// The model, once it is loaded.
    pub(super) fn model(&self) -> Result<Arc<K::Model>, EngineError> {
        match &*self.life.lock() {
            Life::Ready(model) => Ok(Arc::clone(model)),
            Life::Failed(error) => Err(error.clone()),
            _ => Err(EngineError::Cancelled),
        }
    }

    pub(super) fn has_failed(&self) -> bool {
        matches!(*self.life.lock(), Life::Failed(_) | Life::Gone)
    }

    /// Whether nobody has leased it for `keep_alive`; without one, whether nobody has it now. What still loads is waited
    /// for, or soon will be, and who waited has a moment to take it.
    pub(super) fn expired(&self, keep_alive: Option<Duration>) -> bool {
        if matches!(*self.life.lock(), Life::Loading | Life::Asking) {
            return false;
        }
        let leases = self.leases.lock();
        let least = match keep_alive {
            Some(keep_alive) if leases.was_lent => keep_alive,
            Some(keep_alive) => keep_alive.max(FIRST_LEASE),
            None => Duration::ZERO,
        };
        leases.count == 0
            && leases
                .idle_since
                .is_some_and(|since| since.elapsed() >= least)
    }

    /// What could be given up of it now.
    pub(super) fn idle(&self) -> Vec<Idle<(u64, Part)>> {
        let loaded = matches!(*self.life.lock(), Life::Ready(_));
        if !loaded {
            return Vec::new();
        }
        let (count, since) = {
            let leases = self.leases.lock();
            (leases.count, leases.idle_since)
        };
        let reload_s = self.counters.load_ms.load(Ordering::Relaxed) as f64 / 1e3;
        let idle = |part, bytes, unused, reload_s| Idle {
            id: (self.number, part),
            device: self.device,
            bytes,
            unused,
            reload_s,
            is_spare: part == Part::SpareLanes,
        };
        let work = self.work.lock();
        let rooms = |lanes: &mut dyn Iterator<Item = &LaneInfo>| -> u64 {
            lanes.map(|lane| lane.room.bytes()).sum()
        };
        if count == 0 {
            let weights = self.weights.lock().as_ref().map_or(0, |w| w.device.bytes());
            let first = work.first_room.as_ref().map_or(0, Reservation::bytes);
            let bytes = weights + first + rooms(&mut work.lanes.values());
            let unused = since.map_or(Duration::ZERO, |s| s.elapsed());
            return vec![idle(Part::Model, bytes, unused, reload_s)];
        }
        let bytes = rooms(&mut self.spare(&work).map(|(_, lane)| lane));
        // A lane is made in a moment.
        vec![idle(Part::SpareLanes, bytes, Duration::ZERO, 0.3)]
    }

    /// Lanes beyond the first that do nothing now.
    fn spare<'a>(&self, work: &'a Work<K>) -> impl Iterator<Item = (u64, &'a LaneInfo)> {
        let staying = work.lanes.len() - work.leaving.len();
        work.lanes
            .iter()
            .filter(|(id, lane)| !lane.busy && !work.leaving.contains(id))
            .map(|(id, lane)| (*id, lane))
            .take(staying.saturating_sub(1))
    }

    /// Ends the lanes beyond the first that do nothing.
    pub(super) fn shed(&self) {
        let mut work = self.work.lock();
        let spare: Vec<u64> = self.spare(&work).map(|(id, _)| id).collect();
        for id in spare {
            if let Some(lane) = work.lanes.get(&id) {
                lane.room.begin_drain();
            }
            work.leaving.insert(id);
        }
        drop(work);
        self.more.notify_all();
    }

    pub(super) fn submit(
        self: &Arc<Self>,
        stream: StreamId,
        job: K::Job,
        params: K::Params,
        order: Order,
    ) -> Ticket<K::Out> {
        let slot = Slot::new();
        let cancel = CancelToken::new();
        let seconds = K::seconds(&job);
        let ticket = Ticket {
            slot: Arc::clone(&slot),
            cancel: cancel.clone(),
        };
        self.enqueue(Queued {
            stream,
            class: order.class,
            deadline: order.deadline,
            seconds,
            job: Job {
                job,
                params,
                batch_bound: order.batch_bound,
                given_up: 0,
                slot,
                cancel,
            },
            turn: 0,
        });
        ticket
    }

    fn enqueue(self: &Arc<Self>, queued: Queued<Job<K>>) {
        let mut work = self.work.lock();
        if let Some(other) = work.moved.clone() {
            drop(work);
            other.enqueue(queued);
            return;
        }
        if work.closed {
            drop(work);
            queued.job.slot.put(Err(EngineError::Cancelled));
            return;
        }
        if queued.class <= Class::Live {
            work.live_at = Some(Instant::now());
        }
        work.queue.push(queued);
        let wanting = self.wants_lane(&work);
        let refused = work
            .spare_refused
            .is_some_and(|at| at.elapsed() < SPARE_AGAIN);
        drop(work);
        self.more.notify_all();
        if wanting && !refused {
            self.spawn_lane();
        }
    }

    /// Whether there are more jobs than the idle lanes, and those that are being made, can take at once.
    fn wants_lane(&self, work: &Work<K>) -> bool {
        let batch = self.batcher.lock().as_ref().map_or(1, |b| b.size(0));
        let free = work.idle + work.lanes.values().filter(|lane| lane.new).count();
        // Jobs that a lane takes one by one are done sooner by two lanes; the second must be worth its making.
        let each = if K::ONE_BY_ONE { batch.min(2) } else { batch };
        work.queue.len() > free * each && work.lanes.len() < self.most_lanes
    }

    /// The first lane, in the room that was reserved with the weights.
    fn spawn_first_lane(self: &Arc<Self>) {
        let mut work = self.work.lock();
        // Taken and entered under one lock: whoever submits meanwhile sees the lane, or has taken the room for it himself.
        if let Some(room) = work.first_room.take() {
            let (id, room) = Self::enter_lane(&mut work, room);
            drop(work);
            self.start_lane(id, room);
        }
    }

    /// One lane more, if there is room and they are not enough.
    fn spawn_lane(self: &Arc<Self>) {
        self.spawn_first_lane();
        if !self.wants_lane(&self.work.lock()) {
            return;
        }
        let room = match self.spare_room() {
            Ok(room) => room,
            Err(lanes) => {
                self.work.lock().spare_refused = Some(Instant::now());
                self.tell(Degraded {
                    what: "lanes".into(),
                    from: (lanes + 1).to_string(),
                    to: lanes.to_string(),
                    reason: "memory".into(),
                });
                return;
            }
        };
        let mut work = self.work.lock();
        // Another may have seen to it while this one asked for room.
        if work.closed || !self.wants_lane(&work) {
            return;
        }
        let (id, room) = Self::enter_lane(&mut work, room);
        drop(work);
        self.start_lane(id, room);
    }

    fn enter_lane(work: &mut Work<K>, room: Reservation) -> (u64, Arc<Reservation>) {
        let room = Arc::new(room);
        work.next_lane += 1;
        let info = LaneInfo {
            room: Arc::clone(&room),
            new: true,
            busy: true,
        };
        work.lanes.insert(work.next_lane, info);
        (work.next_lane, room)
    }

    fn start_lane(self: &Arc<Self>, id: u64, room: Arc<Reservation>) {
        let entry = Arc::clone(self);
        let spawned = thread::Builder::new()
            .name("scribe-lane".into())
            .stack_size(LANE_STACK_BYTES)
            .spawn(move || entry.lane_loop(id, &room));
        if let Err(e) = spawned {
            let error = EngineError::Failed {
                what: "starting a lane".into(),
                why: e.to_string(),
            };
            let mut work = self.work.lock();
            work.lanes.remove(&id);
            let waiting = if work.lanes.is_empty() {
                work.queue.drain()
            } else {
                Vec::new()
            };
            drop(work);
            for job in waiting {
                job.slot.put(Err(error.clone()));
            }
        }
    }

    /// Room for a lane beyond the first, or how many there are.
    fn spare_room(&self) -> Result<Reservation, usize> {
        let lanes = self.work.lock().lanes.len();
        let bytes = self.footprint().map_or(0, |f| f.lane_of(1));
        let demand = self.demand(bytes);
        // Without any lane nothing would ever be done: then up to the ceiling.
        let bound = if lanes == 0 {
            Bound::Ceiling
        } else {
            Bound::Soft
        };
        let reserved = self.shared.ledger.try_reserve(&[demand], bound);
        reserved.ok().and_then(|mut r| r.pop()).ok_or(lanes)
    }

    fn lane_loop(self: &Arc<Self>, id: u64, room: &Reservation) {
        let mut own = LaneState {
            id,
            lane: None,
            items: 1,
            extra: 0,
        };
        // Made before it is lent. An error shows again at the first job, and is that job's then.
        let _ = self.make_lane(&mut own);
        while let Some(first) = self.wait_for_job(id) {
            self.serve(&mut own, room, first);
            if self.shared.pressure.load(Ordering::Relaxed) {
                self.slim(&mut own, room);
            }
        }
        // The lane's memory goes before its reservation.
        own.lane = None;
        pages::give_back();
        let mut work = self.work.lock();
        work.lanes.remove(&id);
        work.leaving.remove(&id);
        let last = work.closed && work.lanes.is_empty();
        drop(work);
        if last {
            self.bury();
        }
    }

    /// Frees the model of an entry that was closed, once no lane runs it: somebody who waits for another model of his
    /// set may know the entry for long.
    fn bury(&self) {
        let mut life = self.life.lock();
        if !matches!(*life, Life::Ready(_)) || self.leases.lock().count > 0 {
            return;
        }
        let model = std::mem::replace(&mut *life, Life::Gone);
        drop(life);
        // The model before its reservation.
        drop(model);
        pages::give_back();
        *self.weights.lock() = None;
        self.changed.notify_all();
    }

    /// Has a lane, making it if there is none.
    fn make_lane(&self, own: &mut LaneState<K>) -> Result<(), EngineError> {
        if own.lane.is_some() {
            return Ok(());
        }
        let model = self.model()?;
        let _permit = self.shared.permits.take(K::permits(&self.spec));
        let _inside = exit::enter();
        let made = catch_unwind(AssertUnwindSafe(|| K::lane(&model)));
        let made = made.unwrap_or_else(|panic| {
            Err(EngineError::Failed {
                what: format!("making a {} lane", K::NAME),
                why: panic_text(&*panic),
            })
        });
        own.lane = Some(made?);
        own.items = 1;
        own.extra = 0;
        Ok(())
    }

    /// Gives back what batches have taken.
    fn slim(&self, own: &mut LaneState<K>, room: &Reservation) {
        let Ok(footprint) = self.footprint() else {
            return;
        };
        // What it was warmed with stays reserved, and what it has grown by for wider params stays taken until it ends.
        if own.items <= 1 || footprint.item_bytes == 0 {
            return;
        }
        if let Some(lane) = &mut own.lane {
            let _inside = exit::enter();
            K::trim(lane);
        }
        let keep = footprint.lane_of(1).saturating_add(own.extra);
        let _ = room.resize(keep, Bound::Ceiling);
        own.items = 1;
    }

    /// Runs one batch that begins with `first`.
    fn serve(self: &Arc<Self>, own: &mut LaneState<K>, room: &Reservation, first: Queued<Job<K>>) {
        let mut first = first;
        if let Err(error) = self.make_lane(own) {
            if let EngineError::OutOfMemory { .. } = error {
                self.climb(own, vec![first], 1);
            } else {
                first.job.slot.put(Err(error));
            }
            return;
        }
        let items = self.gather(&first);
        let items = match self.make_room(own, room, &mut first, items) {
            Ok(items) => items,
            Err(error) => {
                first.job.slot.put(Err(error));
                return;
            }
        };
        let permit = self.shared.permits.take(K::permits(&self.spec));
        if first.job.cancel.is_cancelled() {
            first.job.slot.put(Err(EngineError::Cancelled));
            return;
        }
        let began = Instant::now();
        let (taken, outcome) = self.run_batch(own, first, items, permit);
        match outcome {
            Outcome::Done => {
                let seconds = began.elapsed().as_secs_f64();
                let grown = self
                    .batcher
                    .lock()
                    .as_mut()
                    .is_some_and(|b| b.done(taken, seconds));
                if grown {
                    self.tell_batch("memory is there again", taken);
                }
            }
            Outcome::LaneBroken => own.lane = None,
            Outcome::NoMemory(unanswered) => self.climb(own, unanswered, taken),
        }
    }

    /// How many jobs the next batch may have. Waits a moment for more of them where nobody is in a hurry.
    fn gather(&self, first: &Queued<Job<K>>) -> usize {
        let bound = first.job.batch_bound;
        let target = self.batcher.lock().as_ref().map_or(1, |b| b.size(bound));
        if target <= 1 || K::ONE_BY_ONE {
            return target.max(1);
        }
        let params = &first.job.params;
        let fits = |q: &Queued<Job<K>>| q.job.params == *params && !q.job.cancel.is_cancelled();
        let until = Instant::now() + BATCH_DELAY;
        let mut work = self.work.lock();
        loop {
            let waiting = 1 + work.queue.count(target, fits);
            let left = until.saturating_duration_since(Instant::now());
            let hurry = first.class <= Class::Live;
            if waiting >= target || hurry || left.is_zero() || work.closed {
                return waiting.min(target);
            }
            work = work.wait_timeout(&self.more, left).0;
        }
    }

    /// Reserves what a batch of `items` with these params takes. Fewer items where there is no room for them, lighter
    /// params where there is none for an item.
    fn make_room(
        &self,
        own: &mut LaneState<K>,
        room: &Reservation,
        first: &mut Queued<Job<K>>,
        items: usize,
    ) -> Result<usize, EngineError> {
        let footprint = self.footprint()?;
        let mut items = items.max(1);
        if footprint.item_bytes == 0 {
            // It was warmed with its largest batch, or its items take nothing.
            own.items = own.items.max(items);
        }
        let mut extra = K::extra_bytes(&footprint, &first.job.params);
        loop {
            let most = items.max(own.items);
            let widest = extra.max(own.extra);
            if most == own.items && widest == own.extra {
                return Ok(items);
            }
            let bytes = footprint.lane_of(most).saturating_add(widest);
            if most > own.items
                && let Some(lane) = &mut own.lane
            {
                // Largest first: beside the pieces that smaller batches left in the arena the larger one would take
                // up to 2.4 times its size.
                let inside = exit::enter();
                K::trim(lane);
                drop(inside);
                // Less never fails. What was freed counts until the device has it back.
                let kept = footprint.lane_of(1).saturating_add(own.extra);
                let _ = room.resize(kept, Bound::Ceiling);
                own.items = 1;
            }
            let mut outcome = room.resize(bytes, Bound::Ceiling);
            let patience = Instant::now() + COMING_PATIENCE;
            while let Err(shortage) = &outcome {
                let more = shortage.missing.saturating_sub(shortage.coming);
                if Instant::now() >= patience || (more > 0 && !self.shared.evict(self.device, more))
                {
                    break;
                }
                self.shared.ledger.wait_for_release(CANCEL_POLL);
                outcome = room.resize(bytes, Bound::Ceiling);
            }
            let Err(shortage) = outcome else {
                own.items = most;
                own.extra = widest;
                return Ok(items);
            };
            if items > 1 {
                let smaller = self
                    .batcher
                    .lock()
                    .as_mut()
                    .map_or(1, |b| b.no_room_for(items));
                let smaller = smaller.min(items - 1).max(1);
                self.tell_batch(&shortage.to_string(), smaller);
                items = smaller;
            } else if let Some(lighter) = K::lighter(&first.job.params) {
                self.tell(Degraded {
                    what: format!("{} options", K::NAME),
                    from: "as asked".into(),
                    to: "those that take less memory".into(),
                    reason: shortage.to_string(),
                });
                extra = K::extra_bytes(&footprint, &lighter);
                first.job.params = lighter;
            } else {
                return Err(EngineError::NoRoom {
                    what: self.name.clone(),
                    figures: shortage.to_string(),
                });
            }
        }
    }

    /// Runs up to `items` jobs. Returns how many it took.
    fn run_batch(
        &self,
        own: &mut LaneState<K>,
        first: Queued<Job<K>>,
        items: usize,
        permit: Permit<'_>,
    ) -> (usize, Outcome<K>) {
        let Some(lane) = &mut own.lane else {
            return (0, Outcome::NoMemory(vec![first]));
        };
        let params = first.job.params.clone();
        let batch = Batch {
            entry: self,
            params: &params,
            first: RefCell::new(Some(first)),
            running: RefCell::default(),
            most: Cell::new(items.max(1)),
            taken: Cell::new(0),
            lane: own.id,
            peak: Cell::new(0),
            began: Instant::now(),
            permit: Cell::new(Some(permit)),
        };
        holds_none("a batch");
        let began = batch.began;
        let outcome = {
            let _busy = self.shared.activity.begin();
            let _inside = exit::enter();
            catch_unwind(AssertUnwindSafe(|| K::run(lane, &batch, &params)))
        };
        let busy_ms = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.counters.busy_ms.fetch_add(busy_ms, Ordering::Relaxed);
        self.counters.batches.fetch_add(1, Ordering::Relaxed);
        batch.permit.set(None);
        let (taken, peak) = (batch.taken.get(), batch.peak.get());
        let mut unanswered: Vec<Queued<Job<K>>> = batch.running.take().into_values().collect();
        unanswered.extend(batch.first.take());
        let (outcome, error) = match outcome {
            Ok(Ok(())) if unanswered.is_empty() => return (taken, Outcome::Done),
            Ok(Err(EngineError::OutOfMemory { .. })) => {
                self.counters.out_of_memory.fetch_add(1, Ordering::Relaxed);
                return (peak, Outcome::NoMemory(unanswered));
            }
            Ok(Ok(())) => (
                Outcome::Done,
                EngineError::Failed {
                    what: format!("a {} job", K::NAME),
                    why: "the engine gave no answer".into(),
                },
            ),
            Ok(Err(error)) => (Outcome::LaneBroken, error),
            Err(panic) => (
                Outcome::LaneBroken,
                EngineError::Failed {
                    what: format!("a {} job", K::NAME),
                    why: panic_text(&*panic),
                },
            ),
        };
        for queued in unanswered {
            self.counters.failed.fetch_add(1, Ordering::Relaxed);
            queued.job.slot.put(Err(error.clone()));
        }
        (taken, outcome)
    }

    /// After a batch of `tried` that did not fit: the next rung of the ladder. The jobs that have no answer go back to
    /// where they came from, so that none is lost and none is done twice.
    fn climb(self: &Arc<Self>, own: &mut LaneState<K>, jobs: Vec<Queued<Job<K>>>, tried: usize) {
        let step = self
            .batcher
            .lock()
            .as_mut()
            .map_or(Step::GiveUp, |b| b.did_not_fit(tried.max(1)));
        match step {
            Step::Trim => {
                if let Some(lane) = &mut own.lane {
                    let _inside = exit::enter();
                    K::trim(lane);
                }
            }
            Step::Evict => {
                if let Some(registry) = self.shared.registry.upgrade() {
                    registry.evict_on(self.device);
                }
            }
            Step::Halve(size) => self.tell_batch("out of memory", size),
            Step::Rebuild => {
                self.rebuild(own);
                self.tell(Degraded {
                    what: "lane".into(),
                    from: "as it was".into(),
                    to: "made anew".into(),
                    reason: "out of memory".into(),
                });
            }
            Step::Cpu => {
                self.move_to_cpu(jobs);
                return;
            }
            Step::GiveUp => {
                self.give_up_on(jobs);
                return;
            }
        }
        self.work.lock().queue.put_back(jobs);
        self.more.notify_all();
    }

    /// Has the lane made anew, and before it the session that lanes share, if there is room to load it a second time.
    fn rebuild(&self, own: &mut LaneState<K>) {
        if let (Some(lane), Ok(footprint)) = (&mut own.lane, self.footprint()) {
            let load = footprint
                .weights_bytes
                .saturating_add(footprint.load_extra_bytes);
            let room = self
                .weights
                .lock()
                .as_ref()
                .is_some_and(|weights| weights.device.resize(load, Bound::Ceiling).is_ok());
            if room {
                // Where it fails, the next run tries again and says why.
                let _inside = exit::enter();
                let _ = catch_unwind(AssertUnwindSafe(|| K::rebuild(lane)));
                self.settle_room(footprint);
            }
        }
        own.lane = None;
    }

    /// Jobs that find no memory anywhere fail, after another pass.
    fn give_up_on(&self, jobs: Vec<Queued<Job<K>>>) {
        let (mut again, mut over) = (Vec::new(), Vec::new());
        for mut queued in jobs {
            queued.job.given_up += 1;
            if queued.job.given_up < PASSES {
                again.push(queued);
            } else {
                over.push(queued);
            }
        }
        if let Some(batcher) = self.batcher.lock().as_mut() {
            batcher.begin_again();
        }
        self.work.lock().queue.put_back(again);
        self.more.notify_all();
        for queued in over {
            self.counters.failed.fetch_add(1, Ordering::Relaxed);
            queued.job.slot.put(Err(EngineError::OutOfMemory {
                what: format!("{} with {:.1} s of sound", self.name, queued.seconds),
            }));
        }
    }

    /// From now on the same model does the work on the CPU.
    fn move_to_cpu(self: &Arc<Self>, jobs: Vec<Queued<Job<K>>>) {
        let Some(registry) = self.shared.registry.upgrade() else {
            self.give_up_on(jobs);
            return;
        };
        let other = K::on_cpu(&self.spec)
            .ok_or(EngineError::Cancelled)
            .and_then(|spec| registry.entry_on_cpu::<K>(&spec));
        let other = match other {
            Ok(other) => other,
            Err(error) => {
                for queued in jobs {
                    queued.job.slot.put(Err(error.clone()));
                }
                return;
            }
        };
        self.tell(Degraded {
            what: format!("{} device", K::NAME),
            from: self.device.to_string(),
            to: other.device.to_string(),
            reason: "out of memory".into(),
        });
        let mut work = self.work.lock();
        // Another lane may have been here meanwhile: then its lease is the one that counts.
        let before = work.moved.clone();
        if before.is_none() {
            work.moved = Some(Arc::clone(&other));
        }
        let mut all = jobs;
        while let Some(queued) = work.queue.pop(|_| true) {
            all.push(queued);
        }
        drop(work);
        let target = match before {
            Some(before) => {
                other.release(StreamId::NOBODY);
                before
            }
            None => other,
        };
        for queued in all {
            target.enqueue(queued);
        }
    }

    /// Items of the next batch, at most, for a job with this bound.
    pub(super) fn batch_size(&self, bound: usize) -> usize {
        self.batcher.lock().as_ref().map_or(1, |b| b.size(bound))
    }

    fn tell_batch(&self, reason: &str, to: usize) {
        let wanted = self.model().map_or(0, |m| K::likes_batch(&m));
        self.tell(Degraded {
            what: "batch".into(),
            from: wanted.to_string(),
            to: to.to_string(),
            reason: reason.to_owned(),
        });
    }

    fn tell(&self, event: Degraded) {
        self.events.lock().push(event);
    }

    /// Events since the one numbered `seen`.
    pub(super) fn events(&self, seen: &mut u64) -> Vec<Degraded> {
        self.events.lock().since(seen)
    }

    pub(super) fn last_event(&self) -> u64 {
        self.events.lock().last()
    }

    fn wait_for_job(&self, id: u64) -> Option<Queued<Job<K>>> {
        let mut work = self.work.lock();
        if let Some(lane) = work.lanes.get_mut(&id) {
            lane.new = false;
            lane.busy = false;
        }
        loop {
            if work.closed || work.leaving.contains(&id) {
                return None;
            }
            let mut unwanted = Vec::new();
            let mut found = None;
            while let Some(queued) = work.queue.pop(|_| true) {
                if !queued.job.cancel.is_cancelled() {
                    found = Some(queued);
                    break;
                }
                unwanted.push(queued);
            }
            if let (Some(_), Some(lane)) = (&found, work.lanes.get_mut(&id)) {
                lane.busy = true;
            }
            if !unwanted.is_empty() {
                // Who is told of it may do as he likes: not under our lock.
                drop(work);
                for queued in unwanted {
                    queued.job.slot.put(Err(EngineError::Cancelled));
                }
                if found.is_none() {
                    work = self.work.lock();
                    continue;
                }
                return found;
            }
            if found.is_some() {
                return found;
            }
            work.idle += 1;
            let patience = self.shared.keep_alive.max(CANCEL_POLL);
            let (back, in_vain) = work.wait_timeout(&self.more, patience);
            work = back;
            work.idle -= 1;
            let alone = work.lanes.len() - work.leaving.len() <= 1;
            if in_vain && !alone && work.queue.len() == 0 {
                // Told at once: of two whose time is over at the same moment one must stay.
                work.leaving.insert(id);
                return None;
            }
        }
    }

    /// Takes no more jobs and lends nothing more, from now on. What it holds goes with `close`.
    pub(super) fn shut(&self) {
        self.work.lock().closed = true;
    }

    pub(super) fn stats(&self) -> ModelStats {
        let (queued, lanes, busy, rooms) = {
            let work = self.work.lock();
            let rooms: u64 = work.lanes.values().map(|l| l.room.bytes()).sum();
            let first = work.first_room.as_ref().map_or(0, Reservation::bytes);
            let busy = work.lanes.values().filter(|l| l.busy).count();
            (work.queue.len(), work.lanes.len(), busy, rooms + first)
        };
        let weights = self.weights.lock().as_ref().map_or(0, |w| w.device.bytes());
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        ModelStats {
            kind: K::NAME,
            name: self.name.clone(),
            spec: format!("{:?}", self.spec),
            device: self.device,
            loaded: matches!(*self.life.lock(), Life::Ready(_)),
            leases: self.leases.lock().count,
            lanes,
            busy_lanes: busy,
            queued,
            weights_bytes: weights,
            lanes_bytes: rooms,
            batch: self.batcher.lock().as_ref().map_or(0, |b| b.size(0)),
            batches: count(&self.counters.batches),
            jobs: count(&self.counters.jobs),
            failed: count(&self.counters.failed),
            out_of_memory: count(&self.counters.out_of_memory),
            audio_seconds: count(&self.counters.audio_ms) as f64 / 1e3,
            busy_seconds: count(&self.counters.busy_ms) as f64 / 1e3,
            load_seconds: count(&self.counters.load_ms) as f64 / 1e3,
        }
    }
}

impl<K: Kind> AnyEntry for Entry<K> {
    fn claim(&self) -> bool {
        let mut life = self.life.lock();
        let new = matches!(*life, Life::New);
        if new {
            *life = Life::Asking;
        }
        new
    }

    fn demands(&self) -> Result<Vec<Demand>, EngineError> {
        if let Some(registry) = self.shared.registry.upgrade() {
            registry.know_device(self.device)?;
        }
        let footprint = self.footprint()?;
        let load = footprint
            .weights_bytes
            .saturating_add(footprint.load_extra_bytes)
            .saturating_add(self.context());
        let mut demands = vec![self.demand(load), self.demand(footprint.lane_of(1))];
        let host = K::host_bytes(&self.spec)?;
        if host > 0 {
            if let Some(registry) = self.shared.registry.upgrade() {
                registry.know_device(DeviceId::Cpu)?;
            }
            demands.push(Demand {
                device: DeviceId::Cpu,
                ..self.demand(host)
            });
        }
        Ok(demands)
    }

    fn grant(self: Arc<Self>, room: Vec<Reservation>) {
        let mut room = room.into_iter();
        let device = room.next();
        self.work.lock().first_room = room.next();
        let host = room.next();
        *self.weights.lock() = device.map(|device| Kept { device, host });
        *self.life.lock() = Life::Loading;
        let loader = Arc::clone(&self);
        let spawned = thread::Builder::new()
            .name("scribe-load".into())
            .spawn(move || loader.load());
        if let Err(e) = spawned {
            self.fail(EngineError::Failed {
                what: "starting a thread to load a model".into(),
                why: e.to_string(),
            });
        }
    }

    fn unclaim(&self) {
        let mut life = self.life.lock();
        if matches!(*life, Life::Asking) {
            *life = Life::New;
        }
        drop(life);
        self.changed.notify_all();
    }

    fn fail(&self, error: EngineError) {
        *self.weights.lock() = None;
        self.work.lock().first_room = None;
        *self.life.lock() = Life::Failed(error);
        self.changed.notify_all();
    }

    fn wait(&self, cancel: &CancelToken) -> Settled {
        let mut life = self.life.lock();
        loop {
            match &*life {
                Life::Ready(_) => return Settled::Ready,
                Life::Failed(error) => return Settled::Failed(error.clone()),
                // Evicted meanwhile: whoever wants it finds another.
                Life::Gone | Life::New => return Settled::New,
                Life::Asking | Life::Loading if cancel.is_cancelled() => return Settled::Cancelled,
                Life::Asking | Life::Loading => {}
            }
            life = life.wait_timeout(&self.changed, CANCEL_POLL).0;
        }
    }

    fn is_ready(&self) -> bool {
        matches!(*self.life.lock(), Life::Ready(_)) && !self.work.lock().closed
    }

    fn lease(&self) {
        let mut leases = self.leases.lock();
        leases.count += 1;
        leases.was_lent = true;
        leases.idle_since = None;
    }

    fn release(&self, stream: StreamId) {
        let mut leases = self.leases.lock();
        leases.count = leases.count.saturating_sub(1);
        if leases.count == 0 {
            leases.idle_since = Some(Instant::now());
        }
        drop(leases);
        let mut work = self.work.lock();
        work.queue.sweep(|job| job.cancel.is_cancelled());
        work.queue.forget(stream);
        drop(work);
        // Somebody may wait for what is idle now.
        self.shared.ledger.wake();
    }

    fn close(&self) {
        let mut work = self.work.lock();
        work.closed = true;
        let waiting = work.queue.drain();
        for lane in work.lanes.values() {
            lane.room.begin_drain();
        }
        work.first_room = None;
        let moved = work.moved.take();
        let alone = work.lanes.is_empty();
        drop(work);
        if let Some(weights) = &*self.weights.lock() {
            weights.device.begin_drain();
            if let Some(host) = &weights.host {
                host.begin_drain();
            }
        }
        self.more.notify_all();
        for job in waiting {
            job.slot.put(Err(EngineError::Cancelled));
        }
        if let Some(other) = moved {
            other.release(StreamId::NOBODY);
        }
        if alone {
            self.bury();
        }
    }

    fn any(self: Arc<Self>) -> Arc<dyn Any + Send + Sync> {
        self
    }

    fn title(&self) -> String {
        self.name.clone()
    }
}

impl<K: Kind> Drop for Entry<K> {
    fn drop(&mut self) {
        // The model goes here, before its reservation does, and what malloc keeps of it goes too.
        let life = self.life.get_mut();
        let model = std::mem::replace(life, Life::Gone);
        if matches!(model, Life::Ready(_)) {
            drop(model);
            pages::give_back();
        }
    }
}

/// How a job is to be served.
#[derive(Clone, Copy, Debug)]
pub(super) struct Order {
    pub class: Class,
    pub deadline: Option<Instant>,
    pub batch_bound: usize,
}

/// What a lane's thread has.
struct LaneState<K: Kind> {
    id: u64,
    lane: Option<K::Lane>,
    /// Items that its room is for.
    items: usize,
    /// Bytes beyond them that its room is for.
    extra: u64,
}

enum Outcome<K: Kind> {
    Done,
    /// The lane must not be used again.
    LaneBroken,
    /// These have no answer.
    NoMemory(Vec<Queued<Job<K>>>),
}

/// The jobs of one run of a lane. Used by that lane's thread alone.
struct Batch<'a, K: Kind> {
    entry: &'a Entry<K>,
    params: &'a K::Params,
    first: RefCell<Option<Queued<Job<K>>>>,
    /// By number, which is the order of taking.
    running: RefCell<BTreeMap<u64, Queued<Job<K>>>>,
    /// Jobs it may have: as many as the one with the lowest bound allows.
    most: Cell<usize>,
    taken: Cell<usize>,
    lane: u64,
    /// Most that were in work at once.
    peak: Cell<usize>,
    began: Instant,
    /// None while the lane rests.
    permit: Cell<Option<Permit<'a>>>,
}

/// Jobs with other params that end a batch which takes one job after the other, and how long fewer of them wait; so do
/// those who want the lane's cores.
const OTHERS: usize = 4;
const TURN: Duration = Duration::from_secs(2);
/// A live stream whose last job is no older may have another any moment.
const LIVE_SEEN: Duration = Duration::from_secs(10);

impl<K: Kind> Batch<'_, K> {
    fn fits(&self, queued: &Queued<Job<K>>) -> bool {
        let job = &queued.job;
        let among = if K::ONE_BY_ONE {
            self.running.borrow().len()
        } else {
            self.taken.get()
        };
        job.params == *self.params
            && !job.cancel.is_cancelled()
            && (job.batch_bound == 0 || job.batch_bound > among)
    }

    /// One more job beside those in work. None once there are none: the batch is over, and who waits for the cores, or for
    /// this lane with other params, has his turn.
    fn another(&self) -> Option<Queued<Job<K>>> {
        let is_live = |class: Class| class <= Class::Live;
        let running = self.running.borrow().len();
        let beside_live = self.running.borrow().values().any(|q| is_live(q.class));
        let long = self.began.elapsed() > TURN;
        let shared = &self.entry.shared;
        if running == 0
            || shared.pressure.load(Ordering::Relaxed)
            || (long && shared.permits.are_wanted())
        {
            return None;
        }
        let mut work = self.entry.work.lock();
        // An idle lane has it done sooner than one more place here.
        if work.closed || work.idle > 0 || work.leaving.contains(&self.lane) {
            return None;
        }
        let other = |q: &Queued<Job<K>>| q.job.params != *self.params;
        let others = work.queue.count(OTHERS, other);
        let live_others = work.queue.count(1, |q| other(q) && is_live(q.class));
        if others >= OTHERS || live_others > 0 || (long && others > 0) {
            return None;
        }
        // A live job waits for nothing: a place is kept for it, and while it is in work no file comes beside it.
        let expected = work.live_at.is_some_and(|at| at.elapsed() < LIVE_SEEN);
        let only_live = beside_live || (expected && running + 1 >= self.most.get());
        work.queue
            .pop(|q| self.fits(q) && (is_live(q.class) || !only_live))
    }
}

impl<K: Kind> Feed<K> for Batch<'_, K> {
    fn next(&self) -> Option<(u64, K::Job, CancelToken)> {
        let running = self.running.borrow().len();
        let full = if K::ONE_BY_ONE {
            running
        } else {
            self.taken.get()
        };
        if full >= self.most.get() {
            return None;
        }
        let queued = self.first.take().or_else(|| {
            if K::ONE_BY_ONE {
                self.another()
            } else {
                self.entry.work.lock().queue.pop(|q| self.fits(q))
            }
        })?;
        if queued.job.batch_bound > 0 {
            self.most.set(self.most.get().min(queued.job.batch_bound));
        }
        let id = self.taken.get() as u64;
        self.taken.set(self.taken.get() + 1);
        self.peak.set(self.peak.get().max(running + 1));
        let out = (id, queued.job.job.clone(), queued.job.cancel.clone());
        self.running.borrow_mut().insert(id, queued);
        Some(out)
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
        running.job.slot.put(result);
    }

    fn rest(&self, wait: &mut dyn FnMut()) {
        self.permit.set(None);
        wait();
        let permits = &self.entry.shared.permits;
        self.permit
            .set(Some(permits.take(K::permits(&self.entry.spec))));
    }
}

fn panic_text(panic: &(dyn Any + Send)) -> String {
    panic
        .downcast_ref::<&str>()
        .map(|s| (*s).to_owned())
        .or_else(|| panic.downcast_ref::<String>().cloned())
        .map_or_else(
            || "it panicked".to_owned(),
            |text| format!("it panicked: {text}"),
        )
}
