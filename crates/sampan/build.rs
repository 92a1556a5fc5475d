//! Generic code leaves many functions of the same instructions. The linker that Rust brings for x86_64 keeps one of each when
//! it is told to; other linkers do not know the option.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    let is = |name: &str, value: &str| std::env::var(name).is_ok_and(|found| found == value);
    if is("PROFILE", "release") && is("CARGO_CFG_TARGET_ARCH", "x86_64") && is("CARGO_CFG_TARGET_OS", "linux")
    {
        println!("cargo::rustc-link-arg-bins=-Wl,--icf=all");
    }
}
