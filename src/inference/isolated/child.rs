// SPDX-License-Identifier: MPL-2.0
//! The worker as a process: found, started, killed, reaped.

use std::fmt;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::Pid;

use super::socket::Socket;
use crate::inference::EngineError;
use crate::inference::onnx::library;
use crate::inference::whisper_cpp::cuda;

/// The program's file.
pub(crate) const PROGRAM: &str = "scribe-worker";
/// Names the program and nothing else is tried.
const VARIABLE: &str = "SCRIBE_WORKER";
/// A process that has closed its sockets has this long to end by itself: its status says why it ended.
const LAST_BREATH: Duration = Duration::from_secs(3);
/// The end of our own process waits this long for its workers to be gone.
const END_PATIENCE: Duration = Duration::from_millis(300);
const POLL: Duration = Duration::from_millis(2);
/// Longest last words in bytes.
const MAX_WORDS: usize = 300;

/// Workers that live, so that the end of our process leaves none behind.
static LIVING: Mutex<Vec<Weak<Process>>> = Mutex::new(Vec::new());
/// Our process ends: no worker is started any more.
static ENDING: AtomicBool = AtomicBool::new(false);

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Where `scribe-worker` is: the file that `SCRIBE_WORKER` names; else beside the plugin or in `scribe/` there, in
/// `bin` under the same prefix, beside the running program or one folder up.
pub fn find() -> Result<PathBuf, EngineError> {
    if let Some(named) = std::env::var_os(VARIABLE).filter(|v| !v.is_empty()) {
        let named = PathBuf::from(named);
        // What a person named is used or refused, never passed over in silence.
        return if named.is_file() {
            Ok(named)
        } else {
            Err(EngineError::Runtime(format!(
                "{VARIABLE} names {}, and there is no such file: correct it, or unset it to use the one beside the plugin",
                named.display()
            )))
        };
    }
    let places = places();
    if let Some(found) = places.iter().find(|p| p.is_file()) {
        return Ok(found.clone());
    }
    let tried: Vec<String> = places.iter().map(|p| p.display().to_string()).collect();
    Err(EngineError::Runtime(format!(
        "{PROGRAM} is missing, and isolation=process needs it: install it with `make install`, name it in the \
         environment variable {VARIABLE}, or set isolation=in-process. Tried: {}",
        tried.join("; ")
    )))
}

fn places() -> Vec<PathBuf> {
    let mut out = Vec::new();
    for folder in library::folders() {
        out.push(folder.join(PROGRAM));
        out.push(folder.join("scribe").join(PROGRAM));
    }
    // PREFIX/lib/x86_64-linux-gnu/gstreamer-1.0, ~/.local/share/gstreamer-1.0/plugins: three folders up.
    if let Some(plugin) = library::plugin_folder() {
        out.extend(
            plugin
                .ancestors()
                .skip(1)
                .take(3)
                .map(|a| a.join("bin").join(PROGRAM)),
        );
    }
    let mut seen = std::collections::HashSet::new();
    out.retain(|path| seen.insert(path.clone()));
    out
}

/// Who ended a worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Cause {
    /// It itself: a crash, a way out, or something for which we had to kill it.
    Itself,
    /// Somebody outside, by a signal that no crash raises.
    Outside,
}

/// How long before its end a worker may have said that there is no memory for that to be why it ended.
const LAST_PLEA: Duration = Duration::from_secs(5);

/// What a worker has logged that may say why it is about to die.
#[derive(Debug, Default)]
pub(super) struct LastLog {
    line: Option<String>,
    /// When it last said that it found no memory.
    no_memory: Option<Instant>,
}

impl LastLog {
    pub(super) fn keep(&mut self, line: &str) {
        if is_about_memory(line) {
            self.no_memory = Some(Instant::now());
        }
        self.line = Some(line.to_owned());
    }
}

/// An engine that finds no memory on a card says so and ends its process.
fn is_about_memory(line: &str) -> bool {
    ["out of memory", "failed to allocate", "ALLOC_FAILED"]
        .iter()
        .any(|words| line.contains(words))
}

/// How a worker ended.
#[derive(Clone, Debug)]
pub(super) struct Death {
    pub(super) cause: Cause,
    /// It found no memory.
    pub(super) no_memory: bool,
    /// A half-sentence: "killed by signal 11 (SIGSEGV): its last words".
    text: String,
}

impl Death {
    /// Of a process whose end nobody has seen.
    pub(super) fn unseen() -> Self {
        Self {
            cause: Cause::Itself,
            no_memory: false,
            text: "for a reason that is not known".into(),
        }
    }

