// SPDX-License-Identifier: MPL-2.0
//! Whisper on ONNX Runtime, on the processor or a card: two graphs that `scribe-models` makes, an encoder that gives the
//! decoder's keys and values of the sound, and a decoder whose cache is ours. Up to eight windows are decoded side by side.
//!
//! It follows one text of a window or, where beams are asked for, several. It writes no timestamps; word times come from
//! the decoder's attention, in the same pass, or in one over the best of several texts.
//!
//! A text does not depend on what is decoded beside it. The encoder takes windows one by one.
//!
//! With weights of 8 bits products are an operator of ours ([`super::linear`]), and so is attention: the encoder's
//! ([`super::attention`]) and the decoder's two ([`super::cross`] to the sound, whose keys and values are kept as bytes,
//! [`super::past`] to the text, whose are halves).
//!
//! A lane has an encoder and a decoder of its own. Two lanes that took turns on one decoder, step by step, waited for each
//! other for up to a fifth of their time whenever both happened to decode.
//!
//! On a card there is one lane, and the sessions are the model's, each with a cap. The caches stay in the processor's memory
//! and go to the card with each step.

mod alignment;
mod beams;
mod cache;
mod columns;
mod decode;
mod entries;
mod header;
mod lane;
pub mod optimum;
mod runner;
mod sound;
mod vocabulary;
mod work;

pub use work::Work;

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use ort::session::Session;

use super::checked::{self, Digest, Ports};
use super::cuda::Room;
use super::protobuf;
use crate::inference::times::{Meter, Times};
use crate::inference::{
    EngineError, Footprint, Layout, SpeechModel, SpeechModelInfo, SpeechToText, whisper,
};
use header::{Header, OnCard};
use lane::Lane;
use runner::{Pair, Runner, failed};
use vocabulary::Vocabulary;

const TASK: &str = "speech to text";
/// What stands for the encoder in its file's name, and for the decoder in the name of the file beside it.
const ENCODER: &str = "encoder";
const DECODER: &str = "decoder";
/// Texts followed where nobody asks for a number (docs/adr/0013-beams-on-onnx-runtime.md).
const DEFAULT_BEAM: u32 = 5;
/// Lanes on a card: two encoders at once would share its time and need its memory twice. A measurement may change it,
/// and then what is reserved (`OnCard`).
pub const LANES_ON_A_CARD: usize = 1;

/// Which model to load. Equal specs share one loaded model.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct OnnxWhisperSpec {
    /// The encoder's file.
    pub encoder: PathBuf,
    /// The decoder's file.
    pub decoder: PathBuf,
    /// Short name for people.
    pub name: String,
    /// The card it runs on; `None` for the processor.
    pub cuda_device: Option<u32>,
    /// Constant lateness of this model's word times, in samples.
    pub word_time_offset: i32,
}

impl OnnxWhisperSpec {
    /// The decoder's file, which lies beside the encoder's: `NAME.decoder.onnx` beside `NAME.encoder.onnx`.
    pub fn decoder_beside(encoder: &Path) -> Result<PathBuf, EngineError> {
        let name = encoder.file_name().and_then(|n| n.to_str()).unwrap_or("");
        let Some(at) = name.rfind(ENCODER) else {
            return Err(EngineError::InvalidModel {
                path: encoder.to_owned(),
                why: "it has no \"encoder\" in its name: a Whisper model for ONNX Runtime is two files, \
                      NAME.encoder.onnx and NAME.decoder.onnx, and the first is named"
                    .into(),
            });
        };
        let beside = format!("{}{DECODER}{}", &name[..at], &name[at + ENCODER.len()..]);
        let decoder = encoder.with_file_name(beside);
        if decoder.is_file() {
            return Ok(decoder);
        }
        Err(EngineError::ModelFile {
            path: encoder.to_owned(),
            why: format!("{} is not beside it", decoder.display()),
        })
    }

