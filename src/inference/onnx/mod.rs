// SPDX-License-Identifier: MPL-2.0
//! Models on ONNX Runtime.

pub mod arena;
pub mod attention;
pub mod checked;
pub mod cross;
pub mod cuda;
pub mod embedding;
mod lanes;
pub mod library;
pub mod linear;
pub mod past;
mod protobuf;
pub mod segmentation;
#[cfg(target_arch = "x86_64")]
mod tiles;
pub mod vad;
pub mod whisper;

use std::path::PathBuf;

use ort::operator::OperatorDomain;

use super::EngineError;
pub use protobuf::{FloatConstant, float_constants, keeps_data_outside};

/// The domain of our operators.
pub const DOMAIN: &str = "scribe";
/// Their names.
const OPERATORS: [&str; 4] = [attention::NAME, cross::NAME, linear::NAME, past::NAME];

/// The domain with our operators, for a session.
fn domain() -> Result<OperatorDomain, ort::Error> {
    OperatorDomain::new(DOMAIN)?
        .add(attention::SelfAttention)?
        .add(cross::CrossAttention)?
        .add(linear::Linear)?
        .add(past::PastAttention)
}

/// Lengths of a tensor that an operator of ours is given; none where one is no length.
fn lengths(shape: &[i64]) -> Option<Vec<usize>> {
    shape.iter().map(|n| usize::try_from(*n).ok()).collect()
}

/// What an operator of ours cannot do.
fn wrong(operator: &str, what: &str) -> ort::Error {
    ort::Error::new(format!("{DOMAIN}.{operator}: {what}"))
}

/// By what a process runs models on ONNX Runtime. A worker is told that of its parent, so that both do the same.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Runtime {
    /// Libraries to try, the first that will do is taken.
    pub libraries: Vec<PathBuf>,
    /// Most bytes of its arena.
    pub arena_cap: u64,
}

impl Runtime {
    /// That of this process.
    pub fn own() -> Self {
        Self {
            libraries: library::choices(),
            arena_cap: arena::arena_cap(),
        }
    }

    /// Makes it that of this process, which has run no model yet.
    pub fn adopt(self) -> Result<(), EngineError> {
        library::set_choices(self.libraries);
        arena::set_arena_cap(self.arena_cap)
    }
}
