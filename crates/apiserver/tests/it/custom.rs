//! Custom resources: from the definition to objects that behave like any others.

use http::Method;
use serde_json::{Value, json};

use crate::world::{APPLY, Answer, JSON, MERGE, World, eventually};

const DEFINITIONS: &str = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";
const WIDGETS: &str = "/apis/example.com/v1/namespaces/default/widgets";

/// A definition with most of what definitions can say.
fn definition() -> Value {
    let schema = json!({
        "type": "object",
        "properties": {
            "spec": {
                "type": "object",
                "required": ["color"],
                "properties": {
                    "color": {"type": "string", "enum": ["red", "green"]},
                    "size": {"type": "integer", "minimum": 0, "maximum": 10, "default": 3},
                    "port": {"x-kubernetes-int-or-string": true},
                    "parts": {
                        "type": "array",
                        "x-kubernetes-list-type": "map",
                        "x-kubernetes-list-map-keys": ["name"],
                        "items": {
                            "type": "object",
                            "required": ["name"],
                            "properties": {"name": {"type": "string"}, "weight": {"type": "integer"}},
                        },
                    },
                    "free": {"type": "object", "x-kubernetes-preserve-unknown-fields": true},
                },
                "x-kubernetes-validations": [
                    {"rule": "self.size != 7", "message": "seven is taken"},
                    {"rule": "self.color == oldSelf.color", "message": "color is immutable"},
                ],
            },
            "status": {
                "type": "object",
                "properties": {"size": {"type": "integer"}, "selector": {"type": "string"}, "phase": {"type": "string"}},
            },
        },
    });
    let version = |name: &str, storage: bool| {
        json!({
            "name": name, "served": true, "storage": storage,
            "schema": {"openAPIV3Schema": schema},
            "subresources": {"status": {}, "scale": {
                "specReplicasPath": ".spec.size", "statusReplicasPath": ".status.size",
                "labelSelectorPath": ".status.selector",
            }},
            "additionalPrinterColumns": [
                {"name": "Color", "type": "string", "jsonPath": ".spec.color"},
                {"name": "Size", "type": "integer", "jsonPath": ".spec.size"},
            ],
            "selectableFields": [{"jsonPath": ".spec.color"}],
        })
    };
    json!({
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": "widgets.example.com"},
        "spec": {
            "group": "example.com",
            "scope": "Namespaced",
            "names": {"plural": "widgets", "kind": "Widget", "shortNames": ["wd"], "categories": ["all"]},
            "versions": [version("v1", true), version("v1beta1", false)],
        },
    })
}

fn widget(name: &str, spec: Value) -> Value {
    json!({"apiVersion": "example.com/v1", "kind": "Widget", "metadata": {"name": name}, "spec": spec})
}

async fn condition(world: &World, name: &str, type_: &str) -> String {
    let definition = world.get(&format!("{DEFINITIONS}/{name}")).await.body;
    let conditions = definition["status"]["conditions"].as_array().cloned().unwrap_or_default();
    let found = conditions.iter().find(|c| c["type"] == type_);
    found.and_then(|c| c["status"].as_str()).unwrap_or_default().to_owned()
}

async fn world_with_widgets() -> World {
    let world = World::new().await;
    world.post(DEFINITIONS, &definition()).await.expect(201);
    eventually("Established", async || {
        condition(&world, "widgets.example.com", "Established").await == "True"
    })
    .await;
    world
}

#[track_caller]
fn refused(answer: Answer, code: u16, message: &str) {
    let status = answer.expect(code);
    let said = status["message"].as_str().unwrap_or_default();
    assert!(said.contains(message), "{said}");
}

