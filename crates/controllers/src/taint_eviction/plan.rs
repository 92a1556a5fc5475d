//! Which pods of a node go because of its NoExecute taints, and when: pure.
//!
//! A pod that tolerates a taint for some time has that time from the moment both were there: the taint on the node and the
//! pod on the node. Upstream counts from the moment its controller noticed, and again after its restart; counting from
//! what the objects say gives a pod its time once.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Pod, Taint, Toleration};

use crate::common::condition::TRUE;
use crate::common::pod::{is_deleting, node_name};

/// The effect that drives out pods.
const NO_EXECUTE: &str = "NoExecute";

/// A taint that drives out pods.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Since {
    pub(super) taint: Taint,
    pub(super) since: Timestamp,
}

/// What to do about the pods of one node.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Plan {
    /// These have to go now.
    pub(super) evict: Vec<Arc<Pod>>,
    /// Look again after this time.
    pub(super) again: Option<Duration>,
}

/// Whether a taint drives out pods.
pub(super) fn drives_out(taint: &Taint) -> bool {
    taint.effect == NO_EXECUTE
}

/// The step for the pods of `node`, which has these taints that drive out pods.
pub(super) fn plan(node: &str, taints: &[Since], pods: &[Arc<Pod>], now: Timestamp) -> Plan {
    let mut plan = Plan { evict: Vec::new(), again: None };
    for pod in pods.iter().filter(|pod| node_name(pod) == Some(node) && !is_deleting(pod)) {
        match ends_at(pod, taints) {
            Some(end) if end <= now => plan.evict.push(Arc::clone(pod)),
            Some(end) => {
                let left = Duration::try_from(end.duration_since(now)).unwrap_or_default();
                plan.again = Some(plan.again.map_or(left, |again| again.min(left)));
            }
            None => {}
        }
    }
    plan
}

/// When the pod has to go; `None` if it may stay.
fn ends_at(pod: &Pod, taints: &[Since]) -> Option<Timestamp> {
    let tolerations = pod.spec.as_ref().and_then(|spec| spec.tolerations.as_deref()).unwrap_or_default();
    let end = |taint: &Since| {
        // The first toleration that matches decides, as upstream.
        match tolerations.iter().find(|toleration| tolerates(toleration, &taint.taint)) {
            None => Some(Timestamp::MIN),
            Some(toleration) => {
                let seconds = toleration.toleration_seconds?.max(0);
                let since = arrival(pod).map_or(taint.since, |arrival| arrival.max(taint.since));
                // A moment beyond the end of time never comes.
                let moment = since.as_second().saturating_add(seconds);
                Timestamp::from_second(moment).ok()
            }
        }
    };
    taints.iter().filter_map(end).min()
}

/// When the pod came to its node.
fn arrival(pod: &Pod) -> Option<Timestamp> {
    let conditions = pod.status.as_ref().and_then(|status| status.conditions.as_deref()).unwrap_or_default();
    let scheduled = conditions.iter().find(|c| c.type_ == "PodScheduled" && c.status == TRUE);
    let scheduled = scheduled.and_then(|condition| condition.last_transition_time.as_ref());
    scheduled.or(pod.metadata.creation_timestamp.as_ref()).map(|time| time.0)
}

