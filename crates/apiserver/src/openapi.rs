//! OpenAPI documents, computed from the table of types when somebody asks and forgotten afterwards.
//!
//! kubectl reads version 3 for `explain` and to learn which options a verb takes; version 2 is for older clients. A
//! document is written piece by piece into one buffer: as a tree of values it would take ten times its size. Clients keep
//! documents by their hash, and the hash is one of what a document is made from, so that nothing is made, or kept, to
//! tell a client that it has it already.

use std::fmt::Write as _;

use http::header::{ACCEPT, CACHE_CONTROL, EXPIRES, HeaderMap, HeaderValue, LOCATION};
use http::{Response, StatusCode};
use sampan_api::registry::{Kind, Registry};
use sampan_api::schema::Schema;
use serde_json::{Map, Value, json};

use self::descriptions::Descriptions;
use self::schemas::Schemas;
use crate::error::ApiError;
use crate::request::Query;
use crate::respond::{self, ApiResponse};
use crate::server::ApiServer;

mod descriptions;
mod gnostic;
mod operations;
mod schemas;

/// Where schemas stand in a document.
#[derive(Clone, Copy)]
enum Dialect {
    V2,
    V3,
}

impl Dialect {
    fn reference(self, name: &str) -> Value {
        match self {
            Self::V2 => json!({"$ref": format!("#/definitions/{name}")}),
            // A reference beside other keys must be wrapped in version 3.0.
            Self::V3 => json!({"allOf": [{"$ref": format!("#/components/schemas/{name}")}]}),
        }
    }
}

/// `/openapi/v2`. `build` tells this program from others of the same version.
pub(crate) fn v2(registry: &Registry, build: &str, headers: &HeaderMap) -> ApiResponse {
    let accept = headers.get(ACCEPT).and_then(|v| v.to_str().ok()).unwrap_or("*/*");
    let protobuf = accept.contains(gnostic::MEDIA_TYPE);
    if !protobuf && !accept.contains("json") && !accept.contains("*/*") {
        let error =
            ApiError::new(StatusCode::NOT_ACCEPTABLE, "NotAcceptable", "only application/json is served");
        return respond::error(&error);
    }
    let kinds: Vec<&Kind> = registry.kinds().iter().map(|k| &**k).collect();
    let hash = fingerprint(build, if protobuf { "v2.protobuf" } else { "v2" }, &kinds);
    respond::unless_known(headers, &hash, || {
        if protobuf {
            gnostic::answer(&kinds)
        } else {
            respond::json_bytes(StatusCode::OK, document(&kinds, Dialect::V2))
        }
    })
}

/// `/openapi/v3` and below.
pub(crate) fn v3(
    server: &ApiServer,
    rest: &[&str],
    headers: &HeaderMap,
    query: &Query,
) -> Result<ApiResponse, ApiError> {
    let (registry, build) = (&*server.registry(), server.config.build.as_str());
    let (group, version) = match rest {
        [] => {
            let mut index = index(registry, build);
            // Their documents are passed through, and nobody here knows when they change.
            for (group, version) in server.aggregator.answered(registry) {
                let path = format!("apis/{group}/{version}");
                index["paths"][&path] = json!({"serverRelativeURL": format!("/openapi/v3/{path}")});
            }
            return Ok(respond::json_value(StatusCode::OK, &index));
        }
        ["api", version] => ("", *version),
        ["apis", group, version] => (*group, *version),
        _ => return Err(ApiError::no_such_path()),
    };
    let kinds: Vec<&Kind> = registry.of_version(group, version).map(|k| &**k).collect();
    if kinds.is_empty() {
        return Err(ApiError::no_such_path());
    }
    let hash = fingerprint(build, "v3", &kinds);
    let asked = query.get("hash");
    if asked.is_some_and(|asked| asked != hash) {
        return Ok(moved(&address(group, version, &hash)));
    }
    let mut response = respond::unless_known(headers, &hash, || {
        respond::json_bytes(StatusCode::OK, document(&kinds, Dialect::V3))
    });
    if asked.is_some() {
        keep_forever(response.headers_mut());
    }
    Ok(response)
}

