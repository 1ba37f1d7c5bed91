// SPDX-License-Identifier: MPL-2.0
//! Whisper models in the layout that Optimum's exporter writes and that `onnx-community` publishes: which files of a folder
//! make one.
//!
//! A folder has `config.json`, and graphs in itself or in `onnx/`: `encoder_model.onnx`, and for the decoder either
//! `decoder_model_merged.onnx` or `decoder_model.onnx` with `decoder_with_past_model.onnx`. Graphs of another precision have
//! it at the end of their names, as in `encoder_model_q4.onnx`. Source: transformers.js, `dtypes.js`; Optimum,
//! `exporters/onnx`.

use std::fs;
use std::path::{Path, PathBuf};

const ENCODER: &str = "encoder_model";
const MERGED: &str = "decoder_model_merged";
const DECODER: &str = "decoder_model";
const WITH_PAST: &str = "decoder_with_past_model";
/// The folder of the graphs.
const GRAPHS: &str = "onnx";
/// What says how large the model is.
const CONFIG: &str = "config.json";
/// Precisions as file names and people call them, in the order in which they are taken. The first computes as the model was
/// made; on a processor the second gives the same words and takes longer; the others lose some.
const PRECISIONS: [(&str, &str); 8] = [
    ("", "fp32"),
    ("_fp16", "fp16"),
    ("_quantized", "q8"),
    ("_uint8", "uint8"),
    ("_int8", "int8"),
    ("_q4", "q4"),
    ("_q4f16", "q4f16"),
    ("_bnb4", "bnb4"),
];

/// The files of such a model.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Export {
    /// The encoder.
    pub encoder: PathBuf,
    /// The decoder, with both branches or without a past.
    pub decoder: PathBuf,
    /// The decoder with a past, where the other has none.
    pub with_past: Option<PathBuf>,
    /// Files with the data of graphs that have theirs outside: `.onnx_data` for `.onnx`, beside it.
    pub data: Vec<PathBuf>,
    /// Where `config.json` and the tokens lie.
    pub folder: PathBuf,
    /// The encoder's precision, and the decoder's where it has another.
    pub precision: String,
}

impl Export {
    /// The model in a folder, or the one of which a graph is named. Nothing where there is no such model; an error tells what
    /// is missing of one.
    ///
    /// Of a folder the first precision is taken that has an encoder and a decoder. To an encoder belongs the
    /// decoder of the same precision. To a decoder belongs the encoder of the same precision, or else the first.
    pub fn find(path: &Path) -> Result<Option<Self>, String> {
        let path = std::path::absolute(path).map_err(|e| e.to_string())?;
        if path.is_dir() {
            return Self::in_folder(&path);
        }
        let Some((graph, precision)) = graph(&path).filter(|_| path.is_file()) else {
            return Ok(None);
        };
        let Some(graphs) = path.parent() else {
            return Ok(None);
        };
        let Some(folder) = folder_of(graphs) else {
            return Err(no_config(graphs));
        };
        if graph == ENCODER {
            let Some((decoder, with_past)) = decoder(graphs, precision) else {
                return Err(no_decoder(graphs, precision));
            };
            let found = Self {
                precision: word(precision).into(),
                encoder: path,
                decoder,
                with_past,
                data: Vec::new(),
                folder,
            };
            return Ok(Some(found.with_data()));
        }
        let same = encoder(graphs, precision).map(|file| (file, precision));
        let any = || precisions().find_map(|p| encoder(graphs, p).map(|file| (file, p)));
        let Some((encoder, of_encoder)) = same.or_else(any) else {
            return Err(format!(
                "there is no {ENCODER}.onnx in {}",
                graphs.display()
            ));
        };
        let (decoder, with_past) = match graph {
            MERGED => (path, None),
            _ => pair(graphs, precision).ok_or_else(|| no_decoder(graphs, precision))?,
        };
        let found = Self {
            precision: match of_encoder == precision {
                true => word(precision).into(),
                false => format!("{}, decoder {}", word(of_encoder), word(precision)),
            },
            encoder,
            decoder,
            with_past,
            data: Vec::new(),
            folder,
        };
        Ok(Some(found.with_data()))
    }

