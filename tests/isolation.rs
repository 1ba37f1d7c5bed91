// SPDX-License-Identifier: MPL-2.0
//! Speech models in `scribe-worker`: what may happen to a worker, and that nobody notices.
//!
//! Most tests bring an engine of their own. Each is two programs in one: started by the test runner it asks for
//! windows to be decoded; started by the plugin's code as the worker, by the same name, it decodes them and does
//! what the test says.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]
#![allow(clippy::print_stdout, reason = "figures for who asks for them")]

mod common;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, VecDeque};
use std::io::{BufRead, BufReader, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::rc::Rc;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};

use common::{GUARD, eventually, onnx_encoder, onnx_spec, plugin, repository, runs, there};
use gst::prelude::*;
use gstscribe::audio::SampleIndex;
use gstscribe::inference::isolated::protocol::{HEADER, Job, Loaded, MAX_MESSAGE, Message};
use gstscribe::inference::isolated::{
    EngineSpec, IsolatedModel, IsolatedOptions, Isolation, serve, set_options,
};
use gstscribe::inference::manifest::Export;
use gstscribe::inference::onnx::arena::set_arena_cap;
use gstscribe::inference::onnx::whisper::optimum::OptimumSpec;
use gstscribe::inference::onnx::whisper::{OnnxWhisperModel, OnnxWhisperSpec};
use gstscribe::inference::onnx::{Runtime, library};
use gstscribe::inference::whisper_cpp::WhisperCppSpec;
use gstscribe::inference::whisper_cpp::logging::Level;
use gstscribe::inference::{
    BatchParams, CancelToken, Decoded, EngineError, Language, ResultSink, SpeechModel,
    SpeechModelInfo, SpeechToText, Token, Window, WindowId, WindowSource,
};
use gstscribe::registry::{Kind, Registry, Whisper, WhisperSpec};
use gstscribe::transcribe::file::{Models, Session, SessionParams, speech_spec, vad_spec};
use gstscribe::transcript::Task;
use proptest::prelude::*;
use rustix::process::{Pid, Signal, kill_process};

// A worker with an engine of the test's own.

/// Says to a process that it is a worker, and whose.
const PARENT: &str = "SCRIBE_TEST_WORKER_OF";
/// A folder that test and worker share.
const SHARED: &str = "SCRIBE_TEST_SHARED";
/// Makes a process play a part other than test and worker.
const PART: &str = "SCRIBE_TEST_PART";

/// Decodes windows as the test says.
struct Scripted<F> {
    info: SpeechModelInfo,
    answer: Arc<F>,
}

struct ScriptedLane<F>(Arc<F>);

impl<F> SpeechModel for Scripted<F>
where
    F: Fn(&Window) -> Result<Decoded, EngineError> + Send + Sync + 'static,
{
    fn info(&self) -> &SpeechModelInfo {
        &self.info
    }

    fn knows_language(&self, code: &str) -> bool {
        code == "en"
    }

    fn lane(&self) -> Result<Box<dyn SpeechToText>, EngineError> {
        Ok(Box::new(ScriptedLane(Arc::clone(&self.answer))))
    }
}

impl<F> SpeechToText for ScriptedLane<F>
where
    F: Fn(&Window) -> Result<Decoded, EngineError> + Send + Sync + 'static,
{
    fn run(
        &mut self,
        source: &mut dyn WindowSource,
        sink: &mut dyn ResultSink,
        _params: &BatchParams,
    ) -> Result<(), EngineError> {
        // Takes as many as it may before it answers the first.
        let windows: Vec<Window> = std::iter::from_fn(|| source.next()).take(BATCH).collect();
        for window in windows {
            match (self.0)(&window) {
                Err(error @ EngineError::OutOfMemory { .. }) => return Err(error),
                result => sink.push(window.id, result),
            }
        }
        Ok(())
    }
}

/// Windows that the scripted engine takes at once.
const BATCH: usize = 4;

/// Becomes the worker if that is what this process is for. In the test itself, gives the options to start one.
fn worker<F>(test: &str, answer: F) -> Rig
where
    F: Fn(&Window) -> Result<Decoded, EngineError> + Send + Sync + 'static,
{
    if let Some(parent) = std::env::var(PARENT).ok().and_then(|p| p.parse().ok()) {
        let answer = Arc::new(answer);
        let refusal = serve::serve(parent, &move |spec: &EngineSpec| {
            let EngineSpec::WhisperCpp(spec) = spec else {
                unreachable!("there is no other");
            };
            let info = SpeechModelInfo {
                name: spec.name.clone(),
                engine: "scripted".into(),
                multilingual: false,
                weight_bytes: 1,
                max_batch: BATCH,
                default_beam: 4,
                word_time_offset: 0,
                layout: gstscribe::inference::Layout::Ggml,
                word_times: true,
                takes_prefix: true,
            };
            Ok(Arc::new(Scripted {
                info,
                answer: Arc::clone(&answer),
            }))
        });
        panic!("{refusal}");
    }
    let folder = tempfile::tempdir().unwrap();
    let program = script(
        folder.path(),
        &format!(
            "{SHARED}={} {PARENT}=$2 exec {} --exact {test} --nocapture",
            folder.path().display(),
            std::env::current_exe().unwrap().display()
        ),
    );
    Rig {
        options: quick(program),
        folder,
    }
}

/// A program of the shell's. Another process writes it: while ours has it open, a child that another test forks has
/// it open too, and it cannot be run.
fn script(folder: &Path, line: &str) -> PathBuf {
    let path = folder.join("worker.sh");
    let mut sh = Command::new("sh")
        .args(["-c", "cat >\"$0\" && chmod 755 \"$0\""])
        .arg(&path)
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    let text = format!("#!/bin/sh\n{line}\n");
    sh.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    assert!(sh.wait().unwrap().success());
    path
}

/// Limits for tests: no wait before a start, and no patience with a worker that is silent.
fn quick(program: PathBuf) -> IsolatedOptions {
    IsolatedOptions {
        program: Some(program),
        backoff: vec![Duration::ZERO],
        silence: Duration::from_secs(3),
        silence_windows: 0.0,
        ..IsolatedOptions::default()
    }
}

struct Rig {
    options: IsolatedOptions,
    folder: tempfile::TempDir,
}

impl Rig {
    fn load(&self) -> IsolatedModel {
        IsolatedModel::load_with(spec("scripted"), self.options.clone()).unwrap()
    }

    fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }
}

/// In a worker: whether this is the first time, in any worker of the test, that `what` is asked for.
fn first_time(what: &str) -> bool {
    let folder = std::env::var_os(SHARED).unwrap();
    let made = std::fs::File::create_new(Path::new(&folder).join(what));
    made.is_ok()
}

fn shared(name: &str) -> PathBuf {
    Path::new(&std::env::var_os(SHARED).unwrap()).join(name)
}

fn spec(name: &str) -> EngineSpec {
    EngineSpec::WhisperCpp(whisper_cpp(Path::new("/nowhere/scripted.bin"), name))
}

fn whisper_cpp(path: &Path, name: &str) -> WhisperCppSpec {
    WhisperCppSpec {
        path: path.to_owned(),
        name: name.to_owned(),
        cuda_device: None,
        threads: 1,
        word_times: true,
        word_time_offset: 0,
    }
}

fn says(text: &str) -> Result<Decoded, EngineError> {
    Ok(Decoded {
        tokens: vec![Token {
            id: 1,
            bytes: text.as_bytes().to_vec(),
            probability: 1.0,
            start: None,
            end: None,
        }],
        language: "en".into(),
        ..Decoded::default()
    })
}

fn text(decoded: &Decoded) -> String {
    let bytes: Vec<u8> = decoded
        .tokens
        .iter()
        .flat_map(|t| t.bytes.clone())
        .collect();
    String::from_utf8(bytes).unwrap()
}

/// A second of sound that an engine can tell from others.
fn window(id: WindowId, level: f32) -> Window {
    Window {
        id,
        samples: vec![level; 16_000].into(),
        language: Language::Fixed("en".into()),
        task: Task::Transcribe,
        prompt: String::new(),
        vocabulary: Vec::new(),
        prefix: Vec::new(),
        most_tokens: 0,
        cancel: CancelToken::new(),
    }
}

struct Given(std::vec::IntoIter<Window>);

impl WindowSource for Given {
    fn next(&mut self) -> Option<Window> {
        self.0.next()
    }
}

#[derive(Default)]
struct Got(Vec<(WindowId, Result<Decoded, EngineError>)>);

impl ResultSink for Got {
    fn push(&mut self, id: WindowId, result: Result<Decoded, EngineError>) {
        self.0.push((id, result));
    }
}

