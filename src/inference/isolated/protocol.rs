// SPDX-License-Identifier: MPL-2.0
//! What plugin and worker say to one another: one message a packet, a header of eight bytes before each.
//!
//! Neither side trusts the other: the worker has read a file that may be hostile, and the plugin may be of another
//! build. A message is read only if its version is ours, its length is that of its packet, every length in it lies
//! within what is left, every value is one that can be, and nothing is left over. What a message makes us allocate
//! is a small multiple of its own size, which is at most [`MAX_MESSAGE`].
//!
//! Numbers are little-endian. Header: version (`u16`), kind (`u16`), bytes after the header (`u32`). Text and lists
//! begin with their length (`u32`), options and results with a byte that says which.

use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;

use super::EngineSpec;
use crate::inference::manifest::Export;
use crate::inference::onnx::Runtime;
use crate::inference::onnx::whisper::OnnxWhisperSpec;
use crate::inference::onnx::whisper::optimum::OptimumSpec;
use crate::inference::whisper_cpp::WhisperCppSpec;
use crate::inference::whisper_cpp::logging::Level;
use crate::inference::{
    BatchParams, Decoded, EngineError, Language, Layout, SpeechModelInfo, Token,
};
use crate::transcript::Task;

/// Goes up with every change of a message.
pub const VERSION: u16 = 5;
/// Largest packet in bytes. The longest answer whisper.cpp can give takes a tenth of it.
pub const MAX_MESSAGE: usize = 64 << 10;
/// Bytes of a header.
pub const HEADER: usize = 8;
/// Longest text of an error or a log line in bytes; the rest is cut off.
const MAX_TEXT: usize = 4 << 10;
/// Most bytes of prompt, and of vocabulary, that cross. Engines read a thousand characters of both together.
const MAX_PROMPT: usize = 16 << 10;
/// Most tokens of a prefix: no engine has room for more.
const MAX_PREFIX: usize = 219;

/// Why a packet is no message.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProtocolError {
    /// The other side is of another build.
    #[error("it speaks version {found} of the protocol, and this is version {VERSION}")]
    Version {
        /// Its version.
        found: u16,
    },
    /// No such kind of message.
    #[error("it sent a message of the unknown kind {0}")]
    Kind(u16),
    /// A length that is not that of what is there.
    #[error("it sent a message with a wrong length")]
    Length,
    /// Text that is none.
    #[error("it sent text that is not UTF-8")]
    Text,
    /// A value that cannot be.
    #[error("it sent an impossible value for {0}")]
    Value(&'static str),
    /// A message of our own that is too long to send.
    #[error("a message of {0} bytes is too long to send")]
    TooLong(usize),
}

/// A window to be decoded; its samples lie in an area of the lane's slot.
#[derive(Clone, Debug, PartialEq)]
pub struct Job {
    /// Number of this try: never used twice on a lane.
    pub job: u64,
    /// Area of the slot that holds the samples.
    pub area: u32,
    /// Samples in it.
    pub samples: u32,
    /// As in [`Window`](crate::inference::Window).
    pub language: Language,
    /// As in [`Window`](crate::inference::Window).
    pub task: Task,
    /// As in [`Window`](crate::inference::Window), at most 16 KiB of it.
    pub prompt: String,
    /// As in [`Window`](crate::inference::Window), at most 16 KiB of it.
    pub vocabulary: Vec<String>,
    /// As in [`Window`](crate::inference::Window), at most 219 of them.
    pub prefix: Vec<u32>,
    /// As in [`Window`](crate::inference::Window).
    pub most_tokens: u32,
}

/// A model that a worker has loaded.
#[derive(Clone, Debug, PartialEq)]
pub struct Loaded {
    /// What it can do.
    pub info: SpeechModelInfo,
    /// Codes of the languages that it knows.
    pub languages: Vec<String>,
}

