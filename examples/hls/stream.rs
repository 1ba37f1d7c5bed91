// SPDX-License-Identifier: MPL-2.0
//! The pipeline: pictures and sound into segments of a transport stream, words into WebVTT of the same lengths.

use std::path::Path;

use gst::glib;
use gst::prelude::*;

use super::options::Options;

type Failure = Box<dyn std::error::Error>;

/// What is told on the bus: captions of a segment are there.
pub const CAPTIONS: &str = "hls/captions";
/// What is told on the bus: how the pictures are encoded.
pub const PICTURES: &str = "hls/pictures";

/// H.264 as it is; everything else is decoded.
const WANTED: &str = "video/x-h264; video/x-raw(ANY); audio/x-raw(ANY)";

pub fn pipeline(options: &Options) -> Result<gst::Pipeline, Failure> {
    let pipeline = gst::Pipeline::new();
    let segments = segments(options)?;
    let (sound, words) = (sound()?, words(options)?);
    pipeline.add_many([&segments, sound.upcast_ref(), words.upcast_ref()])?;
    sound.link_pads(Some("aac"), &segments, Some("audio_%u"))?;
    sound.link_pads(Some("raw"), &words, Some("sink"))?;
    // Before the stream begins: splitmuxsink takes no pads later.
    let pictures = segments
        .request_pad_simple("video")
        .ok_or("splitmuxsink has no pad for pictures")?;
    let entry = sound.static_pad("sink").ok_or("no pad for sound")?;
    add_input(&pipeline, options, pictures, entry)?;
    Ok(pipeline)
}

fn segments(options: &Options) -> Result<gst::Element, Failure> {
    let location = options.folder.join("video%05d.ts");
    let location = location.to_str().ok_or("the folder's name is no UTF-8")?;
    let mux = gst::ElementFactory::make("mpegtsmux").build()?;
    Ok(gst::ElementFactory::make("splitmuxsink")
        .property("muxer", mux)
        // One clock through all segments.
        .property("reset-muxer", false)
        .property("location", location)
        .property("max-size-time", u64::from(options.segment) * 1_000_000_000)
        .property("send-keyframe-requests", true)
        .build()?)
}

/// Sound for the segments and for the transcriber.
fn sound() -> Result<gst::Bin, Failure> {
    let bin = gst::parse::bin_from_description(
        "audioconvert name=in ! audioresample ! tee name=t \
         t. ! queue ! avenc_aac ! aacparse name=aac \
         t. ! queue name=raw max-size-time=10000000000 max-size-bytes=0 max-size-buffers=0",
        false,
    )?;
    for (element, pad, name) in [
        ("in", "sink", "sink"),
        ("aac", "src", "aac"),
        ("raw", "src", "raw"),
    ] {
        let element = bin.by_name(element).ok_or("no such element")?;
        let pad = element.static_pad(pad).ok_or("no such pad")?;
        bin.add_pad(&gst::GhostPad::builder_with_target(&pad)?.name(name).build())?;
    }
    Ok(bin)
}

/// Words into a message for each segment.
fn words(options: &Options) -> Result<gst::Bin, Failure> {
    let scribe = gst::ElementFactory::make("scribebin")
        .property("speakers", options.speakers)
        .property_if_some("model", options.model.as_deref())
        .property_if_some("language-code", options.language.as_deref())
        .property_if_some("latency", options.latency)
        // The encoder makes cues that can be read of whole sentences: those who watch are some segments behind anyway.
        .property_from_str("unit", "word")
        .build()?;
    if options.is_live() {
        scribe.set_property_from_str("mode", "live");
    }
    let encoder = gst::ElementFactory::make("scribeenc")
        .property("fragment-duration", options.segment * 1000)
        .build()?;
    let length = gst::ClockTime::from_seconds(u64::from(options.segment));
    let sink = gst_app::AppSink::builder().sync(false).build();
    // The pipeline plays before the first captions are here.
    sink.set_property("async", false);
    sink.set_callbacks(
        gst_app::AppSinkCallbacks::builder()
            .new_sample(move |sink| {
                let sample = sink.pull_sample().map_err(|_| gst::FlowError::Eos)?;
                if let Some(told) = captions(&sample, length) {
                    let message = gst::message::Element::builder(told).src(sink).build();
                    let _ = sink.post_message(message);
                }
                Ok(gst::FlowSuccess::Ok)
            })
            .build(),
    );
    let bin = gst::Bin::new();
    bin.add_many([&scribe, &encoder, sink.upcast_ref()])?;
    gst::Element::link_many([&scribe, &encoder, sink.upcast_ref()])?;
    let pad = scribe.static_pad("sink").ok_or("no sink pad")?;
    bin.add_pad(&gst::GhostPad::with_target(&pad)?)?;
    Ok(bin)
}

