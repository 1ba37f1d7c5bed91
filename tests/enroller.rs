// SPDX-License-Identifier: MPL-2.0
//! `scribeenroller`, and names in `scribediarizer`: a voice is learnt, and known again. Fakes where timing and failures
//! matter, real models where voices do.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod common;

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use common::*;
use gst::prelude::*;
use gstscribe::context::registry_context;
use gstscribe::inference::fake::FakeBatches;
use gstscribe::messages;
use gstscribe::voices::{Grade, ModelKey, OpenOptions, Quality, Store, Take, Voice, Who};

/// The fake embedding model takes the first sample for an angle: sound of one level is one voice.
const ANN: f32 = 0.1;
const BEN: f32 = -0.95;

/// An enroller on fakes of this name, that keeps voices in `folder`.
fn enroller(name: &str, folder: &Path) -> gst::Element {
    init();
    let element = gst::ElementFactory::make("scribeenroller")
        .property("vad-model", "fake:")
        .property("segmentation-model", format!("fake:{name}"))
        .property("embedding-model", format!("fake:{name}"))
        .property("voices", voices_in(folder).to_str().unwrap())
        .build()
        .unwrap();
    element.set_context(&registry_context(&registry()));
    element
}

fn named(name: &str, folder: &Path) -> gst::Element {
    FakeBatches::default().register(name);
    let element = enroller(name, folder);
    element.set_property("name-of", "Ann");
    element
}

fn voices_in(folder: &Path) -> PathBuf {
    folder.join("voices.db")
}

fn stored(folder: &Path) -> Vec<Voice> {
    let how = OpenOptions {
        read_only: true,
        ..OpenOptions::default()
    };
    Store::open(&voices_in(folder), &how)
        .unwrap()
        .voices()
        .unwrap()
}

/// Pushes `level` from `from` to `to`, seconds, a buffer each half second.
fn level(rig: &Rig, from: u64, to: u64, level: f32) {
    for n in from * 2..to * 2 {
        let samples: Vec<u8> = std::iter::repeat_n(level, 8_000)
            .flat_map(f32::to_le_bytes)
            .collect();
        rig.push(buffer(samples, n * 500)).unwrap();
    }
}

/// Five seconds of a voice and a pause.
fn says(rig: &Rig, voice: f32) {
    level(rig, 0, 5, voice);
    level(rig, 5, 8, 0.0);
}

fn has_error(rig: &Rig) -> bool {
    let is_error = |m: &gst::Message| m.type_() == gst::MessageType::Error;
    rig.messages().iter().any(is_error)
}

/// Puts a voice of this angle into the store, as a model of this name sees it.
fn put(folder: &Path, model: &str, name: Option<&str>, angle: f32) -> String {
    let how = OpenOptions {
        create: true,
        ..OpenOptions::default()
    };
    let mut store = Store::open(&voices_in(folder), &how).unwrap();
    let take = Take {
        model: ModelKey {
            name: format!("fake:{model}"),
            version: "0".repeat(64),
            dimension: 2,
        },
        mean: vec![angle.cos(), angle.sin()],
        exemplars: vec![vec![angle.cos(), angle.sin()]],
        quality: Quality {
            net_speech_s: 30.0,
            segments: 10,
            ..Quality::default()
        },
        at: 1_700_000_000,
    };
    let who = name.map_or(Who::Nobody, Who::Named);
    let enrolled = store.enrol(who, &take, None, None).unwrap();
    enrolled.id.to_string()
}

#[test]
fn sound_passes_untouched_and_a_voice_is_kept_at_the_end() {
    let folder = tempfile::tempdir().unwrap();
    let rig = Rig::of(named("keeps", folder.path()), false);
    rig.begin();
    says(&rig, ANN);
    assert!(!voices_in(folder.path()).exists());

    let out = rig.finish();

    let sound = buffers(&out);
    assert_eq!(sound.len(), 16);
    assert!(sound.iter().all(|b| b.size() == 32_000));
    let voices = stored(folder.path());
    assert_eq!(voices.len(), 1);
    assert_eq!(voices[0].name.as_deref(), Some("Ann"));
    let take = &voices[0].takes[0];
    assert!((take.mean[0] - ANN.cos()).abs() < 1e-3, "{:?}", take.mean);
    assert!((take.quality.net_speech_s - 5.0).abs() < 0.1);
    let mode = voices_in(folder.path())
        .metadata()
        .unwrap()
        .permissions()
        .mode();
    assert_eq!(mode & 0o777, 0o600);
    let told = structures(&rig, messages::ENROLLED);
    assert_eq!(told.len(), 1);
    assert_eq!(
        told[0].get::<String>("id").unwrap(),
        voices[0].id.to_string()
    );
    assert_eq!(told[0].get::<&str>("label"), Ok("Ann"));
    assert_eq!(told[0].get::<&str>("grade"), Ok("weak"));
    assert_eq!(told[0].get::<bool>("is-new"), Ok(true));
    let stats: gst::Structure = rig.element.property("stats");
    assert_eq!(stats.get::<u32>("enrolled"), Ok(1));
}

#[test]
fn short_recordings_of_a_person_add_up() {
    let folder = tempfile::tempdir().unwrap();
    let rig = Rig::of(named("adds", folder.path()), false);
    for (n, grade) in ["weak", "fair", "fair", "good"].iter().enumerate() {
        rig.begin();
        says(&rig, ANN);
        rig.finish();
        rig.out.clear();

        let told = structures(&rig, messages::ENROLLED);
        assert_eq!(told[0].get::<u32>("takes"), Ok(n as u32 + 1));
        assert_eq!(told[0].get::<&str>("grade"), Ok(*grade));
        assert_eq!(told[0].get::<bool>("is-new"), Ok(n == 0));
        rig.element.set_state(gst::State::Ready).unwrap();
        rig.element.set_state(gst::State::Playing).unwrap();
    }
    assert_eq!(stored(folder.path())[0].grade(), Grade::Good);
}

