//! Encryption at rest: a layer over the store that seals the values of chosen resources.
//!
//! [`EncryptedStore`] is a [`Store`] over another one. Keys stay readable, because the store orders and compares by
//! them; values of the resources an [`Encryption`] names are sealed before they reach the inner store and opened on the
//! way back, so that log, snapshots and backups hold nothing of them. Which resources and which keys is read from an
//! `EncryptionConfiguration` file (`apiserver.config.k8s.io/v1`); without one, secrets are sealed with a key that is
//! made beside the authority's.
//!
//! A sealed value:
//!
//! ```text
//! enc:v1:PROVIDER:KEY-NAME:REVISION \n  salt (32 bytes)  ciphertext  tag (16 bytes)
//!                          └ written by the store at commit        └ of: place of the revision (4 bytes), value
//! ```
//!
//! The store writes the revision into values when it commits them. Sealed bytes cannot take it, so it stands in front of
//! them, and where it belongs is sealed with the value. Every value has a key of its own, derived from the configured
//! key and the salt (HKDF-SHA256), so that no number of writes wears a key out: plain AES-GCM with random nonces would
//! ask for a new key every few billion writes. The storage key is authenticated with the value: a value moved to another
//! key does not open. An old value put back under its own key does; a store that is rewritten by somebody else is not
//! what this protects from.
//!
//! Not here: `aescbc` (malleable without a second key, and not in `ring`) and `kms`; a file that names them is refused.
//! Our `secretbox` is ChaCha20-Poly1305, which has the same strength as upstream's XSalsa20-Poly1305; stored bytes were
//! never interchangeable with upstream's.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::{BufMut as _, Bytes, BytesMut};
use ring::rand::{SecureRandom as _, SystemRandom};
use ring::{aead, hkdf};
use sampan_store::{
    Compare, Durability, Event, EventBatch, KeyValue, Op, Range, RangePage, Revision, Store, StoreError,
    Transaction, TransactionResult, Value, Watch,
};
use serde::Deserialize;
use tokio::sync::mpsc;

use crate::encode;

/// What sealed values begin with. Plain values are JSON objects and begin with a brace.
const MAGIC: &[u8] = b"enc:v1:";
/// What a derived key is for.
const PURPOSE: &[u8] = b"sampan stored value";
const SALT_LENGTH: usize = 32;
/// The place of the revision in a value that has none.
const NO_REVISION: u32 = u32::MAX;
/// Longest header: names of providers and keys are bounded when the file is read.
const MAX_HEADER: usize = 160;
/// Longest name of a key.
const MAX_KEY_NAME: usize = 100;
/// Values that are looked at at once when old ones are sealed anew.
const PAGE: usize = 500;
/// Batches that wait between the store's watch and its reader; behind them the store's own buffer fills.
const WATCH_BUFFER: usize = 64;
/// Name of the key that is made when nobody gives one.
const OWN_KEY: &str = "own";

/// Why there is no encryption to start with.
#[derive(Debug, thiserror::Error)]
pub enum EncryptionError {
    /// The configuration cannot be used.
    #[error("the encryption configuration is not usable: {0}")]
    Configuration(String),
    /// The key's file cannot be read or written.
    #[error("cannot access {path}")]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The key's file holds something else.
    #[error("{0} is damaged: it does not hold 32 bytes in base64")]
    Damaged(PathBuf),
}

