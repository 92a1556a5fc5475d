//! Starting, starting again, repairing, ending.

use nlink::netlink::nftables::Family;
use nlink::netlink::{Connection, Nftables};
use sampan_network::{Network, NetworkConfig, free_cidrs};

use crate::world::{GATEWAY, Machine, VIP, in_machine, service};

async fn tables() -> Vec<String> {
    let nftables = Connection::<Nftables>::new().unwrap();
    nftables.list_tables_in(Family::Ip).await.unwrap().into_iter().map(|table| table.name).collect()
}

async fn links(machine: &Machine) -> Vec<String> {
    let links = machine.place.route().get_links().await.unwrap();
    let mut names: Vec<String> = links.iter().filter_map(|link| link.name().map(str::to_owned)).collect();
    names.sort();
    names
}

fn forwarding() -> String {
    std::fs::read_to_string("/proc/sys/net/ipv4/ip_forward").unwrap().trim().to_owned()
}

#[test]
fn destroying_leaves_nothing() {
    in_machine(|machine| async move {
        std::fs::write("/proc/sys/net/ipv4/ip_forward", "0").unwrap();
        let before = links(&machine).await;
        let network = machine.network().await;
        let a = machine.serving_pod(&network, "a").await;
        network.apply_services(vec![service("web", &[a.endpoint()])]).await.unwrap();
        assert_eq!(forwarding(), "1");
        assert_eq!(tables().await, ["sampan-it"]);
        assert_eq!(links(&machine).await.len(), before.len() + 2);
        drop(network);
        for _ in 0..2 {
            Network::destroy(&machine.config()).await.unwrap();
            assert_eq!(links(&machine).await, before);
            assert!(tables().await.is_empty());
            assert_eq!(forwarding(), "0");
            assert_eq!(std::fs::read_dir(machine.config().state_dir).unwrap().count(), 0);
        }
    });
}

#[test]
fn destroying_what_never_was_is_no_error() {
    in_machine(|machine| async move { Network::destroy(&machine.config()).await.unwrap() });
}

#[test]
fn a_restart_disturbs_nobody() {
    in_machine(|machine| async move {
        let network = machine.network().await;
        let a = machine.serving_pod(&network, "a").await;
        let b = machine.serving_pod(&network, "b").await;
        network.apply_services(vec![service("web", &[b.endpoint()])]).await.unwrap();
        let mut open = a.pod.connect((VIP, 80)).unwrap();
        open.ask().unwrap();
        drop(network);

        let network = machine.network().await;
        assert_eq!(
            a.pod.ask_tcp((VIP, 80)).unwrap(),
            format!("b {}", a.address),
            "served before the first wish"
        );
        assert_eq!(network.attach_pod("a", a.pod.path()).await.unwrap(), a.address);
        network.apply_services(vec![service("web", &[a.endpoint()])]).await.unwrap();
        assert_eq!(open.ask().unwrap(), format!("b {}", a.address));
        assert_eq!(a.pod.ask_tcp((VIP, 80)).unwrap(), format!("a {GATEWAY}"));
    });
}

#[test]
fn a_table_that_somebody_removed_comes_back_with_the_next_change() {
    in_machine(|machine| async move {
        let network = machine.network().await;
        let a = machine.serving_pod(&network, "a").await;
        network.apply_services(vec![service("web", &[])]).await.unwrap();
        Connection::<Nftables>::new().unwrap().del_table("sampan-it", Family::Ip).await.unwrap();
        network.apply_services(vec![service("web", &[a.endpoint()])]).await.unwrap();
        assert_eq!(machine.place.ask_tcp((VIP, 80)).unwrap(), format!("a {GATEWAY}"));
    });
}

#[test]
fn only_wanted_pods_are_retained_also_when_the_record_is_lost() {
    in_machine(|machine| async move {
        let network = machine.network().await;
        let a = machine.serving_pod(&network, "a").await;
        let b = machine.serving_pod(&network, "b").await;
        let c = machine.serving_pod(&network, "c").await;
        network.retain_pods(&["a".into(), "b".into()]).await.unwrap();
        assert!(a.pod.ask_tcp(b.endpoint()).is_ok());
        assert!(c.pod.route().get_link_by_name("eth0").await.unwrap().is_none());
        drop(network);

        std::fs::remove_file(machine.config().state_dir.join("addresses.json")).unwrap();
        let network = machine.network().await;
        let d = machine.serving_pod(&network, "d").await;
        assert!(d.address != a.address && d.address != b.address, "their links hold their addresses");
        network.retain_pods(&["d".into()]).await.unwrap();
        assert!(a.pod.route().get_link_by_name("eth0").await.unwrap().is_none());
        assert!(machine.place.ask_tcp(d.endpoint()).is_ok());
    });
}

#[test]
fn two_clusters_share_a_machine() {
    in_machine(|machine| async move {
        let first = machine.network().await;
        let (pods, services) = free_cidrs("other").await.unwrap();
        assert_ne!(pods, machine.config().pod_cidr);
        let other = NetworkConfig {
            name: "other".into(),
            pod_cidr: pods,
            service_cidr: services,
            state_dir: machine.config().state_dir.with_file_name("other"),
            ..machine.config()
        };
        let second = Network::start(other.clone()).await.unwrap();
        assert_ne!(first.anchor(), second.anchor());
        assert_eq!(free_cidrs("other").await.unwrap(), (pods, services), "its own routes do not count");
        let a = machine.serving_pod(&first, "a").await;
        let b = machine.serving_pod(&second, "b").await;
        first.apply_services(vec![service("web", &[a.endpoint()])]).await.unwrap();
        Network::destroy(&other).await.unwrap();
        assert!(b.pod.route().get_link_by_name("eth0").await.unwrap().is_none());
        assert_eq!(forwarding(), "1");
        assert_eq!(machine.place.ask_tcp((VIP, 80)).unwrap(), format!("a {GATEWAY}"));
    });
}
