//! CustomResourceDefinitions: kinds made by users.
//!
//! What a definition says about the objects of its kind is read by [`Structural`]; here are the rules for the definition
//! itself: its names, its versions, and how they are converted and shown. Whether two definitions claim the same name
//! is not told here: that takes a look at all of them.
//!
//! Source: `k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/validation/validation.go`.

use std::collections::BTreeSet;

use jiff::Timestamp;
use serde_json::{Value, json};

use super::json::{default_field, is_true, list, list_mut, set, text};
use super::rules::{self, NameCheck};
use crate::field::{Errors, Path};
use crate::json_path::JsonPath;
use crate::kind::{Column, Row, STATUS_METADATA, Scope, Strategy, Subresource};
use crate::names;
use crate::structural::{Node, Structural};

/// CustomResourceDefinitions.
pub static CUSTOM_RESOURCE_DEFINITION: Row = Row {
    group: "apiextensions.k8s.io",
    kind: "CustomResourceDefinition",
    plural: "customresourcedefinitions",
    singular: "customresourcedefinition",
    short_names: &["crd", "crds"],
    categories: &["api-extensions"],
    scope: Scope::Cluster,
    subresources: &[Subresource::Status],
    status_keeps: STATUS_METADATA,
    schema: "io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.CustomResourceDefinition",
    columns: &[Column::name(), Column::new("Created At", "When the definition was created.").of_type("date")],
    table_row,
    generation: true,
    strategy: Strategy {
        default,
        prepare_create,
        prepare_update,
        validate,
        validate_update,
        validate_status: |new, _| validate_stored_versions(new),
        ..Strategy::PLAIN
    },
    ..Row::PLAIN
};

/// Removed by the server when no object of the kind is left.
pub const CLEANUP_FINALIZER: &str = "customresourcecleanup.apiextensions.k8s.io";

/// Groups that belong to Kubernetes need a sign that their definition was reviewed.
const APPROVED: &str = "api-approved.kubernetes.io";
/// Versions of a definition: each brings a schema that is held in memory.
const MAX_VERSIONS: usize = 64;
/// Selectable fields of a version, as upstream.
const MAX_SELECTABLE_FIELDS: usize = 8;

fn default(definition: &mut Value) {
    let Some(spec) = definition.get_mut("spec").filter(|spec| spec.is_object()) else { return };
    if let Some(names) = spec.get_mut("names").filter(|names| names.is_object()) {
        let kind = text(&names["kind"]).to_owned();
        if !kind.is_empty() {
            default_text(names, "singular", kind.to_lowercase());
            default_text(names, "listKind", format!("{kind}List"));
        }
    }
    default_field(spec, "conversion", json!({"strategy": "None"}));
    if let Some(service) = spec.pointer_mut("/conversion/webhook/clientConfig/service") {
        default_field(service, "port", 443);
    }
    list_mut(spec, "/versions").filter(|version| version.is_object()).for_each(|version| {
        // Fields without a pointer upstream: there they are `false` rather than absent.
        default_field(version, "served", false);
        default_field(version, "storage", false);
    });
    store_version(definition);
}

fn default_text(object: &mut Value, field: &str, value: String) {
    if text(&object[field]).is_empty() {
        set(object, field, value);
    }
}

/// The storage version is one of the versions in which objects are stored, from the moment it is chosen.
fn store_version(definition: &mut Value) {
    let stored = list(&definition["spec"]["versions"]).iter().find(|version| is_true(&version["storage"]));
    let Some(stored) = stored.map(|version| version["name"].clone()).filter(Value::is_string) else { return };
    default_field(definition, "status", json!({}));
    let Some(status) = definition.get_mut("status").filter(|status| status.is_object()) else { return };
    default_field(status, "storedVersions", json!([]));
    if let Some(versions) = status["storedVersions"].as_array_mut()
        && !versions.contains(&stored)
    {
        versions.push(stored);
    }
}

fn prepare_create(definition: &mut Value) {
    if definition.is_object() {
        set(definition, "status", json!({}));
        if let Some(metadata) = definition.get_mut("metadata").filter(|metadata| metadata.is_object()) {
            hold(metadata);
        }
    }
    store_version(definition);
}

/// A definition stays until the objects of its kind have gone.
fn hold(metadata: &mut Value) {
    default_field(metadata, "finalizers", json!([]));
    if let Some(finalizers) = metadata["finalizers"].as_array_mut()
        && !finalizers.iter().any(|finalizer| finalizer == CLEANUP_FINALIZER)
    {
        finalizers.push(CLEANUP_FINALIZER.into());
    }
}

