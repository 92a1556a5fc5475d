//! The nftables table of a cluster, written over netlink.
//!
//! ```text
//! table ip sampan-<cluster>
//!   map services        address . protocol . port          -> goto cluster-ip-<n>
//!   map node-ports                protocol . port          -> goto node-port-<n>
//!   map endpoints       address . protocol . port . number -> address . port
//!   map node-endpoints            protocol . port . number -> address . port
//!   set hairpins        address . address
//!
//!   raw           prerouting -300  a pod may not reach the node's loopback
//!   prerouting    nat        -100  services; for the node's own addresses node-ports
//!   output        nat        -100  the same for packets of the node itself
//!   forward       filter        0  half-known connections end here; an address no service or pod has is refused
//!   output-filter filter        0  refused likewise; no redirects to pods
//!   postrouting   nat         100  masquerade: out of the cluster, hairpins, the node's loopback
//!   cluster-ip-<n>, node-port-<n>  draw a number below n, look up the endpoint, translate
//! ```
//!
//! Family `ip`, because address and port come out of one map, which needs one size of address. An `ip6` table will be its
//! twin. The expressions of the lookups are written out instead of using the library's helpers, since those want to know
//! the protocol before the port, and our maps have the protocol in the key.

mod element;
mod expression;

use std::net::Ipv4Addr;

use async_trait::async_trait;
use nlink::netlink::nftables::{
    BaseChain, Chain, CtState, CtStatus, Family, FibFlags, FilterHook, LookupExpr, NFT_MSG_NEWTABLE, NatHook,
    NatStatement, Priority, RawMessage, Register, Rule, Set, SetDataType, SetElement, SetKeyType,
    Transaction,
};
use nlink::netlink::types::route::RouteType;
use nlink::netlink::{Connection, Nftables};

use crate::config::NetworkConfig;
use crate::names::{Names, POD_LINK_PREFIX};
use crate::ruleset::Ruleset;
use crate::{Balancer, Element, Front, Ipv4Cidr, NetworkError, NftChange};
use element::{element, kind};
use expression::{
    TARGET_ADDRESS, TARGET_PORT, WORD_0, WORD_1, WORD_2, WORD_3, attr, attribute, draw, load_destination,
    load_port, load_protocol, load_source, translate_destination,
};

const SERVICES: &str = "services";
const NODE_PORTS: &str = "node-ports";
const ENDPOINTS: &str = "endpoints";
const NODE_ENDPOINTS: &str = "node-endpoints";
const HAIRPINS: &str = "hairpins";

const RAW: &str = "raw";
const PREROUTING: &str = "prerouting";
const OUTPUT: &str = "output";
const FORWARD: &str = "forward";
const OUTPUT_FILTER: &str = "output-filter";
const POSTROUTING: &str = "postrouting";

/// How many elements go into one message: a message's element list is limited to 64 KiB by its 16-bit length, and one of
/// our elements takes at most 120 bytes.
const ELEMENTS_PER_MESSAGE: usize = 400;

/// Room for one transaction on its way to the kernel, which takes it in one piece: about 100,000 endpoints. The kernel
/// uses only what is sent.
const SEND_BUFFER: usize = 64 << 20;

/// `NLM_F_CREATE` of `linux/netlink.h`.
const CREATE: u16 = 0x400;

/// `ICMP_HOST_UNREACH` of RFC 792.
const HOST_UNREACHABLE: u8 = 1;

/// `ICMP_PORT_UNREACH` of RFC 792.
const PORT_UNREACHABLE: u8 = 3;

/// `ICMP_REDIRECT` of RFC 792.
const REDIRECT: u8 = 5;

/// What the fixed rules depend on.
struct Frame {
    table: String,
    anchor: String,
    gateway: Ipv4Addr,
    pods: Ipv4Cidr,
    services: Ipv4Cidr,
}

/// The table of one cluster.
pub(crate) struct NftTable {
    connection: Connection<Nftables>,
    frame: Frame,
}

impl NftTable {
    /// Opens a way to the kernel; changes nothing.
    pub(crate) fn open(config: &NetworkConfig, names: &Names) -> Result<Self, NetworkError> {
        let failed = || NetworkError::netlink("open a netlink socket for nftables");
        let connection = Connection::<Nftables>::new().map_err(failed())?;
        // Needs CAP_NET_ADMIN like everything else here; without it a large transaction fails with EMSGSIZE.
        if let Err(error) =
            rustix::net::sockopt::set_socket_send_buffer_size_force(connection.socket(), SEND_BUFFER)
        {
            tracing::debug!(%error, "cannot enlarge the netlink send buffer");
        }
        Ok(Self {
            connection,
            frame: Frame {
                table: names.table.clone(),
                anchor: names.anchor.clone(),
                gateway: config.gateway(),
                pods: config.pod_cidr,
                services: config.service_cidr,
            },
        })
    }

