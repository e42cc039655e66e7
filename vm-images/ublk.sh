# The daemon inside this guest, its volumes as /dev/volund/<name>; its two pools on a plain virtio disk.
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
    for volume in raw small mirror; do
        check "$volume: blkdiscard" /usr/sbin/blkdiscard -f /dev/volund/$volume
        check "$volume: discarded blocks read as zeroes" holds_zeroes /dev/volund/$volume 0 64
        check "$volume: blocks, two jobs" xtask blocks run /dev/volund/$volume --bytes 16MiB --ops 100 --seed $1 --jobs 2
        check "$volume: write zeroes beside them" /usr/sbin/blkdiscard -z -o 16MiB -l 16MiB /dev/volund/$volume
    done
    kept $1
}

# kept SEED: the blocks of `round` are there.
kept() {
    for volume in raw small mirror; do
        check "$volume: the blocks are there" xtask blocks check /dev/volund/$volume --bytes 16MiB --ops 100 --seed $1 --jobs 2
    done
}

links() {
    for volume in ext4 xfs raw small mirror; do
        test -b /dev/volund/$volume || return 1
    done
}

# answers: every volume can be read.
answers() {
    for volume in ext4 xfs raw small mirror; do
        dd if=/dev/volund/$volume of=/dev/null bs=4k count=1 iflag=direct || return 1
    done
}

# without NAME: the configuration loses a table, as an editor would do it.
without() {
    sed "/^.volume.$1.\$/,/^\$/d" /run/node.toml >/etc/volund/node.new
    mv /etc/volund/node.new /etc/volund/node.toml
}

# says WORD: the status does.
says() {
    volund status --runtime-dir /run/volund --output json | grep -q "$1"
}

check "the pool's disk" wait_for 20 test -b /dev/vda
check "mkfs of the pool" mkfs.xfs -q -f /dev/vda
check "mount the pool" mount -t xfs /dev/vda /pool
cat >/etc/volund/node.toml <<'END'
version = 1
[pool.main]
path = "/pool/main"
reserve = "64MiB"

[pool.second]
path = "/pool/second"
reserve = "64MiB"

[volume.ext4]
size = "512MiB"
pool = "main"
export = { ublk = {} }

[volume.xfs]
size = "512MiB"
pool = "main"
export = { ublk = { depth = 16 } }

[volume.raw]
size = "64MiB"
pool = "main"
export = { ublk = {} }

[volume.small]
size = "64MiB"
pool = "main"
block_size = 512
export = { ublk = {} }

[volume.mirror]
size = "64MiB"
replicas = ["main", "second"]
export = { ublk = {} }

END

start
check "the links appear" wait_for 60 links
links || { show_log; finish; }
check "the size is the volume's" sh -c '[ "$(blockdev --getsize64 /dev/volund/raw)" = 67108864 ]'
check "the logical block size is the volume's" sh -c '[ "$(blockdev --getss /dev/volund/raw)" = 4096 ]'
check "also when it is small" sh -c '[ "$(blockdev --getss /dev/volund/small)" = 512 ]'
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
kept 1
round 2

echo "--- kill -9 under load"
for volume in raw mirror; do
    # What earlier runs wrote would be foreign where this one does not get to.
    /usr/sbin/blkdiscard -f /dev/volund/$volume
    xtask blocks run /dev/volund/$volume --bytes 8MiB --seed 3 --jobs 2 --until /run/never --state /run/$volume.state 2>/run/$volume.log &
done
mount -t ext4 /dev/volund/ext4 /mnt
sleep 8
began=$(date +%s)
kill -9 $daemon
for volume in raw mirror; do
    check "a dead daemon gives $volume an error, not a hang" wait_for 10 test -s /run/$volume.state
    echo "the load on $volume ended: $(tail -n 1 /run/$volume.log)"
done
check "an idle device gives an error as well" wait_for 10 sh -c '! dd if=/dev/volund/small of=/dev/null bs=4k count=1 iflag=direct'
wait $daemon
start
check "usable again within 30 s" wait_for 30 answers
echo "after $(($(date +%s) - began)) s"
umount /mnt
check "five devices, no more" sh -c '[ "$(ls /dev/ublkb* | wc -l)" = 5 ] && [ "$(ls /dev/ublkc* | wc -l)" = 5 ]'
for volume in raw mirror; do
    check "$volume: every acknowledged write is there" xtask blocks check /dev/volund/$volume --bytes 8MiB --seed 3 --jobs 2 --state /run/$volume.state
done
check "what was mounted can be mounted again" mount -t ext4 /dev/volund/ext4 /mnt
umount /mnt
check "the others are usable too" sh -c 'e2fsck -f -n /dev/volund/ext4 && xfs_repair -n /dev/volund/xfs'

echo "--- a volume is removed, and comes back"
cp /etc/volund/node.toml /run/node.toml
exec 5</dev/volund/raw
without raw
check "in use it stays, and says so" wait_for 30 says InUse
check "and serves" xtask blocks check /dev/volund/raw --bytes 8MiB --seed 3 --jobs 2 --state /run/raw.state
exec 5<&-
check "unused, its link goes" wait_for 30 sh -c '! test -e /dev/volund/raw'
cp /run/node.toml /etc/volund/node.toml
check "its link comes back" wait_for 30 test -b /dev/volund/raw
check "with its data" xtask blocks check /dev/volund/raw --bytes 8MiB --seed 3 --jobs 2 --state /run/raw.state

echo "--- without the driver"
kill $daemon
wait $daemon
check "the daemon ends well again" [ $? = 0 ]
check "nothing is left" wait_for 10 sh -c '[ -z "$(ls /dev/volund)" ] && ! ls /dev/ublkb* /dev/ublkc*'
rmmod ublk_drv
start
check "the status says what to do" wait_for 30 says "modprobe ublk_drv"
kill $daemon
wait $daemon
check "and the daemon ends well" [ $? = 0 ]
[ "$failures" = 0 ] || show_log
dmesg | grep -i -E 'ublk|BUG|WARNING|hung' | tail -n 10
finish