/// What a lane does, in order: `+7` where it takes window 7, `-7` where it answers it.
#[derive(Default)]
struct Log {
    order: Vec<String>,
    answers: BTreeMap<WindowId, Result<Decoded, EngineError>>,
    /// Called with the number of each window that was answered.
    after: After,
}

struct After(Box<dyn FnMut(WindowId)>);

impl Default for After {
    fn default() -> Self {
        Self(Box::new(|_| {}))
    }
}

impl Log {
    fn texts(&self) -> Vec<String> {
        let answers = self.answers.values();
        answers.map(|a| text(a.as_ref().unwrap())).collect()
    }
}

/// Windows for a lane; `None` is told as none for now.
struct Logged<'a>(&'a RefCell<Log>, VecDeque<Option<Window>>);

impl WindowSource for Logged<'_> {
    fn next(&mut self) -> Option<Window> {
        let window = self.1.pop_front()??;
        self.0.borrow_mut().order.push(format!("+{}", window.id));
        Some(window)
    }
}

struct LoggedSink<'a>(&'a RefCell<Log>);

impl ResultSink for LoggedSink<'_> {
    fn push(&mut self, id: WindowId, result: Result<Decoded, EngineError>) {
        let mut log = self.0.borrow_mut();
        log.order.push(format!("-{id}"));
        let before = log.answers.insert(id, result);
        assert!(before.is_none(), "window {id} was answered twice");
        (log.after.0)(id);
    }
}

/// What a lane does of these windows, and what it answers.
fn logged(
    lane: &mut dyn SpeechToText,
    windows: impl IntoIterator<Item = Option<Window>>,
    after: impl FnMut(WindowId) + 'static,
) -> Log {
    let log = RefCell::new(Log {
        after: After(Box::new(after)),
        ..Log::default()
    });
    let mut source = Logged(&log, windows.into_iter().collect());
    lane.run(&mut source, &mut LoggedSink(&log), &BatchParams::default())
        .unwrap();
    assert!(source.1.is_empty());
    log.into_inner()
}

/// Runs windows through a lane; their texts or errors, by number.
fn run(
    lane: &mut dyn SpeechToText,
    windows: Vec<Window>,
) -> Vec<(WindowId, Result<String, String>)> {
    let mut got = Got::default();
    lane.run(
        &mut Given(windows.into_iter()),
        &mut got,
        &BatchParams::default(),
    )
    .unwrap();
    let mut out: Vec<_> = got
        .0
        .into_iter()
        .map(|(id, result)| (id, result.map(|d| text(&d)).map_err(|e| e.to_string())))
        .collect();
    out.sort_by_key(|(id, _)| *id);
    out
}

fn ok(id: WindowId, text: &str) -> (WindowId, Result<String, String>) {
    (id, Ok(text.to_owned()))
}

fn pid(model: &IsolatedModel) -> Pid {
    let pid = model.process().unwrap().pid.expect("a worker runs");
    Pid::from_raw(pid as i32).unwrap()
}

/// Whether a process is there and more than a zombie.
fn lives(pid: i32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let state = stat.rsplit(") ").next().and_then(|s| s.chars().next());
    state.is_some_and(|s| s != 'Z' && s != 'X')
}

// What a worker may do to us.

#[test]
fn samples_prompt_and_text_cross_whole() {
    let rig = worker("samples_prompt_and_text_cross_whole", |window| {
        let sum: f64 = window.samples.iter().map(|s| f64::from(*s)).sum();
        let Window {
            language,
            task,
            prompt,
            vocabulary,
            ..
        } = window;
        says(&format!(
            "{sum} {language:?} {task:?} {prompt} {vocabulary:?}"
        ))
    });
    let model = rig.load();
    let mut lane = model.lane().unwrap();
    let mut second = window(2, 0.5);
    second.samples = (0..464_000)
        .map(|n| (n % 2) as f32)
        .collect::<Vec<_>>()
        .into();
    second.language = Language::Auto;
    second.task = Task::Translate;
    second.prompt = "Größe".into();
    second.vocabulary = vec!["Ada".into(), "Lovelace".into()];

    let got = run(&mut *lane, vec![window(1, 0.5), second, window(3, 0.25)]);

    assert_eq!(
        got,
        [
            ok(1, "8000 Fixed(\"en\") Transcribe  []"),
            ok(2, "232000 Auto Translate Größe [\"Ada\", \"Lovelace\"]"),
            ok(3, "4000 Fixed(\"en\") Transcribe  []"),
        ]
    );
    assert_eq!(model.info().max_batch, BATCH);
}

#[test]
fn a_window_on_which_workers_crash_fails_after_the_third_and_the_others_are_done() {
    let rig = worker(
        "a_window_on_which_workers_crash_fails_after_the_third_and_the_others_are_done",
        |window| {
            if window.samples[0] == 0.75 {
                let seen = std::fs::read(shared("tries")).unwrap_or_default();
                std::fs::write(shared("tries"), [seen, vec![b'x']].concat()).unwrap();
                std::process::abort();
            }
            says("fine")
        },
    );
    let model = rig.load();
    let mut lane = model.lane().unwrap();

    let got = run(
        &mut *lane,
        vec![
            window(1, 0.5),
            window(2, 0.75),
            window(3, 0.5),
            window(4, 0.5),
        ],
    );

    assert_eq!(
        [&got[0], &got[2], &got[3]],
        [&ok(1, "fine"), &ok(3, "fine"), &ok(4, "fine")]
    );
    let error = got[1].1.clone().unwrap_err();
    assert!(
        error.contains("1.0 s of sound through scripted") && error.contains("3 times"),
        "{error}"
    );
    assert!(error.contains("signal 6 (SIGABRT)"), "{error}");
    assert_eq!(std::fs::read(rig.file("tries")).unwrap(), b"xxx");
}

#[test]
fn of_a_batch_whose_worker_is_killed_each_window_is_done_once_more_but_those_that_were_answered() {
    let rig = worker(
        "of_a_batch_whose_worker_is_killed_each_window_is_done_once_more_but_those_that_were_answered",
        |window| {
            let level = window.samples[0];
            let tried = std::fs::read_to_string(shared("tried")).unwrap_or_default();
            std::fs::write(shared("tried"), format!("{tried}{level} ")).unwrap();
            // The third is what the worker is in when it is killed.
            if level == 0.75 && first_time("killed") {
                loop {
                    std::thread::sleep(Duration::from_millis(1));
                }
            }
            says(&level.to_string())
        },
    );
    let model = rig.load();
    let mut lane = model.lane().unwrap();
    let worker = pid(&model);
    let entered = rig.file("killed");
    let windows = [0.25, 0.5, 0.75, 1.0].into_iter().zip(1..);

    let windows = windows.map(|(level, id)| Some(window(id, level)));
    let log = logged(&mut *lane, windows, move |id| {
        if id == 2 {
            eventually("the worker is in the third", || entered.exists());
            kill_process(worker, Signal::KILL).unwrap();
        }
    });

    let order = ["+1", "+2", "+3", "+4", "-1", "-2", "-3", "-4"];
    assert_eq!(log.order, order);
    assert_eq!(log.texts(), ["0.25", "0.5", "0.75", "1"]);
    let tried = std::fs::read_to_string(rig.file("tried")).unwrap();
    assert_eq!(tried, "0.25 0.5 0.75 0.75 1 ");
    assert_eq!(model.process().unwrap().restarts, 1);
}

#[test]
fn an_engine_without_memory_leaves_its_windows_unanswered_and_the_lane_is_of_use_again() {
    let rig = worker(
        "an_engine_without_memory_leaves_its_windows_unanswered_and_the_lane_is_of_use_again",
        |window| {
            if window.samples[0] == 0.75 {
                return Err(EngineError::OutOfMemory {
                    what: "a step".into(),
                });
            }
            says("fine")
        },
    );
    let model = rig.load();
    let mut lane = model.lane().unwrap();

    let (mut source, mut sink) = (
        Given(vec![window(1, 0.5), window(2, 0.75), window(3, 0.5)].into_iter()),
        Got::default(),
    );
    let outcome = lane.run(&mut source, &mut sink, &BatchParams::default());

    let error = outcome.unwrap_err();
    assert!(matches!(error, EngineError::OutOfMemory { .. }), "{error}");
    // The registry makes room and asks again for the two that are left.
    assert_eq!(sink.0.len(), 1);
    assert_eq!(sink.0[0].0, 1);
    assert_eq!(run(&mut *lane, vec![window(3, 0.5)]), [ok(3, "fine")]);
    assert_eq!(model.process().unwrap().restarts, 0);
}

