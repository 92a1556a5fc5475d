//! Names of images as Docker reads them: `nginx` is `docker.io/library/nginx:latest`. The grammar is that of
//! distribution's `reference` package.

use std::fmt;
use std::str::FromStr;

use crate::{Digest, ImageError};

/// The registry meant when none is named.
const DEFAULT_DOMAIN: &str = "docker.io";
const DEFAULT_TAG: &str = "latest";
/// The limit of the distribution specification for a name.
const MAX_NAME: usize = 255;

/// A normalised name of an image.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Reference {
    domain: String,
    path: String,
    tag: Option<String>,
    digest: Option<Digest>,
}

impl Reference {
    /// `docker.io`, `localhost:5000`.
    pub fn domain(&self) -> &str {
        &self.domain
    }

    /// `library/nginx`.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// `docker.io/library/nginx`.
    pub fn repository(&self) -> String {
        format!("{}/{}", self.domain, self.path)
    }

    /// The digest, when the name pins one.
    pub fn digest(&self) -> Option<&Digest> {
        self.digest.as_ref()
    }

    /// What to ask a registry for: the digest if there is one, or else the tag.
    pub fn wanted(&self) -> String {
        match (&self.digest, &self.tag) {
            (Some(digest), _) => digest.to_string(),
            (None, tag) => tag.as_deref().unwrap_or(DEFAULT_TAG).to_owned(),
        }
    }

    /// `docker.io/library/nginx:latest`; `None` when only a digest is named.
    pub fn tagged(&self) -> Option<String> {
        match (&self.tag, &self.digest) {
            (Some(tag), _) => Some(format!("{}:{tag}", self.repository())),
            (None, Some(_)) => None,
            (None, None) => Some(format!("{}:{DEFAULT_TAG}", self.repository())),
        }
    }

    /// `docker.io/library/nginx@sha256:…`.
    pub fn with_digest(&self, digest: &Digest) -> String {
        format!("{}@{digest}", self.repository())
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.digest, self.tagged()) {
            (Some(digest), _) => formatter.write_str(&self.with_digest(digest)),
            (None, tagged) => formatter.write_str(&tagged.unwrap_or_default()),
        }
    }
}

impl FromStr for Reference {
    type Err = ImageError;

    fn from_str(text: &str) -> Result<Self, ImageError> {
        let invalid =
            |reason: &str| ImageError::Reference { reference: text.to_owned(), reason: reason.to_owned() };
        let (name, digest) = match text.split_once('@') {
            Some((name, digest)) => {
                (name, Some(digest.parse().map_err(|_| invalid("only sha256 digests are known"))?))
            }
            None => (text, None),
        };
        // A colon behind the last slash is a tag, before it a port.
        let (name, tag) = match name.rsplit_once(':') {
            Some((name, tag)) if !tag.contains('/') => (name, Some(tag)),
            _ => (name, None),
        };
        if tag.is_some_and(|tag| !is_tag(tag)) {
            return Err(invalid("the tag is malformed"));
        }
        let (domain, path) = split_domain(name);
        if !is_domain(&domain) {
            return Err(invalid("the registry is no host name or address"));
        }
        if !path.split('/').all(is_component) {
            return Err(invalid(
                "a name is made of lower-case letters and digits, separated by . _ __ - or /",
            ));
        }
        if domain.len() + 1 + path.len() > MAX_NAME {
            return Err(invalid("the name is longer than 255 characters"));
        }
        Ok(Self { domain, path, tag: tag.map(str::to_owned), digest })
    }
}

/// The first part is a registry if it could not be a name: it has a dot, a port, an upper-case letter, or is
/// `localhost`.
fn split_domain(name: &str) -> (String, String) {
    let is_domain = |part: &str| {
        part.contains(['.', ':']) || part == "localhost" || part.bytes().any(|byte| byte.is_ascii_uppercase())
    };
    let (domain, path) = match name.split_once('/') {
        Some((domain, path)) if is_domain(domain) => (domain, path),
        _ => (DEFAULT_DOMAIN, name),
    };
    match domain {
        DEFAULT_DOMAIN | "index.docker.io" if !path.contains('/') => {
            (DEFAULT_DOMAIN.to_owned(), format!("library/{path}"))
        }
        "index.docker.io" => (DEFAULT_DOMAIN.to_owned(), path.to_owned()),
        _ => (domain.to_owned(), path.to_owned()),
    }
}

