//! What a namespace that is being deleted says about itself, and when it may go: pure.

use std::collections::BTreeMap;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Namespace, NamespaceCondition, NamespaceStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::content::Report;
use crate::common::condition::{FALSE, TRUE};

/// The finalizer that keeps a namespace until it is empty.
pub(super) const FINALIZER: &str = "kubernetes";
const TERMINATING: &str = "Terminating";

/// One write.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Action {
    SetStatus(NamespaceStatus),
    /// Remove our finalizer, after which the server removes the namespace.
    Finalize,
}

/// Whether a namespace is being deleted and waits for us.
pub(super) fn is_leaving(namespace: &Namespace) -> bool {
    let finalizers = namespace.spec.as_ref().and_then(|spec| spec.finalizers.as_ref());
    let ours = finalizers.is_some_and(|finalizers| finalizers.iter().any(|finalizer| finalizer == FINALIZER));
    namespace.metadata.deletion_timestamp.is_some() && ours
}

/// Whether the namespace says that it is being deleted.
pub(super) fn is_terminating(namespace: &Namespace) -> bool {
    namespace.status.as_ref().and_then(|status| status.phase.as_deref()) == Some(TERMINATING)
}

/// The status of a namespace whose deletion begins.
pub(super) fn terminating(namespace: &Namespace) -> NamespaceStatus {
    NamespaceStatus { phase: Some(TERMINATING.into()), ..namespace.status.clone().unwrap_or_default() }
}

/// The writes after a look at the content. An empty namespace goes without a last word.
pub(super) fn plan(namespace: &Namespace, report: &Report, now: Timestamp) -> Vec<Action> {
    if report.is_clean() {
        return vec![Action::Finalize];
    }
    let mut status = terminating(namespace);
    let before = status.conditions.take().unwrap_or_default();
    status.conditions = Some(conditions(&before, report, now));
    if namespace.status.as_ref() == Some(&status) { Vec::new() } else { vec![Action::SetStatus(status)] }
}

