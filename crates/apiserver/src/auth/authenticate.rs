//! Who sent a request: a list of authenticators behind one interface.
//!
//! A request brings [`Evidence`]: what the transport knows of its sender, its headers, a bearer token. Each
//! [`Authenticator`] looks at the part it understands and says who it is, that it has nothing to say, or why the evidence
//! is bad. The first that knows the sender decides. `TokenReview` asks the same list about a token alone, so that what is
//! true of a request is true of a review.
//!
//! Clients in the same process do not come here: their transport says who they are.

use std::sync::Arc;

use async_trait::async_trait;
use http::header::{AUTHORIZATION, HeaderMap};

use super::User;
use super::bootstrap_tokens::BootstrapTokens;
use super::certificates::{ClientCertificates, FrontProxies, FrontProxy, PeerCertificate};
use super::oidc::{Anonymous, AuthenticationConfiguration, Fetch, Issuer};
use super::tokens::Tokens;
use crate::cache::WatchCache;
use crate::error::ApiError;
use crate::outbound::Outbound;
use crate::pki::Pki;

/// Longer tokens are refused unread: tokens of identity providers with many groups are some kilobytes.
pub(crate) const MAX_TOKEN: usize = 16 * 1024;

/// What shows who somebody is. Parts that are absent are `None`.
pub(crate) struct Evidence<'a> {
    /// The certificate the TLS handshake has verified.
    pub(crate) certificate: Option<&'a PeerCertificate>,
    /// Headers of the request; none in a review of a token.
    pub(crate) headers: Option<&'a HeaderMap>,
    /// The bearer token.
    pub(crate) token: Option<&'a str>,
    /// Whom the token must be for; empty: this server.
    pub(crate) audiences: &'a [String],
    /// What this server is called in tokens.
    pub(crate) own_audience: &'a str,
    /// Seconds since 1970.
    pub(crate) now: i64,
}

impl Evidence<'_> {
    /// The audiences of evidence that says nothing of audiences and is for this server only; `None` when it is wanted
    /// for others.
    pub(crate) fn audiences_here(&self) -> Option<Vec<String>> {
        let wanted = self.audiences.is_empty() || self.audiences.iter().any(|a| a == self.own_audience);
        wanted.then(|| vec![self.own_audience.to_owned()])
    }
}

/// A known sender.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Authenticated {
    pub(crate) user: User,
    /// Which of the wanted audiences the evidence is for.
    pub(crate) audiences: Vec<String>,
}

/// A known sender, nothing to say, or why the evidence is bad (for the log, not for the client).
pub(crate) type Verdict = Result<Option<Authenticated>, String>;

/// One way of showing who one is.
#[async_trait]
pub(crate) trait Authenticator: Send + Sync {
    /// Looks at the evidence.
    async fn authenticate(&self, evidence: &Evidence<'_>) -> Verdict;
}

/// How people and programs may come in besides client certificates of the cluster's authority, service account tokens
/// and bootstrap tokens, which always exist.
#[derive(Default)]
pub struct Authentication {
    /// Issuers of tokens and what anonymous requests may see.
    pub configuration: AuthenticationConfiguration,
    /// Fetches keys of issuers. `None`: the server's own client does.
    pub fetch: Option<Arc<dyn Fetch>>,
    /// Proxies that have authenticated the user themselves.
    pub front_proxy: Option<FrontProxy>,
}

/// All authenticators, in the order in which they are asked.
pub(crate) struct Authenticators {
    list: Vec<Box<dyn Authenticator>>,
    own_audience: String,
    anonymous: Anonymous,
    front_proxies: Option<Arc<FrontProxies>>,
}

impl Authenticators {
    pub(crate) fn new(
        with: Authentication,
        pki: &Pki,
        tokens: Arc<Tokens>,
        cache: Arc<WatchCache>,
        outbound: Arc<Outbound>,
    ) -> Result<Self, String> {
        let fetch = with.fetch.unwrap_or(outbound);
        let front_proxies =
            with.front_proxy.map(|proxy| FrontProxies::new(proxy, pki).map(Arc::new)).transpose()?;
        let own_audience = tokens.audience().to_owned();
        if with.configuration.names_issuer(&own_audience) {
            return Err(format!("jwt: the issuer {own_audience} is the cluster's own"));
        }
        let mut list: Vec<Box<dyn Authenticator>> = Vec::new();
        list.extend(front_proxies.clone().map(|proxies| Box::new(proxies) as Box<dyn Authenticator>));
        list.push(Box::new(ClientCertificates));
        list.push(Box::new(tokens));
        list.push(Box::new(BootstrapTokens::new(cache)));
        for issuer in with.configuration.jwt {
            list.push(Box::new(Issuer::new(issuer, fetch.clone())));
        }
        Ok(Self { list, own_audience, anonymous: with.configuration.anonymous, front_proxies })
    }

