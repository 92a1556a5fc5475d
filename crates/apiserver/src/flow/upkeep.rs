//! Keeps what flow control needs in the store: levels and schemas every cluster has, and the word of each schema about
//! its level (condition `Dangling`), as upstream's `flowcontrol/ensurer` and config controller do.
//!
//! [`plan`] looks at everything there is and says what to write; a task runs it when one of the objects changes, and at
//! the start. In a cluster where all is well nothing is written and nothing runs.

use std::sync::Arc;
use std::time::Duration;

use http::StatusCode;
use jiff::Timestamp;
use sampan_api::decode::Strictness;
use sampan_api::kinds::flow_control::{is_specified, mandatory};
use serde_json::{Value, json};

use super::defaults::{self, AUTO_UPDATE};
use super::{LEVELS, SCHEMAS};
use crate::auth::{MASTERS, User};
use crate::books::seconds;
use crate::error::ApiError;
use crate::server::ApiServer;
use crate::view::View;
use crate::write::{Change, WriteCall};

const GROUP: &str = "flowcontrol.apiserver.k8s.io";
/// Pause after a failed round.
const RETRY: Duration = Duration::from_secs(1);
const DANGLING: &str = "Dangling";

/// Which of the two kinds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Of {
    Levels,
    Schemas,
}

impl Of {
    fn kind(self) -> &'static str {
        match self {
            Self::Levels => "PriorityLevelConfiguration",
            Self::Schemas => "FlowSchema",
        }
    }

    fn plural(self) -> &'static str {
        match self {
            Self::Levels => "prioritylevelconfigurations",
            Self::Schemas => "flowschemas",
        }
    }
}

/// What to write.
#[derive(Debug, PartialEq)]
enum Action {
    /// An object that is missing.
    Create(Of, Value),
    /// An object with its specification or its mark put right.
    Replace(Of, Value),
    /// A schema with another word about its level.
    Status(Value),
}

/// Creates what is missing and keeps it, for as long as the server lives.
pub(crate) async fn follow(server: &Arc<ApiServer>) {
    let mut levels = server.cache.resource(LEVELS).subscribe();
    let mut schemas = server.cache.resource(SCHEMAS).subscribe();
    // The first round is part of the start, so that requests find their places from the beginning.
    let mut retry = round(server).await;
    let server = Arc::downgrade(server);
    tokio::spawn(async move {
        loop {
            tokio::select! {
                changed = levels.changed() => if changed.is_err() { return },
                changed = schemas.changed() => if changed.is_err() { return },
                () = tokio::time::sleep(RETRY), if retry => {}
            }
            levels.borrow_and_update();
            schemas.borrow_and_update();
            let Some(server) = server.upgrade() else { return };
            retry = round(&server).await;
        }
    });
}

/// One look at everything; whether another is needed soon.
async fn round(server: &ApiServer) -> bool {
    server.cache.wait_for(server.store.revision().0).await;
    let objects = |resource: &str| -> Vec<Value> {
        let items = server.cache.resource(resource).list(&format!("/{resource}/"));
        items.iter().filter_map(|item| serde_json::from_slice(&item.bytes).ok()).collect()
    };
    let mut again = false;
    for action in plan(&objects(LEVELS), &objects(SCHEMAS), Timestamp::now()) {
        match execute(server, action).await {
            Ok(()) => {}
            // Somebody else was faster, which is an event of its own.
            Err(e) if [StatusCode::CONFLICT, StatusCode::NOT_FOUND].contains(&e.code) => {}
            Err(error) => {
                tracing::warn!(%error, "the configuration of flow control cannot be kept");
                again = true;
            }
        }
    }
    again
}

async fn execute(server: &ApiServer, action: Action) -> Result<(), ApiError> {
    let user = User::known("system:apiserver", &[MASTERS]);
    let (of, view, object) = match action {
        Action::Create(of, object) => {
            let kind = kind(server, of)?;
            let call = WriteCall::internal(&kind, "", "", View::Object, &user);
            return server.create(&call, object, Strictness::default()).await.map(drop);
        }
        Action::Replace(of, object) => (of, View::Object, object),
        Action::Status(object) => (Of::Schemas, View::Status, object),
    };
    let kind = kind(server, of)?;
    let name = object["metadata"]["name"].as_str().unwrap_or_default().to_owned();
    let call = WriteCall::internal(&kind, "", &name, view, &user);
    server.change(&call, &Change::Replace(object), &Strictness::default()).await.map(drop)
}

