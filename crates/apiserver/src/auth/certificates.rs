//! Client certificates: of the cluster's own authority, where the subject is the user, and of front proxies, which say
//! in headers for whom they speak.
//!
//! The handshake has verified the certificate against the authorities that are known; which of them it was is found out
//! once per connection. That the certificate still is in time is asked at every request, because connections live long.

use std::sync::Arc;

use async_trait::async_trait;
use http::HeaderMap;
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::danger::ClientCertVerifier;

use super::authenticate::{Authenticated, Authenticator, Evidence, Verdict};
use super::{AUTHENTICATED, User};
use crate::pki::Pki;

/// Values of one kind of header that are read at most.
const MAX_VALUES: usize = 1000;

/// A verified client certificate.
#[derive(Clone, Debug)]
pub(crate) struct PeerCertificate {
    /// Whom it names, if its authority is the cluster's own.
    user: Option<User>,
    common_name: String,
    /// Whether its authority is that of the front proxies.
    speaks_for_others: bool,
    /// Seconds since 1970.
    not_after: i64,
}

impl PeerCertificate {
    /// Looks at the chain of a finished handshake. `None` when its first certificate names nobody.
    pub(crate) fn of(chain: &[CertificateDer<'_>], proxies: Option<&FrontProxies>) -> Option<Self> {
        let (leaf, rest) = chain.split_first()?;
        let (_, certificate) = x509_parser::parse_x509_certificate(leaf).ok()?;
        let common_name = certificate.subject().iter_common_name().next()?.as_str().ok()?.to_owned();
        // With one authority only, the handshake has said all.
        let (is_client, speaks_for_others) = match proxies {
            None => (true, false),
            Some(proxies) => (proxies.is_client(leaf, rest), proxies.is_proxy(leaf, rest)),
        };
        let user = if is_client { User::from_certificate(leaf) } else { None };
        let not_after = certificate.validity().not_after.timestamp();
        Some(Self { user, common_name, speaks_for_others, not_after })
    }
}

/// The user a certificate of the cluster's authority names.
pub(crate) struct ClientCertificates;

#[async_trait]
impl Authenticator for ClientCertificates {
    async fn authenticate(&self, evidence: &Evidence<'_>) -> Verdict {
        let Some(certificate) = evidence.certificate else { return Ok(None) };
        let Some(user) = &certificate.user else { return Ok(None) };
        if evidence.now > certificate.not_after {
            return Err(format!("the certificate of {} has expired", user.name));
        }
        let audiences = evidence.audiences_here().unwrap_or_default();
        Ok(Some(Authenticated { user: user.clone(), audiences }))
    }
}

/// Proxies that authenticate users themselves and say in headers who it is.
#[derive(Clone, Debug)]
pub struct FrontProxy {
    /// Certificates of their authorities, PEM.
    pub ca_pem: String,
    /// Common names a proxy's certificate may have; empty: any.
    pub allowed_names: Vec<String>,
    /// Headers with the user's name; the first that is there counts. Upstream's usual value: `X-Remote-User`.
    pub username_headers: Vec<String>,
    /// Headers with the user's uid: `X-Remote-Uid`.
    pub uid_headers: Vec<String>,
    /// Headers with the user's groups: `X-Remote-Group`.
    pub group_headers: Vec<String>,
    /// What headers with further attributes begin with: `X-Remote-Extra-`.
    pub extra_prefixes: Vec<String>,
}

impl FrontProxy {
    /// A proxy with the usual names of headers.
    pub fn new(ca_pem: String) -> Self {
        let one = |name: &str| vec![name.to_owned()];
        Self {
            ca_pem,
            allowed_names: Vec::new(),
            username_headers: one("X-Remote-User"),
            uid_headers: one("X-Remote-Uid"),
            group_headers: one("X-Remote-Group"),
            extra_prefixes: one("X-Remote-Extra-"),
        }
    }
}

/// Believes the headers of proxies.
pub(crate) struct FrontProxies {
    config: FrontProxy,
    clients: Arc<dyn ClientCertVerifier>,
    proxies: Arc<dyn ClientCertVerifier>,
}

impl FrontProxies {
    pub(crate) fn new(config: FrontProxy, pki: &Pki) -> Result<Self, String> {
        let verifier = |pem: &str| crate::pki::client_verifier(&[pem]).map_err(|e| e.to_string());
        let proxies = verifier(&config.ca_pem)?;
        Ok(Self { clients: verifier(pki.ca_pem())?, proxies, config })
    }

    fn is_client(&self, leaf: &CertificateDer<'_>, rest: &[CertificateDer<'_>]) -> bool {
        self.clients.verify_client_cert(leaf, rest, UnixTime::now()).is_ok()
    }

    fn is_proxy(&self, leaf: &CertificateDer<'_>, rest: &[CertificateDer<'_>]) -> bool {
        self.proxies.verify_client_cert(leaf, rest, UnixTime::now()).is_ok()
    }
}

#[async_trait]
impl Authenticator for Arc<FrontProxies> {
    async fn authenticate(&self, evidence: &Evidence<'_>) -> Verdict {
        let (Some(certificate), Some(headers)) = (evidence.certificate, evidence.headers) else {
            return Ok(None);
        };
        if !certificate.speaks_for_others {
            return Ok(None);
        }
        let Some(user) = user_in(headers, &self.config) else { return Ok(None) };
        if evidence.now > certificate.not_after {
            return Err(format!("the certificate of the proxy {} has expired", certificate.common_name));
        }
        let allowed = &self.config.allowed_names;
        if !allowed.is_empty() && !allowed.contains(&certificate.common_name) {
            return Err(format!("the name {} is not one of the front proxies'", certificate.common_name));
        }
        let audiences = evidence.audiences_here().unwrap_or_default();
        Ok(Some(Authenticated { user, audiences }))
    }
}

