//! Rights of a container's process: user, groups, capabilities, filters, limits.
//!
//! Order: filters that may be loaded only with CAP_SYS_ADMIN come before the capabilities go, unless `no_new_privs`
//! makes that right unnecessary; then they come last, so that they need to permit little besides `execve`.

use std::path::Path;

use rustix::process::{Gid, Resource, Rlimit, Uid, getrlimit, setrlimit};
use rustix::thread::{CapabilitySet, CapabilitySets};

use super::inside::Root;
use crate::capability;
use crate::cri::{SeccompProfile, SecurityContext};
use crate::failure::{Failure, Tried};
use crate::seccomp::{self, Filters, PROFILE_LIMIT};
use crate::user::User;

/// Open files a program may have: what it gets, and what it may ask for. A soft limit above 1024 breaks programs
/// that use `select`, an enormous hard limit those that close every possible descriptor.
const OPEN_FILES: (u64, u64) = (1024, 524_288);

/// The filter of a container that asks for nothing, compiled once for all pods.
#[derive(Debug)]
pub(crate) struct FilterCache {
    capabilities: CapabilitySet,
    filters: Filters,
}

impl FilterCache {
    pub(crate) fn new() -> Result<Self, Failure> {
        let capabilities = capability::wanted(&SecurityContext::default())?;
        Ok(Self { capabilities, filters: seccomp::default_filters(capabilities)? })
    }

    /// What to load for this security context. Reads a profile file from the node, so it is called before the
    /// container's root is entered.
    pub(crate) fn filters(&self, security: &SecurityContext) -> Result<Filters, Failure> {
        if security.privileged {
            return Ok(Filters::new());
        }
        let capabilities = capability::wanted(security)?;
        match &security.seccomp {
            SeccompProfile::Unconfined => Ok(Filters::new()),
            SeccompProfile::RuntimeDefault if capabilities == self.capabilities => Ok(self.filters.clone()),
            SeccompProfile::RuntimeDefault => seccomp::default_filters(capabilities),
            SeccompProfile::Localhost(path) => {
                let text = Root::open(Path::new("/"))?
                    .read(path, PROFILE_LIMIT)
                    .tried(|| format!("read seccomp profile {}", path.display()))?
                    .ok_or_else(|| Failure::new(format!("seccomp profile {} not found", path.display())))?;
                seccomp::oci_filters(&text, capabilities)
            }
        }
    }
}

/// Writes the score; returns a warning when the machine refuses, which is no reason not to run.
pub(crate) fn set_oom_score(score: i32) -> Vec<String> {
    match std::fs::write("/proc/self/oom_score_adj", score.to_string()) {
        Ok(()) => Vec::new(),
        Err(error) => vec![format!("failed to set oom_score_adj to {score}: {error}")],
    }
}

/// Capabilities a process keeps, and whether it may gain any by executing.
#[derive(Debug)]
pub(crate) struct Privileges {
    capabilities: CapabilitySet,
    no_new_privs: bool,
}

impl Privileges {
    /// What the security context comes to on this machine: never more than we have ourselves.
    pub(crate) fn of(security: &SecurityContext) -> Result<Self, Failure> {
        let ours = rustix::thread::capabilities(None).tried(|| "read own capabilities".to_owned())?.permitted;
        let capabilities = capability::wanted(security)? & ours;
        Ok(Self { capabilities, no_new_privs: security.no_new_privs })
    }

    /// Becomes the user with these capabilities, for good.
    pub(crate) fn take(&self, user: &User, filters: &Filters) -> Result<(), Failure> {
        limit_open_files()?;
        if !self.no_new_privs {
            load(filters)?;
        }
        self.bound()?;
        rustix::thread::set_keep_capabilities(true).tried(|| "keep capabilities".to_owned())?;
        become_user(user)?;
        let sets = CapabilitySets {
            effective: self.capabilities,
            permitted: self.capabilities,
            // Empty, so that a program with inheritable file capabilities gains nothing (CVE-2022-24769).
            inheritable: CapabilitySet::empty(),
        };
        rustix::thread::set_capabilities(None, sets).tried(|| "set capabilities".to_owned())?;
        rustix::thread::set_keep_capabilities(false).tried(|| "drop capabilities".to_owned())?;
        if self.no_new_privs {
            rustix::thread::set_no_new_privs(true).tried(|| "set no_new_privs".to_owned())?;
            load(filters)?;
        }
        Ok(())
    }

    /// Takes everything else out of the bounding set, including what newer kernels may have added.
    fn bound(&self) -> Result<(), Failure> {
        for number in 0..64 {
            let capability = CapabilitySet::from_bits_retain(1 << number);
            match rustix::thread::capability_is_in_bounding_set(capability) {
                Ok(true) if !self.capabilities.contains(capability) => {
                    rustix::thread::remove_capability_from_bounding_set(capability)
                        .tried(|| format!("drop capability {number}"))?;
                }
                Ok(_) => {}
                // The kernel knows no higher ones.
                Err(_) => break,
            }
        }
        Ok(())
    }
}

fn become_user(user: &User) -> Result<(), Failure> {
    let groups: Vec<Gid> = user.groups.iter().map(|group| Gid::from_raw(*group)).collect();
    let (uid, gid) = (Uid::from_raw(user.uid), Gid::from_raw(user.gid));
    rustix::thread::set_thread_groups(&groups).tried(|| "set groups".to_owned())?;
    rustix::thread::set_thread_res_gid(gid, gid, gid).tried(|| format!("become group {}", user.gid))?;
    rustix::thread::set_thread_res_uid(uid, uid, uid).tried(|| format!("become user {}", user.uid))
}

fn load(filters: &Filters) -> Result<(), Failure> {
    for filter in filters {
        sampan_kernel::seccomp::load(filter).tried(|| "load the seccomp filter".to_owned())?;
    }
    Ok(())
}

fn limit_open_files() -> Result<(), Failure> {
    let ours = getrlimit(Resource::Nofile);
    let (soft, hard) = OPEN_FILES;
    // Raising the hard limit would need CAP_SYS_RESOURCE.
    let hard = ours.maximum.map_or(hard, |maximum| maximum.min(hard));
    let limit = Rlimit { current: Some(soft.min(hard)), maximum: Some(hard) };
    setrlimit(Resource::Nofile, limit).tried(|| "limit open files".to_owned())
}
