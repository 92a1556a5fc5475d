//! URLs: `url(…)`, `isURL(…)` and what can be asked of one.
//!
//! What a URL is, Go's `net/url` decides upstream, and rules are written against it: hosts are not looked into, ports
//! are digits, a path may hold anything. The `url` crate follows the WHATWG, which repairs and normalises, so that it
//! answers other things; this is a small parser of our own after `net/url`. A text is a URL when `ParseRequestURI` takes
//! it: an absolute URI or an absolute path.
//!
//! Source: `k8s.io/apiserver/pkg/cel/library/urls.go`, `net/url`.

use std::collections::BTreeMap;
use std::net::Ipv6Addr;

use kube_cel::cel::Value;
use kube_cel::cel::objects::Opaque;

/// A parsed URL. Two are equal when they are written alike.
#[derive(Debug, Default)]
pub(super) struct Url {
    pub(super) scheme: String,
    /// Name and password, unescaped.
    user: Option<(Vec<u8>, Option<Vec<u8>>)>,
    /// Two slashes stood after the scheme, perhaps without a host after them.
    has_authority: bool,
    /// With port, and with brackets around an IPv6 address.
    pub(super) host: String,
    /// What follows the scheme where no slash does.
    opaque: String,
    /// As it was written.
    path: String,
    query: String,
    /// A question mark without a query.
    has_empty_query: bool,
    fragment: Vec<u8>,
    /// Bytes of the text it was read from.
    length: usize,
}

impl PartialEq for Url {
    fn eq(&self, other: &Self) -> bool {
        self.text() == other.text()
    }
}

impl Eq for Url {}

impl Opaque for Url {
    fn runtime_type_name(&self) -> &str {
        "kubernetes.URL"
    }
}

/// Bytes of a URL, nothing for other values: what a walk over it costs.
pub(super) fn length(value: &Value) -> u64 {
    let Value::Opaque(opaque) = value else { return 0 };
    opaque.downcast_ref::<Url>().map_or(0, |url| url.length as u64)
}

/// Where a text stands in a URL: what must be escaped there differs.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Part {
    Host,
    Zone,
    User,
    Path,
    Query,
    Fragment,
}

/// Whether a text is one: `ParseRequestURI`.
pub(super) fn is_url(text: &str) -> bool {
    parse(text, true).is_ok()
}

impl Url {
    /// Reads an absolute URI or an absolute path, perhaps with a fragment.
    pub(super) fn read(text: &str) -> Result<Self, String> {
        parse(text, true)?;
        let (before, fragment) = text.split_once('#').unwrap_or((text, ""));
        let mut url = parse(before, false)?;
        url.fragment = unescape(fragment, Part::Fragment)?;
        url.length = text.len();
        Ok(url)
    }

