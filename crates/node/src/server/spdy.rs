//! SPDY/3.1 framing, as far as exec, attach and port-forward need it: bytes in, frames out, and back. No IO.
//!
//! kubectl speaks SPDY inside the WebSocket of a port-forward, older clients speak it instead of WebSockets. Frames are those of "SPDY Protocol - Draft 3.1";
//! header blocks are compressed by one zlib stream per direction with the protocol's dictionary. Like every peer of
//! kubectl this side ignores flow control windows and priorities.

use std::sync::OnceLock;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress};

/// Largest frame that is accepted. kubectl writes at most 32 KiB at once; the protocol would allow 16 MiB.
const FRAME_LIMIT: usize = 1 << 20;
/// Largest header block after decompression.
const HEADER_LIMIT: usize = 16 * 1024;
const VERSION: u16 = 3;
/// `REFUSED_STREAM` of the draft.
pub(super) const REFUSED: u32 = 3;
const FLAG_FIN: u8 = 1;

const SYN_STREAM: u16 = 1;
const SYN_REPLY: u16 = 2;
const RST_STREAM: u16 = 3;
const PING: u16 = 6;
const GO_AWAY: u16 = 7;
const HEADERS: u16 = 8;

/// Words of the dictionary that carry their length, in the order of the draft.
const DICTIONARY_WORDS: &[&str] = &[
    "options",
    "head",
    "post",
    "put",
    "delete",
    "trace",
    "accept",
    "accept-charset",
    "accept-encoding",
    "accept-language",
    "accept-ranges",
    "age",
    "allow",
    "authorization",
    "cache-control",
    "connection",
    "content-base",
    "content-encoding",
    "content-language",
    "content-length",
    "content-location",
    "content-md5",
    "content-range",
    "content-type",
    "date",
    "etag",
    "expect",
    "expires",
    "from",
    "host",
    "if-match",
    "if-modified-since",
    "if-none-match",
    "if-range",
    "if-unmodified-since",
    "last-modified",
    "location",
    "max-forwards",
    "pragma",
    "proxy-authenticate",
    "proxy-authorization",
    "range",
    "referer",
    "retry-after",
    "server",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "user-agent",
    "vary",
    "via",
    "warning",
    "www-authenticate",
    "method",
    "get",
    "status",
    "200 OK",
    "version",
    "HTTP/1.1",
    "url",
    "public",
    "set-cookie",
    "keep-alive",
    "origin",
];

/// The rest of the dictionary.
const DICTIONARY_TEXT: &str = "\
100101201202205206300302303304305306307402405406407408409410411412413414415416417502504505\
203 Non-Authoritative Information204 No Content301 Moved Permanently400 Bad Request401 Unauthorized\
403 Forbidden404 Not Found500 Internal Server Error501 Not Implemented503 Service Unavailable\
Jan Feb Mar Apr May Jun Jul Aug Sept Oct Nov Dec 00:00:00 Mon, Tue, Wed, Thu, Fri, Sat, Sun, GMT\
chunked,text/html,image/png,image/jpg,image/gif,application/xml,application/xhtml+xml,text/plain,\
text/javascript,publicprivatemax-age=gzip,deflate,sdchcharset=utf-8charset=iso-8859-1,utf-,*,enq=0.";

fn dictionary() -> &'static [u8] {
    static DICTIONARY: OnceLock<Vec<u8>> = OnceLock::new();
    DICTIONARY.get_or_init(|| {
        let mut bytes = Vec::new();
        for word in DICTIONARY_WORDS {
            bytes.put_u32(u32::try_from(word.len()).unwrap_or(0));
            bytes.put_slice(word.as_bytes());
        }
        bytes.put_slice(DICTIONARY_TEXT.as_bytes());
        bytes
    })
}

/// Names (lower case) and values of a stream.
pub(super) type HeaderList = Vec<(String, String)>;

/// What one side says to the other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Frame {
    SynStream {
        stream: u32,
        fin: bool,
        headers: HeaderList,
    },
    SynReply {
        stream: u32,
        fin: bool,
        headers: HeaderList,
    },
    RstStream {
        stream: u32,
        status: u32,
    },
    Ping(u32),
    GoAway {
        last: u32,
    },
    Headers {
        stream: u32,
        fin: bool,
        headers: HeaderList,
    },
    Data {
        stream: u32,
        fin: bool,
        bytes: Bytes,
    },
    /// Settings, window updates, credentials and whatever else changes nothing here.
    Other,
}

