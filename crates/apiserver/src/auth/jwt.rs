//! Signed tokens and the keys that check them, for issuers other than this server: RFC 7515, 7517, 7518, 8037.
//!
//! Only what is signed with a public key is understood. The key decides what may be checked with it: a token cannot make
//! a server take an RSA key for a shared secret, because nothing here knows shared secrets.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::signature::{self, RsaParameters, RsaPublicKeyComponents, UnparsedPublicKey};
use serde_json::Value;

/// Keys of one issuer that are read; real ones have two or three.
const MAX_KEYS: usize = 100;

/// A token that has not been checked.
pub(crate) struct Jwt<'a> {
    pub(crate) algorithm: String,
    /// Which key signed it; empty when the token does not say.
    pub(crate) key_id: String,
    pub(crate) claims: Value,
    signed: &'a str,
    signature: Vec<u8>,
}

impl<'a> Jwt<'a> {
    /// Takes a token apart. `None` when it is no JWS in compact form, or asks for extensions nobody here knows.
    pub(crate) fn parse(token: &'a str) -> Option<Self> {
        let (signed, signature) = token.rsplit_once('.')?;
        let (header, claims) = signed.split_once('.')?;
        let decode = |text: &str| URL_SAFE_NO_PAD.decode(text).ok();
        let header: Value = serde_json::from_slice(&decode(header)?).ok()?;
        let claims: Value = serde_json::from_slice(&decode(claims)?).ok()?;
        if !header["crit"].is_null() || !claims.is_object() {
            return None;
        }
        Some(Self {
            algorithm: header["alg"].as_str()?.to_owned(),
            key_id: header["kid"].as_str().unwrap_or_default().to_owned(),
            claims,
            signed,
            signature: decode(signature)?,
        })
    }

    /// Whether `key` signed it.
    pub(crate) fn is_signed_by(&self, key: &Key) -> bool {
        let asked = self.key_id.is_empty() || key.id.is_empty() || self.key_id == key.id;
        let fits = key.algorithm.is_empty() || key.algorithm == self.algorithm;
        asked && fits && key.material.verify(&self.algorithm, self.signed.as_bytes(), &self.signature)
    }
}

/// A public key of an issuer (`JWK`).
#[derive(Debug)]
pub(crate) struct Key {
    pub(crate) id: String,
    /// The only algorithm it is for; empty: any that fits.
    algorithm: String,
    material: Material,
}

#[derive(Debug)]
enum Material {
    Rsa { n: Vec<u8>, e: Vec<u8> },
    P256(Vec<u8>),
    P384(Vec<u8>),
    Ed25519(Vec<u8>),
}

impl Material {
    fn verify(&self, algorithm: &str, message: &[u8], signature: &[u8]) -> bool {
        let curve = |by: &'static dyn signature::VerificationAlgorithm, point: &[u8]| {
            UnparsedPublicKey::new(by, point).verify(message, signature).is_ok()
        };
        match (self, algorithm) {
            (Self::Rsa { n, e }, _) => rsa(algorithm)
                .is_some_and(|by| RsaPublicKeyComponents { n, e }.verify(by, message, signature).is_ok()),
            (Self::P256(point), "ES256") => curve(&signature::ECDSA_P256_SHA256_FIXED, point),
            (Self::P384(point), "ES384") => curve(&signature::ECDSA_P384_SHA384_FIXED, point),
            (Self::Ed25519(point), "EdDSA") => curve(&signature::ED25519, point),
            _ => false,
        }
    }
}

fn rsa(algorithm: &str) -> Option<&'static RsaParameters> {
    Some(match algorithm {
        "RS256" => &signature::RSA_PKCS1_2048_8192_SHA256,
        "RS384" => &signature::RSA_PKCS1_2048_8192_SHA384,
        "RS512" => &signature::RSA_PKCS1_2048_8192_SHA512,
        "PS256" => &signature::RSA_PSS_2048_8192_SHA256,
        "PS384" => &signature::RSA_PSS_2048_8192_SHA384,
        "PS512" => &signature::RSA_PSS_2048_8192_SHA512,
        _ => return None,
    })
}

/// Reads a set of keys (`JWKS`). Keys of a kind nobody here knows are left out.
pub(crate) fn keys(document: &Value) -> Vec<Key> {
    document["keys"].as_array().into_iter().flatten().take(MAX_KEYS).filter_map(key).collect()
}

