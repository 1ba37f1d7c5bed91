// A name names no model: what it stands for must be found, and may not be there.
use gstscribe::registry::{Request, Whisper};

pub fn request() -> Request<Whisper> {
    Request("large-v3")
}
