//! Facts about pods that several controllers need, in the words of Kubernetes' own pod utilities.

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Pod, PodCondition};

use super::condition::TRUE;

/// The phase of a pod; a pod without a status is pending.
pub(crate) fn phase(pod: &Pod) -> &str {
    pod.status.as_ref().and_then(|status| status.phase.as_deref()).unwrap_or("Pending")
}

/// Whether the containers of a pod have ended for good.
pub(crate) fn is_terminal(pod: &Pod) -> bool {
    matches!(phase(pod), "Succeeded" | "Failed")
}

/// Whether somebody has asked for the pod's deletion.
pub(crate) fn is_deleting(pod: &Pod) -> bool {
    pod.metadata.deletion_timestamp.is_some()
}

/// Whether a pod counts as a replica: neither ended nor being deleted.
pub(crate) fn is_active(pod: &Pod) -> bool {
    !is_terminal(pod) && !is_deleting(pod)
}

/// Whether a pod is on its way out but its containers have not ended.
pub(crate) fn is_terminating(pod: &Pod) -> bool {
    !is_terminal(pod) && is_deleting(pod)
}

fn ready_condition(pod: &Pod) -> Option<&PodCondition> {
    let conditions = pod.status.as_ref()?.conditions.as_ref()?;
    conditions.iter().find(|condition| condition.type_ == "Ready" && condition.status == TRUE)
}

/// Whether a pod may receive requests.
pub(crate) fn is_ready(pod: &Pod) -> bool {
    ready_condition(pod).is_some()
}

/// Since when a ready pod has been ready.
pub(crate) fn ready_since(pod: &Pod) -> Option<Timestamp> {
    ready_condition(pod)?.last_transition_time.as_ref().map(|time| time.0)
}

/// When a ready pod counts as available: after it has been ready for `min_ready_seconds`. `None` for
/// pods that are not ready.
pub(crate) fn available_at(pod: &Pod, min_ready_seconds: i32) -> Option<Timestamp> {
    let condition = ready_condition(pod)?;
    if min_ready_seconds <= 0 {
        return Some(Timestamp::MIN);
    }
    let since = condition.last_transition_time.as_ref()?.0;
    Timestamp::from_second(since.as_second().saturating_add(i64::from(min_ready_seconds))).ok()
}

/// The node a pod is bound to.
pub(crate) fn node_name(pod: &Pod) -> Option<&str> {
    pod.spec.as_ref()?.node_name.as_deref().filter(|name| !name.is_empty())
}
