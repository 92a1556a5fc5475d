//! Ranges for a new cluster that nothing else on the machine uses.

use std::net::IpAddr;

use nlink::Route;
use nlink::netlink::Connection;

use crate::names::Names;
use crate::{Ipv4Cidr, NetworkError};

/// Picks a pod range and a service range no route of this machine overlaps: `10.42.0.0/16` and `10.43.0.0/16`, or the
/// next pairs of `10.0.0.0/8` after them. This cluster's own routes do not count, so that asking again for
/// a cluster that is up gives the same. The caller remembers the choice.
///
/// # Errors
/// When the routes cannot be read, or no pair is free (a VPN may route all of `10.0.0.0/8`; then the operator must
/// choose).
pub async fn free_cidrs(name: &str) -> Result<(Ipv4Cidr, Ipv4Cidr), NetworkError> {
    let taken = routed(&Names::of(name).anchor).await?;
    first_free_pair(&taken).ok_or_else(|| NetworkError::NoFreeRange { name: name.to_owned() })
}

/// The destinations of the machine's IPv4 routes, but the default ones and those of the cluster whose anchor is `own`:
/// through the anchor, or to a pod, whose range is the anchor's.
async fn routed(own: &str) -> Result<Vec<Ipv4Cidr>, NetworkError> {
    let failed = || NetworkError::netlink("read the machine's routes");
    let connection = Connection::<Route>::new().map_err(failed())?;
    let own = connection.get_link_by_name(own).await.map_err(failed())?.map(|link| link.ifindex());
    let routes = connection.get_routes().await.map_err(failed())?;
    let (ours, others): (Vec<_>, Vec<_>) = routes
        .iter()
        .filter(|route| route.dst_len() > 0)
        .filter_map(|route| match route.destination() {
            Some(IpAddr::V4(address)) => Some((route.oif(), Ipv4Cidr::masked(*address, route.dst_len()))),
            _ => None,
        })
        .partition(|(link, _)| own.is_some() && *link == own);
    let within_ours = |range: &Ipv4Cidr| {
        ours.iter().any(|(_, mine)| mine.prefix() <= range.prefix() && mine.overlaps(range))
    };
    Ok(others.into_iter().map(|(_, range)| range).filter(|range| !within_ours(range)).collect())
}

/// The first of the candidate pairs that overlaps nothing.
fn first_free_pair(taken: &[Ipv4Cidr]) -> Option<(Ipv4Cidr, Ipv4Cidr)> {
    let free = |range: &Ipv4Cidr| !taken.iter().any(|other| other.overlaps(range));
    let range = |second: u8| Ipv4Cidr::masked([10, second, 0, 0].into(), 16);
    (42..=252)
        .step_by(2)
        .map(|second| (range(second), range(second + 1)))
        .find(|(pods, services)| free(pods) && free(services))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn takes_the_first_pair_that_overlaps_nothing() {
        for (taken, expected) in [
            (vec![], Some("10.42.0.0/16")),
            (vec!["192.168.1.0/24", "172.17.0.0/16"], Some("10.42.0.0/16")),
            (vec!["10.42.0.0/24"], Some("10.44.0.0/16")),
            (vec!["10.43.7.9/32"], Some("10.44.0.0/16")),
            (vec!["10.32.0.0/11"], Some("10.64.0.0/16")),
            (vec!["10.0.0.0/8"], None),
        ] {
            let routes: Vec<Ipv4Cidr> = taken.iter().map(|text| text.parse().unwrap()).collect();
            let pods = first_free_pair(&routes).map(|(pods, _)| pods.to_string());
            assert_eq!(pods.as_deref(), expected, "{taken:?}");
        }
    }
}
