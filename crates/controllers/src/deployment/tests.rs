//! The decisions of a Deployment as tables, and whole rollouts against a small model of the rest.

use k8s_openapi::api::apps::v1::{
    DeploymentCondition, DeploymentSpec, DeploymentStrategy, ReplicaSetSpec, ReplicaSetStatus,
};
use k8s_openapi::api::core::v1::{Container, PodSpec, PodTemplateSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;

use super::plan::Plan;
use super::*;
use crate::common::testing::{at, labels, meta, pod, reference, time};

/// A Deployment `web` of this many replicas with image `v1`.
pub(super) fn deployment(replicas: i32, change: impl FnOnce(&mut DeploymentSpec)) -> Deployment {
    let mut spec = DeploymentSpec {
        replicas: Some(replicas),
        selector: LabelSelector { match_labels: Some(labels(&[("app", "web")])), ..LabelSelector::default() },
        template: template("v1"),
        progress_deadline_seconds: Some(600),
        ..DeploymentSpec::default()
    };
    change(&mut spec);
    Deployment { metadata: meta("web", "d"), spec: Some(spec), status: None }
}

fn template(image: &str) -> PodTemplateSpec {
    PodTemplateSpec {
        metadata: Some(ObjectMeta { labels: Some(labels(&[("app", "web")])), ..ObjectMeta::default() }),
        spec: Some(PodSpec {
            containers: vec![Container {
                name: "main".into(),
                image: Some(image.into()),
                ..Container::default()
            }],
            ..PodSpec::default()
        }),
    }
}

/// A ReplicaSet of an image, created in the order of `revision`, sized for a Deployment of `of`
/// replicas with the default surge.
fn set(image: &str, revision: i32, of: i32, size: i32, available: i32) -> ReplicaSet {
    let deployment = deployment(of, |_| {});
    let mut meta = meta(&format!("web-{image}"), &format!("rs-{image}"));
    meta.creation_timestamp = Some(time(i64::from(revision)));
    meta.owner_references = Some(vec![reference("Deployment", "web", "d")]);
    let mut annotations: std::collections::BTreeMap<String, String> =
        sizes::size_annotations(&deployment).map(|(key, value)| (key.to_string(), value)).into();
    annotations.insert(sizes::REVISION.into(), revision.to_string());
    meta.annotations = Some(annotations);
    ReplicaSet {
        metadata: meta,
        spec: Some(ReplicaSetSpec {
            replicas: Some(size),
            template: Some(template(image)),
            ..ReplicaSetSpec::default()
        }),
        status: Some(ReplicaSetStatus {
            replicas: size,
            ready_replicas: Some(available),
            available_replicas: Some(available),
            observed_generation: Some(1),
            ..ReplicaSetStatus::default()
        }),
    }
}

fn plan_of(deployment: &Deployment, sets: &[ReplicaSet], now: i64) -> Plan {
    let sets: Vec<_> = sets.iter().cloned().map(Arc::new).collect();
    plan::plan(deployment, &Observed { sets: &sets, pods: &[], now: at(now) }).unwrap()
}

/// The steps of a plan without the status: `create 3`, `web-v1 2`, `note web-v1`, `delete web-v1`.
fn words(plan: &Plan) -> Vec<String> {
    let word = |action: &Action| match action {
        Action::CreateSet(set) => Some(format!("create {}", sizes::replicas(set))),
        Action::PatchSet { set, change } => Some(match change.replicas {
            Some(size) => format!("{} {size}", set.name_any()),
            None => format!("note {}", set.name_any()),
        }),
        Action::DeleteSet(set) => Some(format!("delete {}", set.name_any())),
        Action::SetStatus(_) | Action::Annotate { .. } => None,
    };
    plan.actions.iter().filter_map(word).collect()
}

fn status_of(plan: &Plan) -> DeploymentStatus {
    let status = plan.actions.iter().find_map(|action| match action {
        Action::SetStatus(status) => Some(status.as_ref().clone()),
        _ => None,
    });
    status.expect("the plan writes a status")
}

fn image(name: &'static str) -> impl Fn(&mut DeploymentSpec) {
    move |spec| spec.template = template(name)
}

fn recreate(spec: &mut DeploymentSpec) {
    spec.template = template("v2");
    spec.strategy = Some(DeploymentStrategy { type_: Some("Recreate".into()), rolling_update: None });
}

fn paused(spec: &mut DeploymentSpec) {
    spec.template = template("v2");
    spec.paused = Some(true);
}

#[test]
fn steps() {
    let v = set;
    let rows: Vec<(&str, Deployment, Vec<ReplicaSet>, Vec<&str>)> = vec![
        ("the first set", deployment(3, |_| {}), vec![], vec!["create 3"]),
        ("at rest", deployment(3, |_| {}), vec![v("v1", 1, 3, 3, 3)], vec![]),
        ("a new template: surge", deployment(4, image("v2")), vec![v("v1", 1, 4, 4, 4)], vec!["create 1"]),
        (
            "old ones go as far as availability allows",
            deployment(4, image("v2")),
            vec![v("v1", 1, 4, 4, 4), v("v2", 2, 4, 1, 0)],
            vec!["web-v1 3"],
        ),
        (
            "no further while new ones do not serve",
            deployment(4, image("v2")),
            vec![v("v1", 1, 4, 3, 3), v("v2", 2, 4, 2, 0)],
            vec![],
        ),
        (
            "new ones that serve make room",
            deployment(4, image("v2")),
            vec![v("v1", 1, 4, 3, 3), v("v2", 2, 4, 2, 2)],
            vec!["web-v1 1"],
        ),
        (
            "a broken old set does not block",
            deployment(4, image("v3")),
            vec![v("v1", 1, 4, 3, 3), v("v2", 2, 4, 1, 0), v("v3", 3, 4, 1, 0)],
            vec!["web-v2 0"],
        ),
        ("too many new ones are cut", deployment(2, |_| {}), vec![v("v1", 1, 2, 5, 5)], vec!["web-v1 2"]),
        ("a scale without rollout", deployment(5, |_| {}), vec![v("v1", 1, 3, 3, 3)], vec!["web-v1 5"]),
        ("to zero", deployment(0, |_| {}), vec![v("v1", 1, 3, 3, 3)], vec!["web-v1 0"]),
        ("from zero", deployment(3, |_| {}), vec![v("v1", 1, 0, 0, 0)], vec!["web-v1 3"]),
        (
            "a scale in a rollout is spread",
            deployment(20, image("v2")),
            vec![v("v1", 1, 10, 8, 8), v("v2", 2, 10, 5, 5)],
            vec!["web-v1 15", "web-v2 10"],
        ),
        (
            "a shrink in a rollout is spread",
            deployment(5, image("v2")),
            vec![v("v1", 1, 10, 8, 8), v("v2", 2, 10, 5, 5)],
            vec!["web-v1 4", "web-v2 3"],
        ),
        (
            "sized for another number: only noted",
            deployment(4, |_| {}),
            vec![v("v1", 1, 3, 4, 4)],
            vec!["note web-v1"],
        ),
        (
            "a rollback raises the old revision",
            deployment(3, |_| {}),
            vec![v("v1", 1, 3, 0, 0), v("v2", 2, 3, 3, 3)],
            vec!["note web-v1"],
        ),
        ("recreate: old ones first", deployment(3, recreate), vec![v("v1", 1, 3, 3, 3)], vec!["web-v1 0"]),
        ("recreate: then the new set", deployment(3, recreate), vec![v("v1", 1, 3, 0, 0)], vec!["create 3"]),
        ("paused: no rollout", deployment(3, paused), vec![v("v1", 1, 3, 3, 3)], vec![]),
        ("paused: scaled all the same", deployment(5, paused), vec![v("v1", 1, 3, 3, 3)], vec!["web-v1 5"]),
        (
            "paused: history is cut",
            deployment(3, |spec| {
                paused(spec);
                spec.revision_history_limit = Some(1);
            }),
            vec![v("v3", 3, 3, 3, 3), v("v1", 1, 3, 0, 0)],
            vec!["delete web-v1"],
        ),
        (
            "a readiness delay is handed down",
            deployment(3, |spec| spec.min_ready_seconds = Some(9)),
            vec![v("v1", 1, 3, 3, 3)],
            vec!["note web-v1"],
        ),
    ];
    for (name, deployment, sets, expected) in rows {
        assert_eq!(words(&plan_of(&deployment, &sets, 100)), expected, "{name}");
    }
}

#[test]
fn recreate_waits_for_the_last_old_pod() {
    let sets = [Arc::new(set("v1", 1, 3, 0, 0))];
    let leaving = pod("last", |pod| {
        pod.metadata.owner_references = Some(vec![reference("ReplicaSet", "web-v1", "rs-v1")]);
        pod.metadata.deletion_timestamp = Some(time(1));
    });
    let observed = Observed { sets: &sets, pods: &[leaving], now: at(1) };
    let plan = plan::plan(&deployment(3, recreate), &observed).unwrap();
    assert_eq!(words(&plan), Vec::<String>::new());
}

#[test]
fn a_new_set_carries_hash_revision_and_owner() {
    let deployment = deployment(4, |spec| spec.template = template("v2"));
    let plan = plan_of(&deployment, &[set("v1", 6, 4, 4, 4)], 100);
    let created = plan.actions.iter().find_map(|action| match action {
        Action::CreateSet(set) => Some(set),
        _ => None,
    });
    let created = created.expect("creates a set");
    let hash = created.metadata.labels.as_ref().unwrap()[sizes::POD_TEMPLATE_HASH].clone();
    assert_eq!(created.metadata.name, Some(format!("web-{hash}")));
    let spec = created.spec.as_ref().unwrap();
    assert_eq!(spec.selector.match_labels, created.metadata.labels);
    assert_eq!(spec.template.as_ref().unwrap().metadata.as_ref().unwrap().labels, created.metadata.labels);
    let annotations = created.metadata.annotations.as_ref().unwrap();
    assert_eq!(annotations[sizes::REVISION], "7");
    assert_eq!(
        (annotations[sizes::DESIRED_REPLICAS].as_str(), annotations[sizes::MAX_REPLICAS].as_str()),
        ("4", "5")
    );
    assert_eq!(created.metadata.owner_references, Some(vec![reference("Deployment", "web", "d")]));
    assert!(plan.actions.contains(&Action::Annotate { revision: "7".into() }));
    assert!(plan::has_template_of(created, &deployment));

    let mut collided = deployment.clone();
    collided.status = Some(status::collided(&deployment));
    let names = [&deployment, &collided].map(|deployment| {
        plan_of(deployment, &[], 1).actions.iter().find_map(|action| match action {
            Action::CreateSet(set) => set.metadata.name.clone(),
            _ => None,
        })
    });
    assert_ne!(names[0], names[1]);
}

fn condition<'a>(status: &'a DeploymentStatus, type_: &str) -> Option<&'a DeploymentCondition> {
    status.conditions.iter().flatten().find(|condition| condition.type_ == type_)
}

