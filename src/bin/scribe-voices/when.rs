// SPDX-License-Identifier: MPL-2.0
//! When a voice is to be forgotten, from what was typed.

use jiff::civil::Date;
use jiff::tz::TimeZone;
use jiff::{Span, Timestamp};

use crate::Term;
use crate::failure::Failure;

/// Seconds since 1970 (UTC), or never. What was typed must say one of the three.
pub fn term(term: &Term, now: Timestamp) -> Result<Option<u64>, Failure> {
    match term {
        Term { never: true, .. } => Ok(None),
        Term {
            after: Some(after), ..
        } => in_time(after, now).map(Some),
        Term { on: Some(on), .. } => on_day(on).map(Some),
        _ => Err(Failure::Usage(
            "say when: --in 90d, --on 2030-01-31 or --never".into(),
        )),
    }
}

fn in_time(after: &str, now: Timestamp) -> Result<u64, Failure> {
    let wrong = || Failure::Usage(format!("--in {after:?} is no time to come: 90d, 12w, 3y"));
    let span: Span = after.parse().map_err(|_| wrong())?;
    let at = now
        .to_zoned_datetime(TimeZone::UTC)
        .checked_add(span)
        .map_err(|_| wrong())?
        .timestamp();
    let seconds = u64::try_from(at.as_second()).map_err(|_| wrong())?;
    if at <= now { Err(wrong()) } else { Ok(seconds) }
}

/// The first moment of a day, in UTC. A day of the past is good, too: to be forgotten now.
fn on_day(on: &str) -> Result<u64, Failure> {
    let wrong = || Failure::Usage(format!("--on {on:?} is no day: 2030-01-31"));
    let day: Date = on.parse().map_err(|_| wrong())?;
    let at = day.to_zoned_datetime(TimeZone::UTC).map_err(|_| wrong())?;
    u64::try_from(at.timestamp().as_second()).map_err(|_| wrong())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn typed(after: Option<&str>, on: Option<&str>, never: bool) -> Term {
        Term {
            after: after.map(Into::into),
            on: on.map(Into::into),
            never,
        }
    }

    #[test]
    fn terms_are_read_as_people_type_them() {
        let now: Timestamp = "2026-11-26T12:00:00Z".parse().unwrap();
        let at = |text: &str| {
            let at: Timestamp = text.parse().unwrap();
            Some(at.as_second() as u64)
        };

        for (after, day) in [
            ("90d", "2027-02-24T12:00:00Z"),
            ("2w", "2026-12-10T12:00:00Z"),
            ("3y", "2029-11-26T12:00:00Z"),
            ("1 month", "2026-12-26T12:00:00Z"),
        ] {
            let term = term(&typed(Some(after), None, false), now);
            assert_eq!(term.unwrap(), at(day), "{after}");
        }
        let on = term(&typed(None, Some("2030-01-31"), false), now).unwrap();
        assert_eq!(on, at("2030-01-31T00:00:00Z"));
        assert_eq!(term(&typed(None, None, true), now).unwrap(), None);
    }

    #[test]
    fn what_is_no_time_to_come_is_wrong_use() {
        let now = Timestamp::now();

        for after in ["", "90", "-90d", "0d", "soon", "99999y"] {
            let failure = term(&typed(Some(after), None, false), now).unwrap_err();
            assert_eq!(failure.exit_code(), 2, "{after}");
        }
        assert!(term(&typed(None, Some("31.1.2030"), false), now).is_err());
        assert!(term(&typed(None, None, false), now).is_err());
    }
}
