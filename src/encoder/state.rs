// SPDX-License-Identifier: MPL-2.0
//! What streaming has built up in `scribeenc`: text becomes cues, cues become buffers of bytes.
//!
//! Nothing here pushes: methods return what to push, so that no lock is held then.

use std::collections::VecDeque;
use std::io;

use super::Cues;
use super::settings::Settings;
use crate::audio::time::StreamNs;
use crate::meta::{Transcribed, Unit};
use crate::transcript::cues::{self, Bounds, CueStyle};
use crate::transcript::formats::fragments::{Fragment, Fragments};
use crate::transcript::formats::{Format, Relabel, Totals, Writer};
use crate::transcript::{Cue, SegmentInfo, Turn, Word};

/// Words that wait for the end of their sentence: no more than this, whatever comes.
const WAITING_WORDS_MAX: usize = 300;

/// The same in fragments, as sound: those who watch a stream wait with them.
const WAITING_NS_MAX: u64 = 10_000_000_000;

/// How long text without a duration is shown: at this many characters a second, within bounds.
const READING_CPS: u64 = 15;
const READING_BOUNDS_NS: (u64, u64) = (1_000_000_000, 7_000_000_000);

/// How much longer than the recording its last cue may stay.
const LAST_LINGER_NS: u64 = 1_000_000_000;

/// Where output goes: chosen once an output begins.
#[derive(Clone, Debug)]
pub(super) struct Output {
    pub format: Format,
    /// HLS: a new header wherever a fragment begins.
    pub is_fragmented: bool,
}

#[derive(Default)]
pub(super) struct State {
    /// Set by CAPS: the text is markup.
    pub is_markup: bool,
    pub segment: Option<gst::FormattedSegment<gst::ClockTime>>,
    pub output: Option<Output>,
    /// An error was posted, and once is enough.
    pub has_failed: bool,
    /// Of the last language tag, for text that says none itself.
    language: String,
    writing: Option<Writing>,
    /// Running times at which fragments shall begin.
    fragments: VecDeque<gst::ClockTime>,
}

/// One file.
struct Writing {
    writer: Writer,
    /// In its place where files of equal length are wanted.
    fragments: Option<Fragments>,
    settings: Settings,
    style: CueStyle,
    waiting: Waiting,
    /// How far the recording is known, stream time.
    position: StreamNs,
    last_cue: Option<Cue>,
    next_segment_id: u64,
    first_pts: Option<gst::ClockTime>,
    last_end: Option<gst::ClockTime>,
    is_started: bool,
}

/// Words that are no cue yet.
#[derive(Default)]
struct Waiting {
    words: Vec<Word>,
    /// Their segment, where they came with one.
    info: Option<SegmentInfo>,
}

impl State {
    /// After FLUSH_STOP: what was heard is void, the file begins anew. What the sticky events said
    /// stays.
    pub fn flush(&mut self) {
        self.writing = None;
        self.segment = None;
        self.has_failed = false;
        self.fragments.clear();
    }

    /// Whether bytes have been made that cannot be taken back.
    pub fn has_begun(&self) -> bool {
        self.writing.is_some()
    }

    pub fn set_language(&mut self, code: &str) {
        self.language = code.to_owned();
    }

    /// A fragment shall begin at this running time.
    pub fn request_fragment(&mut self, running_time: gst::ClockTime) {
        let is_fragmented = self.output.as_ref().is_some_and(|o| o.is_fragmented);
        if is_fragmented && !self.has_fragments() && self.fragments.len() < 64 {
            self.fragments.push_back(running_time);
        }
    }