    /// The host without port and brackets.
    pub(super) fn hostname(&self) -> &str {
        let (host, _) = self.host_and_port();
        host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host)
    }

    pub(super) fn port(&self) -> &str {
        self.host_and_port().1
    }

    fn host_and_port(&self) -> (&str, &str) {
        match self.host.rfind(':') {
            Some(at) if is_port(&self.host[at..]) => (&self.host[..at], &self.host[at + 1..]),
            _ => (&self.host, ""),
        }
    }

    /// The path as it was written if that is escaped well, else escaped anew.
    pub(super) fn escaped_path(&self) -> String {
        let allowed = |byte: u8| b"!$&'()*+,;=:@[]%".contains(&byte) || !must_escape(byte, Part::Path);
        if self.path == "*" || self.path.bytes().all(allowed) {
            return self.path.clone();
        }
        unescape(&self.path, Part::Path).map(|path| escape(&path, Part::Path)).unwrap_or_default()
    }

    /// Values by key, unescaped. What is not escaped well is left out.
    pub(super) fn query(&self) -> BTreeMap<String, Vec<String>> {
        let mut values: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for pair in self.query.split('&').filter(|pair| !pair.is_empty() && !pair.contains(';')) {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            if let (Ok(key), Ok(value)) = (unescape(key, Part::Query), unescape(value, Part::Query)) {
                values.entry(lossy(key)).or_default().push(lossy(value));
            }
        }
        values
    }

    /// The URL as it is written.
    fn text(&self) -> String {
        let mut out = String::new();
        if !self.scheme.is_empty() {
            out.push_str(&self.scheme);
            out.push(':');
        }
        if self.opaque.is_empty() {
            if self.has_authority && !(self.host.is_empty() && self.user.is_none() && self.path.is_empty()) {
                out.push_str("//");
            }
            if let Some((name, password)) = &self.user {
                out.push_str(&escape(name, Part::User));
                if let Some(password) = password {
                    out.push(':');
                    out.push_str(&escape(password, Part::User));
                }
                out.push('@');
            }
            out.push_str(&escape(self.host.as_bytes(), Part::Host));
            out.push_str(&self.escaped_path());
        } else {
            out.push_str(&self.opaque);
        }
        if self.has_empty_query || !self.query.is_empty() {
            out.push('?');
            out.push_str(&self.query);
        }
        if !self.fragment.is_empty() {
            out.push('#');
            out.push_str(&escape(&self.fragment, Part::Fragment));
        }
        out
    }
}

fn lossy(bytes: Vec<u8>) -> String {
    String::from_utf8(bytes).unwrap_or_else(|error| String::from_utf8_lossy(error.as_bytes()).into_owned())
}

/// Reads a URL without a fragment. `of_request`: it must be absolute, and two slashes begin no host without a scheme.
fn parse(text: &str, of_request: bool) -> Result<Url, String> {
    if text.bytes().any(|byte| byte < b' ' || byte == 0x7f) {
        return Err("net/url: invalid control character in URL".to_owned());
    }
    if text.is_empty() && of_request {
        return Err("empty url".to_owned());
    }
    let mut url = Url::default();
    if text == "*" {
        url.path = text.to_owned();
        return Ok(url);
    }
    let (scheme, rest) = split_scheme(text)?;
    url.scheme = scheme.to_ascii_lowercase();
    let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
    url.query = query.to_owned();
    url.has_empty_query = query.is_empty() && text.ends_with('?');
    if !rest.starts_with('/') {
        if !url.scheme.is_empty() {
            url.opaque = rest.to_owned();
            return Ok(url);
        }
        if of_request {
            return Err("invalid URI for request".to_owned());
        }
        if rest.split('/').next().is_some_and(|first| first.contains(':')) {
            return Err("first path segment in URL cannot contain colon".to_owned());
        }
    }
    let has_host = !url.scheme.is_empty() || !of_request && !rest.starts_with("///");
    let path = match rest.strip_prefix("//").filter(|_| has_host) {
        Some(rest) => {
            let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
            url.has_authority = true;
            read_authority(&mut url, authority)?;
            path
        }
        None => rest,
    };
    unescape(path, Part::Path)?;
    url.path = path.to_owned();
    Ok(url)
}

/// The scheme before the first colon, if all before it can be one.
fn split_scheme(text: &str) -> Result<(&str, &str), String> {
    for (at, byte) in text.bytes().enumerate() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' => {}
            b'0'..=b'9' | b'+' | b'-' | b'.' if at > 0 => {}
            b':' if at == 0 => return Err("missing protocol scheme".to_owned()),
            b':' => return Ok((&text[..at], &text[at + 1..])),
            _ => return Ok(("", text)),
        }
    }
    Ok(("", text))
}

fn read_authority(url: &mut Url, authority: &str) -> Result<(), String> {
    let host = match authority.rsplit_once('@') {
        Some((user, host)) => {
            let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"-._:~!$&'()*+,;=%@".contains(&byte);
            if !user.bytes().all(allowed) {
                return Err("net/url: invalid userinfo".to_owned());
            }
            let (name, password) = match user.split_once(':') {
                Some((name, password)) => (name, Some(unescape(password, Part::User)?)),
                None => (user, None),
            };
            url.user = Some((unescape(name, Part::User)?, password));
            host
        }
        None => authority,
    };
    url.host = read_host(host)?;
    Ok(())
}

