//! The five algorithms a second time, as plainly as they can be written: by search and by adding
//! up, in wide numbers, with nothing clever. The crate's are judged by these.

use super::MIDNIGHT;
use tollgate::{Limit, Operation};

/// A decision's numbers: (allowed, granted, remaining, delay, retry, reset, next), in ticks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    pub verdict: Verdict,
    pub granted: u64,
    pub limit: u64,
    pub remaining: u64,
    pub reset_after: u64,
    pub next_after: Option<u64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    Allowed,
    Delayed(u64),
    Denied(u64),
    Never,
}

/// All that was ever taken, one entry a call, and the latest instant of it.
#[derive(Clone, Debug)]
pub struct Model {
    kind: Kind,
    count: u64,
    period: u64,
    capacity: u64,
    last: u64,
    /// Buckets: the level in units x period, so that each tick lowers it by `count`.
    level: u128,
    /// Windows and logs: (instant, units) taken.
    taken: Vec<(u64, u64)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Token,
    Queue,
    Fixed,
    Log,
    Counter,
}

impl Model {
    /// Reads the limit's canonical text.
    pub fn new(limit: &Limit) -> Self {
        let text = limit.to_string();
        let text = text.rsplit(": ").next().unwrap();
        let words: Vec<&str> = text.split(' ').collect();
        let (name, words) = match words[0].contains('/') {
            true => ("token_bucket", &words[..]),
            false => (words[0], &words[1..]),
        };
        let (count, period) = words[0].split_once('/').unwrap();
        let count: u64 = count.parse().unwrap();
        let digits = period.trim_end_matches(char::is_alphabetic);
        let millis = match &period[digits.len()..] {
            "ms" => 1,
            "s" => 1_000,
            "min" => 60_000,
            "h" => 3_600_000,
            "d" => 86_400_000,
            unit => panic!("{unit}"),
        };
        let period = digits.parse().unwrap_or(1) * millis * 1_000;
        let capacity = words.get(2).map_or(count, |capacity| capacity.parse().unwrap());
        let kind = match name {
            "token_bucket" => Kind::Token,
            "leaky_bucket" if words.contains(&"nodelay") => Kind::Token,
            "leaky_bucket" => Kind::Queue,
            "fixed_window" => Kind::Fixed,
            "sliding_log" => Kind::Log,
            _ => Kind::Counter,
        };
        Self { kind, count, period, capacity, last: 0, level: 0, taken: Vec::new() }
    }

    fn is_bucket(&self) -> bool {
        matches!(self.kind, Kind::Token | Kind::Queue)
    }

    fn level_at(&self, now: u64) -> u128 {
        let fallen = u128::from(now - self.last) * u128::from(self.count);
        self.level.saturating_sub(fallen)
    }

    fn taken_between(&self, from: u64, until: u64) -> u128 {
        let within = self.taken.iter().filter(|(at, _)| (from..until).contains(at));
        within.map(|&(_, units)| u128::from(units)).sum()
    }

    /// Units used at `now`, rounded up.
    fn used(&self, now: u64) -> u128 {
        let period = u128::from(self.period);
        let window = now - now % self.period;
        match self.kind {
            Kind::Token | Kind::Queue => self.level_at(now).div_ceil(period),
            Kind::Fixed => self.taken_between(window, u64::MAX),
            Kind::Log => self.taken_between(now - self.period + 1, u64::MAX),
            Kind::Counter => {
                let previous = self.taken_between(window - self.period, window);
                let left = u128::from(self.period - (now - window));
                (previous * left).div_ceil(period) + self.taken_between(window, u64::MAX)
            }
        }
    }

    fn room(&self, now: u64) -> u64 {
        u64::try_from(self.used(now)).map_or(0, |used| self.capacity.saturating_sub(used))
    }

    /// The first instant from `now` on at which the predicate holds; it holds from there on.
    fn first(&self, now: u64, holds: impl Fn(u64) -> bool) -> u64 {
        if holds(now) {
            return now;
        }
        let mut step = 1;
        while !holds(now + step) {
            step *= 2;
        }
        let (mut no, mut yes) = (now + step / 2, now + step);
        while yes - no > 1 {
            let middle = no + (yes - no) / 2;
            if holds(middle) { yes = middle } else { no = middle }
        }
        yes
    }

    fn wait(&self, n: u64, now: u64) -> u64 {
        self.first(now, |at| self.room(at) >= n) - now
    }

