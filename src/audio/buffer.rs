// SPDX-License-Identifier: MPL-2.0
//! Samples by their index, from the oldest still needed to the newest.

use std::collections::VecDeque;

use super::SampleIndex;

/// A contiguous stretch of 16 kHz mono sound. What is dropped or not yet there reads as silence.
#[derive(Clone, Debug)]
pub struct SampleBuffer {
    first: SampleIndex,
    samples: VecDeque<f32>,
}

impl SampleBuffer {
    /// An empty buffer whose first sample will be `start`.
    pub fn new(start: SampleIndex) -> Self {
        Self {
            first: start,
            samples: VecDeque::new(),
        }
    }

    /// Adds samples at the end. Values that are no numbers become silence.
    pub fn push(&mut self, samples: &[f32]) {
        self.samples
            .extend(samples.iter().map(|s| if s.is_finite() { *s } else { 0.0 }));
    }

    /// Index behind the last sample.
    pub fn end(&self) -> SampleIndex {
        self.first.plus(self.samples.len() as u64)
    }

    /// Samples held.
    pub fn len(&self) -> usize {
        self.samples.len()
    }

    /// Whether it holds none.
    pub fn is_empty(&self) -> bool {
        self.samples.is_empty()
    }

    /// Samples `[from, to)`, silence where there are none.
    pub fn copy(&self, from: SampleIndex, to: SampleIndex) -> Vec<f32> {
        let len = to.since(from) as usize;
        let mut out = vec![0.0; len];
        let begin = from.max(self.first);
        let end = to.min(self.end());
        if begin < end {
            let at = begin.since(from) as usize;
            let first = begin.since(self.first) as usize;
            let count = end.since(begin) as usize;
            for (to, from) in out[at..at + count]
                .iter_mut()
                .zip(self.samples.range(first..first + count))
            {
                *to = *from;
            }
        }
        out
    }

    /// Forgets what lies before `index`.
    pub fn drop_before(&mut self, index: SampleIndex) {
        let count = (index.since(self.first) as usize).min(self.samples.len());
        self.samples.drain(..count);
        self.first = self.first.plus(count as u64);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_there_reads_as_silence() {
        let mut buffer = SampleBuffer::new(SampleIndex(100));
        buffer.push(&[1.0, f32::NAN, 3.0]);

        assert_eq!(
            buffer.copy(SampleIndex(98), SampleIndex(105)),
            [0.0, 0.0, 1.0, 0.0, 3.0, 0.0, 0.0]
        );
    }

    #[test]
    fn dropping_moves_the_front_only() {
        let mut buffer = SampleBuffer::new(SampleIndex(0));
        buffer.push(&[1.0, 2.0, 3.0, 4.0]);

        buffer.drop_before(SampleIndex(2));
        buffer.drop_before(SampleIndex(1));

        assert_eq!(buffer.len(), 2);
        assert_eq!(buffer.end(), SampleIndex(4));
        assert_eq!(buffer.copy(SampleIndex(2), SampleIndex(4)), [3.0, 4.0]);
    }
}
