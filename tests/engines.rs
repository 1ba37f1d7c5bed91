// SPDX-License-Identifier: MPL-2.0
//! `scribetranscriber` with real models on both engines: what a pipeline gives and how it behaves does not depend on which
//! of them runs. (What it does with sound and events is tests/transcriber.rs, on fakes: run a second time by scripts/test.sh
//! with fakes that decode windows side by side, as ONNX Runtime does.)

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod common;

use std::collections::BTreeSet;
use std::path::PathBuf;

use common::{
    Recorder, at_once, buffers, error_on, eventually, has, repository, text_of, there, words,
};
use gst::prelude::*;

const ENGINES: [(&str, &str); 2] = [
    ("whisper-cpp", "models/ggml-tiny.en-q8_0.bin"),
    ("onnx", "models/whisper-tiny.en-onnx-int8.encoder.onnx"),
];

/// Both engines with their models, where they are here.
fn engines() -> Vec<(&'static str, PathBuf)> {
    common::init();
    let engines = ENGINES.map(|(engine, file)| (engine, repository(file)));
    let here = engines.into_iter();
    here.filter(|(_, file)| there(file, "make models"))
        .collect()
}

fn data(file: &str) -> String {
    let path = repository(&format!("tests/data/{file}"));
    format!("filesrc location={} ! decodebin", path.display())
}

/// A pipeline that was not started yet, and what comes out of its element `out`.
struct Run {
    pipeline: gst::Pipeline,
    out: Recorder,
}

impl Run {
    /// `line` holds ENGINE where the transcriber's properties of engine and model go.
    fn new(line: &str, engine: &str, model: &std::path::Path) -> Self {
        let properties = format!("engine={engine} model={}", model.display());
        let pipeline = gst::parse::launch(&line.replace("ENGINE", &properties)).unwrap();
        let pipeline = pipeline.downcast::<gst::Pipeline>().unwrap();
        let pad = pipeline.by_name("out").unwrap().static_pad("sink").unwrap();
        Self {
            out: Recorder::on(&pad),
            pipeline,
        }
    }

    fn play(&self) -> &Self {
        self.pipeline.set_state(gst::State::Playing).unwrap();
        self
    }

    fn stats(&self, element: &str) -> gst::Structure {
        self.pipeline.by_name(element).unwrap().property("stats")
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        let _ = self.pipeline.set_state(gst::State::Null);
    }
}

fn plain(text: &str) -> Vec<String> {
    let letters = |word: &str| -> String {
        let letters = word.chars().filter(|c| c.is_alphanumeric());
        letters.collect::<String>().to_lowercase()
    };
    text.split_whitespace().map(letters).collect()
}

/// How many of the words that should be there are, as a share of the longer text, in order.
fn likeness(said: &[String], wanted: &[String]) -> f64 {
    let mut row = vec![0usize; wanted.len() + 1];
    for word in said {
        let mut before = 0;
        for (n, other) in wanted.iter().enumerate() {
            let longest = row[n + 1];
            row[n + 1] = if word == other {
                before + 1
            } else {
                longest.max(row[n])
            };
            before = longest;
        }
    }
    *row.last().unwrap() as f64 / said.len().max(wanted.len()).max(1) as f64
}

/// Names of all fields, and of those in them, whatever the values.
fn fields(value: &serde_json::Value, path: &str, out: &mut BTreeSet<String>) {
    match value {
        serde_json::Value::Object(object) => {
            for (key, value) in object {
                let path = format!("{path}.{key}");
                fields(value, &path, out);
                out.insert(path);
            }
        }
        serde_json::Value::Array(items) => {
            items.iter().for_each(|item| fields(item, path, out));
        }
        other => {
            let kind = match other {
                serde_json::Value::String(_) => "text",
                serde_json::Value::Number(_) => "number",
                _ => "other",
            };
            out.insert(format!("{path}: {kind}"));
        }
    }
}

