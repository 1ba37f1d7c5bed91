// SPDX-License-Identifier: MPL-2.0
//! What a conversion wants of a Whisper model, whoever wrote its file.
//!
//! Variables go by CTranslate2's names, which put the query, key and value of self-attention in one matrix and the key and
//! value of cross-attention in another. OpenAI's own names, which whisper.cpp's files have too, and those of Hugging Face's
//! transformers are for one each. Keys have no bias in Whisper: where CTranslate2 stores zeros, the others store nothing.

use super::{ConvertError, Converted};

/// An array in row-major order.
pub struct Array {
    pub shape: Vec<usize>,
    pub values: Vec<f32>,
}

/// A model's weights, read one variable at a time.
pub trait Checkpoint {
    /// Whether there is a variable of that name.
    fn has(&self, name: &str) -> bool;
    /// The dimensions of a variable.
    fn shape(&self, name: &str) -> Converted<Vec<usize>>;
    /// A variable of floats.
    fn array(&self, name: &str) -> Converted<Array>;
    /// How many attention heads a side has, where the file says it.
    fn heads(&self, side: &str) -> Converted<Option<i64>>;

    /// One of `parts` equal pieces of a variable, cut along its first dimension.
    fn part(&self, name: &str, part: usize, parts: usize) -> Converted<Array> {
        let mut array = self.array(name)?;
        let rows = array.shape.first().copied().unwrap_or(0);
        if !rows.is_multiple_of(parts) {
            return Err(ConvertError::input(format!(
                "{name} has {rows} rows, which cannot be cut in {parts}"
            )));
        }
        let size = array.values.len() / parts;
        array.shape[0] = rows / parts;
        array.values = array.values[part * size..(part + 1) * size].to_vec();
        Ok(array)
    }

    /// A variable with two dimensions: rows and columns.
    fn matrix_shape(&self, name: &str) -> Converted<(usize, usize)> {
        match *self.shape(name)? {
            [rows, columns] => Ok((rows, columns)),
            ref shape => Err(ConvertError::input(format!(
                "{name} has the shape {shape:?} and not two dimensions"
            ))),
        }
    }
}

/// Whose names a file has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Names {
    /// OpenAI's, as in whisper.cpp's files.
    OpenAi,
    /// Those of transformers, without the `model.` that most files begin them with.
    Transformers,
}

/// What a variable of CTranslate2's is put together of, one part above the other.
#[derive(Debug, PartialEq, Eq)]
enum Part {
    /// A tensor of the file.
    Tensor(String),
    /// As many zeros as a tensor of the file has rows.
    Zeros(String),
}

/// Tensors under names of their own.
pub trait Tensors {
    /// Whose names they are.
    fn names(&self) -> Names;
    /// The dimensions of a tensor; `None` if there is none of that name.
    fn dimensions(&self, name: &str) -> Option<Vec<usize>>;
    /// A tensor that there is.
    fn read(&self, name: &str) -> Converted<Array>;
    /// How many attention heads a side has, where the file says it.
    fn heads_of(&self, side: &str) -> Option<i64>;
}

impl<T: Tensors> Checkpoint for T {
    fn has(&self, name: &str) -> bool {
        parts(self.names(), name).is_some_and(|parts| {
            parts.iter().all(|part| {
                let (Part::Tensor(own) | Part::Zeros(own)) = part;
                self.dimensions(own).is_some()
            })
        })
    }

    fn shape(&self, name: &str) -> Converted<Vec<usize>> {
        let mut whole: Vec<usize> = Vec::new();
        for part in known(self.names(), name)? {
            let (Part::Tensor(own) | Part::Zeros(own)) = &part;
            let mut shape = self
                .dimensions(own)
                .ok_or_else(|| ConvertError::input(format!("there is no tensor {own} in it")))?;
            match part {
                // The bias of a convolution is a column in whisper.cpp's files.
                Part::Tensor(_) if name.ends_with("/bias") && shape.last() == Some(&1) => {
                    shape.truncate(1);
                }
                Part::Tensor(_) => {}
                Part::Zeros(_) => shape.truncate(1),
            }
            match (whole.get(1..), shape.as_slice()) {
                (None, _) => whole = shape,
                (Some(rest), [rows, own @ ..]) if rest == own => whole[0] += rows,
                _ => {
                    return Err(ConvertError::input(format!(
                        "{own} has the shape {shape:?}, which does not go with {whole:?}"
                    )));
                }
            }
        }
        Ok(whole)
    }

    fn array(&self, name: &str) -> Converted<Array> {
        let shape = self.shape(name)?;
        let mut values = Vec::new();
        for part in known(self.names(), name)? {
            match part {
                Part::Tensor(own) => values.extend(self.read(&own)?.values),
                Part::Zeros(own) => {
                    let rows = self
                        .dimensions(&own)
                        .and_then(|shape| shape.first().copied());
                    values.resize(values.len() + rows.unwrap_or(0), 0.0);
                }
            }
        }
        Ok(Array { shape, values })
    }

    fn heads(&self, side: &str) -> Converted<Option<i64>> {
        Ok(self.heads_of(side))
    }
}

fn known(names: Names, name: &str) -> Converted<Vec<Part>> {
    parts(names, name).ok_or_else(|| ConvertError::input(format!("{name} is not known")))
}