/// A host name or an address, maybe with a port.
fn is_domain(domain: &str) -> bool {
    let is_label = |label: &str| {
        let bounded = |byte: Option<&u8>| byte.is_some_and(u8::is_ascii_alphanumeric);
        bounded(label.as_bytes().first())
            && bounded(label.as_bytes().last())
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
    };
    let Ok(authority) = domain.parse::<http::uri::Authority>() else { return false };
    let host = authority.host();
    match host.strip_prefix('[').and_then(|host| host.strip_suffix(']')) {
        Some(address) => address.parse::<std::net::Ipv6Addr>().is_ok(),
        // Without this a user name before the host would pass.
        None => domain.starts_with(host) && host.split('.').all(is_label),
    }
}

fn is_tag(tag: &str) -> bool {
    let word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    let (first, rest) = tag.as_bytes().split_first().map_or((b'-', &[][..]), |(first, rest)| (*first, rest));
    tag.len() <= 128 && word(first) && rest.iter().all(|byte| word(*byte) || matches!(byte, b'.' | b'-'))
}

/// Letters and digits with single separators between them: one dot, one or two underscores, any number of dashes.
fn is_component(component: &str) -> bool {
    let is_letter = |byte: &u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let bytes = component.as_bytes();
    let bounded = bytes.first().is_some_and(is_letter) && bytes.last().is_some_and(is_letter);
    let separators = component.split(|letter: char| letter.is_ascii_lowercase() || letter.is_ascii_digit());
    bounded
        && separators.into_iter().all(|separator| {
            matches!(separator, "" | "." | "_" | "__") || separator.bytes().all(|byte| byte == b'-')
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_as_docker_reads_them() {
        let digest = Digest::of(b"");
        let rows = [
            ("nginx", "docker.io/library/nginx:latest"),
            ("nginx:1.27", "docker.io/library/nginx:1.27"),
            ("user/app", "docker.io/user/app:latest"),
            ("docker.io/nginx", "docker.io/library/nginx:latest"),
            ("index.docker.io/nginx", "docker.io/library/nginx:latest"),
            ("localhost/app", "localhost/app:latest"),
            ("localhost:5000/app:v1", "localhost:5000/app:v1"),
            ("127.0.0.1:5000/a/b__c/d--e", "127.0.0.1:5000/a/b__c/d--e:latest"),
            ("[::1]:5000/app", "[::1]:5000/app:latest"),
            ("registry.k8s.io/pause:3.10", "registry.k8s.io/pause:3.10"),
            (&format!("nginx@{digest}"), &format!("docker.io/library/nginx@{digest}")),
            (&format!("nginx:1.27@{digest}"), &format!("docker.io/library/nginx@{digest}")),
        ];
        for (text, expected) in rows {
            assert_eq!(text.parse::<Reference>().unwrap().to_string(), expected);
        }
        let pinned = format!("nginx:1.27@{digest}").parse::<Reference>().unwrap();
        assert_eq!(pinned.tagged().as_deref(), Some("docker.io/library/nginx:1.27"));
        assert_eq!(format!("nginx@{digest}").parse::<Reference>().unwrap().tagged(), None);
    }

    #[test]
    fn malformed_names_are_refused() {
        let long = "a".repeat(256);
        let rows = [
            "",
            ":",
            "/",
            "a/",
            "/a",
            "a//b",
            "A",
            "a:",
            "a:-x",
            "a@",
            "a@sha256:12",
            "-a",
            "a-",
            "a..b",
            "a___b",
            "a._b",
            "../a",
            "a/../b",
            "a b",
            "ä",
            "http://a/b",
            "a:b:c",
            "x@y.com/a",
            &long,
        ];
        for text in rows {
            assert!(text.parse::<Reference>().is_err(), "{text:?}");
        }
    }
}