/// The error that enrolling `sound` ends with. Nothing is written.
fn refused(name: &str, folder: &Path, sound: impl Fn(&Rig)) -> String {
    let before = std::fs::read(voices_in(folder)).ok();
    let rig = Rig::of(named(name, folder), false);
    rig.begin();
    sound(&rig);
    rig.event(gst::event::Eos::new());
    let error = rig.error();
    assert_eq!(std::fs::read(voices_in(folder)).ok(), before);
    assert!(structures(&rig, messages::ENROLLED).is_empty());
    error.to_string()
}

#[test]
fn too_little_speech_is_an_error_with_the_figure_and_the_limit_and_nothing_is_written() {
    let folder = tempfile::tempdir().unwrap();

    let error = refused("little", folder.path(), |rig| {
        level(rig, 0, 1, ANN);
        level(rig, 1, 5, 0.0);
    });

    assert!(
        error.contains("1.0 s of one person alone in 5.0 s of sound"),
        "{error}"
    );
    assert!(error.contains("min-speech asks for 2.0 s"), "{error}");
}

#[test]
fn no_sound_at_all_is_no_voice_and_no_error() {
    let folder = tempfile::tempdir().unwrap();
    let rig = Rig::of(named("nothing", folder.path()), false);
    rig.begin();

    rig.finish();

    assert!(!has_error(&rig));
    assert!(!voices_in(folder.path()).exists());
}

#[test]
fn two_people_are_an_error_that_says_how_much_the_second_has() {
    let folder = tempfile::tempdir().unwrap();

    let error = refused("two", folder.path(), |rig| {
        level(rig, 0, 1, 0.0);
        level(rig, 1, 13, ANN);
        level(rig, 13, 15, 0.0);
        level(rig, 15, 27, BEN);
        level(rig, 27, 28, 0.0);
    });

    assert!(error.contains("people speak: "), "{error}");
}

#[test]
fn speech_that_is_cut_off_is_an_error() {
    let folder = tempfile::tempdir().unwrap();

    let error = refused("clipped", folder.path(), |rig| says(rig, 0.99));

    assert!(
        error.contains("cut off: 99") && error.contains("2.0 % at most"),
        "{error}"
    );
}

#[test]
fn a_name_that_is_another_voices_is_not_added_to() {
    let folder = tempfile::tempdir().unwrap();
    put(folder.path(), "imposter", Some("Ann"), ANN);

    let error = refused("imposter", folder.path(), |rig| says(rig, BEN));

    assert!(error.contains("does not sound like Ann"), "{error}");
    assert_eq!(stored(folder.path())[0].takes.len(), 1);
}

#[test]
fn who_sounds_like_somebody_else_is_enrolled_with_a_warning() {
    let folder = tempfile::tempdir().unwrap();
    put(folder.path(), "alike", Some("Anna"), ANN);
    let rig = Rig::of(named("alike", folder.path()), false);
    rig.begin();
    says(&rig, ANN);

    rig.finish();

    let messages = rig.messages();
    let warning = messages.iter().find_map(|m| match m.view() {
        gst::MessageView::Warning(w) => Some(w.error().to_string()),
        _ => None,
    });
    assert!(warning.unwrap().contains("sounds like Anna"));
    assert_eq!(stored(folder.path()).len(), 2);
}

#[test]
fn after_a_refusal_null_and_a_better_recording_make_it_work() {
    let folder = tempfile::tempdir().unwrap();
    let rig = Rig::of(named("again", folder.path()), false);
    rig.begin();
    level(&rig, 0, 1, ANN);
    rig.event(gst::event::Eos::new());
    rig.error();

    rig.element.set_state(gst::State::Null).unwrap();
    rig.out.clear();
    rig.element.set_state(gst::State::Playing).unwrap();
    rig.begin();
    says(&rig, ANN);
    rig.finish();

    assert_eq!(stored(folder.path()).len(), 1);
}

#[test]
fn what_is_missing_is_said_before_anything_is_loaded() {
    let folder = tempfile::tempdir().unwrap();
    FakeBatches::default().register("unset");
    for (property, value, said) in [
        ("voices", "", "voices= is not set"),
        ("name-of", "", "name-of= is not set"),
        ("name-of", "Speaker 7", "cannot be a name"),
        ("consent", "yes", "who gave it"),
        ("consent", "Ann; yesterday; minutes", "YYYY-MM-DD"),
    ] {
        let element = enroller("unset", folder.path());
        element.set_property("name-of", "Ann");
        element.set_property(property, value);
        let bus = gst::Bus::new();
        element.set_bus(Some(&bus));

        assert!(element.set_state(gst::State::Ready).is_err(), "{property}");

        let error = error_on(&bus).to_string();
        assert!(error.contains(said), "{error}");
        element.set_state(gst::State::Null).unwrap();
    }
}

#[test]
fn consent_is_required_where_that_is_asked_for_and_kept_with_the_voice() {
    let folder = tempfile::tempdir().unwrap();
    let element = named("consent", folder.path());
    element.set_property("require-consent", true);
    let bus = gst::Bus::new();
    element.set_bus(Some(&bus));
    assert!(element.set_state(gst::State::Ready).is_err());
    assert!(error_on(&bus).to_string().contains("require-consent=true"));

    element.set_property("consent", "Ann Lee; 2026-11-26; minutes; of meetings");
    element.set_property("expires-after", 30_u32);
    let rig = Rig::of(element, false);
    rig.begin();
    says(&rig, ANN);
    rig.finish();

    let voice = &stored(folder.path())[0];
    let consent = voice.consent.as_ref().unwrap();
    assert_eq!(
        (consent.who.as_str(), consent.when.as_str()),
        ("Ann Lee", "2026-11-26")
    );
    assert_eq!(consent.purpose, "minutes; of meetings");
    let days = (voice.expires.unwrap() - voice.created) as f64 / 86_400.0;
    assert!((days - 30.0).abs() < 0.1, "{days}");
}

