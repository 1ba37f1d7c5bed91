// SPDX-License-Identifier: MPL-2.0
//! An export's sessions, and whether they take and give what its `config.json` says.

use ort::session::Session;
use ort::value::{Outlet, TensorElementType, ValueType};

use super::OptimumSpec;
use super::tensor::is_float;
use crate::dsp::mel::WINDOW_FRAMES;
use crate::inference::EngineError;
use crate::inference::onnx::checked::{self, Digest};
use crate::inference::onnx::whisper::header::{HEAD, Header, POSITIONS};

/// Names that are the same in all exports.
pub(super) const FEATURES: &str = "input_features";
pub(super) const STATES: &str = "last_hidden_state";
pub(super) const TOKENS: &str = "input_ids";
pub(super) const SOUND: &str = "encoder_hidden_states";
pub(super) const BRANCH: &str = "use_cache_branch";
/// Positions of the tokens that are read, in exports of some versions.
pub(super) const PLACES: &str = "cache_position";
pub(super) const LOGITS: &str = "logits";

/// Names of a layer's tensors.
pub(super) struct Names {
    /// Keys and values of the text so far, as they go in.
    pub past: [String; 2],
    /// The same as they come out.
    pub present: [String; 2],
    /// Those of the sound, as they go in.
    pub past_sound: [String; 2],
    /// The same as they come out.
    pub present_sound: [String; 2],
    /// Attention to the sound.
    pub attention: String,
}

impl Names {
    pub fn of(layer: usize) -> Self {
        let both = |what: &str, side: &str| {
            ["key", "value"].map(|part| format!("{what}.{layer}.{side}.{part}"))
        };
        Self {
            past: both("past_key_values", "decoder"),
            present: both("present", "decoder"),
            past_sound: both("past_key_values", "encoder"),
            present_sound: both("present", "encoder"),
            attention: attention(layer),
        }
    }
}

/// The output with a layer's attention to the sound.
pub(super) fn attention(layer: usize) -> String {
    format!("cross_attentions.{layer}")
}

/// A decoder's session, and which of the inputs that some have it takes.
pub(super) struct Decoder {
    pub session: Session,
    /// The sound: needed without a past, in one with both branches it goes in always.
    pub takes_sound: bool,
    pub takes_branch: bool,
    pub takes_places: bool,
}

/// The sessions of a lane.
pub(super) struct Graphs {
    pub encoder: Session,
    /// With both branches, or without a past.
    pub decoder: Decoder,
    /// With one, where the other has none.
    pub with_past: Option<Decoder>,
    pub kinds: Kinds,
    /// Attention to the sound comes out.
    pub attention: bool,
    /// Nothing but one text fits in.
    pub one_row: bool,
}

/// Types of the floats that go in and come out.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Kinds {
    pub features: TensorElementType,
    /// As the encoder gives them.
    pub states: TensorElementType,
    /// As the decoder wants them.
    pub sound: TensorElementType,
    pub past: TensorElementType,
    pub logits: TensorElementType,
    /// Of the attention, where it comes out.
    pub attention: TensorElementType,
}

/// What a tensor must be.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Kind {
    Floats,
    Numbers,
    Switch,
}

/// A tensor that there must be, or may be.
struct Wanted {
    name: String,
    kind: Kind,
    shape: Vec<Option<usize>>,
    must: bool,
}

impl Wanted {
    fn new(name: &str, kind: Kind, shape: &[Option<usize>]) -> Self {
        Self {
            name: name.into(),
            kind,
            shape: shape.to_vec(),
            must: true,
        }
    }

    fn optional(self) -> Self {
        Self {
            must: false,
            ..self
        }
    }

    /// Whether a tensor is this one. Lengths that are open in the graph fit.
    fn fits(&self, found: &ValueType) -> bool {
        let ValueType::Tensor { ty, shape, .. } = found else {
            return false;
        };
        let kind = match self.kind {
            Kind::Floats => is_float(*ty),
            Kind::Numbers => *ty == TensorElementType::Int64,
            Kind::Switch => *ty == TensorElementType::Bool,
        };
        let length = |(found, wanted): (&i64, &Option<usize>)| {
            *found < 0 || wanted.is_none_or(|wanted| usize::try_from(*found) == Ok(wanted))
        };
        kind && shape.len() == self.shape.len() && shape.iter().zip(&self.shape).all(length)
    }

