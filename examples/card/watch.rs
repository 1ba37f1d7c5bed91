// SPDX-License-Identifier: MPL-2.0
//! Memory of a card by the driver's account.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use gstscribe::registry::device::{Cuda, Device};

use crate::Outcome;

const LOOK: Duration = Duration::from_millis(1);
/// Bytes for people.
pub fn mib(bytes: u64) -> String {
    format!("{:.1}", bytes as f64 / f64::from(1 << 20))
}

/// What is taken of the card, by whomever.
pub fn used(card: &Cuda) -> Outcome<u64> {
    let view = card.probe()?;
    Ok(view.total - view.available)
}

/// The most that was taken since it was made.
pub struct Peak {
    most: Arc<AtomicU64>,
    end: Arc<AtomicBool>,
    thread: JoinHandle<()>,
}

impl Peak {
    pub fn watch() -> Outcome<Self> {
        let card = crate::card()?;
        let most = Arc::new(AtomicU64::new(used(&card)?));
        let end = Arc::new(AtomicBool::new(false));
        let (to, until) = (Arc::clone(&most), Arc::clone(&end));
        let thread = std::thread::spawn(move || {
            while !until.load(Ordering::SeqCst) {
                if let Ok(now) = used(&card) {
                    to.fetch_max(now, Ordering::SeqCst);
                }
                std::thread::sleep(LOOK);
            }
        });
        Ok(Self { most, end, thread })
    }

    pub fn end(self) -> u64 {
        self.end.store(true, Ordering::SeqCst);
        let _ = self.thread.join();
        self.most.load(Ordering::SeqCst)
    }
}

/// Looks until nothing has come back for three seconds: what is taken then, and how long that took.
pub fn until_steady(card: &Cuda) -> Outcome<(u64, Duration)> {
    let began = Instant::now();
    let (mut last, mut at) = (used(card)?, Duration::ZERO);
    while began.elapsed() < at + Duration::from_secs(3) {
        let now = used(card)?;
        if now != last {
            (last, at) = (now, began.elapsed());
        }
        std::thread::sleep(LOOK);
    }
    Ok((last, at))
}
