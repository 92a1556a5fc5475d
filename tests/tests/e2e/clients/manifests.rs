//! Manifests as a well-known project ships them, fetched when the tests run and never changed by us: the kinds and roles
//! of the operator of Dask, which its package on PyPI carries as a chart.

use sampan_tests::{Namespace, manifest, merge};
use serde_json::{Value, json};

const OPERATOR: &str = "dask_kubernetes/operator";
const KINDS: [&str; 4] = ["daskautoscaler", "daskcluster", "daskjob", "daskworkergroup"];

fn path(of: &str) -> String {
    manifest(OPERATOR).join(of).display().to_string()
}

fn chart() -> String {
    path("deployment/helm/dask-kubernetes-operator")
}

fn definition(kind: &str) -> String {
    path(&format!("deployment/helm/dask-kubernetes-operator/crds/{kind}.yaml"))
}

/// A sample of the package, as `kubectl` reads it.
#[track_caller]
fn sample(space: &Namespace, name: &str) -> Value {
    let file = path(&format!("controller/tests/resources/{name}.yaml"));
    space.kubectl(&["create", "--dry-run=client", "--output", "json", "-f", &file]).json()
}

/// One test, because the kinds belong to the whole cluster.
#[test]
fn the_operator_of_dask() {
    let space = Namespace::new("dask");
    definitions(&space);
    roles(&space);
    samples(&space);
    refusals(&space);
    explanations(&space);
    // Without its kind an object has no place to be.
    space.kubectl(&["delete", "-f", &definition("daskautoscaler"), "--timeout=50s"]).ok();
    // The client still knows the name; it asks and is told.
    space
        .kubectl(&["get", "daskautoscalers"])
        .fails_with(&["the server could not find the requested resource"]);
}

/// The kinds come in both ways of apply, and are there.
fn definitions(space: &Namespace) {
    let by_client = |kind: &str| space.kubectl(&["apply", "-f", &definition(kind)]);
    for kind in KINDS {
        assert!(by_client(kind).ok().contains("created"), "{kind}");
        assert!(by_client(kind).ok().contains("unchanged"), "{kind}");
    }
    // Who changes over to the server's way keeps what he owns.
    let crds = path("deployment/helm/dask-kubernetes-operator/crds");
    for _ in 0..2 {
        let applied = space.kubectl(&["apply", "--server-side", "-f", &crds]).ok();
        assert_eq!(applied.matches("serverside-applied").count(), KINDS.len(), "{applied}");
    }
    for kind in KINDS {
        let object = format!("customresourcedefinition/{kind}s.kubernetes.dask.org");
        space.kubectl(&["wait", "--for=condition=Established", &object, "--timeout=50s"]).ok();
        space.kubectl(&["wait", "--for=condition=NamesAccepted", &object, "--timeout=1s"]).ok();
    }
    let listed = ["api-resources", "--api-group=kubernetes.dask.org", "--no-headers", "--output=name"];
    let listed = space.kubectl(&listed).ok();
    let names = KINDS.map(|kind| format!("{kind}s.kubernetes.dask.org"));
    let mut lines: Vec<&str> = listed.lines().collect();
    lines.sort_unstable();
    assert_eq!(lines, names, "discovery");
}

/// The chart's roles, rendered with Helm, give the operator what it needs and no more.
fn roles(space: &Namespace) {
    let mut template = vec!["template".to_owned(), "dask".to_owned(), chart()];
    for part in ["serviceaccount", "clusterrole", "clusterrolebinding"] {
        template.extend(["--show-only".to_owned(), format!("templates/{part}.yaml")]);
    }
    let rendered = space.helm(&template.iter().map(String::as_str).collect::<Vec<_>>()).ok();
    let applied = space.kubectl_with(&["apply", "--server-side", "-f", "-"], &rendered).ok();
    assert_eq!(applied.lines().count(), 3, "{applied}");
    let account = space.kubectl(&["get", "serviceaccounts", "--output", "name"]).ok();
    let account = account.lines().filter_map(|line| line.strip_prefix("serviceaccount/"));
    let account = account.filter(|name| *name != "default").collect::<String>();
    let who = format!("--as=system:serviceaccount:dask:{account}");
    let rows = [
        ("create", "daskclusters.kubernetes.dask.org", "yes"),
        ("patch", "daskjobs.kubernetes.dask.org/status", "yes"),
        ("deletecollection", "pods", "yes"),
        ("list", "customresourcedefinitions.apiextensions.k8s.io", "yes"),
        ("update", "daskclusters.kubernetes.dask.org", "no"),
        ("get", "secrets", "no"),
    ];
    for (verb, resource, expected) in rows {
        let answer = space.kubectl(&["auth", "can-i", verb, resource, &who]);
        assert_eq!(answer.stdout.trim(), expected, "{verb} {resource}: {answer}");
    }
}

