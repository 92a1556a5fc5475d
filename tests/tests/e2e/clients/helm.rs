//! Helm with a chart that does what charts do: hooks, a library, look-ups, a kind of its own, notes, tests.

use sampan_tests::{Namespace, source};
use serde_json::{Value, json};

/// Without the chart's own kind: custom resources are the matter of one test, which installs the kind.
const PLAIN: &[&str] = &["--skip-crds", "--set", "widgets=false"];

fn chart() -> String {
    source("charts/shop").display().to_string()
}

/// `helm install` or `helm upgrade` of a release of the chart.
#[track_caller]
fn put(space: &Namespace, verb: &str, release: &str, more: &[&str]) -> sampan_tests::Done {
    space.helm(&[&[verb, release, &chart()][..], more].concat())
}

/// Status and description of every revision.
#[track_caller]
fn history(space: &Namespace, release: &str) -> Vec<(String, String)> {
    let revisions = space.helm(&["history", release, "--output", "json"]).json();
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let revisions = revisions.as_array().cloned().unwrap_or_default();
    revisions.iter().map(|r| (text(&r["status"]), text(&r["description"]))).collect()
}

fn statuses(space: &Namespace, release: &str) -> Vec<String> {
    history(space, release).into_iter().map(|(status, _)| status).collect()
}

#[test]
fn the_life_of_a_release() {
    let space = Namespace::new("helm-life");
    let installed = put(&space, "install", "r", &["--wait", "--timeout", "50s"]).ok();
    assert!(installed.contains("STATUS: deployed"), "{installed}");
    assert!(installed.contains("shop 1.2.3 is revision 1 of r."), "the notes are shown: {installed}");
    assert_eq!(space.value("deployment/r-shop", ".status.availableReplicas"), "1", "--wait has waited");
    assert_eq!(
        space.kubectl(&["logs", "r-shop-prepare"]).ok(),
        "prepared with lighter first\n",
        "hooks run by weight, before the release"
    );
    assert_eq!(space.kubectl(&["logs", "r-shop-announce"]).ok(), "hello\n", "and after it");
    assert_eq!(
        space.value("widget/r-shop", ".spec"),
        r#"{"colour":"green","size":3}"#,
        "the chart's own kind"
    );
    let seen =
        space.kubectl(&["get", "configmap/r-shop", "--show-managed-fields", "--output", "json"]).json();
    assert!(seen["data"]["kubernetes"].as_str().is_some_and(|v| v.starts_with("v1.")), "{seen}");
    assert_eq!([&seen["data"]["apps"], &seen["data"]["nonsense"]], ["true", "false"], "capabilities");
    let manager = &seen["metadata"]["managedFields"][0];
    assert_eq!([&manager["manager"], &manager["operation"]], ["helm", "Apply"], "applied by the server");
    let password = space.value("secret/r-shop", ".data.password");

    let status = space.helm(&["status", "r", "--output", "json"]).json();
    assert_eq!(status["info"]["status"], "deployed");
    assert!(status["info"]["resources"]["v1/Deployment"].is_array(), "{status}");
    let tables = space.helm(&["status", "r"]).ok();
    assert!(tables.contains("==> v1/Deployment") && tables.contains("==> v1/Pod(related)"), "{tables}");
    let manifest = space.helm(&["get", "manifest", "r"]).ok();
    assert!(manifest.contains("kind: Deployment") && manifest.contains("kind: Widget"), "{manifest}");
    assert_eq!(space.helm(&["get", "hooks", "r"]).ok().matches("kind: Pod").count(), 4);
    assert_eq!(space.helm(&["list", "--output", "json"]).json()[0]["chart"], "shop-1.2.3");

    let upgrade = ["--wait", "--timeout", "50s", "--set", "greeting=moin,replicas=2,widget.size=4"];
    put(&space, "upgrade", "r", &upgrade).ok();
    assert_eq!(space.value("deployment/r-shop", ".status.availableReplicas"), "2");
    assert_eq!(space.value("widget/r-shop", ".spec.size"), "4");
    assert_eq!(
        space.value("secret/r-shop", ".data.password"),
        password,
        "a look-up has found the old password"
    );
    assert_eq!(space.value("secret/r-shop", ".metadata.annotations.shop\\.sampan\\.test/found"), "true");
    assert_eq!(space.helm(&["get", "values", "r", "--output", "json"]).json()["greeting"], "moin");
    let tested = space.helm(&["test", "r", "--logs", "--timeout", "50s"]).ok();
    assert!(tested.contains("Phase:          Succeeded") && tested.contains("moin"), "{tested}");

    space.helm(&["rollback", "r", "1", "--wait", "--timeout", "50s"]).ok();
    assert_eq!(space.value("configmap/r-shop", ".data.index\\.html"), "hello\n");
    assert_eq!(space.value("widget/r-shop", ".spec.size"), "3");
    let revisions = history(&space, "r");
    assert_eq!(statuses(&space, "r"), ["superseded", "superseded", "deployed"]);
    assert_eq!(revisions[2].1, "Rollback to 1");

    // A rendered custom resource has to fit its kind.
    let rows: &[(&str, &str)] = &[
        ("widget.size=12", "spec.size in body should be less than or equal to 9"),
        ("widget.size=seven", "spec.size in body must be of type integer: \"string\""),
        ("widget.size=7", "seven brings bad luck"),
    ];
    for (value, message) in rows {
        put(&space, "upgrade", "r", &["--no-hooks", "--set", value]).fails_with(&["is invalid", message]);
    }

    space.helm(&["uninstall", "r", "--wait", "--timeout", "50s"]).ok();
    let kinds = "deployment,service,serviceaccount,role,rolebinding,widget";
    let left = space.kubectl(&["get", kinds, "--output", "name"]).ok();
    assert_eq!(left, "serviceaccount/default\n", "a release takes along what it brought");
    let secrets = space.kubectl(&["get", "secrets", "--selector", "owner=helm", "--output", "name"]).ok();
    assert_eq!(secrets, "", "its history too");
    space.kubectl(&["get", "clusterrole", "helm-life-r-shop"]).fails_with(&["NotFound"]);
    assert_eq!(
        space.value("configmap/r-shop-farewell", ".data.last"),
        "words",
        "the hook after the end has run"
    );
    space.kubectl(&["get", "customresourcedefinition", "widgets.shop.sampan.test"]).ok();
}

