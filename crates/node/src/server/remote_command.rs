//! The client of an exec or attach: what it says and what it is told, over a WebSocket or over SPDY.
//!
//! Both name the same five streams. A WebSocket puts the stream's number before each message ([`channel`]); over SPDY
//! the client opens one SPDY stream for each it wants, names it by the header `streamtype`, and nothing begins before
//! all of them are there (`k8s.io/kubelet/pkg/cri/streaming/remotecommand`).

use std::collections::VecDeque;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures::stream::{SplitSink, SplitStream};
use futures::{SinkExt, StreamExt};
use sampan_runtime::StreamOptions;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_tungstenite::tungstenite::Message;

use super::channel::{self, CHANNELS, ClientMessage, ERROR, RESIZE, STDERR, STDIN, STDOUT};
use super::spdy::{Frame, HeaderList, REFUSED};
use super::spdy_connection::{self, Carrier, Frames};
use super::upgrade::Upgrade;
use super::websocket::{self, Socket};

/// Pieces on their way to a slow client; beyond, the process waits.
const PIECES: usize = 8;
/// How long a client may take to open its streams (upstream's `DefaultStreamCreationTimeout`).
const STREAMS_WITHIN: Duration = Duration::from_secs(30);
/// How long a client that has been told everything may take to leave. Closing earlier may lose what is on its way.
pub(super) const LEAVES_WITHIN: Duration = Duration::from_secs(5);
/// Most bytes of a terminal's size; beyond, it is none.
const SIZE_LIMIT: usize = 1024;

/// A piece of a stream, by the stream's number.
pub(super) type Piece = (u8, Bytes);

/// A connected client.
pub(super) struct Client {
    pub(super) incoming: Incoming,
    pub(super) outgoing: mpsc::Sender<Piece>,
    pub(super) writer: JoinHandle<()>,
}

/// What the client says.
pub(super) enum Incoming {
    Socket(SplitStream<Socket>),
    Spdy(Box<SpdyIncoming>),
}

/// Why there is no client.
#[derive(Debug, thiserror::Error)]
pub(super) enum NoClient {
    #[error("the connection was lost before its upgrade")]
    Upgrade(#[from] hyper::Error),
    #[error("the client did not open its streams")]
    Streams,
}

impl Client {
    /// Waits for the connection, and over SPDY for the streams.
    pub(super) async fn connect(upgrade: Upgrade, options: &StreamOptions) -> Result<Self, NoClient> {
        let protocol = upgrade.protocol();
        let (outgoing, pieces) = mpsc::channel(PIECES);
        let (incoming, writer) = match upgrade {
            Upgrade::WebSocket(upgrade) => {
                let (sink, source) = upgrade.socket().await?.split();
                (Incoming::Socket(source), tokio::spawn(write_messages(sink, pieces)))
            }
            Upgrade::Spdy(upgrade) => {
                let (mut frames, sender, frame_writer) =
                    spdy_connection::open(Carrier::Plain(upgrade.stream().await?));
                let expected = expected(protocol, options);
                let streams = Streams::open(&mut frames, &sender, &expected);
                let streams = tokio::time::timeout(STREAMS_WITHIN, streams).await.ok().flatten();
                let streams = streams.ok_or(NoClient::Streams)?;
                let incoming = SpdyIncoming {
                    frames,
                    answers: sender.downgrade(),
                    streams,
                    size: BytesMut::new(),
                    ready: VecDeque::new(),
                };
                let writer = tokio::spawn(async move {
                    write_streams(streams, sender, pieces).await;
                    // Ends when what was said has been sent.
                    let _ = frame_writer.await;
                });
                (Incoming::Spdy(Box::new(incoming)), writer)
            }
        };
        Ok(Self { incoming, outgoing, writer })
    }

