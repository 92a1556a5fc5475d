//! The cluster's own certificate authority and everything it signs.
//!
//! Files, all 0600, below `DATA/pki`: `ca.crt`, `ca.key`, `service-account.key`, `front-proxy-ca.crt`,
//! `front-proxy-ca.key`. The authorities live ten years; the server's own certificates are made anew at every start and
//! never stored, so that they cannot expire unnoticed on disk. The front proxy's authority is one of its own: whoever holds
//! a certificate of it is believed about who is asking, which no client certificate may lead to.
//! Private keys of clients leave the process only inside the kubeconfig the operator asked for.

use std::io::Write as _;
use std::net::IpAddr;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose, SanType, SigningKey as _,
};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _};
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::ClientCertVerifier;

const CA_YEARS: i16 = 10;
const LEAF_YEARS: i16 = 1;

/// Why keys or certificates cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum PkiError {
    /// A file cannot be read or written.
    #[error("cannot access {path}")]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A stored key or certificate is damaged.
    #[error("{path} is damaged: {why}")]
    Damaged {
        /// Which.
        path: PathBuf,
        /// Why.
        why: String,
    },
    /// A certificate cannot be made.
    #[error("cannot make a certificate")]
    Make(#[from] rcgen::Error),
    /// TLS cannot be set up.
    #[error("cannot set up TLS: {0}")]
    Tls(String),
}

/// A certificate and its key, both PEM.
#[derive(Clone)]
pub struct Credentials {
    /// Certificate.
    pub certificate: String,
    /// Private key, PKCS 8.
    pub key: String,
}

/// The authority.
pub struct Pki {
    ca_pem: String,
    issuer: Issuer<'static, KeyPair>,
    /// PKCS 8 document of the P-256 key that signs service account tokens.
    pub(crate) token_key: Vec<u8>,
    front_proxy_pem: String,
    front_proxy: Issuer<'static, KeyPair>,
}

/// The name extension servers believe.
pub(crate) const FRONT_PROXY_CLIENT: &str = "front-proxy-client";
/// What must stand in a certificate about who issued it.
pub(crate) struct Authority {
    /// The issuer's name, DER.
    pub(crate) subject: Vec<u8>,
    /// Which of the issuer's keys; may be empty.
    pub(crate) key_id: Vec<u8>,
    /// When the issuer ends, in seconds since 1970.
    pub(crate) not_after: i64,
}

/// Writes a file only its owner may read, whole or not at all.
pub fn write_private(path: &Path, contents: &[u8]) -> std::io::Result<()> {
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(".new");
    let temporary = PathBuf::from(temporary);
    // Never into a file that somebody else has put there.
    match std::fs::remove_file(&temporary) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    let mut file = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary)?;
    file.write_all(contents)?;
    file.sync_all()?;
    std::fs::rename(&temporary, path)
}

/// Checks client certificates of these authorities (PEM, each may hold several), and lets clients come without one.
pub(crate) fn client_verifier(authorities: &[&str]) -> Result<Arc<dyn ClientCertVerifier>, PkiError> {
    let tls = |e: &dyn std::fmt::Display| PkiError::Tls(e.to_string());
    let mut roots = rustls::RootCertStore::empty();
    for certificate in authorities.iter().flat_map(|pem| CertificateDer::pem_slice_iter(pem.as_bytes())) {
        roots.add(certificate.map_err(|e| tls(&e))?).map_err(|e| tls(&e))?;
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider)
        .allow_unauthenticated()
        .build()
        .map_err(|e| tls(&e))
}

fn not_after(years: i16) -> (i32, u8, u8) {
    let today = jiff::Timestamp::now().to_zoned(jiff::tz::TimeZone::UTC).date();
    // Day 28 exists in every month.
    (i32::from(today.year() + years), today.month().unsigned_abs(), today.day().unsigned_abs().min(28))
}

fn params(common_name: &str, organizations: &[&str], years: i16) -> CertificateParams {
    let mut params = CertificateParams::default();
    let mut name = DistinguishedName::new();
    name.push(DnType::CommonName, common_name);
    for organization in organizations {
        name.push(DnType::OrganizationName, *organization);
    }
    params.distinguished_name = name;
    // A clock that is somewhat behind must not make a fresh certificate invalid.
    params.not_before = rcgen::date_time_ymd(2024, 1, 1);
    let (year, month, day) = not_after(years);
    params.not_after = rcgen::date_time_ymd(year, month, day);
    params
}

/// A new authority: its certificate, PEM, and its key.
fn authority(name: &str) -> Result<(String, KeyPair), PkiError> {
    let key = KeyPair::generate()?;
    let mut ca = params(name, &[], CA_YEARS);
    ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    ca.key_usages =
        vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign, KeyUsagePurpose::DigitalSignature];
    let certificate = ca.self_signed(&key)?;
    Ok((certificate.pem(), key))
}

