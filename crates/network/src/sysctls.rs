//! The machine-wide kernel settings we need, changed only when they are not as needed, and put back at the end.
//!
//! Settings of our own links are not here: they vanish with them. This file is about the others, and there is one:
//! forwarding. What we changed is recorded before we change it, so that a crash between the two is harmless.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use nlink::netlink::sysctl;

use crate::{NetworkError, state};

/// The settings a node must have, as paths under `/proc/sys`.
const NEEDED: &[(&str, &str)] = &[("net/ipv4/ip_forward", "1")];

/// The previous values of what we changed, by key.
type Previous = BTreeMap<String, String>;

fn record(state_dir: &Path) -> PathBuf {
    state_dir.join("sysctls.json")
}

/// Makes the settings as needed.
pub(crate) fn ensure(state_dir: &Path) -> Result<(), NetworkError> {
    let mut previous: Previous = state::read(&record(state_dir))?.unwrap_or_default();
    for &(key, wanted) in NEEDED {
        let failed = || NetworkError::netlink(format!("set {key} to {wanted}"));
        let value = sysctl::get(key).map_err(failed())?;
        if value == wanted {
            continue;
        }
        // A value recorded by an earlier run is the older truth.
        previous.entry(key.to_owned()).or_insert(value);
        state::write(&record(state_dir), &previous)?;
        sysctl::set(key, wanted).map_err(failed())?;
    }
    Ok(())
}

/// Puts back what [`ensure`] changed, and forgets it. With `keep` the settings stay, because another cluster on this
/// machine needs them as well.
pub(crate) fn restore(state_dir: &Path, keep: bool) -> Result<(), NetworkError> {
    let path = record(state_dir);
    if !keep {
        for (key, value) in state::read::<Previous>(&path)?.unwrap_or_default() {
            sysctl::set(&key, &value).map_err(NetworkError::netlink(format!("set {key} back to {value}")))?;
        }
    }
    state::remove(&path)
}
