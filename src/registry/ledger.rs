// SPDX-License-Identifier: MPL-2.0
//! Who may take how much memory. Nothing is loaded or grown without a reservation, and a reservation gives itself back
//! when it is dropped.
//!
//! For each device, in bytes:
//!
//! ```text
//! foreign  = total - available - what scribe's processes really hold of what they have reserved
//! capacity = min(memory-limit, total - foreign)
//! ceiling  = 80 % of capacity      reservations never pass it
//! soft     = 70 % of capacity      above it idle models and spare lanes go first
//! booked   = our reservations + what was freed but has not come back yet + the context + other scribe processes
//! ```
//!
//! What scribe's processes really hold is the driver's word where it has one. In a container with process numbers of
//! its own it has none: then it is what came since nothing of ours was there, as far as reservations explain it.
//!
//! It is recomputed at each request. Where others take more, the capacity may sink below what is booked: then nothing
//! new is admitted, and what runs goes on.
//!
//! The ledger's lock is a leaf: nothing is called under it but the clock and the book that processes share, a small file
//! whose own lock is waited for half a second at most. Devices are read before it is taken.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use super::clock::Clock;
use super::device::{Device, MemoryView};
use super::limit::{CEILING_PERCENT, MemoryLimit, SOFT_PERCENT, human_bytes};
use super::shared::{self, Closed, SharedBook};
use super::sync::{Condvar, Guard, Rank, Ranked};
use crate::inference::DeviceId;

/// Memory that is asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Demand {
    /// Where.
    pub device: DeviceId,
    /// How much.
    pub bytes: u64,
    /// What for: a model's name and the part of it.
    pub what: String,
    /// For a process of its own: that process's context is part of `bytes`, and ours needs none.
    pub apart: bool,
}

/// How far a reservation may fill a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bound {
    /// To 70 %: what could be done without.
    Soft,
    /// To 80 %.
    Ceiling,
}

/// Why there is no room.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shortage {
    /// Where.
    pub device: DeviceId,
    /// What was asked for, bytes.
    pub needed: u64,
    /// What is missing, bytes.
    pub missing: u64,
    /// What is being given back already, bytes.
    pub coming: u64,
    /// What reservations may fill in all, bytes.
    pub ceiling: u64,
    /// What would have to be given back is not scribe's to give: no reservation of any scribe process is in the way.
    pub strangers_alone: bool,
    /// It would not fit on the empty device either.
    pub never: bool,
    /// Another number while other scribe processes load or compute there.
    pub others_at_work: u64,
    /// The largest reservations, for people.
    pub largest: String,
}

impl std::fmt::Display for Shortage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{} are needed on {}, where {} may be used in all",
            human_bytes(self.needed),
            self.device,
            human_bytes(self.ceiling)
        )?;
        if !self.largest.is_empty() {
            write!(f, " (reserved: {})", self.largest)?;
        }
        Ok(())
    }
}

/// Memory of a device as scribe sees it, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DeviceMemory {
    /// Which.
    pub device: DeviceId,
    /// What the device, or the control group, has.
    pub total: u64,
    /// What scribe's processes could have: the limit, or what others leave.
    pub capacity: u64,
    /// What reservations may fill: 80 % of it.
    pub ceiling: u64,
    /// What this registry has reserved.
    pub reserved: u64,
    /// What counts against the ceiling: with what is on its way back, the context and other scribe processes.
    pub booked: u64,
    /// Most that was ever reserved.
    pub peak: u64,
    /// What others hold.
    pub foreign: u64,
    /// What this process and its workers hold by the device's own account; 0 where it does not say.
    pub measured: u64,
}

impl DeviceMemory {
    /// What is booked as a part of the capacity.
    pub fn percent(&self) -> f64 {
        if self.capacity == 0 {
            return 100.0;
        }
        self.booked as f64 / self.capacity as f64 * 100.0
    }
}

