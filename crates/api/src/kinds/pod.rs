//! Pods: the kind the others exist for.
//!
//! The row is here; [`spec`] and its neighbours check what a pod may ask for and are shared by every kind with a pod
//! template, [`update`] says what may still change once a pod exists, [`status_table`] computes the famous STATUS
//! column. Which node a pod gets, and what happens to it there, is nobody's business in this crate.

mod affinity;
mod container;
mod defaulting;
mod probe;
mod qos;
mod resources;
mod security;
pub(crate) mod spec;
mod status_table;
pub mod update;
mod volume;

use serde_json::{Value, json};

use super::json::{is_empty, set};
use crate::field::{Errors, Path};
use crate::kind::{Column, Row, Strategy, Subresource};
use crate::quantity::Quantity;

pub(crate) use affinity::{validate_node_selector, validate_taints, validate_tolerations};
pub(crate) use defaulting::default_template_spec;
pub use qos::Amount;

const COLUMNS: &[Column] = &[
    Column::name(),
    Column::new("Ready", "Containers that are ready, of all containers of the pod."),
    Column::new("Status", "What the pod as a whole is doing."),
    Column::new("Restarts", "How often containers were restarted, and when the last time was."),
    Column::age(),
    Column::new("IP", "Address of the pod.").wide(),
    Column::new("Node", "Node the pod is on.").wide(),
    Column::new("Nominated Node", "Node on which room is being made for the pod.").wide(),
    Column::new("Readiness Gates", "Readiness gates that are passed, of all gates of the pod.").wide(),
];

/// Pods.
pub static POD: Row = Row {
    kind: "Pod",
    plural: "pods",
    singular: "pod",
    short_names: &["po"],
    categories: &["all"],
    subresources: &[
        Subresource::Attach,
        Subresource::Binding,
        Subresource::EphemeralContainers,
        Subresource::Eviction,
        Subresource::Exec,
        Subresource::Log,
        Subresource::PortForward,
        Subresource::Proxy,
        Subresource::Resize,
        Subresource::Status,
    ],
    // Old nodes damage owners in what they write back.
    status_keeps: &["ownerReferences"],
    schema: "io.k8s.api.core.v1.Pod",
    returns_deleted: true,
    columns: COLUMNS,
    table_row: status_table::row,
    field_selectors: &[
        ("spec.nodeName", "/spec/nodeName"),
        ("spec.restartPolicy", "/spec/restartPolicy"),
        ("spec.schedulerName", "/spec/schedulerName"),
        ("spec.serviceAccountName", "/spec/serviceAccountName"),
        ("spec.hostNetwork", "/spec/hostNetwork"),
        ("status.phase", "/status/phase"),
        ("status.podIP", "/status/podIP"),
        ("status.nominatedNodeName", "/status/nominatedNodeName"),
    ],
    generation: true,
    strategy: Strategy {
        default: defaulting::default_pod,
        prepare_create,
        validate,
        validate_update: update::validate,
        ..Strategy::PLAIN
    },
    ..Row::PLAIN
};

/// A pod begins pending, in the quality-of-service class its resources put it in.
fn prepare_create(pod: &mut Value) {
    let mut status = json!({"phase": "Pending", "qosClass": qos::class(&pod["spec"])});
    if !is_empty(&pod["spec"]["schedulingGates"]) {
        status["conditions"] = json!([{
            "type": "PodScheduled",
            "status": "False",
            "reason": "SchedulingGated",
            "message": "Scheduling is blocked due to non-empty scheduling gates",
        }]);
    }
    set(pod, "status", status);
}

fn validate(pod: &Value) -> Errors {
    let mut errors = Errors::new();
    spec::validate(&mut errors, &Path::new("spec"), &pod["spec"]);
    if !is_empty(&pod["spec"]["schedulingGates"]) && !is_empty(&pod["spec"]["nodeName"]) {
        errors.forbidden(
            &Path::new("spec").child("nodeName"),
            "cannot be set until all schedulingGates have been cleared",
        );
    }
    errors
}

/// What a pod needs of a resource: the sum over its containers, or its largest initialisation step if that is more,
/// plus overhead. This is what quotas count and what the scheduler reserves (KEP-753 for sidecars).
pub fn request_of(spec: &Value, resource: &str) -> Quantity {
    qos::of_pod(spec, Amount::Request, resource)
}

/// What a pod may use of a resource, counted like its requests; zero when no container has a limit.
pub fn limit_of(spec: &Value, resource: &str) -> Quantity {
    qos::of_pod(spec, Amount::Limit, resource)
}

/// Quality-of-service class of a pod's spec.
pub fn qos_class(spec: &Value) -> &'static str {
    qos::class(spec)
}

#[cfg(test)]
mod tests {
    use super::super::rules::testing::{expect, with};
    use super::*;

