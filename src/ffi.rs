// SPDX-License-Identifier: MPL-2.0
//! What GStreamer's bindings lack: the audio converter of libgstaudio. The only `unsafe` outside `inference`.

#![allow(unsafe_code)]

use std::ptr::NonNull;

use gst::glib;
use gst::glib::translate::{ToGlibPtr, ToGlibPtrMut};
use gst_audio::ffi;

/// Converts interleaved audio of any format, rate and channels into F32.
#[derive(Debug)]
pub struct AudioConverter {
    raw: NonNull<ffi::GstAudioConverter>,
    in_bytes_per_frame: usize,
    out_channels: usize,
}

// SAFETY: the converter is plain heap memory without thread affinity; `&mut self` guards its use.
unsafe impl Send for AudioConverter {}

impl AudioConverter {
    /// A converter from `input` to interleaved F32 of `output`'s rate and channels. `None` if libgstaudio
    /// has no way from one to the other.
    pub fn new(
        input: &gst_audio::AudioInfo,
        output: &gst_audio::AudioInfo,
        mix_matrix: Option<&[Vec<f32>]>,
    ) -> Option<Self> {
        let mut config = gst_audio::AudioConverterConfig::new();
        if let Some(matrix) = mix_matrix {
            config.set_mix_matrix(matrix);
        }
        let mut config: gst::Structure = config.into();
        // SAFETY: both infos are valid for the call, which only reads and copies them; the converter takes ownership of the
        // config, of which it gets a copy of its own.
        let raw = unsafe {
            let config: *mut gst::ffi::GstStructure = config.to_glib_none_mut().0;
            ffi::gst_audio_converter_new(
                ffi::GST_AUDIO_CONVERTER_FLAG_NONE,
                input.to_glib_none().0.cast_mut(),
                output.to_glib_none().0.cast_mut(),
                gst::ffi::gst_structure_copy(config),
            )
        };
        Some(Self {
            raw: NonNull::new(raw)?,
            in_bytes_per_frame: input.bpf() as usize,
            out_channels: output.channels() as usize,
        })
    }

    /// Converts whole frames; bytes of a last, broken frame are left out. Some output trails by the
    /// resampler's latency, see [`AudioConverter::latency`].
    pub fn convert(&mut self, data: &[u8]) -> Option<Vec<f32>> {
        self.run(Some(data), data.len() / self.in_bytes_per_frame.max(1))
    }

    /// What the resampler still holds, by feeding it silence.
    pub fn drain(&mut self) -> Option<Vec<f32>> {
        let frames = self.latency();
        if frames == 0 {
            Some(Vec::new())
        } else {
            self.run(None, frames)
        }
    }

    /// Input frames that the resampler holds back.
    pub fn latency(&self) -> usize {
        // SAFETY: `raw` is a live converter.
        unsafe { ffi::gst_audio_converter_get_max_latency(self.raw.as_ptr()) }
    }

    /// Forgets what it holds, for sound that does not follow on.
    pub fn reset(&mut self) {
        // SAFETY: `raw` is a live converter.
        unsafe { ffi::gst_audio_converter_reset(self.raw.as_ptr()) }
    }

    fn run(&mut self, data: Option<&[u8]>, frames: usize) -> Option<Vec<f32>> {
        if frames == 0 {
            return Some(Vec::new());
        }
        // SAFETY: `raw` is a live converter.
        let out_frames =
            unsafe { ffi::gst_audio_converter_get_out_frames(self.raw.as_ptr(), frames) };
        let mut out = vec![0.0f32; out_frames * self.out_channels];
        if out_frames == 0 {
            // Too little for a frame of output: the converter must still take it in.
            out.reserve_exact(self.out_channels);
        }
        let mut out_planes = [out.as_mut_ptr().cast::<std::ffi::c_void>()];
        let mut in_planes = data.map(|data| [data.as_ptr().cast_mut().cast::<std::ffi::c_void>()]);
        // SAFETY: interleaved audio has one plane; the input holds `frames` whole frames and is only read
        // (the flag for a writable input is not given), no pointer stands for silence; the output has room
        // for `out_frames`, the number that the converter itself named.
        let done = unsafe {
            ffi::gst_audio_converter_samples(
                self.raw.as_ptr(),
                0,
                in_planes
                    .as_mut()
                    .map_or(std::ptr::null_mut(), |p| p.as_mut_ptr()),
                frames,
                out_planes.as_mut_ptr(),
                out_frames,
            )
        };
        (done != glib::ffi::GFALSE).then_some(out)
    }
}

impl Drop for AudioConverter {
    fn drop(&mut self) {
        // SAFETY: `raw` is a live converter and is not used again.
        unsafe { ffi::gst_audio_converter_free(self.raw.as_ptr()) }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn info(format: gst_audio::AudioFormat, rate: u32, channels: u32) -> gst_audio::AudioInfo {
        gst_audio::AudioInfo::builder(format, rate, channels)
            .build()
            .unwrap()
    }

    #[test]
    fn stereo_of_two_bytes_becomes_mono_floats_at_a_third_of_the_rate() {
        gst::init().unwrap();
        let input = info(gst_audio::AUDIO_FORMAT_S16, 48_000, 2);
        let output = info(gst_audio::AUDIO_FORMAT_F32, 16_000, 1);
        let mut converter = AudioConverter::new(&input, &output, None).unwrap();
        let sound: Vec<u8> = (0..48_000).flat_map(|_| [0x00, 0x40, 0x00, 0x40]).collect();

        let mut out = converter.convert(&sound).unwrap();
        out.extend(converter.drain().unwrap());

        assert!(out.len().abs_diff(16_000) <= 64, "{}", out.len());
        assert!((out[8_000] - 0.5).abs() < 0.01, "{}", out[8_000]);
    }
}