fn key(jwk: &Value) -> Option<Key> {
    let text = |name: &str| jwk[name].as_str().unwrap_or_default();
    let bytes = |name: &str| URL_SAFE_NO_PAD.decode(text(name).trim_end_matches('=')).ok();
    if !["", "sig"].contains(&text("use")) {
        return None;
    }
    let point = |length: usize| {
        let (x, y) = (bytes("x")?, bytes("y")?);
        // Uncompressed form; a coordinate of another length would shift the other one.
        (x.len() == length && y.len() == length).then(|| [[4].as_slice(), &x, &y].concat())
    };
    // Some issuers put a zero in front of the modulus, which `ring` refuses.
    let number = |name: &str| Some(bytes(name)?.into_iter().skip_while(|byte| *byte == 0).collect());
    let material = match (text("kty"), text("crv")) {
        ("RSA", _) => Material::Rsa { n: number("n")?, e: number("e")? },
        ("EC", "P-256") => Material::P256(point(32)?),
        ("EC", "P-384") => Material::P384(point(48)?),
        ("OKP", "Ed25519") => Material::Ed25519(bytes("x").filter(|x| x.len() == 32)?),
        _ => return None,
    };
    Some(Key { id: text("kid").to_owned(), algorithm: text("alg").to_owned(), material })
}

/// The set of one P-256 key, as this server publishes its own.
pub(crate) fn p256_set(id: &str, point: &[u8]) -> Value {
    // An uncompressed point: a byte that says so, then two coordinates.
    let (x, y) = point.get(1..).unwrap_or_default().split_at_checked(32).unwrap_or_default();
    let encode = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
    serde_json::json!({"keys": [{
        "use": "sig", "kty": "EC", "kid": id, "crv": "P-256", "alg": "ES256", "x": encode(x), "y": encode(y),
    }]})
}

#[cfg(test)]
pub(crate) mod testing {
    use ring::rand::SystemRandom;
    use ring::signature::{
        ECDSA_P256_SHA256_FIXED_SIGNING, ECDSA_P384_SHA384_FIXED_SIGNING, EcdsaKeyPair,
        EcdsaSigningAlgorithm, KeyPair as _,
    };
    use serde_json::json;

    use super::*;

    /// An issuer's key, with its private half.
    pub(crate) struct Signer {
        pair: EcdsaKeyPair,
        id: &'static str,
        algorithm: &'static str,
    }

    impl Signer {
        pub(crate) fn es256(id: &'static str) -> Self {
            Self::new(id, "ES256", &ECDSA_P256_SHA256_FIXED_SIGNING)
        }

        pub(crate) fn es384(id: &'static str) -> Self {
            Self::new(id, "ES384", &ECDSA_P384_SHA384_FIXED_SIGNING)
        }

        fn new(id: &'static str, algorithm: &'static str, by: &'static EcdsaSigningAlgorithm) -> Self {
            let random = SystemRandom::new();
            let document = EcdsaKeyPair::generate_pkcs8(by, &random).expect("a key");
            let pair = EcdsaKeyPair::from_pkcs8(by, document.as_ref(), &random).expect("a key");
            Self { pair, id, algorithm }
        }

        pub(crate) fn jwk(&self) -> Value {
            let point = &self.pair.public_key().as_ref()[1..];
            let (x, y) = point.split_at(point.len() / 2);
            let curve = if self.algorithm == "ES256" { "P-256" } else { "P-384" };
            let encode = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
            json!({"kty": "EC", "crv": curve, "kid": self.id, "x": encode(x), "y": encode(y)})
        }

        pub(crate) fn sign(&self, claims: &Value) -> String {
            self.sign_as(&json!({"alg": self.algorithm, "kid": self.id}), claims)
        }

        pub(crate) fn sign_as(&self, header: &Value, claims: &Value) -> String {
            let encode = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
            let signed = format!("{}.{}", encode(header), encode(claims));
            let signature = self.pair.sign(&SystemRandom::new(), signed.as_bytes()).expect("signed");
            format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature.as_ref()))
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::testing::Signer;
    use super::*;