// What an operator writes.

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct File {
    api_version: String,
    kind: String,
    resources: Vec<ResourcesOfFile>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ResourcesOfFile {
    resources: Vec<String>,
    providers: Vec<ProviderOfFile>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ProviderOfFile {
    aesgcm: Option<KeysOfFile>,
    secretbox: Option<KeysOfFile>,
    identity: Option<Empty>,
    aescbc: Option<serde_json::Value>,
    kms: Option<serde_json::Value>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Empty {}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct KeysOfFile {
    keys: Vec<KeyOfFile>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct KeyOfFile {
    name: String,
    secret: String,
}

/// A way of sealing.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Cipher {
    AesGcm,
    Secretbox,
}

impl Cipher {
    fn name(self) -> &'static str {
        match self {
            Self::AesGcm => "aesgcm",
            Self::Secretbox => "secretbox",
        }
    }

    fn algorithm(self) -> &'static aead::Algorithm {
        match self {
            Self::AesGcm => &aead::AES_256_GCM,
            Self::Secretbox => &aead::CHACHA20_POLY1305,
        }
    }

    fn takes(self, length: usize) -> bool {
        match self {
            Self::AesGcm => [16, 24, 32].contains(&length),
            Self::Secretbox => length == 32,
        }
    }
}

/// One entry of a list of providers, taken apart by key.
enum Provider {
    /// As it is.
    Identity,
    Key {
        cipher: Cipher,
        name: String,
        secret: Vec<u8>,
    },
}

/// Some resources and how their values are stored: written by the first provider, read by any.
struct Rule {
    resources: Vec<String>,
    providers: Vec<Provider>,
}

/// Which values are sealed, and with what.
pub struct Encryption {
    rules: Vec<Rule>,
}

impl Encryption {
    /// Reads an `EncryptionConfiguration` (YAML or JSON).
    pub fn parse(text: &str) -> Result<Self, EncryptionError> {
        let bad = EncryptionError::Configuration;
        let file: File = serde_saphyr::from_str(text).map_err(|e| bad(e.to_string()))?;
        if file.api_version != "apiserver.config.k8s.io/v1" || file.kind != "EncryptionConfiguration" {
            return Err(bad(format!("it is a {} of {}", file.kind, file.api_version)));
        }
        let rules: Result<Vec<Rule>, String> = file.resources.into_iter().map(rule).collect();
        Ok(Self { rules: rules.map_err(bad)? })
    }

    /// Seals secrets with the key in `encryption.key` below `directory`, which is made when there is none. Secrets that
    /// were stored before are read as they are.
    pub fn with_own_key(directory: &Path) -> Result<Self, EncryptionError> {
        let path = directory.join("encryption.key");
        let file = |source| EncryptionError::File { path: path.clone(), source };
        let secret = match std::fs::read_to_string(&path) {
            Ok(text) => STANDARD
                .decode(text.trim())
                .ok()
                .filter(|secret| secret.len() == 32)
                .ok_or_else(|| EncryptionError::Damaged(path.clone()))?,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                let mut secret = [0; 32];
                SystemRandom::new()
                    .fill(&mut secret)
                    .map_err(|_| file(std::io::Error::other("the kernel gives no random bytes")))?;
                std::fs::create_dir_all(directory).map_err(file)?;
                crate::pki::write_private(&path, STANDARD.encode(secret).as_bytes()).map_err(file)?;
                secret.to_vec()
            }
            Err(e) => return Err(file(e)),
        };
        let key = Provider::Key { cipher: Cipher::AesGcm, name: OWN_KEY.to_owned(), secret };
        let secrets =
            Rule { resources: vec!["secrets".to_owned()], providers: vec![key, Provider::Identity] };
        Ok(Self { rules: vec![secrets] })
    }

    /// The first rule that names the resource of a storage key.
    fn rule_for(&self, key: &str) -> Option<&Rule> {
        let resource = key.trim_start_matches('/').split('/').next().unwrap_or_default();
        self.rules.iter().find(|rule| rule.resources.iter().any(|pattern| names(pattern, resource)))
    }

    /// The value as it is to be stored.
    fn seal(&self, key: &str, value: Value) -> Result<Value, StoreError> {
        match self.rule_for(key).and_then(|rule| rule.providers.first()) {
            Some(Provider::Key { cipher, name, secret }) => seal(*cipher, name, secret, key, &value),
            Some(Provider::Identity) | None => Ok(value),
        }
    }

    /// The stored pair as it was before it was sealed.
    fn open(&self, mut kv: KeyValue) -> Result<KeyValue, StoreError> {
        let rule = self.rule_for(&kv.key);
        if !kv.value.starts_with(MAGIC) {
            let plain_is_fine = rule.is_none_or(|rule| {
                rule.providers.iter().any(|provider| matches!(provider, Provider::Identity))
            });
            return if plain_is_fine { Ok(kv) } else { Err(unreadable(&kv.key, "it is not encrypted")) };
        }
        let sealed = Sealed::parse(&kv.value).ok_or_else(|| unreadable(&kv.key, "its header is damaged"))?;
        // A resource that has left the configuration is still read with the keys that are there.
        let keys = rule.into_iter().chain(&self.rules).flat_map(|rule| &rule.providers);
        let mut known = false;
        for provider in keys {
            let Provider::Key { cipher, name, secret } = provider else { continue };
            if cipher.name() != sealed.provider || name != sealed.key_name {
                continue;
            }
            known = true;
            if let Some(value) = sealed.open(*cipher, secret, &kv.key) {
                kv.value = value;
                return Ok(kv);
            }
        }
        let why = if known {
            "it was changed, or sealed with another key of the same name".to_owned()
        } else {
            format!("there is no key {} of provider {}", sealed.key_name, sealed.provider)
        };
        Err(unreadable(&kv.key, &why))
    }

    fn open_event(&self, event: Event) -> Result<Event, StoreError> {
        let previous = event.previous.map(|kv| self.open(kv)).transpose()?;
        Ok(Event { kv: self.open(event.kv)?, previous, deleted: event.deleted })
    }

    fn open_batch(&self, batch: EventBatch) -> Result<EventBatch, StoreError> {
        let events: Result<_, _> = batch.events.into_iter().map(|event| self.open_event(event)).collect();
        Ok(EventBatch { revision: batch.revision, events: events? })
    }

    /// Whether a stored value is not as it would be stored today.
    fn is_stale(&self, kv: &KeyValue) -> bool {
        let sealed = Sealed::parse(&kv.value);
        match (self.rule_for(&kv.key).and_then(|rule| rule.providers.first()), sealed) {
            (Some(Provider::Key { cipher, name, .. }), Some(sealed)) => {
                sealed.provider != cipher.name() || sealed.key_name != name
            }
            (Some(Provider::Key { .. }), None) => true,
            (Some(Provider::Identity) | None, sealed) => sealed.is_some(),
        }
    }
}

