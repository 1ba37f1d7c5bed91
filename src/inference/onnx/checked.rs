// SPDX-License-Identifier: MPL-2.0
//! Sessions on ONNX files that nobody vouches for.
//!
//! A file is opened once and read whole; the bytes that are checked are the bytes that ONNX Runtime gets, so that a
//! file replaced meanwhile changes nothing. They must be ONNX with all data inside, or in the one file beside it where a loader
//! allows for that (see `protobuf`), and the loaded
//! graph must take and give what its contract says. Operators of ours are only for graphs whose contract wants one. Whether its outputs are numbers, the model's own loader tries
//! with a first run. Libraries of operators are never loaded.

use std::ffi::OsStr;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use ort::session::builder::SessionBuilder;
use ort::session::{RunOptions, Session};
use ort::value::{Outlet, TensorElementType, TensorRef, ValueType};
use sha2::{Digest as _, Sha256};

use super::cuda::{self, Room};
use super::{arena, library, protobuf};
use crate::inference::{EngineError, manifest};

/// A longer file is not read: no message of protobuf can be longer.
pub const MODEL_BYTES_MAX: u64 = (1 << 31) - 1;

/// A file of data beside a graph that is longer is not read: Whisper's largest has 6.2 GB.
const DATA_BYTES_MAX: u64 = 16 << 30;

/// What ONNX Runtime may work out of constants when it loads a graph, for each node. A damaged shape would otherwise
/// make it fill as much memory as the shape says, outside the arena. (Older versions do not know the option.)
const FOLDED_BYTES_MAX: &str = "16777216";

/// Type of a tensor's elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Element {
    /// 32-bit floats.
    F32,
    /// 64-bit integers.
    I64,
    /// 16 bits, whatever they mean.
    U16,
    /// Bytes.
    U8,
}

/// An input or an output that a graph must have.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Port {
    /// Its name.
    pub name: String,
    /// Type of its elements.
    pub element: Element,
    /// Its lengths; `None` for one that the caller, or the data, decides.
    pub shape: Vec<Option<u64>>,
}

/// What a graph must take and give.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Default)]
pub struct Ports {
    /// All of its inputs.
    pub inputs: Vec<Port>,
    /// The outputs that are used.
    pub outputs: Vec<Port>,
}

impl Port {
    /// One of 32-bit floats.
    pub fn f32(name: &str, shape: &[Option<u64>]) -> Self {
        Self {
            name: name.into(),
            element: Element::F32,
            shape: shape.to_vec(),
        }
    }

    /// One of halves, which our operators take.
    pub fn u16(name: &str, shape: &[Option<u64>]) -> Self {
        Self {
            element: Element::U16,
            ..Self::f32(name, shape)
        }
    }

    /// One of bytes, the same.
    pub fn u8(name: &str, shape: &[Option<u64>]) -> Self {
        Self {
            element: Element::U8,
            ..Self::f32(name, shape)
        }
    }
}

impl Ports {
    /// As the contract of a manifest entry lists them; what is wrong with the contract, if it does not.
    pub fn of(contract: &manifest::Contract) -> Result<Self, String> {
        let list = |name: &str| -> Result<Vec<Port>, String> {
            let ports = contract.details.get(name).and_then(toml::Value::as_array);
            let ports = ports.ok_or_else(|| format!("its contract lists no {name}"))?;
            ports
                .iter()
                .map(|p| port(p).ok_or_else(|| format!("its contract's {name} are not understood")))
                .collect()
        };
        Ok(Self {
            inputs: list("inputs")?,
            outputs: list("outputs")?,
        })
    }
}

fn port(value: &toml::Value) -> Option<Port> {
    let element = match value.get("type")?.as_str()? {
        "f32" => Element::F32,
        "i64" => Element::I64,
        _ => return None,
    };
    let shape = value.get("shape")?.as_array()?.iter();
    let length = |length: &toml::Value| match length {
        toml::Value::String(_) => Some(None),
        other => other
            .as_integer()
            .and_then(|n| u64::try_from(n).ok())
            .map(Some),
    };
    Some(Port {
        name: value.get("name")?.as_str()?.to_owned(),
        element,
        shape: shape.map(length).collect::<Option<_>>()?,
    })
}

