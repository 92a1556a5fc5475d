//! What the runtime keeps on disk, enough to find every pod again after the agent, or the machine, went away.
//!
//! ```text
//! <data>/sandboxes/<sandbox>/sandbox.json      what was asked for                     written by the agent
//!                            supervisor.json   which process supervises it            written by the supervisor
//!                            addresses.json    addresses the agent was told            written by the agent
//!                            containers/<container>/config.json   what was asked for   written by the agent
//!                                                   state.json    how it is going      written by the supervisor
//!                                                   upper/ work/ rootfs/               writable layer, mount point
//! <run>/<sandbox>/control                      the supervisor's socket
//! ```
//!
//! Every file is written new and renamed, so a reader sees the old or the new one. They are not synced: after a power
//! cut every container has ended, and that is what a missing or older record says too.

use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::cri::{ContainerConfig, ContainerId, ContainerState, PodSandboxConfig, SandboxId};
use crate::failure::Failure;

/// Where the records of one sandbox are.
#[derive(Clone, Debug)]
pub(crate) struct SandboxPaths {
    /// `<data>/sandboxes/<sandbox>`.
    pub(crate) data: PathBuf,
    /// `<run>/<sandbox>`.
    pub(crate) run: PathBuf,
}

impl SandboxPaths {
    pub(crate) fn new(data_dir: &Path, run_dir: &Path, id: &SandboxId) -> Self {
        Self { data: sandboxes_dir(data_dir).join(&id.0), run: run_dir.join(&id.0) }
    }

    pub(crate) fn record(&self) -> PathBuf {
        self.data.join("sandbox.json")
    }

    pub(crate) fn supervisor(&self) -> PathBuf {
        self.data.join("supervisor.json")
    }

    pub(crate) fn addresses(&self) -> PathBuf {
        self.data.join("addresses.json")
    }

    pub(crate) fn containers(&self) -> PathBuf {
        self.data.join("containers")
    }

    pub(crate) fn container(&self, id: &ContainerId) -> ContainerPaths {
        ContainerPaths { directory: self.containers().join(&id.0) }
    }
}

/// Directory whose entries are sandboxes.
pub(crate) fn sandboxes_dir(data_dir: &Path) -> PathBuf {
    data_dir.join("sandboxes")
}

/// Where the records of one container are.
#[derive(Clone, Debug)]
pub(crate) struct ContainerPaths {
    pub(crate) directory: PathBuf,
}

impl ContainerPaths {
    pub(crate) fn config(&self) -> PathBuf {
        self.directory.join("config.json")
    }

    pub(crate) fn state(&self) -> PathBuf {
        self.directory.join("state.json")
    }

    pub(crate) fn upper(&self) -> PathBuf {
        self.directory.join("upper")
    }

    pub(crate) fn work(&self) -> PathBuf {
        self.directory.join("work")
    }

    /// Mount point of the root file system, in the container's mount namespace only.
    pub(crate) fn rootfs(&self) -> PathBuf {
        self.directory.join("rootfs")
    }
}

/// `sandbox.json`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct SandboxRecord {
    pub(crate) id: SandboxId,
    /// Nanoseconds since the epoch.
    pub(crate) created_at: i64,
    /// Path of the pod's cgroup below the root of every hierarchy.
    pub(crate) cgroup: String,
    pub(crate) config: PodSandboxConfig,
}

/// `supervisor.json`: a process id means nothing alone, it is only believed together with the start time in this boot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ProcessIdentity {
    pub(crate) pid: i32,
    /// Clock ticks after boot, field 22 of `/proc/<pid>/stat`.
    pub(crate) start_time: u64,
    /// `/proc/sys/kernel/random/boot_id`.
    pub(crate) boot_id: String,
}

impl ProcessIdentity {
    /// Reads the identity of a living process.
    pub(crate) fn of(pid: i32) -> io::Result<Self> {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
        let start_time =
            parse_start_time(&stat).ok_or_else(|| io::Error::other("malformed /proc/<pid>/stat"))?;
        let boot_id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id")?.trim().to_owned();
        Ok(Self { pid, start_time, boot_id })
    }
}

/// Field 22; the second field is the command in parentheses and may itself hold spaces and parentheses.
fn parse_start_time(stat: &str) -> Option<u64> {
    let (_, rest) = stat.rsplit_once(')')?;
    rest.split_ascii_whitespace().nth(19)?.parse().ok()
}

/// `config.json` of a container.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct ContainerRecord {
    pub(crate) id: ContainerId,
    pub(crate) sandbox_id: SandboxId,
    /// Nanoseconds since the epoch.
    pub(crate) created_at: i64,
    /// Path of the container's cgroup below the root of every hierarchy.
    pub(crate) cgroup: String,
    /// Read-only layers, topmost first.
    pub(crate) layers: Vec<PathBuf>,
    /// What was refused while the cgroup was made.
    #[serde(default)]
    pub(crate) warnings: Vec<String>,
    pub(crate) config: ContainerConfig,
}

/// Reason of a container whose program was never executed.
const START_ERROR: &str = "StartError";

/// `state.json` of a container; a container without it was created and never started.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct StateRecord {
    pub(crate) state: ContainerState,
    /// 0 when not running.
    pub(crate) pid: i32,
    pub(crate) started_at: i64,
    pub(crate) finished_at: i64,
    pub(crate) exit_code: i32,
    pub(crate) reason: String,
    pub(crate) message: String,
    pub(crate) warnings: Vec<String>,
}