#[test]
fn dry_runs_change_nothing() {
    let space = Namespace::new("helm-dry");
    let dry = |verb: &str, release: &str| {
        put(&space, verb, release, &[PLAIN, &["--dry-run=server", "--set", "greeting=dry"]].concat()).ok()
    };
    assert!(dry("install", "r").contains("shop.sampan.test/found: \"false\""), "the look-up asks the server");
    space.helm(&["status", "r"]).fails_with(&["not found"]);
    put(&space, "install", "r", &[PLAIN, &["--wait", "--timeout", "50s"]].concat()).ok();
    let shown = dry("upgrade", "r");
    assert!(shown.contains("shop.sampan.test/found: \"true\"") && shown.contains("dry"), "{shown}");
    assert_eq!(space.value("configmap/r-shop", ".data.index\\.html"), "hello\n");
    assert_eq!(statuses(&space, "r"), ["deployed"]);
}

#[test]
fn a_failed_upgrade_is_rolled_back() {
    let space = Namespace::new("helm-failures");
    put(&space, "install", "r", &[PLAIN, &["--wait", "--timeout", "50s"]].concat()).ok();
    put(&space, "install", "r", PLAIN).fails_with(&["cannot reuse a name that is still in use"]);
    put(&space, "install", "s", &[PLAIN, &["--set", "replicas=-1"]].concat())
        .fails_with(&["minimum: got -1"]);
    let failing = [PLAIN, &["--set", "migration.exitCode=3", "--timeout", "50s"]].concat();
    put(&space, "upgrade", "r", &failing).fails_with(&["pre-upgrade hooks failed", "r-shop-migrate"]);
    assert_eq!(space.value("pod/r-shop-migrate", ".status.phase"), "Failed", "a hook that failed stays");
    // The new pods never start: Helm waits, gives up and goes back.
    let broken =
        ["--no-hooks", "--set", "image=absent.invalid/x:1", "--rollback-on-failure", "--timeout", "5s"];
    put(&space, "upgrade", "r", &[PLAIN, &broken].concat()).fails_with(&["has been rolled back"]);
    assert_eq!(statuses(&space, "r"), ["superseded", "failed", "failed", "deployed"]);
    space.kubectl(&["rollout", "status", "deployment/r-shop", "--timeout=50s"]).ok();
    // A release that is kept after its end can be brought back.
    space.helm(&["uninstall", "r", "--keep-history", "--wait", "--timeout", "50s"]).ok();
    space.kubectl(&["get", "deployment", "r-shop"]).fails_with(&["NotFound"]);
    space.helm(&["rollback", "r", "1", "--wait", "--timeout", "50s"]).ok();
    assert_eq!(space.value("deployment/r-shop", ".status.availableReplicas"), "1");
}

#[test]
fn apply_says_who_owns_what() {
    let space = Namespace::new("helm-apply");
    put(&space, "install", "r", &[PLAIN, &["--wait", "--timeout", "50s"]].concat()).ok();
    space.kubectl(&["scale", "deployment/r-shop", "--replicas=3"]).ok();
    let two = [PLAIN, &["--wait", "--timeout", "50s", "--set", "replicas=2"]].concat();
    put(&space, "upgrade", "r", &two).fails_with(&["conflict with \"kubectl\"", ".spec.replicas"]);
    put(&space, "upgrade", "r", &[&two[..], &["--force-conflicts"]].concat()).ok();
    assert_eq!(space.value("deployment/r-shop", ".status.replicas"), "2");
    // The way of Helm 3: the client computes a patch of three sides.
    put(&space, "upgrade", "r", &[PLAIN, &["--server-side=false", "--set", "greeting=client"]].concat()).ok();
    assert_eq!(space.value("configmap/r-shop", ".data.index\\.html"), "client\n");
    let metadata = space.helm(&["get", "metadata", "r", "--output", "json"]).json();
    assert_eq!(metadata["applyMethod"], "csa");

    // What somebody else made is taken only on demand.
    let object = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "o-shop"}});
    space.apply(&object).ok();
    put(&space, "install", "o", PLAIN)
        .fails_with(&["exists and cannot be imported into the current release"]);
    put(&space, "install", "o", &[PLAIN, &["--take-ownership"]].concat()).ok();
    let owner = ".metadata.annotations.meta\\.helm\\.sh/release-name";
    assert_eq!(space.value("configmap/o-shop", owner), "o");
}