#[test]
fn another_models_voices_are_an_error_with_both_names_and_the_remedy() {
    let folder = tempfile::tempdir().unwrap();
    put(folder.path(), "before", Some("Ann"), ANN);
    let rig = Rig::of(named("after", folder.path()), false);

    let error = rig.error().to_string();

    assert!(
        error.contains("fake:before") && error.contains("fake:after"),
        "{error}"
    );
    assert!(error.contains("enrol everybody again"), "{error}");
}

#[test]
fn a_folder_that_is_not_there_is_told_before_anything_is_heard() {
    let folder = tempfile::tempdir().unwrap();
    let element = named("no folder", &folder.path().join("nowhere"));
    let rig = Rig::of(element, false);

    let error = rig.error();

    assert!(error.matches(gst::ResourceError::NotFound), "{error}");
    assert!(error.to_string().contains("there is no folder"), "{error}");
}

#[test]
fn a_recording_that_is_too_long_passes_and_says_so() {
    let folder = tempfile::tempdir().unwrap();
    let element = named("long", folder.path());
    element.set_property("skip-enrollment-above", 7_u32);
    let rig = Rig::of(element, false);
    rig.begin();
    says(&rig, ANN);

    let out = rig.finish();

    assert_eq!(buffers(&out).len(), 16);
    let told = structures(&rig, messages::DEGRADED);
    assert_eq!(told.len(), 1);
    let reason: String = told[0].get("reason").unwrap();
    assert!(
        reason.contains("8 s") && reason.contains("skip-enrollment-above=7"),
        "{reason}"
    );
    assert!(!voices_in(folder.path()).exists());
}

#[test]
fn segments_are_spread_go_in_batches_and_progress_is_told() {
    let folder = tempfile::tempdir().unwrap();
    let element = named("batches", folder.path());
    element.set_property("max-segments", 20_u32);
    element.set_property("batch-size", 8_u32);
    let rig = Rig::of(element, false);
    rig.begin();
    level(&rig, 0, 1, 0.0);
    level(&rig, 1, 91, ANN);
    level(&rig, 91, 92, 0.0);

    rig.finish();

    let told = structures(&rig, messages::PROGRESS);
    let texts: Vec<String> = told.iter().map(|s| s.get("text").unwrap()).collect();
    let begins = texts
        .iter()
        .position(|t| t.starts_with("Processing"))
        .unwrap();
    assert!(
        texts[begins].starts_with("Processing 20 segments in 3 batches of 8 (memory "),
        "{texts:?}"
    );
    assert_eq!(
        texts[begins + 1..],
        [
            "1/3 batches (8 embeddings extracted)",
            "2/3 batches (16 embeddings extracted)",
            "3/3 batches (20 embeddings extracted)"
        ]
    );
    assert_eq!(told.last().unwrap().get::<f64>("percent"), Ok(100.0));
    let quality = &stored(folder.path())[0].takes[0].quality;
    assert_eq!(quality.segments, 20);
    assert!((quality.net_speech_s - 90.0).abs() < 0.2);
}

#[test]
fn the_enroll_signal_ends_early_and_the_rest_passes() {
    let folder = tempfile::tempdir().unwrap();
    let rig = Rig::of(named("early", folder.path()), false);
    rig.begin();
    says(&rig, ANN);

    assert!(rig.element.emit_by_name::<bool>("enroll", &[]));

    let message = rig.bus.timed_pop_filtered(
        gst::ClockTime::from_mseconds(GUARD.as_millis() as u64),
        &[gst::MessageType::Element],
    );
    assert!(message.is_some());
    level(&rig, 8, 20, BEN);
    let out = rig.finish();
    assert_eq!(buffers(&out).len(), 40);
    let voice = &stored(folder.path())[0];
    assert_eq!(voice.takes.len(), 1);
    assert!(voice.net_speech_s() < 5.5);
    rig.stop();
    assert!(!rig.element.emit_by_name::<bool>("enroll", &[]));
}

#[test]
fn a_flush_forgets_what_was_heard() {
    let folder = tempfile::tempdir().unwrap();
    let rig = Rig::of(named("flush", folder.path()), false);
    rig.begin();
    says(&rig, BEN);
    rig.event(gst::event::FlushStart::new());
    rig.event(gst::event::FlushStop::new(true));
    rig.event(gst::event::Segment::new(&gst::FormattedSegment::<
        gst::ClockTime,
    >::new()));
    says(&rig, ANN);

    rig.finish();

    let voices = stored(folder.path());
    assert_eq!(voices[0].takes.len(), 1);
    assert!((voices[0].takes[0].mean[0] - ANN.cos()).abs() < 1e-3);
}

#[test]
fn stopping_in_mid_enrolment_returns_at_once_and_keeps_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let stalls = Arc::new(AtomicBool::new(false));
    let gate = Arc::clone(&stalls);
    FakeBatches {
        before: Arc::new(move |_| {
            while gate.load(Ordering::SeqCst) {
                std::thread::sleep(Duration::from_millis(5));
            }
            Ok(())
        }),
        ..FakeBatches::default()
    }
    .register("stalls");
    let element = enroller("stalls", folder.path());
    element.set_property("name-of", "Ann");
    let rig = Rig::of(element, false);
    rig.begin();
    says(&rig, ANN);
    stalls.store(true, Ordering::SeqCst);
    let src = rig.src.clone();
    let end = std::thread::spawn(move || src.push_event(gst::event::Eos::new()));
    std::thread::sleep(Duration::from_millis(100));

    rig.stop();

    end.join().unwrap();
    stalls.store(false, Ordering::SeqCst);
    assert!(!voices_in(folder.path()).exists());
}

