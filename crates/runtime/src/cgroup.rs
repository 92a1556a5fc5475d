//! cgroups as the runtime needs them, the same on v2, v1 and the hybrid of both.
//!
//! A cgroup is named by one path below the root of every hierarchy. On v1 that path is made in each hierarchy we use;
//! on a hybrid also in the unified one, which has no controllers there but kills and counts better than v1. Values
//! are computed by pure functions ([`v1_files`], [`v2_files`]); writing them is separate.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Component, Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{Mode, OFlags};

use crate::cri::LinuxResources;
use crate::failure::{Failure, Tried};

/// How long to wait for killed processes to end. Only those stuck in the kernel, for instance on a dead network file
/// system, take longer than moments.
const KILL_LIMIT: Duration = Duration::from_secs(20);

/// v1 controllers we use. `freezer` is not needed: killing loops until nothing is left.
const V1_CONTROLLERS: &[&str] = &["cpu", "cpuacct", "memory", "pids", "devices"];

/// v1 controllers containers see although we set nothing in them: Java believes in limits only when `cpuset` is there.
const V1_VISIBLE: &[&str] = &["cpuset"];

/// v2 controllers enabled for children.
const V2_CONTROLLERS: &[&str] = &["cpu", "memory", "pids"];

/// Where the hierarchies of this machine are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Cgroups {
    /// The v2 hierarchy, with controllers unless `legacy` is filled.
    pub(crate) unified: Option<PathBuf>,
    /// v1 hierarchies we use and their controllers; empty on v2.
    pub(crate) legacy: Vec<Hierarchy>,
    /// v1 hierarchies that are only shown.
    pub(crate) visible: Vec<Hierarchy>,
}

/// One v1 hierarchy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Hierarchy {
    pub(crate) controllers: Vec<String>,
    pub(crate) path: PathBuf,
}

/// Which devices the processes of a cgroup may use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Devices {
    /// The ones every container has.
    Default,
    /// Everything.
    All,
}

/// Character devices every container may open: (major, minor), `None` for all minors.
const DEFAULT_DEVICES: &[(u32, Option<u32>)] = &[
    (1, Some(3)), // null
    (1, Some(5)), // zero
    (1, Some(7)), // full
    (1, Some(8)), // random
    (1, Some(9)), // urandom
    (5, Some(0)), // tty
    (5, Some(2)), // ptmx
    (136, None),  // pseudo terminals
];

impl Cgroups {
    /// Finds the hierarchies in `/proc/self/mountinfo`.
    pub(crate) fn detect() -> Result<Self, Failure> {
        let mounts =
            fs::read_to_string("/proc/self/mountinfo").tried(|| "read /proc/self/mountinfo".to_owned())?;
        let found = Self::parse(&mounts);
        if found.legacy.is_empty() && found.unified.is_none() {
            return Err(Failure::new("no cgroup hierarchy is mounted"));
        }
        Ok(found)
    }

    fn parse(mountinfo: &str) -> Self {
        let mut found = Self { unified: None, legacy: Vec::new(), visible: Vec::new() };
        for line in mountinfo.lines() {
            let Some((before, after)) = line.split_once(" - ") else {
                continue;
            };
            let fields: Vec<&str> = before.split(' ').collect();
            let behind: Vec<&str> = after.split(' ').collect();
            let (Some(mount_point), [kind, _, options]) = (fields.get(4), &behind[..]) else {
                continue;
            };
            match *kind {
                "cgroup2" if found.unified.is_none() => found.unified = Some(PathBuf::from(mount_point)),
                "cgroup" => {
                    add_hierarchy(&mut found.legacy, V1_CONTROLLERS, options, mount_point);
                    add_hierarchy(&mut found.visible, V1_VISIBLE, options, mount_point);
                }
                _ => {}
            }
        }
        found
    }

    /// Directories of the cgroup in every hierarchy.
    fn directories(&self, cgroup: &str) -> impl Iterator<Item = PathBuf> {
        let roots: Vec<&PathBuf> =
            self.legacy.iter().map(|hierarchy| &hierarchy.path).chain(&self.unified).collect();
        let directories: Vec<PathBuf> = roots.into_iter().map(|root| root.join(cgroup)).collect();
        directories.into_iter()
    }

    fn legacy_directory(&self, controller: &str, cgroup: &str) -> Option<PathBuf> {
        let has = |hierarchy: &&Hierarchy| hierarchy.controllers.iter().any(|name| name == controller);
        self.legacy.iter().find(has).map(|hierarchy| hierarchy.path.join(cgroup))
    }

