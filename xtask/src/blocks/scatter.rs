//! `blocks scatter`: writes to random places of a range that was never filled, so that a thin volume stays thin. It may be
//! repeated with the same state file; each time the places are others. `blocks discard` gives the whole range back.

use anyhow::{Context, Result};

use super::content::{BLOCK, Random};
use super::{BLOCKS_MAX_PER_OP, Job, Options, index};

impl Job {
    /// `--ops` writes of `--per-op` blocks each at random places, a flush, and all that was ever written read back.
    pub(super) fn scatter(&mut self, options: &Options) -> Result<()> {
        let count = options.per_op.min(self.blocks());
        let so_far: u64 = self.model.issued.iter().sum();
        self.random = Random::new(self.seed ^ so_far.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        for _ in 0..options.ops {
            let at = self.random.below(self.blocks() - count + 1);
            self.write(at, count)?;
        }
        self.flush()?;
        self.verify_written()
    }

    /// Discards everything; it must read as zeroes.
    pub(super) fn discard(&mut self) -> Result<()> {
        let bytes = self.blocks() * BLOCK as u64;
        let first = self.first * BLOCK as u64;
        let piece = 64 << 20;
        for at in (0..bytes).step_by(piece) {
            let length = (bytes - at).min(piece as u64);
            if let Some(disk) = &mut self.disk {
                let discarded = disk.discard(first + at, length);
                discarded.with_context(|| format!("discard of {length} bytes at {at}"))?;
            }
        }
        for versions in [&mut self.model.acked, &mut self.model.issued] {
            versions.fill(0);
        }
        self.flush()?;
        self.verify_all()
    }

    /// Reads back what was written; places never written are left out, since a large thin volume is mostly that.
    fn verify_written(&mut self) -> Result<()> {
        let mut at = 0;
        while at < self.blocks() {
            let is_written = |block: u64| self.model.issued.get(index(block)) > Some(&0);
            if !is_written(at) {
                at += 1;
                continue;
            }
            let mut count = 1;
            while count < BLOCKS_MAX_PER_OP && is_written(at + count) {
                count += 1;
            }
            self.verify(at, count)?;
            at += count;
        }
        Ok(())
    }
}