    /// What the model takes where it runs, from a property of its encoder, for files of these lengths.
    pub fn footprint(
        &self,
        encoder_bytes: u64,
        decoder_bytes: u64,
    ) -> Result<Footprint, EngineError> {
        let header = self.header()?;
        Ok(match self.cuda_device {
            Some(_) => header.on_card(encoder_bytes, decoder_bytes).footprint(),
            None => header.footprint(encoder_bytes, decoder_bytes),
        })
    }

    /// What it takes of the processor's memory where it runs on a card.
    pub fn host_bytes(&self, encoder_bytes: u64, decoder_bytes: u64) -> Result<u64, EngineError> {
        match self.cuda_device {
            Some(_) => Ok(self.header()?.on_card(encoder_bytes, decoder_bytes).host),
            None => Ok(0),
        }
    }

    /// Windows that a lane decodes side by side, from the same property.
    pub(in crate::inference) fn max_batch(&self) -> Result<usize, EngineError> {
        Ok(self.header()?.windows())
    }

    /// What a thread of a slow machine takes to encode a window; nothing where the file cannot be read.
    pub(in crate::inference) fn expected_window(&self) -> Duration {
        self.header().map_or(Duration::ZERO, |header| {
            whisper::expected_window(header::POSITIONS, header.width, header.encoder_layers)
        })
    }

    /// What its parts have to do.
    pub fn work(&self) -> Result<Work, EngineError> {
        Ok(Work::of(&self.header()?))
    }

    fn header(&self) -> Result<Header, EngineError> {
        let invalid = |why: String| EngineError::InvalidModel {
            path: self.encoder.clone(),
            why,
        };
        let text = protobuf::property(&self.encoder, header::PROPERTY)?;
        let text = text.ok_or_else(|| invalid(foreign()))?;
        let header = Header::parse(&text).map_err(invalid)?;
        if self.cuda_device.is_some() && !header.suits_cards() {
            return Err(EngineError::Unsupported(format!(
                "{} has weights of 8 bits for the processor, which a card does not compute with: name graphs of type \
                 f16 (whisper-tiny.en-onnx-f16, or scribe-models import --type onnx-f16), or set device=cpu",
                self.name
            )));
        }
        Ok(header)
    }

    /// Room for encoder and decoder on the card, as it is reserved.
    fn rooms(&self, header: &Header) -> Result<[Option<Room>; 2], EngineError> {
        let Some(card) = self.cuda_device else {
            return Ok([None, None]);
        };
        let length = |path: &Path| {
            let meta = path.metadata().map_err(|e| EngineError::ModelFile {
                path: path.to_owned(),
                why: e.to_string(),
            })?;
            Ok(meta.len())
        };
        let OnCard {
            encoder, decoder, ..
        } = header.on_card(length(&self.encoder)?, length(&self.decoder)?);
        Ok([encoder, decoder].map(|bytes| Some(Room { card, bytes })))
    }
}

fn foreign() -> String {
    format!(
        "it has no property \"{}\": of other exporters only folders in Optimum's layout can be used (config.json, \
         encoder_model.onnx, decoder_model_merged.onnx); name the folder",
        header::PROPERTY
    )
}

fn foreign_pair(spec: &OnnxWhisperSpec) -> EngineError {
    EngineError::InvalidModel {
        path: spec.decoder.clone(),
        why: format!("it is of another model than {}", spec.encoder.display()),
    }
}

/// A loaded model.
pub struct OnnxWhisperModel {
    spec: OnnxWhisperSpec,
    header: Arc<Header>,
    shared: Arc<Shared>,
    digests: [Digest; 2],
    /// The first lane's, as is the decoder.
    encoder: Graph,
    decoder: Graph,
    /// Held while one of them is taken: lanes that are made at once must not share it by chance.
    taking: Mutex<()>,
    info: SpeechModelInfo,
}

/// A graph and those who run it.
type Graph = Arc<Mutex<Session>>;

