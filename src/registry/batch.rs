// SPDX-License-Identifier: MPL-2.0
//! How many items go into a batch, and what to do when one does not fit.
//!
//! Sizes are powers of two up to a bound. It begins with the size that the model is known to like, goes down where
//! smaller batches prove faster an item, up again to look whether larger ones are by now, and after an out-of-memory it
//! climbs the ladder: give back what earlier batches took, evict what is idle, halve, make the lane anew, the CPU. After
//! twenty good batches it goes one step up again.

/// Good batches before the next larger size is tried again.
const GOOD_BEFORE_GROWTH: u32 = 20;
/// Batches of a size before its speed is believed.
const BELIEVED: u32 = 3;
/// A size must be this much faster than another to be chosen for it.
const CLEARLY: f64 = 1.1;
/// Batches after which a size that was given up for its speed is tried again.
const LOOK_AGAIN: u32 = 50;
/// Weight of the newest batch in the mean.
const NEWEST: f64 = 0.3;

/// What to do about a batch that did not fit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Have the lane give back what earlier batches took, then the same batch.
    Trim,
    /// Evict what is idle, then the same batch.
    Evict,
    /// The items that are left, in batches of this size.
    Halve(usize),
    /// Make the lane anew.
    Rebuild,
    /// The model on the CPU.
    Cpu,
    /// An item alone does not fit anywhere.
    GiveUp,
}

#[derive(Clone, Copy, Debug, Default)]
struct Speed {
    seconds_an_item: f64,
    batches: u32,
    /// Batches in all when it was last measured.
    measured_at: u32,
}

/// See the module. For one model; used by all its lanes under a lock.
#[derive(Clone, Debug)]
pub struct Batcher {
    /// 1, 2, 4, … up to the most.
    sizes: Vec<usize>,
    /// Which size is used.
    at: usize,
    /// Above it memory was short.
    fits: usize,
    good: u32,
    tried: Tried,
    speeds: Vec<Speed>,
    batches: u32,
    has_cpu: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
enum Tried {
    #[default]
    Nothing,
    Trim,
    Evict,
    Rebuild,
}

impl Batcher {
    /// For batches of at most `most` items, of which `likes` are thought best at first. `has_cpu` if the model could run
    /// on the CPU instead.
    pub fn new(most: usize, likes: usize, has_cpu: bool) -> Self {
        let most = most.max(1);
        let mut sizes: Vec<usize> = std::iter::successors(Some(1usize), |n| n.checked_mul(2))
            .take_while(|n| *n < most)
            .collect();
        sizes.push(most);
        let at = sizes
            .iter()
            .rposition(|n| *n <= likes.clamp(1, most))
            .unwrap_or(0);
        Self {
            fits: sizes.len() - 1,
            speeds: vec![Speed::default(); sizes.len()],
            sizes,
            at,
            good: 0,
            tried: Tried::Nothing,
            batches: 0,
            has_cpu,
        }
    }

    /// Items for the next batch, if no more than `bound` are wanted (0: no bound).
    pub fn size(&self, bound: usize) -> usize {
        let size = self.sizes[self.at.min(self.fits)];
        if bound == 0 { size } else { size.min(bound) }
    }

    /// Whether memory keeps batches smaller than they would be.
    pub fn is_squeezed(&self) -> bool {
        self.at > self.fits
    }

    /// A batch of `items` took `seconds`. True if the size has grown again after a shortage.
    pub fn done(&mut self, items: usize, seconds: f64) -> bool {
        self.tried = Tried::Nothing;
        self.batches = self.batches.saturating_add(1);
        self.measure(items, seconds);
        self.good += 1;
        if self.is_squeezed() && self.good >= GOOD_BEFORE_GROWTH {
            self.good = 0;
            self.fits += 1;
            return true;
        }
        self.choose();
        false
    }

    fn measure(&mut self, items: usize, seconds: f64) {
        // A batch that is not full says something about the size below it.
        let Some(at) = self.sizes.iter().rposition(|n| *n <= items) else {
            return;
        };
        let speed = &mut self.speeds[at];
        let own = seconds / items.max(1) as f64;
        speed.seconds_an_item = if speed.batches == 0 {
            own
        } else {
            speed.seconds_an_item * (1.0 - NEWEST) + own * NEWEST
        };
        speed.batches = speed.batches.saturating_add(1);
        speed.measured_at = self.batches;
    }

