//! From an HTTP request to another protocol on the same connection: WebSocket, or SPDY/3.1 as clients before
//! Kubernetes 1.30 ask for it.

use http::header::{CONNECTION, UPGRADE};
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response, StatusCode};
use hyper::body::Incoming;
use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper_util::rt::TokioIo;

use super::HttpError;
use super::body::NodeBody;
use super::websocket;

const SPDY: &str = "SPDY/3.1";
/// Names the protocols above SPDY (`k8s.io/apimachinery/pkg/util/httpstream`).
const STREAM_PROTOCOL: HeaderName = HeaderName::from_static("x-stream-protocol-version");

/// A connection that will speak another protocol once the answer has been sent.
pub(super) enum Upgrade {
    WebSocket(websocket::Upgrade),
    Spdy(SpdyUpgrade),
}

/// A connection that will speak SPDY/3.1.
pub(super) struct SpdyUpgrade {
    pub(super) protocol: &'static str,
    on_upgrade: OnUpgrade,
}

impl Upgrade {
    /// What the streams or channels carry.
    pub(super) fn protocol(&self) -> &'static str {
        match self {
            Self::WebSocket(upgrade) => upgrade.protocol,
            Self::Spdy(upgrade) => upgrade.protocol,
        }
    }
}

impl SpdyUpgrade {
    /// Waits for the connection.
    pub(super) async fn stream(self) -> Result<TokioIo<Upgraded>, hyper::Error> {
        Ok(TokioIo::new(self.on_upgrade.await?))
    }
}

/// Accepts the upgrade the client asks for, with the first of its protocols that is supported.
///
/// # Errors
/// 400 or 403, as upstream, when the request is no upgrade or no protocol is common.
pub(super) fn accept(
    request: &mut Request<Incoming>,
    websocket_protocols: &[&'static str],
    spdy_protocols: &[&'static str],
) -> Result<(Response<NodeBody>, Upgrade), HttpError> {
    if !websocket::has_token(request.headers(), UPGRADE, SPDY) {
        let (response, upgrade) = websocket::accept(request, websocket_protocols)?;
        return Ok((response, Upgrade::WebSocket(upgrade)));
    }
    if !websocket::has_token(request.headers(), CONNECTION, "upgrade") {
        return Err(HttpError::bad_request("unable to upgrade: missing upgrade headers in request"));
    }
    let protocol = choose(request.headers(), spdy_protocols)?;
    let mut response = Response::new(NodeBody::empty());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let answer = response.headers_mut();
    answer.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    answer.insert(UPGRADE, HeaderValue::from_static(SPDY));
    if !protocol.is_empty() {
        answer.insert(STREAM_PROTOCOL, HeaderValue::from_static(protocol));
    }
    let on_upgrade = hyper::upgrade::on(request);
    Ok((response, Upgrade::Spdy(SpdyUpgrade { protocol, on_upgrade })))
}

/// The first protocol of the client that is supported; the oldest clients name none.
fn choose(headers: &HeaderMap, supported: &[&'static str]) -> Result<&'static str, HttpError> {
    let asked: Vec<&str> = websocket::tokens(headers, STREAM_PROTOCOL).collect();
    if asked.is_empty() && supported.contains(&"") {
        return Ok("");
    }
    let found = asked.iter().find_map(|name| supported.iter().find(|known| *known == name));
    found.copied().ok_or_else(|| {
        let message = format!(
            "unable to upgrade: unable to negotiate protocol: client supports {asked:?}, server accepts {supported:?}"
        );
        HttpError(StatusCode::FORBIDDEN, message)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_clients_first_choice_counts() {
        let supported = &["v4.channel.k8s.io", "v3.channel.k8s.io", ""];
        // Clients repeat the header, or put everything into one.
        let rows: [(&[&'static str], Option<&str>); 5] = [
            (&["v5.channel.k8s.io", "v4.channel.k8s.io"], Some("v4.channel.k8s.io")),
            (&["v3.channel.k8s.io, v4.channel.k8s.io"], Some("v3.channel.k8s.io")),
            (&["v5.channel.k8s.io"], None),
            (&[], Some("")),
            (&["portforward.k8s.io"], None),
        ];
        for (asked, expected) in rows {
            let mut headers = HeaderMap::new();
            for value in asked {
                headers.append(STREAM_PROTOCOL, HeaderValue::from_static(value));
            }
            assert_eq!(choose(&headers, supported).ok(), expected, "{asked:?}");
        }
        assert!(choose(&HeaderMap::new(), &["portforward.k8s.io"]).is_err());
    }
}