/// What the ledger does; all of it, except where a test shows that a part is needed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct LedgerPolicy {
    /// What this process holds counts until it is given back, whether it is still wanted or not.
    pub count_draining: bool,
    /// What was freed counts until the device has it back.
    pub wait_for_lag: bool,
}

impl Default for LedgerPolicy {
    fn default() -> Self {
        Self {
            count_draining: true,
            wait_for_lag: true,
        }
    }
}

struct Entry {
    bytes: u64,
    what: String,
    apart: bool,
    draining: bool,
}

struct Book {
    device: Arc<dyn Device>,
    limit: Option<MemoryLimit>,
    shared: Option<SharedBook>,
    live: HashMap<u64, Entry>,
    /// Freed bytes and when they are back.
    returning: Vec<(u64, Duration)>,
    /// A context, once made, stays for the life of the process.
    context: bool,
    peak: u64,
    view: MemoryView,
    /// What others held when nothing of ours was there.
    alone: u64,
    /// What other scribe processes held just before the view was taken.
    held_before: HashMap<u32, u64>,
    /// What a request that stands in line waits for.
    wanted: u64,
    beats: u64,
    told: shared::Figures,
}

/// What the shared book says.
#[derive(Clone, Copy, Default)]
struct Others {
    /// Reservations of other processes with their contexts, and of other registries of this one.
    reserved: u64,
    /// What other processes hold of theirs.
    held: u64,
    /// Reservations of other registries of this process.
    siblings: u64,
    wanted: u64,
    beats: u64,
}

struct Books {
    devices: HashMap<DeviceId, Book>,
    next: u64,
}

/// See the module.
pub struct Ledger {
    books: Ranked<Books>,
    released: Condvar,
    clock: Arc<dyn Clock>,
    policy: LedgerPolicy,
}

/// A device before anything is reserved on it.
pub struct DeviceSpec {
    /// The device.
    pub device: Arc<dyn Device>,
    /// What scribe may use of it.
    pub limit: Option<MemoryLimit>,
    /// Whether other processes of the user share it.
    pub(super) shared: Option<SharedBook>,
}

impl DeviceSpec {
    /// A device that this registry has for itself.
    pub fn own(device: Arc<dyn Device>, limit: Option<MemoryLimit>) -> Self {
        Self {
            device,
            limit,
            shared: None,
        }
    }

    /// A device that all scribe processes of the user share.
    pub fn shared(device: Arc<dyn Device>, limit: Option<MemoryLimit>) -> Self {
        let shared = SharedBook::of(device.id());
        Self {
            device,
            limit,
            shared,
        }
    }
}

/// What is asked of one book.
#[derive(Clone, Copy)]
struct Ask {
    /// Bytes on top of what is booked.
    more: u64,
    /// Bytes with what the asker has of it already.
    in_all: u64,
    /// See [`Demand`].
    apart: bool,
    bound: Bound,
}

/// Figures of one device at one moment.
struct Figures {
    total: u64,
    foreign: u64,
    capacity: u64,
    booked: u64,
    reserved: u64,
    others: u64,
}

impl Figures {
    fn bound(&self, bound: Bound) -> u64 {
        let percent = match bound {
            Bound::Soft => SOFT_PERCENT,
            Bound::Ceiling => CEILING_PERCENT,
        };
        part(self.capacity, percent)
    }
}

fn part(bytes: u64, percent: u64) -> u64 {
    (u128::from(bytes) * u128::from(percent) / 100) as u64
}

impl Book {
    fn reserved(&self, policy: LedgerPolicy) -> u64 {
        let counts = |e: &&Entry| policy.count_draining || !e.draining;
        self.live.values().filter(counts).map(|e| e.bytes).sum()
    }

    fn returning(&self, policy: LedgerPolicy, now: Duration) -> u64 {
        if !policy.wait_for_lag {
            return 0;
        }
        let back = |(_, until): &&(u64, Duration)| *until > now;
        self.returning
            .iter()
            .filter(back)
            .map(|(bytes, _)| bytes)
            .sum()
    }

