//! Versions: objects are kept in one form and shown in several.
//!
//! Built-in kinds convert by functions of their rows. Versions of a custom resource differ in their `apiVersion` only, or
//! a webhook converts them; and an object written before its schema got a default is completed when it is read. Most
//! kinds have one version and no such schema: for them everything here is a comparison.

use std::borrow::Cow;

use bytes::Bytes;
use sampan_api::registry::{CustomStorage, Kind, Stored};
use sampan_store::KeyValue;
use serde_json::Value;

use crate::encode;
use crate::error::ApiError;
use crate::server::ApiServer;

/// An object as the store or the watch cache holds it.
#[derive(Clone, Copy)]
pub(crate) struct StoredObject<'a> {
    pub(crate) bytes: &'a Bytes,
    /// Revision of its last change.
    pub(crate) revision: u64,
}

impl<'a> From<&'a KeyValue> for StoredObject<'a> {
    fn from(kv: &'a KeyValue) -> Self {
        Self { bytes: &kv.value, revision: kv.mod_revision.0 }
    }
}

/// What has to happen with stored bytes before a reader gets them.
enum Reading {
    /// They are what the reader wants.
    Ready(Bytes),
    /// A webhook converts the object.
    Convert(Value),
}

impl ApiServer {
    /// The bytes of a stored object in the version of `kind`.
    pub(crate) async fn shown(&self, kind: &Kind, stored: StoredObject<'_>) -> Result<Bytes, ApiError> {
        match reading(kind, stored)? {
            Reading::Ready(bytes) => Ok(bytes),
            Reading::Convert(object) => {
                let mut converted = self.convert(kind, vec![object], kind.api_version()).await?;
                let mut object = converted.pop().unwrap_or_default();
                kind.schema.fill_in_defaults(&mut object);
                Ok(encode::with_revision(&object, stored.revision))
            }
        }
    }

    /// [`ApiServer::shown`] for many objects; a webhook is asked once for all of them.
    pub(crate) async fn shown_all(
        &self,
        kind: &Kind,
        stored: impl Iterator<Item = StoredObject<'_>>,
    ) -> Result<Vec<Bytes>, ApiError> {
        let mut shown = Vec::with_capacity(stored.size_hint().0);
        let (mut places, mut waiting) = (Vec::new(), Vec::new());
        for object in stored {
            match reading(kind, object)? {
                Reading::Ready(bytes) => shown.push(bytes),
                Reading::Convert(document) => {
                    places.push((shown.len(), object.revision));
                    waiting.push(document);
                    shown.push(Bytes::new());
                }
            }
        }
        if !waiting.is_empty() {
            let converted = self.convert(kind, waiting, kind.api_version()).await?;
            for ((place, revision), mut object) in places.into_iter().zip(converted) {
                kind.schema.fill_in_defaults(&mut object);
                shown[place] = encode::with_revision(&object, revision);
            }
        }
        Ok(shown)
    }

    /// A stored object in the version of `kind`, to be changed.
    pub(crate) async fn out_of_storage(&self, kind: &Kind, mut object: Value) -> Result<Value, ApiError> {
        match &kind.stored_as {
            Stored::AsIs => {}
            Stored::As(conversion) => (conversion.from_storage)(&mut object),
            Stored::Custom(custom) => {
                if object["apiVersion"] != kind.api_version() {
                    object = self.convert_one(kind, custom, object, kind.api_version()).await?;
                }
                kind.schema.fill_in_defaults(&mut object);
            }
        }
        Ok(object)
    }

