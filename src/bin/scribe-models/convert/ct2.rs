// SPDX-License-Identifier: MPL-2.0
//! Whisper models in CTranslate2 form: `model.bin` and the vocabulary beside it.
//!
//! `model.bin`, little endian, binary versions 5 and 6:
//!
//! ```text
//! u32 version, text spec, u32 revision, u32 variables
//! per variable   text name, u8 rank, u32 dimension[rank], u8 kind, u32 bytes, data
//! u32 aliases, per alias   text alias, text target
//! ```
//!
//! A text is a u16 length and that many bytes, the last one NUL. Kinds: 0 f32, 1 i8, 2 i16, 3 i32,
//! 4 f16, 5 bf16. Matrices are `[out, in]`. The query, key and value of self-attention lie in one
//! matrix, key and value of cross-attention in another, one above the other. Whisper has no key
//! bias; it is stored as zeros.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{BufReader, Read, Seek, SeekFrom};
use std::os::unix::fs::FileExt;
use std::path::Path;

use super::checkpoint::{Array, Checkpoint};
use super::{ConvertError, Converted, halves};

/// The files of a model that a conversion looks at.
pub const FILES: [&str; 5] = [
    "model.bin",
    "config.json",
    "vocabulary.json",
    "vocabulary.txt",
    "tokenizer.json",
];

/// Every Whisper head has this width.
pub const HEAD_WIDTH: usize = 64;

/// From this size a vocabulary is the multilingual one.
const MULTILINGUAL_VOCABULARY: usize = 51_865;
const VARIABLES_MAX: u32 = 100_000;
const RANK_MAX: u8 = 4;
const TEXT_BYTES_MAX: u64 = 64 << 20;

/// A model's weights, read one variable at a time.
pub struct Weights {
    file: File,
    variables: BTreeMap<String, Variable>,
}

#[derive(Clone)]
struct Variable {
    shape: Vec<usize>,
    kind: u8,
    offset: u64,
}

impl Weights {
    /// Reads the list of variables and checks that all of them lie within the file.
    pub fn open(path: &Path) -> Converted<Self> {
        let file = File::open(path)?;
        let length = file.metadata()?.len();
        let mut index = Index {
            reader: BufReader::new(file),
            at: 0,
            length,
        };
        let variables = index.read_all()?;
        Ok(Self {
            file: index.reader.into_inner(),
            variables,
        })
    }

    /// A stored whole number, such as the number of heads.
    fn integer(&self, name: &str) -> Converted<Option<i64>> {
        let Some(variable) = self.variables.get(name) else {
            return Ok(None);
        };
        let mut bytes = [0_u8; 4];
        let width = match variable.kind {
            1 => 1,
            2 => 2,
            3 => 4,
            _ => return Err(ConvertError::input(format!("{name} is no whole number"))),
        };
        if !variable.shape.iter().all(|&n| n == 1) {
            return Err(ConvertError::input(format!("{name} is not one number")));
        }
        self.file
            .read_exact_at(&mut bytes[..width], variable.offset)?;
        Ok(Some(match width {
            1 => i64::from(i8::from_le_bytes([bytes[0]])),
            2 => i64::from(i16::from_le_bytes([bytes[0], bytes[1]])),
            _ => i64::from(i32::from_le_bytes(bytes)),
        }))
    }

    fn variable(&self, name: &str) -> Converted<&Variable> {
        self.variables
            .get(name)
            .ok_or_else(|| ConvertError::input(format!("model.bin has no {name}")))
    }
}

impl Checkpoint for Weights {
    fn has(&self, name: &str) -> bool {
        self.variables.contains_key(name)
    }

    fn shape(&self, name: &str) -> Converted<Vec<usize>> {
        Ok(self.variable(name)?.shape.clone())
    }

    fn array(&self, name: &str) -> Converted<Array> {
        self.part(name, 0, 1)
    }

