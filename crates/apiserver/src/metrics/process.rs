//! What the kernel says about this process, under Prometheus' usual names.

use std::fmt::Write as _;

use super::family;

/// Clock ticks in a second, as the kernel counts them for user space on every architecture we build for.
const TICKS: f64 = 100.0;
/// Bytes in a page on the architectures we build for.
const PAGE: f64 = 4096.0;

/// Writes what is readable; a process without `/proc` has none of it.
pub(super) fn render(out: &mut String) {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    if let Some(usage) = Usage::parse(&stat) {
        value(
            out,
            "process_cpu_seconds_total",
            "counter",
            "Seconds of processor time used.",
            usage.cpu_ticks / TICKS,
        );
        value(out, "process_virtual_memory_bytes", "gauge", "Bytes of address space.", usage.virtual_bytes);
        value(out, "process_resident_memory_bytes", "gauge", "Bytes in memory.", usage.resident_pages * PAGE);
        if let Some(booted) = boot_time() {
            let start = booted + usage.start_ticks / TICKS;
            value(out, "process_start_time_seconds", "gauge", "Start of the process, in Unix time.", start);
        }
    }
    if let Ok(descriptors) = std::fs::read_dir("/proc/self/fd") {
        let open = descriptors.count() as f64;
        value(out, "process_open_fds", "gauge", "Open file descriptors.", open);
    }
    let limits = std::fs::read_to_string("/proc/self/limits").unwrap_or_default();
    let files = limits.lines().find_map(|line| line.strip_prefix("Max open files"));
    if let Some(most) = files.and_then(|line| line.split_whitespace().next()?.parse().ok()) {
        value(out, "process_max_fds", "gauge", "The most file descriptors it may open.", most);
    }
}

fn value(out: &mut String, name: &str, type_: &str, help: &str, value: f64) {
    family(out, name, type_, help);
    let _ = writeln!(out, "{name} {value}");
}

fn boot_time() -> Option<f64> {
    let stat = std::fs::read_to_string("/proc/stat").ok()?;
    stat.lines().find_map(|line| line.strip_prefix("btime "))?.trim().parse().ok()
}

/// Some fields of `/proc/self/stat` (proc_pid_stat(5)).
#[derive(Debug, PartialEq)]
struct Usage {
    cpu_ticks: f64,
    start_ticks: f64,
    virtual_bytes: f64,
    resident_pages: f64,
}

impl Usage {
    fn parse(stat: &str) -> Option<Self> {
        // The name may hold anything, also brackets; fields are counted from behind it, where number 3 is first.
        let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
        let field = |number: usize| fields.get(number - 3)?.parse::<f64>().ok();
        Some(Self {
            cpu_ticks: field(14)? + field(15)?,
            start_ticks: field(22)?,
            virtual_bytes: field(23)?,
            resident_pages: field(24)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_the_kernel() {
        let line = "42 (a) b) S 1 42 42 0 -1 4194560 1 0 0 0 70 30 0 0 20 0 9 0 5000 1000000 250 1 1";
        let expected =
            Usage { cpu_ticks: 100.0, start_ticks: 5000.0, virtual_bytes: 1e6, resident_pages: 250.0 };
        assert_eq!(Usage::parse(line), Some(expected));
        assert_eq!(Usage::parse("42 (x) S 1"), None);
    }

    #[test]
    fn this_process_is_described() {
        let mut text = String::new();
        render(&mut text);
        for name in ["process_cpu_seconds_total", "process_resident_memory_bytes", "process_open_fds"] {
            assert!(text.contains(&format!("\n{name} ")), "{text}");
        }
    }
}