/// Bytes that are no SPDY/3.1.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub(super) enum SpdyError {
    #[error("a frame of {0} bytes is larger than this side accepts")]
    TooLarge(usize),
    #[error("SPDY version {0} is not spoken here")]
    Version(u16),
    #[error("a frame of type {0} is malformed")]
    Malformed(u16),
    #[error("a header block cannot be decompressed")]
    Compression,
}

/// Turns bytes into frames.
pub(super) struct Decoder {
    buffer: BytesMut,
    inflate: Decompress,
}

impl Decoder {
    pub(super) fn new() -> Self {
        Self { buffer: BytesMut::new(), inflate: Decompress::new(true) }
    }

    /// More bytes have come.
    pub(super) fn push(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// The next whole frame, if there is one.
    ///
    /// # Errors
    /// After an error the connection is of no use: the compression state of both sides differs.
    pub(super) fn next_frame(&mut self) -> Result<Option<Frame>, SpdyError> {
        if self.buffer.len() < 8 {
            return Ok(None);
        }
        let length = (usize::from(self.buffer[5]) << 16)
            | (usize::from(self.buffer[6]) << 8)
            | usize::from(self.buffer[7]);
        if length > FRAME_LIMIT {
            return Err(SpdyError::TooLarge(length));
        }
        if self.buffer.len() < 8 + length {
            return Ok(None);
        }
        let mut head = self.buffer.split_to(8);
        let payload = self.buffer.split_to(length).freeze();
        let first = head.get_u32();
        let flags = head.get_u8();
        if first & 0x8000_0000 == 0 {
            return Ok(Some(Frame::Data { stream: first, fin: flags & FLAG_FIN != 0, bytes: payload }));
        }
        let version = u16::try_from((first >> 16) & 0x7fff).unwrap_or(0);
        if version != VERSION {
            return Err(SpdyError::Version(version));
        }
        let kind = u16::try_from(first & 0xffff).unwrap_or(0);
        self.control(kind, flags, payload).map(Some)
    }

    fn control(&mut self, kind: u16, flags: u8, mut payload: Bytes) -> Result<Frame, SpdyError> {
        let fin = flags & FLAG_FIN != 0;
        let fixed = match kind {
            SYN_STREAM => 10,
            RST_STREAM | GO_AWAY => 8,
            SYN_REPLY | HEADERS | PING => 4,
            _ => 0,
        };
        if payload.len() < fixed {
            return Err(SpdyError::Malformed(kind));
        }
        match kind {
            SYN_STREAM => {
                let stream = payload.get_u32() & 0x7fff_ffff;
                // Associated stream, priority and slot mean nothing to these streams.
                payload.advance(6);
                Ok(Frame::SynStream { stream, fin, headers: self.headers(kind, &payload)? })
            }
            SYN_REPLY => {
                let stream = payload.get_u32() & 0x7fff_ffff;
                Ok(Frame::SynReply { stream, fin, headers: self.headers(kind, &payload)? })
            }
            HEADERS => {
                let stream = payload.get_u32() & 0x7fff_ffff;
                Ok(Frame::Headers { stream, fin, headers: self.headers(kind, &payload)? })
            }
            RST_STREAM => {
                let stream = payload.get_u32() & 0x7fff_ffff;
                Ok(Frame::RstStream { stream, status: payload.get_u32() })
            }
            PING => Ok(Frame::Ping(payload.get_u32())),
            GO_AWAY => Ok(Frame::GoAway { last: payload.get_u32() & 0x7fff_ffff }),
            _ => Ok(Frame::Other),
        }
    }

    fn headers(&mut self, kind: u16, block: &[u8]) -> Result<HeaderList, SpdyError> {
        let plain = self.decompress(block)?;
        parse_headers(&plain).ok_or(SpdyError::Malformed(kind))
    }

    /// Decompresses one block of the direction's zlib stream.
    fn decompress(&mut self, block: &[u8]) -> Result<Vec<u8>, SpdyError> {
        let mut plain = Vec::new();
        let mut input = block;
        let mut output = [0; 4096];
        loop {
            let (before_in, before_out) = (self.inflate.total_in(), self.inflate.total_out());
            let result = self.inflate.decompress(input, &mut output, FlushDecompress::Sync);
            let taken = usize::try_from(self.inflate.total_in() - before_in).unwrap_or(0);
            let given = usize::try_from(self.inflate.total_out() - before_out).unwrap_or(0);
            input = input.get(taken..).unwrap_or_default();
            plain.extend_from_slice(&output[..given]);
            if plain.len() > HEADER_LIMIT {
                return Err(SpdyError::Compression);
            }
            match result {
                Err(error) if error.needs_dictionary().is_some() => {
                    self.inflate.set_dictionary(dictionary()).map_err(|_| SpdyError::Compression)?;
                }
                Err(_) => return Err(SpdyError::Compression),
                Ok(_) if input.is_empty() && given < output.len() => return Ok(plain),
                // Neither read nor written: the block is cut off.
                Ok(_) if taken == 0 && given == 0 => return Err(SpdyError::Compression),
                Ok(_) => {}
            }
        }
    }
}

/// Count, then length and bytes of each name and value.
fn parse_headers(mut block: &[u8]) -> Option<HeaderList> {
    let count = take_u32(&mut block)?;
    let mut headers = HeaderList::new();
    for _ in 0..count {
        let name = take_text(&mut block)?;
        let value = take_text(&mut block)?;
        headers.push((name, value));
    }
    Some(headers)
}

fn take_u32(block: &mut &[u8]) -> Option<u32> {
    let (number, rest) = block.split_first_chunk::<4>()?;
    *block = rest;
    Some(u32::from_be_bytes(*number))
}

fn take_text(block: &mut &[u8]) -> Option<String> {
    let length = usize::try_from(take_u32(block)?).ok()?;
    let (text, rest) = block.split_at_checked(length)?;
    *block = rest;
    String::from_utf8(text.to_vec()).ok()
}

/// Turns frames into bytes.
pub(super) struct Encoder {
    deflate: Compress,
    has_dictionary: bool,
}

impl Encoder {
    pub(super) fn new() -> Self {
        Self { deflate: Compress::new(Compression::fast(), true), has_dictionary: false }
    }

