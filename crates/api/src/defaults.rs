//! Constant defaults: what a field holds when the user left it out.
//!
//! The table says for a type and a field what to put there; [`apply`] walks a document along its schema and fills it in,
//! wherever the type occurs. Defaults that depend on other fields are functions of the kind's
//! [`Strategy`](crate::kind::Strategy) and run afterwards. Both may run any number of times.
//!
//! Source: the `zz_generated.defaults.go` and `defaults.go` files of Kubernetes 1.36.

use std::collections::HashMap;
use std::sync::OnceLock;

use serde_json::{Map, Value};

use crate::schema::{FieldType, Types};

/// A line is a type (without `io.k8s.api.`), a field and the JSON to put there. Upstream decodes into structures, where
/// a number or text that is not behind a pointer cannot be absent; such a field, marked `?`, gets its default also when
/// the user writes `0` or `""`.
const TABLE: &str = r#"
core.v1.ConfigMapVolumeSource defaultMode 420
core.v1.Container resources {}
core.v1.Container terminationMessagePath? "/dev/termination-log"
core.v1.Container terminationMessagePolicy? "File"
core.v1.ContainerPort protocol? "TCP"
core.v1.DownwardAPIVolumeSource defaultMode 420
core.v1.EndpointPort protocol? "TCP"
core.v1.EphemeralContainer resources {}
core.v1.EphemeralContainer terminationMessagePath? "/dev/termination-log"
core.v1.EphemeralContainer terminationMessagePolicy? "File"
core.v1.GRPCAction service ""
core.v1.HTTPGetAction path? "/"
core.v1.HTTPGetAction scheme? "HTTP"
core.v1.HostPathVolumeSource type ""
core.v1.ISCSIPersistentVolumeSource iscsiInterface? "default"
core.v1.ISCSIVolumeSource iscsiInterface? "default"
core.v1.NamespaceStatus phase? "Active"
core.v1.ObjectFieldSelector apiVersion? "v1"
core.v1.PersistentVolumeClaimSpec volumeMode "Filesystem"
core.v1.PersistentVolumeClaimStatus phase? "Pending"
core.v1.PersistentVolumeSpec persistentVolumeReclaimPolicy? "Retain"
core.v1.PersistentVolumeSpec volumeMode "Filesystem"
core.v1.PersistentVolumeStatus phase? "Pending"
core.v1.PodSpec dnsPolicy? "ClusterFirst"
core.v1.PodSpec restartPolicy? "Always"
core.v1.PodSpec schedulerName? "default-scheduler"
core.v1.PodSpec securityContext {}
core.v1.PodSpec terminationGracePeriodSeconds 30
core.v1.Probe failureThreshold? 3
core.v1.Probe periodSeconds? 10
core.v1.Probe successThreshold? 1
core.v1.Probe timeoutSeconds? 1
core.v1.ProjectedVolumeSource defaultMode 420
core.v1.RBDPersistentVolumeSource keyring? "/etc/ceph/keyring"
core.v1.RBDPersistentVolumeSource pool? "rbd"
core.v1.RBDPersistentVolumeSource user? "admin"
core.v1.RBDVolumeSource keyring? "/etc/ceph/keyring"
core.v1.RBDVolumeSource pool? "rbd"
core.v1.RBDVolumeSource user? "admin"
core.v1.ReplicationControllerSpec replicas 1
core.v1.Secret type? "Opaque"
core.v1.SecretVolumeSource defaultMode 420
core.v1.ServiceAccountTokenProjection expirationSeconds 3600
core.v1.ServicePort protocol? "TCP"
core.v1.ServiceSpec sessionAffinity? "None"
core.v1.ServiceSpec type? "ClusterIP"
apps.v1.DaemonSetSpec revisionHistoryLimit 10
apps.v1.DeploymentSpec progressDeadlineSeconds 600
apps.v1.DeploymentSpec replicas 1
apps.v1.DeploymentSpec revisionHistoryLimit 10
apps.v1.ReplicaSetSpec replicas 1
apps.v1.StatefulSetSpec podManagementPolicy? "OrderedReady"
apps.v1.StatefulSetSpec replicas 1
apps.v1.StatefulSetSpec revisionHistoryLimit 10
admissionregistration.v1.MatchResources matchPolicy "Equivalent"
admissionregistration.v1.MatchResources namespaceSelector {}
admissionregistration.v1.MatchResources objectSelector {}
admissionregistration.v1.MutatingAdmissionPolicySpec failurePolicy "Fail"
admissionregistration.v1.MutatingAdmissionPolicySpec reinvocationPolicy? "Never"
admissionregistration.v1.MutatingWebhook failurePolicy "Fail"
admissionregistration.v1.MutatingWebhook matchPolicy "Equivalent"
admissionregistration.v1.MutatingWebhook namespaceSelector {}
admissionregistration.v1.MutatingWebhook objectSelector {}
admissionregistration.v1.MutatingWebhook reinvocationPolicy "Never"
admissionregistration.v1.MutatingWebhook timeoutSeconds 10
admissionregistration.v1.NamedRuleWithOperations scope "*"
admissionregistration.v1.ParamRef parameterNotFoundAction "Deny"
admissionregistration.v1.RuleWithOperations scope "*"
admissionregistration.v1.ServiceReference port 443
admissionregistration.v1.ValidatingAdmissionPolicySpec failurePolicy "Fail"
admissionregistration.v1.ValidatingWebhook failurePolicy "Fail"
admissionregistration.v1.ValidatingWebhook matchPolicy "Equivalent"
admissionregistration.v1.ValidatingWebhook namespaceSelector {}
admissionregistration.v1.ValidatingWebhook objectSelector {}
admissionregistration.v1.ValidatingWebhook timeoutSeconds 10
autoscaling.v1.HorizontalPodAutoscalerSpec minReplicas 1
autoscaling.v2.HorizontalPodAutoscalerSpec minReplicas 1
batch.v1.CronJobSpec concurrencyPolicy? "Allow"
batch.v1.CronJobSpec failedJobsHistoryLimit 1
batch.v1.CronJobSpec successfulJobsHistoryLimit 3
batch.v1.CronJobSpec suspend false
discovery.v1.EndpointPort name ""
discovery.v1.EndpointPort protocol "TCP"
flowcontrol.v1.ExemptPriorityLevelConfiguration lendablePercent 0
flowcontrol.v1.ExemptPriorityLevelConfiguration nominalConcurrencyShares 0
flowcontrol.v1.FlowSchemaSpec matchingPrecedence? 1000
flowcontrol.v1.LimitedPriorityLevelConfiguration lendablePercent 0
flowcontrol.v1.LimitedPriorityLevelConfiguration nominalConcurrencyShares 30
flowcontrol.v1.QueuingConfiguration handSize? 8
flowcontrol.v1.QueuingConfiguration queueLengthLimit? 50
flowcontrol.v1.QueuingConfiguration queues? 64
networking.v1.IngressClassParametersReference scope "Cluster"
networking.v1.NetworkPolicyPort protocol "TCP"
rbac.v1.RoleRef apiGroup? "rbac.authorization.k8s.io"
resource.v1.DeviceSubRequest allocationMode? "ExactCount"
resource.v1.DeviceToleration operator? "Equal"
resource.v1.ExactDeviceRequest allocationMode? "ExactCount"
scheduling.v1.PriorityClass preemptionPolicy "PreemptLowerPriority"
storage.v1.StorageClass reclaimPolicy "Delete"
storage.v1.StorageClass volumeBindingMode "Immediate"
storage.v1.CSIDriverSpec attachRequired true
storage.v1.CSIDriverSpec fsGroupPolicy "ReadWriteOnceWithFSType"
storage.v1.CSIDriverSpec podInfoOnMount false
storage.v1.CSIDriverSpec requiresRepublish false
storage.v1.CSIDriverSpec seLinuxMount false
storage.v1.CSIDriverSpec storageCapacity false
"#;