#[test]
fn a_model_that_fails_is_one_error_and_nothing_is_written() {
    let folder = tempfile::tempdir().unwrap();
    let fails = Arc::new(AtomicBool::new(false));
    let gate = Arc::clone(&fails);
    FakeBatches {
        before: Arc::new(move |_| match gate.load(Ordering::SeqCst) {
            true => Err(gstscribe::inference::EngineError::Failed {
                what: "voice embedding".into(),
                why: "the test says so".into(),
            }),
            false => Ok(()),
        }),
        ..FakeBatches::default()
    }
    .register("fails");
    let element = enroller("fails", folder.path());
    element.set_property("name-of", "Ann");
    let rig = Rig::of(element, false);
    rig.begin();
    says(&rig, ANN);
    fails.store(true, Ordering::SeqCst);
    rig.event(gst::event::Eos::new());

    let error = rig.error().to_string();

    assert!(error.contains("the test says so"), "{error}");
    assert!(!has_error(&rig));
    assert!(!voices_in(folder.path()).exists());
}

// Conversations, on fakes.

/// A diarizer and an enroller behind it, as one element for the rig.
fn chain(model: &str, folder: &Path, policy: &str, online: bool) -> gst::Element {
    init();
    FakeBatches::default().register(model);
    let bin = gst::Bin::new();
    let diarizer = gst::ElementFactory::make("scribediarizer")
        .property("segmentation-model", format!("fake:{model}"))
        .property("embedding-model", format!("fake:{model}"))
        .property_from_str("mode", if online { "online" } else { "offline" })
        .build()
        .unwrap();
    let enroller = enroller(model, folder);
    enroller.set_property_from_str("policy", policy);
    diarizer.set_context(&registry_context(&registry()));
    bin.add_many([&diarizer, &enroller]).unwrap();
    diarizer.link(&enroller).unwrap();
    for (pad, element) in [("sink", &diarizer), ("src", &enroller)] {
        let target = element.static_pad(pad).unwrap();
        bin.add_pad(&gst::GhostPad::with_target(&target).unwrap())
            .unwrap();
    }
    bin.upcast()
}

/// Ann, a pause longer than a window, Ben, a pause, Ann again.
fn conversation(rig: &Rig) {
    level(rig, 0, 15, ANN);
    level(rig, 15, 27, 0.0);
    level(rig, 27, 42, BEN);
    level(rig, 42, 54, 0.0);
    level(rig, 54, 69, ANN);
    level(rig, 69, 71, 0.0);
}

/// Who spoke, in order, by id and name.
fn spoke(out: &[Out]) -> Vec<(String, String)> {
    let told = events(out, gst::EventType::CustomDownstream);
    let told = told
        .iter()
        .filter_map(|e| messages::turns_of(e.structure()?));
    told.flat_map(|t| t.all)
        .map(|t| (t.turn.speaker_id, t.turn.speaker.unwrap_or_default()))
        .collect()
}

#[test]
fn speakers_whom_nobody_knows_get_an_identity_that_lasts() {
    let folder = tempfile::tempdir().unwrap();
    let rig = Rig::of(chain("strangers", folder.path(), "unknown", false), false);
    rig.begin();
    conversation(&rig);
    let out = rig.finish();

    let voices = stored(folder.path());
    assert_eq!(voices.len(), 2);
    let who = |n: usize| {
        (
            voices[n].id.to_string(),
            format!("Speaker {}", voices[n].number),
        )
    };
    assert_eq!(spoke(&out), [who(0), who(1), who(0)]);
    let relabels = structures(&rig, messages::RELABEL);
    assert_eq!(relabels.len(), 2);
    assert_eq!(relabels[0].get::<&str>("old-id"), Ok("speaker-1"));
    drop(rig);

    // Tomorrow, Ben first.
    let rig = Rig::of(chain("strangers", folder.path(), "unknown", false), false);
    rig.begin();
    level(&rig, 0, 15, BEN);
    level(&rig, 15, 27, 0.0);
    level(&rig, 27, 42, ANN);
    level(&rig, 42, 44, 0.0);
    let out = rig.finish();

    assert_eq!(spoke(&out), [who(1), who(0)]);
    assert_eq!(stored(folder.path()).len(), 2);
}

#[test]
fn who_is_known_by_name_is_learnt_from_and_strangers_are_not() {
    let folder = tempfile::tempdir().unwrap();
    put(folder.path(), "acquaintances", Some("Ann"), ANN);
    let rig = Rig::of(chain("acquaintances", folder.path(), "named", false), false);
    rig.begin();
    conversation(&rig);

    rig.finish();

    let voices = stored(folder.path());
    assert_eq!(voices.len(), 1);
    assert_eq!(voices[0].takes.len(), 2);
    assert!((voices[0].takes[1].quality.net_speech_s - 30.0).abs() < 1.0);
    let messages = rig.messages();
    let left_out: Vec<_> = messages
        .iter()
        .filter_map(|m| m.structure().filter(|s| s.name() == messages::NOT_ENROLLED))
        .collect();
    assert_eq!(left_out.len(), 1);
    assert_eq!(left_out[0].get::<&str>("speaker-id"), Ok("speaker-2"));
}