    /// The bytes of a frame.
    ///
    /// # Errors
    /// When headers cannot be compressed; the connection is of no use then.
    pub(super) fn encode(&mut self, frame: &Frame) -> Result<Bytes, SpdyError> {
        let fin = |fin: bool| if fin { FLAG_FIN } else { 0 };
        match frame {
            Frame::Data { stream, fin: is_last, bytes } => {
                let mut out = BytesMut::with_capacity(8 + bytes.len());
                out.put_u32(*stream & 0x7fff_ffff);
                out.put_u8(fin(*is_last));
                put_u24(&mut out, bytes.len());
                out.put_slice(bytes);
                Ok(out.freeze())
            }
            Frame::SynStream { stream, fin: is_last, headers } => {
                let mut payload = BytesMut::new();
                payload.put_u32(*stream);
                payload.put_u32(0);
                payload.put_u16(0);
                payload.put_slice(&self.compress(headers)?);
                Ok(control(SYN_STREAM, fin(*is_last), &payload))
            }
            Frame::SynReply { stream, fin: is_last, headers } => {
                self.with_headers(SYN_REPLY, *stream, fin(*is_last), headers)
            }
            Frame::Headers { stream, fin: is_last, headers } => {
                self.with_headers(HEADERS, *stream, fin(*is_last), headers)
            }
            Frame::RstStream { stream, status } => Ok(control(RST_STREAM, 0, &two(*stream, *status))),
            Frame::Ping(id) => Ok(control(PING, 0, &id.to_be_bytes())),
            Frame::GoAway { last } => Ok(control(GO_AWAY, 0, &two(*last, 0))),
            Frame::Other => Ok(Bytes::new()),
        }
    }

    fn with_headers(
        &mut self,
        kind: u16,
        stream: u32,
        flags: u8,
        headers: &HeaderList,
    ) -> Result<Bytes, SpdyError> {
        let mut payload = BytesMut::new();
        payload.put_u32(stream);
        payload.put_slice(&self.compress(headers)?);
        Ok(control(kind, flags, &payload))
    }

