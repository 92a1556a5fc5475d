//! A cluster of the real binary in directories of its own.

use std::fmt::Write as _;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use rustix::process::{Pid, Signal, kill_process};

use crate::command::{Background, Done, command, run, wait};
use crate::{IMAGE, PATIENCE, binary, image, kubectl, leftovers};

/// A running cluster. Dropping it ends it and holds that nothing is left on the machine.
#[derive(Debug)]
pub struct Cluster {
    directory: tempfile::TempDir,
    bind: SocketAddr,
    platform: Mutex<Option<Child>>,
    /// Lines of earlier logs are kept: the log is opened for appending.
    log: PathBuf,
}

impl Cluster {
    /// The cluster all tests of this process share. It lives as long as one of them uses it; a static would never be
    /// dropped, and what a cluster leaves behind would never be looked at.
    pub fn shared() -> Arc<Self> {
        static SHARED: Mutex<Weak<Cluster>> = Mutex::new(Weak::new());
        let mut shared = SHARED.lock().unwrap_or_else(PoisonError::into_inner);
        shared.upgrade().unwrap_or_else(|| {
            let cluster = Arc::new(Self::start());
            *shared = Arc::downgrade(&cluster);
            cluster
        })
    }

    /// A new cluster with the image of the tests in it.
    ///
    /// # Panics
    ///
    /// When it does not start.
    #[must_use]
    pub fn start() -> Self {
        let directory =
            tempfile::Builder::new().prefix("sampan-e2e-").tempdir().expect("a directory can be made");
        let log = directory.path().join("log");
        let cluster = Self { bind: free_address(), platform: Mutex::new(None), log, directory };
        cluster.up();
        let archive = image::make(cluster.directory.path());
        let archive = archive.display().to_string();
        cluster
            .sampan(&["image", "import", &archive, IMAGE, "--entrypoint", "/bin/sh", "--env", "PATH=/bin"])
            .ok();
        cluster
    }

    /// Starts the platform and waits until it says that it is ready.
    ///
    /// # Panics
    ///
    /// When it says something else.
    #[track_caller]
    pub fn up(&self) {
        self.spawn();
        let ready = self.directory.path().join("out");
        crate::eventually("`sampan up` is ready", || {
            let mut platform = self.platform();
            let child = platform.as_mut().expect("the platform was started");
            if let Some(status) = child.try_wait().expect("a child can be waited for") {
                panic!("`sampan up` ended with {status}:\n{}", self.log_tail());
            }
            let said = std::fs::read_to_string(&ready).unwrap_or_default();
            crate::check(said.starts_with("ready "), format!("it said `{said}`:\n{}", self.log_tail()))
        });
    }

    /// Starts the platform without waiting.
    ///
    /// # Panics
    ///
    /// When the program cannot be started.
    pub fn spawn(&self) {
        let out = std::fs::File::create(self.directory.path().join("out")).expect("a file can be made");
        let log =
            std::fs::File::options().create(true).append(true).open(&self.log).expect("a file can be made");
        let bind = self.bind.to_string();
        let mut up = self.verb(&["up", "--bind", &bind, "--node-name", "node-1"]);
        up.stdin(std::process::Stdio::null()).stdout(out).stderr(log);
        *self.platform() = Some(up.spawn().expect("the binary can be run"));
    }

    /// Ends the platform as an operator does; pods keep running.
    ///
    /// # Panics
    ///
    /// When it does not end, or not with success.
    #[track_caller]
    pub fn terminate(&self) {
        let Some(mut platform) = self.platform().take() else { return };
        let pid = Pid::from_child(&platform);
        kill_process(pid, Signal::TERM).expect("a running child can be signalled");
        let status = wait(&mut platform, PATIENCE);
        if status.is_none() {
            drop(platform.kill());
            drop(platform.wait());
        }
        assert!(
            status.is_some_and(|s| s.success()),
            "SIGTERM ended it with {status:?}:\n{}",
            self.log_tail()
        );
    }

    /// Kills the platform in the middle of whatever it does; pods keep running.
    ///
    /// # Panics
    ///
    /// When it had ended by itself.
    #[track_caller]
    pub fn kill(&self) {
        use std::os::unix::process::ExitStatusExt as _;
        let Some(mut platform) = self.platform().take() else { return };
        drop(platform.kill());
        let status = platform.wait().expect("a child can be waited for");
        let killed = status.signal() == Some(Signal::KILL.as_raw());
        assert!(killed, "it ended by itself with {status}:\n{}", self.log_tail());
    }

    /// Takes the exit status of a platform that something else has ended.
    pub fn reap(&self) {
        if let Some(mut platform) = self.platform().take() {
            assert!(wait(&mut platform, PATIENCE).is_some(), "the platform has not ended");
        }
    }

