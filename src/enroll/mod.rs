// SPDX-License-Identifier: MPL-2.0
//! Enrolment: from sound to what is kept of a voice.
//!
//! [`recording`] is one person's, [`conversation`] has several. Both hear speech of one person at a time ([`hearing`]) and
//! measure it ([`measure`]). [`embed`] is how many pieces go through the registry.

pub mod conversation;
pub mod hearing;
pub mod judge;
pub mod keeper;
pub mod measure;
pub mod pieces;
pub mod recording;
pub mod speakers;

use std::collections::VecDeque;
use std::fmt;
use std::time::Duration;

use crate::inference::{CancelToken, EngineError, VoiceVector};
use crate::registry::ledger::DeviceMemory;
use crate::registry::limit::human_bytes;
use crate::registry::{Class, Degraded, Embedding, Lease, Ticket};

/// Most segments in a batch that can be asked for.
pub const BATCH_SIZE_MAX: usize = 256;

/// The variables that say how large batches are, in the order in which they count. The second is that of the system before.
const BATCH_SIZE_VARIABLES: [&str; 2] = ["SCRIBE_ENROLL_BATCH_SIZE", "VOICE_ENROLLMENT_BATCH_SIZE"];

/// Batches that are handed over ahead of the answers.
const AHEAD: usize = 2;

/// How an enrolment is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EnrollOptions {
    /// Samples of a segment.
    pub duration: usize,
    /// From the start of one segment to that of the next, samples.
    pub hop: usize,
    /// Most segments, spread over the recording.
    pub max_segments: usize,
    /// Most segments in a batch, 1 to 256; 0 leaves it to the registry, which measures and knows what fits.
    pub batch_size: usize,
    /// A recording longer than this is not enrolled; `None`, the default, for no such bound. It spared the system before
    /// what it had no memory for, and 1,800 s was its advice: here memory does not depend on the length.
    pub skip_above: Option<Duration>,
}

impl Default for EnrollOptions {
    fn default() -> Self {
        Self {
            duration: 48_000,
            hop: 24_000,
            max_segments: 500,
            batch_size: 0,
            skip_above: None,
        }
    }
}

impl EnrollOptions {
    /// The defaults, with what `variable` says of the environment. An error names the variable, the value and the range.
    pub fn from_environment(variable: impl Fn(&str) -> Option<String>) -> Result<Self, String> {
        let set = |name: &str| variable(name).filter(|v| !v.trim().is_empty());
        let found = BATCH_SIZE_VARIABLES
            .iter()
            .find_map(|name| Some((name, set(name)?)));
        let batch_size = match found {
            None => 0,
            Some((name, value)) => batch_size(&value).ok_or_else(|| {
                format!(
                    "{name}={value} is no batch size: 1 to {BATCH_SIZE_MAX} segments, or 0 to leave it to scribe"
                )
            })?,
        };
        Ok(Self {
            batch_size,
            ..Self::default()
        })
    }

    /// Whether a recording of `duration` is left out, and what is to be told then.
    pub fn skips(&self, duration: Duration) -> Option<Degraded> {
        let most = self.skip_above.filter(|most| duration > *most)?;
        Some(Degraded {
            what: "enrollment".into(),
            from: "enrolled".into(),
            to: "skipped".into(),
            reason: format!(
                "the recording has {:.0} s, more than skip-enrollment-above={:.0}",
                duration.as_secs_f64(),
                most.as_secs_f64()
            ),
        })
    }
}

/// A batch size as people write it.
fn batch_size(text: &str) -> Option<usize> {
    let size = text.trim().parse().ok()?;
    (size <= BATCH_SIZE_MAX).then_some(size)
}

/// How far an enrolment is. Written out it is a line for the log.
#[derive(Clone, Debug, PartialEq)]
pub enum Progress {
    /// It begins.
    Begin {
        /// Segments in all.
        segments: usize,
        /// Batches that they make.
        batches: usize,
        /// Segments in a full batch.
        batch: usize,
        /// The device's memory now, where it is known.
        memory: Option<DeviceMemory>,
    },
    /// So much is done.
    Done {
        /// Batches' worth of answers.
        batches: usize,
        /// Batches in all.
        of: usize,
        /// Answers.
        embeddings: usize,
    },
}

impl fmt::Display for Progress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Begin {
                segments,
                batches,
                batch,
                memory,
            } => {
                write!(
                    f,
                    "Processing {} in {} of {batch}",
                    counted(*segments, "segment", "segments"),
                    counted(*batches, "batch", "batches")
                )?;
                match memory {
                    Some(memory) => write!(
                        f,
                        " (memory {:.1} % of {})",
                        memory.percent(),
                        human_bytes(memory.capacity)
                    ),
                    None => Ok(()),
                }
            }
            Self::Done {
                batches,
                of,
                embeddings,
            } => write!(
                f,
                "{batches}/{of} batches ({embeddings} embeddings extracted)"
            ),
        }
    }
}

