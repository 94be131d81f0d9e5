//! Limits chosen at run time.

mod name;
#[cfg(feature = "serde")]
mod serde;
mod text;

pub use name::Name;

use crate::algorithm::{
    Admission, Algorithm, All, Binding, BucketState, Departure, Description, FixedWindow,
    FixedWindowState, LeakyBucket, Origin, SlidingLog, SlidingLogState, SlidingWindowCounter,
    SlidingWindowCounterState, TokenBucket, Wait,
};
use crate::clock::Tick;
use crate::decision::Decision;
use crate::error::{Error, Kind};
use std::collections::HashSet;

/// One or several limits, chosen at run time: an algorithm that is read from a text.
///
/// # Text
///
/// ```text
/// policy  = limit *( ";" limit )
/// limit   = [ NAME ":" ] [ ALGORITHM ] COUNT "/" [ N ] UNIT [ OPTION ... ]
/// ALGORITHM = token_bucket | leaky_bucket | fixed_window | sliding_log | sliding_window_counter
///             (token_bucket if left out)
/// UNIT    = ms | s | sec | second(s) | m | min | minute(s) | h | hour(s) | d | day(s)
/// OPTION  = burst COUNT (token_bucket) | capacity COUNT (leaky_bucket) | nodelay (leaky_bucket)
/// ```
///
/// `100/minute`, `1/2s burst 3`,
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
/// `leaky_bucket`. Binary formats (postcard, bincode, CBOR, MessagePack) hold the text alone.
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
        let mut names = HashSet::with_capacity(limits.len());
        for (index, limit) in limits.iter().enumerate() {
            if let Some(name) = names.replace(limit.label()) {
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

/// Evaluates `$body` with the limit or the set of limits, and the state that belongs to it, to be
/// changed.
macro_rules! change {
    ($policy:expr, $state:expr, |$algorithm:ident, $s:ident| $body:expr) => {{
        if !$policy.owns($state) {
            $state.0 = $policy.own($state);
        }
        match (&$policy.0, &mut $state.0) {
            (Choice::One($algorithm), ChoiceState::One($s)) => $body,
            (Choice::Set($algorithm), ChoiceState::Set($s)) => $body,
            _ => unreachable!("the state is the policy's own"),
        }
    }};
}

impl PolicyState {
    /// That of each limit; none if nothing was taken yet.
    fn of_limits(&self) -> &[LimitState] {
        match &self.0 {
            ChoiceState::Fresh => &[],
            ChoiceState::One(state) => std::slice::from_ref(state),
            ChoiceState::Set(states) => states,
        }
    }
}

/// What a single limit reads in the place of the states of several.
fn most_consumed<'a>(states: impl Iterator<Item = &'a LimitState>) -> Option<&'a LimitState> {
    states.max_by_key(|state| state.consumed())
}

/// Which of the limits or states of another policy stand for those of this one.
struct Counterparts {
    /// For each of its limits, if there is one.
    of_limits: Vec<Option<usize>>,
    /// Those that do not stand for one limit.
    others: Vec<usize>,
}

impl Counterparts {
    /// The state that the limit at `index` reads.
    fn state<'a>(&self, index: usize, states: &'a [LimitState]) -> Option<&'a LimitState> {
        match self.of_limits[index] {
            Some(counterpart) => states.get(counterpart),
            None => most_consumed(self.others.iter().filter_map(|&other| states.get(other))),
        }
    }
}

impl Policy {
    #[inline]
    fn owns(&self, state: &PolicyState) -> bool {
        match (&self.0, &state.0) {
            (Choice::One(_), ChoiceState::One(_)) => true,
            (Choice::Set(All(limits)), ChoiceState::Set(states)) => {
                let is_own = |(limit, state): (&Limit, &LimitState)| {
                    state.label().is_none_or(|label| label == limit.label_hash)
                };
                (states.is_empty() || states.len() == limits.len())
                    && limits.iter().zip(states).all(is_own)
            }
            _ => false,
        }
    }