    /// Tells what went wrong, and nothing else.
    pub(super) async fn refuse(mut self, protocol: &str, cause: &str) {
        // A client that is gone cannot be told.
        let _ = self.outgoing.send((ERROR, channel::failure(protocol, cause))).await;
        drop(self.outgoing);
        let _ = self.writer.await;
        self.incoming.linger().await;
    }
}

impl Incoming {
    /// What the client says next; `None` when it has gone.
    pub(super) async fn next(&mut self) -> Option<ClientMessage> {
        match self {
            Self::Socket(source) => loop {
                match source.next().await?.ok()? {
                    Message::Binary(payload) => return Some(channel::parse(payload)),
                    Message::Text(text) => {
                        return Some(channel::parse(Bytes::copy_from_slice(text.as_bytes())));
                    }
                    Message::Close(_) => return None,
                    _ => {}
                }
            },
            Self::Spdy(incoming) => incoming.next().await,
        }
    }

    /// After everything has been said: lets the client leave first.
    pub(super) async fn linger(&mut self) {
        let leave = async { while self.next().await.is_some() {} };
        let _ = tokio::time::timeout(LEAVES_WITHIN, leave).await;
    }
}

async fn write_messages(mut sink: SplitSink<Socket, Message>, mut outgoing: mpsc::Receiver<Piece>) {
    while let Some((channel, bytes)) = outgoing.recv().await {
        if sink.send(Message::Binary(channel::message(channel, &bytes))).await.is_err() {
            return;
        }
    }
    // Clients take a close without a code for a broken connection.
    let _ = sink.send(Message::Close(Some(websocket::normal_close()))).await;
    let _ = sink.close().await;
}

/// SPDY streams by the number of what they carry.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Streams([Option<u32>; CHANNELS]);

/// Which streams a client opens.
fn expected(protocol: &str, options: &StreamOptions) -> Vec<u8> {
    let resizes = options.tty && channel::resizes(protocol);
    let rows = [
        (ERROR, true),
        (STDIN, options.stdin),
        (STDOUT, options.stdout),
        (STDERR, options.stderr),
        (RESIZE, resizes),
    ];
    rows.into_iter().filter(|(_, wanted)| *wanted).map(|(channel, _)| channel).collect()
}

impl Streams {
    /// Takes streams until all that are expected are there. `None` when the client does something else.
    async fn open(frames: &mut Frames, answers: &mpsc::Sender<Frame>, expected: &[u8]) -> Option<Self> {
        let mut streams = Self::default();
        while !expected.iter().all(|channel| streams.0[usize::from(*channel)].is_some()) {
            let answer = match frames.next().await? {
                Frame::SynStream { stream, headers, .. } => streams.add(stream, &headers, expected),
                Frame::Ping(id) => Frame::Ping(id),
                // Clients wait for the answer to each stream, so data has no way to be early.
                Frame::Data { .. } | Frame::RstStream { .. } => return None,
                _ => continue,
            };
            answers.send(answer).await.ok()?;
        }
        Some(streams)
    }

    /// Notes a stream; what nobody asked for, or has already, is refused.
    fn add(&mut self, stream: u32, headers: &HeaderList, expected: &[u8]) -> Frame {
        let kind = headers.iter().find(|(name, _)| name.eq_ignore_ascii_case("streamtype"));
        let channel = kind.and_then(|(_, value)| channel::of_stream_type(value));
        match channel.filter(|channel| expected.contains(channel)) {
            Some(channel) if self.0[usize::from(channel)].is_none() => {
                self.0[usize::from(channel)] = Some(stream);
                Frame::SynReply { stream, fin: false, headers: HeaderList::new() }
            }
            _ => Frame::RstStream { stream, status: REFUSED },
        }
    }

    fn of(&self, channel: u8) -> Option<u32> {
        self.0.get(usize::from(channel)).copied().flatten()
    }

