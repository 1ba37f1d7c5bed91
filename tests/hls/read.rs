// SPDX-License-Identifier: MPL-2.0
//! HLS as a player reads it, and strictly: whatever RFC 8216 does not allow is a failure.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The clock of transport streams.
const HZ: f64 = 90_000.0;

#[derive(Clone, Debug)]
pub struct Segment {
    pub file: PathBuf,
    pub length: f64,
    /// Seconds since 1970.
    day: f64,
}

/// A caption, in seconds on the transport stream's clock.
#[derive(Clone, Debug, PartialEq)]
pub struct Cue {
    pub start: f64,
    pub end: f64,
    pub text: String,
}

/// A file of captions.
#[derive(Clone, Debug)]
pub struct Captions {
    pub start: f64,
    pub length: f64,
    cues: Vec<Cue>,
}

#[derive(Clone, Debug)]
pub struct Presentation {
    folder: PathBuf,
    pub codecs: String,
    pub language: Option<String>,
    pub video: Vec<Segment>,
    pub captions: Vec<Captions>,
    /// Media sequence number of the first captions.
    pub first_captions: u64,
    pub has_ended: bool,
}

struct Media {
    segments: Vec<Segment>,
    first: u64,
    has_ended: bool,
}

impl Presentation {
    /// Everything.
    pub fn read(folder: &Path) -> Self {
        let mut shown = Self::read_playlists(folder);
        let words = media(&folder.join("captions.m3u8"));
        let video = &shown.video;
        for segment in video {
            assert!(segment.file.metadata().unwrap().len() > 0, "{segment:?}");
        }
        shown.captions = words.segments.iter().map(captions).collect();
        shown.assert_each_cue_is_where_it_is_shown();
        // Both playlists say the same of the time of day: a player lays them side by side by it.
        let zero = video[0].day - shown.pts_of_segment(&video[0]);
        for (segment, captions) in words.segments.iter().zip(&shown.captions) {
            let apart = segment.day - zero - captions.start;
            assert!(apart.abs() < 0.05, "{apart} s: {segment:?} {captions:?}");
        }
        shown
    }

    /// The playlists alone: files may go meanwhile.
    pub fn read_playlists(folder: &Path) -> Self {
        let master = text(&folder.join("index.m3u8"));
        let mut lines = master.lines();
        assert_eq!(lines.next(), Some("#EXTM3U"));
        assert_eq!(lines.next(), Some("#EXT-X-VERSION:6"));
        let group = attributes(lines.next().unwrap().strip_prefix("#EXT-X-MEDIA:").unwrap());
        let stream = lines.next().unwrap().strip_prefix("#EXT-X-STREAM-INF:");
        let stream = attributes(stream.unwrap());
        assert_eq!(lines.next(), Some("video.m3u8"));
        assert_eq!(lines.next(), None);
        assert_eq!(group["TYPE"], "SUBTITLES");
        assert_eq!(group["URI"], "captions.m3u8");
        assert_eq!(group["GROUP-ID"], stream["SUBTITLES"]);
        assert!(!group["NAME"].is_empty());
        assert!(stream["BANDWIDTH"].parse::<u64>().unwrap() > 1000);

        let (video, words) = (
            media(&folder.join("video.m3u8")),
            media(&folder.join("captions.m3u8")),
        );
        assert_eq!(video.has_ended, words.has_ended);
        Self {
            folder: folder.to_owned(),
            codecs: stream["CODECS"].clone(),
            language: group.get("LANGUAGE").cloned(),
            video: video.segments,
            captions: Vec::new(),
            first_captions: words.first,
            has_ended: video.has_ended,
        }
    }

    /// All captions once, in order.
    pub fn cues(&self) -> Vec<Cue> {
        let mut all: Vec<Cue> = Vec::new();
        for cue in self.captions.iter().flat_map(|c| &c.cues) {
            // Over a border: the same in both.
            if all.last() != Some(cue) {
                all.push(cue.clone());
            }
        }
        for pair in all.windows(2) {
            assert!(pair[0].end <= pair[1].start + 0.0005, "{pair:?}");
        }
        all
    }

