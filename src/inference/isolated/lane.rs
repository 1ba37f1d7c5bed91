// SPDX-License-Identifier: MPL-2.0
//! Our half of a lane: hands windows to the worker, waits for their text, and does again what a dead worker left.

use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Instant;

use super::child::{Cause, Death};
use super::host::{Host, Patience, TICK, Worker};
use super::protocol::{Job, Message};
use super::slot::{AREA_SAMPLES, Slot};
use super::socket::{Broken, Packet, Socket};
use crate::inference::{
    BatchParams, Decoded, EngineError, ResultSink, SpeechToText, Window, WindowSource, exit,
};

/// Longest code of a language.
const MAX_LANGUAGE: usize = 8;
const UNASKED: &str = "it answers what nobody asked";

/// See the module.
pub(super) struct IsolatedLane {
    host: Arc<Host>,
    slot: Slot,
    line: Option<Line>,
    packet: Packet,
    /// Last worker that is known to be dead, by its generation.
    dead: u64,
    next_job: u64,
    /// Workers that have died for want of memory since the last window was done.
    starved: u32,
}

/// One may have died for what another of its lanes, or somebody else, took for a moment.
const MOST_STARVED: u32 = 2;

/// The way to one worker.
struct Line {
    worker: Arc<Worker>,
    socket: Socket,
}

/// Why a run cannot go on as it is.
enum Trouble {
    /// The worker is dead.
    Lost(Death),
    /// There is no worker to be had, or no lane in it.
    Fatal(EngineError),
}

impl From<EngineError> for Trouble {
    fn from(error: EngineError) -> Self {
        Self::Fatal(error)
    }
}

/// A window that was taken from the source.
struct Flight {
    window: Window,
    /// Number of the try, and its area, while a worker has it.
    sent: Option<(u64, usize)>,
    began: Instant,
    /// Its asker has his answer: it was cancelled. The worker may not know yet.
    answered: bool,
    crashes: u32,
    kills: u32,
}

/// The windows of one call of `run`.
struct Work<'a> {
    source: &'a mut dyn WindowSource,
    sink: &'a mut dyn ResultSink,
    flights: Vec<Flight>,
}

/// Answers windows that nobody wants any more at once. The worker may be in the midst of one and hear of it later: it
/// keeps its place until then.
fn sweep(flights: &mut Vec<Flight>, sink: &mut dyn ResultSink, slot: &Slot) {
    for flight in &mut *flights {
        if !flight.answered && flight.window.cancel.is_cancelled() {
            flight.answered = true;
            sink.push(flight.window.id, Err(EngineError::Cancelled));
            if let Some((job, area)) = flight.sent {
                slot.cancel(area, job);
            }
        }
    }
    flights.retain(|f| f.sent.is_some() || !f.answered);
}

impl Work<'_> {
    fn sweep(&mut self, slot: &Slot) {
        sweep(&mut self.flights, self.sink, slot);
    }

    /// Asks the source, which may have one again after it had none: a live window enters while others are decoded.
    fn take_one(&mut self) -> bool {
        let taken = self.source.next().map(|window| Flight {
            window,
            sent: None,
            began: Instant::now(),
            answered: false,
            crashes: 0,
            kills: 0,
        });
        let some = taken.is_some();
        self.flights.extend(taken);
        some
    }

    /// The first window that no worker has.
    fn waiting(&self) -> Option<usize> {
        self.flights.iter().position(|f| f.sent.is_none())
    }

    /// Answers all that is left. Where memory is short it has no answer: whoever runs the lane makes room and does it
    /// again.
    fn fail_all(&mut self, error: &EngineError) {
        if let EngineError::OutOfMemory { .. } = error {
            return self.flights.clear();
        }
        for flight in self.flights.drain(..).filter(|f| !f.answered) {
            self.sink.push(flight.window.id, Err(error.clone()));
        }
    }
}

impl IsolatedLane {
    /// Makes a lane in a worker. Fails as the engine itself would.
    pub(super) fn open(host: Arc<Host>, areas: usize) -> Result<Self, EngineError> {
        let slot = Slot::new(areas).map_err(|e| EngineError::OutOfMemory {
            what: format!("shared memory for a lane of {} ({e})", host.spec().name()),
        })?;
        let mut lane = Self {
            host,
            slot,
            line: None,
            packet: Packet::new(),
            dead: 0,
            next_job: 1,
            starved: 0,
        };
        let mut deaths = 0;
        while let Err(trouble) = lane.connect(None) {
            let death = match trouble {
                Trouble::Lost(death) => death,
                Trouble::Fatal(error) => return Err(error),
            };
            lane.idle_death(&death, &mut deaths)?;
        }
        Ok(lane)
    }