    /// What is known of a verified client certificate, for all requests of its connection.
    pub(crate) fn peer(&self, chain: &[rustls::pki_types::CertificateDer<'_>]) -> Option<PeerCertificate> {
        PeerCertificate::of(chain, self.front_proxies.as_deref())
    }

    /// Who sent a request. Bad evidence is refused, no evidence at all is nobody in particular.
    pub(crate) async fn request(
        &self,
        headers: &HeaderMap,
        certificate: Option<&PeerCertificate>,
        path: &str,
        now: i64,
    ) -> Result<User, ApiError> {
        let token = bearer(headers)?;
        let evidence = Evidence {
            certificate,
            headers: Some(headers),
            token,
            audiences: &[],
            own_audience: &self.own_audience,
            now,
        };
        match self.ask(&evidence).await {
            Ok(Some(found)) => Ok(found.user),
            Ok(None) if token.is_none() && self.anonymous.may_see(path) => Ok(User::anonymous()),
            Ok(None) => Err(ApiError::unauthorized()),
            Err(why) => {
                tracing::debug!(%why, path, "a request could not be authenticated");
                Err(ApiError::unauthorized())
            }
        }
    }

    /// Whose token it is.
    pub(crate) async fn review(&self, token: &str, audiences: &[String], now: i64) -> Verdict {
        let evidence = Evidence {
            certificate: None,
            headers: None,
            token: Some(token),
            audiences,
            own_audience: &self.own_audience,
            now,
        };
        self.ask(&evidence).await
    }

    async fn ask(&self, evidence: &Evidence<'_>) -> Verdict {
        if evidence.token.is_some_and(|token| token.len() > MAX_TOKEN) {
            return Err("the token is too long".to_owned());
        }
        let mut reasons = Vec::new();
        for authenticator in &self.list {
            match authenticator.authenticate(evidence).await {
                Ok(Some(found)) => return Ok(Some(found)),
                Ok(None) => {}
                Err(why) => reasons.push(why),
            }
        }
        if reasons.is_empty() { Ok(None) } else { Err(reasons.join("; ")) }
    }
}

/// The token of an `Authorization` header. Another scheme is refused: whoever sends a password believes that it counts.
fn bearer(headers: &HeaderMap) -> Result<Option<&str>, ApiError> {
    let Some(header) = headers.get(AUTHORIZATION) else { return Ok(None) };
    let parts = header.to_str().ok().and_then(|text| text.trim().split_once(' '));
    match parts {
        Some((scheme, token)) if scheme.eq_ignore_ascii_case("bearer") && !token.trim().is_empty() => {
            Ok(Some(token.trim()))
        }
        _ => Err(ApiError::unauthorized()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn authorization_headers() {
        let rows: [(Option<&str>, Result<Option<&str>, ()>); 6] = [
            (None, Ok(None)),
            (Some("Bearer abc"), Ok(Some("abc"))),
            (Some("bearer   abc "), Ok(Some("abc"))),
            (Some("Basic abc"), Err(())),
            (Some("Bearer"), Err(())),
            (Some("Bearer  "), Err(())),
        ];
        for (header, expected) in rows {
            let mut headers = HeaderMap::new();
            if let Some(header) = header {
                headers.insert(AUTHORIZATION, header.parse().expect("a header"));
            }
            assert_eq!(bearer(&headers).map_err(|_| ()), expected, "{header:?}");
        }
    }

    /// Knows one token, and hates another.
    struct Knows(&'static str);

    #[async_trait]
    impl Authenticator for Knows {
        async fn authenticate(&self, evidence: &Evidence<'_>) -> Verdict {
            match evidence.token {
                Some("bad") => Err(format!("{} hates it", self.0)),
                Some(token) if token == self.0 => {
                    let Some(audiences) = evidence.audiences_here() else { return Ok(None) };
                    Ok(Some(Authenticated { user: User::known(self.0, &[]), audiences }))
                }
                _ => Ok(None),
            }
        }
    }

    #[tokio::test]
    async fn the_first_that_knows_decides() {
        let all = Authenticators {
            list: vec![Box::new(Knows("a")), Box::new(Knows("b"))],
            own_audience: "here".to_owned(),
            anonymous: Anonymous::default(),
            front_proxies: None,
        };
        let rows: [(Option<&str>, Result<&str, u16>); 5] = [
            (Some("a"), Ok("a")),
            (Some("b"), Ok("b")),
            (Some("c"), Err(401)),
            (Some("bad"), Err(401)),
            (None, Ok("system:anonymous")),
        ];
        for (token, expected) in rows {
            let mut headers = HeaderMap::new();
            if let Some(token) = token {
                headers.insert(AUTHORIZATION, format!("Bearer {token}").parse().expect("a header"));
            }
            let found = all.request(&headers, None, "/api", 0).await;
            let found = found.as_ref().map(|user| user.name.as_str()).map_err(|e| e.code.as_u16());
            assert_eq!(found, expected, "{token:?}");
        }
        assert_eq!(all.review("bad", &[], 0).await, Err("a hates it; b hates it".to_owned()));
        let elsewhere = ["elsewhere".to_owned()];
        assert_eq!(all.review("a", &elsewhere, 0).await, Ok(None));
        let long = "x".repeat(MAX_TOKEN + 1);
        assert!(all.review(&long, &[], 0).await.is_err());
    }
}