    fn failed(&self, action: &'static str) -> impl FnOnce(nlink::Error) -> NetworkError {
        let table = self.frame.table.clone();
        move |err| NetworkError::Ruleset { action, table, err }
    }

    async fn commit(
        &self,
        action: &'static str,
        built: nlink::Result<Transaction>,
    ) -> Result<(), NetworkError> {
        let transaction = built.map_err(self.failed(action))?;
        transaction.commit(&self.connection).await.map_err(self.failed(action))
    }
}

#[async_trait]
impl Ruleset for NftTable {
    async fn exists(&self) -> Result<bool, NetworkError> {
        let tables = self.connection.list_tables_in(Family::Ip).await.map_err(self.failed("look for"))?;
        Ok(tables.iter().any(|table| table.name == self.frame.table))
    }

    async fn rebuild(&self, changes: &[NftChange]) -> Result<(), NetworkError> {
        let fresh = self.frame.fresh(self.connection.transaction());
        let built = fresh.and_then(|transaction| self.frame.extend(transaction, changes));
        self.commit("create", built).await
    }

    async fn apply(&self, changes: &[NftChange]) -> Result<(), NetworkError> {
        let built = self.frame.extend(self.connection.transaction(), changes);
        self.commit("change", built).await
    }

    async fn remove(&self) -> Result<(), NetworkError> {
        let removed = self.connection.del_table_if_exists(self.frame.table.as_str(), Family::Ip).await;
        removed.map(|_| ()).map_err(self.failed("remove"))
    }
}

impl Frame {
    /// Deletes the table if it is there and makes it with its fixed parts.
    ///
    /// Adding without the "must be new" flag and then deleting is the way to delete what may not exist; the kernel's own
    /// message for it is younger (6.3) than kernels we run on.
    fn fresh(&self, transaction: Transaction) -> nlink::Result<Transaction> {
        let mut name = self.table.clone().into_bytes();
        name.push(0);
        let ensure = RawMessage::new(NFT_MSG_NEWTABLE, Family::Ip)
            .flags(CREATE)
            .attrs(attribute(attr::TABLE_NAME, &name));
        let mut transaction = transaction
            .raw(ensure)
            .del_table(&self.table, Family::Ip)
            .add_table(&self.table, Family::Ip)
            .add_set(self.services_map())
            .add_set(self.node_ports_map())
            .add_set(self.endpoints_map())
            .add_set(self.node_endpoints_map())
            .add_set(self.hairpins_set());
        for (name, base) in base_chains() {
            transaction = transaction.add_chain(self.chain(name)?.base(base));
        }
        for rule in self.fixed_rules() {
            transaction = transaction.add_rule(rule);
        }
        Ok(transaction)
    }

    /// Adds the changes, elements of one map gathered into few messages. The order of the changes is kept.
    fn extend(&self, mut transaction: Transaction, changes: &[NftChange]) -> nlink::Result<Transaction> {
        for run in changes.chunk_by(|a, b| kind(a) == kind(b)) {
            let elements: Vec<SetElement> =
                run.iter().filter_map(|change| element(change).transpose()).collect::<Result<_, _>>()?;
            transaction = match run.first() {
                Some(NftChange::AddBalancer(_)) => self.add_balancers(transaction, run)?,
                Some(NftChange::Add(first)) => {
                    let map = self.map_of(first);
                    elements
                        .chunks(ELEMENTS_PER_MESSAGE)
                        .fold(transaction, |t, part| t.add_set_elements(&map, part))
                }
                Some(NftChange::Remove(first)) => {
                    let map = self.map_of(first);
                    elements
                        .chunks(ELEMENTS_PER_MESSAGE)
                        .fold(transaction, |t, part| t.del_set_elements(&map, part))
                }
                None => transaction,
            };
        }
        Ok(transaction)
    }

    fn add_balancers(&self, mut transaction: Transaction, run: &[NftChange]) -> nlink::Result<Transaction> {
        for change in run {
            if let NftChange::AddBalancer(balancer) = change {
                let name = balancer.to_string();
                transaction =
                    transaction.add_chain(self.chain(&name)?).add_rule(self.balance(&name, *balancer));
            }
        }
        Ok(transaction)
    }

