// SPDX-License-Identifier: MPL-2.0
//! What a diarizer before the transcriber has told: turns, and how far they are complete.

use crate::audio::RunningNs;
use crate::messages::{SpokenTurn, Turns};
use crate::transcribe::attribution::{Heard, Span, attribute};
use crate::transcript::Word;
use crate::transcript::formats::Relabel;

/// A speaker as words have him.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Person {
    id: String,
    name: Option<String>,
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Speakers {
    watermark: RunningNs,
    people: Vec<Person>,
    all: Vec<Span>,
    exclusive: Vec<Span>,
}

impl Speakers {
    /// More turns.
    pub(super) fn take(&mut self, turns: &Turns) {
        self.watermark = self.watermark.max(turns.watermark);
        let all: Vec<Span> = turns.all.iter().map(|t| self.span(t)).collect();
        let exclusive: Vec<Span> = turns.exclusive.iter().map(|t| self.span(t)).collect();
        self.all.extend(all);
        self.exclusive.extend(exclusive);
        self.all.sort_by_key(|s| s.start);
        self.exclusive.sort_by_key(|s| s.start);
    }

    fn span(&mut self, spoken: &SpokenTurn) -> Span {
        let person = Person {
            id: spoken.turn.speaker_id.clone(),
            name: spoken.turn.speaker.clone(),
        };
        let known = self.people.iter().position(|p| p.id == person.id);
        let speaker = match known {
            Some(n) => {
                self.people[n].name = person.name.or_else(|| self.people[n].name.clone());
                n
            }
            None => {
                self.people.push(person);
                self.people.len() - 1
            }
        };
        Span {
            start: spoken.start.0,
            end: spoken.end.0,
            speaker,
        }
    }

    /// Somebody is somebody else, or has a name now.
    pub(super) fn relabel(&mut self, relabel: &Relabel) {
        let whole = relabel.from.is_none() && relabel.to.is_none();
        for person in &mut self.people {
            if whole && person.id == relabel.old_id {
                person.id = relabel.new_id.clone().unwrap_or_else(|| person.id.clone());
                person.name = relabel.name.clone().or_else(|| person.name.clone());
            }
        }
    }

    /// Whether all turns that begin before `time` are there.
    pub(super) fn are_known_until(&self, time: RunningNs) -> bool {
        self.watermark >= time
    }

    /// Gives each word its speaker.
    pub(super) fn attribute(&self, words: &mut [Word]) {
        let heard: Vec<Heard> = words
            .iter()
            .map(|w| Heard {
                start: w.running_start.0,
                end: w.running_end.0,
                text: &w.text,
            })
            .collect();
        let found = attribute(&heard, &self.exclusive, &self.all);
        for (word, speaker) in words.iter_mut().zip(found) {
            let person = speaker.and_then(|n| self.people.get(n));
            word.speaker_id = person.map(|p| p.id.clone());
            word.speaker = person.and_then(|p| p.name.clone());
        }
    }

    /// No word before `time` will ask any more.
    pub(super) fn forget_before(&mut self, time: RunningNs) {
        // What lies near counts for words without a turn of their own.
        let keep = time.0.saturating_sub(2_000_000_000);
        self.all.retain(|s| s.end >= keep);
        self.exclusive.retain(|s| s.end >= keep);
    }
}
