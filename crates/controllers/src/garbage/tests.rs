//! Ownership as tables: who goes, how, and who is looked at because of it.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;

use super::plan::{Dependent, FOREGROUND, ORPHAN};
use super::*;
use crate::common::testing::{reference, time};

fn owner(uid: &str) -> OwnerReference {
    reference("Parent", &format!("name-{uid}"), uid)
}

fn object(finalizers: &[&str], deleting: bool) -> ObjectMeta {
    ObjectMeta {
        finalizers: Some(finalizers.iter().map(|finalizer| finalizer.to_string()).collect()),
        deletion_timestamp: deleting.then(|| time(1)),
        ..ObjectMeta::default()
    }
}

fn dependent(uid: &str, blocks: bool, deleting: bool, waiting: bool) -> Dependent {
    Dependent { uid: uid.into(), blocks, deleting, waiting }
}

#[test]
fn what_becomes_of_an_object() {
    use Action::{Delete, Orphan, RemoveFinalizer, SetOwners, Wake};
    use OwnerState::{Absent, OutOfReach, Present, Unresolvable, Waiting};
    let plain = || object(&[], false);
    let unblocking = |uid: &str| OwnerReference { block_owner_deletion: Some(false), ..owner(uid) };
    type Row = (&'static str, ObjectMeta, Vec<(&'static str, OwnerState)>, Vec<Dependent>, Vec<Action>);
    let rows: Vec<Row> = vec![
        ("nobody's", plain(), vec![], vec![], vec![]),
        ("owned", plain(), vec![("a", Present)], vec![], vec![]),
        ("owner of an unknown kind", plain(), vec![("a", Unresolvable)], vec![], vec![]),
        ("owner left", plain(), vec![("a", Absent)], vec![], vec![Delete(Policy::Background)]),
        ("owner elsewhere", plain(), vec![("a", OutOfReach)], vec![], vec![Delete(Policy::Background)]),
        (
            "owner left, object orphans",
            object(&[ORPHAN], false),
            vec![("a", Absent)],
            vec![],
            vec![Delete(Policy::Orphan)],
        ),
        (
            "owner left, object goes last",
            object(&[FOREGROUND], false),
            vec![("a", Absent)],
            vec![],
            vec![Delete(Policy::Foreground)],
        ),
        (
            "one of two left",
            plain(),
            vec![("a", Absent), ("b", Present)],
            vec![],
            vec![SetOwners(vec![owner("b")])],
        ),
        (
            "one of two waits",
            plain(),
            vec![("a", Waiting), ("b", Present)],
            vec![],
            vec![SetOwners(vec![owner("b")])],
        ),
        ("owner waits", plain(), vec![("a", Waiting)], vec![], vec![Delete(Policy::Background)]),
        (
            "owner waits, own dependents",
            plain(),
            vec![("a", Waiting)],
            vec![dependent("c", true, false, false)],
            vec![Delete(Policy::Foreground)],
        ),
        (
            "owner waits in a circle",
            plain(),
            vec![("a", Waiting)],
            vec![dependent("c", true, true, true)],
            vec![SetOwners(vec![unblocking("a")])],
        ),
        ("going", object(&[], true), vec![("a", Absent)], vec![], vec![]),
        ("going, others' finalizer", object(&["x/y"], true), vec![], vec![], vec![]),
        ("waits for nobody", object(&[FOREGROUND], true), vec![], vec![], vec![RemoveFinalizer(FOREGROUND)]),
        (
            "waits for those that block only",
            object(&[FOREGROUND], true),
            vec![],
            vec![dependent("c", false, false, false)],
            vec![RemoveFinalizer(FOREGROUND)],
        ),
        (
            "waits for one that has not begun to go",
            object(&[FOREGROUND], true),
            vec![],
            vec![dependent("c", true, false, false), dependent("d", true, true, false)],
            vec![Wake(vec!["c".into()])],
        ),
        (
            "waits for one that goes",
            object(&[FOREGROUND], true),
            vec![],
            vec![dependent("d", true, true, false)],
            vec![],
        ),
        (
            "orphans its dependents",
            object(&[ORPHAN], true),
            vec![],
            vec![dependent("c", true, false, false)],
            vec![Orphan(vec!["c".into()]), RemoveFinalizer(ORPHAN)],
        ),
        ("has nobody to orphan", object(&[ORPHAN], true), vec![], vec![], vec![RemoveFinalizer(ORPHAN)]),
    ];
    for (name, object, owners, dependents, expected) in rows {
        let owners: Vec<_> = owners.into_iter().map(|(uid, state)| (owner(uid), state)).collect();
        assert_eq!(plan::plan(&object, &owners, &dependents), expected, "{name}");
    }
}

