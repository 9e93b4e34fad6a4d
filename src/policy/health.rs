//! What active checks know of a backend.

use std::num::NonZeroU32;

/// How results of probes become a state.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Settings {
    /// Successes in a row to come up.
    pub rise: NonZeroU32,
    /// Failures in a row to go down.
    pub fall: NonZeroU32,
    /// What a backend is before the first result.
    pub start: Start,
}

/// `health_check.start`
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Start {
    /// Healthy until probes say otherwise.
    Up,
    /// Not healthy until `rise` probes have succeeded.
    Down,
    /// Not healthy until the first probe has ended; then what that says.
    Checked,
}