    fn part(&self, name: &str, part: usize, parts: usize) -> Converted<Array> {
        let variable = self.variable(name)?;
        let width: usize = match variable.kind {
            0 => 4,
            4 => 2,
            1..=3 => {
                return Err(ConvertError::input(format!(
                    "{name} holds integers: the model is quantised already. Take its float16 or float32 form"
                )));
            }
            _ => {
                return Err(ConvertError::input(format!(
                    "{name} is bfloat16: take the float16 or float32 form of the model"
                )));
            }
        };
        let mut shape = variable.shape.clone();
        let rows = shape
            .first_mut()
            .ok_or_else(|| ConvertError::input(format!("{name} is a single value")))?;
        if *rows % parts != 0 {
            return Err(ConvertError::input(format!(
                "{name} has {rows} rows, which cannot be cut in {parts}"
            )));
        }
        *rows /= parts;
        // Cannot overflow: the whole variable lies in the file, as the index has checked.
        let count: usize = shape.iter().product();
        let mut bytes = vec![0_u8; count * width];
        let offset = variable.offset + (part * bytes.len()) as u64;
        self.file.read_exact_at(&mut bytes, offset)?;
        let values = if width == 4 {
            bytes
                .chunks_exact(4)
                .map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]))
                .collect()
        } else {
            bytes
                .chunks_exact(2)
                .map(|b| halves::to_f32(u16::from_le_bytes([b[0], b[1]])))
                .collect()
        };
        Ok(Array { shape, values })
    }

    fn heads(&self, side: &str) -> Converted<Option<i64>> {
        self.integer(&format!("{side}/num_heads"))
    }
}

/// A model's sizes.
pub struct Shape {
    /// Tokens, specials included.
    pub vocabulary: usize,
    /// Positions of the encoder.
    pub audio_context: usize,
    /// Width of the encoder.
    pub audio_state: usize,
    /// Layers of the encoder.
    pub audio_layers: usize,
    /// Positions of the decoder.
    pub text_context: usize,
    /// Width of the decoder.
    pub text_state: usize,
    /// Layers of the decoder.
    pub text_layers: usize,
    /// Mel bands.
    pub mel_bands: usize,
}

impl Shape {
    /// As the weights show them.
    pub fn of(model: &dyn Checkpoint) -> Converted<Self> {
        let (audio_context, audio_state) =
            model.matrix_shape("encoder/position_encodings/encodings")?;
        let (text_context, text_state) =
            model.matrix_shape("decoder/position_encodings/encodings")?;
        check_heads(model, "encoder", audio_state)?;
        check_heads(model, "decoder", text_state)?;
        let mel_bands = match *model.shape("encoder/conv1/weight")? {
            [_, bands @ 1..=512, _] => bands,
            ref shape => {
                return Err(ConvertError::input(format!(
                    "encoder/conv1/weight has the shape {shape:?}"
                )));
            }
        };
        Ok(Self {
            vocabulary: model.matrix_shape("decoder/embeddings/weight")?.0,
            audio_context,
            audio_state,
            audio_layers: layers(model, "encoder"),
            text_context,
            text_state,
            text_layers: layers(model, "decoder"),
            mel_bands,
        })
    }

    /// Whether the vocabulary is that of all languages.
    pub fn is_multilingual(&self) -> bool {
        self.vocabulary >= MULTILINGUAL_VOCABULARY
    }
}

fn layers(model: &dyn Checkpoint, side: &str) -> usize {
    (0..)
        .take_while(|n| model.has(&format!("{side}/layer_{n}/ffn/layer_norm/gamma")))
        .count()
}

fn check_heads(model: &dyn Checkpoint, side: &str, width: usize) -> Converted<()> {
    let stored = model.heads(side)?;
    let fits = width.is_multiple_of(HEAD_WIDTH)
        && stored.is_none_or(|heads| heads == (width / HEAD_WIDTH) as i64);
    if fits {
        return Ok(());
    }
    Err(ConvertError::input(format!(
        "{side}: {stored:?} heads do not fit a width of {width}"
    )))
}

/// Reads the beginning of each variable and skips its data.
struct Index {
    reader: BufReader<File>,
    at: u64,
    length: u64,
}

