//! LimitRanger: what containers get that say nothing of resources, and how much or little pods and claims may ask for.
//!
//! Both halves are functions of a range and an object. A range's own defaults (a default limit from the maximum and so
//! on) are written into it when it is stored.
//!
//! Source of the rules and of the words: `plugin/pkg/admission/limitranger`.

use sampan_api::quantity::Quantity;
use sampan_api::quota::{Amounts, Side, amounts, pod_amounts};
use serde_json::{Value, json};

use super::{Admission, Operation};
use crate::error::ApiError;
use crate::view::View;

/// Tells which values of a pod are defaults of a range.
const ANNOTATION: &str = "kubernetes.io/limit-ranger";

/// The ranges of the request's namespace.
fn ranges(admission: &Admission<'_>) -> Vec<Value> {
    admission.cached_list("limitranges", &format!("/limitranges/{}/", admission.namespace))
}

/// Gives containers of a new pod the resources they do not name.
pub(super) fn set_defaults(admission: &Admission<'_>, object: &mut Value) -> Result<(), ApiError> {
    if admission.creates("", "pods") {
        for range in ranges(admission) {
            complete(&range, object);
        }
    }
    Ok(())
}

/// Refuses what asks for more or less than a range allows.
pub(super) fn validate(admission: &Admission<'_>, object: &Value) -> Result<(), ApiError> {
    let resized = admission.is("", "pods")
        && admission.operation == Operation::Update
        && admission.view == View::Resize;
    let claimed = admission.creates("", "persistentvolumeclaims")
        || admission.updates("", "persistentvolumeclaims") && grows(admission.old, object);
    let check = if admission.creates("", "pods") || resized {
        pod_problems
    } else if claimed {
        claim_problems
    } else {
        return Ok(());
    };
    for range in ranges(admission) {
        let problems = check(&range, object);
        match problems.as_slice() {
            [] => {}
            [one] => return Err(admission.forbidden(object, one)),
            many => return Err(admission.forbidden(object, format!("[{}]", many.join(", ")))),
        }
    }
    Ok(())
}

/// Whether an update changes what a claim asks for: only then a range made meanwhile has a say.
fn grows(old: Option<&Value>, object: &Value) -> bool {
    old.is_none_or(|old| old["spec"]["resources"] != object["spec"]["resources"])
}

fn items(range: &Value) -> impl Iterator<Item = &Value> {
    range["spec"]["limits"].as_array().into_iter().flatten()
}

/// Writes a range's defaults into the containers of a pod and notes which.
fn complete(range: &Value, pod: &mut Value) {
    let (mut requests, mut limits) = (Amounts::new(), Amounts::new());
    for item in items(range).filter(|item| item["type"] == "Container") {
        requests.extend(amounts(&item["defaultRequest"]));
        limits.extend(amounts(&item["default"]));
    }
    let mut notes = Vec::new();
    for (field, what) in [("containers", "container"), ("initContainers", "init container")] {
        // Not by index: that would leave a null where there is no such list.
        let list = pod["spec"].get_mut(field).and_then(Value::as_array_mut);
        for container in list.into_iter().flatten() {
            let name = container["name"].as_str().unwrap_or_default().to_owned();
            for (side, defaults, word) in [("requests", &requests, "request"), ("limits", &limits, "limit")] {
                let set = fill(container, side, defaults);
                if !set.is_empty() {
                    notes.push(format!("{} {word} for {what} {name}", set.join(", ")));
                }
            }
        }
    }
    if !notes.is_empty() {
        let note = format!("LimitRanger plugin set: {}", notes.join("; "));
        let annotations = &mut pod["metadata"]["annotations"];
        if !annotations.is_object() {
            *annotations = json!({});
        }
        annotations[ANNOTATION] = note.into();
    }
}

/// Sets the amounts that are missing; the names of those, in order.
fn fill(container: &mut Value, side: &str, defaults: &Amounts) -> Vec<String> {
    let mut set = Vec::new();
    for (name, amount) in defaults {
        let list = &mut container["resources"][side];
        if list.get(name).is_none() {
            if !list.is_object() {
                *list = json!({});
            }
            list[name.as_str()] = amount.to_string().into();
            set.push(name.clone());
        }
    }
    set
}

/// What one container, a whole pod or a claim asks for.
struct Asked<'a> {
    /// `Container`, `Pod` or `PersistentVolumeClaim`, as messages name it.
    of: &'a str,
    requests: Amounts,
    limits: Amounts,
}

