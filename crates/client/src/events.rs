//! Event objects: what happened to an object, for people to read.
//!
//! A loop hands an occurrence over and goes on; a task of the recorder decides whether it becomes a
//! new Event, a higher count on one that exists, or nothing (see `correlator`), and talks to the
//! server. Events are a courtesy: when the server is slow or a loop goes wild, occurrences are
//! dropped rather than kept, and no loop ever waits.

mod correlator;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Event, EventSource, ObjectReference};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use kube::Api;
use kube::api::{Patch, PatchParams, PostParams};
use serde_json::json;
use tokio::sync::mpsc;

use correlator::{Correlator, Occurrence, Series};

/// Occurrences that may wait for the server, about 400 KB at worst. client-go's queue has the same length.
const QUEUE_LENGTH: usize = 1000;

/// Records Events about any object in the name of one component. Clones share queue and correlation.
#[derive(Clone)]
pub struct EventRecorder {
    occurrences: mpsc::Sender<Occurrence>,
}

impl EventRecorder {
    /// A recorder for `component` (such as `replicaset-controller`) running on `node`; the node may
    /// be empty for parts that belong to none. Its task ends with the last clone.
    pub fn new(client: kube::Client, component: &str, node: &str) -> Self {
        let (occurrences, inbox) = mpsc::channel(QUEUE_LENGTH);
        let writer = Writer { client, component: component.to_string(), node: node.to_string() };
        tokio::spawn(writer.run(inbox));
        Self { occurrences }
    }

    /// Records that something happened to `object`. `type_` is `Normal` or `Warning`, `reason` a
    /// word in CamelCase for machines, `message` a sentence for people. Never blocks; may drop.
    pub fn record(&self, object: &ObjectReference, type_: &str, reason: &str, message: impl Into<String>) {
        let occurrence = Occurrence {
            object: object.clone(),
            type_: type_.to_string(),
            reason: reason.to_string(),
            message: message.into(),
            at: Timestamp::now(),
        };
        if let Err(rejected) = self.occurrences.try_send(occurrence) {
            tracing::debug!(reason, %rejected, "dropped an event");
        }
    }
}

struct Writer {
    client: kube::Client,
    component: String,
    node: String,
}

impl Writer {
    async fn run(self, mut inbox: mpsc::Receiver<Occurrence>) {
        let mut correlator = Correlator::default();
        while let Some(occurrence) = inbox.recv().await {
            let Some(series) = correlator.observe(&occurrence) else { continue };
            if let Err(error) = self.write(&occurrence, &series).await {
                let cause: &(dyn std::error::Error + 'static) = &error;
                tracing::debug!(event = series.name, error = cause, "could not write an event");
                correlator.forget(&occurrence);
            }
        }
    }

    async fn write(&self, occurrence: &Occurrence, series: &Series) -> kube::Result<()> {
        let api: Api<Event> = Api::namespaced(self.client.clone(), occurrence.namespace());
        if series.count > 1 {
            let repeat = json!({
                "count": series.count,
                "lastTimestamp": Time(occurrence.at),
                "message": series.message,
            });
            match api.patch(&series.name, &PatchParams::default(), &Patch::Merge(repeat)).await {
                // The server has forgotten the event already: tell it again.
                Err(kube::Error::Api(status)) if status.is_not_found() => {}
                result => return result.map(drop),
            }
        }
        api.create(&PostParams::default(), &self.event(occurrence, series)).await.map(drop)
    }

    fn event(&self, occurrence: &Occurrence, series: &Series) -> Event {
        Event {
            metadata: ObjectMeta {
                namespace: Some(occurrence.namespace().to_string()),
                name: Some(series.name.clone()),
                ..ObjectMeta::default()
            },
            involved_object: occurrence.object.clone(),
            type_: Some(occurrence.type_.clone()),
            reason: Some(occurrence.reason.clone()),
            message: Some(series.message.clone()),
            count: Some(series.count),
            first_timestamp: Some(Time(series.first)),
            last_timestamp: Some(Time(occurrence.at)),
            source: Some(EventSource {
                component: Some(self.component.clone()),
                host: (!self.node.is_empty()).then(|| self.node.clone()),
            }),
            reporting_component: Some(self.component.clone()),
            reporting_instance: Some(self.node.clone()),
            ..Event::default()
        }
    }
}