fn prepare_update(new: &mut Value, _old: &Value) {
    store_version(new);
}

fn validate(definition: &Value) -> Errors {
    let mut errors = Errors::new();
    let (path, spec) = (Path::new("spec"), &definition["spec"]);
    let (group, plural) = (text(&spec["group"]), text(&spec["names"]["plural"]));
    let name = text(&definition["metadata"]["name"]);
    if name != format!("{plural}.{group}") {
        let detail = "must be spec.names.plural+\".\"+spec.group";
        errors.invalid(&Path::new("metadata").child("name"), name, detail);
    }
    self::group(&mut errors, &path.child("group"), group);
    approval(&mut errors, group, &definition["metadata"]["annotations"]);
    rules::one_of(&mut errors, &path.child("scope"), &spec["scope"], &["Cluster", "Namespaced"]);
    if is_true(&spec["preserveUnknownFields"]) {
        errors.invalid(&path.child("preserveUnknownFields"), true, "must be false");
    }
    self::names(&mut errors, &path.child("names"), &spec["names"]);
    versions(&mut errors, &path.child("versions"), list(&spec["versions"]));
    conversion(&mut errors, &path.child("conversion"), &spec["conversion"]);
    errors.extend(validate_stored_versions(definition));
    errors
}

fn group(errors: &mut Errors, path: &Path, group: &str) {
    rules::required_name(errors, path, group, names::dns1123_subdomain);
    if !group.is_empty() && !group.contains('.') {
        errors.invalid(path, group, "should be a domain with at least one dot");
    }
}

fn approval(errors: &mut Errors, group: &str, annotations: &Value) {
    let is_protected = ["k8s.io", "kubernetes.io"]
        .iter()
        .any(|domain| group.strip_suffix(domain).is_some_and(|rest| rest.is_empty() || rest.ends_with('.')));
    if !is_protected {
        return;
    }
    let path = Path::new("metadata").child("annotations").key(APPROVED);
    match text(&annotations[APPROVED]) {
        "" => errors.required(
            &path,
            format!(
                "protected groups must have approval annotation \"{APPROVED}\", see \
                 https://github.com/kubernetes/enhancements/pull/1111"
            ),
        ),
        value if value.starts_with("unapproved") || value.contains("://") => {}
        value => errors.invalid(
            &path,
            value,
            "protected groups must have approval annotation set to a URL or to a text starting with \"unapproved\"",
        ),
    }
}

fn names(errors: &mut Errors, path: &Path, names: &Value) {
    // A kind is a name in which letters may be capital ones.
    let mixed: NameCheck = |kind| names::dns1035_label(&kind.to_lowercase());
    rules::required_name(errors, &path.child("plural"), text(&names["plural"]), names::dns1035_label);
    rules::optional_name(errors, &path.child("singular"), text(&names["singular"]), names::dns1035_label);
    for (field, check) in [("kind", mixed), ("listKind", mixed)] {
        rules::required_name(errors, &path.child(field), text(&names[field]), check);
    }
    for field in ["shortNames", "categories"] {
        for (index, name) in list(&names[field]).iter().enumerate() {
            let path = path.child(field).index(index);
            rules::required_name(errors, &path, text(name), names::dns1035_label);
        }
    }
    if !text(&names["kind"]).is_empty() && names["kind"] == names["listKind"] {
        let detail = "kind and listKind may not be the same";
        errors.invalid(&path.child("listKind"), names["listKind"].clone(), detail);
    }
}

fn versions(errors: &mut Errors, path: &Path, versions: &[Value]) {
    if versions.len() > MAX_VERSIONS {
        errors.too_many(path, versions.len(), MAX_VERSIONS);
        return;
    }
    let all: Vec<&str> = versions.iter().map(|version| text(&version["name"])).collect();
    if all.iter().collect::<BTreeSet<_>>().len() != all.len() {
        errors.invalid(path, all.clone(), "must contain unique version names");
    }
    if versions.iter().filter(|version| is_true(&version["storage"])).count() != 1 {
        errors.invalid(path, all, "must have exactly one version marked as storage version");
    }
    for (index, version) in versions.iter().enumerate() {
        self::version(errors, &path.index(index), version);
    }
}

