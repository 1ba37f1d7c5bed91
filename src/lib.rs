// SPDX-License-Identifier: MPL-2.0
//! scribe: GStreamer elements that turn decoded audio into words with times, speakers and names.
//!
//! Layers, from the top; each may use those below it and never one above: elements (`transcriber`,
//! `encoder`, …), logic (`transcribe`, `transcript`, `audio`), `registry`, `inference`, `dsp`.

pub mod audio;
pub mod encoder;
pub mod meta;
pub mod transcribe;
pub mod transcript;

pub use plugin::plugin_register_static;

/// What GStreamer's macro makes is not ours to document.
#[allow(missing_docs)]
mod plugin {
    fn plugin_init(plugin: &gst::Plugin) -> Result<(), glib::BoolError> {
        crate::encoder::register(plugin)
    }

    gst::plugin_define!(
        scribe,
        env!("CARGO_PKG_DESCRIPTION"),
        plugin_init,
        concat!(env!("CARGO_PKG_VERSION"), "-", env!("COMMIT_ID")),
        "MPL-2.0",
        env!("CARGO_PKG_NAME"),
        env!("CARGO_PKG_NAME"),
        env!("CARGO_PKG_NAME"),
        env!("BUILD_REL_DATE")
    );
}