    fn draining(&self) -> u64 {
        let draining = self.live.values().filter(|e| e.draining);
        draining.map(|e| e.bytes).sum()
    }

    fn context_bytes(&self, will_be_used: bool) -> u64 {
        if self.context || will_be_used {
            self.device.context_bytes()
        } else {
            0
        }
    }

    fn figures(
        &self,
        policy: LedgerPolicy,
        now: Duration,
        others: Others,
        will_be_used: bool,
    ) -> Figures {
        let view = self.view;
        let reserved = self.reserved(policy);
        let returning = self.returning(policy, now);
        let used = view.total.saturating_sub(view.available);
        let explained = reserved
            .saturating_add(self.context_bytes(false))
            .saturating_add(others.siblings);
        // What this process holds beyond its reservations is an application's, or on its way out: not ours to plan
        // with.
        let ours = match view.own {
            Some(own) if policy.count_draining => own.min(explained),
            Some(own) => own,
            None => used
                .saturating_sub(others.held)
                .saturating_sub(self.alone)
                .min(explained.saturating_add(returning)),
        };
        // A device that still shows what was freed has it counted twice for as long as it lags: a moment's patience,
        // where the other way round a stranger would be overlooked.
        let foreign = used.saturating_sub(ours).saturating_sub(others.held);
        let left = view.total.saturating_sub(foreign);
        let capacity = self
            .limit
            .map_or(left, |limit| left.min(limit.bytes_of(view.total)));
        let booked = reserved
            .saturating_add(returning)
            .saturating_add(self.context_bytes(will_be_used))
            .saturating_add(others.reserved);
        Figures {
            total: view.total,
            foreign,
            capacity,
            booked,
            reserved,
            others: others.reserved,
        }
    }

    fn round_up(&self, bytes: u64) -> u64 {
        let granule = self.device.granule().max(1);
        bytes.div_ceil(granule).saturating_mul(granule)
    }

    fn largest(&self) -> String {
        let mut by_what: HashMap<&str, u64> = HashMap::new();
        for entry in self.live.values() {
            *by_what.entry(&entry.what).or_default() += entry.bytes;
        }
        let mut all: Vec<(&str, u64)> = by_what.into_iter().collect();
        all.sort_by(|a, b| b.1.cmp(&a.1).then(a.0.cmp(b.0)));
        let texts: Vec<String> = all
            .into_iter()
            .take(3)
            .map(|(what, bytes)| format!("{what} {}", human_bytes(bytes)))
            .collect();
        texts.join(", ")
    }
}

impl Ledger {
    /// A ledger for these devices.
    pub fn new(devices: Vec<DeviceSpec>, clock: Arc<dyn Clock>) -> Arc<Self> {
        Self::with_policy(devices, clock, LedgerPolicy::default())
    }

    /// The same with parts of it switched off, to show that they are needed: for tests.
    pub(super) fn with_policy(
        devices: Vec<DeviceSpec>,
        clock: Arc<dyn Clock>,
        policy: LedgerPolicy,
    ) -> Arc<Self> {
        let books = devices
            .into_iter()
            .map(|spec| (spec.device.id(), Book::new(spec)))
            .collect();
        Arc::new(Self {
            books: Ranked::new(
                Rank::Books,
                Books {
                    devices: books,
                    next: 1,
                },
            ),
            released: Condvar::new(),
            clock,
            policy,
        })
    }

