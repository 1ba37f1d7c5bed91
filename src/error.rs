// SPDX-License-Identifier: MPL-2.0
//! Errors of the layers below become GStreamer's: a domain, a code, and a text with cause and remedy.
//! docs/errors.md has the table.

use gst::ErrorMessage;

use crate::enroll::judge::Refusal;
use crate::inference::EngineError;
use crate::voices::{Problem, StoreError};

/// The message for the bus.
pub fn engine_error(error: &EngineError) -> ErrorMessage {
    match error {
        EngineError::ModelMissing(_) => gst::error_msg!(gst::ResourceError::NotFound, ("{error}")),
        EngineError::ModelFile { .. } => gst::error_msg!(gst::ResourceError::OpenRead, ("{error}")),
        EngineError::InvalidModel { .. } => gst::error_msg!(gst::ResourceError::Read, ("{error}")),
        EngineError::OutOfMemory { .. } | EngineError::NoRoom { .. } => {
            gst::error_msg!(gst::ResourceError::NoSpaceLeft, ("{error}"))
        }
        EngineError::Runtime(_) => gst::error_msg!(gst::LibraryError::Init, ("{error}")),
        EngineError::Unsupported(_) => gst::error_msg!(gst::LibraryError::Settings, ("{error}")),
        _ => gst::error_msg!(gst::LibraryError::Failed, ("{error}")),
    }
}

/// The message for the bus where a recording is not good enough for a voice.
pub fn refusal(why: &Refusal) -> ErrorMessage {
    gst::error_msg!(gst::StreamError::Failed, ("No voice was enrolled: {why}"))
}

/// The message for the bus where the voices cannot be used.
pub fn store_error(error: &StoreError) -> ErrorMessage {
    match &error.problem {
        Problem::Missing | Problem::DanglingLink { .. } => {
            gst::error_msg!(gst::ResourceError::NotFound, ("{error}"))
        }
        Problem::Busy { .. } => gst::error_msg!(gst::ResourceError::Busy, ("{error}")),
        Problem::Full => gst::error_msg!(gst::ResourceError::NoSpaceLeft, ("{error}")),
        Problem::ReadOnly | Problem::NoCompanions | Problem::OpenedForReading => {
            gst::error_msg!(gst::ResourceError::OpenReadWrite, ("{error}"))
        }
        Problem::Foreign(_)
        | Problem::Newer { .. }
        | Problem::TooOld { .. }
        | Problem::NeedsMigration { .. }
        | Problem::Damaged(_)
        | Problem::Io { .. } => gst::error_msg!(gst::ResourceError::OpenRead, ("{error}")),
        Problem::WrongKey | Problem::NeedsKey | Problem::NotSealed | Problem::KeyChanged => {
            gst::error_msg!(gst::ResourceError::NotAuthorized, ("{error}"))
        }
        _ => gst::error_msg!(gst::ResourceError::Settings, ("{error}")),
    }
}
