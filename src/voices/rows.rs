// SPDX-License-Identifier: MPL-2.0
//! The store's rows as voices and takes, within one transaction. Nothing here commits.

use std::collections::HashMap;

use rusqlite::{Connection, OptionalExtension, Row, params};

use super::error::Problem;
use super::record;
use super::seal::Seal;
use super::{ModelKey, Take, Voice, VoiceId};

/// Binds a row's bytes to the form that they have. Another form needs another number.
const FORM: &[u8] = b"scribe-voices/1";

/// Tables behind one transaction, with what opens their rows.
pub(super) struct Rows<'a> {
    pub(super) conn: &'a Connection,
    pub(super) seal: &'a Seal,
    /// The store's own random number: a row of another store is refused, even under the same key.
    pub(super) store: &'a [u8],
}

/// A take and where it is.
pub(super) struct TakeRow {
    pub(super) row: i64,
    pub(super) take: Take,
}

impl Rows<'_> {
    /// Of which model the vectors are. None while there are none.
    pub(super) fn model(&self) -> Result<Option<ModelKey>, Problem> {
        let sql = "SELECT name, version, dimension FROM model";
        let mut query = self.conn.prepare_cached(sql)?;
        let mut rows = query.query([])?;
        let Some(row) = rows.next()? else {
            return Ok(None);
        };
        let dimension: u32 = row.get(2)?;
        Ok(Some(ModelKey {
            name: row.get(0)?,
            version: row.get(1)?,
            dimension: dimension as usize,
        }))
    }

    /// That the store is of `model` from now on.
    ///
    /// # Errors
    /// If it is of another.
    pub(super) fn keep_model(&self, model: &ModelKey) -> Result<(), Problem> {
        match self.model()? {
            Some(ours) if ours == *model => Ok(()),
            Some(ours) => Err(Problem::OtherModel {
                store: Box::new(ours),
                take: Box::new(model.clone()),
            }),
            None => {
                self.conn.execute(
                    "INSERT INTO model (one, name, version, dimension) VALUES (1, ?1, ?2, ?3)",
                    params![model.name, model.version, model.dimension as i64],
                )?;
                Ok(())
            }
        }
    }

    /// A store without takes is of no model.
    pub(super) fn forget_unused_model(&self) -> Result<(), Problem> {
        self.conn.execute(
            "DELETE FROM model WHERE NOT EXISTS (SELECT 1 FROM take)",
            [],
        )?;
        Ok(())
    }

    /// All voices, expired ones too, by number. Without takes.
    pub(super) fn heads(&self) -> Result<Vec<Voice>, Problem> {
        let sql = "SELECT id, number, created, updated, expires, name_tag, content FROM voice";
        let mut query = self.conn.prepare_cached(sql)?;
        let mut rows = query.query([])?;
        let mut heads = Vec::new();
        while let Some(row) = rows.next()? {
            heads.push(self.read_head(row)?);
        }
        // Not SQLite: it would go by an index, and a damaged one leaves rows out.
        heads.sort_by_key(|voice| voice.number);
        Ok(heads)
    }

    /// One voice without takes.
    pub(super) fn head(&self, id: VoiceId) -> Result<Option<Voice>, Problem> {
        let sql = "SELECT id, number, created, updated, expires, name_tag, content FROM voice WHERE id = ?1";
        let mut query = self.conn.prepare_cached(sql)?;
        let mut rows = query.query([key(id)])?;
        rows.next()?.map(|row| self.read_head(row)).transpose()
    }

    fn read_head(&self, row: &Row<'_>) -> Result<Voice, Problem> {
        let id = VoiceId(row.get::<_, i64>(0)?.cast_unsigned());
        let damaged = || Problem::Damaged(format!("{id} does not open"));
        let time = |column| u64::try_from(row.get::<_, i64>(column)?).map_err(|_| damaged());
        let expires: Option<i64> = row.get(4)?;
        let mut voice = Voice {
            id,
            number: row.get(1)?,
            name: None,
            consent: None,
            created: time(2)?,
            updated: time(3)?,
            expires: expires
                .map(u64::try_from)
                .transpose()
                .map_err(|_| damaged())?,
            takes: Vec::new(),
        };
        let content = self
            .seal
            .open(
                &self.place_of_voice(&voice),
                row.get_ref(6)?.as_blob().map_err(|_| damaged())?,
            )
            .ok_or_else(damaged)?;
        (voice.name, voice.consent) = record::read_person(&content).ok_or_else(damaged)?;
        let tag: Option<Vec<u8>> = row.get(5)?;
        if tag != self.tag(voice.name.as_deref()) {
            return Err(damaged());
        }
        Ok(voice)
    }

    /// Writes all of a voice but its takes, new or not.
    pub(super) fn put_head(&self, voice: &Voice) -> Result<(), Problem> {
        let person = record::write_person(voice.name.as_deref(), voice.consent.as_ref());
        let content = self.seal.close(&self.place_of_voice(voice), &person)?;
        let mut put = self.conn.prepare_cached(
            "INSERT INTO voice (id, number, created, updated, expires, name_tag, content)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)
             ON CONFLICT (id) DO UPDATE SET number = ?2, created = ?3, updated = ?4, expires = ?5,
                                            name_tag = ?6, content = ?7",
        )?;
        put.execute(params![
            key(voice.id),
            voice.number,
            seconds(voice.created)?,
            seconds(voice.updated)?,
            voice.expires.map(seconds).transpose()?,
            self.tag(voice.name.as_deref()),
            content,
        ])?;
        Ok(())
    }

    /// Who has this very name.
    pub(super) fn id_of_name(&self, name: &str) -> Result<Option<VoiceId>, Problem> {
        let mut query = self
            .conn
            .prepare_cached("SELECT id FROM voice WHERE name_tag = ?1")?;
        let id: Option<i64> = query
            .query_row([self.tag(Some(name))], |row| row.get(0))
            .optional()?;
        Ok(id.map(|id| VoiceId(id.cast_unsigned())))
    }

    /// Who has this number.
    pub(super) fn id_of_number(&self, number: u32) -> Result<Option<VoiceId>, Problem> {
        let mut query = self
            .conn
            .prepare_cached("SELECT id FROM voice WHERE number = ?1")?;
        let id: Option<i64> = query.query_row([number], |row| row.get(0)).optional()?;
        Ok(id.map(|id| VoiceId(id.cast_unsigned())))
    }

    /// Who `id` is today: itself, or whom it was merged into.
    pub(super) fn resolve(&self, id: VoiceId) -> Result<Option<VoiceId>, Problem> {
        let mut query = self.conn.prepare_cached(
            "SELECT id FROM voice WHERE id = ?1 UNION ALL SELECT voice FROM alias WHERE id = ?1",
        )?;
        let id: Option<i64> = query.query_row([key(id)], |row| row.get(0)).optional()?;
        Ok(id.map(|id| VoiceId(id.cast_unsigned())))
    }

    /// `from` is `into` from now on, and so is who was `from`.
    pub(super) fn alias(&self, from: VoiceId, into: VoiceId) -> Result<(), Problem> {
        self.conn.execute(
            "UPDATE alias SET voice = ?2 WHERE voice = ?1",
            [key(from), key(into)],
        )?;
        self.conn.execute(
            "INSERT INTO alias (id, voice) VALUES (?1, ?2)",
            [key(from), key(into)],
        )?;
        Ok(())
    }

    /// Ids that were merged away, by whom they are now.
    pub(super) fn aliases(&self) -> Result<HashMap<VoiceId, Vec<VoiceId>>, Problem> {
        let mut query = self
            .conn
            .prepare("SELECT voice, id FROM alias ORDER BY id")?;
        let mut rows = query.query([])?;
        let mut aliases: HashMap<_, Vec<_>> = HashMap::new();
        while let Some(row) = rows.next()? {
            let id = |column| Ok::<_, Problem>(VoiceId(row.get::<_, i64>(column)?.cast_unsigned()));
            aliases.entry(id(0)?).or_default().push(id(1)?);
        }
        Ok(aliases)
    }

    /// Everybody with their takes, expired ones too, by number: two queries, however many they are.
    pub(super) fn all(&self) -> Result<Vec<Voice>, Problem> {
        let mut voices = self.heads()?;
        let index: HashMap<_, _> = voices.iter().enumerate().map(|(i, v)| (v.id, i)).collect();
        self.each_take("SELECT id, voice, content FROM take", [], |voice, row| {
            let lost = || Problem::Damaged(format!("a take of {voice}, who is not there"));
            let at = *index.get(&voice).ok_or_else(lost)?;
            voices[at].takes.push(row.take);
            Ok(())
        })?;
        for voice in &mut voices {
            // Rows lie in random order. Stable: the same at each reading.
            voice.takes.sort_by_key(|take| take.at);
        }
        Ok(voices)
    }

    /// One voice's takes, the oldest first.
    pub(super) fn takes(&self, id: VoiceId) -> Result<Vec<TakeRow>, Problem> {
        let mut takes = Vec::new();
        let sql = "SELECT id, voice, content FROM take WHERE voice = ?1";
        self.each_take(sql, [key(id)], |_, row| {
            takes.push(row);
            Ok(())
        })?;
        takes.sort_by_key(|row| (row.take.at, row.row));
        Ok(takes)
    }

    fn each_take(
        &self,
        sql: &str,
        params: impl rusqlite::Params,
        mut found: impl FnMut(VoiceId, TakeRow) -> Result<(), Problem>,
    ) -> Result<(), Problem> {
        let model = self.model()?;
        let mut query = self.conn.prepare_cached(sql)?;
        let mut rows = query.query(params)?;
        while let Some(row) = rows.next()? {
            let number: i64 = row.get(0)?;
            let voice = VoiceId(row.get::<_, i64>(1)?.cast_unsigned());
            let damaged = || Problem::Damaged(format!("a take of {voice} does not open"));
            let model = model.clone().ok_or_else(damaged)?;
            let bytes = row.get_ref(2)?.as_blob().map_err(|_| damaged())?;
            let content = self
                .seal
                .open(&self.place_of_take(number, voice, &model), bytes)
                .ok_or_else(damaged)?;
            let take = record::read_take(&content, model).ok_or_else(damaged)?;
            found(voice, TakeRow { row: number, take })?;
        }
        Ok(())
    }

    /// Adds a take of the store's model.
    pub(super) fn add_take(&self, voice: VoiceId, take: &Take) -> Result<(), Problem> {
        // At random: the row of what was deleted is never given to another.
        let row = (getrandom::u64()? >> 1).cast_signed();
        self.put_take(row, voice, take)
    }

    /// Writes a take into a row, new or not.
    pub(super) fn put_take(&self, row: i64, voice: VoiceId, take: &Take) -> Result<(), Problem> {
        let place = self.place_of_take(row, voice, &take.model);
        let content = self.seal.close(&place, &record::write_take(take))?;
        let mut put = self.conn.prepare_cached(
            "INSERT INTO take (id, voice, content) VALUES (?1, ?2, ?3)
             ON CONFLICT (id) DO UPDATE SET voice = ?2, content = ?3",
        )?;
        put.execute(params![row, key(voice), content])?;
        Ok(())
    }

    pub(super) fn delete_take(&self, row: i64) -> Result<(), Problem> {
        self.conn.execute("DELETE FROM take WHERE id = ?1", [row])?;
        Ok(())
    }

    /// A voice with its takes and all ids that led to it. Whether there was one.
    pub(super) fn delete(&self, id: VoiceId) -> Result<bool, Problem> {
        let deleted = self
            .conn
            .execute("DELETE FROM voice WHERE id = ?1", [key(id)])?;
        self.forget_unused_model()?;
        Ok(deleted > 0)
    }

    /// A number that was never given.
    pub(super) fn next_number(&self) -> Result<u32, Problem> {
        let number: i64 = self.conn.query_row(
            "UPDATE store SET next_number = next_number + 1 RETURNING next_number - 1",
            [],
            |row| row.get(0),
        )?;
        u32::try_from(number).map_err(|_| Problem::Damaged("the next number is none".into()))
    }

    /// An id that nobody has or had.
    pub(super) fn new_id(&self) -> Result<VoiceId, Problem> {
        loop {
            let id = VoiceId(getrandom::u64()?);
            if self.resolve(id)?.is_none() {
                return Ok(id);
            }
        }
    }

    fn tag(&self, name: Option<&str>) -> Option<Vec<u8>> {
        name.map(|name| self.seal.name_tag(self.store, name))
    }

    /// Everything that lies open beside a voice's content.
    fn place_of_voice(&self, voice: &Voice) -> Vec<u8> {
        let expires = voice.expires.map_or(u64::MAX, |at| at);
        [
            FORM,
            b" voice",
            self.store,
            &voice.id.0.to_le_bytes(),
            &voice.number.to_le_bytes(),
            &voice.created.to_le_bytes(),
            &voice.updated.to_le_bytes(),
            &expires.to_le_bytes(),
        ]
        .concat()
    }

    /// Everything that lies open beside a take's content. Of fixed length but for the model's name, which is last.
    fn place_of_take(&self, row: i64, voice: VoiceId, model: &ModelKey) -> Vec<u8> {
        [
            FORM,
            b" take",
            self.store,
            &row.to_le_bytes(),
            &voice.0.to_le_bytes(),
            &(model.dimension as u64).to_le_bytes(),
            model.version.as_bytes(),
            model.name.as_bytes(),
        ]
        .concat()
    }
}

/// How SQLite keeps an id: its integers have a sign.
fn key(id: VoiceId) -> i64 {
    id.0.cast_signed()
}

fn seconds(at: u64) -> Result<i64, Problem> {
    match i64::try_from(at) {
        Ok(seconds) if at <= record::TIME_MAX => Ok(seconds),
        _ => Err(Problem::BadTime),
    }
}