/// What a variable is put together of; `None` if no Whisper model has such a one.
fn parts(names: Names, name: &str) -> Option<Vec<Part>> {
    use Names::{OpenAi, Transformers};
    let (side, rest) = name.split_once('/')?;
    let (place, what) = rest.rsplit_once('/')?;
    let what = match what {
        "gamma" | "weight" | "encodings" => "weight",
        "beta" | "bias" => "bias",
        _ => return None,
    };
    let one = |own: String| Some(vec![Part::Tensor(own)]);
    let own = match (names, side, place) {
        (OpenAi, "encoder" | "decoder", "position_encodings") => {
            return one(format!("{side}.positional_embedding"));
        }
        (OpenAi, "decoder", "embeddings") => "token_embedding",
        (OpenAi, "encoder", "layer_norm") => "ln_post",
        (OpenAi, "decoder", "layer_norm") => "ln",
        (Transformers, "encoder" | "decoder", "position_encodings") => "embed_positions",
        (Transformers, "decoder", "embeddings") => "embed_tokens",
        (Transformers, "encoder" | "decoder", "layer_norm") => "layer_norm",
        (_, "encoder", "conv1" | "conv2") => place,
        _ => return of_layer(names, side, place, what),
    };
    one(format!("{side}.{own}.{what}"))
}

fn of_layer(names: Names, side: &str, place: &str, what: &str) -> Option<Vec<Part>> {
    let (number, place) = place.strip_prefix("layer_")?.split_once('/')?;
    let (blocks, inner, cross) = match names {
        Names::OpenAi => ("blocks", "attn", "cross_attn"),
        Names::Transformers => ("layers", "self_attn", "encoder_attn"),
    };
    let block = format!("{side}.{blocks}.{number}");
    let one = |openai: &str, transformers: &str| {
        let own = match names {
            Names::OpenAi => openai,
            Names::Transformers => transformers,
        };
        Some(vec![Part::Tensor(format!("{block}.{own}.{what}"))])
    };
    let of = |attention: &str, projections: &[&str]| {
        let part = |projection: &&str| {
            let own = match names {
                Names::OpenAi => (*projection).to_owned(),
                Names::Transformers => format!("{}_proj", &projection[..1]),
            };
            let own = format!("{block}.{attention}.{own}");
            match (*projection, what) {
                ("key", "bias") => Part::Zeros(format!("{own}.weight")),
                _ => Part::Tensor(format!("{own}.{what}")),
            }
        };
        Some(projections.iter().map(part).collect())
    };
    match place {
        "ffn/layer_norm" => one("mlp_ln", "final_layer_norm"),
        "ffn/linear_0" => one("mlp.0", "fc1"),
        "ffn/linear_1" => one("mlp.2", "fc2"),
        "self_attention/layer_norm" => one("attn_ln", "self_attn_layer_norm"),
        "self_attention/linear_0" => of(inner, &["query", "key", "value"]),
        "self_attention/linear_1" => one("attn.out", "self_attn.out_proj"),
        "attention/layer_norm" => one("cross_attn_ln", "encoder_attn_layer_norm"),
        "attention/linear_0" => of(cross, &["query"]),
        "attention/linear_1" => of(cross, &["key", "value"]),
        "attention/linear_2" => one("cross_attn.out", "encoder_attn.out_proj"),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_variable_is_put_together_of_tensors_that_others_name_otherwise() {
        let said = |names, name| -> Vec<String> {
            let say = |part| match part {
                Part::Tensor(own) => own,
                Part::Zeros(own) => format!("0 {own}"),
            };
            parts(names, name).into_iter().flatten().map(say).collect()
        };

        assert_eq!(
            said(Names::OpenAi, "decoder/layer_3/attention/linear_1/bias"),
            [
                "0 decoder.blocks.3.cross_attn.key.weight",
                "decoder.blocks.3.cross_attn.value.bias"
            ]
        );
        assert_eq!(
            said(
                Names::Transformers,
                "encoder/layer_0/self_attention/linear_0/weight"
            ),
            [
                "encoder.layers.0.self_attn.q_proj.weight",
                "encoder.layers.0.self_attn.k_proj.weight",
                "encoder.layers.0.self_attn.v_proj.weight"
            ]
        );
        for (name, openai, transformers) in [
            (
                "encoder/position_encodings/encodings",
                "encoder.positional_embedding",
                "encoder.embed_positions.weight",
            ),
            (
                "decoder/embeddings/weight",
                "decoder.token_embedding.weight",
                "decoder.embed_tokens.weight",
            ),
            (
                "encoder/layer_norm/beta",
                "encoder.ln_post.bias",
                "encoder.layer_norm.bias",
            ),
            (
                "encoder/conv2/bias",
                "encoder.conv2.bias",
                "encoder.conv2.bias",
            ),
            (
                "decoder/layer_1/ffn/linear_1/weight",
                "decoder.blocks.1.mlp.2.weight",
                "decoder.layers.1.fc2.weight",
            ),
        ] {
            assert_eq!(said(Names::OpenAi, name), [openai]);
            assert_eq!(said(Names::Transformers, name), [transformers]);
        }
        assert_eq!(parts(Names::OpenAi, "encoder/embeddings/weight"), None);
        assert_eq!(parts(Names::OpenAi, "encoder/layer_0/odd/weight"), None);
    }
}