#[test]
fn parts_of_a_recording_are_learnt_by_themselves_and_the_signal_waits_for_turns() {
    let folder = tempfile::tempdir().unwrap();
    put(folder.path(), "parts", Some("Ann"), ANN);
    let rig = Rig::of(chain("parts", folder.path(), "named", false), false);
    rig.begin();
    level(&rig, 0, 15, ANN);
    level(&rig, 15, 17, 0.0);
    let bin = rig.element.downcast_ref::<gst::Bin>().unwrap();
    let enroller = bin
        .iterate_elements()
        .find(|e| e.has_property("name-of"))
        .unwrap();
    assert!(enroller.emit_by_name::<bool>("enroll", &[]));
    let mut segment = gst::FormattedSegment::<gst::ClockTime>::new();
    segment.set_base(gst::ClockTime::from_seconds(17));
    rig.event(gst::event::Segment::new(&segment));
    level(&rig, 0, 20, ANN);
    level(&rig, 20, 22, 0.0);

    rig.finish();

    let mut seconds: Vec<f64> = stored(folder.path())[0]
        .takes
        .iter()
        .map(|t| t.quality.net_speech_s.round())
        .collect();
    // Two of one second are in no order.
    seconds.sort_by(f64::total_cmp);
    assert_eq!(seconds, [15.0, 20.0, 30.0]);
    let is_warning = |m: &gst::Message| m.type_() == gst::MessageType::Warning;
    assert!(rig.messages().iter().any(is_warning));
}

#[test]
fn online_an_identity_comes_as_a_relabel() {
    let folder = tempfile::tempdir().unwrap();
    let rig = Rig::of(
        chain("live strangers", folder.path(), "unknown", true),
        false,
    );
    rig.begin();
    conversation(&rig);
    let out = rig.finish();

    let left_out = structures(&rig, messages::NOT_ENROLLED);
    assert!(left_out.is_empty(), "{left_out:?}");
    let voices = stored(folder.path());
    assert_eq!(voices.len(), 2);
    let events = events(&out, gst::EventType::CustomDownstream);
    let relabels: Vec<_> = events
        .iter()
        .filter_map(|e| messages::relabel_of(e.structure()?))
        .filter_map(|r| Some((r.old_id, r.new_id?)))
        .collect();
    for (old, voice) in [("speaker-1", &voices[0]), ("speaker-2", &voices[1])] {
        let wanted = (old.to_owned(), voice.id.to_string());
        assert!(relabels.contains(&wanted), "{relabels:?}");
    }
}

#[test]
fn without_a_diarizer_nobody_knows_who_speaks() {
    let folder = tempfile::tempdir().unwrap();
    FakeBatches::default().register("alone");
    let element = enroller("alone", folder.path());
    element.set_property_from_str("policy", "unknown");
    let rig = Rig::of(element, false);
    rig.begin();
    let _ = rig.push(sound(0, 1_000, 0.3));

    let error = rig.error().to_string();

    assert!(error.contains("put scribediarizer before it"), "{error}");
}

// Names in the diarizer, on fakes.

fn diarizer(model: &str, folder: &Path, mode: &str) -> gst::Element {
    init();
    FakeBatches::default().register(model);
    let element = gst::ElementFactory::make("scribediarizer")
        .property("segmentation-model", format!("fake:{model}"))
        .property("embedding-model", format!("fake:{model}"))
        .property("voices", voices_in(folder).to_str().unwrap())
        .property_from_str("mode", mode)
        .build()
        .unwrap();
    element.set_context(&registry_context(&registry()));
    element
}

#[test]
fn who_is_enrolled_has_the_name_and_who_is_not_is_unknown() {
    let folder = tempfile::tempdir().unwrap();
    let ann = put(folder.path(), "knows", Some("Ann"), ANN);
    put(folder.path(), "knows", Some("Somebody"), 1.2);
    let rig = Rig::of(diarizer("knows", folder.path(), "offline"), false);
    rig.begin();
    conversation(&rig);

    let out = rig.finish();

    let ann = (ann, "Ann".to_owned());
    let unknown = ("speaker-2".to_owned(), "Unknown 2".to_owned());
    assert_eq!(spoke(&out), [ann.clone(), unknown, ann]);
}

#[test]
fn live_the_name_comes_with_the_first_certain_match_and_mends_what_was_told() {
    let folder = tempfile::tempdir().unwrap();
    let ann = put(folder.path(), "live names", Some("Ann"), ANN);
    let rig = Rig::of(diarizer("live names", folder.path(), "online"), false);
    rig.begin();
    conversation(&rig);

    let out = rig.finish();

    let events = events(&out, gst::EventType::CustomDownstream);
    let relabels: Vec<_> = events
        .iter()
        .filter_map(|e| messages::relabel_of(e.structure()?))
        .collect();
    let named = relabels.iter().find(|r| r.old_id == "speaker-1").unwrap();
    assert_eq!(named.new_id.as_ref(), Some(&ann));
    assert_eq!(named.name.as_deref(), Some("Ann"));
    assert_eq!((named.from, named.to), (None, None));
    let spoke = spoke(&out);
    assert_eq!(spoke.last(), Some(&(ann, "Ann".to_owned())));
    assert!(spoke.iter().any(|s| s.1 == "Unknown 2"), "{spoke:?}");
}

#[test]
fn a_name_that_is_given_while_the_stream_goes_on_counts() {
    let folder = tempfile::tempdir().unwrap();
    put(folder.path(), "meanwhile", Some("Somebody"), 1.2);
    let rig = Rig::of(diarizer("meanwhile", folder.path(), "online"), false);
    rig.begin();
    level(&rig, 0, 15, ANN);
    // What is told goes out with the sound that comes after it.
    let mut at = 15;
    while !spoke(&rig.out.all()).iter().any(|s| s.1 == "Unknown 1") {
        level(&rig, at, at + 1, 0.0);
        at += 1;
        std::thread::sleep(Duration::from_millis(5));
    }

    let ann = put(folder.path(), "meanwhile", Some("Ann"), ANN);
    level(&rig, at + 12, at + 27, ANN);
    level(&rig, at + 27, at + 39, 0.0);
    let out = rig.finish();

    assert_eq!(spoke(&out).last(), Some(&(ann, "Ann".to_owned())));
}

