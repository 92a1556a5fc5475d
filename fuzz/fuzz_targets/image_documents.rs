//! What registries and archives say about images: manifests, indexes, configurations, names and digests.
#![no_main]

// Private to their crate and free of its IO, see `spdy.rs`; the modules name each other from the root of a crate.
#[allow(dead_code)]
#[path = "../../crates/image/src/digest.rs"]
mod digest;
#[allow(dead_code)]
#[path = "../../crates/image/src/error.rs"]
mod error;
#[allow(dead_code)]
#[path = "../../crates/image/src/manifest.rs"]
mod manifest;
#[allow(dead_code)]
#[path = "../../crates/image/src/reference.rs"]
mod reference;

use std::collections::BTreeMap;

use digest::Digest;
use error::ImageError;
use libfuzzer_sys::fuzz_target;
use manifest::Document;
use reference::Reference;

/// The fields of the crate's type of the same name, which stands in its root.
#[allow(dead_code)]
struct ImageConfig {
    entrypoint: Vec<String>,
    cmd: Vec<String>,
    env: Vec<String>,
    working_dir: String,
    user: String,
    stop_signal: Option<String>,
    exposed_ports: Vec<String>,
    volumes: Vec<String>,
    labels: BTreeMap<String, String>,
}

fuzz_target!(|data: &[u8]| {
    match manifest::document("x", data) {
        Ok(Document::Index(index)) => {
            let _ = index.select("x").map_err(|error: ImageError| error.to_string());
        }
        Ok(Document::Manifest(manifest)) => {
            let written = serde_json::to_vec(&manifest).expect("what was read can be written");
            assert!(matches!(manifest::document("x", &written), Ok(Document::Manifest(_))));
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }
    if let Ok(config) = manifest::parse::<manifest::Config>("x", data) {
        let _ = config.config.into_image_config();
    }
    let Ok(text) = std::str::from_utf8(data) else { return };
    if let Ok(digest) = text.parse::<Digest>() {
        assert_eq!(digest.to_string(), text);
    }
    if let Ok(reference) = text.parse::<Reference>() {
        let written = reference.to_string();
        let again: Reference =
            written.parse().unwrap_or_else(|error| panic!("{text} was written as {written}: {error}"));
        assert_eq!(written, again.to_string());
        assert!(!reference.path().split('/').any(|part| part == ".."), "{text} leaves its directory");
    }
});
