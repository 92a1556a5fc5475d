//! The row of a pod in `kubectl get pods`.
//!
//! STATUS is not a field: it is computed from phase, reason, the states of all containers and whether the pod is going
//! away, in the way of `pkg/printers/internalversion` (`printPod`), because scripts read it.

use jiff::Timestamp;
use serde_json::{Value, json};

use super::super::json::{int, is_true, list, text};
use crate::table;

/// What the walk over the containers of a pod finds out.
#[derive(Default)]
struct Summary {
    status: String,
    ready: usize,
    restarts: i64,
    last_restart: Option<Timestamp>,
}

impl Summary {
    fn count_restarts(&mut self, container: &Value) {
        self.restarts += int(&container["restartCount"]);
        let finished = &container["lastState"]["terminated"]["finishedAt"];
        if let Ok(at) = text(finished).parse::<Timestamp>() {
            self.last_restart = self.last_restart.max(Some(at));
        }
    }
}

/// Cells in the order of the columns.
pub(super) fn row(pod: &Value, now: Timestamp) -> Vec<Value> {
    let summary = summarize(pod);
    let (spec, status) = (&pod["spec"], &pod["status"]);
    let sidecars = list(&spec["initContainers"]).iter().filter(|c| is_sidecar(c)).count();
    let total = list(&spec["containers"]).len() + sidecars;
    let restarts = match summary.last_restart {
        Some(at) if summary.restarts != 0 => {
            let ago = table::human_duration(now.as_second() - at.as_second());
            format!("{} ({ago} ago)", summary.restarts)
        }
        _ => summary.restarts.to_string(),
    };
    vec![
        json!(text(&pod["metadata"]["name"])),
        json!(format!("{}/{total}", summary.ready)),
        json!(summary.status),
        json!(restarts),
        table::age(pod, now),
        or_none(text(&status["podIPs"][0]["ip"])),
        or_none(text(&spec["nodeName"])),
        or_none(text(&status["nominatedNodeName"])),
        readiness_gates(spec, status),
    ]
}

fn or_none(value: &str) -> Value {
    json!(if value.is_empty() { "<none>" } else { value })
}

fn is_sidecar(container: &Value) -> bool {
    text(&container["restartPolicy"]) == "Always"
}

fn readiness_gates(spec: &Value, status: &Value) -> Value {
    let gates = list(&spec["readinessGates"]);
    if gates.is_empty() {
        return json!("<none>");
    }
    let passed = gates.iter().filter(|gate| is_condition_true(status, text(&gate["conditionType"]))).count();
    json!(format!("{passed}/{}", gates.len()))
}

fn is_condition_true(status: &Value, type_: &str) -> bool {
    list(&status["conditions"])
        .iter()
        .find(|c| text(&c["type"]) == type_)
        .is_some_and(|c| text(&c["status"]) == "True")
}

fn summarize(pod: &Value) -> Summary {
    let status = &pod["status"];
    let phase = text(&status["phase"]);
    let reason = text(&status["reason"]);
    let mut summary =
        Summary { status: if reason.is_empty() { phase } else { reason }.to_owned(), ..Summary::default() };
    let gated = |c: &Value| text(&c["type"]) == "PodScheduled" && text(&c["reason"]) == "SchedulingGated";
    if list(&status["conditions"]).iter().any(gated) {
        summary.status = "SchedulingGated".to_owned();
    }

    let mut of_sidecars = Summary::default();
    let initializing = walk_init_containers(pod, &mut summary, &mut of_sidecars);
    if !initializing || is_condition_true(status, "Initialized") {
        // Restarts of finished initialisation steps no longer count.
        summary.restarts = of_sidecars.restarts;
        summary.last_restart = of_sidecars.last_restart;
        walk_containers(status, &mut summary);
    }

    if !pod["metadata"]["deletionTimestamp"].is_null() {
        if reason == "NodeLost" {
            summary.status = "Unknown".to_owned();
        } else if phase != "Succeeded" && phase != "Failed" {
            summary.status = "Terminating".to_owned();
        }
    }
    summary
}

