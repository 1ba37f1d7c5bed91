// SPDX-License-Identifier: MPL-2.0
//! What the texts of an export say: sizes (`config.json`), marks and heads (`generation_config.json`), tokens
//! (`tokenizer.json`, or `vocab.json` with `added_tokens.json`).

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde::de::DeserializeOwned;

use crate::inference::EngineError;
use crate::inference::onnx::whisper::header::{Header, POSITIONS, TEXT};
use crate::inference::onnx::whisper::vocabulary::{PLAIN, Vocabulary};
use crate::inference::whisper::language_code;

const CONFIG: &str = "config.json";
const GENERATION: &str = "generation_config.json";
const TOKENIZER: &str = "tokenizer.json";
const VOCABULARY: &str = "vocab.json";
const ADDED: &str = "added_tokens.json";
/// A longer text is not read: the longest of Whisper's has 4 MB.
const TEXT_BYTES_MAX: u64 = 32 << 20;

#[derive(Deserialize)]
struct Config {
    model_type: String,
    d_model: usize,
    encoder_layers: usize,
    decoder_layers: usize,
    encoder_attention_heads: usize,
    decoder_attention_heads: usize,
    num_mel_bins: usize,
    vocab_size: usize,
    max_source_positions: usize,
    max_target_positions: usize,
}

/// Older exports have some of it in `config.json`.
#[derive(Deserialize, Default)]
struct Generation {
    alignment_heads: Option<Vec<[usize; 2]>>,
    suppress_tokens: Option<Vec<i64>>,
    begin_suppress_tokens: Option<Vec<i64>>,
    decoder_start_token_id: Option<u32>,
    no_timestamps_token_id: Option<u32>,
    lang_to_id: Option<BTreeMap<String, u32>>,
    task_to_id: Option<BTreeMap<String, u32>>,
}

#[derive(Deserialize)]
struct Tokenizer {
    model: TokenizerModel,
    #[serde(default)]
    added_tokens: Vec<Added>,
}

#[derive(Deserialize)]
struct TokenizerModel {
    vocab: HashMap<String, u32>,
}

#[derive(Deserialize)]
struct Added {
    id: u32,
    content: String,
}

/// The sizes, with the heads that follow the sound if the graphs show any.
pub(super) fn header(folder: &Path, precision: &str) -> Result<Header, EngineError> {
    let path = folder.join(CONFIG);
    let config: Config = read(&path)?;
    let wrong = |what: String| invalid(&path, format!("it says {what}"));
    if config.model_type != "whisper" {
        return Err(wrong(format!(
            "that this is a model of the type \"{}\", and only whisper is known",
            config.model_type
        )));
    }
    if config.encoder_attention_heads != config.decoder_attention_heads {
        return Err(wrong(format!(
            "{} heads in the encoder and {} in the decoder, which is not known",
            config.encoder_attention_heads, config.decoder_attention_heads
        )));
    }
    if config.max_source_positions != POSITIONS || config.max_target_positions != TEXT {
        return Err(wrong(format!(
            "{} positions of sound and {} of text, and a Whisper model has {POSITIONS} and {TEXT}",
            config.max_source_positions, config.max_target_positions
        )));
    }
    let mut header = Header {
        width: config.d_model,
        mels: config.num_mel_bins,
        heads: config.decoder_attention_heads,
        encoder_layers: config.encoder_layers,
        layers: config.decoder_layers,
        vocab: config.vocab_size,
        weights: precision.into(),
        alignment_heads: Vec::new(),
        operators: 0,
        cross_halves: false,
    };
    header.check().map_err(wrong)?;
    header.alignment_heads = match generation(folder)?.alignment_heads {
        Some(stated) if !stated.is_empty() => stated,
        // OpenAI's default.
        _ => (header.layers / 2..header.layers)
            .flat_map(|layer| (0..header.heads).map(move |head| [layer, head]))
            .collect(),
    };
    header
        .check()
        .map_err(|what| invalid(&folder.join(GENERATION), format!("it says {what}")))?;
    Ok(header)
}

/// The tokens, with what no text has in it. Marks must have the numbers that OpenAI's have.
pub(super) fn vocabulary(folder: &Path, len: usize) -> Result<Vocabulary, EngineError> {
    let (path, tokens, marks) = tokens(folder)?;
    let mut words = vec![""; PLAIN];
    for (word, number) in &tokens {
        if let Some(place) = words.get_mut(*number as usize) {
            *place = word;
        }
    }
    let mut vocabulary = Vocabulary::of_words(words.into_iter(), len)
        .map_err(|what| invalid(&path, format!("it has {what}")))?;
    let number = |mark: &str| marks.get(mark).or_else(|| tokens.get(mark)).copied();
    for (names, wanted) in marks_of(&vocabulary) {
        let found = names.iter().find_map(|name| number(name));
        if found != Some(wanted) {
            let found = found.map_or("no number".into(), |n| format!("the number {n}"));
            return Err(invalid(
                &path,
                format!(
                    "the mark {} has {found} and must have {wanted} in a model of {len} tokens: these are not the tokens \
                     of this model, or not Whisper's",
                    names[0]
                ),
            ));
        }
    }
    let path = folder.join(GENERATION);
    let generation = generation(folder)?;
    check_marks(&generation, &vocabulary)
        .map_err(|what| invalid(&path, format!("it says {what}")))?;
    // -1 stands for OpenAI's own list, which is ours.
    let numbers = |list: Option<Vec<i64>>| -> Vec<u32> {
        let list = list.unwrap_or_default().into_iter();
        list.filter_map(|n| u32::try_from(n).ok()).collect()
    };
    let always = numbers(generation.suppress_tokens);
    let first = numbers(generation.begin_suppress_tokens);
    vocabulary.forbid(&always, &first);
    Ok(vocabulary)
}

