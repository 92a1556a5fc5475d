//! What a container cannot see or do.

use std::os::unix::fs::symlink;

use sampan_runtime::{Mount, MountPropagation, NamespaceOptions, Runtime, RuntimeError, SeccompProfile};

use super::fixture::*;

fn mount(host: &std::path::Path, container: &str, readonly: bool) -> Mount {
    Mount {
        container_path: container.into(),
        host_path: host.into(),
        readonly,
        propagation: MountPropagation::Private,
    }
}

#[tokio::test]
async fn namespaces_are_the_pods_own() {
    let fixture = Fixture::new();
    let (output, _) = fixture.script("hostname; echo $$; ls /sys/class/net; ip addr show lo | grep -c 127.0.0.1; ls /proc | grep -c '^[0-9]'").await;
    let lines: Vec<&str> = output.lines().collect();
    assert_eq!(lines[..2], ["pod-0", "1"], "{output}");
    assert!(output.contains("lo\n"));
    assert!(lines.last().expect("lines").parse::<u32>().expect("number") < 5);
}

#[tokio::test]
async fn a_shared_process_namespace_shows_all_containers() {
    let fixture = Fixture::new();
    let mut config = fixture.sandbox_config();
    config.namespaces.share_process_namespace = true;
    let sandbox = fixture.runtime.run_pod_sandbox(config).await.expect("sandbox").id;
    let first = fixture.run(&sandbox, command(&["sleep", "4321"])).await;
    let second = fixture.run(&sandbox, idle()).await;
    assert!(fixture.exec(&second, "ps").await.contains("sleep 4321"));
    fixture.runtime.stop_container(&first, std::time::Duration::ZERO).await.expect("stop");
    assert!(!fixture.exec(&second, "ps").await.contains("sleep 4321"));
}

#[tokio::test]
async fn host_namespaces_are_the_nodes() {
    let fixture = Fixture::new();
    let mut config = fixture.sandbox_config();
    config.namespaces = NamespaceOptions {
        host_network: true,
        host_pid: true,
        host_ipc: true,
        share_process_namespace: false,
    };
    let made = fixture.runtime.run_pod_sandbox(config).await.expect("sandbox");
    assert_eq!(made.netns, None);
    let id = fixture.run(&made.id, idle()).await;
    let own = |name: &str| std::fs::read_link(format!("/proc/self/ns/{name}")).expect("namespace");
    for name in ["net", "pid", "ipc", "uts"] {
        let theirs = fixture.exec(&id, &format!("readlink /proc/self/ns/{name}")).await;
        assert_eq!(theirs.trim(), own(name).to_string_lossy(), "{name}");
    }
    fixture.runtime.stop_container(&id, std::time::Duration::ZERO).await.expect("stop");
}

#[tokio::test]
async fn the_kernel_is_masked() {
    let fixture = Fixture::new();
    let script = "head -c 1 /proc/kcore | wc -c; cat /proc/keys | wc -c; ls /sys/firmware | wc -l; \
                  echo 1 > /proc/sys/kernel/panic || echo refused; touch /sys/x || echo refused; \
                  touch /sys/fs/cgroup/memory/x || echo refused; ls /proc/sys | wc -l | grep -q '^0' || echo visible";
    let (output, _) = fixture.script(script).await;
    let lines: Vec<&str> = output.lines().filter(|line| !line.contains(": ")).collect();
    assert_eq!(lines, ["0", "0", "0", "refused", "refused", "refused", "visible"], "{output}");
    let mut config = shell(
        "touch /sys/kernel/x; mount -t tmpfs none /tmp && echo mounted; cat /proc/self/status | grep Seccomp:",
    );
    config.security.privileged = true;
    let (output, _) = fixture.output(config).await;
    assert!(output.contains("mounted") && output.contains("Seccomp:\t0"), "{output}");
}

