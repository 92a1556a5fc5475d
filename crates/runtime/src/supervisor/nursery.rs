//! The nursery: the re-executed binary, which makes supervisors by copying itself.
//!
//! One per agent; it ends with the agent, its children do not. What every supervisor needs (the compiled default
//! filter, the places of the cgroups, the relocated data of the binary) is made here once and shared by all copies.

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::net::RecvFlags;
use rustix::process::DumpableBehavior;
use sampan_kernel::exec::exit_now;
use sampan_kernel::process::{Cloned, NewNamespaces, SingleThreaded, clone_process};

use super::sandbox;
use crate::cgroup::Cgroups;
use crate::failure::{Failure, Tried};
use crate::init::privileges::FilterCache;
use crate::protocol::{self, Birth, Born};

/// Serves the agent at standard input until it closes.
pub(super) fn run() -> Result<(), Failure> {
    let proof = SingleThreaded::prove().tried(|| "become the nursery".to_owned())?;
    let agent = rustix::io::fcntl_dupfd_cloexec(std::io::stdin(), 3)
        .tried(|| "take the agent's connection".to_owned())?;
    prepare_process()?;
    let (cgroups, filters) = (Cgroups::detect()?, FilterCache::new()?);
    let mut nursery = Some((proof, cgroups, filters));
    while let Some(packet) =
        protocol::receive(&agent, RecvFlags::empty()).tried(|| "read from the agent".to_owned())?
    {
        let birth: Birth = packet.parse().tried(|| "understand the agent".to_owned())?;
        let Some(connection) = packet.descriptors.into_iter().next() else {
            return Err(Failure::new("the agent sent no connection for the supervisor"));
        };
        let Some((proof, ..)) = &nursery else {
            return Ok(());
        };
        match clone_process(proof, NewNamespaces::default(), None) {
            Ok(Cloned::Child) => {
                drop(agent);
                let Some((proof, cgroups, filters)) = nursery.take() else { exit_now(1) };
                sampan_kernel::signal::keep_children_waitable();
                let ended = sandbox::run(birth, connection, proof, cgroups, filters);
                exit_now(i32::from(ended.is_err()));
            }
            Ok(Cloned::Parent { pid, pidfd }) => answer(&agent, Ok(pid), Some(&pidfd))?,
            Err(error) => answer(&agent, Err(error).tried(|| "copy the nursery".to_owned()), None)?,
        }
    }
    Ok(())
}

fn answer(agent: &OwnedFd, result: Result<i32, Failure>, pidfd: Option<&OwnedFd>) -> Result<(), Failure> {
    let descriptors: Vec<_> = pidfd.map(|pidfd| pidfd.as_fd()).into_iter().collect();
    protocol::send(agent, &Born { result }, &descriptors).tried(|| "answer the agent".to_owned())
}

fn prepare_process() -> Result<(), Failure> {
    // Containers that share the node's process namespace must not look into us.
    rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable)
        .tried(|| "protect the supervisor's memory".to_owned())?;
    rustix::process::chdir(Path::new("/")).tried(|| "leave the working directory".to_owned())?;
    // A terminal's signals to the agent are not meant for the pods.
    rustix::process::setsid().tried(|| "begin a session".to_owned())?;
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o022));
    let null = std::fs::File::options()
        .read(true)
        .write(true)
        .open("/dev/null")
        .tried(|| "open /dev/null".to_owned())?;
    sampan_kernel::descriptor::set_standard_streams(&null, &null, std::io::stderr())
        .tried(|| "detach from the agent's streams".to_owned())?;
    sampan_kernel::signal::reap_children_automatically();
    let _ = rustix::thread::set_name(c"sampan-nursery");
    // The supervisor's own memory is worth more than any container's; not every machine lets us say so.
    let _ = std::fs::write("/proc/self/oom_score_adj", "-998");
    Ok(())
}