    /// A pod as it looks after defaulting.
    pub(super) fn good() -> Value {
        let mut pod = json!({
            "metadata": {"name": "a", "namespace": "default"},
            "spec": {
                "restartPolicy": "Always", "dnsPolicy": "ClusterFirst", "terminationGracePeriodSeconds": 30,
                "securityContext": {}, "schedulerName": "default-scheduler",
                "containers": [{
                    "name": "web", "image": "nginx:1.27", "terminationMessagePath": "/dev/termination-log",
                    "terminationMessagePolicy": "File", "resources": {},
                }],
            },
        });
        defaulting::default_pod(&mut pod);
        pod
    }

    #[test]
    fn a_good_pod_is_fine() {
        expect("good", &validate(&good()), &[]);
    }

    #[test]
    fn a_pod_begins_pending() {
        let mut pod = good();
        prepare_create(&mut pod);
        assert_eq!(pod["status"], json!({"phase": "Pending", "qosClass": "BestEffort"}));
        let mut pod = with(good(), &[("/spec/schedulingGates", json!([{"name": "a.b/c"}]))]);
        prepare_create(&mut pod);
        assert_eq!(pod["status"]["conditions"][0]["reason"], "SchedulingGated");
    }

    #[test]
    fn validation() {
        let row = |what: &str, changes: &[(&str, Value)], expected: &[&str]| {
            expect(what, &validate(&with(good(), changes)), expected);
        };
        row("no containers", &[("/spec/containers", json!([]))], &["spec.containers: Required value"]);
        row(
            "no image",
            &[("/spec/containers/0/image", json!(""))],
            &["spec.containers[0].image: Required value"],
        );
        row(
            "restart policy",
            &[("/spec/restartPolicy", json!("Sometimes"))],
            &[
                "spec.restartPolicy: Unsupported value: \"Sometimes\": supported values: \"Always\", \"OnFailure\", \"Never\"",
            ],
        );
        let second = good()["spec"]["containers"][0].clone();
        row(
            "duplicate container",
            &[("/spec/containers/1", second)],
            &["spec.containers[1].name: Duplicate value: \"web\""],
        );
        row(
            "mount of nothing",
            &[("/spec/containers/0/volumeMounts", json!([{"name": "data", "mountPath": "/data"}]))],
            &["spec.containers[0].volumeMounts[0].name: Not found: \"data\""],
        );
        row(
            "request above limit",
            &[("/spec/containers/0/resources", json!({"requests": {"cpu": "2"}, "limits": {"cpu": "1"}}))],
            &[
                "spec.containers[0].resources.requests: Invalid value: \"2\": must be less than or equal to cpu limit of 1",
            ],
        );
        row(
            "negative limit",
            &[("/spec/containers/0/resources", json!({"limits": {"cpu": "-1"}}))],
            &[
                "spec.containers[0].resources.limits[cpu]: Invalid value: \"-1\": must be greater than or equal to 0",
            ],
        );
        row(
            "port out of range",
            &[("/spec/containers/0/ports", json!([{"containerPort": 70000, "protocol": "TCP"}]))],
            &[
                "spec.containers[0].ports[0].containerPort: Invalid value: 70000: must be between 1 and 65535, inclusive",
            ],
        );
        row(
            "two volume types",
            &[(
                "/spec/volumes",
                json!([{"name": "v", "emptyDir": {}, "hostPath": {"path": "/x", "type": ""}}]),
            )],
            &["spec.volumes[0].hostPath: Forbidden: may not specify more than 1 volume type"],
        );
        row(
            "gated and bound",
            &[("/spec/schedulingGates", json!([{"name": "a.b/c"}])), ("/spec/nodeName", json!("n1"))],
            &["spec.nodeName: Forbidden: cannot be set until all schedulingGates have been cleared"],
        );
        row(
            "environment",
            &[(
                "/spec/containers/0/env",
                json!([{"name": "", "value": "x"}, {"name": "a=b"}, {"name": "B", "valueFrom": {}}]),
            )],
            &[
                "spec.containers[0].env[0].name: Required value",
                "spec.containers[0].env[1].name: Invalid value: \"a=b\": a valid environment variable name must consist \
                 only of printable ASCII characters other than '='",
                "spec.containers[0].env[2].valueFrom: Invalid value: \"\": must specify one of: `fieldRef`, \
                 `resourceFieldRef`, `configMapKeyRef`, `secretKeyRef` or `fileKeyRef`",
            ],
        );
        row(
            "probe without handler",
            &[(
                "/spec/containers/0/livenessProbe",
                json!({"timeoutSeconds": -1, "periodSeconds": 10, "successThreshold": 2, "failureThreshold": 3}),
            )],
            &[
                "spec.containers[0].livenessProbe: Required value: must specify a handler type",
                "spec.containers[0].livenessProbe.timeoutSeconds: Invalid value: -1: must be greater than or equal to 0",
                "spec.containers[0].livenessProbe.successThreshold: Invalid value: 2: must be 1",
            ],
        );
        row(
            "toleration",
            &[("/spec/tolerations", json!([{"effect": "NoSchedule"}]))],
            &[
                "spec.tolerations[0].operator: Invalid value: \"\": operator must be Exists when `key` is empty, which \
                 means \"match all values and all keys\"",
            ],
        );
    }
}