#[tokio::test]
async fn capabilities_are_limited() {
    let fixture = Fixture::new();
    let show = "grep -E 'CapPrm|CapEff|CapBnd|CapInh|CapAmb|NoNewPrivs|Seccomp:' /proc/self/status";
    let (output, _) = fixture.script(show).await;
    for line in
        ["CapInh:\t0000000000000000", "CapPrm:\t00000000a80425fb", "CapBnd:\t00000000a80425fb", "Seccomp:\t2"]
    {
        assert!(output.contains(line), "{line} in {output}");
    }
    let mut config = shell(show);
    config.security.drop_capabilities = vec!["ALL".into()];
    config.security.add_capabilities = vec!["NET_BIND_SERVICE".into()];
    config.security.no_new_privs = true;
    config.security.run_as_user = Some(1000);
    let (output, _) = fixture.output(config).await;
    for line in ["CapEff:\t0000000000000000", "CapBnd:\t0000000000000400", "NoNewPrivs:\t1", "Seccomp:\t2"] {
        assert!(output.contains(line), "{line} in {output}");
    }
    let sandbox = fixture.sandbox().await;
    let mut config = shell("true");
    config.security.add_capabilities = vec!["FLY".into()];
    assert!(matches!(fixture.runtime.create_container(&sandbox, config).await, Err(RuntimeError::Create(_))));
}

#[tokio::test]
async fn system_calls_are_filtered() {
    let fixture = Fixture::new();
    let (output, _) =
        fixture.script("unshare -U true 2>&1 || echo refused; unshare -m true 2>&1 || echo refused").await;
    assert_eq!(output.matches("refused").count(), 2, "{output}");
    let profile = fixture.directory.join("profile.json");
    let text = r#"{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["mkdir","mkdirat"],"action":"SCMP_ACT_ERRNO","errnoRet":28}]}"#;
    std::fs::write(&profile, text).expect("write");
    let mut config = shell("mkdir /tmp/x 2>&1");
    config.security.seccomp = SeccompProfile::Localhost(profile);
    let (output, _) = fixture.output(config).await;
    assert!(output.contains("No space left"), "{output}");
    let mut config = shell("grep Seccomp: /proc/self/status");
    config.security.seccomp = SeccompProfile::Unconfined;
    assert_eq!(fixture.output(config).await.0, "Seccomp:\t0\n");
    let mut config = shell("true");
    config.security.seccomp = SeccompProfile::Localhost("/no/such/profile".into());
    let sandbox = fixture.sandbox().await;
    let id = fixture.runtime.create_container(&sandbox, config).await.expect("create");
    assert!(start_error(fixture.runtime.start_container(&id).await).1.contains("not found"));
}

#[tokio::test]
async fn devices_are_few() {
    let fixture = Fixture::new();
    let script = "ls /dev | sort | tr '\\n' ' '; echo; echo x > /dev/null && head -c 1 /dev/zero | wc -c; \
                  mknod /tmp/disk b 254 0 && (cat /tmp/disk 2>&1 || echo refused); \
                  mknod /dev/disk b 254 0 && (cat /dev/disk 2>&1 || echo refused); \
                  mknod /dev/null2 c 1 3 && (cat /dev/null2 2>&1 || echo refused)";
    let (output, _) = fixture.script(script).await;
    assert!(
        output.starts_with("fd full mqueue null ptmx pts random shm stderr stdin stdout tty urandom zero"),
        "{output}"
    );
    assert!(output.contains("\n1\n"), "{output}");
    assert_eq!(output.matches("refused").count(), 3, "{output}");
}

#[tokio::test]
async fn the_root_can_be_read_only_and_is_never_the_image() {
    let fixture = Fixture::new();
    let (output, _) = fixture.script("echo changed > /etc/passwd; rm /bin/true; ls /").await;
    assert!(output.contains("proc"));
    assert!(fixture.image().join("bin/true").symlink_metadata().is_ok());
    assert!(std::fs::read_to_string(fixture.image().join("etc/passwd")).expect("image").contains("root:"));
    let mut config = shell("touch /x || echo refused; touch /vol/x && touch /dev/shm/x && echo written");
    config.security.readonly_rootfs = true;
    config.mounts = vec![mount(&fixture.volume("vol"), "/vol", false)];
    let (output, _) = fixture.output(config).await;
    assert!(output.contains("refused") && output.contains("written"), "{output}");
}

