//! The file of issuers: `AuthenticationConfiguration` of `apiserver.config.k8s.io/v1`, read and checked once.
//!
//! What a mistake would let in is told when the file is read: nothing in it is ignored, expressions are compiled, and who
//! takes names from email addresses must look at whether those were verified.
//!
//! Source of the checks and their words: `k8s.io/apiserver/pkg/apis/apiserver/validation`.

use std::collections::BTreeSet;
use std::sync::Arc;

use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use sampan_api::field::{Errors, Path};
use sampan_api::names;
use serde::Deserialize;

use super::mapping::{Mapper, Rule, Text};

/// Issuers of one file, as upstream.
const MAX_ISSUERS: usize = 64;

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
    pub(super) issuer: IssuerOfFile,
    #[serde(default)]
    claim_validation_rules: Vec<ClaimRule>,
    claim_mappings: ClaimMappings,
    #[serde(default)]
    user_validation_rules: Vec<UserRule>,
    /// The rules and mappings above, made when the file is checked.
    #[serde(skip)]
    pub(super) mapper: Arc<Mapper>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct IssuerOfFile {
    pub(super) url: String,
    #[serde(default, rename = "discoveryURL")]
    pub(super) discovery_url: String,
    #[serde(default)]
    pub(super) certificate_authority: String,
    pub(super) audiences: Vec<String>,
    #[serde(default)]
    audience_match_policy: String,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct ClaimRule {
    claim: String,
    required_value: String,
    expression: String,
    message: String,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct UserRule {
    expression: String,
    message: String,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct ClaimMappings {
    username: Mapping,
    #[serde(default)]
    groups: Mapping,
    #[serde(default)]
    uid: PlainMapping,
    #[serde(default)]
    extra: Vec<ExtraMapping>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Mapping {
    claim: String,
    prefix: Option<String>,
    expression: String,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct PlainMapping {
    claim: String,
    expression: String,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct ExtraMapping {
    key: String,
    value_expression: String,
}

impl AuthenticationConfiguration {
    /// Reads the file (YAML or JSON).
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut file: Self = serde_saphyr::from_str(text).map_err(|e| e.to_string())?;
        let versions = ["apiserver.config.k8s.io/v1", "apiserver.config.k8s.io/v1beta1"];
        if !versions.contains(&file.api_version.as_str()) || file.kind != "AuthenticationConfiguration" {
            return Err(format!("it is a {} of {}", file.kind, file.api_version));
        }
        let errors = file.check();
        if errors.is_empty() { Ok(file) } else { Err(errors.to_string()) }
    }

    /// Checks the file and makes of it what tokens are judged by.
    fn check(&mut self) -> Errors {
        let mut errors = Errors::new();
        let root = Path::new("jwt");
        if self.jwt.len() > MAX_ISSUERS {
            errors.too_many(&root, self.jwt.len(), MAX_ISSUERS);
            return errors;
        }
        let (mut urls, mut documents) = (BTreeSet::new(), BTreeSet::new());
        for (place, issuer) in self.jwt.iter_mut().enumerate() {
            let path = root.index(place);
            issuer.issuer.check(&path.child("issuer"), &mut errors);
            issuer.mapper = Arc::new(issuer.compile(&path, &mut errors));
            let (url, discovery) = (&issuer.issuer.url, &issuer.issuer.discovery_url);
            if !urls.insert(url.clone()) {
                errors.duplicate(&path.child("issuer").child("url"), url.as_str());
            }
            if !discovery.is_empty() && !documents.insert(discovery.clone()) {
                errors.duplicate(&path.child("issuer").child("discoveryURL"), discovery.as_str());
            }
        }
        if !self.anonymous.enabled && !self.anonymous.conditions.is_empty() {
            let path = Path::new("anonymous").child("conditions");
            errors.forbidden(&path, "enabled should be set to true when conditions are defined");
        }
        errors
    }

    /// An issuer that may not be one of the file: the cluster's own.
    pub(crate) fn names_issuer(&self, url: &str) -> bool {
        self.jwt.iter().any(|issuer| issuer.issuer.url == url)
    }
}

impl IssuerOfFile {
    fn check(&self, path: &Path, errors: &mut Errors) {
        let (url, discovery_url) = (path.child("url"), path.child("discoveryURL"));
        if self.url.is_empty() {
            errors.required(&url, "");
        } else {
            check_url(&self.url, &url, errors);
        }
        if !self.discovery_url.is_empty() {
            if self.url.trim_end_matches('/') == self.discovery_url.trim_end_matches('/') {
                let why = "discoveryURL must be different from URL";
                errors.invalid(&discovery_url, self.discovery_url.as_str(), why);
            }
            check_url(&self.discovery_url, &discovery_url, errors);
        }
        self.check_audiences(path, errors);
        let authority = self.certificate_authority.as_bytes();
        let has_certificates = || {
            let mut found = CertificateDer::pem_slice_iter(authority).peekable();
            found.peek().is_some() && found.all(|certificate| certificate.is_ok())
        };
        if !authority.is_empty() && !has_certificates() {
            let why = "data does not contain any valid RSA or ECDSA certificates";
            errors.invalid(&path.child("certificateAuthority"), "<omitted>", why);
        }
    }

    fn check_audiences(&self, path: &Path, errors: &mut Errors) {
        let audiences = path.child("audiences");
        if self.audiences.is_empty() {
            errors.required(&audiences, format!("at least one {audiences} is required"));
            return;
        }
        let mut seen = BTreeSet::new();
        for (place, audience) in self.audiences.iter().enumerate() {
            if audience.is_empty() {
                errors.required(&audiences.index(place), "");
            }
            if !seen.insert(audience) {
                errors.duplicate(&audiences.index(place), audience.as_str());
            }
        }
        let policy = self.audience_match_policy.as_str();
        let why = match (self.audiences.len(), policy) {
            (_, "MatchAny") | (1, "") => return,
            (1, _) => "audienceMatchPolicy must be empty or MatchAny for single audience",
            _ => "audienceMatchPolicy must be MatchAny for multiple audiences",
        };
        errors.invalid(&path.child("audienceMatchPolicy"), policy, why);
    }
}

fn check_url(url: &str, path: &Path, errors: &mut Errors) {
    let Some(rest) = url.strip_prefix("https://") else {
        errors.invalid(path, url, "URL scheme must be https");
        return;
    };
    let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
    let rows = [
        (authority.contains('@'), "URL must not contain a username or password"),
        (rest.contains('?'), "URL must not contain a query"),
        (rest.contains('#'), "URL must not contain a fragment"),
    ];
    for (_, why) in rows.into_iter().filter(|(wrong, _)| *wrong) {
        errors.invalid(path, url, why);
    }
}

impl JwtAuthenticator {
    /// Compiles rules and mappings.
    fn compile(&self, path: &Path, errors: &mut Errors) -> Mapper {
        let mut mapper = Mapper::default();
        self.claim_rules(&mut mapper, &path.child("claimValidationRules"), errors);
        self.mappings(&mut mapper, &path.child("claimMappings"), errors);
        self.user_rules(&mut mapper, &path.child("userValidationRules"), errors);
        mapper
    }

    fn claim_rules(&self, mapper: &mut Mapper, path: &Path, errors: &mut Errors) {
        let (mut claims, mut expressions) = (BTreeSet::new(), BTreeSet::new());
        for (place, rule) in self.claim_validation_rules.iter().enumerate() {
            let path = path.index(place);
            match (rule.claim.as_str(), rule.expression.as_str()) {
                ("", "") => errors.required(&path, "claim or expression is required"),
                (claim, "") => {
                    if !rule.message.is_empty() {
                        let why = "may not be specified when claim is set";
                        errors.invalid(&path.child("message"), rule.message.as_str(), why);
                    }
                    if !claims.insert(claim) {
                        errors.duplicate(&path.child("claim"), claim);
                    }
                    mapper.required.push((claim.to_owned(), rule.required_value.clone()));
                }
                ("", expression) => {
                    if !rule.required_value.is_empty() {
                        let why = "may not be specified when expression is set";
                        errors.invalid(&path.child("requiredValue"), rule.required_value.as_str(), why);
                    }
                    let at = path.child("expression");
                    if !expressions.insert(expression) {
                        errors.duplicate(&at, expression);
                        continue;
                    }
                    let found = checked(Rule::on_claims(expression, &rule.message), expression, &at, errors);
                    mapper.claim_rules.extend(found);
                }
                (claim, _) => errors.invalid(&path, claim, "claim and expression can't both be set"),
            }
        }
    }

    fn mappings(&self, mapper: &mut Mapper, path: &Path, errors: &mut Errors) {
        let mappings = &self.claim_mappings;
        let username = path.child("username");
        if mappings.username.claim.is_empty() && mappings.username.expression.is_empty() {
            errors.required(&username, "claim or expression is required");
        }
        mapper.username = mappings.username.compile(&username, errors);
        mapper.groups = mappings.groups.compile(&path.child("groups"), errors);
        mapper.uid = mappings.uid.compile(&path.child("uid"), errors);
        self.extra(mapper, &path.child("extra"), errors);
        if mapper.username.uses("email") && !mapper.looks_at_verification() {
            let why = "claims.email_verified must be used in claimMappings.username.expression or \
                       claimMappings.extra[*].valueExpression or claimValidationRules[*].expression when claims.email \
                       is used in claimMappings.username.expression";
            errors.invalid(&username.child("expression"), mappings.username.expression.as_str(), why);
        }
    }

    fn extra(&self, mapper: &mut Mapper, path: &Path, errors: &mut Errors) {
        let mut keys = BTreeSet::new();
        for (place, mapping) in self.claim_mappings.extra.iter().enumerate() {
            let (key, value) = (mapping.key.as_str(), mapping.value_expression.as_str());
            let (key_path, path) =
                (path.index(place).child("key"), path.index(place).child("valueExpression"));
            check_extra_key(key, &key_path, errors);
            if !keys.insert(key) {
                errors.duplicate(&key_path, key);
            } else if value.is_empty() {
                errors.required(&path, "");
            } else {
                let found = checked(Text::expression(value), value, &path, errors);
                mapper.extra.extend(found.map(|text| (key.to_owned(), text)));
            }
        }
    }

    fn user_rules(&self, mapper: &mut Mapper, path: &Path, errors: &mut Errors) {
        let mut expressions = BTreeSet::new();
        for (place, rule) in self.user_validation_rules.iter().enumerate() {
            let (path, expression) = (path.index(place).child("expression"), rule.expression.as_str());
            if expression.is_empty() {
                errors.required(&path, "");
            } else if !expressions.insert(expression) {
                errors.duplicate(&path, expression);
            } else {
                let found = checked(Rule::on_user(expression, &rule.message), expression, &path, errors);
                mapper.user_rules.extend(found);
            }
        }
    }
}

/// What was compiled, or the reason among the errors.
fn checked<T>(found: Result<T, String>, text: &str, path: &Path, errors: &mut Errors) -> Option<T> {
    found.map_err(|why| errors.invalid(path, text, why)).ok()
}

impl Mapping {
    fn compile(&self, path: &Path, errors: &mut Errors) -> Text {
        match (self.claim.as_str(), self.expression.as_str()) {
            ("", "") => Text::Nothing,
            (claim, "") => {
                let Some(prefix) = &self.prefix else {
                    let why = "prefix is required when claim is set. It can be set to an empty string to disable \
                               prefixing";
                    errors.required(&path.child("prefix"), why);
                    return Text::Nothing;
                };
                Text::Claim { name: claim.to_owned(), prefix: prefix.clone() }
            }
            ("", expression) => {
                if let Some(prefix) = &self.prefix {
                    let why = "may not be specified when expression is set";
                    errors.invalid(&path.child("prefix"), prefix.as_str(), why);
                }
                let at = path.child("expression");
                checked(Text::expression(expression), expression, &at, errors).unwrap_or_default()
            }
            _ => {
                errors.invalid(path, "", "claim and expression can't both be set");
                Text::Nothing
            }
        }
    }
}

impl PlainMapping {
    fn compile(&self, path: &Path, errors: &mut Errors) -> Text {
        let prefix = (!self.claim.is_empty()).then(String::new);
        let expression = self.expression.clone();
        Mapping { claim: self.claim.clone(), prefix, expression }.compile(path, errors)
    }
}

/// `example.org/foo`, in lower case, and not of Kubernetes' own.
fn check_extra_key(key: &str, path: &Path, errors: &mut Errors) {
    match key.split_once('/') {
        _ if key.is_empty() => errors.required(path, ""),
        Some((domain, rest)) if !domain.is_empty() && !rest.is_empty() => {
            for why in names::dns1123_subdomain(domain) {
                errors.invalid(path, domain, why);
            }
            let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"/-._~%!$&'()*+,;=:".contains(&byte);
            if !rest.bytes().all(allowed) {
                errors.invalid(path, rest, "Invalid path");
            }
        }
        _ => errors.invalid(path, key, "must be a domain-prefixed path (such as \"acme.io/foo\")"),
    }
    if key.chars().any(char::is_uppercase) {
        errors.invalid(path, key, "must be lowercase");
    }
    let domain = key.split_once('/').map_or("", |(domain, _)| domain);
    let reserved = |of: &str| domain == of || domain.ends_with(&format!(".{of}"));
    if reserved("kubernetes.io") || reserved("k8s.io") {
        let why = "k8s.io, kubernetes.io and their subdomains are reserved for Kubernetes use";
        errors.invalid(path, key, why);
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::FILE;
    use super::*;

    #[test]
    fn files() {
        let file = AuthenticationConfiguration::parse(FILE).expect("a configuration");
        assert!(file.anonymous.may_see("/livez") && !file.anonymous.may_see("/api"));
        assert!(file.names_issuer("https://id.example.com") && !file.names_issuer("https://id.example.com/"));
        let rows = [
            (
                "https://id",
                "http://id",
                "issuer.url: Invalid value: \"http://id.example.com\": URL scheme must be https",
            ),
            ("https://id", "https://a@id", "URL must not contain a username or password"),
            ("example.com\n    aud", "example.com?x\n    aud", "URL must not contain a query"),
            (
                "    audienceMatchPolicy: MatchAny\n",
                "",
                "audienceMatchPolicy must be MatchAny for multiple audiences",
            ),
            ("[sampan, other]", "[]", "issuer.audiences: Required value"),
            ("[sampan, other]", "[a, a]", "issuer.audiences[1]: Duplicate value: \"a\""),
            (
                "{claim: sub, prefix: \"id:\"}",
                "{claim: sub}",
                "claimMappings.username.prefix: Required value",
            ),
            ("audiences:", "audience:", "audience"),
            ("kind: Auth", "kind: Other", "it is a Other"),
            ("enabled: true", "enabled: false", "enabled should be set to true when conditions are defined"),
            (
                "    audiences:",
                "    discoveryURL: https://id.example.com/\n    audiences:",
                "discoveryURL must be different from URL",
            ),
            (
                "    audiences:",
                "    certificateAuthority: junk\n    audiences:",
                "certificateAuthority: Invalid value: \"<omitted>\"",
            ),
        ];
        for (old, new, expected) in rows {
            let text = FILE.replace(old, new);
            let error = AuthenticationConfiguration::parse(&text).expect_err(expected);
            assert!(text != FILE && error.contains(expected), "{new}: {error}");
        }
    }

    #[test]
    fn expressions() {
        let parse = |rules: &str, mappings: &str, users: &str| {
            let text = format!(
                "{{apiVersion: apiserver.config.k8s.io/v1, kind: AuthenticationConfiguration, jwt: [{{issuer: {{\
                 url: 'https://a', audiences: [b]}}, claimValidationRules: [{rules}], claimMappings: {{{mappings}}}, \
                 userValidationRules: [{users}]}}]}}"
            );
            AuthenticationConfiguration::parse(&text).err().unwrap_or_default()
        };
        let name = "username: {expression: claims.sub}";
        let extra = |list: &str| format!("{name}, extra: [{list}]");
        let email = "must be used in claimMappings.username.expression";
        let rows = [
            (parse("", name, ""), ""),
            (
                parse(
                    "{expression: \"claims.a == 'b'\", message: no}",
                    name,
                    "{expression: \"user.username != 'x'\"}",
                ),
                "",
            ),
            (parse("", &extra("{key: example.org/a, valueExpression: claims.a}"), ""), ""),
            (
                parse("{claim: a, expression: b}", name, ""),
                "jwt[0].claimValidationRules[0]: Invalid value: \"a\": claim and expression can't both be set",
            ),
            (
                parse("{}", name, ""),
                "jwt[0].claimValidationRules[0]: Required value: claim or expression is required",
            ),
            (
                parse("{claim: a, message: m}", name, ""),
                "message: Invalid value: \"m\": may not be specified when claim is set",
            ),
            (
                parse("{claim: a}, {claim: a}", name, ""),
                "claimValidationRules[1].claim: Duplicate value: \"a\"",
            ),
            (
                parse("{expression: 'true', requiredValue: x}", name, ""),
                "requiredValue: Invalid value: \"x\": may not be specified",
            ),
            (
                parse("{expression: 'true'}, {expression: 'true'}", name, ""),
                "claimValidationRules[1].expression: Duplicate value",
            ),
            (
                parse("{expression: 'claims.'}", name, ""),
                "claimValidationRules[0].expression: Invalid value: \"claims.\": compilation failed",
            ),
            (parse("{expression: '1 + 1'}", name, ""), "must evaluate to bool"),
            (parse("{expression: claims.email_verified}", name, ""), "must evaluate to bool"),
            (parse("{expression: 'user.username == 1'}", name, ""), "undeclared reference to 'user'"),
            (
                parse("", "username: {}", ""),
                "claimMappings.username: Required value: claim or expression is required",
            ),
            (
                parse("", "username: {claim: a, prefix: b, expression: c}", ""),
                "claimMappings.username: Invalid value: \"\": claim and",
            ),
            (
                parse("", "username: {expression: claims.a, prefix: b}", ""),
                "username.prefix: Invalid value: \"b\": may not be specified when expression is set",
            ),
            (
                parse("", &format!("{name}, uid: {{claim: a, expression: claims.b}}"), ""),
                "claimMappings.uid: Invalid value: \"\": claim and",
            ),
            (
                parse("", &format!("{name}, groups: {{expression: 'claims.'}}"), ""),
                "claimMappings.groups.expression: Invalid value",
            ),
            (parse("", &extra("{valueExpression: claims.a}"), ""), "extra[0].key: Required value"),
            (
                parse("", &extra("{key: a, valueExpression: claims.a}"), ""),
                "must be a domain-prefixed path (such as \"acme.io/foo\")",
            ),
            (parse("", &extra("{key: a.b/C, valueExpression: claims.a}"), ""), "must be lowercase"),
            (
                parse("", &extra("{key: a.k8s.io/c, valueExpression: claims.a}"), ""),
                "are reserved for Kubernetes use",
            ),
            (parse("", &extra("{key: a.b/c}"), ""), "extra[0].valueExpression: Required value"),
            (
                parse(
                    "",
                    &extra(
                        "{key: a.b/c, valueExpression: claims.a}, {key: a.b/c, valueExpression: claims.b}",
                    ),
                    "",
                ),
                "extra[1].key: Duplicate value",
            ),
            (parse("", name, "{message: x}"), "userValidationRules[0].expression: Required value"),
            (parse("", name, "{expression: user.nothing == 1}"), "undefined field 'nothing'"),
            (parse("", name, "{expression: claims.sub == 'a'}"), "undeclared reference to 'claims'"),
            // Names from addresses that nobody verified.
            (parse("", "username: {expression: claims.email}", ""), email),
            (parse("", "username: {expression: \"claims.?email.orValue('')\"}", ""), email),
            (parse("", "username: {expression: \"claims.email_verified ? claims.email : ''\"}", ""), ""),
            (
                parse(
                    "{expression: \"claims.?email_verified.orValue(true) == true\"}",
                    "username: {expression: claims.email}",
                    "",
                ),
                "",
            ),
            (
                parse(
                    "",
                    "username: {expression: claims.email}, extra: [{key: a.b/c, valueExpression: string(claims.email_verified)}]",
                    "",
                ),
                "",
            ),
            (parse("", "username: {expression: claims.sub}, groups: {expression: claims.email}", ""), ""),
        ];
        for (found, expected) in rows {
            let fits = if expected.is_empty() { found.is_empty() } else { found.contains(expected) };
            assert!(fits, "expected {expected:?}, found {found}");
        }
    }
}
