//! Tokens of identity providers: OpenID Connect, configured as upstream's `AuthenticationConfiguration` file
//! (`apiserver.config.k8s.io/v1`), several issuers side by side.
//!
//! An issuer publishes where its keys are at a well-known address. They are fetched when its first token comes, kept for
//! an hour, and fetched again when a token names a key that is not among them, but not more often than every ten
//! seconds, because anybody can send tokens that name unknown keys. A provider that does not answer does not end the
//! validity of keys that are known.
//!
//! How something is fetched is [`Fetch`]'s matter; this module makes no connections. [`configuration`] reads and checks
//! the file, [`mapping`] says who a token is, with expressions in CEL where the file has some.

mod configuration;
mod mapping;

use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use bytes::Bytes;
use serde_json::Value;

pub use configuration::{Anonymous, AuthenticationConfiguration, JwtAuthenticator};

use super::authenticate::{Authenticated, Authenticator, Evidence, Verdict};
use super::jwt::{self, Jwt, Key};
use mapping::texts;

/// Longest document of an issuer.
const MAX_DOCUMENT: usize = 512 * 1024;
/// An issuer that has not answered by then does not.
const PATIENCE: Duration = Duration::from_secs(10);
/// Keys are used this long before the issuer is asked again.
const KEYS_LIVE: Duration = Duration::from_secs(60 * 60);
/// Time between two attempts to fetch.
const PAUSE: Duration = Duration::from_secs(10);
/// Clocks differ by that much.
const LEEWAY_SECONDS: i64 = 10;

/// Fetches a document from another server.
#[async_trait]
pub trait Fetch: Send + Sync + 'static {
    /// The body of a successful GET of an `https` address, at most `limit` bytes long. The server is trusted by the
    /// certificates in `ca_pem`, or by the machine's own when there are none. The error is for the log.
    async fn get(&self, url: &str, ca_pem: Option<&str>, limit: usize) -> Result<Bytes, String>;
}

impl JwtAuthenticator {
    /// Where the issuer says where its keys are.
    fn discovery_url(&self) -> String {
        if self.issuer.discovery_url.is_empty() {
            format!("{}/.well-known/openid-configuration", self.issuer.url.trim_end_matches('/'))
        } else {
            self.issuer.discovery_url.clone()
        }
    }

    /// Whether a token may be used now and here. Costs nothing to speak of.
    fn check_claims(&self, claims: &Value, now: i64) -> Result<(), String> {
        // Whole seconds are usual, fractions are allowed.
        let time = |name: &str| claims[name].as_f64().map(|seconds| seconds as i64);
        let expires = time("exp").ok_or("the token has no end")?;
        if expires < now - LEEWAY_SECONDS {
            return Err("the token has expired".to_owned());
        }
        if time("nbf").is_some_and(|begin| begin > now + LEEWAY_SECONDS) {
            return Err("the token is not valid yet".to_owned());
        }
        let audiences = texts(&claims["aud"]).unwrap_or_default();
        if !audiences.iter().any(|audience| self.issuer.audiences.contains(audience)) {
            return Err("the token is for another audience".to_owned());
        }
        self.mapper.check_required(claims)
    }
}

#[derive(Default)]
struct Keys {
    list: Vec<Key>,
    fetched: Option<Instant>,
}

/// Checks the tokens of one issuer.
pub(crate) struct Issuer {
    config: JwtAuthenticator,
    fetch: Arc<dyn Fetch>,
    keys: RwLock<Arc<Keys>>,
    /// When the last attempt to fetch ended. Held while one is made, so that there is one at a time.
    attempt: tokio::sync::Mutex<Option<Instant>>,
    pause: Duration,
}

impl Issuer {
    pub(crate) fn new(config: JwtAuthenticator, fetch: Arc<dyn Fetch>) -> Self {
        Self { config, fetch, keys: RwLock::default(), attempt: tokio::sync::Mutex::default(), pause: PAUSE }
    }

