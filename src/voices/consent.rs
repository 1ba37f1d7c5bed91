// SPDX-License-Identifier: MPL-2.0
//! What a consent must say.

use jiff::civil::Date;

use super::error::Problem;
use super::{Consent, NAME_BYTES_MAX};

/// Bytes of a purpose at most.
const PURPOSE_BYTES_MAX: usize = 1_024;

/// Whether all of it is there.
///
/// # Errors
/// If nobody gave it, the date is none, or no purpose is named.
pub fn check(consent: &Consent) -> Result<(), Problem> {
    let is_text = |text: &str, bytes_max| {
        !text.trim().is_empty() && text.len() <= bytes_max && !text.chars().any(char::is_control)
    };
    // jiff alone also takes other forms of ISO 8601.
    let is_date = consent.when.len() == 10 && consent.when.parse::<Date>().is_ok();
    match () {
        () if !is_text(&consent.who, NAME_BYTES_MAX) => Err(Problem::BadConsent(
            "it needs who gave it, 256 bytes at most and without control characters",
        )),
        () if !is_date => Err(Problem::BadConsent(
            "it needs the day it was given, as YYYY-MM-DD",
        )),
        () if !is_text(&consent.purpose, PURPOSE_BYTES_MAX) => Err(Problem::BadConsent(
            "it needs a purpose, 1024 bytes at most and without control characters",
        )),
        () => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn consent(who: &str, when: &str, purpose: &str) -> Consent {
        Consent {
            who: who.into(),
            when: when.into(),
            purpose: purpose.into(),
        }
    }

    #[test]
    fn a_consent_says_who_when_and_for_what() {
        assert!(check(&consent("Alice", "2026-11-26", "minutes")).is_ok());
        for wrong in [
            consent(" ", "2026-11-26", "minutes"),
            consent("Alice", "2026-02-30", "minutes"),
            consent("Alice", "yesterday", "minutes"),
            consent("Alice", "2026-11-26T10:00", "minutes"),
            consent("Alice", "2026-11-26", ""),
            consent("Ali\nce", "2026-11-26", "minutes"),
        ] {
            assert!(
                matches!(check(&wrong), Err(Problem::BadConsent(_))),
                "{wrong:?}"
            );
        }
    }
}
