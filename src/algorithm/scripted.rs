//! The half of an algorithm that runs in Redis.

use super::{Algorithm, All};
use std::fmt::Write;

/// An [`Algorithm`] that also runs in Redis: by a few lines of Lua that do there what its
/// functions do here.
///
/// Only what changes the state must be told twice. A script reads the state, decides, and
/// records what was taken; it returns the state as it was, from which all the numbers of the
/// [`Decision`](crate::Decision) are derived by the [`Algorithm`], as in process. Where the two
/// do not agree, the decision is an error.
///
/// `examples/own_algorithm.rs` does it in full. See [`Script`] for what the Lua must do.
pub trait Scripted: Algorithm {
    /// Adds the script of this algorithm with the settings that it reads; in a set, those of all
    /// its limits, in order.
    fn script(&self, call: &mut ScriptCall);

    /// Reads the state as the script's `write` section packed it, or as its `view` section did,
    /// where it has one; `None` where it cannot be one.
    fn read_state(&self, stored: &mut StoredState<'_>) -> Option<Self::State>;
}

/// What a call runs: the scripts of the limits, and their settings.
#[derive(Debug, Default)]
pub struct ScriptCall {
    pub(crate) limits: Vec<Script>,
    /// What tells the states of these limits from others': a part of every key.
    pub(crate) shape: String,
    /// Where the last limit begins in it.
    last: usize,
    /// What the script unpacks: doubles.
    pub(crate) numbers: Vec<u8>,
}

impl ScriptCall {
    /// Adds a limit: its script, and the settings in the order in which that reads them. What is
    /// larger than 2^53 - 1 is taken to be that.
    pub fn limit(&mut self, script: Script, settings: &[u64]) {
        if !self.limits.is_empty() {
            self.shape.push('+');
        }
        self.last = self.shape.len();
        push_name(&mut self.shape, script.name);
        // Two limits of one kind must not change places, as their states would.
        if self.limits.iter().any(|other| other.name == script.name) {
            write!(self.shape, "{settings:?}").expect("a String takes it");
        }
        self.limits.push(script);
        settings.iter().for_each(|setting| push_number(&mut self.numbers, *setting));
    }

    /// Names the limit that was added last: by that it is told from others of its kind, whatever
    /// their settings.
    pub(crate) fn name_last(&mut self, name: &str) {
        let script = self.limits.last().expect("a limit is named once it is added");
        self.shape.truncate(self.last);
        push_name(&mut self.shape, name);
        self.shape.push('=');
        push_name(&mut self.shape, script.name);
    }
}

/// Adds a name to a key in Redis: with `%` and two digits for each character that separates the
/// parts of a key, or chooses its slot.
pub(crate) fn push_name(key: &mut String, name: &str) {
    for character in name.chars() {
        if "%:+=[]{}".contains(character) {
            write!(key, "%{:02X}", u32::from(character)).expect("a String takes it");
        } else {
            key.push(character);
        }
    }
}

/// Adds a number as a script unpacks it by `<d`.
#[allow(clippy::cast_precision_loss, reason = "below 2^53")]
pub(crate) fn push_number(numbers: &mut Vec<u8>, number: u64) {
    let number = number.min(MAX_NUMBER) as f64;
    numbers.extend_from_slice(&number.to_le_bytes());
}

/// An algorithm in Lua, as sections that a script is composed of.
///
/// A section begins with a line `--@ NAME`. Each continues in the scope of those before it, so
/// that a local variable of `room` can be used in all others:
///
/// | section | does | leaves in a local variable |
/// |---|---|---|
/// | `room` | reads the settings and the state | `limit`: the most units there ever are; `room`: units that can be taken now, below zero where there is a debt |
/// | `delay` (optional) | for a queue: raises `leaves_at` to the instant at which units that are taken now may go | |
/// | `take` | records that `n` units, 1 or more, are taken | |
/// | `give_back` | records that `n` units, 1 or more, are returned; sets `untouched = true` if there is nothing to return | |
/// | `fresh_after` | says when the state expires | `fresh_after`: in microseconds from `now`; 0 if it has expired but holds an instant, before which a client's clock may be; below 0 if nothing in it counts |
/// | `write` | packs the state | `state`: a string |
/// | `view` (optional) | packs what [`Scripted::read_state`] reads, where that is not the state | `seen`: a string |
///
/// What they find:
///
/// - `now`: the instant, in microseconds since the Unix epoch.
/// - `numbers` and `at`: the settings, and the place of the first one. `room` reads them by
///   `struct.unpack('<d', numbers, at)`, and leaves the place behind them in `at`.
/// - `stored` and `pos`: what is stored, or `false`, and the place of the first byte of this
///   state. `room` leaves the place behind the state in `pos`.
/// - `follow`: true where the server's clock tells the time. If a state was written later than
///   `now`, the clock has gone back: `room` must then move all the state's instants back, and
///   set `moved = true`. Where `follow` is false, `room` sets `now` to that later instant.
/// - `taken_at`, `fresh_at`, `held_until`, `left_at` and `taken`, in `give_back`: what
///   [`Origin`](super::Origin) says of the units: when they were taken, when the limit would have
///   expired without them and with them, when they may have left, and how many they were.
///   `taken_at` is `false` if that is not known.
/// - `mul_div(a, b, m)`: the whole part of `a * b / m`, and the remainder; exact where `a` is
///   below 2^53, `b` and `m` below 2^45.
///
/// A state that says nothing is not stored, so it must not remember even the time: what would
/// not be the same without it shows as a difference between memory and Redis. Hold your two
/// halves against each other, with clocks that go back: `tests/redis_oracle.rs` does.
///
/// Numbers are doubles, so whole ones are exact to 2^53. The state must have the same length
/// always, or tell its length.
///
/// ```
/// use tollgate::Script;
///
/// const ONCE: Script = Script::new(
///     "once",
///     "
/// --@ room
/// local period
/// period, at = struct.unpack('<d', numbers, at)
/// local taken_at = -period
/// if stored then
///   taken_at, pos = struct.unpack('<d', stored, pos)
///   if taken_at > now then
///     if follow then taken_at, moved = now, true else now = taken_at end
///   end
/// end
/// local limit, room = 1, taken_at + period <= now and 1 or 0
/// --@ take
/// taken_at = now
/// --@ give_back
/// if room == 1 then untouched = true end
/// taken_at = now - period
/// --@ fresh_after
/// local fresh_after = taken_at + period - now
/// --@ write
/// local state = struct.pack('<d', taken_at)
/// ",
/// );
/// assert_eq!(ONCE.name(), "once");
/// ```
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct Script {
    name: &'static str,
    source: &'static str,
}

impl Script {
    /// A script of this `name`, which becomes a part of every key in Redis: change it where
    /// the state's form changes.
    #[must_use]
    pub const fn new(name: &'static str, source: &'static str) -> Self {
        Self { name, source }
    }