    fn channel(&self, stream: u32) -> Option<u8> {
        let position = self.0.iter().position(|known| *known == Some(stream))?;
        u8::try_from(position).ok()
    }
}

/// Sends pieces into their streams, then ends the streams.
async fn write_streams(streams: Streams, frames: mpsc::Sender<Frame>, mut pieces: mpsc::Receiver<Piece>) {
    while let Some((channel, bytes)) = pieces.recv().await {
        let Some(stream) = streams.of(channel) else { continue };
        if frames.send(Frame::Data { stream, fin: false, bytes }).await.is_err() {
            return;
        }
    }
    for stream in [STDOUT, STDERR, ERROR].into_iter().filter_map(|channel| streams.of(channel)) {
        let _ = frames.send(Frame::Data { stream, fin: true, bytes: Bytes::new() }).await;
    }
}

/// What a client says over SPDY.
pub(super) struct SpdyIncoming {
    frames: Frames,
    /// Weak, so that the connection can be closed while this side still listens.
    answers: mpsc::WeakSender<Frame>,
    streams: Streams,
    /// Sizes of the terminal come as one text without lengths, cut anywhere.
    size: BytesMut,
    ready: VecDeque<ClientMessage>,
}

impl SpdyIncoming {
    async fn next(&mut self) -> Option<ClientMessage> {
        loop {
            if let Some(message) = self.ready.pop_front() {
                return Some(message);
            }
            match self.frames.next().await? {
                Frame::Data { stream, fin, bytes } => self.take(stream, fin, bytes),
                Frame::RstStream { stream, .. } => self.take(stream, true, Bytes::new()),
                Frame::Ping(id) => self.answer(Frame::Ping(id)).await,
                Frame::SynStream { stream, .. } => {
                    self.answer(Frame::RstStream { stream, status: REFUSED }).await;
                }
                _ => {}
            }
        }
    }

    fn take(&mut self, stream: u32, fin: bool, bytes: Bytes) {
        match self.streams.channel(stream) {
            Some(STDIN) => {
                if !bytes.is_empty() {
                    self.ready.push_back(ClientMessage::Stdin(bytes));
                }
                if fin {
                    self.ready.push_back(ClientMessage::CloseStdin);
                }
            }
            Some(RESIZE) if self.size.len() + bytes.len() <= SIZE_LIMIT => {
                self.size.extend_from_slice(&bytes);
                self.ready.extend(channel::take_sizes(&mut self.size));
            }
            _ => {}
        }
    }

    async fn answer(&mut self, frame: Frame) {
        if let Some(answers) = self.answers.upgrade() {
            let _ = answers.send(frame).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn streams_are_those_the_options_name() {
        let options = |stdin: bool, tty: bool| StreamOptions { stdin, stdout: true, stderr: !tty, tty };
        let rows = [
            ("v4.channel.k8s.io", options(false, false), vec![ERROR, STDOUT, STDERR]),
            ("v4.channel.k8s.io", options(true, true), vec![ERROR, STDIN, STDOUT, RESIZE]),
            ("v2.channel.k8s.io", options(true, true), vec![ERROR, STDIN, STDOUT]),
        ];
        for (protocol, options, channels) in rows {
            assert_eq!(expected(protocol, &options), channels, "{protocol}");
        }
    }

    #[test]
    fn only_expected_streams_are_taken() {
        let mut streams = Streams::default();
        let expected = [ERROR, STDOUT];
        let refused = |stream| Frame::RstStream { stream, status: REFUSED };
        let accepted = |stream| Frame::SynReply { stream, fin: false, headers: HeaderList::new() };
        for (stream, kind, answer) in [
            (1, "error", accepted(1)),
            (3, "stdin", refused(3)),
            (5, "stdout", accepted(5)),
            (7, "stdout", refused(7)),
            (9, "data", refused(9)),
        ] {
            let headers = vec![("StreamType".to_owned(), kind.to_owned())];
            assert_eq!(streams.add(stream, &headers, &expected), answer, "{kind}");
        }
        assert_eq!(
            (streams.of(STDOUT), streams.channel(1), streams.channel(7)),
            (Some(5), Some(ERROR), None)
        );
    }
}
