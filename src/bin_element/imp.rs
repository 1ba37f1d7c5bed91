// SPDX-License-Identifier: MPL-2.0
//! `scribebin` put together: which elements it has follows from its properties, on the way to READY.

use std::sync::{LazyLock, Mutex, MutexGuard, PoisonError};

use gst::glib;
use gst::prelude::*;
use gst::subclass::prelude::*;

use super::BinMode;
use super::settings::{Owner, Settings, owner, properties};
use crate::diarizer::{Diarizer, DiarizerMode};
use crate::encoder;
use crate::intake::sound_caps;
use crate::transcriber::{Mode, Transcriber};
use crate::transcript::formats::Format;

static CAT: LazyLock<gst::DebugCategory> = LazyLock::new(|| {
    gst::DebugCategory::new(
        "scribebin",
        gst::DebugColorFlags::empty(),
        Some("scribe's elements in one"),
    )
});

/// Sound that waits for those behind the pad `audio`: more than text may be late.
const AUDIO_QUEUE_MAX: gst::ClockTime = gst::ClockTime::from_seconds(120);

// One lock, never held while elements change or push.
pub struct ScribeBin {
    sinkpad: gst::GhostPad,
    srcpad: gst::GhostPad,
    transcriber: Transcriber,
    diarizer: Diarizer,
    encoder: encoder::Encoder,
    settings: Mutex<Settings>,
    extra: Mutex<Extra>,
}

/// Pads that somebody has asked for.
#[derive(Default)]
struct Extra {
    audio: Option<gst::GhostPad>,
    turns: Option<gst::GhostPad>,
}

impl ScribeBin {
    fn settings(&self) -> MutexGuard<'_, Settings> {
        self.settings.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn extra(&self) -> MutexGuard<'_, Extra> {
        self.extra.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts the chain together as the properties say.
    fn assemble(&self) -> Result<(), gst::ErrorMessage> {
        let failed = |e: glib::BoolError| {
            gst::error_msg!(
                gst::CoreError::Failed,
                ("scribebin could not be put together: {e}")
            )
        };
        self.take_apart();
        let settings = self.settings().clone();
        let format = settings
            .format()
            .map_err(|e| gst::error_msg!(gst::LibraryError::Settings, ("format: {e}")))?;
        let (audio, turns) = {
            let extra = self.extra();
            (extra.audio.clone(), extra.turns.clone())
        };
        if turns.is_some() && !settings.speakers {
            return Err(gst::error_msg!(
                gst::LibraryError::Settings,
                ("scribebin's pad turns needs speakers=true")
            ));
        }
        if audio.is_some()
            && settings.speakers
            && !matches!(settings.mode, BinMode::Online | BinMode::Live)
        {
            // The sound would wait for the text of the whole file.
            return Err(gst::error_msg!(
                gst::LibraryError::Settings,
                ("scribebin's pad audio needs mode=live or mode=online while speakers=true, for the text of a file comes at its end. Set mode=live or speakers=false")
            ));
        }
        self.configure(&settings, format);
        (|| {
            let bin = self.obj();
            let mut chain: Vec<gst::Element> = Vec::new();
            if audio.is_some() {
                chain.push(make("tee")?);
            }
            if settings.speakers {
                chain.push(self.diarizer.clone().upcast());
            }
            chain.push(self.transcriber.clone().upcast());
            if format.is_some() {
                chain.push(self.encoder.clone().upcast());
            }
            bin.add_many(&chain)?;
            for pair in chain.windows(2) {
                pair[0].link(&pair[1])?;
            }
            if let (Some(first), Some(last)) = (chain.first(), chain.last()) {
                self.sinkpad.set_target(first.static_pad("sink").as_ref())?;
                self.srcpad.set_target(last.static_pad("src").as_ref())?;
            }
            if let (Some(pad), Some(tee)) = (&audio, chain.first()) {
                let queue = make("queue")?;
                queue.set_property("max-size-buffers", 0_u32);
                queue.set_property("max-size-bytes", 0_u32);
                queue.set_property("max-size-time", AUDIO_QUEUE_MAX.nseconds());
                bin.add(&queue)?;
                tee.link(&queue)?;
                pad.set_target(queue.static_pad("src").as_ref())?;
            }
            if let Some(pad) = &turns {
                pad.set_target(self.diarizer.request_pad_simple("turns").as_ref())?;
            }
            Ok(())
        })()
        .map_err(failed)
    }

