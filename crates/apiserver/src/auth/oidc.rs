//! Tokens of identity providers: OpenID Connect, configured as upstream's `AuthenticationConfiguration` file
//! (`apiserver.config.k8s.io/v1`), several issuers side by side.
//!
//! An issuer publishes where its keys are at a well-known address. They are fetched when its first token comes, kept for
//! an hour, and fetched again when a token names a key that is not among them, but not more often than every ten
//! seconds, because anybody can send tokens that name unknown keys. A provider that does not answer does not end the
//! validity of keys that are known.
//!
//! How something is fetched is [`Fetch`]'s matter; this module makes no connections. Expressions (CEL) in the file are
//! refused, not ignored: a rule that is not evaluated would let people in whom it was to keep out.

use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use bytes::Bytes;
use serde::Deserialize;
use serde_json::Value;

use super::authenticate::{Authenticated, Authenticator, Evidence, Verdict};
use super::jwt::{self, Jwt, Key};
use super::{AUTHENTICATED, CREDENTIAL_ID, User};

/// Longest document of an issuer.
const MAX_DOCUMENT: usize = 512 * 1024;
/// An issuer that has not answered by then does not.
const PATIENCE: Duration = Duration::from_secs(10);
/// Keys are used this long before the issuer is asked again.
const KEYS_LIVE: Duration = Duration::from_secs(60 * 60);
/// Time between two attempts to fetch.
const PAUSE: Duration = Duration::from_secs(10);
/// Groups of one token; upstream has no bound, headers of a request have.
const MAX_GROUPS: usize = 1000;
/// Issuers of one file, as upstream.
const MAX_ISSUERS: usize = 64;
/// Clocks differ by that much.
const LEEWAY_SECONDS: i64 = 10;

/// Fetches a document from another server.
#[async_trait]
pub trait Fetch: Send + Sync + 'static {
    /// The body of a successful GET of an `https` address, at most `limit` bytes long. The server is trusted by the
    /// certificates in `ca_pem`, or by the machine's own when there are none. The error is for the log.
    async fn get(&self, url: &str, ca_pem: Option<&str>, limit: usize) -> Result<Bytes, String>;
}

/// `AuthenticationConfiguration`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct AuthenticationConfiguration {
    #[serde(default)]
    api_version: String,
    #[serde(default)]
    kind: String,
    /// Issuers.
    #[serde(default)]
    pub jwt: Vec<JwtAuthenticator>,
    /// What may be seen without showing who one is.
    #[serde(default)]
    pub anonymous: Anonymous,
}

/// Requests of nobody in particular.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Anonymous {
    enabled: bool,
    #[serde(default)]
    conditions: Vec<AnonymousCondition>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct AnonymousCondition {
    path: String,
}

impl Default for Anonymous {
    /// Allowed everywhere, and kept from nearly everything by the rules of roles.
    fn default() -> Self {
        Self { enabled: true, conditions: Vec::new() }
    }
}

impl Anonymous {
    pub(crate) fn may_see(&self, path: &str) -> bool {
        self.enabled && (self.conditions.is_empty() || self.conditions.iter().any(|c| c.path == path))
    }
}

