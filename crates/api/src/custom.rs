//! From a CustomResourceDefinition to [`Kind`]s: the same rows that built-in kinds have, made at run time.
//!
//! A definition is taken as the API server stores it: complete, defaulted and valid. What the names of several
//! definitions have to do with each other is [`crate::custom::names`]; what a schema says, [`crate::structural`].

pub mod names;

use std::sync::Arc;

use serde_json::Value;

use crate::field::{Errors, Path};
use crate::json_path::JsonPath;
use crate::kind::{Scope, Subresource};
use crate::registry::{Cells, Column, CustomStorage, Kind, PathCell, ScalePaths, Stored, Text};
use crate::schema::{CustomSchema, Schema};
use crate::structural::Structural;

/// The kinds of the served versions of a definition, best version first. `revision`: of the last change of the
/// definition; objects written before may lack defaults of its schemas.
pub fn kinds(definition: &Value, revision: u64) -> Result<Vec<Kind>, Errors> {
    let spec = &definition["spec"];
    let mut versions: Vec<&Value> = spec["versions"].as_array().into_iter().flatten().collect();
    versions.sort_by(|a, b| compare_versions(text(&b["name"]), text(&a["name"])));
    versions
        .into_iter()
        .filter(|version| version["served"] == true)
        .map(|v| kind(spec, v, revision))
        .collect()
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

fn texts(list: &Value) -> Vec<Text> {
    list.as_array().into_iter().flatten().filter_map(|t| Some(Text::from(t.as_str()?.to_owned()))).collect()
}

fn owned(value: &Value) -> Text {
    text(value).to_owned().into()
}

fn kind(spec: &Value, version: &Value, revision: u64) -> Result<Kind, Errors> {
    let (group, name) = (text(&spec["group"]), text(&version["name"]));
    let names = &spec["names"];
    let preserve = spec["preserveUnknownFields"] == true;
    let at = Path::new("spec").child("versions").child("schema").child("openAPIV3Schema");
    let structural = Structural::parse(&version["schema"]["openAPIV3Schema"], preserve, &at)?;
    let storage = spec["versions"].as_array().into_iter().flatten().find(|v| v["storage"] == true);
    let storage = storage.map_or(name, |v| text(&v["name"]));
    let webhook = &spec["conversion"]["webhook"];
    let stored_as = Stored::Custom(Arc::new(CustomStorage {
        api_version: format!("{group}/{storage}"),
        webhook: (spec["conversion"]["strategy"] == "Webhook").then(|| webhook.clone()),
        defaults_since: structural.root().has_defaults().then_some(revision),
    }));
    let (columns, cells) = columns(version);
    let subresources = &version["subresources"];
    let scope = if spec["scope"] == "Namespaced" { Scope::Namespaced } else { Scope::Cluster };
    let schema = Schema::Custom(Arc::new(CustomSchema {
        name: schema_name(group, name, text(&names["kind"])),
        structural,
    }));
    let mut kind = Kind::custom(group, name, text(&names["plural"]), scope, schema);
    kind.kind = owned(&names["kind"]);
    kind.list_kind = owned(&names["listKind"]);
    kind.singular = owned(&names["singular"]);
    kind.short_names = texts(&names["shortNames"]);
    kind.categories = texts(&names["categories"]);
    kind.subresources = [("status", Subresource::Status), ("scale", Subresource::Scale)]
        .into_iter()
        .filter(|(field, _)| !subresources[field].is_null())
        .map(|(_, subresource)| subresource)
        .collect();
    kind.scale = scale_paths(&subresources["scale"]);
    kind.columns = columns;
    kind.cells = cells;
    kind.field_selectors = selectable_fields(version);
    kind.stored_as = stored_as;
    kind.deprecation = (version["deprecated"] == true).then(|| {
        let default = || format!("{} {} is deprecated", kind.api_version(), kind.kind);
        version["deprecationWarning"].as_str().map_or_else(default, str::to_owned)
    });
    Ok(kind)
}

/// Name of the type in published schemas: `com.example.v1.Widget`.
fn schema_name(group: &str, version: &str, kind: &str) -> String {
    let reversed: Vec<&str> = group.split('.').rev().collect();
    format!("{}.{version}.{kind}", reversed.join("."))
}

fn scale_paths(scale: &Value) -> ScalePaths {
    let pointer = |field: &str| pointer_of(text(&scale[field]));
    ScalePaths {
        spec_replicas: pointer("specReplicasPath")
            .unwrap_or_else(|| ScalePaths::SPEC_REPLICAS.to_owned())
            .into(),
        status_replicas: pointer("statusReplicasPath")
            .unwrap_or_else(|| ScalePaths::STATUS_REPLICAS.to_owned())
            .into(),
        selector: pointer("labelSelectorPath").map(Text::from),
    }
}

/// The JSON pointer of a path of plain fields, `.spec.replicas`.
fn pointer_of(path: &str) -> Option<String> {
    let fields = path.strip_prefix('.')?;
    Some(fields.split('.').map(|field| format!("/{}", field.replace('~', "~0").replace('/', "~1"))).collect())
}

fn selectable_fields(version: &Value) -> Vec<(Text, Text)> {
    let fields = version["selectableFields"].as_array().into_iter().flatten();
    fields
        .filter_map(|field| {
            let path = text(&field["jsonPath"]);
            Some((path.trim_start_matches('.').to_owned().into(), pointer_of(path)?.into()))
        })
        .collect()
}

/// The name, the definition's columns, and the age where the definition has no columns of its own.
fn columns(version: &Value) -> (Vec<Column>, Cells) {
    let own = version["additionalPrinterColumns"].as_array().map_or(&[][..], Vec::as_slice);
    let mut columns = vec![Column::from(&crate::kind::Column::name())];
    let mut cells = Vec::new();
    for column in own {
        let Ok(path) = JsonPath::parse(text(&column["jsonPath"])) else { continue };
        columns.push(Column {
            name: owned(&column["name"]),
            type_: owned(&column["type"]),
            format: owned(&column["format"]),
            description: owned(&column["description"]),
            priority: column["priority"].as_i64().and_then(|p| i32::try_from(p).ok()).unwrap_or(0),
        });
        cells.push(PathCell { path, type_: text(&column["type"]).to_owned() });
    }
    if own.is_empty() {
        columns.push(Column::from(&crate::kind::Column::age()));
        if let Ok(path) = JsonPath::parse(".metadata.creationTimestamp") {
            cells.push(PathCell { path, type_: "date".to_owned() });
        }
    }
    (columns, Cells::Paths(cells.into()))
}

/// Kubernetes' order of versions: `v2`, `v1`, `v1beta2`, `v1alpha1`, then everything else by name; greater is better.
pub fn compare_versions(a: &str, b: &str) -> std::cmp::Ordering {
    match (rank(a), rank(b)) {
        (Some(a), Some(b)) => a.cmp(&b),
        (Some(_), None) => std::cmp::Ordering::Greater,
        (None, Some(_)) => std::cmp::Ordering::Less,
        (None, None) => b.cmp(a),
    }
}

/// Stability, major and minor number of `v1`, `v1beta2`.
fn rank(version: &str) -> Option<(u8, u32, u32)> {
    let rest = version.strip_prefix('v')?;
    let digits = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
    let (major, rest) = rest.split_at(digits);
    let major = major.parse().ok()?;
    if rest.is_empty() {
        return Some((2, major, 0));
    }
    let (stability, minor) = match (rest.strip_prefix("beta"), rest.strip_prefix("alpha")) {
        (Some(minor), _) => (1, minor),
        (_, Some(minor)) => (0, minor),
        _ => return None,
    };
    Some((stability, major, minor.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn definition() -> Value {
        json!({
            "metadata": {"name": "widgets.example.com"},
            "spec": {
                "group": "example.com",
                "scope": "Namespaced",
                "names": {
                    "plural": "widgets", "singular": "widget", "kind": "Widget", "listKind": "WidgetList",
                    "shortNames": ["wd"], "categories": ["all"],
                },
                "versions": [
                    {"name": "v1beta1", "served": true, "storage": false, "schema": {"openAPIV3Schema": {"type": "object"}}},
                    {
                        "name": "v1", "served": true, "storage": true,
                        "schema": {"openAPIV3Schema": {"type": "object", "properties": {
                            "spec": {"type": "object", "properties": {
                                "size": {"type": "integer", "default": 3},
                                "color": {"type": "string"},
                            }},
                        }}},
                        "subresources": {"status": {}, "scale": {
                            "specReplicasPath": ".spec.size", "statusReplicasPath": ".status.size",
                            "labelSelectorPath": ".status.selector",
                        }},
                        "additionalPrinterColumns": [{"name": "Size", "type": "integer", "jsonPath": ".spec.size"}],
                        "selectableFields": [{"jsonPath": ".spec.color"}],
                    },
                    {"name": "v2", "served": false, "storage": false, "schema": {"openAPIV3Schema": {"type": "object"}}},
                ],
            },
        })
    }

    #[test]
    fn served_versions_become_kinds() {
        let kinds = kinds(&definition(), 7).expect("valid");
        let versions: Vec<&str> = kinds.iter().map(|kind| &*kind.version).collect();
        assert_eq!(versions, ["v1", "v1beta1"]);
        let kind = &kinds[0];
        assert_eq!((kind.api_version(), kind.resource()), ("example.com/v1", "widgets.example.com"));
        assert_eq!(kind.schema_name(), "com.example.v1.Widget");
        assert_eq!(kind.field_pointer("spec.color"), Some("/spec/color"));
        assert!(kind.has(Subresource::Status) && kind.has(Subresource::Scale));
        assert_eq!(kind.scale.spec_replicas, "/spec/size");
        let object = json!({"metadata": {"name": "a"}, "spec": {"size": 5}});
        assert_eq!(kind.cells(&object, jiff::Timestamp::UNIX_EPOCH), [json!("a"), json!(5)]);
        let Stored::Custom(custom) = &kind.stored_as else { panic!("custom resources are stored as such") };
        assert_eq!((custom.api_version.as_str(), custom.defaults_since), ("example.com/v1", Some(7)));
        let Stored::Custom(custom) = &kinds[1].stored_as else {
            panic!("custom resources are stored as such")
        };
        assert_eq!(custom.defaults_since, None);
    }

    #[test]
    fn versions_are_ordered_as_upstream_does() {
        let mut versions =
            ["foo1", "v1alpha1", "v10", "v2", "v1beta2", "v11beta2", "v3beta1", "foo10", "v12alpha1", "v1"];
        versions.sort_by(|a, b| compare_versions(b, a));
        let expected =
            ["v10", "v2", "v1", "v11beta2", "v3beta1", "v1beta2", "v12alpha1", "v1alpha1", "foo1", "foo10"];
        assert_eq!(versions, expected);
    }
}
