// SPDX-License-Identifier: MPL-2.0
//! Which job is next: class first, then the stream that has had the least sound worked on, then the deadline, then the
//! order of asking; what is live and due goes by its deadline alone. A class that has to wait keeps a tenth: for ten
//! seconds of sound of the classes before it, one of its own is worked on, so that nobody waits for ever. What it gets
//! while nothing before it waits counts.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::time::Instant;

use super::StreamId;

/// How urgent a job is. Earlier variants go first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Class {
    /// Live, and due.
    LiveDeadline,
    /// Live.
    Live,
    /// A file that somebody waits for.
    File,
    /// Whenever there is time.
    Background,
}

/// Part that a class which waits keeps of what those before it get.
const SHARE: f64 = 0.1;

impl Class {
    fn tier(self) -> usize {
        match self {
            Self::LiveDeadline => 0,
            Self::Live => 1,
            Self::File => 2,
            Self::Background => 3,
        }
    }
}

const TIERS: usize = 4;

/// A job that waits.
pub(super) struct Queued<J> {
    pub stream: StreamId,
    pub class: Class,
    pub deadline: Option<Instant>,
    pub seconds: f64,
    pub job: J,
    /// Its place in the order of asking: 0 before it was queued.
    pub turn: u64,
}

/// Jobs that wait. A plain data structure: the lock is around it.
///
/// Jobs of one class and stream stand in one row, of which only the first that fits is looked at: thousands of windows
/// of one file cost no more than one.
pub(super) struct Queue<J> {
    rows: BTreeMap<(usize, StreamId), VecDeque<Queued<J>>>,
    len: usize,
    turns: u64,
    /// Seconds of sound handed out to each stream with jobs here, from a common floor.
    served: HashMap<StreamId, f64>,
    /// Seconds of sound that each tier has earned by waiting.
    credit: [f64; TIERS],
}

impl<J> Default for Queue<J> {
    fn default() -> Self {
        Self {
            rows: BTreeMap::new(),
            len: 0,
            turns: 0,
            served: HashMap::new(),
            credit: [0.0; TIERS],
        }
    }
}

/// Where a job stands: its row, and its place there.
type Place = ((usize, StreamId), usize);

impl<J> Queue<J> {
    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// Jobs that `fits` takes, counted up to `most`.
    pub(super) fn count(&self, most: usize, fits: impl Fn(&Queued<J>) -> bool) -> usize {
        let jobs = self.rows.values().flatten();
        jobs.filter(|job| fits(job)).take(most).count()
    }

    pub(super) fn push(&mut self, mut job: Queued<J>) {
        // A newcomer, and who comes back, starts level with the least served of those who wait: it neither waits for
        // the others' past nor jumps it.
        if self.rows.keys().all(|(_, stream)| *stream != job.stream) {
            let floor = self
                .rows
                .keys()
                .filter_map(|(_, stream)| self.served.get(stream).copied())
                .fold(f64::INFINITY, f64::min);
            let served = self.served.entry(job.stream).or_insert(0.0);
            if floor.is_finite() {
                *served = served.max(floor);
            }
        }
        self.turns += 1;
        job.turn = self.turns;
        self.len += 1;
        let row = (job.class.tier(), job.stream);
        self.rows.entry(row).or_default().push_back(job);
    }

    /// Puts jobs back where they came from.
    pub(super) fn put_back(&mut self, mut jobs: Vec<Queued<J>>) {
        jobs.sort_by_key(|job| job.turn);
        for job in jobs.into_iter().rev() {
            if let Some(served) = self.served.get_mut(&job.stream) {
                *served -= job.seconds;
            }
            self.len += 1;
            let row = (job.class.tier(), job.stream);
            self.rows.entry(row).or_default().push_front(job);
        }
    }

    /// Takes the next job that `fits`; jobs that do not fit stay where they are.
    pub(super) fn pop(&mut self, fits: impl Fn(&Queued<J>) -> bool) -> Option<Queued<J>> {
        let heads: [Option<(Place, f64)>; TIERS] =
            std::array::from_fn(|tier| self.head(tier, &fits));
        let first = heads.iter().position(Option::is_some)?;
        // The lowest class that has earned its job goes before those above it.
        let due = (first + 1..TIERS)
            .rev()
            .find(|tier| heads[*tier].is_some_and(|(_, seconds)| self.credit[*tier] >= seconds));
        let tier = due.unwrap_or(first);
        let job = self.remove(heads[tier]?.0)?;
        // What a class gets while nobody is before it pays its share too: with lanes enough for both it claims nothing,
        // and no live job waits behind it.
        self.credit[tier] = (self.credit[tier] - job.seconds).max(0.0);
        for (below, credit) in self.credit.iter_mut().enumerate().skip(tier + 1) {
            let waits = heads[below].is_some();
            *credit = if waits {
                *credit + SHARE * job.seconds
            } else {
                0.0
            };
        }
        *self.served.entry(job.stream).or_insert(0.0) += job.seconds;
        Some(job)
    }

