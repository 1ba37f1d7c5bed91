// SPDX-License-Identifier: MPL-2.0
//! Which job is next: class first, then the stream that has had the least sound worked on, then the order of
//! asking.

use std::collections::{HashMap, VecDeque};
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

pub(super) struct Queued<J> {
    pub stream: StreamId,
    pub class: Class,
    pub deadline: Option<Instant>,
    pub seconds: f64,
    pub job: J,
}

/// Jobs that wait. A plain data structure: the lock is around it.
pub(super) struct Queue<J> {
    jobs: VecDeque<Queued<J>>,
    /// Seconds of sound handed out to each stream with jobs here, from a common floor.
    served: HashMap<StreamId, f64>,
}

impl<J> Default for Queue<J> {
    fn default() -> Self {
        Self {
            jobs: VecDeque::new(),
            served: HashMap::new(),
        }
    }
}

impl<J> Queue<J> {
    pub(super) fn len(&self) -> usize {
        self.jobs.len()
    }

    pub(super) fn push(&mut self, job: Queued<J>) {
        // A newcomer starts level with the least served: it neither waits for the others' past nor jumps it.
        let floor = self.served.values().copied().fold(f64::INFINITY, f64::min);
        let floor = if floor.is_finite() { floor } else { 0.0 };
        self.served.entry(job.stream).or_insert(floor);
        self.jobs.push_back(job);
    }

    /// Takes the next job that `fits`; jobs that do not fit stay where they are.
    pub(super) fn pop(&mut self, fits: impl Fn(&Queued<J>) -> bool) -> Option<Queued<J>> {
        let best = self
            .jobs
            .iter()
            .enumerate()
            .filter(|(_, job)| fits(job))
            .min_by(|(i, a), (j, b)| {
                let served = |q: &Queued<J>| self.served.get(&q.stream).copied().unwrap_or(0.0);
                let deadline = |q: &Queued<J>| q.deadline.map_or((1, None), |d| (0, Some(d)));
                a.class
                    .cmp(&b.class)
                    .then(deadline(a).cmp(&deadline(b)))
                    .then(served(a).total_cmp(&served(b)))
                    .then(i.cmp(j))
            })
            .map(|(i, _)| i)?;
        let job = self.jobs.remove(best)?;
        *self.served.entry(job.stream).or_insert(0.0) += job.seconds;
        Some(job)
    }

    /// Forgets a stream that has ended.
    pub(super) fn forget(&mut self, stream: StreamId) {
        self.served.remove(&stream);
    }

    /// Removes and returns the jobs that `gone` says are not wanted.
    pub(super) fn sweep(&mut self, gone: impl Fn(&J) -> bool) {
        self.jobs.retain(|q| !gone(&q.job));
    }

    pub(super) fn drain(&mut self) -> Vec<J> {
        self.jobs.drain(..).map(|q| q.job).collect()
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
}
