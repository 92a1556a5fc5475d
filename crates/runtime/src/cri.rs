//! The interface of every container runtime, shaped like CRI v1 (`runtime.v1.RuntimeService`).
//!
//! The node agent speaks only to [`Runtime`]; whether containers are made by our own runtime, by a foreign CRI
//! socket or later inside a virtual machine is decided where the platform is assembled. Field names are CRI's.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::broadcast;

/// Identity of a pod sandbox: 32 lower-case hexadecimal digits, made by the runtime.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct SandboxId(pub String);

/// Identity of a container: 64 lower-case hexadecimal digits, made by the runtime.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ContainerId(pub String);

/// Who a sandbox belongs to (CRI `PodSandboxMetadata`).
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct PodSandboxMetadata {
    /// `metadata.name` of the pod.
    pub name: String,
    /// `metadata.uid` of the pod; together with `attempt` unique among living sandboxes.
    pub uid: String,
    /// `metadata.namespace` of the pod.
    pub namespace: String,
    /// How many sandboxes this pod had before this one.
    pub attempt: u32,
}

/// Which namespaces a pod shares with its node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NamespaceOptions {
    /// `spec.hostNetwork`.
    pub host_network: bool,
    /// `spec.hostPID`.
    pub host_pid: bool,
    /// `spec.hostIPC`.
    pub host_ipc: bool,
    /// `spec.shareProcessNamespace`: all containers of the pod in one process namespace.
    pub share_process_namespace: bool,
}

/// What a sandbox needs to exist (CRI `PodSandboxConfig`).
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct PodSandboxConfig {
    /// Whose sandbox this is.
    pub metadata: PodSandboxMetadata,
    /// Host name inside the UTS namespace; ignored with host network.
    pub hostname: String,
    /// Directory of the pod's container logs; container log paths are relative to it.
    pub log_directory: PathBuf,
    /// Namespaces shared with the node.
    pub namespaces: NamespaceOptions,
    /// `net.*`, `kernel.shm*` … values written inside the pod's namespaces (name with dots, value).
    pub sysctls: BTreeMap<String, String>,
    /// Path below the runtime's cgroup root where the pod's cgroup goes, for example `kubepods/burstable/pod<uid>`.
    pub cgroup_parent: String,
    /// Limits of the whole pod.
    pub resources: LinuxResources,
    /// Handed back unchanged in [`PodSandbox`].
    pub annotations: BTreeMap<String, String>,
}

/// cgroup limits of a pod or container (CRI `LinuxContainerResources`). Zero or `None` means unlimited.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LinuxResources {
    /// CFS period in microseconds.
    pub cpu_period: u64,
    /// CFS quota in microseconds per period; 0 is no limit.
    pub cpu_quota: i64,
    /// Relative weight as cgroup v1 `cpu.shares` (2..=262144); 0 leaves the kernel's default.
    pub cpu_shares: u64,
    /// Bytes.
    pub memory_limit: i64,
    /// Number of tasks.
    pub pids_limit: i64,
    /// `oom_score_adj` of the first process; raising always works, lowering may need CAP_SYS_RESOURCE.
    pub oom_score_adj: i32,
}

/// Life of a sandbox.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum SandboxState {
    /// Namespaces and cgroup exist.
    Ready,
    /// The supervisor has gone; the containers are dead, the records still exist.
    NotReady,
}

/// A sandbox as the runtime sees it (CRI `PodSandbox`).
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct PodSandbox {
    /// Identity.
    pub id: SandboxId,
    /// Whose it is.
    pub metadata: PodSandboxMetadata,
    /// Whether it is usable.
    pub state: SandboxState,
    /// Nanoseconds since the epoch.
    pub created_at: i64,
    /// Path through which the network namespace can be opened, for example `/proc/4711/ns/net`; `None` with host
    /// network or when the sandbox is not ready.
    pub netns: Option<PathBuf>,
    /// What [`PodSandboxConfig::annotations`] held.
    pub annotations: BTreeMap<String, String>,
    /// The configuration it was made with.
    pub config: PodSandboxConfig,
}