/// What the project tests itself with is taken.
fn samples(space: &Namespace) {
    for name in ["simplecluster", "simplejob", "simpleworkergroup"] {
        let file = path(&format!("controller/tests/resources/{name}.yaml"));
        assert!(space.kubectl(&["apply", "-f", &file]).ok().contains("created"), "{name}");
        assert!(space.kubectl(&["apply", "-f", &file]).ok().contains("unchanged"), "{name}");
        space.kubectl(&["apply", "--server-side", "--force-conflicts", "-f", &file]).ok();
    }
    assert_eq!(space.value("daskcluster/simple", ".spec.idleTimeout"), "0", "a default");
    let mut changed = sample(space, "simplecluster");
    changed["spec"]["worker"]["replicas"] = json!(3);
    assert!(
        space.apply(&changed).ok().contains("configured"),
        "a patch of the client, which knows no merge keys"
    );
    assert_eq!(space.value("daskcluster/simple", ".spec.worker.replicas"), "3");
    let table = space.kubectl(&["get", "dsk"]).ok();
    let words = |line: Option<&str>| {
        line.unwrap_or_default().split_whitespace().map(str::to_owned).collect::<Vec<_>>()
    };
    let mut lines = table.lines();
    assert_eq!(words(lines.next()), ["NAME", "WORKERS", "STATUS", "AGE"]);
    assert_eq!(words(lines.next())[..2], ["simple", "3"], "{table}");
    space.kubectl(&["scale", "daskcluster/simple", "--replicas=5"]).ok();
    assert_eq!(space.value("daskcluster/simple", ".spec.worker.replicas"), "5");
    // Containers have no keys here: whoever applies the list owns all of it. Ports have two, one of them with a default.
    let ports = json!([{"containerPort": 8788, "protocol": "TCP", "name": "renamed"}, {"containerPort": 9}]);
    let mut entry = sample(space, "simpleworkergroup");
    entry["spec"]["worker"]["spec"]["containers"][0] = json!({"name": "worker", "ports": ports});
    let apply = ["apply", "--server-side", "--force-conflicts", "--field-manager=other", "-f", "-"];
    space.kubectl_with(&apply, &entry.to_string()).ok();
    let container = space.value("daskworkergroup/simple-additional", ".spec.worker.spec.containers[0]");
    let container: Value = serde_json::from_str(&container).expect("a container is shown as JSON");
    assert_eq!(container["ports"][0]["name"], "renamed", "{container}");
    assert_eq!(container["ports"][1]["protocol"], "TCP", "a key has a default: {container}");
}

/// What does not fit is refused in words that name the place.
fn refusals(space: &Namespace) {
    let port = json!({"containerPort": 1, "protocol": "TCP"});
    let twice = json!([{"name": "w", "ports": [port, port]}]);
    let rows = [
        (
            json!({"worker": {"replicas": "two"}}),
            "spec.worker.replicas in body must be of type integer: \"string\"",
        ),
        (
            json!({"worker": {"spec": {"containers": 7}}}),
            "spec.worker.spec.containers in body must be of type array",
        ),
        (
            json!({"worker": {"spec": {"containers": [{"image": "x"}]}}}),
            "spec.worker.spec.containers[0].name: Required value",
        ),
        (
            json!({"worker": {"spec": {"containers": twice}}}),
            "spec.worker.spec.containers[0].ports[1]: Duplicate value",
        ),
    ];
    for (change, message) in rows {
        let mut object = sample(space, "simplecluster");
        object["metadata"]["name"] = json!("refused");
        merge(&mut object, json!({"spec": change}));
        let create = ["create", "--validate=false", "-f", "-"];
        space.kubectl_with(&create, &object.to_string()).fails_with(&["DaskCluster", "is invalid", message]);
    }
    let mut object = sample(space, "simplecluster");
    object["spec"].as_object_mut().expect("a sample has a spec").remove("worker");
    let create = ["create", "--validate=false", "-f", "-"];
    space.kubectl_with(&create, &object.to_string()).fails_with(&["spec.worker: Required value"]);
    let mut object = sample(space, "simplecluster");
    object["spec"]["worker"]["replica"] = json!(1);
    let strict = space.kubectl_with(&["apply", "-f", "-"], &object.to_string());
    strict.fails_with(&["strict decoding error: unknown field \"spec.worker.replica\""]);
}

/// The schema reaches who asks for it.
fn explanations(space: &Namespace) {
    let rows: &[(&str, &[&str])] = &[
        (
            "daskautoscaler.spec",
            &["cluster\t<string> -required-", "Name of the cluster to associate this worker group with"],
        ),
        (
            "daskcluster.spec.worker.replicas",
            &["GROUP:      kubernetes.dask.org", "FIELD: replicas <integer>"],
        ),
        ("daskjob", &["KIND:       DaskJob", "VERSION:    v1"]),
    ];
    for (what, texts) in rows {
        let explained = space.kubectl(&["explain", what]).ok();
        for text in *texts {
            assert!(explained.contains(text), "{what}: no `{text}` in\n{explained}");
        }
    }
}
