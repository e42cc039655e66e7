# The guest of `cargo xtask demo`: uses a disk as anyone would, while the host edits the configuration and restarts the daemon.
. /lib.sh
check "the disk is there" wait_for 20 test -b /dev/vda
check "mkfs.ext4" mkfs.ext4 -q -F /dev/vda
check "mount" mount -t ext4 /dev/vda /mnt
echo "dear reader" >/mnt/letter
sync
while [ ! -e /tmp/stop ]; do
    dd if=/dev/urandom of=/mnt/busy bs=64k count=8 conv=fsync 2>/dev/null || touch /tmp/failed
done &
ask add
ask break
ask mend
touch /tmp/stop
wait
check "no I/O error in the meantime" test ! -e /tmp/failed
check "unmount" umount /mnt
ask restart
check "mount after the daemon's restart" mount -t ext4 /dev/vda /mnt
check "the letter is still there" grep -q "dear reader" /mnt/letter
ask show
check "unmount again" umount /mnt
check "fsck" e2fsck -f -n /dev/vda
finish
