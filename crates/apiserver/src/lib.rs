//! How objects are served: the one pipeline every request of every kind walks through.
//!
//! The way of a write: [`server`] identifies, authenticates and authorises; [`write`] decodes, defaults, admits,
//! validates, keeps the books, encodes once and commits to the store. The way of a read: [`read`] hands out the bytes
//! that [`cache`] holds. What kinds are is the business of `sampan-api`; where they live, of `sampan-store`; this crate
//! is the only one that sees both the store and HTTP.

#![forbid(unsafe_code)]

mod access_log;
mod admission;
mod aggregation;
mod audit;
mod auth;
mod books;
mod bootstrap;
mod cache;
mod certificates;
mod compaction;
mod connect;
mod convert_webhook;
mod custom;
mod delete;
mod discovery;
mod encode;
mod encryption;
mod error;
mod flow;
mod health;
mod listener;
mod metrics;
mod openapi;
mod outbound;
mod pki;
mod proxy;
mod read;
mod request;
mod respond;
mod server;
mod subresource;
mod traces;
mod versions;
mod view;
mod write;

pub use audit::{Audit, Level, LogFile, Policy, Sink, Stage};
pub use auth::User;
pub use auth::authenticate::Authentication;
pub use auth::certificates::FrontProxy;
pub use auth::oidc::{Anonymous, AuthenticationConfiguration, Fetch, JwtAuthenticator};
pub use certificates::serve_certificates;
pub use compaction::compact_regularly;
pub use encryption::{EncryptedStore, Encryption, EncryptionError};
pub use error::ApiError;
pub use listener::{InProcess, serve};
pub use outbound::Resolver;
pub use pki::{Credentials, Pki, PkiError, write_private};
pub use proxy::{NodeConnector, Stream};
pub use respond::{ApiBody, ApiResponse, BodyError, BoxError};
pub use server::{Access, ApiServer, ServerConfig, StartError};
pub use traces::exporter::{Counts as TraceCounts, Exporter as TraceExporter};
pub use traces::layer::SpanLayer;
pub use traces::settings::{Environment as TraceEnvironment, Settings as TraceSettings};
pub use traces::{TARGET as TRACE_TARGET, start as start_traces};
