//! Whatever the text: an error that points into it, or a policy whose text reads as the same one.

#![no_main]

use libfuzzer_sys::fuzz_target;
use tollgate::Policy;

fuzz_target!(|text: &str| {
    match text.parse::<Policy>() {
        Ok(policy) => {
            assert_eq!(policy.to_string().parse::<Policy>().unwrap(), policy);
        }
        Err(error) => {
            let span = error.span().expect("an error of a text tells where");
            assert!(text.get(span).is_some());
            assert!(!error.to_string().is_empty());
        }
    }
});