    fn chain(&self, name: &str) -> nlink::Result<Chain> {
        Ok(Chain::new(self.table.as_str(), name)?.family(Family::Ip))
    }

    fn rule(&self, chain: &str) -> Rule {
        Rule::new(&self.table, chain).family(Family::Ip)
    }

    fn set(&self, name: &str, key: Vec<SetKeyType>) -> Set {
        Set::new(&self.table, name).family(Family::Ip).key_type(SetKeyType::Concat(key))
    }

    fn services_map(&self) -> Set {
        self.set(SERVICES, vec![SetKeyType::Ipv4Addr, SetKeyType::InetProto, SetKeyType::InetService]).vmap()
    }

    fn node_ports_map(&self) -> Set {
        self.set(NODE_PORTS, vec![SetKeyType::InetProto, SetKeyType::InetService]).vmap()
    }

    // The number is of type mark: 32 bits in the machine's order, which is what drawing a number leaves in the register.
    fn endpoints_map(&self) -> Set {
        let key =
            vec![SetKeyType::Ipv4Addr, SetKeyType::InetProto, SetKeyType::InetService, SetKeyType::Mark];
        self.set(ENDPOINTS, key).map(target_type())
    }

    fn node_endpoints_map(&self) -> Set {
        let key = vec![SetKeyType::InetProto, SetKeyType::InetService, SetKeyType::Mark];
        self.set(NODE_ENDPOINTS, key).map(target_type())
    }

    fn hairpins_set(&self) -> Set {
        self.set(HAIRPINS, vec![SetKeyType::Ipv4Addr, SetKeyType::Ipv4Addr])
    }

    fn map_of(&self, element: &Element) -> Set {
        match element {
            Element::Front { front: Front::Cluster { .. }, .. } => self.services_map(),
            Element::Front { front: Front::Node { .. }, .. } => self.node_ports_map(),
            Element::Backend { front: Front::Cluster { .. }, .. } => self.endpoints_map(),
            Element::Backend { front: Front::Node { .. }, .. } => self.node_endpoints_map(),
            Element::Hairpin { .. } => self.hairpins_set(),
        }
    }

    /// The rules that do not depend on services, in their order.
    fn fixed_rules(&self) -> Vec<Rule> {
        let mut rules = vec![self.shield_loopback()];
        for chain in [PREROUTING, OUTPUT] {
            rules.push(self.enter_services(chain));
            rules.push(self.enter_node_ports(chain));
        }
        rules.extend(self.drop_half_known());
        rules.extend(self.refuse_unknown_services(FORWARD));
        rules.push(self.refuse_unknown_pods(FORWARD));
        rules.extend(self.refuse_unknown_services(OUTPUT_FILTER));
        rules.push(self.drop_redirects());
        rules.push(self.pass_translated());
        rules.push(self.refuse_unknown_pods(OUTPUT_FILTER));
        rules.extend(self.masquerade());
        rules
    }

    /// Node ports on 127.0.0.1 need `route_localnet` on the pods' links, which alone would let pods reach whatever the node
    /// listens for on its loopback (CVE-2020-8558). Answers to the node's own packets carry the gateway's address here,
    /// before connection tracking has translated them.
    fn shield_loopback(&self) -> Rule {
        self.rule(RAW).match_iif_prefix(POD_LINK_PREFIX).match_daddr_v4(Ipv4Addr::new(127, 0, 0, 0), 8).drop()
    }

    fn enter_services(&self, chain: &str) -> Rule {
        let rule = self
            .rule(chain)
            .expr(load_destination(WORD_0))
            .expr(load_protocol(WORD_1))
            .expr(load_port(WORD_2));
        rule.expr(LookupExpr::new(SERVICES, WORD_0).dreg(Register::Verdict))
    }

    fn enter_node_ports(&self, chain: &str) -> Rule {
        let rule = self.rule(chain).match_fib_type(FibFlags::DADDR, RouteType::Local);
        let rule = rule.expr(load_protocol(WORD_0)).expr(load_port(WORD_1));
        rule.expr(LookupExpr::new(NODE_PORTS, WORD_0).dreg(Register::Verdict))
    }