    /// A worker died that had nothing of this lane to do: no window is to blame, but it cannot go on for ever.
    fn idle_death(&self, death: &Death, deaths: &mut u32) -> Result<(), EngineError> {
        *deaths += 1;
        let most = match death.cause {
            Cause::Itself => self.host.options().most_crashes,
            Cause::Outside => self.host.options().most_kills,
        };
        if *deaths < most {
            return Ok(());
        }
        let why = format!("it ended {deaths} times, the last time {death}");
        Err(if death.no_memory {
            EngineError::OutOfMemory {
                what: format!("{} ({why})", self.what()),
            }
        } else {
            EngineError::Failed {
                what: self.what(),
                why,
            }
        })
    }

    /// After a death in the midst of work: fails where memory is short for good. The windows then have no answer, and
    /// whoever runs the lane makes room or does them elsewhere.
    fn starve(&mut self, death: &Death) -> Result<(), EngineError> {
        if !death.no_memory {
            return Ok(());
        }
        self.starved += 1;
        if self.starved < MOST_STARVED {
            return Ok(());
        }
        Err(EngineError::OutOfMemory {
            what: format!("{}: scribe-worker ended {death}", self.what()),
        })
    }

    fn what(&self) -> String {
        format!("a lane of {} in scribe-worker", self.host.spec().name())
    }

    /// Opens a line to a living worker, waiting for one. Windows of `work` that are cancelled meanwhile are answered;
    /// when none is left, nobody waits any more: [`EngineError::Cancelled`].
    fn connect(&mut self, mut work: Option<&mut Work>) -> Result<(), Trouble> {
        if self.line.is_some() {
            return Ok(());
        }
        let worker = self.living_worker(work.as_deref_mut())?;
        let (socket, theirs) = Socket::pair().map_err(|e| EngineError::Failed {
            what: self.what(),
            why: format!("no socket to be had: {e}"),
        })?;
        let open = Message::OpenLane {
            areas: self.slot.areas() as u32,
        };
        let sent = worker
            .control
            .send(&open, &[theirs.as_fd(), self.slot.as_fd()]);
        self.line = Some(Line { worker, socket });
        // Only the worker may hold its end, or its death would go unseen.
        drop(theirs);
        sent.map_err(|broken| self.broken(&broken))?;
        let mut patience = Patience::new(self.host.load_limit());
        match self.receive(&mut patience, work)? {
            Message::LaneReady(Ok(())) => Ok(()),
            Message::LaneReady(Err(error)) => {
                self.line = None;
                Err(error.into())
            }
            _ => Err(self.garbage(UNASKED)),
        }
    }

    /// Waits for a living worker. A dead one's successor may be a while in coming: the cores are not kept meanwhile.
    fn living_worker(&self, work: Option<&mut Work>) -> Result<Arc<Worker>, EngineError> {
        let Some(work) = work else {
            return self.host.worker(self.dead, &mut || false);
        };
        let Work {
            source,
            sink,
            flights,
            ..
        } = work;
        let mut found = Err(EngineError::Cancelled);
        source.rest(&mut || {
            found = self.host.worker(self.dead, &mut || {
                sweep(flights, *sink, &self.slot);
                flights.is_empty()
            });
        });
        found
    }

    /// The next message on the line. Windows of `work` that are cancelled meanwhile are answered.
    fn receive(
        &mut self,
        patience: &mut Patience,
        mut work: Option<&mut Work>,
    ) -> Result<Message, Trouble> {
        let mut beats = self.slot.beats();
        loop {
            if let Some(work) = &mut work {
                work.sweep(&self.slot);
            }
            let received = match &self.line {
                Some(line) => line.socket.receive(&mut self.packet, TICK),
                None => Err(Broken::Closed),
            };
            match received {
                Ok(Some(message)) => {
                    patience.renew();
                    return Ok(message);
                }
                Ok(None) => {}
                Err(broken) => return Err(self.broken(&broken)),
            }
            let now = self.slot.beats();
            if now != std::mem::replace(&mut beats, now) {
                patience.renew();
            } else if patience.is_over() {
                let limit = patience.limit().as_secs_f32();
                return Err(self.garbage(&format!("it gave no sign of life for {limit:.1} s")));
            }
        }
    }