    fn remove(&mut self, (row, at): Place) -> Option<Queued<J>> {
        let jobs = self.rows.get_mut(&row)?;
        let job = jobs.remove(at)?;
        if jobs.is_empty() {
            self.rows.remove(&row);
        }
        self.len -= 1;
        Some(job)
    }

    /// The next job of one tier and its seconds. Without a deadline what is due is due now: the first such job goes
    /// first.
    fn head(&self, tier: usize, fits: &impl Fn(&Queued<J>) -> bool) -> Option<(Place, f64)> {
        let rows = (tier, StreamId(0))..=(tier, StreamId(u64::MAX));
        self.rows
            .range(rows)
            .filter_map(|(row, jobs)| {
                let fitting = jobs.iter().enumerate().filter(|(_, job)| fits(job));
                let (at, job) = if tier == 0 {
                    fitting.min_by_key(|(_, job)| (job.deadline, job.turn))
                } else {
                    fitting.into_iter().next()
                }?;
                Some(((*row, at), job))
            })
            .min_by(|(_, a), (_, b)| {
                let served = |q: &Queued<J>| match tier {
                    0 => 0.0,
                    _ => self.served.get(&q.stream).copied().unwrap_or(0.0),
                };
                // None is before any: right for what is due, wrong for what has time.
                let deadline = |q: &Queued<J>| (q.deadline.is_none() && tier > 0, q.deadline);
                served(a)
                    .total_cmp(&served(b))
                    .then(deadline(a).cmp(&deadline(b)))
                    .then(a.turn.cmp(&b.turn))
            })
            .map(|(place, job)| (place, job.seconds))
    }

    /// Forgets a stream that has ended.
    pub(super) fn forget(&mut self, stream: StreamId) {
        self.served.remove(&stream);
    }

    /// Removes the jobs that `gone` says are not wanted.
    pub(super) fn sweep(&mut self, gone: impl Fn(&J) -> bool) {
        for jobs in self.rows.values_mut() {
            jobs.retain(|q| !gone(&q.job));
        }
        self.rows.retain(|_, jobs| !jobs.is_empty());
        self.len = self.rows.values().map(VecDeque::len).sum();
    }

