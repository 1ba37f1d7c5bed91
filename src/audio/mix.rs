// SPDX-License-Identifier: MPL-2.0
//! Two channels into one.

/// The sum is given up where it has less than this share of the channels' energy.
const CANCELLED_SHARE: f32 = 0.01;
/// What a block of samples weighs against all before it.
const MEMORY: f32 = 0.9;

/// Mixes stereo down: the mean of both channels, or half their difference where one is the other upside down
/// (a cable or a plug-in gone wrong), whose mean would be silence.
#[derive(Clone, Debug, Default)]
pub struct StereoMix {
    sum_energy: f32,
    channels_energy: f32,
}

impl StereoMix {
    /// Interleaved samples of two channels in, one channel out. What one block decides holds for the whole of it.
    pub fn mix(&mut self, interleaved: &[f32]) -> Vec<f32> {
        let (pairs, _) = interleaved.as_chunks::<2>();
        let (mut sum, mut channels) = (0.0, 0.0);
        for [left, right] in pairs {
            let mean = (left + right) / 2.0;
            sum += mean * mean;
            channels += (left * left + right * right) / 2.0;
        }
        // Samples that are no numbers must not stay in the memory.
        if sum.is_finite() && channels.is_finite() {
            self.sum_energy = self.sum_energy * MEMORY + sum;
            self.channels_energy = self.channels_energy * MEMORY + channels;
        }
        let sign = if self.sum_energy < self.channels_energy * CANCELLED_SHARE {
            -1.0
        } else {
            1.0
        };
        pairs
            .iter()
            .map(|[left, right]| (left + sign * right) / 2.0)
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_channel_that_is_the_other_upside_down_does_not_silence_it() {
        assert_eq!(
            StereoMix::default().mix(&[0.5, -0.5, 0.25, -0.25]),
            [0.5, 0.25]
        );
    }

    #[test]
    fn other_channels_are_averaged() {
        assert_eq!(StereoMix::default().mix(&[0.5, 0.0, 0.5, 0.5]), [0.25, 0.5]);
    }
}
