//! One record of a CRI log and how a client sees it. Pure.

use jiff::Timestamp;

/// Which stream a record came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stream {
    Stdout,
    Stderr,
}

/// `timestamp stream tags content`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Line<'a> {
    timestamp: &'a str,
    stream: Option<Stream>,
    /// More of the same line follows in the next record of the stream.
    is_partial: bool,
    content: &'a [u8],
}

impl<'a> Line<'a> {
    /// Reads a record; what is none is shown as it is.
    pub(super) fn parse(record: &'a [u8]) -> Self {
        let record = record.strip_suffix(b"\n").unwrap_or(record);
        Self::split(record).unwrap_or(Self {
            timestamp: "",
            stream: None,
            is_partial: false,
            content: record,
        })
    }

    fn split(record: &'a [u8]) -> Option<Self> {
        let mut parts = record.splitn(4, |byte| *byte == b' ');
        let timestamp = std::str::from_utf8(parts.next()?).ok()?;
        let stream = match parts.next()? {
            b"stdout" => Stream::Stdout,
            b"stderr" => Stream::Stderr,
            _ => return None,
        };
        let tags = parts.next()?;
        let is_partial = tags.split(|byte| *byte == b':').next() == Some(b"P");
        Some(Self { timestamp, stream: Some(stream), is_partial, content: parts.next().unwrap_or_default() })
    }
}

/// Turns records into what a client asked for.
pub(super) struct Renderer {
    timestamps: bool,
    since: Option<Timestamp>,
    stream: Option<Stream>,
    left: Option<u64>,
    /// Whether the last record of a stream was partial, by stream.
    open: [bool; 2],
}

impl Renderer {
    pub(super) fn new(
        timestamps: bool,
        since: Option<Timestamp>,
        stream: Option<Stream>,
        limit_bytes: Option<u64>,
    ) -> Self {
        Self { timestamps, since, stream, left: limit_bytes, open: [false; 2] }
    }

    /// Nothing more may be shown.
    pub(super) fn is_full(&self) -> bool {
        self.left == Some(0)
    }

    /// Appends what the client sees of a record.
    pub(super) fn render(&mut self, line: &Line<'_>, output: &mut Vec<u8>) {
        if self.stream.is_some() && line.stream.is_some() && line.stream != self.stream {
            return;
        }
        if self.is_too_early(line) {
            return;
        }
        let begin = output.len();
        let index = usize::from(line.stream == Some(Stream::Stderr));
        if self.timestamps && !self.open[index] && !line.timestamp.is_empty() {
            output.extend_from_slice(line.timestamp.as_bytes());
            output.push(b' ');
        }
        output.extend_from_slice(line.content);
        if !line.is_partial {
            output.push(b'\n');
        }
        self.open[index] = line.is_partial;
        if let Some(left) = &mut self.left {
            let shown = usize::try_from(*left).unwrap_or(usize::MAX).min(output.len() - begin);
            output.truncate(begin + shown);
            *left -= shown as u64;
        }
    }

    /// Lines come in order: after the first that is late enough nothing is compared any more.
    fn is_too_early(&mut self, line: &Line<'_>) -> bool {
        let Some(since) = self.since else { return false };
        match line.timestamp.parse::<Timestamp>() {
            Ok(at) if at < since => true,
            _ => {
                self.since = None;
                false
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOG: &[&str] = &[
        "2026-11-23T21:00:00.000000001Z stdout F first",
        "2026-11-23T21:00:01.000000001Z stderr F oops",
        "2026-11-23T21:00:02.000000001Z stdout P long ",
        "2026-11-23T21:00:02.000000002Z stdout F line",
        "2026-11-23T21:00:03.000000001Z stdout F",
        "not a record",
    ];

    fn shown(mut renderer: Renderer) -> String {
        let mut output = Vec::new();
        for record in LOG {
            if !renderer.is_full() {
                renderer.render(&Line::parse(format!("{record}\n").as_bytes()), &mut output);
            }
        }
        String::from_utf8_lossy(&output).into_owned()
    }

    #[test]
    fn what_clients_see() {
        let plain = shown(Renderer::new(false, None, None, None));
        assert_eq!(plain, "first\noops\nlong line\n\nnot a record\n");
        let out = shown(Renderer::new(false, None, Some(Stream::Stderr), None));
        assert_eq!(out, "oops\nnot a record\n");
        let since = "2026-11-23T21:00:01Z".parse().ok();
        assert!(shown(Renderer::new(false, since, None, None)).starts_with("oops\n"));
        assert_eq!(shown(Renderer::new(false, None, None, Some(8))), "first\noo");
        let stamped = shown(Renderer::new(true, None, None, None));
        assert!(stamped.contains("2026-11-23T21:00:02.000000001Z long line\n"), "{stamped}");
    }
}