fn client_params(user: &str, groups: &[&str]) -> CertificateParams {
    let mut params = params(user, groups, LEAF_YEARS);
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    params
}

fn issue(params: CertificateParams, issuer: &Issuer<'static, KeyPair>) -> Result<Credentials, PkiError> {
    let key = KeyPair::generate()?;
    let certificate = params.signed_by(&key, issuer)?;
    Ok(Credentials { certificate: certificate.pem(), key: key.serialize_pem() })
}

impl Pki {
    /// Opens the authority in `dir`, making it when there is none.
    pub fn open(dir: &Path) -> Result<Self, PkiError> {
        let file = |path: &Path| {
            let path = path.to_owned();
            move |source| PkiError::File { path, source }
        };
        std::fs::create_dir_all(dir).map_err(file(dir))?;
        let (cert_path, key_path, token_path) =
            (dir.join("ca.crt"), dir.join("ca.key"), dir.join("service-account.key"));
        // The certificate is written last: its presence says that the key is complete.
        if !cert_path.exists() {
            let (certificate, key) = authority("sampan-ca")?;
            let token_key = KeyPair::generate()?;
            write_private(&key_path, key.serialize_pem().as_bytes()).map_err(file(&key_path))?;
            write_private(&token_path, token_key.serialize_pem().as_bytes()).map_err(file(&token_path))?;
            write_private(&cert_path, certificate.as_bytes()).map_err(file(&cert_path))?;
        }
        let (proxy_path, proxy_key_path) = (dir.join("front-proxy-ca.crt"), dir.join("front-proxy-ca.key"));
        if !proxy_path.exists() {
            let (certificate, key) = authority("front-proxy-ca")?;
            write_private(&proxy_key_path, key.serialize_pem().as_bytes()).map_err(file(&proxy_key_path))?;
            write_private(&proxy_path, certificate.as_bytes()).map_err(file(&proxy_path))?;
        }
        let read = |path: &Path| std::fs::read_to_string(path).map_err(file(path));
        let damaged = |path: &Path, why: rcgen::Error| PkiError::Damaged {
            path: path.to_owned(),
            why: why.to_string(),
        };
        let ca_pem = read(&cert_path)?;
        let key = KeyPair::from_pem(&read(&key_path)?).map_err(|e| damaged(&key_path, e))?;
        let token_key = KeyPair::from_pem(&read(&token_path)?).map_err(|e| damaged(&token_path, e))?;
        let issuer = Issuer::from_ca_cert_pem(&ca_pem, key).map_err(|e| damaged(&cert_path, e))?;
        let front_proxy_pem = read(&proxy_path)?;
        let key = KeyPair::from_pem(&read(&proxy_key_path)?).map_err(|e| damaged(&proxy_key_path, e))?;
        let front_proxy =
            Issuer::from_ca_cert_pem(&front_proxy_pem, key).map_err(|e| damaged(&proxy_path, e))?;
        Ok(Self { ca_pem, issuer, token_key: token_key.serialize_der(), front_proxy_pem, front_proxy })
    }

    /// The front proxy authority's certificate, PEM.
    pub fn front_proxy_ca_pem(&self) -> &str {
        &self.front_proxy_pem
    }

    /// The certificate by which extension servers know this server.
    pub(crate) fn front_proxy_client(&self) -> Result<Credentials, PkiError> {
        issue(client_params(FRONT_PROXY_CLIENT, &[]), &self.front_proxy)
    }

    /// The authority's certificate, PEM.
    pub fn ca_pem(&self) -> &str {
        &self.ca_pem
    }

    /// What the authority's certificate says of itself.
    pub(crate) fn authority(&self) -> Result<Authority, String> {
        let der = CertificateDer::from_pem_slice(self.ca_pem.as_bytes()).map_err(|e| e.to_string())?;
        let (_, certificate) = x509_parser::parse_x509_certificate(&der).map_err(|e| e.to_string())?;
        let key_id = certificate.iter_extensions().find_map(|extension| match extension.parsed_extension() {
            x509_parser::extensions::ParsedExtension::SubjectKeyIdentifier(id) => Some(id.0.to_vec()),
            _ => None,
        });
        Ok(Authority {
            subject: certificate.subject().as_raw().to_vec(),
            key_id: key_id.unwrap_or_default(),
            not_after: certificate.validity().not_after.timestamp(),
        })
    }

    /// Signs with the authority's key: ECDSA on P-256 with SHA-256, in ASN.1.
    pub(crate) fn sign(&self, message: &[u8]) -> Result<Vec<u8>, String> {
        let key = self.issuer.key();
        if key.algorithm() != &rcgen::PKCS_ECDSA_P256_SHA256 {
            return Err("the authority's key is no P-256 key".to_owned());
        }
        key.sign(message).map_err(|e| e.to_string())
    }

