//! How a container is asked whether it is well: a command, an HTTP request, a TCP connection, a gRPC health check.
//!
//! One question, one answer; when and how often is the business of `pods::probing`.

mod grpc;
mod tls;

use std::net::IpAddr;
use std::time::Duration;

use http_body_util::{BodyExt, Empty, Limited};
use hyper::body::Bytes;
use hyper_util::rt::TokioIo;
use k8s_openapi::api::core::v1::{Container, HTTPGetAction, Probe};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use sampan_runtime::{ContainerId, Runtime, RuntimeError};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;

/// HTTP hooks have no timeout of their own upstream but the client's; a container that never answers is given up here.
pub(crate) const HOOK_TIMEOUT: Duration = Duration::from_secs(30);
/// Upstream reads at most this much of an answer (`maxRespBodyLength`).
const BODY_LIMIT: usize = 10 * 1024;

/// What probes call themselves.
const USER_AGENT: &str = "kube-probe/1.36";

/// Why a probe did not succeed; the text is shown to users.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub(crate) struct ProbeFailure(pub(crate) String);

fn failure(text: impl Into<String>) -> ProbeFailure {
    ProbeFailure(text.into())
}

/// Asks once.
pub(crate) async fn ask(
    runtime: &dyn Runtime,
    probe: &Probe,
    container: &Container,
    id: &ContainerId,
    pod_ip: &str,
) -> Result<(), ProbeFailure> {
    let timeout = Duration::from_secs(u64::try_from(probe.timeout_seconds.unwrap_or(1)).unwrap_or(1).max(1));
    if let Some(exec) = &probe.exec {
        return ask_command(runtime, id, exec.command.clone().unwrap_or_default(), timeout).await;
    }
    if let Some(get) = &probe.http_get {
        return http_get(get, container, pod_ip, timeout).await;
    }
    if let Some(socket) = &probe.tcp_socket {
        let host = socket.host.as_deref().filter(|host| !host.is_empty()).unwrap_or(pod_ip);
        let port = port(&socket.port, container)?;
        return connect(host, port, timeout).await.map(drop);
    }
    if let Some(action) = &probe.grpc {
        let port = port(&IntOrString::Int(action.port), container)?;
        return grpc::ask(pod_ip, port, action.service.as_deref().unwrap_or_default(), timeout).await;
    }
    Err(failure("missing probe handler"))
}

async fn ask_command(
    runtime: &dyn Runtime,
    id: &ContainerId,
    command: Vec<String>,
    timeout: Duration,
) -> Result<(), ProbeFailure> {
    match runtime.exec_sync(id, command, Some(timeout)).await {
        Ok(result) if result.exit_code == 0 => Ok(()),
        Ok(result) => {
            let mut output = result.stdout;
            output.extend_from_slice(&result.stderr);
            Err(failure(String::from_utf8_lossy(&output).into_owned()))
        }
        Err(RuntimeError::Timeout(_)) => {
            Err(failure(format!("command timed out after {}", crate::time::go_duration(timeout))))
        }
        Err(error) => Err(failure(crate::error::chain(&error))),
    }
}

/// The port a probe or hook means: a number, or the name of a port of the container.
pub(crate) fn port(port: &IntOrString, container: &Container) -> Result<u16, ProbeFailure> {
    let number = match port {
        IntOrString::Int(number) => Some(*number),
        IntOrString::String(name) => {
            let named = container.ports.iter().flatten().find(|port| port.name.as_deref() == Some(name));
            named.map(|port| port.container_port).or_else(|| name.parse().ok())
        }
    };
    number
        .and_then(|number| u16::try_from(number).ok())
        .filter(|number| *number > 0)
        .ok_or_else(|| failure(format!("couldn't find port: {port:?}")))
}

