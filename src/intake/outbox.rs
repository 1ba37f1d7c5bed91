// SPDX-License-Identifier: MPL-2.0
//! What the worker leaves for the streaming thread: events that go downstream between the buffers, and word of how far
//! the worker has come.

use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

#[derive(Debug, Default)]
struct State {
    events: VecDeque<gst::Event>,
    /// Ends of streams that were handed to the worker, and those that it has done.
    asked: u64,
    done: u64,
    /// Flushing, on the way to READY, or the worker has given up: nobody waits.
    is_shut: bool,
}

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Outbox {
    state: Mutex<State>,
    changed: Condvar,
}

impl Outbox {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A new epoch: empty.
    pub(crate) fn open(&self) {
        *self.lock() = State::default();
    }

    /// Nobody waits any more, and what is there is void.
    pub(crate) fn shut(&self) {
        let mut state = self.lock();
        state.is_shut = true;
        state.events.clear();
        drop(state);
        self.changed.notify_all();
    }

    /// Worker: an event for downstream.
    pub(crate) fn put(&self, event: gst::Event) {
        let mut state = self.lock();
        if !state.is_shut {
            state.events.push_back(event);
        }
    }

    /// Worker: all up to the end that was asked about is done.
    pub(crate) fn done(&self) {
        self.lock().done += 1;
        self.changed.notify_all();
    }

    /// Streaming thread: the end of a stream goes to the worker now.
    pub(crate) fn ask(&self) -> u64 {
        let mut state = self.lock();
        state.asked += 1;
        state.asked
    }

    /// Streaming thread: waits until the worker has done end number `end`, or never will.
    pub(crate) fn wait(&self, end: u64) {
        let mut state = self.lock();
        while state.done < end && !state.is_shut {
            state = self
                .changed
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Streaming thread: what is to go downstream now.
    pub(crate) fn take(&self) -> Vec<gst::Event> {
        self.lock().events.drain(..).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use super::*;

    #[test]
    fn the_end_is_waited_for_until_the_worker_has_done_it() {
        let outbox = Arc::new(Outbox::default());
        let end = outbox.ask();
        let waiting = Arc::clone(&outbox);
        let thread = std::thread::spawn(move || waiting.wait(end));
        std::thread::sleep(Duration::from_millis(20));
        assert!(!thread.is_finished());

        outbox.done();

        assert!(thread.join().is_ok());
    }

    #[test]
    fn a_flush_sends_those_home_who_wait() {
        let _ = gst::init();
        let outbox = Arc::new(Outbox::default());
        let end = outbox.ask();
        outbox.put(gst::event::Eos::new());
        let waiting = Arc::clone(&outbox);
        let thread = std::thread::spawn(move || waiting.wait(end));

        outbox.shut();

        assert!(thread.join().is_ok());
        assert_eq!(outbox.take().len(), 0);
        outbox.put(gst::event::Eos::new());
        assert_eq!(outbox.take().len(), 0);
        outbox.open();
        outbox.put(gst::event::Eos::new());
        assert_eq!(outbox.take().len(), 1);
    }
}
