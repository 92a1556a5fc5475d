//! Frames over a connection: plain bytes after an upgrade to SPDY/3.1, or the messages of a WebSocket.
//!
//! One task reads and one writes, whatever carries the bytes; who uses the frames does not see the difference.

use bytes::Bytes;
use futures::stream::{SplitSink, SplitStream};
use futures::{SinkExt, StreamExt};
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt, AsyncWriteExt, ReadHalf, WriteHalf};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_tungstenite::tungstenite::Message;

use super::port_forward::PIECES;
use super::spdy::{Decoder, Encoder, Frame};
use super::websocket::Socket;

/// Bytes read at once from a plain connection.
const CHUNK: usize = 16 * 1024;

/// What carries the bytes.
pub(super) enum Carrier {
    Socket(Box<Socket>),
    Plain(TokioIo<Upgraded>),
}

/// Frames of the client.
pub(super) struct Frames {
    source: Source,
    decoder: Decoder,
}

enum Source {
    Socket(SplitStream<Socket>),
    Plain { reader: ReadHalf<TokioIo<Upgraded>>, buffer: Vec<u8> },
}

enum Sink {
    Socket(SplitSink<Socket, Message>),
    Plain(WriteHalf<TokioIo<Upgraded>>),
}

/// Begins to use a connection: frames in, frames out, and the task that writes them. It closes the connection and ends
/// when the last sender is dropped.
pub(super) fn open(carrier: Carrier) -> (Frames, mpsc::Sender<Frame>, JoinHandle<()>) {
    let (source, sink) = match carrier {
        Carrier::Socket(socket) => {
            let (sink, source) = (*socket).split();
            (Source::Socket(source), Sink::Socket(sink))
        }
        Carrier::Plain(stream) => {
            let (reader, writer) = tokio::io::split(stream);
            (Source::Plain { reader, buffer: vec![0; CHUNK] }, Sink::Plain(writer))
        }
    };
    let (frames, outgoing) = mpsc::channel(PIECES);
    let writer = tokio::spawn(write_frames(sink, outgoing));
    (Frames { source, decoder: Decoder::new() }, frames, writer)
}

impl Frames {
    /// The next frame; `None` when the client is done, has gone, or does not speak SPDY/3.1. May be dropped and called
    /// again at any time.
    pub(super) async fn next(&mut self) -> Option<Frame> {
        loop {
            match self.decoder.next_frame() {
                Ok(Some(Frame::GoAway { .. })) => return None,
                Ok(Some(frame)) => return Some(frame),
                Ok(None) => {}
                Err(error) => {
                    tracing::debug!(%error, "a client does not speak SPDY/3.1");
                    return None;
                }
            }
            match &mut self.source {
                Source::Socket(source) => match source.next().await {
                    Some(Ok(Message::Binary(bytes))) => self.decoder.push(&bytes),
                    Some(Ok(Message::Close(_)) | Err(_)) | None => return None,
                    Some(Ok(_)) => {}
                },
                Source::Plain { reader, buffer } => match reader.read(buffer).await {
                    Ok(read) if read > 0 => self.decoder.push(&buffer[..read]),
                    Ok(_) | Err(_) => return None,
                },
            }
        }
    }
}

impl Sink {
    /// Whether the client is still there.
    async fn send(&mut self, bytes: Bytes) -> bool {
        match self {
            Self::Socket(sink) => sink.send(Message::Binary(bytes)).await.is_ok(),
            Self::Plain(writer) => writer.write_all(&bytes).await.is_ok() && writer.flush().await.is_ok(),
        }
    }

    /// A client that has gone needs no farewell.
    async fn close(&mut self) {
        match self {
            Self::Socket(sink) => drop(sink.close().await),
            Self::Plain(writer) => drop(writer.shutdown().await),
        }
    }
}

/// The one place where frames are encoded: the compression of headers has a state.
async fn write_frames(mut sink: Sink, mut outgoing: mpsc::Receiver<Frame>) {
    let mut encoder = Encoder::new();
    while let Some(frame) = outgoing.recv().await {
        let Ok(bytes) = encoder.encode(&frame) else { return };
        if !sink.send(bytes).await {
            return;
        }
    }
    sink.close().await;
}