/// Bytes that a graph takes once it is loaded from a file of `file_bytes`: its weights and, of ONNX Runtime and of
/// what it knows of the graph, 9 to 12 MiB, most of it once a process. Measured: 11, 27 and 19 MiB for files of 1.2, 5.7
/// and 6.1 MiB, of which 8 MiB in the second case are malloc's leftovers.
pub(super) fn weights_bytes(file_bytes: u64) -> u64 {
    file_bytes
        .saturating_add(file_bytes / 2)
        .saturating_add(14 << 20)
}

/// Bytes that loading takes on top of that: the file and what is parsed of it. Measured: 5 MiB for a file of 6.
pub(super) fn load_extra_bytes(file_bytes: u64) -> u64 {
    file_bytes.saturating_mul(2)
}

/// SHA-256 of a file's bytes.
pub(super) type Digest = [u8; 32];

/// Loads a graph as a model's loader does, for tests of graphs that no model here is made of.
#[cfg(any(test, feature = "test-support"))]
pub fn session(path: &Path, ports: &Ports) -> Result<Session, EngineError> {
    load(path, ports)
}

/// Loads the graph in `path`, which must have these `ports`.
pub(super) fn load(path: &Path, ports: &Ports) -> Result<Session, EngineError> {
    Ok(load_bytes(path, ports, None)?.0)
}

/// The same, and tells which bytes it was; none but `known` are loaded, if there is such a digest.
pub(super) fn load_bytes(
    path: &Path,
    ports: &Ports,
    known: Option<&Digest>,
) -> Result<(Session, Digest), EngineError> {
    load_on(path, ports, known, None)
}

/// The same, on a card if there is room on one.
pub(super) fn load_on(
    path: &Path,
    ports: &Ports,
    known: Option<&Digest>,
    room: Option<Room>,
) -> Result<(Session, Digest), EngineError> {
    let (session, digest) = open((path, None), known, room, true)?;
    let invalid = |why: String| EngineError::InvalidModel {
        path: path.to_owned(),
        why,
    };
    match_ports("input", session.inputs(), &ports.inputs).map_err(invalid)?;
    match_ports("output", session.outputs(), &ports.outputs).map_err(invalid)?;
    if session.inputs().len() != ports.inputs.len() {
        let names: Vec<&str> = session.inputs().iter().map(Outlet::name).collect();
        return Err(invalid(format!(
            "it wants the inputs {}, and {} are known",
            names.join(", "),
            ports.inputs.len()
        )));
    }
    Ok((session, digest))
}

/// The same, whatever the graph takes and gives: the caller looks. The data of its weights may lie in a file beside it.
pub(super) fn open(
    (path, data): (&Path, Option<&Path>),
    known: Option<&Digest>,
    room: Option<Room>,
    with_our_operators: bool,
) -> Result<(Session, Digest), EngineError> {
    let invalid = |why: String| EngineError::InvalidModel {
        path: path.to_owned(),
        why,
    };
    let bytes = read(path)?;
    let data = data.map(|path| Ok((path, read_data(path)?)));
    let data: Option<(&Path, Arc<[u8]>)> = data.transpose()?;
    let mut digest = Sha256::new_with_prefix(&bytes);
    let mut beside = None;
    if let Some((path, bytes)) = &data {
        digest.update(bytes);
        let name = path.file_name().and_then(OsStr::to_str);
        let name = name.ok_or_else(|| invalid("the file with its data has an odd name".into()))?;
        beside = Some(protobuf::Beside { name, bytes });
    }
    let digest: Digest = digest.finalize().into();
    if known.is_some_and(|known| *known != digest) {
        return Err(invalid(
            "it was replaced while it was in use: start the program again to use the new one"
                .into(),
        ));
    }
    protobuf::check_with(&bytes, beside).map_err(invalid)?;
    let environment = library::environment()?;
    let refused = |e: ort::Error| {
        let what = format!("loading {}", path.display());
        match error(&what, &e) {
            EngineError::Failed { why, .. } => room
                .and_then(|room| cuda::failed(room, &why))
                .unwrap_or_else(|| invalid(format!("ONNX Runtime refused it: {why}"))),
            other => other,
        }
    };
    let mut builder = builder(environment).map_err(refused)?;
    let wanted = with_our_operators && protobuf::wants_ours(&bytes).map_err(invalid)?;
    if wanted {
        builder = super::domain()
            .and_then(|domain| Ok(builder.with_operators(domain)?))
            .map_err(refused)?;
    }
    if let Some(room) = room {
        builder = cuda::register(builder, room)?;
    }
    if let Some(beside) = beside
        && let Some((_, data)) = &data
    {
        builder = builder
            .with_external_initializer_file_in_memory(beside.name, Arc::clone(data))
            .map_err(|e| refused(e.into()))?;
    }
    let session = builder
        .commit_from_memory(&bytes)
        .and_then(|session| arena::watch(&session).map(|()| session))
        .map_err(refused)?;
    Ok((session, digest))
}

