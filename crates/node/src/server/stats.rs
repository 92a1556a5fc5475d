//! `/stats/summary`: what pods and containers use, in the shape metrics collectors know
//! (`k8s.io/kubelet/pkg/apis/stats/v1alpha1`).

use bytes::Bytes;
use http::{Response, StatusCode};
use jiff::Timestamp;
use sampan_runtime::{ContainerState, ContainerStats};
use serde_json::{Value, json};

use super::body::NodeBody;
use super::{HttpError, respond};
use crate::context::Context;
use crate::time;

/// Figures of everything that runs, read now.
pub(crate) async fn summary(context: &Context) -> Result<Response<NodeBody>, HttpError> {
    let listed = context.runtime.list_pod_sandboxes().await.map_err(|error| HttpError::internal(&error))?;
    let mut pods = Vec::new();
    let mut total = ContainerStats { timestamp: time::now(), ..ContainerStats::default() };
    for sandbox in listed {
        let containers = context.runtime.list_containers(Some(&sandbox.id)).await;
        let mut figures = Vec::new();
        let mut of_pod = ContainerStats { timestamp: total.timestamp, ..ContainerStats::default() };
        for container in containers.unwrap_or_default() {
            if container.state != ContainerState::Running {
                continue;
            }
            // One that ended this moment has no figures.
            let Ok(usage) = context.runtime.container_stats(&container.id).await else { continue };
            add(&mut of_pod, &usage);
            let mut entry = usage_json(&usage);
            entry["name"] = json!(container.metadata.name);
            entry["startTime"] = json!(timestamp(container.started_at));
            figures.push(entry);
        }
        if figures.is_empty() {
            continue;
        }
        add(&mut total, &of_pod);
        let mut entry = usage_json(&of_pod);
        let meta = &sandbox.metadata;
        entry["podRef"] = json!({ "name": meta.name, "namespace": meta.namespace, "uid": meta.uid });
        entry["startTime"] = json!(timestamp(sandbox.created_at));
        entry["containers"] = Value::Array(figures);
        pods.push(entry);
    }
    let mut node = usage_json(&total);
    node["nodeName"] = json!(context.config.name);
    let text = json!({ "node": node, "pods": pods }).to_string();
    Ok(respond(StatusCode::OK, "application/json", Bytes::from(text)))
}

fn add(sum: &mut ContainerStats, usage: &ContainerStats) {
    sum.cpu_usage_ns = sum.cpu_usage_ns.saturating_add(usage.cpu_usage_ns);
    sum.memory_usage = sum.memory_usage.saturating_add(usage.memory_usage);
    sum.memory_working_set = sum.memory_working_set.saturating_add(usage.memory_working_set);
}

fn usage_json(usage: &ContainerStats) -> Value {
    let at = timestamp(usage.timestamp);
    json!({
        "cpu": { "time": at, "usageCoreNanoSeconds": usage.cpu_usage_ns },
        "memory": {
            "time": at,
            "usageBytes": usage.memory_usage,
            "workingSetBytes": usage.memory_working_set,
        },
    })
}

fn timestamp(nanos: i64) -> String {
    Timestamp::from_nanosecond(i128::from(nanos)).unwrap_or(Timestamp::UNIX_EPOCH).to_string()
}