/// Names are not looked up: probes go to addresses, and `localhost` is the node's.
async fn connect(host: &str, port: u16, timeout: Duration) -> Result<TcpStream, ProbeFailure> {
    let address: IpAddr = match host {
        "localhost" => IpAddr::from([127, 0, 0, 1]),
        host => host.parse().map_err(|_| failure(format!("dial tcp: lookup {host}: not an address")))?,
    };
    match tokio::time::timeout(timeout, TcpStream::connect((address, port))).await {
        Ok(Ok(stream)) => Ok(stream),
        Ok(Err(error)) => Err(failure(format!("dial tcp {address}:{port}: connect: {error}"))),
        Err(_) => Err(failure(format!("dial tcp {address}:{port}: i/o timeout"))),
    }
}

/// One GET; any status from 200 to 399 is success. With HTTPS any certificate will do.
pub(crate) async fn http_get(
    get: &HTTPGetAction,
    container: &Container,
    pod_ip: &str,
    timeout: Duration,
) -> Result<(), ProbeFailure> {
    let is_https = get.scheme.as_deref() == Some("HTTPS");
    let host = get.host.as_deref().filter(|host| !host.is_empty()).unwrap_or(pod_ip);
    let port = port(&get.port, container)?;
    let path = get.path.as_deref().filter(|path| !path.is_empty()).unwrap_or("/");
    let path = if path.starts_with('/') { path.to_string() } else { format!("/{path}") };
    let scheme = if is_https { "https" } else { "http" };
    let url = format!("{scheme}://{host}:{port}{path}");
    let request = request(get, &path, host, port)?;
    match tokio::time::timeout(timeout, get_once(request, host, port, is_https, timeout)).await {
        Ok(Ok((status, _))) if (200..400).contains(&status) => Ok(()),
        Ok(Ok((status, _))) => Err(failure(format!("HTTP probe failed with statuscode: {status}"))),
        Ok(Err(cause)) => Err(failure(format!("Get \"{url}\": {cause}"))),
        Err(_) => Err(failure(format!(
            "Get \"{url}\": context deadline exceeded (Client.Timeout exceeded while awaiting headers)"
        ))),
    }
}

fn request(
    get: &HTTPGetAction,
    path: &str,
    host: &str,
    port: u16,
) -> Result<http::Request<Empty<Bytes>>, ProbeFailure> {
    let mut request = http::Request::get(path);
    let own = get.http_headers.as_deref().unwrap_or_default();
    let has = |name: &str| own.iter().any(|header| header.name.eq_ignore_ascii_case(name));
    if !has("host") {
        request = request.header("Host", format!("{host}:{port}"));
    }
    if !has("user-agent") {
        request = request.header("User-Agent", USER_AGENT);
    }
    if !has("accept") {
        request = request.header("Accept", "*/*");
    }
    request = request.header("Connection", "close");
    for header in own {
        request = request.header(&header.name, &header.value);
    }
    request.body(Empty::new()).map_err(|error| failure(format!("unusable request: {error}")))
}

async fn get_once(
    request: http::Request<Empty<Bytes>>,
    host: &str,
    port: u16,
    is_https: bool,
    timeout: Duration,
) -> Result<(u16, Bytes), ProbeFailure> {
    let stream = connect(host, port, timeout).await?;
    if !is_https {
        return exchange(request, stream).await;
    }
    let address = stream.peer_addr().map_err(|error| failure(error.to_string()))?.ip();
    let stream = tls::begin(address, stream).await.map_err(|error| failure(error.to_string()))?;
    exchange(request, stream).await
}

async fn exchange<S>(request: http::Request<Empty<Bytes>>, stream: S) -> Result<(u16, Bytes), ProbeFailure>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .map_err(|error| failure(error.to_string()))?;
    // Ends with the exchange: it is dropped, and with it the connection, when this function returns.
    let connection = AbortOnDrop(tokio::spawn(async move {
        let _ = connection.await;
    }));
    let response = sender.send_request(request).await.map_err(|error| failure(error.to_string()))?;
    let status = response.status().as_u16();
    let body = Limited::new(response.into_body(), BODY_LIMIT).collect().await;
    drop(connection);
    // A body longer than the limit does not change the verdict.
    Ok((status, body.map(|body| body.to_bytes()).unwrap_or_default()))
}