fn unreadable(key: &str, why: &str) -> StoreError {
    StoreError::Unavailable(format!("the value of {key} cannot be read: {why}"))
}

/// `secrets`, `deployments.apps`, `*.` (the core group), `*.apps` and `*.*` are understood, as upstream does.
fn names(pattern: &str, resource: &str) -> bool {
    let (plural, group) = resource.split_once('.').unwrap_or((resource, ""));
    match pattern.split_once('.') {
        None => plural == pattern && group.is_empty(),
        Some(("*", "*")) => true,
        Some(("*", wanted)) => group == wanted,
        Some((wanted_plural, wanted_group)) => plural == wanted_plural && group == wanted_group,
    }
}

fn rule(written: ResourcesOfFile) -> Result<Rule, String> {
    if written.resources.is_empty() || written.resources.iter().any(String::is_empty) {
        return Err("every entry must name its resources".to_owned());
    }
    let mut providers = Vec::new();
    for provider in written.providers {
        match provider {
            ProviderOfFile {
                aesgcm: Some(keys),
                secretbox: None,
                identity: None,
                aescbc: None,
                kms: None,
            } => {
                providers.extend(keys_of(Cipher::AesGcm, keys)?);
            }
            ProviderOfFile {
                aesgcm: None,
                secretbox: Some(keys),
                identity: None,
                aescbc: None,
                kms: None,
            } => {
                providers.extend(keys_of(Cipher::Secretbox, keys)?);
            }
            ProviderOfFile {
                aesgcm: None,
                secretbox: None,
                identity: Some(Empty {}),
                aescbc: None,
                kms: None,
            } => {
                providers.push(Provider::Identity);
            }
            ProviderOfFile { aescbc: Some(_), .. } | ProviderOfFile { kms: Some(_), .. } => {
                return Err(
                    "the providers are aesgcm, secretbox and identity; aescbc and kms are not supported"
                        .to_owned(),
                );
            }
            _ => return Err("a provider is exactly one of aesgcm, secretbox and identity".to_owned()),
        }
    }
    if providers.is_empty() {
        return Err(format!("there are no providers for {}", written.resources.join(", ")));
    }
    Ok(Rule { resources: written.resources, providers })
}

