// SPDX-License-Identifier: MPL-2.0
//! The streaming thread's half of hearing: buffers are converted and left in the inbox.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::Channels;
use super::inbox::{Inbox, Item, Put, Sound};
use super::input::Input;

/// Why a buffer was not taken.
#[derive(Debug)]
pub(crate) enum Refusal {
    /// To be posted; upstream is then refused with the flow.
    Error(gst::ErrorMessage, gst::FlowError),
    /// Flushing, or on the way to READY.
    Flushing,
    /// The worker has given up: it has said why.
    Failed,
}

#[derive(Debug, Default)]
struct State {
    input: Option<Input>,
    is_live: bool,
    /// Live sound was dropped: the next is a new piece.
    dropped: bool,
}

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Ear {
    inbox: Arc<Inbox>,
    // Never held across a wait: the inbox's lock comes after it and is never taken under it.
    state: Mutex<State>,
}

impl Ear {
    /// Where sound and events go.
    pub(crate) fn inbox(&self) -> &Arc<Inbox> {
        &self.inbox
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// READY to PAUSED and back: as new.
    pub(crate) fn reset(&self) {
        *self.state() = State::default();
    }

    /// Whether what is heard is live, and to be dropped rather than held up.
    pub(crate) fn set_live(&self, is_live: bool) {
        self.state().is_live = is_live;
    }

    /// Sound of this form follows. Tells in which form it is taken; `None` if it is the one there was.
    pub(crate) fn set_caps(
        &self,
        caps: &gst::CapsRef,
        channels: Channels,
    ) -> Result<Option<usize>, gst::ErrorMessage> {
        let known = self.state().input.as_ref().is_some_and(|input| {
            gst_audio::AudioInfo::from_caps(caps).is_ok_and(|info| &info == input.info())
        });
        if known {
            return Ok(None);
        }
        self.drain();
        let input = Input::new(caps, channels)?;
        let channels = input.channels();
        self.state().input = Some(input);
        Ok(Some(channels))
    }

    /// Converts a buffer and hands it in. A file's waits while `most_samples` are there already; true if live sound was
    /// dropped. `element` is named where its caps are missing.
    pub(crate) fn hear(
        &self,
        buffer: &gst::BufferRef,
        most_samples: usize,
        element: &str,
    ) -> Result<bool, Refusal> {
        let (bytes, is_live, piece_bytes, mut discont) = {
            let mut state = self.state();
            let dropped = std::mem::take(&mut state.dropped);
            let is_live = state.is_live;
            let Some(input) = &mut state.input else {
                let message = gst::error_msg!(
                    gst::CoreError::Negotiation,
                    ("sound came before its caps: put decodebin or a parser before {element}")
                );
                return Err(Refusal::Error(message, gst::FlowError::NotNegotiated));
            };
            let discont = buffer.flags().contains(gst::BufferFlags::DISCONT) || dropped;
            if discont {
                input.reset();
            }
            let piece_bytes = input.bytes_per_second().max(1);
            let mut bytes = input.bytes(buffer);
            if buffer.flags().contains(gst::BufferFlags::GAP)
                && let Some(bytes) = &mut bytes
            {
                // Zero is no silence in unsigned formats.
                input.info().format_info().fill_silence(bytes);
            }
            (bytes, is_live, piece_bytes, discont)
        };
        let Some(bytes) = bytes else {
            let message = gst::error_msg!(
                gst::ResourceError::Read,
                ("a buffer of sound cannot be read")
            );
            return Err(Refusal::Error(message, gst::FlowError::Error));
        };
        // A buffer may hold hours (a low rate, a demuxer that likes large ones): in pieces of a second the bound
        // on what waits stays exact.
        let mut pts = buffer.pts();
        let mut dropped = false;
        for piece in bytes.chunks(piece_bytes) {
            // Locks are let go between conversion and waiting.
            let converted = match &mut self.state().input {
                Some(input) => input.convert(piece),
                None => return Err(Refusal::Flushing),
            };
            let Some(channels) = converted else {
                let message = gst::error_msg!(
                    gst::StreamError::Decode,
                    ("libgstaudio could not convert the sound")
                );
                return Err(Refusal::Error(message, gst::FlowError::Error));
            };
            let sound = Sound {
                channels,
                pts: pts.take(),
                discont: std::mem::take(&mut discont),
            };
            dropped |= self.hand_in(Item::Sound(sound), most_samples, is_live)?;
        }
        Ok(dropped)
    }

    /// Hands in an event.
    pub(crate) fn event(&self, event: gst::Event) -> Result<(), Refusal> {
        self.hand_in(Item::Event(event), 0, false).map(drop)
    }

    fn hand_in(&self, item: Item, most: usize, is_live: bool) -> Result<bool, Refusal> {
        match self.inbox.put(item, most, is_live) {
            Put::Done => Ok(false),
            Put::Flushing => Err(Refusal::Flushing),
            Put::Failed => Err(Refusal::Failed),
            Put::Dropped => {
                self.state().dropped = true;
                Ok(true)
            }
        }
    }

    /// The resampler's last samples follow what it was given.
    pub(crate) fn drain(&self) {
        let rest = self.state().input.as_mut().and_then(Input::drain);
        if let Some(channels) = rest.filter(|c| c.iter().any(|c| !c.is_empty())) {
            let sound = Sound {
                channels,
                pts: None,
                discont: false,
            };
            let _ = self.hand_in(Item::Sound(sound), usize::MAX, false);
        }
        if let Some(input) = &mut self.state().input {
            input.reset();
        }
    }

    /// FLUSH_STOP: what was heard is void.
    pub(crate) fn flush_stop(&self) {
        self.inbox.flush_stop();
        let mut state = self.state();
        state.dropped = false;
        if let Some(input) = &mut state.input {
            input.reset();
        }
    }
}