    /// Takes text that came with a meta.
    pub fn transcribed(&mut self, settings: &Settings, mut text: Transcribed) -> Vec<gst::Buffer> {
        if !text.is_final {
            return Vec::new();
        }
        if text.cue.segment.language.is_empty() {
            text.cue.segment.language.clone_from(&self.language);
        }
        let mode = settings.cues;
        let join = match mode {
            Cues::Auto => text.unit == Unit::Word,
            Cues::Keep => false,
            Cues::Make => true,
        };
        let mut out = self.begin(settings);
        let cue = text.cue;
        let spoken_end = cue.words.iter().map(|w| w.end).max().unwrap_or(cue.end);
        if join {
            let words = match cue.words.is_empty() {
                true => cues::spread(&cue.text(), cue.start, cue.end),
                false => cue.words,
            };
            // A live segment is what stood at once, a few words: fragments have sentences instead.
            let info = Some(cue.segment).filter(|_| !self.has_fragments());
            out.extend(self.join(words, info));
        } else {
            out.extend(self.release(Some(cue.start)));
            out.extend(self.cue(cue));
        }
        self.reach(spoken_end);
        out
    }

    /// Takes text without a meta. `start` and `end` are stream time.
    pub fn text(
        &mut self,
        settings: &Settings,
        text: &str,
        start: StreamNs,
        end: Option<StreamNs>,
    ) -> Vec<gst::Buffer> {
        let end = end.filter(|&end| end > start).unwrap_or_else(|| {
            let characters = text.chars().count() as u64;
            let reading = characters.saturating_mul(1_000_000_000) / READING_CPS;
            let (least, most) = READING_BOUNDS_NS;
            StreamNs(start.0.saturating_add(reading.clamp(least, most)))
        });
        let mut out = self.begin(settings);
        if settings.cues == Cues::Make {
            out.extend(self.join(spread_led(text, start, end), None));
        } else {
            let cue = Cue {
                start,
                end,
                lines: text.lines().map(str::to_owned).collect(),
                words: Vec::new(),
                segment: self.own_segment(),
                speaker_id: None,
                speaker: None,
            };
            out.extend(self.cue(cue));
        }
        self.reach(end);
        out
    }

    pub fn turn(&mut self, settings: &Settings, turn: &Turn) -> Vec<gst::Buffer> {
        let mut out = self.begin(settings);
        self.reach(turn.end);
        out.extend(self.write(None, |writer, bytes| writer.turn(turn, bytes)));
        out
    }

    pub fn relabel(&mut self, settings: &Settings, relabel: &Relabel) -> Vec<gst::Buffer> {
        let mut out = self.begin(settings);
        out.extend(self.write(None, |writer, bytes| writer.relabel(relabel, bytes)));
        out
    }

    /// Nothing is said up to `until`, stream time.
    pub fn gap(&mut self, settings: &Settings, until: StreamNs) -> Vec<gst::Buffer> {
        let mut out = self.begin(settings);
        self.reach(until);
        if let Some(writing) = &self.writing
            && let Some(last) = writing.waiting.words.last()
            && until.0.saturating_sub(last.end.0) >= writing.style.forced_pause_ns
        {
            out.extend(self.release(Some(until)));
        }
        if let Some(running) = self.to_running(until) {
            out.extend(self.new_fragments(running));
        }
        let waiting = self.writing.as_ref().and_then(|w| w.waiting.words.first());
        let known = waiting.map_or(until, |word| until.min(word.start));
        let known_ms = self.to_running_ms(known);
        out.extend(self.fragments(|fragments| fragments.reach(known_ms)));
        out
    }

    /// Gives out the words that wait. `until`: no word will come before this.
    pub fn release(&mut self, until: Option<StreamNs>) -> Vec<gst::Buffer> {
        let Some(writing) = &mut self.writing else {
            return Vec::new();
        };
        let waiting = std::mem::take(&mut writing.waiting);
        if waiting.words.is_empty() {
            return Vec::new();
        }
        let bounds = Bounds {
            previous_end: writing.last_cue.as_ref().map(|c| c.end),
            until,
        };
        let cues = match waiting.info {
            // Words of one segment: it keeps its id and its figures.
            Some(info) => {
                let mut cues =
                    cues::arrange(waiting.words, &[], &info, &mut 0, bounds, &writing.style);
                for cue in &mut cues {
                    cue.segment.clone_from(&info);
                }
                cues
            }
            None => {
                let window = SegmentInfo {
                    language: self.language.clone(),
                    ..SegmentInfo::default()
                };
                let next = &mut writing.next_segment_id;
                cues::arrange(waiting.words, &[], &window, next, bounds, &writing.style)
            }
        };
        cues.into_iter().flat_map(|cue| self.cue(cue)).collect()
    }

