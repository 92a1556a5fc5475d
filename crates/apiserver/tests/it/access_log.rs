//! The line about a request that failed in the server.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use serde_json::json;
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::layer::{Context, Layer, SubscriberExt as _};

use crate::world::{World, eventually};

type Fields = BTreeMap<String, String>;

/// The fields of every line about a request, with its level.
#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<(Level, Fields)>>>);

struct Reading(Fields);

impl Visit for Reading {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.0.insert(field.name().to_owned(), value.to_owned());
    }
    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        self.0.insert(field.name().to_owned(), format!("{value:?}"));
    }
}

impl<S: Subscriber> Layer<S> for Lines {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        if event.metadata().target().ends_with("::access_log") {
            let mut fields = Reading(Fields::new());
            event.record(&mut fields);
            self.0.lock().expect("not poisoned").push((*event.metadata().level(), fields.0));
        }
    }
}

#[tokio::test]
async fn failures_say_who_and_what() {
    let world = World::new().await;
    let nobody = json!({"url": "https://127.0.0.1:1/", "caBundle": ""});
    let configuration = json!({
        "metadata": {"name": "w"},
        "webhooks": [{
            "name": "w.example.com", "clientConfig": nobody, "admissionReviewVersions": ["v1"],
            "sideEffects": "None", "matchPolicy": "Equivalent", "failurePolicy": "Fail", "timeoutSeconds": 1,
            "rules": [{"operations": ["*"], "apiGroups": [""], "apiVersions": ["v1"], "resources": ["configmaps"], "scope": "*"}],
        }],
    });
    world.install("validatingwebhookconfigurations.admissionregistration.k8s.io", &configuration).await;
    let lines = Lines::default();
    let _listening = tracing::subscriber::set_default(tracing_subscriber::registry().with(lines.clone()));
    let map = json!({"metadata": {"name": "a"}});
    world.post("/api/v1/namespaces/default/configmaps", &map).await.expect(500);
    world.get("/api/v1/namespaces/default/configmaps/b").await.expect(404);
    let lines = || lines.0.lock().expect("not poisoned").clone();
    eventually("two lines", async || lines().len() >= 2).await;
    let find = |verb: &str| lines().into_iter().find(|(_, fields)| fields["verb"] == verb).expect("a line");
    let (level, failed) = find("create");
    assert_eq!(level, Level::WARN);
    for (field, value) in
        [("resource", "configmaps"), ("namespace", "default"), ("user", "admin"), ("code", "500")]
    {
        assert_eq!(failed.get(field).map(String::as_str), Some(value), "{field} of {failed:?}");
    }
    assert!(failed["error"].contains("w.example.com") && failed.contains_key("duration_ms"), "{failed:?}");
    // What is the client's business is told to who asks for it.
    let (level, missed) = find("get");
    assert_eq!((level, missed["code"].as_str(), missed["name"].as_str()), (Level::DEBUG, "404", "b"));
}
