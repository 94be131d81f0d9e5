//! Limits chosen at run time.

mod name;
#[cfg(feature = "serde")]
mod serde;
mod text;

pub use name::Name;

use crate::algorithm::{
    Admission, Algorithm, All, Binding, BucketState, Description, FixedWindow, FixedWindowState,
    LeakyBucket, Origin, SlidingLog, SlidingLogState, SlidingWindowCounter,
    SlidingWindowCounterState, TokenBucket, Wait,
};
use crate::clock::Tick;
use crate::decision::Decision;
use crate::error::{Error, Kind};

/// One or several limits, chosen at run time: an algorithm that is read from a text.
///
/// # Text
///
/// ```text
/// policy  = limit *( ";" limit )
/// limit   = [ NAME ":" ] [ ALGORITHM ] COUNT "/" [ N ] UNIT [ OPTION ... ]
/// ALGORITHM = token_bucket | leaky_bucket | fixed_window | sliding_log | sliding_window_counter
///             (left out: sliding_window_counter, which is not for small counts: it gives a
///             steady client about one unit less in each period)
/// UNIT    = ms | s | sec | second(s) | m | min | minute(s) | h | hour(s) | d | day(s)
/// OPTION  = burst COUNT (token_bucket) | capacity COUNT (leaky_bucket) | nodelay (leaky_bucket)
/// ```
///
/// `100/minute`, `token_bucket 1/2s burst 3`,
/// `burst: token_bucket 10/s burst 20; daily: fixed_window 5000/day`. Spaces do not matter.
/// Everything is in lower case, but names. [`Display`](std::fmt::Display) writes a text that reads as
/// the same policy.
///
/// A limit without a name is called by its text, so of two of the same text one needs a name.
///
/// # Configuration files
///
/// Under the `serde` feature a policy is read from such a text, from a table, or from a list
/// of either; it is written as a text. In TOML, these are the same:
///
/// ```toml
/// policy = "token_bucket 10/s burst 20; daily: fixed_window 5000/day"
///
/// policy = [
///     { algorithm = "token_bucket", quota = "10/s", burst = 20 },
///     { algorithm = "fixed_window", quota = "5000/day", name = "daily" },
/// ]
/// ```
///
/// `quota` is required. `burst` goes with `token_bucket`, `capacity` and `nodelay = true` with
/// `leaky_bucket`.
///
/// # Examples
///
/// ```
/// use tollgate::{Limiter, Policy};
///
/// let policy: Policy = "10/s; daily: fixed_window 5000/day".parse()?;
/// let limiter = Limiter::new(policy);
/// assert!(limiter.check_n("alice", 10).is_allowed());
///
/// let refused = limiter.check("alice");
/// assert!(!refused.is_allowed());
/// assert_eq!(limiter.algorithm().name(&refused).as_str(), "10/s");
/// # Ok::<(), tollgate::Error>(())
/// ```
///
/// The same without a text:
///
/// ```
/// use tollgate::{FixedWindow, Limit, Policy, Quota, TokenBucket};
///
/// let policy = Policy::all([
///     Limit::from(TokenBucket::new(Quota::per_second(10)).burst(20)).named("burst")?,
///     Limit::from(FixedWindow::new(Quota::per_day(5000))).named("daily")?,
/// ])?;
/// assert_eq!(policy.to_string(), "burst: token_bucket 10/s burst 20; daily: fixed_window 5000/d");
/// # Ok::<(), tollgate::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Policy(Choice);

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Choice {
    One(Limit),
    /// Two limits or more, of different names.
    Set(All<Vec<Limit>>),
}

/// What a [`Policy`] keeps for a key.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(::serde::Serialize, ::serde::Deserialize))]
pub struct PolicyState(ChoiceState);

#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(::serde::Serialize, ::serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "snake_case"))]
enum ChoiceState {
    #[default]
    Fresh,
    One(LimitState),
    Set(Box<[LimitState]>),
}

impl Policy {
    /// All of the `limits` at once, all or nothing.
    ///
    /// # Errors
    ///
    /// Where there is no limit, or where two of them have the same name.
    pub fn all(limits: impl IntoIterator<Item = Limit>) -> Result<Self, Error> {
        let mut limits: Vec<Limit> = limits.into_iter().collect();
        let names: Vec<Name> = limits.iter().map(Limit::label).collect();
        for (index, name) in names.iter().enumerate() {
            if names[..index].contains(name) {
                return Err(Kind::SameName { name: name.to_string(), index }.into());
            }
        }
        match limits.len() {
            0 => Err(Kind::NoLimit.into()),
            1 => Ok(Self(Choice::One(limits.remove(0)))),
            _ => Ok(Self(Choice::Set(All(limits)))),
        }
    }

