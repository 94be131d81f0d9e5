//! The store in process, under threads and with many keys.

use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Barrier, Mutex};
use std::thread;
use std::time::Duration;
use tollgate::{
    Algorithm, Clock, Limiter, Live, ManualClock, Memory, Operation, Origin, Policy, PolicyState,
    Quota, Tick, TieredMemory, TokenBucket, Wait,
};

const THREADS: u8 = 8;

fn frozen() -> ManualClock {
    ManualClock::new(Tick::from_micros(1_800_000_000_000_000))
}

const POLICIES: [&str; 6] = [
    "token_bucket 1000/h",
    "leaky_bucket 1000/h",
    "fixed_window 1000/h",
    "sliding_log 1000/h",
    "sliding_window_counter 1000/h",
    "1000/h; token_bucket 1/d burst 2000",
];

/// How many units 8 threads are granted together; each asks `asks` times for each key.
fn granted<A: Algorithm>(
    limiter: &Limiter<A, Memory<A::State, ManualClock>>,
    keys: u64,
    asks: u64,
) -> u64 {
    let start = Barrier::new(usize::from(THREADS));
    thread::scope(|scope| {
        let threads: Vec<_> = (0..THREADS)
            .map(|thread| {
                let (start, offset) = (&start, u64::from(thread) * 7);
                scope.spawn(move || {
                    start.wait();
                    (0..asks * keys)
                        .map(|n| limiter.check_n(&((n + offset) % keys), 1 + n % 3).granted())
                        .sum::<u64>()
                })
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).sum()
    })
}

#[test]
fn threads_on_one_key_admit_exactly_the_limit() {
    for text in POLICIES {
        let limiter = Limiter::with_clock(text.parse::<Policy>().unwrap(), frozen());
        assert_eq!(granted(&limiter, 1, 1_000), 1_000, "{text}");
    }
}

#[test]
fn threads_on_many_keys_admit_exactly_the_limit_of_each() {
    for text in POLICIES {
        let limiter = Limiter::with_clock(text.parse::<Policy>().unwrap(), frozen());
        assert_eq!(granted(&limiter, 500, 300), 500 * 1_000, "{text}");
        assert_eq!(limiter.len(), 500);
    }
}

#[test]
fn threads_on_a_direct_limiter_admit_exactly_the_limit() {
    for text in POLICIES {
        let limiter = Limiter::direct_with_clock(text.parse::<Policy>().unwrap(), frozen());
        let granted: u64 = thread::scope(|scope| {
            let ask = || (0..1_000).map(|_| limiter.check().granted()).sum::<u64>();
            let threads: Vec<_> = (0..THREADS).map(|_| scope.spawn(ask)).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).sum()
        });
        assert_eq!(granted, 1_000, "{text}");
        assert_eq!(limiter.peek().remaining(), 0);
        assert_eq!(limiter.reset().remaining(), 1_000);
    }
}

#[test]
fn a_key_is_what_it_hashes_to_borrowed_or_owned() {
    let limiter = Limiter::with_clock(TokenBucket::new(Quota::per_hour(2)), frozen());
    assert!(limiter.check("a").is_allowed());
    assert!(limiter.check(&String::from("a")).is_allowed());
    assert!(!limiter.check("a").is_allowed());
    assert!(limiter.check(&("a", 1)).is_allowed());
    assert!(limiter.check(&[1_u8, 2][..]).is_allowed());
    assert_eq!(limiter.len(), 3);
}

/// What was dropped remembers no time of its own: the shard remembers it instead.
#[test]
fn a_clock_that_goes_back_past_a_sweep_mints_nothing() {
    // The last one takes years to forget.
    for text in &POLICIES[..5] {
        let clock = frozen();
        let limiter = Limiter::with_clock(text.parse::<Policy>().unwrap(), clock.clone());
        let taken_at = clock.now();
        assert!(limiter.check_n("alice", 1_000).is_allowed(), "{text}");
        clock.advance(Duration::from_secs(3 * 86_400));
        limiter.shrink_to_fit();
        assert!(limiter.is_empty(), "{text}");
        clock.set(taken_at);
        // As if three days later: all there is, once.
        assert!(limiter.check_n("alice", 1_000).is_allowed(), "{text}");
        clock.advance(Duration::from_secs(3 * 86_400));
        assert!(!limiter.check("alice").is_allowed(), "{text}");
    }
}

