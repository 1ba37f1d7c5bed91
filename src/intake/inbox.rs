// SPDX-License-Identifier: MPL-2.0
//! Where the streaming thread leaves sound and events for the stream's worker: in order, bounded in seconds.

use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::inference::CancelToken;

/// Sound at 16 kHz, a vector a channel, all of one length.
#[derive(Debug)]
pub(crate) struct Sound {
    pub channels: Vec<Vec<f32>>,
    pub pts: Option<gst::ClockTime>,
    pub discont: bool,
}

/// What waits.
#[derive(Debug)]
pub(crate) enum Item {
    Sound(Sound),
    /// The resampler's tail: follows on whatever came before.
    Event(gst::Event),
}

/// Outcome of handing something in.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Put {
    Done,
    /// Live and full: it was dropped.
    Dropped,
    /// Flushing, or on the way to READY.
    Flushing,
    /// An error was posted: no more is wanted.
    Failed,
}

/// What the worker finds when it looks.
#[derive(Debug)]
pub(crate) enum Take {
    Item(Item),
    /// A ticket may have come, or the time is over.
    Nothing,
    /// A flush came since `epoch`: all that is older is void.
    Flushed {
        epoch: u64,
        cancel: CancelToken,
    },
    /// The element goes to READY.
    Shutdown,
}

#[derive(Debug, Default)]
struct State {
    items: VecDeque<Item>,
    samples: usize,
    flushing: bool,
    shutdown: bool,
    failed: bool,
    epoch: u64,
    /// The first epoch since READY to PAUSED: a worker of an older one has been left behind.
    first_epoch: u64,
    poked: bool,
    cancel: CancelToken,
}

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Inbox {
    state: Mutex<State>,
    changed: Condvar,
}

impl State {
    /// Drops what waits, but for what a stream is told once and that a flush does not take back: its start, its caps.
    fn void(&mut self) {
        self.items.retain(|item| match item {
            Item::Sound(_) => false,
            Item::Event(event) => {
                let kind = event.type_();
                kind.is_sticky() && kind != gst::EventType::Segment && kind != gst::EventType::Eos
            }
        });
        self.samples = 0;
    }
}

fn len(item: &Item) -> usize {
    match item {
        Item::Sound(sound) => sound.channels.iter().map(Vec::len).max().unwrap_or(0),
        Item::Event(_) => 0,
    }
}