fn keys_of(cipher: Cipher, written: KeysOfFile) -> Result<Vec<Provider>, String> {
    if written.keys.is_empty() {
        return Err(format!("the provider {} has no keys", cipher.name()));
    }
    let key = |key: KeyOfFile| {
        let plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
        if key.name.is_empty() || key.name.len() > MAX_KEY_NAME || !key.name.chars().all(plain) {
            return Err(format!(
                "the key name {:?} is not made of letters, digits, '-', '_' and '.'",
                key.name
            ));
        }
        let secret = STANDARD.decode(key.secret.trim()).ok().filter(|secret| cipher.takes(secret.len()));
        let secret = secret.ok_or_else(|| {
            format!("the secret of key {} is no base64 of a length that {} takes", key.name, cipher.name())
        })?;
        Ok(Provider::Key { cipher, name: key.name, secret })
    };
    written.keys.into_iter().map(key).collect()
}

/// The key of one value.
fn derived(cipher: Cipher, secret: &[u8], salt: &[u8]) -> Option<aead::LessSafeKey> {
    let (random, purpose) = (hkdf::Salt::new(hkdf::HKDF_SHA256, salt).extract(secret), [PURPOSE]);
    let key = random.expand(&purpose, cipher.algorithm()).ok()?;
    Some(aead::LessSafeKey::new(aead::UnboundKey::from(key)))
}

/// Each derived key seals one value only, so its one nonce may be known.
fn nonce() -> aead::Nonce {
    aead::Nonce::assume_unique_for_key([0; aead::NONCE_LEN])
}

fn seal(cipher: Cipher, name: &str, secret: &[u8], key: &str, value: &Value) -> Result<Value, StoreError> {
    let failed = || StoreError::Unavailable(format!("the value of {key} cannot be encrypted"));
    let mut salt = [0; SALT_LENGTH];
    SystemRandom::new().fill(&mut salt).map_err(|_| failed())?;
    let mut inner = Vec::with_capacity(4 + value.bytes.len() + cipher.algorithm().tag_len());
    inner.put_u32(value.splice_at.unwrap_or(NO_REVISION));
    inner.put_slice(&value.bytes);
    let sealing = derived(cipher, secret, &salt).ok_or_else(failed)?;
    sealing.seal_in_place_append_tag(nonce(), aead::Aad::from(key), &mut inner).map_err(|_| failed())?;
    let mut out = BytesMut::with_capacity(MAX_HEADER + SALT_LENGTH + inner.len());
    out.put_slice(MAGIC);
    out.put_slice(format!("{}:{name}:", cipher.name()).as_bytes());
    let splice_at = u32::try_from(out.len()).ok();
    out.put_u8(b'\n');
    out.put_slice(&salt);
    out.put_slice(&inner);
    Ok(Value { bytes: out.freeze(), splice_at })
}

/// A sealed value, taken apart.
struct Sealed<'a> {
    provider: &'a str,
    key_name: &'a str,
    /// Digits.
    revision: &'a str,
    salt: &'a [u8],
    inner: &'a [u8],
}

