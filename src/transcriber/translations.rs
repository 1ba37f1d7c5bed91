// SPDX-License-Identifier: MPL-2.0
//! The pads `translate_src_%u`: each gives text in the language of its property `language-code`. What goes out of them is
//! the worker's; here are the pads and which there are.

use std::sync::{LazyLock, Mutex, MutexGuard, PoisonError};

use gst::glib;
use gst::prelude::*;
use gst::subclass::prelude::*;

/// The only language that Whisper translates into.
pub(super) const ENGLISH: &str = "en";
const TEMPLATE: &str = "translate_src_%u";
const PREFIX: &str = "translate_src_";

/// What a user may set on a pad.
#[derive(Debug)]
struct Settings {
    language_code: String,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            language_code: ENGLISH.into(),
        }
    }
}

/// The subclass behind [`TranslatePad`].
#[derive(Default)]
pub struct Pad {
    settings: Mutex<Settings>,
    /// The language for which a WARNING has said that there is no translation into it.
    warned: Mutex<Option<String>>,
}

glib::wrapper! {
    /// See the module.
    pub struct TranslatePad(ObjectSubclass<Pad>)
        @extends gst::Pad, gst::Object;
}

#[glib::object_subclass]
impl ObjectSubclass for Pad {
    const NAME: &'static str = "GstScribeTranslatePad";
    type Type = TranslatePad;
    type ParentType = gst::Pad;
}

impl ObjectImpl for Pad {
    fn properties() -> &'static [glib::ParamSpec] {
        static PROPERTIES: LazyLock<Vec<glib::ParamSpec>> = LazyLock::new(|| {
            vec![
                glib::ParamSpecString::builder("language-code")
                    .nick("Language")
                    .blurb("Language of the text, as en or en-US: Whisper translates into English alone")
                    .default_value(Some(ENGLISH))
                    .mutable_playing()
                    .build(),
            ]
        });
        &PROPERTIES
    }

    fn set_property(&self, _id: usize, value: &glib::Value, _pspec: &glib::ParamSpec) {
        let code = value.get::<Option<String>>().ok().flatten();
        self.settings().language_code = code.unwrap_or_default();
        self.wake();
    }

    fn property(&self, _id: usize, _pspec: &glib::ParamSpec) -> glib::Value {
        self.settings().language_code.to_value()
    }
}

impl GstObjectImpl for Pad {}

impl PadImpl for Pad {
    fn linked(&self, peer: &gst::Pad) {
        self.parent_linked(peer);
        self.wake();
    }

    fn unlinked(&self, peer: &gst::Pad) {
        self.parent_unlinked(peer);
        self.wake();
    }
}

impl Pad {
    fn settings(&self) -> MutexGuard<'_, Settings> {
        self.settings.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The worker looks which pads there are.
    fn wake(&self) {
        let element = self.obj().parent_element();
        if let Some(element) = element.and_downcast::<super::Transcriber>() {
            element.imp().wake();
        }
    }
}

impl TranslatePad {
    /// As the models write it: the first part of the code, small letters. English where none is set.
    pub(super) fn language(&self) -> String {
        let settings = self.imp().settings();
        let first = settings.language_code.split(['-', '_']).next();
        let first = first.unwrap_or_default().trim().to_ascii_lowercase();
        if first.is_empty() {
            ENGLISH.into()
        } else {
            first
        }
    }

    /// Whether nobody has been told yet that there is no translation into `language`.
    pub(super) fn warns_of(&self, language: &str) -> bool {
        let mut warned = self
            .imp()
            .warned
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        warned.replace(language.to_owned()).as_deref() != Some(language)
    }
}

/// The pads that there are.
#[derive(Debug, Default)]
pub(super) struct Translations {
    // Never held across a call of GStreamer's.
    pads: Mutex<Vec<TranslatePad>>,
}

impl Translations {
    pub(super) fn template(caps: &gst::Caps) -> Option<gst::PadTemplate> {
        gst::PadTemplate::with_gtype(
            TEMPLATE,
            gst::PadDirection::Src,
            gst::PadPresence::Request,
            caps,
            TranslatePad::static_type(),
        )
        .ok()
    }

    fn lock(&self) -> MutexGuard<'_, Vec<TranslatePad>> {
        self.pads.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// All of them.
    pub(super) fn all(&self) -> Vec<TranslatePad> {
        self.lock().clone()
    }

    /// A name for one more, if `wanted` can be it.
    pub(super) fn name(&self, wanted: Option<&str>) -> Option<String> {
        let taken: Vec<glib::GString> = self.all().iter().map(|pad| pad.name()).collect();
        let is_free = |name: &String| !taken.iter().any(|t| t == name);
        match wanted {
            Some(name) => {
                name.strip_prefix(PREFIX)?.parse::<u32>().ok()?;
                Some(name.to_owned()).filter(is_free)
            }
            None => (0..=u32::MAX).map(|n| format!("{PREFIX}{n}")).find(is_free),
        }
    }

    pub(super) fn add(&self, pad: &TranslatePad) {
        self.lock().push(pad.clone());
    }

    /// Whether it was there.
    pub(super) fn remove(&self, pad: &gst::Pad) -> bool {
        let mut pads = self.lock();
        let before = pads.len();
        pads.retain(|own| own.upcast_ref::<gst::Pad>() != pad);
        pads.len() < before
    }
}
