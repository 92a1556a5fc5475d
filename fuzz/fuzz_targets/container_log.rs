//! Logs of containers as the node serves them: any file can be read, and a limit of bytes and a stream are obeyed.
#![no_main]

// Pure and private to its crate, see `spdy.rs`.
#[allow(dead_code)]
#[path = "../../crates/node/src/server/logs/line.rs"]
mod line;

use libfuzzer_sys::fuzz_target;
use line::{Line, Renderer, Stream};

fuzz_target!(|data: &[u8]| {
    let Some((options, log)) = data.split_first() else { return };
    let stream = [None, None, Some(Stream::Stdout), Some(Stream::Stderr)][usize::from(options & 3)];
    let since = (options & 4 != 0).then(|| "2024-01-01T00:00:00Z".parse().expect("a time"));
    let limit = (options & 8 != 0).then_some(u64::from(options >> 4) * 4);
    let mut renderer = Renderer::new(options & 16 != 0, since, stream, limit);
    let mut output = Vec::new();
    for record in log.split_inclusive(|byte| *byte == b'\n') {
        if renderer.is_full() {
            break;
        }
        renderer.render(&Line::parse(record), &mut output);
    }
    assert!(limit.is_none_or(|limit| output.len() as u64 <= limit));
    assert!(output.len() <= log.len() + 1, "a log grows by being shown");
});
