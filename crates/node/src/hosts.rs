//! Names of a pod: host name, fully qualified name, and the `/etc/hosts` file the node keeps for its containers.

use k8s_openapi::api::core::v1::{HostAlias, Pod};

/// The kernel's limit on a host name (`HOST_NAME_MAX`); upstream cuts longer pod names to it.
const HOST_NAME_MAX: usize = 63;

/// What a pod is called inside.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct PodNames {
    /// What `hostname` prints.
    pub(crate) hostname: String,
    /// `host.subdomain.namespace.svc.domain`, when the pod has a subdomain.
    pub(crate) fqdn: Option<String>,
}

/// Names of a pod by `hostname`, `subdomain`, `setHostnameAsFQDN` and `hostnameOverride`.
///
/// # Errors
/// When the full name is asked for as host name but does not fit into the kernel's limit.
pub(crate) fn names(pod: &Pod, node_name: &str, cluster_domain: &str) -> Result<PodNames, String> {
    let meta_name = pod.metadata.name.as_deref().unwrap_or_default();
    let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
    let Some(spec) = &pod.spec else { return Ok(PodNames { hostname: meta_name.to_string(), fqdn: None }) };
    if let Some(name) = spec.hostname_override.as_deref().filter(|name| !name.is_empty()) {
        return Ok(PodNames { hostname: name.to_string(), fqdn: None });
    }
    if spec.host_network == Some(true) {
        return Ok(PodNames { hostname: node_name.to_string(), fqdn: None });
    }
    let short = match spec.hostname.as_deref().filter(|name| !name.is_empty()) {
        Some(name) => name.to_string(),
        None => truncated(meta_name),
    };
    let subdomain = spec.subdomain.as_deref().filter(|name| !name.is_empty());
    let fqdn = subdomain.map(|subdomain| format!("{short}.{subdomain}.{namespace}.svc.{cluster_domain}"));
    match &fqdn {
        Some(full) if spec.set_hostname_as_fqdn == Some(true) => {
            if full.len() > HOST_NAME_MAX + 1 {
                return Err(format!(
                    "failed to construct FQDN from pod hostname and cluster domain, FQDN {full} is too long (64 characters is the max, {} characters requested)",
                    full.len()
                ));
            }
            Ok(PodNames { hostname: full.clone(), fqdn })
        }
        _ => Ok(PodNames { hostname: short, fqdn }),
    }
}

fn truncated(name: &str) -> String {
    if name.len() <= HOST_NAME_MAX {
        return name.to_string();
    }
    // Object names are ASCII, so that any byte is a border.
    name.get(..HOST_NAME_MAX).unwrap_or(name).trim_end_matches(['-', '.']).to_string()
}

/// Content of `/etc/hosts` for a pod with its own network.
pub(crate) fn hosts_file(pod_ips: &[String], names: &PodNames, aliases: &[HostAlias]) -> String {
    let mut text = String::from(
        "# Kubernetes-managed hosts file.\n\
         127.0.0.1\tlocalhost\n\
         ::1\tlocalhost ip6-localhost ip6-loopback\n\
         fe00::0\tip6-localnet\n\
         fe00::0\tip6-mcastprefix\n\
         fe00::1\tip6-allnodes\n\
         fe00::2\tip6-allrouters\n",
    );
    let short = names.hostname.split('.').next().unwrap_or(&names.hostname);
    for ip in pod_ips {
        match &names.fqdn {
            Some(fqdn) => text.push_str(&format!("{ip}\t{fqdn}\t{short}\n")),
            None => text.push_str(&format!("{ip}\t{}\n", names.hostname)),
        }
    }
    text.push_str(&alias_lines(aliases));
    text
}

/// Content of `/etc/hosts` for a pod on the node's network: the node's own file and the pod's aliases.
pub(crate) fn hosts_file_of_host(host_file: &str, aliases: &[HostAlias]) -> String {
    format!("# Kubernetes-managed hosts file (host network).\n{host_file}{}", alias_lines(aliases))
}

fn alias_lines(aliases: &[HostAlias]) -> String {
    if aliases.is_empty() {
        return String::new();
    }
    let mut text = String::from("\n# Entries added by HostAliases.\n");
    for alias in aliases {
        text.push_str(&format!(
            "{}\t{}\n",
            alias.ip,
            alias.hostnames.as_deref().unwrap_or_default().join("\t")
        ));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::core::v1::PodSpec;
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

    fn pod(spec: PodSpec) -> Pod {
        Pod {
            metadata: ObjectMeta {
                name: Some("web".into()),
                namespace: Some("ns".into()),
                ..ObjectMeta::default()
            },
            spec: Some(spec),
            status: None,
        }
    }

    #[test]
    fn names_follow_the_spec() {
        let rows = [
            (PodSpec::default(), "web", None),
            (PodSpec { hostname: Some("h".into()), ..PodSpec::default() }, "h", None),
            (
                PodSpec { subdomain: Some("sub".into()), ..PodSpec::default() },
                "web",
                Some("web.sub.ns.svc.cluster.local"),
            ),
            (
                PodSpec {
                    subdomain: Some("sub".into()),
                    set_hostname_as_fqdn: Some(true),
                    ..PodSpec::default()
                },
                "web.sub.ns.svc.cluster.local",
                Some("web.sub.ns.svc.cluster.local"),
            ),
            (PodSpec { host_network: Some(true), ..PodSpec::default() }, "node", None),
        ];
        for (spec, hostname, fqdn) in rows {
            let expected = PodNames { hostname: hostname.into(), fqdn: fqdn.map(Into::into) };
            assert_eq!(names(&pod(spec), "node", "cluster.local"), Ok(expected));
        }
        let long = PodSpec {
            subdomain: Some("s".repeat(60)),
            set_hostname_as_fqdn: Some(true),
            ..PodSpec::default()
        };
        assert!(names(&pod(long), "node", "cluster.local").is_err());
    }

    #[test]
    fn hosts_file_has_pod_and_aliases() {
        let names = PodNames { hostname: "web".into(), fqdn: Some("web.sub.ns.svc.c".into()) };
        let alias = HostAlias { ip: "10.1.1.1".into(), hostnames: Some(vec!["a".into(), "b".into()]) };
        let text = hosts_file(&["10.0.0.7".into()], &names, &[alias]);
        assert!(text.contains("10.0.0.7\tweb.sub.ns.svc.c\tweb\n"), "{text}");
        assert!(text.ends_with("10.1.1.1\ta\tb\n"), "{text}");
    }
}