#[test]
fn a_worker_that_finds_no_memory_twice_is_out_of_memory_and_its_windows_have_no_answer() {
    let rig = worker(
        "a_worker_that_finds_no_memory_twice_is_out_of_memory_and_its_windows_have_no_answer",
        |window| {
            if window.samples[0] == 0.75 {
                let seen = std::fs::read(shared("tries")).unwrap_or_default();
                std::fs::write(shared("tries"), [seen, vec![b'x']].concat()).unwrap();
                // As ggml does on a full card.
                eprintln!("CUDA error: out of memory");
                std::process::abort();
            }
            says("fine")
        },
    );
    let model = rig.load();
    let mut lane = model.lane().unwrap();

    let (mut source, mut sink) = (Given(vec![window(1, 0.75)].into_iter()), Got::default());
    let outcome = lane.run(&mut source, &mut sink, &BatchParams::default());

    let error = outcome.unwrap_err();
    assert!(matches!(error, EngineError::OutOfMemory { .. }), "{error}");
    assert!(error.to_string().contains("out of memory"), "{error}");
    assert!(sink.0.is_empty());
    assert_eq!(std::fs::read(rig.file("tries")).unwrap(), b"xx");
    // It is of use again once there is memory.
    assert_eq!(run(&mut *lane, vec![window(2, 0.5)]), [ok(2, "fine")]);
}

#[test]
fn a_panic_is_a_crash_with_its_text_as_last_words() {
    let rig = worker("a_panic_is_a_crash_with_its_text_as_last_words", |_| {
        panic!("no such row")
    });
    let model = rig.load();
    let mut lane = model.lane().unwrap();

    let got = run(&mut *lane, vec![window(1, 0.5)]);

    let error = got[0].1.clone().unwrap_err();
    assert!(error.contains("panicked at tests/isolation.rs"), "{error}");
    assert!(error.contains("no such row"), "{error}");
}

#[test]
fn a_worker_that_stops_is_replaced() {
    let rig = worker("a_worker_that_stops_is_replaced", |window| {
        if first_time("stop") {
            kill_process(rustix::process::getpid(), Signal::STOP).unwrap();
            // Signs of life for as long as it runs.
            while !window.cancel.is_cancelled() {
                std::thread::sleep(Duration::from_millis(1));
            }
        }
        says("went on")
    });
    let model = rig.load();
    let mut lane = model.lane().unwrap();

    let got = run(&mut *lane, vec![window(1, 0.5)]);

    assert_eq!(got, [ok(1, "went on")]);
    assert_eq!(model.process().unwrap().restarts, 1);
}

#[test]
fn an_engine_that_turns_in_circles_is_stopped_with_the_reason() {
    let rig = worker(
        "an_engine_that_turns_in_circles_is_stopped_with_the_reason",
        |_| {
            loop {
                std::thread::sleep(Duration::from_millis(1));
            }
        },
    );
    let mut options = rig.options.clone();
    options.silence = Duration::from_millis(200);
    let model = IsolatedModel::load_with(spec("scripted"), options).unwrap();
    let mut lane = model.lane().unwrap();

    let got = run(&mut *lane, vec![window(1, 0.5)]);

    let error = got[0].1.clone().unwrap_err();
    assert!(
        error.contains(
            "ended on it 3 times, the last time stopped because it gave no sign of life for 0.2 s"
        ),
        "{error}"
    );
}

#[test]
fn a_slow_window_whose_engine_looks_up_is_left_alone() {
    let rig = worker(
        "a_slow_window_whose_engine_looks_up_is_left_alone",
        |window| {
            // Many times as long as silence is borne.
            let until = Instant::now() + Duration::from_secs(4);
            while Instant::now() < until && !window.cancel.is_cancelled() {
                std::thread::sleep(Duration::from_millis(5));
            }
            says("slow")
        },
    );
    let mut options = rig.options.clone();
    options.silence = Duration::from_secs(1);
    let model = IsolatedModel::load_with(spec("scripted"), options).unwrap();
    let mut lane = model.lane().unwrap();

    let got = run(&mut *lane, vec![window(1, 0.5)]);

    assert_eq!(got, [ok(1, "slow")]);
    assert_eq!(model.process().unwrap().restarts, 0);
}

#[test]
fn garbage_from_a_worker_ends_it_and_the_window_is_done_again() {
    let rig = worker(
        "garbage_from_a_worker_ends_it_and_the_window_is_done_again",
        |window| {
            if first_time(&format!("garbage {}", window.samples[0])) {
                write_garbage();
            }
            says("sense")
        },
    );
    let model = rig.load();
    let mut lane = model.lane().unwrap();

    let got = run(
        &mut *lane,
        (0..4).map(|n| window(n, n as f32 / 8.0)).collect(),
    );

    assert_eq!(got, [0, 1, 2, 3].map(|n| ok(n, "sense")));
    assert!(model.process().unwrap().restarts > 0);
}

/// To each socket that this process has: the control socket's and the lane's.
#[allow(unsafe_code)]
fn write_garbage() {
    let open: Vec<i32> = std::fs::read_dir("/proc/self/fd")
        .unwrap()
        .filter_map(|e| e.unwrap().file_name().to_str()?.parse().ok())
        .collect();
    let mut garbage = vec![0xa5_u8; 900];
    for fd in open {
        // SAFETY: open a moment ago; what was closed since refuses.
        let fd = unsafe { BorrowedFd::borrow_raw(fd) };
        garbage[0] = garbage[0].wrapping_add(1);
        let _ = rustix::net::send(fd, &garbage, rustix::net::SendFlags::NOSIGNAL);
    }
}

#[test]
fn an_answer_that_cannot_be_is_not_believed() {
    let rig = worker("an_answer_that_cannot_be_is_not_believed", |window| {
        let mut decoded = says("far off").unwrap();
        decoded.tokens[0].end = Some(window.samples.len() as u32 + 1);
        Ok(decoded)
    });
    let model = rig.load();
    let mut lane = model.lane().unwrap();

    let got = run(&mut *lane, vec![window(1, 0.5)]);

    let error = got[0].1.clone().unwrap_err();
    assert!(
        error.contains("it gave an answer that cannot be"),
        "{error}"
    );
}

#[test]
fn an_error_of_the_engine_crosses_and_costs_no_restart() {
    let rig = worker(
        "an_error_of_the_engine_crosses_and_costs_no_restart",
        |_| Err(EngineError::Unsupported("no such language".into())),
    );
    let model = rig.load();
    let mut lane = model.lane().unwrap();

    let got = run(&mut *lane, vec![window(1, 0.5)]);

    assert_eq!(got, [(1, Err("no such language".into()))]);
    assert_eq!(model.process().unwrap().restarts, 0);
}

// Cancelling.

/// Tells what comes when it comes.
struct Told(std::sync::mpsc::Sender<(WindowId, Result<Decoded, EngineError>)>);

impl ResultSink for Told {
    fn push(&mut self, id: WindowId, result: Result<Decoded, EngineError>) {
        let _ = self.0.send((id, result));
    }
}

#[test]
fn a_cancelled_window_is_answered_while_the_worker_is_still_in_it() {
    let rig = worker(
        "a_cancelled_window_is_answered_while_the_worker_is_still_in_it",
        |window| {
            if window.samples[0] == 0.75 {
                std::fs::write(shared("entered"), "").unwrap();
                // An encode: no look at any flag.
                while !shared("released").exists() {
                    std::thread::sleep(Duration::from_millis(2));
                }
            }
            says("text")
        },
    );
    let mut options = rig.options.clone();
    options.silence = GUARD;
    let model = IsolatedModel::load_with(spec("scripted"), options).unwrap();
    let mut lane = model.lane().unwrap();
    let unwanted = window(1, 0.75);
    let cancel = unwanted.cancel.clone();
    let (tell, told) = std::sync::mpsc::channel();
    let lane = std::thread::spawn(move || {
        let windows = vec![unwanted, window(2, 0.5)].into_iter();
        lane.run(
            &mut Given(windows),
            &mut Told(tell),
            &BatchParams::default(),
        )
        .unwrap();
    });
    eventually("the worker is in it", || rig.file("entered").exists());

    cancel.cancel();
    let (id, answer) = told.recv_timeout(GUARD).unwrap();

    assert_eq!((id, answer), (1, Err(EngineError::Cancelled)));
    std::fs::write(rig.file("released"), "").unwrap();
    let (id, answer) = told.recv_timeout(GUARD).unwrap();
    assert_eq!((id, text(&answer.unwrap())), (2, "text".into()));
    lane.join().unwrap();
    assert!(told.recv().is_err(), "an answer twice");
    assert_eq!(model.process().unwrap().restarts, 0);
}

