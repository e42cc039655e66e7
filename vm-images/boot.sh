# The harness itself, on a plain virtio disk: what every other guest test relies on.
. /lib.sh
check "the disk is there" wait_for 10 test -b /dev/vda
check "ublk_drv is loaded" test -c /dev/ublk-control
check "the host answers" ask hello
check "blocks are written and verified" xtask blocks run /dev/vda --bytes 32MiB --ops 200 --seed 1
check "and verified again" xtask blocks check /dev/vda --bytes 32MiB --ops 200 --seed 1
filesystem ext4 /dev/vda
filesystem xfs /dev/vda
check "discard" blkdiscard /dev/vda
check "discarded blocks read as zeroes" holds_zeroes /dev/vda 0 64
refuse "an empty device has no blocks" xtask blocks check /dev/vda --bytes 32MiB --ops 200 --seed 1
finish