    fn books(&self) -> Guard<'_, Books> {
        self.books.lock()
    }

    /// Whether there is such a device.
    pub fn has(&self, device: DeviceId) -> bool {
        self.books().devices.contains_key(&device)
    }

    /// What a process takes by using this device at all.
    pub(super) fn context_bytes(&self, device: DeviceId) -> u64 {
        let books = self.books();
        let book = books.devices.get(&device);
        book.map_or(0, |book| book.device.context_bytes())
    }

    /// Adds a device that was not known at the start. One that is known stays as it is.
    pub fn add(&self, spec: DeviceSpec) {
        let id = spec.device.id();
        self.books()
            .devices
            .entry(id)
            .or_insert_with(|| Book::new(spec));
    }

    /// Reads the devices that `demands` name. A device that cannot be read keeps its last figures.
    fn look(&self, devices: &[DeviceId]) {
        let known: Vec<(DeviceId, Arc<dyn Device>, Vec<u32>)> = {
            let books = self.books();
            let book = |id| books.devices.get(id).map(|b| (id, b));
            devices
                .iter()
                .filter_map(book)
                .map(|(id, book)| (*id, Arc::clone(&book.device), book.other_processes()))
                .collect()
        };
        for (id, device, others) in known {
            // Before the view: what they take in between is in it, or is not, and must not be subtracted from it.
            let held = |pid: u32| Some((pid, device.held_by(pid)?));
            let held_before = others.into_iter().filter_map(held).collect();
            if let Ok(view) = device.probe()
                && let Some(book) = self.books().devices.get_mut(&id)
            {
                book.view = view;
                book.held_before = held_before;
            }
        }
    }

    /// Tells other processes what `demands` wait for, so that what is idle there goes; nothing more once they are empty.
    pub(super) fn want(&self, demands: &[Demand]) {
        let now = self.clock.now();
        let mut books = self.books();
        for (id, book) in &mut books.devices {
            let here = demands.iter().filter(|d| d.device == *id);
            book.wanted = here.map(|d| book.round_up(d.bytes)).sum();
            if book.wanted != book.told.wanted {
                book.tell_others(self.policy, now);
            }
        }
    }

    /// Tells other processes how things stand, and that something is being done here, where it is. What was freed and
    /// has come back since is theirs from then on.
    pub(super) fn tell(&self, at_work: bool) {
        let now = self.clock.now();
        for book in self.books().devices.values_mut() {
            book.beats = book.beats.wrapping_add(u64::from(at_work));
            if book.line(self.policy, now) != book.told {
                book.tell_others(self.policy, now);
            }
        }
    }

    /// Reserves all of `demands`, or nothing.
    pub fn try_reserve(
        self: &Arc<Self>,
        demands: &[Demand],
        bound: Bound,
    ) -> Result<Vec<Reservation>, Shortage> {
        let mut wanted: HashMap<DeviceId, u64> = HashMap::new();
        let here = |id: DeviceId| demands.iter().any(|d| d.device == id && !d.apart);
        let mut ids: Vec<DeviceId> = Vec::new();
        for demand in demands {
            if !ids.contains(&demand.device) {
                ids.push(demand.device);
            }
        }
        self.look(&ids);
        let now = self.clock.now();
        let mut books = self.books();
        for demand in demands {
            if let Some(book) = books.devices.get(&demand.device) {
                *wanted.entry(demand.device).or_default() += book.round_up(demand.bytes);
            }
        }
        // Two passes: all are looked at before the first is taken.
        for (at, id) in ids.iter().enumerate() {
            let needed = wanted.get(id).copied().unwrap_or(0);
            let taken = match books.devices.get_mut(id) {
                Some(book) if needed > 0 => {
                    let ask = Ask {
                        more: needed,
                        in_all: needed,
                        apart: !here(*id),
                        bound,
                    };
                    book.take(self.policy, now, ask)
                }
                Some(_) => Ok(()),
                None => Err(Shortage::no_such_device(*id, needed)),
            };
            if let Err(shortage) = taken {
                // Other processes have been told of the devices before this one.
                for told in &ids[..at] {
                    if let Some(book) = books.devices.get_mut(told) {
                        book.tell_others(self.policy, now);
                    }
                }
                return Err(shortage);
            }
        }
        let mut out = Vec::with_capacity(demands.len());
        for demand in demands {
            let id = books.next;
            books.next += 1;
            if let Some(book) = books.devices.get_mut(&demand.device) {
                let bytes = book.round_up(demand.bytes);
                let entry = Entry {
                    bytes,
                    what: demand.what.clone(),
                    apart: demand.apart,
                    draining: false,
                };
                book.live.insert(id, entry);
                book.peak = book.peak.max(book.reserved(LedgerPolicy::default()));
                book.context |= bytes > 0 && !demand.apart;
            }
            out.push(Reservation {
                ledger: Arc::clone(self),
                device: demand.device,
                id,
            });
        }
        Ok(out)
    }

    /// Changes what a reservation holds. Less is always possible.
    fn resize(&self, device: DeviceId, id: u64, bytes: u64, bound: Bound) -> Result<(), Shortage> {
        let growing = {
            let books = self.books();
            let held = books.devices.get(&device).and_then(|b| b.live.get(&id));
            held.is_some_and(|e| bytes > e.bytes)
        };
        if growing {
            self.look(&[device]);
        }
        let now = self.clock.now();
        let mut books = self.books();
        let Some(book) = books.devices.get_mut(&device) else {
            return Err(Shortage::no_such_device(device, bytes));
        };
        let bytes = book.round_up(bytes);
        let (held, apart) = book
            .live
            .get(&id)
            .map_or((0, false), |e| (e.bytes, e.apart));
        if bytes > held {
            let ask = Ask {
                more: bytes - held,
                in_all: bytes,
                apart,
                bound,
            };
            book.take(self.policy, now, ask)?;
        }
        if let Some(entry) = book.live.get_mut(&id) {
            entry.bytes = bytes;
        }
        book.peak = book.peak.max(book.reserved(LedgerPolicy::default()));
        if bytes < held {
            book.give_back(held - bytes, now);
            book.tell_others(self.policy, now);
            drop(books);
            self.released.notify_all();
        }
        Ok(())
    }

    fn release(&self, device: DeviceId, id: u64) {
        let now = self.clock.now();
        let mut books = self.books();
        if let Some(book) = books.devices.get_mut(&device)
            && let Some(entry) = book.live.remove(&id)
        {
            book.give_back(entry.bytes, now);
            book.tell_others(self.policy, now);
        }
        drop(books);
        self.released.notify_all();
    }

    fn drain(&self, device: DeviceId, id: u64) {
        let mut books = self.books();
        if let Some(entry) = books
            .devices
            .get_mut(&device)
            .and_then(|b| b.live.get_mut(&id))
        {
            entry.draining = true;
        }
    }

    /// Waits until something is given back, at most `timeout`.
    pub fn wait_for_release(&self, timeout: Duration) {
        self.books().look_again(&self.released, timeout);
    }

    /// Wakes whoever waits for a release: a device has changed, or somebody has gone away.
    pub fn wake(&self) {
        drop(self.books());
        self.released.notify_all();
    }

    /// Lowers what may be used of every device. Refused once something is reserved: the limit that stands is returned.
    pub fn lower_limit(&self, limit: MemoryLimit) -> Result<(), Option<MemoryLimit>> {
        let mut books = self.books();
        for book in books.devices.values_mut() {
            let total = book.view.total;
            let asked = limit.bytes_of(total);
            let stands = book.limit.map_or(total, |l| l.bytes_of(total));
            if asked == stands {
                continue;
            }
            if asked > stands || !book.live.is_empty() {
                return Err(book.limit);
            }
            book.limit = Some(limit);
        }
        Ok(())
    }

    /// What would have to be given back on `device` to come under `bound` with what other processes wait for, bytes; 0 if
    /// it is.
    pub fn excess(&self, device: DeviceId, bound: Bound) -> u64 {
        self.look(&[device]);
        let now = self.clock.now();
        let books = self.books();
        let Some(book) = books.devices.get(&device) else {
            return 0;
        };
        let others = book.others();
        let figures = book.figures(self.policy, now, others, false);
        let booked = figures.booked.saturating_add(others.wanted);
        booked.saturating_sub(figures.bound(bound))
    }

    /// Figures of all devices.
    pub fn memory(&self) -> Vec<DeviceMemory> {
        let ids: Vec<DeviceId> = self.books().devices.keys().copied().collect();
        self.look(&ids);
        let now = self.clock.now();
        let books = self.books();
        let mut out: Vec<DeviceMemory> = books
            .devices
            .iter()
            .map(|(id, book)| {
                let figures = book.figures(self.policy, now, book.others(), false);
                DeviceMemory {
                    device: *id,
                    total: figures.total,
                    capacity: figures.capacity,
                    ceiling: figures.bound(Bound::Ceiling),
                    reserved: figures.reserved,
                    booked: figures.booked,
                    peak: book.peak,
                    foreign: figures.foreign,
                    measured: book.view.own.unwrap_or(0),
                }
            })
            .collect();
        out.sort_by_key(|m| m.device);
        out
    }
}