#[test]
fn a_cancel_reaches_the_engine_in_the_worker() {
    let rig = worker("a_cancel_reaches_the_engine_in_the_worker", |window| {
        if window.samples[0] == 0.5 {
            return says("text");
        }
        std::fs::write(shared("entered"), "").unwrap();
        while !window.cancel.is_cancelled() {
            std::thread::sleep(Duration::from_millis(2));
        }
        Err(EngineError::Cancelled)
    });
    let model = rig.load();
    let mut lane = model.lane().unwrap();
    let unwanted = window(1, 0.75);
    let cancel = unwanted.cancel.clone();
    let entered = rig.file("entered");
    let canceller = std::thread::spawn(move || {
        eventually("the worker is in it", || entered.exists());
        cancel.cancel();
    });

    // It returns only when the engine has come back.
    let got = run(&mut *lane, vec![unwanted]);
    let next = run(&mut *lane, vec![window(2, 0.5)]);

    canceller.join().unwrap();
    assert_eq!(got, [(1, Err("cancelled".into()))]);
    assert_eq!(next, [ok(2, "text")]);
    assert_eq!(model.process().unwrap().restarts, 0);
}

#[test]
fn whoever_waits_for_a_worker_that_does_not_come_back_can_cancel() {
    let rig = worker(
        "whoever_waits_for_a_worker_that_does_not_come_back_can_cancel",
        |_| says("text"),
    );
    let mut options = rig.options.clone();
    options.backoff = vec![GUARD * 100];
    let model = IsolatedModel::load_with(spec("scripted"), options).unwrap();
    let mut lane = model.lane().unwrap();
    kill_process(pid(&model), Signal::KILL).unwrap();
    let unwanted = window(1, 0.5);
    let cancel = unwanted.cancel.clone();
    let canceller = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(300));
        cancel.cancel();
    });

    let got = run(&mut *lane, vec![unwanted]);

    canceller.join().unwrap();
    assert_eq!(got, [(1, Err("cancelled".into()))]);
}

// Starting, failing to start, ending.

#[test]
fn a_program_that_never_comes_up_is_given_up_after_three_starts() {
    let folder = tempfile::tempdir().unwrap();
    let tries = folder.path().join("tries");
    let program = script(
        folder.path(),
        &format!("echo x >>{}; echo out of luck >&2; exit 3", tries.display()),
    );

    let error = IsolatedModel::load_with(spec("scripted"), quick(program))
        .err()
        .unwrap()
        .to_string();

    assert!(
        error.contains("loading scripted in scribe-worker")
            && error.contains("3 times")
            && error.contains("exit status 3: out of luck"),
        "{error}"
    );
    assert_eq!(std::fs::read_to_string(tries).unwrap(), "x\nx\nx\n");
}

#[test]
fn a_program_that_is_not_there_is_named_with_a_remedy() {
    let error = IsolatedModel::load_with(spec("scripted"), quick("/nowhere/scribe-worker".into()))
        .err()
        .unwrap();

    assert!(matches!(error, EngineError::Runtime(_)), "{error:?}");
    let error = error.to_string();
    assert!(
        error.contains("/nowhere/scribe-worker") && error.contains("isolation=in-process"),
        "{error}"
    );
}

#[test]
fn a_load_that_takes_too_long_is_ended() {
    let folder = tempfile::tempdir().unwrap();
    let program = script(folder.path(), "exec sleep 1000");
    let mut options = quick(program);
    options.hello_within = Duration::from_millis(200);

    let error = IsolatedModel::load_with(spec("scripted"), options)
        .err()
        .unwrap()
        .to_string();

    assert!(error.contains("starting took longer than 0.2 s"), "{error}");
}

#[test]
fn the_worker_started_by_hand_says_what_it_is_for() {
    let out = Command::new(env!("CARGO_BIN_EXE_scribe-worker"))
        .args(["--parent", &std::process::id().to_string()])
        .stdin(Stdio::null())
        .output()
        .unwrap();

    let said = String::from_utf8_lossy(&out.stderr);
    assert_eq!(out.status.code(), Some(2), "{said}");
    assert!(said.contains("isolation=process"), "{said}");
}

#[test]
fn a_worker_holds_nothing_of_the_application_and_goes_before_it() {
    let rig = worker(
        "a_worker_holds_nothing_of_the_application_and_goes_before_it",
        |_| {
            let read = |file: &str| std::fs::read_to_string(file).unwrap();
            let status = read("/proc/thread-self/status");
            let privs = status
                .lines()
                .find(|l| l.starts_with("NoNewPrivs"))
                .unwrap();
            let core = read("/proc/self/limits");
            let core = core.lines().find(|l| l.starts_with("Max core")).unwrap();
            let held = std::fs::read_dir("/proc/self/fd")
                .unwrap()
                .filter_map(|e| std::fs::read_link(e.unwrap().path()).ok())
                .any(|to| to.ends_with("a file of the application"));
            let core: Vec<&str> = core.split_whitespace().collect();
            says(&format!(
                "{} {} {} held {held} {}",
                read("/proc/self/oom_score_adj").trim(),
                privs.replace('\t', " "),
                core[4..6].join(" "),
                std::env::var("GGML_NO_BACKTRACE").unwrap()
            ))
        },
    );
    let own = std::fs::File::create(rig.file("a file of the application")).unwrap();
    // As a careless library leaves it: every child inherits it.
    rustix::io::fcntl_setfd(&own, rustix::io::FdFlags::empty()).unwrap();
    let score: i32 = std::fs::read_to_string("/proc/self/oom_score_adj")
        .unwrap()
        .trim()
        .parse()
        .unwrap();
    let model = rig.load();
    let mut lane = model.lane().unwrap();

    let got = run(&mut *lane, vec![window(1, 0.5)]);

    let expected = format!("{} NoNewPrivs: 1 0 0 held false 1", (score + 500).min(1000));
    assert_eq!(got, [ok(1, &expected)]);
    assert!(own.as_fd().as_raw_fd() > 2);
}

#[test]
fn a_model_that_nobody_holds_leaves_no_worker() {
    let rig = worker("a_model_that_nobody_holds_leaves_no_worker", |_| {
        says("text")
    });
    let model = rig.load();
    let lane = model.lane().unwrap();
    let pid = pid(&model).as_raw_pid();

    drop(model);
    assert!(lives(pid), "a lane holds it");
    drop(lane);

    assert!(!Path::new(&format!("/proc/{pid}")).exists());
}

/// Runs this test once more as a process of its own that plays `part`.
fn part(test: &str, part: &str) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command
        .args(["--exact", test, "--nocapture"])
        .env(PART, part);
    command
}

fn plays(part: &str) -> bool {
    std::env::var_os(PART).is_some_and(|p| p == part) && std::env::var_os(PARENT).is_none()
}

#[test]
fn a_worker_goes_when_its_parent_is_killed_though_it_is_busy() {
    let name = "a_worker_goes_when_its_parent_is_killed_though_it_is_busy";
    let rig = worker(name, |_| {
        loop {
            std::thread::sleep(Duration::from_millis(1));
        }
    });
    if plays("application") {
        let mut options = rig.options.clone();
        options.silence = GUARD * 100;
        let model = IsolatedModel::load_with(spec("scripted"), options).unwrap();
        let mut lane = model.lane().unwrap();
        println!("\nworker {}", pid(&model).as_raw_pid());
        run(&mut *lane, vec![window(1, 0.5)]);
        unreachable!("the engine never answers");
    }
    let mut application = part(name, "application")
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(application.stdout.take().unwrap()).lines();
    let worker: i32 = lines
        .map_while(Result::ok)
        .find_map(|line| line.strip_prefix("worker ")?.parse().ok())
        .unwrap();
    assert!(lives(worker));

    application.kill().unwrap();

    eventually("the worker is gone", || !lives(worker));
    application.wait().unwrap();
}

#[test]
fn a_process_ends_with_its_own_status_though_a_worker_is_busy() {
    let name = "a_process_ends_with_its_own_status_though_a_worker_is_busy";
    let rig = worker(name, |_| {
        std::fs::write(shared("entered"), "").unwrap();
        loop {
            std::thread::sleep(Duration::from_millis(1));
        }
    });
    if plays("application") {
        let mut options = rig.options.clone();
        options.silence = GUARD * 100;
        let model = IsolatedModel::load_with(spec("scripted"), options).unwrap();
        let mut lane = model.lane().unwrap();
        println!("\nworker {}", pid(&model).as_raw_pid());
        std::thread::spawn(move || {
            // As the registry's lanes do.
            let _inside = gstscribe::inference::exit::enter();
            run(&mut *lane, vec![window(1, 0.5)])
        });
        eventually("the worker is in it", || rig.file("entered").exists());
        std::process::exit(7);
    }

    let out = part(name, "application").output().unwrap();

    let said = String::from_utf8_lossy(&out.stdout);
    assert_eq!(out.status.code(), Some(7), "{said}");
    let worker = said
        .lines()
        .find_map(|l| l.strip_prefix("worker "))
        .unwrap();
    // Gone, and waited for: not even a zombie is left for whoever inherits it.
    assert!(!Path::new(&format!("/proc/{worker}")).exists());
}

