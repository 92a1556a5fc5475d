//! Port-forward over SPDY: many forwarded connections over one stream of bytes, inside a WebSocket or plain.
//!
//! A connection is a pair of SPDY streams that the client opens with the same `requestid`: `error` (it tells what went
//! wrong, or ends silently) and `data`. The protocol is that of `k8s.io/kubelet/pkg/cri/streaming/portforward`.

use std::collections::HashMap;
use std::sync::Arc;

use bytes::Bytes;
use sampan_runtime::SandboxId;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::port_forward::{PIECE, PIECES};
use super::spdy::{Frame, HeaderList, REFUSED};
use super::spdy_connection::{self, Carrier};
use crate::context::Context;
use crate::error::chain;

/// Streams a client may have open; a browser behind a port-forward opens some dozen.
const STREAM_LIMIT: usize = 2048;
/// Largest piece of data in one frame.
const FRAME_DATA: usize = PIECE;

/// Serves a tunnel until the client leaves.
pub(super) async fn serve(context: Arc<Context>, sandbox: SandboxId, carrier: Carrier) {
    let (mut incoming, frames, mut writer) = spdy_connection::open(carrier);
    let mut tunnel = Tunnel {
        context,
        sandbox,
        frames,
        errors: HashMap::new(),
        inputs: HashMap::new(),
        connections: JoinSet::new(),
    };
    loop {
        let frame = tokio::select! {
            frame = incoming.next() => frame,
            // Connections that have ended give back their memory.
            Some(_) = tunnel.connections.join_next() => continue,
            _ = &mut writer => return,
        };
        let Some(frame) = frame else { break };
        tunnel.take(frame).await;
    }
    writer.abort();
}

struct Tunnel {
    context: Arc<Context>,
    sandbox: SandboxId,
    frames: mpsc::Sender<Frame>,
    /// Error streams whose data stream has not come yet, by request.
    errors: HashMap<String, u32>,
    /// Where the data of a stream goes.
    inputs: HashMap<u32, mpsc::Sender<Bytes>>,
    connections: JoinSet<()>,
}

impl Tunnel {
    async fn take(&mut self, frame: Frame) {
        match frame {
            Frame::SynStream { stream, headers, .. } => self.open(stream, &headers).await,
            Frame::Data { stream, fin, bytes } => {
                if !bytes.is_empty()
                    && let Some(input) = self.inputs.get(&stream)
                {
                    // A process that does not read holds up the whole tunnel, as it does upstream; the queue is bounded.
                    let _ = input.send(bytes).await;
                }
                if fin {
                    self.inputs.remove(&stream);
                }
            }
            Frame::RstStream { stream, .. } => drop(self.inputs.remove(&stream)),
            // Even numbers would be pings of ours; there are none.
            Frame::Ping(id) => drop(self.frames.send(Frame::Ping(id)).await),
            _ => {}
        }
    }

    async fn open(&mut self, stream: u32, headers: &HeaderList) {
        let get = |name: &str| {
            let found = headers.iter().find(|(known, _)| known.eq_ignore_ascii_case(name));
            found.map(|(_, value)| value.as_str()).unwrap_or_default()
        };
        let port = get("port").parse::<u16>().ok().filter(|port| *port > 0);
        // Old clients send no request id and open the error stream first, so that the data stream follows by two.
        let request = match get("requestid") {
            "" if get("streamtype") == "error" => stream.to_string(),
            "" => stream.saturating_sub(2).to_string(),
            id => id.to_string(),
        };
        self.inputs.retain(|_, input| !input.is_closed());
        let is_full = self.errors.len() + self.inputs.len() >= STREAM_LIMIT;
        let (Some(port), false) = (port, is_full) else {
            let _ = self.frames.send(Frame::RstStream { stream, status: REFUSED }).await;
            return;
        };
        let _ = self.frames.send(Frame::SynReply { stream, fin: false, headers: HeaderList::new() }).await;
        match get("streamtype") {
            "error" => {
                self.errors.insert(request, stream);
            }
            "data" => {
                let error_stream = self.errors.remove(&request);
                self.connect(stream, error_stream, port);
            }
            _ => drop(self.frames.send(Frame::RstStream { stream, status: REFUSED }).await),
        }
    }

    fn connect(&mut self, data_stream: u32, error_stream: Option<u32>, port: u16) {
        let (input, received) = mpsc::channel(PIECES);
        self.inputs.insert(data_stream, input);
        let connection = Connection {
            context: Arc::clone(&self.context),
            sandbox: self.sandbox.clone(),
            frames: self.frames.clone(),
            data_stream,
            error_stream,
            port,
        };
        self.connections.spawn(connection.run(received));
    }
}

/// One forwarded connection.
struct Connection {
    context: Arc<Context>,
    sandbox: SandboxId,
    frames: mpsc::Sender<Frame>,
    data_stream: u32,
    error_stream: Option<u32>,
    port: u16,
}

impl Connection {
    async fn run(self, mut received: mpsc::Receiver<Bytes>) {
        let failure = match self.context.runtime.port_forward(&self.sandbox, self.port).await {
            Ok((mut reader, mut writer)) => {
                let from_client = async {
                    while let Some(bytes) = received.recv().await {
                        if writer.write_all(&bytes).await.is_err() || writer.flush().await.is_err() {
                            break;
                        }
                    }
                    // The client has said everything; the process may still answer.
                    let _ = writer.shutdown().await;
                    std::future::pending::<()>().await;
                };
                let to_client = async {
                    let mut buffer = vec![0; FRAME_DATA];
                    while let Ok(read) = reader.read(&mut buffer).await {
                        if read == 0 || !self.send(self.data_stream, &buffer[..read], false).await {
                            break;
                        }
                    }
                    self.send(self.data_stream, &[], true).await;
                };
                // The end of the process's side is the end of the connection.
                tokio::select! {
                    () = to_client => {}
                    () = from_client => {}
                }
                None
            }
            Err(error) => Some(format!("error forwarding port {} to pod: {}", self.port, chain(&error))),
        };
        let has_failed = failure.is_some();
        if let Some(stream) = self.error_stream {
            self.send(stream, failure.unwrap_or_default().as_bytes(), true).await;
        }
        if has_failed {
            self.send(self.data_stream, &[], true).await;
        }
    }

    /// Whether the client is still there.
    async fn send(&self, stream: u32, bytes: &[u8], fin: bool) -> bool {
        self.frames.send(Frame::Data { stream, fin, bytes: Bytes::copy_from_slice(bytes) }).await.is_ok()
    }
}
