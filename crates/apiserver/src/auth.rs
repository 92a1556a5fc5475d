//! Who is asking and what they may do.
//!
//! [`authenticate`] finds out who sent a request, [`impersonation`] whom they act as, [`authorize`] whether they may.

pub(crate) mod authenticate;
pub(crate) mod authorize;
pub(crate) mod bootstrap_tokens;
pub(crate) mod certificates;
mod impersonation;
mod jwt;
pub(crate) mod node;
pub(crate) mod oidc;
pub(crate) mod rbac;
pub(crate) mod reviews;
pub(crate) mod tokens;

use sampan_api::kind::Requester;
use serde_json::{Value, json};

/// Every authenticated user is in this group.
pub(crate) const AUTHENTICATED: &str = "system:authenticated";
/// Nobody in particular.
pub(crate) const ANONYMOUS: &str = "system:anonymous";
/// The group of [`ANONYMOUS`].
pub(crate) const UNAUTHENTICATED: &str = "system:unauthenticated";
/// May do everything; checked before any rule, so that nobody locks the administrator out.
pub(crate) const MASTERS: &str = "system:masters";

/// Which credential somebody came with: the name of an attribute of the user.
pub(crate) const CREDENTIAL_ID: &str = "authentication.kubernetes.io/credential-id";

/// Who is asking.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct User {
    /// Name.
    pub name: String,
    /// Stable identity, for service accounts.
    pub uid: String,
    /// Groups.
    pub groups: Vec<String>,
    /// What a token is bound to.
    pub extra: Vec<(String, Vec<String>)>,
}

impl User {
    /// A known user; membership in `system:authenticated` is added.
    pub fn known(name: &str, groups: &[&str]) -> Self {
        let mut groups: Vec<String> = groups.iter().map(|g| (*g).to_owned()).collect();
        groups.push(AUTHENTICATED.to_owned());
        Self { name: name.to_owned(), uid: String::new(), groups, extra: Vec::new() }
    }

    /// Somebody whose evidence was bad: not even anonymous.
    pub(crate) fn unknown() -> Self {
        Self { name: String::new(), uid: String::new(), groups: Vec::new(), extra: Vec::new() }
    }

    /// Somebody who did not say who they are.
    pub fn anonymous() -> Self {
        Self {
            name: ANONYMOUS.to_owned(),
            uid: String::new(),
            groups: vec![UNAUTHENTICATED.to_owned()],
            extra: Vec::new(),
        }
    }

    /// The user a client certificate names: common name and organizations of the subject.
    pub(crate) fn from_certificate(der: &[u8]) -> Option<Self> {
        let (_, certificate) = x509_parser::parse_x509_certificate(der).ok()?;
        let name = certificate.subject().iter_common_name().next()?.as_str().ok()?;
        let groups: Vec<&str> =
            certificate.subject().iter_organization().filter_map(|o| o.as_str().ok()).collect();
        let mut user = Self::known(name, &groups);
        let digest = ring::digest::digest(&ring::digest::SHA256, der);
        let digest: String = digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
        user.extra.push((CREDENTIAL_ID.to_owned(), vec![format!("X509SHA256={digest}")]));
        Some(user)
    }

    /// Whether the user is in a group.
    pub fn is_in(&self, group: &str) -> bool {
        self.groups.iter().any(|g| g == group)
    }

    /// As the rows of kinds see who makes an object.
    pub(crate) fn requester(&self) -> Requester<'_> {
        Requester { username: &self.name, uid: &self.uid, groups: &self.groups, extra: &self.extra }
    }

    /// `authentication.k8s.io/v1.UserInfo`.
    pub(crate) fn info(&self) -> Value {
        let extra: serde_json::Map<String, Value> =
            self.extra.iter().map(|(k, v)| (k.clone(), json!(v))).collect();
        let mut info = json!({"username": self.name, "groups": self.groups});
        if !self.uid.is_empty() {
            info["uid"] = self.uid.clone().into();
        }
        if !extra.is_empty() {
            info["extra"] = Value::Object(extra);
        }
        info
    }
}
