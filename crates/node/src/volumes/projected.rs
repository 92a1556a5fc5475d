//! Volumes that show objects of the API: `configMap`, `secret`, `downwardAPI`, `projected`.
//!
//! The first three are projected volumes with one source, so that there is one way for all.

use k8s_openapi::api::authentication::v1::{BoundObjectReference, TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1::{
    ConfigMapProjection, DownwardAPIProjection, DownwardAPIVolumeFile, KeyToPath, ProjectedVolumeSource,
    SecretProjection, ServiceAccount, ServiceAccountTokenProjection, Volume, VolumeProjection,
};
use kube::Api;
use kube::api::PostParams;

use super::atomic_writer::{self, File, Payload, is_valid_path};
use super::{Made, Order, fs_group};
use crate::downward;
use crate::env::named_container;
use crate::error::NodeError;
use crate::resources;
use crate::sources::{self, Content, SourceKey};
use crate::time;

const DEFAULT_MODE: u32 = 0o644;
/// A token is renewed when this share of its life is over (the kubelet's rule).
const TOKEN_REFRESH: (i64, i64) = (8, 10);

pub(super) async fn set_up(order: Order<'_>) -> Made {
    let Some(source) = as_projected(order.volume) else { return Ok(None) };
    let mode = source.default_mode.and_then(|mode| u32::try_from(mode).ok()).unwrap_or(DEFAULT_MODE);
    let mut payload = Payload::new();
    let mut refresh_at: Option<i64> = None;
    for source in source.sources.iter().flatten() {
        let expires = project(&order, source, mode, &mut payload).await?;
        refresh_at = refresh_at.into_iter().chain(expires).min();
    }
    if let Some(path) = payload.keys().find(|path| !is_valid_path(path)) {
        return Err(NodeError::Unusable(format!("invalid path {path:?}: it must stay inside the volume")));
    }
    let (path, group) = (order.path.clone(), fs_group(order.pod));
    let written = tokio::task::spawn_blocking(move || atomic_writer::write(&path, &payload, group)).await;
    match written {
        Ok(Ok(_)) => Ok(refresh_at),
        Ok(Err(error)) => Err(NodeError::file("write", &order.path)(error)),
        Err(error) => Err(NodeError::file("write", &order.path)(std::io::Error::other(error))),
    }
}

fn as_projected(volume: &Volume) -> Option<ProjectedVolumeSource> {
    if let Some(source) = &volume.projected {
        return Some(source.clone());
    }
    let (default_mode, source) = if let Some(source) = &volume.config_map {
        let projection = ConfigMapProjection {
            name: source.name.clone(),
            items: source.items.clone(),
            optional: source.optional,
        };
        (
            source.default_mode,
            VolumeProjection { config_map: Some(projection), ..VolumeProjection::default() },
        )
    } else if let Some(source) = &volume.secret {
        let projection = SecretProjection {
            name: source.secret_name.clone().unwrap_or_default(),
            items: source.items.clone(),
            optional: source.optional,
        };
        (source.default_mode, VolumeProjection { secret: Some(projection), ..VolumeProjection::default() })
    } else {
        let source = volume.downward_api.as_ref()?;
        let projection = DownwardAPIProjection { items: source.items.clone() };
        (
            source.default_mode,
            VolumeProjection { downward_api: Some(projection), ..VolumeProjection::default() },
        )
    };
    Some(ProjectedVolumeSource { default_mode, sources: Some(vec![source]) })
}

/// Adds one source to the payload. Returns when it has to be asked for again.
async fn project(
    order: &Order<'_>,
    source: &VolumeProjection,
    mode: u32,
    payload: &mut Payload,
) -> Result<Option<i64>, NodeError> {
    let namespace = order.pod.metadata.namespace.clone().unwrap_or_default();
    if let Some(projection) = &source.config_map {
        let key = SourceKey::ConfigMap(namespace, projection.name.clone());
        object(order, &key, projection.items.as_deref(), projection.optional, mode, payload).await?;
    } else if let Some(projection) = &source.secret {
        let key = SourceKey::Secret(namespace, projection.name.clone());
        object(order, &key, projection.items.as_deref(), projection.optional, mode, payload).await?;
    } else if let Some(projection) = &source.downward_api {
        for item in projection.items.iter().flatten() {
            let bytes = downward_value(order, item)?.into_bytes();
            payload.insert(item.path.clone(), File { bytes, mode: item_mode(item.mode, mode), owner: None });
        }
    } else if let Some(projection) = &source.service_account_token {
        return token(order, projection, mode, payload).await.map(Some);
    } else {
        return Err(NodeError::Unusable("this kind of projection is not supported by this node".to_string()));
    }
    Ok(None)
}

fn item_mode(own: Option<i32>, default: u32) -> u32 {
    own.and_then(|mode| u32::try_from(mode).ok()).unwrap_or(default)
}

async fn object(
    order: &Order<'_>,
    key: &SourceKey,
    items: Option<&[KeyToPath]>,
    optional: Option<bool>,
    mode: u32,
    payload: &mut Payload,
) -> Result<(), NodeError> {
    let optional = optional == Some(true);
    let (kind, name) = match key {
        SourceKey::ConfigMap(_, name) => ("configmap", name),
        SourceKey::Secret(_, name) => ("secret", name),
    };
    match sources::read(order.context, key).await? {
        Some(content) => choose(&content, items, optional, mode, payload).map_err(|missing| {
            NodeError::Unusable(format!("{kind} references non-existent config key: {missing}"))
        }),
        None if optional => Ok(()),
        None => Err(NodeError::Unusable(format!("{kind} \"{name}\" not found"))),
    }
}

/// All keys under their own names, or the listed ones under the paths they are given. The error is a missing key.
fn choose(
    content: &Content,
    items: Option<&[KeyToPath]>,
    optional: bool,
    mode: u32,
    payload: &mut Payload,
) -> Result<(), String> {
    match items.filter(|items| !items.is_empty()) {
        None => {
            for (key, bytes) in content {
                payload.insert(key.clone(), File { bytes: bytes.clone(), mode, owner: None });
            }
        }
        Some(items) => {
            for item in items {
                match content.get(&item.key) {
                    Some(bytes) => {
                        let file =
                            File { bytes: bytes.clone(), mode: item_mode(item.mode, mode), owner: None };
                        payload.insert(item.path.clone(), file);
                    }
                    None if optional => {}
                    None => return Err(item.key.clone()),
                }
            }
        }
    }
    Ok(())
}

fn downward_value(order: &Order<'_>, item: &DownwardAPIVolumeFile) -> Result<String, NodeError> {
    let value = if let Some(reference) = &item.field_ref {
        downward::field(order.pod, order.facts, &reference.field_path)
    } else if let Some(reference) = &item.resource_field_ref {
        let container = reference.container_name.as_deref().unwrap_or_default();
        named_container(order.pod, container).and_then(|container| {
            let allocatable = &order.context.machine.allocatable;
            resources::field(container, &reference.resource, reference.divisor.as_ref(), allocatable)
        })
    } else {
        Ok(String::new())
    };
    value.map_err(NodeError::Unusable)
}

/// Asks the API for a token of the pod's service account, bound to the pod.
async fn token(
    order: &Order<'_>,
    projection: &ServiceAccountTokenProjection,
    mode: u32,
    payload: &mut Payload,
) -> Result<i64, NodeError> {
    let meta = &order.pod.metadata;
    let namespace = meta.namespace.as_deref().unwrap_or_default();
    let spec = order.pod.spec.as_ref();
    let account = spec
        .and_then(|spec| spec.service_account_name.as_deref())
        .filter(|name| !name.is_empty())
        .unwrap_or("default");
    let request = TokenRequest {
        spec: Some(TokenRequestSpec {
            audiences: Some(
                projection.audience.iter().filter(|audience| !audience.is_empty()).cloned().collect(),
            ),
            expiration_seconds: Some(projection.expiration_seconds.unwrap_or(3600)),
            bound_object_ref: Some(BoundObjectReference {
                api_version: Some("v1".to_string()),
                kind: Some("Pod".to_string()),
                name: meta.name.clone(),
                uid: meta.uid.clone(),
            }),
        }),
        ..TokenRequest::default()
    };
    let api: Api<ServiceAccount> = Api::namespaced(order.context.client.clone(), namespace);
    let answer: TokenRequest = api
        .create_subresource("token", account, &PostParams::default(), &request)
        .await
        .map_err(NodeError::api(format!("fetch a token for service account {namespace}/{account}")))?;
    let status = answer.status.unwrap_or_default();
    let Some(token) = status.token.filter(|token| !token.is_empty()) else {
        return Err(NodeError::Unusable(format!(
            "the API gave no token for service account {namespace}/{account}"
        )));
    };
    let owner = common_user(order);
    // Where somebody can be named as reader, nobody else reads it; a group is given its right when it is written.
    let mode = if owner.is_some() || fs_group(order.pod).is_some() { 0o600 } else { mode };
    payload.insert(projection.path.clone(), File { bytes: token.into_bytes(), mode, owner });
    let now = time::now();
    let expires = status.expiration_timestamp.as_ref().map_or(now + time::seconds(3600), time::nanos);
    Ok(now + (expires - now).max(time::seconds(10)) / TOKEN_REFRESH.1 * TOKEN_REFRESH.0)
}

/// The user all containers of the pod run as, if it is the same for all.
fn common_user(order: &Order<'_>) -> Option<u32> {
    let spec = order.pod.spec.as_ref()?;
    let of_pod = spec.security_context.as_ref().and_then(|context| context.run_as_user);
    let mut users = spec.init_containers.iter().flatten().chain(&spec.containers).map(|container| {
        container.security_context.as_ref().and_then(|context| context.run_as_user).or(of_pod)
    });
    let first = users.next()??;
    users.all(|user| user == Some(first)).then(|| u32::try_from(first).ok())?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_and_paths() {
        let content: Content = [("a".to_string(), b"1".to_vec()), ("b".into(), b"2".to_vec())].into();
        let item = |key: &str, mode| KeyToPath { key: key.into(), path: format!("to/{key}"), mode };
        let mut all = Payload::new();
        assert_eq!(choose(&content, None, false, 0o644, &mut all), Ok(()));
        assert_eq!(all.keys().collect::<Vec<_>>(), ["a", "b"]);
        let mut some = Payload::new();
        assert_eq!(choose(&content, Some(&[item("b", Some(0o400))]), false, 0o644, &mut some), Ok(()));
        assert_eq!(some.get("to/b").map(|file| (file.bytes.as_slice(), file.mode)), Some((&b"2"[..], 0o400)));
        assert_eq!(choose(&content, Some(&[item("x", None)]), false, 0o644, &mut some), Err("x".to_string()));
        assert_eq!(choose(&content, Some(&[item("x", None)]), true, 0o644, &mut some), Ok(()));
    }
}
