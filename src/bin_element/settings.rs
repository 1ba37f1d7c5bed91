// SPDX-License-Identifier: MPL-2.0
//! Which property of the bin is whose. What an element of it has, the bin has under the same name; the few names that two
//! of them have with different meanings are told apart here.

use std::sync::LazyLock;

use gst::glib;
use gst::prelude::*;

use super::BinMode;
use crate::diarizer;
use crate::transcriber;
use crate::transcript::formats::{Format, UnknownFormat};

/// What is the bin's own.
#[derive(Clone, Debug)]
pub(super) struct Settings {
    pub speakers: bool,
    pub format: String,
    pub mode: BinMode,
}

impl Settings {
    /// The format that was named, if one was.
    pub(super) fn format(&self) -> Result<Option<Format>, UnknownFormat> {
        match self.format.as_str() {
            "" => Ok(None),
            name => name.parse().map(Some),
        }
    }
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            speakers: true,
            format: String::new(),
            mode: BinMode::Auto,
        }
    }
}

/// Whose a property is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Owner {
    Bin,
    /// Of the transcriber, by this name.
    Transcriber(&'static str),
    /// Of the diarizer, by this name.
    Diarizer(&'static str),
    /// Of both, by the same name.
    Both(&'static str),
    /// Of the encoder, by this name.
    Encoder(&'static str),
}

/// Names that the transcriber and the diarizer share and that mean the same.
const BOTH: [&str; 3] = ["memory-limit", "max-buffered", "post-messages"];
/// Names of the diarizer that are another's here: there, and on the bin.
const RENAMED: [(&str, &str); 3] = [
    ("latency", "speaker-latency"),
    ("step", "speaker-step"),
    ("fallback", "speaker-fallback"),
];
/// Names of the elements that the bin has a word of its own for.
const OWN: [&str; 2] = ["mode", "stats"];

struct Property {
    spec: glib::ParamSpec,
    owner: Owner,
}

static PROPERTIES: LazyLock<Vec<Property>> = LazyLock::new(build);

/// Who has a property.
pub(super) fn owner(name: &str) -> Owner {
    let found = PROPERTIES.iter().find(|p| p.spec.name() == name);
    found.map_or(Owner::Bin, |p| p.owner)
}

/// All of them.
pub(super) fn properties() -> &'static [glib::ParamSpec] {
    static SPECS: LazyLock<Vec<glib::ParamSpec>> =
        LazyLock::new(|| PROPERTIES.iter().map(|p| p.spec.clone()).collect());
    &SPECS
}

fn build() -> Vec<Property> {
    let d = Settings::default();
    let own = |spec| Property {
        spec,
        owner: Owner::Bin,
    };
    let mut all = vec![
        own(glib::ParamSpecBoolean::builder("speakers").nick("Speakers").blurb("Tell who speaks. In a file the text then comes at the end").default_value(d.speakers).mutable_ready().build()),
        own(glib::ParamSpecString::builder("format").nick("Format").blurb("What src gives: vtt, srt, json, jsonl, ttml, text, rttm, stm or ctm; empty: text buffers with metas").default_value("").mutable_ready().build()),
        own(glib::ParamSpecEnum::builder_with_default("mode", d.mode).nick("Mode").blurb("For whom the words are, and when speakers are told").mutable_ready().build()),
        Property {
            spec: glib::ParamSpecString::builder("file-id").nick("File id").blurb("Name of the recording in rttm, stm and ctm").default_value("audio").mutable_ready().build(),
            owner: Owner::Encoder("file-id"),
        },
        own(glib::ParamSpecBoxed::builder::<gst::Structure>("stats").nick("Statistics").blurb("Those of the transcriber and of the diarizer").read_only().build()),
    ];
    for spec in transcriber::settings::build() {
        let name = spec.name();
        if OWN.contains(&name) {
            continue;
        }
        let owner = if BOTH.contains(&name) {
            Owner::Both(name)
        } else {
            Owner::Transcriber(name)
        };
        all.push(Property { owner, spec });
    }
    for spec in diarizer::settings::build() {
        let name = spec.name();
        let renamed = RENAMED.iter().find(|(theirs, _)| *theirs == name);
        if let Some((theirs, ours)) = renamed {
            all.push(Property {
                spec: rename(&spec, ours),
                owner: Owner::Diarizer(theirs),
            });
        } else if !OWN.contains(&name) && all.iter().all(|p| p.spec.name() != name) {
            all.push(Property {
                owner: Owner::Diarizer(name),
                spec,
            });
        }
    }
    all
}

/// The same property under another name.
fn rename(spec: &glib::ParamSpec, name: &str) -> glib::ParamSpec {
    let nick = format!("Speaker {}", spec.nick().to_lowercase());
    let blurb = spec.blurb().unwrap_or_default();
    if let Some(number) = spec.downcast_ref::<glib::ParamSpecUInt>() {
        return glib::ParamSpecUInt::builder(name)
            .nick(&nick)
            .blurb(blurb)
            .minimum(number.minimum())
            .maximum(number.maximum())
            .default_value(number.default_value())
            .mutable_ready()
            .build();
    }
    let default = spec.default_value().get::<Option<String>>();
    glib::ParamSpecString::builder(name)
        .nick(&nick)
        .blurb(blurb)
        .default_value(default.ok().flatten().as_deref())
        .mutable_ready()
        .build()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_property_has_one_owner_and_every_element_all_of_its_own() {
        let _ = gst::init();
        let mut names: Vec<&str> = properties().iter().map(|p| p.name()).collect();
        names.sort_unstable();
        let count = names.len();
        names.dedup();
        assert_eq!(names.len(), count);
        assert_eq!(owner("latency"), Owner::Transcriber("latency"));
        assert_eq!(owner("speaker-latency"), Owner::Diarizer("latency"));
        assert_eq!(owner("speaker-fallback"), Owner::Diarizer("fallback"));
        assert_eq!(owner("max-buffered"), Owner::Both("max-buffered"));
        assert_eq!(owner("num-speakers"), Owner::Diarizer("num-speakers"));
        for spec in diarizer::settings::build() {
            let name = spec.name();
            let there = names.contains(&name) || RENAMED.iter().any(|(theirs, _)| *theirs == name);
            assert!(there, "{name}");
        }
    }
}