#[test]
fn a_hundred_restarts_leave_neither_descriptors_nor_zombies() {
    let name = "a_hundred_restarts_leave_neither_descriptors_nor_zombies";
    let rig = worker(name, |_| says("text"));
    if !plays("application") {
        // In a process where no other test opens anything.
        let out = part(name, "application").output().unwrap();
        let said = String::from_utf8_lossy(&out.stdout);
        assert!(out.status.success(), "{said}");
        return;
    }
    let model = rig.load();
    let mut lane = model.lane().unwrap();
    let open = || std::fs::read_dir("/proc/self/fd").unwrap().count();
    let round = |lane: &mut dyn SpeechToText| {
        kill_process(pid(&model), Signal::KILL).unwrap();
        assert_eq!(run(lane, vec![window(1, 0.5)]), [ok(1, "text")]);
    };
    round(&mut *lane);
    let (files, threads) = (open(), threads());

    for _ in 0..100 {
        round(&mut *lane);
    }

    assert_eq!(model.process().unwrap().restarts, 101);
    assert_eq!((open(), crate::threads()), (files, threads));
    // The only child is the worker that runs.
    assert_eq!(children(std::process::id()).len(), 1);
}

fn threads() -> usize {
    std::fs::read_dir("/proc/self/task").unwrap().count()
}

/// Processes, zombies among them, whose parent is `parent`.
fn children(parent: u32) -> Vec<i32> {
    let parent = parent.to_string();
    std::fs::read_dir("/proc")
        .unwrap()
        .filter_map(|e| e.ok()?.file_name().to_str()?.parse().ok())
        .filter(|pid: &i32| {
            let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            let rest = stat.rsplit(") ").next().unwrap_or_default();
            rest.split(' ').nth(1) == Some(&parent)
        })
        .collect()
}

// With real engines.

fn tiny() -> PathBuf {
    repository("models/ggml-tiny.en-q8_0.bin")
}

fn real() -> IsolatedOptions {
    IsolatedOptions {
        silence: Duration::from_secs(120),
        silence_windows: 8.0,
        ..quick(env!("CARGO_BIN_EXE_scribe-worker").into())
    }
}

#[test]
fn a_bad_file_gives_the_error_that_it_gives_in_the_process() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, bytes: &[u8]| {
        let path = folder.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        path
    };
    let bad = [
        folder.path().join("missing.bin"),
        folder.path().to_owned(),
        write("empty.bin", b""),
        write("junk.bin", &[0xa5; 5000]),
        write("magic.bin", &0x6767_6d6c_u32.to_le_bytes()),
    ];

    for path in bad {
        let graphs = OnnxWhisperSpec {
            encoder: path.clone(),
            decoder: path.clone(),
            name: "bad".into(),
            cuda_device: None,
            word_time_offset: 0,
        };
        for spec in [
            EngineSpec::WhisperCpp(whisper_cpp(&path, "bad")),
            EngineSpec::OnnxWhisper(graphs),
        ] {
            let here = spec.load().err().unwrap();
            let there = IsolatedModel::load_with(spec, real());

            assert_eq!(there.err().unwrap(), here);
        }
    }
}

#[test]
fn graphs_that_do_not_belong_together_are_refused_as_in_the_process() {
    let (Some(small), Some(exact)) = (onnx_encoder("int8"), onnx_encoder("f32")) else {
        return;
    };
    let mixed = EngineSpec::OnnxWhisper(OnnxWhisperSpec {
        decoder: onnx_spec(&exact).decoder,
        ..onnx_spec(&small)
    });

    let there = IsolatedModel::load_with(mixed.clone(), real());

    let error = there.err().unwrap();
    assert_eq!(error, mixed.load().err().unwrap());
    assert!(error.to_string().contains("of another model"), "{error}");
}

#[test]
fn a_model_knows_the_languages_that_it_knows_in_the_process() {
    if !there(&tiny(), "make models") {
        return;
    }
    let graphs = onnx_encoder("int8").map(|encoder| EngineSpec::OnnxWhisper(onnx_spec(&encoder)));
    let ggml = EngineSpec::WhisperCpp(whisper_cpp(&tiny(), "tiny.en-q8_0"));
    for spec in std::iter::once(ggml).chain(graphs) {
        let here = spec.load().unwrap();
        let there = IsolatedModel::load_with(spec, real()).unwrap();

        assert_eq!(there.info(), here.info());
        for code in ["en", "de", "xx", ""] {
            assert_eq!(
                there.knows_language(code),
                here.knows_language(code),
                "{code}"
            );
        }
    }
}

/// Windows of speech, of 3 to 9 s.
fn speech(count: u64) -> Vec<Window> {
    let recording = samples("tests/data/demo.opus");
    let mut rest = recording.as_slice();
    let windows = (0..count).map(|id| {
        let length = 16_000 * (3 + 2 * (id as usize % 4));
        let (head, tail) = rest.split_at(length);
        rest = tail;
        Window {
            samples: head.into(),
            ..window(id, 0.0)
        }
    });
    windows.collect()
}

/// tiny.en on ONNX Runtime, here and in a worker.
fn graphs(weights: &str) -> Option<(OnnxWhisperModel, IsolatedModel)> {
    let spec = onnx_spec(&onnx_encoder(weights)?);
    let here = OnnxWhisperModel::load(&spec).unwrap();
    let there = IsolatedModel::load_with(EngineSpec::OnnxWhisper(spec), real()).unwrap();
    Some((here, there))
}

fn ids(answer: &Result<Decoded, EngineError>) -> Vec<u32> {
    let tokens = &answer.as_ref().unwrap().tokens;
    tokens.iter().map(|t| t.id).collect()
}

#[test]
fn windows_are_decoded_side_by_side_in_a_worker_and_leave_and_enter_as_they_do_in_the_process() {
    let Some((here, there)) = graphs("int8") else {
        return;
    };
    let windows = || speech(11).into_iter().map(Some);

    let mut lane = here.lane().unwrap();
    let here = logged(&mut *lane, windows(), |_| {});
    let mut lane = there.lane().unwrap();
    let there = logged(&mut *lane, windows(), |_| {});

    // Eight enter before the first leaves; each that leaves makes room for one.
    assert!(here.order[..8].iter().all(|event| event.starts_with('+')));
    assert_eq!(there.order, here.order);
    assert_eq!(there.answers, here.answers);
    let heard = there.texts().concat();
    assert!(heard.split_whitespace().count() > 60, "{heard}");
}

#[test]
fn a_window_that_comes_late_enters_while_another_is_decoded() {
    let Some((_, there)) = graphs("f32") else {
        return;
    };
    let mut lane = there.lane().unwrap();
    let short = Window {
        samples: samples("tests/data/speech_short.flac").into(),
        ..window(1, 0.0)
    };
    let long = Window {
        samples: samples("tests/data/demo.opus")[..25 * 16_000].into(),
        ..window(3, 0.0)
    };

    // Asked again after each step, as long as it has room.
    let windows = [Some(long), None, None, Some(short), None];
    let log = logged(&mut *lane, windows, |_| {});

    assert_eq!(log.order, ["+3", "+1", "-1", "-3"]);
    assert!(log.texts()[0].contains("amiable himself"));
}

#[test]
fn a_worker_killed_in_the_midst_of_a_batch_costs_no_window_and_repeats_no_answer() {
    let Some((here, there)) = graphs("f32") else {
        return;
    };
    let mut lane = here.lane().unwrap();
    let undisturbed = logged(&mut *lane, speech(11).into_iter().map(Some), |_| {});
    let there = Rc::new(there);
    let mut lane = there.lane().unwrap();

    // With the first answer, when eight are in work or have been asked for; and again when some were done anew.
    let killed = Rc::clone(&there);
    let mut answers = 0;
    let log = logged(&mut *lane, speech(11).into_iter().map(Some), move |_| {
        answers += 1;
        if answers == 1 || answers == 4 {
            kill_process(pid(&killed), Signal::KILL).unwrap();
        }
    });

    assert_eq!(log.answers.len(), 11);
    assert_eq!(log.order.len(), 22);
    for (id, answer) in &log.answers {
        assert_eq!(ids(answer), ids(&undisturbed.answers[id]), "window {id}");
    }
    assert_eq!(there.process().unwrap().restarts, 2);
}

