// SPDX-License-Identifier: MPL-2.0
//! Ctrl-C as a message on a pipeline's bus, so that there is one place to wait.

use std::sync::atomic::{AtomicBool, Ordering};

type Failure = Box<dyn std::error::Error>;

const INTERRUPTED: &str = "interrupted";

/// The first Ctrl-C comes on the bus, the second ends the program.
pub fn heed_ctrl_c(bus: &gst::Bus) -> Result<(), Failure> {
    let asked = AtomicBool::new(false);
    let bus = bus.clone();
    ctrlc::set_handler(move || {
        if asked.swap(true, Ordering::SeqCst) {
            std::process::exit(130);
        }
        let structure = gst::Structure::new_empty(INTERRUPTED);
        let _ = bus.post(gst::message::Application::new(structure));
    })
    .map_err(|e| format!("Ctrl-C cannot be heeded: {e}").into())
}

/// Whether the message says that Ctrl-C came.
pub fn is_interrupt(told: &gst::message::Application) -> bool {
    told.structure().is_some_and(|s| s.name() == INTERRUPTED)
}
