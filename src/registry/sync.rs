// SPDX-License-Identifier: MPL-2.0
//! The registry's locks. Each has a rank: whoever holds one may take only those of a higher rank, and whoever waits, for a
//! load, a batch, memory or cores, holds none but the one he waits with. Two threads then never wait for each other.
//!
//! Looked at in debug builds and in all tests, where a lock out of its rank panics. For the model of `model_check` the
//! same code runs on shuttle's locks and threads, which try one interleaving after another.

use std::ops::{Deref, DerefMut};
use std::time::Duration;

#[cfg(all(test, feature = "model-check"))]
mod platform {
    pub use shuttle::sync::{Condvar, Mutex, MutexGuard, Once};
    pub use shuttle::thread;
}

#[cfg(not(all(test, feature = "model-check")))]
mod platform {
    pub use std::sync::{Condvar, Mutex, MutexGuard, Once};
    pub use std::thread;
}

pub(super) use platform::{Condvar, Once, thread};

/// In the order in which they may be taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Rank {
    /// The registry's models.
    Index,
    /// What a request that stands in line holds.
    Held,
    /// How far a lease has read of what its model has to tell.
    Seen,
    /// A model: new, loading, ready, gone.
    Life,
    /// How many have leased it.
    Leases,
    /// Its queue and lanes.
    Work,
    /// The sizes of its batches.
    Batcher,
    /// What it has to tell.
    Events,
    /// The reservation of its weights.
    Weights,
    /// Who waits for memory.
    Line,
    /// What is reserved.
    Books,
    /// An answer.
    Answer,
    /// Cores.
    Permits,
}

/// A mutex with its rank. A thread that panicked with it does not make it unusable: nothing is left half done under it.
#[derive(Debug)]
pub(super) struct Ranked<T> {
    rank: Rank,
    mutex: platform::Mutex<T>,
}

impl<T> Ranked<T> {
    pub(super) fn new(rank: Rank, value: T) -> Self {
        Self {
            rank,
            mutex: platform::Mutex::new(value),
        }
    }

    pub(super) fn lock(&self) -> Guard<'_, T> {
        let held = held::enter(self.rank);
        let guard = self
            .mutex
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        Guard {
            guard: Some(guard),
            _held: held,
        }
    }

    pub(super) fn get_mut(&mut self) -> &mut T {
        self.mutex
            .get_mut()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

/// See [`Ranked::lock`].
#[derive(Debug)]
pub(super) struct Guard<'a, T> {
    /// There but while it waits.
    guard: Option<platform::MutexGuard<'a, T>>,
    // Dropped after the guard.
    _held: held::Held,
}

impl<T> Guard<'_, T> {
    /// Waits for `changed`.
    pub(super) fn wait(mut self, changed: &Condvar) -> Self {
        held::nothing_else("a wait");
        self.guard = self.guard.take().map(|guard| {
            changed
                .wait(guard)
                .unwrap_or_else(std::sync::PoisonError::into_inner)
        });
        self
    }

    /// Waits at most `timeout` to look again, sooner if `changed`: for what may change without a sign. Time does not pass
    /// in the model, where others go first.
    pub(super) fn look_again(self, changed: &Condvar, timeout: Duration) {
        if cfg!(all(test, feature = "model-check")) {
            drop(self);
            thread::yield_now();
        } else {
            drop(self.wait_timeout(changed, timeout));
        }
    }

    /// Waits for `changed`, at most `timeout`. True if that is over.
    pub(super) fn wait_timeout(mut self, changed: &Condvar, timeout: Duration) -> (Self, bool) {
        held::nothing_else("a wait");
        let mut is_over = false;
        self.guard = self.guard.take().map(|guard| {
            let (guard, outcome) = changed
                .wait_timeout(guard, timeout)
                .unwrap_or_else(std::sync::PoisonError::into_inner);
            is_over = outcome.timed_out();
            guard
        });
        (self, is_over)
    }
}