#[test]
fn a_voice_whose_term_ends_while_a_stream_goes_on_names_nobody_any_more() {
    let folder = tempfile::tempdir().unwrap();
    let ann = put(folder.path(), "term", Some("Ann"), ANN);
    let ends = gstscribe::voices::now() + 4;
    let mut store = Store::open(&voices_in(folder.path()), &OpenOptions::default()).unwrap();
    let id = store.find(&ann).unwrap().id;
    store.set_expiry(id, Some(ends)).unwrap();
    drop(store);
    let rig = Rig::of(diarizer("term", folder.path(), "online"), false);
    rig.begin();
    level(&rig, 0, 15, ANN);
    level(&rig, 15, 27, 0.0);
    let mut at = 27;
    let mut told = |wanted: &str| {
        let is_told = |e: &gst::Event| {
            let relabel = e.structure().and_then(messages::relabel_of);
            relabel.is_some_and(|r| r.name.as_deref() == Some(wanted))
        };
        while !events(&rig.out.all(), gst::EventType::CustomDownstream)
            .iter()
            .any(is_told)
        {
            level(&rig, at, at + 1, ANN);
            at += 1;
            std::thread::sleep(Duration::from_millis(20));
        }
    };
    told("Ann");

    while gstscribe::voices::now() < ends {
        std::thread::sleep(Duration::from_millis(50));
    }

    told("Unknown 1");
    rig.stop();
}

#[test]
fn a_name_in_other_capitals_is_another_voice() {
    let folder = tempfile::tempdir().unwrap();
    put(folder.path(), "capitals", Some("ANN"), ANN);
    let rig = Rig::of(named("capitals", folder.path()), false);
    rig.begin();
    says(&rig, ANN);

    rig.finish();

    let warned = |m: &gst::Message| match m.view() {
        gst::MessageView::Warning(w) => w.error().to_string().contains("sounds like ANN"),
        _ => false,
    };
    assert!(rig.messages().iter().any(warned));
    assert_eq!(stored(folder.path()).len(), 2);
}

#[test]
fn voices_that_are_not_there_are_an_error_and_no_new_file() {
    let folder = tempfile::tempdir().unwrap();
    let rig = Rig::of(diarizer("nowhere", folder.path(), "offline"), false);

    let error = rig.error();

    assert!(error.matches(gst::ResourceError::NotFound), "{error}");
    assert!(error.to_string().contains("enrol someone first"), "{error}");
    assert!(!voices_in(folder.path()).exists());
}

#[test]
fn a_model_that_is_fallen_back_to_names_nobody_and_says_so() {
    let folder = tempfile::tempdir().unwrap();
    put(folder.path(), "gone", Some("Ann"), ANN);
    FakeBatches::default().register("spare");
    FakeBatches {
        load_error: Some(gstscribe::inference::EngineError::Failed {
            what: "loading".into(),
            why: "the test says so".into(),
        }),
        ..FakeBatches::default()
    }
    .register("gone");
    init();
    let element = gst::ElementFactory::make("scribediarizer")
        .property("segmentation-model", "fake:spare")
        .property("embedding-model", "fake:gone")
        .property("fallback", "fake:spare")
        .property("voices", voices_in(folder.path()).to_str().unwrap())
        .build()
        .unwrap();
    element.set_context(&registry_context(&registry()));
    let rig = Rig::of(element, false);
    rig.begin();
    conversation(&rig);

    let out = rig.finish();

    let is_start = |o: &Out| matches!(o, Out::Event(e) if e.type_() == gst::EventType::StreamStart);
    assert!(is_start(&out[0]), "told before the stream begins");
    assert!(spoke(&out).iter().all(|s| s.0.starts_with("speaker-")));
    let told = structures(&rig, messages::DEGRADED);
    let names = told
        .iter()
        .find(|s| s.get::<&str>("what") == Ok("names"))
        .unwrap();
    assert!(
        names
            .get::<String>("reason")
            .unwrap()
            .contains("fake:spare")
    );
}

// Programs, on real models and real speech.

/// The recording of three voices, as samples at 16 kHz.
fn demo() -> Vec<f32> {
    init();
    let line = format!(
        "filesrc location={} ! decodebin ! audioconvert ! audioresample ! \
         audio/x-raw,format=F32LE,rate=16000,channels=1 ! appsink name=out sync=false",
        repository("tests/data/demo.opus").display()
    );
    let pipeline = gst::parse::launch(&line).unwrap();
    let pipeline = pipeline.downcast::<gst::Bin>().unwrap();
    let sink = pipeline.by_name("out").unwrap();
    let sink = sink.downcast::<gst_app::AppSink>().unwrap();
    pipeline.set_state(gst::State::Playing).unwrap();
    let mut samples = Vec::new();
    while let Ok(sample) = sink.pull_sample() {
        let map = sample.buffer().unwrap().map_readable().unwrap();
        let values = map
            .chunks_exact(4)
            .map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]));
        samples.extend(values);
    }
    pipeline.set_state(gst::State::Null).unwrap();
    samples
}

/// Writes the utterances of `voice` whose numbers (from 0) are wanted to a WAV file, with a little of what is around them.
fn utterances(folder: &Path, file: &str, voice: &str, wanted: std::ops::Range<usize>) {
    write_wav(&folder.join(file), &spoken_by(voice, wanted));
}

fn spoken_by(voice: &str, wanted: std::ops::Range<usize>) -> Vec<f32> {
    let reference = std::fs::read_to_string(repository("tests/data/demo.ref.tsv")).unwrap();
    let all = demo();
    let own = reference.lines().filter_map(|line| {
        let fields: Vec<&str> = line.split('\t').collect();
        let (start, end): (f64, f64) = (fields[0].parse().ok()?, fields[1].parse().ok()?);
        (fields[3] == voice).then_some((start, end))
    });
    let mut samples = Vec::new();
    for (start, end) in own.skip(wanted.start).take(wanted.len()) {
        let at = |s: f64| ((s * 16_000.0) as usize).min(all.len());
        samples.extend_from_slice(&all[at(start - 0.2)..at(end + 0.2)]);
    }
    samples
}

