//! Files the node writes for a pod: `/etc/hosts`, `/etc/hostname`, `/etc/resolv.conf`.

use std::path::{Path, PathBuf};

use k8s_openapi::api::core::v1::Pod;

use crate::context::Context;
use crate::dns::{self, ClusterDns, Resolver};
use crate::downward::PodFacts;
use crate::error::NodeError;
use crate::hosts;

/// Where systemd-resolved keeps the real servers when `/etc/resolv.conf` only points to its own stub.
const RESOLVED: &str = "/run/systemd/resolve/resolv.conf";

/// Writes the pod's files; returns where containers see them and where they are. All containers of the pod share them.
pub(crate) async fn pod_files(
    context: &Context,
    pod: &Pod,
    facts: &PodFacts,
) -> Result<Vec<(&'static str, PathBuf)>, NodeError> {
    let empty = Default::default();
    let spec = pod.spec.as_ref().unwrap_or(&empty);
    let config = &context.config;
    let names = hosts::names(pod, &config.name, &config.cluster_domain).map_err(NodeError::Unusable)?;
    let aliases = spec.host_aliases.as_deref().unwrap_or_default();
    let hosts_file = match spec.host_network {
        Some(true) => {
            let own = tokio::fs::read_to_string("/etc/hosts").await.unwrap_or_default();
            hosts::hosts_file_of_host(&own, aliases)
        }
        _ => hosts::hosts_file(&facts.pod_ips, &names, aliases),
    };
    let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
    let cluster = ClusterDns { address: context.network.gateway(), domain: &config.cluster_domain };
    let resolver = dns::resolver(spec, namespace, &cluster, &host_resolver().await).to_file();
    let directory = config.pod_dir(pod.metadata.uid.as_deref().unwrap_or_default()).join("etc");
    tokio::fs::create_dir_all(&directory).await.map_err(NodeError::file("create", &directory))?;
    let files = [
        ("/etc/hosts", directory.join("hosts"), hosts_file),
        ("/etc/hostname", directory.join("hostname"), format!("{}\n", names.hostname)),
        ("/etc/resolv.conf", directory.join("resolv.conf"), resolver),
    ];
    let mut mounted = Vec::new();
    for (seen, file, text) in files {
        write_if_changed(&file, &text).await?;
        mounted.push((seen, file));
    }
    Ok(mounted)
}

/// Written in place: running containers have this very file mounted.
async fn write_if_changed(file: &Path, text: &str) -> Result<(), NodeError> {
    if tokio::fs::read(file).await.is_ok_and(|old| old == text.as_bytes()) {
        return Ok(());
    }
    tokio::fs::write(file, text).await.map_err(NodeError::file("write", file))?;
    let mode = rustix::fs::Mode::from_raw_mode(0o644);
    rustix::fs::chmod(file, mode).map_err(NodeError::errno("set the mode of", file))
}

async fn host_resolver() -> Resolver {
    let own = Resolver::parse(&tokio::fs::read_to_string("/etc/resolv.conf").await.unwrap_or_default());
    let is_stub = own.nameservers.iter().any(|server| server == "127.0.0.53");
    match tokio::fs::read_to_string(RESOLVED).await {
        Ok(text) if is_stub => Resolver::parse(&text),
        _ => own,
    }
}
