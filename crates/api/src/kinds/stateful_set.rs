//! StatefulSets: pods with names that stay, and volumes that stay with them.

use jiff::Timestamp;
use serde_json::{Value, json};

use super::json::{copy_field, default_field, int, list, list_mut, same, set, text};
use super::{pod, rules, workload};
use crate::field::{Errors, Path};
use crate::kind::{Column, NameRule, Row, Strategy, Subresource};
use crate::{names, table};

/// What may change once a set exists; the rest decides about names and volumes of pods that are there already.
const MUTABLE: &[&str] = &[
    "replicas",
    "ordinals",
    "template",
    "updateStrategy",
    "revisionHistoryLimit",
    "persistentVolumeClaimRetentionPolicy",
    "minReadySeconds",
];

/// StatefulSets.
pub static STATEFUL_SET: Row = Row {
    group: "apps",
    kind: "StatefulSet",
    plural: "statefulsets",
    singular: "statefulset",
    short_names: &["sts"],
    categories: &["all"],
    subresources: &[Subresource::Scale, Subresource::Status],
    schema: "io.k8s.api.apps.v1.StatefulSet",
    columns: &[
        Column::name(),
        Column::new("Ready", "Pods that are ready, of all pods that are wanted."),
        Column::age(),
        Column::new("Containers", "Names of the containers of the template.").wide(),
        Column::new("Images", "Images of the containers of the template.").wide(),
    ],
    table_row,
    // The name is the first part of the pods' host names.
    name_rule: NameRule::DnsLabel,
    generation: true,
    strategy: Strategy {
        default,
        prepare_create: |object| set(object, "status", json!({"replicas": 0, "availableReplicas": 0})),
        validate,
        validate_update,
        ..Strategy::PLAIN
    },
    ..Row::PLAIN
};

fn default(object: &mut Value) {
    workload::default_template(object);
    let Some(spec) = object.get_mut("spec").filter(|spec| spec.is_object()) else {
        return;
    };
    default_field(spec, "updateStrategy", json!({}));
    if let Some(strategy) = spec.get_mut("updateStrategy") {
        default_field(strategy, "type", "RollingUpdate");
        if text(&strategy["type"]) == "RollingUpdate" {
            default_field(strategy, "rollingUpdate", json!({}));
            if let Some(rolling) = strategy.get_mut("rollingUpdate") {
                default_field(rolling, "partition", 0);
            }
        }
    }
    default_field(spec, "persistentVolumeClaimRetentionPolicy", json!({}));
    if let Some(policy) = spec.get_mut("persistentVolumeClaimRetentionPolicy") {
        default_field(policy, "whenDeleted", "Retain");
        default_field(policy, "whenScaled", "Retain");
    }
    for claim in list_mut(spec, "/volumeClaimTemplates") {
        set(claim, "apiVersion", "v1");
        set(claim, "kind", "PersistentVolumeClaim");
        default_field(claim, "status", json!({"phase": "Pending"}));
    }
}

fn validate(object: &Value) -> Errors {
    let mut errors = Errors::new();
    let (path, spec) = (Path::new("spec"), &object["spec"]);
    let management = &spec["podManagementPolicy"];
    rules::one_of(&mut errors, &path.child("podManagementPolicy"), management, &["OrderedReady", "Parallel"]);
    let strategy = &spec["updateStrategy"];
    let strategy_path = path.child("updateStrategy");
    rules::one_of(
        &mut errors,
        &strategy_path.child("type"),
        &strategy["type"],
        &["OnDelete", "RollingUpdate"],
    );
    let rolling_path = strategy_path.child("rollingUpdate");
    if text(&strategy["type"]) == "OnDelete" && !strategy["rollingUpdate"].is_null() {
        let detail = "only allowed for updateStrategy 'RollingUpdate'";
        errors.invalid(&rolling_path, strategy["rollingUpdate"].clone(), detail);
    }
    rules::non_negative(
        &mut errors,
        &rolling_path.child("partition"),
        &strategy["rollingUpdate"]["partition"],
    );
    let unavailable = &strategy["rollingUpdate"]["maxUnavailable"];
    if !unavailable.is_null() {
        let path = rolling_path.child("maxUnavailable");
        rules::int_or_percent(&mut errors, &path, unavailable);
        rules::at_most_all(&mut errors, &path, unavailable);
        if rules::is_zero(unavailable) {
            errors.invalid(&path, unavailable.clone(), "cannot be 0");
        }
    }
    let (policy, policy_path) =
        (&spec["persistentVolumeClaimRetentionPolicy"], path.child("persistentVolumeClaimRetentionPolicy"));
    for field in ["whenDeleted", "whenScaled"] {
        rules::optional_one_of(&mut errors, &policy_path.child(field), &policy[field], &["Delete", "Retain"]);
    }
    for field in ["replicas", "minReadySeconds", "revisionHistoryLimit"] {
        rules::non_negative(&mut errors, &path.child(field), &spec[field]);
    }
    rules::non_negative(&mut errors, &path.child("ordinals.start"), &spec["ordinals"]["start"]);
    let service = text(&spec["serviceName"]);
    rules::optional_name(&mut errors, &path.child("serviceName"), service, names::dns1123_subdomain);
    for (index, claim) in list(&spec["volumeClaimTemplates"]).iter().enumerate() {
        let path = path.child("volumeClaimTemplates").index(index).child("metadata").child("name");
        rules::required_name(&mut errors, &path, text(&claim["metadata"]["name"]), names::dns1123_subdomain);
    }
    workload::validate_selector(&mut errors, &path, spec, "statefulset");
    // Mounts may name claims, which become volumes only in the pods.
    let template = with_claims_as_volumes(&spec["template"], list(&spec["volumeClaimTemplates"]));
    pod::spec::validate_replaced_template(&mut errors, &path.child("template"), &template, "StatefulSet");
    errors
}

