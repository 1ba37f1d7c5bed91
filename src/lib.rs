// SPDX-License-Identifier: MPL-2.0
//! scribe: GStreamer elements that turn decoded audio into words with times, speakers and names.
//!
//! Layers, from the top; each may use those below it and never one above: elements (`transcriber`,
//! `encoder`, …), logic (`transcribe`, `transcript`, `audio`), `registry`, `inference`, `dsp`.

pub mod audio;
pub mod inference;
pub mod registry;
pub mod transcribe;
pub mod transcript;