    fn send(&mut self, message: &Message) -> Result<(), Trouble> {
        let outcome = match &self.line {
            Some(line) => line.socket.send(message, &[]),
            None => Err(Broken::Closed),
        };
        outcome.map_err(|broken| self.broken(&broken))
    }

    /// The line is of no use any more: the worker is dead, or will be.
    fn broken(&mut self, broken: &Broken) -> Trouble {
        let Some(line) = self.line.take() else {
            return Trouble::Lost(Death::unseen());
        };
        self.dead = line.worker.generation;
        Trouble::Lost(self.host.lost(&line.worker, broken))
    }

    /// The worker does what it must not, or nothing: it is killed for that.
    fn garbage(&mut self, why: &str) -> Trouble {
        self.broken(&Broken::Garbage(why.to_owned()))
    }

    /// One run in the worker. With `single` it gets the first window that waits and no other: after a crash, so that
    /// each window has the blame for its own.
    fn round(
        &mut self,
        work: &mut Work,
        params: &BatchParams,
        single: bool,
    ) -> Result<Result<(), EngineError>, Trouble> {
        self.send(&Message::Run(params.clone()))?;
        let mut patience = Patience::new(self.host.silence());
        let mut handed_out = false;
        loop {
            match self.receive(&mut patience, Some(work))? {
                Message::Next if single && handed_out => self.send(&Message::NoMore)?,
                Message::Next if work.waiting().is_some() || (!single && work.take_one()) => {
                    handed_out = true;
                    self.hand_out(work)?;
                }
                Message::Next => self.send(&Message::NoMore)?,
                Message::Answer { job, result } => self.answer(work, job, result)?,
                Message::Done(result) => return Ok(result),
                _ => return Err(self.garbage(UNASKED)),
            }
        }
    }

    /// Gives the worker the first window that waits.
    fn hand_out(&mut self, work: &mut Work) -> Result<(), Trouble> {
        let taken: Vec<usize> = work
            .flights
            .iter()
            .filter_map(|f| f.sent)
            .map(|s| s.1)
            .collect();
        let free = (0..self.slot.areas()).find(|area| !taken.contains(area));
        let waiting = work.flights.iter_mut().find(|f| f.sent.is_none());
        let (Some(area), Some(flight)) = (free, waiting) else {
            return Err(self.garbage("it asks for more windows than it has said"));
        };
        let job = self.next_job;
        self.next_job += 1;
        let window = &flight.window;
        let samples = self.slot.write(area, &window.samples);
        let message = Message::Window(Job {
            job,
            area: area as u32,
            samples: samples as u32,
            language: window.language.clone(),
            task: window.task,
            prompt: window.prompt.clone(),
            vocabulary: window.vocabulary.clone(),
            prefix: window.prefix.clone(),
            most_tokens: window.most_tokens,
        });
        flight.sent = Some((job, area));
        flight.began = Instant::now();
        self.send(&message)
    }

    fn answer(
        &mut self,
        work: &mut Work,
        job: u64,
        result: Result<Decoded, EngineError>,
    ) -> Result<(), Trouble> {
        let own = |f: &Flight| f.sent.is_some_and(|(sent, _)| sent == job);
        let Some(at) = work.flights.iter().position(own) else {
            return Err(self.garbage("it answers a window that it has not"));
        };
        let flight = &work.flights[at];
        // Whoever cancels is told so by us: from the worker that is no answer.
        let possible = match &result {
            Ok(decoded) => is_possible(decoded, flight.window.samples.len()),
            Err(EngineError::Cancelled) => flight.answered,
            Err(_) => true,
        };
        if !possible {
            return Err(self.garbage("it gave an answer that cannot be"));
        }
        let flight = work.flights.remove(at);
        if !flight.answered {
            if result.is_ok() {
                self.starved = 0;
                self.host.measured(flight.began.elapsed());
            }
            work.sink.push(flight.window.id, result);
        }
        Ok(())
    }

    /// The windows that a dead worker had wait again, but for those on which too many have died.
    fn blame(&self, work: &mut Work, death: &Death) {
        let options = self.host.options();
        for mut flight in std::mem::take(&mut work.flights) {
            if flight.sent.take().is_some() {
                match death.cause {
                    Cause::Itself => flight.crashes += 1,
                    Cause::Outside => flight.kills += 1,
                }
            }
            if flight.answered {
                continue;
            }
            if flight.crashes < options.most_crashes && flight.kills < options.most_kills {
                work.flights.push(flight);
                continue;
            }
            let seconds = flight.window.samples.len() as f32 / 16_000.0;
            let error = EngineError::Failed {
                what: format!(
                    "{seconds:.1} s of sound through {}",
                    self.host.spec().name()
                ),
                why: format!(
                    "scribe-worker ended on it {} times, the last time {death}",
                    flight.crashes + flight.kills
                ),
            };
            work.sink.push(flight.window.id, Err(error));
        }
    }
}