#[test]
fn a_window_that_is_cancelled_among_others_leaves_them_alone() {
    let Some((here, there)) = graphs("f32") else {
        return;
    };
    let mut lane = here.lane().unwrap();
    let undisturbed = logged(&mut *lane, speech(4).into_iter().map(Some), |_| {});
    let mut lane = there.lane().unwrap();
    let windows = speech(4);
    let cancel = windows[0].cancel.clone();

    // It is in work when somebody stops wanting it: the others are asked for afterwards.
    struct Cancelling<'a>(Logged<'a>, CancelToken);
    impl WindowSource for Cancelling<'_> {
        fn next(&mut self) -> Option<Window> {
            let window = self.0.next()?;
            if window.id == 2 {
                self.1.cancel();
            }
            Some(window)
        }
    }
    let log = RefCell::new(Log::default());
    let given = Logged(&log, windows.into_iter().map(Some).collect());
    lane.run(
        &mut Cancelling(given, cancel),
        &mut LoggedSink(&log),
        &BatchParams::default(),
    )
    .unwrap();

    let log = log.into_inner();
    assert_eq!(log.answers[&0], Err(EngineError::Cancelled));
    // Told at once, before the last is even asked for.
    assert_eq!(log.order[..5], ["+0", "+1", "+2", "-0", "+3"]);
    for id in 1..4 {
        assert_eq!(ids(&log.answers[&id]), ids(&undisturbed.answers[&id]));
    }
    assert_eq!(there.process().unwrap().restarts, 0);
}

#[test]
fn a_worker_has_the_runtime_and_the_cap_of_its_parent() {
    let name = "a_worker_has_the_runtime_and_the_cap_of_its_parent";
    let Some(encoder) = onnx_encoder("int8") else {
        return;
    };
    let spec = EngineSpec::OnnxWhisper(onnx_spec(&encoder));
    let folder = std::env::var_os(SHARED).map(PathBuf::from);
    if let Some(folder) = folder.filter(|_| plays("named") || plays("capped")) {
        if plays("capped") {
            set_arena_cap(40 << 20).unwrap();
            let error = IsolatedModel::load_with(spec, real()).err().unwrap();
            println!("\nrefused {error}");
            return;
        }
        library::set_library(&folder.join("libonnxruntime.so.1"));
        let model = IsolatedModel::load_with(spec, real()).unwrap();
        let maps = format!("/proc/{}/maps", pid(&model).as_raw_pid());
        let maps = std::fs::read_to_string(maps).unwrap();
        let used = maps.lines().find(|l| l.contains("libonnxruntime")).unwrap();
        println!("\nused {}", used.split_whitespace().last().unwrap());
        return;
    }
    let installed = repository("target/release/scribe/libonnxruntime.so.1");
    if !there(&installed, "make models") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let copy = folder.path().join("libonnxruntime.so.1");
    std::fs::copy(installed, &copy).unwrap();
    let said = |what: &str| {
        let out = part(name, what)
            .env(SHARED, folder.path())
            .output()
            .unwrap();
        let said = String::from_utf8(out.stdout).unwrap();
        assert!(out.status.success(), "{said}");
        said
    };

    let used = said("named");
    let refused = said("capped");

    assert!(used.contains(&format!("used {}", copy.display())), "{used}");
    assert!(refused.contains("ran out of memory"), "{refused}");
}

/// What a process holds that others do not, and what it shares with its parent.
fn held(pid: Pid) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", pid.as_raw_pid())).unwrap();
    let kib = |name: &str| -> u64 {
        let line = status.lines().find_map(|l| l.strip_prefix(name)).unwrap();
        line.split_whitespace().next().unwrap().parse().unwrap()
    };
    1024 * (kib("RssAnon:") + kib("RssShmem:"))
}

#[test]
fn a_worker_holds_no_more_than_was_reserved_for_it() {
    let graphs = onnx_encoder("int8");
    let ggml = there(&tiny(), "make models").then(tiny);
    for file in graphs.into_iter().chain(ggml) {
        let file = file.to_str().unwrap();
        let spec = speech_spec(file, None, "cpu", 1, true, Isolation::Process).unwrap();
        let reserved = Whisper::footprint(&spec).unwrap();
        set_real_options();
        let model = Whisper::load(&spec).unwrap();
        let worker = model.process().unwrap().pid.unwrap();
        let worker = Pid::from_raw(worker as i32).unwrap();
        let loaded = held(worker);
        let mut lane = model.lane().unwrap();
        let made = held(worker);
        let long: Arc<[f32]> = samples("tests/data/demo.opus")[..29 * 16_000].into();
        let windows = (0..8).map(|id| {
            Some(Window {
                samples: Arc::clone(&long),
                prompt: "names of people and places, ".repeat(40),
                ..window(id, 0.0)
            })
        });
        let most = Rc::new(Cell::new(made));
        let (told, of) = (Rc::clone(&most), worker);
        logged(&mut *lane, windows, move |_| {
            told.set(told.get().max(held(of)))
        });

        println!(
            "{file}: MiB loaded {}, a lane {}, at work {}; reserved {} and {}",
            loaded >> 20,
            (made - loaded) >> 20,
            (most.get() - loaded) >> 20,
            reserved.weights_bytes >> 20,
            reserved.lane_bytes >> 20
        );
        assert!(loaded <= reserved.weights_bytes, "{file}");
        let both = reserved.weights_bytes + reserved.lane_bytes;
        assert!(most.get() <= both, "{file}: {} of {both}", most.get());
    }
}

/// 16 kHz mono.
fn samples(file: &str) -> Vec<f32> {
    gst::init().unwrap();
    let description = format!(
        "filesrc location={} ! decodebin ! audioconvert ! audioresample ! \
         audio/x-raw,format=F32LE,rate=16000,channels=1 ! appsink name=out sync=false",
        repository(file).display()
    );
    let pipeline = gst::parse::launch(&description).unwrap();
    let pipeline = pipeline.downcast::<gst::Pipeline>().unwrap();
    let out = pipeline.by_name("out").unwrap();
    let out = out.downcast::<gst_app::AppSink>().unwrap();
    pipeline.set_state(gst::State::Playing).unwrap();
    let mut samples = Vec::new();
    while let Ok(sample) = out.pull_sample() {
        let map = sample.buffer().unwrap().map_readable().unwrap();
        let values = map.chunks_exact(4);
        samples.extend(values.map(|v| f32::from_le_bytes(v.try_into().unwrap())));
    }
    pipeline.set_state(gst::State::Null).unwrap();
    samples
}

/// For workers that the registry starts.
fn set_real_options() {
    static ONCE: OnceLock<()> = OnceLock::new();
    ONCE.get_or_init(|| {
        set_options(IsolatedOptions {
            // Kills at random may hit several loads in a row.
            most_failed_loads: 100,
            ..real()
        });
    });
}

/// A word and where it lies.
type Said = (String, u64, u64);

/// Transcribes as the element does; `watch` is called again and again meanwhile.
fn transcript(
    model: &Path,
    samples: &[f32],
    isolation: Isolation,
    watch: &mut dyn FnMut(&Session),
) -> Vec<Said> {
    set_real_options();
    let registry = Registry::new(2, Duration::ZERO);
    let speech = speech_spec(model.to_str().unwrap(), None, "cpu", 1, true, isolation).unwrap();
    assert_eq!(
        matches!(speech, WhisperSpec::Isolated(..)),
        isolation == Isolation::Process
    );
    let silero = repository("models/silero-vad-6.2-rows.onnx");
    let vad = vad_spec(silero.to_str().unwrap()).unwrap();
    let mut params = SessionParams::new(speech, Some(vad));
    // Several beams, and temperatures, make whisper.cpp draw lots, and each state draws its own.
    params.beam = 1;
    params.temperatures = Vec::new();
    let models = Models::acquire(&registry, &params, &CancelToken::new()).unwrap();
    let (wake, woken) = std::sync::mpsc::channel();
    let wake = Mutex::new(wake);
    let wake = Arc::new(move || {
        let _ = wake.lock().unwrap().send(());
    });
    let mut session = Session::new(Arc::new(models), params, wake);
    let mut at = 0;
    let mut said = Vec::new();
    while at < samples.len() || !session.is_idle() {
        while at < samples.len() && session.wants_input() {
            let end = (at + 16_000).min(samples.len());
            session.push(SampleIndex(at as u64), &samples[at..end]);
            at = end;
            if at == samples.len() {
                session.end_piece();
            }
        }
        for spoken in session.poll().unwrap() {
            let words = spoken.words.into_iter();
            said.extend(words.map(|w| (w.text, w.start.0, w.end.0)));
        }
        watch(&session);
        let _ = woken.recv_timeout(Duration::from_millis(5));
    }
    said
}

/// Kills in a row that let no window be done: twice as many, and a window fails.
const MOST_IN_VAIN: u32 = 4;

