//! `sampan down`: ends the platform and its pods, and removes what they left on the machine.

use std::fs::File;
use std::os::fd::AsFd as _;
use std::path::Path;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::FlockOperation;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use sampan_image::ImageStore;
use sampan_network::Network;
use sampan_runtime::NativeConfig;

use crate::cluster::Cluster;
use crate::paths::Paths;
use crate::{DownArgs, Failure};

/// Seconds the running platform has to end by itself.
const PATIENCE: i64 = 20;

/// Runs the verb.
pub(crate) fn main(args: &DownArgs) -> Result<(), Failure> {
    crate::require_root("down")?;
    let paths = Paths::new(&args.directories);
    if !paths.pid().exists() && !paths.cluster().exists() {
        println!("nothing to end in {}", paths.data.display());
        return Ok(());
    }
    end_platform(&paths.pid())?;
    // A platform that failed before it decided anything left directories and nothing else.
    if let Some(cluster) = Cluster::load(&paths)? {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(clean(&paths, &cluster))?;
    }
    remove_tree(&paths.run)?;
    if args.purge {
        remove_tree(&paths.data)?;
    }
    println!("down");
    Ok(())
}

async fn clean(paths: &Paths, cluster: &Cluster) -> Result<(), Failure> {
    let images = ImageStore::open(&paths.images())?;
    let config = NativeConfig::new(paths.containers(), paths.runtime(), cluster.cgroup(), images);
    sampan_runtime::destroy_all(&config)?;
    for directory in [paths.node(), paths.node_run()] {
        unmount_below(&directory)?;
        remove_tree(&directory)?;
    }
    Network::destroy(
        &cluster.network(paths, cluster.pod_cidr.nth(1).unwrap_or(std::net::Ipv4Addr::UNSPECIFIED)),
    )
    .await?;
    Ok(())
}

/// Asks the running platform to end and waits for it. The lock proves that the process id is still its own.
fn end_platform(pid_file: &Path) -> Result<(), Failure> {
    let Ok(file) = File::open(pid_file) else { return Ok(()) };
    if rustix::fs::flock(file.as_fd(), FlockOperation::NonBlockingLockExclusive).is_ok() {
        return Ok(());
    }
    let text = std::fs::read_to_string(pid_file)?;
    let pid = text.trim().parse().ok().and_then(Pid::from_raw);
    let pid = pid.ok_or_else(|| format!("{} holds no process id", pid_file.display()))?;
    let Ok(process) = pidfd_open(pid, PidfdFlags::empty()) else { return Ok(()) };
    pidfd_send_signal(&process, Signal::TERM)?;
    let mut fds = [PollFd::new(&process, PollFlags::IN)];
    let patience = Timespec { tv_sec: PATIENCE, tv_nsec: 0 };
    if poll(&mut fds, Some(&patience))? == 0 {
        tracing::warn!("the platform does not end by itself, killing it");
        pidfd_send_signal(&process, Signal::KILL)?;
        poll(&mut [PollFd::new(&process, PollFlags::IN)], Some(&patience))?;
    }
    Ok(())
}

/// Detaches every mount below a directory, the innermost first.
fn unmount_below(directory: &Path) -> Result<(), Failure> {
    let table = std::fs::read_to_string("/proc/self/mountinfo")?;
    let mut points: Vec<String> = table
        .lines()
        .filter_map(|line| line.split(' ').nth(4))
        .map(unescape)
        .filter(|point| Path::new(point).starts_with(directory))
        .collect();
    points.sort_by_key(|point| std::cmp::Reverse(point.len()));
    for point in points {
        rustix::mount::unmount(&*point, rustix::mount::UnmountFlags::DETACH)
            .map_err(|e| format!("cannot unmount {point}: {e}"))?;
    }
    Ok(())
}

/// Octal escapes of mountinfo: space, tab, newline, backslash.
fn unescape(text: &str) -> String {
    text.replace("\\040", " ").replace("\\011", "\t").replace("\\012", "\n").replace("\\134", "\\")
}

fn remove_tree(directory: &Path) -> Result<(), Failure> {
    match std::fs::remove_dir_all(directory) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
            Err(format!("cannot remove {}: {e}", directory.display()).into())
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_running_is_nothing_to_end() {
        assert!(end_platform(Path::new("/nonexistent/sampan.pid")).is_ok());
        assert_eq!(unescape("/a\\040b"), "/a b");
    }
}