    /// When the pictures are white, in seconds on the transport stream's clock: what a decoder that is not GStreamer's sees.
    pub fn white_spans(&self) -> Vec<(f64, f64)> {
        let whole = self.folder.join("whole.ts");
        let bytes = self
            .video
            .iter()
            .flat_map(|s| std::fs::read(&s.file).unwrap());
        std::fs::write(&whole, bytes.collect::<Vec<u8>>()).unwrap();
        let times = pts(&whole);
        let out = Command::new("ffmpeg")
            .args(["-v", "error", "-i"])
            .arg(&whole)
            .args([
                "-map",
                "0:v",
                "-vf",
                "scale=1:1,format=gray",
                "-fps_mode",
                "passthrough",
            ])
            .args(["-f", "rawvideo", "-"])
            .output()
            .unwrap();
        assert!(out.status.success(), "{out:?}");
        let light = out.stdout;
        assert_eq!(times.len(), light.len(), "a time for each picture");
        let mut spans: Vec<(f64, f64)> = Vec::new();
        let mut was_white = false;
        for (time, light) in times.into_iter().zip(light) {
            let is_white = light > 128;
            match (was_white, is_white, spans.last_mut()) {
                (false, true, _) => spans.push((time, time)),
                (true, _, Some(last)) => last.1 = time,
                _ => {}
            }
            was_white = is_white;
        }
        spans
    }

    /// When the first picture is shown, on the stream's clock.
    pub fn starts_at(&self) -> f64 {
        self.pts_of_segment(&self.video[0])
    }

    fn pts_of_segment(&self, segment: &Segment) -> f64 {
        pts(&segment.file).into_iter().reduce(f64::min).unwrap()
    }

    /// RFC 8216, 3.5: all cues that are shown during a file's time are in it; and here no others.
    fn assert_each_cue_is_where_it_is_shown(&self) {
        let all = self.cues();
        for pair in self.captions.windows(2) {
            let end = pair[0].start + pair[0].length;
            assert!((end - pair[1].start).abs() < 0.002, "a hole: {pair:?}");
        }
        for captions in &self.captions {
            let (from, to) = (captions.start, captions.start + captions.length);
            let wanted: Vec<&Cue> = all
                .iter()
                .filter(|cue| cue.start < to - 0.0005 && cue.end > from + 0.0005)
                .collect();
            assert_eq!(
                captions.cues.iter().collect::<Vec<_>>(),
                wanted,
                "{captions:?}"
            );
        }
    }
}

