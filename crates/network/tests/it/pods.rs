//! Pods among themselves, and with the world.

use std::io;
use std::net::Ipv4Addr;

use crate::world::{GATEWAY, NODE, OUTSIDE, Server, UPLINK_MTU, in_machine};

#[test]
fn pods_see_each_others_real_address() {
    in_machine(|machine| async move {
        let network = machine.network().await;
        let a = machine.serving_pod(&network, "a").await;
        let b = machine.serving_pod(&network, "b").await;
        assert_ne!(a.address, b.address);
        assert_eq!(a.pod.ask_tcp(b.endpoint()).unwrap(), format!("b {}", a.address));
        assert_eq!(b.pod.ask_udp(a.endpoint()).unwrap(), format!("a {}", b.address));
        assert_eq!(a.pod.ask_tcp(a.endpoint()).unwrap(), format!("a {}", a.address));
    });
}

#[test]
fn the_node_reaches_pods_and_pods_the_node() {
    in_machine(|machine| async move {
        let network = machine.network().await;
        let a = machine.serving_pod(&network, "a").await;
        assert_eq!(machine.place.ask_tcp(a.endpoint()).unwrap(), format!("a {GATEWAY}"));
        let _node = Server::start(&machine.place, "node");
        assert_eq!(a.pod.ask_tcp((network.gateway(), Server::PORT)).unwrap(), format!("node {}", a.address));
        assert_eq!(a.pod.ask_tcp((NODE, Server::PORT)).unwrap(), format!("node {}", a.address));
    });
}

#[test]
fn an_address_no_pod_has_is_unreachable_at_once() {
    in_machine(|machine| async move {
        let network = machine.network().await;
        let a = machine.serving_pod(&network, "a").await;
        for place in [&a.pod, &machine.place] {
            let error = place.ask_tcp((Ipv4Addr::new(10, 42, 0, 200), Server::PORT)).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::HostUnreachable, "{error}");
        }
    });
}

#[test]
fn the_world_sees_the_nodes_address() {
    in_machine(|machine| async move {
        let network = machine.network().await;
        let a = machine.serving_pod(&network, "a").await;
        let _server = Server::start(&machine.outside, "outside");
        assert_eq!(a.pod.ask_tcp((OUTSIDE, Server::PORT)).unwrap(), format!("outside {NODE}"));
        assert_eq!(a.pod.ask_udp((OUTSIDE, Server::PORT)).unwrap(), format!("outside {NODE}"));
    });
}

#[test]
fn a_pods_interface_is_as_pods_expect_it() {
    in_machine(|machine| async move {
        let network = machine.network().await;
        let pod = machine.pod().await;
        let address = network.attach_pod("a", pod.path()).await.unwrap();
        let inside = pod.route();
        let eth0 = inside.get_link_by_name("eth0").await.unwrap().unwrap();
        assert!(eth0.is_up());
        assert_eq!(eth0.mtu(), Some(UPLINK_MTU));
        let [a, b, c, d] = address.octets();
        assert_eq!(eth0.address(), Some(&[0x0a, 0x53, a, b, c, d][..]));
        let default = inside
            .get_routes()
            .await
            .unwrap()
            .into_iter()
            .find(|route| route.is_ipv4() && route.is_default());
        assert_eq!(default.unwrap().gateway(), Some(&GATEWAY.into()));
    });
}

#[test]
fn attaching_again_changes_nothing_and_a_new_namespace_keeps_the_address() {
    in_machine(|machine| async move {
        let network = machine.network().await;
        let peer = machine.serving_pod(&network, "peer").await;
        let pod = machine.pod().await;
        let address = network.attach_pod("a", pod.path()).await.unwrap();
        let index = pod.route().get_link_by_name("eth0").await.unwrap().unwrap().ifindex();
        assert_eq!(network.attach_pod("a", pod.path()).await.unwrap(), address);
        assert_eq!(pod.route().get_link_by_name("eth0").await.unwrap().unwrap().ifindex(), index);
        let again = machine.pod().await;
        assert_eq!(network.attach_pod("a", again.path()).await.unwrap(), address);
        assert_eq!(again.ask_tcp(peer.endpoint()).unwrap(), format!("peer {address}"));
        assert!(pod.route().get_link_by_name("eth0").await.unwrap().is_none());
    });
}

#[test]
fn detaching_removes_the_link_and_frees_the_address() {
    in_machine(|machine| async move {
        let network = machine.network().await;
        let pod = machine.pod().await;
        network.attach_pod("a", pod.path()).await.unwrap();
        network.detach_pod("a").await.unwrap();
        network.detach_pod("a").await.unwrap();
        assert!(pod.route().get_link_by_name("eth0").await.unwrap().is_none());
        network.attach_pod("b", pod.path()).await.unwrap();
        assert!(pod.route().get_link_by_name("eth0").await.unwrap().is_some());
    });
}

#[test]
fn a_namespace_that_is_not_there_is_an_error_that_says_so() {
    in_machine(|machine| async move {
        let network = machine.network().await;
        let error = network.attach_pod("a", std::path::Path::new("/nowhere/ns")).await.unwrap_err();
        assert!(error.to_string().contains("/nowhere/ns"), "{error}");
    });
}