/// The file with the tokens, all of them by their text, and those that were added as marks.
type Tokens = (PathBuf, HashMap<String, u32>, HashMap<String, u32>);

fn tokens(folder: &Path) -> Result<Tokens, EngineError> {
    let path = folder.join(VOCABULARY);
    if path.is_file() {
        let added = folder.join(ADDED);
        let marks = match added.is_file() {
            true => read(&added)?,
            false => marks_of_tokenizer(folder)?,
        };
        let tokens = read(&path)?;
        return Ok((path, tokens, marks));
    }
    let path = folder.join(TOKENIZER);
    if !path.is_file() {
        return Err(EngineError::ModelFile {
            path,
            why: format!(
                "it is not there, nor {VOCABULARY}: one of them has the tokens. Copy the whole of the export"
            ),
        });
    }
    let Tokenizer {
        model,
        added_tokens,
    } = read(&path)?;
    Ok((path, model.vocab, by_text(added_tokens)))
}

fn marks_of_tokenizer(folder: &Path) -> Result<HashMap<String, u32>, EngineError> {
    let path = folder.join(TOKENIZER);
    if !path.is_file() {
        return Ok(HashMap::new());
    }
    Ok(by_text(read::<Tokenizer>(&path)?.added_tokens))
}

fn by_text(added: Vec<Added>) -> HashMap<String, u32> {
    let by_text = added.into_iter().map(|mark| (mark.content, mark.id));
    by_text.collect()
}

/// Marks that are used, by all their names, and the number that each must have.
fn marks_of(vocabulary: &Vocabulary) -> Vec<(Vec<String>, u32)> {
    let mark = |names: &[&str], number: u32| {
        let names = names.iter().map(|name| format!("<|{name}|>"));
        (names.collect(), number)
    };
    let mut marks = vec![
        mark(&["endoftext"], vocabulary.end()),
        mark(&["startoftranscript"], vocabulary.start()),
        mark(&["translate"], vocabulary.translate()),
        mark(&["transcribe"], vocabulary.transcribe()),
        mark(&["startofprev"], vocabulary.previous()),
        mark(&["nospeech", "nocaptions"], vocabulary.no_speech()),
        mark(&["notimestamps"], vocabulary.no_timestamps()),
    ];
    let languages = vocabulary.languages();
    // Hebrew and Javanese have had other codes.
    let known = languages.clone().map(|number| {
        let code = language_code(number - languages.start);
        let names: &[&str] = match code {
            "he" => &["he", "iw"],
            "jw" => &["jw", "jv"],
            _ => &[code],
        };
        mark(names, number as u32)
    });
    marks.extend(known);
    marks
}

fn check_marks(generation: &Generation, vocabulary: &Vocabulary) -> Result<(), String> {
    let tasks = generation.task_to_id.iter().flatten();
    let tasks = tasks.filter_map(|(task, number)| match task.as_str() {
        "translate" => Some((vocabulary.translate(), *number)),
        "transcribe" => Some((vocabulary.transcribe(), *number)),
        _ => None,
    });
    let others = [
        (vocabulary.start(), generation.decoder_start_token_id),
        (
            vocabulary.no_timestamps(),
            generation.no_timestamps_token_id,
        ),
    ];
    let others = others
        .into_iter()
        .filter_map(|(wanted, n)| Some((wanted, n?)));
    for (wanted, found) in tasks.chain(others) {
        if wanted != found {
            return Err(format!(
                "that a mark has the number {found}, and it is {wanted} among the tokens: the files are of two models"
            ));
        }
    }
    let languages = vocabulary.languages();
    for (mark, number) in generation.lang_to_id.iter().flatten() {
        if !languages.contains(&(*number as usize)) {
            return Err(format!(
                "that the language {mark} has the number {number}, and those of languages are {languages:?}"
            ));
        }
    }
    Ok(())
}

fn generation(folder: &Path) -> Result<Generation, EngineError> {
    let path = folder.join(GENERATION);
    match path.is_file() {
        true => read(&path),
        false => Ok(read(&folder.join(CONFIG)).unwrap_or_default()),
    }
}

fn read<T: DeserializeOwned>(path: &Path) -> Result<T, EngineError> {
    let failed = |e: std::io::Error| EngineError::ModelFile {
        path: path.to_owned(),
        why: e.to_string(),
    };
    let file = File::open(path).map_err(failed)?;
    let mut text = String::new();
    let read = file.take(TEXT_BYTES_MAX).read_to_string(&mut text);
    read.map_err(failed)?;
    serde_json::from_str(&text).map_err(|e| invalid(path, format!("it is not understood: {e}")))
}

fn invalid(path: &Path, why: String) -> EngineError {
    EngineError::InvalidModel {
        path: path.to_owned(),
        why,
    }
}