    fn in_folder(folder: &Path) -> Result<Option<Self>, String> {
        let places = [folder.join(GRAPHS), folder.to_owned()];
        let has_graphs = |place: &&PathBuf| {
            let files = fs::read_dir(place).into_iter().flatten().flatten();
            files
                .map(|file| file.path())
                .any(|file| graph(&file).is_some())
        };
        let Some(graphs) = places.iter().find(has_graphs) else {
            return Ok(None);
        };
        let Some(config) = folder_of(graphs) else {
            return Err(no_config(graphs));
        };
        let found = precisions().find_map(|precision| {
            let encoder = encoder(graphs, precision)?;
            let (decoder, with_past) = decoder(graphs, precision)?;
            let found = Self {
                encoder,
                decoder,
                with_past,
                data: Vec::new(),
                folder: config.clone(),
                precision: word(precision).into(),
            };
            Some(found.with_data())
        });
        found.map(Some).ok_or_else(|| {
            let here = precisions().filter(|p| encoder(graphs, p).is_some());
            let here: Vec<&str> = here.map(word).collect();
            let of_encoders = match here.is_empty() {
                true => "no encoder".to_owned(),
                false => format!("an encoder of type {}", here.join(", ")),
            };
            format!(
                "{} has {of_encoders} and no decoder to it: there should be {ENCODER}.onnx and \
                 {MERGED}.onnx (or {DECODER}.onnx and {WITH_PAST}.onnx), or all with the same ending such as _fp16",
                graphs.display()
            )
        })
    }

    fn with_data(self) -> Self {
        let graphs = self.graphs().into_iter();
        let data = graphs.map(data_beside).filter(|data| data.is_file());
        Self {
            data: data.collect(),
            ..self
        }
    }

    /// The file with a graph's data, where it has them outside.
    pub fn data_of(&self, graph: &Path) -> Option<&Path> {
        let data = data_beside(graph);
        self.data.iter().map(PathBuf::as_path).find(|d| *d == data)
    }

    /// What it is called: its folder, and its precision.
    pub fn id(&self) -> String {
        let folder = self.folder.file_name().map(|n| n.to_string_lossy());
        format!("{} ({})", folder.unwrap_or_default(), self.precision)
    }

    /// Its graphs: encoder, decoder and, if there is one, that with a past.
    pub fn graphs(&self) -> Vec<&Path> {
        let first = [self.encoder.as_path(), self.decoder.as_path()];
        first.into_iter().chain(self.with_past.as_deref()).collect()
    }

    /// All of its files that are there.
    pub fn files(&self) -> Vec<PathBuf> {
        const TEXTS: [&str; 5] = [
            CONFIG,
            "generation_config.json",
            "tokenizer.json",
            "vocab.json",
            "added_tokens.json",
        ];
        let texts = TEXTS.iter().map(|name| self.folder.join(name));
        let graphs = self.graphs().into_iter().map(Path::to_owned);
        let graphs = graphs.chain(self.data.iter().cloned());
        graphs.chain(texts.filter(|file| file.is_file())).collect()
    }
}

/// Which graph a file is by its name, and of which precision.
fn graph(path: &Path) -> Option<(&'static str, &'static str)> {
    let name = path.file_name()?.to_str()?.strip_suffix(".onnx")?;
    let graphs = [ENCODER, MERGED, WITH_PAST, DECODER].into_iter();
    let of = |graph: &'static str| {
        let end = name.strip_prefix(graph)?;
        let precision = precisions().find(|precision| *precision == end)?;
        Some((graph, precision))
    };
    graphs.filter_map(of).next()
}

fn precisions() -> impl Iterator<Item = &'static str> {
    PRECISIONS.iter().map(|(end, _)| *end)
}

fn word(precision: &str) -> &'static str {
    let known = PRECISIONS.iter().find(|(end, _)| *end == precision);
    known.map_or("", |(_, word)| word)
}

fn file(graphs: &Path, graph: &str, precision: &str) -> Option<PathBuf> {
    let file = graphs.join(format!("{graph}{precision}.onnx"));
    file.is_file().then_some(file)
}

fn encoder(graphs: &Path, precision: &str) -> Option<PathBuf> {
    file(graphs, ENCODER, precision)
}

/// The decoder of a precision: one file, or else two.
fn decoder(graphs: &Path, precision: &str) -> Option<(PathBuf, Option<PathBuf>)> {
    let merged = file(graphs, MERGED, precision);
    merged
        .map(|file| (file, None))
        .or_else(|| pair(graphs, precision))
}

fn pair(graphs: &Path, precision: &str) -> Option<(PathBuf, Option<PathBuf>)> {
    let decoder = file(graphs, DECODER, precision)?;
    let with_past = file(graphs, WITH_PAST, precision)?;
    Some((decoder, Some(with_past)))
}

/// Where a graph has its data, if not in itself.
fn data_beside(graph: &Path) -> PathBuf {
    let mut data = graph.as_os_str().to_owned();
    data.push("_data");
    data.into()
}

/// Where `config.json` lies: beside the graphs, or one folder up.
fn folder_of(graphs: &Path) -> Option<PathBuf> {
    let up = graphs.parent().filter(|_| graphs.ends_with(GRAPHS));
    let places = [Some(graphs), up].into_iter().flatten();
    let mut found = places.filter(|place| place.join(CONFIG).is_file());
    found.next().map(Path::to_owned)
}

