//! An algorithm that panics, at each of its calls in turn: nothing leaks, and nobody is stuck.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::task::{Context, Waker};
use std::time::Duration;
use tollgate::{
    Algorithm, All, BucketState, Carry, Decision, Limiter, Live, ManualClock, Memory, Operation,
    Origin, Quota, Receipt, SlidingLog, Tick, TieredMemory, TokenBucket, Wait,
};

/// A token bucket that panics when it has been called so often.
#[derive(Clone)]
struct Fragile {
    bucket: TokenBucket,
    calls: Arc<AtomicU64>,
    panics_at: u64,
}

const CAP: usize = 40;

impl Fragile {
    fn new(panics_at: u64) -> Self {
        let bucket = TokenBucket::new(Quota::per_hour(4));
        Self { bucket, calls: Arc::default(), panics_at }
    }

    fn bucket(&self) -> &TokenBucket {
        assert_ne!(self.calls.fetch_add(1, Relaxed) + 1, self.panics_at, "as it was built to");
        &self.bucket
    }
}

impl Algorithm for Fragile {
    type State = BucketState;

    fn limit(&self) -> u64 {
        self.bucket().limit()
    }

    fn room(&self, state: &BucketState, now: Tick) -> u64 {
        self.bucket().room(state, now)
    }

    fn wait(&self, state: &BucketState, n: u64, now: Tick) -> Wait {
        self.bucket().wait(state, n, now)
    }

    fn take(&self, state: &mut BucketState, n: u64, now: Tick) {
        self.bucket().take(state, n, now);
    }

    fn give_back(&self, state: &mut BucketState, n: u64, origin: Option<Origin<'_>>, now: Tick) {
        self.bucket().give_back(state, n, origin, now);
    }

    fn fresh_after(&self, state: &BucketState, now: Tick) -> u64 {
        self.bucket().fresh_after(state, now)
    }

    fn instant(&self, state: &BucketState, now: Tick) -> Tick {
        self.bucket().instant(state, now)
    }

    fn debt(&self, state: &BucketState, now: Tick) -> u64 {
        self.bucket().debt(state, now)
    }
}

/// Does something that may panic.
fn attempt<R>(attempt: impl FnOnce() -> R) -> Option<R> {
    catch_unwind(AssertUnwindSafe(attempt)).ok()
}

