//! Bootstrap tokens: `ID.SECRET`, kept as secrets of type `bootstrap.kubernetes.io/token` in `kube-system`, with which a
//! machine that has nothing else asks to become a node. Source: the Kubernetes documentation on bootstrap tokens.

use std::sync::Arc;

use async_trait::async_trait;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ring::hmac;
use serde_json::Value;

use super::authenticate::{Authenticated, Authenticator, Evidence, Verdict};
use super::{AUTHENTICATED, User};
use crate::cache::WatchCache;

/// Every machine that comes with a token is in this group.
pub(crate) const BOOTSTRAPPERS: &str = "system:bootstrappers";
const SECRET_TYPE: &str = "bootstrap.kubernetes.io/token";
const ID_LENGTH: usize = 6;
const SECRET_LENGTH: usize = 16;
/// Longest rest of a group's name.
const MAX_GROUP: usize = 256;

/// Looks tokens up in the watch cache.
pub(crate) struct BootstrapTokens {
    cache: Arc<WatchCache>,
}

impl BootstrapTokens {
    pub(crate) fn new(cache: Arc<WatchCache>) -> Self {
        Self { cache }
    }
}

#[async_trait]
impl Authenticator for BootstrapTokens {
    async fn authenticate(&self, evidence: &Evidence<'_>) -> Verdict {
        let Some((id, secret)) = evidence.token.and_then(parts) else { return Ok(None) };
        let Some(audiences) = evidence.audiences_here() else { return Ok(None) };
        let key = format!("/secrets/kube-system/bootstrap-token-{id}");
        let Some(item) = self.cache.resource("secrets").get(&key) else { return Ok(None) };
        let object: Value = serde_json::from_slice(&item.bytes).unwrap_or_default();
        let now = jiff::Timestamp::from_second(evidence.now).unwrap_or(jiff::Timestamp::MAX);
        let user = user(&object, id, secret, now)?;
        Ok(Some(Authenticated { user, audiences }))
    }
}

/// Id and secret of what looks like a bootstrap token.
fn parts(token: &str) -> Option<(&str, &str)> {
    let (id, secret) = token.split_once('.')?;
    let plain = |text: &str| text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
    (id.len() == ID_LENGTH && secret.len() == SECRET_LENGTH && plain(id) && plain(secret))
        .then_some((id, secret))
}

/// The user of a token whose secret object is `object`.
fn user(object: &Value, id: &str, secret: &str, now: jiff::Timestamp) -> Result<User, String> {
    let refuse = |why: &str| Err(format!("the bootstrap token {id} {why}"));
    let data = |name: &str| -> String {
        let bytes = object["data"][name].as_str().and_then(|text| STANDARD.decode(text).ok());
        bytes.and_then(|bytes| String::from_utf8(bytes).ok()).unwrap_or_default()
    };
    if object["type"] != SECRET_TYPE || !object["metadata"]["deletionTimestamp"].is_null() {
        return refuse("is no longer one");
    }
    if !same(&data("token-secret"), secret) || data("token-id") != id {
        return refuse("has another secret");
    }
    let expiration = data("expiration");
    let in_time = expiration.parse::<jiff::Timestamp>().is_ok_and(|end| end > now);
    if !expiration.is_empty() && !in_time {
        return refuse("has expired");
    }
    if data("usage-bootstrap-authentication") != "true" {
        return refuse("is not for authentication");
    }
    let mut groups = vec![BOOTSTRAPPERS.to_owned()];
    let extra = data("auth-extra-groups");
    for group in extra.split(',').map(str::trim).filter(|group| !group.is_empty()) {
        if !is_group(group) {
            return refuse("names a group that is not one of bootstrappers");
        }
        groups.push(group.to_owned());
    }
    groups.sort();
    groups.dedup();
    groups.push(AUTHENTICATED.to_owned());
    Ok(User { name: format!("system:bootstrap:{id}"), uid: String::new(), groups, extra: Vec::new() })
}

