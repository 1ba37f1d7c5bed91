// SPDX-License-Identifier: MPL-2.0
//! Voices as JSON, from one store to another. The same for encrypted and plain stores: the JSON itself is never
//! encrypted.

use std::collections::HashSet;
use std::io::{Read, Write};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::error::{Problem, StoreError};
use super::people::{add_take, check_consent, check_name_is_free, has_expired, living};
use super::record::{self, EXEMPLARS_MAX, TIME_MAX};
use super::rows::Rows;
use super::store::{self, Store};
use super::{Consent, DIMENSION_MAX, ModelKey, Quality, Take, Voice, VoiceId, names};

/// Name and version of the form.
pub const SCHEMA: &str = "scribe-voices/1";

/// An import at most: 10,000 voices with ten takes each.
const IMPORT_BYTES_MAX: u64 = 2 << 30;

/// What an import has changed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Imported {
    /// Voices that were not there before.
    pub voices_new: usize,
    /// Voices that were there.
    pub voices_known: usize,
    /// Takes that were not there before.
    pub takes_new: usize,
    /// Takes that were there.
    pub takes_known: usize,
    /// Takes that were too many for their voice.
    pub takes_left_out: usize,
    /// Voices that had expired and were not taken.
    pub expired: usize,
}

#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct Document {
    schema: String,
    model: Option<Model>,
    voices: Vec<Person>,
}

#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct Model {
    name: String,
    version: String,
    dimension: usize,
}

#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct Person {
    id: String,
    #[serde(default)]
    former_ids: Vec<String>,
    name: Option<String>,
    consent: Option<Agreed>,
    created: String,
    updated: String,
    expires: Option<String>,
    takes: Vec<Recording>,
}

#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct Agreed {
    who: String,
    when: String,
    #[serde(rename = "for")]
    purpose: String,
}

#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct Recording {
    at: String,
    net_speech_s: f64,
    segments: u32,
    snr_db: Option<f64>,
    level_dbfs: f64,
    clipping: f64,
    agreement: Option<f64>,
    is_telephone: bool,
    /// Vectors are base64 of little-endian f32: exact.
    mean: String,
    exemplars: Vec<String>,
}

impl Store {
    /// Writes everybody who has not expired, or `only` some, as JSON: names, consents and vectors, readable by anyone
    /// who gets it. Returns how many they were.
    ///
    /// # Errors
    /// If the store cannot be read or `to` cannot be written.
    pub fn export(
        &self,
        only: Option<&[VoiceId]>,
        to: &mut dyn Write,
    ) -> Result<usize, StoreError> {
        let now = store::now();
        let document = self.read(|rows| {
            let aliases = rows.aliases()?;
            let mut voices = rows.all()?;
            voices.retain(|voice| {
                !has_expired(voice, now) && only.is_none_or(|ids| ids.contains(&voice.id))
            });
            let model = rows.model()?.map(|model| Model {
                name: model.name,
                version: model.version,
                dimension: model.dimension,
            });
            Ok(Document {
                schema: SCHEMA.into(),
                model,
                voices: voices
                    .iter()
                    .map(|voice| write_voice(voice, aliases.get(&voice.id)))
                    .collect(),
            })
        })?;
        let written = serde_json::to_writer_pretty(&mut *to, &document)
            .map_err(std::io::Error::from)
            .and_then(|()| to.write_all(b"\n"))
            .and_then(|()| to.flush());
        let failed = |source| Problem::Io {
            doing: "write the export",
            source,
        };
        written.map_err(|err| StoreError::new(self.path(), failed(err)))?;
        Ok(document.voices.len())
    }