    /// Packets connection tracking cannot place (a late retransmission, a full table) are not translated; passed on they
    /// would show the receiver an address it never spoke to, and its reset would kill the healthy connection.
    fn drop_half_known(&self) -> [Rule; 2] {
        [
            self.rule(FORWARD)
                .match_saddr_v4(self.pods.network(), self.pods.prefix())
                .match_ct_state(CtState::INVALID)
                .drop(),
            self.rule(FORWARD)
                .match_daddr_v4(self.pods.network(), self.pods.prefix())
                .match_ct_state(CtState::INVALID)
                .drop(),
        ]
    }

    /// What is still addressed to the service range after the services had their turn has no endpoint.
    fn refuse_unknown_services(&self, chain: &str) -> [Rule; 2] {
        let unknown = || self.rule(chain).match_daddr_v4(self.services.network(), self.services.prefix());
        [unknown().reject_tcp_reset(), unknown().reject_icmp(PORT_UNREACHABLE)]
    }

    /// Only what is addressed to no pod is routed to the anchor, which would swallow it; the sender shall know at once.
    fn refuse_unknown_pods(&self, chain: &str) -> Rule {
        self.rule(chain).match_oif(&self.anchor).reject_icmp(HOST_UNREACHABLE)
    }

    /// A packet of the node to a service has got its route to the pod, but the rules still see the link it was meant for
    /// before it was translated, which is the anchor.
    fn pass_translated(&self) -> Rule {
        self.rule(OUTPUT_FILTER).match_ct_status(CtStatus::DST_NAT).accept()
    }

    /// A pod's packet to itself through a service comes in and goes out by one link, for which the kernel would tell the
    /// pod of a shorter way, which does not exist. The machine-wide switch is stronger than the link's, so it is not
    /// enough to turn it off there, and not ours to turn off everywhere.
    fn drop_redirects(&self) -> Rule {
        self.rule(OUTPUT_FILTER)
            .match_daddr_v4(self.pods.network(), self.pods.prefix())
            .match_icmp_type(REDIRECT)
            .drop()
    }

    fn masquerade(&self) -> [Rule; 3] {
        let rule = || self.rule(POSTROUTING);
        // With random ports two pods that use the same one do not race for it, which loses packets.
        let outwards = rule()
            .match_saddr_v4(self.pods.network(), self.pods.prefix())
            .match_daddr_v4_not(self.pods.network(), self.pods.prefix())
            .nat(NatStatement::masquerade().fully_random());
        // The links of pods have no address to take, so it is named.
        let by_gateway = || NatStatement::snat(self.gateway).fully_random();
        let hairpins = rule()
            .expr(load_source(WORD_0))
            .expr(load_destination(WORD_1))
            .expr(LookupExpr::new(HAIRPINS, WORD_0))
            .nat(by_gateway());
        let from_loopback = rule()
            .match_saddr_v4(Ipv4Addr::new(127, 0, 0, 0), 8)
            .match_daddr_v4(self.pods.network(), self.pods.prefix())
            .nat(by_gateway());
        [outwards, hairpins, from_loopback]
    }

    /// The one rule of a balancer's chain: key with a number in words 0 to 3, endpoint into words 4 and 5, translate.
    fn balance(&self, chain: &str, balancer: Balancer) -> Rule {
        let (rule, map, number) = if balancer.node_port {
            (self.rule(chain).expr(load_protocol(WORD_0)).expr(load_port(WORD_1)), NODE_ENDPOINTS, WORD_2)
        } else {
            let rule = self.rule(chain).expr(load_destination(WORD_0)).expr(load_protocol(WORD_1));
            (rule.expr(load_port(WORD_2)), ENDPOINTS, WORD_3)
        };
        draw(rule, balancer, number)
            .expr(LookupExpr::new(map, WORD_0).dreg(TARGET_ADDRESS))
            .expr(translate_destination(TARGET_ADDRESS, TARGET_PORT))
    }
}

fn base_chains() -> [(&'static str, BaseChain); 6] {
    [
        (RAW, BaseChain::filter(FilterHook::Prerouting, Priority::Raw)),
        (PREROUTING, BaseChain::nat(NatHook::Prerouting, Priority::DstNat)),
        (OUTPUT, BaseChain::nat(NatHook::Output, Priority::DstNat)),
        (FORWARD, BaseChain::filter(FilterHook::Forward, Priority::Filter)),
        (OUTPUT_FILTER, BaseChain::filter(FilterHook::Output, Priority::Filter)),
        (POSTROUTING, BaseChain::nat(NatHook::Postrouting, Priority::SrcNat)),
    ]
}

fn target_type() -> SetDataType {
    SetDataType::Value(SetKeyType::Concat(vec![SetKeyType::Ipv4Addr, SetKeyType::InetService]))
}