/// A condition: what it is about, the reason and message when all is well, and those when it is not.
struct Fact {
    type_: &'static str,
    well: (&'static str, &'static str),
    trouble: Option<(&'static str, String)>,
}

/// The conditions tools wait for and print; types and reasons are upstream's.
fn conditions(before: &[NamespaceCondition], report: &Report, now: Timestamp) -> Vec<NamespaceCondition> {
    let failures = (!report.failures.is_empty()).then(|| {
        let message = format!("some content could not be deleted: {}", report.failures.join("; "));
        ("ContentDeletionFailed", message)
    });
    let remaining = (!report.remaining.is_empty()).then(|| {
        let message = format!("Some resources are remaining: {}", counted(&report.remaining, "has"));
        ("SomeResourcesRemain", message)
    });
    let finalizers = (!report.finalizers.is_empty()).then(|| {
        let counted = counted(&report.finalizers, "in");
        ("SomeFinalizersRemain", format!("Some content in the namespace has finalizers remaining: {counted}"))
    });
    let facts = [
        Fact {
            type_: "NamespaceDeletionDiscoveryFailure",
            well: ("ResourcesDiscovered", "All resources successfully discovered"),
            trouble: report.discovery.clone().map(|message| ("DiscoveryFailed", message)),
        },
        Fact {
            type_: "NamespaceDeletionContentFailure",
            well: ("ContentDeleted", "All content successfully deleted, may be waiting on finalization"),
            trouble: failures,
        },
        Fact {
            type_: "NamespaceContentRemaining",
            well: ("ContentRemoved", "All content successfully removed"),
            trouble: remaining,
        },
        Fact {
            type_: "NamespaceFinalizersRemaining",
            well: ("ContentHasNoFinalizers", "All content-preserving finalizers finished"),
            trouble: finalizers,
        },
    ];
    let ours: Vec<&str> = facts.iter().map(|fact| fact.type_).collect();
    let foreign = before.iter().filter(|condition| !ours.contains(&condition.type_.as_str())).cloned();
    let facts = facts.iter().map(|fact| condition(fact, before, now));
    foreign.chain(facts).collect()
}

fn condition(fact: &Fact, before: &[NamespaceCondition], now: Timestamp) -> NamespaceCondition {
    let (status, reason, message) = match &fact.trouble {
        Some((reason, message)) => (TRUE, *reason, message.clone()),
        None => (FALSE, fact.well.0, fact.well.1.to_string()),
    };
    let same = before.iter().find(|condition| condition.type_ == fact.type_ && condition.status == status);
    let since = same.and_then(|condition| condition.last_transition_time.clone());
    let now = Time(Timestamp::from_second(now.as_second()).unwrap_or(now));
    NamespaceCondition {
        type_: fact.type_.into(),
        status: status.into(),
        reason: Some(reason.into()),
        message: Some(message),
        last_transition_time: Some(since.unwrap_or(now)),
    }
}

/// `pods. has 2 resource instances, secrets. has 1 resource instances`
fn counted(counts: &BTreeMap<String, usize>, verb: &str) -> String {
    let parts: Vec<String> =
        counts.iter().map(|(name, count)| format!("{name} {verb} {count} resource instances")).collect();
    parts.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::common::testing::{at, meta, time};
    use k8s_openapi::api::core::v1::NamespaceSpec;

    fn namespace(finalizers: &[&str], deleting: bool) -> Namespace {
        let mut namespace = Namespace {
            metadata: meta("ns", "1"),
            spec: Some(NamespaceSpec {
                finalizers: Some(finalizers.iter().map(|finalizer| finalizer.to_string()).collect()),
            }),
            status: Some(NamespaceStatus { phase: Some("Terminating".into()), conditions: None }),
        };
        namespace.metadata.deletion_timestamp = deleting.then(|| time(1));
        namespace
    }

    fn report(pods: usize, finalizer: Option<&str>) -> Report {
        let mut report = Report::default();
        if pods > 0 {
            report.remaining.insert("pods.".into(), pods);
        }
        if let Some(finalizer) = finalizer {
            report.finalizers.insert(finalizer.into(), pods);
        }
        report
    }

    #[test]
    fn who_is_leaving() {
        let rows = [
            ("alive", namespace(&["kubernetes"], false), false),
            ("leaving", namespace(&["kubernetes"], true), true),
            ("only another's finalizer left", namespace(&["x/y"], true), false),
        ];
        for (name, namespace, expected) in rows {
            assert_eq!(is_leaving(&namespace), expected, "{name}");
        }
    }

    #[test]
    fn what_it_says() {
        let broken = Report { discovery: Some("no answer".into()), ..Report::default() };
        let failed = Report { failures: vec!["secrets.: refused".into()], ..Report::default() };
        type Row = (&'static str, Report, Vec<(&'static str, &'static str)>);
        let rows: Vec<Row> = vec![
            (
                "a pod left",
                report(1, None),
                vec![("SomeResourcesRemain", "Some resources are remaining: pods. has 1 resource instances")],
            ),
            (
                "a pod that waits",
                report(2, Some("x/y")),
                vec![
                    ("SomeResourcesRemain", "Some resources are remaining: pods. has 2 resource instances"),
                    (
                        "SomeFinalizersRemain",
                        "Some content in the namespace has finalizers remaining: x/y in 2 resource instances",
                    ),
                ],
            ),
            ("kinds unknown", broken, vec![("DiscoveryFailed", "no answer")]),
            (
                "refused",
                failed,
                vec![("ContentDeletionFailed", "some content could not be deleted: secrets.: refused")],
            ),
        ];
        for (name, report, expected) in rows {
            let actions = plan(&namespace(&["kubernetes"], true), &report, at(1));
            let [Action::SetStatus(status)] = actions.as_slice() else { panic!("{name}: {actions:?}") };
            let troubles: Vec<(&str, &str)> = status
                .conditions
                .iter()
                .flatten()
                .filter(|condition| condition.status == TRUE)
                .map(|condition| {
                    (condition.reason.as_deref().unwrap(), condition.message.as_deref().unwrap())
                })
                .collect();
            assert_eq!(troubles, expected, "{name}");
        }
    }

    #[test]
    fn it_goes_when_empty_and_writes_nothing_twice() {
        let mut namespace = namespace(&["kubernetes"], true);
        assert_eq!(plan(&namespace, &report(0, None), at(1)), [Action::Finalize]);
        let Some(Action::SetStatus(status)) = plan(&namespace, &report(1, None), at(1)).pop() else {
            panic!("writes a status");
        };
        namespace.status = Some(status);
        assert!(plan(&namespace, &report(1, None), at(99)).is_empty());
    }
}