    /// Takes in what [`export`](Self::export) wrote: all of it or nothing. Who is here already, by id, keeps name,
    /// consent and term, gets what of that is missing and the takes that are not here. So a second time changes
    /// nothing.
    ///
    /// # Errors
    /// If it is not an export, a vector is none or of another model, a name is somebody else's here, consent is required
    /// and missing, or the store cannot be written.
    pub fn import(&mut self, from: &mut dyn Read) -> Result<Imported, StoreError> {
        let now = store::now();
        let bad = |why: String| StoreError::new(self.path(), Problem::BadImport(why));
        let mut text = Zeroizing::new(Vec::new());
        from.take(IMPORT_BYTES_MAX)
            .read_to_end(&mut text)
            .map_err(|err| bad(format!("it cannot be read: {err}")))?;
        let document: Document = serde_json::from_slice(&text).map_err(|err| {
            // Its own message may quote what it found.
            bad(format!(
                "it is not JSON of the form {SCHEMA} (line {}, column {})",
                err.line(),
                err.column()
            ))
        })?;
        if document.schema != SCHEMA {
            return Err(bad(format!("its form is not {SCHEMA}: update scribe")));
        }
        let is_required = self.requires_consent();
        let people = read_document(document).map_err(|p| StoreError::new(self.path(), p))?;
        self.write(|rows| {
            let mut imported = Imported::default();
            for person in people {
                import_voice(rows, person, now, is_required, &mut imported)?;
            }
            Ok(imported)
        })
    }
}

/// A voice as it comes, with the ids that it had before.
struct Incoming {
    voice: Voice,
    former_ids: Vec<VoiceId>,
}

fn import_voice(
    rows: &Rows<'_>,
    Incoming { voice, former_ids }: Incoming,
    now: u64,
    consent_is_required: bool,
    imported: &mut Imported,
) -> Result<(), Problem> {
    if has_expired(&voice, now) {
        imported.expired += 1;
        return Ok(());
    }
    let mut ours = match rows.resolve(voice.id)? {
        Some(id) => {
            imported.voices_known += 1;
            living(rows, id, now)?
        }
        None => {
            imported.voices_new += 1;
            Voice {
                number: rows.next_number()?,
                name: None,
                consent: None,
                expires: None,
                takes: Vec::new(),
                ..voice
            }
        }
    };
    if let (None, Some(name)) = (&ours.name, &voice.name) {
        check_name_is_free(rows, name, ours.id, now)?;
        ours.name = Some(name.clone());
    }
    ours.consent = ours.consent.or(voice.consent);
    ours.expires = ours.expires.or(voice.expires);
    check_consent(&ours, consent_is_required)?;
    rows.put_head(&ours)?;
    for id in former_ids {
        if rows.resolve(id)?.is_none() {
            rows.alias(id, ours.id)?;
        }
    }
    let held: HashSet<_> = rows
        .takes(ours.id)?
        .iter()
        .map(|r| print(&r.take))
        .collect();
    for take in voice.takes {
        if held.contains(&print(&take)) {
            imported.takes_known += 1;
            continue;
        }
        rows.keep_model(&take.model)?;
        match add_take(rows, ours.id, &take)? {
            Some(left_out) if left_out.is_new => imported.takes_left_out += 1,
            left_out => {
                imported.takes_new += 1;
                imported.takes_left_out += usize::from(left_out.is_some());
            }
        }
    }
    Ok(())
}

/// What makes a take this one and no other: when, and its vector to the last bit.
fn print(take: &Take) -> (u64, Vec<u32>) {
    (take.at, take.mean.iter().map(|v| v.to_bits()).collect())
}

fn write_voice(voice: &Voice, former_ids: Option<&Vec<VoiceId>>) -> Person {
    Person {
        id: voice.id.to_string(),
        former_ids: former_ids
            .into_iter()
            .flatten()
            .map(VoiceId::to_string)
            .collect(),
        name: voice.name.clone(),
        consent: voice.consent.clone().map(|c| Agreed {
            who: c.who,
            when: c.when,
            purpose: c.purpose,
        }),
        created: time_text(voice.created),
        updated: time_text(voice.updated),
        expires: voice.expires.map(time_text),
        takes: voice.takes.iter().map(write_take).collect(),
    }
}

fn write_take(take: &Take) -> Recording {
    let vector = |vector: &Vec<f32>| {
        let bytes: Vec<u8> = vector.iter().flat_map(|v| v.to_le_bytes()).collect();
        STANDARD.encode(bytes)
    };
    let quality = take.quality.clone();
    Recording {
        at: time_text(take.at),
        net_speech_s: quality.net_speech_s,
        segments: quality.segments,
        snr_db: quality.snr_db,
        level_dbfs: quality.level_dbfs,
        clipping: quality.clipping,
        agreement: quality.agreement,
        is_telephone: quality.is_telephone,
        mean: vector(&take.mean),
        exemplars: take.exemplars.iter().map(vector).collect(),
    }
}

