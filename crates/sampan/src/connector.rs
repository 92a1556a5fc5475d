//! What the API server reaches the world with: memory instead of a socket to the node of the same process, and names of
//! hosts.

use std::net::SocketAddr;

use async_trait::async_trait;
use sampan_apiserver::{NodeConnector, Resolver, Stream};
use sampan_node::Node;

/// Bytes on their way in each direction before the writer waits.
const BUFFER: usize = 64 * 1024;

/// Reaches the one node there is.
pub(crate) struct LocalNode {
    pub(crate) name: String,
    pub(crate) node: Node,
}

#[async_trait]
impl NodeConnector for LocalNode {
    async fn node(&self, name: &str) -> std::io::Result<Box<dyn Stream>> {
        if name != self.name {
            return Err(std::io::Error::new(
                std::io::ErrorKind::NotFound,
                format!("node {name} is not known"),
            ));
        }
        let (ours, theirs) = tokio::io::duplex(BUFFER);
        let node = self.node.clone();
        tokio::spawn(async move { node.serve(theirs).await });
        Ok(Box::new(ours))
    }

    async fn address(&self, address: SocketAddr) -> std::io::Result<Box<dyn Stream>> {
        Ok(Box::new(tokio::net::TcpStream::connect(address).await?))
    }
}

/// Names of hosts outside of the cluster, as this machine knows them.
pub(crate) struct HostNames;

#[async_trait]
impl Resolver for HostNames {
    async fn resolve(&self, name: &str) -> std::io::Result<Vec<std::net::IpAddr>> {
        sampan_image::resolve(name).await.map_err(std::io::Error::other)
    }
}