/// A host with its port. An address of version 6 stands in brackets, perhaps with a zone (RFC 6874).
fn read_host(text: &str) -> Result<String, String> {
    let invalid = || "invalid host".to_owned();
    let Some(inside) = text.strip_prefix('[') else {
        if text.contains(['[', ']']) {
            return Err(invalid());
        }
        if let Some(at) = text.find(':')
            && !is_port(&text[at..])
        {
            return Err("invalid port after host".to_owned());
        }
        return unescape(text, Part::Host).map(lossy);
    };
    let (inside, port) = inside.rsplit_once(']').ok_or("missing ']' in host")?;
    if !port.is_empty() && !is_port(port) {
        return Err("invalid port after host".to_owned());
    }
    let (address, zone) = inside.split_at(inside.find("%25").unwrap_or(inside.len()));
    let address = lossy(unescape(address, Part::Host)?);
    let zone = lossy(unescape(zone, Part::Zone)?);
    address.parse::<Ipv6Addr>().map_err(|_| invalid())?;
    Ok(format!("[{address}{zone}]{port}"))
}

/// A colon and digits, or a colon alone.
fn is_port(text: &str) -> bool {
    text.strip_prefix(':').is_some_and(|digits| digits.bytes().all(|byte| byte.is_ascii_digit()))
}

/// Whether a byte is written as `%XX` in a part.
fn must_escape(byte: u8, part: Part) -> bool {
    match byte {
        byte if byte.is_ascii_alphanumeric() || b"-_.~".contains(&byte) => false,
        byte if matches!(part, Part::Host | Part::Zone) => !b"!$&'()*+,;=:[]<>\"".contains(&byte),
        b'$' | b'&' | b'+' | b',' | b'/' | b':' | b';' | b'=' | b'?' | b'@' => match part {
            Part::Path => byte == b'?',
            Part::User => matches!(byte, b'@' | b'/' | b'?' | b':'),
            Part::Fragment => false,
            Part::Host | Part::Zone | Part::Query => true,
        },
        b'!' | b'(' | b')' | b'*' => part != Part::Fragment,
        _ => true,
    }
}

fn escape(bytes: &[u8], part: Part) -> String {
    let mut out = String::with_capacity(bytes.len());
    for byte in bytes {
        if must_escape(*byte, part) {
            out.push_str(&format!("%{byte:02X}"));
        } else {
            out.push(char::from(*byte));
        }
    }
    out
}

fn unescape(text: &str, part: Part) -> Result<Vec<u8>, String> {
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [byte, after @ ..] = rest {
        rest = after;
        match byte {
            b'%' => {
                let byte = after.get(..2).and_then(hex).ok_or("invalid URL escape")?;
                let is_fit = match part {
                    // Only what is no ASCII may be escaped in a host, and the sign itself before a zone.
                    Part::Host => byte >= 0x80 || byte == b'%',
                    Part::Zone => byte == b'%' || byte == b' ' || !must_escape(byte, Part::Host),
                    _ => true,
                };
                if !is_fit {
                    return Err("invalid URL escape".to_owned());
                }
                out.push(byte);
                rest = &after[2..];
            }
            b'+' if part == Part::Query => out.push(b' '),
            byte if matches!(part, Part::Host | Part::Zone) && *byte < 0x80 && must_escape(*byte, part) => {
                return Err("invalid character in host name".to_owned());
            }
            byte => out.push(*byte),
        }
    }
    Ok(out)
}

