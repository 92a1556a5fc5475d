//! Bytes to typed documents: the first byte chooses the type, the rest is JSON. What fits its type once fits it for good.
#![no_main]

use std::sync::OnceLock;

use libfuzzer_sys::fuzz_target;
use sampan_api::decode::{Strictness, conform, parse_json};
use sampan_api::defaults;
use sampan_api::schema::Types;

fn names() -> &'static [&'static str] {
    static NAMES: OnceLock<Vec<&'static str>> = OnceLock::new();
    NAMES.get_or_init(|| {
        let mut names: Vec<&str> =
            Types::get().names().filter(|name| name.starts_with("io.k8s.api.")).collect();
        names.sort_unstable();
        // The kinds with the largest types first: a digit or letter in front of a document chooses one of them.
        for name in ["io.k8s.api.core.v1.Pod", "io.k8s.api.apps.v1.Deployment", "io.k8s.api.core.v1.Service"]
        {
            names.insert(0, name);
        }
        names
    })
}

fuzz_target!(|data: &[u8]| {
    let Some((choice, json)) = data.split_first() else { return };
    let type_name = names()[usize::from(*choice) * 3 % names().len()];
    let mut strictness = Strictness::default();
    let Ok(mut document) = parse_json(json, &mut strictness) else { return };
    let written = document.to_string();
    let again =
        parse_json(written.as_bytes(), &mut Strictness::default()).expect("what was read can be written");
    assert_eq!(document, again, "written as {written}");
    if conform(type_name, &mut document, &mut strictness).is_err() {
        return;
    }
    let once = document.clone();
    let mut second = Strictness::default();
    conform(type_name, &mut document, &mut second).expect("what fits a type fits it again");
    assert_eq!(once, document, "{type_name}");
    assert!(second.problems.is_empty(), "{type_name}: {:?}", second.problems);
    defaults::apply(type_name, &mut document);
    let once = document.clone();
    defaults::apply(type_name, &mut document);
    assert_eq!(once, document, "defaults of {type_name}");
    conform(type_name, &mut document, &mut second).expect("defaults fit their type");
});
