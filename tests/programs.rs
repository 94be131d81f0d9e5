//! The replay of traces, and the example of an own algorithm, as programs.

mod common;

use common::program::{replay, run, start_replay};
use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Write};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

fn lines(output: &[u8]) -> Vec<Value> {
    let text = str::from_utf8(output).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn each_decision_is_a_json_object() {
    let trace = "# a comment\n\n0 a 8\n0 a 5 check\n  \n1000000 b 1 peek\n0 a 1\r\n5 a 3 refund\n5 a 0 reset";
    let output = replay(&["--policy", "token_bucket 10/s"], trace);
    assert!(output.status.success());
    let decision =
        |t: u64, key: &str, op: &str, cost: u64, outcome: &str, rest: [Option<u64>; 7]| {
            let [granted, remaining, delay, retry, reset, next, limit] = rest;
            json!({
                "t": t, "key": key, "op": op, "cost": cost, "outcome": outcome,
                "granted": granted, "limit": limit, "remaining": remaining, "delay_us": delay,
                "retry_after_us": retry, "reset_after_us": reset, "next_after_us": next,
            })
        };
    let some = |granted, remaining, retry: Option<u64>, reset, next: Option<u64>| {
        [Some(granted), Some(remaining), Some(0), retry, Some(reset), next, Some(10)]
    };
    let next = Some(100_000);
    assert_eq!(
        lines(&output.stdout),
        [
            decision(0, "a", "check", 8, "allowed", some(8, 2, None, 800_000, next)),
            decision(0, "a", "check", 5, "denied", some(0, 2, Some(300_000), 800_000, next)),
            decision(1_000_000, "b", "peek", 1, "allowed", some(0, 10, None, 0, None)),
            decision(0, "a", "check", 1, "allowed", some(1, 1, None, 900_000, next)),
            decision(5, "a", "refund", 3, "allowed", some(0, 4, None, 599_995, Some(99_995))),
            decision(5, "a", "reset", 0, "allowed", some(0, 10, None, 0, None)),
        ]
    );
}

#[test]
fn sets_name_the_limit_that_binds() {
    let output = replay(&["--policy", "10/s; slow: 1000/h"], "0 a 10\n0 a 1\n0 a 1001\n");
    let bindings: Vec<_> = lines(&output.stdout).iter().map(|d| d["binding"].clone()).collect();
    assert_eq!(bindings, ["10/s", "10/s", "10/s"]);
    let single = replay(&["--policy", "slow: 1000/h"], "0 a 10\n");
    assert_eq!(lines(&single.stdout)[0].get("binding"), None);
}

#[test]
fn the_epoch_says_where_windows_begin() {
    let output = replay(&["--policy", "fixed_window 1/min", "--epoch", "59000000"], "0 a 1\n");
    assert_eq!(lines(&output.stdout)[0]["reset_after_us"], 1_000_000);
}

#[test]
fn a_summary_has_totals_for_each_key() {
    let trace = "0 b 8\n0 a 1\n0 b 5\n0 b 99\n0 b 5 take_up_to\n0 b 1 peek\n";
    let output = replay(&["--policy", "fixed_window 10/s", "--summary"], trace);
    let totals = json!([
        {"key": "a", "decisions": 1, "allowed": 1, "delayed": 0, "denied": 0, "never": 0,
         "units_granted": 1, "units_refused": 0},
        {"key": "b", "decisions": 5, "allowed": 2, "delayed": 0, "denied": 2, "never": 1,
         "units_granted": 10, "units_refused": 107},
    ]);
    assert_eq!(Value::from(lines(&output.stdout)), totals);
}

/// Whoever asks a line at a time is not kept waiting for the end of the trace.
#[test]
fn each_line_is_answered_before_the_next_is_awaited() {
    let mut process = start_replay(&["--policy", "10/s"]);
    let mut input = process.stdin.take().unwrap();
    let mut output = BufReader::new(process.stdout.take().unwrap());
    let (answers, answered) = mpsc::channel();
    let reader = thread::spawn(move || {
        let mut line = String::new();
        while output.read_line(&mut line).unwrap() > 0 {
            answers.send(std::mem::take(&mut line)).unwrap();
        }
    });
    for question in ["0 a 1\n", "0 a 1\n# a comment\n", "0 a 1\n0 "] {
        input.write_all(question.as_bytes()).unwrap();
        let answer = answered.recv_timeout(Duration::from_secs(60)).expect("an answer");
        assert!(answer.contains("allowed"));
    }
    drop(input);
    assert_eq!(process.wait().unwrap().code(), Some(2), "the last line is not whole");
    reader.join().unwrap();
}

#[test]
fn bad_lines_end_the_run_with_their_number() {
    let table = [
        ("0 a 1\n\n0 a\n", "line 3: expected MICROS KEY COST [OP], found no COST"),
        ("7", "line 1: expected MICROS KEY COST [OP], found no KEY"),
        ("x a 1", "line 1: expected MICROS to be a whole number, found \"x\""),
        ("-1 a 1", "line 1: expected MICROS to be a whole number, found \"-1\""),
        ("+1 a 1", "line 1: expected MICROS to be a whole number, found \"+1\""),
        ("1 a 1.5", "line 1: expected COST to be a whole number, found \"1.5\""),
        (
            "1 a 1 take",
            "line 1: expected OP to be check, peek, take_up_to, debit, refund or reset, found \"take\"",
        ),
        ("1 a 1 peek 2", "line 1: expected the end of the line after OP, found \"2\""),
        ("9999999999999999 a 1", "line 1: MICROS 9999999999999999 lies after the year 2191"),
    ];
    for (trace, expected) in table {
        let output = replay(&["--policy", "10/s"], trace);
        assert_eq!(output.status.code(), Some(2), "{trace}");
        assert_eq!(
            str::from_utf8(&output.stderr).unwrap().trim_end(),
            format!("error: {expected}")
        );
    }
    let first = replay(&["--policy", "10/s"], "0 a 1\nbad\n");
    assert_eq!(lines(&first.stdout).len(), 1, "what was decided before it is printed");
    assert_eq!(replay(&["--policy", "ten/s"], "").status.code(), Some(2));
}

#[test]
fn an_algorithm_of_ones_own_decides_like_the_others() {
    let expected = "    0 ms  allowed
  100 ms  refused by cooldown: 100ms
  200 ms  allowed
  300 ms  refused by cooldown: 100ms
  400 ms  allowed
  500 ms  refused by log: 500ms
  600 ms  refused by log: 400ms
  700 ms  refused by log: 300ms
  800 ms  refused by log: 200ms
  900 ms  refused by log: 100ms
 1000 ms  allowed
 1100 ms  refused by cooldown: 100ms
";
    assert_eq!(run("own_algorithm", &[]), expected);
    #[cfg(feature = "redis")]
    assert_eq!(run("own_algorithm", &[&common::redis::SHARED.url()]), expected);
}

/// 90,000 tokens: 20 requests reserve all of them and use 900 each, so 72,000 and what flows in
/// are left for 16 of the next. A client that hangs up pays for what it was sent.
#[test]
fn a_gateway_gives_back_what_answers_do_not_cost() {
    let in_process: Option<String> = None;
    let places = [
        in_process,
        #[cfg(feature = "redis")]
        Some(common::redis::SHARED.url()),
    ];
    for url in places {
        let printed = run("llm_gateway", url.as_deref().as_slice());
        let lines: Vec<&str> = printed.lines().collect();
        let expected =
            ["20 of 40 requests served, 18000 tokens", "16 of 40 requests served, 14400 tokens"];
        assert_eq!(lines[..2], expected, "{printed}");
        let left: u64 = lines[2].strip_suffix(" of 90000 tokens left").unwrap().parse().unwrap();
        // 1,500 tokens flow in each second.
        assert!((57_600..60_000).contains(&left), "{printed}");
        assert_eq!(lines[3], "1 client hung up after 700 tokens");
        let left: u64 = lines[4].strip_suffix(" of 90000 tokens left").unwrap().parse().unwrap();
        assert!((89_300..90_000).contains(&left), "{printed}");
    }
}