    fn compress(&mut self, headers: &HeaderList) -> Result<Vec<u8>, SpdyError> {
        if !self.has_dictionary {
            self.deflate.set_dictionary(dictionary()).map_err(|_| SpdyError::Compression)?;
            self.has_dictionary = true;
        }
        let mut plain = Vec::new();
        plain.put_u32(u32::try_from(headers.len()).map_err(|_| SpdyError::Compression)?);
        for text in headers.iter().flat_map(|(name, value)| [name, value]) {
            plain.put_u32(u32::try_from(text.len()).map_err(|_| SpdyError::Compression)?);
            plain.put_slice(text.as_bytes());
        }
        let mut packed = Vec::new();
        let mut input = plain.as_slice();
        let mut output = [0; 4096];
        loop {
            let (before_in, before_out) = (self.deflate.total_in(), self.deflate.total_out());
            self.deflate
                .compress(input, &mut output, FlushCompress::Sync)
                .map_err(|_| SpdyError::Compression)?;
            let taken = usize::try_from(self.deflate.total_in() - before_in).unwrap_or(0);
            let given = usize::try_from(self.deflate.total_out() - before_out).unwrap_or(0);
            input = input.get(taken..).unwrap_or_default();
            packed.extend_from_slice(&output[..given]);
            if input.is_empty() && given < output.len() {
                return Ok(packed);
            }
        }
    }
}

fn control(kind: u16, flags: u8, payload: &[u8]) -> Bytes {
    let mut out = BytesMut::with_capacity(8 + payload.len());
    out.put_u16(0x8000 | VERSION);
    out.put_u16(kind);
    out.put_u8(flags);
    put_u24(&mut out, payload.len());
    out.put_slice(payload);
    out.freeze()
}

fn put_u24(out: &mut BytesMut, number: usize) {
    let bytes = u32::try_from(number).unwrap_or(0).to_be_bytes();
    out.put_slice(&bytes[1..]);
}

fn two(first: u32, second: u32) -> [u8; 8] {
    let mut bytes = [0; 8];
    bytes[..4].copy_from_slice(&first.to_be_bytes());
    bytes[4..].copy_from_slice(&second.to_be_bytes());
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&str, &str)]) -> HeaderList {
        pairs.iter().map(|(name, value)| (name.to_string(), value.to_string())).collect()
    }

    /// RFC 1950's checksum; the draft's dictionary has a known one.
    fn adler32(bytes: &[u8]) -> u32 {
        let (a, b) = bytes.iter().fold((1u32, 0u32), |(a, b), byte| {
            let a = (a + u32::from(*byte)) % 65_521;
            (a, (b + a) % 65_521)
        });
        (b << 16) | a
    }

    #[test]
    fn the_dictionary_is_the_drafts() {
        assert_eq!((dictionary().len(), adler32(dictionary())), (1423, 0xe3c6_a7c2));
    }

    #[test]
    fn frames_survive_the_way() {
        let frames = [
            Frame::SynStream {
                stream: 1,
                fin: true,
                headers: headers(&[("streamtype", "error"), ("port", "80"), ("requestid", "0")]),
            },
            Frame::SynStream { stream: 3, fin: false, headers: headers(&[("streamtype", "data")]) },
            Frame::SynReply { stream: 3, fin: false, headers: headers(&[]) },
            Frame::Headers { stream: 3, fin: false, headers: headers(&[("a", &"x".repeat(9000))]) },
            Frame::Data { stream: 3, fin: true, bytes: Bytes::from_static(b"hello") },
            Frame::RstStream { stream: 3, status: 5 },
            Frame::Ping(7),
            Frame::GoAway { last: 3 },
        ];
        let (mut encoder, mut decoder) = (Encoder::new(), Decoder::new());
        let bytes: Vec<u8> =
            frames.iter().flat_map(|frame| encoder.encode(frame).expect("encode").to_vec()).collect();
        let mut seen = Vec::new();
        // Byte by byte: frames do not come whole.
        for byte in bytes {
            decoder.push(&[byte]);
            while let Some(frame) = decoder.next_frame().expect("decode") {
                seen.push(frame);
            }
        }
        assert_eq!(seen, frames);
    }

    #[test]
    fn foreign_bytes_are_refused() {
        let rows: [(&[u8], SpdyError); 4] = [
            (&[0, 0, 0, 1, 0, 0xff, 0xff, 0xff], SpdyError::TooLarge(0xff_ffff)),
            (&[0x80, 2, 0, 1, 0, 0, 0, 0], SpdyError::Version(2)),
            (&[0x80, 3, 0, 1, 0, 0, 0, 1, 0], SpdyError::Malformed(1)),
            (&[0x80, 3, 0, 2, 0, 0, 0, 8, 0, 0, 0, 1, 1, 2, 3, 4], SpdyError::Compression),
        ];
        for (bytes, expected) in rows {
            let mut decoder = Decoder::new();
            decoder.push(bytes);
            assert_eq!(decoder.next_frame(), Err(expected), "{bytes:?}");
        }
    }

    #[test]
    fn header_blocks_are_bounded() {
        let (mut encoder, mut decoder) = (Encoder::new(), Decoder::new());
        let bomb =
            Frame::SynReply { stream: 1, fin: false, headers: headers(&[("a", &"x".repeat(HEADER_LIMIT))]) };
        decoder.push(&encoder.encode(&bomb).expect("encode"));
        assert_eq!(decoder.next_frame(), Err(SpdyError::Compression));
        assert_eq!(parse_headers(&[0xff, 0xff, 0xff, 0xff]), None);
    }
}
