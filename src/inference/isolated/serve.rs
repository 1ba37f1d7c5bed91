// SPDX-License-Identifier: MPL-2.0
//! The worker's half: what `scribe-worker` does from its first step to its last.
//!
//! Its standard input is the control socket. Each lane is a thread that runs the engine and asks the plugin for
//! windows. The worker has no state that anybody would miss: it ends itself, at once, when the plugin is gone.

#![allow(unsafe_code)]

use std::cell::{Cell, RefCell};
use std::ffi::{c_int, c_uint};
use std::fmt;
use std::io::IsTerminal;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, OnceLock};

use rustix::process::{Pid, Resource, Rlimit, Signal};

use super::EngineSpec;
use super::protocol::{Job, Loaded, Message};
use super::slot::Slot;
use super::socket::{Broken, Packet, Socket};
use crate::inference::onnx::Runtime;
use crate::inference::whisper_cpp::logging;
use crate::inference::{
    BatchParams, CancelToken, Decoded, EngineError, ResultSink, SpeechModel, SpeechToText, Window,
    WindowId, WindowSource, pages, whisper,
};

/// whisper.cpp's tokeniser recurses over the prompt.
const LANE_STACK_BYTES: usize = 8 << 20;
/// Added to what our parent has, of at most 1000: the system takes memory from us before it does from the application.
const OOM_SCORE: i32 = 500;

/// Where log lines go.
static CONTROL: OnceLock<Arc<Socket>> = OnceLock::new();

/// Why a worker cannot do its work.
#[derive(Debug)]
pub enum Refusal {
    /// Nobody is there to give it any: it was started by hand, or its parent is gone.
    Alone,
    /// The system does not let it.
    System(String),
    /// What the plugin says makes no sense.
    Plugin(String),
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Alone => f.write_str(
                "scribe-worker does nothing by itself: the plugin scribe starts it for scribetranscriber \
                 isolation=process, and talks to it over a socket",
            ),
            Self::System(why) => write!(f, "scribe-worker cannot run: {why}"),
            Self::Plugin(why) => write!(f, "scribe-worker does not understand the plugin: {why}"),
        }
    }
}

/// Loads what a worker is asked for.
pub type Load = dyn Fn(&EngineSpec) -> Result<Arc<dyn SpeechModel>, EngineError>;

/// Serves the process `parent`, which has started this one with a socket as its standard input. Returns only if
/// there is nothing to be served; ends the process when the plugin goes.
pub fn serve(parent: i32, load: &Load) -> Refusal {
    match try_serve(parent, load) {
        Ok(never) => match never {},
        Err(refusal) => refusal,
    }
}

enum Never {}

fn try_serve(parent: i32, load: &Load) -> Result<Never, Refusal> {
    let control = control()?;
    harden(parent)?;
    let control = CONTROL.get_or_init(|| Arc::new(control));
    logging::set_sink(|level, line| {
        if let Some(control) = CONTROL.get() {
            control.offer(&Message::Log {
                level,
                line: line.to_owned(),
            });
        }
    });
    end_on_panic();

    let mut packet = Packet::new();
    send(
        control,
        &Message::Hello {
            build: env!("CARGO_PKG_VERSION").into(),
        },
    );
    let (spec, runtime) = match next(control, &mut packet)? {
        (Message::Load { spec, runtime }, _) => (spec, runtime),
        _ => return Err(unasked()),
    };
    let ready = runtime.map_or(Ok(()), Runtime::adopt);
    let loaded = ready.and_then(|()| load(&spec));
    let outcome = loaded.as_ref().map(|model| Loaded {
        info: model.info().clone(),
        languages: whisper::languages()
            .filter(|code| model.knows_language(code))
            .map(str::to_owned)
            .collect(),
    });
    send(control, &Message::Loaded(outcome.map_err(Clone::clone)));
    let model = match loaded {
        Ok(model) => model,
        // The plugin has its reason and ends us.
        Err(_) => wait_for_the_end(control, &mut packet),
    };
    loop {
        let (Message::OpenLane { areas }, descriptors) = next(control, &mut packet)? else {
            return Err(unasked());
        };
        let [socket, memory]: [OwnedFd; 2] = descriptors
            .try_into()
            .map_err(|_| Refusal::Plugin("a lane without its two descriptors".into()))?;
        let slot =
            Slot::open(memory, areas as usize).map_err(|e| Refusal::Plugin(e.to_string()))?;
        let model = Arc::clone(&model);
        let lane = move || {
            Lane::new(Socket::of_worker(socket), slot).serve(&*model);
            pages::give_back();
        };
        std::thread::Builder::new()
            .name("lane".into())
            .stack_size(LANE_STACK_BYTES)
            .spawn(lane)
            .map_err(|e| Refusal::System(format!("no thread to be had for a lane: {e}")))?;
    }
}