    /// The end of the file. What comes later begins another.
    pub fn finish(&mut self, settings: &Settings) -> Vec<gst::Buffer> {
        let mut out = self.begin(settings);
        let position = self.writing.as_ref().map(|w| w.position);
        // Nothing follows: the last cue may linger as any other.
        let silence = position.map(|p| StreamNs(p.0.saturating_add(LAST_LINGER_NS)));
        out.extend(self.release(silence));
        let language = Some(self.language.clone()).filter(|l| !l.is_empty());
        let has_segments = self.writing.as_ref().is_some_and(|w| w.last_cue.is_some());
        let totals = Totals {
            duration: position.unwrap_or_default(),
            // A tag is for text that says nothing of its language.
            language: language.filter(|_| !has_segments),
            task: None,
        };
        let span = self.writing.as_ref().and_then(|w| {
            let segment_start = self.segment.as_ref().and_then(|s| s.start());
            let is_document = w.writer.format().is_document();
            let start = w.first_pts.or(segment_start).filter(|_| is_document)?;
            let end = w.last_end.unwrap_or(start).max(start);
            Some((start, end))
        });
        let end_ms = position.map_or(0, |p| self.to_running_ms(p));
        if let Some(fragments) = self.writing.as_mut().and_then(|w| w.fragments.take()) {
            out.extend(self.files(fragments.finish(end_ms)));
        } else {
            out.extend(self.write(span, |writer, bytes| writer.finish(&totals, bytes)));
        }
        self.writing = None;
        out
    }

    /// Opens the file if none is open, and gives what stands at its start.
    fn begin(&mut self, settings: &Settings) -> Vec<gst::Buffer> {
        if self.writing.is_none() {
            let format = self.output.as_ref().map(|o| o.format);
            let is_fragmented = self.output.as_ref().is_some_and(|o| o.is_fragmented);
            let length_ms = u64::from(settings.fragment_duration_ms);
            let fragments = (is_fragmented && length_ms > 0).then(|| {
                let segment = self.segment.as_ref();
                let at_ms = segment.map_or(0, |s| running_ms(s, s.start()));
                let offset_ms = u64::from(settings.mpegts_offset_ms);
                Fragments::new(length_ms, at_ms, offset_ms, settings.cue_ids)
            });
            self.writing = Some(Writing {
                writer: Writer::new(format.unwrap_or_default(), settings.options()),
                fragments,
                style: settings.style(),
                settings: settings.clone(),
                waiting: Waiting::default(),
                position: StreamNs::default(),
                last_cue: None,
                next_segment_id: 0,
                first_pts: None,
                last_end: None,
                is_started: false,
            });
        }
        let is_started = match &mut self.writing {
            // Each has a header of its own.
            Some(writing) if writing.fragments.is_some() => true,
            Some(writing) => std::mem::replace(&mut writing.is_started, true),
            None => true,
        };
        if is_started {
            return Vec::new();
        }
        let at = self.segment.as_ref().and_then(|s| s.start());
        self.header(at)
    }

    fn header(&mut self, at: Option<gst::ClockTime>) -> Vec<gst::Buffer> {
        let span = at.map(|at| (at, at));
        let mut out = self.write(span, |writer, bytes| writer.start(bytes));
        for buffer in &mut out {
            let buffer = buffer.make_mut();
            buffer.set_flags(gst::BufferFlags::HEADER);
            buffer.set_duration(gst::ClockTime::ZERO);
        }
        out
    }

