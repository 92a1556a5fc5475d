//! Quantities: what is read is written so that it reads as the same amount, and arithmetic never overflows.
#![no_main]

use libfuzzer_sys::fuzz_target;
use sampan_api::quantity::Quantity;

fuzz_target!(|data: &[u8]| {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let (first, second) = text.split_once(' ').unwrap_or((text, "1"));
    let Ok(quantity) = Quantity::parse(first) else { return };
    let written = quantity.to_string();
    let again = Quantity::parse(&written).unwrap_or_else(|e| panic!("{first} was written as {written}: {e}"));
    assert_eq!(quantity, again, "{first} was written as {written}");
    assert_eq!(written, again.to_string(), "{first} has two canonical forms");
    let other = Quantity::parse(second).unwrap_or(Quantity::ZERO);
    for result in [quantity.plus(other), quantity.minus(other), other.minus(quantity)] {
        let _ = (result.value(), result.milli(), result.is_negative(), result.to_string());
    }
});