#[test]
fn a_clock_beyond_the_end_of_time_limits_all_the_same() {
    struct Late;

    impl Clock for Late {
        fn now(&self) -> Tick {
            Tick::MAX.saturating_add(u64::MAX)
        }
    }

    for text in POLICIES {
        let limiter = Limiter::with_clock(text.parse::<Policy>().unwrap(), Late);
        assert!(limiter.check_n("alice", 1_000).is_allowed(), "{text}");
        assert!(!limiter.check("alice").is_allowed(), "{text}");
    }
}

#[test]
fn what_is_refused_or_only_asked_keeps_nothing() {
    let limiter = Limiter::with_clock(TokenBucket::new(Quota::per_hour(10)), frozen());
    for key in 0..10_000 {
        assert!(!limiter.check_n(&key, 11).is_allowed());
        assert!(limiter.peek(&key).is_allowed());
        assert!(limiter.check_n(&key, 0).is_allowed());
        assert_eq!(limiter.refund(&key, 5).remaining(), 10);
        assert_eq!(limiter.reset(&key).remaining(), 10);
    }
    assert!(limiter.is_empty());
}

const CAP: u64 = 1_000;

/// A limiter by `policy` for so many keys, of which each is one unit short of its limit.
fn full(policy: &str, clock: ManualClock) -> Limiter<Policy, Memory<PolicyState, ManualClock>> {
    let policy = policy.parse::<Policy>().unwrap();
    let limiter = Limiter::with_clock(policy, clock).max_keys(usize::try_from(CAP).unwrap());
    for key in 0..CAP {
        assert_eq!(limiter.check_n(&key, 999).remaining(), 1);
    }
    limiter
}

#[test]
fn keys_beyond_the_cap_share_one_budget_and_the_others_keep_theirs() {
    for text in POLICIES {
        let limiter = full(text, frozen());
        let strangers = CAP..50 * CAP;
        let granted: u64 = strangers.map(|key| limiter.check(&key).granted()).sum();
        assert_eq!(granted, 1_000, "{text}: all strangers together");
        for key in 0..CAP {
            assert!(limiter.check(&key).is_allowed(), "{text}");
            assert!(!limiter.check(&key).is_allowed(), "{text}");
        }
        assert_eq!(limiter.len(), 1_000, "{text}");
    }
}

#[test]
fn a_reset_or_a_refund_of_a_key_without_a_place_mints_nothing() {
    let limiter = full("sliding_log 1000/h", frozen());
    assert_eq!(limiter.take_up_to("mallory", 5_000).granted(), 1_000);
    assert_eq!(limiter.reset("trudy").remaining(), 0);
    assert!(!limiter.check("trudy").is_allowed());
    assert_eq!(limiter.refund("mallory", 10).remaining(), 10); // what is given back is there for all
    assert!(limiter.check_n("trudy", 10).is_allowed());
    assert!(!limiter.check("mallory").is_allowed());
}

/// A key without a place gives back to the budget that it took from, however long ago others were
/// searched for room, and what the decision states holds for the next caller.
#[test]
fn what_a_key_without_a_place_gives_back_goes_to_the_shared_budget() {
    for is_shrunk in [true, false] {
        let clock = frozen();
        let policy: Policy = "token_bucket 4/s".parse().unwrap();
        let limiter = Limiter::with_clock(policy, clock.clone()).max_keys(1);
        assert!(limiter.check("alice").is_allowed());
        assert_eq!(limiter.take_up_to("mallory", 4).granted(), 4);
        // The one key that has a place becomes fresh, and gives it up, or will when it is needed.
        clock.advance(Duration::from_millis(250));
        if is_shrunk {
            limiter.shrink_to_fit();
        }
        for (operation, left) in [(Operation::Reset, 1), (Operation::Refund(3), 4)] {
            let told = limiter.decide("mallory", operation).remaining();
            assert_eq!(told, left, "{operation:?}, {is_shrunk}");
            assert_eq!(limiter.peek("mallory").remaining(), told, "{operation:?}, {is_shrunk}");
        }
    }
}