/// A directory or file of the node that appears in a container (CRI `Mount`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mount {
    /// Where it appears; resolved inside the container's root, never through its links to the outside.
    pub container_path: String,
    /// What appears.
    pub host_path: PathBuf,
    /// Whether writes fail with EROFS.
    pub readonly: bool,
    /// Mount events pass from the node to the container (`HostToContainer`) or both ways (`Bidirectional`).
    pub propagation: MountPropagation,
}

/// CRI `MountPropagation`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum MountPropagation {
    /// No mount event crosses (`rprivate`).
    #[default]
    Private,
    /// `rslave`.
    HostToContainer,
    /// `rshared`.
    Bidirectional,
}

/// Who a container belongs to within its sandbox (CRI `ContainerMetadata`).
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct ContainerMetadata {
    /// Name of the container in the pod.
    pub name: String,
    /// How many containers of that name the pod had before: the restart count.
    pub attempt: u32,
}

/// What the security context of pod and container comes to (CRI `LinuxContainerSecurityContext`).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SecurityContext {
    /// All capabilities, all devices, no seccomp, no masked paths.
    pub privileged: bool,
    /// `runAsUser`; overrides the image's `User`.
    pub run_as_user: Option<u32>,
    /// `runAsGroup`.
    pub run_as_group: Option<u32>,
    /// `supplementalGroups` and `fsGroup`.
    pub supplemental_groups: Vec<u32>,
    /// The image's `User` when `run_as_user` is not set: `name`, `uid`, `name:group`, `uid:gid`; names are looked up in
    /// the container's own `/etc/passwd` and `/etc/group`.
    pub image_user: String,
    /// Names without `CAP_`, upper case; `ALL` is understood.
    pub add_capabilities: Vec<String>,
    /// Names without `CAP_`, upper case; `ALL` is understood.
    pub drop_capabilities: Vec<String>,
    /// `readOnlyRootFilesystem`.
    pub readonly_rootfs: bool,
    /// `allowPrivilegeEscalation: false`.
    pub no_new_privs: bool,
    /// Which system calls are allowed.
    pub seccomp: SeccompProfile,
    /// `procMount: Unmasked` empties the masked and read-only path lists.
    pub unmasked_proc: bool,
}

/// `seccompProfile` of a security context.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum SeccompProfile {
    /// The runtime's own list.
    #[default]
    RuntimeDefault,
    /// No filter.
    Unconfined,
    /// A profile file in OCI form on the node.
    Localhost(PathBuf),
}

/// What a container needs to exist (CRI `ContainerConfig`), with the image already resolved.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ContainerConfig {
    /// Which container of the pod this is.
    pub metadata: ContainerMetadata,
    /// What the user wrote as image, for status.
    pub image: String,
    /// Digest of the image's configuration (`sha256:…`): the image's id in the image store.
    pub image_id: String,
    /// Program and its arguments, complete: image entrypoint, command and args already merged.
    pub args: Vec<String>,
    /// Working directory inside the container; empty means `/`.
    pub working_dir: String,
    /// `NAME=value`, image environment first; a later entry of the same name wins.
    pub env: Vec<(String, String)>,
    /// Volumes and the files of the pod (`/etc/hosts`, …).
    pub mounts: Vec<Mount>,
    /// Log file, relative to the sandbox's log directory.
    pub log_path: PathBuf,
    /// Keep standard input open for attach.
    pub stdin: bool,
    /// Close standard input when the first attached client leaves.
    pub stdin_once: bool,
    /// Give the process a terminal.
    pub tty: bool,
    /// Limits.
    pub resources: LinuxResources,
    /// User, capabilities, filters.
    pub security: SecurityContext,
    /// Signal that asks the process to end: name (`SIGTERM`) or number; empty means SIGTERM.
    pub stop_signal: String,
    /// Rotate the log at this many bytes; 0 never.
    pub log_max_bytes: u64,
    /// How many log files (the live one included) are kept.
    pub log_max_files: u32,
    /// Handed back unchanged.
    pub annotations: BTreeMap<String, String>,
}

/// Life of a container.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ContainerState {
    /// Made, not started.
    Created,
    /// Its first process lives.
    Running,
    /// Its first process ended.
    Exited,
    /// Records exist but the truth is lost (supervisor killed): treat as ended with code 137.
    Unknown,
}

