// SPDX-License-Identifier: MPL-2.0
//! `scribediarizer`: audio through untouched, who spoke when beside it.

mod imp;
pub(crate) mod settings;
mod turns_pad;
mod worker;

use gst::glib;
use gst::prelude::*;
use gst::subclass::prelude::*;

glib::wrapper! {
    /// See the module.
    pub struct Diarizer(ObjectSubclass<imp::Diarizer>)
        @extends gst::Element, gst::Object;
}

/// When turns are told.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, glib::Enum)]
#[enum_type(name = "GstScribeDiarizerMode")]
pub enum DiarizerMode {
    /// Offline unless upstream says that it is live.
    #[default]
    #[enum_value(name = "Offline unless upstream is live", nick = "auto")]
    Auto,
    /// At the end, all at once.
    #[enum_value(
        name = "At the end of the stream, from all of it: the best speakers",
        nick = "offline"
    )]
    Offline,
    /// While the sound comes.
    #[enum_value(
        name = "While the sound comes, `latency` behind it; mended by scribe/relabel",
        nick = "online"
    )]
    Online,
}

impl Diarizer {
    /// Whether words behind it are live though the source may be none: their speakers are wanted soon.
    pub(crate) fn set_live_words(&self, live: bool) {
        self.imp().set_live_words(live);
    }
}

/// Registers the element.
pub fn register(plugin: &gst::Plugin) -> Result<(), glib::BoolError> {
    gst::Element::register(
        Some(plugin),
        "scribediarizer",
        gst::Rank::NONE,
        Diarizer::static_type(),
    )
}
