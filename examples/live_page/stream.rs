// SPDX-License-Identifier: MPL-2.0
//! The pipeline: sound as fast as it was spoken, a diarizer where speakers are wanted, a transcriber.

use std::path::Path;

use gst::glib;
use gst::prelude::*;

use super::options::Options;

type Failure = Box<dyn std::error::Error>;

pub fn pipeline(options: &Options) -> Result<gst::Pipeline, Failure> {
    let pipeline = gst::Pipeline::new();
    let convert = gst::ElementFactory::make("audioconvert").build()?;
    // Holds a file back to its own pace. What is live comes no sooner anyway.
    let pace = gst::ElementFactory::make("identity")
        .property("sync", true)
        .build()?;
    let transcriber = transcriber(options)?;
    let sink = gst::ElementFactory::make("fakesink")
        // The words are in the messages; the pipeline plays before the first buffer is here.
        .property("sync", false)
        .property("async", false)
        .build()?;
    pipeline.add_many([&convert, &pace, &transcriber, &sink])?;
    gst::Element::link_many([&convert, &pace])?;
    transcriber.link(&sink)?;
    if options.tells_speakers() {
        let diarizer = diarizer(options)?;
        pipeline.add(&diarizer)?;
        gst::Element::link_many([&pace, &diarizer, &transcriber])?;
    } else {
        pace.link(&transcriber)?;
    }
    let entry = convert.static_pad("sink").ok_or("no sink pad")?;
    match (&options.source, &options.input) {
        (Some(description), _) => add_description(&pipeline, description, &entry)?,
        (None, Some(input)) => add_input(&pipeline, input, &entry)?,
        (None, None) => return Err("a file, a URI or --source is wanted".into()),
    }
    Ok(pipeline)
}

fn transcriber(options: &Options) -> Result<gst::Element, Failure> {
    let transcriber = gst::ElementFactory::make("scribetranscriber")
        .property_if_some("model", options.model.as_deref())
        .property_if_some("language-code", options.language.as_deref())
        .build()?;
    choose(&transcriber, "mode", "live");
    Ok(transcriber)
}

fn diarizer(options: &Options) -> Result<gst::Element, Failure> {
    let voices = match &options.voices {
        Some(path) => Some(path.to_str().ok_or("--voices: the name is no UTF-8")?),
        None => None,
    };
    let diarizer = gst::ElementFactory::make("scribediarizer")
        .property_if_some("voices", voices)
        .build()?;
    choose(&diarizer, "mode", "online");
    Ok(diarizer)
}

/// Sets a property to a value by its name, where the element has that value.
fn choose(element: &gst::Element, property: &str, nick: &str) {
    let value = element
        .find_property(property)
        .and_then(|spec| glib::EnumClass::with_type(spec.value_type()))
        .and_then(|class| class.to_value_by_nick(nick));
    if let Some(value) = value {
        element.set_property_from_value(property, &value);
    }
}

fn add_description(
    pipeline: &gst::Pipeline,
    description: &str,
    entry: &gst::Pad,
) -> Result<(), Failure> {
    // Links to what comes late, too: the pads of a decodebin.
    let source = gst::parse::bin_from_description(&format!("{description} ! audioconvert"), true)
        .map_err(|e| format!("--source {description}: {e}"))?;
    let pad = source
        .static_pad("src")
        .ok_or_else(|| format!("--source {description}: nothing comes out of it"))?;
    pipeline.add(&source)?;
    pad.link(entry)
        .map_err(|e| format!("--source {description}: no sound comes out of it ({e})"))?;
    Ok(())
}

fn add_input(pipeline: &gst::Pipeline, input: &str, entry: &gst::Pad) -> Result<(), Failure> {
    let uri = if input.contains("://") {
        input.to_owned()
    } else {
        glib::filename_to_uri(std::path::absolute(Path::new(input))?, None)?.to_string()
    };
    // Pictures are not even decoded.
    let decode = gst::ElementFactory::make("uridecodebin")
        .property("uri", uri)
        .property("caps", gst::Caps::new_empty_simple("audio/x-raw"))
        .property("expose-all-streams", false)
        .build()?;
    let free = entry.clone();
    decode.connect_pad_added(move |_, pad| {
        // The first sound that fits; what else a file holds stays unlinked.
        if !free.is_linked() {
            let _ = pad.link(&free);
        }
    });
    let none = entry.clone();
    decode.connect_no_more_pads(move |decode| {
        if !none.is_linked() {
            gst::element_error!(
                decode,
                gst::StreamError::WrongType,
                ["there is no sound in it"]
            );
        }
    });
    pipeline.add(&decode)?;
    Ok(())
}