/// A container as the runtime sees it (CRI `ContainerStatus`).
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ContainerStatus {
    /// Identity.
    pub id: ContainerId,
    /// Where it lives.
    pub sandbox_id: SandboxId,
    /// Name and attempt.
    pub metadata: ContainerMetadata,
    /// Life.
    pub state: ContainerState,
    /// Process id on the node; 0 when not running.
    pub pid: i32,
    /// Nanoseconds since the epoch; 0 when not yet.
    pub created_at: i64,
    /// Nanoseconds since the epoch; 0 when not yet.
    pub started_at: i64,
    /// Nanoseconds since the epoch; 0 when not yet.
    pub finished_at: i64,
    /// Exit code; 128 + signal for a signalled process.
    pub exit_code: i32,
    /// `Completed`, `Error`, `OOMKilled`, `StartError`; empty while running.
    pub reason: String,
    /// One sentence more, for instance why the start failed.
    pub message: String,
    /// What was asked for.
    pub image: String,
    /// Digest of the image's configuration.
    pub image_id: String,
    /// Absolute path of the live log file.
    pub log_path: PathBuf,
    /// What the machine refused (for example lowering `oom_score_adj`), one sentence each.
    pub warnings: Vec<String>,
    /// Handed back unchanged.
    pub annotations: BTreeMap<String, String>,
}

/// Result of a command run to its end inside a container.
#[derive(Clone, Debug, Default)]
pub struct ExecSyncResult {
    /// At most [`EXEC_OUTPUT_LIMIT`] bytes.
    pub stdout: Vec<u8>,
    /// At most [`EXEC_OUTPUT_LIMIT`] bytes.
    pub stderr: Vec<u8>,
    /// Exit code; 128 + signal for a signalled process.
    pub exit_code: i32,
}

/// Output kept of a probe or hook: the kubelet keeps 16 KiB of an exec probe's output as well.
pub const EXEC_OUTPUT_LIMIT: usize = 16 * 1024;

/// Which streams a client wants.
#[derive(Clone, Debug, Default)]
pub struct StreamOptions {
    /// Client sends input.
    pub stdin: bool,
    /// Client wants output.
    pub stdout: bool,
    /// Client wants errors; never together with `tty`.
    pub stderr: bool,
    /// The process gets a terminal.
    pub tty: bool,
}

/// A byte stream towards a process.
pub type Writer = Box<dyn AsyncWrite + Send + Unpin>;
/// A byte stream from a process.
pub type Reader = Box<dyn AsyncRead + Send + Unpin>;

/// Live streams of an exec or attach. Dropping `stdin` closes the process's input.
pub struct Streams {
    /// Present when asked for.
    pub stdin: Option<Writer>,
    /// Present when asked for; carries the terminal's output with `tty`.
    pub stdout: Option<Reader>,
    /// Present when asked for and no terminal.
    pub stderr: Option<Reader>,
    /// Terminal sizes (columns, rows) are sent here.
    pub resize: tokio::sync::mpsc::Sender<(u16, u16)>,
    /// Exit code of an exec, or of the container for attach; resolves when the process ended.
    pub exit: tokio::sync::oneshot::Receiver<i32>,
}

/// Usage of a container read from its cgroup.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub struct ContainerStats {
    /// Nanoseconds since the epoch when it was read.
    pub timestamp: i64,
    /// CPU time used since start, nanoseconds.
    pub cpu_usage_ns: u64,
    /// Memory in use, bytes.
    pub memory_usage: u64,
    /// Memory in use less inactive file pages, bytes.
    pub memory_working_set: u64,
}

/// Something ended or appeared without being asked through this interface. Only a hint: the receiver looks at the
/// world again; a lagging receiver lists everything.
#[derive(Clone, Debug)]
pub enum RuntimeEvent {
    /// The first process of a container ended.
    ContainerExited { sandbox: SandboxId, container: ContainerId },
    /// The supervisor of a sandbox ended.
    SandboxExited { sandbox: SandboxId },
}

