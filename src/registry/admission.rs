// SPDX-License-Identifier: MPL-2.0
//! Who gets memory next: in the order of class and asking. A later, smaller request does not overtake one that waits for
//! the same device, or large models would wait for ever.
//!
//! [`Line`] is the order, a plain data structure. [`Admission`] is the door around it: threads wait there.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::ledger::{Bound, Demand, Ledger, Reservation, Shortage};
use super::plan::Need;
use super::queue::Class;
use super::sync::{Guard, Rank, Ranked};
use crate::inference::{CancelToken, DeviceId};

/// How often somebody who waits looks at his cancel token and at what others hold.
const POLL: Duration = Duration::from_millis(20);
/// How long a request waits for memory that only others could give back.
const STRANGERS_PATIENCE: Duration = Duration::from_secs(10);
/// How long a request waits while nothing at all is being done on the device, here or in another process: whoever holds
/// the memory waits too, for it perhaps.
const STALL: Duration = Duration::from_secs(10);
/// After so long in line a request is not passed over any more by streams whose models are loaded already.
pub(super) const HOLDS_BACK_AFTER: Duration = Duration::from_secs(5);
/// They are held back for so long at most: they may be part of what it waits for.
const HELD_BACK_MOST: Duration = Duration::from_secs(30);

/// Requests that wait, in their order.
#[derive(Debug)]
pub(super) struct Line {
    waiting: Vec<Waiting>,
    next: u64,
}

#[derive(Debug)]
struct Waiting {
    id: u64,
    class: Class,
    devices: Vec<DeviceId>,
    since: Duration,
}

impl Default for Line {
    fn default() -> Self {
        Self {
            waiting: Vec::new(),
            next: 1,
        }
    }
}

impl Line {
    /// Queues a request at `now`; the number stands for it.
    pub(super) fn join(&mut self, class: Class, demands: &[Demand], now: Duration) -> u64 {
        let id = self.next;
        self.next += 1;
        let mut devices: Vec<DeviceId> = demands.iter().map(|d| d.device).collect();
        devices.sort_unstable();
        devices.dedup();
        let at = self
            .waiting
            .iter()
            .position(|w| w.class > class)
            .unwrap_or(self.waiting.len());
        let waiting = Waiting {
            id,
            class,
            devices,
            since: now,
        };
        self.waiting.insert(at, waiting);
        id
    }

    /// Whether nobody before it waits for one of its devices.
    pub(super) fn is_first(&self, id: u64) -> bool {
        let Some(at) = self.waiting.iter().position(|w| w.id == id) else {
            return false;
        };
        let own = &self.waiting[at].devices;
        self.waiting[..at]
            .iter()
            .all(|w| w.devices.iter().all(|d| !own.contains(d)))
    }

    /// Whether somebody has waited so long for `device` that a newcomer of this class must not use what is loaded there
    /// before him: otherwise a model that is always in use would keep him out for ever.
    pub(super) fn holds_back(&self, device: DeviceId, class: Class, now: Duration) -> bool {
        self.waiting.iter().any(|w| {
            w.devices.contains(&device)
                && w.class <= class
                && now.saturating_sub(w.since) >= HOLDS_BACK_AFTER
        })
    }

    /// Takes a request out: it was served or does not want any more.
    pub(super) fn leave(&mut self, id: u64) {
        self.waiting.retain(|w| w.id != id);
    }

    /// Requests that wait.
    pub(super) fn len(&self) -> usize {
        self.waiting.len()
    }
}

/// Why a request was not admitted.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Refused {
    /// Nobody wants it any more.
    Cancelled,
    /// There is no room, and waiting would not help.
    NoRoom(Shortage),
}

/// See the module.
/// A request as it stands in line.
pub(super) struct Demands<'a> {
    /// All of it, or nothing.
    pub demands: &'a [Demand],
    pub class: Class,
    pub cancel: &'a CancelToken,
    pub activity: &'a Activity,
    /// Called when it is first in line. False ends the wait.
    pub first: &'a dyn Fn() -> bool,
    pub evict: &'a Evict<'a>,
}

/// How many batches and loads are being done.
#[derive(Debug, Default)]
pub(super) struct Activity {
    now: AtomicU64,
    begun: AtomicU64,
}

impl Activity {
    /// Counts one until the guard is dropped.
    pub(super) fn begin(&self) -> Busy<'_> {
        self.now.fetch_add(1, Ordering::Relaxed);
        self.begun.fetch_add(1, Ordering::Relaxed);
        Busy(self)
    }

    fn none(&self) -> bool {
        self.now.load(Ordering::Relaxed) == 0
    }

    /// Whether there is any, or was since `seen`, which is brought up to date.
    pub(super) fn any_since(&self, seen: &mut u64) -> bool {
        let begun = self.begun.load(Ordering::Relaxed);
        let before = std::mem::replace(seen, begun);
        before != begun || !self.none()
    }
}

/// See [`Activity::begin`].
pub(super) struct Busy<'a>(&'a Activity);

impl Drop for Busy<'_> {
    fn drop(&mut self) {
        self.0.now.fetch_sub(1, Ordering::Relaxed);
    }
}

#[derive(Debug)]
pub(super) struct Admission {
    line: Ranked<Line>,
    began: Instant,
}

impl Default for Admission {
    fn default() -> Self {
        Self {
            line: Ranked::new(Rank::Line, Line::default()),
            began: Instant::now(),
        }
    }
}

