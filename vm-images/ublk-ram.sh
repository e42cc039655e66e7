# ublk devices over memory: three on one reactor, without the rest of the daemon.
. /lib.sh
state=/run/ublk.state
log=/tmp/ram.log

# start NAME COUNT STATE
start() {
    rm -f $log
    ublk_ram "$3" "$2" 512 >$log 2>&1 &
    ram=$!
    check "$1" wait_for 60 grep -q ready $log
}

# stop NAME: within five seconds.
stop() {
    kill $ram
    check "$1" wait_for 5 grep -q stopped $log
}

# seconds COMMAND...: how long it took.
seconds() {
    began=$(date +%s)
    "$@" >/dev/null 2>&1
    echo $(($(date +%s) - began))
}

# said TEXT: in the last report of the program, which comes every two seconds.
said() {
    tail -n 3 $log | grep -qF "$1"
}

start "three devices start" 3 $state
check "their links are there" test -b /dev/volund/ram0 -a -b /dev/volund/ram1 -a -b /dev/volund/ram2
check "block size 4096" [ "$(blockdev --getss /dev/volund/ram0)" = 4096 ]
check "block size 512" [ "$(blockdev --getss /dev/volund/ram1)" = 512 ]
check "size" [ "$(blockdev --getsize64 /dev/volund/ram2)" = 536870912 ]
check "a volatile cache" grep -q "write back" /sys/block/ublkb0/queue/write_cache
check "with FUA" grep -q 1 /sys/block/ublkb0/queue/fua
for n in 0 1 2; do
    check "blocks on ram$n" xtask blocks run /dev/volund/ram$n --bytes 32MiB --ops 200 --seed $n --jobs 4
done
for n in 0 1 2; do
    check "blocks on ram$n, again" xtask blocks check /dev/volund/ram$n --bytes 32MiB --ops 200 --seed $n --jobs 4
done
filesystem ext4 /dev/volund/ram0
filesystem xfs /dev/volund/ram1
for n in 0 1; do
    check "discard ram$n" /usr/sbin/blkdiscard -f /dev/volund/ram$n
    check "ram$n reads as zeroes" holds_zeroes /dev/volund/ram$n 0 64
done
check "write zeroes" /usr/sbin/blkdiscard -z -f /dev/volund/ram2
check "ram2 reads as zeroes" holds_zeroes /dev/volund/ram2 0 64

exec 5</dev/volund/ram1
check "an open device is in use" wait_for 20 said 'ram1 Some("process '
exec 5<&-
check "a closed device is free" wait_for 20 said 'ram1 None'
mkfs.ext4 -q -F /dev/volund/ram2 && mount -t ext4 /dev/volund/ram2 /mnt
check "a mounted device is in use" wait_for 20 said 'ram2 Some("it is mounted at'
umount /mnt
losetup /dev/loop0 /dev/ublkb0
check "a device under a loop device is in use" wait_for 20 said 'ram0 Some("\"/dev/loop0\" is on it'
losetup -d /dev/loop0
check "and free without it" wait_for 20 said 'ram0 None'

# Another daemon's record of a device that this one serves, and of one whose number another volume has by now.
cp $state /tmp/copied
echo "1 0197f0a4-5d3c-7c1e-9b1e-3f2d8a4c6e10" >>/tmp/copied
check "a second server starts" sh -c 'ublk_ram /tmp/copied 0 1 >/tmp/second.log 2>&1 & for n in $(seq 200); do grep -q ready /tmp/second.log && kill $! && exit 0; usleep 200000; done; exit 1'
check "it leaves devices alone that are served" [ "$(grep -c ServedElsewhere /tmp/second.log)" = 3 ]
check "it leaves other volumes' devices alone" grep -q 'leftover 1: Err(NotOurs' /tmp/second.log
check "they serve on" xtask blocks run /dev/volund/ram1 --bytes 4MiB --ops 20 --seed 5

# kill -9 under load.
dd if=/dev/zero of=/dev/volund/ram0 bs=64k oflag=direct count=100000 2>/tmp/dd.log &
usleep 500000
kill -9 $ram
check "a dead server's clients hear of it at once" wait_for 5 grep -q "Input/output error" /tmp/dd.log
check "an idle device fails as well" [ "$(seconds dd if=/dev/ublkb1 of=/dev/null bs=4k count=1 iflag=direct)" -le 5 ]
wait $ram
start "it starts again" 3 $state
check "leftovers are deleted" [ "$(grep -c 'leftover .*: Ok(true)' $log)" = 3 ]
check "nothing else is left" [ "$(ls /dev/ublkc* | wc -l)" = 3 ]
check "usable again" xtask blocks run /dev/volund/ram0 --bytes 16MiB --ops 100 --seed 9

# A stop takes devices away from whoever has them, and does not wait for them.
exec 5</dev/volund/ram1
stop "it stops although a device is open"
exec 5<&-
check "links are gone" [ -z "$(ls /dev/volund)" ]
check "devices are gone" wait_for 10 sh -c '! ls /dev/ublkb* /dev/ublkc*'
check "no note of libublk is left" sh -c '! ls /run/ublksrvd/*'

start "fifty devices start" 50 $state
rss=$(sed -n 's/VmRSS:[^0-9]*\([0-9]*\) kB/\1/p' /proc/$ram/status)
echo "fifty idle devices: $rss KiB resident"
check "they are small" [ "$rss" -le 20480 ]
stop "fifty devices stop"

rmmod ublk_drv
ublk_ram $state 1 64 >$log 2>&1
check "without the driver it says what to do" grep -q "modprobe ublk_drv" $log
finish
