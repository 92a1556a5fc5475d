//! Generic code leaves many functions of the same instructions. The linker that Rust uses of itself for x86_64 Linux
//! (rust-lld) keeps one of each when it is told to. GNU's does not know the option, so whoever chooses another linker goes
//! without.

use std::env;

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    let is = |name: &str, value: &str| env::var(name).is_ok_and(|found| found == value);
    let usual = "x86_64-unknown-linux-gnu";
    let chosen = env::var("CARGO_ENCODED_RUSTFLAGS").is_ok_and(|flags| flags.contains("link"))
        || env::var_os("CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_LINKER").is_some();
    if is("PROFILE", "release") && is("TARGET", usual) && is("HOST", usual) && !chosen {
        println!("cargo::rustc-link-arg-bins=-Wl,--icf=all");
    }
}