impl Admission {
    fn line(&self) -> Guard<'_, Line> {
        self.line.lock()
    }

    /// Requests that wait.
    pub(super) fn waiting(&self) -> usize {
        self.line().len()
    }

    /// Waits, for a bounded time, while somebody who has waited long for one of `devices` is before us.
    pub(super) fn wait_behind(
        &self,
        ledger: &Ledger,
        devices: &[DeviceId],
        class: Class,
        cancel: &CancelToken,
    ) {
        let until = Instant::now() + HELD_BACK_MOST;
        while !cancel.is_cancelled() && Instant::now() < until {
            let now = self.began.elapsed();
            let line = self.line();
            if !devices.iter().any(|d| line.holds_back(*d, class, now)) {
                return;
            }
            drop(line);
            ledger.wait_for_release(POLL);
        }
    }

    /// Reserves all that is demanded, waiting in line for it.
    pub(super) fn admit(
        &self,
        ledger: &Arc<Ledger>,
        request: &Demands<'_>,
    ) -> Result<Vec<Reservation>, Refused> {
        let now = self.began.elapsed();
        let id = self.line().join(request.class, request.demands, now);
        let outcome = self.wait(ledger, id, request);
        ledger.want(&[]);
        self.line().leave(id);
        // Whoever was behind may be first now.
        ledger.wake();
        outcome
    }

    fn wait(
        &self,
        ledger: &Arc<Ledger>,
        id: u64,
        request: &Demands<'_>,
    ) -> Result<Vec<Reservation>, Refused> {
        let Demands {
            demands,
            cancel,
            activity,
            evict,
            ..
        } = request;
        let mut strangers_since: Option<Instant> = None;
        let mut still_since = Instant::now();
        let mut others_at_work = 0;
        loop {
            if cancel.is_cancelled() {
                return Err(Refused::Cancelled);
            }
            if self.line().is_first(id) {
                if !(request.first)() {
                    return Err(Refused::Cancelled);
                }
                match reserve(ledger, demands, evict) {
                    Ok(reservations) => return Ok(reservations),
                    Err(shortage) if shortage.never => return Err(Refused::NoRoom(shortage)),
                    Err(shortage) if shortage.strangers_alone => {
                        let since = *strangers_since.get_or_insert_with(Instant::now);
                        if since.elapsed() >= STRANGERS_PATIENCE {
                            return Err(Refused::NoRoom(shortage));
                        }
                    }
                    Err(shortage) => {
                        strangers_since = None;
                        let others =
                            std::mem::replace(&mut others_at_work, shortage.others_at_work);
                        ledger.want(demands);
                        if !activity.none()
                            || shortage.coming > 0
                            || others != shortage.others_at_work
                        {
                            still_since = Instant::now();
                        } else if still_since.elapsed() >= STALL {
                            return Err(Refused::NoRoom(shortage));
                        }
                    }
                }
            }
            ledger.wait_for_release(POLL);
        }
    }
}

/// One look for room for `demands`: under 70 % if it is there or can be made by giving up what nobody has used for a
/// while, else up to 80 %, for which all that is idle may go.
pub(super) fn reserve(
    ledger: &Arc<Ledger>,
    demands: &[Demand],
    evict: &Evict<'_>,
) -> Result<Vec<Reservation>, Shortage> {
    let mut outcome = ledger.try_reserve(demands, Bound::Soft);
    for (need, bound) in [(Need::Comfort, Bound::Soft), (Need::Room, Bound::Ceiling)] {
        if bound == Bound::Ceiling {
            outcome = ledger.try_reserve(demands, bound);
        }
        let shortage = match outcome {
            Err(shortage) if !shortage.never => shortage,
            settled => return settled,
        };
        // What is on its way need not be asked for twice. What is given up now is back when its last lane has ended:
        // a later look finds it.
        let more = shortage.missing.saturating_sub(shortage.coming);
        if more > 0 && !evict(shortage.device, more, need) {
            outcome = Err(shortage);
            continue;
        }
        outcome = ledger.try_reserve(demands, bound);
        if bound == Bound::Soft && outcome.is_err() {
            // It is coming.
            return outcome;
        }
    }
    outcome
}

/// Gives up idle things on a device that free so many bytes, and says whether it has.
pub(super) type Evict<'a> = dyn Fn(DeviceId, u64, Need) -> bool + 'a;

#[cfg(test)]
mod tests {
    use super::*;

    fn demand(device: DeviceId) -> Vec<Demand> {
        vec![Demand {
            device,
            bytes: 1,
            what: "x".into(),
            apart: false,
        }]
    }

    #[test]
    fn a_later_request_for_the_same_device_waits_and_one_for_another_does_not() {
        let mut line = Line::default();
        let a = line.join(Class::File, &demand(DeviceId::Cpu), Duration::ZERO);
        let b = line.join(Class::File, &demand(DeviceId::Cpu), Duration::ZERO);
        let c = line.join(Class::File, &demand(DeviceId::Cuda(0)), Duration::ZERO);

        assert!(line.is_first(a) && !line.is_first(b) && line.is_first(c));
        line.leave(a);
        assert!(line.is_first(b));
    }

    #[test]
    fn live_goes_before_files() {
        let mut line = Line::default();
        let file = line.join(Class::File, &demand(DeviceId::Cpu), Duration::ZERO);
        let live = line.join(Class::Live, &demand(DeviceId::Cpu), Duration::ZERO);

        assert!(line.is_first(live) && !line.is_first(file));
    }

    #[test]
    fn who_has_waited_long_is_not_passed_over_by_newcomers_of_his_class() {
        let mut line = Line::default();
        line.join(Class::File, &demand(DeviceId::Cpu), Duration::ZERO);
        let holds = |class, device, s| line.holds_back(device, class, Duration::from_secs(s));

        assert!(!holds(Class::File, DeviceId::Cpu, 4));
        assert!(holds(Class::File, DeviceId::Cpu, 5));
        assert!(!holds(Class::Live, DeviceId::Cpu, 5));
        assert!(!holds(Class::File, DeviceId::Cuda(0), 5));
    }
}
