//! Volumes of pods: a table of kinds, how each is made, and where containers find it.
//!
//! Everything that can be computed from the pod (where a volume is, whether it is read-only) is; only making and taking
//! away touch the machine. Volumes that show objects of the API are directories whose content is swapped at once
//! (`atomic_writer`), so that running containers see updates.

mod atomic_writer;
mod claim;
mod cleanup;
mod empty_dir;
mod host_path;
mod ownership;
mod pod_files;
mod projected;
mod sub_path;

use std::path::{Path, PathBuf};

use futures::future::BoxFuture;
use k8s_openapi::api::core::v1::{Container, Pod, Volume, VolumeMount};
use sampan_runtime::{Mount, MountPropagation};

use crate::config::NodeConfig;
use crate::context::Context;
use crate::downward::PodFacts;
use crate::env;
use crate::error::NodeError;

pub(crate) use cleanup::{Orphans, find_orphans, remove_log_files, remove_orphans, remove_pod, tear_down};
pub(crate) use pod_files::pod_files;

/// Where a volume of a kind is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// In the pod's directory.
    Disk,
    /// On a tmpfs.
    Memory,
    /// Somewhere on the node; the pod's directory holds a link to it.
    Linked,
}

/// What the maker of a volume gets.
struct Order<'a> {
    context: &'a Context,
    pod: &'a Pod,
    facts: &'a PodFacts,
    volume: &'a Volume,
    /// Where the volume has to be.
    path: PathBuf,
}

/// When the volume has to be made again because something in it expires.
type Made = Result<Option<i64>, NodeError>;

/// A kind of volume.
struct Kind {
    is: fn(&Volume) -> bool,
    place: fn(&Volume) -> Place,
    /// Containers may never write to it.
    is_read_only: bool,
    set_up: for<'a> fn(Order<'a>) -> BoxFuture<'a, Made>,
}

/// The kinds this node can make. A further kind is a file and a row.
const KINDS: &[Kind] = &[
    Kind {
        is: |volume| volume.empty_dir.is_some(),
        place: empty_dir::place,
        is_read_only: false,
        set_up: |order| Box::pin(empty_dir::set_up(order)),
    },
    Kind {
        is: |volume| volume.host_path.is_some(),
        place: |_| Place::Linked,
        is_read_only: false,
        set_up: |order| Box::pin(host_path::set_up(order)),
    },
    Kind {
        is: |volume| volume.config_map.is_some() || volume.downward_api.is_some(),
        place: |_| Place::Disk,
        is_read_only: true,
        set_up: |order| Box::pin(projected::set_up(order)),
    },
    Kind {
        is: |volume| volume.secret.is_some() || volume.projected.is_some(),
        place: |_| Place::Memory,
        is_read_only: true,
        set_up: |order| Box::pin(projected::set_up(order)),
    },
    Kind {
        is: |volume| volume.persistent_volume_claim.is_some(),
        place: |_| Place::Linked,
        is_read_only: false,
        set_up: |order| Box::pin(claim::set_up(order)),
    },
];

fn kind(volume: &Volume) -> Option<&'static Kind> {
    KINDS.iter().find(|kind| (kind.is)(volume))
}

/// Which volume could not be made, and why.
#[derive(Debug)]
pub(crate) struct VolumeFailure {
    pub(crate) volume: String,
    pub(crate) cause: NodeError,
}

/// Directories of the node, and one tmpfs for all secrets unless the run directory is one already.
pub(crate) fn prepare_node(config: &NodeConfig) -> Result<(), NodeError> {
    for directory in [config.pods_dir(), config.data_dir.join("logs"), config.memory_dir()] {
        std::fs::create_dir_all(&directory).map_err(NodeError::file("create", &directory))?;
    }
    let memory = config.memory_dir();
    private(&memory)?;
    private(&config.pods_dir())?;
    if !is_tmpfs(&memory)? {
        mount_tmpfs(&memory, c"mode=0700")?;
    }
    Ok(())
}

