// SPDX-License-Identifier: MPL-2.0
//! What a registry works by: for the whole process, from the environment or the application.

use std::time::Duration;

use super::limit::MemoryLimit;

/// A model stays this long after its last lease.
const KEEP_ALIVE: Duration = Duration::from_secs(300);

/// Settings of a registry. They stand once it is in use.
#[derive(Clone, Debug, PartialEq)]
pub struct RegistrySettings {
    /// Memory that scribe's processes may use of each device; `None` for what others leave. Of it 80 % are filled.
    /// `SCRIBE_MEMORY_LIMIT`: bytes, `12G`, `75%`.
    pub memory_limit: Option<MemoryLimit>,
    /// How long a model stays after its last lease. `SCRIBE_KEEP_ALIVE`, seconds, default 300.
    pub keep_alive: Duration,
    /// Threads that compute at once. `SCRIBE_LANES`, default one for each core.
    pub lanes: usize,
}

impl Default for RegistrySettings {
    fn default() -> Self {
        Self {
            memory_limit: None,
            keep_alive: KEEP_ALIVE,
            lanes: std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
        }
    }
}

impl RegistrySettings {
    /// By the environment. What cannot be read there is left as it would be without it: `scribe-doctor` tells.
    pub fn from_environment() -> Self {
        Self::read(|name| std::env::var(name).ok()).0
    }

    /// By variables, and what is wrong with them.
    pub fn read(variable: impl Fn(&str) -> Option<String>) -> (Self, Vec<String>) {
        let mut settings = Self::default();
        let mut wrong = Vec::new();
        let set = |name: &str| variable(name).filter(|v| !v.trim().is_empty());
        if let Some(text) = set("SCRIBE_MEMORY_LIMIT") {
            match text.parse() {
                Ok(limit) => settings.memory_limit = Some(limit),
                Err(why) => wrong.push(format!("SCRIBE_MEMORY_LIMIT: {why}")),
            }
        }
        if let Some(text) = set("SCRIBE_KEEP_ALIVE") {
            match text.trim().parse() {
                Ok(seconds) => settings.keep_alive = Duration::from_secs(seconds),
                Err(_) => wrong.push(format!(
                    "SCRIBE_KEEP_ALIVE: \"{text}\" is no number of seconds"
                )),
            }
        }
        if let Some(text) = set("SCRIBE_LANES") {
            match text.trim().parse() {
                Ok(lanes) if lanes > 0 => settings.lanes = lanes,
                _ => wrong.push(format!("SCRIBE_LANES: \"{text}\" is no number of threads")),
            }
        }
        (settings, wrong)
    }
}

impl std::fmt::Display for RegistrySettings {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.memory_limit {
            Some(limit) => write!(f, "memory-limit {limit}")?,
            None => write!(f, "no memory-limit")?,
        }
        write!(
            f,
            ", keep-alive {} s, {} lanes",
            self.keep_alive.as_secs(),
            self.lanes
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_are_read_and_wrong_ones_are_named() {
        let (settings, wrong) = RegistrySettings::read(|name| {
            let value = match name {
                "SCRIBE_MEMORY_LIMIT" => "2G",
                "SCRIBE_KEEP_ALIVE" => "7",
                "SCRIBE_LANES" => "none",
                _ => return None,
            };
            Some(value.to_owned())
        });

        assert_eq!(settings.memory_limit, Some(MemoryLimit::Bytes(2 << 30)));
        assert_eq!(settings.keep_alive, Duration::from_secs(7));
        assert_eq!(wrong.len(), 1);
        assert!(wrong[0].contains("SCRIBE_LANES"), "{wrong:?}");
    }
}