/// All that is said. On the control socket: `Hello`, `Load`, `Loaded`, then `OpenLane` with two descriptors (a lane's
/// socket and its slot) for each lane, and `Log` at any time. On a lane's socket: `LaneReady`, then for each run
/// `Run`, any number of `Next`, each answered by `Window` or `NoMore`, and of `Answer`, and `Done`.
#[derive(Clone, Debug, PartialEq)]
pub enum Message {
    /// Worker: it runs.
    Hello {
        /// Its version, for error messages.
        build: String,
    },
    /// Plugin: the model to load.
    Load {
        /// Engine and files.
        spec: EngineSpec,
        /// By what, for an engine that wants ONNX Runtime.
        runtime: Option<Runtime>,
    },
    /// Worker: the outcome of `Load`.
    Loaded(Result<Loaded, EngineError>),
    /// Worker: a line of an engine's log.
    Log {
        /// How bad it is.
        level: Level,
        /// One line.
        line: String,
    },
    /// Plugin: makes a lane.
    OpenLane {
        /// Windows that its slot has room for.
        areas: u32,
    },
    /// Worker: the outcome of `OpenLane`.
    LaneReady(Result<(), EngineError>),
    /// Plugin: begins a run.
    Run(BatchParams),
    /// Worker: a row is free.
    Next,
    /// Plugin: takes it.
    Window(Job),
    /// Plugin: there are no more for this run.
    NoMore,
    /// Worker: a window's text.
    Answer {
        /// Number of the try.
        job: u64,
        /// What came of it.
        result: Result<Decoded, EngineError>,
    },
    /// Worker: the run is over; an error means that the lane cannot be used again.
    Done(Result<(), EngineError>),
}

impl Message {
    fn kind(&self) -> u16 {
        match self {
            Self::Hello { .. } => 1,
            Self::Load { .. } => 2,
            Self::Loaded(_) => 3,
            Self::Log { .. } => 4,
            Self::OpenLane { .. } => 5,
            Self::LaneReady(_) => 6,
            Self::Run(_) => 7,
            Self::Next => 8,
            Self::Window(_) => 9,
            Self::NoMore => 10,
            Self::Answer { .. } => 11,
            Self::Done(_) => 12,
        }
    }

    /// The packet of this message. Fails if it is longer than [`MAX_MESSAGE`].
    pub fn encode(&self) -> Result<Vec<u8>, ProtocolError> {
        let mut out = Vec::with_capacity(256);
        out.extend_from_slice(&VERSION.to_le_bytes());
        out.extend_from_slice(&self.kind().to_le_bytes());
        out.extend_from_slice(&[0; 4]);
        match self {
            Self::Hello { build } => build.put(&mut out),
            Self::Load { spec, runtime } => {
                spec.put(&mut out);
                runtime.put(&mut out);
            }
            Self::Loaded(outcome) => outcome.put(&mut out),
            Self::Log { level, line } => {
                level.put(&mut out);
                put_text(cut(line, MAX_TEXT), &mut out);
            }
            Self::OpenLane { areas } => areas.put(&mut out),
            Self::LaneReady(outcome) | Self::Done(outcome) => outcome.put(&mut out),
            Self::Run(params) => params.put(&mut out),
            Self::Next | Self::NoMore => {}
            Self::Window(job) => job.put(&mut out),
            Self::Answer { job, result } => {
                job.put(&mut out);
                result.put(&mut out);
            }
        }
        let body = out.len() - HEADER;
        match u32::try_from(body) {
            Ok(length) if out.len() <= MAX_MESSAGE => {
                out[4..HEADER].copy_from_slice(&length.to_le_bytes());
                Ok(out)
            }
            _ => Err(ProtocolError::TooLong(out.len())),
        }
    }