/// Only the node may look into it.
fn private(directory: &Path) -> Result<(), NodeError> {
    let mode = rustix::fs::Mode::from_raw_mode(0o700);
    rustix::fs::chmod(directory, mode).map_err(NodeError::errno("set the mode of", directory))
}

fn is_tmpfs(path: &Path) -> Result<bool, NodeError> {
    /// `TMPFS_MAGIC` of `linux/magic.h`.
    const TMPFS: i64 = 0x0102_1994;
    let facts = rustix::fs::statfs(path).map_err(NodeError::errno("look at the file system of", path))?;
    Ok(facts.f_type == TMPFS)
}

fn mount_tmpfs(target: &Path, options: &std::ffi::CStr) -> Result<(), NodeError> {
    use rustix::mount::MountFlags;
    let flags = MountFlags::NOSUID | MountFlags::NODEV;
    rustix::mount::mount("tmpfs", target, "tmpfs", flags, options)
        .map_err(NodeError::errno("mount a tmpfs on", target))
}

/// Where a volume is.
fn location(config: &NodeConfig, uid: &str, volume: &Volume) -> PathBuf {
    match kind(volume).map(|kind| (kind.place)(volume)) {
        Some(Place::Memory) => config.pod_memory_dir(uid).join(&volume.name),
        _ => config.pod_dir(uid).join("volumes").join(&volume.name),
    }
}

/// Makes all volumes of a pod, or brings those that show changing things up to date. Returns when to do so again.
///
/// # Errors
/// The first volume that cannot be made. Volumes made before stay.
pub(crate) async fn set_up(
    context: &Context,
    pod: &Pod,
    facts: &PodFacts,
) -> Result<Option<i64>, VolumeFailure> {
    let uid = pod.metadata.uid.as_deref().unwrap_or_default();
    let fail = |volume: &str| {
        let volume = volume.to_string();
        move |cause: NodeError| VolumeFailure { volume, cause }
    };
    for directory in [context.config.pod_dir(uid).join("volumes"), context.config.pod_memory_dir(uid)] {
        let made = tokio::fs::create_dir_all(&directory).await;
        made.map_err(NodeError::file("create", &directory)).map_err(fail("pod"))?;
    }
    let mut refresh_at: Option<i64> = None;
    for volume in pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten()) {
        let Some(kind) = kind(volume) else {
            let cause = NodeError::Unusable("this kind of volume is not supported by this node".to_string());
            return Err(fail(&volume.name)(cause));
        };
        let path = location(&context.config, uid, volume);
        let made =
            (kind.set_up)(Order { context, pod, facts, volume, path }).await.map_err(fail(&volume.name))?;
        refresh_at = refresh_at.into_iter().chain(made).min();
    }
    Ok(refresh_at)
}

/// The mounts of a container. `env` resolves `subPathExpr`.
///
/// # Errors
/// When a mount names no volume, or a path inside a volume cannot be made or leads out of it.
pub(crate) fn mounts(
    config: &NodeConfig,
    pod: &Pod,
    container: &Container,
    env: &[(String, String)],
) -> Result<Vec<Mount>, NodeError> {
    let mut mounts = Vec::new();
    for (index, mount) in container.volume_mounts.iter().flatten().enumerate() {
        mounts.push(one_mount(config, pod, container, mount, index, env)?);
    }
    Ok(mounts)
}

