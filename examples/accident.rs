// SPDX-License-Identifier: MPL-2.0
//! The accident that scribe exists for, replayed on a made-up card: `make accident`.

#![allow(
    clippy::print_stdout,
    reason = "a program: its words go to the terminal"
)]

use std::process::ExitCode;

use gstscribe::registry::replay::{Policy, Report, Scenario, Strangers, Switches, play};

const GIB: f64 = (1u64 << 30) as f64;

fn row(name: &str, scenario: &Scenario, against: Option<f64>) -> Report {
    let report = play(scenario);
    let time = against.map_or(String::new(), |unlimited| {
        format!("{:+.1} %", (report.seconds / unlimited - 1.0) * 100.0)
    });
    println!(
        "{name:<44} {:>2} of {:<2} {:>5} {:>8.2} {:>6.1} {:>6.0} {:>8} {:>6.1} {:>5.1} {:>6} {:>6}",
        report.done,
        scenario.videos,
        report.out_of_memory,
        report.peak as f64 / GIB,
        report.peak_percent,
        report.seconds,
        time,
        report.enrol_seconds,
        report.enrol_batches,
        report.loads,
        report.fallbacks
    );
    report
}

fn main() -> ExitCode {
    let seeds: u64 = std::env::args()
        .nth(1)
        .and_then(|n| n.parse().ok())
        .unwrap_or(1000);
    let mut good = true;
    println!(
        "{:<44} {:>8} {:>5} {:>8} {:>6} {:>6} {:>8} {:>6} {:>5} {:>6} {:>6}",
        "20 videos, 2 at a time",
        "done",
        "OOM",
        "peak GB",
        "%",
        "s",
        "time",
        "enrol s",
        "bat.",
        "loads",
        "falls"
    );
    let scribe = Scenario::default();
    let old = Scenario {
        policy: Policy::Old,
        shared_embedding: false,
        ..scribe
    };
    row("without the registry, batches of 32", &old, None);
    row(
        "without the registry, batches of 8",
        &Scenario { batch: 8, ..old },
        None,
    );
    let mut shown = Report::default();
    for shared in [false, true] {
        let scribe = Scenario {
            shared_embedding: shared,
            ..scribe
        };
        let models = if shared {
            "embedding shared"
        } else {
            "four models"
        };
        let unlimited = row(
            &format!("unlimited memory, {models}"),
            &Scenario {
                card_gib: 1024,
                ..scribe
            },
            None,
        );
        let time = Some(unlimited.seconds);
        let report = row(&format!("registry, {models}"), &scribe, time);
        good &= report.is_good(scribe.videos);
        if shared {
            good &= report.seconds <= unlimited.seconds * 1.05;
        }
        shown = report;
        let half_way = Scenario {
            strangers: Strangers::HalfWay,
            ..scribe
        };
        good &=
            row("  another process takes 2 GB half way", &half_way, time).is_good(scribe.videos);
        for card_gib in [8, 4] {
            let small = Scenario { card_gib, ..scribe };
            good &=
                row(&format!("  on a card of {card_gib} GB"), &small, time).is_good(scribe.videos);
        }
    }
    let mut worst = Report::default();
    let (mut bad, mut refused) = (0, 0);
    for seed in 1..=seeds {
        let report = play(&Scenario::restless(seed));
        // What a stranger takes between a reservation and its allocation is gone: such a load is done again.
        refused += report.out_of_memory;
        let without = Report {
            out_of_memory: 0,
            ..report
        };
        if !without.is_good(scribe.videos) {
            bad += 1;
            println!("  seed {seed}: {report:?}");
        }
        if report.peak_percent > worst.peak_percent {
            worst = report;
        }
    }
    println!(
        "{seeds} random seeds, restless strangers, cards of 16, 8 and 4 GB: {bad} bad, worst peak {:.1} %; {refused} \
         allocations found that a stranger had just taken what was reserved, and were done again",
        worst.peak_percent
    );
    good &= bad == 0;
    for (name, switches) in Switches::each_off() {
        match Scenario::breaks(switches) {
            Some((seed, report)) => println!(
                "without \"{name}\": fails (seed {seed}: {} of {}, {} OOM, peak {:.1} %)",
                report.done, scribe.videos, report.out_of_memory, report.peak_percent
            ),
            None => {
                println!("without \"{name}\": does not fail");
                good = false;
            }
        }
    }
    println!(
        "{} of {} videos, {} out of memory, peak {:.1} % of what others leave, {:.0} batches of 32 in {:.0} s to enrol{}",
        shown.done,
        scribe.videos,
        shown.out_of_memory,
        shown.peak_percent,
        shown.enrol_batches,
        shown.enrol_seconds,
        if good { "" } else { ": NOT GOOD, see above" }
    );
    if good {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}
