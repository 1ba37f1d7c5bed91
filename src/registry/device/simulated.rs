// SPDX-License-Identifier: MPL-2.0
//! The made-up card as a device.

use std::sync::Arc;
use std::time::Duration;

use super::{Device, MemoryView};
use crate::inference::DeviceId;
use crate::inference::card::Card;

/// See the module.
#[derive(Debug)]
pub struct Simulated {
    number: u32,
    card: Arc<Card>,
    own: u32,
}

impl Simulated {
    /// A card as process `own` sees it.
    pub fn new(number: u32, card: &Arc<Card>, own: u32) -> Self {
        Self {
            number,
            card: Arc::clone(card),
            own,
        }
    }
}

impl Device for Simulated {
    fn id(&self) -> DeviceId {
        DeviceId::Simulated(self.number)
    }

    fn probe(&self) -> Result<MemoryView, String> {
        let before = self.card.held_by(self.own);
        let available = self.card.free();
        Ok(MemoryView {
            total: self.card.spec().total,
            available,
            // What we take or give back meanwhile must not be subtracted from what was taken before or after.
            own: self
                .card
                .spec()
                .tells_processes
                .then(|| before.min(self.card.held_by(self.own))),
        })
    }

    fn held_by(&self, pid: u32) -> Option<u64> {
        self.card
            .spec()
            .tells_processes
            .then(|| self.card.held_by(pid))
    }

    fn granule(&self) -> u64 {
        self.card.spec().granule
    }

    fn context_bytes(&self) -> u64 {
        self.card.spec().context_bytes
    }

    fn lag(&self) -> Duration {
        self.card.spec().lag
    }
}
