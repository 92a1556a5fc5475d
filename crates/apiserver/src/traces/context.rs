//! Which trace a span belongs to, and whether it is sampled: W3C Trace Context, level 1, without `tracestate`.

use std::fmt;

use ring::rand::{SecureRandom as _, SystemRandom};

/// Trace, span, and whether somebody wants to hear of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SpanContext {
    pub(crate) trace: [u8; 16],
    pub(crate) span: [u8; 8],
    pub(crate) sampled: bool,
}

impl SpanContext {
    /// Reads a `traceparent`: `VERSION-TRACE-SPAN-FLAGS` in lower-case hexadecimal digits. Versions to come may add to the
    /// end.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let mut parts = text.split('-');
        let [version, trace, span, flags] = [parts.next()?, parts.next()?, parts.next()?, parts.next()?];
        let [version] = bytes::<1>(version)?;
        if version == 0xff || (version == 0 && parts.next().is_some()) {
            return None;
        }
        let context =
            Self { trace: bytes(trace)?, span: bytes(span)?, sampled: bytes::<1>(flags)?[0] & 1 == 1 };
        (context.trace != [0; 16] && context.span != [0; 8]).then_some(context)
    }

    /// A span of a new trace.
    pub(crate) fn root(sampler: Sampler) -> Self {
        let trace = random();
        Self { trace, span: random(), sampled: sampler.rate.takes(trace) }
    }

    /// A span of a trace that somebody else has begun.
    pub(crate) fn remote(parent: Self, sampler: Sampler) -> Self {
        let sampled = if sampler.by_parent { parent.sampled } else { sampler.rate.takes(parent.trace) };
        Self { span: random(), sampled, ..parent }
    }

    /// A span below this one.
    pub(crate) fn child(self) -> Self {
        Self { span: random(), ..self }
    }
}

impl fmt::Display for SpanContext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "00-{}-{}-0{}", hex(&self.trace), hex(&self.span), u8::from(self.sampled))
    }
}

/// Hexadecimal digits.
pub(super) fn hex(bytes: &[u8]) -> String {
    use fmt::Write as _;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

fn bytes<const N: usize>(text: &str) -> Option<[u8; N]> {
    let digit = |byte: u8| match byte {
        b'0'..=b'9' => Some(byte - b'0'),
        b'a'..=b'f' => Some(byte - b'a' + 10),
        _ => None,
    };
    let text = text.as_bytes();
    if text.len() != N * 2 {
        return None;
    }
    let mut out = [0; N];
    for (byte, pair) in out.iter_mut().zip(text.chunks_exact(2)) {
        *byte = (digit(pair[0])? << 4) | digit(pair[1])?;
    }
    Some(out)
}

/// Identifiers nobody else has. A generator that fails leaves an odd identifier, which is no reason to fail a request.
fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [1; N];
    let _ = SystemRandom::new().fill(&mut bytes);
    bytes
}

/// Which traces are told.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Sampler {
    /// Whether a caller's decision is taken over.
    pub(crate) by_parent: bool,
    pub(crate) rate: Rate,
}

/// How many of the traces that begin here.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Rate {
    All,
    None,
    /// This part of them, between 0 and 1; chosen by the identifier, so that everybody chooses the same.
    Part(f64),
}

impl Rate {
    fn takes(self, trace: [u8; 16]) -> bool {
        match self {
            Self::All => true,
            Self::None => false,
            Self::Part(part) => {
                let [.., a, b, c, d, e, f, g, h] = trace;
                // As the SDKs of OpenTelemetry do it: 63 bits below the bound.
                let number = u64::from_be_bytes([a, b, c, d, e, f, g, h]) >> 1;
                (number as f64) < part * (1_u64 << 63) as f64
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

    #[test]
    fn headers_are_read() {
        let zero = |n: usize| "0".repeat(n);
        let rows = [
            (PARENT.to_owned(), Some(true)),
            (PARENT.replace("-01", "-00"), Some(false)),
            (PARENT.replace("-01", "-ff"), Some(true)),
            (PARENT.replace("00-0a", "01-0a") + "-more", Some(true)),
            (PARENT.to_owned() + "-more", None),
            (PARENT.replace("00-0a", "ff-0a"), None),
            (PARENT.replace("0af7", "0AF7"), None),
            (PARENT.replace("0af7", "0ag7"), None),
            (format!("00-{}-b7ad6b7169203331-01", zero(32)), None),
            (format!("00-0af7651916cd43dd8448eb211c80319c-{}-01", zero(16)), None),
            (PARENT[..54].to_owned(), None),
            ("00-é".to_owned(), None),
            (String::new(), None),
        ];
        for (text, sampled) in rows {
            assert_eq!(SpanContext::parse(&text).map(|context| context.sampled), sampled, "{text}");
        }
        assert_eq!(SpanContext::parse(PARENT).map(|c| c.to_string()).as_deref(), Some(PARENT));
    }

    #[test]
    fn who_is_sampled() {
        let parent = |sampled| SpanContext { sampled, ..SpanContext::parse(PARENT).expect("a context") };
        // Half of all identifiers end like this one, which is above the half.
        let rows = [
            (Sampler { by_parent: true, rate: Rate::None }, true, true),
            (Sampler { by_parent: true, rate: Rate::All }, false, false),
            (Sampler { by_parent: false, rate: Rate::All }, false, true),
            (Sampler { by_parent: false, rate: Rate::None }, true, false),
            (Sampler { by_parent: false, rate: Rate::Part(1.0) }, false, true),
            (Sampler { by_parent: false, rate: Rate::Part(0.5) }, true, false),
            (Sampler { by_parent: false, rate: Rate::Part(0.6) }, true, true),
        ];
        for (sampler, of_parent, expected) in rows {
            let context = SpanContext::remote(parent(of_parent), sampler);
            assert_eq!(context.sampled, expected, "{sampler:?}");
            assert_eq!(context.trace, parent(true).trace);
            assert_ne!(context.span, parent(true).span);
        }
        let part = Sampler { by_parent: true, rate: Rate::Part(0.25) };
        let taken = (0..4000).filter(|_| SpanContext::root(part).sampled).count();
        assert!((800..1200).contains(&taken), "{taken} of 4000");
    }
}
