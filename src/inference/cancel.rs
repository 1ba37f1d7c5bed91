// SPDX-License-Identifier: MPL-2.0
//! A flag that says: nobody wants the answer any more.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Shared by whoever asks and whoever works. Clones are the same flag. Once set it stays set.
#[derive(Clone, Debug, Default)]
pub struct CancelToken(Arc<AtomicBool>);

impl CancelToken {
    /// A fresh flag, not set.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets it. Work stops at its next opportunity; waiting for it does not.
    pub fn cancel(&self) {
        self.0.store(true, Ordering::Release);
    }

    /// Whether it is set.
    pub fn is_cancelled(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }

    /// The flag itself, for callbacks that C code calls.
    pub(crate) fn flag(&self) -> &Arc<AtomicBool> {
        &self.0
    }
}