fn progress(status: &DeploymentStatus) -> (String, String) {
    let condition = condition(status, "Progressing").expect("has a progress");
    (condition.status.clone(), condition.reason.clone().unwrap_or_default())
}

#[test]
fn the_story_of_a_rollout() {
    let mut deployment = deployment(2, |_| {});
    let tell = |deployment: &mut Deployment, sets: &[ReplicaSet], now: i64| {
        let plan = plan_of(deployment, sets, now);
        deployment.status = Some(status_of(&plan));
        (progress(deployment.status.as_ref().unwrap()), plan.again.map(|again| again.as_secs()))
    };
    let told = |status: &str, reason: &str| (status.to_string(), reason.to_string());

    assert_eq!(tell(&mut deployment, &[], 0), (told("True", "NewReplicaSetCreated"), Some(601)));
    let sets = [set("v1", 1, 2, 2, 0)];
    assert_eq!(tell(&mut deployment, &sets, 10), (told("True", "ReplicaSetUpdated"), Some(601)));
    let sets = [set("v1", 1, 2, 2, 1)];
    assert_eq!(tell(&mut deployment, &sets, 20), (told("True", "ReplicaSetUpdated"), Some(601)));
    let available = condition(deployment.status.as_ref().unwrap(), "Available").unwrap();
    assert_eq!(available.status, "False");
    let sets = [set("v1", 1, 2, 2, 2)];
    assert_eq!(tell(&mut deployment, &sets, 30), (told("True", "NewReplicaSetAvailable"), None));
    let status = deployment.status.clone().unwrap();
    assert_eq!(condition(&status, "Available").unwrap().status, "True");
    assert_eq!(
        (status.replicas, status.updated_replicas, status.unavailable_replicas),
        (Some(2), Some(2), None)
    );

    // A template that never serves.
    deployment.spec.as_mut().unwrap().template = template("v2");
    deployment.metadata.generation = Some(2);
    assert_eq!(tell(&mut deployment, &sets, 100), (told("True", "NewReplicaSetCreated"), Some(601)));
    let sets = [set("v1", 1, 2, 2, 2), set("v2", 2, 2, 1, 0)];
    assert_eq!(tell(&mut deployment, &sets, 110), (told("True", "ReplicaSetUpdated"), Some(601)));
    let quiet = plan_of(&deployment, &sets, 200);
    assert!(!quiet.actions.iter().any(|action| matches!(action, Action::SetStatus(_))));
    assert_eq!(quiet.again.map(|again| again.as_secs()), Some(511));
    assert_eq!(tell(&mut deployment, &sets, 711), (told("False", "ProgressDeadlineExceeded"), None));

    // A pause does not hide the failure, a repair ends it.
    let sets = [set("v1", 1, 2, 2, 2), set("v2", 2, 2, 1, 1)];
    assert_eq!(tell(&mut deployment, &sets, 800), (told("True", "ReplicaSetUpdated"), Some(601)));
    deployment.spec.as_mut().unwrap().paused = Some(true);
    assert_eq!(tell(&mut deployment, &sets, 810), (told("Unknown", "DeploymentPaused"), None));
    deployment.spec.as_mut().unwrap().paused = None;
    let (story, _) = tell(&mut deployment, &sets, 5000);
    assert_eq!(story, told("Unknown", "DeploymentResumed"));
}