fn with_claims_as_volumes(template: &Value, claims: &[Value]) -> Value {
    let mut template = template.clone();
    let Some(spec) = template.get_mut("spec").filter(|spec| spec.is_object()) else {
        return template;
    };
    let mut volumes = list(&spec["volumes"]).to_vec();
    for claim in claims {
        let name = text(&claim["metadata"]["name"]);
        if !volumes.iter().any(|volume| text(&volume["name"]) == name) {
            volumes.push(json!({"name": name, "persistentVolumeClaim": {"claimName": name}}));
        }
    }
    set(spec, "volumes", volumes);
    template
}

fn validate_update(new: &Value, old: &Value) -> Errors {
    let mut errors = Errors::new();
    let mut spec = new["spec"].clone();
    for field in MUTABLE {
        copy_field(&mut spec, &old["spec"], field);
    }
    if !same(&spec, &old["spec"]) {
        errors.forbidden(
            &Path::new("spec"),
            "updates to statefulset spec for fields other than 'replicas', 'ordinals', 'template', 'updateStrategy', \
             'revisionHistoryLimit', 'persistentVolumeClaimRetentionPolicy' and 'minReadySeconds' are forbidden",
        );
    }
    errors
}

fn table_row(object: &Value, now: Timestamp) -> Vec<Value> {
    let (spec, status) = (&object["spec"], &object["status"]);
    let [containers, images] = workload::container_cells(&spec["template"]["spec"]);
    vec![
        json!(text(&object["metadata"]["name"])),
        json!(format!("{}/{}", int(&status["readyReplicas"]), int(&spec["replicas"]))),
        table::age(object, now),
        containers,
        images,
    ]
}

#[cfg(test)]
mod tests {
    use super::super::rules::testing::{expect, with};
    use super::*;

    #[test]
    fn claims_may_be_mounted_and_identity_stays() {
        let mut set = json!({
            "metadata": {"name": "db"},
            "spec": {
                "replicas": 1, "podManagementPolicy": "OrderedReady", "selector": {"matchLabels": {"app": "db"}},
                "volumeClaimTemplates": [{"metadata": {"name": "data"}}],
                "template": {
                    "metadata": {"labels": {"app": "db"}},
                    "spec": {
                        "restartPolicy": "Always", "dnsPolicy": "ClusterFirst",
                        "containers": [{
                            "name": "c", "image": "a:1", "terminationMessagePolicy": "File",
                            "volumeMounts": [{"name": "data", "mountPath": "/data"}],
                        }],
                    },
                },
            },
        });
        default(&mut set);
        expect("good", &validate(&set), &[]);
        let row = |what: &str, pointer: &str, value: Value, expected: &[&str]| {
            expect(what, &validate(&with(set.clone(), &[(pointer, value)])), expected);
        };
        row(
            "nothing at a time",
            "/spec/updateStrategy/rollingUpdate/maxUnavailable",
            json!(0),
            &["spec.updateStrategy.rollingUpdate.maxUnavailable: Invalid value: 0: cannot be 0"],
        );
        row(
            "retention",
            "/spec/persistentVolumeClaimRetentionPolicy/whenScaled",
            json!("Sell"),
            &[
                "spec.persistentVolumeClaimRetentionPolicy.whenScaled: Unsupported value: \"Sell\": supported values: \
               \"Delete\", \"Retain\"",
            ],
        );
        expect("scaled", &validate_update(&with(set.clone(), &[("/spec/replicas", json!(3))]), &set), &[]);
        let renamed = with(set.clone(), &[("/spec/serviceName", json!("x"))]);
        assert_eq!(validate_update(&renamed, &set).0.len(), 1);
    }
}
