//! The gRPC health protocol, `grpc.health.v1.Health/Check`: one call over HTTP/2 without TLS.
//!
//! The two messages have one field each, so they are written and read here; a gRPC library would be larger than this
//! crate. Names and texts are those of `k8s.io/kubernetes/pkg/probe/grpc`.

use std::time::Duration;

use http::{HeaderMap, Request};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Bytes;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::TcpStream;

use super::{AbortOnDrop, BODY_LIMIT, ProbeFailure, USER_AGENT, connect, failure};

const CHECK: &str = "/grpc.health.v1.Health/Check";
/// Flag "not compressed" and the length of the message.
const PREFIX: usize = 5;
/// Status codes of gRPC, by number.
const CODES: &[&str] = &[
    "OK",
    "Canceled",
    "Unknown",
    "InvalidArgument",
    "DeadlineExceeded",
    "NotFound",
    "AlreadyExists",
    "PermissionDenied",
    "ResourceExhausted",
    "FailedPrecondition",
    "Aborted",
    "OutOfRange",
    "Unimplemented",
    "Internal",
    "Unavailable",
    "DataLoss",
    "Unauthenticated",
];
/// `HealthCheckResponse.ServingStatus`, by number.
const STATUSES: &[&str] = &["UNKNOWN", "SERVING", "NOT_SERVING", "SERVICE_UNKNOWN"];