/// Every key that was limited is so afterwards, whether it had a place or not.
#[test]
fn a_key_that_gets_a_place_later_has_no_fresh_budget() {
    for text in &POLICIES[..5] {
        let clock = frozen();
        let limiter = full(text, clock.clone());
        // Who has a place is idle now, and makes room for strangers until it is taken.
        clock.advance(Duration::from_secs(2 * 3_600));
        let mut strangers = CAP..;
        let spent = strangers.by_ref().take_while(|key| limiter.check_n(key, 1_000).is_allowed());
        assert!(spent.count() > 500, "{text}");
        let late = strangers.start..strangers.start + 10_000;
        let granted: u64 = late.clone().map(|key| limiter.take_up_to(&key, 1_000).granted()).sum();
        assert_eq!(granted, 0, "{text}");
        // Half a window later nobody has more than has come back, place or not.
        clock.advance(Duration::from_secs(1_800));
        let most = late.map(|key| limiter.take_up_to(&key, 1_000).granted()).max();
        assert!(most.unwrap() <= 500, "{text}: {most:?}");
    }
}

/// The first place that is free goes to whoever asks next, and that one has spent the shared budget.
#[test]
fn a_place_does_not_come_with_a_fresh_budget() {
    for text in POLICIES {
        let clock = frozen();
        let policy = text.parse::<Policy>().unwrap();
        let limiter = Limiter::with_clock(policy, clock.clone()).max_keys(1);
        assert!(limiter.check("alice").is_allowed());
        assert_eq!(limiter.take_up_to("mallory", 5_000).granted(), 1_000, "{text}");
        // Alice's state has expired. (A reset: a queue gives no unit back.)
        assert_eq!(limiter.reset("alice").remaining(), 1_000, "{text}");
        clock.advance(Duration::from_millis(2));
        let refused = limiter.check("mallory");
        assert!(!refused.is_allowed(), "{text}");
        // Now it is mallory's, who regains units of her own there.
        assert_eq!(limiter.take_up_to("trudy", 5_000).granted(), 0, "{text}");
        clock.advance(refused.retry_after().unwrap());
        for other in ["trudy", "victor"] {
            let _ = limiter.take_up_to(other, 5_000);
        }
        // A state of a window says nothing any more by then, and has lost its place.
        let is_bucket = POLICIES[..2].contains(&text);
        assert!(!is_bucket || limiter.check("mallory").is_allowed(), "{text}");
    }
}

/// While their tables grow and are split, again and again.
#[test]
fn every_one_of_many_keys_keeps_its_budget() {
    let limiter = Limiter::with_clock(TokenBucket::new(Quota::per_hour(2)), frozen());
    let keys = 400_000_u64;
    for key in 0..keys {
        assert!(limiter.check(&key).is_allowed());
        assert_eq!(limiter.peek(&(key / 2)).remaining(), 1);
    }
    assert_eq!(limiter.len(), 400_000);
    for key in 0..keys {
        assert!(limiter.check(&key).is_allowed());
        assert!(!limiter.check(&key).is_allowed());
    }
    assert_eq!(limiter.len(), 400_000);
}

#[test]
fn threads_do_not_exceed_the_cap() {
    let limiter = Limiter::with_clock(TokenBucket::new(Quota::per_hour(1)), frozen()).max_keys(500);
    let granted = granted(&limiter, 20_000, 1);
    assert_eq!(limiter.len(), 500);
    assert_eq!(granted, 501, "one for each key, and one for all others");
}