impl<T> Deref for Guard<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        match &self.guard {
            Some(guard) => guard,
            None => unreachable!("a guard is without its lock only while it waits"),
        }
    }
}

impl<T> DerefMut for Guard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        match &mut self.guard {
            Some(guard) => guard,
            None => unreachable!("a guard is without its lock only while it waits"),
        }
    }
}

/// Panics, where locks are looked at, if this thread holds one now that it begins `what`.
pub(super) fn holds_none(what: &str) {
    held::nothing(what);
}

/// What this thread holds.
#[cfg(all(
    any(debug_assertions, test, feature = "test-support"),
    not(all(test, feature = "model-check"))
))]
mod held {
    use std::cell::RefCell;

    use super::Rank;

    thread_local! {
        static HELD: RefCell<Vec<Rank>> = const { RefCell::new(Vec::new()) };
    }

    #[derive(Debug)]
    pub(super) struct Held(Rank);

    pub(super) fn enter(rank: Rank) -> Held {
        HELD.with_borrow_mut(|held| {
            // While a panic unwinds, what is dropped takes locks as it finds them.
            let wrong = held.iter().find(|before| **before >= rank);
            if let Some(before) = wrong.filter(|_| !std::thread::panicking()) {
                let before = *before;
                panic!(
                    "the lock {rank:?} is taken after {before:?}, of the same rank or a higher one"
                );
            }
            held.push(rank);
        });
        Held(rank)
    }

    pub(super) fn nothing_else(what: &str) {
        HELD.with_borrow(|held| assert!(held.len() == 1, "{what} begins while {held:?} are held"));
    }

    pub(super) fn nothing(what: &str) {
        HELD.with_borrow(|held| assert!(held.is_empty(), "{what} begins while {held:?} are held"));
    }

    impl Drop for Held {
        fn drop(&mut self) {
            // A thread that ends may drop a guard after what it remembers is gone.
            let _ = HELD.try_with(|held| {
                let mut held = held.borrow_mut();
                if let Some(at) = held.iter().rposition(|rank| *rank == self.0) {
                    held.remove(at);
                }
            });
        }
    }
}

#[cfg(not(all(
    any(debug_assertions, test, feature = "test-support"),
    not(all(test, feature = "model-check"))
)))]
mod held {
    use super::Rank;

    #[derive(Debug)]
    pub(super) struct Held;

    pub(super) fn enter(_rank: Rank) -> Held {
        Held
    }

    pub(super) fn nothing_else(_what: &str) {}

    pub(super) fn nothing(_what: &str) {}
}

#[cfg(all(test, not(feature = "model-check")))]
mod tests {
    use super::*;

    #[test]
    fn locks_are_taken_in_the_order_of_their_ranks() {
        let (index, work) = (Ranked::new(Rank::Index, 1), Ranked::new(Rank::Work, 2));

        let sum = {
            let index = index.lock();
            *index + *work.lock()
        };

        assert_eq!(sum, 3);
    }

    #[test]
    #[should_panic(expected = "the lock Index is taken after Work")]
    fn a_lock_out_of_its_rank_is_told() {
        let (index, work) = (Ranked::new(Rank::Index, ()), Ranked::new(Rank::Work, ()));

        let _work = work.lock();
        let _index = index.lock();
    }

    #[test]
    #[should_panic(expected = "the lock Work is taken after Work")]
    fn two_of_a_rank_are_never_held_together() {
        let (one, other) = (Ranked::new(Rank::Work, ()), Ranked::new(Rank::Work, ()));

        let _one = one.lock();
        let _other = other.lock();
    }

    #[test]
    #[should_panic(expected = "a wait begins while [Index, Work] are held")]
    fn whoever_waits_holds_no_other_lock() {
        let (index, work) = (Ranked::new(Rank::Index, ()), Ranked::new(Rank::Work, ()));

        let _index = index.lock();
        let _ = work
            .lock()
            .wait_timeout(&Condvar::new(), Duration::from_millis(1));
    }
}