/// Asks for more keys than there are places, again and again, with all that can be asked.
fn ask_for_everything(decide: impl Fn(u64, Operation<'_>) -> Decision, clock: &ManualClock) {
    for round in 0..4_u64 {
        let keys = round * 20..round * 20 + CAP as u64 + 5;
        for key in keys {
            let receipt = Receipt::new();
            for operation in [
                Operation::Check(1 + key % 4),
                Operation::Peek(1),
                Operation::Reserve(1, &receipt),
                Operation::Debit(key % 9),
                Operation::Settle(key % 3, &receipt),
                Operation::Refund(key % 2),
            ] {
                attempt(|| _ = decide(key, operation));
            }
            if key % 8 == 0 {
                attempt(|| _ = decide(key, Operation::Reset));
            }
        }
        clock.advance(Duration::from_secs(1_000 * round));
    }
}

/// Dropping what has expired forgets no unit that still counts. When all have expired, each place can
/// be had again, and no more than there are.
fn assert_nothing_has_leaked(
    decide: impl Fn(u64, Operation<'_>) -> Decision,
    len: impl Fn() -> usize,
    shrink: impl Fn(),
    clock: &ManualClock,
    panics_at: u64,
) {
    let left =
        || (0..110).map(|key| decide(key, Operation::Peek(1)).remaining()).collect::<Vec<_>>();
    let before = left();
    shrink();
    assert_eq!(left(), before, "{panics_at}");
    clock.advance(Duration::from_secs(60 * 365 * 86_400));
    shrink();
    assert_eq!(len(), 0, "{panics_at}");
    for key in 1_000..1_000 + CAP as u64 {
        assert!(decide(key, Operation::Check(4)).is_allowed(), "{panics_at}");
        assert!(!decide(key, Operation::Check(1)).is_allowed(), "{panics_at}");
    }
    assert_eq!(len(), CAP, "{panics_at}");
    assert!(decide(1, Operation::Check(4)).is_allowed(), "{panics_at}");
    assert!(!decide(2, Operation::Check(1)).is_allowed(), "{panics_at}");
    assert_eq!(len(), CAP, "{panics_at}");
}

fn clock() -> ManualClock {
    ManualClock::new(Tick::from_micros(1_800_000_000_000_000))
}

/// How often it is called when it does not panic, then each of those calls panics in turn.
fn for_each_call(run: impl Fn(u64) -> u64) {
    std::panic::set_hook(Box::new(|info| {
        if !info.to_string().contains("as it was built to") {
            eprintln!("{info}");
        }
    }));
    let calls = run(u64::MAX);
    assert!(calls > 100, "{calls}");
    (1..calls).for_each(|panics_at| _ = run(panics_at));
}

#[test]
fn no_place_of_a_cap_leaks() {
    for_each_call(|panics_at| {
        let (clock, fragile) = (clock(), Fragile::new(panics_at));
        let limiter = Limiter::with_clock(fragile.clone(), clock.clone()).max_keys(CAP);
        let decide = |key, operation: Operation<'_>| limiter.decide(&key, operation);
        ask_for_everything(decide, &clock);
        attempt(|| limiter.shrink_to_fit());
        let shrink = || limiter.shrink_to_fit();
        let calls = fragile.calls.swap(u64::MAX / 2, Relaxed);
        assert_nothing_has_leaked(decide, || limiter.len(), shrink, &clock, panics_at);
        calls
    });
}

#[test]
fn no_place_of_a_cap_leaks_in_a_store_for_tiers() {
    for_each_call(|panics_at| {
        let (clock, fragile) = (clock(), Fragile::new(panics_at));
        let store = TieredMemory::with_max_keys(clock.clone(), CAP);
        let limiter = Limiter::with_store(fragile.clone(), store.clone());
        let decide = |key, operation: Operation<'_>| limiter.decide(&key, operation);
        ask_for_everything(decide, &clock);
        let calls = fragile.calls.swap(u64::MAX / 2, Relaxed);
        let shrink = || store.shrink_to_fit();
        assert_nothing_has_leaked(decide, || limiter.len(), shrink, &clock, panics_at);
        calls
    });
}

#[test]
fn what_a_call_took_before_it_panicked_is_kept() {
    let mut kept = 0;
    for panics_at in 1..30 {
        let (clock, fragile) = (clock(), Fragile::new(panics_at));
        let store = TieredMemory::new(clock.clone());
        let limiter = Limiter::with_store(fragile.clone(), store.clone());
        fragile.calls.store(u64::MAX / 2, Relaxed);
        assert!(limiter.check(&1).is_allowed());
        fragile.calls.store(0, Relaxed);
        let decision = attempt(|| limiter.check_n(&1, 3));
        fragile.calls.store(u64::MAX / 2, Relaxed);
        clock.advance(Duration::from_secs(1_000));
        let left = limiter.peek(&1).remaining();
        store.shrink_to_fit();
        assert_eq!(limiter.peek(&1).remaining(), left, "{panics_at}");
        kept += u64::from(decision.is_none() && left == 1);
    }
    assert!(kept > 0);
}

#[test]
fn limits_that_panic_as_they_are_replaced_are_replaced() {
    for panics_at in 1..60 {
        let clock = clock();
        let limiter = Live::new(Fragile::new(u64::MAX));
        let limiter = Limiter::with_store(limiter, Memory::new(clock.clone()));
        for key in 0..9 {
            assert!(limiter.check_n(&key, 2).is_allowed());
        }
        let mut new = Fragile::new(panics_at);
        new.bucket = TokenBucket::new(Quota::per_hour(8));
        let _ = attempt(|| limiter.replace_with(new.clone(), Carry::InProportion));
        new.calls.store(u64::MAX / 2, Relaxed);
        for key in 0..9 {
            let decision = limiter.peek(&key);
            // As many units are used as before, or the same part: 2 or 4 of 8.
            assert_eq!(decision.limit(), 8);
            assert!([4, 6].contains(&decision.remaining()), "{panics_at}: {decision:?}");
        }
    }
}

#[test]
fn whoever_waits_and_panics_is_out_of_the_queue() {
    for panics_at in 1..60 {
        let (clock, fragile) = (clock(), Fragile::new(panics_at));
        let limiter = Limiter::direct_with_clock(fragile.clone(), clock.clone());
        let _ = attempt(|| limiter.check_n(4));
        {
            let mut waiting = pin!(limiter.acquire().into_future());
            let mut context = Context::from_waker(Waker::noop());
            let polled = attempt(|| waiting.as_mut().poll(&mut context).is_pending());
            let _ = attempt(|| limiter.refund(1));
            if polled == Some(true) {
                let _ = attempt(|| waiting.as_mut().poll(&mut context).is_pending());
            }
        }
        fragile.calls.store(u64::MAX / 2, Relaxed);
        clock.advance(Duration::from_secs(60 * 365 * 86_400));
        assert!(limiter.check_n(4).is_allowed(), "{panics_at}");
        assert!(!limiter.check().is_allowed(), "{panics_at}");
    }
}

/// What a list of limits finds of one of another length counts as strictly as it can.
#[test]
fn a_list_of_limits_reads_the_states_of_another() {
    let logs = |counts: &[u64]| {
        All(counts.iter().map(|count| SlidingLog::new(Quota::per_hour(*count))).collect::<Vec<_>>())
    };
    for (old, new, left) in [
        (&[10, 20][..], &[10, 20, 30][..], 4),
        (&[10, 20, 30], &[20, 30], 14),
        (&[10, 20], &[5], 0),
        (&[10], &[10, 20], 4),
    ] {
        let clock = clock();
        let limiter = Limiter::with_store(Live::new(logs(old)), Memory::new(clock.clone()));
        assert!(limiter.check_n("k", 6).is_allowed());
        let receipt = Receipt::new();
        let _ = limiter.decide("k", Operation::Reserve(1, &receipt));
        let _ = limiter.decide("k", Operation::Settle(0, &receipt));
        let held = Receipt::new();
        let _ = limiter.decide("other", Operation::Reserve(6, &held));
        limiter.replace(logs(new));
        assert_eq!(limiter.peek("k").remaining(), left, "{old:?} {new:?}");
        assert!(!limiter.check_n("k", left + 1).is_allowed());
        assert_eq!(limiter.check_n("k", left).granted(), left);
        assert_eq!(limiter.refund("k", 1).remaining(), 1.min(left), "{old:?} {new:?}");
        let _ = limiter.debit("k", 3);
        // A settlement of what the old ones have taken, and limits in proportion.
        let _ = limiter.decide("other", Operation::Settle(2, &held));
        limiter.replace_with(logs(old), Carry::InProportion);
        clock.advance(Duration::from_secs(3_600));
        assert_eq!(limiter.peek("k").remaining(), *old.iter().min().unwrap());
    }
}
