// SPDX-License-Identifier: MPL-2.0
//! A ticket stands for an answer that is being worked on.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::sync::{Condvar, Rank, Ranked, holds_none};
use crate::inference::{CancelToken, EngineError};

/// How long an answer is waited for before the cancel token is looked at.
const CANCEL_POLL: Duration = Duration::from_millis(50);

type Waker = Box<dyn FnOnce() + Send>;

struct State<T> {
    result: Option<Result<T, EngineError>>,
    waker: Option<Waker>,
    done: bool,
}

pub(super) struct Slot<T> {
    state: Ranked<State<T>>,
    ready: Condvar,
}

impl<T> Slot<T> {
    pub(super) fn new() -> Arc<Self> {
        let state = State {
            result: None,
            waker: None,
            done: false,
        };
        Arc::new(Self {
            state: Ranked::new(Rank::Answer, state),
            ready: Condvar::new(),
        })
    }

    /// Puts the answer in. The first one counts.
    pub(super) fn put(&self, result: Result<T, EngineError>) {
        let mut state = self.state.lock();
        if state.done {
            return;
        }
        state.done = true;
        state.result = Some(result);
        let waker = state.waker.take();
        drop(state);
        self.ready.notify_all();
        if let Some(waker) = waker {
            holds_none("an answer's waker");
            waker();
        }
    }
}

/// An answer to come. Dropping it cancels the work.
pub struct Ticket<T> {
    pub(super) slot: Arc<Slot<T>>,
    pub(super) cancel: CancelToken,
}

impl<T> Ticket<T> {
    /// The answer, if it is there. Given out once.
    pub fn poll(&mut self) -> Option<Result<T, EngineError>> {
        self.slot.state.lock().result.take()
    }

    /// Whether the answer has come.
    pub fn is_ready(&self) -> bool {
        self.slot.state.lock().done
    }

    /// Waits for the answer, at most `timeout`.
    pub fn wait(&mut self, timeout: Duration) -> Option<Result<T, EngineError>> {
        let until = Instant::now() + timeout;
        let mut state = self.slot.state.lock();
        loop {
            if let Some(result) = state.result.take() {
                return Some(result);
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() || state.done {
                return None;
            }
            state = state.wait_timeout(&self.slot.ready, left).0;
        }
    }

    /// Waits for the answer. [`EngineError::Cancelled`] once `cancel` is.
    pub fn answer(&mut self, cancel: &CancelToken) -> Result<T, EngineError> {
        loop {
            if cancel.is_cancelled() {
                return Err(EngineError::Cancelled);
            }
            if let Some(answer) = self.wait(CANCEL_POLL) {
                return answer;
            }
        }
    }

    /// Calls `wake` once when the answer comes, at once if it is there. It runs on the lane's thread: it must
    /// be short.
    pub fn on_ready(&self, wake: impl FnOnce() + Send + 'static) {
        let mut state = self.slot.state.lock();
        if state.done {
            drop(state);
            wake();
        } else {
            state.waker = Some(Box::new(wake));
        }
    }

    /// Says that the answer is not wanted. Whoever waits for it hears so at once, though the engine may look up only
    /// after a while: what it still gives is dropped.
    pub fn cancel(&self) {
        self.cancel.cancel();
        self.slot.put(Err(EngineError::Cancelled));
    }
}

impl<T> Drop for Ticket<T> {
    fn drop(&mut self) {
        self.cancel.cancel();
    }
}

impl<T> std::fmt::Debug for Ticket<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ticket")
            .field("ready", &self.is_ready())
            .finish_non_exhaustive()
    }
}
