//! Measures what `SPECIFICATION.md` promises of the runtime: time from nothing to a running program, and memory of a
//! supervisor. Needs root and a static busybox at `/bin/busybox`; leaves nothing.
//!
//! `cargo run --release -p sampan-runtime --example measure`

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use sampan_runtime::{
    ContainerConfig, ContainerMetadata, ImagePin, LinuxResources, NamespaceOptions, NativeConfig,
    NativeRuntime, PodSandboxConfig, PodSandboxMetadata, RootfsSource, Runtime, SecurityContext, destroy_all,
};

/// Pods made and measured; they all live at the end.
const PODS: usize = 40;

struct Directory(PathBuf);

impl RootfsSource for Directory {
    fn layer_dirs(&self, _: &str) -> Result<Vec<PathBuf>, Box<dyn std::error::Error + Send + Sync>> {
        Ok(vec![self.0.clone()])
    }

    fn pin(&self, _: &str) -> Result<ImagePin, Box<dyn std::error::Error + Send + Sync>> {
        Ok(Box::new(()))
    }
}

fn main() -> ExitCode {
    // First of all, as in every binary that embeds the runtime.
    if let Some(code) = sampan_runtime::supervisor_main() {
        return code;
    }
    match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => match runtime.block_on(measure()) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                eprintln!("measure: {error}");
                ExitCode::FAILURE
            }
        },
        Err(error) => {
            eprintln!("measure: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn measure() -> Result<(), Box<dyn std::error::Error>> {
    let base = std::env::temp_dir().join(format!("sampan-measure-{}", std::process::id()));
    let image = base.join("image/bin");
    std::fs::create_dir_all(&image)?;
    std::fs::copy("/bin/busybox", image.join("busybox"))?;
    let name = format!("sampan-measure-{}", std::process::id());
    let config = NativeConfig::new(base.join("data"), base.join("run"), name, Directory(base.join("image")));
    let runtime = NativeRuntime::open(config.clone())?;
    let result = run(&*runtime, &base).await;
    drop(runtime);
    destroy_all(&config)?;
    std::fs::remove_dir_all(&base)?;
    result
}

async fn run(runtime: &dyn Runtime, base: &std::path::Path) -> Result<(), Box<dyn std::error::Error>> {
    let mut times = [(); 4].map(|()| Vec::new());
    for number in 0..PODS {
        let begin = Instant::now();
        let sandbox = runtime.run_pod_sandbox(pod(number, base)).await?;
        times[0].push(begin.elapsed());
        let made = Instant::now();
        let container = runtime.create_container(&sandbox.id, container()).await?;
        times[1].push(made.elapsed());
        let created = Instant::now();
        runtime.start_container(&container).await?;
        times[2].push(created.elapsed());
        times[3].push(begin.elapsed());
    }
    for (name, times) in ["sandbox", "create", "start", "together"].iter().zip(&mut times) {
        let first = times[0];
        times.sort();
        let at = |percent: usize| times[(times.len() - 1) * percent / 100];
        println!("{name:9} median {:?}, p95 {:?}, first {first:?}", at(50), at(95));
    }
    let running = runtime.list_containers(None).await?;
    let mut execs = Vec::new();
    for container in &running {
        let begin = Instant::now();
        runtime.exec_sync(&container.id, ["/bin/busybox", "true"].map(str::to_owned).to_vec(), None).await?;
        execs.push(begin.elapsed());
    }
    execs.sort();
    println!("exec      median {:?}, last {:?}", execs[execs.len() / 2], execs[execs.len() - 1]);
    let mut memory = BTreeMap::new();
    for sandbox in runtime.list_pod_sandboxes().await? {
        let Some(process) = sandbox.netns.as_ref().and_then(|path| path.iter().nth(2)) else { continue };
        let text = std::fs::read_to_string(PathBuf::from("/proc").join(process).join("smaps_rollup"))?;
        for line in text.lines().skip(1) {
            let mut words = line.split_ascii_whitespace();
            if let (Some(key), Some(value)) =
                (words.next(), words.next().and_then(|value| value.parse::<u64>().ok()))
            {
                *memory.entry(key.trim_end_matches(':').to_owned()).or_insert(0) += value;
            }
        }
    }
    for key in ["Rss", "Pss", "Pss_Anon", "Private_Dirty", "Shared_Dirty"] {
        println!("{key:14} {} KiB for each supervisor", memory.get(key).unwrap_or(&0) / PODS as u64);
    }
    let all = Instant::now();
    for sandbox in runtime.list_pod_sandboxes().await? {
        runtime.stop_pod_sandbox(&sandbox.id).await?;
        runtime.remove_pod_sandbox(&sandbox.id).await?;
    }
    println!("stop and remove: {:?} for each pod", all.elapsed() / PODS as u32);
    Ok(())
}

fn pod(number: usize, base: &std::path::Path) -> PodSandboxConfig {
    PodSandboxConfig {
        metadata: PodSandboxMetadata {
            name: format!("pod-{number}"),
            uid: format!("uid-{number}"),
            namespace: "default".into(),
            attempt: 0,
        },
        hostname: format!("pod-{number}"),
        log_directory: base.join("logs"),
        namespaces: NamespaceOptions::default(),
        sysctls: BTreeMap::new(),
        cgroup_parent: format!("kubepods/pod{number}"),
        resources: LinuxResources::default(),
        annotations: BTreeMap::new(),
    }
}

fn container() -> ContainerConfig {
    ContainerConfig {
        metadata: ContainerMetadata { name: "c".into(), attempt: 0 },
        image: "busybox".into(),
        image_id: "sha256:busybox".into(),
        args: ["/bin/busybox", "sleep", "1000"].map(str::to_owned).to_vec(),
        working_dir: String::new(),
        env: vec![],
        mounts: vec![],
        log_path: "c.log".into(),
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
