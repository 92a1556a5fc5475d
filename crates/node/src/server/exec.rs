//! Commands in containers, and joining the streams of a container's first process.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use hyper::body::Incoming;
use sampan_runtime::{Reader, RuntimeError, StreamOptions, Streams, Writer};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::HttpError;
use super::body::NodeBody;
use super::channel::{self, ClientMessage, ERROR, PROTOCOLS, SPDY_PROTOCOLS, STDERR, STDOUT};
use super::query::Query;
use super::remote_command::{self, Client, LEAVES_WITHIN, Piece};
use super::target::{self, Address};
use super::upgrade::{self, Upgrade};
use crate::context::Context;
use crate::error::chain;

/// Bytes taken from a process at once.
const PIECE: usize = 32 * 1024;
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
    let (response, upgrade) = upgrade::accept(&mut request, PROTOCOLS, SPDY_PROTOCOLS)?;
    tokio::spawn(async move {
        serve(upgrade, &options, context.runtime.exec(&run.id, command, options.clone())).await;
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
    let (response, upgrade) = upgrade::accept(&mut request, PROTOCOLS, SPDY_PROTOCOLS)?;
    tokio::spawn(async move {
        serve(upgrade, &options, context.runtime.attach(&run.id, options.clone())).await;
    });
    Ok(response)
}

/// Waits for the client, then begins.
async fn serve(
    upgrade: Upgrade,
    options: &StreamOptions,
    begin: impl Future<Output = Result<Streams, RuntimeError>>,
) {
    let protocol = upgrade.protocol();
    let client = match Client::connect(upgrade, options).await {
        Ok(client) => client,
        Err(error) => {
            tracing::debug!(error = chain(&error), "a client left before its command started");
            return;
        }
    };
    match begin.await {
        Ok(streams) => carry(client, streams, protocol).await,
        Err(error) => client.refuse(protocol, &chain(&error)).await,
    }
}

/// Carries streams between client and process until the process has ended or the client has gone.
async fn carry(client: Client, streams: Streams, protocol: &'static str) {
    let Client { incoming, outgoing, writer } = client;
    let mut pumps = JoinSet::new();
    for (channel, reader) in [(STDOUT, streams.stdout), (STDERR, streams.stderr)] {
        if let Some(reader) = reader {
            pumps.spawn(pump(channel, reader, outgoing.clone()));
        }
    }
    let mut listener = tokio::spawn(listen(incoming, streams.stdin, streams.resize));
    tokio::select! {
        exit = streams.exit => {
            // No code: the runtime lost the process.
            let code = exit.unwrap_or(137);
            let drained = async { while pumps.join_next().await.is_some() {} };
            let _ = tokio::time::timeout(DRAIN, drained).await;
            if let Some(outcome) = channel::outcome(protocol, code) {
                let _ = outgoing.send((ERROR, outcome)).await;
            }
            drop(pumps);
            drop(outgoing);
            let _ = writer.await;
            // It goes on listening until the client has left.
            let _ = tokio::time::timeout(LEAVES_WITHIN, &mut listener).await;
            listener.abort();
        }
        _ = &mut listener => {
            // The client is gone; dropping the streams tells the runtime.
            writer.abort();
        }
    }
}

async fn pump(channel: u8, mut reader: Reader, pieces: mpsc::Sender<Piece>) {
    let mut buffer = vec![0; PIECE];
    loop {
        match reader.read(&mut buffer).await {
            Ok(0) | Err(_) => return,
            Ok(read) => {
                if pieces.send((channel, Bytes::copy_from_slice(&buffer[..read]))).await.is_err() {
                    return;
                }
            }
        }
    }
}

/// Ends when the client has gone.
async fn listen(
    mut incoming: remote_command::Incoming,
    mut stdin: Option<Writer>,
    resize: mpsc::Sender<(u16, u16)>,
) {
    while let Some(message) = incoming.next().await {
        match message {
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
