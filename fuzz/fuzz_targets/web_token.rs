//! Signed tokens and sets of keys of foreign issuers. An input is header, claims, signature and keys, a line each; they
//! are put into the form of a token, because base64 hides JSON from a fuzzer. What was not signed is never believed.
#![no_main]

// Pure and private to its crate, see `spdy.rs`.
#[allow(dead_code)]
#[path = "../../crates/apiserver/src/auth/jwt.rs"]
mod jwt;

use std::sync::OnceLock;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jwt::{Jwt, Key, keys};
use libfuzzer_sys::fuzz_target;
use serde_json::json;

/// Keys of the examples in RFC 7515 and RFC 8037: nobody signs with them here.
fn known() -> &'static [Key] {
    static KEYS: OnceLock<Vec<Key>> = OnceLock::new();
    KEYS.get_or_init(|| {
        keys(&json!({"keys": [
            {"kty": "EC", "crv": "P-256", "x": "f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU",
                "y": "x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0"},
            {"kty": "OKP", "crv": "Ed25519", "x": "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"},
        ]}))
    })
}

fuzz_target!(|data: &[u8]| {
    if let Ok(text) = std::str::from_utf8(data) {
        let _ = Jwt::parse(text);
    }
    let mut lines = data.splitn(4, |byte| *byte == b'\n');
    let mut part = || URL_SAFE_NO_PAD.encode(lines.next().unwrap_or_default());
    let token = format!("{}.{}.{}", part(), part(), part());
    let keys = match serde_json::from_slice(lines.next().unwrap_or_default()) {
        Ok(document) => keys(&document),
        Err(_) => Vec::new(),
    };
    let Some(token) = Jwt::parse(&token) else { return };
    assert!(token.claims.is_object());
    for key in &keys {
        let _ = token.is_signed_by(key);
    }
    assert!(!known().iter().any(|key| token.is_signed_by(key)), "a signature made by chance");
});