impl Book {
    fn new(spec: DeviceSpec) -> Self {
        let view = spec.device.probe().unwrap_or_default();
        Self {
            device: spec.device,
            limit: spec.limit,
            shared: spec.shared,
            live: HashMap::new(),
            returning: Vec::new(),
            context: false,
            peak: 0,
            alone: view.total.saturating_sub(view.available),
            view,
            held_before: HashMap::new(),
            wanted: 0,
            beats: 0,
            told: shared::Figures::default(),
        }
    }

    fn others(&self) -> Others {
        let open = self.shared.as_ref().and_then(|book| book.open().ok());
        open.map_or_else(Others::default, |book| self.sum_of(&book.others))
    }

    fn other_processes(&self) -> Vec<u32> {
        let open = self.shared.as_ref().and_then(|book| book.open().ok());
        open.map_or_else(Vec::new, |book| book.others.iter().map(|l| l.pid).collect())
    }

    fn sum_of(&self, others: &[shared::Line]) -> Others {
        let mut sum = Others::default();
        for line in others {
            let shared::Figures {
                reserved,
                wanted,
                beats,
            } = line.figures;
            sum.wanted = sum.wanted.saturating_add(wanted);
            sum.beats = sum.beats.wrapping_add(beats);
            if line.pid == std::process::id() {
                // A second registry of this process: the context is counted with our own reservations, and what it holds
                // is in the view as ours.
                let reserved = reserved.saturating_sub(self.context_bytes(false));
                sum.reserved = sum.reserved.saturating_add(reserved);
                sum.siblings = sum.siblings.saturating_add(reserved);
            } else if reserved > 0 {
                let before = self.held_before.get(&line.pid).copied().unwrap_or(0);
                let holds = self.device.held_by(line.pid);
                let holds = holds.map_or(reserved, |now| now.min(before));
                sum.reserved = sum.reserved.saturating_add(reserved);
                sum.held = sum.held.saturating_add(holds.min(reserved));
            }
        }
        sum
    }