    fn shown(&self) -> String {
        let kind = match self.kind {
            Kind::Floats => "f32 or f16",
            Kind::Numbers => "i64",
            Kind::Switch => "bool",
        };
        let length = |n: &Option<usize>| n.map_or("?".to_owned(), |n| n.to_string());
        let lengths: Vec<String> = self.shape.iter().map(length).collect();
        format!("{kind} [{}]", lengths.join(", "))
    }
}

/// A tensor as people write it.
fn shown(found: &ValueType) -> String {
    match found {
        ValueType::Tensor { ty, shape, .. } => {
            let length = |n: &i64| {
                if *n < 0 {
                    "?".to_owned()
                } else {
                    n.to_string()
                }
            };
            let lengths: Vec<String> = shape.iter().map(length).collect();
            format!("{ty} [{}]", lengths.join(", "))
        }
        other => format!("{other:?}"),
    }
}

/// Whether a side of a graph is as it should be; what is odd, if not.
fn check_side(side: &str, found: &[Outlet], wanted: &[Wanted], all: bool) -> Result<(), String> {
    let names = || {
        let names: Vec<&str> = found.iter().map(Outlet::name).collect();
        names.join(", ")
    };
    for port in wanted {
        let Some(outlet) = found.iter().find(|o| o.name() == port.name) else {
            if port.must {
                return Err(format!("it has no {side} {}, but {}", port.name, names()));
            }
            continue;
        };
        if !port.fits(outlet.dtype()) {
            return Err(format!(
                "its {side} {} is {}, and by config.json it should be {}",
                port.name,
                shown(outlet.dtype()),
                port.shown()
            ));
        }
    }
    let unknown = |o: &&Outlet| !wanted.iter().any(|port| port.name == o.name());
    match found.iter().find(unknown) {
        Some(outlet) if all => Err(format!(
            "it wants an input {} ({}), which is not known",
            outlet.name(),
            shown(outlet.dtype())
        )),
        _ => Ok(()),
    }
}

/// What a decoder takes and gives: with both branches, without a past, with one.
#[derive(Clone, Copy, PartialEq)]
enum Form {
    Merged,
    First,
    WithPast,
}

fn decoder_ports(header: &Header, form: Form) -> (Vec<Wanted>, Vec<Wanted>) {
    let floats = |name: &str, shape: &[Option<usize>]| Wanted::new(name, Kind::Floats, shape);
    let sound = [None, Some(POSITIONS), Some(header.width)];
    let own = [None, Some(header.heads), None, Some(HEAD)];
    let of_sound = [None, Some(header.heads), Some(POSITIONS), Some(HEAD)];
    let mut inputs = vec![
        Wanted::new(TOKENS, Kind::Numbers, &[None, None]),
        Wanted::new(PLACES, Kind::Numbers, &[None]).optional(),
    ];
    inputs.push(match form {
        Form::WithPast => floats(SOUND, &sound).optional(),
        _ => floats(SOUND, &sound),
    });
    if form == Form::Merged {
        inputs.push(Wanted::new(BRANCH, Kind::Switch, &[Some(1)]));
    }
    let mut outputs = vec![floats(LOGITS, &[None, None, Some(header.vocab)])];
    for layer in 0..header.layers {
        let names = Names::of(layer);
        if form != Form::First {
            inputs.extend(names.past.iter().map(|name| floats(name, &own)));
            inputs.extend(names.past_sound.iter().map(|name| floats(name, &of_sound)));
        }
        outputs.extend(names.present.iter().map(|name| floats(name, &own)));
        if form != Form::WithPast {
            // In the branch with a past it is empty, and so its length is open.
            outputs.extend(names.present_sound.iter().map(|name| floats(name, &own)));
        }
        let attention = [None, Some(header.heads), None, None];
        outputs.push(floats(&names.attention, &attention).optional());
    }
    // One more layer than there should be is another model.
    (inputs, outputs)
}

fn kind_of(outlets: &[Outlet], name: &str) -> Option<TensorElementType> {
    let outlet = outlets.iter().find(|o| o.name() == name)?;
    match outlet.dtype() {
        ValueType::Tensor { ty, .. } => Some(*ty),
        _ => None,
    }
}

fn is_of_one(outlets: &[Outlet], name: &str) -> bool {
    let outlet = outlets.iter().find(|o| o.name() == name);
    outlet.is_some_and(
        |o| matches!(o.dtype(), ValueType::Tensor { shape, .. } if shape.first() == Some(&1)),
    )
}