fn unasked() -> Refusal {
    Refusal::Plugin("it sent something else than was due".into())
}

/// Our standard input, if it is what the plugin makes it.
fn control() -> Result<Socket, Refusal> {
    use rustix::net::{AddressFamily, SocketType, sockopt};
    let stdin = std::io::stdin();
    let is_ours = !stdin.is_terminal()
        && sockopt::socket_type(&stdin) == Ok(SocketType::SEQPACKET)
        && sockopt::socket_domain(&stdin) == Ok(AddressFamily::UNIX);
    if !is_ours {
        return Err(Refusal::Alone);
    }
    close_inherited();
    let own = stdin.as_fd().try_clone_to_owned();
    own.map(Socket::of_worker)
        .map_err(|e| Refusal::System(e.to_string()))
}

/// Closes what the application has open and has not marked as its own: nothing of ours is open yet.
fn close_inherited() {
    unsafe extern "C" {
        fn close_range(first: c_uint, last: c_uint, flags: c_int) -> c_int;
    }
    // SAFETY: a system call without pointers. No object of this process owns a descriptor above stderr so early. An old
    // kernel refuses, and they stay open.
    unsafe { close_range(3, c_uint::MAX, 0) };
}

/// Ends with the plugin, leaves no core of gigabytes, dies before the application where memory is short, and gains no
/// rights.
fn harden(parent: i32) -> Result<(), Refusal> {
    let system = |e: rustix::io::Errno| Refusal::System(e.to_string());
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL)).map_err(system)?;
    // It may have gone before we asked. (Its socket would tell, too, but for copies that a fork has left.)
    let now = rustix::process::getppid().map(Pid::as_raw_pid);
    if now != Some(parent) {
        return Err(Refusal::Alone);
    }
    rustix::thread::set_no_new_privs(true).map_err(system)?;
    let none = Rlimit {
        current: Some(0),
        maximum: Some(0),
    };
    rustix::process::setrlimit(Resource::Core, none).map_err(system)?;
    // Where /proc is not there or does not let us, it is as it was.
    let score = "/proc/self/oom_score_adj";
    let inherited = std::fs::read_to_string(score).ok();
    let inherited: i32 = inherited.and_then(|s| s.trim().parse().ok()).unwrap_or(0);
    let _ = std::fs::write(score, (inherited + OOM_SCORE).min(1000).to_string());
    Ok(())
}

/// A panic is a crash: the plugin does the window again in a new worker. Its text is our last words.
fn end_on_panic() {
    std::panic::set_hook(Box::new(|info| {
        let text = info.payload_as_str().unwrap_or("something");
        let at = info
            .location()
            .map_or(String::new(), |l| format!(" at {l}"));
        last_words(&format!("panicked{at}: {text}"));
        std::process::abort();
    }));
}

/// To stderr, which the plugin reads when we are dead.
fn last_words(text: &str) {
    let line = format!("{}\n", text.replace('\n', " "));
    // Nobody is left to be told that it did not work.
    let _ = rustix::io::write(rustix::stdio::stderr(), line.as_bytes());
}

/// Ends this process there and then: lanes may be inside an engine, whose destructors must not run under them.
fn end() -> ! {
    let _ = rustix::process::kill_process(rustix::process::getpid(), Signal::KILL);
    std::process::abort()
}

