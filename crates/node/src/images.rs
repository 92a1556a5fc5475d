//! Images for containers: pull policy, one pull per image at a time, credentials of pull secrets.
//!
//! Where the bytes live and how registries are spoken to is the image crate's business.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use k8s_openapi::ByteString;
use sampan_image::{Image, ImageStore, PullOptions};
use serde::Deserialize;
use tokio::sync::watch;

use crate::error::chain;
use crate::sources::Content;

/// When an image is fetched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PullPolicy {
    Always,
    IfNotPresent,
    Never,
}

impl PullPolicy {
    /// The container's policy, or the API's default for its image: a moving tag is looked up each time.
    pub(crate) fn of(policy: Option<&str>, image: &str) -> Self {
        match policy {
            Some("Always") => Self::Always,
            Some("Never") => Self::Never,
            Some("IfNotPresent") => Self::IfNotPresent,
            _ if tag(image).is_none_or(|tag| tag == "latest") && !image.contains('@') => Self::Always,
            _ => Self::IfNotPresent,
        }
    }
}

fn tag(image: &str) -> Option<&str> {
    let last = image.rsplit('/').next().unwrap_or(image);
    last.split_once(':').map(|(_, tag)| tag)
}

/// Whether the text can be a reference to an image at all: `[host[:port]/]path[:tag][@digest]`.
pub(crate) fn is_valid_reference(image: &str) -> bool {
    let (name, digest) = match image.split_once('@') {
        Some((name, digest)) => (name, Some(digest)),
        None => (image, None),
    };
    let tag = tag(name);
    let path = tag.map_or(name, |tag| &name[..name.len() - tag.len() - 1]);
    let word = |text: &str, extra: &[u8]| {
        !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || extra.contains(&byte))
    };
    let mut parts: Vec<&str> = path.split('/').collect();
    let first_is_host = parts.len() > 1 && parts[0].contains(['.', ':']) || parts[0] == "localhost";
    if parts.len() > 1 && first_is_host {
        let host = parts.remove(0);
        if !word(host, b".-:[]") {
            return false;
        }
    }
    let is_lower = |text: &&str| word(text, b"._-") && !text.bytes().any(|byte| byte.is_ascii_uppercase());
    parts.iter().all(is_lower)
        && tag.is_none_or(|tag| word(tag, b"._-") && tag.len() <= 128)
        && digest.is_none_or(|digest| {
            let hex = digest.strip_prefix("sha256:").or_else(|| digest.strip_prefix("sha512:"));
            hex.is_some_and(|hex| hex.len() >= 32 && hex.bytes().all(|byte| byte.is_ascii_hexdigit()))
        })
}

/// Outcome of a pull that others may wait for as well.
type Outcome = Option<Result<Arc<Pulled>, String>>;

/// An image that was just fetched.
#[derive(Debug)]
pub(crate) struct Pulled {
    pub(crate) image: Image,
    /// How long the registry took.
    pub(crate) took: Duration,
}

/// The image store of the node with single-flight pulls.
pub(crate) struct Images {
    store: ImageStore,
    plain_http: Vec<String>,
    under_way: Arc<Mutex<HashMap<String, watch::Receiver<Outcome>>>>,
}

impl Images {
    pub(crate) fn new(store: ImageStore, plain_http: Vec<String>) -> Self {
        Self { store, plain_http, under_way: Arc::default() }
    }

    /// The image if it is here, by reference or id.
    pub(crate) fn find(&self, reference: &str) -> Result<Option<Image>, String> {
        self.store.get(reference).map_err(|error| chain(&error))
    }

    /// Fetches an image, or waits for the fetch of it that is already under way.
    pub(crate) async fn pull(
        &self,
        reference: &str,
        credentials: Option<(String, String)>,
    ) -> Result<Arc<Pulled>, String> {
        let mut outcome = self.join_or_begin(reference, credentials);
        match outcome.wait_for(Option::is_some).await.as_deref() {
            Ok(Some(result)) => result.clone(),
            _ => Err(format!("the pull of {reference} was interrupted")),
        }
    }

