//! What is served, and the documents that say so.

use serde_json::{Value, json};

use crate::conformance_custom::{anything, define, definition, path_of};
use crate::world::{World, eventually};

const AGGREGATED: &str = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList";
const JSON_PATCH: &str = "application/json-patch+json";

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

#[tokio::test]
async fn groups_prefer_a_version_they_have() {
    let world = World::new().await;
    let groups = world.get("/apis").await.expect(200);
    let groups = groups["groups"].as_array().expect("a list");
    assert!(groups.len() > 15, "{} groups", groups.len());
    for group in groups {
        let name = text(&group["name"]);
        let versions = group["versions"].as_array().expect("a list");
        assert!(versions.contains(&group["preferredVersion"]), "{name}: {group}");
        assert_eq!(
            world.get(&format!("/apis/{name}")).await.expect(200)["versions"],
            group["versions"],
            "{name}"
        );
        for version in versions {
            let version = text(&version["groupVersion"]);
            let resources = world.get(&format!("/apis/{version}")).await.expect(200);
            assert_eq!(resources["groupVersion"], version);
            let resources = resources["resources"].as_array().expect("a list");
            assert!(!resources.is_empty(), "{version}");
            for resource in resources {
                assert!(
                    !text(&resource["name"]).is_empty() && !text(&resource["kind"]).is_empty(),
                    "{version}"
                );
                assert!(
                    resource["verbs"].as_array().is_some_and(|verbs| !verbs.is_empty()),
                    "{version}: {resource}"
                );
            }
        }
    }
}

/// `group/version/plural` of everything in an aggregated document.
fn resources(document: &Value) -> Vec<String> {
    let mut found = Vec::new();
    for group in document["items"].as_array().into_iter().flatten() {
        for version in group["versions"].as_array().into_iter().flatten() {
            for resource in version["resources"].as_array().into_iter().flatten() {
                let names = [&group["metadata"]["name"], &version["version"], &resource["resource"]];
                found.push(names.map(text).join("/"));
            }
        }
    }
    found
}

#[tokio::test]
async fn aggregated_discovery_has_everything() {
    let world = World::new().await;
    let mut found = Vec::new();
    for path in ["/api", "/apis"] {
        // The accept header of clients names older forms, too.
        let accept = format!(
            "{AGGREGATED},application/json;g=apidiscovery.k8s.io;v=v2beta1;as=APIGroupDiscoveryList,application/json"
        );
        let answer = world.get_as(path, &accept).await;
        let media_type = answer.headers["content-type"].to_str().expect("text").to_owned();
        assert!(
            media_type.contains("as=APIGroupDiscoveryList") && media_type.contains("v=v2"),
            "{media_type}"
        );
        let document = answer.expect(200);
        assert_eq!(
            (&document["kind"], &document["apiVersion"]),
            (&json!("APIGroupDiscoveryList"), &json!("apidiscovery.k8s.io/v2"))
        );
        found.extend(resources(&document));
    }
    for kind in sampan_api::registry::Registry::built_in().kinds() {
        let name = format!("{}/{}/{}", kind.group, kind.version, kind.plural);
        assert!(found.contains(&name), "no {name}");
    }
    // Who does not ask for it gets the old form.
    assert_eq!(world.get("/apis").await.expect(200)["kind"], "APIGroupList");
}

#[tokio::test]
async fn aggregated_discovery_follows_definitions() {
    let world = World::new().await;
    let things = definition("example.com", "things", "Thing", &[("v1", anything()), ("v2", anything())]);
    define(&world, &things).await;
    let served = async || resources(&world.get_as("/apis", AGGREGATED).await.expect(200));
    let names = ["example.com/v1/things", "example.com/v2/things"].map(str::to_owned);
    let found = served().await;
    assert!(names.iter().all(|name| found.contains(name)), "{found:?}");
    world.delete(&path_of(&things)).await.expect(200);
    eventually("they are gone", async || {
        let found = served().await;
        names.iter().all(|name| !found.contains(name))
    })
    .await;
}

#[tokio::test]
async fn the_version_is_two_numbers() {
    let world = World::new().await;
    let version = world.get("/version").await.expect(200);
    for part in ["major", "minor"] {
        assert!(text(&version[part]).parse::<u32>().is_ok(), "{version}");
    }
    for part in ["gitVersion", "gitCommit", "gitTreeState", "buildDate", "goVersion", "compiler", "platform"]
    {
        assert!(!text(&version[part]).is_empty(), "no {part}: {version}");
    }
}

/// Both published documents know a custom kind, or neither does.
async fn published(world: &World, group: &str, version: &str, kind: &str) -> bool {
    let reversed = group.split('.').rev().collect::<Vec<_>>().join(".");
    let name = format!("{reversed}.{version}.{kind}");
    let old = world.get("/openapi/v2").await.expect(200)["definitions"].get(&name).is_some();
    let new = world.get(&format!("/openapi/v3/apis/{group}/{version}")).await;
    old && new.code == 200 && new.body["components"]["schemas"].get(&name).is_some()
}

