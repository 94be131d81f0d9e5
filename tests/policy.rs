//! Policies as texts and in configuration files.

use serde::Deserialize;
use tollgate::{
    FixedWindow, LeakyBucket, Limit, Policy, Quota, SlidingLog, SlidingWindowCounter, TokenBucket,
};

#[test]
fn texts_read_as_policies() {
    let ten = Quota::per_second(10);
    let table: [(&str, Policy, &str); 11] = [
        ("100/minute", "token_bucket 100/60s".parse().unwrap(), "100/min"),
        ("1/2s burst 3", "token_bucket 1/2s burst 3".parse().unwrap(), "token_bucket 1/2s burst 3"),
        (
            "sliding_window_counter 100/minute",
            SlidingWindowCounter::new(Quota::per_minute(100)).into(),
            "sliding_window_counter 100/min",
        ),
        (
            "token_bucket 1/2s burst 3",
            TokenBucket::new("1/2s".parse().unwrap()).burst(3).into(),
            "token_bucket 1/2s burst 3",
        ),
        (
            "  burst :token_bucket 10 / s   burst  20;daily:fixed_window 5000/ 1 days ",
            Policy::all([
                Limit::from(TokenBucket::new(ten).burst(20)).named("burst").unwrap(),
                Limit::from(FixedWindow::new(Quota::per_day(5000))).named("daily").unwrap(),
            ])
            .unwrap(),
            "burst: token_bucket 10/s burst 20; daily: fixed_window 5000/d",
        ),
        (
            "leaky_bucket 10/s nodelay capacity 5",
            LeakyBucket::new(ten).capacity(5).nodelay().into(),
            "leaky_bucket 10/s capacity 5 nodelay",
        ),
        ("leaky_bucket 10/sec capacity 10", LeakyBucket::new(ten).into(), "leaky_bucket 10/s"),
        ("token_bucket 10/second burst 10", TokenBucket::new(ten).into(), "10/s"),
        ("sliding_log 10/1000ms", SlidingLog::new(ten).into(), "sliding_log 10/s"),
        ("fixed_window 3/90min", "fixed_window 3/5400s".parse().unwrap(), "fixed_window 3/90min"),
        ("token_bucket: 10/s", "token_bucket:10/1s".parse().unwrap(), "token_bucket: 10/s"),
    ];
    for (text, policy, canonical) in table {
        assert_eq!(text.parse::<Policy>().unwrap(), policy, "{text}");
        assert_eq!(policy.to_string(), canonical);
    }
}

#[test]
fn every_unit_of_time_is_read() {
    let table = [
        (1, "ms"),
        (1_000, "s sec second seconds"),
        (60_000, "m min minute minutes"),
        (3_600_000, "h hour hours"),
        (86_400_000, "d day days"),
    ];
    for (millis, units) in table {
        for unit in units.split(' ') {
            for (text, n) in [(format!("7/{unit}"), 1), (format!("7/3{unit}"), 3)] {
                let quota: Quota = text.parse().unwrap();
                assert_eq!((quota.count(), quota.period().as_millis()), (7, n * millis), "{text}");
            }
        }
    }
}

#[test]
fn wrong_texts_are_told_where_and_what_was_expected() {
    let algorithms =
        "token_bucket, leaky_bucket, fixed_window, sliding_log or sliding_window_counter";
    let table = [
        ("", "column 1, at the end: expected a count, as in \"100/min\""),
        ("10/s;;5/s", "column 6, at \";\": expected a count, as in \"100/min\""),
        ("10/;5/s", "column 4, at \";\": expected a unit of time (ms, s, min, h or d)"),
        (
            ": 10/s",
            "column 1, at \":\": a limit's name must be 1 to 128 printable ASCII characters without ':' and ';', and no space at its ends, not \"\"",
        ),
        ("10/s;", "column 6, at the end: expected a count, as in \"100/min\""),
        (
            "bucket 10/s",
            &format!("column 1, at \"bucket\": expected an algorithm ({algorithms}) or a count"),
        ),
        ("10", "column 3, at the end: expected \"/\" and a period, as in \"100/min\""),
        ("10 per s", "column 4, at \"per\": expected \"/\" and a period, as in \"100/min\""),
        ("10/", "column 4, at the end: expected a unit of time (ms, s, min, h or d)"),
        ("10/5", "column 5, at the end: expected a unit of time (ms, s, min, h or d)"),
        (
            "10/fortnight",
            "column 4, at \"fortnight\": expected a unit of time (ms, s, min, h or d)",
        ),
        ("10/s 5", "column 6, at \"5\": expected an option or the end of the limit"),
        ("0/s", "column 1, at \"0\": a quota's count must be 1 to 10000000000000, not 0"),
        (
            "99999999999999999999/s",
            "column 1, at \"99999999999999999999\": expected a number up to 10000000000000",
        ),
        (
            "1/0s",
            "column 3, at \"0s\": a quota's period must be a whole number of milliseconds, 1 ms to 400 days, not 0ns",
        ),
        (
            "5/s; 1/401 d",
            "column 8, at \"401 d\": a quota's period must be a whole number of milliseconds, 1 ms to 400 days, not 34646400s",
        ),
        (
            "10/s capacity 3",
            "column 6, at \"capacity\": expected \"burst COUNT\" or the end of the limit for token_bucket",
        ),
        (
            "sliding_window_counter 10/s burst 3",
            "column 29, at \"burst\": expected the end of the limit for sliding_window_counter",
        ),
        (
            "token_bucket 10/s capacity 3",
            "column 19, at \"capacity\": expected \"burst COUNT\" or the end of the limit for token_bucket",
        ),
        (
            "leaky_bucket 10/s burst 3",
            "column 19, at \"burst\": expected \"capacity COUNT\", \"nodelay\" or the end of the limit for leaky_bucket",
        ),
        ("token_bucket 10/s burst", "column 24, at the end: expected a number of tokens"),
        ("token_bucket 10/s burst 3 burst 4", "column 27, at \"burst\": expected each option once"),
        (
            "leaky_bucket 1/s nodelay nodelay",
            "column 26, at \"nodelay\": expected each option once",
        ),
        (
            "token_bucket 10/s burst 0",
            "column 25, at \"0\": a burst must be 1 to 10000000000000, not 0",
        ),
        (
            "token_bucket 1/d burst 18251",
            "column 24, at \"18251\": a burst of 18251 at 1/d takes more than fifty years to refill: lower it, or raise the quota",
        ),
        (
            "é: 10/s",
            "column 1, at \"é\": a limit's name must be 1 to 128 printable ASCII characters without ':' and ';', and no space at its ends, not \"é\"",
        ),
        ("a: 10/s; é 5/s", "column 10, at \"é\": expected a count, as in \"100/min\""),
        (
            "a: 1/s; a: 2/s",
            "column 9, at \"a: 2/s\": two limits of one policy are named \"a\": give each a name of its own",
        ),
        (
            "10/s; 10/1s",
            "column 7, at \"10/1s\": two limits of one policy are named \"10/s\": give each a name of its own",
        ),
    ];
    for (text, error) in table {
        assert_eq!(text.parse::<Policy>().unwrap_err().to_string(), error, "{text:?}");
    }
    assert!("token_bucket 1/d burst 18250".parse::<Policy>().is_ok());
}