#[test]
#[should_panic(expected = "one key at least")]
fn a_cap_of_no_keys_is_refused() {
    let _ = Limiter::new(TokenBucket::new(Quota::per_hour(1))).max_keys(0);
}

/// A key that has taken from the shared budget, and gets a place of its own before it settles.
#[test]
fn a_settlement_goes_back_where_it_came_from() {
    let clock = frozen();
    let policy = "fixed_window 10/h".parse::<Policy>().unwrap();
    let limiter = Limiter::with_clock(policy, clock.clone()).max_keys(1);
    assert!(limiter.check("alice").is_allowed());
    let own = limiter.reserve("alice", 4);
    let shared = limiter.reserve("mallory", 6);
    assert!(shared.decision().is_allowed());
    // Alice's place becomes mallory's: she begins with what the shared budget has left.
    assert_eq!(limiter.reset("alice").remaining(), 10);
    clock.advance(Duration::from_millis(2));
    assert_eq!(limiter.take_up_to("mallory", 1).granted(), 1);
    assert_eq!(limiter.peek("mallory").remaining(), 3);
    assert_eq!(limiter.peek("trudy").remaining(), 4);
    // What she took from all goes back to all, and not to her.
    let after = shared.settle_now(1);
    assert_eq!(after.remaining(), 9);
    assert_eq!(limiter.peek("trudy").remaining(), 9);
    assert_eq!(limiter.peek("mallory").remaining(), 3);
    // What alice took from a state that is gone goes back to nobody.
    drop(own);
    assert_eq!(limiter.peek("trudy").remaining(), 9);
}

/// Also more than a millisecond after others were searched for room, and for a charge.
#[test]
fn a_settlement_of_a_key_without_a_place_is_not_lost() {
    for wait in [0, 5_000] {
        let clock = frozen();
        let policy = "fixed_window 10/h".parse::<Policy>().unwrap();
        let limiter = Limiter::with_clock(policy, clock.clone()).max_keys(1);
        assert!(limiter.check("alice").is_allowed());
        let [less, more, dropped] = [3, 2, 4].map(|n| limiter.reserve("mallory", n));
        assert_eq!(limiter.peek("mallory").remaining(), 1);
        clock.advance(Duration::from_micros(wait));
        assert_eq!(less.settle_now(1).remaining(), 3, "{wait}");
        assert_eq!(more.settle_now(4).remaining(), 1, "{wait}");
        drop(dropped);
        assert_eq!(limiter.peek("trudy").remaining(), 5, "{wait}");
    }
}

/// One key beyond the cap is charged millions: that is its own affair and that of those who share
/// its budget.
#[test]
fn a_new_key_begins_at_worst_without_units() {
    for text in POLICIES {
        let clock = frozen();
        let policy = text.parse::<Policy>().unwrap();
        let limiter = Limiter::with_clock(policy, clock.clone()).max_keys(1);
        assert!(limiter.check("alice").is_allowed());
        let _ = limiter.debit("mallory", 10_000_000);
        let _ = limiter.reset("alice");
        clock.advance(Duration::from_millis(2));
        let refused = limiter.check("honest");
        assert!(!refused.is_allowed(), "{text}");
        let most = match text {
            "1000/h; token_bucket 1/d burst 2000" => 3 * 86_400,
            _ => 2 * 3_600,
        };
        assert!(refused.retry_after() <= Some(Duration::from_secs(most)), "{text}: {refused:?}");
        clock.advance(refused.retry_after().unwrap());
        assert!(limiter.check("honest").is_allowed(), "{text}");
    }
}