    /// Those of the same label, and the others in order if there are as many.
    fn counterparts(&self, labels: impl Iterator<Item = Option<LabelHash>>) -> Counterparts {
        let limits = self.limits();
        let mut of_limits = vec![None; limits.len()];
        let mut others = Vec::new();
        for (index, label) in labels.enumerate() {
            let is_of = |limit: &Limit| label == Some(limit.label_hash);
            match limits.iter().position(is_of) {
                Some(limit) if of_limits[limit].is_none() => of_limits[limit] = Some(index),
                _ => others.push(index),
            }
        }
        let without = of_limits.iter().filter(|counterpart| counterpart.is_none()).count();
        if without == others.len() {
            let mut in_order = others.drain(..);
            for counterpart in &mut of_limits {
                *counterpart = counterpart.or_else(|| in_order.next());
            }
        }
        Counterparts { of_limits, others }
    }

    /// Whether each state stands for the limit at its own place, as after most replacements:
    /// [`counterparts`](Self::counterparts) without an allocation.
    fn are_in_place(&self, states: &[LimitState]) -> bool {
        let limits = self.limits();
        let is_in_place = |(limit, state): (&Limit, &LimitState)| {
            state.label().is_none_or(|label| {
                label == limit.label_hash || limits.iter().all(|limit| label != limit.label_hash)
            })
        };
        states.is_empty()
            || states.len() == limits.len() && limits.iter().zip(states).all(is_in_place)
    }

    /// Reads the state that stands for each limit, and joins the results.
    #[inline]
    fn join<R>(
        &self,
        state: &PolicyState,
        mut read: impl FnMut(&Limit, &LimitState) -> R,
        join: impl FnMut(R, R) -> R,
    ) -> R {
        if let (Choice::One(limit), ChoiceState::One(state)) = (&self.0, &state.0) {
            return read(limit, state);
        }
        let states = state.of_limits();
        let moved = (!self.are_in_place(states)).then(|| self.counterparts_in(states));
        let results = self.limits().iter().enumerate().map(|(index, limit)| {
            let state = match &moved {
                None => states.get(index),
                Some(counterparts) => counterparts.state(index, states),
            };
            read(limit, state.unwrap_or(&LimitState(AnyState::Fresh)))
        });
        results.reduce(join).expect("a policy has at least one limit")
    }

    fn counterparts_in(&self, states: &[LimitState]) -> Counterparts {
        self.counterparts(states.iter().map(LimitState::label))
    }

    /// A state of this policy's own in the place of another policy's.
    fn own(&self, state: &PolicyState) -> ChoiceState {
        let states = state.of_limits();
        let counterparts = self.counterparts_in(states);
        let own = |index| counterparts.state(index, states).cloned().unwrap_or_default();
        self.state_of((0..self.limits().len()).map(own))
    }

    /// The state that is made of those of its limits; each knows whose it is, also if nothing is used.
    fn state_of(&self, states: impl Iterator<Item = LimitState>) -> ChoiceState {
        let mut states = self.limits().iter().zip(states).map(|(limit, mut state)| {
            if matches!(state.0, AnyState::Fresh) {
                return limit.own(&state);
            }
            state.set_label(limit.label_hash);
            state
        });
        match &self.0 {
            Choice::One(_) => ChoiceState::One(states.next().unwrap_or_default()),
            Choice::Set(_) => ChoiceState::Set(states.collect()),
        }
    }
}

/// A state that another policy made is read as one of this policy's: what was consumed stays
/// consumed. Limits of the same name, or without one of the same text, are the same. Of the others, those
/// of the one policy stand for those of the other in their order, if there are as many; otherwise as much
/// as any of the old ones consumed counts for each new one. Between algorithms, units count as taken
/// when the state was last written.
impl Algorithm for Policy {
    type State = PolicyState;

    fn limit(&self) -> u64 {
        match &self.0 {
            Choice::One(limit) => limit.limit(),
            Choice::Set(set) => set.limit(),
        }
    }

    fn room(&self, state: &PolicyState, now: Tick) -> u64 {
        self.join(state, |limit, s| limit.room(s, now), u64::min)
    }

    fn wait(&self, state: &PolicyState, n: u64, now: Tick) -> Wait {
        self.join(state, |limit, s| limit.wait(s, n, now), Wait::max)
    }

