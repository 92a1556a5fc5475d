//! Requests for certificates (PKCS #10). An input is the subject and the attributes, DER, with the length of the first in
//! front; they are wrapped into a request that is signed by its key, because nothing unsigned is looked at. An input of
//! PEM is taken as it is.
#![no_main]

// Pure and private to its crate, see `spdy.rs`.
#[allow(dead_code)]
#[path = "../../crates/apiserver/src/certificates/request.rs"]
mod request;

use std::sync::OnceLock;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use libfuzzer_sys::fuzz_target;
use request::Request;
use ring::signature::{Ed25519KeyPair, KeyPair as _};

/// The algorithm identifier of Ed25519 (RFC 8410).
const ED25519: [u8; 7] = [0x30, 5, 6, 3, 0x2b, 0x65, 0x70];
const SIGNERS: [&str; 4] =
    [request::CLIENT, request::KUBELET_CLIENT, request::KUBELET_SERVING, request::LEGACY];

fuzz_target!(|data: &[u8]| {
    let pem = if data.starts_with(b"-----") { data.to_vec() } else { pem(&signed(data)) };
    let Ok(request) = Request::parse(&STANDARD.encode(pem).into()) else { return };
    for signer in SIGNERS {
        let _ = request.fits(signer, &["client auth", "digital signature"]);
    }
    let names = request.names.dns + request.names.addresses + request.names.others;
    assert!(names <= data.len(), "more names than bytes");
});

fn signed(data: &[u8]) -> Vec<u8> {
    static KEY: OnceLock<Ed25519KeyPair> = OnceLock::new();
    let key = KEY.get_or_init(|| Ed25519KeyPair::from_seed_unchecked(&[7; 32]).expect("32 bytes are a key"));
    let (length, rest) = data.split_first().unwrap_or((&0, &[]));
    let (subject, attributes) = rest.split_at(usize::from(*length).min(rest.len()));
    let public_key = der(0x30, &[&ED25519, &bits(key.public_key().as_ref())]);
    let info = der(0x30, &[&[2, 1, 0], &der(0x30, &[subject]), &public_key, &der(0xa0, &[attributes])]);
    let signature = bits(key.sign(&info).as_ref());
    der(0x30, &[&info, &ED25519, &signature])
}

fn bits(bytes: &[u8]) -> Vec<u8> {
    der(3, &[&[0], bytes])
}

/// A DER value: tag, length, content.
fn der(tag: u8, parts: &[&[u8]]) -> Vec<u8> {
    let content = parts.concat();
    let [high, low] = u16::try_from(content.len()).unwrap_or(u16::MAX).to_be_bytes();
    let length: &[u8] = match content.len() {
        0..=127 => &[low],
        128..=255 => &[0x81, low],
        _ => &[0x82, high, low],
    };
    [&[tag], length, &content].concat()
}

fn pem(der: &[u8]) -> Vec<u8> {
    format!(
        "-----BEGIN CERTIFICATE REQUEST-----\n{}\n-----END CERTIFICATE REQUEST-----\n",
        STANDARD.encode(der)
    )
    .into_bytes()
}
