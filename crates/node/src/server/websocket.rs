//! From an HTTP request to a WebSocket with an agreed subprotocol (RFC 6455, section 4.2).

use http::header::AsHeaderName;
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode};
use hyper::body::Incoming;
use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper_util::rt::TokioIo;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Role, WebSocketConfig};

use super::HttpError;
use super::body::NodeBody;

const CONNECTION: &str = "connection";
const UPGRADE: &str = "upgrade";
const KEY: &str = "sec-websocket-key";
const ACCEPT: &str = "sec-websocket-accept";
const PROTOCOL: &str = "sec-websocket-protocol";
/// Largest message a client may send. kubectl sends at most 32 KiB at once; a bound keeps a broken client small.
const MESSAGE_LIMIT: usize = 1 << 20;

/// A connection that will be a WebSocket once the answer has been sent.
pub(crate) struct Upgrade {
    pub(crate) protocol: &'static str,
    on_upgrade: OnUpgrade,
}

/// Everything has been said (code 1000).
pub(crate) fn normal_close() -> CloseFrame {
    CloseFrame { code: CloseCode::Normal, reason: "".into() }
}

/// The stream after the upgrade.
pub(crate) type Socket = WebSocketStream<TokioIo<Upgraded>>;

impl Upgrade {
    /// Waits for the connection.
    pub(crate) async fn socket(self) -> Result<Socket, hyper::Error> {
        let upgraded = self.on_upgrade.await?;
        let config = WebSocketConfig::default()
            .max_message_size(Some(MESSAGE_LIMIT))
            .max_frame_size(Some(MESSAGE_LIMIT))
            // What is written goes out at once: a terminal's echo must not wait in a buffer.
            .write_buffer_size(0);
        Ok(WebSocketStream::from_raw_socket(TokioIo::new(upgraded), Role::Server, Some(config)).await)
    }
}

/// Accepts the upgrade with the first protocol of the client that is in `supported`. A client that names none gets the
/// empty protocol, if that is supported.
///
/// # Errors
/// 400 when the request is no upgrade or no protocol is common.
pub(crate) fn accept(
    request: &mut Request<Incoming>,
    supported: &[&'static str],
) -> Result<(Response<NodeBody>, Upgrade), HttpError> {
    let headers = request.headers();
    if !has_token(headers, CONNECTION, "upgrade") || !has_token(headers, UPGRADE, "websocket") {
        return Err(HttpError::bad_request(
            "this resource needs an upgrade of the connection to a WebSocket or to SPDY/3.1",
        ));
    }
    let key = headers.get(KEY).ok_or_else(|| HttpError::bad_request("Sec-WebSocket-Key is missing"))?;
    let accept = derive_accept_key(key.as_bytes());
    let protocol = choose(headers, supported)?;
    let mut response = Response::new(NodeBody::empty());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let answer = response.headers_mut();
    answer.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    answer.insert(UPGRADE, HeaderValue::from_static("websocket"));
    if let Ok(accept) = HeaderValue::from_str(&accept) {
        answer.insert(ACCEPT, accept);
    }
    if !protocol.is_empty() {
        answer.insert(PROTOCOL, HeaderValue::from_static(protocol));
    }
    Ok((response, Upgrade { protocol, on_upgrade: hyper::upgrade::on(request) }))
}

/// The elements of a header that is a list, repeated or not.
pub(super) fn tokens(headers: &HeaderMap, name: impl AsHeaderName) -> impl Iterator<Item = &str> {
    headers
        .get_all(name)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|text| text.split(','))
        .map(str::trim)
}

pub(super) fn has_token(headers: &HeaderMap, name: impl AsHeaderName, token: &str) -> bool {
    tokens(headers, name).any(|known| known.eq_ignore_ascii_case(token))
}

fn choose(headers: &HeaderMap, supported: &[&'static str]) -> Result<&'static str, HttpError> {
    let mut asked = tokens(headers, PROTOCOL).peekable();
    if asked.peek().is_none() && supported.contains(&"") {
        return Ok("");
    }
    asked.find_map(|name| supported.iter().find(|known| **known == name).copied()).ok_or_else(|| {
        HttpError::bad_request(format!(
            "none of the subprotocols is supported; these are: {}",
            supported.join(", ")
        ))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_clients_first_choice_counts() {
        let headers = |text: Option<&'static str>| {
            let mut headers = HeaderMap::new();
            if let Some(text) = text {
                headers.insert(PROTOCOL, HeaderValue::from_static(text));
            }
            headers
        };
        let supported = &["v5.channel.k8s.io", "v4.channel.k8s.io", ""];
        let rows = [
            (Some("v4.channel.k8s.io, v5.channel.k8s.io"), Some("v4.channel.k8s.io")),
            (Some("base64.channel.k8s.io,v5.channel.k8s.io"), Some("v5.channel.k8s.io")),
            (Some("other"), None),
            (None, Some("")),
        ];
        for (asked, expected) in rows {
            assert_eq!(choose(&headers(asked), supported).ok(), expected, "{asked:?}");
        }
    }
}
