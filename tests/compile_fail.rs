//! Programs that do not compile, and what the compiler says to do about it.

use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::Path;
use std::process::Command;

/// What `cargo check` says of a program that uses this crate, with these features.
fn check(program: &str, features: &[&str]) -> Result<(), String> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let project = tempfile::tempdir().unwrap();
    // Of a name of its own, as cargo would take what it knows of one program for another.
    let mut hash = DefaultHasher::new();
    (program, features).hash(&mut hash);
    let hash = hash.finish();
    let manifest = format!(
        "[package]\nname = \"program-{hash:x}\"\nedition = \"2024\"\n\n\
         [dependencies]\nhttp = \"1\"\ntower = {{ version = \"0.5\", features = [\"util\"] }}\n\
         tollgate = {{ path = {root:?}, features = {features:?} }}\n"
    );
    fs::create_dir(project.path().join("src")).unwrap();
    fs::write(project.path().join("Cargo.toml"), manifest).unwrap();
    fs::write(project.path().join("src/main.rs"), program).unwrap();
    // The versions that are there already.
    fs::copy(root.join("Cargo.lock"), project.path().join("Cargo.lock")).unwrap();
    let output = Command::new(env!("CARGO"))
        .args(["check", "--quiet", "--offline", "--target-dir"])
        .arg(Path::new(env!("CARGO_TARGET_TMPDIR")).join("compile_fail"))
        .current_dir(project.path())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    if output.status.success() { Ok(()) } else { Err(said) }
}

#[test]
fn limits_by_key_on_a_memory_are_refused_with_the_store_to_take() {
    let program = |store: &str| {
        format!(
            "use tollgate::{{Limiter, MonotonicClock, PerKey, Quota, TokenBucket}};\n\
             static FREE: TokenBucket = TokenBucket::new(Quota::per_hour(10));\n\
             fn main() {{\n\
                 let limits = PerKey::new(|_: &str| &FREE);\n\
                 let store = tollgate::{store}::new(MonotonicClock::default());\n\
                 let _ = Limiter::with_store(limits, store).check(\"alice\");\n\
             }}\n"
        )
    };
    check(&program("TieredMemory"), &[]).unwrap();
    let said = check(&program("Memory"), &[]).unwrap_err();
    assert!(said.contains("may differ from key to key"), "{said}");
    assert!(said.contains("these limits need a `TieredMemory`"), "{said}");
    assert!(said.contains("Limiter::with_store(limits, TieredMemory::new(clock))"), "{said}");
}

#[test]
fn a_body_that_no_text_can_become_is_refused_with_the_line_to_write() {
    let program = |ending: &str| {
        format!(
            "use http::{{Request, Response}};\n\
             use tollgate::{{Limiter, Quota, TokenBucket, tower::RateLimitLayer}};\n\
             use tower::{{Service, ServiceBuilder, service_fn}};\n\
             struct Stream;\n\
             fn takes<S: Service<Request<()>>>(_: S) {{}}\n\
             fn main() {{\n\
                 let limiter = Limiter::new(TokenBucket::new(Quota::per_hour(10)));\n\
                 let layer = RateLimitLayer::new(limiter){ending};\n\
                 let serve = async |_: Request<()>| Ok::<_, ()>(Response::new(Stream));\n\
                 takes(ServiceBuilder::new().layer(layer).service(service_fn(serve)));\n\
             }}\n"
        )
    };
    check(&program(".any_body()"), &["tower"]).unwrap();
    let own = ".refusal(|_: &tollgate::tower::Refusal<'_>| Response::new(Stream))";
    check(&program(own), &["tower"]).unwrap();
    let said = check(&program(""), &["tower"]).unwrap_err();
    assert!(said.contains("`ProblemJson` cannot answer with a body of type `Stream`"), "{said}");
    assert!(said.contains("add `.any_body()` at the end of the layer"), "{said}");
    assert!(said.contains("`.refusal(Grpc)`"), "{said}");
    let deny = "fn deny<B: From<String>>(refusal: &Refusal<'_>) -> Response<B>";
    assert!(said.contains(deny), "{said}");
    for ending in [".refusal(deny).any_body()", ".any_body()"] {
        let program = program(ending)
            + deny
            + "{ Response::new(refusal.detail().into_owned().into()) }\nuse tollgate::tower::Refusal;\n";
        check(&program, &["tower"]).unwrap();
    }
}

#[cfg(feature = "redis")]
#[test]
fn a_limiter_on_redis_without_a_name_is_refused_with_what_to_write() {
    let program = |limiter: &str| {
        format!(
            "use tollgate::{{Limiter, Quota, Redis, TokenBucket}};\n\
             fn main() -> Result<(), tollgate::Error> {{\n\
                 let redis = Redis::connect_lazy(\"redis://127.0.0.1/\")?;\n\
                 let limits = TokenBucket::new(Quota::per_hour(10));\n\
                 let _: Limiter<TokenBucket, Redis> = {limiter};\n\
                 Ok(())\n\
             }}\n"
        )
    };
    check(&program("redis.limiter(\"api\", limits)?"), &["redis"]).unwrap();
    let said = check(&program("Limiter::with_store(limits, redis)"), &["redis"]).unwrap_err();
    assert!(said.contains("E0277"), "{said}");
    assert!(said.contains("a limiter on Redis has a name"), "{said}");
    assert!(said.contains("`redis.limiter(\"name\", limits)?`"), "{said}");
}

#[test]
fn a_limiter_that_can_fail_is_refused_with_the_choices() {
    let program = |choice: &str| {
        format!(
            "use http::{{Request, Response}};\n\
             use tollgate::{{Limiter, Quota, RateLimiter, TokenBucket}};\n\
             use tollgate::tower::{{FailOpen, RateLimitLayer}};\n\
             use tower::{{Service, ServiceBuilder, service_fn}};\n\
             use std::io::Error;\n\
             struct Failing(Limiter<TokenBucket>);\n\
             impl tollgate::Describe for Failing {{\n\
                 fn describe(&self) -> Vec<tollgate::Description> {{ self.0.describe() }}\n\
             }}\n\
             impl<K: Sync + ?Sized> RateLimiter<K> for Failing {{\n\
                 type Error = Error;\n\
                 async fn decide(&self, _: &K, _: tollgate::Operation<'_>) \
                     -> Result<tollgate::Decision, Error> {{ Err(Error::other(\"broken\")) }}\n\
             }}\n\
             fn takes<S: Service<Request<()>>>(_: S) {{}}\n\
             fn main() {{\n\
                 let limiter = Failing(Limiter::new(TokenBucket::new(Quota::per_hour(10))));\n\
                 let layer = RateLimitLayer::new(limiter){choice};\n\
                 let serve = async |_: Request<()>| Ok::<_, ()>(Response::new(String::new()));\n\
                 takes(ServiceBuilder::new().layer(layer).service(service_fn(serve)));\n\
             }}\n"
        )
    };
    check(&program(".on_store_error(FailOpen)"), &["tower"]).unwrap();
    let said = check(&program(""), &["tower"]).unwrap_err();
    assert!(said.contains("needs a choice for when it does"), "{said}");
    assert!(said.contains("say `.on_store_error(FailOpen)`"), "{said}");
}