#[test]
fn the_shared_budget_can_be_reset_and_is_dropped_when_it_has_expired() {
    let clock = frozen();
    let policy = "sliding_log 10/h".parse::<Policy>().unwrap();
    let limiter = Limiter::with_clock(policy, clock.clone()).max_keys(1);
    assert!(limiter.check("alice").is_allowed());
    let _ = limiter.debit("mallory", 5_000);
    assert_eq!(limiter.peek("trudy").remaining(), 0);
    limiter.reset_shared();
    assert_eq!(limiter.peek("trudy").remaining(), 10);

    // What has expired is dropped: under a longer window it would count again.
    for drops in [true, false] {
        let clock = frozen();
        let parse = |text: &str| text.parse::<Policy>().unwrap();
        let limiter = Live::new(parse("sliding_log 10/h"));
        let limiter = Limiter::with_store(limiter, Memory::new(clock.clone())).max_keys(1);
        assert!(limiter.check("alice").is_allowed());
        assert_eq!(limiter.take_up_to("mallory", 10).granted(), 10);
        clock.advance(Duration::from_secs(if drops { 3_600 } else { 3_599 }));
        limiter.shrink_to_fit();
        limiter.replace(parse("sliding_log 10/d"));
        assert_eq!(limiter.peek("mallory").remaining(), if drops { 10 } else { 0 });
    }
}

/// Also if the debt was made in the window before.
#[test]
fn a_new_key_of_a_counter_begins_without_the_debt_of_the_last_window() {
    let clock = ManualClock::new(Tick::from_micros(1_800_000_000_000_000));
    let policy = "sliding_window_counter 100/min".parse::<Policy>().unwrap();
    let limiter = Limiter::with_clock(policy, clock.clone()).max_keys(1);
    assert!(limiter.check("alice").is_allowed());
    clock.advance(Duration::from_secs(61));
    let _ = limiter.debit("mallory", 10_000_000);
    let _ = limiter.reset("alice");
    clock.advance(Duration::from_secs(60));
    let peeked = limiter.peek("honest");
    let refused = limiter.check("honest");
    assert_eq!(peeked.outcome(), refused.outcome());
    assert!(refused.retry_after() < Some(Duration::from_secs(2)), "{refused:?}");
}

/// A peek says what the check says, whether a place is free, can be made, or not.
#[test]
fn a_peek_of_a_key_without_a_place_foretells_the_check() {
    for text in POLICIES {
        for (is_free, wait) in [(false, 0), (false, 2), (true, 0), (true, 2)] {
            let clock = frozen();
            let limiter = Limiter::with_clock(text.parse::<Policy>().unwrap(), clock.clone());
            let limiter = limiter.max_keys(1);
            assert!(limiter.check("alice").is_allowed());
            let _ = limiter.debit("mallory", 5_000);
            if is_free {
                let _ = limiter.reset("alice");
            }
            clock.advance(Duration::from_millis(wait));
            let peeked = limiter.peek("honest");
            assert_eq!(limiter.len(), if is_free && wait > 0 { 0 } else { 1 }, "{text}");
            assert_eq!(peeked, limiter.check("honest"), "{text}, {is_free}, {wait}");
        }
    }
}

/// In a store for tiers, each key's date is that of its own limits and units.
#[test]
fn a_new_key_holds_its_place_for_no_debt_of_others() {
    let clock = frozen();
    let policy = "token_bucket 100/min".parse::<Policy>().unwrap();
    let store = TieredMemory::with_max_keys(clock.clone(), 1);
    let limiter = Limiter::with_store(policy, store.clone());
    assert!(limiter.check("alice").is_allowed());
    let _ = limiter.debit("mallory", 10_000_000);
    clock.advance(Duration::from_secs(60));
    let refused = limiter.check("honest");
    assert_eq!(refused.retry_after(), Some(Duration::from_millis(600)));
    clock.advance(Duration::from_secs(60));
    store.shrink_to_fit();
    assert!(limiter.is_empty());
}

/// A bucket that stops where it takes units of a key, until it may go on.
struct Stopping(TokenBucket, Mutex<Option<(Sender<()>, Receiver<()>)>>);

impl Algorithm for Stopping {
    type State = <TokenBucket as Algorithm>::State;