#[tokio::test]
async fn a_definition_becomes_a_kind() {
    let world = world_with_widgets().await;
    let stored = world.get(&format!("{DEFINITIONS}/widgets.example.com")).await.expect(200);
    assert_eq!(stored["status"]["acceptedNames"]["listKind"], "WidgetList");
    assert_eq!(stored["status"]["storedVersions"], json!(["v1"]));
    let resources = world.get("/apis/example.com/v1").await.expect(200);
    let names: Vec<&str> = resources["resources"]
        .as_array()
        .expect("a list")
        .iter()
        .filter_map(|r| r["name"].as_str())
        .collect();
    assert_eq!(names, ["widgets", "widgets/scale", "widgets/status"]);
    let group = world.get("/apis/example.com").await.expect(200);
    assert_eq!(group["preferredVersion"]["version"], "v1");
    let openapi = world.get("/openapi/v3/apis/example.com/v1").await.expect(200);
    let schema = &openapi["components"]["schemas"]["com.example.v1.Widget"];
    assert_eq!(schema["properties"]["spec"]["properties"]["size"]["maximum"], 10, "{schema}");
    assert_eq!(schema["x-kubernetes-group-version-kind"][0]["kind"], "Widget");
    // kubectl reads here which kind of patch it may send.
    let patch = &openapi["paths"]["/apis/example.com/v1/namespaces/{namespace}/widgets/{name}"]["patch"];
    let types: Vec<&String> =
        patch["requestBody"]["content"].as_object().expect("media types").keys().collect();
    assert!(!types.iter().any(|t| t.contains("strategic")) && types.len() == 3, "{types:?}");
}

#[tokio::test]
async fn objects_are_pruned_defaulted_and_validated() {
    let world = world_with_widgets().await;
    let made = world
        .post(
            WIDGETS,
            &widget("a", json!({"color": "red", "unknown": 1, "port": "http", "free": {"x": [1]}})),
        )
        .await;
    let warning = made.headers.get("warning").and_then(|w| w.to_str().ok()).unwrap_or_default().to_owned();
    assert!(warning.contains("unknown field"), "{warning}");
    let made = made.expect(201);
    assert_eq!(made["spec"], json!({"color": "red", "size": 3, "port": "http", "free": {"x": [1]}}));
    assert_eq!(made["metadata"]["generation"], 1);
    let rows = [
        (json!({"color": "blue"}), "Unsupported value: \"blue\""),
        (json!({}), "spec.color: Required value"),
        (json!({"color": "red", "size": 11}), "should be less than or equal to 10"),
        (json!({"color": "red", "size": "big"}), "spec.size"),
        (json!({"color": "red", "size": 7}), "seven is taken"),
    ];
    for (spec, message) in rows {
        refused(world.post(WIDGETS, &widget("b", spec)).await, 422, message);
    }
    let strict = format!("{WIDGETS}?fieldValidation=Strict");
    refused(
        world.post(&strict, &widget("c", json!({"color": "red", "x": 1}))).await,
        400,
        "unknown field \"spec.x\"",
    );
    let path = format!("{WIDGETS}/a");
    refused(world.patch(&path, MERGE, &json!({"spec": {"color": "green"}})).await, 422, "color is immutable");
    let changed =
        world.patch(&path, MERGE, &json!({"spec": {"size": 4}, "status": {"phase": "x"}})).await.expect(200);
    assert_eq!((&changed["metadata"]["generation"], &changed["status"]), (&json!(2), &Value::Null));
    let strategic =
        world.patch(&path, "application/strategic-merge-patch+json", &json!({"spec": {"size": 5}})).await;
    assert_eq!(strategic.code, 415);
}