/// What lanes know of their model, whatever runs it.
struct Shared {
    name: String,
    multilingual: bool,
    vocabulary: Vocabulary,
    /// Heads that follow the sound.
    followers: usize,
    meter: Arc<Meter>,
}

impl OnnxWhisperModel {
    /// Loads both graphs and tries them on a tone: wrong names, shapes or values are refused here.
    pub fn load(spec: &OnnxWhisperSpec) -> Result<Self, EngineError> {
        let header = spec.header()?;
        let [encoder_room, decoder_room] = spec.rooms(&header)?;
        let (encoder, encoder_digest) =
            checked::load_on(&spec.encoder, &header.encoder_ports(), None, encoder_room)?;
        // Of another form it would have other inputs, and those would be what is told.
        let text = protobuf::property(&spec.decoder, header::PROPERTY)?;
        if text.is_some_and(|text| Header::parse(&text).is_ok_and(|other| other != header)) {
            return Err(foreign_pair(spec));
        }
        let (decoder, decoder_digest) =
            checked::load_on(&spec.decoder, &header.decoder_ports(), None, decoder_room)?;
        // The bytes that were loaded count, not those that were there a moment ago.
        let of_both = [(&encoder, &spec.encoder), (&decoder, &spec.decoder)];
        for (session, path) in of_both {
            let invalid = |why: String| EngineError::InvalidModel {
                path: path.clone(),
                why,
            };
            let text = property(session, header::PROPERTY).ok_or_else(|| invalid(foreign()))?;
            if Header::parse(&text).map_err(invalid)? != header {
                return Err(foreign_pair(spec));
            }
        }
        let invalid = |why: String| EngineError::InvalidModel {
            path: spec.decoder.clone(),
            why,
        };
        let tokens = property(&decoder, vocabulary::PROPERTY).ok_or_else(|| {
            invalid(format!(
                "it has no property \"{}\": make it anew with scribe-models",
                vocabulary::PROPERTY
            ))
        })?;
        let vocabulary = Vocabulary::parse(&tokens, header.vocab).map_err(invalid)?;
        let info = SpeechModelInfo {
            name: spec.name.clone(),
            engine: match spec.cuda_device {
                Some(card) => format!("ONNX Runtime ({}, cuda:{card})", header.weights),
                None => format!("ONNX Runtime ({})", header.weights),
            },
            multilingual: header.multilingual(),
            weight_bytes: [&spec.encoder, &spec.decoder]
                .iter()
                .filter_map(|path| path.metadata().ok())
                .map(|meta| meta.len())
                .sum(),
            max_batch: header.windows(),
            default_beam: DEFAULT_BEAM,
            word_time_offset: spec.word_time_offset,
            layout: Layout::Scribe,
            word_times: !header.alignment_heads.is_empty(),
            takes_prefix: true,
        };
        let model = Self {
            spec: spec.clone(),
            shared: Arc::new(Shared {
                name: spec.name.clone(),
                multilingual: header.multilingual(),
                vocabulary,
                followers: header.alignment_heads.len(),
                meter: Arc::default(),
            }),
            header: Arc::new(header),
            digests: [encoder_digest, decoder_digest],
            encoder: Arc::new(Mutex::new(encoder)),
            decoder: Arc::new(Mutex::new(decoder)),
            taking: Mutex::default(),
            info,
        };
        model.try_once()?;
        Ok(model)
    }

    /// Runs both graphs on a tone, as a check of what they give.
    fn try_once(&self) -> Result<(), EngineError> {
        let mut runner = self.runner(&self.encoder, &self.decoder)?;
        runner
            .enter(&checked::probe(16_000), header::TEXT)
            .map_err(|e| checked::refused(e, &self.spec.encoder))?;
        let start = i64::from(self.shared.vocabulary.start());
        let checked = runner.advance(&[start]).and_then(|mut step| {
            match step.logits()?.iter().find(|v| !v.is_finite()) {
                Some(odd) => Err(failed(format!("the output logits holds {odd}"))),
                None => Ok(()),
            }
        });
        checked.map_err(|e| checked::refused(e, &self.spec.decoder))
    }

