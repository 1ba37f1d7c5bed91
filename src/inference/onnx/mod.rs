// SPDX-License-Identifier: MPL-2.0
//! Models on ONNX Runtime.

pub mod library;
pub mod vad;