    /// Reads a packet.
    pub fn decode(packet: &[u8]) -> Result<Self, ProtocolError> {
        let mut r = Reader(packet);
        let version = u16::get(&mut r)?;
        if version != VERSION {
            return Err(ProtocolError::Version { found: version });
        }
        let kind = u16::get(&mut r)?;
        let length = u32::get(&mut r)?;
        if packet.len() > MAX_MESSAGE || length as usize != r.0.len() {
            return Err(ProtocolError::Length);
        }
        let message = match kind {
            1 => Self::Hello {
                build: Wire::get(&mut r)?,
            },
            2 => Self::Load {
                spec: Wire::get(&mut r)?,
                runtime: Wire::get(&mut r)?,
            },
            3 => Self::Loaded(Wire::get(&mut r)?),
            4 => Self::Log {
                level: Wire::get(&mut r)?,
                line: Wire::get(&mut r)?,
            },
            5 => Self::OpenLane {
                areas: Wire::get(&mut r)?,
            },
            6 => Self::LaneReady(Wire::get(&mut r)?),
            7 => Self::Run(Wire::get(&mut r)?),
            8 => Self::Next,
            9 => Self::Window(Wire::get(&mut r)?),
            10 => Self::NoMore,
            11 => Self::Answer {
                job: Wire::get(&mut r)?,
                result: Wire::get(&mut r)?,
            },
            12 => Self::Done(Wire::get(&mut r)?),
            other => return Err(ProtocolError::Kind(other)),
        };
        if r.0.is_empty() {
            Ok(message)
        } else {
            Err(ProtocolError::Length)
        }
    }
}

/// What is left of a packet.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, length: usize) -> Result<&'a [u8], ProtocolError> {
        let (head, rest) = self
            .0
            .split_at_checked(length)
            .ok_or(ProtocolError::Length)?;
        self.0 = rest;
        Ok(head)
    }
}

/// A value as it crosses.
trait Wire: Sized {
    /// Fewest bytes that a value takes: a list cannot be longer than what is left divided by it.
    const LEAST: usize;
    fn put(&self, out: &mut Vec<u8>);
    fn get(r: &mut Reader) -> Result<Self, ProtocolError>;
}

macro_rules! numbers {
    ($($number:ty),*) => {$(
        impl Wire for $number {
            const LEAST: usize = size_of::<Self>();

            fn put(&self, out: &mut Vec<u8>) {
                out.extend_from_slice(&self.to_le_bytes());
            }

            fn get(r: &mut Reader) -> Result<Self, ProtocolError> {
                let bytes = r.take(size_of::<Self>())?;
                bytes.try_into().map(Self::from_le_bytes).map_err(|_| ProtocolError::Length)
            }
        }
    )*};
}

numbers!(u8, u16, u32, u64, i32, f32);

impl Wire for bool {
    const LEAST: usize = 1;

    fn put(&self, out: &mut Vec<u8>) {
        out.push(u8::from(*self));
    }

    fn get(r: &mut Reader) -> Result<Self, ProtocolError> {
        match u8::get(r)? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(ProtocolError::Value("a yes or no")),
        }
    }
}

impl<T: Wire> Wire for Vec<T> {
    const LEAST: usize = 4;

    fn put(&self, out: &mut Vec<u8>) {
        // Longer lists make a message that is too long, which `encode` finds.
        u32::try_from(self.len()).unwrap_or(u32::MAX).put(out);
        for item in self {
            item.put(out);
        }
    }

    fn get(r: &mut Reader) -> Result<Self, ProtocolError> {
        let count = u32::get(r)? as usize;
        if count.saturating_mul(T::LEAST) > r.0.len() {
            return Err(ProtocolError::Length);
        }
        (0..count).map(|_| T::get(r)).collect()
    }
}

fn put_text(text: &str, out: &mut Vec<u8>) {
    u32::try_from(text.len()).unwrap_or(u32::MAX).put(out);
    out.extend_from_slice(text.as_bytes());
}