/// Each lies where its number says: the first one begins before the sound does.
fn captions(sample: &gst::Sample, length: gst::ClockTime) -> Option<gst::Structure> {
    let buffer = sample.buffer()?;
    let start = length.checked_mul(buffer.offset())?;
    let end = start.checked_add(buffer.duration()?)?;
    let text = buffer.map_readable().ok()?;
    let told = gst::Structure::builder(CAPTIONS)
        .field("index", buffer.offset())
        .field("start", start.nseconds())
        .field("end", end.nseconds())
        .field("text", std::str::from_utf8(&text).ok()?);
    Some(told.build())
}

fn add_input(
    pipeline: &gst::Pipeline,
    options: &Options,
    pictures: gst::Pad,
    sound: gst::Pad,
) -> Result<(), Failure> {
    let uri = if options.input.contains("://") {
        options.input.clone()
    } else {
        glib::filename_to_uri(std::path::absolute(Path::new(&options.input))?, None)?.to_string()
    };
    let wanted = match options.encode {
        true => "video/x-raw(ANY); audio/x-raw(ANY)",
        false => WANTED,
    };
    let decode = gst::ElementFactory::make("uridecodebin")
        .property("uri", uri)
        .property("caps", wanted.parse::<gst::Caps>()?)
        .property("expose-all-streams", false)
        .build()?;
    let weak = pipeline.downgrade();
    let (to_pictures, to_sound) = (pictures.clone(), sound.clone());
    decode.connect_pad_added(move |decode, pad| {
        let caps = pad.current_caps().unwrap_or_else(|| pad.query_caps(None));
        let name = caps.structure(0).map(|s| s.name().to_string());
        let name = name.unwrap_or_default();
        // The first of each kind; what else there is stays unlinked.
        let linked = if name == "audio/x-raw" && !to_sound.is_linked() {
            pad.link(&to_sound).map(drop).map_err(|e| e.to_string())
        } else if name.starts_with("video/") && !to_pictures.is_linked() {
            let pipeline = weak.upgrade();
            let linked =
                pipeline.map(|p| link_pictures(&p, pad, &to_pictures, name != "video/x-h264"));
            linked.unwrap_or(Ok(())).map_err(|e| e.to_string())
        } else {
            Ok(())
        };
        if let Err(error) = linked {
            gst::element_error!(decode, gst::CoreError::Pad, ["{caps}: {error}"]);
        }
    });
    decode.connect_no_more_pads(move |decode| {
        for (pad, what) in [(&pictures, "pictures"), (&sound, "sound")] {
            if !pad.is_linked() {
                gst::element_error!(
                    decode,
                    gst::StreamError::WrongType,
                    ["there is no {what} in it"]
                );
            }
        }
    });
    pipeline.add(&decode)?;
    Ok(())
}

fn link_pictures(
    pipeline: &gst::Pipeline,
    from: &gst::Pad,
    to: &gst::Pad,
    encodes: bool,
) -> Result<(), Failure> {
    // Parameter sets before each key picture: a player may begin with any segment.
    let description = if encodes {
        "queue ! videoconvert ! video/x-raw,format=I420 ! x264enc tune=zerolatency ! h264parse config-interval=-1 name=last"
    } else {
        "queue ! h264parse config-interval=-1 name=last"
    };
    let bin = gst::parse::bin_from_description(description, true)?;
    let parse = bin.by_name("last").ok_or("no h264parse")?;
    let source = parse.static_pad("src").ok_or("no src pad")?;
    let told = parse.clone();
    source.add_probe(gst::PadProbeType::EVENT_DOWNSTREAM, move |_, info| {
        if let Some(gst::EventView::Caps(caps)) = info.event().map(|event| event.view())
            && let Some(s) = caps.caps().structure(0)
        {
            let text = |field| s.get::<&str>(field).unwrap_or_default();
            let what = gst::Structure::builder(PICTURES)
                .field("profile", text("profile"))
                .field("level", text("level"))
                .build();
            let _ = told.post_message(gst::message::Element::builder(what).src(&told).build());
        }
        gst::PadProbeReturn::Ok
    });
    pipeline.add(&bin)?;
    let (sink, source) = (bin.static_pad("sink"), bin.static_pad("src"));
    source.ok_or("no src pad")?.link(to)?;
    from.link(&sink.ok_or("no sink pad")?)?;
    bin.sync_state_with_parent()?;
    Ok(())
}