async fn hidden(world: &World, group: &str, version: &str, kind: &str) -> bool {
    let reversed = group.split('.').rev().collect::<Vec<_>>().join(".");
    let name = format!("{reversed}.{version}.{kind}");
    let old = world.get("/openapi/v2").await.expect(200)["definitions"].get(&name).is_none();
    let new = world.get(&format!("/openapi/v3/apis/{group}/{version}")).await;
    old && (new.code == 404 || new.body["components"]["schemas"].get(&name).is_none())
}

fn schema() -> Value {
    json!({"type": "object", "properties": {"spec": {"type": "object", "properties": {"a": {"type": "string"}}}}})
}

#[tokio::test]
async fn openapi_documents_have_every_definition() {
    let world = World::new().await;
    let definitions = [
        // Different groups, one group in different versions, one version with different kinds.
        definition("one.example.com", "foos", "Foo", &[("v1", schema())]),
        definition("two.example.com", "foos", "Foo", &[("v1", schema()), ("v2", schema())]),
        definition("two.example.com", "bars", "Bar", &[("v1", anything())]),
    ];
    for definition in &definitions {
        define(&world, definition).await;
    }
    for (group, version, kind) in [
        ("one.example.com", "v1", "Foo"),
        ("two.example.com", "v1", "Foo"),
        ("two.example.com", "v2", "Foo"),
        ("two.example.com", "v1", "Bar"),
    ] {
        eventually("published", async || published(&world, group, version, kind).await).await;
    }
}

#[tokio::test]
async fn openapi_documents_say_which_values_there_are() {
    let world = World::new().await;
    let old = world.get("/openapi/v2").await.expect(200);
    let core = world.get("/openapi/v3/api/v1").await.expect(200);
    let apps = world.get("/openapi/v3/apis/apps/v1").await.expect(200);
    // Type, field and where in it, values.
    let rows = [
        (&core, "core.v1.Container", "imagePullPolicy", "/enum", json!(["Always", "IfNotPresent", "Never"])),
        (&core, "core.v1.ServiceSpec", "ipFamilies", "/items/enum", json!(["", "IPv4", "IPv6"])),
        (
            &core,
            "core.v1.PersistentVolumeClaimStatus",
            "allocatedResourceStatuses",
            "/additionalProperties/enum",
            json!([
                "ControllerResizeInProgress",
                "ControllerResizeInfeasible",
                "NodeResizeInProgress",
                "NodeResizeInfeasible",
                "NodeResizePending",
            ]),
        ),
        (&apps, "apps.v1.DeploymentStrategy", "type", "/enum", json!(["Recreate", "RollingUpdate"])),
        (&apps, "core.v1.PodSpec", "restartPolicy", "/enum", json!(["Always", "Never", "OnFailure"])),
        (&core, "core.v1.Container", "image", "/enum", Value::Null),
    ];
    for (new, type_name, field, place, mut expected) in rows {
        if let Some(values) = expected.as_array_mut() {
            values.sort_by(|a, b| a.as_str().cmp(&b.as_str()));
        }
        for (schemas, document) in [("/definitions", &old), ("/components/schemas", new)] {
            let found =
                document.pointer(&format!("{schemas}/io.k8s.api.{type_name}/properties/{field}{place}"));
            assert_eq!(found.unwrap_or(&Value::Null), &expected, "{type_name}.{field} in {schemas}");
        }
    }
}

#[tokio::test]
async fn openapi_documents_follow_the_versions() {
    let world = World::new().await;
    let foos =
        definition("example.com", "foos", "Foo", &[("v1", schema()), ("v2", schema()), ("v3", schema())]);
    define(&world, &foos).await;
    for version in ["v1", "v2", "v3"] {
        eventually("published", async || published(&world, "example.com", version, "Foo").await).await;
    }
    let before = world.get("/openapi/v3/apis/example.com/v1").await.expect(200);
    let unserved = json!([
        {"op": "test", "path": "/spec/versions/1/name", "value": "v2"},
        {"op": "replace", "path": "/spec/versions/1/served", "value": false},
    ]);
    world.patch(&path_of(&foos), JSON_PATCH, &unserved).await.expect(200);
    eventually("v2 is hidden", async || hidden(&world, "example.com", "v2", "Foo").await).await;
    let renamed = json!([
        {"op": "test", "path": "/spec/versions/2/name", "value": "v3"},
        {"op": "replace", "path": "/spec/versions/2/name", "value": "v4"},
    ]);
    world.patch(&path_of(&foos), JSON_PATCH, &renamed).await.expect(200);
    eventually("v4 is published", async || published(&world, "example.com", "v4", "Foo").await).await;
    assert!(hidden(&world, "example.com", "v3", "Foo").await);
    // The version that nobody touched is described as before.
    assert_eq!(
        world.get("/openapi/v3/apis/example.com/v1").await.expect(200)["components"]["schemas"]["com.example.v1.Foo"],
        before["components"]["schemas"]["com.example.v1.Foo"]
    );
}