    pub(super) fn drain(&mut self) -> Vec<J> {
        self.len = 0;
        let rows = std::mem::take(&mut self.rows);
        rows.into_values().flatten().map(|q| q.job).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn job(stream: u64, class: Class, seconds: f64, job: &'static str) -> Queued<&'static str> {
        Queued {
            stream: StreamId(stream),
            class,
            deadline: None,
            seconds,
            job,
            turn: 0,
        }
    }

    fn order(queue: &mut Queue<&'static str>) -> Vec<&'static str> {
        std::iter::from_fn(|| queue.pop(|_| true).map(|q| q.job)).collect()
    }

    #[test]
    fn live_goes_before_files_and_files_before_background() {
        let mut queue = Queue::default();
        queue.push(job(1, Class::Background, 1.0, "background"));
        queue.push(job(2, Class::File, 1.0, "file"));
        queue.push(job(3, Class::Live, 1.0, "live"));
        queue.push(job(3, Class::LiveDeadline, 1.0, "due"));

        assert_eq!(order(&mut queue), ["due", "live", "file", "background"]);
    }

    #[test]
    fn a_long_file_does_not_hold_up_a_short_one() {
        let mut queue = Queue::default();
        for name in ["a1", "a2", "a3", "a4"] {
            queue.push(job(1, Class::File, 29.0, name));
        }
        assert_eq!(queue.pop(|_| true).map(|q| q.job), Some("a1"));
        queue.push(job(2, Class::File, 5.0, "b1"));
        queue.push(job(2, Class::File, 5.0, "b2"));

        let order = order(&mut queue);
        let second = order.iter().position(|n| *n == "b2");

        assert!(second <= Some(2), "{order:?}");
    }

    #[test]
    fn the_earlier_deadline_goes_first() {
        let now = Instant::now();
        let mut queue = Queue::default();
        let mut late = job(1, Class::Live, 1.0, "late");
        late.deadline = Some(now + Duration::from_secs(2));
        let mut soon = job(2, Class::Live, 1.0, "soon");
        soon.deadline = Some(now + Duration::from_secs(1));
        queue.push(late);
        queue.push(soon);

        assert_eq!(order(&mut queue), ["soon", "late"]);
    }

    #[test]
    fn what_does_not_fit_stays() {
        let mut queue = Queue::default();
        queue.push(job(1, Class::File, 1.0, "a"));
        queue.push(job(1, Class::File, 1.0, "b"));

        assert_eq!(queue.pop(|q| q.job == "b").map(|q| q.job), Some("b"));
        assert_eq!(queue.len(), 1);
    }

    #[test]
    fn files_keep_a_tenth_beside_live_streams_that_never_rest() {
        let mut queue = Queue::default();
        for _ in 0..10 {
            queue.push(job(1, Class::File, 1.0, "file"));
            queue.push(job(2, Class::Background, 1.0, "background"));
        }
        let mut order = Vec::new();
        for _ in 0..110 {
            queue.push(job(3, Class::Live, 1.0, "live"));
            order.extend(queue.pop(|_| true).map(|q| q.job));
        }

        let share = |name| order.iter().filter(|n| **n == name).count();
        assert!((9..=11).contains(&share("file")), "{}", share("file"));
        assert!(
            (8..=11).contains(&share("background")),
            "{}",
            share("background")
        );
    }

    #[test]
    fn files_that_get_their_share_between_live_jobs_never_go_before_one() {
        let mut queue = Queue::default();
        for _ in 0..200 {
            queue.push(job(1, Class::File, 10.0, "file"));
        }
        let mut order = Vec::new();
        for _ in 0..150 {
            queue.push(job(2, Class::LiveDeadline, 10.0, "live"));
            order.extend(queue.pop(|_| true).map(|q| q.job));
            order.extend(queue.pop(|_| true).map(|q| q.job));
        }

        assert_eq!(order, ["live", "file"].repeat(150));
    }

    #[test]
    fn jobs_that_are_put_back_are_next_and_in_their_order() {
        let mut queue = Queue::default();
        for name in ["a", "b", "c", "d"] {
            queue.push(job(1, Class::File, 1.0, name));
        }
        let taken: Vec<_> = std::iter::from_fn(|| queue.pop(|q| q.job != "d")).collect();

        queue.put_back(taken);

        assert_eq!(order(&mut queue), ["a", "b", "c", "d"]);
    }

    #[test]
    fn a_stream_that_comes_back_does_not_claim_the_time_it_was_away() {
        let mut queue = Queue::default();
        queue.push(job(1, Class::File, 1.0, "early"));
        queue.pop(|_| true);
        for _ in 0..5 {
            queue.push(job(2, Class::File, 10.0, "busy"));
        }
        queue.pop(|_| true);
        queue.pop(|_| true);
        for _ in 0..5 {
            queue.push(job(1, Class::File, 10.0, "back"));
        }

        let first: Vec<_> = (0..4)
            .filter_map(|_| queue.pop(|_| true))
            .map(|q| q.job)
            .collect();

        assert_eq!(
            first.iter().filter(|n| **n == "busy").count(),
            2,
            "{first:?}"
        );
    }

    proptest::proptest! {
        #[test]
        fn every_job_is_handed_out_once_and_none_waits_for_ever(
            jobs in proptest::collection::vec((0u64..5, 0usize..4, 1u32..30), 1..60),
        ) {
            let classes = [Class::LiveDeadline, Class::Live, Class::File, Class::Background];
            let mut queue = Queue::default();
            for (i, (stream, class, seconds)) in jobs.iter().enumerate() {
                queue.push(Queued {
                    stream: StreamId(*stream),
                    class: classes[*class],
                    deadline: None,
                    seconds: f64::from(*seconds),
                    job: i,
                    turn: 0,
                });
            }

            // Live sound comes all the time.
            let mut seen = Vec::new();
            let mut rounds = 0;
            while seen.len() < jobs.len() {
                queue.push(Queued {
                    stream: StreamId(99),
                    class: Class::LiveDeadline,
                    deadline: Some(Instant::now()),
                    seconds: 1.0,
                    job: usize::MAX,
                    turn: 0,
                });
                if let Some(q) = queue.pop(|_| true) && q.job != usize::MAX {
                    seen.push(q.job);
                }
                rounds += 1;
                proptest::prop_assert!(rounds < 60 * 30 * 11 * 3, "{} of {}", seen.len(), jobs.len());
            }

            seen.sort_unstable();
            proptest::prop_assert_eq!(seen, (0..jobs.len()).collect::<Vec<_>>());
        }
    }
}
