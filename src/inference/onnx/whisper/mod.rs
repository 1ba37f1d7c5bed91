// SPDX-License-Identifier: MPL-2.0
//! Whisper on ONNX Runtime, on the processor: two graphs that `scribe-models` makes, an encoder that gives the decoder's
//! keys and values of the sound, and a decoder whose cache is ours. Up to eight windows are decoded side by side.
//!
//! It decodes greedily: where several beams are asked for, it follows one. It writes no timestamps; word times come from the
//! decoder's attention, in the same pass.
//!
//! With weights of 8 bits a step's activations are scaled together, so a text can depend a little on what is decoded beside
//! it; with 32 bits it does not. The encoder takes windows one by one.
//!
//! A lane has an encoder of its own, and shares a decoder with one other lane, taking turns step by step: two thirds of its
//! time go into the encoder. A third lane would wait.

mod alignment;
mod cache;
mod decode;
mod header;
mod lane;
mod vocabulary;
mod work;

pub use work::Work;

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use ort::session::Session;

use super::checked::{self, Digest};
use super::protobuf;
use crate::inference::times::{Meter, Times};
use crate::inference::{
    EngineError, Footprint, SpeechModel, SpeechModelInfo, SpeechToText, whisper,
};
use header::Header;
use vocabulary::Vocabulary;

const TASK: &str = "speech to text";
/// What stands for the encoder in its file's name, and for the decoder in the name of the file beside it.
const ENCODER: &str = "encoder";
const DECODER: &str = "decoder";
/// Lanes that take turns on one decoder.
const LANES_A_DECODER: usize = 2;

/// Which model to load. Equal specs share one loaded model.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct OnnxWhisperSpec {
    /// The encoder's file.
    pub encoder: PathBuf,
    /// The decoder's file.
    pub decoder: PathBuf,
    /// Short name for people.
    pub name: String,
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

    /// What the model takes, from a property of its encoder, for files of these lengths.
    pub fn footprint(
        &self,
        encoder_bytes: u64,
        decoder_bytes: u64,
    ) -> Result<Footprint, EngineError> {
        Ok(self.header()?.footprint(encoder_bytes, decoder_bytes))
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
        Header::parse(&text).map_err(invalid)
    }
}

fn foreign() -> String {
    format!(
        "it has no property \"{}\": only graphs that scribe-models makes can be used, not those of other exporters",
        header::PROPERTY
    )
}

/// A loaded model.
pub struct OnnxWhisperModel {
    shared: Arc<Shared>,
    /// The first lane's.
    encoder: Graph,
    /// The first two lanes'.
    decoder: Graph,
    /// The others', while lanes use them.
    more_decoders: Mutex<Vec<Weak<Mutex<Session>>>>,
    info: SpeechModelInfo,
}

/// A graph and those who run it.
type Graph = Arc<Mutex<Session>>;

/// What lanes know of their model.
struct Shared {
    spec: OnnxWhisperSpec,
    header: Header,
    vocabulary: Vocabulary,
    encoder: Digest,
    decoder: Digest,
    meter: Meter,
}

impl OnnxWhisperModel {
    /// Loads both graphs and tries them on a tone: wrong names, shapes or values are refused here.
    pub fn load(spec: &OnnxWhisperSpec) -> Result<Self, EngineError> {
        let header = spec.header()?;
        let (encoder, encoder_digest) =
            checked::load_bytes(&spec.encoder, &header.encoder_ports(), None)?;
        let (decoder, decoder_digest) =
            checked::load_bytes(&spec.decoder, &header.decoder_ports(), None)?;
        // The bytes that were loaded count, not those that were there a moment ago.
        let of_both = [(&encoder, &spec.encoder), (&decoder, &spec.decoder)];
        for (session, path) in of_both {
            let invalid = |why: String| EngineError::InvalidModel {
                path: path.clone(),
                why,
            };
            let text = property(session, header::PROPERTY).ok_or_else(|| invalid(foreign()))?;
            if Header::parse(&text).map_err(invalid)? != header {
                return Err(invalid(format!(
                    "it is of another model than {}",
                    spec.encoder.display()
                )));
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
            engine: format!("ONNX Runtime ({})", header.weights),
            multilingual: header.multilingual(),
            weight_bytes: [&spec.encoder, &spec.decoder]
                .iter()
                .filter_map(|path| path.metadata().ok())
                .map(|meta| meta.len())
                .sum(),
            max_batch: header.rows(),
            word_time_offset: spec.word_time_offset,
        };
        let model = Self {
            shared: Arc::new(Shared {
                spec: spec.clone(),
                header,
                vocabulary,
                encoder: encoder_digest,
                decoder: decoder_digest,
                meter: Meter::default(),
            }),
            encoder: Arc::new(Mutex::new(encoder)),
            decoder: Arc::new(Mutex::new(decoder)),
            more_decoders: Mutex::default(),
            info,
        };
        lane::try_once(&model.shared, &model.encoder, &model.decoder)?;
        Ok(model)
    }

    /// An encoder that no lane has, and whether it was tried.
    fn free_encoder(&self) -> Result<(Graph, bool), EngineError> {
        if Arc::strong_count(&self.encoder) == 1 {
            return Ok((Arc::clone(&self.encoder), true));
        }
        let shared = &self.shared;
        let ports = shared.header.encoder_ports();
        let (session, _) =
            checked::load_bytes(&shared.spec.encoder, &ports, Some(&shared.encoder))?;
        Ok((Arc::new(Mutex::new(session)), false))
    }

    /// A decoder that fewer than two lanes have.
    fn free_decoder(&self) -> Result<Graph, EngineError> {
        // Held while another is loaded: lanes that are made at once must not share one by chance.
        let mut more = self
            .more_decoders
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        // The model has the first one too.
        if Arc::strong_count(&self.decoder) <= LANES_A_DECODER {
            return Ok(Arc::clone(&self.decoder));
        }
        more.retain(|decoder| decoder.strong_count() > 0);
        let free = more
            .iter()
            .filter(|decoder| decoder.strong_count() < LANES_A_DECODER)
            .find_map(Weak::upgrade);
        if let Some(decoder) = free {
            return Ok(decoder);
        }
        let shared = &self.shared;
        let ports = shared.header.decoder_ports();
        let (session, _) =
            checked::load_bytes(&shared.spec.decoder, &ports, Some(&shared.decoder))?;
        let decoder = Arc::new(Mutex::new(session));
        more.push(Arc::downgrade(&decoder));
        Ok(decoder)
    }
}

impl SpeechModel for OnnxWhisperModel {
    fn info(&self) -> &SpeechModelInfo {
        &self.info
    }

    fn knows_language(&self, code: &str) -> bool {
        self.shared.knows_language(code)
    }

    fn lane(&self) -> Result<Box<dyn SpeechToText>, EngineError> {
        let (encoder, tried) = self.free_encoder()?;
        let decoder = self.free_decoder()?;
        let shared = Arc::clone(&self.shared);
        Ok(Box::new(lane::Lane::new(shared, encoder, decoder, tried)?))
    }

    fn times(&self) -> Times {
        self.shared.meter.times()
    }
}

impl Shared {
    fn knows_language(&self, code: &str) -> bool {
        let number = whisper::language_id(code).and_then(|n| usize::try_from(n).ok());
        if self.header.multilingual() {
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