    fn current(&self) -> Arc<Keys> {
        self.keys.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Whether the issuer signed the token.
    async fn has_signed(&self, token: &Jwt<'_>) -> Result<bool, String> {
        let known = self.current();
        let fresh = known.fetched.is_some_and(|at| at.elapsed() < KEYS_LIVE);
        if fresh && known.list.iter().any(|key| token.is_signed_by(key)) {
            return Ok(true);
        }
        let refreshed = self.refresh(&known).await;
        let current = self.current();
        if current.list.iter().any(|key| token.is_signed_by(key)) {
            return Ok(true);
        }
        refreshed.map(|()| false)
    }

    /// Fetches the keys, unless that has been done since `known` was looked at, or a moment ago.
    async fn refresh(&self, known: &Arc<Keys>) -> Result<(), String> {
        let mut attempt = self.attempt.lock().await;
        if !Arc::ptr_eq(known, &self.current()) || attempt.is_some_and(|at| at.elapsed() < self.pause) {
            return Ok(());
        }
        let fetched = tokio::time::timeout(PATIENCE, self.fetch_keys()).await;
        let now = Instant::now();
        *attempt = Some(now);
        let list = match fetched {
            Ok(list) => list?,
            Err(_) => return Err(format!("the issuer {} does not answer", self.config.issuer.url)),
        };
        let keys = Keys { list, fetched: Some(now) };
        *self.keys.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(keys);
        Ok(())
    }

    async fn fetch_keys(&self) -> Result<Vec<Key>, String> {
        let document = self.document(&self.config.discovery_url()).await?;
        let issuer = &self.config.issuer.url;
        if document["issuer"] != issuer.as_str() {
            return Err(format!("the discovery document of {issuer} is of another issuer"));
        }
        let url = document["jwks_uri"].as_str().filter(|url| url.starts_with("https://"));
        let url = url.ok_or_else(|| format!("the discovery document of {issuer} names no keys"))?;
        Ok(jwt::keys(&self.document(url).await?))
    }

    async fn document(&self, url: &str) -> Result<Value, String> {
        let authority = Some(self.config.issuer.certificate_authority.as_str()).filter(|pem| !pem.is_empty());
        let bytes = self.fetch.get(url, authority, MAX_DOCUMENT).await?;
        if bytes.len() > MAX_DOCUMENT {
            return Err(format!("the document at {url} is too long"));
        }
        serde_json::from_slice(&bytes).map_err(|e| format!("the document at {url} is no JSON: {e}"))
    }
}

#[async_trait]
impl Authenticator for Issuer {
    async fn authenticate(&self, evidence: &Evidence<'_>) -> Verdict {
        let Some(token) = evidence.token.and_then(Jwt::parse) else { return Ok(None) };
        if token.claims["iss"] != self.config.issuer.url.as_str() {
            return Ok(None);
        }
        let Some(audiences) = evidence.audiences_here() else { return Ok(None) };
        // First what costs nothing: a token that could not be used anyway is no reason to ask the issuer.
        self.config.check_claims(&token.claims, evidence.now)?;
        if !self.has_signed(&token).await? {
            return Err(format!("no key of {} has signed the token", self.config.issuer.url));
        }
        let user = self.config.mapper.user(&token.claims)?;
        Ok(Some(Authenticated { user, audiences }))
    }
}

#[cfg(test)]
pub(in crate::auth) mod tests {
    use std::sync::Mutex;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use serde_json::json;

    use super::super::jwt::testing::Signer;
    use super::super::{AUTHENTICATED, User};
    use super::*;

    pub(super) const FILE: &str = r#"
apiVersion: apiserver.config.k8s.io/v1
kind: AuthenticationConfiguration
jwt:
- issuer:
    url: https://id.example.com
    audiences: [sampan, other]
    audienceMatchPolicy: MatchAny
  claimValidationRules:
  - claim: hd
    requiredValue: example.com
  claimMappings:
    username: {claim: sub, prefix: "id:"}
    groups: {claim: groups, prefix: "id:"}
    uid: {claim: sub}
anonymous:
  enabled: true
  conditions:
  - path: /livez
"#;

    fn user(config: &JwtAuthenticator, claims: &Value, now: i64) -> Result<User, String> {
        config.check_claims(claims, now)?;
        config.mapper.user(claims)
    }

    fn config() -> JwtAuthenticator {
        AuthenticationConfiguration::parse(FILE).expect("a configuration").jwt.remove(0)
    }

    fn claims() -> Value {
        json!({
            "iss": "https://id.example.com", "sub": "ann", "aud": "sampan", "exp": 2000, "hd": "example.com",
            "groups": ["dev"], "jti": "1",
        })
    }