impl<'a> Sealed<'a> {
    fn parse(bytes: &'a [u8]) -> Option<Self> {
        let rest = bytes.strip_prefix(MAGIC)?;
        let end = rest.iter().take(MAX_HEADER).position(|byte| *byte == b'\n')?;
        let header = std::str::from_utf8(&rest[..end]).ok()?;
        let mut parts = header.split(':');
        let (provider, key_name, revision) = (parts.next()?, parts.next()?, parts.next()?);
        let body = &rest[end + 1..];
        let digits = revision.bytes().all(|byte| byte.is_ascii_digit());
        if parts.next().is_some() || !digits || body.len() < SALT_LENGTH {
            return None;
        }
        let (salt, inner) = body.split_at(SALT_LENGTH);
        Some(Self { provider, key_name, revision, salt, inner })
    }

    /// The value, with the revision where it belongs.
    fn open(&self, cipher: Cipher, secret: &[u8], key: &str) -> Option<Bytes> {
        let mut inner = self.inner.to_vec();
        let opening = derived(cipher, secret, self.salt)?;
        let plain = opening.open_in_place(nonce(), aead::Aad::from(key), &mut inner).ok()?;
        let (at, value) = plain.split_first_chunk::<4>()?;
        let at = u32::from_be_bytes(*at);
        if at == NO_REVISION {
            return Some(Bytes::copy_from_slice(value));
        }
        let (head, tail) = value.split_at_checked(at as usize)?;
        let mut out = BytesMut::with_capacity(value.len() + self.revision.len());
        out.put_slice(head);
        out.put_slice(self.revision.as_bytes());
        out.put_slice(tail);
        Some(out.freeze())
    }
}

/// A store whose chosen values are sealed in the store below.
pub struct EncryptedStore {
    inner: Arc<dyn Store>,
    encryption: Arc<Encryption>,
}

impl EncryptedStore {
    /// Seals what `encryption` names before it reaches `inner`.
    pub fn new(inner: Arc<dyn Store>, encryption: Encryption) -> Arc<Self> {
        Arc::new(Self { inner, encryption: Arc::new(encryption) })
    }

    /// Writes every value anew that is stored in another way than it would be today: in plain, or with a key that is no
    /// longer the first. Gives how many. To be run once after a start, before an old key is taken out of the
    /// configuration; the log below forgets the old bytes with its next snapshot.
    pub async fn renew(&self) -> Result<u64, StoreError> {
        let mut renewed = 0;
        let mut range = Range { limit: PAGE, ..Range::default() };
        loop {
            let page = self.inner.range(range.clone()).await?;
            range.after = page.items.last().map(|kv| kv.key.to_string());
            for kv in page.items.into_iter().filter(|kv| self.encryption.is_stale(kv)) {
                if self.renew_one(kv).await? {
                    renewed += 1;
                }
            }
            if !page.more || range.after.is_none() {
                return Ok(renewed);
            }
        }
    }

    /// An object that changed meanwhile has been sealed anew by its writer.
    async fn renew_one(&self, kv: KeyValue) -> Result<bool, StoreError> {
        let kv = self.encryption.open(kv)?;
        let object: serde_json::Value = serde_json::from_slice(&kv.value)
            .map_err(|e| unreadable(&kv.key, &format!("it is no JSON: {e}")))?;
        let put = Op::Put {
            key: kv.key.clone(),
            value: encode::for_store(&object),
            durability: Durability::Durable,
        };
        let compare = vec![Compare::ModRevision(kv.key, kv.mod_revision)];
        let result = self.transact(Transaction { compare, ops: vec![put] }).await?;
        Ok(matches!(result, TransactionResult::Committed { .. }))
    }
}

#[async_trait]
impl Store for EncryptedStore {
    fn revision(&self) -> Revision {
        self.inner.revision()
    }

    async fn get(&self, key: &str) -> Result<Option<KeyValue>, StoreError> {
        self.inner.get(key).await?.map(|kv| self.encryption.open(kv)).transpose()
    }

    async fn range(&self, range: Range) -> Result<RangePage, StoreError> {
        let page = self.inner.range(range).await?;
        let items: Result<_, _> = page.items.into_iter().map(|kv| self.encryption.open(kv)).collect();
        Ok(RangePage { items: items?, ..page })
    }

