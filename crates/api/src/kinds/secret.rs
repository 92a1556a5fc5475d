//! Secrets: bytes for programs, shown to few.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use jiff::Timestamp;
use serde_json::{Value, json};

use super::config_map::{MAX_BYTES, decoded_len, validate_immutable};
use super::json::{default_field, entries, is_empty, remove, set, text};
use super::rules;
use crate::field::{Errors, Path};
use crate::kind::{Column, Row, Strategy};
use crate::table;

/// Stands in messages for what a secret holds.
const REDACTED: &str = "<secret contents redacted>";
const ACCOUNT_NAME: &str = "kubernetes.io/service-account.name";

/// Secrets.
pub static SECRET: Row = Row {
    kind: "Secret",
    plural: "secrets",
    singular: "secret",
    schema: "io.k8s.api.core.v1.Secret",
    columns: &[
        Column::name(),
        Column::new("Type", "What programs may expect in the secret."),
        Column::new("Data", "Number of entries."),
        Column::age(),
    ],
    table_row,
    field_selectors: &[("type", "/type")],
    strategy: Strategy { default, validate, validate_update, ..Strategy::PLAIN },
    ..Row::PLAIN
};

/// `stringData` is a way of writing only: it is encoded into `data`, over what stands there, and never shown again.
fn default(secret: &mut Value) {
    let Some(plain) = remove(secret, "stringData") else {
        return;
    };
    if is_empty(&plain) {
        return;
    }
    default_field(secret, "data", json!({}));
    let Some(data) = secret.get_mut("data") else {
        return;
    };
    for (key, value) in entries(&plain) {
        set(data, key, STANDARD.encode(text(value)));
    }
}

fn validate(secret: &Value) -> Errors {
    let mut errors = Errors::new();
    let (path, data) = (Path::new("data"), &secret["data"]);
    let mut size = 0;
    for (key, value) in entries(data) {
        rules::name(&mut errors, &path.key(key), key, rules::config_key);
        size += decoded_len(text(value));
    }
    if size > MAX_BYTES {
        errors.too_long(&path, MAX_BYTES);
    }
    match text(&secret["type"]) {
        "kubernetes.io/service-account-token"
            if is_empty(&secret["metadata"]["annotations"][ACCOUNT_NAME]) =>
        {
            errors.required(&Path::new("metadata").child("annotations").key(ACCOUNT_NAME), "");
        }
        "kubernetes.io/dockercfg" => validate_json(&mut errors, data, ".dockercfg"),
        "kubernetes.io/dockerconfigjson" => validate_json(&mut errors, data, ".dockerconfigjson"),
        "kubernetes.io/basic-auth" if data["username"].is_null() && data["password"].is_null() => {
            errors.required(&path.key("username"), "");
            errors.required(&path.key("password"), "");
        }
        "kubernetes.io/ssh-auth" if is_empty(&data["ssh-privatekey"]) => {
            errors.required(&path.key("ssh-privatekey"), "");
        }
        "kubernetes.io/tls" => {
            for key in ["tls.crt", "tls.key"].into_iter().filter(|key| data[*key].is_null()) {
                errors.required(&path.key(key), "");
            }
        }
        _ => {}
    }
    errors
}

fn validate_json(errors: &mut Errors, data: &Value, key: &str) {
    let path = Path::new("data").key(key);
    let Some(encoded) = data[key].as_str() else {
        return errors.required(&path, "");
    };
    let problem = match STANDARD.decode(encoded) {
        Err(error) => Some(error.to_string()),
        Ok(bytes) => {
            serde_json::from_slice::<serde_json::Map<String, Value>>(&bytes).err().map(|e| e.to_string())
        }
    };
    if let Some(problem) = problem {
        errors.invalid(&path, REDACTED, problem);
    }
}

fn validate_update(new: &Value, old: &Value) -> Errors {
    let mut errors = Errors::new();
    rules::immutable(&mut errors, &Path::new("type"), &new["type"], &old["type"]);
    validate_immutable(&mut errors, new, old, &["data"]);
    errors
}

fn table_row(secret: &Value, now: Timestamp) -> Vec<Value> {
    vec![
        json!(text(&secret["metadata"]["name"])),
        json!(text(&secret["type"])),
        json!(entries(&secret["data"]).count()),
        table::age(secret, now),
    ]
}

#[cfg(test)]
mod tests {
    use super::super::rules::testing::expect;
    use super::*;

    #[test]
    fn plain_text_is_encoded() {
        let mut secret = json!({"data": {"a": "AAAA", "b": "AAAA"}, "stringData": {"b": "hi"}});
        default(&mut secret);
        assert_eq!(secret, json!({"data": {"a": "AAAA", "b": "aGk="}}));
        default(&mut secret);
        assert_eq!(secret, json!({"data": {"a": "AAAA", "b": "aGk="}}));
    }

    #[test]
    fn validation() {
        let row = |what: &str, secret: Value, expected: &[&str]| expect(what, &validate(&secret), expected);
        row("good", json!({"type": "Opaque", "data": {"a": "AAAA"}}), &[]);
        row("own type", json!({"type": "example.com/any"}), &[]);
        row(
            "tls",
            json!({"type": "kubernetes.io/tls", "data": {"tls.crt": ""}}),
            &["data[tls.key]: Required value"],
        );
        row(
            "basic",
            json!({"type": "kubernetes.io/basic-auth"}),
            &["data[username]: Required value", "data[password]: Required value"],
        );
        row(
            "token",
            json!({"type": "kubernetes.io/service-account-token"}),
            &["metadata.annotations[kubernetes.io/service-account.name]: Required value"],
        );
        row(
            "registry",
            json!({"type": "kubernetes.io/dockerconfigjson", "data": {".dockerconfigjson": "e30="}}),
            &[],
        );
        assert_eq!(
            validate(
                &json!({"type": "kubernetes.io/dockerconfigjson", "data": {".dockerconfigjson": "e30"}})
            )
            .0
            .len(),
            1
        );
        expect(
            "type changed",
            &validate_update(&json!({"type": "b"}), &json!({"type": "a"})),
            &["type: Invalid value: \"b\": field is immutable"],
        );
    }
}