    fn choose(&mut self) {
        let here = self.speeds[self.at];
        if here.batches < BELIEVED {
            return;
        }
        if self.at > 0 {
            let below = self.speeds[self.at - 1];
            if below.batches >= BELIEVED && below.seconds_an_item * CLEARLY < here.seconds_an_item {
                self.at -= 1;
                return;
            }
        }
        if self.at + 1 < self.sizes.len() {
            let above = self.speeds[self.at + 1];
            let faster =
                above.batches >= BELIEVED && above.seconds_an_item * CLEARLY < here.seconds_an_item;
            let forgotten = self.batches.saturating_sub(above.measured_at) >= LOOK_AGAIN;
            if faster || forgotten {
                self.at += 1;
            }
        }
    }

    /// A batch of `items` did not fit: what to do next.
    pub fn did_not_fit(&mut self, items: usize) -> Step {
        self.good = 0;
        match self.tried {
            Tried::Nothing => {
                self.tried = Tried::Trim;
                Step::Trim
            }
            Tried::Trim => {
                self.tried = Tried::Evict;
                Step::Evict
            }
            // Halving begins with what was really tried: the last batch of a stream is small.
            Tried::Evict | Tried::Rebuild if items > 1 => self.halve(items),
            Tried::Evict => {
                self.tried = Tried::Rebuild;
                Step::Rebuild
            }
            Tried::Rebuild if self.has_cpu => Step::Cpu,
            Tried::Rebuild => Step::GiveUp,
        }
    }

    /// A batch of `items` was found not to fit before it was tried.
    pub fn no_room_for(&mut self, items: usize) -> usize {
        self.good = 0;
        self.lower(items);
        self.sizes[self.fits]
    }

    /// Begins at the foot of the ladder again.
    pub fn begin_again(&mut self) {
        self.tried = Tried::Nothing;
    }

    fn halve(&mut self, items: usize) -> Step {
        self.tried = Tried::Nothing;
        self.lower(items);
        Step::Halve(self.sizes[self.fits])
    }

    fn lower(&mut self, items: usize) {
        let below = self.sizes.iter().rposition(|n| *n < items).unwrap_or(0);
        self.fits = self.fits.min(below);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_takes_the_most_that_is_liked_and_allowed() {
        let batcher = Batcher::new(32, 32, false);

        assert_eq!(batcher.size(0), 32);
        assert_eq!(batcher.size(10), 10);
        assert_eq!(Batcher::new(100, 100, false).size(0), 100);
        assert_eq!(Batcher::new(32, 4, false).size(0), 4);
        assert_eq!(Batcher::new(0, 0, false).size(0), 1);
    }

    #[test]
    fn a_batch_that_takes_the_same_time_at_any_size_stays_large() {
        let mut batcher = Batcher::new(32, 32, false);

        for _ in 0..20 {
            for _ in 0..15 {
                batcher.done(32, 1.5);
            }
            batcher.done(20, 1.5);
        }

        assert_eq!(batcher.size(0), 32);
    }

    #[test]
    fn where_small_batches_are_faster_it_goes_down() {
        let mut batcher = Batcher::new(8, 8, false);

        for _ in 0..10 {
            batcher.done(8, 8.0);
            batcher.done(4, 2.0);
        }

        assert_eq!(batcher.size(0), 4);
    }

    #[test]
    fn each_rung_of_the_ladder_is_climbed_in_its_order() {
        let mut batcher = Batcher::new(4, 4, true);

        let mut steps = Vec::new();
        let mut items = 4;
        for _ in 0..12 {
            let step = batcher.did_not_fit(items);
            if let Step::Halve(size) = step {
                items = size;
            }
            steps.push(step);
            if matches!(step, Step::Cpu | Step::GiveUp) {
                break;
            }
        }

        assert_eq!(
            steps,
            [
                Step::Trim,
                Step::Evict,
                Step::Halve(2),
                Step::Trim,
                Step::Evict,
                Step::Halve(1),
                Step::Trim,
                Step::Evict,
                Step::Rebuild,
                Step::Cpu
            ]
        );
    }

    #[test]
    fn after_twenty_good_batches_it_goes_a_step_up_and_ends_where_it_was() {
        let mut batcher = Batcher::new(32, 32, false);
        for _ in 0..3 {
            batcher.did_not_fit(32);
        }
        assert_eq!(batcher.size(0), 16);
        assert!(batcher.is_squeezed());

        let grown = (0..19).any(|_| batcher.done(16, 1.0));
        assert!(!grown);
        assert!(batcher.done(16, 1.0));

        assert_eq!(batcher.size(0), 32);
        assert!(!batcher.is_squeezed());
    }

    #[test]
    fn the_last_small_batch_of_a_stream_halves_from_its_own_size() {
        let mut batcher = Batcher::new(32, 32, false);

        batcher.did_not_fit(20);
        batcher.did_not_fit(20);

        assert_eq!(batcher.did_not_fit(20), Step::Halve(16));
    }
}
