//! The pulling half of the distribution protocol (OCI distribution specification, Docker registry v2): manifests and
//! blobs, token and basic authentication, redirects. Verifying what comes is the caller's business, except sizes.

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use http::header::{ACCEPT, AUTHORIZATION, LOCATION, WWW_AUTHENTICATE};
use http::uri::{Authority, Uri};
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode};
use http_body_util::Empty;
use hyper::body::Incoming;
use serde::Deserialize;
use tokio::sync::Mutex;

use crate::manifest::{DOCKER_LIST, DOCKER_MANIFEST, INDEX, MANIFEST, MAX_MANIFEST};
use crate::transport::{Http, next_bytes};
use crate::{Digest, ImageError, PullOptions, Reference};

/// Blobs are redirected to object stores, once or twice.
const MAX_REDIRECTS: usize = 5;
const MAX_TOKEN: u64 = 1 << 20;
/// How much of an error's text is worth showing.
const MAX_ERROR: u64 = 64 << 10;

/// A conversation about one repository.
pub(crate) struct Registry {
    http: Http,
    reference: String,
    repository: String,
    authority: Authority,
    plain_http_hosts: Vec<String>,
    credentials: Option<(String, String)>,
    /// The `Authorization` that worked last.
    authorization: Mutex<Option<HeaderValue>>,
}

/// How a registry wants to be asked. RFC 9110 section 11, distribution's token specification.
#[derive(Debug, PartialEq, Eq)]
enum Challenge {
    Bearer { realm: String, service: Option<String>, scope: Option<String> },
    Basic,
}

impl Registry {
    pub(crate) fn new(reference: &Reference, options: &PullOptions) -> Result<Self, ImageError> {
        // Docker's own registry does not answer under its name.
        let host =
            if reference.domain() == "docker.io" { "registry-1.docker.io" } else { reference.domain() };
        let authority = host.parse().map_err(|_| ImageError::Reference {
            reference: reference.to_string(),
            reason: "the registry is no host name or address".to_owned(),
        })?;
        Ok(Self {
            http: Http::new(options.ca.as_deref())?,
            reference: reference.to_string(),
            repository: reference.path().to_owned(),
            authority,
            plain_http_hosts: options.plain_http_hosts.clone(),
            credentials: options.credentials.clone(),
            authorization: Mutex::default(),
        })
    }

    /// The bytes of a manifest or an index, by tag or digest.
    pub(crate) async fn manifest(&self, wanted: &str) -> Result<Bytes, ImageError> {
        let accept = [MANIFEST, INDEX, DOCKER_MANIFEST, DOCKER_LIST].join(", ");
        let url = self.url(&format!("manifests/{wanted}"));
        let answer = self.get(&url, Some(&accept)).await?;
        self.read_all(answer, &url, MAX_MANIFEST).await
    }

    /// The bytes of a small blob.
    pub(crate) async fn small_blob(&self, digest: &Digest, limit: u64) -> Result<Bytes, ImageError> {
        let url = self.blob_url(digest);
        let answer = self.get(&url, None).await?;
        self.read_all(answer, &url, limit).await
    }

    /// The stream of a blob.
    pub(crate) async fn blob(&self, digest: &Digest) -> Result<Incoming, ImageError> {
        Ok(self.get(&self.blob_url(digest), None).await?.into_body())
    }

    pub(crate) fn blob_url(&self, digest: &Digest) -> String {
        self.url(&format!("blobs/{digest}"))
    }

    fn url(&self, rest: &str) -> String {
        let scheme = if self.is_plain(&self.authority) { "http" } else { "https" };
        format!("{scheme}://{}/v2/{}/{rest}", self.authority, self.repository)
    }

    fn is_plain(&self, authority: &Authority) -> bool {
        self.plain_http_hosts.iter().any(|host| host == authority.as_str() || host == authority.host())
    }

    /// Asks, authenticating once if that is wanted, and makes an error of everything but success.
    async fn get(&self, url: &str, accept: Option<&str>) -> Result<Response<Incoming>, ImageError> {
        let authorization = self.authorization.lock().await.clone();
        let answer = self.follow(url, accept, authorization.clone()).await?;
        if answer.status() != StatusCode::UNAUTHORIZED {
            return self.check(answer, url).await;
        }
        let authorization = self.authenticate(answer.headers(), authorization).await?;
        let answer = self.follow(url, accept, Some(authorization)).await?;
        self.check(answer, url).await
    }

