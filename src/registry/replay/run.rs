// SPDX-License-Identifier: MPL-2.0
//! The same work under the registry.

use std::cell::RefCell;
use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use super::{
    AT_ONCE, DIARIZER_WINDOWS, DIFFICULT, GIB, KERNELS, MIB, Random, Report, SEGMENTS,
    SPEECH_WINDOWS, Scenario, Switches, VirtualClock, card, strangers,
};
use crate::inference::card::{Block, Card};
use crate::inference::{DeviceId, Footprint};
use crate::registry::StreamId;
use crate::registry::admission::{Line, reserve};
use crate::registry::batch::{Batcher, Step};
use crate::registry::clock::Clock;
use crate::registry::device::simulated::Simulated;
use crate::registry::ledger::{Bound, Demand, DeviceSpec, Ledger, Reservation};
use crate::registry::plan::{Idle, Need, eligible, give_up};
use crate::registry::queue::{Class, Queue, Queued};

/// The one process.
const OWN: u32 = 1;
const CARD: DeviceId = DeviceId::Simulated(0);
/// How often a request in line looks again, and how often the housekeeper looks.
const POLL: Duration = Duration::from_millis(500);
/// A request waits so long for what only strangers could give, or while nothing is done.
const PATIENCE: Duration = Duration::from_secs(10);
/// What was admitted a moment ago may come to stand above a ceiling that strangers have lowered since.
const MOMENT: Duration = Duration::from_secs(30);

/// A model as it is on a device.
struct Spec {
    name: &'static str,
    device: DeviceId,
    footprint: Footprint,
    /// A lane before a difficult window has come.
    narrow_lane: u64,
    load_s: f64,
    /// Seconds of a batch: fixed, and for each item.
    batch_s: (f64, f64),
    most_items: usize,
    lanes: usize,
}

/// What is needed, and by which models it can be had, the best first.
const SPEECH: usize = 0;
const SPEAKERS: usize = 1;
const ENROLMENT: usize = 2;
const VOICES: usize = 3;

