//! The texts of condition statuses.

/// The condition holds.
pub(crate) const TRUE: &str = "True";
/// The condition does not hold.
pub(crate) const FALSE: &str = "False";
/// Nobody can tell.
pub(crate) const UNKNOWN: &str = "Unknown";