    /// The limits, in order; at least one.
    #[must_use]
    pub fn limits(&self) -> &[Limit] {
        match &self.0 {
            Choice::One(limit) => std::slice::from_ref(limit),
            Choice::Set(All(limits)) => limits,
        }
    }

    /// What the limit is called that binds in a `decision` of this policy: its name, or its
    /// text where it has none.
    ///
    /// # Panics
    ///
    /// Where the decision was made by another policy, with more limits.
    #[must_use]
    pub fn name(&self, decision: &Decision) -> Name {
        self.limits()[decision.binding()].label()
    }
}

impl<L: Into<Limit>> From<L> for Policy {
    fn from(limit: L) -> Self {
        Self(Choice::One(limit.into()))
    }
}

/// Evaluates `$body` with the limit or the set of limits, and the state that belongs to it.
macro_rules! choose {
    ($policy:expr, $state:expr, |$algorithm:ident, $s:ident| $body:expr) => {
        match (&$policy.0, &$state.0) {
            (Choice::One($algorithm), ChoiceState::One($s)) => $body,
            (Choice::Set($algorithm), ChoiceState::Set($s)) if $s.len() == $algorithm.0.len() => {
                $body
            }
            (Choice::One($algorithm), ChoiceState::Fresh) => {
                let $s = &LimitState::default();
                $body
            }
            (Choice::Set($algorithm), ChoiceState::Fresh) => {
                let $s = &Box::default();
                $body
            }
            (Choice::One($algorithm), ChoiceState::Set(states)) => {
                let $s = &most_consumed(states);
                $body
            }
            (Choice::Set($algorithm), ChoiceState::One(state)) => {
                let $s = &$algorithm.each(state);
                $body
            }
            (Choice::Set($algorithm), ChoiceState::Set(states)) => {
                let $s = &$algorithm.each(&most_consumed(states));
                $body
            }
        }
    };
}

/// Evaluates `$body` with the limit or the set of limits, and the state that belongs to it, to be
/// changed.
macro_rules! change {
    ($policy:expr, $state:expr, |$algorithm:ident, $s:ident| $body:expr) => {{
        if !$policy.owns($state) {
            $policy.own($state);
        }
        match (&$policy.0, &mut $state.0) {
            (Choice::One($algorithm), ChoiceState::One($s)) => $body,
            (Choice::Set($algorithm), ChoiceState::Set($s)) => $body,
            _ => unreachable!("the state is the policy's own"),
        }
    }};
}

/// What a single limit reads in the place of the states of several.
fn most_consumed(states: &[LimitState]) -> LimitState {
    states.iter().max_by_key(|state| state.consumed()).cloned().unwrap_or_default()
}

impl Policy {
    #[inline]
    fn owns(&self, state: &PolicyState) -> bool {
        match (&self.0, &state.0) {
            (Choice::One(_), ChoiceState::One(_)) => true,
            (Choice::Set(All(limits)), ChoiceState::Set(states)) => limits.len() == states.len(),
            _ => false,
        }
    }

    /// Makes the state one of this policy's own.
    fn own(&self, state: &mut PolicyState) {
        state.0 = match (&self.0, std::mem::take(&mut state.0)) {
            (Choice::One(_), ChoiceState::Fresh) => ChoiceState::One(LimitState::default()),
            (Choice::Set(set), ChoiceState::Fresh) => {
                ChoiceState::Set(set.each(&LimitState::default()))
            }
            (Choice::One(_), ChoiceState::Set(states)) => ChoiceState::One(most_consumed(&states)),
            (Choice::Set(set), ChoiceState::One(state)) => ChoiceState::Set(set.each(&state)),
            (Choice::Set(set), ChoiceState::Set(states)) if states.len() != set.0.len() => {
                ChoiceState::Set(set.each(&most_consumed(&states)))
            }
            (_, own) => own,
        };
    }
}

/// A state that another policy made is read as one of this policy's: what was consumed stays
/// consumed. Between algorithms, units count as taken when the state was last written; where the
/// number of limits differs, as much as any of them consumed counts for each.
impl Algorithm for Policy {
    type State = PolicyState;

    fn limit(&self) -> u64 {
        match &self.0 {
            Choice::One(limit) => limit.limit(),
            Choice::Set(set) => set.limit(),
        }
    }

