// SPDX-License-Identifier: MPL-2.0
//! A flag that says: nobody wants the answer any more.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

type Ask = dyn Fn() -> bool + Send + Sync;

/// Shared by whoever asks and whoever works. Clones are the same flag. Once set it stays set.
#[derive(Clone, Default)]
pub struct CancelToken(Arc<Flag>);

#[derive(Default)]
struct Flag {
    set: AtomicBool,
    elsewhere: Option<Box<Ask>>,
}

impl CancelToken {
    /// A fresh flag, not set.
    pub fn new() -> Self {
        Self::default()
    }

    /// A flag that is set elsewhere: `ask` is called at each look, by the thread that works, C code among it.
    /// It must be quick and must not panic.
    pub(crate) fn asking(ask: impl Fn() -> bool + Send + Sync + 'static) -> Self {
        Self(Arc::new(Flag {
            set: AtomicBool::new(false),
            elsewhere: Some(Box::new(ask)),
        }))
    }

    /// Sets it. Work stops at its next opportunity; waiting for it does not.
    pub fn cancel(&self) {
        self.0.set.store(true, Ordering::Release);
    }

    /// Whether it is set. Engines look between their steps, which shows that they live, too.
    pub fn is_cancelled(&self) -> bool {
        self.0.set.load(Ordering::Acquire) || self.0.elsewhere.as_ref().is_some_and(|ask| ask())
    }
}

impl fmt::Debug for CancelToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("CancelToken").field(&self.0.set).finish()
    }
}
