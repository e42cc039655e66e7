//! The labels of a replica's file, as far as a judge from outside needs them (`docs/formats/replica.md`).

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};

const SLOTS: [u64; 2] = [4 << 10, 64 << 10];
const LENGTH: usize = 4096;
const IN_SYNC: u8 = 1;
const VACANT: [u8; 16] = [0; 16];

/// What the newest valid label of a file says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Label {
    pub(super) sequence: u64,
    pub(super) volume: [u8; 16],
    pub(super) generation: u64,
    pub(super) generation_id: [u8; 16],
    pub(super) epoch: u64,
    /// The states of the members that there are.
    pub(super) states: Vec<u8>,
}

impl Label {
    pub(super) fn newest(replica: &Path) -> Result<Label> {
        let file = File::open(replica).with_context(|| format!("{}", replica.display()))?;
        let mut newest: Option<Label> = None;
        for slot in SLOTS {
            let mut bytes = [0; LENGTH];
            file.read_exact_at(&mut bytes, slot)?;
            if let Some(label) = parse(&bytes)
                && newest.as_ref().is_none_or(|n| n.sequence < label.sequence)
            {
                newest = Some(label);
            }
        }
        newest.with_context(|| format!("{} has no valid label", replica.display()))
    }

    pub(super) fn is_in_sync_everywhere(&self) -> bool {
        self.states.iter().all(|state| *state == IN_SYNC)
    }
}

fn parse(bytes: &[u8; LENGTH]) -> Option<Label> {
    let u64_at = |at: usize| Some(u64::from_le_bytes(bytes[at..at + 8].try_into().ok()?));
    let uuid_at = |at: usize| <[u8; 16]>::try_from(&bytes[at..at + 16]).ok();
    let crc = u32::from_le_bytes(bytes[LENGTH - 4..].try_into().ok()?);
    if bytes[..8] != *b"RPLABEL1" || crc != crc32c(&bytes[..LENGTH - 4]) {
        return None;
    }
    let count = u16::from_le_bytes([bytes[224], bytes[225]]).min(16);
    let members = (0..usize::from(count)).map(|slot| 256 + slot * 64);
    let present = members.filter(|at| bytes[*at..at + 16] != VACANT);
    Some(Label {
        sequence: u64_at(16)?,
        volume: uuid_at(56)?,
        generation: u64_at(128)?,
        generation_id: uuid_at(136)?,
        epoch: u64_at(152)?,
        states: present.map(|at| bytes[at + 16]).collect(),
    })
}

fn crc32c(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| {
            (crc >> 1) ^ if crc & 1 == 1 { 0x82f6_3b78 } else { 0 }
        })
    })
}

/// The version that a block of `crash_client` says it is, in a replica's file.
pub(super) fn version(replica: &Path, block: u64) -> Result<u64> {
    let mut word = [0; 8];
    File::open(replica)?.read_exact_at(&mut word, (1 << 20) + block * 4096 + 24)?;
    Ok(u64::from_le_bytes(word))
}

/// Compares these mebibytes of the data areas of two replicas.
pub(super) fn data_is_equal(a: &Path, b: &Path, mebibytes: &[u64]) -> Result<()> {
    const MIB: usize = 1 << 20;
    let (a, b) = (File::open(a)?, File::open(b)?);
    let mut buffers = (vec![0; MIB], vec![0; MIB]);
    ensure!(!mebibytes.is_empty(), "nothing to compare");
    for mebibyte in mebibytes {
        // The data begins after the first MiB of the file.
        let offset = (mebibyte + 1) * MIB as u64;
        a.read_exact_at(&mut buffers.0, offset)?;
        b.read_exact_at(&mut buffers.1, offset)?;
        let differs = |(left, right): (&u8, &u8)| left != right;
        if let Some(at) = buffers.0.iter().zip(&buffers.1).position(differs) {
            bail!("the copies differ in MiB {mebibyte} of the data, byte {at}");
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checksum_is_the_one_of_the_format() {
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
    }
}