fn kind(server: &ApiServer, of: Of) -> Result<Arc<sampan_api::registry::Kind>, ApiError> {
    server.registry().find(GROUP, "v1", of.plural()).cloned().ok_or_else(ApiError::no_such_path)
}

fn plan(levels: &[Value], schemas: &[Value], now: Timestamp) -> Vec<Action> {
    let mut actions = Vec::new();
    for (of, present, wanted) in
        [(Of::Levels, levels, defaults::levels()), (Of::Schemas, schemas, defaults::schemas())]
    {
        for wanted in wanted {
            match present.iter().find(|object| object["metadata"]["name"] == wanted["metadata"]["name"]) {
                None => actions.push(Action::Create(of, wanted)),
                Some(object) => {
                    actions.extend(put_right(of, object, &wanted).map(|o| Action::Replace(of, o)))
                }
            }
        }
    }
    let is_level = |name: &Value| levels.iter().any(|level| level["metadata"]["name"] == *name);
    let judged = schemas.iter().filter_map(|schema| {
        let level = &schema["spec"]["priorityLevelConfiguration"]["name"];
        with_condition(schema, level.as_str().unwrap_or_default(), is_level(level), now)
    });
    actions.extend(judged.map(Action::Status));
    actions
}

/// The object as the server wants it, if that is something else. Mandatory objects are ours; of the others, those that an
/// administrator has changed or marked as theirs stay what they are.
fn put_right(of: Of, object: &Value, wanted: &Value) -> Option<Value> {
    let metadata = &object["metadata"];
    let name = metadata["name"].as_str().unwrap_or_default();
    let ours = mandatory(of.kind(), name).is_some()
        || match metadata["annotations"][AUTO_UPDATE].as_str() {
            Some(mark) => mark == "true",
            None => metadata["generation"] == 1,
        };
    let mut right = object.clone();
    if ours && !is_specified(name, &object["spec"], &wanted["spec"]) {
        right["spec"] = wanted["spec"].clone();
    }
    let mark = if ours { "true" } else { "false" };
    if metadata["annotations"][AUTO_UPDATE] != mark {
        right["metadata"]["annotations"][AUTO_UPDATE] = mark.into();
    }
    (right != *object).then_some(right)
}

/// The schema with what is to say about its level, if it does not say so yet.
fn with_condition(schema: &Value, level: &str, found: bool, now: Timestamp) -> Option<Value> {
    let begin = format!("This FlowSchema references the PriorityLevelConfiguration object named {level:?} ");
    let (status, reason, message) = match found {
        true => ("False", "Found", format!("{begin}and it exists")),
        false => ("True", "NotFound", format!("{begin}but there is no such object")),
    };
    let mut conditions = schema["status"]["conditions"].as_array().cloned().unwrap_or_default();
    let before = conditions.iter().position(|condition| condition["type"] == DANGLING);
    let mut condition = json!({
        "type": DANGLING, "status": status, "reason": reason, "message": message,
        "lastTransitionTime": seconds(now),
    });
    match before {
        Some(at) => {
            let before = &mut conditions[at];
            if before["status"] == status {
                condition["lastTransitionTime"] = before["lastTransitionTime"].clone();
            }
            if *before == condition {
                return None;
            }
            *before = condition;
        }
        None => conditions.push(condition),
    }
    let mut schema = schema.clone();
    schema["status"] = json!({"conditions": conditions});
    Some(schema)
}

#[cfg(test)]
mod tests {
    use sampan_api::kinds::flow_control::{CATCH_ALL, EXEMPT};

    use super::*;

    fn now() -> Timestamp {
        "2026-01-02T00:00:00.5Z".parse().expect("a time")
    }

    /// What the store holds after the first rounds.
    fn settled() -> (Vec<Value>, Vec<Value>) {
        let stored = |mut object: Value| {
            object["metadata"]["generation"] = 1.into();
            object
        };
        let levels: Vec<Value> = defaults::levels().into_iter().map(stored).collect();
        let schemas = defaults::schemas().into_iter().map(stored).map(|schema| {
            let level = schema["spec"]["priorityLevelConfiguration"]["name"].as_str().unwrap_or_default();
            with_condition(&schema, level, true, now()).expect("a first word")
        });
        (levels, schemas.collect())
    }