    /// A key made for this test, and two tokens signed with its private half by OpenSSL.
    const RSA_N: &str = "7BqsJUlkrn-qagIm7xjAwqoCSW8cGa1pSNlKay8OlglekViHKLbqVO2YtvI7qNrAGzpB-wttDfJHHyECyF0oKxgicwHEWJH4IsN-GncYNIddcRx9QGxW5TJZKITQMjCjGsS5OIuvhj8eCKEDCuaekclfOEhKcon-ip8UIMHrLjl5T9RgxC8-9U8NVv8LTkQSaDkB06wA5VQUxZLGpvBz6aZh687aE5ovlTDfPYAgOQhMXd0Sd4Kv8hhxFXXN2Bid2NVi7ogxj9g5BCNbkaHGvrHNoSibjAsI3I9DoV6ut8vNTyE6kuJqGkSCXvES4ZWjwp4rm6p5aXyOCtr5tH_t-w";
    const RS256: &str = "eyJhbGciOiJSUzI1NiIsImtpZCI6InIifQ.eyJzdWIiOiJhbm4ifQ.iVBipz5CE3-kaZnpZrylS1lDF4ChdWFI5xfjznb90jJlHwhnthgleCNB_FzM5LfBAL5cOLegVaHrBMQM_-i6Y2KK079EQx7rZ2kaxG7JdHKkNIIzeBPLHx6TQJsTQrDby2uGCAUEHrfoxZbIRNRLmpNI2Md0m6LOwupWTWphHdTchGa7vEP8XSkSNOVF150cM8jUfSFeZhTOc8qs-F1ijAwLq_cSQwuXgEZDsqywOv2wi5otI-cwGDm7BzVDm5aAq996teN_NrJk5OZBR6TE8jxEKnKQNDAwsl3cEkmp6tmaNZz6qv6juLTxH1om6Yytmrtz6cdOvikuLZa5StCLaA";
    const PS256: &str = "eyJhbGciOiJQUzI1NiIsImtpZCI6InIifQ.eyJzdWIiOiJhbm4ifQ.EheCOnlCGXkNtDLOYgd6oai4gkeEZa4rlC2jVEwC69s0Qvw2Odx9msuzKLzo08BA3ql8oKbB9yUVLSwODBm1w7LrVgJZDRSPoE6m4V-hVNtASLtfgVu0oVkKPEfRPp2d5qPC3_NXkDT46uD9aYpA7MAiGpJe7G4tc_yzgde0DVtpV-7IW87ynYkeKL-x2n8F8Kd6nq4NNfQscujMFmhkCpZkERnFL13p2EJoJjRq0rDLlaZuC1-c9vohtPYcWsfq-h4wj0TopU5KJvCJ2PAPmDYwFzqRjoY-UTPqQJYYa2_F0ui8emedCQ1VknS1IR0uR8Z9p6Bjp3GseOpiOpUAzQ";

    fn one(jwk: Value) -> Option<Key> {
        keys(&json!({"keys": [jwk]})).pop()
    }

    #[test]
    fn signatures() {
        let rsa = || json!({"kty": "RSA", "kid": "r", "n": RSA_N, "e": "AQAB"});
        let with = |mut jwk: Value, name: &str, value: &str| {
            jwk[name] = value.into();
            jwk
        };
        let (p256, p384) = (Signer::es256("a"), Signer::es384("b"));
        let claims = json!({"sub": "ann"});
        let (es256, es384) = (p256.sign(&claims), p384.sign(&claims));
        let confused = p256.sign_as(&json!({"alg": "RS256", "kid": "a"}), &claims);
        let nothing = p256.sign_as(&json!({"alg": "none"}), &claims);
        let nameless = p256.sign_as(&json!({"alg": "ES256"}), &claims);
        let rows = [
            ("RS256", RS256, rsa(), true),
            ("PS256", PS256, rsa(), true),
            ("with a zero in front", RS256, with(rsa(), "n", &format!("AAAA{RSA_N}")), true),
            ("only for another algorithm", RS256, with(rsa(), "alg", "PS256"), false),
            ("another key's name", RS256, with(rsa(), "kid", "s"), false),
            ("ES256", es256.as_str(), p256.jwk(), true),
            ("ES384", es384.as_str(), p384.jwk(), true),
            ("the other curve", es256.as_str(), with(p384.jwk(), "kid", "a"), false),
            ("another key", es256.as_str(), Signer::es256("a").jwk(), false),
            ("confused", confused.as_str(), p256.jwk(), false),
            ("none", nothing.as_str(), p256.jwk(), false),
            ("no key named", nameless.as_str(), p256.jwk(), true),
        ];
        for (what, token, jwk, expected) in rows {
            let (token, key) = (Jwt::parse(token).expect(what), one(jwk).expect(what));
            assert_eq!(token.is_signed_by(&key), expected, "{what}");
            assert_eq!(token.claims["sub"], "ann");
        }
    }

    #[test]
    fn what_is_no_token_and_no_key() {
        let crit = Signer::es256("a").sign_as(&json!({"alg": "ES256", "crit": ["b64"]}), &json!({}));
        for token in ["", "a.b", "a.b.c", "e30.e30.", crit.as_str()] {
            assert!(Jwt::parse(token).is_none(), "{token}");
        }
        let short = json!({"kty": "EC", "crv": "P-256", "x": "AAAA", "y": "AAAA"});
        let encryption = json!({"kty": "RSA", "use": "enc", "n": RSA_N, "e": "AQAB"});
        for jwk in [json!({}), json!(5), json!({"kty": "oct", "k": "AAAA"}), short, encryption] {
            assert!(one(jwk.clone()).is_none(), "{jwk}");
        }
    }
}
