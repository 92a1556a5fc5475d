//! The platform on a machine with cgroup v2 and nothing else, which most users have and few test machines are.
//!
//! The machine is emulated: Debian's cloud kernel in QEMU without the help of the host's processor, so that it runs
//! wherever the other tests run, some ten times slower. Its memory holds everything: a static busybox, `kubectl`, the
//! binary under test and `tests/guest/init`, which runs the platform and says what it saw on the serial console. This
//! side makes the machine, reads the console and gives up after [`LIMIT`].
//!
//! [`KERNEL`] names the directory with the unpacked kernel package; `./test` fetches it.

use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use sampan_tests::{binary, busybox, command, image_archive, kubectl};
use serde_json::json;

/// Environment variable with the directory that holds `boot/` and `lib/modules/` of one kernel.
const KERNEL: &str = "SAMPAN_GUEST_KERNEL";
/// Longest life of the machine. Two idle cores take a minute and a half.
const LIMIT: Duration = Duration::from_secs(330);
/// Memory of the machine in MiB: the boot archive twice, for it is unpacked, and the pods.
const MEMORY: &str = "1536";
/// Parts of `lib/modules/VERSION/kernel` that the platform, or the kernel on its behalf, may ask for.
const MODULES: &[&str] = &[
    "drivers/net/dummy.ko",
    "drivers/net/veth.ko",
    "fs/overlayfs",
    "lib",
    "net/802",
    "net/bridge",
    "net/ipv4",
    "net/ipv6",
    "net/llc",
    "net/netfilter",
];

#[test]
fn pods_have_limits_on_cgroup_v2() {
    let directory =
        tempfile::Builder::new().prefix("sampan-guest-").tempdir().expect("a directory can be made");
    let kernel = Kernel::find();
    let archive = boot_archive(directory.path(), &kernel);
    let console = Machine::start(&kernel, &archive).console();
    let lines: Vec<&str> = console.lines().map(str::trim_end).collect();
    let with = |start: &str| lines.iter().filter(|line| line.starts_with(start)).count();
    println!("{console}");
    assert!(lines.contains(&"checks END"), "the machine ended early");
    assert_eq!(with("check FAIL "), 0, "something failed");
    assert!(with("check PASS ") > 20, "only {} checks", with("check PASS "));
}

/// An unpacked kernel package.
struct Kernel {
    root: PathBuf,
    version: String,
}

impl Kernel {
    fn find() -> Self {
        let root =
            PathBuf::from(std::env::var_os(KERNEL).unwrap_or_else(|| panic!("set {KERNEL}; see ./test")));
        let versions = std::fs::read_dir(root.join("lib/modules"));
        let version = versions.ok().and_then(|mut versions| Some(versions.next()?.ok()?.file_name()));
        let version = version.unwrap_or_else(|| panic!("{KERNEL}: no kernel in {}", root.display()));
        Self { root, version: version.to_string_lossy().into_owned() }
    }

    fn image(&self) -> PathBuf {
        self.root.join("boot").join(format!("vmlinuz-{}", self.version))
    }

    /// Copies what [`MODULES`] names, with an index of it, below `root`.
    fn copy_modules(&self, root: &Path) {
        let place = Path::new("lib/modules").join(&self.version);
        let (from, to) = (self.root.join(&place), root.join(&place));
        make_directory(&to);
        for index in ["modules.builtin", "modules.order"] {
            std::fs::copy(from.join(index), to.join(index)).expect("an index can be copied");
        }
        for part in MODULES {
            let part = Path::new("kernel").join(part);
            make_directory(to.join(&part).parent().expect("a module is in a directory"));
            must(command("cp", &["-r"]).arg(from.join(&part)).arg(to.join(&part)));
        }
        must(Command::new(busybox()).args(["depmod", "-b"]).arg(root).arg(&self.version));
    }
}

