//! Virtual addresses and node ports, with packets.

use std::collections::BTreeSet;
use std::io;
use std::net::Ipv4Addr;
use std::time::Instant;

use sampan_network::ServiceRoute;

use crate::world::{GATEWAY, NODE, OUTSIDE, PATIENCE, Place, VIP, ask_udp, in_machine, service, udp_service};

const NODE_PORT: u16 = 30_080;

/// The names that answer `count` connections.
fn who_answers(place: &Place, to: (Ipv4Addr, u16), count: usize) -> BTreeSet<String> {
    (0..count)
        .map(|_| place.ask_tcp(to).expect("an answer").split(' ').next().unwrap_or_default().to_owned())
        .collect()
}

#[test]
fn a_service_is_reached_from_pods_and_from_the_node() {
    in_machine(|machine| async move {
        let network = machine.network().await;
        let a = machine.serving_pod(&network, "a").await;
        let b = machine.serving_pod(&network, "b").await;
        network.apply_services(vec![service("web", &[b.endpoint()])]).await.unwrap();
        assert_eq!(a.pod.ask_tcp((VIP, 80)).unwrap(), format!("b {}", a.address));
        assert_eq!(machine.place.ask_tcp((VIP, 80)).unwrap(), format!("b {GATEWAY}"));
    });
}

#[test]
fn a_pod_reaches_itself_through_a_service() {
    in_machine(|machine| async move {
        let network = machine.network().await;
        let a = machine.serving_pod(&network, "a").await;
        network
            .apply_services(vec![service("web", &[a.endpoint()]), udp_service("udp", &[a.endpoint()])])
            .await
            .unwrap();
        assert_eq!(a.pod.ask_tcp((VIP, 80)).unwrap(), format!("a {GATEWAY}"));
        assert_eq!(a.pod.ask_udp((VIP, 80)).unwrap(), format!("a {GATEWAY}"));
    });
}

#[test]
fn connections_are_spread_and_stick_when_asked_to() {
    in_machine(|machine| async move {
        let network = machine.network().await;
        let a = machine.serving_pod(&network, "a").await;
        let b = machine.serving_pod(&network, "b").await;
        let c = machine.serving_pod(&network, "c").await;
        let spread = service("web", &[a.endpoint(), b.endpoint()]);
        network.apply_services(vec![spread.clone()]).await.unwrap();
        // All of 64 to one of two happens once in 2^63 runs.
        assert_eq!(who_answers(&c.pod, (VIP, 80), 64).len(), 2);
        let sticky = ServiceRoute { session_affinity_seconds: Some(10_800), ..spread };
        network.apply_services(vec![sticky]).await.unwrap();
        assert_eq!(who_answers(&c.pod, (VIP, 80), 64).len(), 1);
    });
}

#[test]
fn without_endpoints_a_connection_is_refused_at_once() {
    in_machine(|machine| async move {
        let network = machine.network().await;
        let a = machine.serving_pod(&network, "a").await;
        network.apply_services(vec![service("empty", &[]), udp_service("empty-udp", &[])]).await.unwrap();
        let before = Instant::now();
        for place in [&a.pod, &machine.place] {
            for address in [VIP, Ipv4Addr::new(10, 43, 0, 99)] {
                let error = place.ask_tcp((address, 80)).unwrap_err();
                assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused, "{address}: {error}");
            }
            // A sender on the node itself is told by its system call.
            let error = place.ask_udp((VIP, 80)).unwrap_err();
            let refused = [io::ErrorKind::ConnectionRefused, io::ErrorKind::PermissionDenied];
            assert!(refused.contains(&error.kind()), "{error}");
        }
        assert!(before.elapsed() < PATIENCE);
        // With an endpoint it opens, and closes again without.
        network.apply_services(vec![service("empty", &[a.endpoint()])]).await.unwrap();
        assert!(machine.place.ask_tcp((VIP, 80)).is_ok());
        network.apply_services(vec![service("empty", &[])]).await.unwrap();
        assert!(machine.place.ask_tcp((VIP, 80)).is_err());
    });
}

