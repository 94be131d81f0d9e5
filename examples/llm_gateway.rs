//! Tokens per minute of a language model: reserved as an estimate, spent as the answer is streamed, settled
//! when it is complete.
//!
//! ```text
//! cargo run --features tokio --example llm_gateway
//! cargo run --features redis --example llm_gateway -- redis://127.0.0.1/
//! ```
//!
//! What an answer costs is known when it has been written. A gateway that charges afterwards lets a
//! burst of requests through together; one that charges the most that an answer may cost refuses
//! requests for tokens that nobody uses. This one reserves the most, and gives back the rest. If the
//! client hangs up in the middle, it is charged for what it has been sent.

use std::error::Error;
use std::time::Duration;
use tokio::task::JoinSet;
use tollgate::{BoxRateLimiter, Limiter, Policy, RateLimiter};

/// Both hold: what is reserved is taken from both, and what is left of it goes back to both.
const LIMITS: &str = "minute: token_bucket 90000/min; day: fixed_window 2000000/day";
const MAX_ANSWER_TOKENS: u64 = 4_000;
const CHUNK_TOKENS: u64 = 100;

/// Stands for the model: answers come in chunks, and are shorter than they may be.
async fn next_chunk(chunk: u64) -> Option<u64> {
    tokio::time::sleep(Duration::from_millis(5)).await;
    (chunk < 4).then_some(CHUNK_TOKENS)
}

/// Serves a request until the client hangs up, if it does, after so many chunks. Returns what it cost,
/// or `None` if it was denied.
async fn serve(
    limiter: &BoxRateLimiter<str>,
    tenant: &str,
    prompt_tokens: u64,
    hangs_up_after: Option<u64>,
) -> Result<Option<u64>, Box<dyn Error + Send + Sync>> {
    let mut reservation = limiter.reserve(tenant, prompt_tokens + MAX_ANSWER_TOKENS).await?;
    if !reservation.decision().is_allowed() {
        return Ok(None);
    }
    reservation.spend(prompt_tokens);
    let mut chunk = 0;
    while let Some(tokens) = next_chunk(chunk).await {
        if hangs_up_after == Some(chunk) {
            // As a request that is cancelled would, this drops the reservation, which settles what
            // was spent.
            return Ok(Some(reservation.spent()));
        }
        reservation.spend(tokens);
        chunk += 1;
    }
    let tokens = reservation.spent();
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
        let name = format!("llm_gateway_{}", std::process::id());
        let redis = tollgate::Redis::connect(&url).await?;
        Ok(BoxRateLimiter::new(redis.limiter(&name, policy)?))
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
            requests.spawn(async move { serve(&limiter, "tenant", 500, None).await });
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

    // A tenant whose client hangs up is charged for the prompt, and for the two chunks that were sent.
    if let Some(tokens) = serve(&limiter, "another", 500, Some(2)).await? {
        println!("1 client hung up after {tokens} tokens");
    }
    // In Redis, what is dropped is settled by a task of its own.
    tokio::time::sleep(Duration::from_millis(100)).await;
    let left = limiter.peek("another").await?.remaining();
    println!("{left} of 90000 tokens left");
    Ok(())
}