#[test]
fn both_engines_give_the_same_document_but_for_a_word_now_and_then() {
    let wanted = std::fs::read_to_string(repository("tests/data/demo.ref.txt")).unwrap();
    let mut shapes = Vec::new();
    for (engine, model) in engines() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("a.json");
        let line = format!(
            "{} ! audioconvert ! scribetranscriber name=t ENGINE ! scribeenc format=json ! filesink name=out location={}",
            data("demo.opus"),
            file.display()
        );
        let run = Run::new(&line, engine, &model);
        run.play().out.wait_eos();
        eventually("the file is written", || {
            std::fs::read_to_string(&file).is_ok_and(|text| text.trim_end().ends_with('}'))
        });
        let document: serde_json::Value =
            serde_json::from_str(&std::fs::read_to_string(&file).unwrap()).unwrap();

        let said = plain(document["text"].as_str().unwrap());
        let alike = likeness(&said, &plain(&wanted));
        assert!(alike > 0.8, "{engine}: {alike:.2} of {said:?}");
        let own: String = run.stats("t").get("engine").unwrap();
        let name = ["whisper.cpp", "ONNX Runtime"][usize::from(engine == "onnx")];
        assert!(own.contains(name), "{own}");
        let mut shape = BTreeSet::new();
        fields(&document, "", &mut shape);
        shapes.push(shape);
    }
    assert!(shapes.windows(2).all(|two| two[0] == two[1]), "{shapes:?}");
}

#[test]
fn words_come_in_order_with_times_inside_the_recording() {
    for (engine, model) in engines() {
        let line = format!(
            "{} ! audioconvert ! scribetranscriber ENGINE unit=word ! fakesink name=out",
            data("demo.opus")
        );
        let run = Run::new(&line, engine, &model);
        let words = words(&run.play().out.wait_eos());

        assert!(words.len() > 60, "{engine}: {words:?}");
        let mut before = 0;
        for (word, start, end) in &words {
            assert!(
                *start >= before && end > start,
                "{engine}: {word} {start} {end}"
            );
            before = *end;
        }
        assert!(before < 80_000, "{engine}: {before}");
    }
}

#[test]
fn without_word_times_there_are_the_same_words() {
    for (engine, model) in engines() {
        let said = |times: bool| {
            let line = format!(
                "{} ! audioconvert ! scribetranscriber ENGINE word-times={times} ! fakesink name=out",
                data("speech_short.flac")
            );
            let run = Run::new(&line, engine, &model);
            let out = run.play().out.wait_eos();
            let text: Vec<String> = buffers(&out).iter().map(text_of).collect();
            plain(&text.join(" "))
        };

        let with = said(true);
        assert!(
            likeness(
                &with,
                &plain("he might even have been made amiable himself")
            ) > 0.8
        );
        assert_eq!(with, said(false), "{engine}");
    }
}

#[test]
fn channels_apart_have_their_own_words() {
    for (engine, model) in engines() {
        let line = format!(
            "{} ! audioconvert ! scribetranscriber ENGINE channels=separate ! fakesink name=out",
            data("stereo.flac")
        );
        let run = Run::new(&line, engine, &model);
        let out = run.play().out.wait_eos();

        let speakers: BTreeSet<String> = buffers(&out)
            .iter()
            .filter_map(|b| gstscribe::meta::read(b).unwrap().cue.speaker)
            .map(|s| format!("{s:?}"))
            .collect();
        assert_eq!(speakers.len(), 2, "{engine}: {speakers:?}");
    }
}

#[test]
fn a_seek_begins_anew_and_what_comes_has_the_times_of_the_place() {
    for (engine, model) in engines() {
        let line = format!(
            "{} ! audioconvert ! scribetranscriber ENGINE unit=word ! fakesink name=out sync=false",
            data("demo.opus")
        );
        let run = Run::new(&line, engine, &model);
        run.play().out.wait(|all| !buffers(all).is_empty());
        let from = gst::ClockTime::from_seconds(30);
        at_once("a seek", || {
            let flags = gst::SeekFlags::FLUSH | gst::SeekFlags::ACCURATE;
            run.pipeline.seek_simple(flags, from).unwrap();
        });
        let out = run
            .out
            .wait(|all| has(all, gst::EventType::FlushStop) && has(all, gst::EventType::Eos));

        let words = words(&out);
        assert!(words.len() > 20, "{engine}: {words:?}");
        assert!(
            words.iter().all(|(_, start, _)| *start >= 29_500),
            "{engine}: {words:?}"
        );
    }
}

