//! SPDY frames: any bytes, in pieces of any size, are frames, an error or not enough; what was read is written so that it
//! reads the same.
#![no_main]

// The module is private to its crate, pure, and needs nothing of it: it is compiled in here, so that a target of a few
// hundred lines does not wait for the whole agent.
#[allow(dead_code)]
#[path = "../../crates/node/src/server/spdy.rs"]
mod spdy;

use libfuzzer_sys::fuzz_target;
use spdy::{Decoder, Encoder, Frame};

fuzz_target!(|data: &[u8]| {
    let Some((first, bytes)) = data.split_first() else { return };
    let mut decoder = Decoder::new();
    let mut encoder = Encoder::new();
    let mut mirror = Decoder::new();
    for piece in bytes.chunks(usize::from(*first) + 1) {
        decoder.push(piece);
        loop {
            match decoder.next_frame() {
                Ok(Some(Frame::Other)) => {}
                Ok(Some(frame)) => {
                    mirror.push(&encoder.encode(&frame).expect("what was read can be written"));
                    assert_eq!(mirror.next_frame(), Ok(Some(frame)));
                }
                Ok(None) => break,
                Err(_) => return,
            }
        }
    }
});
