// SPDX-License-Identifier: MPL-2.0
//! A made-up graphics card for tests: it is told how much each allocation takes, gives freed memory back as late as a
//! real one does, has strangers on it, and refuses what does not fit. Only with `test-support`.
//!
//! A card with a file behind it is shared by several processes.

use std::collections::HashMap;
use std::fs::File;
use std::io::{Read, Seek, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

/// What a card is.
#[derive(Clone, Debug)]
pub struct CardSpec {
    /// Memory, bytes.
    pub total: u64,
    /// What the driver keeps, bytes.
    pub driver_reserve: u64,
    /// Allocations are rounded up to this.
    pub granule: u64,
    /// What a process takes at its first allocation.
    pub context_bytes: u64,
    /// How long freed memory stays taken.
    pub lag: Duration,
    /// Whether it says which process holds what: in a container it does not.
    pub tells_processes: bool,
}

impl CardSpec {
    /// A card of `gib` as the one of the accident: 350 MiB for the driver, 450 MiB for a context, pieces of 2 MiB, a
    /// lag of a second and a half.
    pub fn of_gib(gib: u64) -> Self {
        Self {
            total: gib << 30,
            driver_reserve: 350 << 20,
            granule: 2 << 20,
            context_bytes: 450 << 20,
            lag: Duration::from_millis(1500),
            tells_processes: true,
        }
    }
}

/// No room on the card: what a real one says by an error or by killing the process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CardFull {
    /// Bytes that were asked for.
    pub asked: u64,
    /// Bytes that were free.
    pub free: u64,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
struct State {
    next: u64,
    /// Block, its owner and its size.
    blocks: HashMap<u64, (u32, u64)>,
    /// Sizes of freed blocks and when they are free for others, in nanoseconds of the card's clock.
    returning: Vec<(u64, u64, u32)>,
    /// Processes that have a context.
    contexts: Vec<u32>,
    strangers: u64,
    peak: u64,
    refused: u64,
}

type Now = Box<dyn Fn() -> Duration + Send + Sync>;

/// See the module.
pub struct Card {
    spec: CardSpec,
    state: Mutex<State>,
    file: Option<PathBuf>,
    now: Now,
}

/// Memory on a card. Given back when dropped.
pub struct Block {
    card: Arc<Card>,
    id: u64,
}

impl Card {
    /// A card of its own. `now` is its clock.
    pub fn new(spec: CardSpec, now: impl Fn() -> Duration + Send + Sync + 'static) -> Arc<Self> {
        Arc::new(Self {
            spec,
            state: Mutex::default(),
            file: None,
            now: Box::new(now),
        })
    }

    /// A card that all processes share which name the same file.
    pub fn in_file(spec: CardSpec, path: &Path) -> Arc<Self> {
        Arc::new(Self {
            spec,
            state: Mutex::default(),
            file: Some(path.to_owned()),
            // One clock for all of them.
            now: Box::new(|| {
                SystemTime::now()
                    .duration_since(UNIX_EPOCH)
                    .unwrap_or_default()
            }),
        })
    }

    /// What it is.
    pub fn spec(&self) -> &CardSpec {
        &self.spec
    }

    fn with<T>(&self, work: impl FnOnce(&mut State, u64) -> T) -> T {
        let now = || u64::try_from((self.now)().as_nanos()).unwrap_or(u64::MAX);
        let mut own = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(path) = &self.file else {
            let now = now();
            own.returning.retain(|(_, until, _)| *until > now);
            return work(&mut own, now);
        };
        let mut file = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(path)
            .unwrap_or_else(|e| unreachable!("the card's file {}: {e}", path.display()));
        // Kept until the file is closed.
        file.lock()
            .unwrap_or_else(|e| unreachable!("locking the card's file: {e}"));
        // Not before: who waits would take what has come back meanwhile for taken.
        let now = now();
        let mut text = String::new();
        let _ = file.read_to_string(&mut text);
        // A process that was killed while it wrote may have left the end of what was there before.
        let first = serde_json::Deserializer::from_str(&text)
            .into_iter::<State>()
            .next();
        let mut state = first.and_then(Result::ok).unwrap_or_default();
        // The kernel takes a dead process's memory back at once, whether somebody asks after it or not.
        let dead = |pid: &u32| {
            let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            let state = stat.rfind(')').and_then(|at| stat.get(at + 2..at + 3));
            state.is_none_or(|s| matches!(s, "Z" | "X"))
        };
        state.blocks.retain(|_, (owner, _)| !dead(owner));
        state.contexts.retain(|owner| !dead(owner));
        state
            .returning
            .retain(|(_, until, owner)| *until > now && !dead(owner));
        let out = work(&mut state, now);
        let text = serde_json::to_string(&state).unwrap_or_default();
        let _ = file.rewind();
        let _ = file.write_all(text.as_bytes());
        let _ = file.set_len(text.len() as u64);
        out
    }

    fn taken(&self, state: &State) -> u64 {
        let blocks: u64 = state.blocks.values().map(|(_, bytes)| bytes).sum();
        let returning: u64 = state.returning.iter().map(|(bytes, ..)| bytes).sum();
        let contexts = state.contexts.len() as u64 * self.spec.context_bytes;
        self.spec.driver_reserve + state.strangers + blocks + returning + contexts
    }

    /// Takes memory for process `owner`.
    pub fn alloc(self: &Arc<Self>, owner: u32, bytes: u64) -> Result<Block, CardFull> {
        let bytes = bytes.div_ceil(self.spec.granule) * self.spec.granule;
        let id = self.with(|state, _| {
            let context = if state.contexts.contains(&owner) {
                0
            } else {
                self.spec.context_bytes
            };
            let free = self.spec.total.saturating_sub(self.taken(state));
            if bytes + context > free {
                state.refused += 1;
                return Err(CardFull { asked: bytes, free });
            }
            if context > 0 {
                state.contexts.push(owner);
            }
            state.next += 1;
            state.blocks.insert(state.next, (owner, bytes));
            state.peak = state.peak.max(self.taken(state));
            Ok(state.next)
        })?;
        Ok(Block {
            card: Arc::clone(self),
            id,
        })
    }

    /// Sets what others hold, bytes. They take it where it is free, as far as it is; returns what they have.
    pub fn set_strangers(&self, bytes: u64) -> u64 {
        self.with(|state, _| {
            state.strangers = 0;
            let free = self.spec.total.saturating_sub(self.taken(state));
            state.strangers = bytes.min(free);
            state.peak = state.peak.max(self.taken(state));
            state.strangers
        })
    }

    /// Free bytes as the driver tells them: what is on its way back is free already, though nobody can have it yet.
    pub fn free(&self) -> u64 {
        self.with(|state, _| {
            let returning: u64 = state.returning.iter().map(|(bytes, ..)| bytes).sum();
            let taken = self.taken(state) - returning;
            self.spec.total.saturating_sub(taken)
        })
    }

    /// What process `owner` holds, its context and what is on its way back too.
    pub fn held_by(&self, owner: u32) -> u64 {
        self.with(|state, _| {
            let blocks = state.blocks.values().filter(|(o, _)| *o == owner);
            let context = if state.contexts.contains(&owner) {
                self.spec.context_bytes
            } else {
                0
            };
            blocks.map(|(_, bytes)| bytes).sum::<u64>() + context
        })
    }

    /// What processes hold, with their contexts and what is on its way back, bytes: all but the driver's and strangers'.
    pub fn taken_by_processes(&self) -> u64 {
        self.with(|state, _| self.taken(state) - self.spec.driver_reserve - state.strangers)
    }

    /// Most that was ever taken, bytes.
    pub fn peak(&self) -> u64 {
        self.with(|state, _| state.peak)
    }

    /// Allocations that were refused.
    pub fn refused(&self) -> u64 {
        self.with(|state, _| state.refused)
    }
}

impl std::fmt::Debug for Card {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Card")
            .field("spec", &self.spec)
            .field("file", &self.file)
            .finish_non_exhaustive()
    }
}

