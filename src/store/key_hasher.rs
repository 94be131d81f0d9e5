use foldhash::SharedSeed;
use foldhash::quality::FoldHasher;
use std::fmt;
use std::hash::{BuildHasher, Hash, Hasher};

/// Hashes keys (by foldhash) under two seeds, which are never shown.
pub(super) struct KeyHasher {
    seeds: [u64; 2],
    /// Made of the second seed.
    shared: SharedSeed,
}

impl KeyHasher {
    /// Under seeds that are drawn at random.
    pub(super) fn random() -> Self {
        Self::with_seeds([(); 2].map(random_seed))
    }

    pub(super) const fn with_seeds(seeds: [u64; 2]) -> Self {
        Self { seeds, shared: SharedSeed::from_u64(seeds[1]) }
    }

    #[inline]
    pub(super) fn hash<K: Hash + ?Sized>(&self, key: &K) -> u64 {
        let mut hasher = FoldHasher::with_seed(self.seeds[0], &self.shared);
        key.hash(&mut hasher);
        hasher.finish()
    }
}

#[cfg(feature = "serde")]
impl KeyHasher {
    pub(super) const fn seeds(&self) -> [u64; 2] {
        self.seeds
    }

    /// The hash of a key with parts of many types, and of each length that foldhash treats
    /// otherwise.
    pub(super) fn check(&self) -> u64 {
        let numbers = (1_u8, 2_u16, 3_u32, 4_u64, 5_u128, 6_usize);
        let texts = [1, 4, 20, 40].map(|times| "tollgate".repeat(times));
        let addresses = ["192.0.2.1", "2001:db8::1"].map(str::parse::<std::net::IpAddr>);
        self.hash(&(numbers, texts, addresses.map(Result::ok)))
    }
}

/// From the operating system's source of randomness.
fn random_seed((): ()) -> u64 {
    std::hash::RandomState::new().hash_one(())
}

impl fmt::Debug for KeyHasher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KeyHasher").finish_non_exhaustive()
    }
}
