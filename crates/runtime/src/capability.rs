//! Capabilities of a container: the default set container engines agree on, changed by what the pod asks for.

use rustix::thread::CapabilitySet;

use crate::cri::SecurityContext;
use crate::failure::Failure;

/// What a container gets when nothing is asked for; the same 14 as Docker and containerd.
const DEFAULT: &[&str] = &[
    "AUDIT_WRITE",
    "CHOWN",
    "DAC_OVERRIDE",
    "FOWNER",
    "FSETID",
    "KILL",
    "MKNOD",
    "NET_BIND_SERVICE",
    "NET_RAW",
    "SETFCAP",
    "SETGID",
    "SETPCAP",
    "SETUID",
    "SYS_CHROOT",
];

/// Names in the order of their numbers (`linux/capability.h`).
pub(crate) const NAMES: &[&str] = &[
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "LINUX_IMMUTABLE",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_ADMIN",
    "NET_RAW",
    "IPC_LOCK",
    "IPC_OWNER",
    "SYS_MODULE",
    "SYS_RAWIO",
    "SYS_CHROOT",
    "SYS_PTRACE",
    "SYS_PACCT",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_NICE",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "MKNOD",
    "LEASE",
    "AUDIT_WRITE",
    "AUDIT_CONTROL",
    "SETFCAP",
    "MAC_OVERRIDE",
    "MAC_ADMIN",
    "SYSLOG",
    "WAKE_ALARM",
    "BLOCK_SUSPEND",
    "AUDIT_READ",
    "PERFMON",
    "BPF",
    "CHECKPOINT_RESTORE",
];

/// The capability of that name, with or without `CAP_`, in any case.
pub(crate) fn parse(name: &str) -> Option<CapabilitySet> {
    let upper = name.to_ascii_uppercase();
    let short = upper.strip_prefix("CAP_").unwrap_or(&upper);
    let number = NAMES.iter().position(|known| *known == short)?;
    Some(CapabilitySet::from_bits_retain(1 << number))
}

/// Whether the set holds the capability of that name.
pub(crate) fn contains(set: CapabilitySet, name: &str) -> bool {
    parse(name).is_some_and(|capability| set.contains(capability))
}

/// Every capability there is a name for.
pub(crate) fn all() -> CapabilitySet {
    CapabilitySet::from_bits_retain((1 << NAMES.len()) - 1)
}

/// The set a container gets. `DROP` is applied before `ADD`, except that `ALL` in either comes first, as in containerd:
/// drop ALL and add one leaves one; add ALL and drop one leaves all but one.
///
/// # Errors
/// When a name is unknown.
pub(crate) fn wanted(security: &SecurityContext) -> Result<CapabilitySet, Failure> {
    let known =
        |name: &String| parse(name).ok_or_else(|| Failure::new(format!("unknown capability {name:?}")));
    let is_all = |name: &&String| name.eq_ignore_ascii_case("ALL") || name.eq_ignore_ascii_case("CAP_ALL");
    let (add, drop) = (&security.add_capabilities, &security.drop_capabilities);
    let mut set = CapabilitySet::empty();
    if security.privileged || add.iter().any(|name| is_all(&name)) {
        set = all();
    } else if !drop.iter().any(|name| is_all(&name)) {
        for name in DEFAULT {
            set |= parse(name).unwrap_or(CapabilitySet::empty());
        }
    }
    for name in drop.iter().filter(|name| !is_all(name)) {
        set -= known(name)?;
    }
    for name in add.iter().filter(|name| !is_all(name)) {
        set |= known(name)?;
    }
    Ok(set)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(set: CapabilitySet) -> Vec<&'static str> {
        NAMES.iter().copied().filter(|name| contains(set, name)).collect()
    }

    fn asked(add: &[&str], drop: &[&str], privileged: bool) -> Result<Vec<&'static str>, Failure> {
        let security = SecurityContext {
            privileged,
            add_capabilities: add.iter().map(|name| (*name).to_owned()).collect(),
            drop_capabilities: drop.iter().map(|name| (*name).to_owned()).collect(),
            ..SecurityContext::default()
        };
        wanted(&security).map(names)
    }

    #[test]
    fn defaults_are_the_usual_fourteen() {
        assert_eq!(asked(&[], &[], false).expect("known").len(), 14);
        let bits = wanted(&SecurityContext::default()).expect("known").bits();
        assert_eq!(bits, 0xa804_25fb, "the mask seen in /proc/self/status of a Docker container");
    }

    #[test]
    fn adding_and_dropping() {
        assert_eq!(asked(&["NET_ADMIN"], &["ALL"], false), Ok(vec!["NET_ADMIN"]));
        assert_eq!(asked(&["CAP_sys_time"], &["all"], false), Ok(vec!["SYS_TIME"]));
        assert_eq!(asked(&["ALL"], &["SYS_ADMIN"], false).expect("known").len(), NAMES.len() - 1);
        assert_eq!(asked(&[], &["CHOWN"], false).expect("known").len(), 13);
        assert_eq!(asked(&[], &[], true).expect("known").len(), NAMES.len());
        assert!(asked(&["FLY"], &[], false).is_err());
    }
}
