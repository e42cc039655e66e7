//! The virtio-blk device that a front end sees: features and configuration space (virtio 1.2, section 5.2).

use crate::model::{VolumeId, VolumeName};
use crate::volume::Geometry;

use super::request::{ID_LEN, SECTOR, ZERO_RANGES_MAX, ZERO_SECTORS_MAX};

/// Size of the configuration space that is filled; what lies behind reads as zeroes.
const CONFIG_LEN: usize = 60;
/// The unit that storage below works best in, bytes.
const PHYSICAL_BLOCK: u32 = 4096;
/// The largest segment that drivers are asked for, bytes. Larger ones are served all the same, piece by piece.
const SEGMENT_MAX: u32 = 1 << 20;
/// The most segments in a request. With header and status they fit the 128 entries that QEMU's queues have by default,
/// for drivers without indirect descriptors.
const SEGMENTS_MAX: u32 = 126;

/// Feature bits of virtio-blk, of the ring, and of vhost-user.
pub mod feature {
    /// The largest segment is in the configuration space.
    pub const SIZE_MAX: u64 = 1 << 1;
    /// The most segments are in the configuration space.
    pub const SEG_MAX: u64 = 1 << 2;
    /// Read-only.
    pub const RO: u64 = 1 << 5;
    /// The block size is in the configuration space.
    pub const BLK_SIZE: u64 = 1 << 6;
    /// Flushes can be asked for, and writes may be cached until then.
    pub const FLUSH: u64 = 1 << 9;
    /// The preferred I/O sizes are in the configuration space.
    pub const TOPOLOGY: u64 = 1 << 10;
    /// More than one queue.
    pub const MQ: u64 = 1 << 12;
    /// Discard.
    pub const DISCARD: u64 = 1 << 13;
    /// Write zeroes.
    pub const WRITE_ZEROES: u64 = 1 << 14;
    /// Indirect descriptors.
    pub const INDIRECT_DESC: u64 = 1 << 28;
    /// Notifications by index instead of by flag.
    pub const EVENT_IDX: u64 = 1 << 29;
    /// vhost-user's own negotiation; not for the guest.
    pub const PROTOCOL_FEATURES: u64 = 1 << 30;
    /// Virtio 1.0 and later.
    pub const VERSION_1: u64 = 1 << 32;
}

/// What is the same for a client's whole stay.
#[derive(Clone, Debug)]
pub(super) struct Device {
    pub(super) geometry: Geometry,
    pub(super) queues: u16,
    /// Whether the session pins the guest's memory.
    pub(super) pin_guest_memory: bool,
}

impl Device {
    /// The features that are offered.
    pub(super) fn features(&self) -> u64 {
        let always = feature::SIZE_MAX
            | feature::SEG_MAX
            | feature::BLK_SIZE
            | feature::FLUSH
            | feature::TOPOLOGY
            | feature::MQ
            | feature::INDIRECT_DESC
            | feature::EVENT_IDX
            | feature::PROTOCOL_FEATURES
            | feature::VERSION_1;
        if self.geometry.read_only {
            always | feature::RO
        } else {
            always | feature::DISCARD | feature::WRITE_ZEROES
        }
    }

    /// `len` bytes of the configuration space from `offset`.
    pub(super) fn config(&self, offset: usize, len: usize) -> Vec<u8> {
        let all = self.config_space();
        let from = all.get(offset..).unwrap_or_default();
        let mut part = from[..len.min(from.len())].to_vec();
        part.resize(len, 0);
        part
    }

    /// `struct virtio_blk_config`, little-endian.
    fn config_space(&self) -> [u8; CONFIG_LEN] {
        let block = self.geometry.block_size;
        let mut space = [0; CONFIG_LEN];
        let mut put = |at: usize, bytes: &[u8]| space[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, &(self.geometry.size / SECTOR).to_le_bytes());
        put(8, &SEGMENT_MAX.to_le_bytes());
        put(12, &SEGMENTS_MAX.to_le_bytes());
        put(20, &block.to_le_bytes());
        let per_physical = (PHYSICAL_BLOCK / block.max(1)).max(1);
        put(24, &per_physical.ilog2().to_le_bytes()[..1]);
        put(26, &per_physical.to_le_bytes()[..2]);
        put(34, &self.queues.to_le_bytes());
        let sectors_per_block = block / 512;
        put(36, &ZERO_SECTORS_MAX.to_le_bytes());
        put(40, &ZERO_RANGES_MAX.to_le_bytes());
        put(44, &sectors_per_block.to_le_bytes());
        put(48, &ZERO_SECTORS_MAX.to_le_bytes());
        put(52, &ZERO_RANGES_MAX.to_le_bytes());
        put(56, &[1]);
        space
    }
}

/// What GET_ID answers, and so the serial number in the guest: the volume's name, or the random end of its UUID when
/// the name does not fit.
pub(super) fn serial(name: &VolumeName, id: VolumeId) -> [u8; ID_LEN] {
    let name = name.to_string();
    let uuid = id.to_string().replace('-', "");
    let text = if name.len() <= ID_LEN {
        name.as_str()
    } else {
        &uuid[uuid.len() - ID_LEN..]
    };
    let mut serial = [0; ID_LEN];
    serial[..text.len()].copy_from_slice(text.as_bytes());
    serial
}

#[cfg(test)]
mod tests {
    use super::*;

    fn device(block_size: u32, read_only: bool) -> Device {
        let geometry = Geometry {
            size: 1 << 30,
            block_size,
            read_only,
        };
        Device {
            geometry,
            queues: 16,
            pin_guest_memory: false,
        }
    }

    #[test]
    fn the_configuration_space_says_what_the_volume_is() {
        let config = device(512, false).config(0, 60);
        assert_eq!(config[..8], (2u64 << 20).to_le_bytes());
        assert_eq!(config[12..16], 126u32.to_le_bytes());
        assert_eq!(config[20..24], 512u32.to_le_bytes());
        assert_eq!((config[24], config[26]), (3, 8));
        assert_eq!(config[34..36], 16u16.to_le_bytes());
        assert_eq!(config[32], 0, "write-back can't be switched");
    }

    #[test]
    fn reading_behind_the_configuration_space_gives_zeroes() {
        let device = device(4096, false);
        assert_eq!(device.config(58, 100), [0; 100]);
        assert_eq!(device.config(5000, 3), [0; 3]);
        assert_eq!(device.config(56, 4), [1, 0, 0, 0]);
    }

    #[test]
    fn a_read_only_volume_offers_no_way_to_write() {
        let offered = device(4096, true).features();
        assert_eq!(
            offered & (feature::RO | feature::DISCARD | feature::WRITE_ZEROES),
            feature::RO
        );
    }

    #[test]
    fn the_serial_is_the_name_or_the_end_of_the_id() {
        let id = VolumeId::nil();
        let short: VolumeName = "vm1-root".parse().unwrap();
        assert_eq!(&serial(&short, id)[..9], b"vm1-root\0");
        let long: VolumeName = "a-name-of-more-than-twenty-bytes".parse().unwrap();
        assert_eq!(serial(&long, id), [b'0'; 20]);
    }
}
