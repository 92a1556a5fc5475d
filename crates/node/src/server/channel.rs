//! Remote command channels: the first byte of a message says which stream the rest belongs to
//! (`k8s.io/apimachinery/pkg/util/remotecommand`). Pure.

use bytes::{BufMut, Bytes, BytesMut};
use serde::Deserialize;
use serde_json::json;

pub(crate) const STDIN: u8 = 0;
pub(crate) const STDOUT: u8 = 1;
pub(crate) const STDERR: u8 = 2;
pub(crate) const ERROR: u8 = 3;
const RESIZE: u8 = 4;
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

/// A message of a stream.
pub(crate) fn message(channel: u8, payload: &[u8]) -> Bytes {
    let mut message = BytesMut::with_capacity(payload.len() + 1);
    message.put_u8(channel);
    message.put_slice(payload);
    message.freeze()
}

/// How it ended, for the error channel; `None` when an old client is to be told nothing (success).
pub(crate) fn outcome(protocol: &str, exit_code: i32) -> Option<Bytes> {
    match (tells_status(protocol), exit_code) {
        (true, 0) => {
            Some(message(ERROR, json!({ "metadata": {}, "status": "Success" }).to_string().as_bytes()))
        }
        (true, code) => {
            let status = json!({
                "metadata": {},
                "status": "Failure",
                "message": format!("command terminated with non-zero exit code: exit status {code}"),
                "reason": "NonZeroExitCode",
                "details": { "causes": [{ "reason": "ExitCode", "message": code.to_string() }] },
            });
            Some(message(ERROR, status.to_string().as_bytes()))
        }
        (false, 0) => None,
        (false, code) => {
            let text = format!("command terminated with non-zero exit code: exit status {code}");
            Some(message(ERROR, text.as_bytes()))
        }
    }
}

/// It could not be done at all.
pub(crate) fn failure(protocol: &str, cause: &str) -> Bytes {
    let text = match tells_status(protocol) {
        true => json!({
            "metadata": {},
            "status": "Failure",
            "message": cause,
            "reason": "InternalError",
            "details": { "causes": [{ "message": cause }] },
            "code": 500,
        })
        .to_string(),
        false => cause.to_string(),
    };
    message(ERROR, text.as_bytes())
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
    fn outcomes() {
        let new = outcome("v5.channel.k8s.io", 3).unwrap_or_default();
        let status: serde_json::Value = serde_json::from_slice(&new[1..]).unwrap_or_default();
        assert_eq!((new[0], &status["details"]["causes"][0]["message"]), (ERROR, &json!("3")));
        assert_eq!(outcome("channel.k8s.io", 0), None);
        assert!(outcome("v4.channel.k8s.io", 0).is_some_and(|message| message.ends_with(b"\"Success\"}")));
    }
}
