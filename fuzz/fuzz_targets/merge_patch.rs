//! Merge patch: any patch on any document; a second time it changes nothing, and no null of it is left.
#![no_main]

use libfuzzer_sys::fuzz_target;
use sampan_api::patch::merge_patch;
use sampan_fuzz::Input;

fuzz_target!(|data: &[u8]| {
    let mut input = Input::new(data);
    let (Some(mut document), Some(patch)) = (input.document(), input.document()) else { return };
    if merge_patch(&mut document, &patch).is_err() {
        return;
    }
    let once = document.clone();
    merge_patch(&mut document, &patch).expect("what applied applies again");
    assert_eq!(once, document);
});