#[tokio::test]
async fn volumes_appear_where_they_should() {
    let fixture = Fixture::new();
    let volume = fixture.volume("vol");
    std::fs::write(volume.join("file"), "text\n").expect("write");
    let mut config = shell(
        "cat /data/deep/file; touch /data/deep/new; touch /ro/x || echo refused; cat /etc/hosts; cat /ro/inner/file",
    );
    let hosts = fixture.directory.join("hosts");
    std::fs::write(&hosts, "127.0.0.1 localhost\n").expect("write");
    config.mounts = vec![
        mount(&volume, "/ro/inner", false),
        mount(&fixture.volume("ro"), "/ro", true),
        mount(&volume, "/data/deep", false),
        mount(&hosts, "/etc/hosts", false),
    ];
    std::fs::create_dir_all(fixture.volume("ro").join("inner")).expect("make");
    let (output, _) = fixture.output(config).await;
    assert!(
        output.contains("text\n") && output.contains("refused") && output.contains("localhost"),
        "{output}"
    );
    assert_eq!(output.matches("text").count(), 2);
    assert!(volume.join("new").exists());
    let sandbox = fixture.sandbox().await;
    let mut config = shell("true");
    config.mounts = vec![mount(std::path::Path::new("/no/such/path"), "/x", false)];
    let id = fixture.runtime.create_container(&sandbox, config).await.expect("create");
    assert!(start_error(fixture.runtime.start_container(&id).await).1.contains("/no/such/path"));
}

#[tokio::test]
async fn links_do_not_lead_mounts_outside() {
    let fixture = Fixture::new();
    let victim = fixture.volume("victim");
    let volume = fixture.volume("vol");
    std::fs::write(volume.join("evil"), "evil").expect("write");
    // The image says that /escape is a directory of the node, by every kind of link.
    let target = victim.canonicalize().expect("exists");
    symlink(&target, fixture.image().join("absolute")).expect("link");
    let upwards = format!("../../../../../../../../..{}", target.display());
    symlink(&upwards, fixture.image().join("relative")).expect("link");
    symlink("/proc/1/root", fixture.image().join("magic")).expect("link");
    symlink("/proc/self/fd/5", fixture.image().join("descriptor")).expect("link");
    let mut config = shell("cat /absolute/evil /relative/sub/evil");
    config.mounts = vec![mount(&volume, "/absolute", false), mount(&volume, "/relative/sub", false)];
    let (output, _) = fixture.output(config).await;
    assert_eq!(output, "evilevil\n", "the links lead to the same places for mounts and programs");
    assert!(std::fs::read_dir(&victim).expect("list").next().is_none(), "nothing was made on the node");
    // Links of /proc that lead to open files and other roots count as their text, inside the container.
    for path in ["/magic/tmp/from-outside", "/descriptor/from-outside"] {
        let mut config = shell("test -e $TARGET/evil && echo mounted");
        config.env = vec![("TARGET".into(), path.into())];
        config.mounts = vec![mount(&volume, path, false)];
        fixture.output(config).await;
        assert!(!std::path::Path::new("/tmp/from-outside").exists());
    }
    let mut config = shell("stat -c %d . /; touch here");
    config.working_dir = "/proc/self/fd/7".into();
    let sandbox = fixture.sandbox().await;
    let id = fixture.runtime.create_container(&sandbox, config).await.expect("create");
    // Refused when there is no such descriptor; else a directory of that text inside the container.
    if fixture.runtime.start_container(&id).await.is_ok() {
        let output = messages(&fixture.ended(&id).await.log_path);
        let devices: Vec<&str> = output.lines().collect();
        assert!(devices.len() == 2 && devices[0] == devices[1], "the directory is the container's: {output}");
    }
}

/// A directory of the node that is a mount of its own and shares mount events; unmounted when dropped.
struct SharedMount(std::path::PathBuf);

impl SharedMount {
    fn new(path: std::path::PathBuf) -> Self {
        rustix::mount::mount_bind(&path, &path).expect("bind");
        rustix::mount::mount_change(&path, rustix::mount::MountPropagationFlags::SHARED).expect("share");
        Self(path)
    }
}

impl Drop for SharedMount {
    fn drop(&mut self) {
        let _ = rustix::mount::unmount(&self.0, rustix::mount::UnmountFlags::DETACH);
    }
}

