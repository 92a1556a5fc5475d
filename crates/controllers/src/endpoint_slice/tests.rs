//! Endpoints and the writes that publish them, as tables.

use k8s_openapi::api::core::v1::{ContainerPort, PodIP, ServicePort, ServiceSpec};
use k8s_openapi::api::discovery::v1::Endpoint;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::*;
use crate::common::testing::{deleting, in_phase, labels, meta, not_ready, pod};

fn service(change: impl FnOnce(&mut ServiceSpec)) -> Service {
    let mut spec = ServiceSpec {
        selector: Some(labels(&[("app", "web")])),
        ports: Some(vec![ServicePort {
            name: Some("http".into()),
            port: 80,
            target_port: Some(IntOrString::Int(8080)),
            ..ServicePort::default()
        }]),
        ..ServiceSpec::default()
    };
    change(&mut spec);
    Service { metadata: meta("web", "svc"), spec: Some(spec), status: None }
}

/// A pod with the address 10.0.0.`last`.
fn backend(last: u8, change: impl FnOnce(&mut Pod)) -> Arc<Pod> {
    pod(&format!("p{last}"), |pod| {
        let status = pod.status.as_mut().unwrap();
        status.pod_ip = Some(format!("10.0.0.{last}"));
        status.pod_ips = Some(vec![PodIP { ip: format!("10.0.0.{last}") }]);
        change(pod);
    })
}

fn nothing(_: &mut Pod) {}

/// Applies a plan the way the server would.
fn apply(slices: &[Arc<EndpointSlice>], actions: Vec<Action>) -> Vec<Arc<EndpointSlice>> {
    let mut slices = slices.to_vec();
    for action in actions {
        match action {
            Action::Create(mut slice) => {
                let name = format!("web-{}", slices.len());
                slice.metadata = ObjectMeta { name: Some(name.clone()), uid: Some(name), ..slice.metadata };
                slices.push(Arc::new(*slice));
            }
            Action::Update(slice) => {
                let old = slices.iter_mut().find(|old| old.metadata.uid == slice.metadata.uid).unwrap();
                *old = Arc::new(*slice);
            }
            Action::Delete(slice) => slices.retain(|old| old.metadata.uid != slice.metadata.uid),
        }
    }
    slices
}

fn counts(actions: &[Action]) -> (usize, usize, usize) {
    let count = |wanted: fn(&Action) -> bool| actions.iter().filter(|action| wanted(action)).count();
    (
        count(|action| matches!(action, Action::Create(_))),
        count(|action| matches!(action, Action::Update(_))),
        count(|action| matches!(action, Action::Delete(_))),
    )
}

/// The endpoints of the first slices of a service as `address ready serving terminating`.
fn published(service: &Service, pods: &[Arc<Pod>]) -> Vec<String> {
    let slices = apply(&[], plan::plan(service, pods, &[]));
    let word = |endpoint: &Endpoint| {
        let conditions = endpoint.conditions.as_ref().unwrap();
        let [ready, serving, terminating] = [conditions.ready, conditions.serving, conditions.terminating]
            .map(|condition| if condition == Some(true) { "yes" } else { "no" });
        format!("{} {ready} {serving} {terminating}", endpoint.addresses.join(","))
    };
    slices.iter().flat_map(|slice| slice.endpoints.iter().flatten().map(word).collect::<Vec<_>>()).collect()
}

#[test]
fn which_pods_are_endpoints_and_in_which_condition() {
    let publish = |spec: &mut ServiceSpec| spec.publish_not_ready_addresses = Some(true);
    let other = |pod: &mut Pod| pod.metadata.labels = Some(labels(&[("app", "db")]));
    let unaddressed = |pod: &mut Pod| {
        let status = pod.status.as_mut().unwrap();
        (status.pod_ip, status.pod_ips) = (None, None);
    };
    let rows: Vec<(&str, Service, Arc<Pod>, Vec<&str>)> = vec![
        ("ready", service(|_| {}), backend(1, nothing), vec!["10.0.0.1 yes yes no"]),
        ("not ready", service(|_| {}), backend(1, not_ready), vec!["10.0.0.1 no no no"]),
        ("going, still serving", service(|_| {}), backend(1, deleting), vec!["10.0.0.1 no yes yes"]),
        ("published early", service(publish), backend(1, not_ready), vec!["10.0.0.1 yes no no"]),
        ("ended", service(|_| {}), backend(1, in_phase("Succeeded")), vec![]),
        ("no address yet", service(|_| {}), backend(1, unaddressed), vec![]),
        ("not selected", service(|_| {}), backend(1, other), vec![]),
        (
            "of another family",
            service(|spec| spec.ip_families = Some(vec!["IPv6".into()])),
            backend(1, nothing),
            vec![],
        ),
    ];
    for (name, service, pod, expected) in rows {
        assert_eq!(published(&service, &[pod]), expected, "{name}");
    }
}

#[test]
fn services_that_are_not_ours() {
    let rows = [
        ("no selector", service(|spec| spec.selector = None)),
        ("empty selector", service(|spec| spec.selector = Some(labels(&[])))),
        ("a mere name", service(|spec| spec.type_ = Some("ExternalName".into()))),
    ];
    for (name, service) in rows {
        assert_eq!(counts(&plan::plan(&service, &[backend(1, nothing)], &[])), (0, 0, 0), "{name}");
    }
}