/// Asks whether a service is healthy; the empty name means the server as a whole.
pub(super) async fn ask(host: &str, port: u16, service: &str, timeout: Duration) -> Result<(), ProbeFailure> {
    let stream = connect(host, port, timeout).await?;
    let took_too_long = || {
        failure(format!("timeout: health rpc did not complete within {}", crate::time::go_duration(timeout)))
    };
    let authority = format!("{host}:{port}");
    let called = tokio::time::timeout(timeout, call(stream, &authority, service));
    match called.await.map_err(|_| took_too_long())?? {
        Answer::Serving(1) => Ok(()),
        Answer::Serving(status) => Err(failure(format!(
            "service unhealthy (responded with {:?})",
            usize::try_from(status)
                .ok()
                .and_then(|status| STATUSES.get(status))
                .map_or_else(|| status.to_string(), |name| (*name).to_owned())
        ))),
        Answer::Refused { code: "Unimplemented", text } => Err(failure(format!(
            "error: this server does not implement the grpc health protocol (grpc.health.v1.Health): {text}"
        ))),
        Answer::Refused { code, text } => {
            Err(failure(format!("error: health rpc probe failed: rpc error: code = {code} desc = {text}")))
        }
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Answer {
    /// The number of a serving status.
    Serving(u64),
    Refused {
        code: &'static str,
        text: String,
    },
}

async fn call(stream: TcpStream, authority: &str, service: &str) -> Result<Answer, ProbeFailure> {
    let broken = |error: &dyn std::fmt::Display| {
        failure(format!("error: health rpc probe failed: rpc error: code = Unavailable desc = {error}"))
    };
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
            .await
            .map_err(|error| broken(&error))?;
    let connection = AbortOnDrop(tokio::spawn(async move {
        let _ = connection.await;
    }));
    let request = Request::post(format!("http://{authority}{CHECK}"))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .header("user-agent", USER_AGENT)
        .body(Full::new(question(service)))
        .map_err(|error| broken(&error))?;
    let response = sender.send_request(request).await.map_err(|error| broken(&error))?;
    if response.status() != http::StatusCode::OK {
        return Err(broken(&format!("unexpected HTTP status code {}", response.status().as_u16())));
    }
    // A refusal may come without a body, with its code among the headers.
    let early = refusal(response.headers());
    let body = Limited::new(response.into_body(), BODY_LIMIT).collect().await;
    let body = body.map_err(|error| broken(&error))?;
    drop(connection);
    let late = body.trailers().and_then(refusal);
    if let Some(refused) = early.or(late) {
        return Ok(refused);
    }
    serving_status(&body.to_bytes()).map(Answer::Serving).ok_or_else(|| broken(&"the answer is malformed"))
}

/// What headers or trailers say about a call that failed.
fn refusal(headers: &HeaderMap) -> Option<Answer> {
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    let code = text("grpc-status")?;
    if code == "0" {
        return None;
    }
    let name = code.parse::<usize>().ok().and_then(|code| CODES.get(code)).copied().unwrap_or("Unknown");
    Some(Answer::Refused { code: name, text: text("grpc-message").unwrap_or_default().to_owned() })
}

/// `HealthCheckRequest { service }` with its prefix.
fn question(service: &str) -> Bytes {
    let mut message = Vec::new();
    if !service.is_empty() {
        // Field 1, a text.
        message.push(0x0a);
        put_number(&mut message, service.len());
        message.extend_from_slice(service.as_bytes());
    }
    let mut framed = vec![0];
    framed.extend_from_slice(&u32::try_from(message.len()).unwrap_or(u32::MAX).to_be_bytes());
    framed.append(&mut message);
    framed.into()
}

/// Seven bits at a time, the lowest first.
fn put_number(out: &mut Vec<u8>, mut number: usize) {
    while number >= 0x80 {
        out.push((number & 0x7f) as u8 | 0x80);
        number >>= 7;
    }
    out.push(number as u8);
}

/// The status in a framed `HealthCheckResponse`; a field that is not there has its first value. Fields of later
/// versions are not understood, and there are none.
fn serving_status(framed: &[u8]) -> Option<u64> {
    let (prefix, message) = framed.split_at_checked(PREFIX)?;
    let length = u32::from_be_bytes(prefix[1..].try_into().ok()?);
    if prefix[0] != 0 || usize::try_from(length).ok()? != message.len() {
        return None;
    }
    match message.split_first() {
        None => Some(0),
        // Field 1, a number.
        Some((0x08, number)) => {
            let (last, rest) = number.split_last()?;
            let is_whole = number.len() <= 9 && last & 0x80 == 0 && rest.iter().all(|byte| byte & 0x80 != 0);
            is_whole.then(|| number.iter().rev().fold(0, |sum, byte| (sum << 7) | u64::from(byte & 0x7f)))
        }
        Some(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use http::{HeaderValue, Response};
    use hyper::body::Frame;
    use hyper::service::service_fn;
    use tokio::net::TcpListener;

    use super::*;

    #[test]
    fn messages() {
        assert_eq!(question(""), [0, 0, 0, 0, 0][..]);
        assert_eq!(question("ab"), [0, 0, 0, 0, 4, 0x0a, 2, b'a', b'b'][..]);
        assert_eq!(question(&"x".repeat(200))[..8], [0, 0, 0, 0, 203, 0x0a, 0xc8, 1]);
        let rows: [(&[u8], Option<u64>); 8] = [
            (&[0, 0, 0, 0, 0], Some(0)),
            (&[0, 0, 0, 0, 2, 8, 1], Some(1)),
            (&[0, 0, 0, 0, 3, 8, 0x80, 1], Some(128)),
            (&[0, 0, 0, 0, 2, 8, 0x80], None),
            (&[0, 0, 0, 0, 3, 8, 1], None),
            (&[1, 0, 0, 0, 2, 8, 1], None),
            (&[0, 0, 0, 0, 1, 8], None),
            (&[0, 0], None),
        ];
        for (bytes, expected) in rows {
            assert_eq!(serving_status(bytes), expected, "{bytes:?}");
        }
    }

    /// A server that gives one answer to everything.
    async fn serve(body: &'static [u8], status: &'static str, text: &'static str) -> u16 {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
        let port = listener.local_addr().expect("address").port();
        tokio::spawn(async move {
            let (stream, _) = listener.accept().await.expect("accept");
            let service = service_fn(move |request: Request<hyper::body::Incoming>| async move {
                assert_eq!(
                    (request.uri().path(), request.headers()["te"].as_bytes()),
                    (CHECK, &b"trailers"[..])
                );
                let asked = request.into_body().collect().await.expect("question").to_bytes();
                assert_eq!(asked, question("a"));
                let mut trailers = HeaderMap::new();
                trailers.insert("grpc-status", HeaderValue::from_static(status));
                trailers.insert("grpc-message", HeaderValue::from_static(text));
                let frames = [Frame::data(Bytes::from_static(body)), Frame::trailers(trailers)];
                let frames = futures::stream::iter(frames.map(Ok::<_, Infallible>));
                Ok::<_, Infallible>(Response::new(http_body_util::StreamBody::new(frames)))
            });
            let server = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
            let _ = server.serve_connection(TokioIo::new(stream), service).await;
        });
        port
    }

    #[tokio::test]
    async fn answers_decide() {
        let rows: [(&'static [u8], &str, &str, Result<(), &str>); 4] = [
            (&[0, 0, 0, 0, 2, 8, 1], "0", "", Ok(())),
            (&[0, 0, 0, 0, 2, 8, 2], "0", "", Err("service unhealthy (responded with \"NOT_SERVING\")")),
            (
                &[],
                "5",
                "unknown service",
                Err("error: health rpc probe failed: rpc error: code = NotFound desc = unknown service"),
            ),
            (
                &[],
                "12",
                "no",
                Err(
                    "error: this server does not implement the grpc health protocol (grpc.health.v1.Health): no",
                ),
            ),
        ];
        for (body, status, text, expected) in rows {
            let port = serve(body, status, text).await;
            let result = ask("127.0.0.1", port, "a", Duration::from_secs(5)).await;
            assert_eq!(result, expected.map_err(failure), "{status}");
        }
    }
}