#[tokio::test]
async fn mount_events_pass_as_asked() {
    let fixture = Fixture::new();
    let sandbox = fixture.sandbox().await;
    let shared = SharedMount::new(fixture.volume("shared"));
    std::fs::create_dir_all(shared.0.join("late")).expect("make");
    std::fs::create_dir_all(shared.0.join("back")).expect("make");
    let mut config = idle();
    let kinds = [
        ("/private", MountPropagation::Private),
        ("/slave", MountPropagation::HostToContainer),
        ("/both", MountPropagation::Bidirectional),
    ];
    config.security.privileged = true;
    config.mounts =
        kinds.map(|(path, propagation)| Mount { propagation, ..mount(&shared.0, path, false) }).to_vec();
    let id = fixture.run(&sandbox, config).await;
    let late = shared.0.join("late");
    rustix::mount::mount("none", &late, "tmpfs", rustix::mount::MountFlags::empty(), None).expect("mount");
    std::fs::write(late.join("file"), "").expect("write");
    let seen = fixture.exec(&id, "for d in private slave both; do ls /$d/late; echo $d; done").await;
    assert_eq!(seen, "private\nfile\nslave\nfile\nboth\n");
    fixture.exec(&id, "mount -t tmpfs none /both/back; touch /both/back/x").await;
    assert!(shared.0.join("back/x").exists(), "the node sees what the container mounted");
    fixture
        .exec(
            &id,
            "mkdir /slave/slave-only; mount -t tmpfs none /slave/slave-only; touch /slave/slave-only/x",
        )
        .await;
    assert!(!shared.0.join("slave-only/x").exists(), "nothing comes back from a slave");
    for path in [shared.0.join("back"), late] {
        rustix::mount::unmount(&path, rustix::mount::UnmountFlags::DETACH).expect("unmount");
    }
}

#[tokio::test]
async fn privileged_containers_have_the_nodes_devices() {
    let fixture = Fixture::new();
    let mut config =
        shell("test -b /dev/vda || ls /dev | wc -l; mknod /tmp/n c 1 3 && echo x > /tmp/n && echo opened");
    config.security.privileged = true;
    let (output, _) = fixture.output(config).await;
    assert!(output.ends_with("opened\n"), "{output}");
}

#[tokio::test]
async fn nothing_of_ours_is_visible_inside() {
    let fixture = Fixture::new();
    let sandbox = fixture.sandbox().await;
    let id = fixture.run(&sandbox, idle()).await;
    // ls itself opens the directory as 3.
    assert_eq!(fixture.exec(&id, "ls /proc/self/fd | tr '\\n' ' '").await.trim(), "0 1 2 3");
    assert_eq!(fixture.exec(&id, "ls /proc/1/fd | tr '\\n' ' '").await.trim(), "0 1 2");
    let mounts = fixture.exec(&id, "cat /proc/self/mountinfo").await;
    assert!(!mounts.contains(&*fixture.directory.to_string_lossy()), "{mounts}");
    // The first process has executed its program; a program that is a link to it runs the image's file.
    assert!(fixture.exec(&id, "readlink /proc/1/exe").await.contains("/bin/busybox"));
}

#[tokio::test]
async fn our_binary_cannot_be_written_through_a_container() {
    let fixture = Fixture::new();
    let binary = std::path::Path::new(env!("CARGO_BIN_EXE_sampan-supervisor"));
    let before = std::fs::metadata(binary).expect("binary").modified().expect("time");
    let made = fixture.runtime.run_pod_sandbox(fixture.sandbox_config()).await.expect("sandbox");
    let supervisor = made.netns.expect("own network").to_string_lossy().replace("/ns/net", "/exe");
    let error = std::fs::File::options().write(true).open(&supervisor).expect_err("is read-only");
    assert!(
        ["EROFS", "ETXTBSY"].contains(&match error.raw_os_error() {
            Some(30) => "EROFS",
            Some(26) => "ETXTBSY",
            _ => "other",
        }),
        "{error}"
    );
    assert_eq!(std::fs::metadata(binary).expect("binary").modified().expect("time"), before);
    // A container whose program is /proc/self/exe does not run us.
    let id = fixture.runtime.create_container(&made.id, command(&["/proc/self/exe"])).await.expect("create");
    let _ = fixture.runtime.start_container(&id).await;
}

#[tokio::test]
async fn sysctls_of_the_pod_are_written_and_others_refused() {
    let fixture = Fixture::new();
    let mut config = fixture.sandbox_config();
    config.sysctls.insert("net.ipv4.ip_unprivileged_port_start".into(), "80".into());
    let sandbox = fixture.runtime.run_pod_sandbox(config).await.expect("sandbox").id;
    let id = fixture.run(&sandbox, idle()).await;
    assert_eq!(fixture.exec(&id, "cat /proc/sys/net/ipv4/ip_unprivileged_port_start").await, "80\n");
    let mut config = fixture.sandbox_config();
    config.sysctls.insert("kernel.core_pattern".into(), "x".into());
    let refused = fixture.runtime.run_pod_sandbox(config).await;
    assert!(matches!(refused, Err(RuntimeError::Create(message)) if message.contains("core_pattern")));
    assert_eq!(fixture.runtime.list_pod_sandboxes().await.expect("list").len(), 1);
}