    /// An object of `kind` in the version that is kept.
    pub(crate) async fn to_storage<'a>(
        &self,
        kind: &Kind,
        object: &'a Value,
    ) -> Result<Cow<'a, Value>, ApiError> {
        Ok(match &kind.stored_as {
            Stored::AsIs => Cow::Borrowed(object),
            Stored::As(conversion) => {
                let mut stored = object.clone();
                (conversion.to_storage)(&mut stored);
                Cow::Owned(stored)
            }
            Stored::Custom(custom) if custom.api_version == kind.api_version() => Cow::Borrowed(object),
            Stored::Custom(custom) => {
                Cow::Owned(self.convert_one(kind, custom, object.clone(), &custom.api_version).await?)
            }
        })
    }

    /// An object of one kind as another kind shows it for which the same objects are kept.
    pub(crate) async fn convert_between(
        &self,
        from: &Kind,
        to: &Kind,
        object: Value,
    ) -> Result<Value, ApiError> {
        if let Stored::Custom(custom) = &from.stored_as {
            let mut object = self.convert_one(from, custom, object, to.api_version()).await?;
            to.schema.fill_in_defaults(&mut object);
            return Ok(object);
        }
        let stored = self.to_storage(from, &object).await?.into_owned();
        self.out_of_storage(to, stored).await
    }

    /// Has the webhook of a custom resource convert objects.
    async fn convert(
        &self,
        kind: &Kind,
        objects: Vec<Value>,
        api_version: &str,
    ) -> Result<Vec<Value>, ApiError> {
        let client_config = match &kind.stored_as {
            Stored::Custom(custom) => custom.webhook.as_ref().map(|webhook| &webhook["clientConfig"]),
            _ => None,
        };
        let missing = || ApiError::internal(format!("{} has no conversion webhook", kind.resource()));
        self.convert_by_webhook(client_config.ok_or_else(missing)?, objects, api_version).await
    }

    async fn convert_one(
        &self,
        kind: &Kind,
        custom: &CustomStorage,
        mut object: Value,
        api_version: &str,
    ) -> Result<Value, ApiError> {
        if custom.webhook.is_some() {
            let converted = self.convert(kind, vec![object], api_version).await?;
            return converted.into_iter().next().ok_or_else(|| ApiError::internal("nothing was converted"));
        }
        object["apiVersion"] = api_version.into();
        Ok(object)
    }
}

/// Whether an object of `kind` lies in the store in the form in which it is written today.
pub(crate) fn is_current_form(kind: &Kind, stored: &Bytes) -> bool {
    match &kind.stored_as {
        Stored::AsIs | Stored::As(_) => true,
        Stored::Custom(custom) => api_version_of(stored) == Some(custom.api_version.as_str()),
    }
}

fn reading(kind: &Kind, stored: StoredObject<'_>) -> Result<Reading, ApiError> {
    let custom = match &kind.stored_as {
        Stored::AsIs => return Ok(Reading::Ready(stored.bytes.clone())),
        Stored::As(conversion) => {
            let mut object = parse(stored.bytes)?;
            (conversion.from_storage)(&mut object);
            return Ok(Reading::Ready(encode::with_revision(&object, stored.revision)));
        }
        Stored::Custom(custom) => custom,
    };
    let same_version = api_version_of(stored.bytes) == Some(kind.api_version());
    let complete = custom.defaults_since.is_none_or(|since| stored.revision >= since);
    if same_version && complete {
        return Ok(Reading::Ready(stored.bytes.clone()));
    }
    let mut object = parse(stored.bytes)?;
    if !same_version && custom.webhook.is_some() {
        return Ok(Reading::Convert(object));
    }
    object["apiVersion"] = kind.api_version().into();
    kind.schema.fill_in_defaults(&mut object);
    Ok(Reading::Ready(encode::with_revision(&object, stored.revision)))
}

fn parse(bytes: &Bytes) -> Result<Value, ApiError> {
    serde_json::from_slice(bytes).map_err(|e| ApiError::internal(format!("a stored object is damaged: {e}")))
}

/// `apiVersion` of stored bytes, without reading them: fields are written in alphabetical order, so it is the first.
fn api_version_of(bytes: &[u8]) -> Option<&str> {
    let rest = bytes.strip_prefix(b"{\"apiVersion\":\"")?;
    let end = rest.iter().position(|byte| *byte == b'"')?;
    std::str::from_utf8(&rest[..end]).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_version_is_read_off_the_bytes() {
        let object = json!({"kind": "A", "apiVersion": "a.b/v1", "metadata": {"name": "x"}});
        assert_eq!(api_version_of(&encode::with_revision(&object, 5)), Some("a.b/v1"));
        assert_eq!(api_version_of(b"{}"), None);
    }
}
