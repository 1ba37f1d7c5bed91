// SPDX-License-Identifier: MPL-2.0
//! Who talks when: what the diarizer and the enroller have in common.

pub mod activity;
pub mod cluster;
pub mod identities;
mod local;
pub mod models;
pub mod names;
pub mod offline;
pub mod online;
pub mod reconstruct;
pub mod voice;
