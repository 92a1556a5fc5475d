//! What a request asks for, from its method and address.
#![no_main]

// Pure and private to its crate, see `spdy.rs`.
#[allow(dead_code)]
#[path = "../../crates/apiserver/src/request.rs"]
mod request;

use http::{Method, Uri};
use libfuzzer_sys::fuzz_target;
use request::RequestInfo;

fuzz_target!(|data: &[u8]| {
    let Some((first, address)) = data.split_first() else { return };
    let methods = [
        Method::GET,
        Method::PUT,
        Method::POST,
        Method::PATCH,
        Method::DELETE,
        Method::OPTIONS,
        Method::HEAD,
    ];
    let Ok(uri) = Uri::try_from(address) else { return };
    let info = RequestInfo::parse(&methods[usize::from(*first) % methods.len()], &uri);
    let names = ["limit", "watch", "labelSelector", "fieldSelector", "continue", "command", ""];
    for name in names {
        let _ = (info.query.get(name), info.query.all(name), info.query.flag(name));
    }
    assert!(!info.verb.is_empty());
    if let Some(resource) = &info.resource {
        assert!(!resource.resource.is_empty(), "a resource without a name: {uri}");
    }
});