/// Kills the worker `kills` times at random moments of a file; the transcript must be the undisturbed one.
fn survive(model: &Path, kills: usize, minutes: f64) {
    let recording = samples("tests/data/demo.opus");
    let wanted = (minutes * 60.0 * 16_000.0) as usize;
    let sound: Vec<f32> = recording.iter().copied().cycle().take(wanted).collect();
    let began = Instant::now();
    let undisturbed = transcript(model, &sound, Isolation::Process, &mut |_| {});
    let took = began.elapsed();
    let here = transcript(model, &sound, Isolation::InProcess, &mut |_| {});
    assert!(
        undisturbed.len() as f64 > minutes * 60.0,
        "{}",
        undisturbed.len()
    );
    assert_eq!(undisturbed, here);

    // Spread over the time that it takes, begun anew after each: some come while the model loads. The last comes well before
    // the end, though the machine may be quieter now.
    let every = took / (kills as u32 + 4);
    let mut random = 12_345_u64;
    let mut next = Instant::now() + every;
    let (mut done, mut restarts) = (0, 0);
    let (mut settled, mut in_vain) = (SampleIndex(0), 0);
    let mut last = Pid::INIT;
    let began = Instant::now();
    let disturbed = transcript(model, &sound, Isolation::Process, &mut |session| {
        let process = session.process().unwrap();
        restarts = process.restarts;
        if session.settled_until() > settled {
            (settled, in_vain) = (session.settled_until(), 0);
        }
        // On a machine that has become slower no window would ever be done between two kills.
        if done == kills || Instant::now() < next || in_vain == MOST_IN_VAIN {
            return;
        }
        let Some(pid) = process.pid.and_then(|pid| Pid::from_raw(pid as i32)) else {
            return;
        };
        if pid == last {
            // Not even buried.
            return;
        }
        kill_process(pid, Signal::KILL).unwrap();
        last = pid;
        done += 1;
        in_vain += 1;
        random = random
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        next = Instant::now() + every.mul_f64((random >> 33) as f64 / f64::from(1 << 30));
    });

    println!(
        "{:.1} min of sound, {} words: {:.1} s undisturbed, {:.1} s with {done} kills and {restarts} restarts",
        minutes,
        undisturbed.len(),
        took.as_secs_f64(),
        began.elapsed().as_secs_f64()
    );
    assert_eq!(disturbed, undisturbed);
    assert_eq!(done, kills);
    // The last may have come when all was done.
    assert!(restarts as usize + 1 >= kills, "{restarts} of {kills}");
}

#[test]
fn a_transcript_is_the_same_though_the_worker_is_killed_eight_times() {
    if there(&tiny(), "make models") {
        survive(&tiny(), 8, 2.0);
    }
}

#[test]
fn a_transcript_of_onnx_runtime_is_the_same_though_the_worker_is_killed_six_times() {
    // With 32 bits a text does not depend on what is decoded beside it.
    if let Some(encoder) = onnx_encoder("f32") {
        survive(&encoder, 6, 8.0);
    }
}

#[test]
#[ignore = "takes minutes: scripts/test.sh --test isolation -- --ignored"]
fn a_transcript_is_the_same_though_the_worker_is_killed_fifty_times() {
    if there(&tiny(), "make models") {
        survive(&tiny(), 50, 20.0);
    }
}

#[test]
fn a_model_that_was_replaced_is_not_taken_for_the_one_that_was_loaded() {
    if !there(&tiny(), "make models") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.bin");
    std::fs::copy(tiny(), &path).unwrap();
    let mut models = vec![(EngineSpec::WhisperCpp(whisper_cpp(&path, "replaced")), path)];
    if let Some(encoder) = onnx_encoder("int8") {
        let spec = onnx_spec(&encoder);
        let own = folder.path().join("replaced.decoder.onnx");
        std::fs::copy(&spec.decoder, &own).unwrap();
        let decoder = own.clone();
        models.push((
            EngineSpec::OnnxWhisper(OnnxWhisperSpec { decoder, ..spec }),
            own,
        ));
    }
    for (spec, file) in models {
        let error = refused_when_replaced(spec, &file);
        assert!(
            error.to_string().contains("was replaced or removed"),
            "{error}"
        );
        let EngineError::ModelFile { path, .. } = error else {
            panic!("{error}");
        };
        assert_eq!(path, file);
    }
}

/// What a lane says when `file` was replaced and the worker has to read it again.
fn refused_when_replaced(spec: EngineSpec, file: &Path) -> EngineError {
    let model = IsolatedModel::load_with(spec, real()).unwrap();
    let mut lane = model.lane().unwrap();
    let other = file.with_extension("other");
    std::fs::copy(file, &other).unwrap();
    std::fs::rename(other, file).unwrap();
    kill_process(pid(&model), Signal::KILL).unwrap();

    let mut got = Got::default();
    let outcome = lane.run(
        &mut Given(vec![window(1, 0.5)].into_iter()),
        &mut got,
        &BatchParams::default(),
    );

    let error = outcome.unwrap_err();
    assert_eq!(got.0, [(1, Err(error.clone()))]);
    error
}

// The plugin.

fn gst_launch(arguments: &[&str]) -> Command {
    let mut command = Command::new("gst-launch-1.0");
    command
        .arg("-q")
        .args(arguments)
        .env("GST_PLUGIN_PATH", repository("target/release"))
        .env(
            "GST_REGISTRY",
            repository("target/test-registry-isolation.bin"),
        )
        .env("SCRIBE_MODELS", repository("models"))
        .env("SCRIBE_ISOLATION", "process")
        .env("LC_ALL", "C")
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0);
    command
}

fn plugin_is_there() -> bool {
    there(&tiny(), "make models")
        && there(&plugin(), "make build")
        && there(&repository("target/release/scribe-worker"), "make build")
        && runs("gst-launch-1.0", &["--version"], "make setup")
}

#[test]
fn gst_launch_gives_captions_though_its_worker_is_killed_and_leaves_none_behind() {
    if !plugin_is_there() {
        return;
    }
    let location = format!(
        "location={}",
        repository("tests/data/speech_short.flac").display()
    );
    let mut launch = gst_launch(&[
        "filesrc",
        &location,
        "!",
        "decodebin",
        "!",
        "scribetranscriber",
        "model=tiny.en-q8_0",
        "!",
        "scribeenc",
        "format=text",
        "!",
        "fdsink",
    ])
    .spawn()
    .unwrap();
    let parent = launch.id();
    let mut seen = Vec::new();
    eventually("a worker was there to kill, or it is over", || {
        let found = children(parent);
        if found.is_empty() {
            return !lives(parent as i32);
        }
        true
    });
    seen.extend(children(parent));
    for worker in &seen {
        let _ = kill_process(Pid::from_raw(*worker).unwrap(), Signal::KILL);
    }

    let mut after = Vec::new();
    while launch.try_wait().unwrap().is_none() {
        after.extend(children(parent));
        std::thread::sleep(Duration::from_millis(5));
    }
    let out = launch.wait_with_output().unwrap();

    let said = String::from_utf8_lossy(&out.stdout);
    assert!(
        out.status.success(),
        "{}",
        String::from_utf8_lossy(&out.stderr)
    );
    assert!(said.contains("amiable himself"), "{said}");
    assert!(!seen.is_empty());
    after.retain(|pid| !seen.contains(pid));
    assert!(!after.is_empty(), "it was not started again");
    for worker in seen.iter().chain(&after) {
        assert!(!lives(*worker), "{worker} is left");
    }
}

#[test]
fn a_worker_that_is_not_where_the_environment_says_is_an_error_with_a_remedy() {
    if !plugin_is_there() {
        return;
    }

    let out = gst_launch(&["audiotestsrc", "!", "scribetranscriber", "!", "fakesink"])
        .env("SCRIBE_WORKER", "/nowhere/scribe-worker")
        .output()
        .unwrap();

    let said = String::from_utf8_lossy(&out.stderr);
    assert!(!out.status.success(), "{said}");
    assert!(
        said.contains("SCRIBE_WORKER names /nowhere/scribe-worker") && said.contains("unset it"),
        "{said}"
    );
}

// What crosses.

/// Counts what each thread allocates.
struct Counting;

thread_local! {
    static ALLOCATED: Cell<usize> = const { Cell::new(0) };
}

#[allow(unsafe_code)]
// SAFETY: the system's allocator does the work; counting neither allocates nor touches the memory.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATED.set(ALLOCATED.get() + layout.size());
        // SAFETY: as for us.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // SAFETY: as for us.
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

/// Bytes of a window in shared memory: no message may cost more.
const WINDOW_BYTES: usize = 30 * 16_000 * 4;