    fn unified_directory(&self, cgroup: &str) -> Option<PathBuf> {
        self.unified.as_ref().map(|root| root.join(cgroup))
    }

    fn is_v2(&self) -> bool {
        self.legacy.is_empty()
    }

    /// Makes the cgroup and its parents.
    pub(crate) fn create(&self, cgroup: &str) -> Result<(), Failure> {
        for directory in self.directories(cgroup) {
            fs::create_dir_all(&directory).tried(|| format!("make cgroup {}", directory.display()))?;
        }
        if self.is_v2() {
            self.delegate(cgroup)?;
        }
        Ok(())
    }

    /// On v2 a controller works in a cgroup when every parent passes it on.
    fn delegate(&self, cgroup: &str) -> Result<(), Failure> {
        let Some(root) = &self.unified else { return Ok(()) };
        let mut directory = root.clone();
        for component in Path::new(cgroup).components() {
            let available = fs::read_to_string(directory.join("cgroup.controllers"))
                .tried(|| format!("read controllers of {}", directory.display()))?;
            let wanted: Vec<String> = V2_CONTROLLERS
                .iter()
                .filter(|name| available.split_ascii_whitespace().any(|there| there == **name))
                .map(|name| format!("+{name}"))
                .collect();
            if !wanted.is_empty() {
                fs::write(directory.join("cgroup.subtree_control"), wanted.join(" "))
                    .tried(|| format!("enable controllers below {}", directory.display()))?;
            }
            directory.push(component);
        }
        Ok(())
    }

    /// Writes the limits; returns one sentence for each the machine refused.
    pub(crate) fn apply(&self, cgroup: &str, resources: &LinuxResources) -> Vec<String> {
        let mut refused = Vec::new();
        let mut write = |path: PathBuf, value: &str| {
            if let Err(error) = fs::write(&path, value) {
                refused.push(format!("failed to write {value:?} to {}: {error}", path.display()));
            }
        };
        if self.is_v2() {
            if let Some(directory) = self.unified_directory(cgroup) {
                for (file, value) in v2_files(resources) {
                    write(directory.join(file), &value);
                }
            }
            return refused;
        }
        for (controller, file, value) in v1_files(resources) {
            if let Some(directory) = self.legacy_directory(controller, cgroup) {
                write(directory.join(file), &value);
            }
        }
        refused
    }

    /// Restricts devices; the barrier against `mknod` of the node's disks.
    pub(crate) fn restrict_devices(&self, cgroup: &str, devices: Devices) -> Result<(), Failure> {
        if devices == Devices::All {
            return Ok(());
        }
        if let Some(directory) = self.legacy_directory("devices", cgroup) {
            fs::write(directory.join("devices.deny"), "a").tried(|| format!("deny devices to {cgroup}"))?;
            for rule in v1_device_rules() {
                fs::write(directory.join("devices.allow"), &rule)
                    .tried(|| format!("allow {rule:?} to {cgroup}"))?;
            }
        } else if self.is_v2()
            && let Some(directory) = self.open_unified(cgroup)?
        {
            sampan_kernel::bpf::allow_devices(&directory, &v2_device_rules())
                .tried(|| format!("load the device filter of {cgroup}"))?;
        }
        Ok(())
    }

    /// On v2, the directory for starting a process directly inside (`CLONE_INTO_CGROUP`).
    pub(crate) fn open_for_clone(&self, cgroup: &str) -> Result<Option<OwnedFd>, Failure> {
        if self.is_v2() { self.open_unified(cgroup) } else { Ok(None) }
    }

    fn open_unified(&self, cgroup: &str) -> Result<Option<OwnedFd>, Failure> {
        let Some(directory) = self.unified_directory(cgroup) else {
            return Ok(None);
        };
        rustix::fs::open(&directory, OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::RDONLY, Mode::empty())
            .tried(|| format!("open cgroup {}", directory.display()))
            .map(Some)
    }

    /// Moves a process into the cgroup in every hierarchy.
    pub(crate) fn add_process(&self, cgroup: &str, pid: i32) -> Result<(), Failure> {
        for directory in self.directories(cgroup) {
            fs::write(directory.join("cgroup.procs"), pid.to_string())
                .tried(|| format!("move process {pid} into cgroup {}", directory.display()))?;
        }
        Ok(())
    }

    /// Processes of the cgroup and the ones below it.
    pub(crate) fn processes(&self, cgroup: &str) -> Vec<i32> {
        let mut pids: Vec<i32> = Vec::new();
        for directory in self.directories(cgroup) {
            collect_processes(&directory, &mut pids);
        }
        pids.sort_unstable();
        pids.dedup();
        pids
    }