impl Inbox {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Hands in an item. Sound waits while `most_samples` are there already, unless `live`.
    pub(crate) fn put(&self, item: Item, most_samples: usize, live: bool) -> Put {
        let mut state = self.lock();
        loop {
            if state.shutdown || state.flushing {
                return Put::Flushing;
            }
            if state.failed {
                return Put::Failed;
            }
            let full = matches!(item, Item::Sound(_)) && state.samples >= most_samples;
            if !full {
                break;
            }
            if live {
                return Put::Dropped;
            }
            state = self
                .changed
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
        state.samples += len(&item);
        state.items.push_back(item);
        drop(state);
        self.changed.notify_all();
        Put::Done
    }

    /// The next item if `wants`, else nothing, once something has changed or `timeout` is over. `epoch` is
    /// the worker's.
    pub(crate) fn take(&self, epoch: u64, wants: bool, timeout: Duration) -> Take {
        let mut state = self.lock();
        let mut waited = false;
        loop {
            if state.shutdown || epoch < state.first_epoch {
                return Take::Shutdown;
            }
            if state.epoch != epoch {
                return Take::Flushed {
                    epoch: state.epoch,
                    cancel: state.cancel.clone(),
                };
            }
            if wants && let Some(item) = state.items.pop_front() {
                state.samples -= len(&item);
                drop(state);
                self.changed.notify_all();
                return Take::Item(item);
            }
            if state.poked || waited {
                state.poked = false;
                return Take::Nothing;
            }
            let (next, result) = self
                .changed
                .wait_timeout(state, timeout)
                .unwrap_or_else(PoisonError::into_inner);
            state = next;
            waited = result.timed_out();
        }
    }

    /// Wakes the worker: an answer has come.
    pub(crate) fn poke(&self) {
        self.lock().poked = true;
        self.changed.notify_all();
    }

    /// FLUSH_START: drops what waits, cancels what runs, sends everybody home.
    pub(crate) fn flush_start(&self) {
        let mut state = self.lock();
        state.flushing = true;
        state.void();
        state.cancel.cancel();
        drop(state);
        self.changed.notify_all();
    }

    /// FLUSH_STOP: a new epoch begins.
    pub(crate) fn flush_stop(&self) {
        let mut state = self.lock();
        state.flushing = false;
        state.failed = false;
        state.void();
        state.epoch += 1;
        state.cancel = CancelToken::new();
        drop(state);
        self.changed.notify_all();
    }

    /// READY to PAUSED: empty, in a new epoch.
    pub(crate) fn start(&self) -> (u64, CancelToken) {
        let mut state = self.lock();
        let epoch = state.epoch + 1;
        *state = State {
            epoch,
            first_epoch: epoch,
            ..State::default()
        };
        (epoch, state.cancel.clone())
    }

    /// PAUSED to READY.
    pub(crate) fn shutdown(&self) {
        let mut state = self.lock();
        state.shutdown = true;
        state.items.clear();
        state.samples = 0;
        state.cancel.cancel();
        drop(state);
        self.changed.notify_all();
    }

    /// `epoch` has failed: what comes is refused until a flush. False if it is over anyway.
    pub(crate) fn fail(&self, epoch: u64) -> bool {
        let mut state = self.lock();
        if state.epoch != epoch || state.flushing || state.shutdown {
            return false;
        }
        state.failed = true;
        state.void();
        drop(state);
        self.changed.notify_all();
        true
    }

    /// Whether `epoch` is still the present one and nothing is being flushed.
    pub(crate) fn is_current(&self, epoch: u64) -> bool {
        let state = self.lock();
        state.epoch == epoch && !state.flushing && !state.shutdown
    }

    /// Samples that wait.
    pub(crate) fn waiting(&self) -> usize {
        self.lock().samples
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    fn sound(samples: usize) -> Item {
        Item::Sound(Sound {
            channels: vec![vec![0.0; samples]],
            pts: None,
            discont: false,
        })
    }

    #[test]
    fn a_full_inbox_drops_live_sound_and_holds_a_file() {
        let inbox = Arc::new(Inbox::default());
        inbox.start();
        assert_eq!(inbox.put(sound(100), 100, true), Put::Done);
        assert_eq!(inbox.put(sound(1), 100, true), Put::Dropped);

        let blocked = Arc::clone(&inbox);
        let thread = std::thread::spawn(move || blocked.put(sound(1), 100, false));
        std::thread::sleep(Duration::from_millis(20));
        assert!(!thread.is_finished());
        inbox.flush_start();

        assert_eq!(thread.join().ok(), Some(Put::Flushing));
    }

    #[test]
    fn events_pass_a_full_inbox() {
        let inbox = Inbox::default();
        let _ = gst::init();
        inbox.start();
        inbox.put(sound(100), 100, false);

        assert_eq!(
            inbox.put(Item::Event(gst::event::Eos::new()), 100, false),
            Put::Done
        );
    }

    #[test]
    fn a_flush_reaches_the_worker_as_a_new_epoch_and_cancels_the_old_one() {
        let inbox = Inbox::default();
        let (epoch, cancel) = inbox.start();
        inbox.put(sound(10), 100, false);
        inbox.flush_start();
        inbox.flush_stop();

        let found = inbox.take(epoch, true, Duration::ZERO);

        assert!(cancel.is_cancelled());
        assert!(
            matches!(found, Take::Flushed { epoch: e, .. } if e != epoch),
            "{found:?}"
        );
        assert_eq!(inbox.waiting(), 0);
    }

    #[test]
    fn what_a_stream_is_told_once_survives_a_flush() {
        let inbox = Inbox::default();
        let _ = gst::init();
        let (_, _) = inbox.start();
        let caps = gst::Caps::new_empty_simple("text/x-raw");
        inbox.put(Item::Event(gst::event::StreamStart::new("sound")), 0, false);
        inbox.put(Item::Event(gst::event::Caps::new(&caps)), 0, false);
        let segment = gst::FormattedSegment::<gst::ClockTime>::new();
        inbox.put(Item::Event(gst::event::Segment::new(&segment)), 0, false);
        inbox.put(sound(10), 100, false);
        inbox.flush_start();
        inbox.flush_stop();

        let kept: Vec<gst::EventType> =
            std::iter::from_fn(|| match inbox.take(2, true, Duration::ZERO) {
                Take::Item(Item::Event(event)) => Some(event.type_()),
                _ => None,
            })
            .collect();

        assert_eq!(kept, [gst::EventType::StreamStart, gst::EventType::Caps]);
        assert_eq!(inbox.waiting(), 0);
    }

    #[test]
    fn a_failure_of_an_epoch_that_is_over_touches_nobody() {
        let inbox = Inbox::default();
        let (old, _) = inbox.start();
        inbox.flush_start();
        inbox.flush_stop();

        assert!(!inbox.fail(old));
        assert_eq!(inbox.put(sound(10), 100, false), Put::Done);
        assert!(inbox.fail(old + 1));
        assert_eq!(inbox.put(sound(10), 100, false), Put::Failed);
    }

    #[test]
    fn a_worker_of_an_earlier_run_goes_home() {
        let inbox = Inbox::default();
        let (old, _) = inbox.start();
        inbox.shutdown();
        let (new, _) = inbox.start();
        inbox.put(sound(10), 100, false);

        let for_old = inbox.take(old, true, Duration::ZERO);
        let for_new = inbox.take(new, true, Duration::ZERO);

        assert!(matches!(for_old, Take::Shutdown), "{for_old:?}");
        assert!(matches!(for_new, Take::Item(_)), "{for_new:?}");
    }
}
