//! Programs with the clients of other languages. What each does stands in `tests/clients`; here each is a test.

use sampan_tests::Language;

/// One test per scenario, and one that no scenario is forgotten.
macro_rules! scenarios {
    ($language:ident: $($test:ident = $name:literal,)+) => {
        use super::*;

        #[test]
        fn every_scenario_is_a_test() {
            assert_eq!(Language::$language.scenarios(), [$($name),+]);
        }

        $(
            #[test]
            fn $test() {
                Language::$language.run($name);
            }
        )+
    };
}

mod python {
    scenarios! { Python:
        typed_objects = "typed-objects",
        more_typed_objects = "more-typed-objects",
        patches = "patches",
        watches = "watches",
        watches_that_are_too_old = "watches-that-are-too-old",
        informers = "informers",
        dynamic_client = "dynamic-client",
        exec_streams = "exec-streams",
        logs = "logs",
        port_forwards = "port-forwards",
        pages = "pages",
        deletions = "deletions",
        manifests = "manifests",
        custom_objects = "custom-objects",
        discovery = "discovery",
        rights = "rights",
        subresources = "subresources",
        many_at_once = "many-at-once",
        an_operator = "an-operator",
    }
}

mod javascript {
    scenarios! { JavaScript:
        typed_objects = "typed-objects",
        untyped_objects = "untyped-objects",
        watch_and_abort = "watch-and-abort",
        informer_survives_a_reconnect = "informer-survives-a-reconnect",
        exec = "exec",
        attach = "attach",
        log = "log",
        port_forward = "port-forward",
        custom_objects = "custom-objects",
        rights = "rights",
    }
}