    /// Books more if it fits, and tells the other processes.
    fn take(&mut self, policy: LedgerPolicy, now: Duration, ask: Ask) -> Result<(), Shortage> {
        self.returning.retain(|(_, until)| *until > now);
        let open = match self.shared.as_ref().map(SharedBook::open) {
            Some(Err(Closed::ForNow)) => {
                return Err(Shortage::not_now(self.device.id(), ask.in_all));
            }
            Some(Ok(open)) => Some(open),
            Some(Err(Closed::ForGood)) | None => None,
        };
        let others = open
            .as_ref()
            .map_or_else(Others::default, |book| self.sum_of(&book.others));
        if self.live.is_empty() && self.returning.is_empty() {
            let used = self.view.total.saturating_sub(self.view.available);
            self.alone = used
                .saturating_sub(others.held)
                .saturating_sub(others.siblings)
                .saturating_sub(self.context_bytes(false));
        }
        let figures = self.figures(policy, now, others, !ask.apart);
        let most = figures.bound(ask.bound);
        let after = figures.booked.saturating_add(ask.more);
        if after > most {
            let alone = self.context_bytes(!ask.apart).saturating_add(ask.in_all);
            let limit = self
                .limit
                .map_or(figures.total, |l| l.bytes_of(figures.total));
            return Err(Shortage {
                device: self.device.id(),
                needed: ask.in_all,
                missing: after - most,
                coming: self.draining() + self.returning(policy, now),
                ceiling: figures.bound(Bound::Ceiling),
                strangers_alone: figures.reserved == 0
                    && figures.others == 0
                    && self.returning.is_empty(),
                never: alone > part(limit, CEILING_PERCENT),
                others_at_work: others.beats,
                largest: self.largest(),
            });
        }
        if let Some(open) = open {
            let mut line = self.line(policy, now);
            line.reserved = after.saturating_sub(figures.others);
            open.write(line);
            self.told = line;
        }
        Ok(())
    }