/// A default of one field.
struct Constant {
    field: &'static str,
    value: Value,
    /// Zero and empty text count as left out.
    replaces_zero: bool,
}

fn table() -> &'static HashMap<String, Vec<Constant>> {
    static PARSED: OnceLock<HashMap<String, Vec<Constant>>> = OnceLock::new();
    PARSED.get_or_init(|| {
        let mut table: HashMap<String, Vec<Constant>> = HashMap::new();
        for line in TABLE.lines() {
            let mut parts = line.splitn(3, ' ');
            let (Some(type_), Some(field), Some(json)) = (parts.next(), parts.next(), parts.next()) else {
                continue;
            };
            // The texts are constants of this file and a test parses them all.
            let value = serde_json::from_str(json).unwrap_or(Value::Null);
            let replaces_zero = field.ends_with('?');
            let constant = Constant { field: field.trim_end_matches('?'), value, replaces_zero };
            table.entry(format!("io.k8s.api.{type_}")).or_default().push(constant);
        }
        table
    })
}

/// The constant default of a field.
pub fn of(type_name: &str, field: &str) -> Option<&'static Value> {
    let constants = table().get(type_name)?;
    constants.iter().find(|constant| constant.field == field).map(|constant| &constant.value)
}

/// Fills in the constant defaults of a document of a type. Unknown types and values of the wrong shape stay as they are.
pub fn apply(type_name: &str, document: &mut Value) {
    if let Some(object) = document.as_object_mut() {
        apply_to_object(type_name, object);
    }
}