fn reads_within_bounds(packet: &[u8]) -> Result<Message, String> {
    let before = ALLOCATED.get();
    let read = Message::decode(packet);
    let took = ALLOCATED.get() - before;
    assert!(took <= WINDOW_BYTES, "{took} bytes");
    read.map_err(|e| e.to_string())
}

fn words() -> impl Strategy<Value = String> {
    proptest::collection::vec(any::<char>(), 0..20).prop_map(String::from_iter)
}

fn errors() -> impl Strategy<Value = EngineError> {
    (0..8, words(), words()).prop_map(|(kind, a, b)| match kind {
        0 => EngineError::InvalidModel {
            path: a.into(),
            why: b,
        },
        1 => EngineError::ModelMissing(a),
        2 => EngineError::ModelFile {
            path: a.into(),
            why: b,
        },
        3 => EngineError::Runtime(a),
        4 => EngineError::Unsupported(a),
        5 => EngineError::OutOfMemory { what: a },
        6 => EngineError::Failed { what: a, why: b },
        _ => EngineError::Cancelled,
    })
}

fn tokens() -> impl Strategy<Value = Token> {
    let bytes = proptest::collection::vec(any::<u8>(), 0..20);
    (
        any::<u32>(),
        bytes,
        0.0..1.0_f32,
        any::<Option<u32>>(),
        any::<Option<u32>>(),
    )
        .prop_map(|(id, bytes, probability, start, end)| Token {
            id,
            bytes,
            probability,
            start,
            end,
        })
}

fn texts() -> impl Strategy<Value = Decoded> {
    let gaps = proptest::collection::vec(any::<(u32, u32)>(), 0..5);
    (
        proptest::collection::vec(tokens(), 0..40),
        words(),
        (0.0..1.0_f32, -9.0..0.0_f32, 0.0..1.0_f32),
        any::<Option<u32>>(),
        gaps,
    )
        .prop_map(|(tokens, language, figures, alignment_end, gaps)| Decoded {
            tokens,
            language,
            sot_no_speech: figures.0,
            avg_logprob: figures.1,
            alignment_end,
            gaps,
            temperature: figures.2,
        })
}

fn messages() -> impl Strategy<Value = Message> {
    let job = (
        any::<(u64, u32, u32)>(),
        proptest::option::of(words()),
        any::<bool>(),
        words(),
        proptest::collection::vec(words(), 0..5),
        proptest::collection::vec(any::<u32>(), 0..219),
        any::<u32>(),
    )
        .prop_map(
            |(
                (job, area, samples),
                language,
                translate,
                prompt,
                vocabulary,
                prefix,
                most_tokens,
            )| Job {
                job,
                area,
                samples,
                // A longer code is cut, and is none.
                language: language.map_or(Language::Auto, |l| {
                    Language::Fixed(l.chars().take(16).collect())
                }),
                task: if translate {
                    Task::Translate
                } else {
                    Task::Transcribe
                },
                prompt,
                vocabulary,
                prefix,
                most_tokens,
            },
        );
    let spec = (words(), words(), any::<(Option<u32>, u32, bool, i32)>()).prop_map(
        |(path, name, rest)| {
            EngineSpec::WhisperCpp(WhisperCppSpec {
                path: path.into(),
                name,
                cuda_device: rest.0,
                threads: rest.1,
                word_times: rest.2,
                word_time_offset: rest.3,
            })
        },
    );
    let graphs = (words(), words(), words(), any::<i32>()).prop_map(
        |(encoder, decoder, name, word_time_offset)| {
            EngineSpec::OnnxWhisper(OnnxWhisperSpec {
                encoder: encoder.into(),
                decoder: decoder.into(),
                name,
                cuda_device: (word_time_offset > 0).then_some(word_time_offset.unsigned_abs()),
                word_time_offset,
            })
        },
    );
    let exports = (
        words(),
        words(),
        proptest::option::of(words()),
        proptest::collection::vec(words().prop_map(PathBuf::from), 0..4),
        any::<i32>(),
    )
        .prop_map(|(folder, name, with_past, data, word_time_offset)| {
            EngineSpec::Optimum(OptimumSpec {
                export: Export {
                    encoder: format!("{folder}/e").into(),
                    decoder: format!("{folder}/d").into(),
                    with_past: with_past.map(PathBuf::from),
                    data,
                    precision: name.clone(),
                    folder: folder.into(),
                },
                name,
                word_time_offset,
            })
        });
    let libraries = proptest::collection::vec(words().prop_map(PathBuf::from), 0..5);
    let runtime = (libraries, any::<u64>()).prop_map(|(libraries, arena_cap)| Runtime {
        libraries,
        arena_cap,
    });
    let load = (
        prop_oneof![spec, graphs, exports],
        proptest::option::of(runtime),
    );
    let info = (words(), words(), any::<(bool, u64, u32, i32)>()).prop_map(
        |(name, engine, (multilingual, weight_bytes, max_batch, word_time_offset))| {
            SpeechModelInfo {
                name,
                engine,
                multilingual,
                weight_bytes,
                max_batch: max_batch as usize,
                default_beam: max_batch / 2,
                word_time_offset,
                layout: gstscribe::inference::Layout::ALL[max_batch as usize % 3],
                word_times: multilingual,
                takes_prefix: true,
            }
        },
    );
    let languages = proptest::collection::vec(words(), 0..5);
    let loaded = (info, languages).prop_map(|(info, languages)| Loaded { info, languages });
    let params = (any::<(u32, u32, bool, bool)>(), 0.0..1.0_f32).prop_map(|(rest, temperature)| {
        BatchParams {
            beam: rest.0,
            temperature,
            best_of: rest.1,
            timestamps: rest.2,
            word_times: rest.3,
        }
    });
    let level = prop_oneof![
        Just(Level::Debug),
        Just(Level::Info),
        Just(Level::Warning),
        Just(Level::Error)
    ];
    let unit = || proptest::result::maybe_err(Just(()), errors());
    prop_oneof![
        words().prop_map(|build| Message::Hello { build }),
        load.prop_map(|(spec, runtime)| Message::Load { spec, runtime }),
        proptest::result::maybe_err(loaded, errors()).prop_map(Message::Loaded),
        (level, words()).prop_map(|(level, line)| Message::Log { level, line }),
        any::<u32>().prop_map(|areas| Message::OpenLane { areas }),
        unit().prop_map(Message::LaneReady),
        params.prop_map(Message::Run),
        Just(Message::Next),
        job.prop_map(Message::Window),
        Just(Message::NoMore),
        (any::<u64>(), proptest::result::maybe_err(texts(), errors()))
            .prop_map(|(job, result)| Message::Answer { job, result }),
        unit().prop_map(Message::Done),
    ]
}

/// A packet with a header that is right and a body that may be anything.
fn packet(kind: u16, body: &[u8]) -> Vec<u8> {
    let mut packet = Message::Next.encode().unwrap();
    packet[2..4].copy_from_slice(&kind.to_le_bytes());
    packet[4..HEADER].copy_from_slice(&(body.len() as u32).to_le_bytes());
    packet.extend_from_slice(body);
    packet
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn every_message_comes_back_as_it_was(message in messages()) {
        let packet = message.encode().unwrap();

        prop_assert!(packet.len() <= MAX_MESSAGE);
        prop_assert_eq!(reads_within_bounds(&packet), Ok(message));
    }

    #[test]
    fn any_bytes_are_read_or_refused_within_bounds(bytes in proptest::collection::vec(any::<u8>(), 0..4_000)) {
        let _ = reads_within_bounds(&bytes);
    }

    #[test]
    fn any_body_behind_a_right_header_is_read_or_refused_within_bounds(
        kind in 0..14_u16,
        body in proptest::collection::vec(prop_oneof![Just(0), Just(1), any::<u8>()], 0..4_000),
    ) {
        let _ = reads_within_bounds(&packet(kind, &body));
    }

    #[test]
    fn a_message_with_a_byte_changed_is_read_or_refused_within_bounds(
        message in messages(),
        at in any::<prop::sample::Index>(),
        byte in any::<u8>(),
    ) {
        let mut packet = message.encode().unwrap();
        let at = at.index(packet.len());
        packet[at] = byte;

        let _ = reads_within_bounds(&packet);
    }
}

#[test]
fn the_largest_lists_that_a_packet_can_claim_stay_within_bounds() {
    // Each list of each kind of message as long as the bytes behind it allow, of smallest parts.
    for kind in 0..14 {
        for ones in 0..12 {
            let room = MAX_MESSAGE - HEADER - ones - 4;
            for least in [1, 4, 8, 14] {
                let mut body = vec![1; ones];
                body.extend_from_slice(&((room / least) as u32).to_le_bytes());
                body.resize(MAX_MESSAGE - HEADER, 0);

                let _ = reads_within_bounds(&packet(kind, &body));
            }
        }
    }
}