fn counted(count: usize, one: &str, more: &str) -> String {
    format!("{count} {}", if count == 1 { one } else { more })
}

/// The vector of each of `segments`, in their order; 16 kHz mono, each at least as long as the model wants. `progress` is
/// told at the start and after each batch's worth of answers.
///
/// Batches are as large as the lease says: [`Lease::set_batch_size`].
///
/// Segments are handed over a few batches ahead, so that batches are full and a long list takes no memory of its own. An
/// error of one segment is the outcome: it stands for all of a person's voice.
pub fn embed<S: Into<std::sync::Arc<[f32]>>>(
    lease: &Lease<Embedding>,
    segments: impl ExactSizeIterator<Item = S>,
    memory: Option<DeviceMemory>,
    cancel: &CancelToken,
    progress: &mut dyn FnMut(Progress),
) -> Result<Vec<VoiceVector>, EngineError> {
    let batch = lease.batch_size().max(1);
    let count = segments.len();
    let batches = count.div_ceil(batch);
    progress(Progress::Begin {
        segments: count,
        batches,
        batch,
        memory,
    });
    let mut out = Vec::with_capacity(count);
    let mut ahead: VecDeque<Ticket<VoiceVector>> = VecDeque::new();
    let mut segments = segments;
    loop {
        while ahead.len() < AHEAD * batch {
            let Some(segment) = segments.next() else {
                break;
            };
            ahead.push_back(lease.submit(segment.into(), (), Class::File, None));
        }
        let Some(mut ticket) = ahead.pop_front() else {
            return Ok(out);
        };
        out.push(ticket.answer(cancel)?);
        if out.len() % batch == 0 || out.len() == count {
            progress(Progress::Done {
                batches: out.len().div_ceil(batch),
                of: batches,
                embeddings: out.len(),
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(variables: &[(&str, &str)]) -> Result<EnrollOptions, String> {
        EnrollOptions::from_environment(|name| {
            let found = variables.iter().find(|(n, _)| *n == name);
            found.map(|(_, value)| (*value).to_owned())
        })
    }

    #[test]
    fn the_old_variable_counts_where_the_new_one_is_not_set() {
        let both = [
            ("VOICE_ENROLLMENT_BATCH_SIZE", "8"),
            ("SCRIBE_ENROLL_BATCH_SIZE", "16"),
        ];

        assert_eq!(options(&[]).map(|o| o.batch_size), Ok(0));
        assert_eq!(options(&both[..1]).map(|o| o.batch_size), Ok(8));
        assert_eq!(options(&both).map(|o| o.batch_size), Ok(16));
        let empty = [both[0], ("SCRIBE_ENROLL_BATCH_SIZE", " ")];
        assert_eq!(options(&empty).map(|o| o.batch_size), Ok(8));
    }

    #[test]
    fn a_batch_size_is_one_of_0_to_256() {
        for (value, size) in [("0", Some(0)), ("1", Some(1)), (" 256 ", Some(256))] {
            assert_eq!(batch_size(value), size);
        }
        for value in ["257", "-1", "many", "3.5", ""] {
            assert_eq!(batch_size(value), None, "{value}");
        }

        let refused = options(&[("VOICE_ENROLLMENT_BATCH_SIZE", "1000")]).unwrap_err();

        assert!(
            refused.contains("VOICE_ENROLLMENT_BATCH_SIZE=1000") && refused.contains("256"),
            "{refused}"
        );
    }

    #[test]
    fn long_recordings_are_left_out_only_where_that_is_asked_for() {
        let asked = EnrollOptions {
            skip_above: Some(Duration::from_secs(1800)),
            ..EnrollOptions::default()
        };
        let long = Duration::from_secs(2715);

        assert_eq!(EnrollOptions::default().skips(long), None);
        assert_eq!(asked.skips(Duration::from_secs(1800)), None);
        let told = asked.skips(long).expect("it is told");
        assert!(told.reason.contains("2715") && told.reason.contains("1800"));
    }

    #[test]
    fn its_lines_are_those_that_people_know() {
        let memory = DeviceMemory {
            booked: (16 << 30) / 100 * 72,
            capacity: 16 << 30,
            ..DeviceMemory::default()
        };
        let begin = Progress::Begin {
            segments: 500,
            batches: 16,
            batch: 32,
            memory: Some(memory),
        };
        let done = Progress::Done {
            batches: 16,
            of: 16,
            embeddings: 500,
        };

        assert_eq!(
            begin.to_string(),
            "Processing 500 segments in 16 batches of 32 (memory 72.0 % of 16.0 GB)"
        );
        assert_eq!(done.to_string(), "16/16 batches (500 embeddings extracted)");
        let short = Progress::Begin {
            segments: 1,
            batches: 1,
            batch: 32,
            memory: None,
        };
        assert_eq!(short.to_string(), "Processing 1 segment in 1 batch of 32");
    }
}