fn apply_to_object(type_name: &str, object: &mut Map<String, Value>) {
    let Some(type_) = Types::get().type_(type_name) else {
        return;
    };
    for constant in table().get(type_name).into_iter().flatten() {
        let slot = object.entry(constant.field).or_insert(Value::Null);
        if slot.is_null() || (constant.replaces_zero && is_zero(slot)) {
            *slot = constant.value.clone();
        }
    }
    for (name, value) in object.iter_mut() {
        if let Some(field) = type_.field(name) {
            apply_to_field(&field.type_, value);
        }
    }
}

fn apply_to_field(type_: &FieldType, value: &mut Value) {
    match (type_, value) {
        (FieldType::Struct(name), Value::Object(object)) => apply_to_object(name, object),
        (FieldType::List(element), Value::Array(items)) => {
            for item in items {
                apply_to_field(element, item);
            }
        }
        (FieldType::Map(element), Value::Object(object)) => {
            for item in object.values_mut() {
                apply_to_field(element, item);
            }
        }
        _ => {}
    }
}

fn is_zero(value: &Value) -> bool {
    match value {
        Value::String(text) => text.is_empty(),
        Value::Number(number) => number.as_i64() == Some(0),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn every_row_names_a_field_of_the_schema() {
        for (type_name, constants) in table() {
            let type_ = Types::get().type_(type_name).unwrap_or_else(|| panic!("no type {type_name}"));
            for Constant { field, value, .. } in constants {
                assert!(type_.field(field).is_some(), "{type_name} has no {field}");
                assert!(!value.is_null(), "{type_name}.{field} is no JSON");
            }
        }
        let count: usize = table().values().map(Vec::len).sum();
        assert_eq!(count, TABLE.lines().filter(|line| !line.is_empty()).count());
    }

    #[test]
    fn rows() {
        let rows = [
            (
                "io.k8s.api.core.v1.Pod",
                json!({"spec": {"containers": [{"ports": [{"containerPort": 80}], "livenessProbe": {"httpGet": {"port": 80}}}]}}),
                json!({"spec": {
                    "containers": [{
                        "livenessProbe": {
                            "httpGet": {"port": 80, "path": "/", "scheme": "HTTP"},
                            "failureThreshold": 3, "periodSeconds": 10, "successThreshold": 1, "timeoutSeconds": 1,
                        },
                        "ports": [{"containerPort": 80, "protocol": "TCP"}],
                        "resources": {},
                        "terminationMessagePath": "/dev/termination-log",
                        "terminationMessagePolicy": "File",
                    }],
                    "dnsPolicy": "ClusterFirst",
                    "restartPolicy": "Always",
                    "schedulerName": "default-scheduler",
                    "securityContext": {},
                    "terminationGracePeriodSeconds": 30,
                }}),
            ),
            (
                "io.k8s.api.core.v1.PodSpec",
                json!({"terminationGracePeriodSeconds": 0, "restartPolicy": "", "dnsPolicy": "None", "schedulerName": null}),
                json!({
                    "terminationGracePeriodSeconds": 0, "restartPolicy": "Always", "dnsPolicy": "None",
                    "schedulerName": "default-scheduler", "securityContext": {},
                }),
            ),
            (
                "io.k8s.api.apps.v1.Deployment",
                json!({"spec": {"replicas": 0}}),
                json!({"spec": {"replicas": 0, "progressDeadlineSeconds": 600, "revisionHistoryLimit": 10}}),
            ),
            (
                "io.k8s.api.core.v1.Service",
                json!({"spec": {"ports": [{"port": 80}]}}),
                json!({"spec": {"ports": [{"port": 80, "protocol": "TCP"}], "sessionAffinity": "None", "type": "ClusterIP"}}),
            ),
            ("io.k8s.api.core.v1.Secret", json!({}), json!({"type": "Opaque"})),
            ("io.k8s.api.core.v1.ConfigMap", json!({"data": {"a": "b"}}), json!({"data": {"a": "b"}})),
            ("no.such.Type", json!({"a": 1}), json!({"a": 1})),
        ];
        for (type_name, mut document, expected) in rows {
            apply(type_name, &mut document);
            assert_eq!(document, expected, "{type_name}");
            apply(type_name, &mut document);
            assert_eq!(document, expected, "{type_name}: twice");
        }
    }
}
