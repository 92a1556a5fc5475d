//! What to do about one request for a certificate. Pure: object, time and the requester's rights in, one action out.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use jiff::Timestamp;
use serde_json::Value;

use super::request::{CLIENT, KUBELET_CLIENT, KUBELET_SERVING, LEGACY, Request, usages};

/// A request nobody decides about is deleted after this; upstream's value, as the next one.
const PENDING_LIVES: i64 = 24 * 3600;
/// A request that is decided about is deleted after this.
const DECIDED_LIVES: i64 = 3600;
/// A certificate lives this long unless a shorter time is asked for.
const YEAR: i64 = 365 * 86_400;
/// Shortest life of a certificate; upstream's bound.
const MIN_LIFE: i64 = 600;

/// One step.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Action {
    Nothing,
    /// Approve it, with this message.
    Approve(String),
    Sign(Box<Wanted>),
    /// The signer does not give this.
    Fail(String),
    Delete,
}

/// A certificate to be made.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Wanted {
    pub(crate) request: Request,
    pub(crate) usages: Vec<String>,
    /// Seconds.
    pub(crate) life: i64,
}

/// An action, and when to look again.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Todo {
    pub(crate) action: Action,
    pub(crate) again: Duration,
}

/// Looks at a request. `may` tells whether its maker may create the virtual subresource of that name, which stands for
/// being approved without anybody looking.
pub(crate) fn plan(object: &Value, now: Timestamp, may: impl Fn(&str) -> bool) -> Todo {
    let left = life_left(object, now);
    if left <= 0 {
        return Todo { action: Action::Delete, again: Duration::MAX };
    }
    let again = Duration::from_secs(u64::try_from(left).unwrap_or(0));
    Todo { action: action(object, may), again }
}

fn action(object: &Value, may: impl Fn(&str) -> bool) -> Action {
    let (spec, signer) = (&object["spec"], object["spec"]["signerName"].as_str().unwrap_or_default());
    let done = object["status"]["certificate"].as_str().is_some_and(|pem| !pem.is_empty());
    if ![CLIENT, KUBELET_CLIENT, KUBELET_SERVING, LEGACY].contains(&signer)
        || done
        || condition(object, "Denied").is_some()
        || condition(object, "Failed").is_some()
    {
        return Action::Nothing;
    }
    let approved = condition(object, "Approved").is_some();
    if !approved && signer != KUBELET_CLIENT {
        return Action::Nothing;
    }
    let usages = usages(spec);
    let request = match Request::parse(&spec["request"]) {
        Ok(request) => request,
        Err(why) if approved => return Action::Fail(why),
        Err(_) => return Action::Nothing,
    };
    match (request.fits(signer, &usages), approved) {
        (Err(why), true) => Action::Fail(why),
        (Err(_), false) => Action::Nothing,
        (Ok(()), true) => {
            let asked = spec["expirationSeconds"].as_i64().unwrap_or(YEAR);
            let usages = usages.iter().map(|usage| (*usage).to_owned()).collect();
            Action::Sign(Box::new(Wanted { request, usages, life: asked.clamp(MIN_LIFE, YEAR) }))
        }
        (Ok(()), false) => approval(&request, spec, may),
    }
}

/// A node that renews its certificate, or a machine that becomes a node.
fn approval(request: &Request, spec: &Value, may: impl Fn(&str) -> bool) -> Action {
    let renews = spec["username"] == request.common_name.as_str();
    if renews && may("selfnodeclient") {
        let message = "Auto approving self kubelet client certificate after SubjectAccessReview.";
        return Action::Approve(message.to_owned());
    }
    if may("nodeclient") {
        return Action::Approve(
            "Auto approving kubelet client certificate after SubjectAccessReview.".to_owned(),
        );
    }
    Action::Nothing
}

/// A condition that is true.
fn condition<'a>(object: &'a Value, type_: &str) -> Option<&'a Value> {
    let mut conditions = object["status"]["conditions"].as_array().into_iter().flatten();
    conditions.find(|c| c["type"] == type_ && c["status"] != "False")
}

/// Seconds until the object is of no use to anybody.
fn life_left(object: &Value, now: Timestamp) -> i64 {
    let since = |text: &Value, life: i64| {
        let begin = text.as_str().and_then(|text| text.parse::<Timestamp>().ok());
        begin.map_or(life, |begin| begin.as_second() + life - now.as_second())
    };
    let created = &object["metadata"]["creationTimestamp"];
    let decided = ["Approved", "Denied", "Failed"].iter().filter_map(|type_| condition(object, type_));
    let decided = decided.map(|c| since(&c["lastUpdateTime"], DECIDED_LIVES)).min();
    let expired = expiry(object).map(|end| end - now.as_second());
    let finished = condition(object, "Denied").is_some()
        || condition(object, "Failed").is_some()
        || !object["status"]["certificate"].is_null();
    let by_age = match decided {
        Some(left) if finished => left,
        _ => since(created, PENDING_LIVES),
    };
    expired.map_or(by_age, |expired| expired.min(by_age))
}

