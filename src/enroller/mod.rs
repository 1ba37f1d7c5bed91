// SPDX-License-Identifier: MPL-2.0
//! `scribeenroller`: audio through untouched, a voice learnt beside it.

mod imp;
mod settings;
mod worker;

use gst::glib;
use gst::prelude::*;

glib::wrapper! {
    /// See the module.
    pub struct Enroller(ObjectSubclass<imp::Enroller>)
        @extends gst::Element, gst::Object;
}

/// Whose voices are learnt.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, glib::Enum)]
#[enum_type(name = "GstScribeEnrollPolicy")]
pub enum EnrollPolicy {
    /// One person's, by name.
    #[default]
    #[enum_value(name = "The one of the person that name-of names", nick = "name")]
    Name,
    /// Everybody's who has no identity yet.
    #[enum_value(
        name = "Behind scribediarizer: each speaker whom nobody knows gets a lasting identity, to be named later",
        nick = "unknown"
    )]
    Unknown,
    /// Those of people who are known.
    #[enum_value(
        name = "Behind scribediarizer: what people say who are known by name adds to their voices, from strong matches only",
        nick = "named"
    )]
    Named,
}

/// Registers the element.
pub fn register(plugin: &gst::Plugin) -> Result<(), glib::BoolError> {
    gst::Element::register(
        Some(plugin),
        "scribeenroller",
        gst::Rank::NONE,
        Enroller::static_type(),
    )
}