fn version(errors: &mut Errors, path: &Path, version: &Value) {
    rules::required_name(errors, &path.child("name"), text(&version["name"]), names::dns1035_label);
    deprecation(errors, &path.child("deprecationWarning"), version);
    let schema_path = path.child("schema").child("openAPIV3Schema");
    let schema = &version["schema"]["openAPIV3Schema"];
    if schema.is_null() {
        errors.required(&schema_path, "schemas are required");
    } else {
        match Structural::parse(schema, false, &schema_path) {
            Ok(structural) => {
                let path = path.child("selectableFields");
                selectable_fields(errors, &path, list(&version["selectableFields"]), structural.root());
            }
            Err(found) => errors.extend(found),
        }
    }
    scale(errors, &path.child("subresources").child("scale"), &version["subresources"]["scale"]);
    columns(errors, &path.child("additionalPrinterColumns"), list(&version["additionalPrinterColumns"]));
}

fn deprecation(errors: &mut Errors, path: &Path, version: &Value) {
    let Some(warning) = version["deprecationWarning"].as_str() else { return };
    if !is_true(&version["deprecated"]) {
        errors.invalid(path, warning, "can only be set for deprecated versions");
    }
    if warning.is_empty() {
        errors.invalid(path, warning, "must not be empty");
    }
    if warning.len() > 256 {
        errors.invalid(path, warning, "must be <= 256 characters");
    }
    if warning.chars().any(char::is_control) {
        errors.invalid(path, warning, "must not contain control characters");
    }
}

fn scale(errors: &mut Errors, path: &Path, scale: &Value) {
    if scale.is_null() {
        return;
    }
    let mut field = |name: &str, parents: &[&str], is_required: bool, detail: &str| {
        let (path, value) = (path.child(name), text(&scale[name]));
        if value.is_empty() {
            if is_required {
                errors.required(&path, "");
            }
            return;
        }
        let fields = JsonPath::parse(value).ok().and_then(|path| path.fields());
        let parent = fields.as_ref().and_then(|fields| fields.first());
        if !parent.is_some_and(|parent| parents.contains(&parent.as_str())) {
            errors.invalid(&path, value, detail);
        }
    };
    field("specReplicasPath", &["spec"], true, "should be a json path under .spec");
    field("statusReplicasPath", &["status"], true, "should be a json path under .status");
    let either = "should be a json path under either .status or .spec";
    field("labelSelectorPath", &["status", "spec"], false, either);
}

fn columns(errors: &mut Errors, path: &Path, columns: &[Value]) {
    let types = ["boolean", "date", "integer", "number", "string"];
    let formats = ["int32", "int64", "float", "double", "byte", "date", "date-time", "password"];
    for (index, column) in columns.iter().enumerate() {
        let path = path.index(index);
        rules::required(errors, &path.child("name"), &column["name"]);
        rules::one_of(errors, &path.child("type"), &column["type"], &types);
        rules::optional_one_of(errors, &path.child("format"), &column["format"], &formats);
        let (path, text) = (path.child("jsonPath"), text(&column["jsonPath"]));
        if text.is_empty() {
            errors.required(&path, "");
        } else if let Err(error) = JsonPath::parse(text) {
            errors.invalid(&path, text, format!("is an invalid path: {error}"));
        }
    }
}

fn selectable_fields(errors: &mut Errors, path: &Path, fields: &[Value], root: &Node) {
    if fields.len() > MAX_SELECTABLE_FIELDS {
        errors.too_many(path, fields.len(), MAX_SELECTABLE_FIELDS);
        return;
    }
    for (index, field) in fields.iter().enumerate() {
        let (path, text) = (path.index(index).child("jsonPath"), text(&field["jsonPath"]));
        if text.is_empty() {
            errors.required(&path, "");
            continue;
        }
        if fields[..index].contains(field) {
            errors.duplicate(&path, text);
        }
        let Some(names) = JsonPath::parse(text).ok().and_then(|path| path.fields()) else {
            errors.invalid(&path, text, "is an invalid path: must be a simple path of fields");
            continue;
        };
        if names.first().is_some_and(|first| first == "metadata") {
            errors.invalid(&path, text, "must not point to fields in metadata");
            continue;
        }
        let node = names.iter().try_fold(root, |node, name| node.property(name));
        match node {
            None => errors.invalid(&path, text, "is an invalid path: does not refer to a valid field"),
            Some(node) if !node.is_selectable() => errors.invalid(
                &path,
                text,
                "must point to a field of type string, boolean or integer. Enum string fields and strings with formats \
                 are allowed.",
            ),
            Some(_) => {}
        }
    }
}

