//! The supervisor alone, for tests: a test binary cannot run code before its harness.

use std::process::ExitCode;

fn main() -> ExitCode {
    sampan_runtime::supervisor_main().unwrap_or_else(|| {
        eprintln!("sampan-supervisor is started by the runtime, not by hand");
        ExitCode::from(2)
    })
}
