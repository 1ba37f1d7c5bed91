// SPDX-License-Identifier: MPL-2.0
//! What a page shows, and what each viewer has yet to hear of it. Knows neither GStreamer nor HTTP.
//!
//! There is one bounded history for everybody, and a viewer is a place in it: nothing is queued for one, so that a slow
//! viewer costs nothing and holds up nobody. Where the history has moved past its place, it is told how much it has missed.
//! Text that may still change has no place in the history: the newest is all that counts.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use gstscribe::audio::StreamNs;
use gstscribe::transcript::formats::Relabel;
use serde::Serialize;
use serde_json::json;
use tokio::sync::watch;

/// A viewer hears something at least this often, so that a page notices a connection that died without a word.
const BEAT: Duration = Duration::from_secs(10);
/// Colours in page.css.
const COLOURS: usize = 8;
/// Speakers whose colours are remembered. A stream with more has other trouble.
const PEOPLE_MAX: usize = 1000;
/// Relabels that are remembered for lines that come after them.
const RELABELS_MAX: usize = 256;

/// What the stream says.
#[derive(Clone, Debug)]
pub enum Update {
    /// Text that stays.
    Final(Line),
    /// All text behind the last final line: replaces what was there. Empty: there is none.
    Partial(Line),
    /// Who spoke was somebody else, or has a name now.
    Relabel(Relabel),
    /// Quality was given up to go on.
    Notice(String),
    /// How it stands with the stream.
    Status(Status),
}

/// Text with what is known of it. Times are nanoseconds of stream time.
#[derive(Clone, Debug, Default)]
pub struct Line {
    pub text: String,
    pub start: u64,
    pub end: u64,
    pub language: String,
    pub confidence: Option<f64>,
    pub speaker_id: Option<String>,
    pub speaker: Option<String>,
}

/// How it stands with the stream.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "state", content = "why", rename_all = "lowercase")]
pub enum Status {
    Starting,
    Live,
    Ended,
    Failed(String),
}

/// One server-sent event: `data` is JSON on one line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// What a browser says as `Last-Event-ID` when it comes back.
    pub id: Option<String>,
    pub name: &'static str,
    pub data: String,
}

/// The one who spoke, as the page shows them.
#[derive(Clone, Debug, PartialEq, Serialize)]
struct Speaker {
    id: String,
    name: String,
    colour: usize,
}

#[derive(Debug, Serialize)]
struct Shown {
    text: String,
    start: f64,
    end: f64,
    language: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    confidence: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    speaker: Option<Speaker>,
}

#[derive(Debug)]
enum Entry {
    Line(Shown),
    Relabelled { relabel: Relabel, is_now: Speaker },
    Notice(String),
}

struct State {
    title: String,
    /// Names this run of the program: places of another mean nothing here.
    run: String,
    /// Entry `first + n` at place n. Numbers begin at 1.
    history: VecDeque<Entry>,
    first: u64,
    history_max: usize,
    /// With a number that grows whenever it changes, as the status has.
    partial: (u64, Option<Shown>),
    status: (u64, Status),
    people: HashMap<String, Speaker>,
    /// Colours given so far.
    coloured: usize,
    relabels: VecDeque<Relabel>,
    is_closed: bool,
}

/// All that one page shows.
pub struct Feed {
    state: Mutex<State>,
    changed: watch::Sender<()>,
}

impl Feed {
    /// `history_max`: entries that are kept for those who come late or come back.
    pub fn new(title: &str, history_max: usize) -> Arc<Self> {
        let since = SystemTime::now().duration_since(UNIX_EPOCH);
        let state = State {
            title: title.to_owned(),
            run: format!("{:x}", since.unwrap_or_default().as_nanos()),
            history: VecDeque::new(),
            first: 1,
            history_max: history_max.max(1),
            partial: (0, None),
            status: (0, Status::Starting),
            people: HashMap::new(),
            coloured: 0,
            relabels: VecDeque::new(),
            is_closed: false,
        };
        Arc::new(Self {
            state: Mutex::new(state),
            changed: watch::Sender::new(()),
        })
    }

    /// Takes what the stream says. Never waits for a viewer.
    pub fn take(&self, update: Update) {
        self.state().take(update);
        self.changed.send_replace(());
    }

    /// Nothing will come any more: viewers hear what there is, then their streams end.
    pub fn close(&self) {
        self.state().is_closed = true;
        self.changed.send_replace(());
    }

    /// A viewer who comes, or comes back: `last_seen` is the last id that it has.
    pub fn viewer(self: &Arc<Self>, last_seen: Option<&str>) -> Viewer {
        let state = self.state();
        let after = last_seen.and_then(|id| state.place(id));
        // One who comes back may still show a guess that has been taken back.
        let is_clear = after.is_none() && state.partial.1.is_none();
        Viewer {
            feed: Arc::clone(self),
            changed: self.changed.subscribe(),
            after: after.unwrap_or(0),
            greeting: Some(after.is_some()),
            is_up_to_date: false,
            partial_seen: if is_clear { state.partial.0 } else { 0 },
            status_seen: state.status.0,
        }
    }

