// SPDX-License-Identifier: MPL-2.0
//! The models of a stream: found, checked and leased on a thread of their own, so that a flush, a shutdown and live text
//! need not wait for them.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, TryRecvError, channel};

use gst::glib;
use gst::prelude::*;
use gst::subclass::prelude::*;

use super::IsolationSetting;
use super::imp::CAT;
use super::settings::Settings;
use super::worker::{Stop, Worker};
use crate::error::engine_error;
use crate::inference::isolated::Isolation;
use crate::inference::{CancelToken, EngineError};
use crate::registry::{Degraded, Kind, Registry, VadSpec, Whisper, WhisperSpec};
use crate::transcribe::file::{Models, SessionParams, fallback_specs, speech_spec, vad_spec};

/// The models, and what the session works by.
pub(super) struct Loaded {
    pub models: Arc<Models>,
    pub params: SessionParams,
    /// The model of the chain that is used: 0 for the one that was asked for.
    place: usize,
}

/// A model of the chain on its way, for a live stream that the present one is too slow for, or that has time for a better
/// one.
struct Switch {
    coming: Receiver<Result<Models, EngineError>>,
    place: usize,
    smaller: bool,
}

type Outcome = Result<(Models, SessionParams), EngineError>;

/// Models on their way.
pub(super) struct Loading {
    coming: Option<Receiver<Outcome>>,
    loaded: Option<Loaded>,
    switch: Option<Switch>,
    /// No smaller model could be had: it is not asked for again.
    is_smallest: bool,
    progress: Progress,
}

/// PROGRESS messages, of which the last is one that ends them.
struct Progress {
    element: glib::WeakRef<super::Transcriber>,
    open: bool,
}

impl Progress {
    fn tell(&mut self, kind: gst::ProgressType, text: &str) {
        self.open = kind == gst::ProgressType::Start;
        if let Some(element) = self.element.upgrade() {
            let message = gst::message::Progress::builder(kind, "scribe-model", text)
                .src(&element)
                .build();
            let _ = element.post_message(message);
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if self.open {
            self.tell(gst::ProgressType::Canceled, "Loading was stopped");
        }
    }
}

impl Loading {
    pub(super) fn loaded(&self) -> Option<&Loaded> {
        self.loaded.as_ref()
    }

    /// Whether the models have come just now.
    pub(super) fn poll(&mut self, worker: &Worker) -> Result<bool, Stop> {
        let Some(coming) = &self.coming else {
            return Ok(false);
        };
        let outcome = match coming.try_recv() {
            Err(TryRecvError::Empty) => return Ok(false),
            Err(TryRecvError::Disconnected) => Err(failed("its thread panicked".into())),
            Ok(outcome) => outcome,
        };
        self.coming = None;
        match outcome {
            Ok((models, params)) => {
                let progress = &mut self.progress;
                progress.tell(gst::ProgressType::Complete, "The models are loaded");
                worker.use_models(&models);
                self.loaded = Some(Loaded {
                    place: models.place(),
                    models: Arc::new(models),
                    params,
                });
                Ok(true)
            }
            Err(EngineError::Cancelled) => Err(Stop::Interrupted),
            Err(error) => {
                let progress = &mut self.progress;
                progress.tell(gst::ProgressType::Error, &error.to_string());
                Err(Stop::Error(engine_error(&error)))
            }
        }
    }
}

impl Loaded {
    /// The model that was asked for, and those behind it.
    fn chain(&self) -> Vec<WhisperSpec> {
        let mut chain = vec![self.params.speech.clone()];
        chain.extend(self.params.fallback.iter().cloned());
        chain
    }

    /// Whether a better model than the present one was asked for.
    pub(super) fn is_fallback(&self) -> bool {
        self.place > 0
    }
}

impl Loading {
    /// Sends for a smaller model, or for a larger one. False if there is none, or one is on its way.
    pub(super) fn send_for(&mut self, worker: &Worker, smaller: bool) -> bool {
        let Some(loaded) = self.loaded.as_ref().filter(|_| self.switch.is_none()) else {
            return false;
        };
        if smaller && self.is_smallest {
            return false;
        }
        let mut chain = loaded.chain();
        let place = match smaller {
            true => Some(loaded.place + 1).filter(|n| *n < chain.len()),
            false => loaded.place.checked_sub(1),
        };
        let Some(place) = place else {
            return false;
        };
        let mut params = loaded.params.clone();
        let rest = chain.split_off(place + 1);
        if let Some(speech) = chain.pop() {
            params.speech = speech;
        }
        // Of what cannot be had the next is taken, on the way down.
        params.fallback = if smaller { rest } else { Vec::new() };
        params.given_up.clear();
        let find = move |registry: &Registry, cancel: &CancelToken| {
            Models::acquire(registry, &params, cancel)
        };
        let Ok(coming) = worker.on_a_thread(find) else {
            return false;
        };
        self.switch = Some(Switch {
            coming,
            place,
            smaller,
        });
        true
    }