    fn take(&self, state: &mut PolicyState, n: u64, now: Tick) {
        change!(self, state, |choice, s| choice.take(s, n, now));
    }

    fn take_to_go(&self, state: &mut PolicyState, n: u64, now: Tick, departure: Departure) {
        change!(self, state, |choice, s| choice.take_to_go(s, n, now, departure));
    }

    fn forgive(&self, state: &mut PolicyState, now: Tick) {
        change!(self, state, |choice, s| choice.forgive(s, now));
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
        self.join(state, |limit, s| limit.instant(s, now), Tick::min)
    }

    fn debt(&self, state: &PolicyState, now: Tick) -> u64 {
        self.join(state, |limit, s| limit.debt(s, now), u64::max)
    }

    fn overdraw(&self, state: &mut PolicyState, n: u64, now: Tick) {
        change!(self, state, |choice, s| choice.overdraw(s, n, now));
    }

    fn fits(&self, state: &PolicyState, latest: Tick) -> bool {
        state.of_limits().iter().all(|state| state.written_at() <= latest)
    }

    fn each_fresh_after(&self, state: &PolicyState, now: Tick, told: &mut Vec<u64>) {
        self.join(state, |limit, s| limit.each_fresh_after(s, now, told), |(), ()| ());
    }

    /// Limit by limit; where it is not clear which old limit a new one stands for, as it is.
    fn scale(&self, old: &Self, state: &mut PolicyState, now: Tick) {
        if !old.owns(state) {
            state.0 = old.own(state);
        }
        let states = state.of_limits();
        let labels = old.limits().iter().map(|limit| Some(limit.label_hash));
        let counterparts = self.counterparts(labels);
        let scaled = self.limits().iter().enumerate().map(|(index, limit)| {
            let mut state = counterparts.state(index, states).cloned().unwrap_or_default();
            if let Some(counterpart) = counterparts.of_limits[index] {
                limit.scale(&old.limits()[counterpart], &mut state, now);
            }
            state
        });
        state.0 = self.state_of(scaled);
    }

    fn fresh_after(&self, state: &PolicyState, now: Tick) -> u64 {
        self.join(state, |limit, s| limit.fresh_after(s, now), u64::max)
    }

    fn departure(&self, state: &PolicyState, now: Tick) -> Departure {
        self.join(state, |limit, s| limit.departure(s, now), Departure::later)
    }

    fn binding(&self, state: &PolicyState, n: u64, now: Tick) -> Binding {
        let mut indices = 0..self.limit_count();
        let binding = |limit: &Limit, s: &LimitState| {
            let index = indices.next().unwrap_or_default();
            Binding { index, ..limit.binding(s, n, now) }
        };
        self.join(state, binding, Binding::stricter)
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
    /// Of its label: by it, its states are known.
    label_hash: LabelHash,
}

/// A hash that is the same in every process: FNV-1a, of 32 bits.
type LabelHash = u32;

impl Limit {
    fn new(name: Option<Name>, algorithm: AnyAlgorithm) -> Self {
        let mut limit = Self { name, algorithm, label_hash: 0 };
        let mix = |hash: LabelHash, byte| (hash ^ LabelHash::from(byte)).wrapping_mul(0x0100_0193);
        limit.label_hash = limit.label().as_str().bytes().fold(0x811c_9dc5, mix);
        limit
    }