fn index(registry: &Registry, build: &str) -> Value {
    let mut paths = Map::new();
    for group in registry.groups() {
        for version in &group.versions {
            let kinds: Vec<&Kind> = registry.of_version(&group.name, version).map(|k| &**k).collect();
            let url = address(&group.name, version, &fingerprint(build, "v3", &kinds));
            let path = url.trim_start_matches("/openapi/v3/").split('?').next().unwrap_or_default();
            paths.insert(path.to_owned(), json!({"serverRelativeURL": url}));
        }
    }
    json!({"paths": paths})
}

fn address(group: &str, version: &str, hash: &str) -> String {
    if group.is_empty() {
        format!("/openapi/v3/api/{version}?hash={hash}")
    } else {
        format!("/openapi/v3/apis/{group}/{version}?hash={hash}")
    }
}

/// The document with this hash is no more; there is another.
fn moved(to: &str) -> ApiResponse {
    let mut response = Response::new(respond::full(""));
    *response.status_mut() = StatusCode::MOVED_PERMANENTLY;
    if let Ok(to) = HeaderValue::from_str(to) {
        response.headers_mut().insert(LOCATION, to);
    }
    response
}

/// What is asked for by its hash never changes.
fn keep_forever(headers: &mut HeaderMap) {
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("public, immutable"));
    let year = jiff::SignedDuration::from_hours(365 * 24);
    let until = jiff::Timestamp::now().saturating_add(year).unwrap_or(jiff::Timestamp::MAX);
    if let Ok(until) = HeaderValue::from_str(&until.strftime("%a, %d %b %Y %H:%M:%S GMT").to_string()) {
        headers.insert(EXPIRES, until);
    }
}

/// A hash of everything a document is made from. Schemas of built-in kinds change with the program only, those of
/// custom resources with their definitions.
fn fingerprint(build: &str, form: &str, kinds: &[&Kind]) -> String {
    let mut facts =
        format!("{form}\n{build}\n{}\n{}\n", sampan_api::schema::version(), env!("CARGO_PKG_VERSION"));
    for kind in kinds {
        let subresources: Vec<&str> = kind.subresources.iter().map(|s| s.as_str()).collect();
        let _ = writeln!(
            facts,
            "{}\t{}\t{}\t{}\t{}\t{}\t{}",
            kind.api_version(),
            kind.kind,
            kind.plural,
            kind.schema_name(),
            kind.namespaced(),
            kind.stored(),
            subresources.join(","),
        );
        if let Schema::Custom(custom) = &kind.schema {
            let _ = writeln!(facts, "{}", custom.structural.source());
        }
    }
    respond::hash(facts.as_bytes())
}

fn gvk(kind: &Kind) -> Value {
    json!({"group": kind.group, "version": kind.version, "kind": kind.kind})
}

/// The JSON document of some kinds.
fn document(kinds: &[&Kind], dialect: Dialect) -> Vec<u8> {
    let descriptions = Descriptions::unpack();
    let (version, schemas, end) = match dialect {
        Dialect::V2 => ("\"swagger\":\"2.0\"", "\"definitions\":", "}"),
        Dialect::V3 => ("\"openapi\":\"3.0.0\"", "\"components\":{\"schemas\":", "}}"),
    };
    let info = json!({"title": "Kubernetes", "version": sampan_api::schema::version()});
    let mut out = Vec::with_capacity(1 << 20);
    out.extend_from_slice(format!("{{{version},\"info\":{info},\"paths\":").as_bytes());
    write_object(&mut out, kinds.iter().flat_map(|kind| operations::paths(kind, dialect)));
    out.push(b',');
    out.extend_from_slice(schemas.as_bytes());
    write_object(&mut out, Schemas::new(kinds, dialect, &descriptions));
    out.extend_from_slice(end.as_bytes());
    out
}

fn write_object(out: &mut Vec<u8>, entries: impl Iterator<Item = (String, Value)>) {
    out.push(b'{');
    for (i, (key, value)) in entries.enumerate() {
        if i > 0 {
            out.push(b',');
        }
        // Writing JSON values into memory has no way to fail.
        let _ = serde_json::to_writer(&mut *out, &key);
        out.push(b':');
        let _ = serde_json::to_writer(&mut *out, &value);
    }
    out.push(b'}');
}