    fn room(&self, state: &PolicyState, now: Tick) -> u64 {
        choose!(self, state, |choice, s| choice.room(s, now))
    }

    fn wait(&self, state: &PolicyState, n: u64, now: Tick) -> Wait {
        choose!(self, state, |choice, s| choice.wait(s, n, now))
    }

    fn take(&self, state: &mut PolicyState, n: u64, now: Tick) {
        change!(self, state, |choice, s| choice.take(s, n, now));
    }

    fn admit(&self, state: &mut PolicyState, n: u64, now: Tick) -> Admission {
        // What is not its own is made so only when units are taken.
        if !self.owns(state) {
            return Admission::by_parts(self, state, n, now);
        }
        change!(self, state, |choice, s| choice.admit(s, n, now))
    }

    fn give_back(&self, state: &mut PolicyState, n: u64, origin: Option<Origin<'_>>, now: Tick) {
        if !matches!(state.0, ChoiceState::Fresh) {
            change!(self, state, |choice, s| choice.give_back(s, n, origin, now));
        }
    }

    fn instant(&self, state: &PolicyState, now: Tick) -> Tick {
        choose!(self, state, |choice, s| choice.instant(s, now))
    }

    fn debt(&self, state: &PolicyState, now: Tick) -> u64 {
        choose!(self, state, |choice, s| choice.debt(s, now))
    }

    fn overdraw(&self, state: &mut PolicyState, n: u64, now: Tick) {
        change!(self, state, |choice, s| choice.overdraw(s, n, now));
    }

    fn each_fresh_after(&self, state: &PolicyState, now: Tick, told: &mut Vec<u64>) {
        choose!(self, state, |choice, s| choice.each_fresh_after(s, now, told));
    }

    /// Limit by limit, where there are as many; otherwise the state stays as it is.
    fn scale(&self, old: &Self, state: &mut PolicyState, now: Tick) {
        match (&self.0, &old.0, &mut state.0) {
            (Choice::One(limit), Choice::One(old), ChoiceState::One(s)) => limit.scale(old, s, now),
            (Choice::Set(set), Choice::Set(old), ChoiceState::Set(s)) => set.scale(old, s, now),
            _ => {}
        }
    }

    fn fresh_after(&self, state: &PolicyState, now: Tick) -> u64 {
        choose!(self, state, |choice, s| choice.fresh_after(s, now))
    }

    fn delay(&self, state: &PolicyState, now: Tick) -> u64 {
        choose!(self, state, |choice, s| choice.delay(s, now))
    }

    fn binding(&self, state: &PolicyState, n: u64, now: Tick) -> Binding {
        choose!(self, state, |choice, s| choice.binding(s, n, now))
    }

    fn limit_count(&self) -> usize {
        self.limits().len()
    }

    /// Limits without a name are called by their text where there are several.
    fn describe(&self) -> Vec<Description> {
        match &self.0 {
            Choice::One(limit) => limit.describe(),
            Choice::Set(All(limits)) => limits
                .iter()
                .flat_map(|limit| {
                    let name = limit.label();
                    limit.describe().into_iter().map(move |description| Description {
                        name: Some(name.clone()),
                        ..description
                    })
                })
                .collect(),
        }
    }
}

/// One of the five algorithms, chosen at run time, with or without a name.
///
/// ```
/// use tollgate::{FixedWindow, Limit, Quota};
///
/// let limit = Limit::from(FixedWindow::new(Quota::per_day(5000))).named("daily")?;
/// assert_eq!(limit.to_string(), "daily: fixed_window 5000/d");
/// # Ok::<(), tollgate::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Limit {
    name: Option<Name>,
    algorithm: AnyAlgorithm,
}

impl Limit {
    /// The same limit, called `name`.
    ///
    /// # Errors
    ///
    /// Where `name` cannot be a [`Name`].
    pub fn named(self, name: &str) -> Result<Self, Error> {
        Ok(Self { name: Some(Name::new(name)?), ..self })
    }

    /// The limit's name, where it was given one.
    #[must_use]
    pub fn name(&self) -> Option<&str> {
        self.name.as_ref().map(Name::as_str)
    }

