// SPDX-License-Identifier: MPL-2.0
//! Arrays of samples and what is computed from them. Plain functions of numbers: they know no model, no stream and no
//! clock.

pub mod fbank;
pub mod mel;
pub mod spectrum;
pub mod vectors;
