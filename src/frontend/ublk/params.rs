//! What the kernel is told about a device before it starts: `struct ublk_params`.

use libublk::sys;

use super::DATA_LEN_MAX;
use crate::volume::Geometry;

/// Bytes per sector in the ABI.
const SECTOR: u64 = 512;
/// The page-sized grid that volund's storage works on, bytes. Smaller logical blocks are offered, but not recommended.
const GRID: u32 = 4096;
/// The largest DISCARD or WRITE_ZEROES in one request, bytes. A bound, because a range is locked while it is zeroed.
const ZERO_LEN_MAX: u64 = 1 << 30;

/// The parameters of a device that shows a volume of this geometry.
pub(super) fn params(geometry: Geometry) -> sys::ublk_params {
    let physical = geometry.block_size.max(GRID);
    let mut attrs = sys::UBLK_ATTR_VOLATILE_CACHE | sys::UBLK_ATTR_FUA;
    if geometry.read_only {
        attrs |= sys::UBLK_ATTR_READ_ONLY;
    }
    sys::ublk_params {
        len: len_of::<sys::ublk_params>(),
        types: sys::UBLK_PARAM_TYPE_BASIC | sys::UBLK_PARAM_TYPE_DISCARD,
        basic: sys::ublk_param_basic {
            attrs,
            logical_bs_shift: shift(geometry.block_size),
            physical_bs_shift: shift(physical),
            io_opt_shift: shift(physical),
            io_min_shift: shift(physical),
            max_sectors: sectors(u64::from(DATA_LEN_MAX)),
            dev_sectors: geometry.size / SECTOR,
            ..Default::default()
        },
        discard: sys::ublk_param_discard {
            discard_granularity: physical,
            max_discard_sectors: sectors(ZERO_LEN_MAX),
            max_write_zeroes_sectors: sectors(ZERO_LEN_MAX),
            max_discard_segments: 1,
            ..Default::default()
        },
        ..Default::default()
    }
}

fn shift(size: u32) -> u8 {
    u8::try_from(size.ilog2()).expect("the logarithm of a u32 fits a u8")
}

fn sectors(bytes: u64) -> u32 {
    u32::try_from(bytes / SECTOR).expect("the limits are constants far below 2 TiB")
}

fn len_of<T>() -> u32 {
    u32::try_from(size_of::<T>()).expect("the ABI's structures are small")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn geometry(block_size: u32, read_only: bool) -> Geometry {
        Geometry {
            size: 10 << 30,
            block_size,
            read_only,
        }
    }

    #[test]
    fn sizes_and_limits_are_whole_blocks() {
        for block_size in [512, 4096] {
            let params = params(geometry(block_size, false));
            assert_eq!(params.basic.dev_sectors, (10 << 30) / 512);
            assert_eq!(1 << params.basic.logical_bs_shift, block_size);
            assert_eq!(1 << params.basic.physical_bs_shift, 4096);
            assert_eq!(params.basic.max_sectors, DATA_LEN_MAX / 512);
            assert_eq!(params.discard.discard_granularity, 4096);
            assert_eq!(params.discard.max_discard_sectors % 8, 0);
            assert_eq!(params.discard.max_write_zeroes_sectors % 8, 0);
            assert_eq!(params.discard.max_discard_segments, 1);
        }
    }

    #[test]
    fn every_device_has_a_volatile_cache_and_fua_and_only_read_only_volumes_are_read_only() {
        let cache = sys::UBLK_ATTR_VOLATILE_CACHE | sys::UBLK_ATTR_FUA;
        assert_eq!(params(geometry(4096, false)).basic.attrs, cache);
        assert_eq!(
            params(geometry(4096, true)).basic.attrs,
            cache | sys::UBLK_ATTR_READ_ONLY
        );
    }
}