    /// The name, or the text in its place.
    fn label(&self) -> Name {
        self.name.clone().unwrap_or_else(|| Name::from_text_of(self))
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum AnyAlgorithm {
    TokenBucket(TokenBucket),
    LeakyBucket(LeakyBucket),
    FixedWindow(FixedWindow),
    SlidingLog(SlidingLog),
    SlidingWindowCounter(SlidingWindowCounter),
}

/// What a [`Limit`] keeps for a key.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(::serde::Serialize, ::serde::Deserialize))]
pub struct LimitState(AnyState);

#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(::serde::Serialize, ::serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "snake_case"))]
enum AnyState {
    #[default]
    Fresh,
    Bucket(BucketState),
    FixedWindow(FixedWindowState),
    /// Boxed, so that the others do not grow to its size.
    SlidingLog(Box<SlidingLogState>),
    SlidingWindowCounter(SlidingWindowCounterState),
}

macro_rules! limit_from {
    ($($algorithm:ident),*) => {$(
        impl From<$algorithm> for Limit {
            fn from(algorithm: $algorithm) -> Self {
                Self { name: None, algorithm: AnyAlgorithm::$algorithm(algorithm) }
            }
        }
    )*};
}

limit_from!(TokenBucket, LeakyBucket, FixedWindow, SlidingLog, SlidingWindowCounter);

/// Evaluates `$body` with the algorithm of a limit, and with the state that belongs to it where
/// one is given.
macro_rules! each {
    ($limit:expr, |$a:ident| $body:expr) => {
        match &$limit.algorithm {
            AnyAlgorithm::TokenBucket($a) => $body,
            AnyAlgorithm::LeakyBucket($a) => $body,
            AnyAlgorithm::FixedWindow($a) => $body,
            AnyAlgorithm::SlidingLog($a) => $body,
            AnyAlgorithm::SlidingWindowCounter($a) => $body,
        }
    };
    ($limit:expr, $state:expr, |$a:ident, $s:ident| $body:expr) => {
        match (&$limit.algorithm, $state) {
            (AnyAlgorithm::TokenBucket($a), AnyState::Bucket($s)) => $body,
            (AnyAlgorithm::LeakyBucket($a), AnyState::Bucket($s)) => $body,
            (AnyAlgorithm::FixedWindow($a), AnyState::FixedWindow($s)) => $body,
            (AnyAlgorithm::SlidingLog($a), AnyState::SlidingLog($s)) => $body,
            (AnyAlgorithm::SlidingWindowCounter($a), AnyState::SlidingWindowCounter($s)) => $body,
            _ => unreachable!("the state is the limit's own"),
        }
    };
}

/// Reads what is `$told` of a state: of one of another algorithm, as if it were the limit's own.
macro_rules! read {
    ($limit:expr, $state:expr, |$a:ident, $s:ident| $told:expr) => {
        if matches!($state.0, AnyState::Fresh) {
            each!($limit, |$a| {
                let $s = &Default::default();
                $told
            })
        } else if $limit.owns($state) {
            each!($limit, &$state.0, |$a, $s| $told)
        } else {
            each!($limit, &$limit.own($state).0, |$a, $s| $told)
        }
    };
}

/// Changes a state, which becomes one of the limit's own.
macro_rules! change_limit {
    ($limit:expr, $state:expr, |$a:ident, $s:ident| $body:expr) => {{
        if !$limit.owns($state) {
            *$state = $limit.own($state);
        }
        each!($limit, &mut $state.0, |$a, $s| $body)
    }};
}

impl LimitState {
    /// The units that it says were taken, and when it was last written.
    fn consumed(&self) -> (u64, Tick) {
        match &self.0 {
            AnyState::Fresh => (0, Tick::default()),
            AnyState::Bucket(state) => state.consumed(),
            AnyState::FixedWindow(state) => state.consumed(),
            AnyState::SlidingLog(state) => state.consumed(),
            AnyState::SlidingWindowCounter(state) => state.consumed(),
        }
    }
}

impl Limit {
    #[inline]
    fn owns(&self, state: &LimitState) -> bool {
        matches!(
            (&self.algorithm, &state.0),
            (AnyAlgorithm::TokenBucket(_) | AnyAlgorithm::LeakyBucket(_), AnyState::Bucket(_))
                | (AnyAlgorithm::FixedWindow(_), AnyState::FixedWindow(_))
                | (AnyAlgorithm::SlidingLog(_), AnyState::SlidingLog(_))
                | (AnyAlgorithm::SlidingWindowCounter(_), AnyState::SlidingWindowCounter(_))
        )
    }

    /// A state of this limit's own, in which as many units are taken.
    fn own(&self, state: &LimitState) -> LimitState {
        let mut own = LimitState(match &self.algorithm {
            AnyAlgorithm::TokenBucket(_) | AnyAlgorithm::LeakyBucket(_) => {
                AnyState::Bucket(BucketState::default())
            }
            AnyAlgorithm::FixedWindow(_) => AnyState::FixedWindow(FixedWindowState::default()),
            AnyAlgorithm::SlidingLog(_) => AnyState::SlidingLog(Box::default()),
            AnyAlgorithm::SlidingWindowCounter(_) => {
                AnyState::SlidingWindowCounter(SlidingWindowCounterState::default())
            }
        });
        let (units, at) = state.consumed();
        if units > 0 {
            each!(self, &mut own.0, |a, s| a.take(s, units, at));
        }
        own
    }
}

impl Algorithm for Limit {
    type State = LimitState;

    fn limit(&self) -> u64 {
        each!(self, |a| a.limit())
    }

    fn room(&self, state: &LimitState, now: Tick) -> u64 {
        read!(self, state, |a, s| a.room(s, now))
    }

    fn wait(&self, state: &LimitState, n: u64, now: Tick) -> Wait {
        read!(self, state, |a, s| a.wait(s, n, now))
    }

    fn take(&self, state: &mut LimitState, n: u64, now: Tick) {
        change_limit!(self, state, |a, s| a.take(s, n, now));
    }

    fn admit(&self, state: &mut LimitState, n: u64, now: Tick) -> Admission {
        if !self.owns(state) {
            return Admission::by_parts(self, state, n, now);
        }
        change_limit!(self, state, |a, s| a.admit(s, n, now))
    }

    fn give_back(&self, state: &mut LimitState, n: u64, origin: Option<Origin<'_>>, now: Tick) {
        if !matches!(state.0, AnyState::Fresh) {
            change_limit!(self, state, |a, s| a.give_back(s, n, origin, now));
        }
    }

    fn instant(&self, state: &LimitState, now: Tick) -> Tick {
        read!(self, state, |a, s| a.instant(s, now))
    }

    fn debt(&self, state: &LimitState, now: Tick) -> u64 {
        read!(self, state, |a, s| a.debt(s, now))
    }

    fn overdraw(&self, state: &mut LimitState, n: u64, now: Tick) {
        change_limit!(self, state, |a, s| a.overdraw(s, n, now));
    }

    fn fresh_after(&self, state: &LimitState, now: Tick) -> u64 {
        read!(self, state, |a, s| a.fresh_after(s, now))
    }

    fn delay(&self, state: &LimitState, now: Tick) -> u64 {
        read!(self, state, |a, s| a.delay(s, now))
    }

    fn describe(&self) -> Vec<Description> {
        let mut limits = each!(self, |a| a.describe());
        for limit in &mut limits {
            limit.name.clone_from(&self.name);
        }
        limits
    }
}

#[cfg(feature = "redis")]
mod in_redis {
    use super::{
        AnyAlgorithm, AnyState, Choice, ChoiceState, Limit, LimitState, Policy, PolicyState,
    };
    use crate::algorithm::{ScriptCall, Scripted, StoredState};

    impl Scripted for Policy {
        fn script(&self, call: &mut ScriptCall) {
            match &self.0 {
                Choice::One(limit) => each!(limit, |a| a.script(call)),
                Choice::Set(set) => set.script(call),
            }
        }

        fn read_state(&self, stored: &mut StoredState<'_>) -> Option<PolicyState> {
            Some(PolicyState(match &self.0 {
                Choice::One(limit) => ChoiceState::One(limit.read_state(stored)?),
                Choice::Set(set) => ChoiceState::Set(set.read_state(stored)?),
            }))
        }
    }

    impl Scripted for Limit {
        fn script(&self, call: &mut ScriptCall) {
            each!(self, |a| a.script(call));
            if let Some(name) = self.name() {
                call.name_last(name);
            }
        }

        fn read_state(&self, stored: &mut StoredState<'_>) -> Option<LimitState> {
            Some(LimitState(match &self.algorithm {
                AnyAlgorithm::TokenBucket(a) => AnyState::Bucket(a.read_state(stored)?),
                AnyAlgorithm::LeakyBucket(a) => AnyState::Bucket(a.read_state(stored)?),
                AnyAlgorithm::FixedWindow(a) => AnyState::FixedWindow(a.read_state(stored)?),
                AnyAlgorithm::SlidingLog(a) => {
                    AnyState::SlidingLog(Box::new(a.read_state(stored)?))
                }
                AnyAlgorithm::SlidingWindowCounter(a) => {
                    AnyState::SlidingWindowCounter(a.read_state(stored)?)
                }
            }))
        }
    }
}