    /// What the elements must know beyond the properties they have themselves.
    fn configure(&self, settings: &Settings, format: Option<Format>) {
        let (words, turns) = match settings.mode {
            BinMode::Auto => (Mode::Auto, DiarizerMode::Auto),
            BinMode::File => (Mode::File, DiarizerMode::Offline),
            BinMode::Online => (Mode::Auto, DiarizerMode::Online),
            BinMode::Live => (Mode::Live, DiarizerMode::Online),
        };
        self.transcriber.set_property("mode", words);
        self.diarizer.set_property("mode", turns);
        self.diarizer.set_live_words(settings.mode == BinMode::Live);
        // The speaker models run on the processor, wherever Whisper does.
        let device = self.transcriber.property::<String>("device");
        let device = if device == "cpu" { "cpu" } else { "auto" };
        self.diarizer.set_property("device", device);
        if let Some(format) = format {
            self.encoder
                .set_property_from_str("format", format.as_str());
        }
    }

    fn take_apart(&self) {
        let bin = self.obj();
        let (audio, turns) = {
            let extra = self.extra();
            (extra.audio.clone(), extra.turns.clone())
        };
        let ghosts = [&self.sinkpad, &self.srcpad].into_iter();
        for pad in ghosts.chain(audio.iter()).chain(turns.iter()) {
            let _ = pad.set_target(None::<&gst::Pad>);
        }
        if let Some(pad) = self.diarizer.static_pad("turns") {
            self.diarizer.release_request_pad(&pad);
        }
        for element in bin.children() {
            let _ = element.set_state(gst::State::Null);
            if let Err(error) = bin.remove(&element) {
                gst::warning!(CAT, imp = self, "{error}");
            }
        }
    }

    /// Those who have a property, with its name there.
    fn targets(&self, name: &str) -> Vec<(&glib::Object, &'static str)> {
        match owner(name) {
            Owner::Bin => Vec::new(),
            Owner::Transcriber(name) => vec![(self.transcriber.upcast_ref(), name)],
            Owner::Diarizer(name) => vec![(self.diarizer.upcast_ref(), name)],
            Owner::Both(name) => vec![
                (self.transcriber.upcast_ref(), name),
                (self.diarizer.upcast_ref(), name),
            ],
            Owner::Encoder(name) => vec![(self.encoder.upcast_ref(), name)],
        }
    }

    fn set_own(&self, value: &glib::Value, name: &str) {
        let mut settings = self.settings();
        match name {
            "speakers" => settings.speakers = value.get().unwrap_or(settings.speakers),
            "mode" => settings.mode = value.get().unwrap_or(settings.mode),
            "format" => {
                let text = value.get::<Option<String>>().ok().flatten();
                settings.format = text.unwrap_or_default();
            }
            _ => {}
        }
    }

    fn stats(&self) -> gst::Structure {
        gst::Structure::builder("scribe/stats")
            .field(
                "transcriber",
                self.transcriber.property::<gst::Structure>("stats"),
            )
            .field(
                "diarizer",
                self.diarizer.property::<gst::Structure>("stats"),
            )
            .build()
    }
}

fn make(name: &str) -> Result<gst::Element, glib::BoolError> {
    gst::ElementFactory::make(name).build()
}

#[glib::object_subclass]
impl ObjectSubclass for ScribeBin {
    const NAME: &'static str = "GstScribeBin";
    type Type = super::ScribeBin;
    type ParentType = gst::Bin;

    fn with_class(klass: &Self::Class) -> Self {
        let template = |name: &str| {
            klass
                .pad_template(name)
                .unwrap_or_else(|| unreachable!("made below: {name}"))
        };
        Self {
            sinkpad: gst::GhostPad::builder_from_template(&template("sink")).build(),
            srcpad: gst::GhostPad::builder_from_template(&template("src")).build(),
            transcriber: glib::Object::builder()
                .property("name", "transcriber")
                .build(),
            diarizer: glib::Object::builder().property("name", "diarizer").build(),
            encoder: glib::Object::builder().property("name", "encoder").build(),
            settings: Mutex::default(),
            extra: Mutex::default(),
        }
    }
}

