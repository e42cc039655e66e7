# Every job of fio-jobs/ on a volume (vda) and on a disk that QEMU serves itself from the same host folder (vdb), in turns.
# Under emulation only the ratio means anything, and only within this boot.
. /lib.sh

# iops JOB DEVICE: fields 8 and 49 of fio's terse output are the IOPS of reads and writes.
iops() {
    fio --filename=$2 --output-format=terse --terse-version=3 /fio-jobs/$1.fio |
        awk -F';' '/^3;/ { print $8 + $49 }'
}

# rounded SUM COUNT
mean() {
    awk "BEGIN { printf \"%.0f\", $1 / $2 }"
}

check "the volume is there" wait_for 20 test -b /dev/vda
check "the other disk is there" wait_for 20 test -b /dev/vdb
for disk in /dev/vda /dev/vdb; do
    check "$disk is filled" dd if=/dev/urandom of=$disk bs=1M count=128 oflag=direct
done
for file in /fio-jobs/*.fio; do
    job=$(basename $file .fio)
    volume=0 qemu=0
    for round in 1 2 3; do
        volume=$((volume + $(iops $job /dev/vda)))
        qemu=$((qemu + $(iops $job /dev/vdb)))
    done
    check "$job ran" [ $volume -gt 0 -a $qemu -gt 0 ]
    echo "$job: volume $(mean $volume 3) IOPS, QEMU's own disk $(mean $qemu 3), ratio $(awk "BEGIN { printf \"%.2f\", $volume / $qemu }")"
done
finish
