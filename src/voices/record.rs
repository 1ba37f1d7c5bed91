// SPDX-License-Identifier: MPL-2.0
//! What a row's private content is made of, as bytes: strict, and exact to the last bit of a vector.
//!
//! A voice: JSON with name and consent. A take, all little-endian: time u64, net speech f64, segments u32, flags u8,
//! SNR f64, level f64, clipping f64, agreement f64, number of exemplars u8, then mean and exemplars as f32.

use serde::{Deserialize, Serialize};

use super::error::Problem;
use super::{Consent, DIMENSION_MAX, ModelKey, NAME_BYTES_MAX, Quality, Take};

/// Exemplars of a take at most.
pub const EXEMPLARS_MAX: usize = 8;
/// The last second that can be kept: 9999-12-30T22:00:00Z, as far as every zone's calendar goes.
pub const TIME_MAX: u64 = 253_402_207_200;

/// How far from 1 the square of a vector's length may be: single precision and some room.
const LENGTH_TOLERANCE: f64 = 1e-3;
/// Of a take before its vectors.
const HEAD_BYTES: usize = 8 + 8 + 4 + 1 + 4 * 8 + 1;

const TELEPHONE: u8 = 1;
const HAS_SNR: u8 = 2;
const HAS_AGREEMENT: u8 = 4;

/// Name and consent.
#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct Person {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    name: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    consent: Option<Agreed>,
}

#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct Agreed {
    who: String,
    when: String,
    #[serde(rename = "for")]
    purpose: String,
}

/// A voice's private part.
pub(super) fn write_person(name: Option<&str>, consent: Option<&Consent>) -> Vec<u8> {
    let person = Person {
        name: name.map(str::to_owned),
        consent: consent.cloned().map(|c| Agreed {
            who: c.who,
            when: c.when,
            purpose: c.purpose,
        }),
    };
    // Strings alone: cannot fail.
    serde_json::to_vec(&person).unwrap_or_default()
}

/// What [`write_person`] wrote.
pub(super) fn read_person(bytes: &[u8]) -> Option<(Option<String>, Option<Consent>)> {
    let person: Person = serde_json::from_slice(bytes).ok()?;
    let consent = person.consent.map(|c| Consent {
        who: c.who,
        when: c.when,
        purpose: c.purpose,
    });
    Some((person.name, consent))
}

/// A take's private part: all of it but the model.
pub(super) fn write_take(take: &Take) -> Vec<u8> {
    let Quality {
        net_speech_s,
        segments,
        snr_db,
        level_dbfs,
        clipping,
        agreement,
        is_telephone,
    } = take.quality;
    let vectors = 1 + take.exemplars.len();
    let mut bytes = Vec::with_capacity(HEAD_BYTES + 4 * vectors * take.mean.len());
    bytes.extend(take.at.to_le_bytes());
    bytes.extend(net_speech_s.to_le_bytes());
    bytes.extend(segments.to_le_bytes());
    let flags = [
        (is_telephone, TELEPHONE),
        (snr_db.is_some(), HAS_SNR),
        (agreement.is_some(), HAS_AGREEMENT),
    ];
    bytes.push(
        flags
            .iter()
            .filter(|(on, _)| *on)
            .map(|(_, flag)| flag)
            .sum(),
    );
    bytes.extend(snr_db.unwrap_or_default().to_le_bytes());
    bytes.extend(level_dbfs.to_le_bytes());
    bytes.extend(clipping.to_le_bytes());
    bytes.extend(agreement.unwrap_or_default().to_le_bytes());
    // At most eight: looked at by `check`.
    bytes.push(take.exemplars.len() as u8);
    for vector in [&take.mean].into_iter().chain(&take.exemplars) {
        bytes.extend(vector.iter().flat_map(|v| v.to_le_bytes()));
    }
    bytes
}

/// What [`write_take`] wrote. Nothing is allocated that the bytes do not fill.
pub(super) fn read_take(mut bytes: &[u8], model: ModelKey) -> Option<Take> {
    let rest = &mut bytes;
    let at = u64::from_le_bytes(chunk(rest)?);
    let net_speech_s = f64::from_le_bytes(chunk(rest)?);
    let segments = u32::from_le_bytes(chunk(rest)?);
    let [flags] = chunk(rest)?;
    let snr_db = f64::from_le_bytes(chunk(rest)?);
    let level_dbfs = f64::from_le_bytes(chunk(rest)?);
    let clipping = f64::from_le_bytes(chunk(rest)?);
    let agreement = f64::from_le_bytes(chunk(rest)?);
    let [exemplars] = chunk(rest)?;
    let vectors = 1 + usize::from(exemplars);
    let is_fit = (1..=DIMENSION_MAX).contains(&model.dimension)
        && vectors <= 1 + EXEMPLARS_MAX
        && rest.len() == 4 * vectors * model.dimension;
    if !is_fit {
        return None;
    }
    let mut vectors = rest.chunks_exact(4 * model.dimension).map(read_vector);
    let take = Take {
        mean: vectors.next()?,
        exemplars: vectors.collect(),
        quality: Quality {
            net_speech_s,
            segments,
            snr_db: (flags & HAS_SNR != 0).then_some(snr_db),
            level_dbfs,
            clipping,
            agreement: (flags & HAS_AGREEMENT != 0).then_some(agreement),
            is_telephone: flags & TELEPHONE != 0,
        },
        model,
        at,
    };
    check(&take).is_ok().then_some(take)
}

