// SPDX-License-Identifier: MPL-2.0
//! What was found, as text and as JSON.

use std::fmt::Write;

use serde::Serialize;

/// How it stands with one thing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// It is here, or is as it should be.
    Ok,
    /// Worth knowing; scribe works without it.
    Note,
    /// scribe does not work without it.
    Missing,
}

/// One thing.
#[derive(Clone, Debug, Serialize)]
pub struct Finding {
    name: String,
    state: State,
    /// What was found.
    found: String,
    /// What to do about it.
    #[serde(skip_serializing_if = "Option::is_none")]
    remedy: Option<String>,
}

#[derive(Debug, Serialize)]
struct Section {
    title: &'static str,
    findings: Vec<Finding>,
}

/// All of it.
#[derive(Debug, Default, Serialize)]
pub struct Report {
    sections: Vec<Section>,
}

impl Report {
    /// What follows belongs under `title`.
    pub fn section(&mut self, title: &'static str) {
        self.sections.push(Section {
            title,
            findings: Vec::new(),
        });
    }

    /// It is here.
    pub fn ok(&mut self, name: &str, found: impl Into<String>) {
        self.add(name, State::Ok, found.into(), None);
    }

    /// Worth knowing.
    pub fn note(&mut self, name: &str, found: impl Into<String>, remedy: Option<&str>) {
        self.add(name, State::Note, found.into(), remedy.map(str::to_owned));
    }

    /// It is needed.
    pub fn missing(&mut self, name: &str, found: impl Into<String>, remedy: impl Into<String>) {
        self.add(name, State::Missing, found.into(), Some(remedy.into()));
    }

    fn add(&mut self, name: &str, state: State, found: String, remedy: Option<String>) {
        if self.sections.is_empty() {
            self.section("scribe");
        }
        if let Some(section) = self.sections.last_mut() {
            section.findings.push(Finding {
                name: name.into(),
                state,
                found,
                remedy,
            });
        }
    }

    /// Nothing that is needed is missing.
    pub fn is_complete(&self) -> bool {
        self.findings().all(|f| f.state != State::Missing)
    }

    fn findings(&self) -> impl Iterator<Item = &Finding> {
        self.sections.iter().flat_map(|s| &s.findings)
    }

    /// For a person: a line a thing, the remedy under it.
    pub fn text(&self) -> String {
        let mut out = String::new();
        let width = self.findings().map(|f| f.name.len()).max().unwrap_or(0);
        for section in &self.sections {
            let _ = writeln!(out, "{}", section.title);
            for finding in &section.findings {
                let mark = match finding.state {
                    State::Ok => "ok",
                    State::Note => "--",
                    State::Missing => "!!",
                };
                let _ = writeln!(out, "  {mark}  {:width$}  {}", finding.name, finding.found);
                if let Some(remedy) = &finding.remedy {
                    let _ = writeln!(out, "      {:width$}  remedy: {remedy}", "");
                }
            }
        }
        let missing: Vec<&str> = self
            .findings()
            .filter(|f| f.state == State::Missing)
            .map(|f| f.name.as_str())
            .collect();
        let _ = match missing.as_slice() {
            [] => writeln!(out, "all that is needed is here"),
            names => writeln!(out, "missing: {}", names.join(", ")),
        };
        out
    }

    /// For a program.
    pub fn json(&self) -> String {
        let value = serde_json::json!({
            "version": env!("CARGO_PKG_VERSION"),
            "complete": self.is_complete(),
            "sections": self.sections,
        });
        format!("{value:#}\n")
    }
}