/// One issuer.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct JwtAuthenticator {
    issuer: IssuerOfFile,
    #[serde(default)]
    claim_validation_rules: Vec<ClaimRule>,
    claim_mappings: ClaimMappings,
    #[serde(default)]
    user_validation_rules: Vec<Value>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct IssuerOfFile {
    url: String,
    #[serde(default, rename = "discoveryURL")]
    discovery_url: String,
    #[serde(default)]
    certificate_authority: String,
    audiences: Vec<String>,
    #[serde(default)]
    audience_match_policy: String,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct ClaimRule {
    #[serde(default)]
    claim: String,
    #[serde(default)]
    required_value: String,
    expression: Option<String>,
    #[serde(rename = "message")]
    _message: Option<String>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct ClaimMappings {
    username: Mapping,
    #[serde(default)]
    groups: Mapping,
    #[serde(default)]
    uid: Mapping,
    #[serde(default)]
    extra: Vec<Value>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Mapping {
    #[serde(default)]
    claim: String,
    prefix: Option<String>,
    expression: Option<String>,
}

impl AuthenticationConfiguration {
    /// Reads the file (YAML or JSON).
    pub fn parse(text: &str) -> Result<Self, String> {
        let file: Self = serde_saphyr::from_str(text).map_err(|e| e.to_string())?;
        let versions = ["apiserver.config.k8s.io/v1", "apiserver.config.k8s.io/v1beta1"];
        if !versions.contains(&file.api_version.as_str()) || file.kind != "AuthenticationConfiguration" {
            return Err(format!("it is a {} of {}", file.kind, file.api_version));
        }
        if file.jwt.len() > MAX_ISSUERS {
            return Err(format!("there may be at most {MAX_ISSUERS} issuers"));
        }
        for (place, issuer) in file.jwt.iter().enumerate() {
            issuer.check().map_err(|why| format!("jwt[{place}]: {why}"))?;
            if file.jwt[..place].iter().any(|other| other.issuer.url == issuer.issuer.url) {
                return Err(format!("jwt[{place}].issuer.url: {} stands twice", issuer.issuer.url));
            }
        }
        if !file.anonymous.enabled && !file.anonymous.conditions.is_empty() {
            return Err(
                "anonymous.conditions: may only be set when anonymous requests are enabled".to_owned()
            );
        }
        Ok(file)
    }
}

impl JwtAuthenticator {
    fn check(&self) -> Result<(), String> {
        let issuer = &self.issuer;
        if !issuer.url.starts_with("https://") {
            return Err("issuer.url must begin with https://".to_owned());
        }
        if !issuer.discovery_url.is_empty() && !issuer.discovery_url.starts_with("https://") {
            return Err("issuer.discoveryURL must begin with https://".to_owned());
        }
        if issuer.audiences.is_empty() || issuer.audiences.iter().any(String::is_empty) {
            return Err("issuer.audiences must name at least one audience".to_owned());
        }
        let match_any = issuer.audience_match_policy == "MatchAny";
        if !match_any && (issuer.audiences.len() > 1 || !issuer.audience_match_policy.is_empty()) {
            return Err("issuer.audienceMatchPolicy must be MatchAny for several audiences".to_owned());
        }
        let mappings = &self.claim_mappings;
        let expressions = [&mappings.username, &mappings.groups, &mappings.uid].map(|m| &m.expression);
        if expressions.iter().any(|e| e.is_some())
            || self.claim_validation_rules.iter().any(|rule| rule.expression.is_some())
            || !self.user_validation_rules.is_empty()
            || !mappings.extra.is_empty()
        {
            return Err("expressions are not evaluated; use claims, prefixes and required values".to_owned());
        }
        if self.claim_validation_rules.iter().any(|rule| rule.claim.is_empty()) {
            return Err("claimValidationRules: claim is required".to_owned());
        }
        if mappings.username.claim.is_empty() {
            return Err("claimMappings.username.claim is required".to_owned());
        }
        for (name, mapping) in [("username", &mappings.username), ("groups", &mappings.groups)] {
            if !mapping.claim.is_empty() && mapping.prefix.is_none() {
                return Err(format!(
                    "claimMappings.{name}.prefix is required when claim is set; it may be empty"
                ));
            }
        }
        Ok(())
    }

    /// Where the issuer says where its keys are.
    fn discovery_url(&self) -> String {
        if self.issuer.discovery_url.is_empty() {
            format!("{}/.well-known/openid-configuration", self.issuer.url.trim_end_matches('/'))
        } else {
            self.issuer.discovery_url.clone()
        }
    }

    /// The user that the claims of a genuine token describe.
    fn user(&self, claims: &Value, now: i64) -> Result<User, String> {
        self.check_claims(claims, now)?;
        let mappings = &self.claim_mappings;
        let claim = mappings.username.claim.as_str();
        let name = claims[claim].as_str().filter(|name| !name.is_empty());
        let name = name.ok_or_else(|| format!("the claim {claim} holds no name"))?;
        if claim == "email" && claims.get("email_verified").is_some_and(|verified| *verified != true) {
            return Err("the email address is not verified".to_owned());
        }
        let mut groups = texts(&claims[mappings.groups.claim.as_str()])
            .ok_or_else(|| format!("the claim {} holds no groups", mappings.groups.claim))?;
        if groups.len() > MAX_GROUPS {
            return Err("the token names too many groups".to_owned());
        }
        let prefixed = |mapping: &Mapping, text: &str| {
            format!("{}{text}", mapping.prefix.as_deref().unwrap_or_default())
        };
        groups.iter_mut().for_each(|group| *group = prefixed(&mappings.groups, group));
        groups.push(AUTHENTICATED.to_owned());
        let uid = claims[mappings.uid.claim.as_str()].as_str().unwrap_or_default().to_owned();
        if uid.is_empty() && !mappings.uid.claim.is_empty() {
            return Err(format!("the claim {} holds no uid", mappings.uid.claim));
        }
        let credential =
            claims["jti"].as_str().map(|jti| (CREDENTIAL_ID.to_owned(), vec![format!("JTI={jti}")]));
        let name = prefixed(&mappings.username, name);
        Ok(User { name, uid, groups, extra: credential.into_iter().collect() })
    }

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
        for rule in &self.claim_validation_rules {
            if claims[rule.claim.as_str()].as_str().unwrap_or_default() != rule.required_value {
                return Err(format!("the claim {} is not as required", rule.claim));
            }
        }
        Ok(())
    }
}

/// A text or a list of texts; `None` for anything else.
fn texts(value: &Value) -> Option<Vec<String>> {
    match value {
        Value::Null => Some(Vec::new()),
        Value::String(one) => Some(vec![one.clone()]),
        Value::Array(many) => many.iter().map(|text| text.as_str().map(str::to_owned)).collect(),
        _ => None,
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
        let user = self.config.user(&token.claims, evidence.now)?;
        if !self.has_signed(&token).await? {
            return Err(format!("no key of {} has signed the token", self.config.issuer.url));
        }
        Ok(Some(Authenticated { user, audiences }))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use serde_json::json;

    use super::super::jwt::testing::Signer;
    use super::*;

    const FILE: &str = r#"
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
            let user = config().user(&claims, 1000);
            let groups = expected.map(|groups| {
                let mut groups: Vec<String> = groups.into_iter().map(str::to_owned).collect();
                groups.push(AUTHENTICATED.to_owned());
                groups
            });
            assert_eq!(user.as_ref().ok().map(|user| user.groups.clone()), groups, "{what}: {user:?}");
        }
        let user = config().user(&claims(), 1000).expect("a user");
        assert_eq!((user.name.as_str(), user.uid.as_str()), ("id:ann", "ann"));
        assert_eq!(user.extra[0].1, ["JTI=1"]);
        let mut by_email = config();
        by_email.claim_mappings.username =
            Mapping { claim: "email".into(), prefix: Some(String::new()), expression: None };
        for (verified, expected) in [(json!(true), true), (json!(false), false)] {
            let mut claims = with("email", json!("ann@example.com"));
            claims["email_verified"] = verified;
            assert_eq!(by_email.user(&claims, 1000).is_ok(), expected);
        }
    }

    #[test]
    fn files() {
        let file = AuthenticationConfiguration::parse(FILE).expect("a configuration");
        assert!(file.anonymous.may_see("/livez") && !file.anonymous.may_see("/api"));
        let rows = [
            ("http", FILE.replace("https://", "http://")),
            ("policy", FILE.replace("    audienceMatchPolicy: MatchAny\n", "")),
            ("no audience", FILE.replace("[sampan, other]", "[]")),
            ("no prefix", FILE.replace("{claim: sub, prefix: \"id:\"}", "{claim: sub}")),
            ("expression", FILE.replace("{claim: sub, prefix: \"id:\"}", "{expression: claims.sub}")),
            ("unknown field", FILE.replace("audiences:", "audience:")),
            ("another kind", FILE.replace("kind: Auth", "kind: Other")),
            ("nobody, but", FILE.replace("enabled: true", "enabled: false")),
        ];
        for (what, text) in rows {
            assert!(text != FILE && AuthenticationConfiguration::parse(&text).is_err(), "{what}");
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
