//! A cluster on paper: objects from JSON, decisions as text.

use k8s_openapi::api::core::v1::{Node, Pod};
use sampan_scheduler::{Decision, Event, Scheduler};
use serde_json::{Value, json};

/// A scheduler whose decisions are carried out at once and always succeed.
pub(crate) struct Cluster {
    pub(crate) scheduler: Scheduler,
}

impl Cluster {
    pub(crate) fn new() -> Self {
        Self { scheduler: Scheduler::new() }
    }

    /// Adds or changes a node with 4 CPUs, 8 GiB and 10 pods; `spec` may hold `labels`, `taints`,
    /// `unschedulable` and `allocatable`, which replaces amounts.
    pub(crate) fn node(&mut self, name: &str, spec: Value) -> Vec<String> {
        self.scheduler.apply(Event::NodeChanged(&node(name, &spec)));
        self.decide()
    }

    /// Adds or changes a pod. The name is the uid as well.
    pub(crate) fn pod(&mut self, name: &str, spec: Value) -> Vec<String> {
        self.scheduler.apply(Event::PodChanged(&pod(name, &spec)));
        self.decide()
    }

    pub(crate) fn apply(&mut self, event: Event<'_>) -> Vec<String> {
        self.scheduler.apply(event);
        self.decide()
    }

    pub(crate) fn decide(&mut self) -> Vec<String> {
        self.scheduler.schedule(usize::MAX).iter().map(describe).collect()
    }
}

fn describe(decision: &Decision) -> String {
    match decision {
        Decision::Bind { pod, node } => format!("{} -> {node}", pod.name),
        Decision::Unschedulable { pod, message } => format!("{}: {message}", pod.name),
        Decision::Gated { pod } => format!("{}: gated", pod.name),
    }
}

pub(crate) fn node(name: &str, spec: &Value) -> Node {
    let mut allocatable = json!({"cpu": "4", "memory": "8Gi", "pods": "10"});
    if let (Some(all), Some(given)) = (allocatable.as_object_mut(), spec["allocatable"].as_object()) {
        all.extend(given.clone());
    }
    let unschedulable = spec["unschedulable"].as_bool().unwrap_or(false);
    serde_json::from_value(json!({
        "metadata": {"name": name, "labels": spec["labels"]},
        "spec": {"taints": spec["taints"], "unschedulable": unschedulable},
        "status": {"allocatable": allocatable},
    }))
    .expect("a node")
}

/// A pod with one container, whose `requests` and `ports` are taken out of `spec`; the rest of `spec`
/// is the pod's, but `phase` and `deleted` go where they belong.
pub(crate) fn pod(name: &str, spec: &Value) -> Pod {
    let mut spec = spec.clone();
    let mut take =
        |field: &str| spec.as_object_mut().and_then(|spec| spec.remove(field)).unwrap_or(Value::Null);
    let (requests, ports, phase) = (take("requests"), take("ports"), take("phase"));
    let deleted = (take("deleted") == json!(true)).then_some("2026-01-01T00:00:00Z");
    let container = json!({"name": "c", "resources": {"requests": requests}, "ports": ports});
    spec["containers"] = json!([container]);
    serde_json::from_value(json!({
        "metadata": {"namespace": "default", "name": name, "uid": name, "deletionTimestamp": deleted},
        "spec": spec,
        "status": {"phase": phase},
    }))
    .expect("a pod")
}
