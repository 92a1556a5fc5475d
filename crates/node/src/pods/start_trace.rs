//! The trace of a pod's start: from the moment its worker is born until its containers have run, with a part for each
//! operation on the way. Whoever exports traces hears of it; otherwise there is nothing here.

use tracing::Span;
use tracing::field::Empty;

use super::model::{PodModel, Role};
use super::observed::{Observed, Op};
use super::plan;

/// Target of spans that are exported; the API server's crate has the listener.
const TARGET: &str = "sampan::trace";

/// The span of a start that goes on.
pub(super) struct StartTrace {
    span: Span,
}

impl StartTrace {
    /// The start of a pod of which nothing runs yet; `begun`: something does, and its start was another agent's.
    pub(super) fn new(model: &PodModel, begun: bool) -> Self {
        if begun || model.has_ended() {
            return Self { span: Span::none() };
        }
        let metadata = &model.pod.metadata;
        let span = tracing::info_span!(
            target: TARGET,
            "start pod",
            otel.root = true,
            otel.error = Empty,
            k8s.pod.name = metadata.name,
            k8s.namespace.name = metadata.namespace,
            k8s.pod.uid = metadata.uid,
        );
        Self { span }
    }

    /// The span of an operation, if it is a part of the start.
    pub(super) fn part(&self, op: &Op) -> Span {
        let start = &self.span;
        if start.is_disabled() {
            return Span::none();
        }
        match op {
            Op::Volumes => tracing::info_span!(target: TARGET, parent: start, "prepare volumes"),
            Op::Sandbox => tracing::info_span!(target: TARGET, parent: start, "create sandbox"),
            Op::Pull(container) => {
                let name = container.as_str();
                tracing::info_span!(target: TARGET, parent: start, "pull image", k8s.container.name = name)
            }
            Op::Start(container) => {
                let name = container.as_str();
                tracing::info_span!(target: TARGET, parent: start, "start container", k8s.container.name = name)
            }
            _ => Span::none(),
        }
    }

    /// Something on the way failed; it will be tried again.
    pub(super) fn failed(&self, why: &str) {
        self.span.record("otel.error", why);
    }

    /// Ends the trace when every container of the pod has been started, or when none will be any more.
    pub(super) fn look(&mut self, model: &PodModel, observed: &Observed, now: i64) {
        if self.span.is_disabled() {
            return;
        }
        let has_started = |name: &str| {
            observed
                .view(name)
                .is_some_and(|view| view.last().is_some_and(|run| run.is_running() || run.has_exited()))
        };
        let all_started = model.of_role(Role::Main).all(|container| has_started(container.name()));
        if all_started || plan::ending(model, observed, now).is_some() {
            self.span = Span::none();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::sync::{Arc, Mutex};

    use k8s_openapi::api::core::v1::Pod;
    use serde_json::json;
    use tracing::Subscriber;
    use tracing::span::{Attributes, Id};
    use tracing_subscriber::layer::{Context, Layer, SubscriberExt as _};
    use tracing_subscriber::registry::LookupSpan;

    use super::*;
    use crate::pods::observed::{ContainerView, Run};

    /// Names of spans with their parents', in the order of their ends.
    #[derive(Clone, Default)]
    struct Ended(Arc<Mutex<Vec<(String, String)>>>);

    impl<S: Subscriber + for<'a> LookupSpan<'a>> Layer<S> for Ended {
        fn on_new_span(&self, _: &Attributes<'_>, _: &Id, _: Context<'_, S>) {}
        fn on_close(&self, id: Id, context: Context<'_, S>) {
            let span = context.span(&id).expect("a span");
            let parent = span.parent().map_or(String::new(), |parent| parent.name().to_owned());
            self.0.lock().expect("not poisoned").push((span.name().to_owned(), parent));
        }
    }

    fn model() -> PodModel {
        let pod = json!({
            "metadata": {"name": "a", "namespace": "n", "uid": "u"},
            "spec": {"containers": [{"name": "one", "image": "i"}, {"name": "two", "image": "i"}]},
        });
        PodModel::new(Arc::new(serde_json::from_value::<Pod>(pod).expect("a pod")))
    }

    fn running(names: &[&str]) -> Observed {
        let status = json!({
            "name": "x", "image": "i", "imageID": "", "ready": false, "restartCount": 0, "containerID": "sampan://c",
            "state": {"running": {"startedAt": "2026-01-01T00:00:00Z"}},
        });
        let status = serde_json::from_value(status).expect("a status");
        let run: Run = crate::pods::observed::run_from_status(&status, 0).expect("a run");
        let view = ContainerView { runs: vec![run], ..ContainerView::default() };
        let containers: BTreeMap<_, _> =
            names.iter().map(|name| ((*name).to_owned(), view.clone())).collect();
        Observed { containers, ..Observed::default() }
    }

    #[test]
    fn a_start_and_its_parts() {
        // Nobody listens yet.
        assert!(StartTrace::new(&model(), false).part(&Op::Sandbox).is_disabled());
        let ended = Ended::default();
        let subscriber = tracing_subscriber::registry().with(ended.clone());
        tracing::subscriber::with_default(subscriber, || {
            let mut start = StartTrace::new(&model(), false);
            drop(start.part(&Op::Sandbox));
            drop(start.part(&Op::Pull("one".to_owned())));
            assert!(start.part(&Op::Delete).is_disabled());
            start.look(&model(), &running(&["one"]), 0);
            drop(start.part(&Op::Start("two".to_owned())));
            start.look(&model(), &running(&["one", "two"]), 0);
            // A restart is no start.
            assert!(start.part(&Op::Start("two".to_owned())).is_disabled());
            assert!(StartTrace::new(&model(), true).part(&Op::Sandbox).is_disabled());
        });
        let ended = ended.0.lock().expect("not poisoned").clone();
        let expected = [
            ("create sandbox", "start pod"),
            ("pull image", "start pod"),
            ("start container", "start pod"),
            ("start pod", ""),
        ];
        assert_eq!(ended, expected.map(|(name, parent)| (name.to_owned(), parent.to_owned())));
    }
}
