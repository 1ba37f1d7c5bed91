// SPDX-License-Identifier: MPL-2.0
//! Audio of any kind becomes 16 kHz F32: one channel, or each on its own.

use crate::audio::SAMPLE_RATE;
use crate::ffi::AudioConverter;

use super::Channels;

/// Converts what comes in between two CAPS events.
#[derive(Debug)]
pub(super) struct Input {
    info: gst_audio::AudioInfo,
    converter: AudioConverter,
    out_channels: usize,
}

impl Input {
    pub(super) fn new(caps: &gst::CapsRef, channels: Channels) -> Result<Self, gst::ErrorMessage> {
        let refused = |why: &str| {
            gst::error_msg!(
                gst::StreamError::Format,
                ("cannot take audio of the form {caps}: {why}. Put audioconvert ! audioresample before it")
            )
        };
        let info =
            gst_audio::AudioInfo::from_caps(caps).map_err(|_| refused("it is incomplete"))?;
        let out_channels = match channels {
            Channels::Mix => 1,
            Channels::Separate => info.channels() as usize,
        };
        let output = gst_audio::AudioInfo::builder(
            gst_audio::AUDIO_FORMAT_F32,
            SAMPLE_RATE,
            out_channels as u32,
        );
        let matrix = matrix(info.channels() as usize, out_channels);
        let output = match info.positions() {
            Some(positions) if out_channels == info.channels() as usize => {
                output.positions(positions).build()
            }
            _ => output.build(),
        }
        .map_err(|_| refused("it has too many channels"))?;
        let converter = AudioConverter::new(&info, &output, matrix.as_deref())
            .ok_or_else(|| refused("libgstaudio cannot convert it"))?;
        Ok(Self {
            info,
            converter,
            out_channels,
        })
    }

    pub(super) fn channels(&self) -> usize {
        self.out_channels
    }

    pub(super) fn info(&self) -> &gst_audio::AudioInfo {
        &self.info
    }

    /// A vector a channel. `None` if the converter failed.
    pub(super) fn convert(&mut self, data: &[u8]) -> Option<Vec<Vec<f32>>> {
        let samples = self.converter.convert(data)?;
        Some(self.split(samples))
    }

    /// What the resampler still holds.
    pub(super) fn drain(&mut self) -> Option<Vec<Vec<f32>>> {
        let samples = self.converter.drain()?;
        Some(self.split(samples))
    }

    pub(super) fn reset(&mut self) {
        self.converter.reset();
    }

    fn split(&self, samples: Vec<f32>) -> Vec<Vec<f32>> {
        if self.out_channels == 1 {
            return vec![samples];
        }
        (0..self.out_channels)
            .map(|c| {
                samples
                    .iter()
                    .skip(c)
                    .step_by(self.out_channels)
                    .copied()
                    .collect()
            })
            .collect()
    }
}

/// How channels mix. GStreamer knows the weights of positioned stereo; more channels than that (microphones,
/// unpositioned lines) count alike.
fn matrix(from: usize, to: usize) -> Option<Vec<Vec<f32>>> {
    if from == to {
        let unit = |i| (0..from).map(|j| if i == j { 1.0 } else { 0.0 }).collect();
        return (from > 2).then(|| (0..to).map(unit).collect());
    }
    (from > 2).then(|| vec![vec![1.0 / from as f32; from]; to])
}