    /// The same limit, called `name`.
    ///
    /// # Errors
    ///
    /// Where `name` cannot be a [`Name`].
    pub fn named(self, name: &str) -> Result<Self, Error> {
        Ok(Self::new(Some(Name::new(name)?), self.algorithm))
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
    Bucket(LabelHash, BucketState),
    FixedWindow(LabelHash, FixedWindowState),
    /// Boxed, so that the others do not grow to its size.
    SlidingLog(LabelHash, Box<SlidingLogState>),
    SlidingWindowCounter(LabelHash, SlidingWindowCounterState),
}

macro_rules! limit_from {
    ($($algorithm:ident),*) => {$(
        impl From<$algorithm> for Limit {
            fn from(algorithm: $algorithm) -> Self {
                Self::new(None, AnyAlgorithm::$algorithm(algorithm))
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
            (AnyAlgorithm::TokenBucket($a), AnyState::Bucket(_, $s)) => $body,
            (AnyAlgorithm::LeakyBucket($a), AnyState::Bucket(_, $s)) => $body,
            (AnyAlgorithm::FixedWindow($a), AnyState::FixedWindow(_, $s)) => $body,
            (AnyAlgorithm::SlidingLog($a), AnyState::SlidingLog(_, $s)) => $body,
            (AnyAlgorithm::SlidingWindowCounter($a), AnyState::SlidingWindowCounter(_, $s)) => {
                $body
            }
            _ => unreachable!("the state is the limit's own"),
        }
    };
}

/// Reads what is `$told` of a state: of one of another algorithm, as if it were the limit's own.
macro_rules! read {
    ($limit:expr, $state:expr, |$a:ident, $s:ident| $told:expr) => {
        if $limit.owns($state) {
            each!($limit, &$state.0, |$a, $s| $told)
        } else {
            each!($limit, |$a| {
                let $s = &$state.taken_by($a);
                $told
            })
        }
    };
}

/// Changes a state, which becomes one of the limit's own.
macro_rules! change_limit {
    ($limit:expr, $state:expr, |$a:ident, $s:ident| $body:expr) => {{
        if !$limit.owns($state) {
            *$state = $limit.own($state);
        }
        $state.set_label($limit.label_hash);
        each!($limit, &mut $state.0, |$a, $s| $body)
    }};
}

impl LimitState {
    /// Of the limit that changed it last; none if nothing was taken yet.
    #[inline]
    fn label(&self) -> Option<LabelHash> {
        let Self(state) = self;
        match *state {
            AnyState::Fresh => None,
            AnyState::Bucket(label, _)
            | AnyState::FixedWindow(label, _)
            | AnyState::SlidingLog(label, _)
            | AnyState::SlidingWindowCounter(label, _) => Some(label),
        }
    }

    #[inline]
    fn set_label(&mut self, new: LabelHash) {
        match &mut self.0 {
            AnyState::Fresh => {}
            AnyState::Bucket(label, _)
            | AnyState::FixedWindow(label, _)
            | AnyState::SlidingLog(label, _)
            | AnyState::SlidingWindowCounter(label, _) => *label = new,
        }
    }

    /// The units that it says were taken, and when it was last written.
    fn consumed(&self) -> (u64, Tick) {
        match &self.0 {
            AnyState::Fresh => (0, Tick::default()),
            AnyState::Bucket(_, state) => state.consumed(),
            AnyState::FixedWindow(_, state) => state.consumed(),
            AnyState::SlidingLog(_, state) => state.consumed(),
            AnyState::SlidingWindowCounter(_, state) => state.consumed(),
        }
    }

    fn written_at(&self) -> Tick {
        self.consumed().1
    }

    /// A state of this algorithm in which as many units are taken.
    fn taken_by<A: Algorithm>(&self, algorithm: &A) -> A::State {
        let mut state = A::State::default();
        let (units, at) = self.consumed();
        if units > 0 {
            algorithm.take(&mut state, units, at);
        }
        state
    }
}

impl Limit {
    #[inline]
    fn owns(&self, state: &LimitState) -> bool {
        matches!(
            (&self.algorithm, &state.0),
            (AnyAlgorithm::TokenBucket(_) | AnyAlgorithm::LeakyBucket(_), AnyState::Bucket(..))
                | (AnyAlgorithm::FixedWindow(_), AnyState::FixedWindow(..))
                | (AnyAlgorithm::SlidingLog(_), AnyState::SlidingLog(..))
                | (AnyAlgorithm::SlidingWindowCounter(_), AnyState::SlidingWindowCounter(..))
        )
    }

    /// A state of this limit's own, in which as many units are taken.
    fn own(&self, state: &LimitState) -> LimitState {
        let label = self.label_hash;
        LimitState(match &self.algorithm {
            AnyAlgorithm::TokenBucket(a) => AnyState::Bucket(label, state.taken_by(a)),
            AnyAlgorithm::LeakyBucket(a) => AnyState::Bucket(label, state.taken_by(a)),
            AnyAlgorithm::FixedWindow(a) => AnyState::FixedWindow(label, state.taken_by(a)),
            AnyAlgorithm::SlidingLog(a) => AnyState::SlidingLog(label, Box::new(state.taken_by(a))),
            AnyAlgorithm::SlidingWindowCounter(a) => {
                AnyState::SlidingWindowCounter(label, state.taken_by(a))
            }
        })
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

    fn take_to_go(&self, state: &mut LimitState, n: u64, now: Tick, departure: Departure) {
        change_limit!(self, state, |a, s| a.take_to_go(s, n, now, departure));
    }

    fn forgive(&self, state: &mut LimitState, now: Tick) {
        change_limit!(self, state, |a, s| a.forgive(s, now));
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

    fn fits(&self, state: &LimitState, latest: Tick) -> bool {
        state.written_at() <= latest
    }

    fn fresh_after(&self, state: &LimitState, now: Tick) -> u64 {
        read!(self, state, |a, s| a.fresh_after(s, now))
    }

    fn departure(&self, state: &LimitState, now: Tick) -> Departure {
        read!(self, state, |a, s| a.departure(s, now))
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
            let label = self.label_hash;
            Some(LimitState(match &self.algorithm {
                AnyAlgorithm::TokenBucket(a) => AnyState::Bucket(label, a.read_state(stored)?),
                AnyAlgorithm::LeakyBucket(a) => AnyState::Bucket(label, a.read_state(stored)?),
                AnyAlgorithm::FixedWindow(a) => AnyState::FixedWindow(label, a.read_state(stored)?),
                AnyAlgorithm::SlidingLog(a) => {
                    AnyState::SlidingLog(label, Box::new(a.read_state(stored)?))
                }
                AnyAlgorithm::SlidingWindowCounter(a) => {
                    AnyState::SlidingWindowCounter(label, a.read_state(stored)?)
                }
            }))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quota::Quota;
    use proptest::prelude::*;

    const NOW: Tick = Tick::from_micros(1_800_000_000_000_000);

    fn limit(name: usize) -> Limit {
        let window = FixedWindow::new(Quota::per_hour(1_000));
        Limit::from(window).named(&name.to_string()).unwrap()
    }

    /// States in which 1, 2, 3 .. units are used, of limits of these names, or in which none are.
    fn states(names: &[Option<usize>]) -> Vec<LimitState> {
        let state = |(units, name): (u64, &Option<usize>)| {
            let mut state = LimitState::default();
            if let Some(name) = name {
                limit(*name).take(&mut state, units, NOW);
            }
            state
        };
        (1..).zip(names).map(state).collect()
    }

    proptest! {
        #![proptest_config(ProptestConfig {
            failure_persistence: None,
            ..ProptestConfig::default()
        })]

        /// Names from 4 on are those of no limit.
        #[test]
        fn states_are_read_where_they_are_as_if_they_had_been_moved(
            limits in 1_usize..5,
            names in prop::collection::vec(prop::option::of(0_usize..8), 0..6),
        ) {
            let policy = Policy::all((0..limits).map(limit)).unwrap();
            let states = states(&names);
            let Counterparts { of_limits, others } = policy.counterparts_in(&states);
            let in_order = (0..limits).map(Some).collect::<Vec<_>>();
            let stay = of_limits == in_order && others.is_empty();
            if policy.are_in_place(&states) {
                prop_assert!(states.is_empty() || stay);
            } else {
                let is_repeated = |name: &Option<usize>| {
                    name.is_some() && names.iter().filter(|other| *other == name).count() > 1
                };
                prop_assert!(!stay || names.iter().any(is_repeated));
            }
            let state = PolicyState(ChoiceState::Set(states.into()));
            let own = PolicyState(policy.own(&state));
            let rooms = |state: &PolicyState| {
                let mut rooms = Vec::new();
                policy.join(state, |limit, s| rooms.push(limit.room(s, NOW)), |(), ()| ());
                rooms
            };
            prop_assert_eq!(rooms(&state), rooms(&own));
        }
    }
}
