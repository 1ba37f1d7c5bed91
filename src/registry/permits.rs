// SPDX-License-Identifier: MPL-2.0
//! Compute permits: as many as the machine has cores, handed out in the order of asking, so that two models
//! never run more threads than there are cores. ggml's threads meet at spin barriers: one thread too many
//! costs several times the speed.

use std::collections::VecDeque;

use super::sync::{Condvar, Rank, Ranked, holds_none};

/// See the module.
#[derive(Debug)]
pub(super) struct Permits {
    state: Ranked<State>,
    freed: Condvar,
    all: usize,
}

#[derive(Debug)]
struct State {
    free: usize,
    waiting: VecDeque<u64>,
    next: u64,
}

/// Gives its permits back when dropped.
#[derive(Debug)]
pub(super) struct Permit<'a> {
    from: &'a Permits,
    count: usize,
}

impl Permits {
    pub(super) fn new(all: usize) -> Self {
        let state = State {
            free: all.max(1),
            waiting: VecDeque::new(),
            next: 0,
        };
        Self {
            state: Ranked::new(Rank::Permits, state),
            freed: Condvar::new(),
            all: all.max(1),
        }
    }

    /// Whether somebody waits.
    pub(super) fn are_wanted(&self) -> bool {
        !self.state.lock().waiting.is_empty()
    }

    /// Waits for `count` permits (at most all there are) behind those who asked before.
    pub(super) fn take(&self, count: usize) -> Permit<'_> {
        holds_none("a wait for cores");
        let count = count.min(self.all);
        let mut state = self.state.lock();
        let own = state.next;
        state.next += 1;
        state.waiting.push_back(own);
        while state.waiting.front() != Some(&own) || state.free < count {
            state = state.wait(&self.freed);
        }
        state.waiting.pop_front();
        state.free -= count;
        drop(state);
        self.freed.notify_all();
        Permit { from: self, count }
    }
}

impl Drop for Permit<'_> {
    fn drop(&mut self) {
        self.from.state.lock().free += self.count;
        self.from.freed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};

    #[test]
    fn no_more_run_at_once_than_there_are_permits() {
        let permits = Permits::new(2);
        let (running, most) = (AtomicUsize::new(0), AtomicUsize::new(0));

        std::thread::scope(|scope| {
            for i in 0..8 {
                let (permits, running, most) = (&permits, &running, &most);
                scope.spawn(move || {
                    for _ in 0..50 {
                        let count = 1 + i % 2;
                        let _permit = permits.take(count);
                        most.fetch_max(
                            running.fetch_add(count, Ordering::SeqCst) + count,
                            Ordering::SeqCst,
                        );
                        std::thread::yield_now();
                        running.fetch_sub(count, Ordering::SeqCst);
                    }
                });
            }
        });

        assert_eq!(most.load(Ordering::SeqCst), 2);
    }

    #[test]
    fn asking_for_more_than_all_gets_all() {
        let permits = Permits::new(2);

        drop(permits.take(64));
        drop(permits.take(2));
    }
}
