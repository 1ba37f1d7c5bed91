// SPDX-License-Identifier: MPL-2.0
//! Keeps a worker running for one model: starts it, hears its log, sees its death, starts it again.
//!
//! A thread of its own, the supervisor, does all that. It must outlive the worker, because the kernel kills a child
//! whose parent has asked for that when the *thread* that started it ends. Nothing is started that nobody wants: a
//! worker that the system has killed for want of memory comes back with the next window, not before.
//!
//! One lock; it is not held while anything is waited for but its own condition.

use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::process::Pid;

use super::child::{self, Death, LastLog, Process};
use super::protocol::{Loaded, Message};
use super::slot::MAX_AREAS;
use super::socket::{Broken, Packet, Socket};
use super::{EngineSpec, IsolatedOptions};
use crate::inference::whisper_cpp::logging::{self, Level};
use crate::inference::{EngineError, ProcessStats};

/// How often somebody who waits looks around.
pub(super) const TICK: Duration = Duration::from_millis(20);
/// Most time that one look counts for. A process that was stopped, or whose machine slept or is so busy that we come
/// to look late, has given the worker no chance either.
const LONGEST_TICK: Duration = Duration::from_millis(100);
/// How long a lane that lost its worker waits for the supervisor to see why.
const DEATH_NOTICE: Duration = Duration::from_secs(1);
/// Slowest disk that a load is waited for, in bytes a second.
const SLOWEST_DISK: u64 = 50_000_000;

/// Counts the time in which nothing was heard.
pub(super) struct Patience {
    limit: Duration,
    spent: Duration,
    looked: Instant,
}

impl Patience {
    pub(super) fn new(limit: Duration) -> Self {
        Self {
            limit,
            spent: Duration::ZERO,
            looked: Instant::now(),
        }
    }

    /// Something was heard.
    pub(super) fn renew(&mut self) {
        self.spent = Duration::ZERO;
        self.looked = Instant::now();
    }

    pub(super) fn is_over(&mut self) -> bool {
        let now = Instant::now();
        self.spent += (now - self.looked).min(LONGEST_TICK);
        self.looked = now;
        self.spent >= self.limit
    }

    pub(super) fn limit(&self) -> Duration {
        self.limit
    }
}

/// A worker that has loaded the model.
pub(super) struct Worker {
    /// Counts starts, from 1.
    pub(super) generation: u64,
    pub(super) control: Socket,
    process: Arc<Process>,
}

enum Phase {
    /// None runs.
    Down,
    Starting,
    Up(Arc<Worker>),
    /// Given up, since then.
    Failed(EngineError, Instant),
}

struct State {
    phase: Phase,
    /// Somebody waits for a worker.
    wanted: bool,
    /// Nobody will want one any more.
    closing: bool,
    started: u64,
    process: Option<Arc<Process>>,
    failures: usize,
    failed_loads: u32,
    last_failure: Option<Instant>,
    last_death: Option<(u64, Death)>,
    loaded: Option<Loaded>,
    /// The model's files as they were when it was loaded, in the order of [`EngineSpec::files`].
    files: Vec<Option<FileIdentity>>,
}

/// A model's file at one moment: one that was replaced is another model.
#[derive(Clone, Debug, PartialEq)]
struct FileIdentity {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
}

impl FileIdentity {
    /// `None` where it cannot be told: the worker will say what is wrong with the file.
    fn of(path: &Path) -> Option<Self> {
        let meta = std::fs::metadata(path).ok()?;
        Some(Self {
            device: meta.dev(),
            inode: meta.ino(),
            size: meta.size(),
            modified: (meta.mtime(), meta.mtime_nsec()),
        })
    }
}

struct Shared {
    spec: EngineSpec,
    options: IsolatedOptions,
    state: Mutex<State>,
    changed: Condvar,
    /// What the longest of the last windows took, in milliseconds.
    window_ms: AtomicU64,
}

/// See the module. Dropped, it ends the worker and waits until it is gone.
pub(super) struct Host {
    shared: Arc<Shared>,
    supervisor: Option<JoinHandle<()>>,
    /// A forked copy of our process has no supervisor.
    owner: Pid,
}

/// How a worker's life ended.
enum End {
    /// It answered, or could not even be started.
    Refused(EngineError),
    Died(Death),
}

