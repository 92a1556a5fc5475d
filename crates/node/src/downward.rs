//! Facts about a pod that its containers may ask for: `fieldRef` in environments and downward API volumes.

use k8s_openapi::api::core::v1::Pod;

/// What the status will say but may not say yet when containers start.
#[derive(Clone, Debug, Default)]
pub(crate) struct PodFacts {
    /// Addresses of the pod, main one first.
    pub(crate) pod_ips: Vec<String>,
    /// Addresses of the node.
    pub(crate) host_ips: Vec<String>,
}

/// The value of a field path, as `pkg/fieldpath` and the kubelet's own status fields give it.
///
/// # Errors
/// A sentence for the user when the path is not one of those that can be asked for.
pub(crate) fn field(pod: &Pod, facts: &PodFacts, path: &str) -> Result<String, String> {
    let meta = &pod.metadata;
    let spec = pod.spec.as_ref();
    if let Some((map, key)) = subscript(path) {
        let map = match map {
            "metadata.labels" => &meta.labels,
            "metadata.annotations" => &meta.annotations,
            _ => return Err(unsupported(path)),
        };
        return Ok(map.as_ref().and_then(|map| map.get(key)).cloned().unwrap_or_default());
    }
    let text = match path {
        "metadata.name" => meta.name.clone(),
        "metadata.namespace" => meta.namespace.clone(),
        "metadata.uid" => meta.uid.clone(),
        "metadata.labels" => Some(listing(meta.labels.iter().flatten())),
        "metadata.annotations" => Some(listing(meta.annotations.iter().flatten())),
        "spec.nodeName" => spec.and_then(|spec| spec.node_name.clone()),
        "spec.serviceAccountName" => spec.and_then(|spec| spec.service_account_name.clone()),
        "spec.restartPolicy" => spec.and_then(|spec| spec.restart_policy.clone()),
        "status.podIP" => facts.pod_ips.first().cloned(),
        "status.podIPs" => Some(facts.pod_ips.join(",")),
        "status.hostIP" => facts.host_ips.first().cloned(),
        "status.hostIPs" => Some(facts.host_ips.join(",")),
        "status.phase" => pod.status.as_ref().and_then(|status| status.phase.clone()),
        _ => return Err(unsupported(path)),
    };
    Ok(text.unwrap_or_default())
}

fn unsupported(path: &str) -> String {
    format!("unsupported fieldPath: {path}")
}

/// `metadata.labels['key']` as map and key.
fn subscript(path: &str) -> Option<(&str, &str)> {
    let (map, rest) = path.split_once('[')?;
    let key = rest.strip_suffix(']')?;
    let quoted = |quote: char| key.strip_prefix(quote).and_then(|key| key.strip_suffix(quote));
    Some((map, quoted('\'').or_else(|| quoted('"'))?))
}

/// One `key="value"` per line, the value quoted as Go quotes it.
fn listing<'a>(map: impl Iterator<Item = (&'a String, &'a String)>) -> String {
    let lines: Vec<String> = map.map(|(key, value)| format!("{key}={}", quote(value))).collect();
    lines.join("\n")
}

fn quote(text: &str) -> String {
    let mut quoted = String::with_capacity(text.len() + 2);
    quoted.push('"');
    for character in text.chars() {
        match character {
            '"' => quoted.push_str("\\\""),
            '\\' => quoted.push_str("\\\\"),
            '\n' => quoted.push_str("\\n"),
            '\r' => quoted.push_str("\\r"),
            '\t' => quoted.push_str("\\t"),
            control if control.is_control() => quoted.push_str(&format!("\\u{:04x}", u32::from(control))),
            other => quoted.push(other),
        }
    }
    quoted.push('"');
    quoted
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

    #[test]
    fn paths() {
        let pod = Pod {
            metadata: ObjectMeta {
                name: Some("web-0".into()),
                labels: Some([("app".to_string(), "web \"x\"".to_string()), ("b".into(), "2".into())].into()),
                ..ObjectMeta::default()
            },
            ..Pod::default()
        };
        let facts = PodFacts { pod_ips: vec!["10.0.0.7".into()], host_ips: vec!["192.0.2.1".into()] };
        let rows = [
            ("metadata.name", Ok("web-0")),
            ("metadata.labels['app']", Ok("web \"x\"")),
            ("metadata.labels['none']", Ok("")),
            ("metadata.labels", Ok("app=\"web \\\"x\\\"\"\nb=\"2\"")),
            ("status.podIP", Ok("10.0.0.7")),
            ("status.hostIP", Ok("192.0.2.1")),
            ("spec.containers", Err("unsupported fieldPath: spec.containers")),
        ];
        for (path, expected) in rows {
            let value = field(&pod, &facts, path);
            assert_eq!(value.as_deref().map_err(String::as_str), expected, "{path}");
        }
    }
}