fn no_config(graphs: &Path) -> String {
    format!(
        "there is no {CONFIG} in {} or the folder above an \"{GRAPHS}\": copy the whole of the export",
        graphs.display()
    )
}

fn no_decoder(graphs: &Path, precision: &str) -> String {
    format!(
        "{} has no {MERGED}{precision}.onnx, nor both {DECODER}{precision}.onnx and {WITH_PAST}{precision}.onnx: get the \
         decoder of the same precision, or name the decoder that is to be used",
        graphs.display()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder(files: &[&str]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for name in files {
            let file = folder.path().join(name);
            fs::create_dir_all(file.parent().unwrap()).unwrap();
            fs::write(file, "x").unwrap();
        }
        folder
    }

    fn names(export: &Export) -> Vec<String> {
        let name = |path: &Path| path.file_name().unwrap().to_string_lossy().into_owned();
        export.graphs().into_iter().map(name).collect()
    }

    #[test]
    fn of_a_folder_the_first_precision_is_taken_that_is_whole() {
        let found = |files: &[&str]| {
            let folder = folder(files);
            let export = Export::find(folder.path()).unwrap().unwrap();
            assert_eq!(export.folder, folder.path());
            (export.precision.clone(), names(&export))
        };
        let quantised = [
            "config.json",
            "onnx/encoder_model_quantized.onnx",
            "onnx/decoder_model_merged_quantized.onnx",
            "onnx/encoder_model_q4.onnx",
            "onnx/decoder_model_merged_q4.onnx",
            // A decoder alone is no model.
            "onnx/decoder_model_merged.onnx",
        ];
        let first = [
            "encoder_model_quantized.onnx",
            "decoder_model_merged_quantized.onnx",
        ];

        assert_eq!(
            found(&quantised),
            ("q8".into(), first.map(String::from).into())
        );
        let mut all = quantised.to_vec();
        all.push("onnx/encoder_model.onnx");
        assert_eq!(found(&all).0, "fp32");
        // Its data may lie in another file.
        all.push("onnx/encoder_model.onnx_data");
        let folder = folder(&all);
        let export = Export::find(folder.path()).unwrap().unwrap();
        let data = folder.path().join("onnx/encoder_model.onnx_data");
        assert_eq!(export.precision, "fp32");
        assert_eq!(export.data_of(&export.encoder), Some(data.as_path()));
        assert_eq!(export.data_of(&export.decoder), None);
        assert!(export.files().contains(&data));
    }

    #[test]
    fn a_decoder_may_be_two_files_and_lie_beside_the_config() {
        let files = [
            "config.json",
            "encoder_model.onnx",
            "decoder_model.onnx",
            "decoder_with_past_model.onnx",
        ];
        let folder = folder(&files);

        let export = Export::find(folder.path()).unwrap().unwrap();

        assert_eq!(names(&export), files[1..]);
        assert_eq!(export.files().len(), 4);
    }

    #[test]
    fn a_graph_that_is_named_says_the_precision() {
        let folder = folder(&[
            "config.json",
            "onnx/encoder_model.onnx",
            "onnx/encoder_model_q4.onnx",
            "onnx/decoder_model_merged.onnx",
            "onnx/decoder_model_merged_q4.onnx",
            "onnx/decoder_model_merged_int8.onnx",
            "onnx/decoder_model_fp16.onnx",
            "onnx/encoder_model_fp16.onnx",
        ]);
        let found = |name: &str| Export::find(&folder.path().join("onnx").join(name));
        let precision = |name: &str| found(name).unwrap().unwrap().precision;

        assert_eq!(precision("encoder_model_q4.onnx"), "q4");
        assert_eq!(precision("decoder_model_merged_q4.onnx"), "q4");
        assert_eq!(
            precision("decoder_model_merged_int8.onnx"),
            "fp32, decoder int8"
        );
        let missing = found("encoder_model_fp16.onnx").unwrap_err();
        assert!(
            missing.contains("decoder_with_past_model_fp16.onnx"),
            "{missing}"
        );
        assert_eq!(found("decoder_model_merged_fp16.onnx"), Ok(None));
    }

    #[test]
    fn what_is_missing_is_told_and_another_folder_is_none() {
        let why = |files: &[&str]| Export::find(folder(files).path());

        assert_eq!(why(&["config.json", "model.bin"]), Ok(None));
        let no_config = why(&["onnx/encoder_model.onnx"]).unwrap_err();
        assert!(no_config.contains("no config.json"), "{no_config}");
        let alone = why(&["config.json", "onnx/encoder_model_fp16.onnx"]).unwrap_err();
        assert!(
            alone.contains("an encoder of type fp16 and no decoder"),
            "{alone}"
        );
    }
}