impl std::fmt::Debug for Block {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Block").field(&self.id).finish()
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        let lag = u64::try_from(self.card.spec.lag.as_nanos()).unwrap_or(u64::MAX);
        self.card.with(|state, now| {
            if let Some((owner, bytes)) = state.blocks.remove(&self.id)
                && lag > 0
            {
                state
                    .returning
                    .push((bytes, now.saturating_add(lag), owner));
            }
        });
    }
}

fn cards() -> &'static Mutex<HashMap<u32, Arc<Card>>> {
    static CARDS: LazyLock<Mutex<HashMap<u32, Arc<Card>>>> = LazyLock::new(Mutex::default);
    &CARDS
}

/// Puts a card where fakes with `DeviceId::Simulated(number)` find it.
pub fn insert(number: u32, card: &Arc<Card>) {
    cards()
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .insert(number, Arc::clone(card));
}

/// The card with this number. Number 0 of a process with `SCRIBE_SIMULATED_CARD=FILE` in its environment is that file's,
/// of 16 GiB.
pub fn get(number: u32) -> Option<Arc<Card>> {
    let mut cards = cards().lock().unwrap_or_else(PoisonError::into_inner);
    if number == 0
        && let Some(path) = std::env::var_os("SCRIBE_SIMULATED_CARD")
    {
        let card = cards
            .entry(0)
            .or_insert_with(|| Card::in_file(CardSpec::of_gib(16), Path::new(&path)));
        return Some(Arc::clone(card));
    }
    cards.get(&number).cloned()
}
