//! Admission policies that are written in the objects themselves, registered through the API.

use serde_json::{Value, json};

use crate::world::{MERGE, World};

const DEPLOYMENTS: &str = "/apis/apps/v1/namespaces/default/deployments";

fn path(plural: &str) -> String {
    format!("/apis/admissionregistration.k8s.io/v1/{plural}")
}

fn deployments() -> Value {
    json!({"resourceRules": [{
        "apiGroups": ["apps"], "apiVersions": ["v1"], "operations": ["CREATE", "UPDATE"], "resources": ["deployments"],
    }]})
}

fn deployment(name: &str, replicas: u32) -> Value {
    json!({"metadata": {"name": name}, "spec": {
        "replicas": replicas,
        "selector": {"matchLabels": {"a": "b"}},
        "template": {"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "c", "image": "i"}]}},
    }})
}

async fn register(world: &World, family: &str, spec: Value, binding: Value) {
    let mut binding = binding;
    binding["policyName"] = "p".into();
    let object = |name: &str, spec: &Value| json!({"metadata": {"name": name}, "spec": spec});
    world.post(&path(&format!("{family}policies")), &object("p", &spec)).await.expect(201);
    world.post(&path(&format!("{family}policybindings")), &object("b", &binding)).await.expect(201);
    world.settle().await;
}

#[tokio::test]
async fn a_policy_counts_replicas() {
    let world = World::new().await;
    let spec = json!({
        "matchConstraints": deployments(),
        "validations": [
            {"expression": "object.spec.replicas > 1", "messageExpression": "'wants replicas > 1, got ' + string(object.spec.replicas)"},
            {"expression": "namespaceObject.metadata.name == 'default'", "message": "only here"},
        ],
    });
    register(&world, "validatingadmission", spec, json!({"validationActions": ["Deny"]})).await;
    let refused = world.post(DEPLOYMENTS, &deployment("one", 1)).await.expect(422);
    assert!(
        refused["message"].as_str().is_some_and(|m| m.contains("wants replicas > 1, got 1")),
        "{refused}"
    );
    world.post(DEPLOYMENTS, &deployment("two", 2)).await.expect(201);
    world.patch(&format!("{DEPLOYMENTS}/two"), MERGE, &json!({"spec": {"replicas": 1}})).await.expect(422);
    // An unbound policy is none.
    world.delete(&format!("{}/b", path("validatingadmissionpolicybindings"))).await.expect(200);
    world.settle().await;
    world.post(DEPLOYMENTS, &deployment("one", 1)).await.expect(201);
}

#[tokio::test]
async fn expressions_share_variables() {
    let world = World::new().await;
    let spec = json!({
        "matchConstraints": deployments(),
        "variables": [
            {"name": "replicas", "expression": "object.spec.replicas"},
            {"name": "oddReplicas", "expression": "variables.replicas % 2 == 1"},
        ],
        "validations": [
            {"expression": "variables.replicas > 1"},
            {"expression": "variables.oddReplicas"},
        ],
    });
    register(&world, "validatingadmission", spec, json!({"validationActions": ["Deny"]})).await;
    for (replicas, code) in [(1, 422), (2, 422), (3, 201)] {
        world.post(DEPLOYMENTS, &deployment(&format!("d{replicas}"), replicas)).await.expect(code);
    }
}

#[tokio::test]
async fn expressions_are_checked_against_the_type() {
    let world = World::new().await;
    let bad = json!({"metadata": {"name": "p"}, "spec": {
        "matchConstraints": deployments(), "validations": [{"expression": "object.spec.replicas >"}],
    }});
    let refused = world.post(&path("validatingadmissionpolicies"), &bad).await.expect(422);
    assert!(
        refused["message"].as_str().is_some_and(|m| m.contains("spec.validations[0].expression")),
        "{refused}"
    );
}

#[tokio::test]
async fn a_policy_sets_replicas() {
    let world = World::new().await;
    let expression = "Object{spec: Object.spec{replicas: object.spec.replicas + 1}}";
    let spec = json!({
        "matchConstraints": deployments(), "reinvocationPolicy": "Never",
        "matchConditions": [{"name": "few", "expression": "object.spec.replicas < 2"}],
        "mutations": [{"patchType": "ApplyConfiguration", "applyConfiguration": {"expression": expression}}],
    });
    register(&world, "mutatingadmission", spec, json!({})).await;
    let made = world.post(DEPLOYMENTS, &deployment("one", 1)).await.expect(201);
    assert_eq!(made["spec"]["replicas"], 2);
    let made = world.post(DEPLOYMENTS, &deployment("five", 5)).await.expect(201);
    assert_eq!(made["spec"]["replicas"], 5);
}

#[tokio::test]
async fn policies_add_annotations() {
    let add = "[JSONPatch{op: 'add', path: '/metadata/annotations', value: {'my/note': 'added'}}]";
    let apply = "Object{metadata: Object.metadata{annotations: {'my/note': 'added'}}}";
    for mutation in [
        json!({"patchType": "JSONPatch", "jsonPatch": {"expression": add}}),
        json!({"patchType": "ApplyConfiguration", "applyConfiguration": {"expression": apply}}),
    ] {
        let world = World::new().await;
        let spec = json!({"matchConstraints": deployments(), "reinvocationPolicy": "Never", "mutations": [mutation]});
        register(&world, "mutatingadmission", spec, json!({})).await;
        let made = world.post(DEPLOYMENTS, &deployment("d", 1)).await.expect(201);
        assert_eq!(made["metadata"]["annotations"], json!({"my/note": "added"}));
    }
}