/// Walks the initialisation steps up to the first that is not done; says whether there is one.
fn walk_init_containers(pod: &Value, summary: &mut Summary, of_sidecars: &mut Summary) -> bool {
    let steps = list(&pod["spec"]["initContainers"]);
    for (index, container) in list(&pod["status"]["initContainerStatuses"]).iter().enumerate() {
        let sidecar = steps.iter().find(|s| s["name"] == container["name"]).is_some_and(is_sidecar);
        summary.count_restarts(container);
        if sidecar {
            of_sidecars.count_restarts(container);
        }
        let (terminated, waiting) =
            (&container["state"]["terminated"], text(&container["state"]["waiting"]["reason"]));
        if terminated.is_object() && int(&terminated["exitCode"]) == 0 {
            continue;
        }
        if sidecar && is_true(&container["started"]) {
            summary.ready += usize::from(is_true(&container["ready"]));
            continue;
        }
        summary.status = if terminated.is_object() {
            format!("Init:{}", end_of(terminated))
        } else if !waiting.is_empty() && waiting != "PodInitializing" {
            format!("Init:{waiting}")
        } else {
            format!("Init:{index}/{}", steps.len())
        };
        return true;
    }
    false
}

/// Walks the containers from the last to the first: the first one with something to say wins.
fn walk_containers(status: &Value, summary: &mut Summary) {
    let mut has_running = false;
    for container in list(&status["containerStatuses"]).iter().rev() {
        summary.count_restarts(container);
        let (terminated, waiting) =
            (&container["state"]["terminated"], text(&container["state"]["waiting"]["reason"]));
        if !waiting.is_empty() {
            summary.status = waiting.to_owned();
        } else if terminated.is_object() {
            summary.status = end_of(terminated);
        } else if is_true(&container["ready"]) && container["state"]["running"].is_object() {
            has_running = true;
            summary.ready += 1;
        }
    }
    if summary.status == "Completed" && has_running {
        let ready = is_condition_true(status, "Ready");
        summary.status = if ready { "Running" } else { "NotReady" }.to_owned();
    }
}