fn pod_problems(range: &Value, pod: &Value) -> Vec<String> {
    let mut problems = Vec::new();
    for item in items(range) {
        let of = item["type"].as_str().unwrap_or_default();
        match of {
            "Container" => {
                let containers = ["containers", "initContainers"].iter();
                let containers =
                    containers.flat_map(|field| pod["spec"][*field].as_array().into_iter().flatten());
                for container in containers {
                    let resources = &container["resources"];
                    let (requests, limits) = (amounts(&resources["requests"]), amounts(&resources["limits"]));
                    compare(item, &Asked { of, requests, limits }, &mut problems);
                }
            }
            "Pod" => {
                let (requests, limits) = (pod_amounts(pod, Side::Requests), pod_amounts(pod, Side::Limits));
                compare(item, &Asked { of, requests, limits }, &mut problems);
            }
            _ => {}
        }
    }
    problems
}

fn compare(item: &Value, asked: &Asked<'_>, problems: &mut Vec<String>) {
    for (resource, least) in amounts(&item["min"]) {
        problems.extend(asked.too_little(&resource, least));
    }
    for (resource, most) in amounts(&item["max"]) {
        problems.extend(asked.too_much(&resource, most));
    }
    for (resource, ratio) in amounts(&item["maxLimitRequestRatio"]) {
        problems.extend(asked.too_wide(&resource, ratio));
    }
}

fn claim_problems(range: &Value, claim: &Value) -> Vec<String> {
    let mut problems = Vec::new();
    for item in items(range).filter(|item| item["type"] == "PersistentVolumeClaim") {
        let requests = amounts(&claim["spec"]["resources"]["requests"]);
        let asked = Asked { of: "PersistentVolumeClaim", requests, limits: Amounts::new() };
        for (resource, least) in amounts(&item["min"]) {
            problems.extend(asked.too_little(&resource, least));
        }
        for (resource, most) in amounts(&item["max"]) {
            problems.extend(asked.request_too_much(&resource, most));
        }
    }
    problems
}

