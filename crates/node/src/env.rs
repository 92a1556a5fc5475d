//! The environment of a container: what the pod says, what it takes from elsewhere, and where services are.
//!
//! Pure: all config maps and secrets have been read before. Order and precedence are upstream's: services first, then
//! `envFrom`, then `env`, later entries win; `$(NAME)` refers to what stands before.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Container, EnvVar, EnvVarSource, Pod, Service};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

use crate::downward::{self, PodFacts};
use crate::resources;
use crate::sources::{Content, Contents, SourceKey};

/// Everything an environment is made of.
pub(crate) struct EnvInput<'a> {
    pub(crate) pod: &'a Pod,
    pub(crate) container: &'a Container,
    pub(crate) facts: &'a PodFacts,
    /// What was found of the config maps and secrets named by the container.
    pub(crate) contents: &'a Contents,
    /// `NAME=value` of services, from [`service_variables`].
    pub(crate) services: &'a BTreeMap<String, String>,
    /// `status.allocatable` of the node.
    pub(crate) allocatable: &'a BTreeMap<String, Quantity>,
}

/// The variables of a container in a stable order.
///
/// # Errors
/// A sentence for the user (`CreateContainerConfigError`) when something that is not optional is missing.
pub(crate) fn variables(input: &EnvInput<'_>) -> Result<Vec<(String, String)>, String> {
    let mut variables = Variables::default();
    for (name, value) in input.services {
        variables.set(name, value.clone());
    }
    for (name, value) in from_sources(input)? {
        variables.set(&name, value);
    }
    for variable in input.container.env.iter().flatten() {
        if let Some(value) = value_of(input, &variables, variable)? {
            variables.set(&variable.name, value);
        }
    }
    Ok(variables.list)
}

/// Keeps the order of first appearance, so that the same pod always gets the same environment.
#[derive(Default)]
struct Variables {
    list: Vec<(String, String)>,
}

impl Variables {
    fn set(&mut self, name: &str, value: String) {
        match self.list.iter_mut().find(|(known, _)| known == name) {
            Some(entry) => entry.1 = value,
            None => self.list.push((name.to_string(), value)),
        }
    }

    fn get(&self, name: &str) -> Option<&str> {
        self.list.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }
}

fn namespace(input: &EnvInput<'_>) -> String {
    input.pod.metadata.namespace.clone().unwrap_or_default()
}

fn from_sources(input: &EnvInput<'_>) -> Result<Vec<(String, String)>, String> {
    let mut all = Vec::new();
    for source in input.container.env_from.iter().flatten() {
        let (key, optional) = if let Some(reference) = &source.config_map_ref {
            (SourceKey::ConfigMap(namespace(input), reference.name.clone()), reference.optional)
        } else if let Some(reference) = &source.secret_ref {
            (SourceKey::Secret(namespace(input), reference.name.clone()), reference.optional)
        } else {
            continue;
        };
        let Some(content) = find(input.contents, &key, optional)? else { continue };
        let prefix = source.prefix.as_deref().unwrap_or_default();
        for (name, value) in content {
            all.push((format!("{prefix}{name}"), String::from_utf8_lossy(value).into_owned()));
        }
    }
    Ok(all)
}

fn find<'a>(
    contents: &'a Contents,
    key: &SourceKey,
    optional: Option<bool>,
) -> Result<Option<&'a Content>, String> {
    match contents.get(key) {
        Some(content) => Ok(Some(content)),
        None if optional == Some(true) => Ok(None),
        None => Err(match key {
            SourceKey::ConfigMap(_, name) => format!("configmap \"{name}\" not found"),
            SourceKey::Secret(_, name) => format!("secret \"{name}\" not found"),
        }),
    }
}

fn value_of(input: &EnvInput<'_>, before: &Variables, variable: &EnvVar) -> Result<Option<String>, String> {
    match &variable.value_from {
        Some(source) if variable.value.as_deref().unwrap_or_default().is_empty() => referenced(input, source),
        _ => {
            let text = variable.value.as_deref().unwrap_or_default();
            Ok(Some(expand(text, &|name| before.get(name).map(str::to_string))))
        }
    }
}

