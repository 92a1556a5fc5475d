//! Quality-of-service classes, and what a pod asks for altogether.
//!
//! Source of the rules: `pkg/apis/core/helper/qos` and KEP-753 (sidecars), KEP-2837 (resources of whole pods).

use serde_json::Value;

use super::super::json::{is_empty, list, text};
use super::super::rules::quantity;
use crate::quantity::Quantity;

/// The resources that count for the class.
const COUNTED: [&str; 2] = ["cpu", "memory"];

/// `Guaranteed` when every container limits CPU and memory and asks for just that, `BestEffort` when nothing asks for
/// anything, else `Burstable`.
pub(super) fn class(spec: &Value) -> &'static str {
    let holders: Vec<&Value> = match &spec["resources"] {
        own if !is_empty(own) => vec![own],
        _ => ["initContainers", "containers"]
            .iter()
            .flat_map(|field| list(&spec[*field]))
            .map(|container| &container["resources"])
            .collect(),
    };
    let amount =
        |list: &Value, name: &str| quantity(&list[name]).filter(|q| !q.is_zero() && !q.is_negative());
    let asks = |holder: &&Value| {
        COUNTED.iter().any(|r| amount(&holder["requests"], r).or(amount(&holder["limits"], r)).is_some())
    };
    let guaranteed = |holder: &&Value| {
        COUNTED.iter().all(|r| {
            let limit = amount(&holder["limits"], r);
            limit.is_some() && amount(&holder["requests"], r).or(limit) == limit
        })
    };
    if !holders.iter().any(asks) {
        "BestEffort"
    } else if holders.iter().all(guaranteed) {
        "Guaranteed"
    } else {
        "Burstable"
    }
}

fn is_sidecar(container: &Value) -> bool {
    text(&container["restartPolicy"]) == "Always"
}

/// Which of the two amounts of a resource is meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Amount {
    /// What is set aside.
    Request,
    /// What may be used.
    Limit,
}

impl Amount {
    /// The field of `resources`.
    pub fn field(self) -> &'static str {
        match self {
            Self::Request => "requests",
            Self::Limit => "limits",
        }
    }
}

/// What the containers of a pod need of a resource when the pod says nothing itself.
///
/// Sidecars run from their turn on, so every later initialisation step needs room beside those already started.
pub(super) fn of_containers(spec: &Value, amount: Amount, resource: &str) -> Quantity {
    let of = |container: &Value| {
        quantity(&container["resources"][amount.field()][resource]).unwrap_or(Quantity::ZERO)
    };
    let (mut sidecars, mut peak) = (Quantity::ZERO, Quantity::ZERO);
    for container in list(&spec["initContainers"]) {
        if is_sidecar(container) {
            sidecars = add(sidecars, of(container));
            peak = peak.max(sidecars);
        } else {
            peak = peak.max(add(sidecars, of(container)));
        }
    }
    let running = list(&spec["containers"]).iter().map(of).fold(sidecars, add);
    peak.max(running)
}

/// Zero has no unit of its own, so that the first real summand decides how the sum is written.
fn add(sum: Quantity, more: Quantity) -> Quantity {
    if sum.is_zero() { more } else { sum.plus(more) }
}

/// What a pod needs of a resource, overhead included. Where there is no limit, overhead makes none.
pub(super) fn of_pod(spec: &Value, amount: Amount, resource: &str) -> Quantity {
    let own = quantity(&spec["resources"][amount.field()][resource]);
    let needed = own.unwrap_or_else(|| of_containers(spec, amount, resource));
    if amount == Amount::Limit && needed.is_zero() {
        return needed;
    }
    quantity(&spec["overhead"][resource]).map_or(needed, |overhead| add(needed, overhead))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn classes() {
        let full =
            json!({"limits": {"cpu": "1", "memory": "1Gi"}, "requests": {"cpu": "1", "memory": "1Gi"}});
        let rows = [
            (json!([{}]), "BestEffort"),
            (json!([{"resources": {"requests": {"nvidia.com/gpu": "1"}}}]), "BestEffort"),
            (json!([{"resources": {"requests": {"cpu": "0"}}}]), "BestEffort"),
            (json!([{"resources": {"requests": {"cpu": "1"}}}]), "Burstable"),
            (json!([{"resources": full}]), "Guaranteed"),
            (json!([{"resources": full}, {}]), "Burstable"),
            (json!([{"resources": {"limits": {"cpu": "1", "memory": "1Gi"}}}]), "Guaranteed"),
            (
                json!([{"resources": {"limits": {"cpu": "1", "memory": "1Gi"}, "requests": {"cpu": "1m"}}}]),
                "Burstable",
            ),
        ];
        for (containers, expected) in rows {
            assert_eq!(class(&json!({ "containers": containers })), expected, "{containers}");
        }
    }

    #[test]
    fn requests() {
        let cpu = |amount: &str| json!({"requests": {"cpu": amount}});
        let rows = [
            ("sum", json!({"containers": [{"resources": cpu("1")}, {"resources": cpu("500m")}]}), "1500m"),
            (
                "a large first step",
                json!({"initContainers": [{"resources": cpu("3")}], "containers": [{"resources": cpu("1")}]}),
                "3",
            ),
            (
                "a step beside a sidecar",
                json!({
                    "initContainers": [{"restartPolicy": "Always", "resources": cpu("1")}, {"resources": cpu("2")}],
                    "containers": [{"resources": cpu("1")}],
                }),
                "3",
            ),
            (
                "overhead",
                json!({"containers": [{"resources": cpu("1")}], "overhead": {"cpu": "250m"}}),
                "1250m",
            ),
            ("of the pod", json!({"containers": [{"resources": cpu("1")}], "resources": cpu("4")}), "4"),
            ("nothing", json!({"containers": [{}]}), "0"),
        ];
        for (what, spec, expected) in rows {
            assert_eq!(of_pod(&spec, Amount::Request, "cpu").to_string(), expected, "{what}");
        }
    }
    #[test]
    fn limits() {
        let limited = |cpu: &str| json!({"resources": {"limits": {"cpu": cpu}}});
        let rows = [
            (
                "sum and overhead",
                json!({"containers": [limited("1"), limited("2")], "overhead": {"cpu": "1"}}),
                "4",
            ),
            ("none, whatever the overhead", json!({"containers": [{}], "overhead": {"cpu": "1"}}), "0"),
        ];
        for (what, spec, expected) in rows {
            assert_eq!(of_pod(&spec, Amount::Limit, "cpu").to_string(), expected, "{what}");
        }
    }
}
