use super::{Clock, Tick};
use crate::math::micros;
use parking_lot::Mutex;
use std::sync::LazyLock;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release, SeqCst};
use std::sync::atomic::{AtomicU64, fence};
use std::time::SystemTime;

/// The wall clock without its steps back: it never goes backwards, and it goes on while the machine
/// sleeps or a virtual machine is paused.
///
/// Between two looks at the wall clock, ten a second while it is in use, it counts by the
/// processor's counter (by [`quanta`]), which is what makes reading it cheap. A wall clock that is
/// ahead is followed at the next look. One that is behind is waited for: this clock goes more slowly
/// until they agree, though never at less than half its speed. There is no background thread.
///
/// All of a process's clocks are one, so they agree with each other.
#[derive(Clone)]
pub struct MonotonicClock {
    counter: quanta::Clock,
}

/// Apart from the rest, so that reading the time needs no pointer to it.
static SEGMENT: Segment = Segment::new();

static CLOCK: LazyLock<Disciplined<System>> =
    LazyLock::new(|| Disciplined::new(System::new(), &SEGMENT));

impl Default for MonotonicClock {
    fn default() -> Self {
        Self { counter: CLOCK.sources.counter.clone() }
    }
}

impl Clock for MonotonicClock {
    #[inline]
    fn now(&self) -> Tick {
        let count = self.counter.raw();
        match SEGMENT.time_at(count) {
            Some(now) => now,
            None => CLOCK.next_segment(),
        }
    }
}

impl std::fmt::Debug for MonotonicClock {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("MonotonicClock").finish_non_exhaustive()
    }
}

/// The clocks that one is made of.
trait Sources {
    /// A counter that is read fast. It may stop while the machine sleeps, and begin anew after that.
    fn counts(&self) -> u64;

    /// Nanoseconds that pass at an even pace, those included in which the machine sleeps if there is
    /// a clock that counts them; from any beginning.
    fn steady_nanos(&self) -> u64;

    /// Microseconds since the Unix epoch, by a clock that may be set.
    fn wall_micros(&self) -> u64;

    /// Nanoseconds in so many counts, as far as it is known at first.
    fn nanos_of(&self, counts: u64) -> u64;
}

struct System {
    counter: quanta::Clock,
    #[cfg(not(any(target_os = "linux", target_os = "android")))]
    start: std::time::Instant,
}

impl System {
    fn new() -> Self {
        Self {
            counter: quanta::Clock::new(),
            #[cfg(not(any(target_os = "linux", target_os = "android")))]
            start: std::time::Instant::now(),
        }
    }
}

impl Sources for System {
    #[inline]
    fn counts(&self) -> u64 {
        self.counter.raw()
    }

    #[cfg(any(target_os = "linux", target_os = "android"))]
    fn steady_nanos(&self) -> u64 {
        let time = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
        u64::try_from(i128::from(time.tv_sec) * 1_000_000_000 + i128::from(time.tv_nsec))
            .unwrap_or_default()
    }

    #[cfg(not(any(target_os = "linux", target_os = "android")))]
    fn steady_nanos(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    fn wall_micros(&self) -> u64 {
        micros(SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default())
    }

    fn nanos_of(&self, counts: u64) -> u64 {
        self.counter.delta_as_nanos(0, counts)
    }
}

/// Microseconds for a count, times 2^64.
#[derive(Copy, Clone)]
struct Rate(u64);

impl Rate {
    fn new(nanos: u64, counts: u64) -> Option<Self> {
        let micros_per_count = (u128::from(nanos) << 64) / 1_000 / u128::from(counts.max(1));
        // Of a count that takes a microsecond or longer, as near to it as can be.
        let micros_per_count = u64::try_from(micros_per_count).unwrap_or(u64::MAX);
        (micros_per_count > 0).then_some(Self(micros_per_count))
    }

    #[inline]
    #[allow(clippy::cast_possible_truncation, reason = "the upper half of 128 bits")]
    fn micros_in(self, counts: u64) -> u64 {
        ((u128::from(counts) * u128::from(self.0)) >> 64) as u64
    }

    fn counts_in(self, micros: u64) -> u64 {
        u64::try_from((u128::from(micros) << 64) / u128::from(self.0)).unwrap_or(u64::MAX)
    }

