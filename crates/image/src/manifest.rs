//! The documents of an image: index, manifest and configuration, OCI and Docker alike. Only the fields we act on; all
//! else is ignored, because old and odd images must load. The words are those of the OCI image specification.

use std::collections::BTreeMap;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer, Serialize};

use crate::{Digest, ImageConfig, ImageError};

/// Manifests and indexes are lists of digests; the distribution specification asks for 4 MiB.
pub(crate) const MAX_MANIFEST: u64 = 4 << 20;
/// Configurations hold the history and environment as well.
pub(crate) const MAX_CONFIG: u64 = 8 << 20;
/// Overlayfs takes at most 500 lower directories.
pub(crate) const MAX_LAYERS: usize = 500;

pub(crate) const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub(crate) const INDEX: &str = "application/vnd.oci.image.index.v1+json";
pub(crate) const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
pub(crate) const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
pub(crate) const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
pub(crate) const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";

/// A pointer to content.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Descriptor {
    #[serde(default)]
    pub(crate) media_type: String,
    pub(crate) digest: Digest,
    pub(crate) size: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) platform: Option<Platform>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty", deserialize_with = "null_is_empty")]
    pub(crate) annotations: BTreeMap<String, String>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Platform {
    pub(crate) os: String,
    pub(crate) architecture: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) variant: Option<String>,
}

/// A list of manifests, one for each platform.
#[derive(Debug, Deserialize)]
pub(crate) struct Index {
    pub(crate) manifests: Vec<Descriptor>,
}

/// One image for one platform.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Manifest {
    pub(crate) schema_version: u32,
    #[serde(default)]
    pub(crate) media_type: String,
    pub(crate) config: Descriptor,
    pub(crate) layers: Vec<Descriptor>,
}

impl Manifest {
    /// A manifest for an image that came without one.
    pub(crate) fn new(config: (Digest, u64), layers: impl Iterator<Item = (Digest, u64)>) -> Self {
        let descriptor = |media_type: &str, (digest, size): (Digest, u64)| Descriptor {
            media_type: media_type.to_owned(),
            digest,
            size,
            platform: None,
            annotations: BTreeMap::new(),
        };
        Self {
            schema_version: 2,
            media_type: MANIFEST.to_owned(),
            config: descriptor(CONFIG, config),
            layers: layers.map(|layer| descriptor(LAYER, layer)).collect(),
        }
    }
}

/// Either of the two, told apart by what they hold: media types are missing or wrong too often.
pub(crate) enum Document {
    Index(Index),
    Manifest(Manifest),
}

/// Reads a manifest or an index.
pub(crate) fn document(what: &str, bytes: &[u8]) -> Result<Document, ImageError> {
    #[derive(Deserialize)]
    struct Shape {
        manifests: Option<serde::de::IgnoredAny>,
        config: Option<serde::de::IgnoredAny>,
        layers: Option<serde::de::IgnoredAny>,
        #[serde(rename = "fsLayers")]
        fs_layers: Option<serde::de::IgnoredAny>,
    }
    let shape: Shape = parse(what, bytes)?;
    match shape {
        Shape { fs_layers: Some(_), .. } => {
            Err(ImageError::format(what, "Docker's manifest schema 1 is obsolete and not supported"))
        }
        Shape { config: Some(_), layers: Some(_), .. } => {
            let manifest: Manifest = parse(what, bytes)?;
            if manifest.layers.len() > MAX_LAYERS {
                return Err(ImageError::format(what, format!("more than {MAX_LAYERS} layers")));
            }
            Ok(Document::Manifest(manifest))
        }
        Shape { manifests: Some(_), .. } => Ok(Document::Index(parse(what, bytes)?)),
        _ => Err(ImageError::format(what, "this is neither an image manifest nor an index")),
    }
}

pub(crate) fn parse<T: DeserializeOwned>(what: &str, bytes: &[u8]) -> Result<T, ImageError> {
    serde_json::from_slice(bytes).map_err(|error| ImageError::format(what, error))
}

/// The machine's platform in OCI words (those of Go).
pub(crate) fn platform() -> (&'static str, &'static str) {
    let architecture = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        "x86" => "386",
        other => other,
    };
    ("linux", architecture)
}

impl Index {
    /// The manifest for this machine.
    pub(crate) fn select(&self, reference: &str) -> Result<&Descriptor, ImageError> {
        let (os, architecture) = platform();
        let fits = |descriptor: &&Descriptor| match &descriptor.platform {
            Some(platform) => platform.os == os && platform.architecture == architecture,
            // Without a platform there is nothing to choose from.
            None => self.manifests.len() == 1,
        };
        // The plain architecture before its variants (amd64 before amd64/v3), which this machine may not be.
        let best = |descriptor: &&Descriptor| {
            let variant = descriptor.platform.as_ref().and_then(|platform| platform.variant.as_deref());
            !matches!(variant, None | Some("" | "v1" | "v8"))
        };
        self.manifests.iter().filter(fits).min_by_key(best).ok_or_else(|| ImageError::Platform {
            reference: reference.to_owned(),
            wanted: format!("{os}/{architecture}"),
            available: self.platforms(),
        })
    }

