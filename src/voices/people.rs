// SPDX-License-Identifier: MPL-2.0
//! Who is meant, who is new, and what is added to whom. All within one transaction.

use super::error::Problem;
use super::purge::count_deletion;
use super::rows::Rows;
use super::{Take, Voice, VoiceId, consent, names};

/// Takes of a voice at most. When more come, the one with the least speech goes.
pub const TAKES_MAX: usize = 64;

/// Whose voice is enrolled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Who<'a> {
    /// Who has this name, and if nobody has it a new voice.
    Named(&'a str),
    /// Who is in the store, or was merged into somebody there.
    Known(VoiceId),
    /// Somebody new without a name: "Speaker 7".
    Nobody,
}

/// A take that is not kept, because all others have more speech.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LeftOut {
    /// When it was enrolled, seconds since 1970 (UTC).
    pub at: u64,
    /// How much speech it had, seconds.
    pub net_speech_s: f64,
    /// It is the very one that was to be added.
    pub is_new: bool,
}

/// Who is meant, expired or not.
pub(super) fn find(rows: &Rows<'_>, who: &str) -> Result<VoiceId, Problem> {
    let who = names::composed(who);
    if let Ok(id) = who.parse() {
        let unknown = Problem::Unknown {
            who,
            nearest: Vec::new(),
        };
        return rows.resolve(id)?.ok_or(unknown);
    }
    if let Some(id) = rows.id_of_name(&who)? {
        return Ok(id);
    }
    if let Some(number) = names::speaker_number(&who)
        && let Some(id) = rows.id_of_number(number)?
        && rows.head(id)?.is_some_and(|voice| voice.name.is_none())
    {
        return Ok(id);
    }
    let heads = rows.heads()?;
    match names::alike(&who, &heads)[..] {
        [] => Err(Problem::Unknown {
            nearest: names::nearest(&who, &heads),
            who,
        }),
        [voice] => Ok(voice.id),
        ref several => Err(Problem::Ambiguous {
            names: several.iter().map(|voice| voice.label()).collect(),
            who,
        }),
    }
}

/// Who has this id today, without takes.
pub(super) fn living(rows: &Rows<'_>, id: VoiceId, now: u64) -> Result<Voice, Problem> {
    let found = match rows.resolve(id)? {
        Some(id) => rows.head(id)?,
        None => None,
    };
    match found {
        None => Err(Problem::Unknown {
            who: id.to_string(),
            nearest: Vec::new(),
        }),
        Some(voice) if has_expired(&voice, now) => Err(Problem::Expired { who: voice.label() }),
        Some(voice) => Ok(voice),
    }
}

/// That nobody but `id` has this name. Who has expired holds theirs until they are removed.
pub(super) fn check_name_is_free(
    rows: &Rows<'_>,
    name: &str,
    id: VoiceId,
    now: u64,
) -> Result<(), Problem> {
    match rows.id_of_name(name)? {
        Some(other) if other != id => {
            living(rows, other, now)?;
            let name = name.into();
            Err(Problem::NameTaken { name, id: other })
        }
        _ => Ok(()),
    }
}

/// Whom to enrol; whether they are new; whether somebody of that name had expired and is gone now.
pub(super) fn whose(
    rows: &Rows<'_>,
    who: Who<'_>,
    now: u64,
) -> Result<(Voice, bool, bool), Problem> {
    let name = match who {
        Who::Known(id) => return Ok((living(rows, id, now)?, false, false)),
        Who::Nobody => None,
        Who::Named(name) => Some(names::normal(name)?),
    };
    let mut has_deleted = false;
    if let Some(id) = name
        .as_deref()
        .map(|n| rows.id_of_name(n))
        .transpose()?
        .flatten()
    {
        match living(rows, id, now) {
            Err(Problem::Expired { .. }) => {
                // Their leave has ended: the new voice is not to be mixed with the old.
                rows.delete(id)?;
                count_deletion(rows)?;
                has_deleted = true;
            }
            found => return Ok((found?, false, false)),
        }
    }
    let voice = Voice {
        id: rows.new_id()?,
        number: rows.next_number()?,
        name,
        consent: None,
        created: now,
        updated: now,
        expires: None,
        takes: Vec::new(),
    };
    Ok((voice, true, has_deleted))
}

pub(super) fn check_consent(voice: &Voice, is_required: bool) -> Result<(), Problem> {
    match &voice.consent {
        Some(given) => consent::check(given),
        None if is_required => Err(Problem::NoConsent { who: voice.label() }),
        None => Ok(()),
    }
}

/// Adds a take, and returns the one that had to go if there were too many.
pub(super) fn add_take(
    rows: &Rows<'_>,
    id: VoiceId,
    take: &Take,
) -> Result<Option<LeftOut>, Problem> {
    let held = rows.takes(id)?;
    if held.len() < TAKES_MAX {
        rows.add_take(id, take)?;
        return Ok(None);
    }
    let speech_s = |take: &Take| take.quality.net_speech_s;
    let weakest = held
        .iter()
        .min_by(|a, b| speech_s(&a.take).total_cmp(&speech_s(&b.take)));
    let left_out = |take: &Take, is_new| LeftOut {
        at: take.at,
        net_speech_s: speech_s(take),
        is_new,
    };
    match weakest {
        Some(weakest) if speech_s(&weakest.take) < speech_s(take) => {
            rows.delete_take(weakest.row)?;
            rows.add_take(id, take)?;
            Ok(Some(left_out(&weakest.take, false)))
        }
        _ => Ok(Some(left_out(take, true))),
    }
}

pub(super) fn has_expired(voice: &Voice, now: u64) -> bool {
    voice.expires.is_some_and(|at| at <= now)
}
