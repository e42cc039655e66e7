# ublk devices over memory: three on one reactor, without the rest of the daemon.
. /lib.sh
state=/run/ublk.state

start() {
    ublk_ram "$state" 3 64 >/tmp/ram.log 2>&1 &
    ram=$!
    check "$1" wait_for 60 grep -q ready /tmp/ram.log
    cat /tmp/ram.log
}

start "three devices start"
check "links are there" test -b /dev/volund/ram0 -a -b /dev/volund/ram1 -a -b /dev/volund/ram2
check "logical block sizes" sh -c '[ "$(blockdev --getss /dev/volund/ram0)" = 4096 ] && [ "$(blockdev --getss /dev/volund/ram1)" = 512 ]'
check "sizes" sh -c '[ "$(blockdev --getsize64 /dev/volund/ram2)" = 67108864 ]'
check "cache is write back with FUA" sh -c 'grep -q "write back" /sys/block/ublkb0/queue/write_cache && grep -q 1 /sys/block/ublkb0/queue/fua'
for n in 0 1 2; do
    check "blocks on ram$n" xtask blocks run /dev/volund/ram$n --bytes 32MiB --ops 200 --seed $n --jobs 4
done
for n in 0 1 2; do
    check "blocks on ram$n, again" xtask blocks check /dev/volund/ram$n --bytes 32MiB --ops 200 --seed $n --jobs 4
done
filesystem ext4 /dev/volund/ram0
check "discard" blkdiscard /dev/volund/ram0
check "discarded blocks read as zeroes" holds_zeroes /dev/volund/ram0 0 64
check "write zeroes" /usr/sbin/blkdiscard -z /dev/volund/ram1
check "zeroed blocks read as zeroes" holds_zeroes /dev/volund/ram1 0 64
exec 5</dev/volund/ram1
check "an open device is seen to be used" wait_for 20 sh -c 'tail -n 3 /tmp/ram.log | grep -q "ram1 Some(\"process .* has it open"'
exec 5<&-
check "a closed device is seen to be free" wait_for 20 sh -c 'tail -n 1 /tmp/ram.log | grep -q "ram2 None" && tail -n 3 /tmp/ram.log | grep -q "ram1 None"'
mkfs.ext4 -q -F /dev/volund/ram2 && mount /dev/volund/ram2 /mnt
check "a mounted device is seen to be used" wait_for 20 sh -c 'tail -n 3 /tmp/ram.log | grep -q "ram2 Some(\"it is mounted at"'
umount /mnt

# kill -9 under load
dd if=/dev/zero of=/dev/volund/ram0 bs=64k oflag=direct count=100000 2>/tmp/dd.log &
dd=$!
usleep 500000
cat /proc/$ram/status | grep -E 'VmRSS|Threads'
began=$(date +%s)
kill -9 $ram
wait $dd
echo "dd ended with $?: $(cat /tmp/dd.log)"
check "a dead server gives an error at once" [ $(($(date +%s) - began)) -le 5 ]
wait $ram
ls /dev/ublk* /sys/block
start "it starts again"
check "leftovers are deleted" [ "$(grep -c 'leftover .*: Ok(true)' /tmp/ram.log)" = 3 ]
check "nothing else is left" [ "$(ls /dev/ublkc* | wc -l)" = 3 ]
check "usable again" xtask blocks run /dev/volund/ram0 --bytes 16MiB --ops 100 --seed 9
exec 5</dev/volund/ram1
began=$(date +%s)
kill $ram
check "it stops" wait_for 20 grep -q stopped /tmp/ram.log
check "at once, although a device is open" [ $(($(date +%s) - began)) -le 5 ]
tail -n 3 /tmp/ram.log
exec 5<&-
check "links and devices are gone" wait_for 10 sh -c '[ -z "$(ls /dev/volund)" ] && ! ls /dev/ublkb*'
check "no note of libublk is left" sh -c '! ls /run/ublksrvd/*'
dmesg | grep -i -E 'ublk|warn|bug|error|hung' | tail
finish