    /// The name.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        self.name
    }

    /// Whether these are the same; at a glance, where they are of one constant.
    pub(crate) fn is_same(self, other: Self) -> bool {
        std::ptr::eq(self.source, other.source) && self.name == other.name || self == other
    }

    pub(crate) fn section(&self, name: &str) -> Option<&'static str> {
        let sections = self.source.split("--@ ").skip(1);
        let mut named = sections.filter_map(|section| section.split_once('\n'));
        named.find_map(|(title, text)| (title.trim_end() == name).then_some(text))
    }
}

/// The end of the whole numbers of a double.
pub(crate) const MAX_NUMBER: u64 = (1 << 53) - 1;

/// A state as a [`Script`] packed it, read from its beginning.
#[derive(Debug)]
pub struct StoredState<'s>(pub(crate) &'s [u8]);

impl StoredState<'_> {
    /// The next number, packed by `<d`; `None` at the end, or where it is no whole number of 0
    /// to 2^53 - 1.
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "compared")]
    #[allow(clippy::cast_precision_loss, reason = "below 2^53")]
    pub fn number(&mut self) -> Option<u64> {
        let number = f64::from_le_bytes(self.bytes()?);
        let whole = number as u64;
        (whole <= MAX_NUMBER && whole as f64 == number).then_some(whole)
    }

    /// The next number, which may be below zero.
    #[allow(clippy::cast_possible_truncation, clippy::cast_precision_loss, reason = "compared")]
    pub(crate) fn signed(&mut self) -> Option<i64> {
        let number = f64::from_le_bytes(self.bytes()?);
        let whole = number as i64;
        (whole.unsigned_abs() <= MAX_NUMBER && whole as f64 == number).then_some(whole)
    }

    /// The next number, packed by `<I4`.
    pub fn short_number(&mut self) -> Option<u32> {
        Some(u32::from_le_bytes(self.bytes()?))
    }

    fn bytes<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (bytes, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(*bytes)
    }
}

impl<A: Scripted, B: Scripted> Scripted for All<(A, B)> {
    fn script(&self, call: &mut ScriptCall) {
        self.0.0.script(call);
        self.0.1.script(call);
    }

    fn read_state(&self, stored: &mut StoredState<'_>) -> Option<Self::State> {
        Some((self.0.0.read_state(stored)?, self.0.1.read_state(stored)?))
    }
}

impl<A: Scripted> Scripted for All<Vec<A>> {
    fn script(&self, call: &mut ScriptCall) {
        self.0.iter().for_each(|limit| limit.script(call));
    }

    fn read_state(&self, stored: &mut StoredState<'_>) -> Option<Self::State> {
        self.0.iter().map(|limit| limit.read_state(stored)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::Policy;
    use crate::quota::Quota;
    use crate::{SlidingLog, TokenBucket};

    fn shape(limits: &impl Scripted) -> String {
        let mut call = ScriptCall::default();
        limits.script(&mut call);
        call.shape
    }

    #[test]
    fn no_name_is_taken_for_other_limits() {
        let texts = [
            ("10/h", "bucket"),
            ("a: 10/h", "bucket"),
            ("fixed_window 10/h; fixed_window 5/min", "fixed_window+fixed_window[5, 60000000]"),
            ("a: 10/h; b: 5/min", "a=bucket+b=bucket"),
            (
                "a=bucket+b: fixed_window 10/h; fixed_window 5/min",
                "a%3Dbucket%2Bb=fixed_window+fixed_window[5, 60000000]",
            ),
            ("a=bucket+b: 10/h; c: 5/min", "a%3Dbucket%2Bb=bucket+c=bucket"),
            ("a: 10/h; b: 5/min; c: 1/s", "a=bucket+b=bucket+c=bucket"),
            ("a%3D: 10/h; [{a b}]: 5/min", "a%253D=bucket+%5B%7Ba b%7D%5D=bucket"),
        ];
        for (text, expected) in texts {
            assert_eq!(shape(&text.parse::<Policy>().unwrap()), expected, "{text}");
        }
        let quota = Quota::per_hour(10);
        let set = All((TokenBucket::new(quota), SlidingLog::new(quota)));
        assert_eq!(shape(&set), "bucket+sliding_log");
        let mut call = ScriptCall::default();
        call.limit(Script::new("a+b:c", ""), &[]);
        assert_eq!(call.shape, "a%2Bb%3Ac");
    }
}