fn conversion(errors: &mut Errors, path: &Path, conversion: &Value) {
    rules::one_of(errors, &path.child("strategy"), &conversion["strategy"], &["None", "Webhook"]);
    let (webhook_path, webhook) = (path.child("webhook"), &conversion["webhook"]);
    match (text(&conversion["strategy"]), webhook.is_null()) {
        ("Webhook", true) => {
            errors.required(&webhook_path.child("clientConfig"), "required when strategy is set to Webhook");
        }
        ("Webhook", false) => self::webhook(errors, &webhook_path, webhook),
        (_, false) => {
            errors.forbidden(&webhook_path, "should not be set when strategy is not set to Webhook");
        }
        (_, true) => {}
    }
}

fn webhook(errors: &mut Errors, path: &Path, webhook: &Value) {
    let (config_path, config) = (path.child("clientConfig"), &webhook["clientConfig"]);
    let (url, service) = (text(&config["url"]), &config["service"]);
    if config.is_null() {
        errors.required(&config_path, "required when strategy is set to Webhook");
    } else if url.is_empty() == service.is_null() {
        errors.required(&config_path, "exactly one of url or service is required");
    } else if !url.is_empty() {
        if !url.starts_with("https://") || url.len() == "https://".len() {
            errors.invalid(
                &config_path.child("url"),
                url,
                "'https' is the only allowed URL scheme, and a host must be specified",
            );
        }
    } else {
        let path = config_path.child("service");
        rules::required(errors, &path.child("name"), &service["name"]);
        rules::required(errors, &path.child("namespace"), &service["namespace"]);
        rules::port(errors, &path.child("port"), &service["port"]);
        let route = text(&service["path"]);
        if !route.is_empty() && !route.starts_with('/') {
            errors.invalid(&path.child("path"), route, "must start with a '/'");
        }
    }
    review_versions(
        errors,
        &path.child("conversionReviewVersions"),
        list(&webhook["conversionReviewVersions"]),
    );
}

fn review_versions(errors: &mut Errors, path: &Path, versions: &[Value]) {
    if versions.is_empty() {
        errors.required(path, "");
        return;
    }
    for (index, version) in versions.iter().enumerate() {
        let path = path.index(index);
        if versions[..index].contains(version) {
            errors.invalid(&path, version.clone(), "duplicate version");
        }
        rules::required_name(errors, &path, text(version), names::dns1035_label);
    }
    if !versions.iter().any(|version| matches!(text(version), "v1" | "v1beta1")) {
        errors.invalid(path, versions.to_vec(), "must include at least one of v1, v1beta1");
    }
}

/// Checks `status.storedVersions` against the versions there are; writes to the status need this as well.
///
/// A version in which objects may still be stored must stay, and the one in which they are stored now is one of them.
pub fn validate_stored_versions(definition: &Value) -> Errors {
    let mut errors = Errors::new();
    let path = Path::new("status").child("storedVersions");
    let versions = list(&definition["spec"]["versions"]);
    let stored = list(&definition["status"]["storedVersions"]);
    for (index, name) in stored.iter().enumerate() {
        if !versions.iter().any(|version| version["name"] == *name) {
            let name = text(name);
            errors.invalid(
                &path.index(index),
                name,
                format!(
                    "missing from spec.versions; {name} was previously a storage version, and must remain in \
                     spec.versions until a storage migration ensures no data remains persisted in {name} and removes \
                     {name} from status.storedVersions"
                ),
            );
        }
    }
    for version in versions.iter().filter(|version| is_true(&version["storage"])) {
        if !stored.contains(&version["name"]) {
            let detail = format!("must have the storage version {}", text(&version["name"]));
            errors.invalid(&path, stored.to_vec(), detail);
        }
    }
    errors
}

fn validate_update(new: &Value, old: &Value) -> Errors {
    let mut errors = Errors::new();
    let (path, new_spec, old_spec) = (Path::new("spec"), &new["spec"], &old["spec"]);
    let names_path = path.child("names");
    rules::immutable(&mut errors, &path.child("group"), &new_spec["group"], &old_spec["group"]);
    let (new_names, old_names) = (&new_spec["names"], &old_spec["names"]);
    rules::immutable(&mut errors, &names_path.child("plural"), &new_names["plural"], &old_names["plural"]);
    // Objects may exist once a definition is established; they are of this kind and live where its scope says.
    if is_established(old) {
        rules::immutable(&mut errors, &path.child("scope"), &new_spec["scope"], &old_spec["scope"]);
        rules::immutable(&mut errors, &names_path.child("kind"), &new_names["kind"], &old_names["kind"]);
    }
    errors
}

