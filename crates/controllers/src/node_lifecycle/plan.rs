//! What is to be written about a node, given its conditions and how long it has been silent: pure.
//!
//! ```text
//!   silent for the grace period    -> what the node said about itself becomes Unknown
//!   Ready is False, Unknown        -> taints not-ready, unreachable: NoSchedule and NoExecute
//!   another condition is bad       -> its taint, NoSchedule
//!   the condition is good again    -> the taint goes
//! ```
//!
//! While no node of the cluster is ready there are no NoExecute taints: then it is more likely that the control plane is cut
//! off than that all machines failed, and driven out pods would have nowhere to go.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Node, NodeCondition, Taint};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use crate::common::condition::{FALSE, TRUE, UNKNOWN};

/// How long a node may be silent before nobody can tell how it is; four of the agent's renewals.
const GRACE: Duration = Duration::from_secs(40);
/// The same for a node that has never said anything; upstream's value.
const STARTUP_GRACE: Duration = Duration::from_secs(60);
/// A node is looked at this long before its grace ends, and at the end. The first look shows whether this process listened
/// all the time (see `heard`), so that the second can be believed.
const DOUBT: Duration = Duration::from_secs(10);

const READY: &str = "Ready";
const NO_SCHEDULE: &str = "NoSchedule";
const NO_EXECUTE: &str = "NoExecute";
const NOT_READY: &str = "node.kubernetes.io/not-ready";
const UNREACHABLE: &str = "node.kubernetes.io/unreachable";
const UNSCHEDULABLE: &str = "node.kubernetes.io/unschedulable";

/// The conditions a node reports about itself and nobody else does.
const REPORTED: &[&str] = &[READY, "MemoryPressure", "DiskPressure", "PIDPressure"];

/// Condition, its bad status, and the taint for that.
const BAD: &[(&str, &str, &str)] = &[
    (READY, FALSE, NOT_READY),
    (READY, UNKNOWN, UNREACHABLE),
    ("MemoryPressure", TRUE, "node.kubernetes.io/memory-pressure"),
    ("DiskPressure", TRUE, "node.kubernetes.io/disk-pressure"),
    ("NetworkUnavailable", TRUE, "node.kubernetes.io/network-unavailable"),
    ("PIDPressure", TRUE, "node.kubernetes.io/pid-pressure"),
];

/// One write.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Action {
    /// Write these conditions, in which nobody can tell how the node is.
    MarkUnknown(Vec<NodeCondition>),
    /// Replace the node's taints.
    SetTaints(Vec<Taint>),
}

/// What to do about one node.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Plan {
    pub(super) action: Option<Action>,
    /// Look again after this time, in case nothing is heard until then.
    pub(super) again: Option<Duration>,
}

/// Whether the node says that it is ready.
pub(super) fn is_ready(node: &Node) -> bool {
    condition(node, READY).is_some_and(|ready| ready.status == TRUE)
}

/// The node's own sign of life in its status.
pub(super) fn heartbeat(node: &Node) -> Option<&Time> {
    condition(node, READY)?.last_heartbeat_time.as_ref()
}

fn condition<'a>(node: &'a Node, type_: &str) -> Option<&'a NodeCondition> {
    let conditions = node.status.as_ref()?.conditions.as_ref()?;
    conditions.iter().find(|condition| condition.type_ == type_)
}

/// The step for `node`. `ready_since` tells since when some node of the cluster has been ready, `None` if none is.
pub(super) fn plan(node: &Node, ready_since: Option<Timestamp>, silent: Duration, now: Timestamp) -> Plan {
    let ready = condition(node, READY);
    let grace = if ready.is_some() { GRACE } else { STARTUP_GRACE };
    if silent >= grace {
        let unknown = unknown_conditions(node, now);
        if !unknown.is_empty() {
            return Plan { action: Some(Action::MarkUnknown(unknown)), again: None };
        }
    }
    let is_known = ready.is_none_or(|ready| ready.status != UNKNOWN);
    Plan {
        action: changed_taints(node, ready_since).map(Action::SetTaints),
        again: is_known.then(|| next_look(silent, grace)),
    }
}

fn next_look(silent: Duration, grace: Duration) -> Duration {
    let doubt = grace - DOUBT;
    if silent < doubt { doubt - silent } else { grace.saturating_sub(silent) }
}

