//! Services, their addresses and their names.

use std::collections::BTreeSet;

use sampan_tests::{Namespace, check, command, eventually};
use serde_json::json;

/// A web server that says its host's name.
const SERVER: &str = "mkdir -p /www; hostname > /www/index.html; exec httpd -f -p 8080 -h /www";

fn web(space: &Namespace, replicas: u32, service: serde_json::Value) {
    let mut object = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "web"},
        "spec": {"selector": {"app": "web"}, "ports": [{"name": "http", "port": 80, "targetPort": 8080}]}});
    sampan_tests::merge(&mut object, json!({"spec": service}));
    let probe = json!([{"name": "c", "image": sampan_tests::IMAGE, "command": ["/bin/sh", "-c", SERVER],
        "readinessProbe": {"httpGet": {"path": "/", "port": 8080}, "periodSeconds": 1}}]);
    space.deployment("web", replicas, "", json!({"template": {"spec": {"containers": probe}}}));
    space.apply(&object).ok();
    space.kubectl(&["rollout", "status", "deployment/web", "--timeout=50s"]).ok();
    endpoints(space, replicas as usize);
}

/// Waits until the service has as many ready endpoints.
fn endpoints(space: &Namespace, count: usize) {
    eventually("the service has its endpoints", || {
        let args =
            ["get", "endpointslices", "--selector", "kubernetes.io/service-name=web", "--output", "json"];
        let slices = space.kubectl(&args).json();
        let slices = slices["items"].as_array().cloned().unwrap_or_default();
        let all = slices.iter().filter_map(|slice| slice["endpoints"].as_array()).flatten();
        let ready = all.filter(|endpoint| endpoint["conditions"]["ready"] != false).count();
        check(ready == count, format!("{ready} of {count}"))
    });
}

fn fetch(url: &str) -> Result<String, String> {
    let out = command("curl", &["--silent", "--show-error", "--max-time", "5", url]).output();
    let out = out.expect("curl can be run");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
    if out.status.success() { Ok(text(&out.stdout)) } else { Err(text(&out.stderr)) }
}

#[test]
fn a_cluster_address_reaches_every_pod() {
    let space = Namespace::new("cluster-ip");
    web(&space, 3, json!({}));
    let url = format!("http://{}/", space.value("service/web", ".spec.clusterIP"));
    let mut seen = BTreeSet::new();
    eventually("every pod answers", || {
        seen.insert(fetch(&url)?);
        check(seen.len() == 3, format!("{seen:?}"))
    });
    space.kubectl(&["scale", "deployment/web", "--replicas=0"]).ok();
    endpoints(&space, 0);
    eventually("a service without endpoints refuses", || match fetch(&url) {
        Ok(answer) => Err(answer),
        Err(e) => check(e.contains("refused") || e.contains("connect"), e),
    });
}

#[test]
fn pods_find_services_by_name() {
    let space = Namespace::new("names");
    web(&space, 2, json!({}));
    space.pod("client", "sleep 1000");
    space.wait_ready("client");
    for name in ["web", "web.names", "web.names.svc", "web.names.svc.cluster.local"] {
        let answer = eventually("the service answers by name", || {
            let done = space.exec("client", &format!("timeout 5 wget -q -O - http://{name}/"));
            if done.code == Some(0) { Ok(done.stdout) } else { Err(done.to_string()) }
        });
        assert!(answer.starts_with("web-"), "{name} answers {answer}");
    }
    let lookup = space.exec("client", "nslookup kubernetes.default.svc.cluster.local").ok();
    let address = space.kubectl(&[
        "get",
        "service/kubernetes",
        "--namespace=default",
        "--output=jsonpath={.spec.clusterIP}",
    ]);
    assert!(lookup.contains(address.ok().trim()), "{lookup}");
    // Where the service leads is written down in both forms.
    let of = |resource: &str, path: &str| {
        let output = format!("--output=jsonpath={path}");
        space.kubectl(&["get", resource, "kubernetes", "--namespace=default", &output]).ok()
    };
    let slice = of("endpointslices", "{.endpoints[0].addresses[0]}:{.ports[0].port}");
    let endpoints = of("endpoints", "{.subsets[0].addresses[0].ip}:{.subsets[0].ports[0].port}");
    assert!(slice.len() > ":0".len() && slice == endpoints, "{slice} and {endpoints}");
    space.exec("client", "nslookup nosuch.names.svc.cluster.local").fails();
}

#[test]
fn a_pod_reaches_itself_through_its_service() {
    let space = Namespace::new("hairpin");
    web(&space, 1, json!({}));
    let answer = eventually("the pod answers itself", || {
        let done = space.kubectl(&[
            "exec",
            "deployment/web",
            "--",
            "timeout",
            "5",
            "wget",
            "-q",
            "-O",
            "-",
            "http://web/",
        ]);
        if done.code == Some(0) { Ok(done.stdout) } else { Err(done.to_string()) }
    });
    assert!(answer.starts_with("web-"), "{answer}");
}

#[test]
fn a_node_port_is_open_on_the_machine() {
    let space = Namespace::new("node-port");
    web(&space, 1, json!({"type": "NodePort"}));
    let port: u16 = space.value("service/web", ".spec.ports[0].nodePort").parse().expect("a port");
    assert!((30000..32768).contains(&port), "{port}");
    eventually("the node port answers", || fetch(&format!("http://127.0.0.1:{port}/")));
    let address =
        space.kubectl(&["get", "node/node-1", "--output=jsonpath={.status.addresses[0].address}"]).ok();
    eventually("it answers on the node's address", || fetch(&format!("http://{address}:{port}/")));
}

#[test]
fn headless_names_are_the_pods() {
    let space = Namespace::new("headless");
    web(&space, 2, json!({"clusterIP": "None"}));
    space.pod("client", "sleep 1000");
    space.wait_ready("client");
    let pods = space
        .kubectl(&["get", "pods", "--selector=app=web", "--output=jsonpath={.items[*].status.podIP}"])
        .ok();
    eventually("the name has the addresses of the pods", || {
        let lookup = space.exec("client", "nslookup web.headless.svc.cluster.local");
        let missing: Vec<&str> = pods.split(' ').filter(|ip| !lookup.stdout.contains(ip)).collect();
        check(missing.is_empty(), format!("{missing:?} are missing in:\n{lookup}"))
    });
}

#[test]
fn pods_that_are_not_ready_get_no_traffic() {
    let space = Namespace::new("unready");
    web(&space, 2, json!({}));
    let pod = space.kubectl(&["get", "pods", "--output=jsonpath={.items[0].metadata.name}"]).ok();
    space.exec(&pod, "rm /www/index.html").ok();
    endpoints(&space, 1);
    let url = format!("http://{}/", space.value("service/web", ".spec.clusterIP"));
    eventually("only the other pod answers", || {
        let answers: Result<BTreeSet<String>, String> = (0..10).map(|_| fetch(&url)).collect();
        let answers = answers?;
        check(
            answers.len() == 1 && !answers.contains(&pod) && answers.iter().all(|a| a.starts_with("web-")),
            format!("{answers:?}"),
        )
    });
}