struct AbortOnDrop(tokio::task::JoinHandle<()>);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::core::v1::ContainerPort;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    #[test]
    fn ports_by_number_and_name() {
        let named =
            ContainerPort { name: Some("web".into()), container_port: 8080, ..ContainerPort::default() };
        let container = Container { ports: Some(vec![named]), ..Container::default() };
        let rows = [
            (IntOrString::Int(80), Some(80)),
            (IntOrString::Int(0), None),
            (IntOrString::Int(70_000), None),
            (IntOrString::String("web".into()), Some(8080)),
            (IntOrString::String("90".into()), Some(90)),
            (IntOrString::String("none".into()), None),
        ];
        for (given, expected) in rows {
            assert_eq!(port(&given, &container).ok(), expected);
        }
    }

    async fn answer_once(answer: &'static str) -> u16 {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
        let port = listener.local_addr().expect("address").port();
        tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.expect("accept");
            let mut buffer = [0; 4096];
            let _ = stream.read(&mut buffer).await;
            let _ = stream.write_all(answer.as_bytes()).await;
        });
        port
    }

    #[tokio::test]
    async fn statuses_decide() {
        let rows = [
            ("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok", Ok(())),
            ("HTTP/1.1 302 Found\r\nlocation: /\r\ncontent-length: 0\r\n\r\n", Ok(())),
            (
                "HTTP/1.1 503 No\r\ncontent-length: 0\r\n\r\n",
                Err(failure("HTTP probe failed with statuscode: 503")),
            ),
        ];
        for (answer, expected) in rows {
            let port = i32::from(answer_once(answer).await);
            let get = HTTPGetAction { port: IntOrString::Int(port), ..HTTPGetAction::default() };
            let result = http_get(&get, &Container::default(), "127.0.0.1", Duration::from_secs(5)).await;
            assert_eq!(result, expected, "{answer}");
        }
    }

    /// A server with a certificate nobody has signed.
    async fn answer_once_with_tls(answer: &'static str) -> u16 {
        let key = rcgen::generate_simple_self_signed(["elsewhere.example".to_owned()]).expect("certificate");
        let provider = std::sync::Arc::new(rustls::crypto::ring::default_provider());
        let private = rustls::pki_types::PrivateKeyDer::Pkcs8(key.signing_key.serialize_der().into());
        let config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_no_client_auth()
            .with_single_cert(vec![key.cert.der().clone()], private)
            .expect("configuration");
        let acceptor = tokio_rustls::TlsAcceptor::from(std::sync::Arc::new(config));
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
        let port = listener.local_addr().expect("address").port();
        tokio::spawn(async move {
            let (stream, _) = listener.accept().await.expect("accept");
            let mut stream = acceptor.accept(stream).await.expect("handshake");
            let mut buffer = [0; 4096];
            let _ = stream.read(&mut buffer).await;
            let _ = stream.write_all(answer.as_bytes()).await;
            let _ = stream.shutdown().await;
        });
        port
    }

    #[tokio::test]
    async fn any_certificate_will_do() {
        let ok = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";
        let rows = [(answer_once_with_tls(ok).await, true), (answer_once(ok).await, false)];
        for (port, is_well) in rows {
            let get = HTTPGetAction {
                port: IntOrString::Int(i32::from(port)),
                scheme: Some("HTTPS".into()),
                ..HTTPGetAction::default()
            };
            let result = http_get(&get, &Container::default(), "127.0.0.1", Duration::from_secs(5)).await;
            assert_eq!(result.is_ok(), is_well, "{result:?}");
        }
    }
}