/// How a container ended, in one word.
fn end_of(terminated: &Value) -> String {
    match (text(&terminated["reason"]), int(&terminated["signal"])) {
        ("", 0) => format!("ExitCode:{}", int(&terminated["exitCode"])),
        ("", signal) => format!("Signal:{signal}"),
        (reason, _) => reason.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(spec: Value, status: Value) -> Value {
        json!({"metadata": {"name": "a", "creationTimestamp": "2026-01-01T00:00:00Z"}, "spec": spec, "status": status})
    }

    fn now() -> Timestamp {
        "2026-01-01T01:00:00Z".parse().expect("a time")
    }

    #[test]
    fn status_column() {
        let one = || json!({"containers": [{"name": "c"}]});
        let state = |s: Value| json!([{"name": "c", "state": s}]);
        let running = json!({"name": "c", "ready": true, "state": {"running": {}}});
        let with_init =
            || json!({"initContainers": [{"name": "i"}, {"name": "j"}], "containers": [{"name": "c"}]});
        let init = |s: Value| json!([{"name": "i", "state": s}]);
        let waiting = |r: &str| json!({"waiting": {"reason": r}});
        let rows = [
            ("new", one(), json!({"phase": "Pending"}), "0/1", "Pending"),
            (
                "gated",
                one(),
                json!({"phase": "Pending", "conditions": [{"type": "PodScheduled", "reason": "SchedulingGated"}]}),
                "0/1",
                "SchedulingGated",
            ),
            ("running", one(), json!({"phase": "Running", "containerStatuses": [running]}), "1/1", "Running"),
            (
                "crashing",
                one(),
                json!({"phase": "Running", "containerStatuses": state(waiting("CrashLoopBackOff"))}),
                "0/1",
                "CrashLoopBackOff",
            ),
            (
                "completed",
                one(),
                json!({"phase": "Succeeded", "containerStatuses": state(json!({"terminated": {"reason": "Completed"}}))}),
                "0/1",
                "Completed",
            ),
            (
                "exit code",
                one(),
                json!({"phase": "Failed", "containerStatuses": state(json!({"terminated": {"exitCode": 3}}))}),
                "0/1",
                "ExitCode:3",
            ),
            (
                "signal",
                one(),
                json!({"phase": "Failed", "containerStatuses": state(json!({"terminated": {"exitCode": 137, "signal": 9}}))}),
                "0/1",
                "Signal:9",
            ),
            ("evicted", one(), json!({"phase": "Failed", "reason": "Evicted"}), "0/1", "Evicted"),
            (
                "first step waits",
                with_init(),
                json!({"phase": "Pending", "initContainerStatuses": init(waiting("PodInitializing"))}),
                "0/1",
                "Init:0/2",
            ),
            (
                "first step failed",
                with_init(),
                json!({"phase": "Pending", "initContainerStatuses": init(json!({"terminated": {"exitCode": 1, "reason": "Error"}}))}),
                "0/1",
                "Init:Error",
            ),
            (
                "steps done",
                with_init(),
                json!({
                    "phase": "Pending",
                    "initContainerStatuses": init(json!({"terminated": {"exitCode": 0}})),
                    "containerStatuses": state(waiting("PodInitializing")),
                }),
                "0/1",
                "PodInitializing",
            ),
            (
                "sidecar",
                json!({"initContainers": [{"name": "i", "restartPolicy": "Always"}], "containers": [{"name": "c"}]}),
                json!({
                    "phase": "Running",
                    "initContainerStatuses": [{"name": "i", "started": true, "ready": true, "state": {"running": {}}}],
                    "containerStatuses": [running],
                }),
                "2/2",
                "Running",
            ),
            (
                "one completed, one running",
                json!({"containers": [{"name": "c"}, {"name": "d"}]}),
                json!({
                    "phase": "Running",
                    "containerStatuses": [{"name": "d", "state": {"terminated": {"reason": "Completed"}}}, running],
                }),
                "1/2",
                "NotReady",
            ),
        ];
        for (what, spec, status, ready, expected) in rows {
            let cells = row(&pod(spec, status), now());
            assert_eq!((&cells[1], &cells[2]), (&json!(ready), &json!(expected)), "{what}");
        }
    }

    #[test]
    fn leaving() {
        let rows = [
            ("Running", "", "Terminating"),
            ("Succeeded", "", "Succeeded"),
            ("Running", "NodeLost", "Unknown"),
        ];
        for (phase, reason, expected) in rows {
            let mut pod = pod(json!({"containers": [{}]}), json!({"phase": phase, "reason": reason}));
            pod["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:30:00Z");
            assert_eq!(row(&pod, now())[2], json!(expected), "{phase} {reason}");
        }
    }

    #[test]
    fn restarts_and_wide_cells() {
        let status = json!({
            "phase": "Running",
            "podIPs": [{"ip": "10.0.0.1"}],
            "conditions": [{"type": "a.b/c", "status": "True"}],
            "containerStatuses": [{
                "name": "c", "restartCount": 3, "ready": true, "state": {"running": {}},
                "lastState": {"terminated": {"finishedAt": "2026-01-01T00:58:00Z"}},
            }],
        });
        let spec = json!({
            "nodeName": "n1",
            "containers": [{"name": "c"}],
            "readinessGates": [{"conditionType": "a.b/c"}, {"conditionType": "d"}],
        });
        let cells = row(&pod(spec, status), now());
        assert_eq!(
            cells,
            [
                json!("a"),
                json!("1/1"),
                json!("Running"),
                json!("3 (2m ago)"),
                json!("60m"),
                json!("10.0.0.1"),
                json!("n1"),
                json!("<none>"),
                json!("1/2"),
            ]
        );
    }
}
