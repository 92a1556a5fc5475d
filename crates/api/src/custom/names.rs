//! Who gets a name: definitions of one group may ask for the same ones.
//!
//! First come, first served: a name that another kind of the group already has is refused, and the definition that asks
//! for it is not served until the name is free. Source: the naming condition controller of
//! `k8s.io/apiextensions-apiserver`.

use std::collections::HashMap;

use serde_json::{Map, Value, json};

/// A condition of a definition's status.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Condition {
    /// `NamesAccepted`, `Established`, `Terminating`.
    pub type_: &'static str,
    /// True or false.
    pub status: bool,
    /// One word.
    pub reason: &'static str,
    /// A sentence.
    pub message: String,
}

/// What the status of a definition is to say.
#[derive(Clone, Debug, PartialEq)]
pub struct Verdict {
    /// `status.acceptedNames`.
    pub accepted: Value,
    /// Conditions about the names.
    pub conditions: Vec<Condition>,
}

impl Verdict {
    /// Whether the definition is served.
    pub fn is_established(&self) -> bool {
        self.conditions.iter().any(|c| c.type_ == "Established" && c.status)
    }
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

fn has_condition(definition: &Value, type_: &str) -> bool {
    let conditions = definition["status"]["conditions"].as_array().into_iter().flatten();
    conditions.into_iter().any(|c| c["type"] == type_ && c["status"] == "True")
}

/// Names of one group and who has them. Resources and kinds are two name spaces.
#[derive(Default)]
pub struct Taken {
    resources: HashMap<(String, String), String>,
    kinds: HashMap<(String, String), String>,
}

impl Taken {
    /// A kind that is there whatever definitions say.
    pub fn built_in<'a>(&mut self, group: &str, resources: impl Iterator<Item = &'a str>, kinds: &[&str]) {
        for name in resources {
            self.resources.insert((group.to_owned(), name.to_owned()), String::new());
        }
        for name in kinds {
            self.kinds.insert((group.to_owned(), (*name).to_owned()), String::new());
        }
    }

    fn adopt(&mut self, group: &str, names: &Value, owner: &str) {
        for name in resource_names(names) {
            self.resources.entry((group.to_owned(), name.to_owned())).or_insert_with(|| owner.to_owned());
        }
        for name in [text(&names["kind"]), text(&names["listKind"])] {
            if !name.is_empty() {
                self.kinds.entry((group.to_owned(), name.to_owned())).or_insert_with(|| owner.to_owned());
            }
        }
    }

    fn is_free(map: &HashMap<(String, String), String>, group: &str, name: &str, owner: &str) -> bool {
        map.get(&(group.to_owned(), name.to_owned())).is_none_or(|holder| holder == owner)
    }
}

fn resource_names(names: &Value) -> impl Iterator<Item = &str> {
    let short = names["shortNames"].as_array().into_iter().flatten().map(text);
    [text(&names["plural"]), text(&names["singular"])]
        .into_iter()
        .chain(short)
        .filter(|name| !name.is_empty())
}

/// Decides about all definitions at once, in the order of their creation; `taken` holds the built-in names.
pub fn judge(definitions: &[Value], mut taken: Taken) -> Vec<Verdict> {
    let name = |definition: &'_ Value| text(&definition["metadata"]["name"]).to_owned();
    for definition in definitions {
        let accepted = &definition["status"]["acceptedNames"];
        taken.adopt(text(&definition["spec"]["group"]), accepted, &name(definition));
    }
    let mut order: Vec<usize> = (0..definitions.len()).collect();
    let age = |i: &usize| {
        let metadata = &definitions[*i]["metadata"];
        (text(&metadata["creationTimestamp"]).to_owned(), text(&metadata["name"]).to_owned())
    };
    order.sort_by_key(age);
    let mut verdicts: Vec<Option<Verdict>> = vec![None; definitions.len()];
    for i in order {
        let verdict = judge_one(&definitions[i], &taken);
        taken.adopt(text(&definitions[i]["spec"]["group"]), &verdict.accepted, &name(&definitions[i]));
        verdicts[i] = Some(verdict);
    }
    verdicts.into_iter().flatten().collect()
}

fn judge_one(definition: &Value, taken: &Taken) -> Verdict {
    let (spec, owner) = (&definition["spec"], text(&definition["metadata"]["name"]));
    let (group, wanted, before) =
        (text(&spec["group"]), &spec["names"], &definition["status"]["acceptedNames"]);
    let mut accepted = before.as_object().cloned().unwrap_or_default();
    let mut conflict: Option<(&'static str, String)> = None;
    let mut claim = |field: &str, free: bool, reason: &'static str, value: &Value, shown: String| {
        if free {
            match value {
                Value::Null => accepted.remove(field),
                value => accepted.insert(field.to_owned(), value.clone()),
            };
        } else if conflict.is_none() {
            conflict = Some((reason, shown));
        }
    };
    let in_use = |name: &str| format!("\"{name}\" is already in use");
    for (field, reason) in [("plural", "PluralConflict"), ("singular", "SingularConflict")] {
        let name = text(&wanted[field]);
        let free = Taken::is_free(&taken.resources, group, name, owner);
        claim(field, free, reason, &wanted[field], in_use(name));
    }
    let clashing: Vec<String> = wanted["shortNames"]
        .as_array()
        .into_iter()
        .flatten()
        .map(text)
        .filter(|name| !Taken::is_free(&taken.resources, group, name, owner))
        .map(in_use)
        .collect();
    claim(
        "shortNames",
        clashing.is_empty(),
        "ShortNamesConflict",
        &wanted["shortNames"],
        clashing.join(", "),
    );
    for (field, reason) in [("kind", "KindConflict"), ("listKind", "ListKindConflict")] {
        let name = text(&wanted[field]);
        let free = Taken::is_free(&taken.kinds, group, name, owner);
        claim(field, free, reason, &wanted[field], in_use(name));
    }
    claim("categories", true, "", &wanted["categories"], String::new());
    let accepted_all = conflict.is_none();
    let names = match conflict {
        Some((reason, message)) => Condition { type_: "NamesAccepted", status: false, reason, message },
        None => Condition {
            type_: "NamesAccepted",
            status: true,
            reason: "NoConflicts",
            message: "no conflicts found".to_owned(),
        },
    };
    // What was served once stays served: its objects must not vanish because somebody renames a short name.
    let established = if accepted_all || has_condition(definition, "Established") {
        Condition {
            type_: "Established",
            status: true,
            reason: "InitialNamesAccepted",
            message: "the initial names have been accepted".to_owned(),
        }
    } else {
        Condition {
            type_: "Established",
            status: false,
            reason: "NotAccepted",
            message: "not all names are accepted".to_owned(),
        }
    };
    Verdict { accepted: Value::Object(accepted), conditions: vec![names, established] }
}