    fn platform(&self) -> MutexGuard<'_, Option<Child>> {
        self.platform.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs a verb of the binary on the directories of this cluster.
    #[track_caller]
    pub fn sampan(&self, args: &[&str]) -> Done {
        run(self.verb(args), "")
    }

    fn verb(&self, args: &[&str]) -> Command {
        self.sampan_command(args, self.directory.path())
    }

    /// The command of a verb of the binary on a cluster's directories below `parent`.
    pub fn sampan_command(&self, args: &[&str], parent: &Path) -> Command {
        let mut command = command(binary(), args);
        command.arg("--data-dir").arg(parent.join("data")).arg("--run-dir").arg(parent.join("run"));
        command
    }

    /// Runs `kubectl` as administrator.
    #[track_caller]
    pub fn kubectl(&self, args: &[&str]) -> Done {
        run(self.kubectl_command(args), "")
    }

    /// Runs `kubectl` as administrator with this text as its standard input.
    #[track_caller]
    pub fn kubectl_with(&self, args: &[&str], stdin: &str) -> Done {
        run(self.kubectl_command(args), stdin)
    }

    /// Starts `kubectl` beside the test.
    #[track_caller]
    pub fn kubectl_background(&self, args: &[&str]) -> Background {
        Background::start(self.kubectl_command(args))
    }

    /// The command that [`Self::kubectl`] runs, to be changed.
    pub fn kubectl_command(&self, args: &[&str]) -> Command {
        let mut command = command(kubectl(), args);
        self.be_administrator(&mut command);
        command
    }

    /// Runs `curl` on a path of the API as nobody.
    #[track_caller]
    pub fn curl(&self, path: &str, args: &[&str]) -> Done {
        let mut curl = command("curl", &["--silent", "--show-error", "--insecure", "--max-time", "20"]);
        curl.args(args).arg(format!("{}{path}", self.url()));
        run(curl, "")
    }

    /// Arguments that make `curl` the administrator.
    ///
    /// # Panics
    ///
    /// When the kubeconfig cannot be taken apart.
    pub fn curl_identity(&self) -> Vec<String> {
        let config = self.kubectl(&["config", "view", "--raw", "--output", "json"]).json();
        let user = &config["users"][0]["user"];
        let mut args = Vec::new();
        for (option, field) in [("--cert", "client-certificate-data"), ("--key", "client-key-data")] {
            let encoded = user[field].as_str().unwrap_or_else(|| panic!("no {field} in the kubeconfig"));
            let pem = run(command("base64", &["--decode"]), encoded).ok();
            let path = self.directory.path().join(field);
            std::fs::write(&path, pem).expect("a file can be written");
            args.extend([option.to_owned(), path.display().to_string()]);
        }
        args
    }

    /// `https://host:port` of the API.
    #[must_use]
    pub fn url(&self) -> String {
        format!("https://{}", self.bind)
    }

    /// Address and port of the API.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.bind
    }

    /// A directory for what a test wants to keep beside the cluster.
    #[must_use]
    pub fn scratch(&self) -> &Path {
        self.directory.path()
    }

    /// The cluster's data directory.
    #[must_use]
    pub fn data_dir(&self) -> PathBuf {
        self.directory.path().join("data")
    }

    /// The cluster's run directory.
    #[must_use]
    pub fn run_dir(&self) -> PathBuf {
        self.directory.path().join("run")
    }

    /// The administrator's kubeconfig.
    #[must_use]
    pub fn kubeconfig(&self) -> PathBuf {
        self.data_dir().join("kubeconfig")
    }

    /// Ends of the platform's log, for messages.
    fn log_tail(&self) -> String {
        let log = std::fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(40)..].iter().fold(String::new(), |mut tail, line| {
            let _ = writeln!(tail, "{line}");
            tail
        })
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("the end of the platform's log:\n{}", self.log_tail());
        }
        let identity = leftovers::Identity::of(&self.data_dir(), &self.run_dir());
        let platform = self.platform().take();
        let down = self.sampan(&["down", "--purge"]);
        // `down` has ended it; this only takes the exit status.
        if let Some(mut platform) = platform {
            drop(platform.kill());
            drop(platform.wait());
        }
        // A second panic would hide the first one.
        if std::thread::panicking() {
            return;
        }
        down.ok();
        crate::eventually("nothing is left", || {
            let left = identity.leftovers();
            crate::check(left.is_empty(), left.join("\n"))
        });
    }
}

/// A port nobody uses. Another process may take it before we do; `up` would then say so.
fn free_address() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port is free");
    listener.local_addr().expect("a listener has an address")
}