fn one_mount(
    config: &NodeConfig,
    pod: &Pod,
    container: &Container,
    mount: &VolumeMount,
    index: usize,
    env: &[(String, String)],
) -> Result<Mount, NodeError> {
    let uid = pod.metadata.uid.as_deref().unwrap_or_default();
    let volumes = pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten());
    let volume = volumes.into_iter().find(|volume| volume.name == mount.name).ok_or_else(|| {
        NodeError::Unusable(format!(
            "cannot find volume \"{}\" to mount into container \"{}\"",
            mount.name, container.name
        ))
    })?;
    let kind = kind(volume);
    let mut path = location(config, uid, volume);
    if kind.is_some_and(|kind| (kind.place)(volume) == Place::Linked) {
        path = std::fs::read_link(&path).map_err(NodeError::file("read", &path))?;
    }
    let is_read_only = mount.read_only == Some(true) || kind.is_some_and(|kind| kind.is_read_only);
    if let Some(inside) = sub_path_of(mount, env)? {
        let place = sub_path::Place {
            root: path,
            inside,
            target: config
                .pod_dir(uid)
                .join("volume-subpaths")
                .join(&volume.name)
                .join(&container.name)
                .join(index.to_string()),
            may_create: !kind.is_some_and(|kind| kind.is_read_only),
        };
        path = sub_path::bind(&place)?;
    }
    Ok(Mount {
        container_path: mount.mount_path.clone(),
        host_path: path,
        readonly: is_read_only,
        propagation: match mount.mount_propagation.as_deref() {
            Some("HostToContainer") => MountPropagation::HostToContainer,
            Some("Bidirectional") => MountPropagation::Bidirectional,
            _ => MountPropagation::Private,
        },
    })
}

fn sub_path_of(mount: &VolumeMount, env: &[(String, String)]) -> Result<Option<String>, NodeError> {
    if let Some(expression) = mount.sub_path_expr.as_deref().filter(|text| !text.is_empty()) {
        let lookup =
            |name: &str| env.iter().rev().find(|(known, _)| known == name).map(|(_, value)| value.clone());
        let path = env::expand(expression, &lookup);
        return match path.contains("$(") {
            true => Err(NodeError::Unusable(format!(
                "missing value for the environment of subPathExpr {expression:?}"
            ))),
            false => Ok(Some(path)),
        };
    }
    Ok(mount.sub_path.clone().filter(|path| !path.is_empty()))
}

/// The group that owns the pod's volumes.
fn fs_group(pod: &Pod) -> Option<u32> {
    let context = pod.spec.as_ref()?.security_context.as_ref()?;
    context.fs_group.and_then(|group| u32::try_from(group).ok())
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::core::v1::{
        EmptyDirVolumeSource, PodSpec, ProjectedVolumeSource, SecretVolumeSource,
    };
    use std::net::Ipv4Addr;

    fn volume(name: &str) -> Volume {
        Volume { name: name.into(), ..Volume::default() }
    }

    #[test]
    fn secrets_live_in_memory_and_cannot_be_written() {
        let config = NodeConfig::new("n", Ipv4Addr::LOCALHOST, "/data", "/run");
        let secret = Volume { secret: Some(SecretVolumeSource::default()), ..volume("s") };
        let projected = Volume { projected: Some(ProjectedVolumeSource::default()), ..volume("p") };
        let empty = Volume { empty_dir: Some(EmptyDirVolumeSource::default()), ..volume("e") };
        assert_eq!(location(&config, "u", &secret), Path::new("/run/volumes/u/s"));
        assert_eq!(location(&config, "u", &projected), Path::new("/run/volumes/u/p"));
        assert_eq!(location(&config, "u", &empty), Path::new("/data/pods/u/volumes/e"));
        let mount =
            |name: &str| VolumeMount { name: name.into(), mount_path: "/m".into(), ..VolumeMount::default() };
        let container =
            Container { volume_mounts: Some(vec![mount("s"), mount("e")]), ..Container::default() };
        let pod = Pod {
            spec: Some(PodSpec { volumes: Some(vec![secret, empty]), ..PodSpec::default() }),
            ..Pod::default()
        };
        let mounts = mounts(&config, &pod, &container, &[]).unwrap_or_default();
        assert_eq!(mounts.iter().map(|mount| mount.readonly).collect::<Vec<_>>(), [true, false]);
    }

    #[test]
    fn sub_path_expressions() {
        let mount = |expression: &str| VolumeMount {
            sub_path_expr: Some(expression.into()),
            ..VolumeMount::default()
        };
        let env = [("A".to_string(), "x".to_string())];
        assert_eq!(sub_path_of(&mount("a/$(A)"), &env).ok(), Some(Some("a/x".to_string())));
        assert!(sub_path_of(&mount("$(B)"), &env).is_err());
        assert_eq!(sub_path_of(&VolumeMount::default(), &env).ok(), Some(None));
    }
}
