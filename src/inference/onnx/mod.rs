// SPDX-License-Identifier: MPL-2.0
//! Models on ONNX Runtime.

pub mod arena;
pub mod checked;
pub mod cuda;
pub mod embedding;
pub mod library;
mod protobuf;
pub mod segmentation;
pub mod vad;
pub mod whisper;