    /// Asks and follows redirects. Only the host that was asked first sees our authorization.
    async fn follow(
        &self,
        url: &str,
        accept: Option<&str>,
        authorization: Option<HeaderValue>,
    ) -> Result<Response<Incoming>, ImageError> {
        let mut url = self.checked_url(url)?;
        for _ in 0..=MAX_REDIRECTS {
            let mut request = Request::get(url.clone());
            if let Some(accept) = accept {
                request = request.header(ACCEPT, accept);
            }
            if let Some(authorization) = authorization.clone()
                && url.authority() == Some(&self.authority)
            {
                request = request.header(AUTHORIZATION, authorization);
            }
            let request =
                request.body(Empty::new()).map_err(|error| ImageError::format(url.to_string(), error))?;
            let answer = self.http.send(request).await?;
            if !is_redirect(answer.status()) {
                return Ok(answer);
            }
            let location = answer.headers().get(LOCATION).and_then(|location| location.to_str().ok());
            let target = location.and_then(|location| join(&url, location));
            let target =
                target.ok_or_else(|| ImageError::format(url.to_string(), "it redirects to nowhere"))?;
            url = self.checked_url(&target)?;
        }
        Err(ImageError::format(url.to_string(), format!("more than {MAX_REDIRECTS} redirects")))
    }

    /// A URL we may ask: with TLS, or of a host for which none is allowed.
    fn checked_url(&self, url: &str) -> Result<Uri, ImageError> {
        let uri: Uri = url.parse().map_err(|error| ImageError::format(url, error))?;
        let plain = uri.authority().is_some_and(|authority| self.is_plain(authority));
        match uri.scheme_str() {
            Some("https") => Ok(uri),
            Some("http") if plain => Ok(uri),
            Some("http") => Err(ImageError::PlainHttp { url: url.to_owned() }),
            _ => Err(ImageError::format(url, "it is no URL of a web server")),
        }
    }

    async fn check(&self, answer: Response<Incoming>, url: &str) -> Result<Response<Incoming>, ImageError> {
        let status = answer.status();
        match status {
            StatusCode::OK => return Ok(answer),
            StatusCode::NOT_FOUND => return Err(ImageError::NotFound { reference: self.reference.clone() }),
            _ => {}
        }
        let message = self.error_message(answer, url).await;
        match status {
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
                Err(ImageError::Denied { reference: self.reference.clone(), reason: message })
            }
            _ => Err(ImageError::Registry { url: url.to_owned(), status: status.as_u16(), message }),
        }
    }

    /// What the registry says went wrong, or the beginning of what it sent.
    async fn error_message(&self, answer: Response<Incoming>, url: &str) -> String {
        #[derive(Deserialize)]
        struct Errors {
            errors: Vec<Problem>,
        }
        #[derive(Deserialize)]
        struct Problem {
            #[serde(default)]
            code: String,
            #[serde(default)]
            message: String,
        }
        let status = answer.status();
        let body = self.read_all(answer, url, MAX_ERROR).await.unwrap_or_default();
        match serde_json::from_slice::<Errors>(&body) {
            Ok(Errors { errors }) if !errors.is_empty() => {
                let texts = errors.iter().map(|problem| format!("{}: {}", problem.code, problem.message));
                texts.collect::<Vec<_>>().join(", ")
            }
            _ => status.canonical_reason().unwrap_or("no reason given").to_owned(),
        }
    }

    async fn read_all(&self, answer: Response<Incoming>, url: &str, limit: u64) -> Result<Bytes, ImageError> {
        let mut body = answer.into_body();
        let mut bytes = Vec::new();
        while let Some(more) = next_bytes(&mut body, url).await? {
            if (bytes.len() + more.len()) as u64 > limit {
                let reason = format!("more than {limit} bytes");
                return Err(ImageError::Size { what: url.to_owned(), reason });
            }
            bytes.extend_from_slice(&more);
        }
        Ok(bytes.into())
    }

    /// Does what the challenge asks for. Of many concurrent requests one does it for all.
    async fn authenticate(
        &self,
        headers: &HeaderMap,
        used: Option<HeaderValue>,
    ) -> Result<HeaderValue, ImageError> {
        let mut current = self.authorization.lock().await;
        if let Some(newer) = &*current
            && Some(newer) != used.as_ref()
        {
            return Ok(newer.clone());
        }
        let denied = |reason: &str| ImageError::Denied {
            reference: self.reference.clone(),
            reason: reason.to_owned(),
        };
        let authorization = match challenge(headers) {
            Some(Challenge::Bearer { realm, service, scope }) => {
                format!("Bearer {}", self.token(&realm, service, scope).await?)
            }
            Some(Challenge::Basic) => {
                self.basic().ok_or_else(|| denied("the registry wants a user and a password"))?
            }
            None => return Err(denied("the registry does not say how to authenticate")),
        };
        let mut authorization = HeaderValue::from_str(&authorization)
            .map_err(|_| denied("the registry gave a malformed token"))?;
        authorization.set_sensitive(true);
        *current = Some(authorization.clone());
        Ok(authorization)
    }

    fn basic(&self) -> Option<String> {
        let (user, password) = self.credentials.as_ref()?;
        Some(format!("Basic {}", BASE64_STANDARD.encode(format!("{user}:{password}"))))
    }

    async fn token(
        &self,
        realm: &str,
        service: Option<String>,
        scope: Option<String>,
    ) -> Result<String, ImageError> {
        #[derive(Deserialize)]
        struct Token {
            token: Option<String>,
            access_token: Option<String>,
        }
        let scope = scope.unwrap_or_else(|| format!("repository:{}:pull", self.repository));
        let mut url =
            format!("{realm}{}scope={}", if realm.contains('?') { '&' } else { '?' }, escape(&scope));
        if let Some(service) = service {
            url.push_str(&format!("&service={}", escape(&service)));
        }
        let mut request = Request::get(self.checked_url(&url)?);
        if let Some(basic) = self.basic() {
            request = request.header(AUTHORIZATION, basic);
        }
        let request = request.body(Empty::new()).map_err(|error| ImageError::format(&*url, error))?;
        let answer = self.http.send(request).await?;
        let answer = self.check(answer, &url).await?;
        let body = self.read_all(answer, &url, MAX_TOKEN).await?;
        let token: Token = crate::manifest::parse("the registry's token", &body)?;
        let token = token.token.or(token.access_token);
        token.ok_or_else(|| ImageError::format("the registry's token", "there is none"))
    }
}