impl Asked<'_> {
    fn too_little(&self, resource: &str, least: Quantity) -> Option<String> {
        let of = self.of;
        let start = format!("minimum {resource} usage per {of} is {least}");
        match (self.requests.get(resource), self.limits.get(resource)) {
            (None, _) => Some(format!("{start}.  No request is specified")),
            (Some(request), _) if *request < least => Some(format!("{start}, but request is {request}")),
            (_, Some(limit)) if *limit < least => Some(format!("{start}, but limit is {limit}")),
            _ => None,
        }
    }

    fn too_much(&self, resource: &str, most: Quantity) -> Option<String> {
        let of = self.of;
        let start = format!("maximum {resource} usage per {of} is {most}");
        match (self.requests.get(resource), self.limits.get(resource)) {
            (_, None) => Some(format!("{start}.  No limit is specified")),
            (_, Some(limit)) if *limit > most => Some(format!("{start}, but limit is {limit}")),
            (Some(request), _) if *request > most => Some(format!("{start}, but request is {request}")),
            _ => None,
        }
    }

    /// Claims have no limits.
    fn request_too_much(&self, resource: &str, most: Quantity) -> Option<String> {
        let of = self.of;
        let start = format!("maximum {resource} usage per {of} is {most}");
        match self.requests.get(resource) {
            None => Some(format!("{start}.  No request is specified")),
            Some(request) if *request > most => Some(format!("{start}, but request is {request}")),
            Some(_) => None,
        }
    }

    /// The limit may be only so many times the request.
    fn too_wide(&self, resource: &str, most: Quantity) -> Option<String> {
        let of = self.of;
        let start = format!("{resource} max limit to request ratio per {of} is {most}");
        let nonzero = |list: &Amounts| list.get(resource).copied().filter(|q| !q.is_zero());
        let Some(request) = nonzero(&self.requests) else {
            return Some(format!("{start}, but no request is specified or request is 0"));
        };
        let Some(limit) = nonzero(&self.limits) else {
            return Some(format!("{start}, but no limit is specified or limit is 0"));
        };
        let ratio = limit.milli() as f64 / request.milli() as f64;
        let allowed = most.milli() as f64 / 1000.0;
        (ratio > allowed).then(|| format!("{start}, but provided ratio is {ratio:.6}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(item: Value) -> Value {
        json!({"spec": {"limits": [item]}})
    }

    fn pod(requests: Value, limits: Value) -> Value {
        json!({"spec": {"containers": [{"name": "c", "resources": {"requests": requests, "limits": limits}}]}})
    }

    #[test]
    fn what_is_refused() {
        let container = |field: &str, amount: &str| {
            let mut item = json!({"type": "Container"});
            item[field] = json!({"cpu": amount});
            range(item)
        };
        let whole = |field: &str, amount: &str| {
            let mut item = json!({"type": "Pod"});
            item[field] = json!({"cpu": amount});
            range(item)
        };
        let rows: Vec<(Value, Value, &str)> = vec![
            (container("max", "2"), pod(json!({"cpu": "1"}), json!({"cpu": "2"})), ""),
            (
                container("max", "2"),
                pod(json!({"cpu": "1"}), json!({"cpu": "3"})),
                "maximum cpu usage per Container is 2, but limit is 3",
            ),
            (
                container("max", "2"),
                pod(json!({"cpu": "1"}), json!({})),
                "maximum cpu usage per Container is 2.  No limit is specified",
            ),
            (
                container("min", "100m"),
                pod(json!({}), json!({})),
                "minimum cpu usage per Container is 100m.  No request is specified",
            ),
            (
                container("min", "100m"),
                pod(json!({"cpu": "50m"}), json!({})),
                "minimum cpu usage per Container is 100m, but request is 50m",
            ),
            (
                container("min", "1"),
                pod(json!({"cpu": "1"}), json!({"cpu": "900m"})),
                "minimum cpu usage per Container is 1, but limit is 900m",
            ),
            (
                container("maxLimitRequestRatio", "2"),
                pod(json!({"cpu": "1"}), json!({"cpu": "3"})),
                "cpu max limit to request ratio per Container is 2, but provided ratio is 3.000000",
            ),
            (container("maxLimitRequestRatio", "1500m"), pod(json!({"cpu": "2"}), json!({"cpu": "3"})), ""),
            (
                container("maxLimitRequestRatio", "2"),
                pod(json!({}), json!({"cpu": "3"})),
                "cpu max limit to request ratio per Container is 2, but no request is specified or request is 0",
            ),
            (whole("max", "3"), pod(json!({"cpu": "1"}), json!({"cpu": "3"})), ""),
            (
                whole("max", "2"),
                pod(json!({"cpu": "1"}), json!({"cpu": "3"})),
                "maximum cpu usage per Pod is 2, but limit is 3",
            ),
        ];
        for (range, pod, expected) in rows {
            assert_eq!(pod_problems(&range, &pod).join(" and "), expected, "{range}");
        }
    }

    #[test]
    fn claims() {
        let range = range(json!({
            "type": "PersistentVolumeClaim", "min": {"storage": "1Gi"}, "max": {"storage": "2Gi"},
        }));
        let rows = [
            ("1Gi", ""),
            ("3Gi", "maximum storage usage per PersistentVolumeClaim is 2Gi, but request is 3Gi"),
            ("1Mi", "minimum storage usage per PersistentVolumeClaim is 1Gi, but request is 1Mi"),
        ];
        for (size, expected) in rows {
            let claim = json!({"spec": {"resources": {"requests": {"storage": size}}}});
            assert_eq!(claim_problems(&range, &claim).join(", "), expected);
        }
    }

    #[test]
    fn defaults_are_set_and_noted() {
        let range = range(json!({
            "type": "Container",
            "default": {"cpu": "500m", "memory": "1Gi"},
            "defaultRequest": {"cpu": "100m"},
        }));
        let mut pod = json!({
            "metadata": {"name": "p"},
            "spec": {
                "containers": [{"name": "a"}, {"name": "b", "resources": {"limits": {"cpu": "1", "memory": "2Gi"}}}],
                "initContainers": [{"name": "i", "resources": {"requests": {"cpu": "1"}, "limits": {"cpu": "1"}}}],
            },
        });
        complete(&range, &mut pod);
        let first = json!({"requests": {"cpu": "100m"}, "limits": {"cpu": "500m", "memory": "1Gi"}});
        assert_eq!(pod["spec"]["containers"][0]["resources"], first);
        assert_eq!(
            pod["metadata"]["annotations"][ANNOTATION],
            "LimitRanger plugin set: cpu request for container a; cpu, memory limit for container a; \
             cpu request for container b; memory limit for init container i"
        );
        let once = pod.clone();
        complete(&range, &mut pod);
        assert_eq!(pod, once, "a second time nothing is missing");
        let mut plain = json!({"spec": {"containers": []}});
        complete(&range, &mut plain);
        assert_eq!(plain, json!({"spec": {"containers": []}}), "nothing is left behind");
    }
}