/// Little-endian f32.
pub(super) fn read_vector(bytes: &[u8]) -> Vec<f32> {
    let (values, _) = bytes.as_chunks::<4>();
    values.iter().map(|v| f32::from_le_bytes(*v)).collect()
}

fn chunk<const N: usize>(bytes: &mut &[u8]) -> Option<[u8; N]> {
    let (chunk, rest) = bytes.split_first_chunk()?;
    *bytes = rest;
    Some(*chunk)
}

/// Whether a take is one: vectors of the model's dimension and of length 1, measurements that are numbers.
///
/// # Errors
/// Says what is not so.
pub(super) fn check(take: &Take) -> Result<(), Problem> {
    let bad = |why| Err(Problem::BadTake(why));
    let ModelKey {
        name,
        version,
        dimension,
    } = &take.model;
    let is_version = version.len() == 64 && version.bytes().all(|b| b.is_ascii_hexdigit());
    let is_name = (1..=NAME_BYTES_MAX).contains(&name.len()) && !name.contains(char::is_control);
    let quality = &take.quality;
    let measured = [
        Some(quality.net_speech_s),
        quality.snr_db,
        Some(quality.level_dbfs),
        Some(quality.clipping),
        quality.agreement,
    ];
    let vectors = || [&take.mean].into_iter().chain(&take.exemplars);
    match () {
        () if !is_name => bad("its model has no name"),
        () if !is_version => bad("its model's version is not the SHA-256 of a file"),
        () if !(1..=DIMENSION_MAX).contains(dimension) => {
            bad("its model's vectors have no values, or more than 4096")
        }
        () if take.exemplars.len() > EXEMPLARS_MAX => bad("it has more than eight exemplars"),
        () if vectors().any(|v| v.len() != *dimension) => {
            bad("a vector has not as many values as its model's have")
        }
        () if vectors().flatten().any(|v| !v.is_finite()) => {
            bad("a vector has values that are no numbers")
        }
        () if vectors().any(|v| !is_of_length_1(v)) => bad("a vector is not of length 1"),
        () if measured.into_iter().flatten().any(|m| !m.is_finite()) => {
            bad("what was measured of the recording is no number")
        }
        () if quality.net_speech_s < 0.0 => bad("it has less than no speech"),
        () if take.at > TIME_MAX => Err(Problem::BadTime),
        () => Ok(()),
    }
}

fn is_of_length_1(vector: &[f32]) -> bool {
    let square: f64 = vector.iter().map(|v| f64::from(*v).powi(2)).sum();
    (square - 1.0).abs() <= 2.0 * LENGTH_TOLERANCE
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::tests::take;
    use super::*;

    #[test]
    fn a_take_is_read_back_to_the_last_bit() {
        let mut first = take(1, 256);
        first.quality.snr_db = Some(0.1 + 0.2);
        first.quality.is_telephone = true;
        let mut second = take(2, 3);
        second.exemplars.clear();
        second.quality.agreement = Some(-0.25);

        for take in [first, second] {
            let bytes = write_take(&take);
            assert_eq!(read_take(&bytes, take.model.clone()), Some(take));
        }
    }

    #[test]
    fn a_take_of_another_length_is_none() {
        let take = take(1, 4);
        let bytes = write_take(&take);

        for cut in 0..bytes.len() {
            assert_eq!(read_take(&bytes[..cut], take.model.clone()), None, "{cut}");
        }
        let longer = [&bytes[..], &[0]].concat();
        assert_eq!(read_take(&longer, take.model.clone()), None);
        let other = ModelKey {
            dimension: usize::MAX / 4,
            ..take.model
        };
        assert_eq!(read_take(&bytes, other), None);
    }

    #[test]
    fn what_cannot_be_compared_is_no_take() {
        let spoil = |change: fn(&mut Take)| {
            let mut take = take(1, 4);
            change(&mut take);
            check(&take)
        };

        assert!(spoil(|_| ()).is_ok());
        for change in [
            (|t| t.mean[1] = f32::NAN) as fn(&mut Take),
            |t| t.exemplars[0][0] = f32::INFINITY,
            |t| t.mean = vec![0.0; 4],
            |t| t.mean = vec![0.51; 4],
            |t| t.mean = vec![1.0],
            |t| t.exemplars = vec![t.mean.clone(); 9],
            |t| t.model.dimension = 0,
            |t| t.model.version = "1.0".into(),
            |t| t.model.name.clear(),
            |t| t.quality.net_speech_s = -1.0,
            |t| t.quality.snr_db = Some(f64::NAN),
            |t| t.at = u64::MAX,
        ] {
            assert!(spoil(change).is_err());
        }
    }

    proptest! {
        #[test]
        fn bytes_from_anywhere_are_a_take_or_none(bytes: Vec<u8>, dimension in 0_usize..20) {
            let model = ModelKey { dimension, ..take(1, 4).model };
            if let Some(take) = read_take(&bytes, model) {
                prop_assert!(check(&take).is_ok());
            }
        }
    }
}