/// Applies a plan to the sets; every set gets its pods at once, and those with a good image serve.
fn apply(plan: &Plan, deployment: &mut Deployment, sets: &mut Vec<ReplicaSet>, clock: i64) {
    for action in &plan.actions {
        match action {
            Action::CreateSet(created) => {
                let mut created = created.as_ref().clone();
                created.metadata.uid = created.metadata.name.clone();
                created.metadata.creation_timestamp = Some(time(clock));
                sets.push(created);
            }
            Action::PatchSet { set, change } => {
                let set = sets.iter_mut().find(|other| other.metadata.uid == set.metadata.uid).unwrap();
                set.metadata.annotations.get_or_insert_default().extend(change.annotations.clone());
                if let Some(replicas) = change.replicas {
                    set.spec.as_mut().unwrap().replicas = Some(replicas);
                }
            }
            Action::DeleteSet(set) => sets.retain(|other| other.metadata.uid != set.metadata.uid),
            Action::SetStatus(status) => deployment.status = Some(status.as_ref().clone()),
            Action::Annotate { revision } => {
                let annotations = deployment.metadata.annotations.get_or_insert_default();
                annotations.insert(sizes::REVISION.into(), revision.clone());
            }
        }
    }
}

/// Lets the pods follow: one pod per set and turn becomes available.
fn settle(sets: &mut [ReplicaSet]) {
    for set in sets {
        let size = sizes::replicas(set);
        let serving = sizes::available(set).min(size);
        let serving = if serving < size { serving + 1 } else { serving };
        set.status = Some(ReplicaSetStatus {
            replicas: size,
            ready_replicas: Some(serving),
            available_replicas: Some(serving),
            observed_generation: set.metadata.generation,
            ..ReplicaSetStatus::default()
        });
    }
}