#[test]
fn streams_share_a_model_and_each_has_its_own_words() {
    for (engine, model) in engines() {
        let line = format!(
            "{} ! audioconvert ! scribetranscriber name=a ENGINE ! fakesink name=out \
             {} ! audioconvert ! scribetranscriber name=b ENGINE ! fakesink name=other",
            data("demo.opus"),
            data("speech_short.flac")
        );
        let run = Run::new(&line, engine, &model);
        let other = run.pipeline.by_name("other").unwrap();
        let other = Recorder::on(&other.static_pad("sink").unwrap());
        let long = run.play().out.wait_eos();
        let short = other.wait_eos();

        assert!(words(&long).len() > 60, "{engine}");
        let text: String = buffers(&short).iter().map(text_of).collect();
        assert!(text.contains("amiable himself"), "{engine}: {text}");
    }
}

#[test]
fn a_prompt_a_vocabulary_and_beams_are_heeded() {
    for (engine, model) in engines() {
        for properties in [
            "prompt=\"Emma and Mr. Knightley.\"",
            "vocabulary=<Knightley,Highbury>",
            "beam-size=5",
        ] {
            let line = format!(
                "{} ! audioconvert ! scribetranscriber ENGINE {properties} ! fakesink name=out",
                data("speech_short.flac")
            );
            let run = Run::new(&line, engine, &model);
            let text: String = buffers(&run.play().out.wait_eos())
                .iter()
                .map(text_of)
                .collect();
            assert!(text.contains("amiable"), "{engine}, {properties}: {text}");
        }
    }
}

#[test]
fn what_an_english_model_cannot_do_is_an_error_with_the_remedy() {
    for (engine, model) in engines() {
        for (properties, remedy) in [
            ("language-code=de", "set language-code to en or auto"),
            ("task=translate", "choose a multilingual model"),
        ] {
            let line = format!(
                "{} ! audioconvert ! scribetranscriber ENGINE {properties} ! fakesink name=out",
                data("speech_short.flac")
            );
            let run = Run::new(&line, engine, &model);
            let _ = run.pipeline.set_state(gst::State::Playing);
            let error = error_on(&run.pipeline.bus().unwrap()).to_string();
            assert!(error.contains(remedy), "{engine}, {properties}: {error}");
        }
    }
}

#[test]
fn an_element_goes_through_null_and_back_with_the_same_words() {
    for (engine, model) in engines() {
        // A link that decodebin makes late is not made again after NULL.
        let line = format!(
            "filesrc location={} ! flacparse ! flacdec ! audioconvert ! scribetranscriber ENGINE ! fakesink name=out",
            repository("tests/data/speech_short.flac").display()
        );
        let run = Run::new(&line, engine, &model);
        let mut texts = BTreeSet::new();
        for _ in 0..3 {
            run.out.clear();
            let out = run.play().out.wait_eos();
            let text: String = buffers(&out).iter().map(text_of).collect();
            texts.insert(text);
            at_once("NULL", || run.pipeline.set_state(gst::State::Null).unwrap());
        }
        assert_eq!(texts.len(), 1, "{engine}: {texts:?}");
    }
}

#[test]
fn a_stop_in_the_middle_is_over_at_once() {
    for (engine, model) in engines() {
        for wait_ms in [0, 300, 1500] {
            let line = format!(
                "{} ! audioconvert ! scribetranscriber ENGINE beam-size=5 ! fakesink name=out",
                data("demo.opus")
            );
            let run = Run::new(&line, engine, &model);
            run.play();
            std::thread::sleep(std::time::Duration::from_millis(wait_ms));
            at_once("NULL", || run.pipeline.set_state(gst::State::Null).unwrap());
        }
    }
}

#[test]
fn noise_and_silence_have_no_words() {
    for (engine, model) in engines() {
        let line = format!(
            "{} ! audioconvert ! scribetranscriber ENGINE ! fakesink name=out",
            data("silence_noise.flac")
        );
        let run = Run::new(&line, engine, &model);
        let out = run.play().out.wait_eos();
        assert!(
            buffers(&out).is_empty(),
            "{engine}: {:?}",
            common::texts(&out)
        );
    }
}