fn kind() -> Arc<Kind> {
    Arc::new(Kind::for_test("apps", "Parent", "parents", true))
}

fn meta(uid: &str, owners: &[&str], finalizers: &[&str], deleting: bool) -> Arc<Meta> {
    let metadata = ObjectMeta {
        namespace: Some("ns".into()),
        name: Some(format!("name-{uid}")),
        uid: Some(uid.into()),
        owner_references: Some(owners.iter().map(|uid| owner(uid)).collect()),
        ..object(finalizers, deleting)
    };
    Arc::new(Meta { types: None, metadata, _phantom: std::marker::PhantomData })
}

fn woken(mut uids: Vec<String>) -> String {
    uids.sort();
    uids.dedup();
    uids.join(" ")
}

#[test]
fn who_is_looked_at_because_of_a_change() {
    let kind = kind();
    let mut graph = Graph::default();
    let mut change = |old: Option<&Arc<Meta>>, new: Option<&Arc<Meta>>| woken(graph.absorb(&kind, old, new));
    let parent = meta("p", &[], &[], false);
    let child = meta("c", &["p"], &[], false);
    assert_eq!(change(None, Some(&child)), "c", "a new object with an owner, known or not");
    assert_eq!(change(None, Some(&parent)), "", "an owner that appears");
    assert_eq!(change(Some(&child), Some(&child)), "", "a change of something else");
    let waiting = meta("p", &[], &[FOREGROUND], true);
    assert_eq!(change(Some(&parent), Some(&waiting)), "c p", "an owner that waits");
    assert_eq!(change(Some(&child), None), "p", "the last dependent of a waiting owner");
    assert_eq!(change(None, Some(&child)), "c p", "a dependent that came back");
    assert_eq!(change(Some(&waiting), None), "c", "an owner that is gone");
    let free = meta("c", &[], &[], false);
    assert_eq!(change(Some(&child), Some(&free)), "", "an object set free");
    let again = meta("c2", &["p"], &[], false);
    assert_eq!(change(Some(&free), Some(&again)), "c2", "another object under the same name");
}

#[test]
fn what_the_graph_knows_of_owners() {
    let mut graph = Graph::default();
    let kind = kind();
    graph.absorb(&kind, None, Some(&meta("p", &[], &[], false)));
    graph.absorb(&kind, None, Some(&meta("w", &[], &[FOREGROUND], true)));
    let here = meta("c", &["p"], &[], false).metadata.clone();
    let elsewhere = ObjectMeta { namespace: Some("other".into()), ..here.clone() };
    let renamed = OwnerReference { name: "x".into(), ..owner("p") };
    let rows = [
        ("present", &here, owner("p"), Some(OwnerState::Present)),
        ("waiting", &here, owner("w"), Some(OwnerState::Waiting)),
        ("unknown", &here, owner("u"), None),
        ("in another namespace", &elsewhere, owner("p"), Some(OwnerState::OutOfReach)),
        ("under another name", &here, renamed, None),
    ];
    for (name, object, owner, expected) in rows {
        assert_eq!(graph.owner_state(object, &owner), expected, "{name}");
    }
    graph.absorb(&kind, None, Some(&meta("c", &["p"], &[], false)));
    assert_eq!(graph.dependents("p"), [dependent("c", true, false, false)]);
    assert_eq!(graph.owned(), ["c"]);
    let other = Arc::new(Kind::for_test("other", "Other", "others", true));
    graph.absorb(&other, None, Some(&meta("o", &["p"], &[], false)));
    assert_eq!(woken(graph.forget_kind(&kind)), "o", "who is left without its owner");
    assert!(graph.get("c").is_none());
    assert_eq!(graph.dependents("p"), [dependent("o", true, false, false)]);
}

#[test]
fn finalizers_are_removed_one_by_one() {
    let two = object(&[FOREGROUND, "x/y"], true);
    assert_eq!(without_finalizer(&two, FOREGROUND)["metadata"]["finalizers"], json!(["x/y"]));
    let one = object(&[FOREGROUND], true);
    assert_eq!(without_finalizer(&one, FOREGROUND)["metadata"]["finalizers"], Value::Null);
}