    /// Sends SIGKILL to every process of the cgroup and the ones below it, without waiting.
    pub(crate) fn kill(&self, cgroup: &str) {
        if let Some(directory) = self.unified_directory(cgroup)
            && fs::write(directory.join("cgroup.kill"), "1").is_ok()
            && self.is_v2()
        {
            return;
        }
        // v1 cannot kill a cgroup at once; a process that forks meanwhile is found by the next round of the caller.
        // A process id may be given to a stranger after it was read. So it is opened first, and what is still listed
        // then was opened as a member.
        let opened: Vec<(i32, OwnedFd)> =
            self.processes(cgroup).into_iter().filter_map(|pid| Some((pid, open_process(pid)?))).collect();
        let listed = self.processes(cgroup);
        for (_, pidfd) in opened.iter().filter(|(pid, _)| listed.contains(pid)) {
            // Gone already is what is wanted.
            let _ = rustix::process::pidfd_send_signal(pidfd, rustix::process::Signal::KILL);
        }
    }

    /// Kills until no process is left, waiting on each through its pidfd.
    pub(crate) fn kill_and_wait(&self, cgroup: &str) {
        let begin = Instant::now();
        while begin.elapsed() < KILL_LIMIT {
            let pids = self.processes(cgroup);
            if pids.is_empty() {
                return;
            }
            self.kill(cgroup);
            for pid in pids {
                wait_for_process(pid);
            }
        }
    }

    /// Removes the cgroup and the ones below it; it must be empty of processes.
    pub(crate) fn remove(&self, cgroup: &str) {
        for directory in self.directories(cgroup) {
            remove_tree(&directory);
        }
    }

    /// Removes the cgroup when nothing is in it or below it.
    pub(crate) fn remove_if_empty(&self, cgroup: &str) {
        for directory in self.directories(cgroup) {
            // Fails while another attempt of the same pod uses the cgroup, and that is meant.
            let _ = fs::remove_dir(directory);
        }
    }

    /// How many processes of the cgroup were killed because memory ran out.
    pub(crate) fn oom_kills(&self, cgroup: &str) -> u64 {
        let file = match self.legacy_directory("memory", cgroup) {
            Some(directory) => directory.join("memory.oom_control"),
            None => match self.unified_directory(cgroup) {
                Some(directory) => directory.join("memory.events"),
                None => return 0,
            },
        };
        fs::read_to_string(file).map_or(0, |text| value_of(&text, "oom_kill").unwrap_or(0))
    }

    /// CPU time in nanoseconds, memory in bytes, and memory less inactive file pages.
    pub(crate) fn usage(&self, cgroup: &str) -> Result<(u64, u64, u64), Failure> {
        let read = |path: PathBuf| fs::read_to_string(&path).tried(|| format!("read {}", path.display()));
        let number = |text: String| text.trim().parse::<u64>().unwrap_or(0);
        let missing = || Failure::not_found(format!("cgroup {cgroup} has no usage counters"));
        if self.is_v2() {
            let directory = self.unified_directory(cgroup).ok_or_else(missing)?;
            let cpu = value_of(&read(directory.join("cpu.stat"))?, "usage_usec").unwrap_or(0) * 1000;
            let memory = number(read(directory.join("memory.current"))?);
            let inactive = value_of(&read(directory.join("memory.stat"))?, "inactive_file").unwrap_or(0);
            return Ok((cpu, memory, memory.saturating_sub(inactive)));
        }
        let cpu = number(read(
            self.legacy_directory("cpuacct", cgroup).ok_or_else(missing)?.join("cpuacct.usage"),
        )?);
        let directory = self.legacy_directory("memory", cgroup).ok_or_else(missing)?;
        let memory = number(read(directory.join("memory.usage_in_bytes"))?);
        let inactive = value_of(&read(directory.join("memory.stat"))?, "total_inactive_file").unwrap_or(0);
        Ok((cpu, memory, memory.saturating_sub(inactive)))
    }
}

/// The path with `parent` below it, when `parent` only leads downwards.
///
/// # Errors
/// When `parent` has `..` in it.
pub(crate) fn join(root: &str, parent: &str) -> Result<String, Failure> {
    let mut path = PathBuf::from(root.trim_matches('/'));
    for component in Path::new(parent).components() {
        match component {
            Component::Normal(name) => path.push(name),
            Component::RootDir | Component::CurDir => {}
            Component::ParentDir | Component::Prefix(_) => {
                return Err(Failure::new(format!("cgroup path {parent:?} leads upwards")));
            }
        }
    }
    Ok(path.to_string_lossy().into_owned())
}