fn write_wav(path: &Path, samples: &[f32]) {
    let mut bytes = Vec::new();
    let data = samples.len() as u32 * 2;
    bytes.extend(b"RIFF");
    bytes.extend((36 + data).to_le_bytes());
    bytes.extend(b"WAVEfmt ");
    bytes.extend(16_u32.to_le_bytes());
    bytes.extend(1_u16.to_le_bytes());
    bytes.extend(1_u16.to_le_bytes());
    bytes.extend(16_000_u32.to_le_bytes());
    bytes.extend(32_000_u32.to_le_bytes());
    bytes.extend(2_u16.to_le_bytes());
    bytes.extend(16_u16.to_le_bytes());
    bytes.extend(b"data");
    bytes.extend(data.to_le_bytes());
    bytes.extend(
        samples
            .iter()
            .flat_map(|s| ((s * 32_767.0) as i16).to_le_bytes()),
    );
    std::fs::write(path, bytes).unwrap();
}

/// White noise of this root mean square.
fn noise(samples: usize, level: f32) -> Vec<f32> {
    let mut state = 9_u32;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..samples)
        .map(|_| next() * level * 3_f32.sqrt())
        .collect()
}

fn enrols(file: &str, name: &str) -> String {
    format!(
        "filesrc location={file} ! decodebin ! audioconvert ! audioresample ! scribeenroller name-of={name} \
         voices=voices.db ! fakesink"
    )
}

#[test]
fn a_reader_is_enrolled_from_one_recording_and_known_in_another() {
    if !can_tell_speakers() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    utterances(path, "reader.wav", "reader", 0..3);
    std::fs::copy(repository("tests/data/demo.opus"), path.join("demo.opus")).unwrap();

    let out = gst_launch("-m", &enrols("reader.wav", "Austen"), path);
    let said = String::from_utf8_lossy(&out.stdout).into_owned();
    assert!(out.status.success(), "{said}");
    assert!(
        said.contains("scribe/enrolled") && said.contains("Austen"),
        "{said}"
    );

    let out = gst_launch(
        "-m",
        "filesrc location=demo.opus ! decodebin ! audioconvert ! scribediarizer voices=voices.db ! scribetranscriber ! \
         scribeenc format=json ! filesink location=demo.json",
        path,
    );
    assert!(
        out.status.success(),
        "{}",
        String::from_utf8_lossy(&out.stdout)
    );
    let json: serde_json::Value =
        serde_json::from_slice(&std::fs::read(path.join("demo.json")).unwrap()).unwrap();
    let segments = json["segments"].as_array().unwrap();
    let id = stored(path)[0].id.to_string();
    let mut named = 0;
    for segment in segments {
        let text = segment["text"].as_str().unwrap().to_lowercase();
        let is_cards = ["clubs", "meters", "somewhere", "zero"]
            .iter()
            .any(|w| text.contains(w));
        let speaker = segment["speaker"].as_str().unwrap_or_default();
        assert!(!is_cards || speaker != "Austen", "{segment}");
        if speaker == "Austen" {
            named += 1;
            assert_eq!(
                segment["speaker_id"].as_str(),
                Some(id.as_str()),
                "{segment}"
            );
        }
    }
    assert!(named > 0, "{json}");
}

#[test]
fn gst_launch_ends_with_an_error_where_a_recording_is_not_good_enough() {
    if !can_tell_speakers() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    utterances(path, "cards.wav", "player", 0..1);
    std::fs::copy(repository("tests/data/demo.opus"), path.join("demo.opus")).unwrap();
    std::fs::copy(
        repository("tests/data/silence_noise.flac"),
        path.join("noise.flac"),
    )
    .unwrap();

    // Speech at the level of the noise, with a second of it before and after.
    let mut noisy = vec![0.0; 16_000];
    noisy.extend(spoken_by("reader", 0..3));
    noisy.extend(vec![0.0; 16_000]);
    let level = (noisy.iter().map(|s| s * s).sum::<f32>() / noisy.len() as f32).sqrt();
    let hiss = noise(noisy.len(), level);
    for (sample, noise) in noisy.iter_mut().zip(hiss) {
        *sample = (*sample + noise) * 0.5;
    }
    write_wav(&path.join("noisy.wav"), &noisy);

    for (file, said) in [
        ("noisy.wav", "too much noise"),
        ("cards.wav", "too little speech"),
        ("demo.opus", "people speak"),
        ("noise.flac", "too little speech"),
    ] {
        let out = gst_launch("-m", &enrols(file, "Nobody"), path);

        let error = String::from_utf8_lossy(&out.stderr).into_owned();
        assert_eq!(out.status.code(), Some(1), "{file}: {error}");
        assert!(error.contains(said), "{file}: {error}");
        assert!(!path.join("voices.db").exists(), "{file}");
    }
}

