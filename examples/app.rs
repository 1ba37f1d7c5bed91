// SPDX-License-Identifier: MPL-2.0
//! scribe inside a Rust program: words with their times from an appsink. `app FILE [PROPERTY=VALUE …]`
//!
//! The elements are linked in and registered here; no plugin file is loaded. docs/embedding.md says more.
#![allow(clippy::print_stdout, reason = "a program for the terminal")]

use std::time::Duration;

use gst::prelude::*;
use gstscribe::context::registry_context;
use gstscribe::registry::Registry;

type Failure = Box<dyn std::error::Error>;

fn main() -> Result<(), Failure> {
    gst::init()?;
    gstscribe::plugin_register_static()?;
    let mut arguments = std::env::args().skip(1);
    let file = arguments
        .next()
        .ok_or("usage: app FILE [PROPERTY=VALUE …]")?;

    let pipeline = gst::Pipeline::new();
    // Models go a minute after their last user. Without this the process's own registry serves.
    pipeline.set_context(&registry_context(&Registry::new(
        2,
        Duration::from_secs(60),
    )));
    let source = gst::ElementFactory::make("filesrc")
        .property("location", &file)
        .build()?;
    let decode = gst::ElementFactory::make("decodebin").build()?;
    let scribe = gst::ElementFactory::make("scribetranscriber").build()?;
    for setting in arguments {
        let (name, value) = setting
            .split_once('=')
            .ok_or("settings are PROPERTY=VALUE")?;
        if !scribe.has_property(name) {
            return Err(format!("scribetranscriber has no property {name}").into());
        }
        scribe.set_property_from_str(name, value);
    }
    let sink = gst_app::AppSink::builder().sync(false).build();
    sink.set_callbacks(
        gst_app::AppSinkCallbacks::builder()
            .new_sample(|sink| {
                let sample = sink.pull_sample().map_err(|_| gst::FlowError::Eos)?;
                if let Some(buffer) = sample.buffer() {
                    show(buffer);
                }
                Ok(gst::FlowSuccess::Ok)
            })
            .build(),
    );
    pipeline.add_many([&source, &decode, &scribe, sink.upcast_ref()])?;
    source.link(&decode)?;
    scribe.link(&sink)?;
    let entry = scribe.static_pad("sink").ok_or("no sink pad")?;
    decode.connect_pad_added(move |_, pad| {
        // Sound alone fits; what else a file holds stays unlinked.
        if !entry.is_linked() {
            let _ = pad.link(&entry);
        }
    });

    pipeline.set_state(gst::State::Playing)?;
    let bus = pipeline.bus().ok_or("no bus")?;
    let last = bus.timed_pop_filtered(
        gst::ClockTime::NONE,
        &[gst::MessageType::Error, gst::MessageType::Eos],
    );
    pipeline.set_state(gst::State::Null)?;
    match last.as_deref().map(gst::MessageRef::view) {
        Some(gst::MessageView::Error(error)) => Err(error.error().into()),
        _ => Ok(()),
    }
}

fn show(buffer: &gst::BufferRef) {
    let Some(found) = gstscribe::meta::read(buffer) else {
        return;
    };
    for word in &found.cue.words {
        println!(
            "{:.3}\t{:.3}\t{:.2}\t{}",
            word.start.0 as f64 / 1e9,
            word.end.0 as f64 / 1e9,
            word.confidence,
            word.text.trim()
        );
    }
}
