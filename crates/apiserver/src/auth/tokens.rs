//! Service account tokens: JWTs signed with ES256, bound to an audience and, if asked, to a pod.
//!
//! A token is good while its signature, time and audience are, and while the service account (and pod) it names still
//! exist with the same uid. Nothing about tokens is stored. Source: RFC 7519, KEP-1205.

use std::sync::Arc;

use async_trait::async_trait;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::rand::SystemRandom;
use ring::signature::{
    ECDSA_P256_SHA256_FIXED, ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _, UnparsedPublicKey,
};
use serde_json::{Value, json};

use super::authenticate::{Authenticated, Authenticator, Evidence, Verdict};
use super::{AUTHENTICATED, CREDENTIAL_ID, User, jwt};
use crate::cache::WatchCache;

/// Longer tokens are refused unread.
const MAX_LENGTH: usize = 8 * 1024;
/// Shortest life a client may ask for.
pub(crate) const MIN_SECONDS: i64 = 600;
/// Longest life a client may ask for: upstream's limit is 2^32 seconds; a year and a day is ours.
pub(crate) const MAX_SECONDS: i64 = 366 * 86_400;

/// What a token says.
pub(crate) struct Claims<'a> {
    pub(crate) namespace: &'a str,
    pub(crate) service_account: &'a str,
    pub(crate) service_account_uid: &'a str,
    /// Kind, name and uid of what the token dies with.
    pub(crate) bound_to: Option<(&'a str, &'a str, &'a str)>,
    pub(crate) audiences: &'a [String],
    pub(crate) issued_at: i64,
    pub(crate) expires_at: i64,
}

/// Signs and checks tokens.
pub(crate) struct Tokens {
    key: EcdsaKeyPair,
    key_id: String,
    issuer: String,
    audience: String,
    cache: Arc<WatchCache>,
}

