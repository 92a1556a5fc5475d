//! Label and field selectors: any text either is refused or selects; a selector as object as well.
#![no_main]

use libfuzzer_sys::fuzz_target;
use sampan_api::selector::{FieldSelector, LabelSelector};
use serde_json::{Value, json};

fuzz_target!(|data: &[u8]| {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let labels = json!({"app": "web", "tier": "", "example.com/x": "1"});
    if let Ok(selector) = LabelSelector::parse(text) {
        let _ = selector.matches_value(Some(&labels));
        let _ = selector.matches_value(None);
        assert!(
            !selector.is_empty() || selector.matches_value(Some(&labels)),
            "nothing asked, nothing given"
        );
    }
    if let Ok(selector) = FieldSelector::parse(text, |label| label != "unknown") {
        let _ = selector.matches(|label| label.chars().rev().collect());
        for label in selector.labels() {
            let required = selector.required_value(label);
            assert!(required.is_none_or(|value| text.len() >= value.len()));
        }
    }
    if let Ok(object) = serde_json::from_str::<Value>(text) {
        let _ = LabelSelector::from_object(Some(&object)).matches_value(Some(&labels));
    }
});
