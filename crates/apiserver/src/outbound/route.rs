//! From the name of a service to addresses: pure, over what the watch cache knows.

use std::net::{IpAddr, SocketAddr};

use serde_json::Value;

/// Where a service is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Route {
    /// Its cluster address, behind which the network chooses an endpoint; without one its ready endpoints.
    Addresses(Vec<SocketAddr>),
    /// Somewhere else, by name.
    External(String),
}

/// Why a service cannot be reached. The variants are the reasons of an `APIService` that is not available; the words are
/// upstream's (`available_controller.go` of kube-aggregator).
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum NoRoute {
    /// There is no such service.
    #[error("service/{name} in {namespace:?} is not present")]
    ServiceNotFound { namespace: String, name: String },
    /// It has no such port.
    #[error("service/{name} in {namespace:?} is not listening on port {port}")]
    ServicePortError { namespace: String, name: String, port: u16 },
    /// Nothing says who is behind it.
    #[error("cannot find endpointslices for service/{name} in {namespace:?}")]
    EndpointsNotFound { namespace: String, name: String },
    /// Nobody is behind it.
    #[error(
        "endpointslices for service/{name} in {namespace:?} have no addresses with port name {port_name:?}"
    )]
    MissingEndpoints { namespace: String, name: String, port_name: String },
}

impl NoRoute {
    /// Reason of the condition.
    pub(crate) fn reason(&self) -> &'static str {
        match self {
            Self::ServiceNotFound { .. } => "ServiceNotFound",
            Self::ServicePortError { .. } => "ServicePortError",
            Self::EndpointsNotFound { .. } => "EndpointsNotFound",
            Self::MissingEndpoints { .. } => "MissingEndpoints",
        }
    }
}

/// Finds the way to `port` of a service with these endpoint slices.
pub(crate) fn route(
    (namespace, name): (&str, &str),
    service: Option<&Value>,
    slices: &[Value],
    port: u16,
) -> Result<Route, NoRoute> {
    let (namespace, name) = (namespace.to_owned(), name.to_owned());
    let Some(service) = service else { return Err(NoRoute::ServiceNotFound { namespace, name }) };
    let spec = &service["spec"];
    if spec["type"] == "ExternalName" {
        return Ok(Route::External(spec["externalName"].as_str().unwrap_or_default().to_owned()));
    }
    let ports = spec["ports"].as_array().into_iter().flatten();
    let Some(entry) = ports.into_iter().find(|entry| entry["port"] == port) else {
        return Err(NoRoute::ServicePortError { namespace, name, port });
    };
    if slices.is_empty() {
        return Err(NoRoute::EndpointsNotFound { namespace, name });
    }
    let port_name = entry["name"].as_str().unwrap_or_default();
    let endpoints: Vec<SocketAddr> =
        slices.iter().flat_map(|slice| ready_addresses(slice, port_name)).collect();
    if endpoints.is_empty() {
        return Err(NoRoute::MissingEndpoints { namespace, name, port_name: port_name.to_owned() });
    }
    let cluster_ip = spec["clusterIP"].as_str().and_then(|text| text.parse::<IpAddr>().ok());
    Ok(Route::Addresses(cluster_ip.map_or(endpoints, |address| vec![SocketAddr::new(address, port)])))
}

/// Endpoints of a slice that take connections for the port of this name.
fn ready_addresses(slice: &Value, port_name: &str) -> Vec<SocketAddr> {
    let ports = slice["ports"].as_array().into_iter().flatten();
    let port = ports
        .into_iter()
        .find(|port| port["name"].as_str().unwrap_or_default() == port_name)
        .and_then(|port| u16::try_from(port["port"].as_u64()?).ok());
    let Some(port) = port else { return Vec::new() };
    let endpoints = slice["endpoints"].as_array().into_iter().flatten();
    endpoints
        // An endpoint that says nothing is ready, as the API defines it.
        .filter(|endpoint| endpoint["conditions"]["ready"].as_bool().unwrap_or(true))
        .filter_map(|endpoint| endpoint["addresses"][0].as_str()?.parse::<IpAddr>().ok())
        .map(|address| SocketAddr::new(address, port))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn routes() {
        let service = |cluster_ip: &str| json!({"spec": {"clusterIP": cluster_ip, "ports": [{"port": 443, "name": "https"}]}});
        let slice = |ready: Value, name: &str| {
            json!({
                "ports": [{"name": name, "port": 8443}],
                "endpoints": [{"addresses": ["10.42.0.7"], "conditions": {"ready": ready}}],
            })
        };
        let (ready, waiting) = (slice(json!(true), "https"), slice(json!(false), "https"));
        let external = json!({"spec": {"type": "ExternalName", "externalName": "a.example"}});
        let addresses = |text: &str| Ok(Route::Addresses(vec![text.parse().expect("an address")]));
        let rows: Vec<(&str, Option<Value>, Vec<Value>, u16, Result<Route, &str>)> = vec![
            (
                "cluster address",
                Some(service("10.43.0.9")),
                vec![ready.clone()],
                443,
                addresses("10.43.0.9:443"),
            ),
            ("headless", Some(service("None")), vec![ready.clone()], 443, addresses("10.42.0.7:8443")),
            (
                "readiness unknown",
                Some(service("None")),
                vec![slice(Value::Null, "https")],
                443,
                addresses("10.42.0.7:8443"),
            ),
            ("elsewhere", Some(external), vec![], 443, Ok(Route::External("a.example".to_owned()))),
            ("missing", None, vec![], 443, Err("ServiceNotFound")),
            ("other port", Some(service("10.43.0.9")), vec![ready], 80, Err("ServicePortError")),
            ("no slice", Some(service("10.43.0.9")), vec![], 443, Err("EndpointsNotFound")),
            ("nobody ready", Some(service("10.43.0.9")), vec![waiting], 443, Err("MissingEndpoints")),
            (
                "port of another name",
                Some(service("10.43.0.9")),
                vec![slice(json!(true), "other")],
                443,
                Err("MissingEndpoints"),
            ),
        ];
        for (what, service, slices, port, expected) in rows {
            let found = route(("ns", "s"), service.as_ref(), &slices, port);
            assert_eq!(found.as_ref().map_err(NoRoute::reason), expected.as_ref().map_err(|r| *r), "{what}");
        }
    }
}