fn referenced(input: &EnvInput<'_>, source: &EnvVarSource) -> Result<Option<String>, String> {
    if let Some(reference) = &source.field_ref {
        return downward::field(input.pod, input.facts, &reference.field_path).map(Some);
    }
    if let Some(reference) = &source.resource_field_ref {
        let container = match &reference.container_name {
            Some(name) if !name.is_empty() => named_container(input.pod, name)?,
            _ => input.container,
        };
        let divisor = reference.divisor.as_ref();
        return resources::field(container, &reference.resource, divisor, input.allocatable).map(Some);
    }
    let (key, name, optional) = if let Some(reference) = &source.config_map_key_ref {
        (SourceKey::ConfigMap(namespace(input), reference.name.clone()), &reference.key, reference.optional)
    } else if let Some(reference) = &source.secret_key_ref {
        (SourceKey::Secret(namespace(input), reference.name.clone()), &reference.key, reference.optional)
    } else {
        return Ok(None);
    };
    let Some(content) = find(input.contents, &key, optional)? else { return Ok(None) };
    match content.get(name) {
        Some(value) => Ok(Some(String::from_utf8_lossy(value).into_owned())),
        None if optional == Some(true) => Ok(None),
        None => Err(match key {
            SourceKey::ConfigMap(namespace, object) => {
                format!("couldn't find key {name} in ConfigMap {namespace}/{object}")
            }
            SourceKey::Secret(namespace, object) => {
                format!("couldn't find key {name} in Secret {namespace}/{object}")
            }
        }),
    }
}

/// The container of that name in the pod.
pub(crate) fn named_container<'a>(pod: &'a Pod, name: &str) -> Result<&'a Container, String> {
    let spec = pod.spec.as_ref();
    spec.into_iter()
        .flat_map(|spec| spec.init_containers.iter().flatten().chain(&spec.containers))
        .find(|container| container.name == name)
        .ok_or_else(|| format!("container {name} not found"))
}

/// Replaces `$(NAME)`; `$$` is a dollar sign, and what is not known stays as it is written.
pub(crate) fn expand(text: &str, lookup: &dyn Fn(&str) -> Option<String>) -> String {
    let mut expanded = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        expanded.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        if let Some(after) = rest.strip_prefix('$') {
            expanded.push('$');
            rest = after;
        } else if let Some((name, after)) = rest.strip_prefix('(').and_then(|inner| inner.split_once(')')) {
            match lookup(name) {
                Some(value) => expanded.push_str(&value),
                None => expanded.push_str(&format!("$({name})")),
            }
            rest = after;
        } else {
            expanded.push('$');
        }
    }
    expanded.push_str(rest);
    expanded
}

/// The variables that tell where services are, in the form of Docker links. `kubernetes` of the default namespace is
/// always there; the pod's own namespace only with `enableServiceLinks`.
pub(crate) fn service_variables(
    services: &[std::sync::Arc<Service>],
    pod_namespace: &str,
    links: bool,
) -> BTreeMap<String, String> {
    let mut variables = BTreeMap::new();
    for service in services {
        let namespace = service.metadata.namespace.as_deref().unwrap_or_default();
        let name = service.metadata.name.as_deref().unwrap_or_default();
        let is_master = namespace == "default" && name == "kubernetes";
        // A service of the same name in the pod's namespace wins over the master's.
        if links && namespace == pod_namespace {
            variables.extend(links_of(service, name));
        } else if is_master {
            for (name, value) in links_of(service, name) {
                variables.entry(name).or_insert(value);
            }
        }
    }
    variables
}

