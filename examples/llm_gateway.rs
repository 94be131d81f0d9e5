//! Tokens per minute of a language model: reserved as an estimate, settled when the cost is known.
//!
//! ```text
//! cargo run --features tokio --example llm_gateway
//! cargo run --features redis --example llm_gateway -- redis://127.0.0.1/
//! ```
//!
//! What an answer costs is known when it has been written. A gateway that charges afterwards lets a
//! burst of requests through together; one that charges the most that an answer may cost refuses
//! requests for tokens that nobody uses. This one reserves the most, and gives back the rest.

use std::error::Error;
use std::time::Duration;
use tokio::task::JoinSet;
use tollgate::{BoxRateLimiter, Limiter, Policy, RateLimiter};

/// Both hold: what is reserved is taken from both, and what is left of it goes back to both.
const LIMITS: &str = "minute: token_bucket 90000/min; day: fixed_window 2000000/day";
const MAX_ANSWER_TOKENS: u64 = 4_000;

/// Stands for the model: answers are shorter than they may be.
async fn ask_model(prompt_tokens: u64) -> u64 {
    tokio::time::sleep(Duration::from_millis(20)).await;
    prompt_tokens + MAX_ANSWER_TOKENS / 10
}

/// Serves a request, and tells what it cost; `None` where it was refused.
async fn serve(
    limiter: &BoxRateLimiter<str>,
    tenant: &str,
    prompt_tokens: u64,
) -> Result<Option<u64>, Box<dyn Error + Send + Sync>> {
    let reservation = limiter.reserve(tenant, prompt_tokens + MAX_ANSWER_TOKENS).await?;
    if !reservation.decision().is_allowed() {
        return Ok(None);
    }
    // Were this to fail, or the request to be cancelled, all of it would be given back.
    let tokens = ask_model(prompt_tokens).await;
    let after = reservation.settle(tokens).await?;
    assert!(after.remaining() <= after.limit());
    Ok(Some(tokens))
}

/// In this process, or in the Redis at `url`.
async fn limiter(url: Option<String>) -> Result<BoxRateLimiter<str>, Box<dyn Error + Send + Sync>> {
    let policy: Policy = LIMITS.parse()?;
    let Some(url) = url else { return Ok(BoxRateLimiter::new(Limiter::new(policy))) };
    #[cfg(feature = "redis")]
    {
        let prefix = format!("llm_gateway_{}", std::process::id());
        let store = tollgate::Redis::connect(&url).await?.prefix(&prefix);
        Ok(BoxRateLimiter::new(Limiter::with_store(policy, store)))
    }
    #[cfg(not(feature = "redis"))]
    Err(format!("built without --features redis, so {url} is no use").into())
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error + Send + Sync>> {
    let limiter = limiter(std::env::args().nth(1)).await?;
    // At once, 40 requests reserve 180,000 tokens: there are enough for 20 of them.
    let mut waves = Vec::new();
    for _ in 0..2 {
        let mut requests = JoinSet::new();
        for _ in 0..40 {
            let limiter = limiter.clone();
            requests.spawn(async move { serve(&limiter, "tenant", 500).await });
        }
        let mut costs = Vec::new();
        while let Some(served) = requests.join_next().await {
            costs.extend(served??);
        }
        waves.push(costs);
    }
    for costs in &waves {
        let tokens: u64 = costs.iter().sum();
        println!("{} of 40 requests served, {tokens} tokens", costs.len());
    }
    let left = limiter.peek("tenant").await?.remaining();
    println!("{left} of 90000 tokens left");
    Ok(())
}
