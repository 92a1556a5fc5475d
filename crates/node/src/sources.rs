//! Config maps and secrets that pods refer to: which ones a pod needs, and how their content is read.
//!
//! Content comes from the informers. Only when an object is missing there the API is asked directly, because a config
//! map made a moment before its pod may reach us after the pod.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::core::v1::{ConfigMap, Container, Pod, Secret, Volume};
use kube::Api;

use crate::context::Context;
use crate::error::{NodeError, is_not_found};

/// Identity of an object a pod reads from.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum SourceKey {
    /// A config map: namespace, name.
    ConfigMap(String, String),
    /// A secret: namespace, name.
    Secret(String, String),
}

/// The keys and bytes of a config map or secret.
pub(crate) type Content = BTreeMap<String, Vec<u8>>;

/// Every config map and secret that the pod's volumes and environments name.
pub(crate) fn references(pod: &Pod) -> BTreeSet<SourceKey> {
    let Some(spec) = &pod.spec else { return BTreeSet::new() };
    let namespace = pod.metadata.namespace.clone().unwrap_or_default();
    let mut names = Names { namespace, keys: BTreeSet::new() };
    for volume in spec.volumes.iter().flatten() {
        names.of_volume(volume);
    }
    for container in spec.init_containers.iter().flatten().chain(&spec.containers) {
        names.of_container(container);
    }
    names.keys
}

/// The config maps and secrets that one container's environment names.
pub(crate) fn of_container(namespace: &str, container: &Container) -> BTreeSet<SourceKey> {
    let mut names = Names { namespace: namespace.to_string(), keys: BTreeSet::new() };
    names.of_container(container);
    names.keys
}

struct Names {
    namespace: String,
    keys: BTreeSet<SourceKey>,
}

impl Names {
    fn config_map(&mut self, name: &str) {
        self.keys.insert(SourceKey::ConfigMap(self.namespace.clone(), name.to_string()));
    }

    fn secret(&mut self, name: &str) {
        self.keys.insert(SourceKey::Secret(self.namespace.clone(), name.to_string()));
    }

    fn of_volume(&mut self, volume: &Volume) {
        if let Some(source) = &volume.config_map {
            self.config_map(&source.name);
        }
        if let Some(name) = volume.secret.as_ref().and_then(|source| source.secret_name.as_deref()) {
            self.secret(name);
        }
        for source in volume.projected.iter().flat_map(|projected| projected.sources.iter().flatten()) {
            if let Some(source) = &source.config_map {
                self.config_map(&source.name);
            }
            if let Some(source) = &source.secret {
                self.secret(&source.name);
            }
        }
    }

    fn of_container(&mut self, container: &Container) {
        for source in container.env_from.iter().flatten() {
            if let Some(source) = &source.config_map_ref {
                self.config_map(&source.name);
            }
            if let Some(source) = &source.secret_ref {
                self.secret(&source.name);
            }
        }
        for source in container.env.iter().flatten().filter_map(|variable| variable.value_from.as_ref()) {
            if let Some(source) = &source.config_map_key_ref {
                self.config_map(&source.name);
            }
            if let Some(source) = &source.secret_key_ref {
                self.secret(&source.name);
            }
        }
    }
}

/// Reads one object; `None` when it does not exist.
pub(crate) async fn read(context: &Context, key: &SourceKey) -> Result<Option<Content>, NodeError> {
    match key {
        SourceKey::ConfigMap(namespace, name) => read_config_map(context, namespace, name).await,
        SourceKey::Secret(namespace, name) => read_secret(context, namespace, name).await,
    }
}

async fn read_config_map(
    context: &Context,
    namespace: &str,
    name: &str,
) -> Result<Option<Content>, NodeError> {
    let api: Api<ConfigMap> = Api::namespaced(context.client.clone(), namespace);
    match api.get(name).await {
        Ok(config_map) => Ok(Some(config_map_content(&config_map))),
        Err(error) if is_not_found(&error) => Ok(None),
        Err(error) => Err(NodeError::api(format!("read configmap {namespace}/{name}"))(error)),
    }
}

async fn read_secret(context: &Context, namespace: &str, name: &str) -> Result<Option<Content>, NodeError> {
    let api: Api<Secret> = Api::namespaced(context.client.clone(), namespace);
    match api.get(name).await {
        Ok(secret) => Ok(Some(secret_content(&secret))),
        Err(error) if is_not_found(&error) => Ok(None),
        Err(error) => Err(NodeError::api(format!("read secret {namespace}/{name}"))(error)),
    }
}

fn config_map_content(config_map: &ConfigMap) -> Content {
    let text = config_map.data.iter().flatten().map(|(key, value)| (key.clone(), value.clone().into_bytes()));
    let binary = config_map.binary_data.iter().flatten().map(|(key, value)| (key.clone(), value.0.clone()));
    text.chain(binary).collect()
}

fn secret_content(secret: &Secret) -> Content {
    secret.data.iter().flatten().map(|(key, value)| (key.clone(), value.0.clone())).collect()
}

/// What an environment or a projected volume was resolved against.
pub(crate) type Contents = BTreeMap<SourceKey, Content>;

/// Reads all of `keys`; what does not exist is left out.
pub(crate) async fn read_all(
    context: &Context,
    keys: impl IntoIterator<Item = SourceKey>,
) -> Result<Contents, NodeError> {
    let mut contents = Contents::new();
    for key in keys {
        if let Some(content) = read(context, &key).await? {
            contents.insert(key, content);
        }
    }
    Ok(contents)
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::core::v1::{
        ConfigMapEnvSource, ConfigMapVolumeSource, EnvFromSource, PodSpec, SecretVolumeSource,
    };

    #[test]
    fn every_reference_is_found_once() {
        let volume = |name: &str| Volume { name: name.into(), ..Volume::default() };
        let source = EnvFromSource {
            config_map_ref: Some(ConfigMapEnvSource { name: "settings".into(), optional: None }),
            ..EnvFromSource::default()
        };
        let pod = Pod {
            metadata: kube::api::ObjectMeta { namespace: Some("ns".into()), ..Default::default() },
            spec: Some(PodSpec {
                volumes: Some(vec![
                    Volume {
                        config_map: Some(ConfigMapVolumeSource {
                            name: "settings".into(),
                            ..Default::default()
                        }),
                        ..volume("a")
                    },
                    Volume {
                        secret: Some(SecretVolumeSource {
                            secret_name: Some("key".into()),
                            ..Default::default()
                        }),
                        ..volume("b")
                    },
                ]),
                containers: vec![Container { env_from: Some(vec![source]), ..Container::default() }],
                ..PodSpec::default()
            }),
            status: None,
        };
        let expected = BTreeSet::from([
            SourceKey::ConfigMap("ns".into(), "settings".into()),
            SourceKey::Secret("ns".into(), "key".into()),
        ]);
        assert_eq!(references(&pod), expected);
    }
}