/// The reported conditions that are not unknown yet, made so.
fn unknown_conditions(node: &Node, now: Timestamp) -> Vec<NodeCondition> {
    let unknown = |type_: &&str| {
        let before = condition(node, type_);
        let (reason, message) = match before {
            Some(before) if before.status == UNKNOWN => return None,
            Some(_) => ("NodeStatusUnknown", "Kubelet stopped posting node status."),
            None => ("NodeStatusNeverUpdated", "Kubelet never posted node status."),
        };
        let heartbeat = match before {
            Some(before) => before.last_heartbeat_time.clone(),
            None => node.metadata.creation_timestamp.clone(),
        };
        Some(NodeCondition {
            type_: type_.to_string(),
            status: UNKNOWN.to_string(),
            reason: Some(reason.to_string()),
            message: Some(message.to_string()),
            last_heartbeat_time: heartbeat,
            last_transition_time: Some(Time(now)),
        })
    };
    REPORTED.iter().filter_map(unknown).collect()
}

/// The node's taints if they are to change. Taints of others, and the times of those that stay, are left alone.
fn changed_taints(node: &Node, ready_since: Option<Timestamp>) -> Option<Vec<Taint>> {
    let present = node.spec.as_ref().and_then(|spec| spec.taints.as_deref()).unwrap_or_default();
    let wanted = wanted_taints(node, ready_since);
    let is_in = |list: &[Taint], taint: &Taint| list.iter().any(|other| is_same(other, taint));
    let stays = |taint: &&Taint| !is_managed(taint) || is_in(&wanted, taint);
    let mut taints: Vec<Taint> = present.iter().filter(stays).cloned().collect();
    let gone = taints.len() < present.len();
    let missing: Vec<Taint> = wanted.iter().filter(|taint| !is_in(present, taint)).cloned().collect();
    let changed = gone || !missing.is_empty();
    taints.extend(missing);
    changed.then_some(taints)
}

fn wanted_taints(node: &Node, ready_since: Option<Timestamp>) -> Vec<Taint> {
    let mut taints = Vec::new();
    for (type_, status, key) in BAD {
        let Some(bad) = condition(node, type_).filter(|condition| condition.status == *status) else {
            continue;
        };
        let since = bad.last_transition_time.clone();
        taints.push(taint(key, NO_SCHEDULE, since.clone()));
        if let Some(ready_since) = ready_since.filter(|_| *type_ == READY) {
            // After a time without any ready node the others must get their chance to report before their pods are counted
            // out.
            let since = since.map_or(ready_since, |since| since.0.max(ready_since));
            taints.push(taint(key, NO_EXECUTE, Some(Time(since))));
        }
    }
    if condition(node, READY).is_none() {
        taints.push(taint(NOT_READY, NO_SCHEDULE, None));
    }
    if node.spec.as_ref().and_then(|spec| spec.unschedulable) == Some(true) {
        taints.push(taint(UNSCHEDULABLE, NO_SCHEDULE, None));
    }
    taints
}

fn taint(key: &str, effect: &str, time_added: Option<Time>) -> Taint {
    Taint { key: key.to_string(), effect: effect.to_string(), value: None, time_added }
}

fn is_same(a: &Taint, b: &Taint) -> bool {
    a.key == b.key && a.effect == b.effect
}