    fn runner(&self, encoder: &Graph, decoder: &Graph) -> Result<Pair, EngineError> {
        let header = Arc::clone(&self.header);
        let meter = Arc::clone(&self.shared.meter);
        Pair::new(header, Arc::clone(encoder), Arc::clone(decoder), meter)
    }

    fn unless_taken(&self, graph: &Graph) -> Option<Graph> {
        let _taking = self.taking.lock().unwrap_or_else(PoisonError::into_inner);
        // The model has it too.
        (Arc::strong_count(graph) == 1).then(|| Arc::clone(graph))
    }

    /// An encoder that no lane has, and whether it was tried.
    fn free_encoder(&self) -> Result<(Graph, bool), EngineError> {
        if let Some(free) = self.unless_taken(&self.encoder) {
            return Ok((free, true));
        }
        let ports = self.header.encoder_ports();
        Ok((again(&self.spec.encoder, &ports, &self.digests[0])?, false))
    }

    /// A decoder that no lane has.
    fn free_decoder(&self) -> Result<Graph, EngineError> {
        if let Some(free) = self.unless_taken(&self.decoder) {
            return Ok(free);
        }
        let ports = self.header.decoder_ports();
        again(&self.spec.decoder, &ports, &self.digests[1])
    }
}

/// Another session on the same bytes.
fn again(path: &Path, ports: &Ports, digest: &Digest) -> Result<Graph, EngineError> {
    let (session, _) = checked::load_bytes(path, ports, Some(digest))?;
    Ok(Arc::new(Mutex::new(session)))
}

impl SpeechModel for OnnxWhisperModel {
    fn info(&self) -> &SpeechModelInfo {
        &self.info
    }

    fn knows_language(&self, code: &str) -> bool {
        self.shared.knows_language(code)
    }

    fn lane(&self) -> Result<Box<dyn SpeechToText>, EngineError> {
        // The card's are the model's.
        let (encoder, decoder, tried) = if self.spec.cuda_device.is_some() {
            (Arc::clone(&self.encoder), Arc::clone(&self.decoder), true)
        } else {
            let (encoder, tried) = self.free_encoder()?;
            (encoder, self.free_decoder()?, tried)
        };
        let mut runner = self.runner(&encoder, &decoder)?;
        runner.warm_up(tried)?;
        let windows = self.header.windows();
        let shared = Arc::clone(&self.shared);
        Ok(Box::new(Lane::new(shared, Box::new(runner), windows)))
    }

    fn times(&self) -> Times {
        self.shared.meter.times()
    }
}

impl Shared {
    fn knows_language(&self, code: &str) -> bool {
        let number = whisper::language_id(code).and_then(|n| usize::try_from(n).ok());
        if self.multilingual {
            number.is_some_and(|n| n < self.vocabulary.languages().len())
        } else {
            code == "en"
        }
    }
}

fn property(session: &Session, key: &str) -> Option<String> {
    session.metadata().ok()?.custom(key)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_decoder_lies_beside_the_encoder() {
        let folder = tempfile::tempdir().unwrap();
        let encoder = folder.path().join("encoders-tiny.en.encoder.onnx");
        let decoder = folder.path().join("encoders-tiny.en.decoder.onnx");

        let missing = OnnxWhisperSpec::decoder_beside(&encoder).unwrap_err();
        std::fs::write(&decoder, "x").unwrap();

        assert!(
            missing
                .to_string()
                .contains("tiny.en.decoder.onnx is not beside it")
        );
        assert_eq!(OnnxWhisperSpec::decoder_beside(&encoder), Ok(decoder));
        let other = OnnxWhisperSpec::decoder_beside(Path::new("/m/tiny.onnx")).unwrap_err();
        assert!(other.to_string().contains("NAME.encoder.onnx"), "{other}");
    }
}
