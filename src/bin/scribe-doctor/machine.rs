// SPDX-License-Identifier: MPL-2.0
//! Processor and memory.

use std::fs;

use gstscribe::inference::isolated::Isolation;
use gstscribe::registry::device::{Cpu, Device};
use gstscribe::registry::limit::human_bytes;
use gstscribe::registry::{Registry, RegistrySettings};

use crate::report::Report;

/// Adds what is found.
pub fn look(report: &mut Report) {
    report.section("machine");
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    report.ok(
        "processor",
        format!("{} ({cores} cores for us)", cpu_name()),
    );
    match Cpu::new().probe() {
        Ok(view) => report.ok(
            "memory",
            format!(
                "{} of {} available, as /proc and the control group say",
                human_bytes(view.available),
                human_bytes(view.total)
            ),
        ),
        Err(why) => report.note("memory", why, None),
    }
    budget(report);
}

/// What the registry makes of it.
fn budget(report: &mut Report) {
    let (settings, wrong) = RegistrySettings::read(|name| std::env::var(name).ok());
    for why in wrong {
        report.note(
            "environment",
            why,
            Some("write it as docs/elements.md has it"),
        );
    }
    let isolation = [false, true].map(|on_card| Isolation::Auto.is_process(on_card));
    match isolation {
        [Ok(true), _] => report.ok("isolation", "a process of its own"),
        [Ok(false), Ok(true)] => {
            report.ok("isolation", "in-process; on a card a process of its own")
        }
        [Ok(false), _] => report.ok("isolation", "in-process"),
        [Err(error), _] => report.note("isolation", error.to_string(), None),
    }
    report.ok("registry", settings.to_string());
    for memory in Registry::with_settings(settings).memory() {
        report.ok(
            "budget",
            format!(
                "{} of {} on {}; others hold {}, scribe fills 80 % of the rest or of the limit",
                human_bytes(memory.ceiling),
                human_bytes(memory.total),
                memory.device,
                human_bytes(memory.foreign)
            ),
        );
    }
}

/// What the processor can do, in Linux's words.
pub fn cpu_flags() -> Vec<String> {
    cpuinfo(&["flags", "Features"])
        .map(|flags| flags.split_whitespace().map(str::to_owned).collect())
        .unwrap_or_default()
}

fn cpu_name() -> String {
    cpuinfo(&["model name", "Model"]).unwrap_or_else(|| std::env::consts::ARCH.into())
}

fn cpuinfo(names: &[&str]) -> Option<String> {
    let text = fs::read_to_string("/proc/cpuinfo").ok()?;
    text.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        names
            .contains(&name.trim())
            .then(|| value.trim().to_owned())
    })
}