    /// The rate at which `loss` less pass of so many microseconds.
    fn slowed(self, loss: u64, micros: u64) -> Self {
        let slowed = u128::from(self.0) * u128::from(micros - loss) / u128::from(micros.max(1));
        Self(u64::try_from(slowed).unwrap_or(self.0))
    }
}

/// A clock of straight segments: within each it counts by one rate, and where it ends the other
/// clocks are looked at.
struct Disciplined<S> {
    sources: S,
    segment: &'static Segment,
    course: Mutex<Course>,
}

/// The present segment, so that readers find all of it or none.
///
/// The one that writes takes `from` away, writes the others while the count is still below the new
/// `from`, and then writes that. A reader has read its count before the rest, so if it finds any
/// number from before, its count is below the new `from`, and the segment does not have it.
struct Segment {
    /// The count that it begins with.
    from: AtomicU64,
    /// The time at that count.
    base: AtomicU64,
    /// Its [`Rate`].
    rate: AtomicU64,
}

impl Segment {
    const fn new() -> Self {
        Self { from: AtomicU64::new(0), base: AtomicU64::new(0), rate: AtomicU64::new(0) }
    }

    /// The time at this count, which has been read before, if the segment has it.
    #[inline]
    fn time_at(&self, count: u64) -> Option<Tick> {
        let base = self.base.load(Acquire);
        let rate = Rate(self.rate.load(Acquire));
        let counted = count.wrapping_sub(self.from.load(Acquire));
        let passed = rate.micros_in(counted);
        (passed < SEGMENT_MICROS).then(|| Tick::from_stored(base.wrapping_add(passed)))
    }

    /// Writes all but the count that it begins with, after which no reader finds one that it has.
    fn prepare(&self, from: u64, base: u64, rate: Rate) {
        const FAR_OFF: u64 = 1 << 63;
        self.from.store(from.wrapping_add(FAR_OFF), Relaxed);
        self.base.store(base, Release);
        self.rate.store(rate.0, Release);
        fence(SeqCst);
    }

    fn begin(&self, from: u64) {
        self.from.store(from, Release);
    }
}

/// What a segment was begun with.
struct Course {
    begun: Reading,
    /// The time then.
    base: u64,
    /// The count that it begins with.
    from: u64,
    /// No reader has seen a later time.
    seen: u64,
    /// By how many microseconds it was ahead of the wall clock.
    ahead: u64,
    /// The rate of the counter, as far as it is known.
    rate: Rate,
    /// Readings that the rate is measured from, and will be measured from next.
    anchors: [Reading; 2],
}

/// The clocks, read at one time.
#[derive(Copy, Clone)]
struct Reading {
    counts: u64,
    steady_nanos: u64,
    wall_micros: u64,
}

/// How long a segment is, by its own time.
const SEGMENT_MICROS: u64 = 100_000;

/// A segment begins so long after the clocks have been read, when all is written.
const LEAD_MICROS: u64 = 2;

/// A segment that begins here ends before the end of time.
const LATEST: u64 = Tick::MAX.as_micros() - 2 * SEGMENT_MICROS;

/// Readings so far apart give the rate to some millionths; the error is that of a reading.
const SHORTEST_BASELINE_NANOS: u64 = 20_000_000;
/// From so far apart on, what the rate is measured from is replaced, as rates change.
const LONGEST_BASELINE_NANOS: u64 = 16_000_000_000;

impl<S: Sources> Disciplined<S> {
    fn new(sources: S, segment: &'static Segment) -> Self {
        const COUNTS: u64 = 1 << 40;
        const GONE_MICROS: u64 = SEGMENT_MICROS * 3 / 4;
        let rate = Rate::new(sources.nanos_of(COUNTS), COUNTS).unwrap_or(Rate(1));
        let reading = read(&sources);
        // The first segment is short, as the counter's rate is not known well.
        let gone = rate.counts_in(GONE_MICROS);
        let base = reading.wall_micros.wrapping_sub(rate.micros_in(gone));
        let from = reading.counts.wrapping_sub(gone);
        segment.prepare(from, base, rate);
        segment.begin(from);
        let course = Course {
            begun: reading,
            base: reading.wall_micros,
            from,
            seen: base.wrapping_add(SEGMENT_MICROS),
            ahead: 0,
            rate,
            anchors: [reading; 2],
        };
        Self { sources, segment, course: Mutex::new(course) }
    }

