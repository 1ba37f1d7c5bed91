// SPDX-License-Identifier: MPL-2.0
//! Whisper on ONNX Runtime where a card is asked for, on a machine without one: what is reserved, on a made-up card, while
//! the processor does the work in its place; what the graphs of 16 bits say; what is said where there is no card.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod common;
#[path = "common/process.rs"]
mod process;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use common::{repository, there};
use gst::prelude::*;
use gstscribe::inference::card::{Card, CardSpec};
use gstscribe::inference::isolated::Isolation;
use gstscribe::inference::onnx::{cuda, library};
use gstscribe::inference::{CancelToken, DeviceId, EngineError};
use gstscribe::messages;
use gstscribe::registry::device::simulated::Simulated;
use gstscribe::registry::device::{Cpu, Device, MemoryView};
use gstscribe::registry::ledger::DeviceSpec;
use gstscribe::registry::{FirstOf, Kind, Registry, RegistrySettings, Whisper, WhisperSpec};
use gstscribe::transcribe::file::speech_spec;

const RUNTIME: &str = "target/release/scribe/libonnxruntime.so.1";
const GIB: u64 = 1 << 30;

/// The encoder of tiny.en with weights of that type, if it is here. ONNX Runtime is the one for processors alone.
fn encoder(weights: &str) -> Option<PathBuf> {
    let name = format!("whisper-tiny.en-onnx-{weights}");
    let path = repository(&format!("models/{name}.encoder.onnx"));
    let here = there(&path, &format!("scripts/models.sh {name}"))
        && there(&repository(RUNTIME), "make models");
    library::set_library(&repository(RUNTIME));
    here.then_some(path)
}

fn on(encoder: &std::path::Path, device: &str) -> Result<WhisperSpec, EngineError> {
    let model = encoder.to_str().unwrap();
    speech_spec(model, None, device, 1, true, Isolation::InProcess)
}

/// A made-up card that stands for `cuda:0`.
struct StandIn(Simulated);

impl Device for StandIn {
    fn id(&self) -> DeviceId {
        DeviceId::Cuda(0)
    }

    fn probe(&self) -> Result<MemoryView, String> {
        self.0.probe()
    }

    fn held_by(&self, pid: u32) -> Option<u64> {
        self.0.held_by(pid)
    }

    fn granule(&self) -> u64 {
        self.0.granule()
    }

    fn context_bytes(&self) -> u64 {
        self.0.context_bytes()
    }

    fn lag(&self) -> Duration {
        self.0.lag()
    }
}

/// A registry on a card of `gib` and on this machine's processor.
fn with_card(gib: u64) -> (Arc<Card>, Registry) {
    cuda::stand_in::put();
    let spec = CardSpec {
        lag: Duration::ZERO,
        ..CardSpec::of_gib(gib)
    };
    let card = Card::new(spec, || Duration::ZERO);
    let device = StandIn(Simulated::new(0, &card, std::process::id()));
    let devices = vec![
        DeviceSpec::own(Arc::new(device), None),
        DeviceSpec::own(Arc::new(Cpu::new()), None),
    ];
    let settings = RegistrySettings {
        lanes: 4,
        ..RegistrySettings::default()
    };
    (card, Registry::on(settings, devices))
}

fn reserved(registry: &Registry, device: DeviceId) -> u64 {
    let memory = registry.memory();
    memory
        .iter()
        .find(|m| m.device == device)
        .map_or(0, |m| m.reserved)
}

/// Runs `half` in a process of its own: there a card stands in for good.
fn apart(name: &str, half: impl FnOnce()) {
    match process::task() {
        Some(_) => half(),
        None => drop(process::run(name, "card")),
    }
}

#[test]
fn a_model_on_a_card_has_its_room_there_one_lane_and_a_part_of_the_processors_memory() {
    let name = "a_model_on_a_card_has_its_room_there_one_lane_and_a_part_of_the_processors_memory";
    let Some(encoder) = encoder("f32") else {
        return;
    };
    apart(name, || {
        let (_card, registry) = with_card(16);
        let spec = on(&encoder, "cuda").unwrap();
        let footprint = Whisper::footprint(&spec).unwrap();
        let host = Whisper::host_bytes(&spec).unwrap();

        let chosen = registry
            .acquire(FirstOf::<Whisper>(vec![spec.clone()]), &CancelToken::new())
            .unwrap();

        assert_eq!(Whisper::device(&spec), DeviceId::Cuda(0));
        assert_eq!(Whisper::lanes(&spec, 16), 1);
        assert_eq!(Whisper::host_bytes(&Whisper::on_cpu(&spec).unwrap()), Ok(0));
        assert!(host > 256 << 20, "{host}");
        let on_card = reserved(&registry, DeviceId::Cuda(0));
        // Rounded up to pieces of 2 MiB.
        let slack = on_card.checked_sub(footprint.weights_bytes).unwrap();
        assert!(slack <= 4 << 20, "{on_card} {footprint:?}");
        assert!(reserved(&registry, DeviceId::Cpu) >= host);
        let model = chosen.lease.model().unwrap();
        assert!(model.info().engine.contains("f32, cuda:0"));
        assert!(model.lane().is_ok());

        drop(chosen);
        registry.evict_idle();
        common::eventually("all goes back", || {
            [DeviceId::Cuda(0), DeviceId::Cpu]
                .iter()
                .all(|d| reserved(&registry, *d) == 0)
        });
    });
}

