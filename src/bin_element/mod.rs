// SPDX-License-Identifier: MPL-2.0
//! `scribebin`: diarizer, transcriber and encoder in one element with one set of properties.

mod imp;
mod settings;

use gst::glib;
use gst::prelude::*;

glib::wrapper! {
    /// See the module.
    pub struct ScribeBin(ObjectSubclass<imp::ScribeBin>)
        @extends gst::Bin, gst::Element, gst::Object,
        @implements gst::ChildProxy;
}

/// For whom the words are, and when speakers are told.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, glib::Enum)]
#[enum_type(name = "GstScribeBinMode")]
pub enum BinMode {
    /// File unless upstream says that it is live.
    #[default]
    #[enum_value(name = "As upstream is: a file, or live", nick = "auto")]
    Auto,
    /// Best text and speakers; with speakers all of it comes at the end.
    #[enum_value(
        name = "Best text and speakers; with speakers=true the text comes at the end",
        nick = "file"
    )]
    File,
    /// Speakers are told while the sound comes.
    #[enum_value(
        name = "Speakers are told while the sound comes, speaker-latency behind it",
        nick = "online"
    )]
    Online,
    /// Words and speakers while somebody speaks.
    #[enum_value(
        name = "Words while they are spoken, and their speakers as far as they are known",
        nick = "live"
    )]
    Live,
}

/// Registers the element.
pub fn register(plugin: &gst::Plugin) -> Result<(), glib::BoolError> {
    gst::Element::register(
        Some(plugin),
        "scribebin",
        gst::Rank::NONE,
        ScribeBin::static_type(),
    )
}