impl SpeechToText for IsolatedLane {
    fn run(
        &mut self,
        source: &mut dyn WindowSource,
        sink: &mut dyn ResultSink,
        params: &BatchParams,
    ) -> Result<(), EngineError> {
        // The work is done elsewhere: the end of our process need not wait for it.
        let _outside = exit::outside();
        let mut work = Work {
            source,
            sink,
            flights: Vec::new(),
        };
        let mut idle_deaths = 0;
        while work.waiting().is_some() || work.take_one() {
            let again = work.flights.iter().any(|f| f.crashes + f.kills > 0);
            let outcome = match self.connect(Some(&mut work)) {
                Ok(()) => self.round(&mut work, params, again),
                Err(trouble) => Err(trouble),
            };
            match outcome {
                Ok(Ok(())) => {
                    // An engine that ends a run owes nothing.
                    if work.flights.iter().any(|f| f.sent.is_some()) {
                        let error = EngineError::Failed {
                            what: self.what(),
                            why: "the engine gave no answer".into(),
                        };
                        work.fail_all(&error);
                    }
                }
                Ok(Err(error)) => {
                    self.line = None;
                    work.fail_all(&error);
                    return Err(error);
                }
                Err(Trouble::Lost(death)) => {
                    if work.flights.iter().any(|f| f.sent.is_some()) {
                        idle_deaths = 0;
                        self.starve(&death)?;
                        self.blame(&mut work, &death);
                    } else if let Err(error) = self.idle_death(&death, &mut idle_deaths) {
                        work.fail_all(&error);
                        return Err(error);
                    }
                }
                Err(Trouble::Fatal(EngineError::Cancelled)) if work.flights.is_empty() => {}
                Err(Trouble::Fatal(error)) => {
                    work.fail_all(&error);
                    return Err(error);
                }
            }
        }
        Ok(())
    }
}

/// Whether an engine can have said this of a window of so many samples.
fn is_possible(decoded: &Decoded, samples: usize) -> bool {
    let inside = |at: u32| at as usize <= samples.min(AREA_SAMPLES);
    let share = |value: f32| (0.0..=1.0).contains(&value);
    decoded.tokens.iter().all(|token| {
        share(token.probability) && token.start.is_none_or(inside) && token.end.is_none_or(inside)
    }) && share(decoded.sot_no_speech)
        && decoded.avg_logprob.is_finite()
        && decoded.temperature.is_finite()
        && decoded.alignment_end.is_none_or(inside)
        && decoded
            .gaps
            .iter()
            .all(|(from, to)| inside(*from) && inside(*to))
        && decoded.language.len() <= MAX_LANGUAGE
        && decoded.language.is_ascii()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::inference::Token;

    #[test]
    fn an_answer_that_no_engine_can_have_given_is_told() {
        let token = Token {
            id: 1,
            bytes: b" a".to_vec(),
            probability: 0.5,
            start: Some(0),
            end: Some(16_000),
        };
        let good = Decoded {
            tokens: vec![token.clone()],
            language: "en".into(),
            alignment_end: Some(16_000),
            gaps: vec![(0, 16_000)],
            ..Decoded::default()
        };
        let with = |change: &dyn Fn(&mut Decoded)| {
            let mut changed = good.clone();
            change(&mut changed);
            is_possible(&changed, 16_000)
        };

        assert!(with(&|_| {}));
        assert!(!with(&|d| d.tokens[0].end = Some(16_001)));
        assert!(!with(&|d| d.tokens[0].start = Some(u32::MAX)));
        assert!(!with(&|d| d.tokens[0].probability = f32::NAN));
        assert!(!with(&|d| d.tokens[0].probability = 1.5));
        assert!(!with(&|d| d.sot_no_speech = f32::INFINITY));
        assert!(!with(&|d| d.avg_logprob = f32::NEG_INFINITY));
        assert!(!with(&|d| d.temperature = f32::NAN));
        assert!(!with(&|d| d.alignment_end = Some(16_001)));
        assert!(!with(&|d| d.gaps[0].1 = 16_001));
        assert!(!with(&|d| d.language = "a very long language".into()));
        assert!(!with(&|d| d.language = "ß".into()));
    }
}
