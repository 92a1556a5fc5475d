//! The status a quota should have.

use jiff::Timestamp;
use sampan_api::quota;
use serde_json::{Value, json};

/// The objects of one kind.
pub(crate) struct Counted {
    pub(crate) group: String,
    pub(crate) plural: String,
    pub(crate) objects: Vec<Value>,
}

/// The status of a quota from everything it counts; `None` when it has that status already.
pub(crate) fn plan(quota: &Value, counted: &[Counted], now: Timestamp) -> Option<Value> {
    let spec = &quota["spec"];
    let objects = counted.iter().flat_map(|kind| {
        kind.objects.iter().map(|object| (kind.group.as_str(), kind.plural.as_str(), object))
    });
    let used = quota::recount(spec, objects, now);
    let hard = quota::amounts(&spec["hard"]);
    let status = &quota["status"];
    let known = !status["hard"].is_null() && !status["used"].is_null();
    if known && quota::amounts(&status["hard"]) == hard && quota::amounts(&status["used"]) == used {
        return None;
    }
    Some(json!({"hard": quota::to_value(&hard), "used": quota::to_value(&used)}))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pods(count: usize, cpu: &str) -> Counted {
        let pod = json!({"spec": {"containers": [{"name": "c", "resources": {"requests": {"cpu": cpu}}}]}});
        Counted { group: String::new(), plural: "pods".to_owned(), objects: vec![pod; count] }
    }

    #[test]
    fn the_status_follows_objects_and_spec() {
        let quota = |hard: Value, status: Value| json!({"spec": {"hard": hard}, "status": status});
        let hard = json!({"pods": "10", "requests.cpu": "4"});
        let rows = [
            (
                "new",
                quota(hard.clone(), Value::Null),
                Some(json!({"hard": hard, "used": {"pods": "2", "requests.cpu": "1"}})),
            ),
            (
                "right",
                quota(hard.clone(), json!({"hard": hard, "used": {"pods": "2", "requests.cpu": "1000m"}})),
                None,
            ),
            (
                "a pod has gone",
                quota(hard.clone(), json!({"hard": hard, "used": {"pods": "3", "requests.cpu": "1500m"}})),
                Some(json!({"hard": hard, "used": {"pods": "2", "requests.cpu": "1"}})),
            ),
            (
                "more is allowed",
                quota(json!({"pods": "20"}), json!({"hard": {"pods": "10"}, "used": {"pods": "2"}})),
                Some(json!({"hard": {"pods": "20"}, "used": {"pods": "2"}})),
            ),
        ];
        for (name, quota, expected) in rows {
            assert_eq!(plan(&quota, &[pods(2, "500m")], Timestamp::UNIX_EPOCH), expected, "{name}");
        }
    }

    #[test]
    fn kinds_are_counted_by_number() {
        let quota = json!({"spec": {"hard": {"count/deployments.apps": "3", "secrets": "5"}}});
        let of = |group: &str, plural: &str, count: usize| Counted {
            group: group.to_owned(),
            plural: plural.to_owned(),
            objects: vec![Value::Null; count],
        };
        let counted = [of("apps", "deployments", 2), of("", "secrets", 4), of("", "configmaps", 9)];
        let status = plan(&quota, &counted, Timestamp::UNIX_EPOCH).expect("a status");
        assert_eq!(status["used"], json!({"count/deployments.apps": "2", "secrets": "4"}));
    }
}
