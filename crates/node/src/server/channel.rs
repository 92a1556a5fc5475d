//! Remote command channels: the streams of an exec or attach, their numbers and what is said in them
//! (`k8s.io/apimachinery/pkg/util/remotecommand`). Over a WebSocket the first byte of a message is the number of the
//! stream that the rest belongs to. Pure.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use serde::Deserialize;
use serde_json::json;

/// How many streams there are.
pub(crate) const CHANNELS: usize = 5;
pub(crate) const STDIN: u8 = 0;
pub(crate) const STDOUT: u8 = 1;
pub(crate) const STDERR: u8 = 2;
pub(crate) const ERROR: u8 = 3;
pub(crate) const RESIZE: u8 = 4;
/// Since v5: the stream named in the next byte has ended.
const CLOSE: u8 = 255;

/// Subprotocols for exec and attach, and what differs between them.
pub(crate) const PROTOCOLS: &[&str] = &[
    "v5.channel.k8s.io",
    "v4.channel.k8s.io",
    "v3.channel.k8s.io",
    "v2.channel.k8s.io",
    "channel.k8s.io",
    "",
];

/// The same over SPDY, where streams end by themselves and need no message for it.
pub(crate) const SPDY_PROTOCOLS: &[&str] =
    &["v4.channel.k8s.io", "v3.channel.k8s.io", "v2.channel.k8s.io", "channel.k8s.io", ""];

/// The channel of a SPDY stream's type.
pub(crate) fn of_stream_type(name: &str) -> Option<u8> {
    let rows =
        [("stdin", STDIN), ("stdout", STDOUT), ("stderr", STDERR), ("error", ERROR), ("resize", RESIZE)];
    rows.into_iter().find(|(known, _)| *known == name).map(|(_, channel)| channel)
}

/// Whether the client tells the size of its terminal.
pub(crate) fn resizes(protocol: &str) -> bool {
    matches!(protocol, "v5.channel.k8s.io" | "v4.channel.k8s.io" | "v3.channel.k8s.io")
}

/// Whether the outcome is told as a Status object; older clients get a sentence.
pub(crate) fn tells_status(protocol: &str) -> bool {
    matches!(protocol, "v5.channel.k8s.io" | "v4.channel.k8s.io")
}

/// What a client says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum ClientMessage {
    Stdin(Bytes),
    /// Columns and rows.
    Resize(u16, u16),
    CloseStdin,
    /// Nothing this side has to act on.
    Ignored,
}

#[derive(Deserialize)]
struct TerminalSize {
    #[serde(rename = "Width")]
    width: u16,
    #[serde(rename = "Height")]
    height: u16,
}

/// Reads a message of a client.
pub(crate) fn parse(mut message: Bytes) -> ClientMessage {
    if message.is_empty() {
        return ClientMessage::Ignored;
    }
    let payload = message.split_off(1);
    match message[0] {
        STDIN => ClientMessage::Stdin(payload),
        RESIZE => match serde_json::from_slice::<TerminalSize>(&payload) {
            Ok(size) => ClientMessage::Resize(size.width, size.height),
            Err(_) => ClientMessage::Ignored,
        },
        CLOSE if payload.first() == Some(&STDIN) => ClientMessage::CloseStdin,
        _ => ClientMessage::Ignored,
    }
}

/// Takes all whole sizes from a text of sizes, one behind the other. A text that is none is thrown away.
pub(crate) fn take_sizes(text: &mut BytesMut) -> Vec<ClientMessage> {
    let mut sizes = Vec::new();
    let mut whole = serde_json::Deserializer::from_slice(text).into_iter::<TerminalSize>();
    let mut taken = 0;
    loop {
        match whole.next() {
            Some(Ok(size)) => {
                sizes.push(ClientMessage::Resize(size.width, size.height));
                taken = whole.byte_offset();
            }
            // The rest has not come yet.
            Some(Err(error)) if error.is_eof() => break,
            Some(Err(_)) | None => {
                taken = text.len();
                break;
            }
        }
    }
    text.advance(taken);
    sizes
}