    #[test]
    fn who_a_token_is() {
        let with = |name: &str, value: Value| {
            let mut claims = claims();
            claims[name] = value;
            claims
        };
        let rows = [
            ("good", claims(), Some(vec!["id:dev"])),
            ("one group", with("groups", json!("ops")), Some(vec!["id:ops"])),
            ("no groups", with("groups", Value::Null), Some(vec![])),
            ("odd groups", with("groups", json!([1])), None),
            ("several audiences", with("aud", json!(["x", "other"])), Some(vec!["id:dev"])),
            ("another audience", with("aud", json!("x")), None),
            ("a little late", with("exp", json!(995)), Some(vec!["id:dev"])),
            ("expired", with("exp", json!(900)), None),
            ("for ever", with("exp", Value::Null), None),
            ("too early", with("nbf", json!(1500)), None),
            ("another domain", with("hd", json!("example.org")), None),
            ("no name", with("sub", json!("")), None),
        ];
        for (what, claims, expected) in rows {
            let user = self::user(&config(), &claims, 1000);
            let groups = expected.map(|groups| {
                let mut groups: Vec<String> = groups.into_iter().map(str::to_owned).collect();
                groups.push(AUTHENTICATED.to_owned());
                groups
            });
            assert_eq!(user.as_ref().ok().map(|user| user.groups.clone()), groups, "{what}: {user:?}");
        }
        let user = self::user(&config(), &claims(), 1000).expect("a user");
        assert_eq!((user.name.as_str(), user.uid.as_str()), ("id:ann", "ann"));
        assert_eq!(user.extra[0].1, ["JTI=1"]);
        let by_email =
            FILE.replace("username: {claim: sub, prefix: \"id:\"}", "username: {claim: email, prefix: ''}");
        let by_email = AuthenticationConfiguration::parse(&by_email).expect("a configuration").jwt.remove(0);
        for (verified, expected) in [(json!(true), true), (json!(false), false)] {
            let mut claims = with("email", json!("ann@example.com"));
            claims["email_verified"] = verified;
            assert_eq!(self::user(&by_email, &claims, 1000).is_ok(), expected);
        }
    }

    const EXPRESSIONS: &str = r#"
apiVersion: apiserver.config.k8s.io/v1
kind: AuthenticationConfiguration
jwt:
- issuer: {url: "https://id.example.com", audiences: [sampan]}
  claimValidationRules:
  - {expression: "claims.exp - claims.?iat.orValue(0) <= 5000", message: lives too long}
  claimMappings:
    username: {expression: "claims.sub + (has(claims.tenant) ? '@' + claims.tenant : '')"}
    groups: {expression: "has(claims.roles) ? claims.roles.split(',').map(r, 'role:' + r) : claims.?groups.orValue([])"}
    uid: {expression: "string(claims.number)"}
    extra:
    - {key: "example.org/tenant", valueExpression: "claims.?tenant.orValue('')"}
    - {key: "example.org/tags", valueExpression: "claims.?tags.orValue(['', 'a'])"}
  userValidationRules:
  - {expression: "!user.username.startsWith('system:')", message: reserved}
  - {expression: "!has(user.groups) || user.groups.all(g, !g.startsWith('system:'))", message: reserved group}
  - {expression: "user.extra.all(k, k.startsWith('example.org/'))", message: odd}
"#;

    #[test]
    fn expressions_say_who_a_token_is() {
        let config = AuthenticationConfiguration::parse(EXPRESSIONS).expect("a configuration").jwt.remove(0);
        let with = |more: Value| {
            let mut claims = json!({"sub": "ann", "aud": "sampan", "exp": 2000, "number": 7, "jti": "1"});
            for (name, value) in more.as_object().into_iter().flatten() {
                claims[name] = value.clone();
            }
            claims
        };
        let found = user(&config, &with(json!({"tenant": "t", "roles": "a,b", "tags": ["x", "y"]})), 1000);
        let found = found.expect("a user");
        assert_eq!((found.name.as_str(), found.uid.as_str()), ("ann@t", "7"));
        assert_eq!(found.groups, ["role:a", "role:b", AUTHENTICATED]);
        let pairs: Vec<(&str, String)> = found.extra.iter().map(|(k, v)| (k.as_str(), v.join(","))).collect();
        assert_eq!(pairs[0], ("example.org/tenant", "t".to_owned()));
        assert_eq!(pairs[1], ("example.org/tags", "x,y".to_owned()));
        assert_eq!(pairs[2].1, "JTI=1");
        let plain = user(&config, &with(json!({})), 1000).expect("a user");
        assert_eq!((plain.name.as_str(), plain.groups.len()), ("ann", 1));
        assert_eq!(
            (plain.extra[0].0.as_str(), plain.extra[0].1.join(",")),
            ("example.org/tags", "a".to_owned())
        );
        let rows = [
            (json!({"sub": 5}), "no such overload"),
            (json!({"sub": ""}), "gives no name"),
            (json!({"exp": 9000}), "failed: lives too long"),
            (json!({"sub": "system:admin"}), "failed: reserved"),
            (json!({"groups": ["system:masters"]}), "failed: reserved group"),
            (json!({"groups": "x", "number": null}), "no such overload"),
            (json!({"groups": [1]}), "expression must return a string or a list of strings"),
            (json!({"tags": {"a": 1}}), "expression must return a string or a list of strings"),
            (json!({"aud": "other"}), "another audience"),
        ];
        for (more, expected) in rows {
            let why = user(&config, &with(more.clone()), 1000).expect_err(expected);
            assert!(why.contains(expected), "{more}: {why}");
        }
    }

