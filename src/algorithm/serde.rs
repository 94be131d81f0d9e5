//! Numbers of states that were written down.

use crate::clock::Tick;
use crate::math::MAX_UNITS;
use serde::de::{Deserialize, Deserializer, Error};

/// No more than states count.
pub(super) fn units<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
    match u64::deserialize(deserializer)? {
        units @ ..=MAX_UNITS => Ok(units),
        units => Err(D::Error::custom(format_args!("{units} units are more than can be counted"))),
    }
}

/// No later than a state can have been written.
pub(super) fn instant<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Tick, D::Error> {
    let instant = Tick::deserialize(deserializer)?;
    if instant <= Tick::MAX {
        return Ok(instant);
    }
    Err(D::Error::custom(format_args!("{} is later than any instant", instant.as_micros())))
}
