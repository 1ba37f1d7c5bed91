// SPDX-License-Identifier: MPL-2.0
//! Errors of the layers below become GStreamer's: a domain, a code, and a text with cause and remedy.
//! docs/errors.md has the table.

use gst::ErrorMessage;

use crate::inference::EngineError;

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
