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
    // `62.5Ki` is written as `64000`, for it has no whole number of Ki, and that as `64k`: as upstream.
    let settled = again.to_string();
    let read = Quantity::parse(&settled).unwrap_or_else(|e| panic!("{written} was written as {settled}: {e}"));
    assert_eq!((quantity, &settled), (read, &read.to_string()), "{first} does not settle");
    let other = Quantity::parse(second).unwrap_or(Quantity::ZERO);
    for result in [quantity.plus(other), quantity.minus(other), other.minus(quantity)] {
        let _ = (result.value(), result.milli(), result.is_negative(), result.to_string());
    }
});
