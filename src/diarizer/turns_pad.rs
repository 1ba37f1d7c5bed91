// SPDX-License-Identifier: MPL-2.0
//! The request pad `turns`: a buffer a turn, with the name as text and the turn as meta.

use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use gst::prelude::*;

use crate::messages::SpokenTurn;
use crate::meta;

/// What goes out there, in order.
#[derive(Debug)]
pub(super) enum Out {
    Event(gst::Event),
    Buffer(gst::Buffer),
}

/// What the pad's stream is like, and how far it has come.
#[derive(Debug)]
pub(super) struct TurnsStream {
    group: Option<gst::GroupId>,
    segment: gst::FormattedSegment<gst::ClockTime>,
    position: Option<gst::ClockTime>,
    /// The pad has heard of the stream, and of the segment.
    has_begun: bool,
    has_segment: bool,
}

impl Default for TurnsStream {
    fn default() -> Self {
        Self {
            group: None,
            segment: gst::FormattedSegment::new(),
            position: None,
            has_begun: false,
            has_segment: false,
        }
    }
}

impl TurnsStream {
    /// Another stream begins.
    pub(super) fn begin(&mut self, group: Option<gst::GroupId>) {
        self.group = group;
        self.has_begun = false;
        self.has_segment = false;
        self.position = None;
    }

    /// Another segment begins: that of the sound.
    pub(super) fn set_segment(&mut self, segment: &gst::FormattedSegment<gst::ClockTime>) {
        self.segment = segment.clone();
        self.has_segment = false;
        self.position = segment.start();
    }

    /// A flush has taken the segment away.
    pub(super) fn flush(&mut self) {
        self.has_segment = false;
        self.position = self.segment.start();
    }

    /// What must come before anything else on `pad`.
    pub(super) fn head(&mut self, element: &super::Diarizer, pad: &gst::Pad) -> Vec<Out> {
        let mut out = Vec::new();
        if !std::mem::replace(&mut self.has_begun, true) {
            let id = pad.create_stream_id(element, Some("turns"));
            let mut start = gst::event::StreamStart::builder(&id).flags(gst::StreamFlags::SPARSE);
            if let Some(group) = self.group {
                start = start.group_id(group);
            }
            out.push(Out::Event(start.build()));
            out.push(Out::Event(gst::event::Caps::new(&caps())));
        }
        if !std::mem::replace(&mut self.has_segment, true) {
            out.push(Out::Event(gst::event::Segment::new(&self.segment)));
            // Turns may come at the end of the file: a sink need not wait so long for its preroll.
            if let Some(start) = self.segment.start() {
                out.push(Out::Event(gst::event::Gap::builder(start).build()));
            }
        }
        out
    }

    /// A turn, with a GAP before it where nobody speaks.
    pub(super) fn turn(&mut self, spoken: &SpokenTurn) -> Vec<Out> {
        let (Some(start), Some(end)) = (self.pts(spoken.turn.start.0), self.pts(spoken.turn.end.0))
        else {
            return Vec::new();
        };
        let start = self.position.map_or(start, |p| p.max(start));
        let end = end.max(start + gst::ClockTime::NSECOND);
        let mut out: Vec<Out> = self.gap(start).into_iter().collect();
        let name = spoken.turn.speaker.as_ref();
        let name = name.unwrap_or(&spoken.turn.speaker_id).clone();
        let mut buffer = gst::Buffer::from_slice(name.into_bytes());
        if let Some(buffer) = buffer.get_mut() {
            buffer.set_pts(start);
            buffer.set_duration(end - start);
            meta::write_turn(buffer, &spoken.turn);
        }
        // Turns may overlap: the next one begins no earlier than this one.
        self.position = Some(start);
        out.push(Out::Buffer(buffer));
        out
    }

    /// Nothing will be added before `stream_ns`.
    pub(super) fn advance(&mut self, stream_ns: u64) -> Option<Out> {
        let to = self.pts(stream_ns)?;
        self.gap(to)
    }

    fn gap(&mut self, to: gst::ClockTime) -> Option<Out> {
        let from = self.position?;
        let duration = to.checked_sub(from).filter(|d| !d.is_zero())?;
        self.position = Some(to);
        let gap = gst::event::Gap::builder(from).duration(duration).build();
        Some(Out::Event(gap))
    }

    fn pts(&self, stream_ns: u64) -> Option<gst::ClockTime> {
        let time = gst::ClockTime::from_nseconds(stream_ns);
        self.segment.position_from_stream_time(time).or_else(|| {
            let offset = time.saturating_sub(self.segment.time().unwrap_or_default());
            self.segment.start()?.checked_add(offset)
        })
    }
}

/// What waits to be pushed there. A thread of its own pushes: a sink that prerolls on `turns` must hold up neither the sound
/// nor those who find out who speaks.
#[derive(Debug, Default)]
pub(super) struct TurnsQueue {
    state: Mutex<Queue>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Queue {
    waiting: VecDeque<(u64, Out)>,
    is_shut: bool,
}

impl TurnsQueue {
    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// READY to PAUSED.
    pub(super) fn open(&self) {
        *self.lock() = Queue::default();
    }

    /// PAUSED to READY: whoever waits goes home.
    pub(super) fn shut(&self) {
        let mut state = self.lock();
        state.is_shut = true;
        state.waiting.clear();
        drop(state);
        self.changed.notify_all();
    }

    /// More of epoch `epoch`.
    pub(super) fn put(&self, epoch: u64, out: impl IntoIterator<Item = Out>) {
        let mut state = self.lock();
        if !state.is_shut {
            state
                .waiting
                .extend(out.into_iter().map(|out| (epoch, out)));
        }
        drop(state);
        self.changed.notify_all();
    }

    /// The next, with its epoch, once there is one; `None` when it is shut.
    pub(super) fn take(&self) -> Option<(u64, Out)> {
        let mut state = self.lock();
        loop {
            if state.is_shut {
                return None;
            }
            if let Some(next) = state.waiting.pop_front() {
                return Some(next);
            }
            state = self
                .changed
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }
}

/// What the pad gives.
pub(super) fn caps() -> gst::Caps {
    gst::Caps::builder("text/x-raw")
        .field("format", "utf8")
        .build()
}