#[tokio::test]
async fn subresources_tables_and_selectors() {
    let world = world_with_widgets().await;
    world.post(WIDGETS, &widget("a", json!({"color": "red"}))).await.expect(201);
    world.post(WIDGETS, &widget("b", json!({"color": "green"}))).await.expect(201);
    let path = format!("{WIDGETS}/a");
    let status = json!({"status": {"phase": "Ready", "size": 2, "selector": "app=a"}, "spec": {"size": 9}});
    let with_status = world.patch(&format!("{path}/status"), MERGE, &status).await.expect(200);
    assert_eq!((&with_status["status"]["phase"], &with_status["spec"]["size"]), (&json!("Ready"), &json!(3)));
    assert_eq!(with_status["metadata"]["generation"], 1);
    let scale = world.get(&format!("{path}/scale")).await.expect(200);
    assert_eq!(
        (&scale["spec"]["replicas"], &scale["status"]),
        (&json!(3), &json!({"replicas": 2, "selector": "app=a"}))
    );
    world.patch(&format!("{path}/scale"), MERGE, &json!({"spec": {"replicas": 5}})).await.expect(200);
    assert_eq!(world.get(&path).await.expect(200)["spec"]["size"], 5);
    let selected = world.get(&format!("{WIDGETS}?fieldSelector=spec.color%3Dgreen")).await.expect(200);
    let names: Vec<&Value> =
        selected["items"].as_array().expect("a list").iter().map(|i| &i["metadata"]["name"]).collect();
    assert_eq!((selected["kind"].as_str(), names), (Some("WidgetList"), vec![&json!("b")]));
    let request = http::Request::get(WIDGETS)
        .header("accept", "application/json;as=Table;v=v1;g=meta.k8s.io")
        .body(http_body_util::Full::default())
        .expect("a request");
    let table = crate::world::read(world.raw(crate::world::admin(), request).await).await.expect(200);
    let headings: Vec<&Value> =
        table["columnDefinitions"].as_array().expect("a list").iter().map(|c| &c["name"]).collect();
    assert_eq!(headings, ["Name", "Color", "Size"]);
    assert_eq!(table["rows"][0]["cells"], json!(["a", "red", 5]));
}

#[tokio::test]
async fn apply_knows_the_lists_of_a_schema() {
    let world = world_with_widgets().await;
    let parts = |names: &[&str]| {
        let parts: Vec<Value> = names.iter().map(|name| json!({"name": name})).collect();
        widget("a", json!({"color": "red", "parts": parts}))
    };
    let path = format!("{WIDGETS}/a");
    world.patch(&format!("{path}?fieldManager=one"), APPLY, &parts(&["x", "y"])).await.expect(201);
    let both = world.patch(&format!("{path}?fieldManager=two"), APPLY, &parts(&["z"])).await.expect(200);
    assert_eq!(both["spec"]["parts"], json!([{"name": "x"}, {"name": "y"}, {"name": "z"}]));
    let left = world.patch(&format!("{path}?fieldManager=one"), APPLY, &parts(&["y"])).await.expect(200);
    assert_eq!(left["spec"]["parts"], json!([{"name": "y"}, {"name": "z"}]));
}

#[tokio::test]
async fn versions_show_the_same_objects() {
    let world = world_with_widgets().await;
    let old = "/apis/example.com/v1beta1/namespaces/default/widgets";
    let mut object = widget("a", json!({"color": "red"}));
    object["apiVersion"] = json!("example.com/v1beta1");
    let made = world.post(old, &object).await.expect(201);
    assert_eq!(made["apiVersion"], "example.com/v1beta1");
    let new = world.get(&format!("{WIDGETS}/a")).await.expect(200);
    assert_eq!((&new["apiVersion"], &new["metadata"]), (&json!("example.com/v1"), &made["metadata"]));
    let list = world.get(old).await.expect(200);
    assert_eq!(list["items"][0]["apiVersion"], "example.com/v1beta1");
    // Another version becomes the stored one; what is stored stays readable in both.
    let mut changed = world.get(&format!("{DEFINITIONS}/widgets.example.com")).await.expect(200);
    changed["spec"]["versions"][0]["storage"] = json!(false);
    changed["spec"]["versions"][1]["storage"] = json!(true);
    world.put(&format!("{DEFINITIONS}/widgets.example.com"), &changed).await.expect(200);
    eventually("storedVersions", async || {
        let stored = world.get(&format!("{DEFINITIONS}/widgets.example.com")).await.expect(200);
        stored["status"]["storedVersions"] == json!(["v1", "v1beta1"])
    })
    .await;
    for path in [old, WIDGETS] {
        world.get(&format!("{path}/a")).await.expect(200);
        world.patch(&format!("{path}/a"), MERGE, &json!({"spec": {"size": 6}})).await.expect(200);
    }
}

