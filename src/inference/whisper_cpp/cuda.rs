// SPDX-License-Identifier: MPL-2.0
//! The cards that this build of whisper.cpp sees. It takes the processor without a word where the card that it is given
//! is not there.

use std::ffi::CStr;

use whisper_rs::whisper_rs_sys as sys;

use super::logging;
use crate::inference::{EngineError, nvml};

/// With this value CUDA numbers cards as we do.
const BY_BUS: &str = "PCI_BUS_ID";
/// Named so in the environment, for a worker too.
pub(in crate::inference) const ORDER: (&str, &str) = ("CUDA_DEVICE_ORDER", BY_BUS);

/// What whisper.cpp calls the card `number`, if it can be used. To be called under the lock for native starts.
pub(super) fn device(number: u32) -> Result<i32, EngineError> {
    let unusable = |why: String| {
        EngineError::Unsupported(format!(
            "device cuda:{number} cannot be used: {why}. Set device=cpu"
        ))
    };
    // Before the first back-end is made: it logs what it finds.
    logging::install();
    let cards = cards();
    if cards.is_empty() {
        let why = match nvml::card(number) {
            Ok(_) => "CUDA finds no card, though there is a driver: is it older than the CUDA that scribe was built with?".to_owned(),
            Err(why) => why,
        };
        return Err(unusable(why));
    }
    let by_bus = std::env::var_os(ORDER.0).is_some_and(|order| order == BY_BUS);
    let found = if cards.len() == 1 || by_bus {
        cards.get(number as usize).map(|_| number as usize)
    } else {
        let wanted = nvml::address(number).map_err(unusable)?;
        cards.iter().position(|card| address(*card) == Some(wanted))
    };
    let found = found.ok_or_else(|| match nvml::card(number) {
        Ok(_) => unusable(format!(
            "CUDA sees {} card(s), and not this one",
            cards.len()
        )),
        Err(why) => unusable(why),
    })?;
    i32::try_from(found).map_err(|e| unusable(e.to_string()))
}

/// Cards in whisper.cpp's order, found as it finds them.
fn cards() -> Vec<sys::ggml_backend_dev_t> {
    // SAFETY: the list is made at the first call and never shrinks; the pointers in it live as long as the process.
    let all = (0..unsafe { sys::ggml_backend_dev_count() })
        .map(|at| unsafe { sys::ggml_backend_dev_get(at) });
    all.filter(|device| {
        // SAFETY: a device of the list.
        let kind = unsafe { sys::ggml_backend_dev_type(*device) };
        kind == sys::ggml_backend_dev_type_GGML_BACKEND_DEVICE_TYPE_GPU
            || kind == sys::ggml_backend_dev_type_GGML_BACKEND_DEVICE_TYPE_IGPU
    })
    .collect()
}

/// Where a card is on the bus. Makes a context on it.
fn address(device: sys::ggml_backend_dev_t) -> Option<nvml::Address> {
    let mut facts = std::mem::MaybeUninit::<sys::ggml_backend_dev_props>::zeroed();
    // SAFETY: a device of the list, and room for its facts, all of which may be zero.
    let facts = unsafe {
        sys::ggml_backend_dev_get_props(device, facts.as_mut_ptr());
        facts.assume_init()
    };
    if facts.device_id.is_null() {
        return None;
    }
    // SAFETY: a NUL-terminated string that belongs to the device.
    let text = unsafe { CStr::from_ptr(facts.device_id) };
    nvml::parse_address(text.to_str().ok()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Where whisper.cpp was built without CUDA, and where there is no such card.
    #[test]
    fn a_card_that_is_not_there_is_an_error_and_not_the_processor() {
        let error = device(4000).expect_err("no machine has so many cards");

        assert!(matches!(error, EngineError::Unsupported(_)), "{error}");
        assert!(error.to_string().contains("cuda:4000"), "{error}");
        assert!(error.to_string().contains("device=cpu"), "{error}");
    }
}