/// The user that headers name.
fn user_in(headers: &HeaderMap, config: &FrontProxy) -> Option<User> {
    let values = |names: &[String]| -> Vec<String> {
        let all = names.iter().flat_map(|name| headers.get_all(name.as_str()));
        let texts = all.filter_map(|value| value.to_str().ok()).filter(|text| !text.is_empty());
        texts.take(MAX_VALUES).map(str::to_owned).collect()
    };
    let name = values(&config.username_headers).into_iter().next()?;
    let uid = values(&config.uid_headers).into_iter().next().unwrap_or_default();
    let mut groups = values(&config.group_headers);
    groups.push(AUTHENTICATED.to_owned());
    Some(User { name, uid, groups, extra: extra_in(headers, &config.extra_prefixes) })
}

/// Headers that begin with a prefix: the rest of the name, percent decoded, is the key.
pub(crate) fn extra_in(headers: &HeaderMap, prefixes: &[String]) -> Vec<(String, Vec<String>)> {
    let mut extra: Vec<(String, Vec<String>)> = Vec::new();
    for (name, value) in headers.iter().take(MAX_VALUES) {
        let prefix = prefixes.iter().find(|prefix| {
            name.as_str().get(..prefix.len()).is_some_and(|start| start.eq_ignore_ascii_case(prefix))
        });
        let (Some(prefix), Ok(value)) = (prefix, value.to_str()) else { continue };
        let key = crate::request::percent_decoded(&name.as_str()[prefix.len()..]).to_lowercase();
        match extra.iter_mut().find(|(known, _)| *known == key) {
            Some((_, values)) => values.push(value.to_owned()),
            None => extra.push((key, vec![value.to_owned()])),
        }
    }
    extra
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(list: &[(&str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in list {
            let name: http::HeaderName = name.parse().expect("a name");
            headers.append(name, value.parse().expect("a value"));
        }
        headers
    }

    fn chain(pki: &Pki, name: &str, groups: &[&str]) -> Vec<CertificateDer<'static>> {
        use rustls::pki_types::pem::PemObject as _;
        let issued = pki.client(name, groups).expect("signed");
        vec![CertificateDer::from_pem_slice(issued.certificate.as_bytes()).expect("PEM")]
    }

    #[test]
    fn users_in_headers() {
        let config = FrontProxy::new(String::new());
        let user = user_in(
            &headers(&[
                ("X-Remote-User", "ann"),
                ("X-Remote-Uid", "u1"),
                ("X-Remote-Group", "dev"),
                ("x-remote-group", "ops"),
                ("X-Remote-Extra-Acme.com%2Fproject", "p"),
                ("X-Remote-Extra-scopes", "a"),
                ("X-Remote-Extra-Scopes", "b"),
            ]),
            &config,
        );
        let user = user.expect("a user");
        assert_eq!((user.name.as_str(), user.uid.as_str()), ("ann", "u1"));
        assert_eq!(user.groups, ["dev", "ops", AUTHENTICATED]);
        let mut extra = user.extra;
        extra.sort();
        let expected = [("acme.com/project", vec!["p"]), ("scopes", vec!["a", "b"])];
        let expected: Vec<(String, Vec<String>)> = expected
            .into_iter()
            .map(|(key, values)| (key.to_owned(), values.into_iter().map(str::to_owned).collect()))
            .collect();
        assert_eq!(extra, expected);
        assert!(user_in(&headers(&[("X-Remote-Group", "dev")]), &config).is_none());
    }

    #[tokio::test]
    async fn only_proxies_speak_for_others() {
        let directory = tempfile::tempdir().expect("a directory");
        let own = Pki::open(&directory.path().join("own")).expect("keys");
        let other = Pki::open(&directory.path().join("other")).expect("keys");
        let mut config = FrontProxy::new(other.ca_pem().to_owned());
        config.allowed_names = vec!["front".to_owned()];
        let proxies = Arc::new(FrontProxies::new(config, &own).expect("usable"));
        let claims = headers(&[("X-Remote-User", "ann")]);
        let none = headers(&[]);
        let far = i64::from(u32::MAX) * 2;
        type Row<'a> =
            (&'a str, Vec<CertificateDer<'static>>, &'a HeaderMap, i64, Result<Option<&'a str>, ()>);
        let rows: Vec<Row<'_>> = vec![
            ("a proxy", chain(&other, "front", &[]), &claims, 0, Ok(Some("ann"))),
            ("a proxy without headers", chain(&other, "front", &[]), &none, 0, Ok(None)),
            ("not a proxy's name", chain(&other, "back", &[]), &claims, 0, Err(())),
            ("an expired proxy", chain(&other, "front", &[]), &claims, far, Err(())),
            ("a client", chain(&own, "front", &["g"]), &claims, 0, Ok(Some("front"))),
            ("an expired client", chain(&own, "bob", &[]), &claims, far, Err(())),
        ];
        for (what, chain, headers, now, expected) in rows {
            let certificate = PeerCertificate::of(&chain, Some(&proxies)).expect("a name");
            let evidence = Evidence {
                certificate: Some(&certificate),
                headers: Some(headers),
                token: None,
                audiences: &[],
                own_audience: "here",
                now,
            };
            let mut verdict = proxies.authenticate(&evidence).await;
            if matches!(verdict, Ok(None)) {
                verdict = ClientCertificates.authenticate(&evidence).await;
            }
            let found = verdict.map(|found| found.map(|found| found.user.name)).map_err(|_| ());
            assert_eq!(found, expected.map(|name| name.map(str::to_owned)), "{what}");
        }
    }
}