    fn platforms(&self) -> String {
        let names = self.manifests.iter().filter_map(|descriptor| descriptor.platform.as_ref());
        let names: Vec<_> =
            names.take(20).map(|platform| format!("{}/{}", platform.os, platform.architecture)).collect();
        if names.is_empty() { "unnamed platforms".to_owned() } else { names.join(", ") }
    }
}

/// A configuration: what to run, and the digests of the unpacked layers.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Config {
    #[serde(default)]
    pub(crate) created: Option<String>,
    #[serde(default)]
    pub(crate) architecture: String,
    #[serde(default)]
    pub(crate) os: String,
    #[serde(default, deserialize_with = "null_is_empty")]
    pub(crate) config: RunConfig,
    pub(crate) rootfs: RootFs,
}

#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct RootFs {
    #[serde(rename = "type", default)]
    pub(crate) kind: String,
    #[serde(default, deserialize_with = "null_is_empty")]
    pub(crate) diff_ids: Vec<Digest>,
}

/// The `config` part. Every field may be missing or null.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(crate) struct RunConfig {
    #[serde(deserialize_with = "null_is_empty")]
    pub(crate) user: String,
    #[serde(deserialize_with = "null_is_empty")]
    pub(crate) exposed_ports: BTreeMap<String, serde_json::Value>,
    #[serde(deserialize_with = "null_is_empty")]
    pub(crate) env: Vec<String>,
    #[serde(deserialize_with = "null_is_empty")]
    pub(crate) entrypoint: Vec<String>,
    #[serde(deserialize_with = "null_is_empty")]
    pub(crate) cmd: Vec<String>,
    #[serde(deserialize_with = "null_is_empty")]
    pub(crate) volumes: BTreeMap<String, serde_json::Value>,
    #[serde(deserialize_with = "null_is_empty")]
    pub(crate) working_dir: String,
    #[serde(deserialize_with = "null_is_empty")]
    pub(crate) labels: BTreeMap<String, String>,
    #[serde(deserialize_with = "null_is_empty")]
    pub(crate) stop_signal: String,
}

fn null_is_empty<'de, D: Deserializer<'de>, T: Default + Deserialize<'de>>(from: D) -> Result<T, D::Error> {
    Ok(Option::deserialize(from)?.unwrap_or_default())
}

impl RunConfig {
    pub(crate) fn into_image_config(self) -> ImageConfig {
        ImageConfig {
            entrypoint: self.entrypoint,
            cmd: self.cmd,
            env: self.env,
            working_dir: self.working_dir,
            user: self.user,
            stop_signal: Some(self.stop_signal).filter(|signal| !signal.is_empty()),
            exposed_ports: self.exposed_ports.into_keys().collect(),
            volumes: self.volumes.into_keys().collect(),
            labels: self.labels,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nulls_are_empty() {
        let text =
            r#"{"config":{"Entrypoint":null,"Labels":null,"Volumes":{"/v":{}}},"rootfs":{"type":"layers"}}"#;
        let config: Config = parse("test", text.as_bytes()).unwrap();
        let image = config.config.into_image_config();
        assert_eq!((image.entrypoint.len(), image.volumes.len(), image.stop_signal), (0, 1, None));
        let config: Config = parse("test", br#"{"config":null,"rootfs":{"diff_ids":null}}"#).unwrap();
        assert!(config.rootfs.diff_ids.is_empty());
    }

    #[test]
    fn the_plain_platform_is_chosen() {
        let digest = |text: &str| Digest::of(text.as_bytes());
        let (os, architecture) = platform();
        let row = |name: &str, os: &str, architecture: &str, variant: &str| {
            serde_json::json!({"digest": digest(name), "size": 1,
                "platform": {"os": os, "architecture": architecture, "variant": variant}})
        };
        let index = serde_json::json!({"manifests": [
            row("other", "windows", architecture, ""),
            row("v3", os, architecture, "v3"),
            row("unknown", "unknown", "unknown", ""),
            row("plain", os, architecture, "")]});
        let Document::Index(index) = document("test", index.to_string().as_bytes()).unwrap() else {
            panic!()
        };
        assert_eq!(index.select("x").unwrap().digest, digest("plain"));
        let index = Index { manifests: index.manifests.into_iter().take(1).collect() };
        let error = index.select("x").unwrap_err().to_string();
        assert!(error.contains("only for windows/"), "{error}");
    }

    #[test]
    fn the_obsolete_and_the_unknown_are_named() {
        for (text, reason) in [
            (r#"{"schemaVersion":1,"fsLayers":[]}"#, "schema 1"),
            (r#"{"errors":[]}"#, "neither"),
            ("[", "EOF"),
        ] {
            let error = document("m", text.as_bytes()).err().unwrap().to_string();
            assert!(error.contains(reason), "{error}");
        }
    }
}