/// Whether a taint is this loop's to add and to remove.
fn is_managed(taint: &Taint) -> bool {
    let key = taint.key.as_str();
    match taint.effect.as_str() {
        NO_SCHEDULE => key == UNSCHEDULABLE || BAD.iter().any(|(_, _, bad)| *bad == key),
        NO_EXECUTE => [NOT_READY, UNREACHABLE].contains(&key),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::{NodeSpec, NodeStatus};

    use super::*;
    use crate::common::testing::{self, at, time};

    /// A node with conditions since second 10 and taints written `key:effect`.
    fn node(conditions: &[(&str, &str)], taints: &[&str]) -> Node {
        let conditions = conditions.iter().map(|(type_, status)| NodeCondition {
            type_: type_.to_string(),
            status: status.to_string(),
            last_heartbeat_time: Some(time(20)),
            last_transition_time: Some(time(10)),
            ..NodeCondition::default()
        });
        let taints = taints.iter().map(|text| {
            let (key, effect) = text.split_once(':').expect("key:effect");
            taint(&long(key), effect, Some(time(5)))
        });
        Node {
            metadata: testing::meta("n", "uid-n"),
            spec: Some(NodeSpec { taints: Some(taints.collect()), ..NodeSpec::default() }),
            status: Some(NodeStatus { conditions: Some(conditions.collect()), ..NodeStatus::default() }),
        }
    }

    /// `own` is a user's taint, everything else one of Kubernetes'.
    fn long(key: &str) -> String {
        if key == "own" { key.into() } else { format!("node.kubernetes.io/{key}") }
    }

    /// Taints as `key:effect@second`.
    fn short(taints: &[Taint]) -> Vec<String> {
        let word = |taint: &Taint| {
            let key = taint.key.trim_start_matches("node.kubernetes.io/");
            let since = taint.time_added.as_ref().map(|time| time.0.as_second() - at(0).as_second());
            format!("{key}:{}@{}", taint.effect, since.map_or("never".into(), |second| second.to_string()))
        };
        taints.iter().map(word).collect()
    }

    #[test]
    fn taints_follow_conditions() {
        let good: &[(&str, &str)] = &[("Ready", "True"), ("MemoryPressure", "False")];
        let bad: &[(&str, &str)] = &[("Ready", "False")];
        let lost: &[(&str, &str)] = &[("Ready", "Unknown"), ("DiskPressure", "Unknown")];
        let pressed: &[(&str, &str)] = &[
            ("Ready", "True"),
            ("MemoryPressure", "True"),
            ("DiskPressure", "True"),
            ("PIDPressure", "True"),
            ("NetworkUnavailable", "True"),
        ];
        // Since when another node is ready, and the taints afterwards; `None` if nothing is written.
        type Row<'a> = (&'a str, &'a [(&'a str, &'a str)], &'a [&'a str], Option<i64>, Option<Vec<&'a str>>);
        let rows: Vec<Row> = vec![
            ("ready", good, &[], Some(0), None),
            (
                "ready, tainted by its user",
                good,
                &["own:NoExecute", "not-ready:PreferNoSchedule"],
                Some(0),
                None,
            ),
            ("becomes ready", good, &["not-ready:NoSchedule"], Some(0), Some(vec![])),
            (
                "ready again",
                good,
                &["own:NoSchedule", "unreachable:NoSchedule", "unreachable:NoExecute"],
                Some(0),
                Some(vec!["own:NoSchedule@5"]),
            ),
            (
                "not ready",
                bad,
                &["own:NoSchedule"],
                Some(0),
                Some(vec!["own:NoSchedule@5", "not-ready:NoSchedule@10", "not-ready:NoExecute@10"]),
            ),
            ("not ready, done", bad, &["not-ready:NoExecute", "not-ready:NoSchedule"], Some(0), None),
            (
                "not ready, then unreachable",
                lost,
                &["not-ready:NoSchedule", "not-ready:NoExecute"],
                Some(0),
                Some(vec!["unreachable:NoSchedule@10", "unreachable:NoExecute@10"]),
            ),
            (
                "others are ready again only now",
                lost,
                &["unreachable:NoSchedule"],
                Some(30),
                Some(vec!["unreachable:NoSchedule@5", "unreachable:NoExecute@30"]),
            ),
            ("nobody is ready", lost, &[], None, Some(vec!["unreachable:NoSchedule@10"])),
            (
                "nobody is ready any more",
                lost,
                &["unreachable:NoSchedule", "unreachable:NoExecute"],
                None,
                Some(vec!["unreachable:NoSchedule@5"]),
            ),
            (
                "under pressure",
                pressed,
                &[],
                Some(0),
                Some(vec![
                    "memory-pressure:NoSchedule@10",
                    "disk-pressure:NoSchedule@10",
                    "network-unavailable:NoSchedule@10",
                    "pid-pressure:NoSchedule@10",
                ]),
            ),
            ("relieved", good, &["memory-pressure:NoSchedule"], Some(0), Some(vec![])),
            ("has said nothing", &[], &["not-ready:NoSchedule"], Some(0), None),
            ("has said nothing, untainted", &[], &[], Some(0), Some(vec!["not-ready:NoSchedule@never"])),
        ];
        for (name, conditions, taints, ready_since, expected) in rows {
            let node = node(conditions, taints);
            let plan = plan(&node, ready_since.map(at), Duration::ZERO, at(100));
            let written = match &plan.action {
                Some(Action::SetTaints(taints)) => Some(short(taints)),
                Some(Action::MarkUnknown(_)) => panic!("{name}: heard of just now"),
                None => None,
            };
            let expected = expected.map(|taints| taints.into_iter().map(String::from).collect::<Vec<_>>());
            assert_eq!(written, expected, "{name}");
            // What was written is left alone by the next look.
            if let Some(Action::SetTaints(taints)) = plan.action {
                let mut node = node;
                node.spec.as_mut().unwrap().taints = Some(taints);
                let next = super::plan(&node, ready_since.map(at), Duration::ZERO, at(101));
                assert_eq!(next.action, None, "{name}, again");
            }
        }
    }

    #[test]
    fn cordoned_nodes_are_tainted() {
        let mut cordoned = node(&[("Ready", "True")], &[]);
        cordoned.spec.as_mut().unwrap().unschedulable = Some(true);
        let taints = changed_taints(&cordoned, Some(at(0))).unwrap();
        assert_eq!(short(&taints), ["unschedulable:NoSchedule@never"]);
        let opened = node(&[("Ready", "True")], &["unschedulable:NoSchedule"]);
        assert_eq!(changed_taints(&opened, Some(at(0))), Some(vec![]));
    }

    #[test]
    fn silent_nodes_become_unknown() {
        let all: &[(&str, &str)] = &[
            ("Ready", "True"),
            ("MemoryPressure", "False"),
            ("DiskPressure", "False"),
            ("PIDPressure", "False"),
        ];
        let lost: &[(&str, &str)] = &[
            ("Ready", "Unknown"),
            ("MemoryPressure", "Unknown"),
            ("DiskPressure", "Unknown"),
            ("PIDPressure", "Unknown"),
        ];
        // Silence, the conditions that are marked, the next look.
        type Row<'a> = (&'a str, &'a [(&'a str, &'a str)], u64, Vec<&'a str>, Option<u64>);
        let rows: Vec<Row> = vec![
            ("heard of", all, 0, vec![], Some(30)),
            ("heard of a while ago", all, 10, vec![], Some(20)),
            ("in doubt", all, 30, vec![], Some(10)),
            ("in more doubt", all, 39, vec![], Some(1)),
            ("silent", all, 40, vec!["Ready", "MemoryPressure", "DiskPressure", "PIDPressure"], None),
            ("silent, not ready", &[("Ready", "False")], 40, REPORTED.to_vec(), None),
            ("marked", lost, 400, vec![], None),
            ("heard of again, not reported yet", lost, 0, vec![], None),
            ("never reported", &[], 40, vec![], Some(10)),
            ("never reported in time", &[], 60, REPORTED.to_vec(), None),
        ];
        for (name, conditions, silent, expected, again) in rows {
            let node = node(conditions, &[]);
            let plan = plan(&node, Some(at(0)), Duration::from_secs(silent), at(100));
            let marked: Vec<_> = match &plan.action {
                Some(Action::MarkUnknown(conditions)) => {
                    conditions.iter().map(|c| c.type_.as_str()).collect()
                }
                _ => Vec::new(),
            };
            assert_eq!((marked, plan.again.map(|again| again.as_secs())), (expected, again), "{name}");
        }
    }

    #[test]
    fn what_is_said_about_silent_nodes() {
        let node = node(&[("Ready", "True")], &[]);
        let marked = unknown_conditions(&node, at(100));
        let ready = marked.iter().find(|condition| condition.type_ == READY).unwrap();
        assert_eq!(ready.status, "Unknown");
        assert_eq!(ready.reason.as_deref(), Some("NodeStatusUnknown"));
        assert_eq!(ready.last_heartbeat_time, Some(time(20)), "the node's last sign of life");
        assert_eq!(ready.last_transition_time, Some(time(100)));
        let memory = marked.iter().find(|condition| condition.type_ == "MemoryPressure").unwrap();
        assert_eq!(memory.reason.as_deref(), Some("NodeStatusNeverUpdated"));
        assert_eq!(memory.last_heartbeat_time, Some(time(0)), "the node's creation");
    }
}
