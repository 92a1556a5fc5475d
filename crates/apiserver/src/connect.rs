//! What a client asks of a stream to a pod, a service or a node: `PodExecOptions` and its siblings.
//!
//! They come in the address; admission sees them as a document and may change them, and what it made of them goes on in
//! the address for the node. What nobody changed goes on as it came.
//!
//! Source: `PodExecOptions` and the conversions of `url.Values` in `k8s.io/api/core/v1`.

use sampan_api::kind::Subresource;
use sampan_api::registry::Kind;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::discovery::subresource_facts;
use crate::request::{Query, percent_encoded};

/// Where a stream leads and how it is asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Connect {
    /// The part of the address after `?`, with it; empty when there is none.
    pub(crate) query: String,
    pub(crate) container: Option<String>,
    /// What follows `proxy/`.
    pub(crate) rest: String,
}

/// Options as documents have them; null is as good as missing.
#[derive(Deserialize)]
struct Options {
    stdin: Option<bool>,
    stdout: Option<bool>,
    stderr: Option<bool>,
    tty: Option<bool>,
    container: Option<String>,
    command: Option<Vec<String>>,
    ports: Option<Vec<u16>>,
    path: Option<String>,
}

impl Connect {
    /// As the client asks.
    pub(crate) fn of_request(query_text: Option<&str>, query: &Query, rest: &str) -> Self {
        Self {
            query: query_text.map(|text| format!("?{text}")).unwrap_or_default(),
            container: query.get("container").map(str::to_owned),
            rest: rest.to_owned(),
        }
    }

    /// As admission wants it: `document` is what it made of the client's options.
    pub(crate) fn changed(&self, subresource: Subresource, document: &Value) -> Result<Self, String> {
        let options = Options::deserialize(document).map_err(|error| error.to_string())?;
        if subresource == Subresource::Proxy {
            let path = options.path.unwrap_or_default();
            let rest = percent_encoded(path.trim_start_matches('/'), "/");
            return Ok(Self { rest, ..self.clone() });
        }
        let mut query: Vec<String> = Vec::new();
        let flags = [
            ("stdin", options.stdin),
            ("stdout", options.stdout),
            ("stderr", options.stderr),
            ("tty", options.tty),
        ];
        query.extend(
            flags.iter().filter(|(_, set)| *set == Some(true)).map(|(name, _)| format!("{name}=true")),
        );
        let container = options.container.filter(|name| !name.is_empty());
        query.extend(container.iter().map(|name| format!("container={}", percent_encoded(name, ""))));
        let words = options.command.unwrap_or_default();
        query.extend(words.iter().map(|word| format!("command={}", percent_encoded(word, ""))));
        query.extend(options.ports.unwrap_or_default().iter().map(|port| format!("ports={port}")));
        let query = if query.is_empty() { String::new() } else { format!("?{}", query.join("&")) };
        Ok(Self { query, container, rest: self.rest.clone() })
    }
}

/// The document admission sees.
pub(crate) fn options(query: &Query, rest: &str, kind: &Kind, subresource: Subresource) -> Value {
    let (_, (_, version, name)) = subresource_facts(kind, subresource);
    let mut options = json!({"apiVersion": version, "kind": name});
    match subresource {
        Subresource::Exec | Subresource::Attach => {
            for flag in ["stdin", "stdout", "stderr", "tty"].into_iter().filter(|flag| query.flag(flag)) {
                options[flag] = true.into();
            }
            if let Some(container) = query.get("container") {
                options["container"] = container.into();
            }
            if !query.all("command").is_empty() {
                options["command"] = json!(query.all("command"));
            }
        }
        Subresource::PortForward => {
            let ports = query.all("ports").iter().flat_map(|text| text.split(','));
            let ports: Vec<u16> = ports.filter_map(|port| port.parse().ok()).collect();
            options["ports"] = json!(ports);
        }
        _ => options["path"] = format!("/{rest}").into(),
    }
    options
}

#[cfg(test)]
mod tests {
    use super::*;
    use sampan_api::registry::Registry;

    #[test]
    fn options_come_from_the_address_and_go_back() {
        let registry = Registry::built_in();
        let pods = registry.find("", "v1", "pods").expect("pods");
        let rows = [
            (
                Subresource::Exec,
                "command=ls&command=a+b%26c&stdout=1&tty=false&other=x",
                json!({"kind": "PodExecOptions", "command": ["ls", "a b&c"], "stdout": true}),
                "?stdout=true&command=ls&command=a%20b%26c",
            ),
            (
                Subresource::Attach,
                "container=c&stdin=true",
                json!({"kind": "PodAttachOptions", "container": "c", "stdin": true}),
                "?stdin=true&container=c",
            ),
            (
                Subresource::PortForward,
                "ports=80,81&ports=82&ports=x",
                json!({"kind": "PodPortForwardOptions", "ports": [80, 81, 82]}),
                "?ports=80&ports=81&ports=82",
            ),
            (Subresource::PortForward, "", json!({"kind": "PodPortForwardOptions", "ports": []}), ""),
            (Subresource::Proxy, "q=1", json!({"kind": "PodProxyOptions", "path": "/a/b"}), "?q=1"),
        ];
        for (subresource, text, mut expected, query) in rows {
            let parsed = Query::parse(Some(text));
            let found = options(&parsed, "a/b", pods, subresource);
            expected["apiVersion"] = "v1".into();
            assert_eq!(found, expected);
            let asked = Connect::of_request(Some(text), &parsed, "a/b");
            assert_eq!(asked.query, format!("?{text}"));
            let changed = asked.changed(subresource, &found).expect("options");
            assert_eq!((changed.query.as_str(), changed.rest.as_str()), (query, "a/b"), "{text}");
        }
    }

    #[test]
    fn changed_options_are_obeyed_or_refused() {
        let asked = Connect::of_request(None, &Query::parse(None), "");
        let proxied = asked.changed(Subresource::Proxy, &json!({"path": "/x y?z"})).expect("options");
        assert_eq!(proxied.rest, "x%20y%3Fz");
        let named = asked.changed(Subresource::Exec, &json!({"container": "d", "command": null}));
        assert_eq!(named.expect("options").container.as_deref(), Some("d"));
        for wrong in [json!({"command": "ls"}), json!({"stdin": "true"}), json!({"ports": [70000]}), json!(1)]
        {
            assert!(asked.changed(Subresource::Exec, &wrong).is_err(), "{wrong}");
        }
    }
}
