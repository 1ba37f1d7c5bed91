// SPDX-License-Identifier: MPL-2.0
//! Speech, joined end to end, in pieces of a few seconds: what the embedding model looks at.

use std::sync::Arc;

/// With fewer pieces than this, the end of the speech gets a piece of its own too.
const FEW: usize = 8;

/// Cuts speech into pieces as it comes. However long it is, no more than twice as many as are wanted are kept: every
/// second of them is let go, and from then on every second one that comes.
#[derive(Debug)]
pub struct Pieces {
    duration: usize,
    hop: usize,
    most: usize,
    /// Speech from the start of the next piece on.
    rest: Vec<f32>,
    /// Samples of speech in all.
    samples: u64,
    /// Pieces so far, kept or not.
    count: u64,
    /// One in so many is kept.
    every: u64,
    kept: Vec<Packed>,
    /// The end of the speech is in the last piece.
    is_whole: bool,
}

/// A piece in 16 bits a sample below its own loudest: 96 dB under that nobody hears anything.
#[derive(Debug)]
struct Packed {
    scale: f32,
    samples: Box<[i16]>,
}

impl Packed {
    fn of(samples: &[f32]) -> Self {
        let peak = samples.iter().fold(0.0_f32, |m, s| m.max(s.abs()));
        let scale = if peak > 0.0 && peak.is_finite() {
            peak / f32::from(i16::MAX)
        } else {
            1.0
        };
        let pack = |s: &f32| (s / scale).round() as i16;
        Self {
            scale,
            samples: samples.iter().map(pack).collect(),
        }
    }

    fn samples(&self) -> Arc<[f32]> {
        let unpack = |s: &i16| f32::from(*s) * self.scale;
        self.samples.iter().map(unpack).collect()
    }
}

impl Pieces {
    /// Pieces of `duration` samples every `hop`; `most` are wanted.
    pub fn new(duration: usize, hop: usize, most: usize) -> Self {
        let duration = duration.max(1);
        Self {
            duration,
            hop: hop.clamp(1, duration),
            most: most.max(1),
            rest: Vec::new(),
            samples: 0,
            count: 0,
            every: 1,
            kept: Vec::new(),
            is_whole: true,
        }
    }

    /// More speech.
    pub fn push(&mut self, speech: &[f32]) {
        self.samples += speech.len() as u64;
        self.rest.extend_from_slice(speech);
        let mut at = 0;
        while self.rest.len() - at >= self.duration {
            if self.count % self.every == 0 {
                self.kept
                    .push(Packed::of(&self.rest[at..at + self.duration]));
            }
            self.count += 1;
            at += self.hop;
            if self.kept.len() > 2 * self.most {
                let mut n = 0;
                self.kept.retain(|_| {
                    n += 1;
                    n % 2 == 1
                });
                self.every *= 2;
            }
        }
        if !speech.is_empty() {
            // What the last piece has of it is in `rest` too, but for the hop.
            self.is_whole = at > 0 && self.rest.len() + self.hop == at + self.duration;
        }
        self.rest.drain(..at);
    }

    /// Seconds of speech so far.
    pub fn seconds(&self) -> f64 {
        self.samples as f64 / 16_000.0
    }

    /// Pieces that there are of the speech so far, kept or not.
    pub fn count(&self) -> u64 {
        self.count + u64::from(self.has_tail())
    }

    fn has_tail(&self) -> bool {
        !self.is_whole && self.count < FEW as u64 && self.every == 1
    }

    /// The pieces that are wanted, spread over all of the speech. Speech that is shorter than a piece is one.
    pub fn finish(mut self) -> Vec<Arc<[f32]>> {
        if self.has_tail() {
            // `rest` begins a hop after the last piece did, so it may be longer than what no piece has, never shorter.
            let tail = match self.kept.last() {
                None => Packed::of(&self.rest),
                Some(last) => {
                    let overlap = self.duration.saturating_sub(self.rest.len());
                    let before = last.samples();
                    let before = &before[..self.hop.min(before.len())];
                    let from = before.len().saturating_sub(overlap);
                    Packed::of(&[&before[from..], &self.rest].concat())
                }
            };
            self.kept.push(tail);
        }
        let kept = self.kept.len();
        let wanted = self.most.min(kept);
        let chosen = (0..wanted).map(|n| match wanted {
            1 => kept / 2,
            _ => n * (kept - 1) / (wanted - 1),
        });
        chosen.map(|n| self.kept[n].samples()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: usize = 16_000;

    /// Speech in which each sample says where it is, in hundredths of a second.
    fn ramp(samples: usize) -> Vec<f32> {
        (0..samples).map(|n| (n / 160) as f32).collect()
    }

    fn pieces(seconds: f64, most: usize) -> Pieces {
        let mut pieces = Pieces::new(3 * S, 3 * S / 2, most);
        let speech = ramp((seconds * S as f64) as usize);
        for part in speech.chunks(7_919) {
            pieces.push(part);
        }
        pieces
    }

    fn starts(pieces: Vec<Arc<[f32]>>) -> Vec<f32> {
        pieces
            .iter()
            .map(|p| (p[0] / 100.0 * 10.0).round() / 10.0)
            .collect()
    }

    #[test]
    fn the_recording_of_the_accident_has_1808_pieces_of_which_500_are_spread_over_it() {
        let all = pieces(2714.877, 500);

        assert_eq!(all.count(), 1808);
        assert!(all.kept.len() <= 1001);
        let starts = starts(all.finish());
        assert_eq!(starts.len(), 500);
        assert_eq!(starts[0], 0.0);
        assert!(starts[499] > 2700.0, "{}", starts[499]);
        let widest = starts.windows(2).map(|w| w[1] - w[0]).fold(0.0, f32::max);
        assert!(widest <= 9.0 + 0.1, "{widest}");
        assert_eq!(pieces(2714.877, 250).finish().len(), 250);
    }

    #[test]
    fn a_short_recording_is_heard_to_its_end() {
        assert_eq!(starts(pieces(2.0, 500).finish()), [0.0]);
        assert_eq!(pieces(2.0, 500).finish()[0].len(), 2 * S);
        assert_eq!(starts(pieces(3.0, 500).finish()), [0.0]);
        assert_eq!(starts(pieces(4.4, 500).finish()), [0.0, 1.4]);
        assert_eq!(starts(pieces(4.5, 500).finish()), [0.0, 1.5]);
        assert_eq!(starts(pieces(7.0, 500).finish()), [0.0, 1.5, 3.0, 4.0]);
        for piece in pieces(7.0, 500).finish() {
            assert_eq!(piece.len(), 3 * S);
        }
        assert_eq!(pieces(0.0, 500).finish().len(), 0);
    }

    #[test]
    fn pieces_are_told_apart_from_16_bits_by_nobody() {
        let faint: Vec<f32> = (0..3 * S).map(|n| (n as f32 * 0.3).sin() * 1e-4).collect();
        let mut pieces = Pieces::new(3 * S, S, 10);

        pieces.push(&faint);

        let back = pieces.finish();
        let error = faint.iter().zip(back[0].iter()).map(|(a, b)| (a - b).abs());
        assert!(error.fold(0.0, f32::max) < 1e-8);
    }

    #[test]
    fn one_piece_of_many_is_the_one_in_the_middle() {
        let only = pieces(30.0, 1).finish();

        assert_eq!(only.len(), 1);
        assert!(only[0][0] > 500.0 && only[0][0] < 2500.0);
    }
}