fn read(path: &Path) -> Result<Vec<u8>, EngineError> {
    let (file, size) = plain_file(path, MODEL_BYTES_MAX)?;
    let mut bytes = room_for(path, size)?;
    // A file that grows meanwhile is not followed.
    file.take(size)
        .read_to_end(&mut bytes)
        .map_err(|e| unreadable(path, e.to_string()))?;
    Ok(bytes)
}

/// The data of a graph's weights, in one piece.
fn read_data(path: &Path) -> Result<Arc<[u8]>, EngineError> {
    let (mut file, size) = plain_file(path, DATA_BYTES_MAX)?;
    // What follows would end the process if there is no room.
    drop(room_for(path, size)?);
    let mut bytes: Arc<[u8]> = std::iter::repeat_n(0, size as usize).collect();
    // Nobody else has it yet.
    if let Some(bytes) = Arc::get_mut(&mut bytes) {
        file.read_exact(bytes)
            .map_err(|e| unreadable(path, e.to_string()))?;
    }
    Ok(bytes)
}

/// Opens a file of so many bytes at the most, and tells how many it has.
fn plain_file(path: &Path, most: u64) -> Result<(File, u64), EngineError> {
    let file = File::open(path).map_err(|e| unreadable(path, e.to_string()))?;
    let meta = file
        .metadata()
        .map_err(|e| unreadable(path, e.to_string()))?;
    if !meta.is_file() {
        return Err(unreadable(path, "it is not a plain file".into()));
    }
    let size = meta.len();
    if size > most {
        return Err(EngineError::InvalidModel {
            path: path.to_owned(),
            why: format!("it has {size} bytes, and no such file has more than {most}"),
        });
    }
    Ok((file, size))
}

fn room_for(path: &Path, size: u64) -> Result<Vec<u8>, EngineError> {
    let mut bytes = Vec::new();
    bytes
        .try_reserve_exact(size as usize)
        .map_err(|_| EngineError::OutOfMemory {
            what: format!("reading {} ({size} bytes)", path.display()),
        })?;
    Ok(bytes)
}

fn unreadable(path: &Path, why: String) -> EngineError {
    EngineError::ModelFile {
        path: path.to_owned(),
        why,
    }
}

fn builder(environment: &ort::environment::Environment) -> Result<SessionBuilder, ort::Error> {
    Ok(Session::builder(environment)?
        // A lane is one thread: the registry decides how many compute at once.
        .with_intra_threads(1)?
        .with_inter_threads(1)?
        .with_intra_op_spinning(false)?
        .with_inter_op_spinning(false)?
        // A shape's second run would take one planned block, and the blocks of the first would lie beside it: twice the
        // memory (701 MB against 353 for 32 windows of segmentation-3.0) and no time gained.
        .with_memory_pattern(false)?
        .with_env_allocators()?
        // Weights are booked apart from batches: they would fill the arena and round up to its blocks.
        .with_device_allocated_initializers()?
        // The other format would be told by four bytes of the file, and nobody has looked through it.
        .with_config_entry("session.load_model_format", "ONNX")?
        .with_config_entry(
            "optimization.constant_folding_max_output_size_in_bytes",
            FOLDED_BYTES_MAX,
        )?)
}

