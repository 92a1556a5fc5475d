//! Nothing of a secret is in the files.

use std::path::Path;

use http::Method;
use sampan_apiserver::{Access, EncryptedStore, Encryption};
use serde_json::json;

use crate::world::{MERGE, World};

const SECRETS: &str = "/api/v1/namespaces/default/secrets";

fn is_in_files(directory: &Path, needle: &[u8]) -> bool {
    std::fs::read_dir(directory).expect("a directory").any(|entry| {
        let bytes = std::fs::read(entry.expect("an entry").path()).expect("a file");
        bytes.windows(needle.len()).any(|window| window == needle)
    })
}

#[tokio::test]
async fn secrets_are_stored_encrypted_and_served_as_ever() {
    let layer = |store, pki: &Path| {
        let encryption = Encryption::with_own_key(pki).expect("a key");
        EncryptedStore::new(store, encryption) as std::sync::Arc<dyn sampan_store::Store>
    };
    let world = World::with(Access::default(), layer).await;
    // What base64 makes of it is what would be stored.
    let (value, encoded) = ("correct horse battery staple", "Y29ycmVjdCBob3JzZSBiYXR0ZXJ5IHN0YXBsZQ==");
    let secret = json!({"metadata": {"name": "s"}, "stringData": {"password": value}});
    let made = world.post(SECRETS, &secret).await.expect(201);
    assert_eq!(made["data"]["password"], encoded);
    let map = json!({"metadata": {"name": "m"}, "data": {"a": "visible-in-plain"}});
    world.post("/api/v1/namespaces/default/configmaps", &map).await.expect(201);
    let read = world.get(&format!("{SECRETS}/s")).await.expect(200);
    assert_eq!(read, made);
    let list = world.get(SECRETS).await.expect(200);
    assert_eq!(list["items"][0]["data"]["password"], encoded);
    let old = format!(
        "{SECRETS}?resourceVersion={}&resourceVersionMatch=Exact",
        made["metadata"]["resourceVersion"].as_str().expect("text")
    );
    assert_eq!(world.get(&old).await.expect(200)["items"][0]["data"]["password"], encoded);
    let more =
        world.patch(&format!("{SECRETS}/s"), MERGE, &json!({"data": {"more": encoded}})).await.expect(200);
    assert_ne!(more["metadata"]["resourceVersion"], made["metadata"]["resourceVersion"]);
    let stale = json!({"metadata": {"name": "s", "resourceVersion": made["metadata"]["resourceVersion"]}});
    world.put(&format!("{SECRETS}/s"), &stale).await.expect(409);
    let files = world.directory.path().join("store");
    for hidden in [encoded.as_bytes(), value.as_bytes(), b"\"password\""] {
        assert!(!is_in_files(&files, hidden), "{}", String::from_utf8_lossy(hidden));
    }
    assert!(is_in_files(&files, b"visible-in-plain"));
    let world = world.restarted().await;
    assert_eq!(world.get(&format!("{SECRETS}/s")).await.expect(200), more);
    world.send(Method::DELETE, &format!("{SECRETS}/s"), "application/json", "").await.expect(200);
    world.get(&format!("{SECRETS}/s")).await.expect(404);
}
