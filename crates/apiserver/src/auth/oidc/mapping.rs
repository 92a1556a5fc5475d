//! From the claims of a genuine token to a user: claims with prefixes, or expressions in CEL.
//!
//! Expressions are evaluated after the signature was checked: before, anybody could make the server compute.
//!
//! Source: `k8s.io/apiserver/plugin/pkg/authenticator/token/oidc`.

use sampan_api::cel::{Budget, CelValue, Expression};
use serde_json::{Value, json};

use crate::auth::{AUTHENTICATED, CREDENTIAL_ID, User};

/// Groups of one token; upstream has no bound, headers of a request have.
const MAX_GROUPS: usize = 1000;

/// Where a text of the user comes from.
#[derive(Debug, Default)]
pub(super) enum Text {
    /// Nowhere.
    #[default]
    Nothing,
    /// A claim, with something before it.
    Claim { name: String, prefix: String },
    /// An expression over all claims.
    Expression(Expression),
}

impl Text {
    /// Compiles an expression over `claims`.
    pub(super) fn expression(text: &str) -> Result<Self, String> {
        compile_on_claims(text).map(Self::Expression)
    }

    /// Whether it is an expression that looks at a claim.
    pub(super) fn uses(&self, claim: &str) -> bool {
        matches!(self, Self::Expression(expression) if expression.selects("claims", claim))
    }
}

fn compile_on_claims(text: &str) -> Result<Expression, String> {
    Expression::compile(text, &["claims"]).map_err(|error| format!("compilation failed: {error}"))
}

/// What must hold.
#[derive(Debug)]
pub(super) struct Rule {
    expression: Expression,
    message: String,
}

impl Rule {
    pub(super) fn on_claims(text: &str, message: &str) -> Result<Self, String> {
        Self::new(compile_on_claims(text)?, message)
    }

    pub(super) fn on_user(text: &str, message: &str) -> Result<Self, String> {
        let expression =
            Expression::compile_on_user(text).map_err(|error| format!("compilation failed: {error}"))?;
        Self::new(expression, message)
    }

    fn new(expression: Expression, message: &str) -> Result<Self, String> {
        if !expression.may_be_bool() || expression.is_part_of(&["claims"]) {
            return Err("must evaluate to bool".to_owned());
        }
        Ok(Self { expression, message: message.to_owned() })
    }

    fn check(&self, name: &str, subject: &CelValue) -> Result<(), String> {
        match evaluate(&self.expression, name, subject)? {
            Value::Bool(true) => Ok(()),
            Value::Bool(false) => {
                let text = self.expression.text();
                Err(format!("validation expression '{text}' failed: {}", self.message))
            }
            _ => Err("validation expression must return a boolean".to_owned()),
        }
    }
}

fn evaluate(expression: &Expression, name: &str, subject: &CelValue) -> Result<Value, String> {
    let mut budget = Budget::new(Budget::PER_EXPRESSION);
    let found = expression.evaluate(&[(name, subject)], &mut budget);
    let found =
        found.map_err(|error| format!("expression '{}' resulted in error: {error}", expression.text()))?;
    found.to_json().ok_or_else(|| format!("expression '{}' results in no document", expression.text()))
}

/// What tokens of an issuer mean.
#[derive(Debug, Default)]
pub(super) struct Mapper {
    /// Claims and the values they must have.
    pub(super) required: Vec<(String, String)>,
    pub(super) claim_rules: Vec<Rule>,
    pub(super) username: Text,
    pub(super) groups: Text,
    pub(super) uid: Text,
    pub(super) extra: Vec<(String, Text)>,
    pub(super) user_rules: Vec<Rule>,
}

impl Mapper {
    /// Whether some expression that has to do with the name looks at whether the email address was verified.
    pub(super) fn looks_at_verification(&self) -> bool {
        const CLAIM: &str = "email_verified";
        self.username.uses(CLAIM)
            || self.extra.iter().any(|(_, text)| text.uses(CLAIM))
            || self.claim_rules.iter().any(|rule| rule.expression.selects("claims", CLAIM))
    }

    /// Claims that must have certain values. Cheap: may be asked of a token that nobody has signed.
    pub(super) fn check_required(&self, claims: &Value) -> Result<(), String> {
        let differs = |(claim, value): &&(String, String)| {
            claims[claim.as_str()].as_str().is_none_or(|found| found != value)
        };
        match self.required.iter().find(differs) {
            Some((claim, _)) => Err(format!("the claim {claim} is not as required")),
            None => Ok(()),
        }
    }