/// `system:bootstrappers:` and lower case letters, digits, `:` and `-`, the last of them a letter or digit.
fn is_group(group: &str) -> bool {
    let Some(rest) = group.strip_prefix("system:bootstrappers:") else { return false };
    let word = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    rest.len() <= MAX_GROUP
        && rest.bytes().last().is_some_and(word)
        && rest.bytes().all(|b| word(b) || b == b':' || b == b'-')
}

/// Compares in a time that says nothing about where the texts differ: two codes under a key nobody knows.
fn same(stored: &str, given: &str) -> bool {
    let Ok(key) = hmac::Key::generate(hmac::HMAC_SHA256, &ring::rand::SystemRandom::new()) else {
        return false;
    };
    let tag = hmac::sign(&key, stored.as_bytes());
    hmac::verify(&key, given.as_bytes(), tag.as_ref()).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    const SECRET: &str = "0123456789abcdef";

    fn token(changes: &[(&str, &str)]) -> Value {
        let mut data = vec![
            ("token-id", "abcdef"),
            ("token-secret", SECRET),
            ("usage-bootstrap-authentication", "true"),
            ("expiration", "2030-01-01T00:00:00Z"),
        ];
        for (name, value) in changes {
            data.retain(|(known, _)| known != name);
            data.push((name, value));
        }
        let data: serde_json::Map<String, Value> =
            data.iter().map(|(name, value)| ((*name).to_owned(), STANDARD.encode(value).into())).collect();
        json!({"type": SECRET_TYPE, "metadata": {}, "data": data})
    }

    #[test]
    fn who_comes_with_a_token() {
        let now: jiff::Timestamp = "2026-01-01T00:00:00Z".parse().expect("a time");
        let rows: Vec<(&str, Value, Option<&[&str]>)> = vec![
            ("plain", token(&[]), Some(&[BOOTSTRAPPERS])),
            (
                "groups",
                token(&[("auth-extra-groups", "system:bootstrappers:b, system:bootstrappers:a:1")]),
                Some(&[BOOTSTRAPPERS, "system:bootstrappers:a:1", "system:bootstrappers:b"]),
            ),
            ("for ever", token(&[("expiration", "")]), Some(&[BOOTSTRAPPERS])),
            ("expired", token(&[("expiration", "2025-01-01T00:00:00Z")]), None),
            ("no time", token(&[("expiration", "soon")]), None),
            ("not for this", token(&[("usage-bootstrap-authentication", "false")]), None),
            ("another secret", token(&[("token-secret", "0123456789abcdeX")]), None),
            ("another id", token(&[("token-id", "abcdeg")]), None),
            ("masters", token(&[("auth-extra-groups", "system:masters")]), None),
            ("odd group", token(&[("auth-extra-groups", "system:bootstrappers:x-")]), None),
            ("another type", json!({"type": "Opaque", "data": token(&[])["data"]}), None),
        ];
        for (what, object, expected) in rows {
            let found = user(&object, "abcdef", SECRET, now);
            let expected = expected.map(|groups| {
                let mut groups: Vec<String> = groups.iter().map(|g| (*g).to_owned()).collect();
                groups.push(AUTHENTICATED.to_owned());
                groups
            });
            assert_eq!(found.as_ref().ok().map(|user| user.groups.clone()), expected, "{what}: {found:?}");
            assert!(
                found.is_err() || found.is_ok_and(|user| user.name == "system:bootstrap:abcdef"),
                "{what}"
            );
        }
    }

    #[test]
    fn what_looks_like_a_token() {
        let rows = [
            ("abcdef.0123456789abcdef", true),
            ("abcdef.0123456789abcde", false),
            ("abcde.0123456789abcdef", false),
            ("ABCDEF.0123456789abcdef", false),
            ("abcdef.0123456789abcde/", false),
            ("a.b.c", false),
            ("", false),
        ];
        for (token, expected) in rows {
            assert_eq!(parts(token).is_some(), expected, "{token}");
        }
    }
}
