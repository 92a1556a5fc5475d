//! From a copy of the supervisor to the program of a container.
//!
//! Runs in the process the supervisor just made, until `execve`. The process has the container's namespaces but still
//! our memory and descriptors, so it is not dumpable, does its work in a fixed order and reports every failure
//! through its channel, a socket that closes by itself when the program is executed:
//!
//! ```text
//! supervisor                                  this process
//!   clone3 ──────────────────────────────────▶ waits
//!   moves it into its cgroups, sends "go" ───▶ builds the root file system, enters it
//!   keeps multiplexer and terminal ◀────────── Prepared
//!                                              becomes the user, drops rights, execve
//!   "running" ◀─────────────────────────────── channel closes        (or Failed, when something went wrong)
//! ```

pub(crate) mod devices;
pub(crate) mod environment;
pub(crate) mod inside;
pub(crate) mod mounting;
pub(crate) mod privileges;
pub(crate) mod rootfs;

use std::convert::Infallible;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::io::Errno;
use rustix::net::RecvFlags;
use rustix::process::{DumpableBehavior, Signal};
use rustix::thread::{ThreadNameSpaceType, UnshareFlags};
use sampan_kernel::exec::{StringArray, execve, exit_now};
use sampan_kernel::process::SingleThreaded;
use serde::{Deserialize, Serialize};

use crate::cgroup::Cgroups;
use crate::failure::{Failure, Tried};
use crate::protocol;
use crate::record::{ContainerPaths, ContainerRecord, read_json};
use inside::{Kind, Root};
use privileges::{FilterCache, Privileges};

/// What the new process says to the supervisor.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Report {
    /// The root file system stands; descriptors: the terminal multiplexer, and the terminal if there is one.
    Prepared { warnings: Vec<String> },
    /// It went wrong; the process ends.
    Failed(Failure),
}

/// Standard streams; what is missing becomes `/dev/null`.
#[derive(Debug, Default)]
pub(crate) struct StandardStreams {
    pub(crate) stdin: Option<OwnedFd>,
    pub(crate) stdout: Option<OwnedFd>,
    pub(crate) stderr: Option<OwnedFd>,
}

/// What every new process is given.
pub(crate) struct Newborn<'a> {
    pub(crate) proof: &'a SingleThreaded,
    /// This process's end of the channel.
    pub(crate) channel: OwnedFd,
    pub(crate) paths: ContainerPaths,
    pub(crate) streams: StandardStreams,
    pub(crate) cgroups: &'a Cgroups,
    pub(crate) filters: &'a FilterCache,
}

/// Becomes the first process of a container.
pub(crate) fn become_container(newborn: Newborn<'_>, shared: rootfs::Shared) -> ! {
    let Newborn { proof, channel, paths, streams, cgroups, filters } = newborn;
    let run = || -> Result<Infallible, Failure> {
        let record = begin(&channel, &paths)?;
        sampan_kernel::process::unshare(proof, UnshareFlags::NEWCGROUP)
            .tried(|| "make a cgroup namespace".to_owned())?;
        let warnings = privileges::set_oom_score(record.config.resources.oom_score_adj);
        // Nodes without keyrings have nothing to separate.
        let _ = sampan_kernel::process::join_new_session_keyring();
        let filters = filters.filters(&record.config.security)?;
        let terminals = rootfs::enter(&record, &paths, shared, cgroups)?;
        let multiplexer = rootfs::open_multiplexer(&terminals)?;
        let (streams, terminal) = if record.config.tty {
            let (master, slave) = rootfs::new_terminal(&multiplexer)?;
            rootfs::mount_console(&slave)?;
            report(&channel, &Report::Prepared { warnings }, &[multiplexer.as_fd(), master.as_fd()])?;
            (terminal_streams(&slave)?, true)
        } else {
            report(&channel, &Report::Prepared { warnings }, &[multiplexer.as_fd()])?;
            (streams, false)
        };
        execute(&record, &record.config.args, streams, terminal, &filters, &channel)
    };
    fail(run(), &channel)
}

/// Becomes another process of a running container. `terminal` is the slave of its pseudo terminal.
pub(crate) fn become_command(
    newborn: Newborn<'_>,
    container: BorrowedFd<'_>,
    command: &[String],
    terminal: Option<OwnedFd>,
) -> ! {
    let Newborn { channel, paths, streams, filters, .. } = newborn;
    let run = || -> Result<Infallible, Failure> {
        let record = begin(&channel, &paths)?;
        // A command inherits the supervisor's score, not the container's.
        privileges::set_oom_score(record.config.resources.oom_score_adj);
        let _ = sampan_kernel::process::join_new_session_keyring();
        let filters = filters.filters(&record.config.security)?;
        rustix::thread::move_into_thread_name_spaces(
            container,
            ThreadNameSpaceType::MOUNT | ThreadNameSpaceType::CONTROL_GROUP,
        )
        .tried(|| "enter the container".to_owned())?;
        let (streams, is_terminal) = match &terminal {
            Some(slave) => (terminal_streams(slave)?, true),
            None => (streams, false),
        };
        execute(&record, command, streams, is_terminal, &filters, &channel)
    };
    fail(run(), &channel)
}

/// Becomes the first process of a pod whose containers share one process namespace: it only reaps what it inherits.
pub(crate) fn become_pod_init(channel: OwnedFd) -> ! {
    let _ = rustix::process::set_parent_process_death_signal(Some(Signal::KILL));
    let _ = rustix::thread::set_name(c"sampan-init");
    sampan_kernel::signal::reap_children_automatically();
    // Only the supervisor has the other end; when it is closed before the line above took effect, it has gone.
    let _ = protocol::receive(&channel, RecvFlags::empty());
    exit_now(0)
}