fn links_of(service: &Service, name: &str) -> Vec<(String, String)> {
    let Some(spec) = &service.spec else { return Vec::new() };
    let ip = match spec.cluster_ip.as_deref() {
        Some("None" | "") | None => return Vec::new(),
        Some(ip) => ip,
    };
    let prefix = name.to_uppercase().replace('-', "_");
    let ports = spec.ports.as_deref().unwrap_or_default();
    let Some(first) = ports.first() else { return Vec::new() };
    let mut links = vec![
        (format!("{prefix}_SERVICE_HOST"), ip.to_string()),
        (format!("{prefix}_SERVICE_PORT"), first.port.to_string()),
    ];
    for port in ports {
        if let Some(name) = port.name.as_deref().filter(|name| !name.is_empty()) {
            let name = name.to_uppercase().replace('-', "_");
            links.push((format!("{prefix}_SERVICE_PORT_{name}"), port.port.to_string()));
        }
    }
    for (index, port) in ports.iter().enumerate() {
        let protocol = port.protocol.as_deref().unwrap_or("TCP");
        let url = format!("{}://{ip}:{}", protocol.to_lowercase(), port.port);
        let long = format!("{prefix}_PORT_{}_{protocol}", port.port);
        if index == 0 {
            links.push((format!("{prefix}_PORT"), url.clone()));
        }
        links.push((format!("{long}_PROTO"), protocol.to_lowercase()));
        links.push((format!("{long}_PORT"), port.port.to_string()));
        links.push((format!("{long}_ADDR"), ip.to_string()));
        links.push((long, url));
    }
    links
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::core::v1::{
        ConfigMapEnvSource, EnvFromSource, SecretKeySelector, ServicePort, ServiceSpec,
    };
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
    use std::sync::Arc;

    #[test]
    fn expansion() {
        let lookup = |name: &str| (name == "A").then(|| "1".to_string());
        let rows = [
            ("plain", "plain"),
            ("$(A)b", "1b"),
            ("$(B)", "$(B)"),
            ("$$(A)", "$(A)"),
            ("$A", "$A"),
            ("$(A", "$(A"),
            ("a$", "a$"),
        ];
        for (text, expected) in rows {
            assert_eq!(expand(text, &lookup), expected, "{text}");
        }
    }

    fn variable(name: &str, value: &str) -> EnvVar {
        EnvVar { name: name.into(), value: Some(value.into()), value_from: None }
    }

    fn secret(name: &str, key: &str, optional: Option<bool>) -> EnvVar {
        let reference = SecretKeySelector { name: name.into(), key: key.into(), optional };
        let source = EnvVarSource { secret_key_ref: Some(reference), ..EnvVarSource::default() };
        EnvVar { name: "S".into(), value: None, value_from: Some(source) }
    }

    fn resolve(container: Container, contents: &Contents) -> Result<Vec<(String, String)>, String> {
        let pod = Pod {
            metadata: ObjectMeta { namespace: Some("ns".into()), ..ObjectMeta::default() },
            ..Pod::default()
        };
        variables(&EnvInput {
            pod: &pod,
            container: &container,
            facts: &PodFacts::default(),
            contents,
            services: &BTreeMap::new(),
            allocatable: &BTreeMap::new(),
        })
    }

    #[test]
    fn later_entries_win_and_see_earlier_ones() {
        let from = EnvFromSource {
            prefix: Some("P_".into()),
            config_map_ref: Some(ConfigMapEnvSource { name: "c".into(), optional: None }),
            secret_ref: None,
        };
        let container = Container {
            env_from: Some(vec![from]),
            env: Some(vec![variable("A", "1"), variable("B", "$(A)$(P_k)"), variable("A", "2")]),
            ..Container::default()
        };
        let contents: Contents =
            [(SourceKey::ConfigMap("ns".into(), "c".into()), [("k".to_string(), b"v".to_vec())].into())]
                .into();
        let expected = [("P_k", "v"), ("A", "2"), ("B", "1v")];
        let expected: Vec<_> =
            expected.iter().map(|(name, value)| (name.to_string(), value.to_string())).collect();
        assert_eq!(resolve(container, &contents), Ok(expected));
    }

    #[test]
    fn missing_sources() {
        let contents: Contents =
            [(SourceKey::Secret("ns".into(), "s".into()), [("k".to_string(), b"v".to_vec())].into())].into();
        let rows = [
            (secret("s", "k", None), Ok(1)),
            (secret("s", "x", None), Err("couldn't find key x in Secret ns/s")),
            (secret("s", "x", Some(true)), Ok(0)),
            (secret("t", "k", None), Err("secret \"t\" not found")),
            (secret("t", "k", Some(true)), Ok(0)),
        ];
        for (variable, expected) in rows {
            let container = Container { env: Some(vec![variable]), ..Container::default() };
            let result = resolve(container, &contents);
            assert_eq!(result.as_ref().map(Vec::len).map_err(String::as_str), expected);
        }
    }

    #[test]
    fn links_of_services() {
        let service = |namespace: &str, name: &str, ip: &str| {
            Arc::new(Service {
                metadata: ObjectMeta {
                    namespace: Some(namespace.into()),
                    name: Some(name.into()),
                    ..ObjectMeta::default()
                },
                spec: Some(ServiceSpec {
                    cluster_ip: Some(ip.into()),
                    ports: Some(vec![ServicePort {
                        port: 443,
                        name: Some("https".into()),
                        ..ServicePort::default()
                    }]),
                    ..ServiceSpec::default()
                }),
                status: None,
            })
        };
        let services = [
            service("default", "kubernetes", "10.96.0.1"),
            service("ns", "my-db", "10.96.0.9"),
            service("ns", "h", "None"),
        ];
        let linked = service_variables(&services, "ns", true);
        assert_eq!(linked.get("KUBERNETES_SERVICE_HOST").map(String::as_str), Some("10.96.0.1"));
        assert_eq!(linked.get("MY_DB_PORT_443_TCP").map(String::as_str), Some("tcp://10.96.0.9:443"));
        assert_eq!(linked.get("MY_DB_SERVICE_PORT_HTTPS").map(String::as_str), Some("443"));
        assert!(!linked.contains_key("H_SERVICE_HOST"));
        let unlinked = service_variables(&services, "ns", false);
        assert!(
            unlinked.contains_key("KUBERNETES_SERVICE_PORT") && !unlinked.contains_key("MY_DB_SERVICE_HOST")
        );
    }
}
