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
    /// What follows `proxy/`, decoded.
    pub(crate) rest: String,
}

/// What a path may hold as it is, beside letters, digits and `-._~` (RFC 3986 §3.3).
const IN_PATHS: &str = "/!$&'()*+,;=:@";

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

    /// What a request through `proxy` asks of the other side.
    pub(crate) fn target(&self) -> String {
        format!("/{}{}", percent_encoded(&self.rest, IN_PATHS), self.query)
    }

    /// As admission wants it: `document` is what it made of the client's options.
    pub(crate) fn changed(&self, subresource: Subresource, document: &Value) -> Result<Self, String> {
        let options = Options::deserialize(document).map_err(|error| error.to_string())?;
        if subresource == Subresource::Proxy {
            let path = options.path.unwrap_or_default();
            return Ok(Self { rest: path.trim_start_matches('/').to_owned(), ..self.clone() });
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
    use crate::request::RequestInfo;
    use sampan_api::registry::Registry;

    #[test]
    fn options_come_from_the_address_and_go_back() {
        let registry = Registry::built_in();
        let pods = registry.find("", "v1", "pods").expect("pods");
        let path = |path: &str| json!({"kind": "PodProxyOptions", "path": path});
        // Part, the rest of the address, the document, what is asked of the other side when it is read back.
        let rows = [
            (
                Subresource::Exec,
                "?command=ls&command=a+b%26c&stdout=1&tty=false&other=x",
                json!({"kind": "PodExecOptions", "command": ["ls", "a b&c"], "stdout": true}),
                "/?stdout=true&command=ls&command=a%20b%26c",
            ),
            (
                Subresource::Attach,
                "?container=c&stdin=true",
                json!({"kind": "PodAttachOptions", "container": "c", "stdin": true}),
                "/?stdin=true&container=c",
            ),
            (
                Subresource::PortForward,
                "?ports=80,81&ports=82&ports=x",
                json!({"kind": "PodPortForwardOptions", "ports": [80, 81, 82]}),
                "/?ports=80&ports=81&ports=82",
            ),
            (Subresource::PortForward, "", json!({"kind": "PodPortForwardOptions", "ports": []}), "/"),
            (Subresource::Proxy, "", path("/"), "/"),
            (Subresource::Proxy, "/?q", path("/"), "/?q"),
            (Subresource::Proxy, "/a/b?q=1", path("/a/b"), "/a/b?q=1"),
            // Slashes at the end are kept, and what is escaped stays a part of the path.
            (Subresource::Proxy, "/static/", path("/static/"), "/static/"),
            (Subresource::Proxy, "/a%3Fq=1", path("/a?q=1"), "/a%3Fq=1"),
            (Subresource::Proxy, "/a%3Fq=1/?q=2%23", path("/a?q=1/"), "/a%3Fq=1/?q=2%23"),
            (Subresource::Proxy, "/a%20b/%25%0d%0ac%23", path("/a b/%\r\nc#"), "/a%20b/%25%0D%0Ac%23"),
            (Subresource::Proxy, "/%C3%A4/x:y@(1)", path("/ä/x:y@(1)"), "/%C3%A4/x:y@(1)"),
        ];
        for (subresource, text, mut expected, target) in rows {
            let address = format!("/api/v1/namespaces/n/pods/p/{}{text}", subresource.as_str());
            let uri: http::Uri = address.parse().expect("an address");
            let info = RequestInfo::parse(&http::Method::GET, &uri);
            let rest = info.resource.expect("a resource").rest;
            let found = options(&info.query, &rest, pods, subresource);
            expected["apiVersion"] = "v1".into();
            assert_eq!(found, expected, "{text}");
            let asked = Connect::of_request(uri.query(), &info.query, &rest);
            assert_eq!(asked.query, uri.query().map(|query| format!("?{query}")).unwrap_or_default());
            if subresource == Subresource::Proxy {
                assert_eq!(asked.target(), target, "{text}");
            }
            let changed = asked.changed(subresource, &found).expect("options");
            assert_eq!(changed.target(), target, "{text}");
        }
    }

    #[test]
    fn changed_options_are_obeyed_or_refused() {
        let asked = Connect::of_request(None, &Query::parse(None), "");
        let proxied = asked.changed(Subresource::Proxy, &json!({"path": "/x y?z"})).expect("options");
        assert_eq!(proxied.target(), "/x%20y%3Fz");
        let named = asked.changed(Subresource::Exec, &json!({"container": "d", "command": null}));
        assert_eq!(named.expect("options").container.as_deref(), Some("d"));
        for wrong in [json!({"command": "ls"}), json!({"stdin": "true"}), json!({"ports": [70000]}), json!(1)]
        {
            assert!(asked.changed(Subresource::Exec, &wrong).is_err(), "{wrong}");
        }
    }
}