#[test]
fn rollouts_end_and_never_break_their_bounds() {
    for wanted in [1, 2, 3, 4, 7, 10, 33] {
        let mut deployment = deployment(wanted, |_| {});
        let mut sets = Vec::new();
        for (generation, image) in (1..).zip(["v1", "v2", "v1", "v3"]) {
            deployment.spec.as_mut().unwrap().template = template(image);
            deployment.metadata.generation = Some(generation);
            let serving = generation > 1;
            let mut turns = 0;
            loop {
                turns += 1;
                assert!(turns < 400, "a rollout of {wanted} to {image} does not end");
                let plan = plan_of(&deployment, &sets, turns);
                let done = plan.actions.is_empty();
                apply(&plan, &mut deployment, &mut sets, generation * 1000 + turns);
                let total: i32 = sets.iter().map(sizes::replicas).sum();
                assert!(total <= wanted + sizes::max_surge(&deployment), "{wanted} {image}: {total} pods");
                let before = sizes_available(&sets);
                settle(&mut sets);
                if serving {
                    let least = wanted - sizes::max_unavailable(&deployment);
                    assert!(before >= least, "{wanted} {image}: only {before} serve");
                }
                if done
                    && sizes_available(&sets) == wanted
                    && status::is_complete(&deployment, deployment.status.as_ref())
                {
                    break;
                }
            }
            assert_eq!(progress(deployment.status.as_ref().unwrap()).1, "NewReplicaSetAvailable");
        }
        let revision = &deployment.metadata.annotations.as_ref().unwrap()[sizes::REVISION];
        assert_eq!(revision, "4", "{wanted}");
    }
}

/// The pods that serve: available ones that have not been taken away meanwhile.
fn sizes_available(sets: &[ReplicaSet]) -> i32 {
    sets.iter().map(|set| sizes::available(set).min(sizes::replicas(set))).sum()
}