impl StateRecord {
    pub(crate) fn created() -> Self {
        Self {
            state: ContainerState::Created,
            pid: 0,
            started_at: 0,
            finished_at: 0,
            exit_code: 0,
            reason: String::new(),
            message: String::new(),
            warnings: Vec::new(),
        }
    }

    pub(crate) fn running(pid: i32, now: i64, warnings: Vec<String>) -> Self {
        Self { state: ContainerState::Running, pid, started_at: now, warnings, ..Self::created() }
    }

    /// After the first process ended. `oom_kills` is how many processes of the cgroup the kernel killed for memory.
    pub(crate) fn exited(self, exit_code: i32, oom_kills: u64, now: i64) -> Self {
        let reason = match exit_code {
            0 => "Completed",
            _ if oom_kills > 0 => "OOMKilled",
            _ => "Error",
        };
        Self {
            state: ContainerState::Exited,
            pid: 0,
            finished_at: now,
            exit_code,
            reason: reason.to_owned(),
            ..self
        }
    }

    /// The process could not be started.
    pub(crate) fn start_failed(exit_code: i32, message: String, now: i64) -> Self {
        Self {
            state: ContainerState::Exited,
            finished_at: now,
            exit_code,
            reason: START_ERROR.to_owned(),
            message,
            ..Self::created()
        }
    }

    /// What a start that is asked for again, after it has happened, is told.
    pub(crate) fn outcome_of_start(&self) -> Result<(), Failure> {
        if self.reason == START_ERROR {
            return Err(Failure { exit_code: self.exit_code, ..Failure::new(self.message.clone()) });
        }
        Ok(())
    }

    /// The supervisor ended first and took the truth along. `None` when this record already says how it ended, or
    /// that nothing was started.
    pub(crate) fn lost(self, now: i64) -> Option<Self> {
        (self.state == ContainerState::Running).then(|| Self {
            state: ContainerState::Unknown,
            pid: 0,
            finished_at: now,
            exit_code: 137,
            reason: "Error".to_owned(),
            message: "the supervisor of the pod ended before its container".to_owned(),
            ..self
        })
    }
}

/// Nanoseconds since the epoch.
pub(crate) fn now() -> i64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(now.as_nanos()).unwrap_or(i64::MAX)
}

/// Replaces the file at `path`.
pub(crate) fn write_json(path: &Path, value: &impl Serialize) -> io::Result<()> {
    let mut text = serde_json::to_vec(value)?;
    text.push(b'\n');
    let new = path.with_extension("new");
    // Environments hold secrets.
    let mut options = std::fs::File::options();
    options.write(true).create(true).truncate(true).mode(0o600).open(&new)?.write_all(&text)?;
    std::fs::rename(&new, path)
}

/// Reads the file at `path`; `None` when there is none.
pub(crate) fn read_json<T: DeserializeOwned>(path: &Path) -> io::Result<Option<T>> {
    match std::fs::read(path) {
        Ok(text) => Ok(Some(serde_json::from_slice(&text)?)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn start_time_is_found_behind_any_command_name() {
        let tail = "S 1 1 1 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 987654 1 2";
        for name in ["sh", "a b", "x) S 1 (y"] {
            assert_eq!(parse_start_time(&format!("42 ({name}) {tail}")), Some(987654), "{name}");
        }
        assert_eq!(parse_start_time("42 (sh) S 1"), None);
        assert_eq!(parse_start_time(""), None);
    }

    #[test]
    fn own_identity_is_stable() {
        let pid = std::process::id() as i32;
        let first = ProcessIdentity::of(pid).expect("own stat is readable");
        assert_eq!(first, ProcessIdentity::of(pid).expect("own stat is readable"));
    }

    #[test]
    fn states_follow_each_other() {
        let running = StateRecord::running(7, 10, vec![]);
        for (exit_code, oom_kills, reason) in [
            (0, 0, "Completed"),
            (0, 1, "Completed"),
            (1, 0, "Error"),
            (137, 0, "Error"),
            (137, 1, "OOMKilled"),
        ] {
            let ended = running.clone().exited(exit_code, oom_kills, 20);
            assert_eq!((ended.reason.as_str(), ended.pid, ended.finished_at), (reason, 0, 20));
            assert_eq!(ended.started_at, 10);
            assert_eq!(ended.lost(30), None, "an end that was written is not rewritten");
        }
        let lost = running.clone().lost(30).expect("a running container is lost with its supervisor");
        assert_eq!((lost.state, lost.exit_code), (ContainerState::Unknown, 137));
        assert_eq!(StateRecord::created().lost(30), None);
        let failed = StateRecord::start_failed(127, "no".into(), 5);
        assert_eq!((failed.state, failed.reason.as_str()), (ContainerState::Exited, "StartError"));
        let outcome = failed.outcome_of_start().expect_err("the start had failed");
        assert_eq!((outcome.exit_code, outcome.message.as_str()), (127, "no"));
        for started in [running.clone(), running.exited(1, 0, 20)] {
            assert!(started.outcome_of_start().is_ok(), "{started:?}");
        }
    }

    #[test]
    fn files_are_replaced_whole() {
        let directory = tempfile::tempdir().expect("temporary directory");
        let path = directory.path().join("value.json");
        assert_eq!(read_json::<u32>(&path).expect("absent"), None);
        write_json(&path, &1).expect("write");
        write_json(&path, &2).expect("write");
        assert_eq!(read_json::<u32>(&path).expect("present"), Some(2));
        std::fs::write(&path, "{").expect("damage");
        assert!(read_json::<u32>(&path).is_err());
    }
}