/// The beginning of `text`, whole characters, at most `most` bytes.
fn cut(text: &str, most: usize) -> &str {
    let mut end = text.len().min(most);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

impl Wire for String {
    const LEAST: usize = 4;

    fn put(&self, out: &mut Vec<u8>) {
        put_text(self, out);
    }

    fn get(r: &mut Reader) -> Result<Self, ProtocolError> {
        let length = u32::get(r)? as usize;
        let bytes = r.take(length)?;
        std::str::from_utf8(bytes)
            .map(str::to_owned)
            .map_err(|_| ProtocolError::Text)
    }
}

impl Wire for PathBuf {
    const LEAST: usize = 4;

    fn put(&self, out: &mut Vec<u8>) {
        self.as_os_str().as_bytes().to_vec().put(out);
    }

    fn get(r: &mut Reader) -> Result<Self, ProtocolError> {
        Vec::get(r).map(|bytes| OsString::from_vec(bytes).into())
    }
}

impl<T: Wire> Wire for Option<T> {
    const LEAST: usize = 1;

    fn put(&self, out: &mut Vec<u8>) {
        self.is_some().put(out);
        if let Some(value) = self {
            value.put(out);
        }
    }

    fn get(r: &mut Reader) -> Result<Self, ProtocolError> {
        bool::get(r)?.then(|| T::get(r)).transpose()
    }
}

impl<T: Wire> Wire for Result<T, EngineError> {
    const LEAST: usize = 1;

    fn put(&self, out: &mut Vec<u8>) {
        self.is_ok().put(out);
        match self {
            Ok(value) => value.put(out),
            Err(error) => error.put(out),
        }
    }

    fn get(r: &mut Reader) -> Result<Self, ProtocolError> {
        if bool::get(r)? {
            T::get(r).map(Ok)
        } else {
            EngineError::get(r).map(Err)
        }
    }
}

impl Wire for () {
    const LEAST: usize = 0;

    fn put(&self, _out: &mut Vec<u8>) {}

    fn get(_r: &mut Reader) -> Result<Self, ProtocolError> {
        Ok(())
    }
}

impl Wire for (u32, u32) {
    const LEAST: usize = 8;

    fn put(&self, out: &mut Vec<u8>) {
        self.0.put(out);
        self.1.put(out);
    }

    fn get(r: &mut Reader) -> Result<Self, ProtocolError> {
        Ok((u32::get(r)?, u32::get(r)?))
    }
}

impl Wire for EngineError {
    const LEAST: usize = 1;

    fn put(&self, out: &mut Vec<u8>) {
        let text = |text: &str, out: &mut Vec<u8>| put_text(cut(text, MAX_TEXT), out);
        match self {
            Self::InvalidModel { path, why } => {
                out.push(1);
                path.put(out);
                text(why, out);
            }
            Self::ModelMissing(what) => {
                out.push(2);
                text(what, out);
            }
            Self::ModelFile { path, why } => {
                out.push(3);
                path.put(out);
                text(why, out);
            }
            Self::Runtime(what) => {
                out.push(4);
                text(what, out);
            }
            Self::Unsupported(what) => {
                out.push(5);
                text(what, out);
            }
            Self::OutOfMemory { what } => {
                out.push(6);
                text(what, out);
            }
            Self::NoRoom { what, figures } => {
                out.push(9);
                text(what, out);
                text(figures, out);
            }
            Self::Failed { what, why } => {
                out.push(7);
                text(what, out);
                text(why, out);
            }
            Self::Cancelled => out.push(8),
        }
    }

    fn get(r: &mut Reader) -> Result<Self, ProtocolError> {
        Ok(match u8::get(r)? {
            1 => Self::InvalidModel {
                path: Wire::get(r)?,
                why: Wire::get(r)?,
            },
            2 => Self::ModelMissing(Wire::get(r)?),
            3 => Self::ModelFile {
                path: Wire::get(r)?,
                why: Wire::get(r)?,
            },
            4 => Self::Runtime(Wire::get(r)?),
            5 => Self::Unsupported(Wire::get(r)?),
            6 => Self::OutOfMemory {
                what: Wire::get(r)?,
            },
            7 => Self::Failed {
                what: Wire::get(r)?,
                why: Wire::get(r)?,
            },
            8 => Self::Cancelled,
            9 => Self::NoRoom {
                what: Wire::get(r)?,
                figures: Wire::get(r)?,
            },
            _ => return Err(ProtocolError::Value("an error")),
        })
    }
}

impl Wire for EngineSpec {
    const LEAST: usize = 4;

    fn put(&self, out: &mut Vec<u8>) {
        match self {
            Self::WhisperCpp(spec) => {
                put_text(WHISPER_CPP, out);
                spec.put(out);
            }
            Self::OnnxWhisper(spec) => {
                put_text(ONNX_WHISPER, out);
                spec.put(out);
            }
            Self::Optimum(spec) => {
                put_text(OPTIMUM, out);
                spec.put(out);
            }
        }
    }

    fn get(r: &mut Reader) -> Result<Self, ProtocolError> {
        match String::get(r)?.as_str() {
            WHISPER_CPP => Wire::get(r).map(Self::WhisperCpp),
            ONNX_WHISPER => Wire::get(r).map(Self::OnnxWhisper),
            OPTIMUM => Wire::get(r).map(Self::Optimum),
            _ => Err(ProtocolError::Value("an engine")),
        }
    }
}

/// Each engine by its name.
const WHISPER_CPP: &str = "whisper.cpp";
const ONNX_WHISPER: &str = "whisper on ONNX Runtime";
const OPTIMUM: &str = "an export on ONNX Runtime";

impl Wire for WhisperCppSpec {
    const LEAST: usize = 18;

    fn put(&self, out: &mut Vec<u8>) {
        let Self {
            path,
            name,
            cuda_device,
            threads,
            word_times,
            word_time_offset,
        } = self;
        path.put(out);
        name.put(out);
        cuda_device.put(out);
        threads.put(out);
        word_times.put(out);
        word_time_offset.put(out);
    }

    fn get(r: &mut Reader) -> Result<Self, ProtocolError> {
        Ok(Self {
            path: Wire::get(r)?,
            name: Wire::get(r)?,
            cuda_device: Wire::get(r)?,
            threads: Wire::get(r)?,
            word_times: Wire::get(r)?,
            word_time_offset: Wire::get(r)?,
        })
    }
}

impl Wire for OnnxWhisperSpec {
    const LEAST: usize = 17;

    fn put(&self, out: &mut Vec<u8>) {
        let Self {
            encoder,
            decoder,
            name,
            cuda_device,
            word_time_offset,
        } = self;
        encoder.put(out);
        decoder.put(out);
        name.put(out);
        cuda_device.put(out);
        word_time_offset.put(out);
    }

    fn get(r: &mut Reader) -> Result<Self, ProtocolError> {
        Ok(Self {
            encoder: Wire::get(r)?,
            decoder: Wire::get(r)?,
            name: Wire::get(r)?,
            cuda_device: Wire::get(r)?,
            word_time_offset: Wire::get(r)?,
        })
    }
}

impl Wire for OptimumSpec {
    const LEAST: usize = 29;

    fn put(&self, out: &mut Vec<u8>) {
        let Self {
            export:
                Export {
                    encoder,
                    decoder,
                    with_past,
                    data,
                    folder,
                    precision,
                },
            name,
            word_time_offset,
        } = self;
        encoder.put(out);
        decoder.put(out);
        with_past.put(out);
        data.put(out);
        folder.put(out);
        precision.put(out);
        name.put(out);
        word_time_offset.put(out);
    }

    fn get(r: &mut Reader) -> Result<Self, ProtocolError> {
        Ok(Self {
            export: Export {
                encoder: Wire::get(r)?,
                decoder: Wire::get(r)?,
                with_past: Wire::get(r)?,
                data: Wire::get(r)?,
                folder: Wire::get(r)?,
                precision: Wire::get(r)?,
            },
            name: Wire::get(r)?,
            word_time_offset: Wire::get(r)?,
        })
    }
}

impl Wire for Runtime {
    const LEAST: usize = 12;

    fn put(&self, out: &mut Vec<u8>) {
        let Self {
            libraries,
            arena_cap,
        } = self;
        libraries.put(out);
        arena_cap.put(out);
    }

    fn get(r: &mut Reader) -> Result<Self, ProtocolError> {
        Ok(Self {
            libraries: Wire::get(r)?,
            arena_cap: Wire::get(r)?,
        })
    }
}

impl Wire for Loaded {
    const LEAST: usize = SpeechModelInfo::LEAST + 4;

    fn put(&self, out: &mut Vec<u8>) {
        let Self { info, languages } = self;
        info.put(out);
        languages.put(out);
    }

    fn get(r: &mut Reader) -> Result<Self, ProtocolError> {
        Ok(Self {
            info: Wire::get(r)?,
            languages: Wire::get(r)?,
        })
    }
}

impl Wire for Layout {
    const LEAST: usize = 4;

    fn put(&self, out: &mut Vec<u8>) {
        put_text(self.word(), out);
    }

    fn get(r: &mut Reader) -> Result<Self, ProtocolError> {
        let word = String::get(r)?;
        let mut known = Self::ALL.into_iter();
        known
            .find(|layout| layout.word() == word)
            .ok_or(ProtocolError::Value("a layout"))
    }
}

impl Wire for SpeechModelInfo {
    const LEAST: usize = 34;

    fn put(&self, out: &mut Vec<u8>) {
        let Self {
            name,
            engine,
            multilingual,
            weight_bytes,
            max_batch,
            default_beam,
            word_time_offset,
            layout,
            word_times,
            takes_prefix,
        } = self;
        name.put(out);
        engine.put(out);
        multilingual.put(out);
        weight_bytes.put(out);
        u32::try_from(*max_batch).unwrap_or(u32::MAX).put(out);
        default_beam.put(out);
        word_time_offset.put(out);
        layout.put(out);
        word_times.put(out);
        takes_prefix.put(out);
    }

    fn get(r: &mut Reader) -> Result<Self, ProtocolError> {
        Ok(Self {
            name: Wire::get(r)?,
            engine: Wire::get(r)?,
            multilingual: Wire::get(r)?,
            weight_bytes: Wire::get(r)?,
            max_batch: u32::get(r)? as usize,
            default_beam: Wire::get(r)?,
            word_time_offset: Wire::get(r)?,
            layout: Wire::get(r)?,
            word_times: Wire::get(r)?,
            takes_prefix: Wire::get(r)?,
        })
    }
}

impl Wire for Level {
    const LEAST: usize = 1;

    fn put(&self, out: &mut Vec<u8>) {
        out.push(match self {
            Self::Debug => 0,
            Self::Info => 1,
            Self::Warning => 2,
            Self::Error => 3,
        });
    }

    fn get(r: &mut Reader) -> Result<Self, ProtocolError> {
        match u8::get(r)? {
            0 => Ok(Self::Debug),
            1 => Ok(Self::Info),
            2 => Ok(Self::Warning),
            3 => Ok(Self::Error),
            _ => Err(ProtocolError::Value("a level")),
        }
    }
}

impl Wire for BatchParams {
    const LEAST: usize = 14;

    fn put(&self, out: &mut Vec<u8>) {
        let Self {
            beam,
            temperature,
            best_of,
            timestamps,
            word_times,
        } = self;
        beam.put(out);
        temperature.put(out);
        best_of.put(out);
        timestamps.put(out);
        word_times.put(out);
    }

    fn get(r: &mut Reader) -> Result<Self, ProtocolError> {
        Ok(Self {
            beam: Wire::get(r)?,
            temperature: Wire::get(r)?,
            best_of: Wire::get(r)?,
            timestamps: Wire::get(r)?,
            word_times: Wire::get(r)?,
        })
    }
}

impl Wire for Job {
    const LEAST: usize = 34;

    fn put(&self, out: &mut Vec<u8>) {
        self.job.put(out);
        self.area.put(out);
        self.samples.put(out);
        match &self.language {
            Language::Auto => None,
            // No language has a longer code: cut, it is still an unknown one.
            Language::Fixed(code) => Some(cut(code, 64).to_owned()),
        }
        .put(out);
        (self.task == Task::Translate).put(out);
        put_text(cut(&self.prompt, MAX_PROMPT), out);
        let mut room = MAX_PROMPT;
        let fits = |word: &&String| {
            let rest = room.checked_sub(word.len() + 4);
            room = rest.unwrap_or(0);
            rest.is_some()
        };
        let words: Vec<String> = self.vocabulary.iter().take_while(fits).cloned().collect();
        words.put(out);
        let prefix = &self.prefix[..self.prefix.len().min(MAX_PREFIX)];
        prefix.to_vec().put(out);
        self.most_tokens.put(out);
    }

    fn get(r: &mut Reader) -> Result<Self, ProtocolError> {
        Ok(Self {
            job: Wire::get(r)?,
            area: Wire::get(r)?,
            samples: Wire::get(r)?,
            language: Option::get(r)?.map_or(Language::Auto, Language::Fixed),
            task: if bool::get(r)? {
                Task::Translate
            } else {
                Task::Transcribe
            },
            prompt: Wire::get(r)?,
            vocabulary: Wire::get(r)?,
            prefix: Wire::get(r)?,
            most_tokens: Wire::get(r)?,
        })
    }
}

impl Wire for Token {
    const LEAST: usize = 14;

    fn put(&self, out: &mut Vec<u8>) {
        let Self {
            id,
            bytes,
            probability,
            start,
            end,
        } = self;
        id.put(out);
        bytes.put(out);
        probability.put(out);
        start.put(out);
        end.put(out);
    }

    fn get(r: &mut Reader) -> Result<Self, ProtocolError> {
        Ok(Self {
            id: Wire::get(r)?,
            bytes: Wire::get(r)?,
            probability: Wire::get(r)?,
            start: Wire::get(r)?,
            end: Wire::get(r)?,
        })
    }
}

impl Wire for Decoded {
    const LEAST: usize = 25;

    fn put(&self, out: &mut Vec<u8>) {
        let Self {
            tokens,
            language,
            sot_no_speech,
            avg_logprob,
            alignment_end,
            gaps,
            temperature,
        } = self;
        tokens.put(out);
        language.put(out);
        sot_no_speech.put(out);
        avg_logprob.put(out);
        alignment_end.put(out);
        gaps.put(out);
        temperature.put(out);
    }

    fn get(r: &mut Reader) -> Result<Self, ProtocolError> {
        Ok(Self {
            tokens: Wire::get(r)?,
            language: Wire::get(r)?,
            sot_no_speech: Wire::get(r)?,
            avg_logprob: Wire::get(r)?,
            alignment_end: Wire::get(r)?,
            gaps: Wire::get(r)?,
            temperature: Wire::get(r)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn window(prompt: String, vocabulary: Vec<String>) -> Message {
        Message::Window(Job {
            job: 7,
            area: 0,
            samples: 16_000,
            language: Language::Fixed("en".into()),
            task: Task::Transcribe,
            prompt,
            vocabulary,
            prefix: vec![11, 12],
            most_tokens: 40,
        })
    }

    #[test]
    fn a_packet_cut_anywhere_is_no_message() {
        let packet = window("Ada".into(), vec!["Lovelace".into()])
            .encode()
            .unwrap();

        for length in 0..packet.len() {
            assert_eq!(
                Message::decode(&packet[..length]),
                Err(ProtocolError::Length),
                "{length}"
            );
        }
    }

    #[test]
    fn another_version_is_named() {
        let mut packet = Message::Next.encode().unwrap();
        packet[0] = 9;

        assert_eq!(
            Message::decode(&packet),
            Err(ProtocolError::Version { found: 9 })
        );
    }

    #[test]
    fn a_list_longer_than_its_packet_is_refused_before_it_is_made() {
        let mut packet = window(String::new(), vec![]).encode().unwrap();
        let end = packet.len();
        // The prefix: its length stands before two tokens and the bound behind it.
        packet[end - 16..end - 12].copy_from_slice(&u32::MAX.to_le_bytes());

        assert_eq!(Message::decode(&packet), Err(ProtocolError::Length));
    }

    #[test]
    fn a_prompt_of_any_length_makes_a_message_that_can_be_sent() {
        let words: Vec<String> = (0..100_000).map(|n| format!("Wörter{n}")).collect();

        let packet = window("ß".repeat(100_000), words.clone()).encode().unwrap();

        let Ok(Message::Window(job)) = Message::decode(&packet) else {
            panic!("it does not come back");
        };
        assert_eq!(job.prompt.len(), MAX_PROMPT);
        assert!(job.vocabulary.len() > 900, "{}", job.vocabulary.len());
        assert!(words.starts_with(&job.vocabulary));
    }

    #[test]
    fn an_answer_that_is_too_long_is_not_sent() {
        let token = Token {
            id: 1,
            bytes: vec![b'x'; 600],
            probability: 1.0,
            start: None,
            end: None,
        };
        let decoded = Decoded {
            tokens: vec![token; 200],
            ..Decoded::default()
        };

        let refused = Message::Answer {
            job: 1,
            result: Ok(decoded),
        }
        .encode();

        assert!(matches!(refused, Err(ProtocolError::TooLong(_))));
    }
}