fn is_redirect(status: StatusCode) -> bool {
    matches!(status.as_u16(), 301 | 302 | 303 | 307 | 308)
}

/// The target of a redirect: another URL, or a path on the same host.
fn join(base: &Uri, location: &str) -> Option<String> {
    if location.contains("://") {
        return Some(location.to_owned());
    }
    let (scheme, authority) = (base.scheme_str()?, base.authority()?);
    match location.strip_prefix("//") {
        Some(rest) => Some(format!("{scheme}://{rest}")),
        None => location.starts_with('/').then(|| format!("{scheme}://{authority}{location}")),
    }
}

/// The first challenge we can answer; a token before a password.
fn challenge(headers: &HeaderMap) -> Option<Challenge> {
    let texts = headers.get_all(WWW_AUTHENTICATE).iter().filter_map(|value| value.to_str().ok());
    let mut challenges: Vec<Challenge> = texts.filter_map(parse_challenge).collect();
    challenges.sort_by_key(|challenge| *challenge == Challenge::Basic);
    challenges.into_iter().next()
}

fn parse_challenge(text: &str) -> Option<Challenge> {
    let (scheme, parameters) = text.split_once(' ').unwrap_or((text, ""));
    if scheme.eq_ignore_ascii_case("basic") {
        return Some(Challenge::Basic);
    }
    if !scheme.eq_ignore_ascii_case("bearer") {
        return None;
    }
    let (mut realm, mut service, mut scope) = (None, None, None);
    let mut rest = parameters.trim_start_matches([' ', ',']);
    while let Some((key, after)) = rest.split_once('=') {
        let (value, after) = match after.strip_prefix('"') {
            Some(quoted) => quoted.split_once('"')?,
            None => after.split_once(',').unwrap_or((after, "")),
        };
        match key.trim().to_ascii_lowercase().as_str() {
            "realm" => realm = Some(value.to_owned()),
            "service" => service = Some(value.to_owned()),
            "scope" => scope = Some(value.to_owned()),
            _ => {}
        }
        rest = after.trim_start_matches([' ', ',']);
    }
    Some(Challenge::Bearer { realm: realm?, service, scope })
}

/// Percent-encoding of a query's value. RFC 3986.
fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' | b'/' | b':' => {
                escaped.push(byte.into());
            }
            other => escaped.push_str(&format!("%{other:02X}")),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn challenges() {
        let bearer = |service: Option<&str>, scope: Option<&str>| {
            Some(Challenge::Bearer {
                realm: "https://a/t".to_owned(),
                service: service.map(str::to_owned),
                scope: scope.map(str::to_owned),
            })
        };
        let rows = [
            (
                r#"Bearer realm="https://a/t",service="r",scope="repository:a/b:pull,push""#,
                bearer(Some("r"), Some("repository:a/b:pull,push")),
            ),
            (r#"bearer service=r, realm="https://a/t""#, bearer(Some("r"), None)),
            (r#"Basic realm="x""#, Some(Challenge::Basic)),
            ("Bearer", None),
            (r#"Bearer realm="open"#, None),
            ("Negotiate", None),
        ];
        for (text, expected) in rows {
            assert_eq!(parse_challenge(text), expected, "{text}");
        }
    }

    #[test]
    fn redirects() {
        let base: Uri = "https://a:1/v2/x".parse().unwrap();
        let rows = [
            ("/y?z=1", Some("https://a:1/y?z=1")),
            ("http://b/y", Some("http://b/y")),
            ("//b/y", Some("https://b/y")),
            ("y", None),
        ];
        for (location, expected) in rows {
            assert_eq!(join(&base, location).as_deref(), expected, "{location}");
        }
    }
}
