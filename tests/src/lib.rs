//! Placeholder module text, replaced by the first commit of this crate.
