//! Layers of images: any bytes are an archive, an error, or end too early; nothing of an archive is larger than it.
#![no_main]

// Private to their crate and free of its IO, see `spdy.rs`; the modules name each other from the root of a crate.
#[allow(dead_code)]
#[path = "../../crates/image/src/digest.rs"]
mod digest;
#[allow(dead_code)]
#[path = "../../crates/image/src/error.rs"]
mod error;
#[allow(dead_code)]
#[path = "../../crates/image/src/tarball.rs"]
mod tarball;

use digest::Digest;
use error::LayerError;
use libfuzzer_sys::fuzz_target;
use tarball::{Limits, Tarball};

fuzz_target!(|data: &[u8]| {
    let mut archive = Tarball::new(data, Limits { entries: 1000, bytes: 1 << 20 });
    let mut buffer = [0; 777];
    while let Ok(Some(entry)) = archive.next() {
        let held = entry.path.len()
            + entry.link.len()
            + entry.xattrs.iter().map(|(k, v)| k.len() + v.len()).sum::<usize>();
        assert!(held <= data.len(), "a header is larger than its archive");
        let _ = entry.name();
        loop {
            match archive.read_content(&mut buffer, "x") {
                Ok(0) => break,
                Ok(_) => {}
                Err(_) => return,
            }
        }
    }
    let _ = archive.drain();
    assert!(archive.position() <= data.len() as u64);
});