/// Whether the condition `Established` is true: the definition's kind is served.
pub fn is_established(definition: &Value) -> bool {
    list(&definition["status"]["conditions"])
        .iter()
        .any(|condition| text(&condition["type"]) == "Established" && text(&condition["status"]) == "True")
}

fn table_row(definition: &Value, _now: Timestamp) -> Vec<Value> {
    let metadata = &definition["metadata"];
    vec![json!(text(&metadata["name"])), json!(text(&metadata["creationTimestamp"]))]
}

#[cfg(test)]
mod tests {
    use super::super::rules::testing::{expect, with};
    use super::*;

    fn definition() -> Value {
        let mut definition = json!({
            "metadata": {"name": "widgets.example.com"},
            "spec": {
                "group": "example.com",
                "scope": "Namespaced",
                "names": {"plural": "widgets", "kind": "Widget", "shortNames": ["wd"]},
                "versions": [{
                    "name": "v1", "served": true, "storage": true,
                    "schema": {"openAPIV3Schema": {"type": "object", "properties": {
                        "spec": {"type": "object", "properties": {
                            "replicas": {"type": "integer"}, "color": {"type": "string"}}},
                        "status": {"type": "object", "properties": {"replicas": {"type": "integer"}}}}}},
                    "subresources": {"status": {}, "scale": {
                        "specReplicasPath": ".spec.replicas", "statusReplicasPath": ".status.replicas"}},
                    "additionalPrinterColumns": [
                        {"name": "Replicas", "type": "integer", "jsonPath": ".spec.replicas"}],
                    "selectableFields": [{"jsonPath": ".spec.color"}],
                }],
            }
        });
        prepare_create(&mut definition);
        default(&mut definition);
        definition
    }

    #[test]
    fn defaults() {
        let made = definition();
        assert_eq!(made["spec"]["names"]["singular"], "widget");
        assert_eq!(made["spec"]["names"]["listKind"], "WidgetList");
        assert_eq!(made["spec"]["conversion"], json!({"strategy": "None"}));
        assert_eq!(made["status"], json!({"storedVersions": ["v1"]}));
        let mut next = with(made.clone(), &[("/spec/versions/0/name", json!("v2"))]);
        prepare_update(&mut next, &made);
        assert_eq!(next["status"]["storedVersions"], json!(["v1", "v2"]));
    }