impl Tokens {
    /// `pkcs8` is a P-256 key.
    pub(crate) fn new(pkcs8: &[u8], issuer: &str, cache: Arc<WatchCache>) -> Result<Self, String> {
        let key = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, pkcs8, &SystemRandom::new())
            .map_err(|e| format!("the key for service account tokens is not usable: {e}"))?;
        let digest = ring::digest::digest(&ring::digest::SHA256, key.public_key().as_ref());
        let key_id = URL_SAFE_NO_PAD.encode(digest.as_ref());
        Ok(Self { key, key_id, issuer: issuer.to_owned(), audience: issuer.to_owned(), cache })
    }

    /// The audience of this API server.
    pub(crate) fn audience(&self) -> &str {
        &self.audience
    }

    /// What others need to check our tokens: the answer to `/.well-known/openid-configuration`.
    pub(crate) fn discovery(&self) -> Value {
        json!({
            "issuer": self.issuer,
            "jwks_uri": format!("{}/openid/v1/jwks", self.issuer),
            "response_types_supported": ["id_token"],
            "subject_types_supported": ["public"],
            "id_token_signing_alg_values_supported": ["ES256"],
        })
    }

    /// The public keys: the answer to `/openid/v1/jwks`.
    pub(crate) fn keys(&self) -> Value {
        jwt::p256_set(&self.key_id, self.key.public_key().as_ref())
    }

    /// Signs a token.
    pub(crate) fn sign(&self, claims: &Claims<'_>) -> Result<String, String> {
        let mut private = json!({
            "namespace": claims.namespace,
            "serviceaccount": {"name": claims.service_account, "uid": claims.service_account_uid},
        });
        if let Some((kind, name, uid)) = claims.bound_to {
            private[kind.to_lowercase()] = json!({"name": name, "uid": uid});
        }
        let header = json!({"alg": "ES256", "kid": self.key_id, "typ": "JWT"});
        let payload = json!({
            "iss": self.issuer,
            "sub": format!("system:serviceaccount:{}:{}", claims.namespace, claims.service_account),
            "aud": claims.audiences,
            "iat": claims.issued_at,
            "nbf": claims.issued_at,
            "exp": claims.expires_at,
            "jti": uuid::Uuid::new_v4().to_string(),
            "kubernetes.io": private,
        });
        let encode = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
        let signed = format!("{}.{}", encode(&header), encode(&payload));
        let signature = self
            .key
            .sign(&SystemRandom::new(), signed.as_bytes())
            .map_err(|e| format!("cannot sign a token: {e}"))?;
        Ok(format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature.as_ref())))
    }

    /// Checks a token for one of `audiences` (empty: this server) and gives its user and the audiences that matched.
    pub(crate) fn check(&self, token: &str, audiences: &[String], now: i64) -> Option<(User, Vec<String>)> {
        let payload = self.verified_payload(token)?;
        let number = |name: &str| payload[name].as_i64();
        if payload["iss"] != self.issuer.as_str() || number("exp")? <= now || number("nbf")? > now {
            return None;
        }
        let own = [self.audience.clone()];
        let wanted = if audiences.is_empty() { &own[..] } else { audiences };
        let matched: Vec<String> = payload["aud"]
            .as_array()?
            .iter()
            .filter_map(Value::as_str)
            .filter(|aud| wanted.iter().any(|w| w == aud))
            .map(str::to_owned)
            .collect();
        if matched.is_empty() {
            return None;
        }
        Some((self.user(&payload)?, matched))
    }

    fn verified_payload(&self, token: &str) -> Option<Value> {
        if token.len() > MAX_LENGTH {
            return None;
        }
        let (signed, signature) = token.rsplit_once('.')?;
        let (header, payload) = signed.split_once('.')?;
        let header: Value = serde_json::from_slice(&URL_SAFE_NO_PAD.decode(header).ok()?).ok()?;
        if header["alg"] != "ES256" || header["kid"] != self.key_id.as_str() {
            return None;
        }
        let signature = URL_SAFE_NO_PAD.decode(signature).ok()?;
        UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, self.key.public_key().as_ref())
            .verify(signed.as_bytes(), &signature)
            .ok()?;
        serde_json::from_slice(&URL_SAFE_NO_PAD.decode(payload).ok()?).ok()
    }

    /// The user of a genuine token, if everything it is bound to is still alive.
    fn user(&self, payload: &Value) -> Option<User> {
        let bound = &payload["kubernetes.io"];
        let namespace = bound["namespace"].as_str()?;
        let account = bound["serviceaccount"]["name"].as_str()?;
        let uid = bound["serviceaccount"]["uid"].as_str()?;
        self.alive("serviceaccounts", &format!("{namespace}/{account}"), uid)?;
        let mut extra = Vec::new();
        if let Some(jti) = payload["jti"].as_str() {
            extra.push((CREDENTIAL_ID.to_owned(), vec![format!("JTI={jti}")]));
        }
        for (claim, resource) in [("pod", "pods"), ("secret", "secrets")] {
            if let Some(name) = bound[claim]["name"].as_str() {
                let object_uid = bound[claim]["uid"].as_str()?;
                self.alive(resource, &format!("{namespace}/{name}"), object_uid)?;
                extra.push((format!("authentication.kubernetes.io/{claim}-name"), vec![name.to_owned()]));
                extra
                    .push((format!("authentication.kubernetes.io/{claim}-uid"), vec![object_uid.to_owned()]));
            }
        }
        Some(User {
            name: format!("system:serviceaccount:{namespace}:{account}"),
            uid: uid.to_owned(),
            groups: vec![
                "system:serviceaccounts".to_owned(),
                format!("system:serviceaccounts:{namespace}"),
                AUTHENTICATED.to_owned(),
            ],
            extra,
        })
    }

    fn alive(&self, resource: &str, key: &str, uid: &str) -> Option<()> {
        let item = self.cache.resource(resource).get(&format!("/{resource}/{key}"))?;
        (item.field("/metadata/uid") == uid).then_some(())
    }
}

#[async_trait]
impl Authenticator for Arc<Tokens> {
    async fn authenticate(&self, evidence: &Evidence<'_>) -> Verdict {
        let checked = evidence.token.and_then(|token| self.check(token, evidence.audiences, evidence.now));
        Ok(checked.map(|(user, audiences)| Authenticated { user, audiences }))
    }
}
