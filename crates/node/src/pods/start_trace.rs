//! The trace of a pod's start: from the moment its worker is born until its containers have run, with a part for each
//! operation on the way. Whoever exports traces hears of it; otherwise there is nothing here.

use tracing::field::Empty;
use tracing::{Instrument as _, Span};

use super::model::{PodModel, Role};
use super::observed::{ContainerView, Observed, Op};
use super::operations::Done;
use super::plan::{self, Ending};

/// Target of spans that are exported; the API server's crate has the listener.
const TARGET: &str = "sampan_trace";

/// The span of a start that goes on.
pub(super) struct StartTrace {
    span: Span,
    /// What went wrong last; it says why if the pod never comes to run.
    failure: Option<String>,
}

impl StartTrace {
    /// The start of a pod of which nothing runs yet; `begun`: something does, and its start was another agent's.
    pub(super) fn new(model: &PodModel, begun: bool) -> Self {
        if begun || model.has_ended() {
            return Self { span: Span::none(), failure: None };
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
        Self { span, failure: None }
    }

    /// The span of an operation, if it is a part of the start.
    pub(super) fn part(&self, op: &Op) -> Span {
        let start = &self.span;
        if start.is_disabled() {
            return Span::none();
        }
        match op {
            Op::Volumes => {
                tracing::info_span!(target: TARGET, parent: start, "prepare volumes", otel.error = Empty)
            }
            Op::Sandbox => {
                tracing::info_span!(target: TARGET, parent: start, "create sandbox", otel.error = Empty)
            }
            Op::Pull(container) => {
                let name = container.as_str();
                tracing::info_span!(
                    target: TARGET, parent: start, "pull image", otel.error = Empty, k8s.container.name = name,
                )
            }
            Op::Start(container) => {
                let name = container.as_str();
                tracing::info_span!(
                    target: TARGET, parent: start, "start container", otel.error = Empty, k8s.container.name = name,
                )
            }
            _ => Span::none(),
        }
    }

    /// An operation on the way failed; it will be tried again, so that the start has not failed yet.
    pub(super) fn failed(&mut self, why: &str) {
        if !self.span.is_disabled() {
            self.failure = Some(why.to_owned());
        }
    }

    /// Ends the trace when every container of the pod has been started, or when none will be any more. Of a pod that was
    /// deleted before nobody can say that it failed.
    pub(super) fn look(&mut self, model: &PodModel, observed: &Observed, now: i64) {
        if self.span.is_disabled() {
            return;
        }
        let has_started = |name: &str| {
            observed
                .view(name)
                .and_then(ContainerView::last)
                .is_some_and(|run| run.is_running() || run.has_exited() && !run.has_failed_to_start())
        };
        if !model.of_role(Role::Main).all(|container| has_started(container.name())) {
            match plan::ending(model, observed, now) {
                None => return,
                Some(Ending::Deleted) => {}
                Some(Ending::Deadline | Ending::Finished) => {
                    let why =
                        self.failure.as_deref().unwrap_or("the pod ended before its containers started");
                    self.span.record("otel.error", why);
                }
            }
        }
        self.span = Span::none();
    }
}

/// Tells in the span of an operation why it failed.
pub(super) async fn told(part: Span, work: impl Future<Output = Done>) -> Done {
    let done = work.instrument(part.clone()).await;
    if let Some(why) = done.failure() {
        part.record("otel.error", why);
    }
    done
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::sync::{Arc, Mutex};

    use futures::FutureExt as _;
    use k8s_openapi::api::core::v1::Pod;
    use serde_json::{Value, json};
    use tracing::Subscriber;
    use tracing::field::{Field, Visit};
    use tracing::span::{Attributes, Id, Record};
    use tracing_subscriber::layer::{Context, Layer, SubscriberExt as _};
    use tracing_subscriber::registry::LookupSpan;

    use super::*;
    use crate::pods::observed::{Run, RunState, START_ERROR, START_ERROR_CODE};

    /// Name, parent's name and error of each span, in the order of their ends.
    #[derive(Clone, Default)]
    struct Ended(Arc<Mutex<Vec<[String; 3]>>>);

    /// What a span says of its failure.
    #[derive(Default)]
    struct Told(String);

    impl Visit for Told {
        fn record_str(&mut self, field: &Field, value: &str) {
            if field.name() == "otel.error" {
                self.0 = value.to_owned();
            }
        }
        fn record_debug(&mut self, _: &Field, _: &dyn std::fmt::Debug) {}
    }

    impl<S: Subscriber + for<'a> LookupSpan<'a>> Layer<S> for Ended {
        fn on_new_span(&self, _: &Attributes<'_>, id: &Id, context: Context<'_, S>) {
            context.span(id).expect("a span").extensions_mut().insert(Told::default());
        }
        fn on_record(&self, id: &Id, values: &Record<'_>, context: Context<'_, S>) {
            let span = context.span(id).expect("a span");
            values.record(span.extensions_mut().get_mut::<Told>().expect("something told"));
        }
        fn on_close(&self, id: Id, context: Context<'_, S>) {
            let span = context.span(&id).expect("a span");
            let parent = span.parent().map_or(String::new(), |parent| parent.name().to_owned());
            let told = span.extensions_mut().remove::<Told>().expect("something told");
            self.0.lock().expect("not poisoned").push([span.name().to_owned(), parent, told.0]);
        }
    }

    /// What ends while `work` runs.
    fn ended(work: impl FnOnce()) -> Vec<[String; 3]> {
        let ended = Ended::default();
        let subscriber = tracing_subscriber::registry().with(ended.clone());
        tracing::subscriber::with_default(subscriber, work);
        ended.0.lock().expect("not poisoned").clone()
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
        let ended = ended(|| {
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
        let expected = [
            ("create sandbox", "start pod"),
            ("pull image", "start pod"),
            ("start container", "start pod"),
            ("start pod", ""),
        ];
        assert_eq!(ended, expected.map(|(name, parent)| [name, parent, ""].map(str::to_owned)));
    }

    /// A run of each container that ended because its process could not be started.
    fn failed_to_start(names: &[&str]) -> Observed {
        let mut observed = running(names);
        for run in observed.containers.values_mut().flat_map(|view| &mut view.runs) {
            (run.state, run.exit_code) = (RunState::Exited, START_ERROR_CODE);
            run.reason = START_ERROR.to_owned();
        }
        observed
    }

    #[test]
    fn a_start_has_failed_when_the_pod_has() {
        let both = ["one", "two"];
        let changed = |change: Value| {
            let mut pod = serde_json::to_value(&*model().pod).expect("JSON");
            pod.as_object_mut().expect("an object").extend(change.as_object().cloned().unwrap_or_default());
            PodModel::new(Arc::new(serde_json::from_value::<Pod>(pod).expect("a pod")))
        };
        let never = json!({"spec": {
            "restartPolicy": "Never",
            "containers": [{"name": "one", "image": "i"}, {"name": "two", "image": "i"}],
        }});
        let failed = json!({"status": {"phase": "Failed"}});
        // The pod, what has gone wrong on the way, what is seen, whether the trace ends, and with which error.
        let rows: [(PodModel, Option<&str>, Observed, bool, &str); 7] = [
            (model(), Some("no image"), running(&["one"]), false, ""),
            (model(), Some("no image"), running(&both), true, ""),
            (model(), Some("no such file"), failed_to_start(&both), false, ""),
            (changed(never), Some("no such file"), failed_to_start(&both), true, "no such file"),
            (changed(failed.clone()), Some("no image"), running(&["one"]), true, "no image"),
            (changed(failed), None, running(&[]), true, "the pod ended before its containers started"),
            (model(), Some("no image"), Observed { gone: true, ..Observed::default() }, true, ""),
        ];
        for (place, (pod, failure, observed, ends, error)) in rows.into_iter().enumerate() {
            let mut has_ended = false;
            let ended = ended(|| {
                let mut start = StartTrace::new(&model(), false);
                if let Some(why) = failure {
                    start.failed(why);
                }
                start.look(&pod, &observed, 0);
                has_ended = start.span.is_disabled();
            });
            assert_eq!(has_ended, ends, "row {place}");
            assert_eq!(ended, [["start pod", "", error].map(str::to_owned)], "row {place}");
        }
    }

    #[test]
    fn operations_tell_why_they_failed() {
        let volumes = |result: Result<Option<i64>, &str>| Done::Volumes(result.map_err(str::to_owned));
        let failed = Done::Failed {
            container: "one".to_owned(),
            reason: "ErrImagePull",
            message: "no image".to_owned(),
            is_pull: true,
        };
        let rows = [
            (Op::Volumes, volumes(Ok(None)), ""),
            (Op::Volumes, volumes(Err("no secret")), "no secret"),
            (Op::Pull("one".to_owned()), failed, "no image"),
            (Op::Sandbox, Done::Sandbox(Err("no network".to_owned())), "no network"),
        ];
        for (op, done, error) in rows {
            let ended = ended(|| {
                let start = StartTrace::new(&model(), false);
                let work = told(start.part(&op), async { done });
                assert!(work.now_or_never().is_some());
            });
            assert_eq!(ended[0][2], error, "{op:?}");
            assert_eq!(ended[1][2], "", "{op:?}");
        }
    }
}