    /// Adds words to those that wait, and gives out what is complete.
    fn join(&mut self, words: Vec<Word>, info: Option<SegmentInfo>) -> Vec<gst::Buffer> {
        let mut out = Vec::new();
        for word in words {
            let Some(writing) = &self.writing else {
                return out;
            };
            let waiting = &writing.waiting;
            let is_other = waiting.info.as_ref().map(|i| i.id) != info.as_ref().map(|i| i.id);
            let is_pause = waiting.words.last().is_some_and(|last| {
                word.start.0.saturating_sub(last.end.0) >= writing.style.forced_pause_ns
            });
            // Without segments the sentences are looked for here.
            let is_sentence = info.is_none()
                && waiting
                    .words
                    .last()
                    .is_some_and(|last| cues::ends_sentence(&last.text));
            let is_long = writing.fragments.is_some()
                && waiting
                    .words
                    .first()
                    .is_some_and(|first| word.end.0.saturating_sub(first.start.0) > WAITING_NS_MAX);
            let is_full = is_long || waiting.words.len() >= WAITING_WORDS_MAX;
            if is_other || is_pause || is_sentence || is_full {
                out.extend(self.release(Some(word.start)));
            }
            if let Some(writing) = &mut self.writing {
                writing.waiting.info.clone_from(&info);
                writing.waiting.words.push(word);
            }
        }
        out
    }

    fn own_segment(&mut self) -> SegmentInfo {
        let id = match &mut self.writing {
            Some(writing) => {
                writing.next_segment_id += 1;
                writing.next_segment_id - 1
            }
            None => 0,
        };
        SegmentInfo {
            id,
            language: self.language.clone(),
            ..SegmentInfo::default()
        }
    }

    /// Writes a cue.
    fn cue(&mut self, cue: Cue) -> Vec<gst::Buffer> {
        if self.has_fragments() {
            return self.cue_of_fragments(cue);
        }
        let mut out = Vec::new();
        if let Some(running) = self.to_running(cue.start) {
            out.extend(self.new_fragments(running));
        }
        let span = self.to_position(cue.start).zip(self.to_position(cue.end));
        let is_fragmented = self.output.as_ref().is_some_and(|o| o.is_fragmented);
        let mut written = self.write(span, |writer, bytes| writer.cue(&cue, bytes));
        if is_fragmented {
            for buffer in &mut written {
                buffer.make_mut().set_flags(gst::BufferFlags::DELTA_UNIT);
            }
        }
        out.extend(written);
        if let Some(writing) = &mut self.writing {
            if let Some((start, end)) = span {
                writing.first_pts.get_or_insert(start);
                writing.last_end = writing.last_end.max(Some(end));
            }
            writing.last_cue = Some(cue);
        }
        out
    }

    fn has_fragments(&self) -> bool {
        self.writing.as_ref().is_some_and(|w| w.fragments.is_some())
    }

    /// Adds a cue to the file of its time.
    fn cue_of_fragments(&mut self, cue: Cue) -> Vec<gst::Buffer> {
        let at = |time| StreamNs(self.to_running_ms(time).saturating_mul(1_000_000));
        let on_their_clock = Cue {
            start: at(cue.start),
            end: at(cue.end),
            ..cue.clone()
        };
        let out = self.fragments(|fragments| fragments.cue(&on_their_clock));
        if let Some(writing) = &mut self.writing {
            writing.last_cue = Some(cue);
        }
        out
    }

    fn fragments(
        &mut self,
        with: impl FnOnce(&mut Fragments) -> Vec<Fragment>,
    ) -> Vec<gst::Buffer> {
        let fragments = self.writing.as_mut().and_then(|w| w.fragments.as_mut());
        let done = fragments.map(with).unwrap_or_default();
        self.files(done)
    }

    /// A buffer a file: its time and length are those of the file's span, its offset the file's number.
    fn files(&self, fragments: Vec<Fragment>) -> Vec<gst::Buffer> {
        let of = |fragment: Fragment| {
            let mut buffer = gst::Buffer::from_slice(fragment.bytes);
            let start = gst::ClockTime::from_mseconds(fragment.start_ms);
            let segment = self.segment.as_ref();
            // The first one may have begun before the segment.
            let pts = segment.and_then(|s| s.position_from_running_time(start).or(s.start()));
            let fields = buffer.make_mut();
            fields.set_pts(pts);
            fields.set_duration(gst::ClockTime::from_mseconds(
                fragment.end_ms.saturating_sub(fragment.start_ms),
            ));
            fields.set_offset(fragment.index);
            buffer
        };
        fragments.into_iter().map(of).collect()
    }