    fn limit(&self) -> u64 {
        self.0.limit()
    }

    fn room(&self, state: &Self::State, now: Tick) -> u64 {
        self.0.room(state, now)
    }

    fn wait(&self, state: &Self::State, n: u64, now: Tick) -> Wait {
        self.0.wait(state, n, now)
    }

    fn take(&self, state: &mut Self::State, n: u64, now: Tick) {
        let stop = self.1.lock().unwrap().take();
        if let Some((stopped, go_on)) = stop {
            stopped.send(()).unwrap();
            go_on.recv().unwrap();
        }
        self.0.take(state, n, now);
    }

    fn give_back(&self, state: &mut Self::State, n: u64, origin: Option<Origin<'_>>, now: Tick) {
        self.0.give_back(state, n, origin, now);
    }

    fn fresh_after(&self, state: &Self::State, now: Tick) -> u64 {
        self.0.fresh_after(state, now)
    }
}

/// As if a thread lost the processor for long: neither the threads that wait for its key, nor those
/// with the same lock as it, keep the other keys of the shard waiting.
#[test]
fn one_busy_key_leaves_the_others_of_its_shard_alone() {
    const WAITING: usize = 20;
    let bucket = TokenBucket::new(Quota::per_hour(1_000));
    let limiter = Limiter::with_clock(Stopping(bucket, Mutex::default()), frozen()).max_keys(2);
    for key in ["busy", "other"] {
        assert!(limiter.check(key).is_allowed());
    }
    let (is_stopped, stopped) = mpsc::channel();
    let (go_on, may_go_on) = mpsc::channel();
    *limiter.algorithm().1.lock().unwrap() = Some((is_stopped, may_go_on));
    let (limiter, (asked, answers)) = (&limiter, mpsc::channel());
    thread::scope(|scope| {
        scope.spawn(|| limiter.check("busy"));
        stopped.recv().unwrap();
        for key in ["busy", "other"] {
            let asks = (0..WAITING).map(|_| {
                let asked = asked.clone();
                let ask = move || asked.send((key, limiter.check(key).granted())).unwrap();
                scope.spawn(ask)
            });
            asks.for_each(drop);
        }
        let in_time = || answers.recv_timeout(Duration::from_secs(60)).ok();
        let others: Vec<_> = (0..WAITING).map_while(|_| in_time()).collect();
        go_on.send(()).unwrap();
        assert_eq!(others, [("other", 1); WAITING]);
    });
    assert_eq!(limiter.peek("busy").remaining(), 1_000 - 2 - WAITING as u64);
}

/// Keys whose states were dropped are not granted what they used before, by a clock that goes back.
#[test]
fn a_cap_does_not_forget_when_states_were_dropped() {
    for text in POLICIES {
        let clock = frozen();
        let start = clock.now();
        let limiter = Limiter::with_clock(text.parse::<Policy>().unwrap(), clock.clone());
        assert!(limiter.check_n("alice", 1_000).is_allowed());
        clock.advance(Duration::from_secs(1_100 * 86_400));
        let later = clock.now();
        limiter.shrink_to_fit();
        assert!(limiter.is_empty(), "{text}");
        clock.set(start);
        let limiter = limiter.max_keys(1_000);
        assert!(limiter.check_n("alice", 1_000).is_allowed(), "{text}");
        clock.set(later);
        assert!(!limiter.check_n("alice", 1_000).is_allowed(), "{text}");
    }
}

#[test]
fn what_a_settlement_overdraws_is_kept_in_a_store_for_tiers() {
    let clock = frozen();
    let store = TieredMemory::new(clock.clone());
    let limiter = Limiter::with_store(TokenBucket::new(Quota::per_hour(10)), store.clone());
    assert_eq!(limiter.reserve("alice", 1).settle_now(10).remaining(), 0);
    clock.advance(Duration::from_secs(1_800));
    store.shrink_to_fit();
    assert_eq!(limiter.peek("alice").remaining(), 5);
}