    #[test]
    fn validation() {
        let version = |field: &str, value: Value| (format!("/spec/versions/0/{field}"), value);
        let plain = |pointer: &str, value: Value| (pointer.to_owned(), value);
        let webhook = |config: Value| {
            let webhook = json!({"clientConfig": config, "conversionReviewVersions": ["v1"]});
            plain("/spec/conversion", json!({"strategy": "Webhook", "webhook": webhook}))
        };
        let rows = [
            (plain("/spec/scope", json!("Namespaced")), ""),
            (
                plain("/metadata/name", json!("x.example.com")),
                "metadata.name: Invalid value: \"x.example.com\": must be spec.names.plural+\".\"+spec.group",
            ),
            (
                plain("/spec/group", json!("example")),
                "spec.group: Invalid value: \"example\": should be a domain with at least one dot",
            ),
            (
                plain("/spec/group", json!("a.k8s.io")),
                "metadata.annotations[api-approved.kubernetes.io]: Required value: protected groups",
            ),
            (
                plain("/spec/scope", json!("World")),
                "spec.scope: Unsupported value: \"World\": supported values: \"Cluster\", \"Namespaced\"",
            ),
            (
                plain("/spec/preserveUnknownFields", json!(true)),
                "spec.preserveUnknownFields: Invalid value: true: must be false",
            ),
            (
                plain("/spec/names/kind", json!("Wid_get")),
                "spec.names.kind: Invalid value: \"Wid_get\": a DNS-1035 label",
            ),
            (plain("/spec/names/listKind", json!("Widget")), "kind and listKind may not be the same"),
            (plain("/spec/names/shortNames/0", json!("W")), "spec.names.shortNames[0]: Invalid value: \"W\""),
            (
                version("storage", json!(false)),
                "spec.versions: Invalid value: [\"v1\"]: must have exactly one version marked as storage version",
            ),
            (version("name", json!("V1")), "spec.versions[0].name: Invalid value: \"V1\""),
            (
                version("schema", Value::Null),
                "spec.versions[0].schema.openAPIV3Schema: Required value: schemas are required",
            ),
            (
                version("schema/openAPIV3Schema/type", json!("array")),
                "spec.versions[0].schema.openAPIV3Schema.type: Invalid value: \"array\": must be object at the root",
            ),
            (version("deprecationWarning", json!("old")), "can only be set for deprecated versions"),
            (
                version("subresources/scale/specReplicasPath", json!(".status.x")),
                "should be a json path under .spec",
            ),
            (
                version("subresources/scale/statusReplicasPath", Value::Null),
                "spec.versions[0].subresources.scale.statusReplicasPath: Required value",
            ),
            (
                version("subresources/scale/labelSelectorPath", json!(".metadata.x")),
                "should be a json path under either .status or .spec",
            ),
            (
                version("additionalPrinterColumns/0/type", json!("thing")),
                "Unsupported value: \"thing\": supported values: \"boolean\", \"date\", \"integer\", \"number\", \"string\"",
            ),
            (
                version("additionalPrinterColumns/0/jsonPath", json!("spec")),
                "is an invalid path: path must start with a dot or a bracket",
            ),
            (version("selectableFields/0/jsonPath", json!(".spec.nope")), "does not refer to a valid field"),
            (
                version("selectableFields/0/jsonPath", json!(".metadata.name")),
                "must not point to fields in metadata",
            ),
            (
                version("selectableFields/0/jsonPath", json!(".spec")),
                "must point to a field of type string, boolean or integer",
            ),
            (
                version("selectableFields/1", json!({"jsonPath": ".spec.color"})),
                "spec.versions[0].selectableFields[1].jsonPath: Duplicate value: \".spec.color\"",
            ),
            (
                plain("/spec/conversion", json!({"strategy": "Magic"})),
                "Unsupported value: \"Magic\": supported values: \"None\", \"Webhook\"",
            ),
            (
                plain("/spec/conversion", json!({"strategy": "Webhook"})),
                "spec.conversion.webhook.clientConfig: Required value: required when strategy is set to Webhook",
            ),
            (
                plain("/spec/conversion", json!({"strategy": "None", "webhook": {}})),
                "should not be set when strategy is not set to Webhook",
            ),
            (webhook(json!({"url": "https://example.com/convert"})), ""),
            (webhook(json!({"url": "http://example.com"})), "'https' is the only allowed URL scheme"),
            (webhook(json!({})), "exactly one of url or service is required"),
            (webhook(json!({"service": {"name": "s", "namespace": "n", "port": 443, "path": "/c"}})), ""),
            (
                webhook(json!({"service": {"name": "s", "port": 0}})),
                "spec.conversion.webhook.clientConfig.service.namespace: Required value",
            ),
            (
                plain("/status/storedVersions", json!([])),
                "status.storedVersions: Invalid value: []: must have the storage version v1",
            ),
            (
                plain("/status/storedVersions", json!(["v1", "v0"])),
                "status.storedVersions[1]: Invalid value: \"v0\": missing from spec.versions",
            ),
        ];
        for ((pointer, value), expected) in rows {
            let found = validate(&with(definition(), &[(&pointer, value.clone())]));
            let lines: Vec<String> = found.0.iter().map(ToString::to_string).collect();
            let is_found = match expected {
                "" => lines.is_empty(),
                _ => lines.iter().any(|line| line.contains(expected)),
            };
            assert!(is_found, "{pointer} = {value}: {lines:#?}");
        }
    }

    #[test]
    fn what_may_not_change() {
        let old = definition();
        let changes = [
            ("/spec/group", json!("b.example.com")),
            ("/spec/names/plural", json!("x")),
            ("/spec/scope", json!("Cluster")),
            ("/spec/names/kind", json!("X")),
        ];
        let new = with(old.clone(), &changes);
        let always = [
            "spec.group: Invalid value: \"b.example.com\": field is immutable",
            "spec.names.plural: Invalid value: \"x\": field is immutable",
        ];
        expect("not established", &validate_update(&new, &old), &always);
        let established = json!([{"type": "Established", "status": "True"}]);
        let old = with(old, &[("/status/conditions", established)]);
        assert_eq!(validate_update(&new, &old).0.len(), 4);
    }
}
