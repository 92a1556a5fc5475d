//! `/etc/resolv.conf` of a pod by its `dnsPolicy` and `dnsConfig`.

use std::net::Ipv4Addr;

use k8s_openapi::api::core::v1::{PodDNSConfig, PodSpec};

/// The parts of a `resolv.conf`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Resolver {
    pub(crate) nameservers: Vec<String>,
    pub(crate) searches: Vec<String>,
    pub(crate) options: Vec<String>,
}

/// Where the cluster's names are served.
pub(crate) struct ClusterDns<'a> {
    pub(crate) address: Ipv4Addr,
    pub(crate) domain: &'a str,
}

/// What a pod resolves names with. `host` is the node's own file, already parsed.
pub(crate) fn resolver(
    spec: &PodSpec,
    namespace: &str,
    cluster: &ClusterDns<'_>,
    host: &Resolver,
) -> Resolver {
    let host_network = spec.host_network == Some(true);
    let mut resolver = match spec.dns_policy.as_deref().unwrap_or("ClusterFirst") {
        "None" => Resolver::default(),
        "Default" => host.clone(),
        "ClusterFirst" if host_network => host.clone(),
        // ClusterFirst and ClusterFirstWithHostNet.
        _ => cluster_resolver(namespace, cluster, host),
    };
    if let Some(config) = &spec.dns_config {
        apply(&mut resolver, config);
    }
    resolver
}

fn cluster_resolver(namespace: &str, cluster: &ClusterDns<'_>, host: &Resolver) -> Resolver {
    let domain = cluster.domain;
    let mut searches = vec![format!("{namespace}.svc.{domain}"), format!("svc.{domain}"), domain.to_string()];
    searches.extend(host.searches.iter().cloned());
    Resolver {
        nameservers: vec![cluster.address.to_string()],
        searches: unique(searches),
        options: vec!["ndots:5".into()],
    }
}

fn apply(resolver: &mut Resolver, config: &PodDNSConfig) {
    resolver.nameservers.extend(config.nameservers.iter().flatten().cloned());
    resolver.searches.extend(config.searches.iter().flatten().cloned());
    resolver.nameservers = unique(std::mem::take(&mut resolver.nameservers));
    resolver.searches = unique(std::mem::take(&mut resolver.searches));
    for option in config.options.iter().flatten() {
        let Some(name) = option.name.as_deref() else { continue };
        // The pod's value replaces the policy's.
        resolver.options.retain(|known| known.split(':').next() != Some(name));
        resolver.options.push(match option.value.as_deref() {
            Some(value) if !value.is_empty() => format!("{name}:{value}"),
            _ => name.to_string(),
        });
    }
}

fn unique(list: Vec<String>) -> Vec<String> {
    let mut seen = std::collections::BTreeSet::new();
    list.into_iter().filter(|entry| seen.insert(entry.clone())).collect()
}

impl Resolver {
    /// Reads a `resolv.conf`; lines that are not understood are left out.
    pub(crate) fn parse(text: &str) -> Self {
        let mut resolver = Self::default();
        for line in text.lines() {
            let mut words = line.split_whitespace();
            match words.next() {
                Some("nameserver") => resolver.nameservers.extend(words.next().map(str::to_string)),
                Some("search") => resolver.searches = words.map(str::to_string).collect(),
                Some("options") => resolver.options = words.map(str::to_string).collect(),
                _ => {}
            }
        }
        resolver
    }

    /// The file.
    pub(crate) fn to_file(&self) -> String {
        let mut text = String::new();
        if !self.searches.is_empty() {
            text.push_str(&format!("search {}\n", self.searches.join(" ")));
        }
        for nameserver in &self.nameservers {
            text.push_str(&format!("nameserver {nameserver}\n"));
        }
        if !self.options.is_empty() {
            text.push_str(&format!("options {}\n", self.options.join(" ")));
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::core::v1::PodDNSConfigOption;

    fn file(spec: PodSpec) -> String {
        let cluster = ClusterDns { address: Ipv4Addr::new(10, 0, 0, 1), domain: "cluster.local" };
        let host = Resolver::parse("nameserver 192.0.2.53\nsearch example.org\noptions timeout:1\n");
        resolver(&spec, "ns", &cluster, &host).to_file()
    }

    #[test]
    fn policies() {
        let cluster = "search ns.svc.cluster.local svc.cluster.local cluster.local example.org\n\
                       nameserver 10.0.0.1\noptions ndots:5\n";
        let host = "search example.org\nnameserver 192.0.2.53\noptions timeout:1\n";
        let rows = [
            (None, false, cluster),
            (Some("ClusterFirst"), false, cluster),
            (Some("ClusterFirst"), true, host),
            (Some("ClusterFirstWithHostNet"), true, cluster),
            (Some("Default"), false, host),
            (Some("None"), false, ""),
        ];
        for (policy, host_network, expected) in rows {
            let spec = PodSpec {
                dns_policy: policy.map(Into::into),
                host_network: Some(host_network),
                ..PodSpec::default()
            };
            assert_eq!(file(spec), expected, "{policy:?}");
        }
    }

    #[test]
    fn the_pods_own_configuration_is_added() {
        let option = |name: &str, value: Option<&str>| PodDNSConfigOption {
            name: Some(name.into()),
            value: value.map(Into::into),
        };
        let spec = PodSpec {
            dns_policy: Some("None".into()),
            dns_config: Some(PodDNSConfig {
                nameservers: Some(vec!["1.1.1.1".into(), "1.1.1.1".into()]),
                searches: Some(vec!["a.b".into()]),
                options: Some(vec![option("ndots", Some("2")), option("edns0", None)]),
            }),
            ..PodSpec::default()
        };
        assert_eq!(file(spec), "search a.b\nnameserver 1.1.1.1\noptions ndots:2 edns0\n");
    }
}