    /// The model that was sent for, if it has come: what was given up or taken up again by it.
    pub(super) fn switched(&mut self, worker: &Worker) -> Option<Degraded> {
        let switch = self.switch.as_ref()?;
        let outcome = match switch.coming.try_recv() {
            Err(TryRecvError::Empty) => return None,
            Err(TryRecvError::Disconnected) => Err(failed("its thread panicked".into())),
            Ok(outcome) => outcome,
        };
        let switch = self.switch.take()?;
        let loaded = self.loaded.as_mut()?;
        let from = loaded.models.describe();
        match outcome {
            Ok(models) => {
                worker.use_models(&models);
                loaded.place = switch.place + models.place();
                let to = models.describe();
                loaded.models = Arc::new(models);
                Some(Degraded {
                    what: "speech model".into(),
                    from,
                    to,
                    reason: match switch.smaller {
                        true => "decoding takes too long for live captions".into(),
                        false => "there is time for it again".into(),
                    },
                })
            }
            Err(error) => {
                self.is_smallest |= switch.smaller;
                Some(Degraded {
                    what: "speech model".into(),
                    from: from.clone(),
                    to: from,
                    reason: format!("another cannot be had: {error}"),
                })
            }
        }
    }
}

impl Worker {
    /// Leases on the models, with PROGRESS messages while they load.
    pub(super) fn begin_loading(&self) -> Result<Loading, Stop> {
        let mut progress = Progress {
            element: self.element.clone(),
            open: false,
        };
        progress.tell(gst::ProgressType::Start, "Loading the models");
        if !self.settings.memory_limit.is_empty()
            && let Ok(limit) = self.settings.memory_limit.parse()
            && let Err(why) = self.registry.lower_limit(limit)
            && let Some(element) = self.element.upgrade()
        {
            gst::element_warning!(element, gst::LibraryError::Settings, ("{why}"));
        }
        let settings = self.settings.clone();
        let find = move |registry: &Registry, cancel: &CancelToken| {
            let params = find_models(&settings)?;
            let models = Models::acquire(registry, &params, cancel)?;
            Ok((models, params))
        };
        match self.on_a_thread(find) {
            Ok(coming) => Ok(Loading {
                coming: Some(coming),
                loaded: None,
                switch: None,
                is_smallest: false,
                progress,
            }),
            Err(error) => {
                progress.tell(gst::ProgressType::Error, &error.to_string());
                Err(Stop::Error(engine_error(&error)))
            }
        }
    }

    /// A thread that can be left behind: a large file takes seconds to be compared with its digest.
    pub(super) fn on_a_thread<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Registry, &CancelToken) -> Result<T, EngineError> + Send + 'static,
    ) -> Result<Receiver<Result<T, EngineError>>, EngineError> {
        let (registry, cancel) = (self.registry.clone(), self.cancel.clone());
        let inbox = Arc::clone(&self.inbox);
        let (tell, told) = channel();
        let spawned = std::thread::Builder::new()
            .name("scribe-load".into())
            .spawn(move || {
                let outcome = work(&registry, &cancel);
                // Nobody listens any more after a flush or a shutdown.
                let _ = tell.send(outcome);
                inbox.poke();
            });
        spawned.map_err(|e| failed(e.to_string()))?;
        Ok(told)
    }

    /// Tells what the words come from.
    pub(super) fn use_models(&self, models: &Models) {
        if let Some(element) = self.element.upgrade() {
            gst::info!(CAT, obj = element, "{}", models.describe());
            element.imp().set_engine(models);
            self.tell_degraded(&element, models);
        }
    }
}

fn failed(why: String) -> EngineError {
    EngineError::Failed {
        what: "looking for the models".into(),
        why,
    }
}

/// Finds the models' files and compares their digests.
fn find_models(settings: &Settings) -> Result<SessionParams, EngineError> {
    let spec = |model: &str, device: &str| {
        speech_spec(
            model,
            settings.engine.asked(),
            device,
            settings.threads,
            settings.word_times,
            isolation(settings.isolation),
        )
    };
    let (mut fallback, mut given_up) =
        fallback_specs(&settings.fallback, &settings.model, &settings.device, spec);
    let mut speech = spec(&settings.model, &settings.device);
    if let Err(error) = &speech
        && !fallback.is_empty()
    {
        given_up.push(Degraded {
            what: "speech model".into(),
            from: settings.model.clone(),
            to: Whisper::name(&fallback[0]),
            reason: error.to_string(),
        });
        speech = Ok(fallback.remove(0));
    }
    let speech = speech?;
    let vad = settings
        .vad
        .then(|| vad_spec(&settings.vad_model))
        .transpose()?;
    let mut params = session_params(settings, speech, vad);
    params.fallback = fallback;
    params.given_up = given_up;
    Ok(params)
}

fn isolation(setting: IsolationSetting) -> Isolation {
    match setting {
        IsolationSetting::Auto => Isolation::Auto,
        IsolationSetting::InProcess => Isolation::InProcess,
        IsolationSetting::Process => Isolation::Process,
    }
}

/// What the session works by, from the settings.
fn session_params(settings: &Settings, speech: WhisperSpec, vad: Option<VadSpec>) -> SessionParams {
    let mut params = SessionParams::new(speech, vad);
    params.language = settings.language();
    params.task = settings.task.task();
    params.prompt.clone_from(&settings.prompt);
    params.vocabulary.clone_from(&settings.vocabulary);
    params.beam = settings.beam_size;
    params.temperatures = settings.temperatures.iter().map(|t| *t as f32).collect();
    params.word_times = settings.word_times;
    params.verbatim = settings.verbatim;
    params.speech_params.threshold = settings.vad_threshold as f32;
    params.speech_params.neg_threshold = settings.vad_neg_threshold as f32;
    params.speech_params.min_speech_ms = settings.vad_min_speech_ms;
    params.speech_params.min_silence_ms = settings.vad_min_silence_ms;
    params.speech_params.pad_ms = settings.vad_pad_ms;
    params
}