#[test]
fn a_node_port_is_reached_from_everywhere() {
    in_machine(|machine| async move {
        let network = machine.network().await;
        let a = machine.serving_pod(&network, "a").await;
        let b = machine.serving_pod(&network, "b").await;
        let web = ServiceRoute { node_port: Some(NODE_PORT), ..service("web", &[a.endpoint()]) };
        let udp = ServiceRoute { node_port: Some(NODE_PORT), ..udp_service("udp", &[a.endpoint()]) };
        network.apply_services(vec![web, udp]).await.unwrap();
        let node_port = (NODE, NODE_PORT);
        // A client elsewhere is seen with its own address.
        assert_eq!(machine.outside.ask_tcp(node_port).unwrap(), format!("a {OUTSIDE}"));
        assert_eq!(machine.outside.ask_udp(node_port).unwrap(), format!("a {OUTSIDE}"));
        assert_eq!(b.pod.ask_tcp(node_port).unwrap(), format!("a {}", b.address));
        assert_eq!(a.pod.ask_tcp(node_port).unwrap(), format!("a {GATEWAY}"));
        assert!(machine.place.ask_tcp(node_port).unwrap().starts_with("a "));
        assert_eq!(machine.place.ask_tcp((Ipv4Addr::LOCALHOST, NODE_PORT)).unwrap(), format!("a {GATEWAY}"));
        assert_eq!(machine.place.ask_udp((Ipv4Addr::LOCALHOST, NODE_PORT)).unwrap(), format!("a {GATEWAY}"));
    });
}

#[test]
fn a_connection_outlives_a_change_and_new_ones_follow_it() {
    in_machine(|machine| async move {
        let network = machine.network().await;
        let a = machine.serving_pod(&network, "a").await;
        let b = machine.serving_pod(&network, "b").await;
        let c = machine.serving_pod(&network, "c").await;
        network.apply_services(vec![service("web", &[a.endpoint()])]).await.unwrap();
        let mut open = c.pod.connect((VIP, 80)).unwrap();
        assert_eq!(open.ask().unwrap(), format!("a {}", c.address));
        network.apply_services(vec![service("web", &[b.endpoint()])]).await.unwrap();
        assert_eq!(open.ask().unwrap(), format!("a {}", c.address));
        assert_eq!(c.pod.ask_tcp((VIP, 80)).unwrap(), format!("b {}", c.address));
    });
}

#[test]
fn a_udp_client_that_keeps_its_port_moves_to_the_new_endpoint() {
    in_machine(|machine| async move {
        let network = machine.network().await;
        let a = machine.serving_pod(&network, "a").await;
        let b = machine.serving_pod(&network, "b").await;
        let c = machine.serving_pod(&network, "c").await;
        let with = |endpoint| {
            let udp = udp_service("udp", &[endpoint]);
            vec![ServiceRoute { node_port: Some(NODE_PORT), ..udp }]
        };
        network.apply_services(with(a.endpoint())).await.unwrap();
        let sockets = [c.pod.udp_to((VIP, 80)).unwrap(), machine.outside.udp_to((NODE, NODE_PORT)).unwrap()];
        for socket in &sockets {
            assert!(ask_udp(socket).unwrap().starts_with("a "));
        }
        network.apply_services(with(b.endpoint())).await.unwrap();
        for socket in &sockets {
            assert!(ask_udp(socket).unwrap().starts_with("b "));
        }
    });
}

#[test]
fn thousands_of_services_are_one_call() {
    in_machine(|machine| async move {
        let network = machine.network().await;
        let a = machine.serving_pod(&network, "a").await;
        let many = |count: u16| -> Vec<ServiceRoute> {
            (1..=count)
                .map(|port| {
                    let endpoints: Vec<_> =
                        (0..port % 7).map(|d| (Ipv4Addr::new(10, 42, 0, 100 + d as u8), 1)).collect();
                    let endpoints = if port == 80 { vec![a.endpoint()] } else { endpoints };
                    ServiceRoute { port, ..service(&format!("service-{port}"), &endpoints) }
                })
                .collect()
        };
        network.apply_services(many(5000)).await.unwrap();
        assert_eq!(machine.place.ask_tcp((VIP, 80)).unwrap(), format!("a {GATEWAY}"));
        network.apply_services(many(100)).await.unwrap();
        assert_eq!(machine.place.ask_tcp((VIP, 80)).unwrap(), format!("a {GATEWAY}"));
        network.apply_services(Vec::new()).await.unwrap();
        assert!(machine.place.ask_tcp((VIP, 80)).is_err());
    });
}