/// File and value of each limit on v2.
fn v2_files(resources: &LinuxResources) -> Vec<(&'static str, String)> {
    let mut files = Vec::new();
    if resources.memory_limit > 0 {
        files.push(("memory.max", resources.memory_limit.to_string()));
        // One process short of memory ends the container as a whole, as the kubelet does on v2.
        files.push(("memory.oom.group", "1".to_owned()));
    }
    if resources.cpu_shares > 0 {
        files.push(("cpu.weight", v2_weight(resources.cpu_shares).to_string()));
    }
    if let Some((quota, period)) = quota(resources) {
        files.push(("cpu.max", format!("{quota} {period}")));
    }
    if resources.pids_limit > 0 {
        files.push(("pids.max", resources.pids_limit.to_string()));
    }
    files
}

/// Controller, file and value of each limit on v1.
fn v1_files(resources: &LinuxResources) -> Vec<(&'static str, &'static str, String)> {
    let mut files = Vec::new();
    if resources.memory_limit > 0 {
        files.push(("memory", "memory.limit_in_bytes", resources.memory_limit.to_string()));
    }
    if resources.cpu_shares > 0 {
        files.push(("cpu", "cpu.shares", resources.cpu_shares.clamp(2, 262_144).to_string()));
    }
    if let Some((quota, period)) = quota(resources) {
        files.push(("cpu", "cpu.cfs_period_us", period.to_string()));
        files.push(("cpu", "cpu.cfs_quota_us", quota.to_string()));
    }
    if resources.pids_limit > 0 {
        files.push(("pids", "pids.max", resources.pids_limit.to_string()));
    }
    files
}

/// Quota and period in microseconds; the kernel refuses quotas under a millisecond.
fn quota(resources: &LinuxResources) -> Option<(i64, u64)> {
    let period = if resources.cpu_period == 0 { 100_000 } else { resources.cpu_period };
    (resources.cpu_quota > 0).then(|| (resources.cpu_quota.max(1000), period))
}

/// `cpu.weight` (1..=10000) for `cpu.shares` (2..=262144), the linear map of the OCI runtimes.
fn v2_weight(shares: u64) -> u64 {
    1 + (shares.clamp(2, 262_144) - 2) * 9999 / 262_142
}

/// `devices.allow` lines: every node may be made, few may be opened.
fn v1_device_rules() -> Vec<String> {
    let minor = |minor: &Option<u32>| minor.map_or("*".to_owned(), |minor| minor.to_string());
    ["c *:* m".to_owned(), "b *:* m".to_owned()]
        .into_iter()
        .chain(DEFAULT_DEVICES.iter().map(|(major, number)| format!("c {major}:{} rwm", minor(number))))
        .collect()
}

fn v2_device_rules() -> Vec<sampan_kernel::bpf::DeviceRule> {
    use sampan_kernel::bpf::DeviceRule;
    let make = |block| DeviceRule { block, major: None, minor: None, make_only: true };
    let open = |(major, minor): &(u32, Option<u32>)| DeviceRule {
        block: false,
        major: Some(*major),
        minor: *minor,
        make_only: false,
    };
    [make(false), make(true)].into_iter().chain(DEFAULT_DEVICES.iter().map(open)).collect()
}

/// Adds a v1 hierarchy when it has one of the controllers and is not known from another mount point.
fn add_hierarchy(known: &mut Vec<Hierarchy>, wanted: &[&str], options: &str, mount_point: &str) {
    let controllers: Vec<String> =
        options.split(',').filter(|option| wanted.contains(option)).map(str::to_owned).collect();
    if !controllers.is_empty() && known.iter().all(|hierarchy| hierarchy.controllers != controllers) {
        known.push(Hierarchy { controllers, path: PathBuf::from(mount_point) });
    }
}

/// Number behind `key` in a file of `key value` lines.
fn value_of(text: &str, key: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(' ')?.trim().parse().ok())
}

fn collect_processes(directory: &Path, pids: &mut Vec<i32>) {
    if let Ok(text) = fs::read_to_string(directory.join("cgroup.procs")) {
        // 0 stands for a process outside our process namespace; killing "0" would hit our own group.
        pids.extend(text.lines().filter_map(|line| line.parse::<i32>().ok()).filter(|pid| *pid > 0));
    }
    for child in child_directories(directory) {
        collect_processes(&child, pids);
    }
}