    fn join_or_begin(
        &self,
        reference: &str,
        credentials: Option<(String, String)>,
    ) -> watch::Receiver<Outcome> {
        let mut under_way = self.under_way.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(outcome) = under_way.get(reference) {
            return outcome.clone();
        }
        let (sender, receiver) = watch::channel(None);
        under_way.insert(reference.to_string(), receiver.clone());
        let pull = Pull {
            store: self.store.clone(),
            reference: reference.to_string(),
            options: PullOptions {
                plain_http_hosts: self.plain_http.clone(),
                credentials,
                ..PullOptions::default()
            },
            under_way: Arc::clone(&self.under_way),
        };
        // A task of its own: the pod that asked may go, another may be waiting.
        tokio::spawn(async move { sender.send_replace(Some(pull.run().await)) });
        receiver
    }
}

struct Pull {
    store: ImageStore,
    reference: String,
    options: PullOptions,
    under_way: Arc<Mutex<HashMap<String, watch::Receiver<Outcome>>>>,
}

impl Pull {
    async fn run(self) -> Result<Arc<Pulled>, String> {
        let begun = Instant::now();
        let result = self.store.pull(&self.reference, self.options.clone(), Arc::new(|_| {})).await;
        self.under_way.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.reference);
        match result {
            Ok(image) => Ok(Arc::new(Pulled { image, took: begun.elapsed() })),
            Err(error) => Err(chain(&error)),
        }
    }
}

#[derive(Deserialize)]
struct DockerConfig {
    #[serde(default)]
    auths: BTreeMap<String, DockerAuth>,
}

#[derive(Deserialize)]
struct DockerAuth {
    #[serde(default)]
    username: String,
    #[serde(default)]
    password: String,
    /// `username:password` in base64.
    auth: Option<ByteString>,
}

/// User name and password for the registry of `image` in the content of a pull secret.
pub(crate) fn credentials(secret: &Content, image: &str) -> Option<(String, String)> {
    let auths = match secret.get(".dockerconfigjson") {
        Some(json) => serde_json::from_slice::<DockerConfig>(json).ok()?.auths,
        None => serde_json::from_slice(secret.get(".dockercfg")?).ok()?,
    };
    let host = registry(image);
    let (_, auth) = auths.into_iter().find(|(key, _)| registry_of_key(key) == host)?;
    if !auth.username.is_empty() {
        return Some((auth.username, auth.password));
    }
    let text = String::from_utf8(auth.auth?.0).ok()?;
    let (user, password) = text.split_once(':')?;
    Some((user.to_string(), password.to_string()))
}

/// Host of the registry an image comes from.
fn registry(image: &str) -> &str {
    match image.split_once('/') {
        Some((host, _)) if host.contains(['.', ':']) || host == "localhost" => host,
        _ => "docker.io",
    }
}

fn registry_of_key(key: &str) -> &str {
    let key = key.trim_start_matches("https://").trim_start_matches("http://");
    match key.split('/').next().unwrap_or(key) {
        "index.docker.io" | "registry-1.docker.io" => "docker.io",
        host => host,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn policies() {
        let rows = [
            (Some("Never"), "a:1", PullPolicy::Never),
            (None, "a", PullPolicy::Always),
            (None, "a:latest", PullPolicy::Always),
            (None, "host:5000/a", PullPolicy::Always),
            (None, "a:1", PullPolicy::IfNotPresent),
            (Some("Always"), "a:1", PullPolicy::Always),
        ];
        for (policy, image, expected) in rows {
            assert_eq!(PullPolicy::of(policy, image), expected, "{image}");
        }
    }

    #[test]
    fn references() {
        for fine in
            ["nginx", "nginx:1.27", "docker.io/library/nginx", "localhost:5000/a/b:x", "a__b/c", "Host.io/a"]
        {
            assert!(is_valid_reference(fine), "{fine}");
        }
        for bad in ["", "Nginx", "a:", "a b", "a//b", "a@sha256:xyz", "$(IMAGE)", ":x"] {
            assert!(!is_valid_reference(bad), "{bad}");
        }
    }

    #[test]
    fn pull_secrets() {
        let json = br#"{"auths":{"https://index.docker.io/v1/":{"auth":"dTpwOnE="},"r.io":{"username":"x","password":"y"}}}"#;
        let secret: Content = [(".dockerconfigjson".to_string(), json.to_vec())].into();
        assert_eq!(credentials(&secret, "nginx"), Some(("u".into(), "p:q".into())));
        assert_eq!(credentials(&secret, "r.io/a"), Some(("x".into(), "y".into())));
        assert_eq!(credentials(&secret, "other.io/a"), None);
    }
}
