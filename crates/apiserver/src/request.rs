//! What a request asks for, read from its method and address alone.

use std::borrow::Cow;
use std::collections::HashMap;

use http::{Method, Uri};

/// Query parameters; of repeated ones all values in order.
#[derive(Clone, Debug, Default)]
pub(crate) struct Query {
    values: HashMap<String, Vec<String>>,
}

/// More parameters than this are ignored.
const MAX_PARAMETERS: usize = 1000;

impl Query {
    /// Reads the part of an address after `?`.
    pub(crate) fn parse(text: Option<&str>) -> Self {
        let mut values: HashMap<String, Vec<String>> = HashMap::new();
        for pair in text.unwrap_or_default().split('&').filter(|p| !p.is_empty()).take(MAX_PARAMETERS) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            values.entry(decode(name, true).into_owned()).or_default().push(decode(value, true).into_owned());
        }
        Self { values }
    }

    /// First value of a parameter, empty counted as absent.
    pub(crate) fn get(&self, name: &str) -> Option<&str> {
        self.values.get(name)?.first().map(String::as_str).filter(|v| !v.is_empty())
    }

    /// Every value of a parameter.
    pub(crate) fn all(&self, name: &str) -> &[String] {
        self.values.get(name).map_or(&[], Vec::as_slice)
    }

    /// `true`, `1` or the bare name.
    pub(crate) fn flag(&self, name: &str) -> bool {
        self.values
            .get(name)
            .and_then(|v| v.first())
            .is_some_and(|v| matches!(v.as_str(), "" | "1" | "t" | "true" | "True"))
    }
}

/// Percent decoding.
pub(crate) fn percent_decoded(text: &str) -> Cow<'_, str> {
    decode(text, false)
}

/// Percent encoding of all but letters, digits, `-._~` and what is in `kept` (RFC 3986 §2.3).
pub(crate) fn percent_encoded(text: &str, kept: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        let character = char::from(byte);
        if character.is_ascii_alphanumeric() || "-._~".contains(character) || kept.contains(character) {
            out.push(character);
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}

/// Percent decoding; with `form`, `+` is a space.
fn decode(text: &str, form: bool) -> Cow<'_, str> {
    if !text.contains('%') && !(form && text.contains('+')) {
        return Cow::Borrowed(text);
    }
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, after @ ..] = rest {
        rest = after;
        match first {
            b'+' if form => out.push(b' '),
            b'%' => match after.get(..2).and_then(hex_pair) {
                Some(byte) => {
                    out.push(byte);
                    rest = &after[2..];
                }
                None => out.push(b'%'),
            },
            other => out.push(*other),
        }
    }
    Cow::Owned(String::from_utf8_lossy(&out).into_owned())
}

fn hex_pair(digits: &[u8]) -> Option<u8> {
    u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()
}

/// The address of a resource.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct ResourcePath {
    /// Empty for core.
    pub(crate) group: String,
    /// API version.
    pub(crate) version: String,
    /// Plural name.
    pub(crate) resource: String,
    /// Empty for cluster-scoped resources and lists across namespaces.
    pub(crate) namespace: String,
    /// Empty for collections.
    pub(crate) name: String,
    /// Empty for the object itself.
    pub(crate) subresource: String,
    /// What follows a `proxy` subresource, decoded, with the slash at its end if there is one.
    pub(crate) rest: String,
    /// The old `/watch/` prefix was used.
    pub(crate) watch_prefix: bool,
}

/// A request as authorisation and routing see it.
#[derive(Clone, Debug)]
pub(crate) struct RequestInfo {
    /// Kubernetes verb: get, list, watch, create, update, patch, delete, deletecollection; for other paths the method in
    /// lower case.
    pub(crate) verb: &'static str,
    /// Decoded path.
    pub(crate) path: String,
    /// Set when the path is below `/api/VERSION/` or `/apis/GROUP/VERSION/`.
    pub(crate) resource: Option<ResourcePath>,
    /// Query.
    pub(crate) query: Query,
}

impl RequestInfo {
    /// Reads method and address.
    pub(crate) fn parse(method: &Method, uri: &Uri) -> Self {
        let path = uri.path();
        let query = Query::parse(uri.query());
        let segments: Vec<String> =
            path.split('/').filter(|s| !s.is_empty()).map(|s| decode(s, false).into_owned()).collect();
        let mut resource = resource_path(&segments);
        if let Some(resource) = resource.as_mut().filter(|resource| !resource.rest.is_empty())
            && path.ends_with('/')
        {
            resource.rest.push('/');
        }
        let verb = match &resource {
            Some(resource) => resource_verb(method, resource, &query),
            None => plain_verb(method),
        };
        Self { verb, path: decode(path, false).into_owned(), resource, query }
    }
}

