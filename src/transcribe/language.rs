// SPDX-License-Identifier: MPL-2.0
//! Which language a stream is in, where nobody has said it: the first windows vote, then it stays.

use crate::inference::{Decoded, Language};

/// Windows whose language is heard one by one before it is settled.
const VOTES: usize = 3;

/// See the module.
#[derive(Debug)]
pub(super) struct Votes {
    settled: Option<String>,
    votes: Vec<String>,
}

impl Votes {
    /// With the language that was asked for, or `None` for what is heard.
    pub fn new(asked: Option<String>) -> Self {
        Self {
            settled: asked,
            votes: Vec::new(),
        }
    }

    /// What the next window is decoded in.
    pub fn language(&self) -> Language {
        let settled = self.settled.clone();
        settled.map_or(Language::Auto, Language::Fixed)
    }

    /// The language as far as it is settled; empty before.
    pub fn settled(&self) -> &str {
        self.settled.as_deref().unwrap_or_default()
    }

    /// Takes in what was heard in a window with speech enough.
    pub fn take(&mut self, decoded: &Decoded) {
        if self.settled.is_some() || decoded.tokens.is_empty() {
            return;
        }
        self.votes.push(decoded.language.clone());
        if self.votes.len() >= VOTES {
            let count = |code: &String| self.votes.iter().filter(|v| *v == code).count();
            self.settled = self.votes.iter().max_by_key(|code| count(code)).cloned();
        }
    }
}
