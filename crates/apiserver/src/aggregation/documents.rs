//! Discovery of what extension servers answer: order of versions, and the documents in both forms. Pure.

use std::cmp::Reverse;

use sampan_api::registry::Group;
use serde_json::{Value, json};

use super::ApiService;

/// How versions are ordered, best first: GA before beta before alpha, higher numbers first, other names last and by name
/// (`k8s.io/apimachinery/pkg/version`).
fn version_rank(version: &str) -> (u8, Reverse<u32>, Reverse<u32>, String) {
    let parsed = || {
        let rest = version.strip_prefix('v')?;
        let digits = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
        let major = rest[..digits].parse::<u32>().ok()?;
        let (class, minor) = match &rest[digits..] {
            "" => (0, 0),
            rest => match (rest.strip_prefix("beta"), rest.strip_prefix("alpha")) {
                (Some(number), _) => (1, number.parse().ok()?),
                (_, Some(number)) => (2, number.parse().ok()?),
                _ => return None,
            },
        };
        Some((class, Reverse(major), Reverse(minor), String::new()))
    };
    parsed().unwrap_or((3, Reverse(0), Reverse(0), version.to_owned()))
}

/// Group and version of each service: groups by priority and name, versions by priority and rank.
pub(super) fn in_order<'a>(services: impl Iterator<Item = &'a ApiService>) -> Vec<(String, String)> {
    let mut services: Vec<&ApiService> = services.collect();
    // A group is as important as the most important of its versions says.
    let priority = |group: &str| {
        services.iter().filter(|s| s.group == group).map(|s| s.group_priority).max().unwrap_or(0)
    };
    let mut keyed: Vec<_> = services
        .iter()
        .map(|s| {
            let key = (
                Reverse(priority(&s.group)),
                s.group.clone(),
                Reverse(s.version_priority),
                version_rank(&s.version),
            );
            (key, (s.group.clone(), s.version.clone()))
        })
        .collect();
    services.clear();
    keyed.sort();
    keyed.dedup_by(|a, b| a.1 == b.1);
    keyed.into_iter().map(|(_, claim)| claim).collect()
}

/// Groups with the versions that are claimed beside them.
pub(super) fn with_claims(mut groups: Vec<Group>, claims: Vec<(String, String)>) -> Vec<Group> {
    for (name, version) in claims {
        match groups.iter_mut().find(|group| group.name == name) {
            Some(group) => group.versions.push(version.into()),
            None => groups.push(Group { name: name.into(), versions: vec![version.into()] }),
        }
    }
    groups
}

/// The resources of an `APIResourceList` in the form of aggregated discovery (KEP-3352).
pub(super) fn aggregated(list: &Value, group: &str, version: &str) -> Value {
    let entries = || list["resources"].as_array().into_iter().flatten();
    let response_kind = |entry: &Value| {
        let text = |field: &str, default: &str| {
            entry[field].as_str().filter(|t| !t.is_empty()).unwrap_or(default).to_owned()
        };
        json!({"group": text("group", group), "version": text("version", version), "kind": text("kind", "")})
    };
    let mut resources: Vec<Value> = Vec::new();
    for entry in entries() {
        let name = entry["name"].as_str().unwrap_or_default();
        if name.is_empty() || name.contains('/') {
            continue;
        }
        let mut resource = json!({
            "resource": name,
            "responseKind": response_kind(entry),
            "scope": if entry["namespaced"] == true { "Namespaced" } else { "Cluster" },
            "singularResource": entry["singularName"],
            "verbs": entry["verbs"],
        });
        for field in ["shortNames", "categories"] {
            if entry[field].is_array() {
                resource[field] = entry[field].clone();
            }
        }
        let subresources: Vec<Value> = entries()
            .filter_map(|below| {
                let (of, subresource) = below["name"].as_str()?.split_once('/')?;
                (of == name).then(|| {
                    json!({"subresource": subresource, "responseKind": response_kind(below), "verbs": below["verbs"]})
                })
            })
            .collect();
        if !subresources.is_empty() {
            resource["subresources"] = subresources.into();
        }
        resources.push(resource);
    }
    resources.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_in_order() {
        let mut versions = [
            "foo1",
            "v10beta3",
            "v1",
            "v2",
            "v11alpha2",
            "v3beta1",
            "v10",
            "foo10",
            "v12alpha1",
            "v11alpha1",
        ];
        versions.sort_by_key(|v| version_rank(v));
        let expected = [
            "v10",
            "v2",
            "v1",
            "v10beta3",
            "v3beta1",
            "v12alpha1",
            "v11alpha2",
            "v11alpha1",
            "foo1",
            "foo10",
        ];
        assert_eq!(versions, expected);
    }

    fn service(group: &str, version: &str, group_priority: i64, version_priority: i64) -> ApiService {
        ApiService::read(&json!({"spec": {
            "group": group, "version": version,
            "groupPriorityMinimum": group_priority, "versionPriority": version_priority,
        }}))
    }

    #[test]
    fn claims_in_order() {
        let services = [
            service("b", "v1", 10, 1),
            service("a", "v1", 10, 1),
            service("c", "v1beta1", 5, 1),
            service("c", "v2", 20, 1),
            service("a", "v1alpha1", 10, 9),
        ];
        let found = in_order(services.iter());
        let expected = [("c", "v2"), ("c", "v1beta1"), ("a", "v1alpha1"), ("a", "v1"), ("b", "v1")];
        assert_eq!(found, expected.map(|(g, v)| (g.to_owned(), v.to_owned())));
        let own = vec![Group { name: "a".into(), versions: vec!["v9".into()] }];
        let groups = with_claims(own, found);
        let shown: Vec<(String, usize)> =
            groups.iter().map(|g| (g.name.to_string(), g.versions.len())).collect();
        assert_eq!(shown, [("a".to_owned(), 3), ("c".to_owned(), 2), ("b".to_owned(), 1)]);
    }

    #[test]
    fn lists_become_aggregated() {
        let list = json!({"resources": [
            {"name": "things", "singularName": "thing", "namespaced": true, "kind": "Thing", "verbs": ["get"], "shortNames": ["t"]},
            {"name": "things/scale", "kind": "Scale", "group": "autoscaling", "version": "v1", "verbs": ["get", "update"]},
            {"name": "nodes", "namespaced": false, "kind": "Node", "verbs": []},
            {"name": 5},
        ]});
        let expected = json!([
            {
                "resource": "things", "singularResource": "thing", "scope": "Namespaced", "verbs": ["get"],
                "shortNames": ["t"], "responseKind": {"group": "g", "version": "v1", "kind": "Thing"},
                "subresources": [{
                    "subresource": "scale", "verbs": ["get", "update"],
                    "responseKind": {"group": "autoscaling", "version": "v1", "kind": "Scale"},
                }],
            },
            {
                "resource": "nodes", "singularResource": null, "scope": "Cluster", "verbs": [],
                "responseKind": {"group": "g", "version": "v1", "kind": "Node"},
            },
        ]);
        assert_eq!(aggregated(&list, "g", "v1"), expected);
        assert_eq!(aggregated(&json!("x"), "g", "v1"), json!([]));
    }
}