impl Index {
    fn read_all(&mut self) -> Converted<BTreeMap<String, Variable>> {
        let version = self.u32()?;
        if !(5..=6).contains(&version) {
            return Err(ConvertError::input(format!(
                "model.bin has the version {version}, and 5 and 6 are known"
            )));
        }
        let spec = self.text()?;
        if spec != "WhisperSpec" {
            return Err(ConvertError::input(format!(
                "model.bin holds a {spec} and no Whisper model"
            )));
        }
        self.u32()?; // Revision of the spec.
        let count = self.count()?;
        let mut variables = BTreeMap::new();
        for _ in 0..count {
            let (name, variable) = self.variable()?;
            variables.insert(name, variable);
        }
        for _ in 0..self.count()? {
            let (alias, target) = (self.text()?, self.text()?);
            let variable = variables.get(&target).cloned();
            let variable = variable.ok_or_else(|| {
                ConvertError::input(format!("{alias} stands for {target}, which is not there"))
            })?;
            variables.entry(alias).or_insert(variable);
        }
        if self.at != self.length {
            return Err(ConvertError::input(format!(
                "model.bin has {} bytes too many",
                self.length - self.at
            )));
        }
        Ok(variables)
    }

    fn variable(&mut self) -> Converted<(String, Variable)> {
        let name = self.text()?;
        let [rank] = self.bytes::<1>()?;
        if rank > RANK_MAX {
            return Err(ConvertError::input(format!("{name} has {rank} dimensions")));
        }
        let mut shape = Vec::with_capacity(usize::from(rank));
        for _ in 0..rank {
            shape.push(self.u32()? as usize);
        }
        let [kind] = self.bytes::<1>()?;
        let size = u64::from(self.u32()?);
        let width = match kind {
            0 | 3 => 4_usize,
            1 => 1,
            2 | 4 | 5 => 2,
            _ => {
                return Err(ConvertError::input(format!(
                    "{name} has values of the unknown kind {kind}"
                )));
            }
        };
        let needed = shape
            .iter()
            .try_fold(width, |n, &dim| n.checked_mul(dim))
            .map(|n| n as u64);
        if needed != Some(size) {
            return Err(ConvertError::input(format!(
                "{name} has {size} bytes, which do not fit its shape {shape:?}"
            )));
        }
        let offset = self.at;
        self.skip(size)?;
        Ok((
            name,
            Variable {
                shape,
                kind,
                offset,
            },
        ))
    }

    fn count(&mut self) -> Converted<u32> {
        let count = self.u32()?;
        if count > VARIABLES_MAX {
            return Err(ConvertError::input(format!(
                "model.bin says that it has {count} variables"
            )));
        }
        Ok(count)
    }

    fn text(&mut self) -> Converted<String> {
        let length = usize::from(u16::from_le_bytes(self.bytes()?));
        self.room(length as u64)?;
        let mut text = vec![0_u8; length];
        self.reader.read_exact(&mut text)?;
        self.at += length as u64;
        while text.last() == Some(&0) {
            text.pop();
        }
        String::from_utf8(text)
            .map_err(|_| ConvertError::input("model.bin has a name that is no text"))
    }

    fn u32(&mut self) -> Converted<u32> {
        Ok(u32::from_le_bytes(self.bytes()?))
    }

    fn bytes<const N: usize>(&mut self) -> Converted<[u8; N]> {
        self.room(N as u64)?;
        let mut bytes = [0_u8; N];
        self.reader.read_exact(&mut bytes)?;
        self.at += N as u64;
        Ok(bytes)
    }

    fn skip(&mut self, size: u64) -> Converted<()> {
        self.room(size)?;
        self.at += size;
        self.reader.seek(SeekFrom::Start(self.at))?;
        Ok(())
    }

    fn room(&self, size: u64) -> Converted<()> {
        if size > self.length - self.at {
            return Err(ConvertError::input(format!(
                "model.bin ends too early, after {} bytes",
                self.length
            )));
        }
        Ok(())
    }
}

/// Says plainly what a folder lacks.
pub fn check_present(folder: &Path) -> Converted<()> {
    match folder.join("model.bin").is_file() {
        true => Ok(()),
        false => Err(ConvertError::input(format!(
            "{} has no model.bin",
            folder.display()
        ))),
    }
}

/// The tokens of a model's vocabulary in the order of their numbers, as they are written there: at least as many as the
/// model has.
pub fn read_tokens(folder: &Path, needed: usize) -> Converted<Vec<String>> {
    let tokens = tokens(folder)?;
    if tokens.len() < needed {
        return Err(ConvertError::input(format!(
            "{} tokens are too few for a model with {needed}",
            tokens.len()
        )));
    }
    Ok(tokens)
}

