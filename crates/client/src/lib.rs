//! How the parts of sampan talk to the API: a kube client over any transport, shared informers,
//! and the machinery every control loop has in common.
//!
//! The neighbours: the API server offers a tower service, and [`in_process`] turns it into a client
//! without a socket. Controllers, scheduler and node are written against this crate and against
//! nothing else, so any of them could run in a process of its own with a client over TLS.
//!
//! - [`Informers`]: one watch and one typed copy per kind in a process, shared by all who read it.
//! - [`Queue`] and [`run_controller`]: which key to look at next, how many at once, when again.
//! - [`EventRecorder`]: Event objects, aggregated and bounded, without ever holding up a loop.
//!
//! The crate does not know what any kind means, and it never polls: it sleeps until the server says
//! something or a back-off ends.
#![forbid(unsafe_code)]

mod controller;
mod events;
mod informer;
mod informers;
mod key;
mod keys;
mod mailbox;
mod queue;
mod transport;

pub use controller::{Requeue, run_controller};
pub use events::EventRecorder;
pub use informer::Informer;
pub use informers::Informers;
pub use key::ObjectKey;
pub use keys::KeyWatch;
pub use mailbox::{Change, Changes};
pub use queue::Queue;
pub use transport::in_process;