#[test]
fn a_card_that_is_full_is_left_for_the_processor_and_it_is_told() {
    let name = "a_card_that_is_full_is_left_for_the_processor_and_it_is_told";
    let Some(encoder) = encoder("f32") else {
        return;
    };
    apart(name, || {
        let (card, registry) = with_card(2);
        card.set_strangers(2 * GIB);
        let chain = ["cuda:0", "cpu"].map(|device| on(&encoder, device).unwrap());

        let chosen = registry
            .acquire(FirstOf::<Whisper>(chain.to_vec()), &CancelToken::new())
            .unwrap();

        assert_eq!(chosen.step, 1);
        assert!(chosen.degraded[0].from.ends_with("on cuda:0"));
        assert!(chosen.degraded[0].reason.contains("cuda:0"));
        assert_eq!(reserved(&registry, DeviceId::Cuda(0)), 0);
        let engine = chosen.lease.model().unwrap().info().engine.clone();
        assert!(!engine.contains("cuda"), "{engine}");
    });
}

#[test]
fn what_a_card_lacks_is_told_with_a_remedy() {
    let Some(encoder) = encoder("f32") else {
        return;
    };
    let load = |device: &str| {
        let spec = on(&encoder, device).unwrap();
        let refused = Whisper::load(&spec).err().unwrap();
        assert!(matches!(refused, EngineError::Unsupported(_)), "{refused}");
        refused.to_string()
    };

    // This library has no provider, and no machine so many cards.
    let why = load("cuda:4000");

    for text in [
        "cuda:4000",
        "libonnxruntime.so",
        "has no CUDA provider",
        "scribe-models runtime --provider cuda",
        "device=cpu",
    ] {
        assert!(why.contains(text), "{text}: {why}");
    }
    let driver = why.contains("no NVIDIA driver is installed") || why.contains("there is no card");
    assert!(driver, "{why}");
    assert!(cuda::look().unwrap_err().contains("has no CUDA provider"));
    assert!(
        on(&encoder, "cuda:x")
            .unwrap_err()
            .to_string()
            .contains("cuda:N")
    );
}

#[test]
fn weights_of_eight_bits_are_not_for_cards() {
    let Some(encoder) = encoder("int8") else {
        return;
    };
    let spec = on(&encoder, "cuda").unwrap();

    for refused in [
        Whisper::footprint(&spec).map(drop),
        Whisper::load(&spec).map(drop),
    ] {
        let why = refused.unwrap_err().to_string();
        assert!(
            why.contains("type f16") && why.contains("device=cpu"),
            "{why}"
        );
    }
    assert!(Whisper::footprint(&Whisper::on_cpu(&spec).unwrap()).is_ok());
}

fn transcribe(model: &str, more: &str) -> (gst::Pipeline, common::Recorder) {
    common::init();
    let pipeline = gst::parse::launch(&format!(
        "filesrc location={} ! decodebin ! audioconvert ! audioresample ! scribetranscriber name=text model={model} \
         unit=word {more} ! fakesink name=out",
        repository("tests/data/speech_short.flac").display()
    ))
    .unwrap()
    .downcast::<gst::Pipeline>()
    .unwrap();
    let sink = pipeline.by_name("out").unwrap().static_pad("sink").unwrap();
    let recorder = common::Recorder::on(&sink);
    (pipeline, recorder)
}

/// The words of the short recording.
fn words(model: &str, more: &str) -> (Vec<String>, Vec<gst::Structure>) {
    let (pipeline, recorder) = transcribe(model, more);
    let bus = pipeline.bus().unwrap();
    pipeline.set_state(gst::State::Playing).unwrap();
    let out = recorder.wait_eos();
    let told = std::iter::from_fn(|| bus.pop())
        .filter_map(|m| {
            m.structure()
                .filter(|s| s.name() == messages::DEGRADED)
                .map(|s| s.to_owned())
        })
        .collect();
    pipeline.set_state(gst::State::Null).unwrap();
    let words = common::words(&out).into_iter().map(|(word, ..)| word);
    (words.collect(), told)
}

#[test]
fn graphs_of_sixteen_bits_give_the_words_of_those_of_thirty_two() {
    let (Some(half), Some(full)) = (encoder("f16"), encoder("f32")) else {
        return;
    };

    let (wanted, _) = words(full.to_str().unwrap(), "device=cpu");
    let (found, _) = words(half.to_str().unwrap(), "device=cpu");

    assert!(wanted.len() >= 8, "{wanted:?}");
    assert_eq!(found, wanted);
}

#[test]
fn without_a_card_the_fallback_goes_on_and_it_is_told() {
    let Some(encoder) = encoder("f32") else {
        return;
    };
    let model = encoder.to_str().unwrap();

    let (wanted, nothing) = words(model, "device=cpu");
    let (found, told) = words(model, "device=cuda:4000 fallback=cpu");

    assert!(nothing.is_empty(), "{nothing:?}");
    assert_eq!(found, wanted);
    assert_eq!(told.len(), 1, "{told:?}");
    assert!(
        told[0]
            .get::<&str>("from")
            .unwrap()
            .ends_with("on cuda:4000")
    );
    let reason: &str = told[0].get("reason").unwrap();
    assert!(reason.contains("cuda:4000 cannot be used"), "{reason}");
}

#[test]
fn without_a_card_and_a_fallback_it_is_an_error_with_the_remedy() {
    let Some(encoder) = encoder("f32") else {
        return;
    };
    let (pipeline, _recorder) = transcribe(encoder.to_str().unwrap(), "device=cuda:4000");
    let bus = pipeline.bus().unwrap();

    let _ = pipeline.set_state(gst::State::Playing);
    let error = common::error_on(&bus).to_string();
    pipeline.set_state(gst::State::Null).unwrap();

    assert!(error.contains("device cuda:4000 cannot be used"), "{error}");
    assert!(error.contains("Set device=cpu"), "{error}");
}