fn resource_path(segments: &[String]) -> Option<ResourcePath> {
    let (group, version, mut rest) = match segments {
        [api, version, rest @ ..] if api == "api" => (String::new(), version.clone(), rest),
        [apis, group, version, rest @ ..] if apis == "apis" => (group.clone(), version.clone(), rest),
        _ => return None,
    };
    let mut path = ResourcePath { group, version, ..ResourcePath::default() };
    if let [watch, after @ ..] = rest
        && watch == "watch"
        && !after.is_empty()
    {
        path.watch_prefix = true;
        rest = after;
    }
    // `/namespaces/NAME` and `/namespaces/NAME/status` are about the namespace itself.
    if let [namespaces, namespace, resource, after @ ..] = rest
        && namespaces == "namespaces"
        && !["status", "finalize"].contains(&resource.as_str())
    {
        path.namespace = namespace.clone();
        path.resource = resource.clone();
        rest = after;
    } else {
        let [resource, after @ ..] = rest else { return None };
        path.resource = resource.clone();
        rest = after;
    }
    let mut rest = rest.iter();
    path.name = rest.next().cloned().unwrap_or_default();
    path.subresource = rest.next().cloned().unwrap_or_default();
    path.rest = rest.map(String::as_str).collect::<Vec<_>>().join("/");
    Some(path)
}

fn plain_verb(method: &Method) -> &'static str {
    match *method {
        Method::GET => "get",
        Method::HEAD => "head",
        Method::POST => "post",
        Method::PUT => "put",
        Method::PATCH => "patch",
        Method::DELETE => "delete",
        Method::OPTIONS => "options",
        _ => "other",
    }
}

/// Subresources that open a connection. Whoever may run something must be allowed to `create`, also when the client
/// opens it by GET, as WebSocket clients must (Kubernetes 1.35 and later).
const CONNECT: &[&str] = &["exec", "attach", "portforward"];

fn resource_verb(method: &Method, path: &ResourcePath, query: &Query) -> &'static str {
    if CONNECT.contains(&path.subresource.as_str()) {
        return if matches!(*method, Method::GET | Method::POST) { "create" } else { "other" };
    }
    match *method {
        Method::GET | Method::HEAD => {
            let watching = path.watch_prefix || query.flag("watch") && query.get("watch").is_some();
            if watching && (path.subresource.is_empty()) {
                "watch"
            } else if path.name.is_empty() {
                "list"
            } else {
                "get"
            }
        }
        Method::POST => "create",
        Method::PUT => "update",
        Method::PATCH => "patch",
        Method::DELETE if path.name.is_empty() => "deletecollection",
        Method::DELETE => "delete",
        _ => "other",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(method: Method, uri: &str, verb: &str, expected: Option<(&str, &str, &str, &str, &str, &str)>) {
        let info = RequestInfo::parse(&method, &uri.parse().expect("an address"));
        assert_eq!(info.verb, verb, "{uri}");
        let found = info
            .resource
            .as_ref()
            .map(|r| (&*r.group, &*r.version, &*r.resource, &*r.namespace, &*r.name, &*r.subresource));
        assert_eq!(found, expected, "{uri}");
    }

    #[test]
    fn addresses() {
        check(Method::GET, "/api/v1/pods", "list", Some(("", "v1", "pods", "", "", "")));
        check(Method::GET, "/api/v1/pods?watch=true", "watch", Some(("", "v1", "pods", "", "", "")));
        check(Method::GET, "/api/v1/pods?watch=false", "list", Some(("", "v1", "pods", "", "", "")));
        check(Method::GET, "/api/v1/watch/pods", "watch", Some(("", "v1", "pods", "", "", "")));
        check(Method::GET, "/api/v1/namespaces/a", "get", Some(("", "v1", "namespaces", "", "a", "")));
        check(
            Method::PUT,
            "/api/v1/namespaces/a/finalize",
            "update",
            Some(("", "v1", "namespaces", "", "a", "finalize")),
        );
        check(Method::POST, "/api/v1/namespaces/a/pods", "create", Some(("", "v1", "pods", "a", "", "")));
        check(
            Method::GET,
            "/api/v1/namespaces/a/pods/p/log",
            "get",
            Some(("", "v1", "pods", "a", "p", "log")),
        );
        check(
            Method::PATCH,
            "/apis/apps/v1/namespaces/a/deployments/d/status",
            "patch",
            Some(("apps", "v1", "deployments", "a", "d", "status")),
        );
        check(
            Method::DELETE,
            "/apis/apps/v1/namespaces/a/deployments",
            "deletecollection",
            Some(("apps", "v1", "deployments", "a", "", "")),
        );
        check(
            Method::GET,
            "/api/v1/namespaces/a/pods/p/exec",
            "create",
            Some(("", "v1", "pods", "a", "p", "exec")),
        );
        check(Method::GET, "/version", "get", None);
        check(Method::GET, "/api", "get", None);
        check(Method::GET, "/apis/apps/v1", "get", None);
        check(
            Method::GET,
            "/api/v1/namespaces/a%2Fb/pods/p%20q",
            "get",
            Some(("", "v1", "pods", "a/b", "p q", "")),
        );
    }

    #[test]
    fn queries() {
        let query = Query::parse(Some("a=1&b=x%20y+z&c&a=2&d=%zz"));
        assert_eq!((query.get("a"), query.get("b"), query.get("d")), (Some("1"), Some("x y z"), Some("%zz")));
        assert_eq!(query.all("a"), ["1", "2"]);
        assert!(query.flag("c") && !query.flag("x"));
    }
}