/// A message of a stream.
pub(crate) fn message(channel: u8, payload: &[u8]) -> Bytes {
    let mut message = BytesMut::with_capacity(payload.len() + 1);
    message.put_u8(channel);
    message.put_slice(payload);
    message.freeze()
}

/// How it ended, for the error stream; `None` when an old client is to be told nothing (success).
pub(crate) fn outcome(protocol: &str, exit_code: i32) -> Option<Bytes> {
    match (tells_status(protocol), exit_code) {
        (true, 0) => Some(json!({ "metadata": {}, "status": "Success" }).to_string().into()),
        (true, code) => {
            let status = json!({
                "metadata": {},
                "status": "Failure",
                "message": format!("command terminated with non-zero exit code: exit status {code}"),
                "reason": "NonZeroExitCode",
                "details": { "causes": [{ "reason": "ExitCode", "message": code.to_string() }] },
            });
            Some(status.to_string().into())
        }
        (false, 0) => None,
        (false, code) => {
            Some(format!("command terminated with non-zero exit code: exit status {code}").into())
        }
    }
}

/// It could not be done at all.
pub(crate) fn failure(protocol: &str, cause: &str) -> Bytes {
    match tells_status(protocol) {
        true => json!({
            "metadata": {},
            "status": "Failure",
            "message": cause,
            "reason": "InternalError",
            "details": { "causes": [{ "message": cause }] },
            "code": 500,
        })
        .to_string()
        .into(),
        false => cause.to_owned().into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn client_messages() {
        let rows: Vec<(&'static [u8], ClientMessage)> = vec![
            (b"\x00abc", ClientMessage::Stdin(Bytes::from_static(b"abc"))),
            (b"\x00", ClientMessage::Stdin(Bytes::new())),
            (b"\x04{\"Width\":80,\"Height\":24}", ClientMessage::Resize(80, 24)),
            (b"\x04{\"Width\":-1}", ClientMessage::Ignored),
            (b"\xff\x00", ClientMessage::CloseStdin),
            (b"\xff\x01", ClientMessage::Ignored),
            (b"\xff", ClientMessage::Ignored),
            (b"\x07x", ClientMessage::Ignored),
            (b"", ClientMessage::Ignored),
        ];
        for (bytes, expected) in rows {
            assert_eq!(parse(Bytes::from_static(bytes)), expected, "{bytes:?}");
        }
    }

    #[test]
    fn sizes_are_found_in_a_text() {
        let rows: [(&str, &[(u16, u16)], &str); 5] = [
            ("{\"Width\":80,\"Height\":24}\n{\"Width\":81,\"Height\":25}\n", &[(80, 24), (81, 25)], ""),
            ("{\"Width\":80,\"Height\":24}\n{\"Wid", &[(80, 24)], "\n{\"Wid"),
            ("{\"Wid", &[], "{\"Wid"),
            ("nonsense", &[], ""),
            ("", &[], ""),
        ];
        for (text, expected, rest) in rows {
            let mut bytes = BytesMut::from(text);
            let found = take_sizes(&mut bytes);
            let expected: Vec<ClientMessage> =
                expected.iter().map(|(columns, rows)| ClientMessage::Resize(*columns, *rows)).collect();
            assert_eq!((found, &bytes[..]), (expected, rest.as_bytes()), "{text}");
        }
    }

    #[test]
    fn outcomes() {
        let new = outcome("v5.channel.k8s.io", 3).unwrap_or_default();
        let status: serde_json::Value = serde_json::from_slice(&new).unwrap_or_default();
        assert_eq!(status["details"]["causes"][0]["message"], json!("3"));
        assert_eq!(outcome("channel.k8s.io", 0), None);
        assert!(outcome("v4.channel.k8s.io", 0).is_some_and(|message| message.ends_with(b"\"Success\"}")));
    }
}
