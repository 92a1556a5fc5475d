//! What the operator says about access: who may come in besides the cluster's own certificates and tokens, what is
//! written down, and how secrets lie in the store. Files in, ready-made parts out; what they mean is `sampan-apiserver`'s
//! matter.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::Args;
use sampan_apiserver::{
    Access, Audit, Authentication, AuthenticationConfiguration, EncryptedStore, Encryption, FrontProxy,
    LogFile, Policy,
};
use sampan_store::Store;

use crate::Failure;
use crate::paths::Paths;

/// Flags about access. Names and file formats are those of kube-apiserver where it has them.
#[derive(Args, Clone)]
pub(crate) struct AccessArgs {
    /// AuthenticationConfiguration (apiserver.config.k8s.io): issuers of OpenID Connect tokens, and what anonymous
    /// requests may see.
    #[arg(long, value_name = "FILE")]
    authentication_config: Option<PathBuf>,
    /// Certificates of the authority of front proxies, which name the user in X-Remote headers.
    #[arg(long, value_name = "FILE")]
    requestheader_client_ca_file: Option<PathBuf>,
    /// Write an audit log here, one JSON event per line.
    #[arg(long, value_name = "FILE")]
    audit_log_path: Option<PathBuf>,
    /// Policy (audit.k8s.io) of the audit log [default: metadata of every request, content of none].
    #[arg(long, value_name = "FILE", requires = "audit_log_path")]
    audit_policy_file: Option<PathBuf>,
    /// Megabytes after which the audit log is renamed and begun anew.
    #[arg(long, value_name = "MEGABYTES", default_value_t = 100, requires = "audit_log_path")]
    audit_log_maxsize: u64,
    /// Renamed audit logs that are kept.
    #[arg(long, value_name = "COUNT", default_value_t = 10, requires = "audit_log_path")]
    audit_log_maxbackup: u32,
    /// EncryptionConfiguration (apiserver.config.k8s.io) [default: secrets are encrypted with a key of the cluster's].
    #[arg(long, value_name = "FILE")]
    encryption_provider_config: Option<PathBuf>,
}

fn read(path: &Path) -> Result<String, Failure> {
    fs::read_to_string(path).map_err(|e| format!("cannot read {}: {e}", path.display()).into())
}

/// Names the file a complaint is about.
fn in_file<T, E: std::fmt::Display>(path: &Path, result: Result<T, E>) -> Result<T, Failure> {
    result.map_err(|e| format!("{}: {e}", path.display()).into())
}

impl AccessArgs {
    /// Authenticators and audit log.
    pub(crate) fn access(&self) -> Result<Access, Failure> {
        let mut authentication = Authentication::default();
        if let Some(path) = &self.authentication_config {
            authentication.configuration = in_file(path, AuthenticationConfiguration::parse(&read(path)?))?;
        }
        if let Some(path) = &self.requestheader_client_ca_file {
            authentication.front_proxy = Some(FrontProxy::new(read(path)?));
        }
        Ok(Access { authentication, audit: self.audit()?, traces: None })
    }

    fn audit(&self) -> Result<Option<Arc<Audit>>, Failure> {
        let Some(log) = &self.audit_log_path else { return Ok(None) };
        let policy = match &self.audit_policy_file {
            Some(path) => in_file(path, Policy::parse(&read(path)?))?,
            None => Policy::standard(),
        };
        let bytes = self.audit_log_maxsize.saturating_mul(1 << 20);
        let file = in_file(log, LogFile::open(log, bytes, self.audit_log_maxbackup))?;
        Ok(Some(in_file(log, Audit::start(policy, file))?))
    }

    /// Certificates of front proxies, which the listener must ask for.
    pub(crate) fn front_proxy_authorities(&self) -> Result<Vec<String>, Failure> {
        self.requestheader_client_ca_file.iter().map(|path| read(path)).collect()
    }

    /// The store, with secrets sealed.
    pub(crate) fn seal(&self, store: Arc<dyn Store>, paths: &Paths) -> Result<Arc<EncryptedStore>, Failure> {
        let encryption = match &self.encryption_provider_config {
            Some(path) => in_file(path, Encryption::parse(&read(path)?))?,
            None => Encryption::with_own_key(&paths.pki())?,
        };
        Ok(EncryptedStore::new(store, encryption))
    }
}