fn fail(result: Result<Infallible, Failure>, channel: &OwnedFd) -> ! {
    let Err(failure) = result;
    let code = failure.exit_code;
    // Without a supervisor nobody is left to tell.
    let _ = report(channel, &Report::Failed(failure), &[]);
    exit_now(code)
}

fn report(channel: &OwnedFd, report: &Report, descriptors: &[BorrowedFd<'_>]) -> Result<(), Failure> {
    protocol::send(channel, report, descriptors).tried(|| "report to the supervisor".to_owned())
}

/// The steps every new process starts with.
fn begin(channel: &OwnedFd, paths: &ContainerPaths) -> Result<ContainerRecord, Failure> {
    rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable)
        .tried(|| "protect the memory of the new process".to_owned())?;
    // Set again before the program is executed, because becoming another user clears it.
    let _ = rustix::process::set_parent_process_death_signal(Some(Signal::KILL));
    let go = protocol::receive(channel, RecvFlags::empty()).tried(|| "wait for the supervisor".to_owned())?;
    if go.is_none() {
        exit_now(1);
    }
    rustix::process::setsid().tried(|| "begin a session".to_owned())?;
    read_json(&paths.config())
        .tried(|| format!("read {}", paths.config().display()))?
        .ok_or_else(|| Failure::not_found(format!("{} has gone", paths.config().display())))
}

fn terminal_streams(slave: &OwnedFd) -> Result<StandardStreams, Failure> {
    let copy = || slave.try_clone().tried(|| "copy the terminal".to_owned());
    Ok(StandardStreams { stdin: Some(copy()?), stdout: Some(copy()?), stderr: Some(copy()?) })
}

/// Becomes the user, gives up rights and executes the program.
fn execute(
    record: &ContainerRecord,
    command: &[String],
    streams: StandardStreams,
    terminal: bool,
    filters: &crate::seccomp::Filters,
    channel: &OwnedFd,
) -> Result<Infallible, Failure> {
    let config = &record.config;
    let root = Root::open(Path::new("/"))?;
    let user = environment::resolve_user(&root, &config.security)?;
    let variables = environment::variables(&config.env, &user, terminal);
    let program = environment::Program::find(command, &variables)?;
    install_streams(streams, terminal, user.uid)?;
    let directory = root.ensure(Path::new(&config.working_dir), Kind::Directory)?;
    // As root first, as every runtime does: the user need not have the right to enter. Some network file systems
    // refuse root, so it is tried again as the user.
    let entered = rustix::process::fchdir(&directory);
    Privileges::of(&config.security)?.take(&user, filters)?;
    if let Err(Errno::ACCESS) = entered {
        rustix::process::fchdir(&directory).tried(|| format!("enter {}", config.working_dir))?;
    } else {
        entered.tried(|| format!("enter {}", config.working_dir))?;
    }
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o022));
    sampan_kernel::signal::reset_all().tried(|| "reset signals".to_owned())?;
    die_with_supervisor(channel)?;
    sampan_kernel::descriptor::close_all_on_exec().tried(|| "close descriptors".to_owned())?;
    program.execute(&StringArray::new(variables.into_strings()))
}

/// A container must not outlive what supervises it. Executing a set-user-id program cancels this; then the agent,
/// which notices the supervisor's end, kills the cgroup.
fn die_with_supervisor(channel: &OwnedFd) -> Result<(), Failure> {
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))
        .tried(|| "tie the process to its supervisor".to_owned())?;
    let mut poll = [rustix::event::PollFd::new(channel, rustix::event::PollFlags::empty())];
    let now = rustix::event::Timespec { tv_sec: 0, tv_nsec: 0 };
    let events = rustix::event::poll(&mut poll, Some(&now)).tried(|| "look for the supervisor".to_owned())?;
    if events != 0 { exit_now(1) } else { Ok(()) }
}

fn install_streams(streams: StandardStreams, terminal: bool, uid: u32) -> Result<(), Failure> {
    let or_null = |stream: Option<OwnedFd>| stream.map_or_else(rootfs::open_null, Ok);
    let owned = [&streams.stdin, &streams.stdout, &streams.stderr];
    for stream in owned.into_iter().flatten() {
        // So that a program that is not root can open /dev/stdout again. Streams that came from elsewhere may refuse.
        let _ = rustix::fs::fchown(stream, Some(rustix::fs::Uid::from_raw(uid)), None);
    }
    let (stdin, stdout, stderr) =
        (or_null(streams.stdin)?, or_null(streams.stdout)?, or_null(streams.stderr)?);
    if terminal {
        rustix::process::ioctl_tiocsctty(&stdin).tried(|| "take the terminal".to_owned())?;
    }
    sampan_kernel::descriptor::set_standard_streams(stdin, stdout, stderr)
        .tried(|| "set standard streams".to_owned())
}

impl environment::Program {
    /// Tries each candidate; the error tells like a shell: 127 when there is no such file, 126 when it cannot run.
    fn execute(&self, variables: &StringArray) -> Result<Infallible, Failure> {
        let arguments = StringArray::new(self.arguments.clone());
        let mut refused = None;
        for candidate in &self.candidates {
            let error = execve(candidate, &arguments, variables);
            match Errno::from_io_error(&error) {
                Some(Errno::NOENT | Errno::NOTDIR) => {}
                _ if refused.is_none() => refused = Some(error),
                _ => {}
            }
        }
        let name = self.arguments[0].to_string_lossy();
        Err(match refused {
            None => Failure {
                exit_code: 127,
                ..Failure::new(format!("failed to execute {name:?}: no such file or directory"))
            },
            Some(error) => {
                Failure { exit_code: 126, ..Failure::new(format!("failed to execute {name:?}: {error}")) }
            }
        })
    }
}