fn match_ports(side: &str, found: &[Outlet], wanted: &[Port]) -> Result<(), String> {
    for port in wanted {
        let Some(outlet) = found.iter().find(|o| o.name() == port.name) else {
            let names: Vec<&str> = found.iter().map(Outlet::name).collect();
            return Err(format!(
                "it has no {side} named {}, but {}",
                port.name,
                names.join(", ")
            ));
        };
        if !fits(outlet.dtype(), port) {
            return Err(format!(
                "its {side} {} is {:?}, not {:?} of shape {:?}",
                port.name,
                outlet.dtype(),
                port.element,
                port.shape
            ));
        }
    }
    Ok(())
}

fn fits(found: &ValueType, wanted: &Port) -> bool {
    let ValueType::Tensor { ty, shape, .. } = found else {
        return false;
    };
    let element = match wanted.element {
        Element::F32 => TensorElementType::Float32,
        Element::I64 => TensorElementType::Int64,
        Element::U16 => TensorElementType::Uint16,
        Element::U8 => TensorElementType::Uint8,
    };
    // A length that is open in the graph is -1; whether it then is what the contract says, shows when it runs.
    let length = |(&found, wanted): (&i64, &Option<u64>)| {
        found < 0 || wanted.is_some_and(|wanted| u64::try_from(found) == Ok(wanted))
    };
    *ty == element
        && shape.len() == wanted.shape.len()
        && shape.iter().zip(&wanted.shape).all(length)
}

/// Texts of ONNX Runtime, and of the libraries under it, that mean: no memory. It has no code for it.
const NO_MEMORY: [&str; 6] = [
    "BFCArena",
    "AllocateRawInternal",
    "Failed to allocate memory",
    "bad_alloc",
    "out of memory",
    "ALLOC_FAILED",
];

/// What went wrong while `what` was done.
pub(super) fn error(what: &str, error: &ort::Error) -> EngineError {
    let why = error.to_string();
    if NO_MEMORY.iter().any(|text| why.contains(text)) {
        EngineError::OutOfMemory { what: what.into() }
    } else {
        EngineError::Failed {
            what: what.into(),
            why,
        }
    }
}

/// A graph with one input and one output, of floats, whose first length is the batch. Lanes share it.
///
/// ONNX Runtime could run one session on several threads at once; the crate's `run` wants it alone, because not all
/// that ONNX Runtime can be built with is as careful. So lanes that share one take turns, and a batch is how one call does
/// more; lanes that must not wait have one each (`another`).
pub(super) struct BatchGraph {
    /// None after it could not be made anew: the next run tries again.
    session: Mutex<Option<Session>>,
    path: PathBuf,
    ports: Ports,
    digest: Digest,
    input: String,
    output: String,
    /// What a run does, for errors.
    task: &'static str,
}

impl BatchGraph {
    /// Loads it. The caller makes sure that the contract has one port on each side.
    pub fn load(path: &Path, ports: &Ports, task: &'static str) -> Result<Self, EngineError> {
        let ([input], [output]) = (&ports.inputs[..], &ports.outputs[..]) else {
            return Err(EngineError::Unsupported(format!(
                "{}: {task} takes a model with one input and one output",
                path.display()
            )));
        };
        let (session, digest) = load_bytes(path, ports, None)?;
        Ok(Self {
            session: Mutex::new(Some(session)),
            path: path.to_owned(),
            ports: ports.clone(),
            digest,
            input: input.name.clone(),
            output: output.name.clone(),
            task,
        })
    }

    /// Another session from the same bytes, that runs while this one does.
    pub fn another(&self) -> Result<Self, EngineError> {
        Ok(Self {
            session: Mutex::new(Some(self.load_again()?)),
            path: self.path.clone(),
            ports: self.ports.clone(),
            digest: self.digest,
            input: self.input.clone(),
            output: self.output.clone(),
            task: self.task,
        })
    }

    /// Runs `values` of that shape. The output must have the shape `wanted`, and its values must be finite.
    pub fn run(
        &self,
        shape: &[usize],
        values: &[f32],
        wanted: &[usize],
    ) -> Result<Vec<f32>, EngineError> {
        self.run_with(shape, values, wanted, None)
    }

