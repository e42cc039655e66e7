# What every guest test starts from: counted checks, a talk with the host, waiting with a bound.
# Each check prints one line, "PASS name" or "FAIL name"; the host counts them. `finish` ends with the number of failures.
failures=0

# busybox's shell takes its own applet before anything on PATH; this one lacks options.
blkdiscard() {
    /usr/sbin/blkdiscard "$@"
}

# check NAME COMMAND...: the command succeeds; its output is shown when it does not.
check() {
    name=$1
    shift
    if "$@" >/tmp/check.log 2>&1; then
        echo "PASS $name"
    else
        echo "FAIL $name: $* ended with $?"
        tail -n 20 /tmp/check.log
        failures=$((failures + 1))
    fi
}

# refuse NAME COMMAND...: the command fails.
refuse() {
    name=$1
    shift
    if "$@" >/tmp/check.log 2>&1; then
        echo "FAIL $name: $* succeeded"
        failures=$((failures + 1))
    else
        echo "PASS $name"
    fi
}

# ask WORD: asks the host for something and waits until it answers.
ask() {
    echo "ASK $1" >&3
    read -r answer <&3
    echo "host: $answer"
}

# wait_for SECONDS COMMAND...: until the command succeeds.
wait_for() {
    left=$(($1 * 5))
    shift
    until "$@" >/dev/null 2>&1; do
        left=$((left - 1))
        [ "$left" -gt 0 ] || return 1
        usleep 200000
    done
}

# holds_zeroes DEVICE OFFSET_MIB SIZE_MIB
holds_zeroes() {
    dd if="$1" bs=1M skip="$2" count="$3" 2>/dev/null | tr -d '\000' | wc -c | grep -qx 0
}

# filesystem TYPE DEVICE: makes one, writes files, checks them after a remount, then lets fsck judge.
filesystem() {
    type=$1 device=$2
    case $type in
    ext4) make="mkfs.ext4 -q -F" fsck="e2fsck -f -n" ;;
    xfs) make="mkfs.xfs -q -f" fsck="xfs_repair -n" ;;
    esac
    check "$type: mkfs" $make "$device"
    check "$type: mount" mount -t "$type" "$device" /mnt
    check "$type: write files" write_files
    check "$type: unmount" umount /mnt
    check "$type: mount again" mount -t "$type" "$device" /mnt
    check "$type: files are as written" sh -c 'cd /mnt && sha256sum -c -s /tmp/sums'
    check "$type: remove files and trim" sh -c 'rm -r /mnt/d && fstrim /mnt'
    check "$type: unmount again" umount /mnt
    check "$type: fsck" $fsck "$device"
}

write_files() {
    mkdir -p /mnt/d
    for n in 1 2 3 4 5 6 7 8; do
        dd if=/dev/urandom of=/mnt/d/$n bs=64k count=$n 2>/dev/null || return 1
    done
    sync
    (cd /mnt && sha256sum d/*) >/tmp/sums
}

# finish: the test's exit status is the number of failures.
finish() {
    [ "$failures" -le 100 ] || failures=100
    exit "$failures"
}
