# The daemon's volumes as this guest's disks: vda (for ext4), vdb (for xfs), vdc (raw, 512-byte blocks), vdd (read-only).
. /lib.sh

devices() {
    for disk in vda vdb vdc vdd; do
        check "$disk is there" wait_for 20 test -b /dev/$disk
        echo "$disk: serial $(cat /sys/block/$disk/serial), $(blockdev --getsize64 /dev/$disk) bytes"
    done
    check "four queues" sh -c '[ "$(ls /sys/block/vdc/mq | wc -l)" = 4 ]'
    check "the serial is the volume's" sh -c 'grep -q raw /sys/block/vdc/serial'
    check "the logical block size is the volume's" sh -c '[ "$(blockdev --getss /dev/vdc)" = 512 -a "$(blockdev --getss /dev/vda)" = 4096 ]'
    check "the size is the volume's" sh -c '[ "$(blockdev --getsize64 /dev/vdc)" = 67108864 ]'
    check "the cache is write back" sh -c 'grep -q "write back" /sys/block/vdc/queue/write_cache'
    check "read-only is read-only" sh -c '[ "$(blockdev --getro /dev/vdd)" = 1 ]'
    refuse "a write to it fails" dd if=/dev/zero of=/dev/vdd bs=4k count=1 oflag=direct
}

round() {
    filesystem ext4 /dev/vda
    filesystem xfs /dev/vdb
    check "blkdiscard" blkdiscard /dev/vdc
    check "discarded blocks read as zeroes" holds_zeroes /dev/vdc 0 64
    check "blocks, four jobs" xtask blocks run /dev/vdc --bytes 32MiB --ops 100 --seed $1 --jobs 4
    check "write zeroes beside them" blkdiscard -z -o 32MiB -l 16MiB /dev/vdc
    check "they did not touch the blocks" xtask blocks check /dev/vdc --bytes 32MiB --ops 100 --seed $1 --jobs 4
}

devices
round 1
ask restart
check "the blocks are there after a restart of the daemon" \
    xtask blocks check /dev/vdc --bytes 32MiB --ops 100 --seed 1 --jobs 4
round 2
finish