    /// A client certificate: the common name is the user, organizations are its groups.
    pub fn client(&self, user: &str, groups: &[&str]) -> Result<Credentials, PkiError> {
        issue(client_params(user, groups), &self.issuer)
    }

    /// TLS of the API server: a fresh certificate for these names and addresses, client certificates of this authority
    /// accepted but not demanded.
    pub fn server_tls(
        &self,
        names: &[String],
        addresses: &[IpAddr],
    ) -> Result<Arc<rustls::ServerConfig>, PkiError> {
        self.server_tls_trusting(names, addresses, &[])
    }

    /// As [`Pki::server_tls`], with client certificates of further authorities (PEM) accepted: those of front proxies.
    pub fn server_tls_trusting(
        &self,
        names: &[String],
        addresses: &[IpAddr],
        authorities: &[&str],
    ) -> Result<Arc<rustls::ServerConfig>, PkiError> {
        let tls = |e: &dyn std::fmt::Display| PkiError::Tls(e.to_string());
        let mut params = params("kube-apiserver", &[], LEAF_YEARS);
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        for name in names {
            params.subject_alt_names.push(SanType::DnsName(name.as_str().try_into()?));
        }
        params.subject_alt_names.extend(addresses.iter().map(|ip| SanType::IpAddress(*ip)));
        let leaf = issue(params, &self.issuer)?;
        let ca = CertificateDer::from_pem_slice(self.ca_pem.as_bytes()).map_err(|e| tls(&e))?;
        let certificate = CertificateDer::from_pem_slice(leaf.certificate.as_bytes()).map_err(|e| tls(&e))?;
        let key = PrivateKeyDer::from_pem_slice(leaf.key.as_bytes()).map_err(|e| tls(&e))?;
        let trusted: Vec<&str> = std::iter::once(self.ca_pem()).chain(authorities.iter().copied()).collect();
        let verifier = client_verifier(&trusted)?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|e| tls(&e))?
            .with_client_cert_verifier(verifier)
            .with_single_cert(vec![certificate, ca], key)
            .map_err(|e| tls(&e))?;
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Ok(Arc::new(config))
    }

    /// A kubeconfig with a client certificate in it.
    pub fn kubeconfig(&self, server: &str, user: &str, credentials: &Credentials) -> String {
        use base64::Engine as _;
        let encode = |text: &str| base64::engine::general_purpose::STANDARD.encode(text);
        format!(
            "apiVersion: v1\nkind: Config\nclusters:\n- name: sampan\n  cluster:\n    server: {server}\n    \
             certificate-authority-data: {}\nusers:\n- name: {user}\n  user:\n    client-certificate-data: {}\n    \
             client-key-data: {}\ncontexts:\n- name: sampan\n  context:\n    cluster: sampan\n    user: {user}\n\
             current-context: sampan\n",
            encode(&self.ca_pem),
            encode(&credentials.certificate),
            encode(&credentials.key),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    #[test]
    fn authority_survives_and_is_private() {
        let dir = tempfile::tempdir().expect("a directory");
        let first = Pki::open(dir.path()).expect("made");
        let second = Pki::open(dir.path()).expect("opened");
        assert_eq!(first.ca_pem(), second.ca_pem());
        assert_eq!(first.front_proxy_ca_pem(), second.front_proxy_ca_pem());
        assert_ne!(first.ca_pem(), first.front_proxy_ca_pem());
        for entry in std::fs::read_dir(dir.path()).expect("a directory") {
            let entry = entry.expect("an entry");
            assert_eq!(
                entry.metadata().expect("exists").permissions().mode() & 0o777,
                0o600,
                "{:?}",
                entry.path()
            );
        }
        let client = second.client("admin", &["system:masters"]).expect("signed");
        let (_, pem) = x509_parser::pem::parse_x509_pem(client.certificate.as_bytes()).expect("PEM");
        let certificate = pem.parse_x509().expect("X.509");
        assert_eq!(
            certificate.subject().iter_common_name().next().and_then(|n| n.as_str().ok()),
            Some("admin")
        );
        second
            .server_tls(&["localhost".to_owned()], &["127.0.0.1".parse().expect("an address")])
            .expect("TLS");
    }

    #[test]
    fn damage_is_reported() {
        let dir = tempfile::tempdir().expect("a directory");
        Pki::open(dir.path()).expect("made");
        std::fs::write(dir.path().join("ca.key"), "nonsense").expect("written");
        assert!(matches!(Pki::open(dir.path()), Err(PkiError::Damaged { .. })));
    }
}