/// Sends on the control socket; without a plugin there is no use in going on.
fn send(control: &Socket, message: &Message) {
    if control.send(message, &[]).is_err() {
        end();
    }
}

fn next(control: &Socket, packet: &mut Packet) -> Result<(Message, Vec<OwnedFd>), Refusal> {
    match control.wait(packet) {
        Ok(received) => Ok(received),
        Err(Broken::Closed) => end(),
        Err(other) => Err(Refusal::Plugin(other.to_string())),
    }
}

fn wait_for_the_end(control: &Socket, packet: &mut Packet) -> ! {
    while control.wait(packet).is_ok() {}
    end()
}

/// The worker's half of a lane. Its engine sees it as source and as sink.
struct Lane {
    socket: Socket,
    slot: Arc<Slot>,
    packet: RefCell<Packet>,
    /// The plugin has closed the lane, or makes no sense: the run comes to its end.
    over: Cell<bool>,
}

impl Lane {
    fn new(socket: Socket, slot: Slot) -> Self {
        Self {
            socket,
            slot: Arc::new(slot),
            packet: RefCell::new(Packet::new()),
            over: Cell::new(false),
        }
    }

    fn serve(&self, model: &dyn SpeechModel) {
        let mut engine = match model.lane() {
            Ok(engine) => engine,
            Err(error) => return self.send(&Message::LaneReady(Err(error))),
        };
        self.send(&Message::LaneReady(Ok(())));
        while let Some(message) = self.next() {
            let Message::Run(params) = message else {
                return;
            };
            let outcome = self.run(&mut *engine, &params);
            if outcome.is_err() {
                // What it has taken is free before the plugin asks for another.
                drop(engine);
                return self.send(&Message::Done(outcome));
            }
            self.send(&Message::Done(outcome));
        }
    }

    fn run(&self, engine: &mut dyn SpeechToText, params: &BatchParams) -> Result<(), EngineError> {
        engine.run(&mut Windows(self), &mut Answers(self), params)
    }

    fn send(&self, message: &Message) {
        if self.socket.send(message, &[]).is_err() {
            self.over.set(true);
        }
    }

    /// The next message; `None` once there can be none.
    fn next(&self) -> Option<Message> {
        if self.over.get() {
            return None;
        }
        let received = self.socket.wait(&mut self.packet.borrow_mut());
        self.over.set(received.is_err());
        received.ok().map(|(message, _)| message)
    }

    fn window(&self, job: Job) -> Option<Window> {
        let Job {
            job,
            area,
            samples,
            language,
            task,
            prompt,
            vocabulary,
            prefix,
            most_tokens,
        } = job;
        let area = area as usize;
        let samples = self.slot.read(area, samples as usize)?;
        let slot = Arc::clone(&self.slot);
        Some(Window {
            id: job,
            samples: samples.into(),
            language,
            task,
            prompt,
            vocabulary,
            prefix,
            most_tokens,
            cancel: CancelToken::asking(move || slot.look(area, job)),
        })
    }
}

struct Windows<'a>(&'a Lane);

impl WindowSource for Windows<'_> {
    fn next(&mut self) -> Option<Window> {
        self.0.send(&Message::Next);
        let window = match self.0.next()? {
            Message::NoMore => return None,
            Message::Window(job) => self.0.window(job),
            _ => None,
        };
        self.0.over.set(window.is_none());
        window
    }
}

struct Answers<'a>(&'a Lane);

impl ResultSink for Answers<'_> {
    fn push(&mut self, id: WindowId, result: Result<Decoded, EngineError>) {
        let answer = Message::Answer { job: id, result };
        if let Err(Broken::Garbage(why)) = self.0.socket.send(&answer, &[]) {
            // Our own message is too long.
            self.0.send(&Message::Answer {
                job: id,
                result: Err(EngineError::Failed {
                    what: "handing on a text".into(),
                    why,
                }),
            });
        }
    }
}