fn specs(shared: bool) -> (Vec<Spec>, Vec<Vec<usize>>) {
    let lane = |mib: u64, item: u64| Footprint {
        lane_bytes: mib * MIB,
        item_bytes: item * MIB,
        ..Footprint::default()
    };
    let speech = |name, device, gib_tenths: u64, seconds, load_s| Spec {
        name,
        device,
        footprint: Footprint {
            weights_bytes: gib_tenths * GIB / 10,
            ..lane(650 + 480, 0)
        },
        narrow_lane: 650 * MIB,
        load_s,
        batch_s: (seconds, 0.0),
        most_items: 1,
        lanes: 2,
    };
    let batched = |name, device, gib: u64, item: u64, batch_s, load_s| Spec {
        name,
        device,
        footprint: Footprint {
            weights_bytes: gib * GIB,
            ..lane(item, item)
        },
        narrow_lane: item * MIB,
        load_s,
        batch_s,
        most_items: 32,
        lanes: 1,
    };
    let cpu = DeviceId::Cpu;
    let models = vec![
        speech("whisper", CARD, 30, 0.5, 3.0),
        speech("whisper-q5", CARD, 11, 0.5, 1.5),
        speech("whisper-q5 on cpu", cpu, 11, 4.0, 1.0),
        batched("segmentation", CARD, 3, 2, (0.1, 0.01), 2.5),
        batched("segmentation on cpu", cpu, 3, 2, (0.1, 0.1), 1.0),
        batched("enrolment", CARD, 1, 2, (0.1, 0.0), 1.0),
        batched("enrolment on cpu", cpu, 1, 2, (0.1, 0.02), 1.0),
        batched("voices", CARD, 4, 16, (1.5, 0.0), 3.0),
        batched("voices on cpu", cpu, 4, 16, (0.5, 0.2), 1.0),
        // The diarizer's own embedding does for enrolment: it is part of its 3 GiB.
        batched("voices of the diarizer", CARD, 0, 16, (1.5, 0.0), 0.1),
    ];
    let voices = if shared { vec![9, 8] } else { vec![7, 8] };
    (models, vec![vec![0, 1, 2], vec![3, 4], vec![5, 6], voices])
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum State {
    Absent,
    Loading,
    Ready,
    Draining,
}

struct Lane {
    busy: bool,
    items: usize,
    wide: bool,
    // Memory before what is reserved for it.
    memory: Vec<Block>,
    arena: Vec<Block>,
    room: Reservation,
}

struct Model {
    spec: Spec,
    state: State,
    leases: usize,
    idle_since: Duration,
    weights: Option<(Vec<Block>, Option<Reservation>)>,
    first_room: Option<Reservation>,
    lanes: Vec<Lane>,
    queue: Queue<Job>,
    batcher: Batcher,
}

#[derive(Clone, Copy)]
struct Job {
    element: usize,
    difficult: bool,
}

/// A stage of a video: what it needs, and the jobs it has.
struct Element {
    video: usize,
    needs: Vec<usize>,
    /// For each need: which of its chain.
    steps: Vec<usize>,
    /// Jobs of each need that are not done.
    left: Vec<u32>,
    request: Option<u64>,
    /// Since when only strangers are in its way, or nothing is done.
    stuck_since: Option<Duration>,
    /// Its models are held while the last of them loads.
    pinned: bool,
    granted: bool,
    over: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Event {
    Loaded(usize),
    Unloaded(usize),
    BatchDone {
        model: usize,
        lane: usize,
        batch: usize,
    },
    Strangers(u64),
    Look,
}

struct Replay<'a> {
    scenario: &'a Scenario,
    switches: Switches,
    clock: Arc<VirtualClock>,
    card: Arc<Card>,
    ledger: Arc<Ledger>,
    line: Line,
    models: RefCell<Vec<Model>>,
    chains: Vec<Vec<usize>>,
    elements: Vec<Element>,
    batches: Vec<(Vec<Job>, f64)>,
    events: BinaryHeap<Reverse<(Duration, u64, Event)>>,
    serial: u64,
    random: Random,
    kernels: usize,
    cpu_kernels: usize,
    waiting: usize,
    started: usize,
    report: Report,
    enrol_s: f64,
    enrol_batches: u32,
    strangers: VecDeque<(Duration, u64)>,
    /// Given up while the models were borrowed: they are unloaded next.
    dropped: RefCell<Vec<usize>>,
}

pub(super) fn play(scenario: &Scenario, switches: Switches) -> Report {
    let clock = Arc::new(VirtualClock::default());
    let card = card(scenario, &clock);
    let ledger = Ledger::with_policy(
        vec![
            DeviceSpec::own(Arc::new(Simulated::new(0, &card, OWN)), None),
            DeviceSpec::own(Arc::new(Plenty), None),
        ],
        Arc::clone(&clock) as Arc<dyn Clock>,
        switches.ledger(),
    );
    let (specs, chains) = specs(scenario.shared_embedding);
    let models = specs
        .into_iter()
        .map(|spec| {
            let most = spec.most_items.min(scenario.batch);
            Model {
                batcher: Batcher::new(most, most, false),
                spec,
                state: State::Absent,
                leases: 0,
                idle_since: Duration::ZERO,
                weights: None,
                first_room: None,
                lanes: Vec::new(),
                queue: Queue::default(),
            }
        })
        .collect();
    let mut replay = Replay {
        scenario,
        switches,
        clock,
        card,
        ledger,
        line: Line::default(),
        models: RefCell::new(models),
        chains,
        elements: Vec::new(),
        batches: Vec::new(),
        events: BinaryHeap::new(),
        serial: 0,
        random: Random::new(scenario.seed),
        kernels: 0,
        cpu_kernels: 0,
        waiting: scenario.videos,
        started: 0,
        report: Report::default(),
        enrol_s: 0.0,
        enrol_batches: 0,
        strangers: VecDeque::new(),
        dropped: RefCell::default(),
    };
    replay.run();
    replay.report
}

/// The machine's memory: more than anybody needs here.
struct Plenty;

impl crate::registry::device::Device for Plenty {
    fn id(&self) -> DeviceId {
        DeviceId::Cpu
    }
    fn probe(&self) -> Result<crate::registry::device::MemoryView, String> {
        Ok(crate::registry::device::MemoryView {
            total: 256 * GIB,
            available: 256 * GIB,
            own: Some(0),
        })
    }
    fn held_by(&self, _pid: u32) -> Option<u64> {
        None
    }
    fn granule(&self) -> u64 {
        4096
    }
    fn context_bytes(&self) -> u64 {
        0
    }
    fn lag(&self) -> Duration {
        Duration::ZERO
    }
}

impl Replay<'_> {
    fn now(&self) -> Duration {
        self.clock.now()
    }

    fn at(&mut self, when: Duration, event: Event) {
        self.serial += 1;
        self.events.push(Reverse((when, self.serial, event)));
    }

    fn after(&mut self, seconds: f64, event: Event) {
        let when = self.now() + Duration::from_secs_f64(seconds);
        self.at(when, event);
    }

    fn run(&mut self) {
        for (at, bytes) in strangers(self.scenario, &mut self.random) {
            if at.is_zero() {
                let taken = self.card.set_strangers(bytes);
                self.strangers.push_back((at, taken));
            } else {
                self.at(at, Event::Strangers(bytes));
            }
        }
        for _ in 0..AT_ONCE {
            self.next_video();
        }
        self.at(POLL, Event::Look);
        self.go_on();
        // A day is more than anything here takes: who is not done by then never will be.
        let end = Duration::from_secs(86_400);
        while let Some(Reverse((at, _, event))) = self.events.pop() {
            if self.report.done + self.report.lost == self.scenario.videos || at > end {
                break;
            }
            self.clock.set(at);
            self.handle(event);
            self.go_on();
        }
        let enrolled = self.report.done.max(1) as f64;
        self.report.lost = self.scenario.videos - self.report.done;
        self.report.enrol_seconds = self.enrol_s / enrolled;
        self.report.enrol_batches = f64::from(self.enrol_batches) / enrolled;
        self.report.out_of_memory = self.card.refused();
    }

    /// Transcriber and diarizer of the next video.
    fn next_video(&mut self) {
        if self.waiting == 0 {
            return;
        }
        self.waiting -= 1;
        let video = self.started;
        self.started += 1;
        self.element(video, &[(SPEECH, SPEECH_WINDOWS)]);
        self.element(video, &[(SPEAKERS, DIARIZER_WINDOWS)]);
    }

    fn element(&mut self, video: usize, needs: &[(usize, u32)]) {
        self.elements.push(Element {
            video,
            needs: needs.iter().map(|n| n.0).collect(),
            steps: vec![0; needs.len()],
            left: needs.iter().map(|n| n.1).collect(),
            request: None,
            stuck_since: None,
            pinned: false,
            granted: false,
            over: false,
        });
    }

    fn handle(&mut self, event: Event) {
        match event {
            Event::Look => {
                let next = self.now() + POLL;
                self.at(next, Event::Look);
                self.house();
            }
            Event::Strangers(bytes) => {
                let taken = self.card.set_strangers(bytes);
                let now = self.now();
                self.strangers.push_back((now, taken));
            }
            Event::Loaded(model) => self.loaded(model),
            Event::Unloaded(model) => self.unloaded(model),
            Event::BatchDone { model, lane, batch } => self.batch_done(model, lane, batch),
        }
    }

    /// Everything that can go on now does.
    fn go_on(&mut self) {
        self.drop_given_up();
        for element in 0..self.elements.len() {
            self.ask(element);
        }
        self.drop_given_up();
        self.launch();
        self.drop_given_up();
    }

    fn chosen(&self, element: usize) -> Vec<usize> {
        let e = &self.elements[element];
        let choice = |(need, step): (&usize, &usize)| self.chains[*need][*step];
        e.needs.iter().zip(&e.steps).map(choice).collect()
    }

    /// An element that has no models yet asks for them, all in one.
    fn ask(&mut self, element: usize) {
        if self.elements[element].granted || self.elements[element].over {
            return;
        }
        let chosen = self.chosen(element);
        let now = self.now();
        let held = |line: &Line, id: Option<u64>, device| {
            id.is_none() && line.holds_back(device, Class::File, now)
        };
        {
            let models = self.models.borrow();
            let device = |m: &usize| models[*m].spec.device;
            if chosen
                .iter()
                .any(|m| held(&self.line, self.elements[element].request, device(m)))
            {
                return;
            }
            // What is on its way in or out is waited for.
            if chosen
                .iter()
                .any(|m| matches!(models[*m].state, State::Loading | State::Draining))
            {
                return;
            }
        }
        let absent: Vec<usize> = {
            let models = self.models.borrow();
            let absent = |m: &usize| models[*m].state == State::Absent;
            chosen.iter().copied().filter(absent).collect()
        };
        if absent.is_empty() {
            if !self.elements[element].pinned {
                self.pin(element, &chosen, true);
            }
            self.grant(element, &chosen);
            return;
        }
        if self.elements[element].pinned {
            // A load has found no memory: once more.
            self.pin(element, &chosen, false);
        }
        let demands: Vec<Demand> = absent.iter().flat_map(|m| self.demands(*m)).collect();
        let id = match self.elements[element].request {
            Some(id) => id,
            None => {
                let id = self.line.join(Class::File, &demands, now);
                self.elements[element].request = Some(id);
                id
            }
        };
        if !self.line.is_first(id) {
            return;
        }
        // What the element has is not given up for what it lacks.
        self.pin(element, &chosen, true);
        let outcome = if self.switches.reserve_before_load {
            let evict = |device, missing, need| self.evict(device, missing, need);
            reserve(&self.ledger, &demands, &evict)
        } else {
            Ok(Vec::new())
        };
        match outcome {
            Ok(reservations) => {
                self.line.leave(id);
                self.elements[element].request = None;
                self.elements[element].stuck_since = None;
                let mut reservations = reservations.into_iter();
                for m in absent {
                    let weights = reservations.next();
                    let first = reservations.next();
                    self.load(m, weights, first);
                }
            }
            Err(shortage) => {
                self.pin(element, &chosen, false);
                let idle = self.kernels == 0 && self.cpu_kernels == 0;
                let stuck = shortage.coming == 0 && (shortage.strangers_alone || idle);
                let since = *self.elements[element].stuck_since.get_or_insert(now);
                if !stuck {
                    self.elements[element].stuck_since = None;
                }
                if shortage.never || (stuck && now - since >= PATIENCE) {
                    self.line.leave(id);
                    self.elements[element].request = None;
                    self.elements[element].stuck_since = None;
                    self.step_down(element);
                }
            }
        }
    }

    fn pin(&mut self, element: usize, chosen: &[usize], pinned: bool) {
        let mut models = self.models.borrow_mut();
        for m in chosen {
            let leases = &mut models[*m].leases;
            *leases = if pinned { *leases + 1 } else { *leases - 1 };
        }
        self.elements[element].pinned = pinned;
    }

    fn demands(&self, model: usize) -> Vec<Demand> {
        let models = self.models.borrow();
        let spec = &models[model].spec;
        let lane = if self.switches.widest_cache {
            spec.footprint.lane_of(1)
        } else {
            spec.narrow_lane
        };
        let demand = |bytes| Demand {
            device: spec.device,
            bytes,
            what: spec.name.into(),
            apart: false,
        };
        vec![demand(spec.footprint.weights_bytes), demand(lane)]
    }

    /// The next of a chain for the need that takes most; without any the video is lost.
    fn step_down(&mut self, element: usize) {
        let chosen = self.chosen(element);
        let largest = {
            let models = self.models.borrow();
            let can = |at: &usize| {
                let e = &self.elements[element];
                e.steps[*at] + 1 < self.chains[e.needs[*at]].len()
            };
            (0..chosen.len()).filter(can).max_by_key(|at| {
                (
                    models[chosen[*at]].spec.device == CARD,
                    models[chosen[*at]].spec.footprint.weights_bytes,
                )
            })
        };
        match largest {
            Some(at) => {
                self.elements[element].steps[at] += 1;
                self.report.fallbacks += 1;
            }
            None => self.lose(element),
        }
    }

    fn lose(&mut self, element: usize) {
        let video = self.elements[element].video;
        for e in &mut self.elements {
            if e.video == video {
                e.over = true;
            }
        }
        self.report.lost += 1;
        self.next_video();
    }

    /// Takes memory of the card as the models do, and looks whether that is more than is allowed.
    fn take(&mut self, device: DeviceId, bytes: u64) -> Option<Vec<Block>> {
        if device != CARD || bytes == 0 {
            return Some(Vec::new());
        }
        let block = self.card.alloc(OWN, bytes).ok()?;
        let spec = self.card.spec();
        let now = self.now();
        while self.strangers.len() > 1 && self.strangers[1].0 + MOMENT < now {
            self.strangers.pop_front();
        }
        let others = self.strangers.iter().map(|s| s.1).min().unwrap_or(0);
        let capacity = spec.total - spec.driver_reserve - others;
        let ours = self.card.taken_by_processes();
        self.report.peak = self.report.peak.max(ours);
        let percent = ours as f64 / capacity as f64 * 100.0;
        self.report.peak_percent = self.report.peak_percent.max(percent);
        Some(vec![block])
    }

    fn load(&mut self, model: usize, weights: Option<Reservation>, first: Option<Reservation>) {
        let (device, bytes, load_s) = {
            let models = self.models.borrow();
            let spec = &models[model].spec;
            (spec.device, spec.footprint.weights_bytes, spec.load_s)
        };
        // A load that finds no memory is tried again by whoever wants it: the refusal is counted.
        let Some(blocks) = self.take(device, bytes) else {
            return;
        };
        self.report.loads += 1;
        let mut models = self.models.borrow_mut();
        models[model].state = State::Loading;
        models[model].weights = Some((blocks, weights));
        models[model].first_room = first;
        drop(models);
        self.after(load_s, Event::Loaded(model));
    }

    fn loaded(&mut self, model: usize) {
        if !self.switches.reserve_before_load {
            // Booked when it is there, whatever there is.
            let demands = self.demands(model);
            let mut booked = self
                .ledger
                .try_reserve(&demands, Bound::Ceiling)
                .unwrap_or_default()
                .into_iter();
            let mut models = self.models.borrow_mut();
            if let Some(weights) = &mut models[model].weights {
                weights.1 = booked.next();
            }
            models[model].first_room = booked.next();
        }
        self.models.borrow_mut()[model].state = State::Ready;
        let now = self.now();
        self.models.borrow_mut()[model].idle_since = now;
        self.add_lane(model, true);
    }

    fn add_lane(&mut self, model: usize, first: bool) {
        let demands = self.demands(model);
        let room = self.models.borrow_mut()[model].first_room.take();
        let bound = if first { Bound::Ceiling } else { Bound::Soft };
        let room = match room {
            Some(room) => room,
            None => match self.ledger.try_reserve(&demands[1..], bound) {
                Ok(mut reserved) => match reserved.pop() {
                    Some(room) => room,
                    None => return,
                },
                Err(_) => return,
            },
        };
        let Some(memory) = self.take(demands[1].device, demands[1].bytes) else {
            return;
        };
        self.models.borrow_mut()[model].lanes.push(Lane {
            busy: false,
            items: 1,
            wide: false,
            memory,
            arena: Vec::new(),
            room,
        });
    }

    fn unloaded(&mut self, model: usize) {
        let mut models = self.models.borrow_mut();
        // Memory goes before what is reserved for it.
        for lane in models[model].lanes.drain(..) {
            let Lane {
                memory,
                arena,
                room,
                ..
            } = lane;
            drop((memory, arena));
            drop(room);
        }
        if let Some((blocks, reservation)) = models[model].weights.take() {
            drop(blocks);
            drop(reservation);
        }
        models[model].first_room = None;
        models[model].state = State::Absent;
    }

    fn grant(&mut self, element: usize, chosen: &[usize]) {
        self.elements[element].granted = true;
        if let Some(id) = self.elements[element].request.take() {
            self.line.leave(id);
        }
        let left = self.elements[element].left.clone();
        for (m, count) in chosen.iter().zip(left) {
            let (need_windows, seconds) = (count, if *m <= 2 { 29.0 } else { 3.0 });
            for _ in 0..need_windows {
                let difficult = *m <= 2 && self.random.below(DIFFICULT) == 0;
                self.models.borrow_mut()[*m].queue.push(Queued {
                    stream: StreamId(element as u64 + 1),
                    class: Class::File,
                    deadline: None,
                    seconds,
                    job: Job { element, difficult },
                    turn: 0,
                });
            }
        }
    }

    /// What is idle on `device`, as the registry sees it.
    fn idle(&self, device: DeviceId) -> Vec<Idle<(usize, bool)>> {
        let now = self.now();
        let models = self.models.borrow();
        let mut out = Vec::new();
        for (m, model) in models.iter().enumerate() {
            if model.state != State::Ready || model.spec.device != device {
                continue;
            }
            let rooms: u64 = model.lanes.iter().map(|l| l.room.bytes()).sum();
            if model.leases == 0 {
                let weights = model.weights.as_ref().and_then(|w| w.1.as_ref());
                out.push(Idle {
                    id: (m, true),
                    device,
                    bytes: rooms + weights.map_or(0, Reservation::bytes),
                    unused: now - model.idle_since,
                    reload_s: model.spec.load_s,
                    is_spare: false,
                });
            } else if model.lanes.len() > 1 {
                let spare = model.lanes.iter().skip(1).filter(|l| !l.busy);
                out.push(Idle {
                    id: (m, false),
                    device,
                    bytes: spare.map(|l| l.room.bytes()).sum(),
                    unused: Duration::ZERO,
                    reload_s: 0.3,
                    is_spare: true,
                });
            }
        }
        out
    }

    fn evict(&self, device: DeviceId, missing: u64, need: Need) -> bool {
        let idle = eligible(self.idle(device), need);
        let Some(chosen) = give_up(&idle, device, missing) else {
            return false;
        };
        for (m, whole) in chosen {
            let mut models = self.models.borrow_mut();
            if !whole {
                // A lane ends at once when it has nothing to do.
                let mut at = 1;
                while at < models[m].lanes.len() {
                    if models[m].lanes[at].busy {
                        at += 1;
                        continue;
                    }
                    let Lane {
                        memory,
                        arena,
                        room,
                        ..
                    } = models[m].lanes.remove(at);
                    drop((memory, arena));
                    drop(room);
                }
                continue;
            }
            models[m].state = State::Draining;
            for lane in &models[m].lanes {
                lane.room.begin_drain();
            }
            if let Some((_, Some(weights))) = &models[m].weights {
                weights.begin_drain();
            }
            self.dropped.borrow_mut().push(m);
        }
        true
    }

    /// Unloading takes a moment.
    fn drop_given_up(&mut self) {
        let dropped: Vec<usize> = self.dropped.borrow_mut().drain(..).collect();
        for model in dropped {
            self.after(0.8, Event::Unloaded(model));
        }
    }

    /// What the housekeeper does: above 70 % what is idle goes.
    fn house(&mut self) {
        for (bound, need) in [(Bound::Soft, Need::Comfort), (Bound::Ceiling, Need::Room)] {
            let excess = self.ledger.excess(CARD, bound);
            let idle = eligible(self.idle(CARD), need);
            let all: u64 = idle.iter().map(|i| i.bytes).sum();
            if excess > 0 && all > 0 {
                self.evict(CARD, excess.min(all), need);
            }
        }
    }

    /// Lanes take batches while the devices have room for them.
    fn launch(&mut self) {
        let count = self.models.borrow().len();
        for model in 0..count {
            loop {
                let (ready, spare, cpu) = {
                    let models = self.models.borrow();
                    let m = &models[model];
                    let ready = m.state == State::Ready && m.queue.len() > 0;
                    let spare = m.lanes.len() < m.spec.lanes && m.queue.len() > m.lanes.len();
                    (ready, spare, m.spec.device != CARD)
                };
                if !ready || (cpu && self.cpu_kernels >= 4) || (!cpu && self.kernels >= KERNELS) {
                    break;
                }
                let free = |models: &[Model]| models[model].lanes.iter().position(|l| !l.busy);
                let mut lane = free(&self.models.borrow());
                if lane.is_none() && spare {
                    let first = self.models.borrow()[model].lanes.is_empty();
                    self.add_lane(model, first);
                    lane = free(&self.models.borrow());
                }
                let Some(lane) = lane else { break };
                if !self.start_batch(model, lane) {
                    break;
                }
            }
        }
    }

    fn start_batch(&mut self, model: usize, lane: usize) -> bool {
        let (mut items, footprint, device) = {
            let models = self.models.borrow();
            let m = &models[model];
            let items = m.batcher.size(self.scenario.batch).min(m.queue.len());
            (items, m.spec.footprint, m.spec.device)
        };
        // Room first.
        loop {
            let (had, outcome) = {
                let models = self.models.borrow();
                let own = &models[model].lanes[lane];
                if items <= own.items {
                    break;
                }
                if self.switches.largest_first && own.items > 1 {
                    // As the registry does: what smaller batches took goes before a larger one comes.
                    let _ = own.room.resize(footprint.lane_of(1), Bound::Ceiling);
                }
                let up = own.room.resize(footprint.lane_of(items), Bound::Ceiling);
                (own.items, up)
            };
            if self.switches.largest_first && had > 1 {
                let mut models = self.models.borrow_mut();
                models[model].lanes[lane].arena.clear();
                models[model].lanes[lane].items = 1;
            }
            match outcome {
                Ok(()) => {
                    let grown = self.grow(model, lane, had, items, device);
                    if !grown {
                        self.did_not_fit(model, lane, items);
                        return false;
                    }
                    break;
                }
                Err(shortage) => {
                    let more = shortage.missing.saturating_sub(shortage.coming);
                    if more == 0 || self.evict(device, more, Need::Room) {
                        // It is on its way.
                        return false;
                    }
                    if items == 1 {
                        return false;
                    }
                    let smaller = self.models.borrow_mut()[model].batcher.no_room_for(items);
                    items = smaller.min(items - 1).max(1);
                }
            }
        }
        let jobs: Vec<Job> = {
            let mut models = self.models.borrow_mut();
            std::iter::from_fn(|| models[model].queue.pop(|_| true))
                .take(items)
                .map(|q| q.job)
                .collect()
        };
        if jobs.iter().any(|j| j.difficult) && !self.widen(model, lane, device) {
            for job in &jobs {
                self.requeue(model, *job);
            }
            self.models.borrow_mut()[model].lanes[lane].busy = false;
            return false;
        }
        let mut models = self.models.borrow_mut();
        models[model].lanes[lane].busy = true;
        let (fixed, each) = models[model].spec.batch_s;
        drop(models);
        let seconds = fixed + each * jobs.len() as f64;
        if self.chains[VOICES].contains(&model) {
            self.enrol_s += seconds;
            self.enrol_batches += 1;
        }
        if device == CARD {
            self.kernels += 1;
        } else {
            self.cpu_kernels += 1;
        }
        self.batches.push((jobs, seconds));
        let batch = self.batches.len() - 1;
        self.after(seconds, Event::BatchDone { model, lane, batch });
        true
    }

    fn requeue(&mut self, model: usize, job: Job) {
        let job = Queued {
            stream: StreamId(job.element as u64 + 1),
            class: Class::File,
            deadline: None,
            seconds: 0.0,
            job,
            turn: 1,
        };
        self.models.borrow_mut()[model].queue.put_back(vec![job]);
    }

    /// The arena of a lane for a larger batch.
    fn grow(
        &mut self,
        model: usize,
        lane: usize,
        had: usize,
        items: usize,
        device: DeviceId,
    ) -> bool {
        let item = self.models.borrow()[model].spec.footprint.item_bytes;
        let bytes = item * (items as u64 - 1);
        // A doubling arena holds two and a half times what is used (registry.md 3.4).
        let bytes = if self.switches.exact_arena {
            bytes
        } else {
            bytes * 5 / 2
        };
        if !self.switches.largest_first && had == 1 {
            // One size after the other, each beside the pieces of those before: 2.4 times (registry.md 3.4).
            let Some(pieces) = self.take(device, bytes * 14 / 10) else {
                return false;
            };
            self.models.borrow_mut()[model].lanes[lane]
                .arena
                .extend(pieces);
        }
        let Some(blocks) = self.take(device, bytes) else {
            return false;
        };
        let mut models = self.models.borrow_mut();
        models[model].lanes[lane].arena.extend(blocks);
        models[model].lanes[lane].items = items;
        true
    }

    /// The cache of a lane for a temperature fallback: there from the start, unless a test has switched that off.
    fn widen(&mut self, model: usize, lane: usize, device: DeviceId) -> bool {
        let (wide, bytes) = {
            let models = self.models.borrow();
            let spec = &models[model].spec;
            let more = spec.footprint.lane_of(1) - spec.narrow_lane;
            (models[model].lanes[lane].wide, more)
        };
        if wide || self.switches.widest_cache {
            return true;
        }
        let Some(blocks) = self.take(device, bytes) else {
            return false;
        };
        let mut models = self.models.borrow_mut();
        models[model].lanes[lane].memory.extend(blocks);
        models[model].lanes[lane].wide = true;
        true
    }

    fn did_not_fit(&mut self, model: usize, lane: usize, items: usize) {
        let step = self.models.borrow_mut()[model].batcher.did_not_fit(items);
        match step {
            Step::Trim | Step::Rebuild => {
                let mut models = self.models.borrow_mut();
                let own = &mut models[model].lanes[lane];
                own.arena.clear();
                own.items = 1;
            }
            Step::Evict => {
                let all: u64 = self.idle(CARD).iter().map(|i| i.bytes).sum();
                self.evict(CARD, all.max(1), Need::Room);
            }
            Step::Halve(_) | Step::Cpu | Step::GiveUp => {}
        }
    }

    fn batch_done(&mut self, model: usize, lane: usize, batch: usize) {
        let (jobs, seconds) = std::mem::take(&mut self.batches[batch]);
        {
            let mut models = self.models.borrow_mut();
            if models[model].spec.device == CARD {
                self.kernels -= 1;
            } else {
                self.cpu_kernels -= 1;
            }
            models[model].lanes[lane].busy = false;
            models[model].batcher.done(jobs.len(), seconds);
        }
        for job in jobs {
            self.job_done(model, job.element);
        }
    }

    fn job_done(&mut self, model: usize, element: usize) {
        let chosen = self.chosen(element);
        let e = &mut self.elements[element];
        for (at, m) in chosen.iter().enumerate() {
            if *m == model {
                e.left[at] -= 1;
            }
        }
        if e.over || e.left.iter().any(|left| *left > 0) {
            return;
        }
        e.over = true;
        let video = e.video;
        let now = self.now();
        {
            let mut models = self.models.borrow_mut();
            for m in chosen {
                models[m].leases -= 1;
                models[m].idle_since = now;
            }
        }
        if self.elements.iter().any(|e| e.video == video && !e.over) {
            return;
        }
        // Then the voices of the video are enrolled.
        let enrolled = self
            .elements
            .iter()
            .any(|e| e.video == video && e.needs.contains(&ENROLMENT));
        if enrolled {
            self.report.done += 1;
            self.report.seconds = now.as_secs_f64();
            self.next_video();
        } else {
            let needs = [(ENROLMENT, SEGMENTS), (VOICES, SEGMENTS)];
            self.element(video, &needs);
        }
    }
}