/// Makes the file system of the machine and packs it as the kernel wants it.
fn boot_archive(directory: &Path, kernel: &Kernel) -> PathBuf {
    let root = directory.join("root");
    for part in ["bin", "sbin", "dev"] {
        make_directory(&root.join(part));
    }
    for (program, name) in [(busybox(), "busybox"), (kubectl(), "kubectl")] {
        let found = find_program(&program);
        std::fs::copy(&found, root.join("bin").join(name))
            .unwrap_or_else(|e| panic!("{}: {e}", found.display()));
    }
    // Four fifths of a debug build are of use to debuggers only.
    must(command("strip", &["--output-file"]).arg(root.join("bin/sampan")).arg(binary()));
    let init = Path::new(env!("CARGO_MANIFEST_DIR")).join("guest/init");
    must(command("install", &["--mode=755"]).arg(init).arg(root.join("init")));
    // The kernel calls it when something asks for a module.
    std::os::unix::fs::symlink("/bin/busybox", root.join("sbin/modprobe")).expect("a link can be made");
    must(command("mknod", &[]).arg(root.join("dev/console")).args(["c", "5", "1"]));
    kernel.copy_modules(&root);
    std::fs::rename(image_archive(directory), root.join("image.tar")).expect("a file can be moved");
    std::fs::write(root.join("pods.json"), pods().to_string()).expect("a file can be written");
    let archive = directory.join("boot.cpio");
    let pack = format!("find . | {} cpio -o -H newc", busybox().display());
    let file = std::fs::File::create(&archive).expect("a file can be made");
    must(command("sh", &["-c", &pack]).current_dir(&root).stdout(file).stderr(Stdio::null()));
    archive
}

/// One pod with limits that are looked at, and one that takes more memory than it may.
fn pods() -> serde_json::Value {
    let pod = |name: &str, policy: &str, command: &[&str], resources: serde_json::Value| {
        json!({
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": name},
            "spec": {
                "restartPolicy": policy,
                "containers": [{"name": "c", "image": sampan_tests::IMAGE, "command": command, "resources": resources}],
            },
        })
    };
    let limited = json!({"requests": {"cpu": "100m"}, "limits": {"cpu": "200m", "memory": "64Mi"}});
    let hungry = json!({"limits": {"memory": "24Mi"}});
    json!({"apiVersion": "v1", "kind": "List", "items": [
        pod("limited", "Always", &["sleep", "100000"], limited),
        // Reads a line that never ends.
        pod("hungry", "Never", &["tail", "/dev/zero"], hungry),
    ]})
}

/// The emulated machine; ends when dropped.
struct Machine(Child);

impl Machine {
    fn start(kernel: &Kernel, archive: &Path) -> Self {
        let mut qemu = command("qemu-system-x86_64", &["-machine", "q35", "-cpu", "max", "-smp", "2"]);
        qemu.args([
            "-accel",
            "tcg,thread=multi",
            "-m",
            MEMORY,
            "-nodefaults",
            "-display",
            "none",
            "-no-reboot",
        ])
        .args(["-serial", "stdio", "-append", "console=ttyS0 quiet panic=-1 rdinit=/init"])
        .arg("-kernel")
        .arg(kernel.image())
        .arg("-initrd")
        .arg(archive)
        .stdin(Stdio::null())
        .stdout(Stdio::piped());
        Self(qemu.spawn().expect("qemu-system-x86_64 can be run"))
    }

    /// What the machine says until it powers off or its time is over.
    fn console(mut self) -> String {
        let mut output = self.0.stdout.take().expect("the console is a pipe");
        let reader = std::thread::spawn(move || {
            let mut text = Vec::new();
            // What was read before an error counts.
            let _ = output.read_to_end(&mut text);
            String::from_utf8_lossy(&text).into_owned()
        });
        let deadline = Instant::now() + LIMIT;
        while !reader.is_finished() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(100));
        }
        drop(self);
        reader.join().expect("reading does not panic")
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // It has ended already when all went well.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn make_directory(path: &Path) {
    std::fs::create_dir_all(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
}

/// A program that is named without a directory, as the shell finds it.
fn find_program(program: &Path) -> PathBuf {
    if program.components().count() > 1 {
        return program.to_owned();
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut found = std::env::split_paths(&path).map(|directory| directory.join(program));
    found.find(|path| path.is_file()).unwrap_or_else(|| panic!("{} is not installed", program.display()))
}

#[track_caller]
fn must(command: &mut Command) {
    let status = command.status();
    assert!(status.as_ref().is_ok_and(|status| status.success()), "{command:?}: {status:?}");
}
