// SPDX-License-Identifier: MPL-2.0
//! A recording's samples.

use std::path::Path;

use gst::prelude::*;

type Failure = Box<dyn std::error::Error + Send + Sync>;

/// All of a recording, 16 kHz mono.
pub fn decode(file: &Path) -> Result<Vec<f32>, Failure> {
    let pipeline = gst::parse::launch(
        "filesrc name=in ! decodebin ! audioconvert ! audioresample \
         ! audio/x-raw,format=F32LE,rate=16000,channels=1 ! appsink name=out sync=false",
    )?
    .downcast::<gst::Pipeline>()
    .map_err(|_| "no pipeline")?;
    let source = pipeline.by_name("in").ok_or("no source")?;
    source.set_property("location", file);
    let sink = pipeline
        .by_name("out")
        .and_then(|e| e.downcast::<gst_app::AppSink>().ok())
        .ok_or("no sink")?;
    pipeline.set_state(gst::State::Playing)?;
    let mut samples = Vec::new();
    while let Ok(sample) = sink.pull_sample() {
        let map = sample.buffer().ok_or("no buffer")?.map_readable()?;
        let (whole, _) = map.as_chunks::<4>();
        samples.extend(whole.iter().map(|b| f32::from_le_bytes(*b)));
    }
    let error = pipeline
        .bus()
        .and_then(|bus| bus.pop_filtered(&[gst::MessageType::Error]));
    pipeline.set_state(gst::State::Null)?;
    match error.as_ref().map(|m| m.view()) {
        Some(gst::MessageView::Error(error)) => {
            Err(format!("{}: {}", file.display(), error.error()).into())
        }
        _ if samples.is_empty() => Err(format!("{}: no sound", file.display()).into()),
        _ => Ok(samples),
    }
}
