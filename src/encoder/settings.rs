// SPDX-License-Identifier: MPL-2.0
//! What a user may set on `scribeenc`. `Default` is the one source of default values.

use gst::glib;
use gst::prelude::*;

use super::{CuePreset, Cues, Format};
use crate::transcript::cues::{CueStyle, Preset};
use crate::transcript::formats::Options;

/// Plain data: no handles, no locks, cheap to clone. Read when the output begins.
#[derive(Clone, Debug)]
pub(super) struct Settings {
    pub format: Format,
    /// Whether a user chose it; else downstream caps may.
    pub format_is_set: bool,
    pub file_id: String,
    pub cue_ids: bool,
    /// 0: one file.
    pub fragment_duration_ms: u32,
    pub mpegts_offset_ms: u32,
    pub cues: Cues,
    pub cue_preset: CuePreset,
    /// 0 in these: as the preset has it.
    pub max_line_width: u32,
    pub max_lines: u32,
    pub max_cue_duration_ms: u32,
    pub min_cue_duration_ms: u32,
    pub max_cps: f64,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            format: Format::default(),
            format_is_set: false,
            file_id: "audio".into(),
            cue_ids: false,
            fragment_duration_ms: 0,
            // Where GStreamer's mpegtsmux begins to count.
            mpegts_offset_ms: 3_600_000,
            cues: Cues::default(),
            cue_preset: CuePreset::default(),
            max_line_width: 0,
            max_lines: 0,
            max_cue_duration_ms: 0,
            min_cue_duration_ms: 0,
            max_cps: 0.0,
        }
    }
}

impl Settings {
    pub fn options(&self) -> Options {
        Options {
            file_id: self.file_id.clone(),
            cue_ids: self.cue_ids,
            style: self.style(),
        }
    }

    pub fn style(&self) -> CueStyle {
        let mut style = CueStyle::from(Preset::from(self.cue_preset));
        if self.max_line_width > 0 {
            style = style.with_max_line_width(self.max_line_width);
        }
        if self.max_lines > 0 {
            style.max_lines = self.max_lines;
        }
        if self.max_cps > 0.0 {
            style = style.with_max_cps(self.max_cps as f32);
        }
        if self.max_cue_duration_ms > 0 {
            style.max_duration_ns = u64::from(self.max_cue_duration_ms) * 1_000_000;
        }
        if self.min_cue_duration_ms > 0 {
            style.min_duration_ns = u64::from(self.min_cue_duration_ms) * 1_000_000;
        }
        style
    }

    pub fn set(&mut self, name: &str, value: &glib::Value) {
        // GObject has checked name and type; a value that does not fit changes nothing.
        match name {
            "format" => {
                if let Ok(format) = value.get() {
                    self.format = format;
                    self.format_is_set = true;
                }
            }
            "file-id" => {
                let id = value.get::<Option<String>>().ok().flatten();
                self.file_id = id.unwrap_or_else(|| Self::default().file_id);
            }
            "cue-ids" => replace(&mut self.cue_ids, value),
            "fragment-duration" => replace(&mut self.fragment_duration_ms, value),
            "mpegts-offset" => replace(&mut self.mpegts_offset_ms, value),
            "cues" => replace(&mut self.cues, value),
            "cue-preset" => replace(&mut self.cue_preset, value),
            "max-line-width" => replace(&mut self.max_line_width, value),
            "max-lines" => replace(&mut self.max_lines, value),
            "max-cue-duration" => replace(&mut self.max_cue_duration_ms, value),
            "min-cue-duration" => replace(&mut self.min_cue_duration_ms, value),
            "max-cps" => replace(&mut self.max_cps, value),
            _ => {}
        }
    }

    pub fn get(&self, name: &str) -> glib::Value {
        match name {
            "format" => self.format.to_value(),
            "file-id" => self.file_id.to_value(),
            "cue-ids" => self.cue_ids.to_value(),
            "fragment-duration" => self.fragment_duration_ms.to_value(),
            "mpegts-offset" => self.mpegts_offset_ms.to_value(),
            "cues" => self.cues.to_value(),
            "cue-preset" => self.cue_preset.to_value(),
            "max-line-width" => self.max_line_width.to_value(),
            "max-lines" => self.max_lines.to_value(),
            "max-cue-duration" => self.max_cue_duration_ms.to_value(),
            "min-cue-duration" => self.min_cue_duration_ms.to_value(),
            // The last one; GObject asks for no other.
            _ => self.max_cps.to_value(),
        }
    }

    pub fn properties() -> Vec<glib::ParamSpec> {
        let defaults = Self::default();
        let count = |name: &str, nick: &str, blurb: &str, maximum: u32| {
            glib::ParamSpecUInt::builder(name)
                .nick(nick)
                .blurb(blurb)
                .maximum(maximum)
                .mutable_ready()
                .build()
        };
        vec![
            glib::ParamSpecEnum::builder_with_default("format", defaults.format)
                .nick("Format")
                .blurb("Format of the file; while it is not set, downstream caps may choose another than the default")
                .mutable_ready()
                .build(),
            glib::ParamSpecString::builder("file-id")
                .nick("File id")
                .blurb("Name of the recording in RTTM, STM and CTM")
                .default_value(Some(defaults.file_id.as_str()))
                .mutable_ready()
                .build(),
            glib::ParamSpecBoolean::builder("cue-ids")
                .nick("Cue ids")
                .blurb("Number the cues of WebVTT")
                .default_value(defaults.cue_ids)
                .mutable_ready()
                .build(),
            count("fragment-duration", "Fragment duration", "For HLS: a WebVTT file of this length in each buffer, in milliseconds of running time; 0: one file, cue by cue", 3_600_000),
            glib::ParamSpecUInt::builder("mpegts-offset")
                .nick("MPEG-TS offset")
                .blurb("What the clock of the transport stream beside these fragments shows at the running time zero, in milliseconds; as it is, that of mpegtsmux")
                .default_value(defaults.mpegts_offset_ms)
                .mutable_ready()
                .build(),
            glib::ParamSpecEnum::builder_with_default("cues", defaults.cues)
                .nick("Cues")
                .blurb("Which text is cut into cues here; words wait for the end of their sentence or a pause")
                .mutable_ready()
                .build(),
            glib::ParamSpecEnum::builder_with_default("cue-preset", defaults.cue_preset)
                .nick("Cue preset")
                .blurb("Shape of the cues that are made here; the properties after this one change its parts")
                .mutable_ready()
                .build(),
            count("max-line-width", "Line width", "Most characters in a line, wide ones counting two; 0: as the preset", 1000),
            count("max-lines", "Lines", "Most lines in a cue; 0: as the preset", 10),
            count("max-cue-duration", "Longest cue", "Longest time that a cue is shown, in milliseconds; 0: as the preset", 60_000),
            count("min-cue-duration", "Shortest cue", "Shortest time that a cue is shown where the next one allows it, in milliseconds; 0: as the preset", 60_000),
            glib::ParamSpecDouble::builder("max-cps")
                .nick("Reading speed")
                .blurb("Most characters a second that a reader can follow; 0: as the preset")
                .maximum(1000.0)
                .default_value(defaults.max_cps)
                .mutable_ready()
                .build(),
        ]
    }
}

fn replace<'v, T: glib::value::FromValue<'v>>(field: &mut T, value: &'v glib::Value) {
    if let Ok(value) = value.get() {
        *field = value;
    }
}
