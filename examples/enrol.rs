// SPDX-License-Identifier: MPL-2.0
//! Learns a voice in a Rust program: from the microphone until Enter is pressed, or from a file.
//! `enrol NAME VOICES [FILE]`
//!
//! Says what was measured, or why nothing was kept, and who is known by now.
#![allow(clippy::print_stdout, reason = "a program for the terminal")]

use std::path::Path;

use gst::prelude::*;
use gstscribe::messages;
use gstscribe::voices::{OpenOptions, Store};

type Failure = Box<dyn std::error::Error>;

fn main() -> Result<(), Failure> {
    gst::init()?;
    gstscribe::plugin_register_static()?;
    let mut arguments = std::env::args().skip(1);
    let usage = "usage: enrol NAME VOICES [FILE]";
    let name = arguments.next().ok_or(usage)?;
    let voices = arguments.next().ok_or(usage)?;
    let file = arguments.next();

    let pipeline = gst::Pipeline::new();
    let source = match &file {
        Some(_) => "uridecodebin",
        None => "autoaudiosrc",
    };
    let source = gst::ElementFactory::make(source).build()?;
    let convert = gst::ElementFactory::make("audioconvert").build()?;
    let enroller = gst::ElementFactory::make("scribeenroller")
        .property("name-of", &name)
        .property("voices", &voices)
        .build()?;
    let sink = gst::ElementFactory::make("fakesink").build()?;
    pipeline.add_many([&source, &convert, &enroller, &sink])?;
    gst::Element::link_many([&convert, &enroller, &sink])?;
    match &file {
        Some(file) => {
            let uri = glib::filename_to_uri(Path::new(file).canonicalize()?, None)?;
            source.set_property("uri", uri.as_str());
            let entry = convert.static_pad("sink").ok_or("no sink pad")?;
            source.connect_pad_added(move |_, pad| {
                // Sound alone fits; what else a file holds stays unlinked.
                if !entry.is_linked() {
                    let _ = pad.link(&entry);
                }
            });
        }
        None => {
            source.link(&convert)?;
            println!("Speak for 20 s or more, then press Enter.");
            let enroller = enroller.clone();
            std::thread::spawn(move || {
                let _ = std::io::stdin().read_line(&mut String::new());
                // What was heard so far is enough.
                enroller.emit_by_name::<bool>("enroll", &[]);
            });
        }
    }

    pipeline.set_state(gst::State::Playing)?;
    let outcome = wait(&pipeline);
    pipeline.set_state(gst::State::Null)?;
    outcome?;

    for voice in Store::open(Path::new(&voices), &OpenOptions::default())?.voices()? {
        println!(
            "{}: {:.1} s of speech, {}",
            voice.label(),
            voice.net_speech_s(),
            voice.grade()
        );
    }
    Ok(())
}

/// Until the voice is kept or refused.
fn wait(pipeline: &gst::Pipeline) -> Result<(), Failure> {
    let bus = pipeline.bus().ok_or("no bus")?;
    for message in bus.iter_timed(gst::ClockTime::NONE) {
        match message.view() {
            gst::MessageView::Error(error) => return Err(error.error().into()),
            gst::MessageView::Eos(_) => return Ok(()),
            gst::MessageView::Element(element) => match element.structure() {
                Some(s) if s.name() == messages::PROGRESS => {
                    println!("{}", s.get::<&str>("text")?);
                }
                Some(s) if s.name() == messages::ENROLLED => {
                    println!("{s}");
                    return Ok(());
                }
                _ => {}
            },
            _ => {}
        }
    }
    Ok(())
}