#[tokio::test]
async fn a_new_default_shows_in_old_objects() {
    let world = world_with_widgets().await;
    world.post(WIDGETS, &widget("a", json!({"color": "red"}))).await.expect(201);
    let mut changed = world.get(&format!("{DEFINITIONS}/widgets.example.com")).await.expect(200);
    changed["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]["properties"]["shape"] =
        json!({"type": "string", "default": "round"});
    world.put(&format!("{DEFINITIONS}/widgets.example.com"), &changed).await.expect(200);
    eventually("the default", async || {
        world.get(&format!("{WIDGETS}/a")).await.expect(200)["spec"]["shape"] == "round"
    })
    .await;
    let list = world.get(WIDGETS).await.expect(200);
    assert_eq!(list["items"][0]["spec"]["shape"], "round");
}

#[tokio::test]
async fn names_belong_to_one_definition() {
    let world = world_with_widgets().await;
    let mut rival = definition();
    rival["metadata"]["name"] = json!("gadgets.example.com");
    rival["spec"]["names"] = json!({"plural": "gadgets", "kind": "Gadget", "shortNames": ["wd"]});
    world.post(DEFINITIONS, &rival).await.expect(201);
    eventually("a conflict", async || {
        condition(&world, "gadgets.example.com", "NamesAccepted").await == "False"
    })
    .await;
    assert_eq!(condition(&world, "gadgets.example.com", "Established").await, "False");
    world.get("/apis/example.com/v1/namespaces/default/gadgets").await.expect(404);
    world.delete(&format!("{DEFINITIONS}/widgets.example.com")).await.expect(200);
    eventually("the name is free", async || {
        condition(&world, "gadgets.example.com", "Established").await == "True"
    })
    .await;
}

#[tokio::test]
async fn a_deleted_definition_takes_its_objects_along() {
    let world = world_with_widgets().await;
    world.post(WIDGETS, &widget("a", json!({"color": "red"}))).await.expect(201);
    world.delete(&format!("{DEFINITIONS}/widgets.example.com")).await.expect(200);
    eventually("the end", async || {
        world.get(&format!("{DEFINITIONS}/widgets.example.com")).await.code == 404
    })
    .await;
    eventually("not served", async || world.get(WIDGETS).await.code == 404).await;
    // A new definition of the same name begins with nothing.
    world.post(DEFINITIONS, &definition()).await.expect(201);
    eventually("served again", async || world.get(WIDGETS).await.code == 200).await;
    assert_eq!(world.get(WIDGETS).await.expect(200)["items"], json!([]));
}

#[tokio::test]
async fn bad_definitions_are_refused() {
    let world = World::new().await;
    let changed = |pointer: &str, value: Value| {
        let mut definition = definition();
        *definition.pointer_mut(pointer).expect("a place") = value;
        definition
    };
    let rows = [
        (changed("/metadata/name", json!("gadgets.example.com")), "metadata.name: Invalid value"),
        (
            changed("/spec/versions/1/storage", json!(true)),
            "must have exactly one version marked as storage version",
        ),
        (changed("/spec/versions/1/name", json!("v1")), "must contain unique version names"),
        (
            changed("/spec/versions/0/schema/openAPIV3Schema/properties/spec", json!({"properties": {}})),
            "type: Required value",
        ),
        (
            changed(
                "/spec/versions/0/schema/openAPIV3Schema/properties/spec/x-kubernetes-validations",
                json!([{"rule": "self.nonsense > 1"}]),
            ),
            "undefined field 'nonsense'",
        ),
    ];
    for (definition, message) in rows {
        let answer = world.send(Method::POST, DEFINITIONS, JSON, definition.to_string()).await;
        refused(answer, 422, message);
    }
}