#[test]
fn ports_are_resolved_per_pod() {
    let port =
        |target: Option<IntOrString>| service(|spec| spec.ports.as_mut().unwrap()[0].target_port = target);
    let named = |number: i32| {
        backend(u8::try_from(number % 100).unwrap(), |pod| {
            pod.spec.as_mut().unwrap().containers[0].ports = Some(vec![ContainerPort {
                name: Some("web".into()),
                container_port: number,
                ..ContainerPort::default()
            }]);
        })
    };
    let text = || Some(IntOrString::String("web".into()));
    type Row = (&'static str, Service, Vec<Arc<Pod>>, Vec<Vec<i32>>);
    let rows: Vec<Row> = vec![
        ("a number", port(Some(IntOrString::Int(9))), vec![backend(1, nothing)], vec![vec![9]]),
        ("none: the service's own", port(None), vec![backend(1, nothing)], vec![vec![80]]),
        ("a name", port(text()), vec![named(8081)], vec![vec![8081]]),
        ("a name the pod does not know", port(text()), vec![backend(1, nothing)], vec![vec![]]),
        (
            "a name with two meanings",
            port(text()),
            vec![named(8081), named(8082)],
            vec![vec![8081], vec![8082]],
        ),
        (
            "headless without ports",
            service(|spec| spec.ports = None),
            vec![backend(1, nothing)],
            vec![vec![]],
        ),
    ];
    for (name, service, pods, expected) in rows {
        let slices = apply(&[], plan::plan(&service, &pods, &[]));
        let ports: Vec<Vec<i32>> = slices
            .iter()
            .map(|slice| slice.ports.iter().flatten().filter_map(|port| port.port).collect())
            .collect();
        assert_eq!(ports, expected, "{name}");
    }
}

#[test]
fn writes_are_few() {
    let web = service(|_| {});
    let pods: Vec<_> = (1..=250).map(|last| backend(last, nothing)).collect();
    let first = plan::plan(&web, &pods, &[]);
    assert_eq!(counts(&first), (3, 0, 0));
    let slices = apply(&[], first);
    let sizes: Vec<_> = slices.iter().map(|slice| slice.endpoints.as_ref().unwrap().len()).collect();
    assert_eq!(sizes, [100, 100, 50]);
    assert_eq!(counts(&plan::plan(&web, &pods, &slices)), (0, 0, 0));

    type Row = (&'static str, Vec<Arc<Pod>>, (usize, usize, usize));
    let rows: Vec<Row> = vec![
        ("one pod more", (1..=251).map(|last| backend(last, nothing)).collect(), (0, 1, 0)),
        ("one pod less", (2..=250).map(|last| backend(last, nothing)).collect(), (0, 1, 0)),
        (
            "one pod not ready",
            (1..=250)
                .map(|last| {
                    backend(last, |pod| {
                        if last == 7 {
                            not_ready(pod)
                        }
                    })
                })
                .collect(),
            (0, 1, 0),
        ),
        ("one replaced by another", (2..=251).map(|last| backend(last, nothing)).collect(), (0, 1, 0)),
        ("most gone", (1..=3).map(|last| backend(last, nothing)).collect(), (0, 1, 2)),
        ("all gone: one empty slice stays", vec![], (0, 1, 2)),
    ];
    for (name, pods, expected) in rows {
        let actions = plan::plan(&web, &pods, &slices);
        assert_eq!(counts(&actions), expected, "{name}");
        let after = apply(&slices, actions);
        assert_eq!(counts(&plan::plan(&web, &pods, &after)), (0, 0, 0), "{name}: at rest afterwards");
        let total: usize = after.iter().map(|slice| slice.endpoints.as_ref().unwrap().len()).sum();
        assert_eq!(total, pods.len(), "{name}");
    }
}

#[test]
fn slices_carry_owner_and_labels() {
    let mut headless = service(|spec| spec.cluster_ip = Some("None".into()));
    headless.metadata.labels = Some(labels(&[("team", "a")]));
    let slices = apply(&[], plan::plan(&headless, &[], &[]));
    let slice = &slices[0];
    assert_eq!(slice.metadata.generate_name.as_deref(), Some("web-"));
    let expected = labels(&[
        ("team", "a"),
        ("kubernetes.io/service-name", "web"),
        ("endpointslice.kubernetes.io/managed-by", "endpointslice-controller.k8s.io"),
        ("service.kubernetes.io/headless", ""),
    ]);
    assert_eq!(slice.metadata.labels.as_ref(), Some(&expected));
    let owner = &slice.metadata.owner_references.as_ref().unwrap()[0];
    assert_eq!((owner.kind.as_str(), owner.uid.as_str(), owner.controller), ("Service", "svc", Some(true)));

    headless.metadata.labels = None;
    assert_eq!(counts(&plan::plan(&headless, &[], &slices)), (0, 1, 0));
}

#[test]
fn other_peoples_slices_are_left_alone() {
    let mut foreign = EndpointSlice { metadata: meta("mine", "mine"), ..EndpointSlice::default() };
    foreign.metadata.labels = Some(labels(&[("kubernetes.io/service-name", "web")]));
    let actions = plan::plan(&service(|_| {}), &[backend(1, nothing)], &[Arc::new(foreign)]);
    assert_eq!(counts(&actions), (1, 0, 0));
}

#[test]
fn only_what_shows_wakes_services() {
    type Make = fn(&mut Pod);
    let rows: [(&str, Make, bool); 4] = [
        ("nothing", nothing, true),
        ("annotation", |pod| pod.metadata.annotations = Some(labels(&[("a", "b")])), true),
        ("readiness", not_ready, false),
        ("deletion", deleting, false),
    ];
    for (name, make, same) in rows {
        assert_eq!(endpoints::is_same_endpoint(&backend(1, nothing), &backend(1, make)), same, "{name}");
    }
}
