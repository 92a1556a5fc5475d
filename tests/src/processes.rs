//! Processes of this machine, the way an operator finds them.

use std::collections::BTreeMap;

/// Ids of processes whose command line contains a text, with the moment each was started: an id alone may be used again.
#[must_use]
pub fn processes(text: &str) -> BTreeMap<u32, String> {
    let mut found = BTreeMap::new();
    for entry in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Ok(pid) = entry.file_name().to_string_lossy().parse::<u32>() else { continue };
        // A process that ends while we look has nothing to read.
        let words = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        if String::from_utf8_lossy(&words).replace('\0', " ").contains(text) {
            let stat = std::fs::read_to_string(entry.path().join("stat")).unwrap_or_default();
            // The name in parentheses may contain anything; the start time is field 22, the 20th after it.
            let rest = stat.rsplit(')').next().unwrap_or_default();
            found.insert(pid, rest.split_whitespace().nth(19).unwrap_or_default().to_owned());
        }
    }
    found
}
