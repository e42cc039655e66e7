# Speed, in turns within one boot: /dev/volund/* against what the kernel has, all on files of one XFS on one disk in memory.
# Under emulation only ratios mean anything. /bench.env says which comparison, how many rounds, how long each turn is.
. /lib.sh
. /bench.env
ip link set lo up
mkdir -p /pool /etc/volund

# A file of this size for each; direct I/O everywhere, so guest memory beyond it is no cache.
mib=128

# serve NAME PORT PROGRAM EXPORT: a daemon whose one volume is NAME.
serve() {
    mkdir -p /etc/volund/$1
    cat >/etc/volund/$1/node.toml <<END_OF_CONFIG
version = 1
[pool.$1-a]
path = "/pool/$1-a"
reserve = "16MiB"
[pool.$1-b]
path = "/pool/$1-b"
reserve = "16MiB"
[volume.$1]
size = "${mib}MiB"
replicas = [$4]
export = { ublk = {} }
END_OF_CONFIG
    $3 run --config /etc/volund/$1 --state-dir /pool/$1-state --runtime-dir /run/volund-$1 \
        --http 127.0.0.1:$2 --node $1 >>/run/$1.log 2>&1 &
    check "$1: the link appears" wait_for 60 test -b /dev/volund/$1
    contenders="$contenders $1:/dev/volund/$1"
}

# over_loop FILE NUMBER: a loop device with direct I/O.
over_loop() {
    check "$1: a file" truncate -s ${mib}M /pool/$1
    check "$1: a loop device" /usr/sbin/losetup --direct-io=on /dev/loop$2 /pool/$1
    check "$1: its direct I/O" grep -q 1 /sys/block/loop$2/loop/dio
}

# section CONTENDER DEVICE OPERATION: one turn, for fio's command line.
section() {
    echo "--name=$1/$3 --stonewall --filename=$2 --rw=$3"
}

# turn ROUND CONTENDER:DEVICE...: a turn each of reads and writes, in this order, by one fio.
turn() {
    round=$1
    shift
    sections=
    for operation in randread randwrite; do
        for contender in "$@"; do
            sections="$sections $(section ${contender%%:*} ${contender#*:} $operation)"
        done
    done
    # Fields 3, 8 and 49 of fio's terse output: the turn's name, the IOPS of reads and writes.
    fio --output-format=terse --terse-version=3 --ioengine=libaio --direct=1 --bs=4k --iodepth=32 --size=${mib}M \
        --time_based --ramp_time=200ms --runtime=${turn_ms}ms --random_generator=lfsr $sections >/run/turn.log ||
        return 1
    awk -F';' '/^3;/ { print $3, $8 + $49 }' /run/turn.log >/run/turn
    while read -r name iops; do
        tell sample $round $name $iops
    done </run/turn
}

# tell WORD...: the host hears it.
tell() {
    echo "ASK $*" >&3
    read -r _ <&3
}

# reversed WORD...
reversed() {
    words=
    for word in "$@"; do
        words="$word $words"
    done
    echo $words
}

check "the disk" wait_for 20 test -b /dev/nullb0
check "mkfs" mkfs.xfs -q -f /dev/nullb0
check "mount" mount -t xfs /dev/nullb0 /pool
contenders=
case $part in
loop)
    over_loop loop 0
    contenders="loop:/dev/loop0"
    copies='"volund-a"'
    ;;
mirror)
    over_loop md-a 0
    over_loop md-b 1
    mkdir -p /run/mdadm
    check "md: an array" env MDADM_NO_UDEV=1 mdadm --create /dev/md0 --run --level=1 --raid-devices=2 --assume-clean \
        --metadata=1.2 --bitmap=internal /dev/loop0 /dev/loop1
    check "md: its bitmap" grep -q bitmap: /proc/mdstat
    contenders="md:/dev/md0"
    copies='"volund-a", "volund-b"'
    ;;
esac
serve volund 9847 volund "$copies"
# Another build of the daemon, to be compared with this one.
[ ! -e /usr/bin/other ] || serve other 9848 other "$(echo "$copies" | sed s/volund/other/g)"
[ "$failures" = 0 ] || { tail -n 30 /run/*.log; finish; }
for contender in $contenders; do
    device=$(readlink -f ${contender#*:})
    check "${contender%%:*}: every block is written" fio --name=fill --filename=$device --rw=write --bs=1M --iodepth=4 \
        --ioengine=libaio --direct=1 --size=$((mib - 8))M
    echo "${contender%%:*}: $device, scheduler $(cat /sys/block/$(basename $device)/queue/scheduler)"
done

turn 0 $contenders
round=1
while [ "$round" -le "$rounds" ]; do
    # Whoever comes first in one round comes last in the next.
    if [ $((round % 2)) = 0 ]; then order=$contenders; else order=$(reversed $contenders); fi
    turn $round $order || failures=$((failures + 1))
    round=$((round + 1))
done
check "nothing failed in the kernel" sh -c '! dmesg | grep -E "I/O error|BUG|WARNING|hung"'
finish
