//! The platform as its users meet it: the real binary, the real `kubectl`, real containers.
//!
//! Every test has a namespace of its own in a cluster that all share; those that end or restart a cluster start their
//! own. Run it as one process (`cargo test -p sampan-tests --test e2e`): a runner that gives each test its own process
//! would start as many clusters. Needs root; what else, the harness says.

mod e2e {
    mod clients;
    mod conformance_ends;
    mod conformance_kubectl;
    mod conformance_quota;
    mod custom_resources;
    mod deployments;
    mod garbage;
    mod input;
    mod lifecycle;
    mod pods;
    mod probes;
    mod scheduling;
    mod security;
    mod services;
    mod streams;
    mod tables;
    mod verbs;
    mod volumes;
}
