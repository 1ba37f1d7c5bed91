// SPDX-License-Identifier: MPL-2.0
//! scribe: GStreamer elements that turn decoded audio into words with times, speakers and names.
//!
//! Layers, from the top; each may use those below it and never one above: elements (`transcriber`,
//! `encoder`, …), logic (`transcribe`, `diarize`, `enroll`, `voices`,
//! `transcript`, `audio`), `registry`, `inference`, arrays (`dsp`).

pub mod audio;
pub mod bin_element;
pub mod context;
pub mod diarize;
pub mod diarizer;
pub mod dsp;
pub mod encoder;
pub mod enroll;
pub mod enroller;
pub mod error;
pub mod ffi;
pub mod inference;
pub mod intake;
pub mod messages;
pub mod meta;
pub mod registry;
pub mod transcribe;
pub mod transcriber;
pub mod transcript;
pub mod voices;

pub use plugin::plugin_register_static;

/// What GStreamer's macro makes is not ours to document.
#[allow(missing_docs)]
mod plugin {
    use gst::glib;

    use crate::{bin_element, diarizer, encoder, enroller, inference, meta, transcriber};

    fn plugin_init(plugin: &gst::Plugin) -> Result<(), glib::BoolError> {
        // Nothing but registration here: this runs in the plugin scanner too.
        if let Some(file) = plugin.filename() {
            inference::manifest::set_plugin_file(&file);
            if let Some(folder) = file.parent() {
                inference::onnx::library::set_plugin_folder(folder);
            }
        }
        meta::register();
        transcriber::register(plugin)?;
        diarizer::register(plugin)?;
        enroller::register(plugin)?;
        encoder::register(plugin)?;
        bin_element::register(plugin)
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
