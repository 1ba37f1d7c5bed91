// SPDX-License-Identifier: MPL-2.0
//! Arguments of the programs that measure.

use std::collections::HashMap;

/// What was asked for: words in their places, and `name=value`.
pub struct Asked {
    /// Without names.
    words: Vec<String>,
    /// With names.
    pub options: HashMap<String, String>,
}

impl Asked {
    pub fn read(arguments: impl Iterator<Item = String>) -> Self {
        let (mut words, mut options) = (Vec::new(), HashMap::new());
        for argument in arguments {
            match argument.split_once('=') {
                // A path may have one in it.
                Some((name, value)) if !name.contains('/') => {
                    options.insert(name.to_owned(), value.to_owned());
                }
                _ => words.push(argument),
            }
        }
        Self { words, options }
    }

    pub fn word(&self, at: usize) -> super::Outcome<&str> {
        let word = self.words.get(at).map(String::as_str);
        word.ok_or_else(|| "too few arguments: see the top of this program's source".into())
    }

    pub fn text<'a>(&'a self, name: &str, default: &'a str) -> &'a str {
        self.options.get(name).map_or(default, String::as_str)
    }

    pub fn number(&self, name: &str, default: usize) -> super::Outcome<usize> {
        Ok(self.options.get(name).map_or(Ok(default), |v| v.parse())?)
    }
}
