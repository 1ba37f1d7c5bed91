// The same fault where the method is called.
use gstscribe::registry::{Class, Ticket};
use gstscribe::inference::{BatchParams, Decoded, Window};

pub fn fallback(window: Window) -> Ticket<Decoded> {
    "large-v3".submit(window, BatchParams::default(), Class::File, None)
}
