// SPDX-License-Identifier: MPL-2.0
//! Audio of any kind becomes 16 kHz F32: one channel, or each on its own.

use crate::audio::SAMPLE_RATE;
use crate::audio::mix::StereoMix;
use crate::ffi::AudioConverter;

use super::Channels;

/// Converts what comes in between two CAPS events.
#[derive(Debug)]
pub(crate) struct Input {
    info: gst_audio::AudioInfo,
    converter: AudioConverter,
    /// Of the converter.
    out_channels: usize,
    /// Two channels become one after the converter: it would let opposite ones cancel.
    stereo: Option<StereoMix>,
}

impl Input {
    pub(crate) fn new(caps: &gst::CapsRef, channels: Channels) -> Result<Self, gst::ErrorMessage> {
        let refused = |why: &str| {
            gst::error_msg!(
                gst::StreamError::Format,
                ("cannot take audio of the form {caps}: {why}. Put audioconvert ! audioresample before it")
            )
        };
        let info =
            gst_audio::AudioInfo::from_caps(caps).map_err(|_| refused("it is incomplete"))?;
        let in_channels = info.channels() as usize;
        let stereo = (channels == Channels::Mix && in_channels == 2).then(StereoMix::default);
        let out_channels = match channels {
            Channels::Mix if stereo.is_none() => 1,
            _ => in_channels,
        };
        // Planes are interleaved before the converter, which then has one way of reading.
        let interleaved =
            gst_audio::AudioInfo::builder(info.format(), info.rate(), info.channels());
        let interleaved = match info.positions() {
            Some(positions) => interleaved.positions(positions).build(),
            None => interleaved.build(),
        }
        .map_err(|_| refused("its channels are unknown"))?;
        let output = gst_audio::AudioInfo::builder(
            gst_audio::AUDIO_FORMAT_F32,
            SAMPLE_RATE,
            out_channels as u32,
        );
        let matrix = matrix(in_channels, out_channels);
        let output = match info.positions() {
            Some(positions) if out_channels == in_channels => output.positions(positions).build(),
            _ => output.build(),
        }
        .map_err(|_| refused("it has too many channels"))?;
        let converter = AudioConverter::new(&interleaved, &output, matrix.as_deref())
            .ok_or_else(|| refused("libgstaudio cannot convert it"))?;
        Ok(Self {
            info,
            converter,
            out_channels,
            stereo,
        })
    }

    pub(crate) fn channels(&self) -> usize {
        if self.stereo.is_some() {
            1
        } else {
            self.out_channels
        }
    }

    /// A buffer's samples in the order the converter wants. `None` if it cannot be read.
    pub(crate) fn bytes(&self, buffer: &gst::BufferRef) -> Option<Vec<u8>> {
        if self.info.layout() == gst_audio::AudioLayout::Interleaved {
            return Some(buffer.map_readable().ok()?.to_vec());
        }
        let planes =
            gst_audio::AudioBufferRef::from_buffer_ref_readable(buffer, &self.info).ok()?;
        let planes: Vec<&[u8]> = (0..planes.n_planes())
            .filter_map(|i| planes.plane_data(i).ok())
            .collect();
        let sample_bytes = self.info.bps() as usize;
        let frames = planes.iter().map(|p| p.len()).min()? / sample_bytes.max(1);
        let mut out = Vec::with_capacity(frames * sample_bytes * planes.len());
        for frame in 0..frames {
            for plane in &planes {
                out.extend_from_slice(&plane[frame * sample_bytes..][..sample_bytes]);
            }
        }
        Some(out)
    }

    /// Bytes of a second of sound, in whole frames.
    pub(crate) fn bytes_per_second(&self) -> usize {
        self.info.bpf() as usize * self.info.rate() as usize
    }

    pub(crate) fn info(&self) -> &gst_audio::AudioInfo {
        &self.info
    }

    /// A vector a channel. `None` if the converter failed.
    pub(crate) fn convert(&mut self, data: &[u8]) -> Option<Vec<Vec<f32>>> {
        let samples = self.converter.convert(data)?;
        Some(self.split(samples))
    }

    /// What the resampler still holds.
    pub(crate) fn drain(&mut self) -> Option<Vec<Vec<f32>>> {
        let samples = self.converter.drain()?;
        Some(self.split(samples))
    }

    pub(crate) fn reset(&mut self) {
        self.converter.reset();
    }

    fn split(&mut self, samples: Vec<f32>) -> Vec<Vec<f32>> {
        if let Some(stereo) = &mut self.stereo {
            return vec![stereo.mix(&samples)];
        }
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