#[test]
fn an_unnamed_speaker_of_today_is_the_same_tomorrow_and_can_be_named_later() {
    if !can_tell_speakers() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    utterances(path, "today.wav", "reader", 0..3);
    utterances(path, "tomorrow.wav", "reader", 3..5);
    let line = |file: &str| {
        format!(
            "filesrc location={file}.wav ! decodebin ! audioconvert ! scribediarizer ! scribeenroller policy=unknown \
             voices=voices.db ! scribetranscriber ! scribeenc format=json ! filesink location={file}.json"
        )
    };
    let speakers = |file: &str| -> Vec<String> {
        let out = gst_launch("-m", &line(file), path);
        assert!(
            out.status.success(),
            "{}",
            String::from_utf8_lossy(&out.stdout)
        );
        let json = std::fs::read(path.join(format!("{file}.json"))).unwrap();
        let json: serde_json::Value = serde_json::from_slice(&json).unwrap();
        let segments = json["segments"].as_array().unwrap();
        let mut ids: Vec<String> = segments
            .iter()
            .filter_map(|s| Some(s["speaker_id"].as_str()?.to_owned()))
            .collect();
        ids.sort();
        ids.dedup();
        ids
    };

    let today = speakers("today");
    let tomorrow = speakers("tomorrow");

    assert_eq!(stored(path).len(), 1);
    assert_eq!(today, [stored(path)[0].id.to_string()]);
    assert_eq!(tomorrow, today);
    let mut store = Store::open(&voices_in(path), &OpenOptions::default()).unwrap();
    let voice = store.find(&today[0]).unwrap();
    assert_eq!(voice.label(), "Speaker 1");
    store.rename(voice.id, "Jane").unwrap();
    drop(store);
    let out = gst_launch(
        "-m",
        "filesrc location=tomorrow.wav ! decodebin ! audioconvert ! scribediarizer voices=voices.db ! scribetranscriber ! \
         scribeenc format=vtt ! filesink location=x.vtt",
        path,
    );
    assert!(out.status.success());
    let vtt = std::fs::read_to_string(path.join("x.vtt")).unwrap();
    assert!(vtt.contains("<v Jane>"), "{vtt}");
}

// Over and over.

#[test]
fn a_hundred_changes_of_state_and_seeks_leave_an_enrolment_that_works() {
    let folder = tempfile::tempdir().unwrap();
    let recording = folder.path().join("sound.wav");
    let mut samples = vec![ANN; 16_000 * 15];
    samples.extend(vec![0.0; 16_000 * 12]);
    samples.extend(vec![BEN; 16_000 * 15]);
    samples.extend(vec![0.0; 16_000 * 2]);
    write_wav(&recording, &samples);
    let pipeline = gst::Pipeline::new();
    let source = gst::ElementFactory::make("filesrc")
        .property("location", recording.to_str().unwrap())
        .build()
        .unwrap();
    let parse = gst::ElementFactory::make("wavparse").build().unwrap();
    let chain = chain("over and over", folder.path(), "unknown", false);
    let sink = gst::ElementFactory::make("fakesink")
        .property("sync", false)
        .build()
        .unwrap();
    pipeline.add_many([&source, &parse, &chain, &sink]).unwrap();
    gst::Element::link_many([&source, &parse, &chain, &sink]).unwrap();
    let bus = pipeline.bus().unwrap();
    let mut state = 11_u32;
    let mut random = |below: u32| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) % below
    };
    for _ in 0..100 {
        if random(10) < 3 {
            let at = gst::ClockTime::from_mseconds(u64::from(random(44_000)));
            let _ = pipeline.seek_simple(gst::SeekFlags::FLUSH, at);
        } else {
            let states = [
                gst::State::Null,
                gst::State::Ready,
                gst::State::Paused,
                gst::State::Playing,
            ];
            let next = states[random(4) as usize];
            at_once("a state", || pipeline.set_state(next).unwrap());
        }
        std::thread::sleep(Duration::from_millis(u64::from(random(20))));
    }
    let wrong = bus
        .iter()
        .filter(|m| m.type_() == gst::MessageType::Error)
        .count();
    assert_eq!(wrong, 0);
    at_once("NULL", || pipeline.set_state(gst::State::Null).unwrap());
    bus.set_flushing(true);
    bus.set_flushing(false);

    pipeline.set_state(gst::State::Playing).unwrap();

    let end = bus.timed_pop_filtered(
        gst::ClockTime::from_seconds(GUARD.as_secs()),
        &[gst::MessageType::Eos, gst::MessageType::Error],
    );
    assert_eq!(end.map(|m| m.type_()), Some(gst::MessageType::Eos));
    pipeline.set_state(gst::State::Null).unwrap();
    // However often they were heard: two people.
    assert_eq!(stored(folder.path()).len(), 2);
}

#[test]
fn nothing_leaks_in_runs_with_an_end_a_flush_and_an_error() {
    const NAME: &str = "nothing_leaks_in_runs_with_an_end_a_flush_and_an_error";
    if std::env::var_os("SCRIBE_LEAK_CHILD").is_some() {
        leak_child();
        return;
    }

    let out = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", NAME, "--nocapture"])
        .env("SCRIBE_LEAK_CHILD", "1")
        .env("GST_TRACERS", "leaks")
        .env("GST_DEBUG", "GST_TRACER:7")
        .env("GST_DEBUG_NO_COLOR", "1")
        .output()
        .unwrap();

    let said = String::from_utf8_lossy(&out.stderr);
    assert!(out.status.success(), "{said}");
    let leaks: Vec<&str> = said
        .lines()
        .filter(|l| l.contains("object-alive,") && l.contains("address=(gpointer)0x"))
        .collect();
    assert!(leaks.is_empty(), "{leaks:#?}");
}

#[allow(unsafe_code, reason = "the end of GStreamer is")]
fn leak_child() {
    let folder = tempfile::tempdir().unwrap();
    let rig = Rig::of(named("leaks", folder.path()), false);
    rig.begin();
    says(&rig, ANN);
    rig.finish();
    drop(rig);
    let rig = Rig::of(named("leaks", folder.path()), false);
    rig.begin();
    says(&rig, BEN);
    rig.event(gst::event::FlushStart::new());
    rig.event(gst::event::FlushStop::new(true));
    drop(rig);
    let rig = Rig::of(named("leaks", folder.path()), false);
    rig.begin();
    level(&rig, 0, 1, ANN);
    rig.event(gst::event::Eos::new());
    rig.error();
    drop(rig);
    let rig = Rig::of(chain("leaks", folder.path(), "unknown", false), false);
    rig.begin();
    conversation(&rig);
    rig.finish();
    drop(rig);
    // SAFETY: nothing of GStreamer is used any more, in this process of its own.
    unsafe { gst::deinit() };
}