fn remove_tree(directory: &Path) {
    for child in child_directories(directory) {
        remove_tree(&child);
    }
    if let Err(error) = fs::remove_dir(directory)
        && error.kind() != io::ErrorKind::NotFound
    {
        tracing::warn!(cgroup = %directory.display(), %error, "cgroup could not be removed");
    }
}

fn child_directories(directory: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(directory) else {
        return Vec::new();
    };
    entries
        .flatten()
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        .map(|entry| entry.path())
        .collect()
}

fn open_process(pid: i32) -> Option<OwnedFd> {
    let pid = rustix::process::Pid::from_raw(pid)?;
    rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty()).ok()
}

/// Waits until the process has ended, at most a second.
fn wait_for_process(pid: i32) {
    let Some(pidfd) = open_process(pid) else { return };
    let mut poll = [rustix::event::PollFd::new(&pidfd, rustix::event::PollFlags::IN)];
    let second = rustix::event::Timespec { tv_sec: 1, tv_nsec: 0 };
    // The caller looks again in any case.
    let _ = rustix::event::poll(&mut poll, Some(&second));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hierarchies_are_found_in_mountinfo() {
        let v2 = "29 23 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n";
        assert_eq!(
            Cgroups::parse(v2),
            Cgroups { unified: Some("/sys/fs/cgroup".into()), legacy: vec![], visible: vec![] }
        );
        let hybrid = "30 29 0:27 / /sys/fs/cgroup/cpu,cpuacct rw shared:5 - cgroup cgroup rw,cpu,cpuacct\n\
                      31 29 0:28 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n\
                      32 29 0:29 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,name=systemd\n\
                      33 29 0:30 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n\
                      34 29 0:28 / /other/memory rw - cgroup cgroup rw,memory\n\
                      garbage\n";
        let found = Cgroups::parse(hybrid);
        assert_eq!(found.unified, Some("/sys/fs/cgroup/unified".into()));
        assert_eq!(found.legacy.len(), 2);
        assert_eq!(found.legacy_directory("cpuacct", "a/b"), Some("/sys/fs/cgroup/cpu,cpuacct/a/b".into()));
        assert_eq!(found.legacy_directory("memory", "a"), Some("/sys/fs/cgroup/memory/a".into()));
        assert_eq!(found.legacy_directory("pids", "a"), None);
        assert!(!found.is_v2());
    }

    #[test]
    fn paths_only_lead_downwards() {
        for (root, parent, expected) in [
            ("sampan", "kubepods/burstable/pod1", Some("sampan/kubepods/burstable/pod1")),
            ("/sampan/", "/kubepods", Some("sampan/kubepods")),
            ("sampan", "", Some("sampan")),
            ("sampan", "a/./b", Some("sampan/a/b")),
            ("sampan", "../x", None),
            ("sampan", "a/../../x", None),
        ] {
            assert_eq!(join(root, parent).ok().as_deref(), expected, "{parent}");
        }
    }

    #[test]
    fn limits_become_files() {
        let resources = LinuxResources {
            cpu_period: 0,
            cpu_quota: 50_000,
            cpu_shares: 512,
            memory_limit: 1 << 20,
            pids_limit: 10,
            oom_score_adj: 0,
        };
        let v2: Vec<String> =
            v2_files(&resources).iter().map(|(file, value)| format!("{file}={value}")).collect();
        let expected = [
            "memory.max=1048576",
            "memory.oom.group=1",
            "cpu.weight=20",
            "cpu.max=50000 100000",
            "pids.max=10",
        ];
        assert_eq!(v2, expected);
        let v1: Vec<String> =
            v1_files(&resources).iter().map(|(_, file, value)| format!("{file}={value}")).collect();
        let expected = [
            "memory.limit_in_bytes=1048576",
            "cpu.shares=512",
            "cpu.cfs_period_us=100000",
            "cpu.cfs_quota_us=50000",
            "pids.max=10",
        ];
        assert_eq!(v1, expected);
        assert!(v2_files(&LinuxResources::default()).is_empty());
        assert!(v1_files(&LinuxResources::default()).is_empty());
    }

    #[test]
    fn weights_span_the_range() {
        assert_eq!([2, 1024, 262_144, 0, u64::MAX].map(v2_weight), [1, 39, 10_000, 1, 10_000]);
    }

    #[test]
    fn keys_match_whole_words() {
        assert_eq!(value_of("oom_kill_disable 0\nunder_oom 0\noom_kill 3\n", "oom_kill"), Some(3));
        assert_eq!(value_of("oom 1\noom_group_kill 4\n", "oom_kill"), None);
    }
}
