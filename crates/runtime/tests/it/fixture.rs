//! A runtime of its own for each test, and short ways to say what a test wants.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use sampan_runtime::{
    ContainerConfig, ContainerId, ContainerMetadata, ContainerState, ContainerStatus, ImagePin,
    LinuxResources, NamespaceOptions, NativeConfig, NativeRuntime, PodSandboxConfig, PodSandboxMetadata,
    RootfsSource, Runtime, RuntimeError, RuntimeEvent, SandboxId, SecurityContext, destroy_all,
};
use tempfile::TempDir;
use tokio::sync::broadcast::error::RecvError;

/// Nothing here takes longer on a machine that works.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// One layer with busybox, whatever the image.
struct Busybox(PathBuf);

impl RootfsSource for Busybox {
    fn layer_dirs(&self, image_id: &str) -> Result<Vec<PathBuf>, Box<dyn std::error::Error + Send + Sync>> {
        if image_id == "sha256:absent" { Err("no such image".into()) } else { Ok(vec![self.0.clone()]) }
    }

    fn pin(&self, image_id: &str) -> Result<ImagePin, Box<dyn std::error::Error + Send + Sync>> {
        self.layer_dirs(image_id)?;
        Ok(Box::new(()))
    }
}

/// A runtime and its directories.
pub(crate) struct Fixture {
    /// Removed last, when it is ours.
    _owned: Option<TempDir>,
    pub(crate) directory: PathBuf,
    pub(crate) config: NativeConfig,
    pub(crate) runtime: Arc<NativeRuntime>,
    numbers: AtomicU32,
}

impl Drop for Fixture {
    fn drop(&mut self) {
        destroy_all(&self.config).expect("destroy");
    }
}

impl Fixture {
    pub(crate) fn new() -> Self {
        let owned = tempfile::tempdir().expect("temporary directory");
        let mut fixture = Self::at(owned.path());
        fixture._owned = Some(owned);
        fixture
    }

    /// In a directory that stays.
    pub(crate) fn at(directory: &Path) -> Self {
        let image = directory.join("image");
        if !image.exists() {
            make_image(&image);
        }
        let name = directory.file_name().expect("named").to_string_lossy().replace('.', "");
        let mut config = NativeConfig::new(
            directory.join("data"),
            directory.join("run"),
            format!("sampan-test-{name}"),
            Busybox(image),
        );
        config.supervisor_binary = Some(PathBuf::from(env!("CARGO_BIN_EXE_sampan-supervisor")));
        let runtime = NativeRuntime::open(config.clone()).expect("open");
        Self { _owned: None, directory: directory.to_owned(), config, runtime, numbers: AtomicU32::new(0) }
    }

    pub(crate) fn image(&self) -> PathBuf {
        self.directory.join("image")
    }

    /// A directory of the node for a volume.
    pub(crate) fn volume(&self, name: &str) -> PathBuf {
        let path = self.directory.join(name);
        fs::create_dir_all(&path).expect("make volume");
        path
    }

    /// Forgets the runtime like a restart of the agent does, and opens it again.
    pub(crate) async fn restart_agent(&mut self) {
        self.runtime = NativeRuntime::open(self.config.clone()).expect("open again");
    }

    pub(crate) fn sandbox_config(&self) -> PodSandboxConfig {
        let number = self.numbers.fetch_add(1, Ordering::Relaxed);
        PodSandboxConfig {
            metadata: PodSandboxMetadata {
                name: format!("pod-{number}"),
                uid: format!("uid-{number}"),
                namespace: "default".into(),
                attempt: 0,
            },
            hostname: format!("pod-{number}"),
            log_directory: self.directory.join(format!("logs-{number}")),
            namespaces: NamespaceOptions::default(),
            sysctls: BTreeMap::new(),
            cgroup_parent: format!("kubepods/poduid-{number}"),
            resources: LinuxResources::default(),
            annotations: BTreeMap::from([("a".into(), "b".into())]),
        }
    }

    pub(crate) async fn sandbox(&self) -> SandboxId {
        self.runtime.run_pod_sandbox(self.sandbox_config()).await.expect("sandbox").id
    }

    /// Creates and starts.
    pub(crate) async fn run(&self, sandbox: &SandboxId, config: ContainerConfig) -> ContainerId {
        let id = self.runtime.create_container(sandbox, config).await.expect("create");
        self.runtime.start_container(&id).await.expect("start");
        id
    }

    /// Runs a shell script to its end in a pod of its own; what it wrote and how it ended.
    pub(crate) async fn script(&self, script: &str) -> (String, ContainerStatus) {
        self.output(shell(script)).await
    }

    /// Runs a container to its end in a pod of its own.
    pub(crate) async fn output(&self, config: ContainerConfig) -> (String, ContainerStatus) {
        let sandbox = self.sandbox().await;
        let mut events = self.runtime.events();
        let id = self.run(&sandbox, config).await;
        let status = self.ended_with(&id, &mut events).await;
        (messages(&status.log_path), status)
    }