    /// The same, and gives back what this run and larger ones have taken.
    pub fn run_and_shrink(
        &self,
        shape: &[usize],
        values: &[f32],
        wanted: &[usize],
    ) -> Result<Vec<f32>, EngineError> {
        let options = RunOptions::new().and_then(|mut options| {
            options.set("memory.enable_memory_arena_shrinkage", "cpu:0")?;
            Ok(options)
        });
        let options = options.map_err(|e| error(self.task, &e))?;
        self.run_with(shape, values, wanted, Some(&options))
    }

    /// Makes the session anew from the same bytes: all that it held besides its weights goes back.
    pub fn rebuild(&self) -> Result<(), EngineError> {
        let mut session = self.session.lock().unwrap_or_else(PoisonError::into_inner);
        // The old one first: there is no room for two.
        *session = None;
        *session = Some(self.load_again()?);
        Ok(())
    }

    fn load_again(&self) -> Result<Session, EngineError> {
        Ok(load_bytes(&self.path, &self.ports, Some(&self.digest))?.0)
    }

    fn run_with(
        &self,
        shape: &[usize],
        values: &[f32],
        wanted: &[usize],
        options: Option<&RunOptions>,
    ) -> Result<Vec<f32>, EngineError> {
        let what = format!("{} of a batch of {}", self.task, shape[0]);
        let failed = |e: ort::Error| error(&what, &e);
        let wrong = |why: String| EngineError::Failed {
            what: what.clone(),
            why,
        };
        // Not every graph shows it: an LSTM makes numbers of what are none.
        if let Some(odd) = values.iter().find(|v| !v.is_finite()) {
            return Err(wrong(format!("the sound holds {odd}")));
        }
        let input = TensorRef::from_array_view((shape, values)).map_err(failed)?;
        let inputs = ort::inputs![self.input.as_str() => input];
        let mut session = self.session.lock().unwrap_or_else(PoisonError::into_inner);
        let session = match &mut *session {
            Some(session) => session,
            gone => gone.insert(self.load_again()?),
        };
        let outputs = match options {
            Some(options) => session.run_with_options(inputs, options),
            None => session.run(inputs),
        }
        .map_err(failed)?;
        let output = outputs
            .get(&self.output)
            .ok_or_else(|| wrong(format!("no output named {}", self.output)))?;
        let (found, values) = output.try_extract_tensor::<f32>().map_err(failed)?;
        let same = |(&found, &wanted): (&i64, &usize)| usize::try_from(found) == Ok(wanted);
        if found.len() != wanted.len() || !found.iter().zip(wanted).all(same) {
            return Err(wrong(format!(
                "the output has the shape {found:?}, not {wanted:?}"
            )));
        }
        if let Some(odd) = values.iter().find(|v| !v.is_finite()) {
            return Err(wrong(format!("the output holds {odd}")));
        }
        Ok(values.to_vec())
    }
}

/// Runs `batch` with `largest` items, so that all smaller ones find room in what it took. Where that does not fit it
/// gives everything back and tries half; the error of a single item is the outcome.
pub(super) fn warm(
    largest: usize,
    batch: impl Fn(usize) -> Result<(), EngineError>,
    shrink: impl Fn(),
) -> Result<(), EngineError> {
    let mut items = largest.max(1);
    loop {
        match batch(items) {
            Err(EngineError::OutOfMemory { .. }) if items > 1 => {
                shrink();
                items /= 2;
            }
            outcome => return outcome,
        }
    }
}

/// Sound to try a model with: no silence, within -0.25 to 0.25, and the same everywhere.
pub(super) fn probe(samples: usize) -> Vec<f32> {
    (0..samples)
        .map(|k| ((k * 37 % 401) as f32 - 200.0) / 800.0)
        .collect()
}

/// Why the file at `path` is refused, if its first run failed with `error`.
pub(super) fn refused(error: EngineError, path: &Path) -> EngineError {
    match error {
        EngineError::Failed { what, why } => EngineError::InvalidModel {
            path: path.to_owned(),
            why: format!("{what} fails: {why}"),
        },
        other => other,
    }
}