    fn fresh_after(&self, now: u64) -> u64 {
        let fresh = |at: u64| match self.kind {
            Kind::Token | Kind::Queue => self.level_at(at) == 0,
            Kind::Fixed | Kind::Log => self.used(at) == 0,
            Kind::Counter => {
                let window = at - at % self.period;
                self.taken_between(window - self.period, u64::MAX) == 0
            }
        };
        self.first(now, fresh) - now
    }

    /// Whether a plain refund finds anything to give back. A queue has promised all its places.
    fn refunds(&self, now: u64) -> bool {
        match self.kind {
            Kind::Queue => false,
            Kind::Counter => self.taken_between(now - now % self.period, u64::MAX) > 0,
            Kind::Token | Kind::Fixed | Kind::Log => self.used(now) > 0,
        }
    }

    pub fn apply(&mut self, operation: Operation, now: u64) -> Answer {
        // Time stands still, and waits count from the asker's now all the same.
        let asked_at = now;
        let from_now = |after: u64, last: u64| {
            if after > 0 { after + last.saturating_sub(asked_at) } else { 0 }
        };
        let now = now.max(self.last);
        assert!(now > MIDNIGHT / 2, "instants lie well after the epoch");
        let room = self.room(now);
        let verdict = |n: u64| {
            if n > self.capacity {
                Verdict::Never
            } else if n > room {
                Verdict::Denied(from_now(self.wait(n, now), self.last))
            } else if self.kind == Kind::Queue && n > 0 && self.fresh_after(now) > 0 {
                Verdict::Delayed(from_now(self.fresh_after(now), self.last))
            } else {
                Verdict::Allowed
            }
        };
        let (verdict, taken, returned) = match operation {
            Operation::Check(n) => {
                let verdict = verdict(n);
                let admitted = matches!(verdict, Verdict::Allowed | Verdict::Delayed(_));
                (verdict, if admitted { n } else { 0 }, 0)
            }
            Operation::Peek(n) => (verdict(n), 0, 0),
            Operation::TakeUpTo(0) => (verdict(0), 0, 0),
            Operation::TakeUpTo(n) if room == 0 => (verdict(n.min(1)), 0, 0),
            Operation::TakeUpTo(n) => (verdict(n.min(room)), n.min(room), 0),
            Operation::Debit(n) => (Verdict::Allowed, n, 0),
            Operation::Refund(n) if self.refunds(now) => (Verdict::Allowed, 0, n),
            Operation::Refund(_) => (Verdict::Allowed, 0, 0),
            Operation::Reset => {
                (self.level, self.last) = (0, 0);
                self.taken.clear();
                (Verdict::Allowed, 0, 0)
            }
            other => panic!("{other:?}"),
        };
        if taken > 0 || returned > 0 {
            self.change(taken, returned, now);
        }
        let remaining = self.room(now);
        Answer {
            verdict,
            granted: taken,
            limit: self.capacity,
            remaining,
            reset_after: self.fresh_after(now) + self.last.saturating_sub(asked_at),
            next_after: (remaining < self.capacity)
                .then(|| from_now(self.wait(remaining + 1, now), self.last)),
        }
    }

    fn change(&mut self, taken: u64, mut returned: u64, now: u64) {
        const MAX: u128 = (1 << 53) - 1;
        if self.is_bucket() {
            let period = u128::from(self.period);
            let most = 50 * 365 * 86_400_000_000 * u128::from(self.count) / period;
            let level = self.level_at(now) + u128::from(taken) * period;
            // The highest debt counts from where the level was last a whole number.
            self.level = level.saturating_sub(u128::from(returned) * period);
            assert!(self.level <= most.min(MAX) * period, "traces stay below the highest debt");
        } else {
            let from = match self.kind {
                Kind::Log => now - self.period + 1,
                _ => now - now % self.period,
            };
            let mut taken = taken;
            if self.kind == Kind::Log && taken > 0 {
                // The first units up to twice the limit stay, and the others are taken now.
                let mut first = 2 * self.count;
                for (_, units) in self.taken.iter_mut().filter(|(at, _)| *at >= from) {
                    let stays = first.min(*units);
                    first -= stays;
                    taken += *units - stays;
                    *units = stays;
                }
            }
            self.taken.push((now, taken));
            for (at, units) in self.taken.iter_mut().rev() {
                let back = returned.min(*units);
                if *at >= from {
                    *units -= back;
                    returned -= back;
                }
            }
        }
        self.last = now;
    }
}