    /// Begins the segment that the present count is in, unless another thread has done so.
    #[cold]
    #[inline(never)]
    fn next_segment(&self) -> Tick {
        let mut course = self.course.lock();
        let count = self.sources.counts();
        if let Some(now) = self.segment.time_at(count) {
            return now;
        }
        // It begins soon. Or this processor's counter is a little behind the other one's.
        let early = course.from.wrapping_sub(count);
        if early < course.rate.counts_in(SEGMENT_MICROS / 10) {
            return Tick::from_stored(course.base);
        }
        let mut lead = course.rate.counts_in(LEAD_MICROS).max(1);
        loop {
            let reading = read(&self.sources);
            let rate = course.proceed(&reading);
            let base = course.base.wrapping_add(rate.micros_in(lead));
            course.from = reading.counts.wrapping_add(lead);
            self.segment.prepare(course.from, base, rate);
            if course.from.wrapping_sub(self.sources.counts()) <= lead {
                course.seen = base.wrapping_add(SEGMENT_MICROS);
                self.segment.begin(course.from);
                return Tick::from_stored(course.base);
            }
            // This thread was interrupted.
            lead *= 2;
        }
    }
}

impl Course {
    /// Goes on from this reading; returns the rate to go by.
    fn proceed(&mut self, reading: &Reading) -> Rate {
        let passed = reading.steady_nanos.saturating_sub(self.begun.steady_nanos) / 1_000;
        self.measure(reading, passed);
        // If it is ahead, it goes at half speed or more until the wall clock has caught up.
        let on_course = self.base + passed - self.ahead.min(passed / 2);
        self.base = on_course.max(self.seen).max(reading.wall_micros).min(LATEST);
        self.ahead = self.base.saturating_sub(reading.wall_micros);
        self.begun = *reading;
        self.rate.slowed(self.ahead.min(SEGMENT_MICROS / 2), SEGMENT_MICROS)
    }

