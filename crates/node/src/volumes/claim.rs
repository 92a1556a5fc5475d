//! `persistentVolumeClaim`: the directory of the node that the claim's volume names (`hostPath` and `local` volumes).

use std::path::Path;

use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use kube::Api;

use super::{Made, Order, host_path};
use crate::error::{NodeError, is_not_found};

pub(super) async fn set_up(order: Order<'_>) -> Made {
    let Some(source) = &order.volume.persistent_volume_claim else { return Ok(None) };
    let client = &order.context.client;
    let namespace = order.pod.metadata.namespace.as_deref().unwrap_or_default();
    let claims: Api<PersistentVolumeClaim> = Api::namespaced(client.clone(), namespace);
    let name = source.claim_name.as_str();
    let claim = claims.get(name).await.map_err(|error| match is_not_found(&error) {
        true => NodeError::Unusable(format!("persistentvolumeclaim \"{name}\" not found")),
        false => NodeError::api(format!("read persistentvolumeclaim {namespace}/{name}"))(error),
    })?;
    // A claim stays until its last pod ends; another pod that came in between must not get what is about to go. A pod that has
    // it already keeps it, also when its volumes are looked at again.
    if claim.metadata.deletion_timestamp.is_some() && order.path.symlink_metadata().is_err() {
        return Err(NodeError::Unusable(format!("persistentvolumeclaim \"{name}\" is being deleted")));
    }
    let Some(volume) = claim.spec.and_then(|spec| spec.volume_name).filter(|name| !name.is_empty()) else {
        return Err(NodeError::Unusable(format!("persistentvolumeclaim \"{name}\" is not bound")));
    };
    let volumes: Api<PersistentVolume> = Api::all(client.clone());
    let volume =
        volumes.get(&volume).await.map_err(NodeError::api(format!("read persistentvolume {volume}")))?;
    let spec = volume.spec.unwrap_or_default();
    let path = match (&spec.host_path, &spec.local) {
        (Some(host_path), _) => host_path.path.clone(),
        (None, Some(local)) => local.path.clone(),
        (None, None) => {
            return Err(NodeError::Unusable(
                "only hostPath and local persistent volumes are supported".to_string(),
            ));
        }
    };
    let path = Path::new(&path);
    if spec.host_path.is_some() {
        std::fs::create_dir_all(path).map_err(NodeError::file("create", path))?;
    }
    host_path::link(&order.path, path)?;
    Ok(None)
}
