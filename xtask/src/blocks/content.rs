//! What a block holds: everything in it follows from the run's seed, its place and its version.

use anyhow::{Result, ensure};

pub(crate) const BLOCK: usize = 4096;
const MAGIC: u64 = 0x766f_6c75_6e64_626c;

/// Writes the one content that this seed, place and version have.
pub(super) fn fill(bytes: &mut [u8], seed: u64, place: u64, version: u64) {
    let mut random = Random::new(seed ^ place.rotate_left(20) ^ version.rotate_left(40));
    let header = [MAGIC, seed, place, version];
    let mut words = bytes.chunks_exact_mut(8);
    for value in header {
        if let Some(word) = words.next() {
            word.copy_from_slice(&value.to_le_bytes());
        }
    }
    for word in words {
        word.copy_from_slice(&random.next().to_le_bytes());
    }
}

/// The version of a block, 0 for all zeroes; an error when it is anything else than this run wrote here.
pub(super) fn version_of(bytes: &[u8], seed: u64, place: u64) -> Result<u64> {
    if *bytes == [0; BLOCK] {
        return Ok(0);
    }
    let word = |at: usize| {
        let mut word = [0; 8];
        word.copy_from_slice(&bytes[at * 8..at * 8 + 8]);
        u64::from_le_bytes(word)
    };
    ensure!(
        word(0) == MAGIC && word(1) == seed && word(2) == place,
        "block {place} has foreign content: magic {:x}, seed {:x} (ours is {seed:x}), place {}",
        word(0),
        word(1),
        word(2)
    );
    let version = word(3);
    let mut expected = vec![0; BLOCK];
    fill(&mut expected, seed, place, version);
    if bytes != expected {
        let mut pairs = bytes.iter().zip(&expected);
        let at = pairs.position(|(found, wanted)| found != wanted);
        let at = at.unwrap_or(BLOCK);
        anyhow::bail!("block {place} is torn: version {version}, but not from byte {at} on");
    }
    Ok(version)
}

/// xorshift64: small, and the same everywhere.
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Random {
        Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub(super) fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    pub(crate) fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }
}