/// Puts a verdict into a status; the time of a condition changes with its status only.
pub fn write_status(status: &mut Value, accepted: &Value, conditions: &[Condition], now: &str) {
    if !status.is_object() {
        *status = Value::Object(Map::new());
    }
    status["acceptedNames"] = accepted.clone();
    let mut list = status["conditions"].as_array().cloned().unwrap_or_default();
    for condition in conditions {
        let wanted = if condition.status { "True" } else { "False" };
        let before = list.iter().position(|c| c["type"] == condition.type_);
        let since = before
            .filter(|i| list[*i]["status"] == wanted)
            .map_or_else(|| json!(now), |i| list[i]["lastTransitionTime"].clone());
        let entry = json!({
            "type": condition.type_, "status": wanted, "reason": condition.reason, "message": condition.message,
            "lastTransitionTime": since,
        });
        match before {
            Some(i) => list[i] = entry,
            None => list.push(entry),
        }
    }
    status["conditions"] = list.into();
}

#[cfg(test)]
mod tests {
    use super::*;

    fn definition(plural: &str, kind: &str, short: &[&str], created: &str) -> Value {
        json!({
            "metadata": {"name": format!("{plural}.example.com"), "creationTimestamp": created},
            "spec": {"group": "example.com", "names": {
                "plural": plural, "singular": kind.to_lowercase(), "kind": kind, "listKind": format!("{kind}List"),
                "shortNames": short,
            }},
        })
    }

    fn reasons(definitions: &[Value], taken: Taken) -> Vec<(bool, &'static str)> {
        let verdicts = judge(definitions, taken);
        verdicts.iter().map(|v| (v.is_established(), v.conditions[0].reason)).collect()
    }

    #[test]
    fn first_come_first_served() {
        let rows = [
            (
                "no conflict",
                vec![definition("as", "A", &["x"], "1"), definition("bs", "B", &["y"], "2")],
                vec![(true, "NoConflicts"), (true, "NoConflicts")],
            ),
            (
                "the younger one loses, wherever it stands",
                vec![definition("as", "A", &["x"], "2"), definition("bs", "B", &["x"], "1")],
                vec![(false, "ShortNamesConflict"), (true, "NoConflicts")],
            ),
            (
                "kinds",
                vec![definition("as", "A", &[], "1"), definition("bs", "A", &[], "2")],
                vec![(true, "NoConflicts"), (false, "SingularConflict")],
            ),
        ];
        for (name, definitions, expected) in rows {
            assert_eq!(reasons(&definitions, Taken::default()), expected, "{name}");
        }
    }

    #[test]
    fn built_in_names_are_taken() {
        let mut taken = Taken::default();
        taken.built_in("example.com", ["as"].into_iter(), &["A", "AList"]);
        assert_eq!(reasons(&[definition("as", "A", &[], "1")], taken), [(false, "PluralConflict")]);
    }

    #[test]
    fn what_was_established_stays() {
        let mut loser = definition("as", "A", &["x"], "1");
        let mut status = Value::Null;
        let verdict = &judge(std::slice::from_ref(&loser), Taken::default())[0];
        write_status(&mut status, &verdict.accepted, &verdict.conditions, "t1");
        loser["status"] = status.clone();
        loser["spec"]["names"]["shortNames"] = json!(["y"]);
        let rival = definition("bs", "B", &["y"], "0");
        let mut rival_status = Value::Null;
        let verdict = &judge(std::slice::from_ref(&rival), Taken::default())[0];
        write_status(&mut rival_status, &verdict.accepted, &verdict.conditions, "t1");
        let rival = json!({"metadata": rival["metadata"], "spec": rival["spec"], "status": rival_status});
        let verdict = &judge(&[rival, loser], Taken::default())[1];
        assert!(verdict.is_established());
        assert_eq!(verdict.accepted["shortNames"], json!(["x"]), "the old names are kept");
        write_status(&mut status, &verdict.accepted, &verdict.conditions, "t2");
        let since: Vec<&str> = status["conditions"]
            .as_array()
            .expect("a list")
            .iter()
            .map(|c| text(&c["lastTransitionTime"]))
            .collect();
        assert_eq!(since, ["t2", "t1"]);
    }
}