    /// The user that the claims of a genuine token describe.
    pub(super) fn user(&self, claims: &Value) -> Result<User, String> {
        let subject = CelValue::from_json(claims);
        let mut user = User {
            name: self.username(claims, &subject)?,
            uid: self.uid(claims, &subject)?,
            groups: self.groups(claims, &subject)?,
            extra: Vec::new(),
        };
        for (key, text) in &self.extra {
            let Text::Expression(expression) = text else { continue };
            let values = texts_of(evaluate(expression, "claims", &subject)?)?;
            if !values.is_empty() {
                user.extra.push((key.clone(), values));
            }
        }
        self.claim_rules.iter().try_for_each(|rule| rule.check("claims", &subject))?;
        if !self.user_rules.is_empty() {
            let info = CelValue::from_json(&info(&user));
            self.user_rules.iter().try_for_each(|rule| rule.check("user", &info))?;
        }
        user.groups.push(AUTHENTICATED.to_owned());
        let credential = claims["jti"].as_str().map(|jti| vec![format!("JTI={jti}")]);
        user.extra.extend(credential.map(|jti| (CREDENTIAL_ID.to_owned(), jti)));
        Ok(user)
    }

    fn username(&self, claims: &Value, subject: &CelValue) -> Result<String, String> {
        match &self.username {
            Text::Nothing => Err("nothing says what users are called".to_owned()),
            Text::Claim { name: claim, prefix } => {
                let name = claims[claim.as_str()].as_str().filter(|name| !name.is_empty());
                let name = name.ok_or_else(|| format!("the claim {claim} holds no name"))?;
                if claim == "email" && claims.get("email_verified").is_some_and(|verified| *verified != true)
                {
                    return Err("the email address is not verified".to_owned());
                }
                Ok(format!("{prefix}{name}"))
            }
            Text::Expression(expression) => match evaluate(expression, "claims", subject)? {
                Value::String(name) if !name.is_empty() => Ok(name),
                Value::String(_) => Err("the username expression gives no name".to_owned()),
                _ => Err("username claim expression must return a string".to_owned()),
            },
        }
    }

    fn uid(&self, claims: &Value, subject: &CelValue) -> Result<String, String> {
        match &self.uid {
            Text::Nothing => Ok(String::new()),
            Text::Claim { name, .. } => {
                let uid = claims[name.as_str()].as_str().filter(|uid| !uid.is_empty());
                uid.map(str::to_owned).ok_or_else(|| format!("the claim {name} holds no uid"))
            }
            Text::Expression(expression) => match evaluate(expression, "claims", subject)? {
                Value::String(uid) => Ok(uid),
                _ => Err("uid claim expression must return a string".to_owned()),
            },
        }
    }

    fn groups(&self, claims: &Value, subject: &CelValue) -> Result<Vec<String>, String> {
        let groups = match &self.groups {
            Text::Nothing => Vec::new(),
            Text::Claim { name, prefix } => {
                let groups = texts(&claims[name.as_str()]);
                let groups = groups.ok_or_else(|| format!("the claim {name} holds no groups"))?;
                groups.iter().map(|group| format!("{prefix}{group}")).collect()
            }
            Text::Expression(expression) => texts_of(evaluate(expression, "claims", subject)?)?,
        };
        if groups.len() > MAX_GROUPS {
            return Err("the token names too many groups".to_owned());
        }
        Ok(groups)
    }
}

/// `user` in rules: `authentication.k8s.io/v1.UserInfo` without what is empty.
fn info(user: &User) -> Value {
    let mut info = user.info();
    if let Some(fields) = info.as_object_mut() {
        fields.retain(|_, value| *value != json!([]));
    }
    info
}

/// A text or a list of texts; `None` for anything else.
pub(super) fn texts(value: &Value) -> Option<Vec<String>> {
    match value {
        Value::Null => Some(Vec::new()),
        Value::String(one) => Some(vec![one.clone()]),
        Value::Array(many) => many.iter().map(|text| text.as_str().map(str::to_owned)).collect(),
        _ => None,
    }
}

/// The texts an expression gives; empty ones are none.
fn texts_of(value: Value) -> Result<Vec<String>, String> {
    let texts = texts(&value).ok_or("expression must return a string or a list of strings")?;
    Ok(texts.into_iter().filter(|text| !text.is_empty()).collect())
}