    async fn transact(&self, mut transaction: Transaction) -> Result<TransactionResult, StoreError> {
        for op in &mut transaction.ops {
            if let Op::Put { key, value, .. } = op {
                *value = self.encryption.seal(key, value.clone())?;
            }
        }
        Ok(match self.inner.transact(transaction).await? {
            TransactionResult::Committed { revision, puts } => {
                let puts: Result<_, _> = puts.into_iter().map(|kv| self.encryption.open(kv)).collect();
                TransactionResult::Committed { revision, puts: puts? }
            }
            TransactionResult::Conflict { key, current } => {
                let current = current.map(|kv| self.encryption.open(kv)).transpose()?;
                TransactionResult::Conflict { key, current }
            }
        })
    }

    async fn watch(&self, prefix: &str, after: Option<Revision>) -> Result<Watch, StoreError> {
        let mut inner = self.inner.watch(prefix, after).await?;
        let encryption = self.encryption.clone();
        let (sender, receiver) = mpsc::channel(WATCH_BUFFER);
        tokio::spawn(async move {
            loop {
                let next = tokio::select! {
                    () = sender.closed() => return,
                    next = inner.receiver.recv() => next,
                };
                let Some(next) = next else { return };
                let opened = next.and_then(|batch| encryption.open_batch(batch));
                let failed = opened.is_err();
                if sender.send(opened).await.is_err() || failed {
                    return;
                }
            }
        });
        Ok(Watch { receiver })
    }