    /// A provider whose keys can change, and which can be away.
    struct Provider {
        keys: Mutex<Option<Vec<Value>>>,
        asked: AtomicUsize,
    }

    #[async_trait]
    impl Fetch for Provider {
        async fn get(&self, url: &str, ca_pem: Option<&str>, _: usize) -> Result<Bytes, String> {
            assert_eq!(ca_pem, None);
            let keys = self.keys.lock().expect("not poisoned").clone().ok_or("away")?;
            let document = match url {
                "https://id.example.com/.well-known/openid-configuration" => {
                    json!({"issuer": "https://id.example.com", "jwks_uri": "https://id.example.com/keys"})
                }
                "https://id.example.com/keys" => {
                    self.asked.fetch_add(1, Ordering::SeqCst);
                    json!({ "keys": keys })
                }
                other => return Err(format!("nothing at {other}")),
            };
            Ok(document.to_string().into())
        }
    }

    async fn name_behind(issuer: &Issuer, token: &str, now: i64) -> Result<Option<String>, String> {
        let evidence = Evidence {
            certificate: None,
            headers: None,
            token: Some(token),
            audiences: &[],
            own_audience: "here",
            now,
        };
        Ok(issuer.authenticate(&evidence).await?.map(|found| found.user.name))
    }

    #[tokio::test]
    async fn keys_are_fetched_when_they_are_needed() {
        let (first, second) = (Signer::es256("1"), Signer::es384("2"));
        let provider =
            Arc::new(Provider { keys: Mutex::new(Some(vec![first.jwk()])), asked: AtomicUsize::new(0) });
        let mut issuer = Issuer::new(config(), provider.clone());
        let ann = Ok(Some("id:ann".to_owned()));
        assert_eq!(name_behind(&issuer, &first.sign(&claims()), 1000).await, ann);
        assert_eq!(name_behind(&issuer, &first.sign(&claims()), 1000).await, ann);
        assert_eq!(provider.asked.load(Ordering::SeqCst), 1, "kept");
        // A token that could not be used anyway asks nobody; one of another issuer is not ours.
        assert!(name_behind(&issuer, &second.sign(&claims()), 9000).await.is_err());
        let mut foreign = claims();
        foreign["iss"] = "https://elsewhere".into();
        assert_eq!(name_behind(&issuer, &second.sign(&foreign), 1000).await, Ok(None));
        // An unknown key is asked for, but not at once again.
        assert!(name_behind(&issuer, &second.sign(&claims()), 1000).await.is_err());
        assert_eq!(provider.asked.load(Ordering::SeqCst), 1, "a moment ago");
        issuer.pause = Duration::ZERO;
        *provider.keys.lock().expect("not poisoned") = Some(vec![first.jwk(), second.jwk()]);
        assert_eq!(name_behind(&issuer, &second.sign(&claims()), 1000).await, ann);
        assert_eq!(provider.asked.load(Ordering::SeqCst), 2);
        // A provider that is away does not matter for keys that are known.
        *provider.keys.lock().expect("not poisoned") = None;
        assert_eq!(name_behind(&issuer, &first.sign(&claims()), 1000).await, ann);
        assert_eq!(
            name_behind(&issuer, &Signer::es256("3").sign(&claims()), 1000).await,
            Err("away".to_owned())
        );
    }
}