    /// Begins the fragments that are due at `running`: each has a header of its own, and again the
    /// cue that is on screen then.
    fn new_fragments(&mut self, running: gst::ClockTime) -> Vec<gst::Buffer> {
        let mut out = Vec::new();
        while self.fragments.front().is_some_and(|&due| due <= running) {
            let Some(due) = self.fragments.pop_front() else {
                break;
            };
            let at = self
                .segment
                .as_ref()
                .and_then(|s| s.position_from_running_time(due));
            let mut shown = None;
            if let Some(writing) = &mut self.writing {
                writing.writer = Writer::new(writing.writer.format(), writing.settings.options());
                shown = writing.last_cue.clone();
            }
            out.extend(self.header(at));
            let stream = at.and_then(|at| self.segment.as_ref()?.to_stream_time(at));
            if let (Some(cue), Some(stream)) = (shown, stream)
                && cue.end.0 > stream.nseconds()
            {
                let span = at.zip(self.to_position(cue.end));
                let mut again = self.write(span, |writer, bytes| writer.cue(&cue, bytes));
                for buffer in &mut again {
                    buffer.make_mut().set_flags(gst::BufferFlags::DELTA_UNIT);
                }
                out.extend(again);
            }
        }
        out
    }

    fn write(
        &mut self,
        span: Option<(gst::ClockTime, gst::ClockTime)>,
        with: impl FnOnce(&mut Writer, &mut Vec<u8>) -> io::Result<()>,
    ) -> Vec<gst::Buffer> {
        let Some(writing) = &mut self.writing else {
            return Vec::new();
        };
        let mut bytes = Vec::new();
        // Memory takes every byte: there is no error.
        let _ = with(&mut writing.writer, &mut bytes);
        if bytes.is_empty() {
            return Vec::new();
        }
        let mut buffer = gst::Buffer::from_slice(bytes);
        if let Some((start, end)) = span {
            let buffer = buffer.make_mut();
            buffer.set_pts(start);
            buffer.set_duration(end.saturating_sub(start).max(gst::ClockTime::NSECOND));
        }
        vec![buffer]
    }

    fn reach(&mut self, position: StreamNs) {
        if let Some(writing) = &mut self.writing {
            writing.position = writing.position.max(position);
        }
    }

    fn to_position(&self, time: StreamNs) -> Option<gst::ClockTime> {
        let time = gst::ClockTime::try_from(time.0).ok()?;
        let segment = self.segment.as_ref()?;
        segment.position_from_stream_time(time).or_else(|| {
            // Beyond the segment's stop, where a cue may linger.
            let offset = time.checked_sub(segment.time()?)?;
            segment.start()?.checked_add(offset)
        })
    }

    /// Of what lies outside of the segment, too: a cue may linger.
    fn to_running_ms(&self, time: StreamNs) -> u64 {
        let Some(segment) = &self.segment else {
            return 0;
        };
        running_ms(segment, self.to_position(time))
    }

    fn to_running(&self, time: StreamNs) -> Option<gst::ClockTime> {
        let position = self.to_position(time)?;
        self.segment.as_ref()?.to_running_time(position)
    }
}

/// The running time of a position, zero for what is before it.
fn running_ms(
    segment: &gst::FormattedSegment<gst::ClockTime>,
    position: Option<gst::ClockTime>,
) -> u64 {
    let running = segment.to_running_time_full(position);
    running
        .and_then(|signed| signed.positive())
        .map_or(0, gst::ClockTime::mseconds)
}

/// Words of a text that follows on others: the first has a space before it unless its script has
/// none.
fn spread_led(text: &str, start: StreamNs, end: StreamNs) -> Vec<Word> {
    let mut words = cues::spread(text, start, end);
    if let Some(first) = words.first_mut()
        && !first.text.starts_with(' ')
    {
        first.text.insert(0, ' ');
    }
    words
}