/// Upstream's rule: what a toleration leaves empty matches everything, but `Equal` compares even an empty value.
fn tolerates(toleration: &Toleration, taint: &Taint) -> bool {
    let matches = |text: &Option<String>, wanted: &str| {
        text.as_deref().is_none_or(|text| text.is_empty() || text == wanted)
    };
    let value = |value: &Option<String>| value.clone().unwrap_or_default();
    let matches_value = match toleration.operator.as_deref() {
        None | Some("" | "Equal") => value(&toleration.value) == value(&taint.value),
        Some("Exists") => true,
        Some(_) => false,
    };
    matches(&toleration.effect, &taint.effect) && matches(&toleration.key, &taint.key) && matches_value
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::PodCondition;
    use kube::ResourceExt;

    use super::*;
    use crate::common::testing::{at, deleting, in_phase, pod, time};

    fn since(key: &str, value: Option<&str>, second: i64) -> Since {
        let taint = Taint {
            key: key.into(),
            value: value.map(String::from),
            effect: NO_EXECUTE.into(),
            time_added: None,
        };
        Since { taint, since: at(second) }
    }

    /// A toleration of every value of `key`.
    fn exists(key: &str, seconds: Option<i64>) -> Toleration {
        Toleration {
            key: Some(key.into()),
            operator: Some("Exists".into()),
            effect: Some(NO_EXECUTE.into()),
            toleration_seconds: seconds,
            value: None,
        }
    }

    fn tolerating(tolerations: Vec<Toleration>) -> Arc<Pod> {
        pod("p", |pod| pod.spec.as_mut().unwrap().tolerations = Some(tolerations))
    }

    #[test]
    fn who_goes_and_when() {
        let lost = || since("unreachable", None, 50);
        // Whether the pod goes at second 100, and if not, after how long it does.
        type Row = (&'static str, Vec<Toleration>, Vec<Since>, bool, Option<u64>);
        let rows: Vec<Row> = vec![
            ("no taint", vec![], vec![], false, None),
            ("not tolerated", vec![], vec![lost()], true, None),
            ("another tolerated", vec![exists("not-ready", None)], vec![lost()], true, None),
            ("tolerated", vec![exists("unreachable", None)], vec![lost()], false, None),
            (
                "tolerated for some time",
                vec![exists("unreachable", Some(300))],
                vec![lost()],
                false,
                Some(250),
            ),
            ("time is up", vec![exists("unreachable", Some(50))], vec![lost()], true, None),
            ("time was up", vec![exists("unreachable", Some(10))], vec![lost()], true, None),
            ("no time", vec![exists("unreachable", Some(0))], vec![lost()], true, None),
            ("negative time", vec![exists("unreachable", Some(-7))], vec![lost()], true, None),
            ("time without end", vec![exists("unreachable", Some(i64::MAX))], vec![lost()], false, None),
            (
                "the shorter time counts",
                vec![exists("unreachable", Some(300)), exists("own", Some(60))],
                vec![lost(), since("own", None, 90)],
                false,
                Some(50),
            ),
            (
                "one of two is not tolerated",
                vec![exists("unreachable", None)],
                vec![lost(), since("own", None, 90)],
                true,
                None,
            ),
            (
                "the first toleration decides",
                vec![exists("unreachable", None), exists("unreachable", Some(1))],
                vec![lost()],
                false,
                None,
            ),
        ];
        for (name, tolerations, taints, goes, again) in rows {
            let plan = plan("n", &taints, &[tolerating(tolerations)], at(100));
            let again_in = plan.again.map(|again| again.as_secs());
            assert_eq!((!plan.evict.is_empty(), again_in), (goes, again), "{name}");
        }
    }

    #[test]
    fn time_begins_when_the_pod_has_come() {
        let scheduled = |second: i64| PodCondition {
            type_: "PodScheduled".into(),
            status: "True".into(),
            last_transition_time: Some(time(second)),
            ..PodCondition::default()
        };
        for (name, condition, expected) in [
            ("created before the taint", None, 10),
            ("bound before the taint", Some(scheduled(40)), 10),
            ("bound after the taint", Some(scheduled(95)), 55),
        ] {
            let pod = pod("p", |pod| {
                pod.spec.as_mut().unwrap().tolerations = Some(vec![exists("unreachable", Some(60))]);
                pod.status.as_mut().unwrap().conditions = condition.map(|condition| vec![condition]);
            });
            let plan = plan("n", &[since("unreachable", None, 50)], &[pod], at(100));
            assert_eq!(plan.again.map(|again| again.as_secs()), Some(expected), "{name}");
        }
    }

    #[test]
    fn whose_pods_are_looked_at() {
        let pods = [
            pod("here", |_| {}),
            pod("finished", in_phase("Succeeded")),
            pod("going", deleting),
            pod("elsewhere", |pod| pod.spec.as_mut().unwrap().node_name = Some("m".into())),
            pod("nowhere", |pod| pod.spec.as_mut().unwrap().node_name = None),
        ];
        let plan = plan("n", &[since("own", None, 50)], &pods, at(100));
        let evicted: Vec<_> = plan.evict.iter().map(|pod| pod.name_any()).collect();
        assert_eq!(evicted, ["here", "finished"]);
    }

    #[test]
    fn tolerations_of_one_taint() {
        let taint = since("disk", Some("slow"), 0).taint;
        let toleration = |key: &str, operator: &str, value: &str, effect: &str| Toleration {
            key: Some(key.into()),
            operator: Some(operator.into()),
            value: Some(value.into()),
            effect: Some(effect.into()),
            toleration_seconds: None,
        };
        let rows = [
            (toleration("", "Exists", "", ""), true),
            (toleration("disk", "Exists", "", ""), true),
            (toleration("disk", "Exists", "", "NoSchedule"), false),
            (toleration("disk", "", "slow", "NoExecute"), true),
            (toleration("disk", "Equal", "slow", ""), true),
            (toleration("disk", "Equal", "fast", ""), false),
            (toleration("disk", "Equal", "", ""), false),
            (toleration("other", "Exists", "", ""), false),
            (toleration("disk", "Near", "slow", ""), false),
        ];
        for (toleration, expected) in rows {
            assert_eq!(tolerates(&toleration, &taint), expected, "{toleration:?}");
        }
    }
}
