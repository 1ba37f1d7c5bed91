// SPDX-License-Identifier: MPL-2.0
//! What the page shows, cut out of a transcript: speakers, turns, paragraphs of words.

use gstscribe::audio::time::StreamNs;
use gstscribe::transcript::{Transcript, Word};
use serde::Serialize;

use super::sound::Sound;

/// A paragraph ends at a pause of this length.
const PAUSE_MS: u64 = 2_000;
/// And with the segment in which it has become this long.
const WORDS: usize = 90;

/// The page's data. Times are milliseconds of the recording; a speaker is a place in `speakers`.
#[derive(Debug, Serialize)]
pub struct View {
    pub title: String,
    duration: u64,
    /// ISO 639-1 code, empty where unknown.
    pub language: String,
    /// Where the recording is: absent without a player, empty where it is inside.
    #[serde(skip_serializing_if = "Option::is_none")]
    sound: Option<String>,
    /// In order of appearance.
    speakers: Vec<Speaker>,
    /// Speaker, start, end.
    turns: Vec<(usize, u64, u64)>,
    paragraphs: Vec<Paragraph>,
}

#[derive(Debug, Serialize)]
struct Speaker {
    id: String,
    /// What to show.
    name: String,
}

/// Words of one speaker, or of nobody known.
#[derive(Debug, Serialize)]
struct Paragraph {
    speaker: Option<usize>,
    /// Text with the space before it, start, end, confidence in per cent.
    words: Vec<(String, u64, u64, u8)>,
}

impl View {
    pub fn new(transcript: &Transcript, title: &str, sound: Option<&Sound>) -> Self {
        let mut segments: Vec<&[Word]> = transcript
            .segments
            .iter()
            .map(|segment| segment.words.as_slice())
            .filter(|words| !words.is_empty())
            .collect();
        // With a channel a speaker, segments of two people need not come in order.
        segments.sort_by_key(|words| words.first().map(|w| w.start));
        let speakers = Speaker::all(transcript, &segments);
        let turns = transcript.turns.iter().filter_map(|turn| {
            let speaker = Speaker::place(&speakers, Some(&turn.speaker_id), None)?;
            let start = turn.start.millis();
            Some((speaker, start, turn.end.millis().max(start)))
        });
        let mut turns: Vec<_> = turns.collect();
        turns.sort_by_key(|&(_, start, _)| start);
        let paragraphs = paragraphs(&segments, &speakers);

        let spoken = paragraphs.iter().flat_map(|p| &p.words).map(|w| w.2);
        let end = spoken.chain(turns.iter().map(|t| t.2)).max();
        Self {
            title: title.to_owned(),
            duration: transcript.duration.millis().max(end.unwrap_or(0)),
            language: transcript.language.clone(),
            sound: sound.map(|sound| match sound {
                Sound::Beside(url) => url.clone(),
                Sound::Embedded(_) => String::new(),
            }),
            speakers,
            turns,
            paragraphs,
        }
    }
}

impl Speaker {
    /// Everybody who has a turn or a word, in order of appearance.
    fn all(transcript: &Transcript, segments: &[&[Word]]) -> Vec<Self> {
        let turns = transcript.turns.iter().map(|t| {
            let name = t.speaker.as_deref();
            (t.start, Some(t.speaker_id.as_str()), name)
        });
        let words = segments.iter().flat_map(|words| words.iter());
        let words = words.map(|w| (w.start, w.speaker_id.as_deref(), w.speaker.as_deref()));
        let mut seen: Vec<(StreamNs, Option<&str>, Option<&str>)> = turns.chain(words).collect();
        seen.sort_by_key(|&(start, ..)| start);

        let mut all: Vec<Self> = Vec::new();
        for (_, id, name) in seen {
            // A person who has a name only is known by it.
            let Some(known_by) = id.or(name) else {
                continue;
            };
            match (all.iter_mut().find(|s| s.id == known_by), name) {
                (Some(speaker), Some(name)) => name.clone_into(&mut speaker.name),
                (Some(_), None) => {}
                (None, _) => all.push(Self {
                    id: known_by.to_owned(),
                    name: name.unwrap_or(known_by).to_owned(),
                }),
            }
        }
        all
    }

    fn place(all: &[Self], id: Option<&str>, name: Option<&str>) -> Option<usize> {
        let known_by = id.or(name)?;
        all.iter().position(|speaker| speaker.id == known_by)
    }
}

fn paragraphs(segments: &[&[Word]], speakers: &[Speaker]) -> Vec<Paragraph> {
    let mut all: Vec<Paragraph> = Vec::new();
    for segment in segments {
        for (n, word) in segment.iter().enumerate() {
            let id = word.speaker_id.as_deref();
            let speaker = Speaker::place(speakers, id, word.speaker.as_deref());
            let start = word.start.millis();
            let goes_on = all.last().is_some_and(|last| {
                let end = last.words.last().map_or(0, |w| w.2);
                let is_long = n == 0 && last.words.len() >= WORDS;
                last.speaker == speaker && start.saturating_sub(end) < PAUSE_MS && !is_long
            });
            if !goes_on {
                all.push(Paragraph {
                    speaker,
                    words: Vec::new(),
                });
            }
            let confidence = (word.confidence.clamp(0.0, 1.0) * 100.0).round() as u8;
            if let Some(paragraph) = all.last_mut() {
                let end = word.end.millis().max(start);
                let before = paragraph.words.last().map(|w| w.0.as_str());
                let stands_apart = n == 0 && before.is_some_and(|b| are_parted(b, &word.text));
                let space = if stands_apart { " " } else { "" };
                let shown = format!("{space}{}", word.text);
                paragraph.words.push((shown, start, end, confidence));
            }
        }
    }
    all
}

/// Whether a space belongs between the last word of a segment and the first of the next.
fn are_parted(before: &str, after: &str) -> bool {
    // Han and kana; Hangul has spaces.
    let is_spaceless = |c: char| {
        matches!(c, '\u{2e80}'..='\u{a4cf}' | '\u{f900}'..='\u{faff}' | '\u{ff01}'..='\u{ff9f}'
            | '\u{20000}'..='\u{323af}')
    };
    let (Some(left), Some(right)) = (before.chars().next_back(), after.chars().next()) else {
        return false;
    };
    let is_spaced = left.is_whitespace() || right.is_whitespace();
    let is_one_script = is_spaceless(left) && is_spaceless(right);
    !is_spaced && !is_one_script
}