/// When the certificate ends, in seconds since 1970.
fn expiry(object: &Value) -> Option<i64> {
    let pem = STANDARD.decode(object["status"]["certificate"].as_str()?).ok()?;
    let (_, pem) = x509_parser::pem::parse_x509_pem(&pem).ok()?;
    Some(pem.parse_x509().ok()?.validity().not_after.timestamp())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::request::testing::asked;
    use super::*;

    fn at(text: &str) -> Timestamp {
        text.parse().expect("a time")
    }

    fn request(signer: &str, user: &str, conditions: &[&str]) -> Value {
        let conditions: Vec<Value> = conditions
            .iter()
            .map(|type_| json!({"type": type_, "status": "True", "lastUpdateTime": "2026-01-01T01:00:00Z"}))
            .collect();
        json!({
            "metadata": {"name": "r", "creationTimestamp": "2026-01-01T00:00:00Z"},
            "spec": {
                "signerName": signer, "username": user, "request": asked("system:node:n", "system:nodes", &[]),
                "usages": ["digital signature", "client auth"],
            },
            "status": {"conditions": conditions},
        })
    }

    #[test]
    fn what_is_done() {
        let bootstrap = "system:bootstrap:abcdef";
        let node = "system:node:n";
        let rows: [(&str, &str, &str, &[&str], &[&str], &str); 12] = [
            ("new node", KUBELET_CLIENT, bootstrap, &[], &["nodeclient"], "approve"),
            ("stranger", KUBELET_CLIENT, "ann", &[], &[], "nothing"),
            ("renewal", KUBELET_CLIENT, node, &[], &["selfnodeclient"], "approve"),
            ("for another node", KUBELET_CLIENT, "system:node:m", &[], &["selfnodeclient"], "nothing"),
            ("person", CLIENT, "ann", &[], &["nodeclient"], "nothing"),
            ("legacy", LEGACY, bootstrap, &[], &["nodeclient"], "nothing"),
            ("approved", KUBELET_CLIENT, bootstrap, &["Approved"], &[], "sign"),
            ("approved person", CLIENT, "ann", &["Approved"], &[], "sign"),
            ("not given", KUBELET_SERVING, node, &["Approved"], &[], "fail"),
            ("denied", CLIENT, "ann", &["Approved", "Denied"], &[], "nothing"),
            ("failed", CLIENT, "ann", &["Approved", "Failed"], &[], "nothing"),
            ("another's", "example.com/s", "ann", &["Approved"], &[], "nothing"),
        ];
        for (what, signer, user, conditions, rights, expected) in rows {
            let object = request(signer, user, conditions);
            let todo = plan(&object, at("2026-01-01T01:10:00Z"), |right| rights.contains(&right));
            let found = match todo.action {
                Action::Nothing => "nothing",
                Action::Approve(_) => "approve",
                Action::Sign(_) => "sign",
                Action::Fail(_) => "fail",
                Action::Delete => "delete",
            };
            assert_eq!(found, expected, "{what}");
        }
    }

    #[test]
    fn how_long_they_live() {
        let issued = |object: Value| {
            let mut object = object;
            object["status"]["certificate"] = json!("none that could be read");
            object
        };
        let pending = request(CLIENT, "ann", &[]);
        let approved = request(CLIENT, "ann", &["Approved"]);
        let rows = [
            ("pending", pending.clone(), "2026-01-01T23:00:00Z", Some(3600)),
            ("pending for too long", pending, "2026-01-02T00:00:00Z", None),
            ("approved and not issued", approved.clone(), "2026-01-01T02:30:00Z", Some(77_400)),
            ("issued", issued(approved.clone()), "2026-01-01T01:30:00Z", Some(1800)),
            ("issued long ago", issued(approved), "2026-01-01T02:00:00Z", None),
            ("denied long ago", request(CLIENT, "ann", &["Denied"]), "2026-01-01T02:00:00Z", None),
        ];
        for (what, object, now, expected) in rows {
            let todo = plan(&object, at(now), |_| false);
            let left = (todo.action != Action::Delete).then_some(todo.again.as_secs());
            assert_eq!(left, expected, "{what}");
        }
    }

    #[test]
    fn lives_asked_for() {
        for (asked, expected) in
            [(json!(null), YEAR), (json!(3600), 3600), (json!(1), MIN_LIFE), (json!(i64::MAX), YEAR)]
        {
            let mut object = request(CLIENT, "ann", &["Approved"]);
            object["spec"]["expirationSeconds"] = asked;
            match action(&object, |_| false) {
                Action::Sign(wanted) => assert_eq!(wanted.life, expected),
                other => panic!("{other:?}"),
            }
        }
    }
}