/// Why the runtime could not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum RuntimeError {
    /// No such sandbox, container or image.
    #[error("{0} not found")]
    NotFound(String),
    /// The call does not fit the state, for instance exec in an ended container.
    #[error("{0}")]
    FailedPrecondition(String),
    /// The container cannot be made: its configuration or image is unusable (`CreateContainerError`).
    #[error("{0}")]
    Create(String),
    /// The process could not be started: no such command, not executable (`RunContainerError`, exit code 127 or 126).
    #[error("{message}")]
    Start {
        /// 127 no such file, 126 not executable, 128 otherwise.
        exit_code: i32,
        /// What was tried and why it failed.
        message: String,
    },
    /// A command ran longer than it was allowed to.
    #[error("command timed out after {0:?}")]
    Timeout(Duration),
    /// The operating system refused.
    #[error("{context}")]
    System {
        /// What was tried.
        context: String,
        /// Why it failed.
        #[source]
        source: std::io::Error,
    },
}

/// A container runtime. Every method may be called again after a lost answer: making what exists and ending what has
/// ended succeeds.
#[async_trait]
pub trait Runtime: Send + Sync + 'static {
    /// Makes namespaces and cgroup of a pod.
    async fn run_pod_sandbox(&self, config: PodSandboxConfig) -> Result<PodSandbox, RuntimeError>;
    /// Ends every process of the sandbox at once; records stay.
    async fn stop_pod_sandbox(&self, id: &SandboxId) -> Result<(), RuntimeError>;
    /// Removes a stopped sandbox, its containers and records.
    async fn remove_pod_sandbox(&self, id: &SandboxId) -> Result<(), RuntimeError>;
    /// All sandboxes, also those found after a restart of the agent.
    async fn list_pod_sandboxes(&self) -> Result<Vec<PodSandbox>, RuntimeError>;

    /// Prepares root file system and records; starts nothing.
    async fn create_container(
        &self,
        sandbox: &SandboxId,
        config: ContainerConfig,
    ) -> Result<ContainerId, RuntimeError>;
    /// Starts the process; answers once `execve` has succeeded.
    async fn start_container(&self, id: &ContainerId) -> Result<(), RuntimeError>;
    /// Sends the stop signal, waits at most `grace`, kills; answers when the process has gone.
    async fn stop_container(&self, id: &ContainerId, grace: Duration) -> Result<(), RuntimeError>;
    /// Kills if needed, removes root file system and records; the log stays.
    async fn remove_container(&self, id: &ContainerId) -> Result<(), RuntimeError>;
    /// Containers of one sandbox, or of all.
    async fn list_containers(
        &self,
        sandbox: Option<&SandboxId>,
    ) -> Result<Vec<ContainerStatus>, RuntimeError>;
    /// One container.
    async fn container_status(&self, id: &ContainerId) -> Result<ContainerStatus, RuntimeError>;
    /// Changes limits of a running container.
    async fn update_container_resources(
        &self,
        id: &ContainerId,
        resources: LinuxResources,
    ) -> Result<(), RuntimeError>;
    /// Usage from the cgroup.
    async fn container_stats(&self, id: &ContainerId) -> Result<ContainerStats, RuntimeError>;
    /// Ends the current log file and opens a new one now.
    async fn reopen_container_log(&self, id: &ContainerId) -> Result<(), RuntimeError>;

    /// Runs a command to its end.
    async fn exec_sync(
        &self,
        id: &ContainerId,
        command: Vec<String>,
        timeout: Option<Duration>,
    ) -> Result<ExecSyncResult, RuntimeError>;
    /// Runs a command with live streams.
    async fn exec(
        &self,
        id: &ContainerId,
        command: Vec<String>,
        options: StreamOptions,
    ) -> Result<Streams, RuntimeError>;
    /// Joins the streams of the first process.
    async fn attach(&self, id: &ContainerId, options: StreamOptions) -> Result<Streams, RuntimeError>;
    /// Connects to a TCP port on loopback inside the sandbox.
    async fn port_forward(&self, id: &SandboxId, port: u16) -> Result<(Reader, Writer), RuntimeError>;

    /// What ends from now on.
    fn events(&self) -> broadcast::Receiver<RuntimeEvent>;
    /// Addresses are not the runtime's business, but records are: remembered with the sandbox for adoption.
    async fn set_pod_addresses(&self, id: &SandboxId, addresses: Vec<IpAddr>) -> Result<(), RuntimeError>;
    /// What [`Runtime::set_pod_addresses`] stored.
    async fn pod_addresses(&self, id: &SandboxId) -> Result<Vec<IpAddr>, RuntimeError>;
}