fn text(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

fn attributes(list: &str) -> BTreeMap<String, String> {
    let mut all = BTreeMap::new();
    let mut rest = list;
    while !rest.is_empty() {
        let (name, after) = rest.split_once('=').unwrap();
        let (value, after) = match after.strip_prefix('"') {
            Some(quoted) => {
                let (value, after) = quoted.split_once('"').unwrap();
                (value, after.strip_prefix(',').unwrap_or(after))
            }
            None => after.split_once(',').unwrap_or((after, "")),
        };
        assert!(
            all.insert(name.to_owned(), value.to_owned()).is_none(),
            "{list}"
        );
        rest = after;
    }
    all
}

fn media(path: &Path) -> Media {
    let playlist = text(path);
    let mut lines = playlist.lines();
    assert_eq!(lines.next(), Some("#EXTM3U"), "{playlist}");
    let mut read = Media {
        segments: Vec::new(),
        first: 0,
        has_ended: false,
    };
    let (mut target, mut day, mut length) = (None, None, None);
    for line in lines {
        assert!(!read.has_ended, "behind the end: {playlist}");
        let (tag, value) = line.split_once(':').unwrap_or((line, ""));
        match tag {
            "#EXT-X-VERSION" => assert_eq!(value, "6"),
            "#EXT-X-TARGETDURATION" => target = Some(value.parse::<u64>().unwrap()),
            "#EXT-X-MEDIA-SEQUENCE" => read.first = value.parse().unwrap(),
            "#EXT-X-PLAYLIST-TYPE" => assert_eq!(value, "EVENT"),
            "#EXT-X-PROGRAM-DATE-TIME" => {
                let time: jiff::Timestamp = value.parse().unwrap();
                day = Some(time.as_millisecond() as f64 / 1000.0);
            }
            "#EXTINF" => length = Some(value.strip_suffix(',').unwrap().parse::<f64>().unwrap()),
            "#EXT-X-ENDLIST" => read.has_ended = true,
            _ => {
                assert!(
                    !line.starts_with('#') && !line.is_empty(),
                    "{line:?}: {playlist}"
                );
                let length = length.take().unwrap();
                assert!(
                    length > 0.0 && length.round() as u64 <= target.unwrap(),
                    "{playlist}"
                );
                read.segments.push(Segment {
                    file: path.with_file_name(line),
                    length,
                    day: day.take().unwrap(),
                });
            }
        }
    }
    assert!(!read.segments.is_empty(), "{playlist}");
    for pair in read.segments.windows(2) {
        let apart = pair[1].day - pair[0].day - pair[0].length;
        assert!(apart.abs() < 0.005, "{apart}: {playlist}");
    }
    read
}

fn captions(segment: &Segment) -> Captions {
    let text = text(&segment.file);
    let (header, body) = text.split_once("\n\n").unwrap();
    let (magic, map) = header.split_once('\n').unwrap();
    assert_eq!(magic, "WEBVTT");
    let map = map.strip_prefix("X-TIMESTAMP-MAP=LOCAL:").unwrap();
    let (local, mpegts) = map.split_once(",MPEGTS:").unwrap();
    let (local, mpegts) = (seconds(local), mpegts.parse::<u64>().unwrap() as f64 / HZ);
    let on_clock = |time: &str| seconds(time) - local + mpegts;
    let cues = body.split_terminator("\n\n").map(|block| {
        let (times, text) = block.split_once('\n').unwrap();
        let (start, end) = times.split_once(" --> ").unwrap();
        let (start, end) = (on_clock(start), on_clock(end));
        assert!(start < end, "{block}");
        Cue {
            start: milli(start),
            end: milli(end),
            text: text.replace('\n', " "),
        }
    });
    // The map is of the file's own start.
    Captions {
        start: mpegts,
        length: segment.length,
        cues: cues.collect(),
    }
}

fn milli(seconds: f64) -> f64 {
    (seconds * 1000.0).round() / 1000.0
}

fn seconds(clock: &str) -> f64 {
    let parts: Vec<&str> = clock.split([':', '.']).collect();
    assert_eq!(parts.len(), 4, "{clock}");
    assert!(
        parts[1..3].iter().all(|p| p.len() == 2) && parts[3].len() == 3,
        "{clock}"
    );
    let [h, m, s, ms]: [f64; 4] = [0, 1, 2, 3].map(|n| parts[n].parse::<u32>().unwrap().into());
    (h * 60.0 + m) * 60.0 + s + ms / 1000.0
}

/// The times of all pictures, in seconds on the stream's clock.
fn pts(stream: &Path) -> Vec<f64> {
    let out = Command::new("ffprobe")
        .args(["-v", "error", "-select_streams", "v:0"])
        .args(["-show_entries", "frame=pts", "-of", "csv=p=0"])
        .arg(stream)
        .output()
        .unwrap();
    assert!(out.status.success(), "{out:?}");
    String::from_utf8(out.stdout)
        .unwrap()
        .lines()
        .filter_map(|line| line.trim_matches(',').parse::<f64>().ok())
        .map(|pts| pts / HZ)
        .collect()
}