impl Host {
    /// Starts the first worker and waits until it has loaded the model.
    pub(super) fn start(
        spec: EngineSpec,
        options: IsolatedOptions,
    ) -> Result<(Arc<Self>, Loaded), EngineError> {
        let expected = spec.expected_window().as_millis();
        let shared = Arc::new(Shared {
            window_ms: AtomicU64::new(u64::try_from(expected).unwrap_or(u64::MAX)),
            spec,
            options,
            state: Mutex::new(State {
                phase: Phase::Down,
                wanted: false,
                closing: false,
                started: 0,
                process: None,
                failures: 0,
                failed_loads: 0,
                last_failure: None,
                last_death: None,
                loaded: None,
                files: Vec::new(),
            }),
            changed: Condvar::new(),
        });
        let own = Arc::clone(&shared);
        let supervisor = std::thread::Builder::new()
            .name("scribe-isolate".into())
            .spawn(move || own.supervise())
            .map_err(|e| EngineError::Failed {
                what: "starting a thread to watch scribe-worker".into(),
                why: e.to_string(),
            })?;
        let host = Arc::new(Self {
            shared,
            supervisor: Some(supervisor),
            owner: rustix::process::getpid(),
        });
        host.worker(0, &mut || false)?;
        let loaded = host.shared.state().loaded.clone();
        let loaded = loaded.ok_or(EngineError::Cancelled)?;
        Ok((host, loaded))
    }

    pub(super) fn spec(&self) -> &EngineSpec {
        &self.shared.spec
    }

    pub(super) fn options(&self) -> &IsolatedOptions {
        &self.shared.options
    }

    /// A worker that was started after the `after`th; waits for one. `unwanted` is asked meanwhile, without a lock:
    /// if it says so, the wait ends with [`EngineError::Cancelled`].
    pub(super) fn worker(
        &self,
        after: u64,
        unwanted: &mut dyn FnMut() -> bool,
    ) -> Result<Arc<Worker>, EngineError> {
        let shared = &self.shared;
        loop {
            let mut state = shared.state();
            match &state.phase {
                Phase::Up(worker) if worker.generation > after => return Ok(Arc::clone(worker)),
                Phase::Failed(error, since)
                    if state.loaded.is_none() || since.elapsed() < shared.options.settled_after =>
                {
                    return Err(error.clone());
                }
                Phase::Failed(..) => {
                    state.phase = Phase::Down;
                    state.failures = 0;
                    state.failed_loads = 0;
                }
                _ => {}
            }
            if !state.wanted {
                state.wanted = true;
                shared.changed.notify_all();
            }
            let waited = shared.changed.wait_timeout(state, TICK);
            drop(waited.unwrap_or_else(PoisonError::into_inner));
            if unwanted() {
                return Err(EngineError::Cancelled);
            }
        }
    }

    /// How `worker` died; kills it if it has not. `why` completes "it was stopped because".
    pub(super) fn lost(&self, worker: &Worker, broken: &Broken) -> Death {
        let noticed =
            (*broken == Broken::Closed).then(|| self.shared.death(worker.generation, DEATH_NOTICE));
        if let Some(Some(death)) = noticed {
            return death;
        }
        self.kill(worker, &broken.to_string())
    }

    /// Kills `worker` and says how it died: maybe of something else, just before.
    pub(super) fn kill(&self, worker: &Worker, why: &str) -> Death {
        worker.process.kill(why);
        // The kernel does not let it live; a machine that swaps may take its time.
        let patience = Duration::from_secs(60);
        self.shared
            .death(worker.generation, patience)
            .unwrap_or_else(Death::unseen)
    }

    /// How long a lane waits for a sign of life.
    pub(super) fn silence(&self) -> Duration {
        let options = &self.shared.options;
        let window = self.shared.window_ms.load(Ordering::Relaxed) as f64 / 1e3;
        let windows = window * f64::from(options.silence_windows);
        let windows = Duration::try_from_secs_f64(windows).unwrap_or(Duration::MAX);
        options.silence.max(windows)
    }

    /// How long a load, or the making of a lane, may take.
    pub(super) fn load_limit(&self) -> Duration {
        self.shared.load_limit()
    }