    /// `words` are its last, or a line of its log.
    fn new(status: Option<ExitStatus>, killed_for: Option<String>, words: Option<&str>) -> Self {
        let killed = killed_for.is_some();
        let signal = status.and_then(|s| s.signal());
        let outside = [
            libc_signal::HUP,
            libc_signal::INT,
            libc_signal::KILL,
            libc_signal::TERM,
        ];
        let cause = match (&killed_for, signal) {
            (None, Some(signal)) if outside.contains(&signal) => Cause::Outside,
            _ => Cause::Itself,
        };
        let mut text = match (killed_for, signal, status.and_then(|s| s.code())) {
            (Some(why), _, _) => format!("stopped because {why}"),
            (None, Some(signal), _) => {
                format!("killed by signal {signal}{}", libc_signal::name(signal))
            }
            (None, None, Some(code)) => format!("with exit status {code}"),
            (None, None, None) => return Self::unseen(),
        };
        if let Some(words) = words.filter(|w| !w.is_empty()) {
            text.push_str(": ");
            text.push_str(words);
        }
        let said = words.is_some_and(is_about_memory);
        Self {
            cause,
            no_memory: said && !killed && cause == Cause::Itself,
            text,
        }
    }
}

impl fmt::Display for Death {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// Numbers of signals, the same on all of Linux that we build for.
mod libc_signal {
    use rustix::process::Signal;

    pub(super) const HUP: i32 = Signal::HUP.as_raw();
    pub(super) const INT: i32 = Signal::INT.as_raw();
    pub(super) const KILL: i32 = Signal::KILL.as_raw();
    pub(super) const TERM: i32 = Signal::TERM.as_raw();

    /// " (SIGSEGV)", or nothing for one that tells nobody anything.
    pub(super) fn name(signal: i32) -> &'static str {
        let names = [
            (Signal::ABORT, " (SIGABRT)"),
            (Signal::BUS, " (SIGBUS)"),
            (Signal::FPE, " (SIGFPE)"),
            (Signal::HUP, " (SIGHUP)"),
            (Signal::ILL, " (SIGILL)"),
            (Signal::INT, " (SIGINT)"),
            (Signal::KILL, " (SIGKILL)"),
            (Signal::SEGV, " (SIGSEGV)"),
            (Signal::TERM, " (SIGTERM)"),
        ];
        names
            .iter()
            .find(|(known, _)| known.as_raw() == signal)
            .map_or("", |(_, name)| name)
    }
}

/// A started worker.
#[derive(Debug)]
pub(super) struct Process {
    pid: u32,
    child: Mutex<Child>,
    /// What it writes to stderr, which nobody but we reads, and only after its end: a pipe's worth at most.
    words: OwnedFd,
    /// Why we killed it.
    killed_for: Mutex<Option<String>>,
    /// A forked copy of our process must leave the worker alone.
    owner: Pid,
}

/// Starts `program` with one end of a socket as its standard input. To be called on a thread that stays: the kernel
/// kills the worker when the thread that started it ends.
pub(super) fn spawn(program: &Path) -> io::Result<(Arc<Process>, Socket)> {
    let (socket, theirs) = Socket::pair()?;
    // Full is full: a worker that has much to say must not wait for a reader who comes when it is dead.
    let (words, stderr) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
    let owner = rustix::process::getpid();
    // A card then has the number that we give it. Who has said otherwise is obeyed: it is found by its address.
    let order = Some(cuda::ORDER).filter(|(name, _)| std::env::var_os(name).is_none());
    let child = Command::new(program)
        .args(["--parent", &owner.as_raw_nonzero().to_string()])
        .env("GGML_NO_BACKTRACE", "1")
        .envs(order)
        .stdin(Stdio::from(theirs))
        .stdout(Stdio::null())
        .stderr(Stdio::from(stderr))
        // Ctrl-C in the terminal is for the application, which may want its last words.
        .process_group(0)
        .spawn()?;
    let process = Arc::new(Process {
        pid: child.id(),
        child: Mutex::new(child),
        words,
        killed_for: Mutex::default(),
        owner,
    });
    let mut living = lock(&LIVING);
    living.retain(|p| p.strong_count() > 0);
    living.push(Arc::downgrade(&process));
    drop(living);
    if ENDING.load(Ordering::SeqCst) {
        process.kill("the process ends");
    }
    Ok((process, socket))
}

impl Process {
    pub(super) fn pid(&self) -> u32 {
        self.pid
    }

    fn is_ours(&self) -> bool {
        rustix::process::getpid() == self.owner
    }

    /// Kills it, if it still lives. `why` completes "it was stopped because".
    pub(super) fn kill(&self, why: &str) {
        if !self.is_ours() {
            return;
        }
        let mut child = lock(&self.child);
        // One that is dead already has a reason of its own.
        if matches!(child.try_wait(), Ok(None)) {
            lock(&self.killed_for).get_or_insert_with(|| why.to_owned());
            // It may have ended since: what is not reaped cannot be another process yet.
            let _ = child.kill();
        }
    }