fn read_document(document: Document) -> Result<Vec<Incoming>, Problem> {
    let model = document.model.map(|model| ModelKey {
        name: model.name,
        version: model.version,
        dimension: model.dimension,
    });
    let mut ids = HashSet::new();
    let read = |(number, person): (usize, Person)| {
        let at = format!("voice {}", number + 1);
        let incoming = read_voice(person, model.as_ref())
            .map_err(|problem| Problem::BadImport(format!("{at}: {problem}")))?;
        if !ids.insert(incoming.voice.id) {
            return Err(Problem::BadImport(format!("{at} is there twice")));
        }
        Ok(incoming)
    };
    document.voices.into_iter().enumerate().map(read).collect()
}

fn read_voice(person: Person, model: Option<&ModelKey>) -> Result<Incoming, Problem> {
    let id = |text: &str| -> Result<VoiceId, Problem> {
        text.parse()
            .map_err(|()| Problem::BadImport("an id is none".into()))
    };
    let former_ids = person.former_ids.iter().map(|text| id(text));
    let former_ids = former_ids.collect::<Result<_, _>>()?;
    let takes = person.takes.into_iter().map(|take| read_take(take, model));
    let voice = Voice {
        id: id(&person.id)?,
        number: 0,
        name: person.name.as_deref().map(names::normal).transpose()?,
        consent: person.consent.map(|c| Consent {
            who: c.who,
            when: c.when,
            purpose: c.purpose,
        }),
        created: read_time(&person.created)?,
        updated: read_time(&person.updated)?,
        expires: person.expires.as_deref().map(read_time).transpose()?,
        takes: takes.collect::<Result<_, _>>()?,
    };
    Ok(Incoming { voice, former_ids })
}

fn read_take(recording: Recording, model: Option<&ModelKey>) -> Result<Take, Problem> {
    let model = model.ok_or_else(|| Problem::BadImport("it does not say its model".into()))?;
    if recording.exemplars.len() > EXEMPLARS_MAX || model.dimension > DIMENSION_MAX {
        return Err(Problem::BadTake("it has too many exemplars or values"));
    }
    let vector = |text: &String| {
        let bytes = STANDARD.decode(text).ok();
        let bytes = bytes.filter(|bytes| bytes.len() == 4 * model.dimension);
        bytes
            .map(|bytes| record::read_vector(&bytes))
            .ok_or(Problem::BadTake(
                "a vector is not base64 of as many values as its model's have",
            ))
    };
    let take = Take {
        mean: vector(&recording.mean)?,
        exemplars: recording
            .exemplars
            .iter()
            .map(vector)
            .collect::<Result<_, _>>()?,
        model: model.clone(),
        quality: Quality {
            net_speech_s: recording.net_speech_s,
            segments: recording.segments,
            snr_db: recording.snr_db,
            level_dbfs: recording.level_dbfs,
            clipping: recording.clipping,
            agreement: recording.agreement,
            is_telephone: recording.is_telephone,
        },
        at: read_time(&recording.at)?,
    };
    record::check(&take)?;
    Ok(take)
}

/// `2026-11-26T10:00:00Z` for seconds since 1970 (UTC).
pub fn time_text(at: u64) -> String {
    let at = i64::try_from(at.min(TIME_MAX)).unwrap_or_default();
    Timestamp::from_second(at).unwrap_or_default().to_string()
}

fn read_time(text: &str) -> Result<u64, Problem> {
    let bad = || Problem::BadImport("a time is not like 2026-11-26T10:00:00Z".into());
    let at: Timestamp = text.parse().map_err(|_| bad())?;
    u64::try_from(at.as_second()).map_err(|_| bad())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_as_they_are_written() {
        for at in [0, 1_700_000_000, TIME_MAX] {
            assert_eq!(read_time(&time_text(at)).unwrap(), at);
        }
        assert_eq!(time_text(1_700_000_000), "2023-11-14T22:13:20Z");
        for wrong in ["", "2026-11-26", "1969-12-31T23:59:59Z", "tomorrow"] {
            assert!(read_time(wrong).is_err(), "{wrong}");
        }
    }
}