    /// A window took so long.
    pub(super) fn measured(&self, window: Duration) {
        let ms = u64::try_from(window.as_millis()).unwrap_or(u64::MAX);
        // Old ones fade: a machine that was busy once is not for ever.
        let fade = |old: u64| Some(ms.max(old - old / 4));
        let _ = self
            .shared
            .window_ms
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, fade);
    }

    pub(super) fn stats(&self) -> ProcessStats {
        let state = self.shared.state();
        ProcessStats {
            pid: state.process.as_ref().map(|p| p.pid()),
            restarts: state.started.saturating_sub(1),
        }
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        let supervisor = self.supervisor.take();
        if rustix::process::getpid() != self.owner {
            // Waiting for a thread that is not there would never end.
            return std::mem::forget(supervisor);
        }
        let process = {
            let mut state = self.shared.state();
            state.closing = true;
            state.process.clone()
        };
        self.shared.changed.notify_all();
        if let Some(process) = process {
            process.kill("nobody needs it any more");
        }
        if let Some(supervisor) = supervisor {
            let _ = supervisor.join();
        }
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn load_limit(&self) -> Duration {
        let length = |path: &Path| std::fs::metadata(path).map_or(0, |m| m.len());
        let bytes: u64 = self.spec.files().into_iter().map(length).sum();
        self.options.load_within + Duration::from_secs(bytes / SLOWEST_DISK)
    }

    /// How the `generation`th worker died, if that is known within `wait`.
    fn death(&self, generation: u64, wait: Duration) -> Option<Death> {
        let until = Instant::now() + wait;
        let mut state = self.state();
        loop {
            match &state.last_death {
                Some((dead, death)) if *dead >= generation => return Some(death.clone()),
                _ => {}
            }
            let left = until.checked_duration_since(Instant::now())?;
            state = self
                .changed
                .wait_timeout(state, left)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
    }

    fn supervise(&self) {
        while let Some(generation) = self.await_turn() {
            let mut log = LastLog::default();
            let (came_up, end) = match self.start(generation, &mut log) {
                Ok(worker) => {
                    let death = self.attend(&worker, &mut log);
                    (true, End::Died(death))
                }
                Err(end) => (false, end),
            };
            self.ended(generation, came_up, end);
        }
    }

    /// Waits until somebody wants a worker and the wait after the last failure is over. `None` to end.
    fn await_turn(&self) -> Option<u64> {
        let mut state = self.state();
        loop {
            if state.closing {
                return None;
            }
            let due = self.due(&state);
            let left = due.map(|due| due.saturating_duration_since(Instant::now()));
            if left.is_some_and(|left| left.is_zero()) {
                state.phase = Phase::Starting;
                state.wanted = false;
                state.started += 1;
                return Some(state.started);
            }
            state = match left {
                Some(left) => {
                    let waited = self.changed.wait_timeout(state, left);
                    waited.unwrap_or_else(PoisonError::into_inner).0
                }
                None => {
                    let waited = self.changed.wait(state);
                    waited.unwrap_or_else(PoisonError::into_inner)
                }
            };
        }
    }

    /// When to start a worker; `None` if nobody wants one.
    fn due(&self, state: &State) -> Option<Instant> {
        if !state.wanted || !matches!(state.phase, Phase::Down) {
            return None;
        }
        let now = Instant::now();
        let (Some(failure), Some(last)) = (state.failures.checked_sub(1), state.last_failure)
        else {
            return Some(now);
        };
        let waits = &self.options.backoff;
        let wait = waits.get(failure).or(waits.last());
        Some(last + wait.copied().unwrap_or_default())
    }

    /// Starts a worker and has it load the model.
    fn start(&self, generation: u64, log: &mut LastLog) -> Result<Arc<Worker>, End> {
        self.same_files().map_err(End::Refused)?;
        let program = match &self.options.program {
            Some(program) => program.clone(),
            None => child::find().map_err(End::Refused)?,
        };
        let (process, control) = child::spawn(&program).map_err(|e| {
            End::Refused(EngineError::Runtime(format!(
                "{} cannot be started: {e}. Install it anew, or set isolation=in-process",
                program.display()
            )))
        })?;
        {
            let mut state = self.state();
            state.process = Some(Arc::clone(&process));
            if state.closing {
                process.kill("nobody needs it any more");
            }
        }
        let loaded = self.load(&process, &control, log)?.map_err(|error| {
            process.kill("it has no model");
            process.reap(&LastLog::default());
            End::Refused(error)
        })?;
        let mut state = self.state();
        state.failed_loads = 0;
        state.loaded = Some(loaded);
        state.wanted = false;
        let worker = Arc::new(Worker {
            generation,
            control,
            process,
        });
        state.phase = Phase::Up(Arc::clone(&worker));
        drop(state);
        self.changed.notify_all();
        Ok(worker)
    }

    /// A model that was replaced while it was in use would go on with other words, or with none.
    fn same_files(&self) -> Result<(), EngineError> {
        let files = self.spec.files();
        let now: Vec<_> = files.iter().map(|path| FileIdentity::of(path)).collect();
        let mut state = self.state();
        if state.loaded.is_some()
            && let Some(other) = (0..files.len()).find(|n| state.files.get(*n) != now.get(*n))
        {
            return Err(EngineError::ModelFile {
                path: files[other].to_owned(),
                why: "it was replaced or removed while it was in use, and scribe-worker must read it again".into(),
            });
        }
        state.files = now;
        Ok(())
    }

    /// The first words with a worker. The outer error is that it died.
    fn load(
        &self,
        process: &Process,
        control: &Socket,
        log: &mut LastLog,
    ) -> Result<Result<Loaded, EngineError>, End> {
        let mut packet = Packet::new();
        let died = |broken: Broken, log: &LastLog| {
            if let Broken::Version(_) = broken {
                process.kill("it is of another build");
                process.reap(&LastLog::default());
                return End::Refused(EngineError::Runtime(format!(
                    "scribe-worker is of another build than the plugin ({broken}): install both together"
                )));
            }
            if broken != Broken::Closed {
                process.kill(&broken.to_string());
            }
            End::Died(process.reap(log))
        };
        let mut patience = Patience::new(self.options.hello_within);
        let mut loading = false;
        loop {
            let message = match control.receive(&mut packet, TICK) {
                Ok(message) => message,
                Err(broken) => return Err(died(broken, log)),
            };
            match message {
                Some(Message::Log { level, line }) => hear(level, &line, log),
                Some(Message::Hello { .. }) if !loading => {
                    loading = true;
                    patience = Patience::new(self.load_limit());
                    let ask = Message::Load {
                        spec: self.spec.clone(),
                        runtime: self.spec.runtime(),
                    };
                    if let Err(broken) = control.send(&ask, &[]) {
                        return Err(died(broken, log));
                    }
                }
                Some(Message::Loaded(outcome)) if loading => {
                    let possible =
                        |loaded: &Loaded| (1..=MAX_AREAS).contains(&loaded.info.max_batch);
                    match &outcome {
                        Ok(loaded) if !possible(loaded) => {
                            let broken = Broken::Garbage("it names an impossible batch".into());
                            return Err(died(broken, log));
                        }
                        _ => return Ok(outcome),
                    }
                }
                Some(_) => {
                    let broken = Broken::Garbage("it answers what nobody asked".into());
                    return Err(died(broken, log));
                }
                None if patience.is_over() => {
                    let what = if loading { "loading" } else { "starting" };
                    let limit = patience.limit().as_secs_f32();
                    process.kill(&format!("{what} took longer than {limit:.1} s"));
                    return Err(End::Died(process.reap(log)));
                }
                None => {}
            }
        }
    }

    /// Hears a worker's log until it dies.
    fn attend(&self, worker: &Worker, log: &mut LastLog) -> Death {
        let mut packet = Packet::new();
        loop {
            match worker
                .control
                .receive(&mut packet, Duration::from_secs(3600))
            {
                Ok(Some(Message::Log { level, line })) => hear(level, &line, log),
                Ok(None) => {}
                Ok(Some(_)) => worker.process.kill("it answers what nobody asked"),
                Err(Broken::Closed) => break,
                Err(broken) => {
                    worker.process.kill(&broken.to_string());
                    break;
                }
            }
        }
        worker.process.reap(log)
    }

    fn ended(&self, generation: u64, came_up: bool, end: End) {
        let now = Instant::now();
        let mut state = self.state();
        state.process = None;
        let settled = |last: Instant| now - last >= self.options.settled_after;
        if state.last_failure.is_none_or(settled) {
            state.failures = 0;
            state.failed_loads = 0;
        }
        state.failures += 1;
        state.last_failure = Some(now);
        if !came_up {
            state.failed_loads += 1;
        }
        let given_up = state.failed_loads >= self.options.most_failed_loads;
        state.phase = match &end {
            // The file is bad, or the program is missing: it will be so a second later. Once it has run, a
            // shortage of memory or a full process table may pass.
            End::Refused(error) if given_up || state.loaded.is_none() => {
                Phase::Failed(error.clone(), now)
            }
            End::Died(death) if given_up => {
                let what = format!("loading {} in scribe-worker", self.spec.name());
                let why = format!(
                    "it ended {} times, the last time {death}",
                    state.failed_loads
                );
                let error = if death.no_memory {
                    EngineError::OutOfMemory {
                        what: format!("{what} ({why})"),
                    }
                } else {
                    EngineError::Failed { what, why }
                };
                Phase::Failed(error, now)
            }
            _ => Phase::Down,
        };
        let death = match end {
            End::Died(death) => death,
            End::Refused(_) => Death::unseen(),
        };
        if !state.closing {
            logging::forward(Level::Warning, &format!("scribe-worker ended: {death}"));
        }
        state.last_death = Some((generation, death));
        drop(state);
        self.changed.notify_all();
    }
}

/// Hands a line on, and keeps it if it may say why the worker is about to die.
fn hear(level: Level, line: &str, log: &mut LastLog) {
    logging::forward(level, line);
    if matches!(level, Level::Warning | Level::Error) {
        log.keep(line);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_look_that_comes_late_counts_as_one_look() {
        let mut patience = Patience::new(LONGEST_TICK * 3);
        let hour = Duration::from_secs(3600);

        for _ in 0..2 {
            patience.looked = patience.looked.checked_sub(hour).unwrap_or(patience.looked);
            assert!(!patience.is_over());
        }
        patience.looked = patience.looked.checked_sub(hour).unwrap_or(patience.looked);

        assert!(patience.is_over());
        patience.renew();
        assert!(!patience.is_over());
    }
}