impl ObjectImpl for ScribeBin {
    fn properties() -> &'static [glib::ParamSpec] {
        properties()
    }

    fn set_property(&self, _id: usize, value: &glib::Value, pspec: &glib::ParamSpec) {
        let targets = self.targets(pspec.name());
        if targets.is_empty() {
            self.set_own(value, pspec.name());
        }
        for (object, name) in targets {
            object.set_property_from_value(name, value);
        }
    }

    fn property(&self, _id: usize, pspec: &glib::ParamSpec) -> glib::Value {
        if let Some((object, name)) = self.targets(pspec.name()).first() {
            return object.property_value(name);
        }
        match pspec.name() {
            "speakers" => self.settings().speakers.to_value(),
            "mode" => self.settings().mode.to_value(),
            "format" => self.settings().format.to_value(),
            _ => self.stats().to_value(),
        }
    }

    fn constructed(&self) {
        self.parent_constructed();
        let obj = self.obj();
        for pad in [&self.sinkpad, &self.srcpad] {
            if let Err(error) = obj.add_pad(pad) {
                gst::error!(CAT, imp = self, "{error}");
            }
        }
    }
}

impl GstObjectImpl for ScribeBin {}

impl ElementImpl for ScribeBin {
    fn metadata() -> Option<&'static gst::subclass::ElementMetadata> {
        static METADATA: LazyLock<gst::subclass::ElementMetadata> = LazyLock::new(|| {
            gst::subclass::ElementMetadata::new(
                "scribe bin",
                "Text/Audio/Filter/Bin",
                "Speech to captions with speakers, all in one",
                "scribe developers",
            )
        });
        Some(&METADATA)
    }

    fn pad_templates() -> &'static [gst::PadTemplate] {
        static TEMPLATES: LazyLock<Vec<gst::PadTemplate>> = LazyLock::new(|| {
            use gst::{PadDirection, PadPresence};
            let text = || {
                gst::Caps::builder("text/x-raw")
                    .field("format", gst::List::new(["utf8", "pango-markup"]))
                    .build()
            };
            let mut out = text();
            out.merge(encoder::caps());
            [
                (
                    "sink",
                    PadDirection::Sink,
                    PadPresence::Always,
                    sound_caps(),
                ),
                ("src", PadDirection::Src, PadPresence::Always, out),
                (
                    "audio",
                    PadDirection::Src,
                    PadPresence::Request,
                    sound_caps(),
                ),
                ("turns", PadDirection::Src, PadPresence::Request, text()),
            ]
            .into_iter()
            .filter_map(|(name, direction, presence, caps)| {
                gst::PadTemplate::new(name, direction, presence, &caps).ok()
            })
            .collect()
        });
        &TEMPLATES
    }

    fn request_new_pad(
        &self,
        template: &gst::PadTemplate,
        _name: Option<&str>,
        _caps: Option<&gst::Caps>,
    ) -> Option<gst::Pad> {
        if self.obj().current_state() > gst::State::Null {
            gst::warning!(CAT, imp = self, "pads can be asked for in NULL only");
            return None;
        }
        let pad = {
            let mut extra = self.extra();
            let slot = match template.name_template() {
                "audio" => &mut extra.audio,
                _ => &mut extra.turns,
            };
            if slot.is_some() {
                gst::warning!(CAT, imp = self, "that pad is taken");
                return None;
            }
            let pad = gst::GhostPad::builder_from_template(template)
                .name(template.name_template())
                .build();
            *slot = Some(pad.clone());
            pad
        };
        if let Err(error) = self.obj().add_pad(&pad) {
            gst::error!(CAT, imp = self, "{error}");
            return None;
        }
        Some(pad.upcast())
    }

    fn release_pad(&self, pad: &gst::Pad) {
        {
            let mut extra = self.extra();
            let extra = &mut *extra;
            for slot in [&mut extra.audio, &mut extra.turns] {
                if slot
                    .as_ref()
                    .is_some_and(|own| own.upcast_ref::<gst::Pad>() == pad)
                {
                    *slot = None;
                }
            }
        }
        let _ = pad.set_active(false);
        let _ = self.obj().remove_pad(pad);
    }

    fn change_state(
        &self,
        transition: gst::StateChange,
    ) -> Result<gst::StateChangeSuccess, gst::StateChangeError> {
        if transition == gst::StateChange::NullToReady
            && let Err(message) = self.assemble()
        {
            self.post_error_message(message);
            return Err(gst::StateChangeError);
        }
        let outcome = self.parent_change_state(transition)?;
        if transition == gst::StateChange::ReadyToNull {
            self.take_apart();
        }
        Ok(outcome)
    }
}

impl BinImpl for ScribeBin {}
