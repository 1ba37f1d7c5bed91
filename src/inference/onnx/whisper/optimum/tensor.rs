// SPDX-License-Identifier: MPL-2.0
//! Tensors whose floats have 32 bits or 16: an export's type is known when it is loaded.

#![allow(
    unsafe_code,
    reason = "no safe call gives the bytes of a tensor of 16-bit floats"
)]

use std::borrow::Cow;

use ort::memory::Allocator;
use ort::value::{DynTensor, DynValue, TensorElementType};

use crate::inference::onnx::checked;
use crate::inference::onnx::whisper::TASK;
use crate::inference::onnx::whisper::runner::failed;
use crate::inference::{EngineError, halves};

/// Whether a type is one of floats that are known.
pub(super) fn is_float(kind: TensorElementType) -> bool {
    matches!(
        kind,
        TensorElementType::Float32 | TensorElementType::Float16
    )
}

/// Zeros.
pub(super) fn zeros(kind: TensorElementType, shape: &[usize]) -> Result<DynTensor, EngineError> {
    let shape: Vec<i64> = shape.iter().map(|n| *n as i64).collect();
    DynTensor::new(&Allocator::default(), kind, shape).map_err(|e| checked::error(TASK, &e))
}

/// An output as a tensor of floats of that shape.
pub(super) fn given(
    value: DynValue,
    name: &str,
    kind: TensorElementType,
    shape: &[usize],
) -> Result<DynTensor, EngineError> {
    let odd = |what: String| failed(format!("the output {name} is {what}"));
    let tensor: DynTensor = value.downcast().map_err(|_| odd("no tensor".into()))?;
    let same = |(found, wanted): (&i64, &usize)| usize::try_from(*found) == Ok(*wanted);
    let found = tensor.shape();
    if found.len() != shape.len() || !found.iter().zip(shape).all(same) {
        return Err(odd(format!("of shape {found:?}, not {shape:?}")));
    }
    if *tensor.data_type() != kind || !is_float(kind) {
        return Err(odd(format!("{}, not {kind}", tensor.data_type())));
    }
    Ok(tensor)
}

/// The values of a tensor of floats.
pub(super) fn floats(tensor: &DynTensor) -> Result<Cow<'_, [f32]>, EngineError> {
    if *tensor.data_type() == TensorElementType::Float16 {
        let (values, _) = bytes(tensor).as_chunks::<2>();
        let value = |half: &[u8; 2]| halves::to_f32(u16::from_ne_bytes(*half));
        return Ok(values.iter().map(value).collect());
    }
    let found = tensor.try_extract_tensor::<f32>();
    Ok(Cow::Borrowed(
        found.map_err(|e| checked::error(TASK, &e))?.1,
    ))
}

/// Writes values into a tensor of as many floats.
pub(super) fn write(tensor: &mut DynTensor, values: &[f32]) -> Result<(), EngineError> {
    if *tensor.data_type() == TensorElementType::Float16 {
        let (places, _) = bytes_mut(tensor).as_chunks_mut::<2>();
        for (place, value) in places.iter_mut().zip(values) {
            *place = halves::from_f32(*value).to_ne_bytes();
        }
        return Ok(());
    }
    let found = tensor.try_extract_tensor_mut::<f32>();
    let (_, places) = found.map_err(|e| checked::error(TASK, &e))?;
    places.copy_from_slice(values);
    Ok(())
}

/// The same values as floats of that type.
pub(super) fn as_kind(
    tensor: DynTensor,
    kind: TensorElementType,
) -> Result<DynTensor, EngineError> {
    if *tensor.data_type() == kind {
        return Ok(tensor);
    }
    let mut other = zeros(kind, &lengths(&tensor))?;
    write(&mut other, &floats(&tensor)?)?;
    Ok(other)
}

/// A tensor's shape.
pub(super) fn lengths(tensor: &DynTensor) -> Vec<usize> {
    let shape = tensor.shape().iter();
    shape.map(|n| usize::try_from(*n).unwrap_or(0)).collect()
}

/// The bytes of its values. What has texts, or lies on a card, has none here.
pub(super) fn bytes(tensor: &DynTensor) -> &[u8] {
    let length = length(tensor);
    if length == 0 {
        return &[];
    }
    // SAFETY: `length` says how many bytes the tensor owns where the pointer leads: plain numbers in the processor's memory.
    // They are borrowed as long as the tensor is.
    unsafe { std::slice::from_raw_parts(tensor.data_ptr().cast(), length) }
}

/// The same, to be written.
pub(super) fn bytes_mut(tensor: &mut DynTensor) -> &mut [u8] {
    let length = length(tensor);
    if length == 0 {
        return &mut [];
    }
    // SAFETY: as above; the tensor is borrowed mutably, and any bytes are numbers of the types that `length` lets pass.
    unsafe { std::slice::from_raw_parts_mut(tensor.data_ptr_mut().cast(), length) }
}

fn length(tensor: &DynTensor) -> usize {
    let here = tensor.memory_info().is_cpu_accessible() && is_float(*tensor.data_type());
    let values = tensor.shape().num_elements();
    let bytes = tensor.data_type().byte_size(values);
    bytes.filter(|_| here).unwrap_or(0)
}
