// SPDX-License-Identifier: MPL-2.0
//! What to give up when memory is short: a pure decision.

use std::time::Duration;

use crate::inference::DeviceId;

/// Something that nobody uses now and that could be loaded or made again.
#[derive(Clone, Debug, PartialEq)]
pub struct Idle<I> {
    /// Which.
    pub id: I,
    /// Where it is.
    pub device: DeviceId,
    /// What it would give back, bytes.
    pub bytes: u64,
    /// How long nobody has used it.
    pub unused: Duration,
    /// What it costs to have it again: seconds.
    pub reload_s: f64,
    /// A lane beyond the first of a model that is in use: made again in a moment.
    pub is_spare: bool,
}

/// What has not been used for so long goes already when reservations pass 70 %. What was used since goes only where there
/// is no room under 80 % otherwise: it is likely to be wanted again, and a load takes seconds.
const STALE: Duration = Duration::from_secs(30);

/// How badly memory is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// To stay under 70 %.
    Comfort,
    /// There is no room otherwise.
    Room,
}

/// Those of `idle` that may go for this need.
pub fn eligible<I: Clone>(idle: Vec<Idle<I>>, need: Need) -> Vec<Idle<I>> {
    let goes = |i: &Idle<I>| need == Need::Room || i.is_spare || i.unused >= STALE;
    idle.into_iter().filter(goes).collect()
}

/// One set of idle things on `device` that together gives back `missing` bytes, the cheapest to lose for what it gives.
/// `None` if all of them together are not enough: then none is given up in vain.
pub fn give_up<I: Clone>(idle: &[Idle<I>], device: DeviceId, missing: u64) -> Option<Vec<I>> {
    let mut here: Vec<&Idle<I>> = idle
        .iter()
        .filter(|i| i.device == device && i.bytes > 0)
        .collect();
    let all: u64 = here.iter().map(|i| i.bytes).sum();
    if all < missing {
        return None;
    }
    // The dearest to lose last: much to reload for little memory, and used a moment ago.
    here.sort_by(|a, b| loss(a).total_cmp(&loss(b)));
    let mut chosen: Vec<&Idle<I>> = Vec::new();
    let mut given = 0;
    for thing in here {
        if given >= missing {
            break;
        }
        given += thing.bytes;
        chosen.push(thing);
    }
    // What a later, larger one has made needless stays.
    let mut i = 0;
    while i < chosen.len() {
        if given - chosen[i].bytes >= missing {
            given -= chosen[i].bytes;
            chosen.remove(i);
        } else {
            i += 1;
        }
    }
    Some(chosen.into_iter().map(|i| i.id.clone()).collect())
}

fn loss<I>(thing: &Idle<I>) -> f64 {
    let recent = 1.0 / (1.0 + thing.unused.as_secs_f64() / 60.0);
    thing.reload_s.max(0.001) * recent / thing.bytes as f64
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const GB: u64 = 1 << 30;

    fn idle(id: &'static str, gb: u64, unused_s: u64, reload_s: f64) -> Idle<&'static str> {
        Idle {
            id,
            device: DeviceId::Cpu,
            bytes: gb * GB,
            unused: Duration::from_secs(unused_s),
            reload_s,
            is_spare: false,
        }
    }

    #[test]
    fn one_set_that_suffices_goes_and_nothing_more() {
        let all = [
            idle("small", 1, 500, 0.1),
            idle("large", 4, 10, 7.0),
            idle("other", 3, 10, 6.0),
        ];

        assert_eq!(give_up(&all, DeviceId::Cpu, GB), Some(vec!["small"]));
        assert_eq!(give_up(&all, DeviceId::Cpu, 4 * GB), Some(vec!["large"]));
    }

    #[test]
    fn nothing_goes_in_vain() {
        let all = [idle("a", 1, 5, 1.0), idle("b", 2, 5, 1.0)];

        assert_eq!(give_up(&all, DeviceId::Cpu, 4 * GB), None);
        assert_eq!(give_up(&all, DeviceId::Cuda(0), GB), None);
    }

    #[test]
    fn what_was_used_a_moment_ago_stays() {
        let all = [idle("now", 2, 0, 4.0), idle("long ago", 2, 4000, 4.0)];

        assert_eq!(give_up(&all, DeviceId::Cpu, GB), Some(vec!["long ago"]));
    }

    #[test]
    fn for_comfort_only_what_is_stale_or_spare_goes() {
        let mut spare = idle("spare", 1, 0, 0.1);
        spare.is_spare = true;
        let all = vec![idle("fresh", 4, 29, 1.0), idle("stale", 2, 30, 1.0), spare];

        let names =
            |need| -> Vec<&str> { eligible(all.clone(), need).iter().map(|i| i.id).collect() };

        assert_eq!(names(Need::Comfort), ["stale", "spare"]);
        assert_eq!(names(Need::Room).len(), 3);
    }

    proptest! {
        #[test]
        fn what_goes_suffices_and_each_of_it_is_needed(
            sizes in proptest::collection::vec((1u64..100, 0u64..1000, 0.0f64..10.0), 0..12),
            missing in 1u64..400,
        ) {
            let all: Vec<Idle<usize>> = sizes.iter().enumerate().map(|(id, (bytes, unused, reload_s))| Idle {
                id,
                device: DeviceId::Cpu,
                bytes: *bytes,
                unused: Duration::from_secs(*unused),
                reload_s: *reload_s,
                is_spare: false,
            }).collect();
            let total: u64 = sizes.iter().map(|s| s.0).sum();

            let chosen = give_up(&all, DeviceId::Cpu, missing);

            prop_assert_eq!(chosen.is_some(), total >= missing);
            if let Some(chosen) = chosen {
                let given: u64 = chosen.iter().map(|i| all[*i].bytes).sum();
                prop_assert!(given >= missing);
                for one in &chosen {
                    prop_assert!(given - all[*one].bytes < missing);
                }
            }
        }
    }
}
