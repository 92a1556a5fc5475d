//! What the control loops share: small facts about objects and the wiring of a loop.

pub(crate) mod condition;
pub(crate) mod error;
pub(crate) mod expectations;
pub(crate) mod hash;
pub(crate) mod owner;
pub(crate) mod pod;
#[cfg(test)]
pub(crate) mod testing;
pub(crate) mod wiring;
pub(crate) mod writes;