/// However many limits there are: the error is about the first one whose name repeats.
#[test]
fn the_first_name_that_repeats_is_refused() {
    let limit = |n: u64| format!("{n}: 10/s");
    let names = (0..50_000).chain([40_000, 7, 40_000]);
    let text = names.map(limit).collect::<Vec<_>>().join(";");
    let error = text.parse::<Policy>().unwrap_err();
    let reason = "two limits of one policy are named \"40000\": give each a name of its own";
    assert!(error.to_string().ends_with(reason), "{error}");
    assert_eq!(&text[error.span().unwrap()], "40000: 10/s");
    assert_eq!(text[..error.span().unwrap().start].matches(';').count(), 50_000);
    let different = (0..50_000).map(limit).collect::<Vec<_>>().join(";");
    assert_eq!(different.parse::<Policy>().unwrap().limits().len(), 50_000);
}

#[derive(Debug, Deserialize)]
struct Config {
    policy: Policy,
}

#[test]
fn configuration_files_hold_texts_tables_or_lists_of_them() {
    let table = [
        (r#"policy = "10/s; daily: fixed_window 5000/day""#, "10/s; daily: fixed_window 5000/d"),
        (
            r#"policy = { algorithm = "token_bucket", quota = "10/s", burst = 20, name = "api" }"#,
            "api: token_bucket 10/s burst 20",
        ),
        (r#"policy = { quota = "10/s" }"#, "10/s"),
        (
            r#"
            [[policy]]
            algorithm = "leaky_bucket"
            quota = "10/s"
            capacity = 5
            nodelay = true
            [[policy]]
            name = "daily"
            quota = "5000/day"
            "#,
            "leaky_bucket 10/s capacity 5 nodelay; daily: 5000/d",
        ),
        (r#"policy = ["10/s", { quota = "100/min" }]"#, "10/s; 100/min"),
        (r#"policy = { quota = "10/s", burst = 3 }"#, "token_bucket 10/s burst 3"),
    ];
    for (toml, text) in table {
        let config: Config = toml::from_str(toml).unwrap();
        assert_eq!(config.policy.to_string(), text);
        let json = serde_json::to_string(&config.policy).unwrap();
        assert_eq!(json, format!("{text:?}"));
        assert_eq!(serde_json::from_str::<Policy>(&json).unwrap(), config.policy);
    }
}

/// One that does not say whether a text or a table follows.
#[test]
fn a_binary_format_holds_texts() {
    let policy: Policy = "burst: token_bucket 10/s burst 20; sliding_log 5000/d".parse().unwrap();
    let config = (policy.limits()[1].clone(), policy, Quota::per_second(3));
    let bytes = postcard::to_stdvec(&config).unwrap();
    assert_eq!(postcard::from_bytes::<(Limit, Policy, Quota)>(&bytes).unwrap(), config);
    let bytes = postcard::to_stdvec("10/fortnight").unwrap();
    assert!(postcard::from_bytes::<Policy>(&bytes).is_err());
}

#[test]
fn wrong_configurations_are_refused_with_a_reason() {
    let table = [
        (r#"policy = "10/fortnight""#, "column 4, at \"fortnight\""),
        (r#"policy = 10"#, "a policy, as a text, a table or a list of limits"),
        (r#"policy = []"#, "a policy needs at least one limit"),
        (
            r#"policy = { quota = "10/s", capacity = 3 }"#,
            "in \"token_bucket 10/s capacity 3\", column 19, at \"capacity\"",
        ),
        (r#"policy = { quota = "10/s", bust = 3 }"#, "unknown field `bust`"),
        (r#"policy = { algorithm = "gcra", quota = "10/s" }"#, "expected an algorithm"),
        (r#"policy = { name = "a;b", quota = "10/s" }"#, "a limit's name must be"),
        (r#"policy = { quota = "10/s;" }"#, "column 5"),
        (r#"policy = { algorithm = "x: token_bucket", quota = "10/s" }"#, "expected an algorithm"),
    ];
    for (toml, reason) in table {
        let error = toml::from_str::<Config>(toml).unwrap_err().to_string();
        assert!(error.contains(reason), "{toml}: {error}");
    }
}
