//! An object's bytes are made here, once: what is stored is what every reader gets.

use bytes::Bytes;
use sampan_store::Value as StoreValue;
use serde_json::Value;

/// Encodes an object for the store. `metadata.resourceVersion` is left open for the store to fill in at commit.
pub(crate) fn for_store(object: &Value) -> StoreValue {
    let (bytes, at) = encode(object);
    StoreValue { bytes: Bytes::from(bytes), splice_at: at }
}

/// Encodes an object as of a revision.
pub(crate) fn with_revision(object: &Value, revision: u64) -> Bytes {
    let (mut bytes, at) = encode(object);
    if let Some(at) = at {
        let digits = revision.to_string();
        bytes.splice(at as usize..at as usize, digits.into_bytes());
    }
    Bytes::from(bytes)
}

/// JSON of `object` with an empty resource version, and where its digits go.
fn encode(object: &Value) -> (Vec<u8>, Option<u32>) {
    let mut out = Vec::with_capacity(1024);
    let mut at = None;
    let Some(fields) = object.as_object() else {
        write(&mut out, object);
        return (out, None);
    };
    out.push(b'{');
    for (i, (key, value)) in fields.iter().enumerate() {
        separate(&mut out, i, key);
        match value.as_object() {
            Some(metadata) if key == "metadata" => {
                out.extend_from_slice(b"{\"resourceVersion\":\"");
                at = u32::try_from(out.len()).ok();
                out.push(b'"');
                for (key, value) in metadata.iter().filter(|(key, _)| *key != "resourceVersion") {
                    separate(&mut out, 1, key);
                    write(&mut out, value);
                }
                out.push(b'}');
            }
            _ => write(&mut out, value),
        }
    }
    out.push(b'}');
    (out, at)
}

fn separate(out: &mut Vec<u8>, index: usize, key: &str) {
    if index > 0 {
        out.push(b',');
    }
    write(out, key);
    out.push(b':');
}

fn write(out: &mut Vec<u8>, value: &(impl serde::Serialize + ?Sized)) {
    // Writing JSON values and strings into memory has no way to fail.
    let _ = serde_json::to_writer(out, value);
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn revision_goes_into_its_place() {
        let object =
            json!({"apiVersion": "v1", "metadata": {"name": "a\"b", "resourceVersion": "5"}, "x": [1]});
        let bytes = with_revision(&object, 1234);
        let back: Value = serde_json::from_slice(&bytes).expect("valid JSON");
        assert_eq!(
            back,
            json!({"apiVersion": "v1", "metadata": {"name": "a\"b", "resourceVersion": "1234"}, "x": [1]})
        );
        let stored = for_store(&object);
        let at = stored.splice_at.expect("a place") as usize;
        assert!(stored.bytes[..at].ends_with(b"\"resourceVersion\":\""));
    }
}
