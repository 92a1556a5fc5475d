//! Commands in containers, and joining the streams of a container's first process.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::stream::{SplitSink, SplitStream};
use futures::{SinkExt, StreamExt};
use http::{Request, Response};
use hyper::body::Incoming;
use sampan_runtime::{Reader, RuntimeError, StreamOptions, Streams, Writer};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_tungstenite::tungstenite::Message;

use super::HttpError;
use super::body::NodeBody;
use super::channel::{self, ClientMessage, PROTOCOLS, STDERR, STDOUT};
use super::query::Query;
use super::target::{self, Address};
use super::websocket::{self, Socket, Upgrade};
use crate::context::Context;
use crate::error::chain;

/// Bytes taken from a process at once.
const PIECE: usize = 32 * 1024;
/// Pieces on their way to a slow client; beyond, the process waits.
const PIECES: usize = 8;
/// How long output is still read after the process ended: a child it left behind may hold the streams open for ever.
const DRAIN: Duration = Duration::from_secs(1);

fn options(query: &Query) -> Result<StreamOptions, HttpError> {
    let tty = query.is_set(&["tty"]);
    let options = StreamOptions {
        stdin: query.is_set(&["stdin", "input"]),
        stdout: query.is_set(&["stdout", "output"]),
        stderr: query.is_set(&["stderr", "error"]) && !tty,
        tty,
    };
    match options.stdin || options.stdout || options.stderr {
        true => Ok(options),
        false => Err(HttpError::bad_request("you must specify at least 1 of stdin, stdout, stderr")),
    }
}

/// `/exec/{namespace}/{pod}/{container}`.
pub(crate) async fn exec(
    context: Arc<Context>,
    address: Address,
    mut request: Request<Incoming>,
) -> Result<Response<NodeBody>, HttpError> {
    let query = Query::parse(request.uri().query());
    let options = options(&query)?;
    let command = query.all("command");
    if command.is_empty() {
        return Err(HttpError::bad_request("you must specify a command"));
    }
    let run = target::running(&context, &address).await?;
    let (response, upgrade) = websocket::accept(&mut request, PROTOCOLS)?;
    tokio::spawn(async move {
        let streams = context.runtime.exec(&run.id, command, options).await;
        serve(upgrade, streams).await;
    });
    Ok(response)
}

/// `/attach/{namespace}/{pod}/{container}`.
pub(crate) async fn attach(
    context: Arc<Context>,
    address: Address,
    mut request: Request<Incoming>,
) -> Result<Response<NodeBody>, HttpError> {
    let options = options(&Query::parse(request.uri().query()))?;
    let run = target::running(&context, &address).await?;
    let (response, upgrade) = websocket::accept(&mut request, PROTOCOLS)?;
    tokio::spawn(async move {
        let streams = context.runtime.attach(&run.id, options).await;
        serve(upgrade, streams).await;
    });
    Ok(response)
}

async fn serve(upgrade: Upgrade, streams: Result<Streams, RuntimeError>) {
    let protocol = upgrade.protocol;
    let mut socket = match upgrade.socket().await {
        Ok(socket) => socket,
        Err(error) => {
            tracing::debug!(%error, "a client left before its command started");
            return;
        }
    };
    match streams {
        Ok(streams) => carry(socket, streams, protocol).await,
        Err(error) => {
            let message = channel::failure(protocol, &chain(&error));
            // A client that is gone cannot be told.
            let _ = socket.send(Message::Binary(message)).await;
            let _ = socket.close(Some(websocket::normal_close())).await;
        }
    }
}

/// Carries streams between client and process until the process has ended or the client has gone.
async fn carry(socket: Socket, streams: Streams, protocol: &'static str) {
    let (sink, source) = socket.split();
    let (messages, outgoing) = mpsc::channel::<Bytes>(PIECES);
    let writer = tokio::spawn(write_messages(sink, outgoing));
    let mut pumps = JoinSet::new();
    for (channel, reader) in [(STDOUT, streams.stdout), (STDERR, streams.stderr)] {
        if let Some(reader) = reader {
            pumps.spawn(pump(channel, reader, messages.clone()));
        }
    }
    let mut client = tokio::spawn(read_messages(source, streams.stdin, streams.resize));
    tokio::select! {
        exit = streams.exit => {
            // No code: the runtime lost the process.
            let code = exit.unwrap_or(137);
            let drained = async { while pumps.join_next().await.is_some() {} };
            let _ = tokio::time::timeout(DRAIN, drained).await;
            if let Some(message) = channel::outcome(protocol, code) {
                let _ = messages.send(message).await;
            }
            drop(pumps);
            drop(messages);
            let _ = writer.await;
            client.abort();
        }
        _ = &mut client => {
            // The client is gone; dropping the streams tells the runtime.
            writer.abort();
        }
    }
}

async fn write_messages(mut sink: SplitSink<Socket, Message>, mut outgoing: mpsc::Receiver<Bytes>) {
    while let Some(message) = outgoing.recv().await {
        if sink.send(Message::Binary(message)).await.is_err() {
            return;
        }
    }
    // Clients take a close without a code for a broken connection.
    let _ = sink.send(Message::Close(Some(websocket::normal_close()))).await;
    let _ = sink.close().await;
}

async fn pump(channel: u8, mut reader: Reader, messages: mpsc::Sender<Bytes>) {
    let mut buffer = vec![0; PIECE];
    loop {
        match reader.read(&mut buffer).await {
            Ok(0) | Err(_) => return,
            Ok(read) => {
                if messages.send(channel::message(channel, &buffer[..read])).await.is_err() {
                    return;
                }
            }
        }
    }
}

/// Ends when the client has gone.
async fn read_messages(
    mut source: SplitStream<Socket>,
    mut stdin: Option<Writer>,
    resize: mpsc::Sender<(u16, u16)>,
) {
    while let Some(Ok(message)) = source.next().await {
        let payload = match message {
            Message::Binary(payload) => payload,
            Message::Text(text) => Bytes::copy_from_slice(text.as_bytes()),
            Message::Close(_) => return,
            _ => continue,
        };
        match channel::parse(payload) {
            ClientMessage::Stdin(bytes) => {
                if let Some(writer) = &mut stdin
                    && (writer.write_all(&bytes).await.is_err() || writer.flush().await.is_err())
                {
                    stdin = None;
                }
            }
            ClientMessage::Resize(columns, rows) => {
                // Without a terminal nobody listens.
                let _ = resize.send((columns, rows)).await;
            }
            ClientMessage::CloseStdin => {
                if let Some(mut writer) = stdin.take() {
                    let _ = writer.shutdown().await;
                }
            }
            ClientMessage::Ignored => {}
        }
    }
}
