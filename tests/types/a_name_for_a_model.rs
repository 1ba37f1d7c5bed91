// The old fault: the fallback path was given the model's name. 'str' object has no attribute 'transcribe'.
use gstscribe::registry::{Class, Lease, Ticket, Whisper};
use gstscribe::inference::{BatchParams, Decoded, Window};

pub fn transcribe(model: &Lease<Whisper>, window: Window) -> Ticket<Decoded> {
    model.submit(window, BatchParams::default(), Class::File, None)
}

pub fn fallback(window: Window) -> Ticket<Decoded> {
    transcribe("large-v3", window)
}