    async fn compact(&self, before: Revision) -> Result<(), StoreError> {
        self.inner.compact(before).await
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use sampan_store::{EmbeddedOptions, EmbeddedStore};
    use serde_json::json;

    use super::*;

    const SECRET: &str = "/secrets/default/s";
    const MAP: &str = "/configmaps/default/m";

    fn configuration(providers: &str) -> Encryption {
        let text = format!(
            "apiVersion: apiserver.config.k8s.io/v1\nkind: EncryptionConfiguration\nresources:\n\
             - resources: [secrets]\n  providers:\n{providers}"
        );
        Encryption::parse(&text).expect("a configuration")
    }

    fn keyed(provider: &str, names: &[(&str, u8)]) -> String {
        let keys: Vec<String> = names
            .iter()
            .map(|(name, byte)| format!("{{name: {name}, secret: {}}}", STANDARD.encode([*byte; 32])))
            .collect();
        format!("  - {provider}: {{keys: [{}]}}\n", keys.join(", "))
    }

    fn object(content: &str) -> Value {
        encode::for_store(&json!({"metadata": {"name": "s"}, "data": {"password": content}}))
    }

    async fn put(store: &dyn Store, key: &str, content: &str) -> KeyValue {
        let op = Op::Put { key: key.into(), value: object(content), durability: Durability::Durable };
        match store.transact(Transaction { compare: Vec::new(), ops: vec![op] }).await.expect("stored") {
            TransactionResult::Committed { mut puts, .. } => puts.pop().expect("a pair"),
            TransactionResult::Conflict { .. } => panic!("nothing was compared"),
        }
    }

    fn revision_in(kv: &KeyValue) -> String {
        let object: serde_json::Value = serde_json::from_slice(&kv.value).expect("JSON");
        object["metadata"]["resourceVersion"].as_str().expect("a revision").to_owned()
    }

    fn on_disk(directory: &Path, needle: &str) -> bool {
        std::fs::read_dir(directory).expect("a directory").any(|entry| {
            let bytes = std::fs::read(entry.expect("an entry").path()).expect("a file");
            bytes.windows(needle.len()).any(|window| window == needle.as_bytes())
        })
    }

    fn open(directory: &Path) -> Arc<EmbeddedStore> {
        EmbeddedStore::open(directory, EmbeddedOptions::default()).expect("a store")
    }

    #[tokio::test]
    async fn nothing_of_a_secret_is_in_the_files() {
        let directory = tempfile::tempdir().expect("a directory");
        let inner = open(directory.path());
        let store = EncryptedStore::new(inner.clone(), configuration(&keyed("aesgcm", &[("a", 1)])));
        let mut feed = store.watch("/secrets/", None).await.expect("a watch");
        let put_secret = put(&*store, SECRET, "hunter2-hunter2").await;
        put(&*store, MAP, "plain-and-visible").await;
        assert_eq!(revision_in(&put_secret), put_secret.mod_revision.0.to_string());
        assert_eq!(store.get(SECRET).await.expect("read").as_ref(), Some(&put_secret));
        let page = store.range(Range { prefix: "/secrets/".into(), ..Range::default() }).await.expect("read");
        assert_eq!(page.items, std::slice::from_ref(&put_secret));
        let batch = feed.receiver.recv().await.expect("an event").expect("readable");
        assert_eq!(batch.events[0].kv, put_secret);
        let op = Op::Delete { key: SECRET.into() };
        store.transact(Transaction { compare: Vec::new(), ops: vec![op] }).await.expect("deleted");
        let batch = feed.receiver.recv().await.expect("an event").expect("readable");
        assert!(batch.events[0].deleted && batch.events[0].kv.value == put_secret.value);
        assert!(batch.events[0].previous == Some(put_secret));
        inner.snapshot_to(&directory.path().join("copy")).await.expect("a snapshot");
        assert!(!on_disk(directory.path(), "hunter2") && on_disk(directory.path(), "plain-and-visible"));
    }

    #[tokio::test]
    async fn old_keys_are_read_and_renewed() {
        let directory = tempfile::tempdir().expect("a directory");
        let inner = open(directory.path());
        let with = |providers: String| EncryptedStore::new(inner.clone(), configuration(&providers));
        let identity = "  - identity: {}\n".to_owned();
        put(&*inner, "/secrets/default/plain", "before").await;
        put(&*with(keyed("aesgcm", &[("a", 1)])), SECRET, "old").await;
        let both = with(keyed("secretbox", &[("b", 2)]) + &keyed("aesgcm", &[("a", 1)]) + &identity);
        let before = both.get(SECRET).await.expect("read").expect("there");
        assert_eq!(both.renew().await.expect("renewed"), 2);
        assert_eq!(both.renew().await.expect("nothing to do"), 0);
        let only_new = with(keyed("secretbox", &[("b", 2)]));
        let after = only_new.get(SECRET).await.expect("read").expect("there");
        assert!(after.mod_revision > before.mod_revision);
        assert_eq!(revision_in(&after), after.mod_revision.0.to_string());
        only_new.get("/secrets/default/plain").await.expect("renewed too");
        // The other way: `identity` first means plain again.
        let plain = with(identity + &keyed("secretbox", &[("b", 2)]));
        assert_eq!(plain.renew().await.expect("renewed"), 2);
        let stored = inner.get(SECRET).await.expect("read").expect("there");
        assert!(stored.value.starts_with(b"{") && revision_in(&stored) == stored.mod_revision.0.to_string());
    }

    #[tokio::test]
    async fn what_does_not_open() {
        let directory = tempfile::tempdir().expect("a directory");
        let inner = open(directory.path());
        let with = |providers: String| EncryptedStore::new(inner.clone(), configuration(&providers));
        put(&*with(keyed("aesgcm", &[("a", 1)])), SECRET, "x").await;
        let stored = inner.get(SECRET).await.expect("read").expect("there");
        let mut damaged = stored.value.to_vec();
        *damaged.last_mut().expect("bytes") ^= 1;
        let moved = "/secrets/default/other";
        for (key, bytes) in [(moved, stored.value.clone()), ("/secrets/default/damaged", damaged.into())] {
            let value = Value { bytes, splice_at: None };
            let op = Op::Put { key: key.into(), value, durability: Durability::Durable };
            inner.transact(Transaction { compare: Vec::new(), ops: vec![op] }).await.expect("stored");
        }
        put(&*inner, "/secrets/default/plain", "x").await;
        let key_a = || keyed("aesgcm", &[("a", 1)]);
        let rows = [
            ("right", key_a(), SECRET, true),
            ("another key", keyed("aesgcm", &[("b", 2)]), SECRET, false),
            ("another key of the name", keyed("aesgcm", &[("a", 2)]), SECRET, false),
            ("another provider", keyed("secretbox", &[("a", 1)]), SECRET, false),
            ("second in the list", keyed("aesgcm", &[("b", 2), ("a", 1)]), SECRET, true),
            ("moved", key_a(), moved, false),
            ("damaged", key_a(), "/secrets/default/damaged", false),
            ("plain without identity", key_a(), "/secrets/default/plain", false),
            ("plain with identity", key_a() + "  - identity: {}\n", "/secrets/default/plain", true),
        ];
        for (what, providers, key, readable) in rows {
            assert_eq!(with(providers).get(key).await.is_ok(), readable, "{what}");
        }
    }

    #[test]
    fn patterns() {
        let rows = [
            ("secrets", "secrets", true),
            ("secrets", "secrets.example.com", false),
            ("deployments.apps", "deployments.apps", true),
            ("*.apps", "deployments.apps", true),
            ("*.apps", "jobs.batch", false),
            ("*.", "configmaps", true),
            ("*.", "jobs.batch", false),
            ("*.*", "jobs.batch", true),
            ("*.*", "configmaps", true),
        ];
        for (pattern, resource, expected) in rows {
            assert_eq!(names(pattern, resource), expected, "{pattern} {resource}");
        }
    }

    #[test]
    fn files_that_are_refused() {
        let head = "apiVersion: apiserver.config.k8s.io/v1\nkind: EncryptionConfiguration\nresources:\n";
        let rows = [
            ("another kind", "apiVersion: v1\nkind: Secret\nresources: []\n".to_owned()),
            ("no providers", format!("{head}- resources: [secrets]\n  providers: []\n")),
            ("no resources", format!("{head}- resources: []\n  providers: [{{identity: {{}}}}]\n")),
            ("kms", format!("{head}- resources: [secrets]\n  providers: [{{kms: {{name: a}}}}]\n")),
            (
                "short",
                format!(
                    "{head}- resources: [secrets]\n  providers: [{{aesgcm: {{keys: [{{name: a, secret: YQ==}}]}}}}]\n"
                ),
            ),
            (
                "bad name",
                format!(
                    "{head}- resources: [secrets]\n  providers: [{{aesgcm: {{keys: [{{name: 'a:b', secret: {}}}]}}}}]\n",
                    STANDARD.encode([0; 32])
                ),
            ),
        ];
        for (what, text) in rows {
            assert!(Encryption::parse(&text).is_err(), "{what}");
        }
    }

    #[test]
    fn the_own_key_is_private_and_stays() {
        let directory = tempfile::tempdir().expect("a directory");
        let first = Encryption::with_own_key(directory.path()).expect("made");
        let second = Encryption::with_own_key(directory.path()).expect("read");
        let path = directory.path().join("encryption.key");
        assert_eq!(std::fs::metadata(&path).expect("there").permissions().mode() & 0o777, 0o600);
        let sealed = first.seal(SECRET, Value { bytes: "{}".into(), splice_at: None }).expect("sealed");
        // As the store would: the revision goes in front of the line's end.
        let (head, tail) = sealed.bytes.split_at(sealed.splice_at.expect("a place") as usize);
        let value: Bytes = [head, b"7", tail].concat().into();
        let (create_revision, mod_revision) = (Revision(7), Revision(7));
        let kv = KeyValue { key: SECRET.into(), value, create_revision, mod_revision };
        assert_eq!(second.open(kv).expect("opened").value, "{}");
        std::fs::write(&path, "nonsense").expect("written");
        assert!(matches!(Encryption::with_own_key(directory.path()), Err(EncryptionError::Damaged(_))));
    }
}