    fn give_back(&mut self, bytes: u64, now: Duration) {
        let lag = self.device.lag();
        if !lag.is_zero() && bytes > 0 {
            self.returning.push((bytes, now + lag));
        }
    }

    /// What is to be told.
    fn line(&self, policy: LedgerPolicy, now: Duration) -> shared::Figures {
        let reserved = self.reserved(policy);
        shared::Figures {
            reserved: reserved
                .saturating_add(self.returning(policy, now))
                .saturating_add(self.context_bytes(false)),
            wanted: self.wanted,
            // Of no use to anybody where nothing is held.
            beats: if reserved > 0 { self.beats } else { 0 },
        }
    }

    /// Writes our line anew. Where that cannot be done it is tried again with the next change, or by `tell`.
    fn tell_others(&mut self, policy: LedgerPolicy, now: Duration) {
        let line = self.line(policy, now);
        if let Some(Ok(open)) = self.shared.as_ref().map(SharedBook::open) {
            open.write(line);
            self.told = line;
        }
    }
}

impl Shortage {
    /// The book that processes share cannot be had at the moment.
    fn not_now(device: DeviceId, needed: u64) -> Self {
        Self {
            device,
            needed,
            missing: needed,
            coming: needed,
            ceiling: 0,
            strangers_alone: false,
            never: false,
            others_at_work: 0,
            largest: String::new(),
        }
    }

    fn no_such_device(device: DeviceId, needed: u64) -> Self {
        Self {
            device,
            needed,
            missing: needed,
            coming: 0,
            ceiling: 0,
            strangers_alone: true,
            never: true,
            others_at_work: 0,
            largest: String::new(),
        }
    }
}

impl std::fmt::Debug for Ledger {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ledger")
            .field("memory", &self.memory())
            .finish()
    }
}

/// Bytes that are ours to use. Given back when dropped.
#[must_use]
pub struct Reservation {
    ledger: Arc<Ledger>,
    device: DeviceId,
    id: u64,
}

impl Reservation {
    /// Where it is.
    pub fn device(&self) -> DeviceId {
        self.device
    }

    /// How much it is.
    pub fn bytes(&self) -> u64 {
        let books = self.ledger.books();
        let entry = books
            .devices
            .get(&self.device)
            .and_then(|b| b.live.get(&self.id));
        entry.map_or(0, |e| e.bytes)
    }

    /// Makes it `bytes` large. Less is always possible; more as far as there is room.
    pub fn resize(&self, bytes: u64, bound: Bound) -> Result<(), Shortage> {
        self.ledger.resize(self.device, self.id, bytes, bound)
    }

    /// Says that it is being given back. It counts until it is dropped.
    pub fn begin_drain(&self) {
        self.ledger.drain(self.device, self.id);
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.ledger.release(self.device, self.id);
    }
}

impl std::fmt::Debug for Reservation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Reservation")
            .field("device", &self.device)
            .field("bytes", &self.bytes())
            .finish()
    }
}
