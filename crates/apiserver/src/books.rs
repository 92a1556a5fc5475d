//! The books the server keeps in every object: identity, times, generation, and when there is nothing to write.

use jiff::Timestamp;
use sampan_api::kind::{Storage, Subresource};
use sampan_api::registry::Kind;
use sampan_store::Durability;
use serde_json::Value;

/// A client that names no manager is called by the first word of its user agent.
pub(crate) fn manager_of(user_agent: &str) -> String {
    let name = user_agent.split('/').next().unwrap_or_default();
    let name: String = name.chars().filter(|c| !c.is_control()).take(128).collect();
    if name.is_empty() { "unknown".to_owned() } else { name }
}

/// What the server says about a new object, whatever the client sent.
pub(crate) fn new_books(object: &mut Value, kind: &Kind, now: Timestamp) {
    let Some(metadata) = object["metadata"].as_object_mut() else { return };
    for field in
        ["resourceVersion", "selfLink", "deletionTimestamp", "deletionGracePeriodSeconds", "managedFields"]
    {
        metadata.remove(field);
    }
    metadata.insert("uid".into(), uuid::Uuid::new_v4().to_string().into());
    metadata.insert("creationTimestamp".into(), seconds(now).into());
    if kind.generation {
        metadata.insert("generation".into(), 1.into());
    } else {
        metadata.remove("generation");
    }
}

/// RFC 3339 in whole seconds, as all API times but micro times are.
pub(crate) fn seconds(time: Timestamp) -> String {
    let whole = Timestamp::from_second(time.as_second()).unwrap_or(time);
    whole.to_string()
}

/// Suffix alphabet of generated names: no vowels, nothing that looks like something else.
const SUFFIX: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";

/// A name nobody has yet, most likely.
pub(crate) fn generate_name(prefix: &str) -> String {
    let mut name: String = prefix.chars().take(58).collect();
    let random = uuid::Uuid::new_v4();
    name.extend(random.as_bytes()[..5].iter().map(|b| char::from(SUFFIX[usize::from(*b) % SUFFIX.len()])));
    name
}

/// The node heartbeats of one namespace never touch the disk.
const HEARTBEATS: &str = "kube-node-lease";

/// How much a write of the kind may lose.
pub(crate) fn durability(kind: &Kind, namespace: &str) -> Durability {
    match kind.storage {
        Storage::Volatile => Durability::Volatile,
        Storage::Lazy if namespace == HEARTBEATS => Durability::Volatile,
        Storage::Lazy => Durability::Lazy,
        Storage::Durable | Storage::Virtual | Storage::Computed => Durability::Durable,
    }
}

/// Everything but metadata, and status where it has an address of its own: what `generation` counts.
pub(crate) fn same_spec(kind: &Kind, a: &Value, b: &Value) -> bool {
    let left_out: &[&str] =
        if kind.has(Subresource::Status) { &["metadata", "status"] } else { &["metadata"] };
    same_but(a, b, left_out)
}

/// The same fields with the same values, some left out.
fn same_but(a: &Value, b: &Value, left_out: &[&str]) -> bool {
    let (Some(a), Some(b)) = (a.as_object(), b.as_object()) else { return a == b };
    let counted = |key: &&String| !left_out.contains(&key.as_str());
    a.keys().filter(counted).count() == b.keys().filter(counted).count()
        && a.iter().filter(|(key, _)| counted(key)).all(|(key, value)| b.get(key) == Some(value))
}

/// The same but for the revision and the times of `managedFields`: not worth a write.
pub(crate) fn same_object(a: &Value, b: &Value) -> bool {
    let managers = |object: &'_ Value| object["metadata"]["managedFields"].as_array().map_or(0, Vec::len);
    let same_managers = || {
        let (a, b) = (&a["metadata"]["managedFields"], &b["metadata"]["managedFields"]);
        let pairs = a.as_array().into_iter().flatten().zip(b.as_array().into_iter().flatten());
        pairs.into_iter().all(|(a, b)| same_but(a, b, &["time"]))
    };
    same_but(a, b, &["metadata"])
        && same_but(&a["metadata"], &b["metadata"], &["resourceVersion", "managedFields"])
        && managers(a) == managers(b)
        && same_managers()
}

/// What a client cannot change stays as it was.
pub(crate) fn keep_books(new: &mut Value, old: &Value) {
    const KEPT: &[&str] = &[
        "uid",
        "creationTimestamp",
        "generation",
        "deletionTimestamp",
        "deletionGracePeriodSeconds",
        "generateName",
    ];
    let Some(metadata) = new["metadata"].as_object_mut() else { return };
    for field in KEPT {
        match old["metadata"].get(*field) {
            Some(value) => metadata.insert((*field).to_owned(), value.clone()),
            None => metadata.remove(*field),
        };
    }
    metadata.remove("selfLink");
    if let Some(revision) = old["metadata"].get("resourceVersion") {
        metadata.insert("resourceVersion".to_owned(), revision.clone());
    }
}

/// Copies a top-level field, or its absence.
pub(crate) fn copy_field(to: &mut Value, from: &Value, field: &str) {
    let Some(object) = to.as_object_mut() else { return };
    match from.get(field) {
        Some(value) => object.insert(field.to_owned(), value.clone()),
        None => object.remove(field),
    };
}

/// A dying object that nobody holds any more.
pub(crate) fn is_finished(object: &Value, kind: &Kind) -> bool {
    let metadata = &object["metadata"];
    let held = |list: &Value| list.as_array().is_some_and(|finalizers| !finalizers.is_empty());
    !metadata["deletionTimestamp"].is_null()
        && metadata["deletionGracePeriodSeconds"].as_i64().unwrap_or(0) == 0
        && !held(&metadata["finalizers"])
        && !(kind.has(Subresource::Finalize) && held(&object["spec"]["finalizers"]))
}