fn tokens(folder: &Path) -> Converted<Vec<String>> {
    if let Some(text) = small_text(&folder.join("vocabulary.json"))? {
        return serde_json::from_str(&text)
            .map_err(|err| ConvertError::input(format!("vocabulary.json: {err}")));
    }
    if let Some(text) = small_text(&folder.join("vocabulary.txt"))? {
        // Nothing but the line feed separates: some tokens hold other line separators.
        return Ok(text
            .trim_end_matches('\n')
            .split('\n')
            .map(str::to_owned)
            .collect());
    }
    if let Some(text) = small_text(&folder.join("tokenizer.json"))? {
        return tokens_of_tokenizer(&text);
    }
    // As transformers writes it without its fast tokenizers: specials are elsewhere.
    match small_text(&folder.join("vocab.json"))? {
        Some(text) => {
            let vocab: BTreeMap<String, u32> = serde_json::from_str(&text)
                .map_err(|err| ConvertError::input(format!("vocab.json: {err}")))?;
            in_order(vocab.into_iter(), "vocab.json")
        }
        None => Err(ConvertError::input(
            "there is neither vocabulary.json nor vocabulary.txt nor tokenizer.json nor vocab.json beside it",
        )),
    }
}

/// What a conversion wants to know of a model's `config.json`.
#[derive(Default, serde::Deserialize)]
pub struct Config {
    /// Layer and head of the decoder's attention that follow the sound.
    pub alignment_heads: Option<Vec<(usize, usize)>>,
}

/// Reads `config.json` and, where that does not say it, `generation_config.json`, if they are there.
pub fn read_config(folder: &Path) -> Converted<Config> {
    let read = |name: &str| match small_text(&folder.join(name))? {
        Some(text) => {
            serde_json::from_str(&text).map_err(|err| ConvertError::input(format!("{name}: {err}")))
        }
        None => Ok(Config::default()),
    };
    let config: Config = read("config.json")?;
    match config.alignment_heads {
        Some(_) => Ok(config),
        None => read("generation_config.json"),
    }
}

/// The text of a file, if it is there.
pub fn small_text(path: &Path) -> Converted<Option<String>> {
    match fs::metadata(path) {
        Ok(meta) if meta.len() > TEXT_BYTES_MAX => Err(ConvertError::input(format!(
            "{} is far too long for what it should hold",
            path.display()
        ))),
        Ok(_) => Ok(Some(fs::read_to_string(path)?)),
        Err(err) if err.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(err) => Err(err.into()),
    }
}

#[derive(serde::Deserialize)]
struct Tokenizer {
    model: TokenizerModel,
    #[serde(default)]
    added_tokens: Vec<AddedToken>,
}

#[derive(serde::Deserialize)]
struct TokenizerModel {
    vocab: BTreeMap<String, u32>,
}

#[derive(serde::Deserialize)]
struct AddedToken {
    content: String,
    id: u32,
}

fn tokens_of_tokenizer(text: &str) -> Converted<Vec<String>> {
    let tokenizer: Tokenizer = serde_json::from_str(text)
        .map_err(|err| ConvertError::input(format!("tokenizer.json: {err}")))?;
    let added = tokenizer.added_tokens.into_iter();
    let added = added.map(|token| (token.content, token.id));
    in_order(
        tokenizer.model.vocab.into_iter().chain(added),
        "tokenizer.json",
    )
}

/// Tokens in the order of their numbers, of which none may be missing.
fn in_order(tokens: impl Iterator<Item = (String, u32)>, file: &str) -> Converted<Vec<String>> {
    let by_number: BTreeMap<u32, String> = tokens.map(|(token, id)| (id, token)).collect();
    let gap = by_number
        .keys()
        .enumerate()
        .find(|&(n, &id)| n as u64 != u64::from(id));
    match gap {
        Some((n, _)) => Err(ConvertError::input(format!(
            "{file} has no token number {n}"
        ))),
        None => Ok(by_number.into_values().collect()),
    }
}