    /// Waits for the end of a container.
    pub(crate) async fn ended(&self, id: &ContainerId) -> ContainerStatus {
        let mut events = self.runtime.events();
        self.ended_with(id, &mut events).await
    }

    pub(crate) async fn ended_with(
        &self,
        id: &ContainerId,
        events: &mut tokio::sync::broadcast::Receiver<RuntimeEvent>,
    ) -> ContainerStatus {
        let wait = async {
            loop {
                let status = self.runtime.container_status(id).await.expect("status");
                if matches!(status.state, ContainerState::Exited | ContainerState::Unknown) {
                    return status;
                }
                match events.recv().await {
                    Ok(_) | Err(RecvError::Lagged(_)) => {}
                    Err(RecvError::Closed) => panic!("the runtime has gone"),
                }
            }
        };
        tokio::time::timeout(PATIENCE, wait).await.expect("container ends")
    }

    /// What a command in a running container wrote.
    pub(crate) async fn exec(&self, id: &ContainerId, script: &str) -> String {
        let command = vec!["sh".into(), "-c".into(), script.into()];
        let result = self.runtime.exec_sync(id, command, Some(PATIENCE)).await.expect("exec");
        let text = String::from_utf8_lossy(&result.stdout).into_owned();
        assert_eq!(result.exit_code, 0, "{script}: {text} {}", String::from_utf8_lossy(&result.stderr));
        text
    }
}

fn make_image(image: &Path) {
    for directory in ["bin", "etc", "tmp", "usr", "var"] {
        fs::create_dir_all(image.join(directory)).expect("make image");
    }
    fs::copy("/bin/busybox", image.join("bin/busybox")).expect("copy busybox");
    let applets = [
        "sh", "cat", "echo", "ls", "sleep", "id", "mount", "umount", "mkdir", "rm", "true", "false",
        "hostname", "nc", "stat", "mknod", "dd", "head", "tail", "wc", "env", "pwd", "kill", "ps", "stty",
        "tty", "yes", "touch", "ip", "grep", "test", "chmod", "unshare", "chroot", "ln", "tr", "readlink",
        "od", "printf", "seq", "sort", "sed", "df",
    ];
    for applet in applets {
        symlink("busybox", image.join("bin").join(applet)).expect("link applet");
    }
    fs::write(image.join("etc/passwd"), "root:x:0:0:root:/root:/bin/sh\nweb:x:33:34::/srv:/bin/sh\n")
        .expect("write");
    fs::write(image.join("etc/group"), "root:x:0:\nweb:x:34:\nextra:x:50:web\n").expect("write");
    fs::write(image.join("etc/script"), "no interpreter\n").expect("write");
}

/// A container that runs a shell script.
pub(crate) fn shell(script: &str) -> ContainerConfig {
    command(&["sh", "-c", script])
}

/// A container that runs a command.
pub(crate) fn command(arguments: &[&str]) -> ContainerConfig {
    static NUMBERS: AtomicU32 = AtomicU32::new(0);
    let name = format!("c{}", NUMBERS.fetch_add(1, Ordering::Relaxed));
    ContainerConfig {
        log_path: PathBuf::from(format!("{name}/0.log")),
        metadata: ContainerMetadata { name, attempt: 0 },
        image: "busybox".into(),
        image_id: "sha256:busybox".into(),
        args: arguments.iter().map(|argument| (*argument).to_owned()).collect(),
        working_dir: String::new(),
        env: vec![],
        mounts: vec![],
        stdin: false,
        stdin_once: false,
        tty: false,
        resources: LinuxResources::default(),
        security: SecurityContext::default(),
        stop_signal: String::new(),
        log_max_bytes: 0,
        log_max_files: 0,
        annotations: BTreeMap::new(),
    }
}

/// A container that does nothing until it is told to stop.
pub(crate) fn idle() -> ContainerConfig {
    shell("trap 'exit 0' TERM; sleep 1000 & wait")
}

/// What a log holds, without times and tags.
pub(crate) fn messages(log: &Path) -> String {
    let text = fs::read_to_string(log).unwrap_or_default();
    text.lines().filter_map(|line| line.splitn(4, ' ').nth(3)).map(|message| format!("{message}\n")).collect()
}

/// Looks again and again until `look` finds something; for what the kernel announces to nobody.
pub(crate) async fn eventually<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let search = async {
        loop {
            if let Some(found) = look() {
                return found;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, search).await.unwrap_or_else(|_| panic!("{what}"))
}

pub(crate) fn start_error(result: Result<(), RuntimeError>) -> (i32, String) {
    match result {
        Err(RuntimeError::Start { exit_code, message }) => (exit_code, message),
        other => panic!("not a start error: {other:?}"),
    }
}