    /// Waits until it is closed.
    pub async fn closed(&self) {
        let mut changed = self.changed.subscribe();
        // The sender lives as long as `self`.
        while !self.state().is_closed && changed.changed().await.is_ok() {}
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One who looks on.
pub struct Viewer {
    feed: Arc<Feed>,
    changed: watch::Receiver<()>,
    /// The last entry that it has.
    after: u64,
    /// It has not been greeted yet; whether it goes on where it was.
    greeting: Option<bool>,
    is_up_to_date: bool,
    partial_seen: u64,
    status_seen: u64,
}

impl Viewer {
    /// The next event. `None`: there will be none.
    pub async fn next(&mut self) -> Option<Event> {
        loop {
            // Before looking: what comes after is not missed.
            self.changed.borrow_and_update();
            let is_closed = self.feed.state().is_closed;
            if let Some(event) = self.ready() {
                return Some(event);
            }
            if is_closed {
                return None;
            }
            match tokio::time::timeout(BEAT, self.changed.changed()).await {
                Ok(Ok(())) => {}
                Ok(Err(_)) => return None,
                Err(_) => return Some(event("beat", &json!({}))),
            }
        }
    }

    /// The next event, if there is one now.
    pub fn ready(&mut self) -> Option<Event> {
        let state = self.feed.state();
        if let Some(goes_on) = self.greeting.take() {
            let (title, run, status) = (&state.title, &state.run, &state.status.1);
            return Some(event(
                "hello",
                &json!({"title": title, "run": run, "resumed": goes_on, "status": status}),
            ));
        }
        if self.after + 1 < state.first {
            let missed = state.first - 1 - self.after;
            self.after = state.first - 1;
            return Some(state.with_id(self.after, event("cut", &json!({"missed": missed}))));
        }
        let next = usize::try_from(self.after + 1 - state.first).unwrap_or(usize::MAX);
        if let Some(entry) = state.history.get(next) {
            self.after += 1;
            return Some(state.with_id(self.after, entry.event()));
        }
        if self.partial_seen != state.partial.0 {
            self.partial_seen = state.partial.0;
            return Some(event("partial", &state.partial.1));
        }
        if self.status_seen != state.status.0 {
            self.status_seen = state.status.0;
            return Some(event("status", &state.status.1));
        }
        // What comes from here on is news.
        (!std::mem::replace(&mut self.is_up_to_date, true)).then(|| event("ready", &json!({})))
    }
}

impl State {
    fn take(&mut self, update: Update) {
        match update {
            Update::Final(line) => {
                // The guess was at this line, too. A guess at the rest follows; what is left of this one stands for it until
                // then, so that nothing vanishes for a moment.
                if let Some(partial) = self.partial.1.take() {
                    let rest = rest(&partial.text, &line.text).to_owned();
                    let rest = (!rest.is_empty()).then(|| Shown {
                        text: rest,
                        start: seconds(line.end),
                        ..partial
                    });
                    self.partial = (self.partial.0 + 1, rest);
                }
                if !line.text.trim().is_empty() {
                    let shown = self.shown(line);
                    self.add(Entry::Line(shown));
                }
            }
            Update::Partial(line) => {
                let shown = (!line.text.trim().is_empty()).then(|| self.shown(line));
                self.partial = (self.partial.0 + 1, shown);
            }
            Update::Relabel(relabel) => self.relabel(relabel),
            Update::Notice(text) => self.add(Entry::Notice(text)),
            Update::Status(status) => {
                if matches!(status, Status::Ended | Status::Failed(_)) {
                    self.partial = (self.partial.0 + 1, None);
                }
                self.status = (self.status.0 + 1, status);
            }
        }
    }

    fn add(&mut self, entry: Entry) {
        self.history.push_back(entry);
        if self.history.len() > self.history_max {
            self.history.pop_front();
            self.first += 1;
        }
    }

    fn shown(&mut self, line: Line) -> Shown {
        let start = seconds(line.start);
        // Where only a name is known it serves as the id.
        let mut id = line.speaker_id.or_else(|| line.speaker.clone());
        let mut name = line.speaker;
        // Words may come behind the news that their speaker was somebody else.
        for relabel in &self.relabels {
            if id.as_deref() == Some(&relabel.old_id) && covers(relabel, start) {
                if let Some(new) = &relabel.new_id {
                    (id, name) = (Some(new.clone()), None);
                }
                name = relabel.name.clone().or(name);
            }
        }
        Shown {
            text: line.text,
            start,
            end: seconds(line.end),
            language: line.language,
            confidence: line.confidence,
            speaker: id.map(|id| self.speaker(id, name)),
        }
    }

    /// A speaker by id, with the name if there is a new one, and a colour that stays.
    fn speaker(&mut self, id: String, name: Option<String>) -> Speaker {
        if let Some(known) = self.people.get_mut(&id) {
            if let Some(name) = name {
                known.name = name;
            }
            return known.clone();
        }
        let speaker = Speaker {
            name: name.unwrap_or_else(|| id.clone()),
            colour: self.coloured % COLOURS,
            id: id.clone(),
        };
        self.coloured += 1;
        if self.people.len() < PEOPLE_MAX {
            self.people.insert(id, speaker.clone());
        }
        speaker
    }

    fn relabel(&mut self, relabel: Relabel) {
        if self.relabels.len() == RELABELS_MAX {
            self.relabels.pop_front();
        }
        self.relabels.push_back(relabel.clone());

        let id = relabel.new_id.as_ref().unwrap_or(&relabel.old_id);
        let is_whole = relabel.from.is_none() && relabel.to.is_none();
        // Somebody who only gets another id keeps the colour.
        if is_whole
            && !self.people.contains_key(id)
            && let Some(mut known) = self.people.remove(&relabel.old_id)
        {
            known.id.clone_from(id);
            self.people.insert(id.clone(), known);
        }
        let is_meant = |line: &Shown| line.is_meant(&relabel) || line.is_by(id);
        // A colour is for those who are seen; a diarizer mends much before there are words.
        if !self.lines().any(|line| is_meant(line)) {
            return;
        }
        let is_now = self.speaker(id.clone(), relabel.name.clone());
        let mut has_changed = false;
        for line in self.lines().filter(|line| is_meant(line)) {
            has_changed |= line.speaker.as_ref() != Some(&is_now);
            line.speaker = Some(is_now.clone());
        }
        if has_changed {
            if self.partial.1.is_some() {
                self.partial.0 += 1;
            }
            self.add(Entry::Relabelled { relabel, is_now });
        }
    }

    /// All that is shown, what may still change last.
    fn lines(&mut self) -> impl Iterator<Item = &mut Shown> {
        let lines = self.history.iter_mut().filter_map(|entry| match entry {
            Entry::Line(line) => Some(line),
            _ => None,
        });
        lines.chain(&mut self.partial.1)
    }

    fn with_id(&self, place: u64, event: Event) -> Event {
        Event {
            id: Some(format!("{}-{place}", self.run)),
            ..event
        }
    }

    /// The place that an id names, if it is one of this run.
    fn place(&self, id: &str) -> Option<u64> {
        let (run, place) = id.rsplit_once('-')?;
        let place = place.parse().ok()?;
        let next = self.first + self.history.len() as u64;
        (run == self.run && place < next).then_some(place)
    }
}

impl Shown {
    fn is_by(&self, id: &str) -> bool {
        self.speaker.as_ref().is_some_and(|s| s.id == id)
    }

    /// Whether it is one of those that a relabel speaks of.
    fn is_meant(&self, relabel: &Relabel) -> bool {
        self.is_by(&relabel.old_id) && covers(relabel, self.start)
    }
}

fn covers(relabel: &Relabel, start: f64) -> bool {
    relabel.from.is_none_or(|from| start >= bound(from))
        && relabel.to.is_none_or(|to| start < bound(to))
}

impl Entry {
    fn event(&self) -> Event {
        match self {
            Self::Line(shown) => event("line", shown),
            Self::Notice(text) => event("notice", &json!({"text": text})),
            Self::Relabelled { relabel, is_now } => event(
                "relabel",
                &json!({
                    "old": relabel.old_id, "speaker": is_now,
                    "from": relabel.from.map(bound), "to": relabel.to.map(bound),
                }),
            ),
        }
    }
}

fn bound(time: StreamNs) -> f64 {
    seconds(time.0)
}

/// What a guess holds beyond a line that is final now: as many words less as the line has, whatever they were taken for.
fn rest<'a>(guess: &'a str, line: &str) -> &'a str {
    // Languages without blanks, too.
    if let Some(rest) = guess.strip_prefix(line) {
        return rest.trim_start();
    }
    let mut rest = guess.trim_start();
    for _ in line.split_whitespace() {
        let end = rest.find(char::is_whitespace).unwrap_or(rest.len());
        rest = rest[end..].trim_start();
    }
    rest
}

/// A page reckons in seconds; milliseconds are more than it shows.
fn seconds(ns: u64) -> f64 {
    (ns / 1_000_000) as f64 / 1e3
}

fn event(name: &'static str, data: &impl Serialize) -> Event {
    Event {
        id: None,
        name,
        data: serde_json::to_string(data)
            .unwrap_or_else(|_| unreachable!("keys are strings; what is no number is null")),
    }
}