fn hex(digits: &[u8]) -> Option<u8> {
    let digit = |byte: u8| char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
    match digits {
        [high, low] => Some(digit(*high)? << 4 | digit(*low)?),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts() {
        // Scheme, host, host name, port, path.
        let rows = [
            (
                "https://user:pass@example.com:80/path?query=val#frag",
                ["https", "example.com:80", "example.com", "80", "/path"],
            ),
            ("/absolute-path", ["", "", "", "", "/absolute-path"]),
            ("https://example.com", ["https", "example.com", "example.com", "", ""]),
            ("https://example.com/", ["https", "example.com", "example.com", "", "/"]),
            ("HTTPS://Example.com:443/", ["https", "Example.com:443", "Example.com", "443", "/"]),
            ("http://localhost/x", ["http", "localhost", "localhost", "", "/x"]),
            ("https://[::1]:80/", ["https", "[::1]:80", "::1", "80", "/"]),
            ("https://[::1]/", ["https", "[::1]", "::1", "", "/"]),
            ("https://[fe80::1%25en0]:8080/", ["https", "[fe80::1%en0]:8080", "fe80::1%en0", "8080", "/"]),
            ("https://127.0.0.1:80/", ["https", "127.0.0.1:80", "127.0.0.1", "80", "/"]),
            ("https://example.com:/", ["https", "example.com:", "example.com", "", "/"]),
            (
                "https://example.com/path with spaces/",
                ["https", "example.com", "example.com", "", "/path%20with%20spaces/"],
            ),
            ("https://example.com/a%2Fb%zz", ["", "", "", "", ""]),
            ("https://example.com/a%2Fb/../c", ["https", "example.com", "example.com", "", "/a%2Fb/../c"]),
            ("mailto:a@example.com", ["mailto", "", "", "", ""]),
            ("//example.com/x", ["", "example.com", "example.com", "", "/x"]),
            ("http://a%C3%A4.com/", ["http", "aä.com", "aä.com", "", "/"]),
        ];
        for (text, [scheme, host, name, port, path]) in rows {
            match Url::read(text) {
                Ok(url) => {
                    let found =
                        [url.scheme.as_str(), &url.host, url.hostname(), url.port(), &url.escaped_path()];
                    assert_eq!(found, [scheme, host, name, port, path], "{text}");
                }
                Err(why) => assert_eq!((host, why.as_str()), ("", "invalid URL escape"), "{text}"),
            }
        }
    }

    #[test]
    fn what_is_none() {
        let none = [
            "",
            "../relative-path",
            "relative",
            "https://a:b:c/",
            "https://example.com:x/",
            "http://::1/",
            "http://[::1",
            "http://[1.2.3.4]/",
            "http://a b.com/",
            "http://a%20b.com/",
            ":no-scheme",
            "1http://x",
            "https://x/%",
            "http://us er@x/",
            "https://a\nb/",
            "http://a[b]/",
            "http://[::1]x/",
            "?query",
            "#fragment",
        ];
        for text in none {
            assert!(!is_url(text) && Url::read(text).is_err(), "{text}");
        }
    }

    #[test]
    fn queries_and_equality() {
        let query = |text: &str| format!("{:?}", Url::read(text).expect("a URL").query());
        assert_eq!(query("https://x/p?k1=a&k2=b&k2=c"), r#"{"k1": ["a"], "k2": ["b", "c"]}"#);
        assert_eq!(
            query("/p?key with+spaces=a%20b&x&bad=%zz&s;=1"),
            r#"{"key with spaces": ["a b"], "x": [""]}"#
        );
        assert_eq!(query("/p?"), "{}");
        let same = |a: &str, b: &str| Url::read(a) == Url::read(b);
        assert!(same("https://x/a b", "HTTPS://x/a%20b") && same("https://x/p#f", "https://x/p#f"));
        assert!(!same("https://x/p", "https://x/p?") && !same("https://x/", "https://X/"));
        assert!(!same("https://x", "https://x/") && !same("https://a@x/", "https://x/"));
        assert!(!same("https://x/p#f", "https://x/p#g"));
        assert!(!same("file:/a", "file:///a") && same("file:///a", "FILE:///a"));
        assert!(same("file:", "file://") && !same("file:/", "file://"));
    }
}
