//! What the objects of the API *are*: the table of kinds and its rules, all of it pure.
//!
//! No IO, no clock, no async. The API server asks this crate how to read, complete, check, change and show an object;
//! controllers and node ask it for quantities and selectors. Start reading at [`kind`], the row every kind is made of.

#![forbid(unsafe_code)]

pub mod cel;
pub mod custom;
pub mod decode;
pub mod defaults;
pub mod enums;
pub mod field;
pub mod json_path;
pub mod kind;
pub mod kinds;
pub mod metadata;
pub mod names;
pub mod patch;
mod pattern;
pub mod protobuf;
pub mod quantity;
pub mod quota;
pub mod registry;
pub mod schema;
pub mod selector;
pub mod structural;
pub mod table;