    /// Waits for its end, which must be near, and says how it was.
    pub(super) fn reap(&self, log: &LastLog) -> Death {
        let until = Instant::now() + LAST_BREATH;
        let mut status = self.try_wait();
        while status.is_none() && Instant::now() < until {
            std::thread::sleep(POLL);
            status = self.try_wait();
        }
        let status = status.unwrap_or_else(|| {
            self.kill("it closed its socket and went on");
            // Nothing survives this signal; a foreign `wait` may have taken the status.
            lock(&self.child).wait().ok()
        });
        let words = self.last_words();
        let killed_for = lock(&self.killed_for).take();
        let killed = killed_for.is_some();
        let words = words.as_deref().or(log.line.as_deref());
        let mut death = Death::new(status, killed_for, words);
        let said = log.no_memory.is_some_and(|at| at.elapsed() < LAST_PLEA);
        death.no_memory |= said && !killed && death.cause == Cause::Itself;
        death
    }

    /// Outer `None` while it lives; inner where somebody else has taken its status.
    fn try_wait(&self) -> Option<Option<ExitStatus>> {
        match lock(&self.child).try_wait() {
            Ok(None) => None,
            Ok(status) => Some(status),
            Err(_) => Some(None),
        }
    }

    /// The last line that it wrote to stderr: an assertion of ggml, an exception's name, a panic.
    fn last_words(&self) -> Option<String> {
        let mut written = Vec::new();
        let mut room = [0; 4096];
        // The other end is closed, or the pipe is not blocking: this ends.
        while let Ok(count @ 1..) = rustix::io::read(&self.words, &mut room) {
            written.extend_from_slice(&room[..count]);
        }
        let text = String::from_utf8_lossy(&written);
        let line = text.lines().map(str::trim).rfind(|l| !l.is_empty())?;
        let clean: String = line.chars().filter(|c| !c.is_control()).collect();
        Some(clean.chars().take(MAX_WORDS).collect())
    }
}

/// Process ids of the workers that live: what they hold is ours.
pub fn workers() -> Vec<u32> {
    let living = LIVING.lock().unwrap_or_else(PoisonError::into_inner);
    let living: Vec<Arc<Process>> = living.iter().filter_map(Weak::upgrade).collect();
    living.iter().map(|process| process.pid).collect()
}

/// Kills all workers and waits a moment until they are gone: our process is ending, and who inherits a zombie may
/// never look at it.
pub(in crate::inference) fn end_all() {
    ENDING.store(true, Ordering::SeqCst);
    // The thread that holds a lock may be one that will not run again.
    let Ok(living) = LIVING.try_lock() else {
        return;
    };
    let living: Vec<Arc<Process>> = living.iter().filter_map(Weak::upgrade).collect();
    let until = Instant::now() + END_PATIENCE;
    for process in living.iter().filter(|p| p.is_ours()) {
        loop {
            // Whoever holds this lock waits for the end of a process that was killed: he reaps it.
            if let Ok(mut child) = process.child.try_lock() {
                let _ = child.kill();
                if !matches!(child.try_wait(), Ok(None)) {
                    break;
                }
            }
            if Instant::now() >= until {
                return;
            }
            std::thread::sleep(POLL);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(raw: i32) -> Option<ExitStatus> {
        Some(ExitStatus::from_raw(raw))
    }

    #[test]
    fn a_death_is_told_by_its_signal_status_and_last_words() {
        let crash = Death::new(status(11), None, Some("GGML_ASSERT(x) failed"));
        let left = Death::new(status(3 << 8), None, None);
        let stopped = Death::new(status(9), Some("it gave no sign of life".into()), None);

        assert_eq!(
            crash.to_string(),
            "killed by signal 11 (SIGSEGV): GGML_ASSERT(x) failed"
        );
        assert_eq!(left.to_string(), "with exit status 3");
        assert_eq!(
            stopped.to_string(),
            "stopped because it gave no sign of life"
        );
        for death in [crash, left, stopped] {
            assert_eq!(death.cause, Cause::Itself, "{death}");
        }
    }

    #[test]
    fn a_death_for_want_of_memory_is_told_from_others() {
        let full = |raw, killed_for, words| Death::new(status(raw), killed_for, words).no_memory;
        let words = Some("CUDA error: out of memory");

        assert!(full(6, None, words));
        assert!(!full(6, None, Some("GGML_ASSERT(x) failed")));
        // Somebody else has ended it.
        assert!(!full(9, None, words));
        assert!(!full(9, Some("it gave no sign of life".into()), words));
    }

    #[test]
    fn a_kill_from_outside_is_no_crash() {
        for signal in [9, 15, 2, 1] {
            assert_eq!(
                Death::new(status(signal), None, None).cause,
                Cause::Outside,
                "{signal}"
            );
        }
    }
}
