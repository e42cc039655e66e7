# The daemon inside this guest, its volumes as /dev/volund/<name>; its pool on a plain virtio disk.
. /lib.sh
ip link set lo up
mkdir -p /pool /etc/volund

start() {
    volund run --config /etc/volund --state-dir /pool/state --runtime-dir /run/volund \
        --http 127.0.0.1:9847 --node guest --io-threads 2 >>/run/volund.log 2>&1 &
    daemon=$!
}

show_log() {
    echo "--- the daemon's log, last lines ---"
    tail -n 30 /run/volund.log
}

# round SEED: what a user does with a disk.
round() {
    filesystem ext4 /dev/volund/ext4
    filesystem xfs /dev/volund/xfs
    check "blkdiscard" blkdiscard /dev/volund/raw
    check "discarded blocks read as zeroes" holds_zeroes /dev/volund/raw 0 64
    check "blocks, two jobs" xtask blocks run /dev/volund/raw --bytes 32MiB --ops 100 --seed $1 --jobs 2
    check "write zeroes beside them" blkdiscard -z -o 32MiB -l 16MiB /dev/volund/raw
    check "they did not touch the blocks" xtask blocks check /dev/volund/raw --bytes 32MiB --ops 100 --seed $1 --jobs 2
}

links() {
    test -b /dev/volund/ext4 -a -b /dev/volund/xfs -a -b /dev/volund/raw
}

check "the pool's disk" wait_for 20 test -b /dev/vda
check "mkfs of the pool" mkfs.xfs -q -f /dev/vda
check "mount the pool" mount -t xfs /dev/vda /pool
mkdir -p /pool/main
cat >/etc/volund/node.toml <<'END'
version = 1
[pool.main]
path = "/pool/main"
[defaults.volume]
pool = "main"
export = { ublk = {} }
[volume.ext4]
size = "512MiB"
[volume.xfs]
size = "512MiB"
[volume.raw]
size = "64MiB"
END

start
check "the links appear" wait_for 60 links
links || { show_log; finish; }
check "the size is the volume's" sh -c '[ "$(blockdev --getsize64 /dev/volund/raw)" = 67108864 ]'
check "the logical block size is the volume's" sh -c '[ "$(blockdev --getss /dev/volund/raw)" = 4096 ]'
check "the cache is write back" sh -c 'grep -q "write back" /sys/block/$(basename $(readlink -f /dev/volund/raw))/queue/write_cache'
round 1

echo "--- clean restart"
kill $daemon
wait $daemon
check "the daemon ends well" [ $? = 0 ]
check "no link is left" sh -c '[ -z "$(ls /dev/volund)" ]'
check "no device is left" sh -c '! ls /dev/ublkb* 2>/dev/null'
start
check "the links appear again" wait_for 60 links
check "the blocks are there" xtask blocks check /dev/volund/raw --bytes 32MiB --ops 100 --seed 1 --jobs 2
round 2

echo "--- kill -9 under load"
xtask blocks run /dev/volund/raw --bytes 32MiB --seed 3 --jobs 2 --until /run/never --state /run/state 2>/run/blocks.log &
load=$!
sleep 5
began=$(date +%s)
kill -9 $daemon
wait $load
echo "the load ended with $?: $(tail -n 1 /run/blocks.log)"
check "a dead daemon gives an error, not a hang" [ $(($(date +%s) - began)) -le 10 ]
began=$(date +%s)
start
check "usable again" wait_for 30 dd if=/dev/volund/raw of=/dev/null bs=4k count=1 iflag=direct
echo "after $(($(date +%s) - began)) s"
check "within 30 s" [ $(($(date +%s) - began)) -le 30 ]
check "every acknowledged write is there" xtask blocks check /dev/volund/raw --bytes 32MiB --seed 3 --jobs 2 --state /run/state
check "three devices, no more" sh -c '[ "$(ls /dev/ublkb* | wc -l)" = 3 ]'
check "the others are usable too" sh -c 'e2fsck -f -n /dev/volund/ext4 && xfs_repair -n /dev/volund/xfs'

echo "--- a volume is removed, and comes back"
cp /etc/volund/node.toml /run/node.toml
sed '/volume.raw/,$d' /run/node.toml >/etc/volund/node.new && mv /etc/volund/node.new /etc/volund/node.toml
check "its link goes" wait_for 30 sh -c '! test -e /dev/volund/raw'
cp /run/node.toml /etc/volund/node.toml
check "its link comes back" wait_for 30 test -b /dev/volund/raw
check "with its data" xtask blocks check /dev/volund/raw --bytes 32MiB --seed 3 --jobs 2 --state /run/state

kill $daemon
wait $daemon
check "the daemon ends well again" [ $? = 0 ]
[ "$failures" = 0 ] || show_log
dmesg | grep -i -E 'ublk|BUG|WARNING|hung' | tail -n 10
finish