    /// Measures the rate of the counter, unless it has not counted all of the time.
    fn measure(&mut self, reading: &Reading, passed: u64) {
        let counted = self.rate.micros_in(reading.counts.wrapping_sub(self.begun.counts));
        if counted.abs_diff(passed) > 1_000 + passed / 100 {
            self.anchors = [*reading; 2];
            return;
        }
        let [old, young] = self.anchors;
        let since = |anchor: Reading| reading.steady_nanos.saturating_sub(anchor.steady_nanos);
        if since(old) >= SHORTEST_BASELINE_NANOS {
            let counts = reading.counts.wrapping_sub(old.counts);
            self.rate = Rate::new(since(old), counts).unwrap_or(self.rate);
        }
        if since(young) >= LONGEST_BASELINE_NANOS / 2 {
            self.anchors = [young, *reading];
        }
    }
}

/// All clocks at one time, or as near to it as can be had in a few tries: a thread may be
/// interrupted between them.
fn read<S: Sources>(sources: &S) -> Reading {
    let readings = [(); 4].map(|()| {
        let before = sources.counts();
        let (steady_nanos, wall_micros) = (sources.steady_nanos(), sources.wall_micros());
        let taken = sources.counts().wrapping_sub(before);
        (taken, Reading { counts: before.wrapping_add(taken / 2), steady_nanos, wall_micros })
    });
    let [first, others @ ..] = readings;
    let closest = others.into_iter().fold(first, |a, b| if b.0 < a.0 { b } else { a });
    closest.1
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;

    const START: u64 = 1_800_000_000_000_000;
    const SECOND: u64 = 1_000_000;
    const HOUR: u64 = 3_600 * SECOND;

    /// Clocks that are moved by hand. The counter counts 3,000 in a microsecond, which is stated with
    /// an error.
    struct Hands {
        counts: Cell<u64>,
        steady_nanos: Cell<u64>,
        wall_micros: Cell<u64>,
        error_millionths: i64,
    }

    impl Hands {
        fn new(error_millionths: i64) -> Disciplined<Self> {
            let [counts, steady_nanos] = [u64::MAX - 1_000, 77].map(Cell::new);
            let wall_micros = Cell::new(START);
            let segment = Box::leak(Box::new(Segment::new()));
            Disciplined::new(Self { counts, steady_nanos, wall_micros, error_millionths }, segment)
        }

        fn awake(&self, micros: u64) {
            self.counts.set(self.counts.get().wrapping_add(3_000 * micros));
            self.asleep(micros);
        }

        /// What passes while the processor's counter stands still.
        fn asleep(&self, micros: u64) {
            self.steady_nanos.set(self.steady_nanos.get() + 1_000 * micros);
            self.wall_micros.set(self.wall_micros.get() + micros);
        }

        fn set_wall(&self, micros: u64) {
            self.wall_micros.set(micros);
        }
    }

    impl Sources for Hands {
        fn counts(&self) -> u64 {
            self.counts.get()
        }

        fn steady_nanos(&self) -> u64 {
            self.steady_nanos.get()
        }

        fn wall_micros(&self) -> u64 {
            self.wall_micros.get()
        }

        fn nanos_of(&self, counts: u64) -> u64 {
            let error = i128::from(counts) * i128::from(self.error_millionths) / 3_000_000;
            u64::try_from(i128::from(counts) / 3 + error).unwrap()
        }
    }

    fn now(clock: &Disciplined<Hands>) -> u64 {
        let now = clock.segment.time_at(clock.sources.counts());
        now.unwrap_or_else(|| clock.next_segment()).as_micros()
    }

    /// Lets so much time pass, and reads the clock every `step`: it never goes back.
    fn run(clock: &Disciplined<Hands>, micros: u64, step: u64) {
        let mut last = now(clock);
        for _ in 0..micros / step {
            clock.sources.awake(step);
            let next = now(clock);
            assert!(next >= last, "{next} after {last}");
            last = next;
        }
    }

    #[test]
    fn it_counts_on_from_the_wall_clock_within_20_millionths() {
        for error in [-400, -30, 0, 30, 400] {
            for step in [7, 1_003, 99_991, 3 * SECOND] {
                let clock = Hands::new(error);
                assert_eq!(now(&clock), START);
                for _ in 0..20 {
                    let before = now(&clock);
                    let passed = SECOND.next_multiple_of(step);
                    run(&clock, passed, step);
                    let counted = now(&clock) - before;
                    assert!(
                        counted.abs_diff(passed) <= passed / 50_000,
                        "{error}, {step}: {counted} of {passed}"
                    );
                }
            }
        }
    }

    #[test]
    fn it_goes_on_while_the_machine_sleeps() {
        for wall_sleeps_too in [false, true] {
            let clock = Hands::new(5);
            run(&clock, 10 * SECOND, 10_000);
            let before = now(&clock);
            clock.sources.asleep(8 * HOUR);
            if wall_sleeps_too {
                clock.sources.set_wall(START + 10 * SECOND);
            }
            clock.sources.awake(SECOND);
            assert!(now(&clock).abs_diff(before + 8 * HOUR + SECOND) < 100, "{wall_sleeps_too}");
        }
    }

    #[test]
    fn it_goes_on_where_the_counter_begins_anew() {
        let clock = Hands::new(5);
        run(&clock, 10 * SECOND, 10_000);
        clock.sources.counts.set(0);
        clock.sources.asleep(HOUR);
        run(&clock, 10 * SECOND, 10_000);
        assert!(now(&clock).abs_diff(START + HOUR + 20 * SECOND) < 100);
    }

    #[test]
    fn it_follows_a_wall_clock_that_is_ahead_at_the_next_look() {
        let clock = Hands::new(5);
        run(&clock, 10 * SECOND, 10_000);
        clock.sources.set_wall(START + 6 * HOUR);
        run(&clock, 200_000, 1_000);
        assert!(now(&clock).abs_diff(START + 6 * HOUR + 200_000) < 5);
    }

    #[test]
    fn it_goes_more_slowly_until_a_wall_clock_that_is_behind_has_caught_up() {
        for step in [1_000, 30_000, 700_000, 90 * SECOND] {
            let clock = Hands::new(5);
            run(&clock, 9 * SECOND, 1_000);
            clock.sources.set_wall(START + 9 * SECOND - HOUR);
            let mut last = now(&clock);
            for minute in 1..=130 {
                run(&clock, 180 * SECOND, step);
                let passed = now(&clock) - last;
                let truly = 180 * SECOND / step * step;
                let possible = truly / 2 - 200..=truly + 200;
                assert!(possible.contains(&passed), "{minute}: {passed} of {truly}");
                last = now(&clock);
            }
            assert!(last.abs_diff(clock.sources.wall_micros.get()) < 100, "{step}");
        }
    }
}
