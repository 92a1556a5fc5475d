//! CEL: any text compiles or is refused, any expression ends within its budget. libFuzzer's timeout is the judge of time.
//!
//! The evaluator catches panics of the libraries behind it; here only a panic in our own code is a finding.
#![no_main]

use libfuzzer_sys::fuzz_target;
use sampan_api::cel::{Authorizer, Budget, CelValue, Decision, Expression, Question};
use serde_json::json;

/// A fifth of what the server gives an expression, so that expensive ones do not take all the time.
const BUDGET: u64 = 200_000;

/// Allows what has a name.
struct Answering;

impl Authorizer for Answering {
    fn request_resource(&self) -> Question {
        Question { resource: "widgets".to_owned(), ..Question::default() }
    }

    fn decide(&self, question: &Question) -> Decision {
        let reason = question.resource.clone();
        Decision { allowed: !question.name.is_empty(), reason, error: question.path.clone() }
    }
}

fn only_our_panics() {
    std::panic::set_hook(Box::new(|panic| {
        if panic.location().is_none_or(|place| {
            place.file().contains("crates/api/") || place.file().contains("fuzz_targets/")
        }) {
            eprintln!("{panic}");
            std::process::abort();
        }
    }));
}

fuzz_target!(init: only_our_panics(), |data: &[u8]| {
    let Some(text) = sampan_fuzz::expression(data) else { return };
    let Ok(expression) = Expression::compile_asking(&text, &["self", "oldSelf", "object"]) else { return };
    let own = CelValue::from_json(&json!({
        "a": 1, "b": "x", "c": [1, 2, 3], "d": {"e": null, "f": 1.5}, "t": "2024-01-01T00:00:00Z", "q": "100Mi",
        "n": -9_223_372_036_854_775_808_i64, "u": 18_446_744_073_709_551_615_u64, "l": ["a", "b", "a"], "s": "aé😀",
        "big": (0..1000).collect::<Vec<i64>>(), "text": "a".repeat(5000),
    }));
    let old = CelValue::from_json(&json!("x"));
    let mut budget = Budget::new(BUDGET);
    let authorizer = CelValue::authorizer(&Answering);
    let variables = [("self", &own), ("oldSelf", &old), ("authorizer", &authorizer)];
    if let Ok(value) = expression.evaluate_asking(&variables, &Answering, &mut budget) {
        let _ = (value.to_json(), value.as_str().map(str::len));
    }
    assert!(budget.left() <= BUDGET);
    let _ = expression.evaluate_bool(&variables, &mut budget);
});
