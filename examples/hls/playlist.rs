// SPDX-License-Identifier: MPL-2.0
//! Playlists of HLS (RFC 8216) as text.

use std::fmt::Write;
use std::time::Duration;

/// A finished segment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Segment {
    pub file: String,
    /// Running times, in nanoseconds.
    pub start_ns: u64,
    pub end_ns: u64,
}

impl Segment {
    pub fn length_ns(&self) -> u64 {
        self.end_ns.saturating_sub(self.start_ns)
    }
}

/// A media playlist.
#[derive(Clone, Debug, Default)]
pub struct Playlist {
    segments: Vec<Segment>,
    /// Segments that are no longer in it.
    removed: u64,
    target_s: u64,
    /// Most segments that it holds; 0: as many as there are.
    window: usize,
    /// Nothing is ever removed.
    keeps_all: bool,
    has_ended: bool,
}

impl Playlist {
    pub fn new(segment_s: u32, window: usize) -> Self {
        Self {
            target_s: u64::from(segment_s),
            window,
            keeps_all: window == 0,
            ..Self::default()
        }
    }

    /// Captions beside it: they go with its pictures, for several may come at once.
    pub fn beside(&self) -> Self {
        Self {
            window: 0,
            ..self.clone()
        }
    }

    /// Adds a segment. Gives those that leave the window.
    pub fn add(&mut self, segment: Segment) -> Vec<Segment> {
        // The longest, to the nearest second, and what was promised once stays true.
        let length_s = (segment.length_ns() + 500_000_000) / 1_000_000_000;
        self.target_s = self.target_s.max(length_s);
        self.segments.push(segment);
        let too_many = match self.window {
            0 => 0,
            window => self.segments.len().saturating_sub(window),
        };
        self.remove(too_many)
    }

    /// Removes what ends before `start_ns`, and gives it.
    pub fn remove_before(&mut self, start_ns: u64) -> Vec<Segment> {
        let old = |segment: &&Segment| segment.end_ns <= start_ns;
        self.remove(self.segments.iter().take_while(old).count())
    }

    /// Where it begins.
    pub fn start_ns(&self) -> Option<u64> {
        self.segments.first().map(|s| s.start_ns)
    }

    fn remove(&mut self, count: usize) -> Vec<Segment> {
        self.removed += count as u64;
        self.segments.drain(..count).collect()
    }

    pub fn is_empty(&self) -> bool {
        self.segments.is_empty()
    }

    pub fn end(&mut self) {
        self.has_ended = true;
    }

    /// Its text. `zero` is the time of day at the running time zero, counted from 1970.
    pub fn text(&self, zero: Duration) -> String {
        let mut out = String::from("#EXTM3U\n#EXT-X-VERSION:6\n");
        let _ = writeln!(out, "#EXT-X-TARGETDURATION:{}", self.target_s);
        let _ = writeln!(out, "#EXT-X-MEDIA-SEQUENCE:{}", self.removed);
        if self.keeps_all {
            out += "#EXT-X-PLAYLIST-TYPE:EVENT\n";
        }
        for segment in &self.segments {
            let day = zero.saturating_add(Duration::from_nanos(segment.start_ns));
            if let Some(day) = time_of_day(day) {
                let _ = writeln!(out, "#EXT-X-PROGRAM-DATE-TIME:{day}");
            }
            let seconds = segment.length_ns() as f64 / 1e9;
            let _ = writeln!(out, "#EXTINF:{seconds:.3},\n{}", segment.file);
        }
        if self.has_ended {
            out += "#EXT-X-ENDLIST\n";
        }
        out
    }
}

/// What a master playlist says of the stream.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Master {
    pub bits_per_second: u64,
    /// As RFC 6381 has them; left out where they are not known.
    pub codecs: Option<String>,
    pub language: Option<String>,
}

impl Master {
    pub fn text(&self, video: &str, captions: &str) -> String {
        let mut out = String::from("#EXTM3U\n#EXT-X-VERSION:6\n");
        let language = self.language.as_deref().map(quoted);
        let language = language.map_or_else(String::new, |l| format!("LANGUAGE={l},"));
        let _ = writeln!(
            out,
            "#EXT-X-MEDIA:TYPE=SUBTITLES,GROUP-ID=\"captions\",NAME=\"Captions\",{language}\
             DEFAULT=YES,AUTOSELECT=YES,FORCED=NO,URI={}",
            quoted(captions)
        );
        let codecs = self.codecs.as_deref().map(quoted);
        let codecs = codecs.map_or_else(String::new, |c| format!("CODECS={c},"));
        let _ = writeln!(
            out,
            "#EXT-X-STREAM-INF:BANDWIDTH={},{codecs}SUBTITLES=\"captions\"\n{video}",
            self.bits_per_second
        );
        out
    }
}

/// The first part of an H.264 codec's name from what caps call its profile and level.
pub fn h264_codec(profile: &str, level: &str) -> Option<String> {
    // profile_idc and the constraint flags (H.264, annex A).
    let profile = match profile {
        "constrained-baseline" => "42c0",
        "baseline" => "4200",
        "main" => "4d40",
        "extended" => "5800",
        "high" => "6400",
        "high-10" => "6e00",
        "high-4:2:2" => "7a00",
        "high-4:4:4" => "f400",
        _ => return None,
    };
    let (whole, part) = level.split_once('.').unwrap_or((level, "0"));
    let (whole, part): (u8, u8) = (whole.parse().ok()?, part.parse().ok()?);
    let level = whole.checked_mul(10)?.checked_add(part)?;
    Some(format!("avc1.{profile}{level:02x}"))
}

fn time_of_day(since_1970: Duration) -> Option<String> {
    let since = jiff::SignedDuration::try_from(since_1970).ok()?;
    let time = jiff::Timestamp::from_duration(since).ok()?;
    Some(format!("{time:.3}"))
}

/// A quoted string can hold neither of these.
fn quoted(text: &str) -> String {
    format!("\"{}\"", text.replace(['"', '\r', '\n'], ""))
}
