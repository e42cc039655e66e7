//! The simulated disk does what a disk with a volatile cache does.

use super::*;

const LAYOUT: SimLayout = SimLayout {
    size: 64 << 10,
    data_offset: 16 << 10,
    block: 4096,
};

fn check(seed: u64, test: impl AsyncFnOnce(SimHardware, SimDisk, BufferPool) + 'static) {
    let sim = Sim::new(seed);
    let hardware = SimHardware::new(&sim, LAYOUT);
    let disk = hardware.open();
    sim.block_on(async move { test(hardware, disk, BufferPool::default()).await });
}

fn filled(pool: &BufferPool, len: usize, value: u8) -> IoBuffer {
    let buffer = pool.get(len);
    buffer.fill(value);
    buffer
}

#[test]
fn a_flushed_or_fua_write_survives_a_power_cut_and_others_may_not() {
    let mut lost = 0;
    for seed in 0..40 {
        check(seed, async |hardware, disk, pool| {
            disk.write(16 << 10, &filled(&pool, 4096, 1), false)
                .await
                .unwrap();
            disk.flush().await.unwrap();
            disk.write(20 << 10, &filled(&pool, 4096, 2), true)
                .await
                .unwrap();
            hardware.power_loss();
            assert_eq!(hardware.visible(16 << 10..20 << 10), vec![1; 4096]);
            assert_eq!(hardware.visible(20 << 10..24 << 10), vec![2; 4096]);
        });
        let sim = Sim::new(seed);
        let hardware = SimHardware::new(&sim, LAYOUT);
        let disk = hardware.open();
        sim.block_on(async move {
            let data = filled(&BufferPool::default(), 4096, 3);
            disk.write(16 << 10, &data, false).await
        })
        .unwrap();
        assert_eq!(hardware.visible(16 << 10..20 << 10), vec![3; 4096]);
        hardware.power_loss();
        let after = hardware.visible(16 << 10..20 << 10);
        assert!(after == vec![3; 4096] || after == vec![0; 4096], "torn");
        lost += u32::from(after[0] == 0);
    }
    assert!(lost > 5 && lost < 35, "{lost} of 40 lost");
}

#[test]
fn a_failed_flush_is_not_made_good_by_a_later_one() {
    for seed in 0..20 {
        check(seed, async |hardware, disk, pool| {
            disk.write(16 << 10, &filled(&pool, 4096, 1), false)
                .await
                .unwrap();
            hardware.set_fault(SimFault {
                flush_errors: 1,
                ..SimFault::default()
            });
            assert_eq!(disk.flush().await, Err(IoError::EIO));
            hardware.set_fault(SimFault::default());
            disk.flush().await.unwrap();
            assert_eq!(hardware.durable(16 << 10..20 << 10), vec![0; 4096]);
        });
    }
}

#[test]
fn an_unplugged_session_is_dead_and_a_new_one_works() {
    check(1, async |hardware, disk, pool| {
        hardware.unplug();
        let gone = disk.flush().await;
        assert_eq!(gone, Err(IoError::Os(libc::ENODEV)));
        let data = filled(&pool, 4096, 1);
        hardware.open().write(0, &data, false).await.unwrap();
    });
}

#[test]
fn ranges_outside_or_off_the_grid_are_refused() {
    check(1, async |_, disk, pool| {
        let data = filled(&pool, 4096, 1);
        let refused = Err(IoError::EINVAL);
        assert_eq!(disk.write(64 << 10, &data, false).await, refused);
        assert_eq!(disk.write(u64::MAX, &data, false).await, refused);
        assert_eq!(disk.write((16 << 10) + 512, &data, false).await, refused);
    });
}
