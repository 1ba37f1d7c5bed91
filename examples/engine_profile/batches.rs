// SPDX-License-Identifier: MPL-2.0
//! One lane alone, with a number of windows side by side: how long a step takes, and memory.

use std::cell::Cell;
use std::path::Path;
use std::sync::Arc;

use gstscribe::inference::onnx::whisper::OnnxWhisperModel;
use gstscribe::inference::times::{Part, process_time};
use gstscribe::inference::{
    BatchParams, CancelToken, Decoded, EngineError, Language, MAX_WINDOW_SAMPLES, ResultSink,
    SpeechModel, Window, WindowId, WindowSource,
};
use gstscribe::transcript::Task;

use crate::decode::decode;
use crate::peaks::Peaks;
use crate::{Asked, Outcome, decoder_limit, encoder_limit, line_mib, model, seconds, status_mib};

const RATE: usize = 16_000;

/// Hands out no more windows than `most` that have no answer yet: the batch has that size.
struct Source<'a> {
    windows: std::slice::Iter<'a, Arc<[f32]>>,
    id: WindowId,
    most: usize,
    inside: &'a Cell<usize>,
}

impl WindowSource for Source<'_> {
    fn next(&mut self) -> Option<Window> {
        if self.inside.get() >= self.most {
            return None;
        }
        let samples = Arc::clone(self.windows.next()?);
        self.inside.set(self.inside.get() + 1);
        self.id += 1;
        Some(Window {
            id: self.id,
            samples,
            language: Language::Fixed("en".into()),
            task: Task::Transcribe,
            prompt: String::new(),
            vocabulary: Vec::new(),
            prefix: Vec::new(),
            most_tokens: 0,
            cancel: CancelToken::new(),
        })
    }
}

struct Answers<'a> {
    inside: &'a Cell<usize>,
    tokens: usize,
    failed: Option<EngineError>,
}

impl ResultSink for Answers<'_> {
    fn push(&mut self, _: WindowId, result: Result<Decoded, EngineError>) {
        self.inside.set(self.inside.get() - 1);
        match result {
            Ok(decoded) => self.tokens += decoded.tokens.len(),
            Err(error) => self.failed = Some(error),
        }
    }
}

pub fn run(asked: &Asked) -> Outcome<serde_json::Value> {
    let (name, recording) = (asked.word(1)?, asked.word(2)?);
    gst::init()?;
    gstscribe::plugin_register_static()?;
    let (_, spec) = model(name)?;
    let work = spec.work()?;
    let seconds_a_window = asked.number("seconds", 28)?;
    let windows = windows(recording, seconds_a_window, asked.number("windows", 16)?)?;
    let params = BatchParams {
        beam: u32::try_from(asked.number("beam", 1)?)?,
        word_times: asked.text("words", "yes") == "yes",
        ..BatchParams::default()
    };
    let first = Peaks::measure()?;

    let bytes = |path: &Path| path.metadata().map(|m| m.len());
    let footprint = spec.footprint(bytes(&spec.encoder)?, bytes(&spec.decoder)?)?;
    let before = status_mib("RssAnon:");
    let model = OnnxWhisperModel::load(&spec)?;
    let loaded = status_mib("RssAnon:");
    let mut lane = model.lane()?;
    let warmed = status_mib("RssAnon:");
    let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);

    let most = model.info().max_batch;
    let mut rows = Vec::new();
    for batch in asked.text("batch", "1,2,4,8,16").split(',') {
        let batch: usize = batch.parse()?;
        // Beyond the most that a lane has rows for, it is the same as the most.
        if batch > most {
            rows.push((serde_json::json!({"batch": batch, "most": most}), None));
            continue;
        }
        let inside = Cell::new(0);
        let mut source = Source {
            windows: windows.iter(),
            id: 0,
            most: batch,
            inside: &inside,
        };
        let mut answers = Answers {
            inside: &inside,
            tokens: 0,
            failed: None,
        };
        let (cpu, times) = (process_time(), model.times());
        lane.run(&mut source, &mut answers, &params)?;
        let (cpu, times) = ((process_time() - cpu).as_secs_f64(), model.times() - times);
        if let Some(error) = answers.failed {
            return Err(error.into());
        }
        let row = serde_json::json!({
            "batch": batch, "cpu": cpu, "written": answers.tokens,
            "mel": seconds(&times, Part::Mel), "encoder": seconds(&times, Part::Encoder),
            "decoder": seconds(&times, Part::Decoder), "alignment": seconds(&times, Part::Alignment),
            "windows": times.windows, "steps": times.steps, "step_windows": times.step_windows, "tokens": times.tokens,
            "rss_mib": status_mib("VmRSS:"), "anon_mib": status_mib("RssAnon:"),
        });
        rows.push((row, Some(times)));
    }
    // Before anything is measured that takes memory of its own.
    let (peak, shared) = (
        status_mib("VmHWM:"),
        line_mib("/proc/self/smaps_rollup", "Pss:"),
    );
    let peaks = first.or_better(Peaks::measure()?);
    let rows = rows.into_iter().map(|(mut row, times)| {
        if let Some(times) = times {
            row["encoder_limit"] = encoder_limit(&work, &peaks, &times).into();
            let (limit, rate) = decoder_limit(&work, &peaks, &times);
            row["decoder_limit"] = limit.into();
            row["read_gb_s"] = (rate / 1e9).into();
        }
        row
    });
    Ok(serde_json::json!({
        "model": name, "engine": model.info().engine, "most": most, "peaks": peaks.json(),
        "seconds_a_window": seconds_a_window, "beam": params.beam,
        "predicted_weights_mib": mib(footprint.weights_bytes), "predicted_lane_mib": mib(footprint.lane_bytes),
        "measured_weights_mib": loaded - before, "measured_lane_mib": warmed - loaded,
        "peak_mib": peak, "pss_mib": shared, "rows": rows.collect::<Vec<_>>(),
    }))
}

/// Pieces of a recording, from its beginning again where it has too few.
fn windows(recording: &str, seconds: usize, count: usize) -> Outcome<Vec<Arc<[f32]>>> {
    let samples = decode(Path::new(recording))?;
    let length = (seconds * RATE).clamp(1, MAX_WINDOW_SAMPLES);
    let whole: Vec<Arc<[f32]>> = samples.chunks_exact(length).map(Arc::from).collect();
    if whole.is_empty() {
        return Err(format!("{recording} is shorter than {seconds} s").into());
    }
    Ok(whole.iter().cycle().take(count).cloned().collect())
}