impl Graphs {
    /// Loads all of an export's graphs, which must have the bytes of `known` if there are such.
    pub fn load(
        spec: &OptimumSpec,
        header: &Header,
        known: Option<&[Digest]>,
    ) -> Result<(Self, Vec<Digest>), EngineError> {
        let export = &spec.export;
        let mut digests = Vec::new();
        let mut open = |n: usize, path: &std::path::Path| {
            let known = known.and_then(|known| known.get(n));
            let (session, digest) =
                checked::open((path, export.data_of(path)), known, None, false)?;
            digests.push(digest);
            Ok::<Session, EngineError>(session)
        };
        let invalid = |path: &std::path::Path, why: String| EngineError::InvalidModel {
            path: path.to_owned(),
            why,
        };
        let encoder = open(0, &export.encoder)?;
        let features = [None, Some(header.mels), Some(WINDOW_FRAMES)];
        let states = [None, Some(POSITIONS), Some(header.width)];
        let inputs = [Wanted::new(FEATURES, Kind::Floats, &features)];
        let outputs = [Wanted::new(STATES, Kind::Floats, &states)];
        check_side("input", encoder.inputs(), &inputs, true)
            .and_then(|()| check_side("output", encoder.outputs(), &outputs, false))
            .map_err(|why| invalid(&export.encoder, why))?;

        let mut decoder = |n: usize, path: &std::path::Path, form: Form| {
            let session = open(n, path)?;
            let (inputs, outputs) = decoder_ports(header, form);
            check_side("input", session.inputs(), &inputs, true)
                .and_then(|()| check_side("output", session.outputs(), &outputs, false))
                .map_err(|why| invalid(path, why))?;
            let takes = |name: &str| session.inputs().iter().any(|input| input.name() == name);
            Ok::<Decoder, EngineError>(Decoder {
                takes_sound: takes(SOUND),
                takes_branch: takes(BRANCH),
                takes_places: takes(PLACES),
                session,
            })
        };
        let form = match export.with_past {
            Some(_) => Form::First,
            None => Form::Merged,
        };
        let first = decoder(1, &export.decoder, form)?;
        let with_past = match &export.with_past {
            Some(path) => Some(decoder(2, path, Form::WithPast)?),
            None => None,
        };
        let second = with_past.as_ref().unwrap_or(&first);
        let names = Names::of(0);
        let path = export.with_past.as_ref().unwrap_or(&export.decoder);
        let past = kind_of(second.session.inputs(), &names.past[0]);
        // What comes out of one step goes into the next.
        let back = [
            kind_of(first.session.outputs(), &names.present[0]),
            kind_of(first.session.outputs(), &names.present_sound[0]),
            kind_of(second.session.outputs(), &names.present[0]),
            kind_of(second.session.inputs(), &names.past_sound[0]),
        ];
        if let Some(other) = back.iter().find(|kind| **kind != past) {
            let shown = |kind: &Option<TensorElementType>| {
                kind.map_or("nothing".to_owned(), |kind| kind.to_string())
            };
            return Err(invalid(
                path,
                format!(
                    "it takes {} as {}, and {} comes out: encoder and decoders must be of one export",
                    names.past[0],
                    shown(&past),
                    shown(other)
                ),
            ));
        }
        let attends = |session: &Session| {
            let given = session.outputs();
            (0..header.layers).all(|l| given.iter().any(|o| o.name() == attention(l)))
        };
        let float = TensorElementType::Float32;
        let kinds = Kinds {
            features: kind_of(encoder.inputs(), FEATURES).unwrap_or(float),
            states: kind_of(encoder.outputs(), STATES).unwrap_or(float),
            sound: kind_of(first.session.inputs(), SOUND).unwrap_or(float),
            past: past.unwrap_or(float),
            logits: kind_of(first.session.outputs(), LOGITS).unwrap_or(float),
            attention: kind_of(first.session.outputs(), &names.attention).unwrap_or(float),
        };
        let one_row = [&first.session, &second.session]
            .iter()
            .any(|session| is_of_one(session.inputs(), TOKENS));
        let graphs = Self {
            kinds,
            attention: attends(&first.session) && attends(&second.session),
            one_row,
            encoder,
            decoder: first,
            with_past,
        };
        Ok((graphs, digests))
    }
}
