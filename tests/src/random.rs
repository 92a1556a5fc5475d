//! Chance that can be repeated: a generator whose seed is printed.

/// Environment variable that repeats a run.
const SEED: &str = "SAMPAN_SEED";

/// The splitmix64 generator: one word of state, good enough to choose moments and sizes.
#[derive(Debug)]
pub struct Random(u64);

impl Random {
    /// The seed of the environment, or a new one; printed either way, so that a failure can be repeated.
    #[must_use]
    pub fn from_environment() -> Self {
        let seed = std::env::var(SEED).ok().and_then(|s| s.parse().ok()).unwrap_or_else(|| {
            let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
            now.map_or(0, |d| u64::from(d.subsec_nanos()) ^ d.as_secs())
        });
        println!("{SEED}={seed}");
        Self(seed)
    }

    /// A generator of its own for a thread.
    #[must_use]
    pub fn split(&mut self) -> Self {
        Self(self.next())
    }

    /// A number below `bound`.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}
