//! Port-forward: a client's connections to ports inside a pod.
//!
//! Two forms: SPDY, many connections at once ([`tunnel`]; kubectl has it inside a WebSocket, older clients plainly), and
//! WebSockets with a pair of channels per port, one connection each.

use std::sync::Arc;

use bytes::{BufMut, Bytes, BytesMut};
use futures::stream::SplitSink;
use futures::{SinkExt, StreamExt};
use http::{Request, Response};
use hyper::body::Incoming;
use sampan_runtime::{Reader, SandboxId, Writer};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::mpsc;
use tokio_tungstenite::tungstenite::Message;

use super::body::NodeBody;
use super::query::Query;
use super::spdy_connection::Carrier;
use super::target::{self, Address};
use super::upgrade::{self, Upgrade};
use super::websocket::Socket;
use super::{HttpError, channel, tunnel};
use crate::context::Context;
use crate::error::chain;

const TUNNELLED: &str = "SPDY/3.1+portforward.k8s.io";
const PLAIN: &str = "portforward.k8s.io";
const CHANNELS: &[&str] = &["v4.channel.k8s.io", "portforward.k8s.io"];
/// Ports of one old-style request; each costs two channels of the one byte that names them.
const PORT_LIMIT: usize = 127;
pub(super) const PIECE: usize = 32 * 1024;
pub(super) const PIECES: usize = 16;

/// `/portForward/{namespace}/{pod}`.
pub(crate) async fn serve(
    context: Arc<Context>,
    address: Address,
    mut request: Request<Incoming>,
) -> Result<Response<NodeBody>, HttpError> {
    let sandbox = target::sandbox(&context, &address).await?;
    let ports = ports(&Query::parse(request.uri().query()))?;
    let mut supported = vec![TUNNELLED];
    if !ports.is_empty() {
        supported.extend_from_slice(CHANNELS);
    }
    let (response, upgrade) = upgrade::accept(&mut request, &supported, &[PLAIN])?;
    tokio::spawn(async move {
        if let Err(error) = serve_upgraded(context, sandbox.id, upgrade, ports).await {
            tracing::debug!(%error, "a client left before its port-forward started");
        }
    });
    Ok(response)
}

async fn serve_upgraded(
    context: Arc<Context>,
    sandbox: SandboxId,
    upgrade: Upgrade,
    ports: Vec<u16>,
) -> Result<(), hyper::Error> {
    let is_tunnel = upgrade.protocol() == TUNNELLED;
    match upgrade {
        Upgrade::Spdy(upgrade) => {
            let carrier = Carrier::Plain(upgrade.stream().await?);
            tunnel::serve(context, sandbox, carrier).await;
        }
        Upgrade::WebSocket(upgrade) if is_tunnel => {
            let carrier = Carrier::Socket(Box::new(upgrade.socket().await?));
            tunnel::serve(context, sandbox, carrier).await;
        }
        Upgrade::WebSocket(upgrade) => serve_channels(context, sandbox, upgrade.socket().await?, ports).await,
    }
    Ok(())
}

fn ports(query: &Query) -> Result<Vec<u16>, HttpError> {
    let mut ports = Vec::new();
    for text in query.all("ports").iter().chain(&query.all("port")).flat_map(|text| text.split(',')) {
        match text.parse::<u16>() {
            Ok(port) if port > 0 => ports.push(port),
            _ => return Err(HttpError::bad_request(format!("unable to parse {text:?} as a port"))),
        }
    }
    match ports.len() > PORT_LIMIT {
        true => Err(HttpError::bad_request("too many ports")),
        false => Ok(ports),
    }
}

/// Channel `2i` carries the data of the i-th port, channel `2i + 1` what went wrong. Both begin with the port's number.
async fn serve_channels(context: Arc<Context>, sandbox: SandboxId, socket: Socket, ports: Vec<u16>) {
    let (sink, mut source) = socket.split();
    let (messages, outgoing) = mpsc::channel::<Bytes>(PIECES);
    let writer = tokio::spawn(write_messages(sink, outgoing));
    let mut inputs: Vec<Option<Writer>> = Vec::new();
    for (index, port) in ports.into_iter().enumerate() {
        let Ok(data) = u8::try_from(index * 2) else { break };
        for channel in [data, data + 1] {
            let mut greeting = BytesMut::new();
            greeting.put_u8(channel);
            greeting.put_u16_le(port);
            let _ = messages.send(greeting.freeze()).await;
        }
        match context.runtime.port_forward(&sandbox, port).await {
            Ok((reader, writer)) => {
                tokio::spawn(pump(data, reader, messages.clone()));
                inputs.push(Some(writer));
            }
            Err(error) => {
                let _ = messages.send(channel::message(data + 1, chain(&error).as_bytes())).await;
                inputs.push(None);
            }
        }
    }
    drop(messages);
    while let Some(Ok(message)) = source.next().await {
        let Message::Binary(bytes) = message else {
            if message.is_close() {
                break;
            }
            continue;
        };
        let Some((channel, payload)) = bytes.split_first() else { continue };
        if channel % 2 == 1 {
            continue;
        }
        let Some(slot) = inputs.get_mut(usize::from(channel / 2)) else { continue };
        if let Some(input) = slot
            && (input.write_all(payload).await.is_err() || input.flush().await.is_err())
        {
            *slot = None;
        }
    }
    writer.abort();
}

async fn pump(channel: u8, mut reader: Reader, messages: mpsc::Sender<Bytes>) {
    let mut buffer = vec![0; PIECE];
    while let Ok(read) = reader.read(&mut buffer).await {
        if read == 0 || messages.send(channel::message(channel, &buffer[..read])).await.is_err() {
            return;
        }
    }
}

async fn write_messages(mut sink: SplitSink<Socket, Message>, mut outgoing: mpsc::Receiver<Bytes>) {
    while let Some(message) = outgoing.recv().await {
        if sink.send(Message::Binary(message)).await.is_err() {
            return;
        }
    }
    let _ = sink.close().await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn port_parameters() {
        let parse = |text: &str| ports(&Query::parse(Some(text))).ok();
        assert_eq!(parse("ports=80&ports=81"), Some(vec![80, 81]));
        assert_eq!(parse("ports=80,81"), Some(vec![80, 81]));
        assert_eq!(parse(""), Some(Vec::new()));
        assert_eq!(parse("ports=0"), None);
        assert_eq!(parse("ports=x"), None);
    }
}
