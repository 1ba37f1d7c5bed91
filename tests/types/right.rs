// The control: this compiles.
use gstscribe::registry::{Class, Lease, Ticket, Whisper};
use gstscribe::inference::{BatchParams, Decoded, Window};

pub fn transcribe(model: &Lease<Whisper>, window: Window) -> Ticket<Decoded> {
    model.submit(window, BatchParams::default(), Class::File, None)
}

pub fn fallback(model: &Lease<Whisper>, window: Window) -> Ticket<Decoded> {
    transcribe(model, window)
}