    fn find<'a>(objects: &'a mut [Value], name: &str) -> &'a mut Value {
        objects.iter_mut().find(|object| object["metadata"]["name"] == name).expect(name)
    }

    #[test]
    fn nothing_to_do_in_a_settled_cluster() {
        let (levels, schemas) = settled();
        assert_eq!(plan(&levels, &schemas, now()), []);
    }

    #[test]
    fn everything_comes_back() {
        let created = plan(&[], &[], now());
        let all = defaults::levels().len() + defaults::schemas().len();
        assert_eq!(created.len(), all);
        assert!(created.iter().all(|action| matches!(action, Action::Create(..))));
    }

    #[test]
    fn what_is_ours_and_what_is_not() {
        let marked = |value: Value| {
            move |object: &mut Value| {
                object["spec"]["matchingPrecedence"] = 7777.into();
                object["metadata"]["generation"] = 2.into();
                object["metadata"]["annotations"] = value;
            }
        };
        // Name, change by somebody, whether the specification comes back, and the mark that is written.
        let rows: Vec<(&str, Value, bool, Option<&str>)> = vec![
            (EXEMPT, json!({AUTO_UPDATE: "true"}), true, None),
            (CATCH_ALL, json!({AUTO_UPDATE: "false"}), true, Some("true")),
            ("probes", json!({AUTO_UPDATE: "true"}), true, None),
            ("probes", json!({AUTO_UPDATE: "false"}), false, None),
            ("probes", json!({}), false, Some("false")),
        ];
        for (name, annotations, comes_back, mark) in rows {
            let (levels, mut schemas) = settled();
            let right = find(&mut schemas, name).clone();
            let mark = mark.map(Value::from).unwrap_or(annotations[AUTO_UPDATE].clone());
            marked(annotations.clone())(find(&mut schemas, name));
            let actions = plan(&levels, &schemas, now());
            if !comes_back && mark == annotations[AUTO_UPDATE] {
                assert_eq!(actions, [], "{name}");
                continue;
            }
            let [Action::Replace(Of::Schemas, replaced)] = &actions[..] else {
                panic!("{name}: {actions:?}")
            };
            assert_eq!(replaced["spec"] == right["spec"], comes_back, "{name}");
            assert_eq!(replaced["metadata"]["annotations"][AUTO_UPDATE], mark, "{name}");
        }
        // Shares of the exempt level are the administrator's.
        let (mut levels, schemas) = settled();
        find(&mut levels, EXEMPT)["spec"]["exempt"] =
            json!({"nominalConcurrencyShares": 3, "lendablePercent": 50});
        assert_eq!(plan(&levels, &schemas, now()), []);
    }

    #[test]
    fn a_schema_says_whether_its_level_exists() {
        let (levels, mut schemas) = settled();
        let later: Timestamp = "2026-01-03T00:00:00Z".parse().expect("a time");
        let own = |level: &str| json!({"metadata": {"name": "own"}, "spec": {"priorityLevelConfiguration": {"name": level}}});
        schemas.push(own("nowhere"));
        let actions = plan(&levels, &schemas, now());
        let [Action::Status(told)] = &actions[..] else { panic!("{actions:?}") };
        let expected = json!({
            "type": "Dangling", "status": "True", "reason": "NotFound", "lastTransitionTime": "2026-01-02T00:00:00Z",
            "message": "This FlowSchema references the PriorityLevelConfiguration object named \"nowhere\" but there is no such object",
        });
        assert_eq!(told["status"]["conditions"], json!([expected]));
        // Said once; another level that does not exist either is no transition.
        let mut told = told.clone();
        *schemas.last_mut().expect("own") = told.clone();
        assert_eq!(plan(&levels, &schemas, later), []);
        told["spec"]["priorityLevelConfiguration"]["name"] = "nowhere2".into();
        let still = with_condition(&told, "nowhere2", false, later).expect("another word");
        assert_eq!(still["status"]["conditions"][0]["lastTransitionTime"], "2026-01-02T00:00:00Z");
        let found = with_condition(&told, "nowhere2", true, later).expect("another word");
        let found = &found["status"]["conditions"][0];
        assert_eq!(
            (&found["status"], &found["reason"], &found["lastTransitionTime"]),
            (&json!("False"), &json!("Found"), &json!("2026-01-03T00:00:00Z"))
        );
    }
}
