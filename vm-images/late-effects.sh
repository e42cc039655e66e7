# The daemon inside this guest, its pools on device-mapper disks that are held, slowed and broken under it.
. /lib.sh
ip link set lo up
# A client that died fails its checks, and does not end this script.
trap "" PIPE
mkdir -p /a /b /state /etc/volund

# What volund.toml says, and what a client may wait, milliseconds: that, and so much more.
io_timeout=2
ask spare
patience="$((io_timeout * 1000)) $answer"
# What everybody else may take, milliseconds. The clients deduct by how much the machine itself, emulated on a shared host, is
# late at the time.
ask others
others=$answer
MiB=2048

# The disk, in memory: what the host's disk does meanwhile is not asked here.
disk=/dev/loop0

# linear NAME NUMBER: the number-th GiB of the disk.
linear() {
    echo "0 $((1024 * MiB)) linear $disk $(($2 * 1024 * MiB))"
}

memory_disk() {
    mkdir -p /memory && mount -t tmpfs -o size=90% memory /memory &&
        truncate -s 3G /memory/disk && losetup $disk /memory/disk
}

map() {
    dmsetup create "$1" --noudevsync --noudevrules --table "$2" && dmsetup mknodes "$1"
}

# table NAME TABLE: another table under the mounted filesystem.
table() {
    dmsetup suspend --noudevsync --nolockfs "$1" &&
        dmsetup load "$1" --table "$2" &&
        dmsetup resume --noudevsync --noudevrules "$1"
}

# hold NAME: everything that is sent there waits, what is under way too.
hold() {
    dmsetup suspend --noudevsync --noflush --nolockfs "$1"
}

release() {
    dmsetup resume --noudevsync --noudevrules "$1"
}

# A client ends when nobody holds its input open: so nobody else may inherit it.
start() {
    volund run --config /etc/volund --state-dir /state/volund --runtime-dir /run/volund \
        --http 127.0.0.1:9847 --node guest --io-threads 1 >>/run/volund.log 2>&1 6>&- 7<&- 8>&- 9<&- &
    daemon=$!
}

show_log() {
    echo "--- the daemon's log, last lines ---"
    tail -n 40 /run/volund.log
}

# started VOLUME...: their sockets are there.
started() {
    for volume in "$@"; do
        test -S "/run/volund/$volume.sock" || return 1
    done
}

# status: what the daemon says of everything, on one line.
status() {
    volund status --runtime-dir /run/volund --output json | tr -d ' \n'
}

# replicas STATE COUNT: so many copies of the mirror are in this state.
replicas() {
    status | sed 's/.*"name":"mirror"//; s/"name":.*//' | grep -o '"state":"'"$1"'"' | wc -l | grep -qx "$2"
}

uuid_in() {
    status | sed 's/.*"name":"mirror"//; s/"name":.*//' | sed 's/.*"pool":"'"$1"'","uuid":"\([^"]*\)".*/\1/'
}

# equal: the data areas of the mirror are.
equal() {
    cmp "/a/pool/replicas/$(uuid_in a)" "/b/pool/replicas/$(uuid_in b)" 1048576 1048576
}

# client NAME SOCKET SEED: starts one that takes commands.
client() {
    rm -f /run/$1.in /run/$1.out
    mkfifo /run/$1.in /run/$1.out
    vhost_late run /run/volund/$2.sock $3 </run/$1.in >/run/$1.out 2>>/run/client.log 6>&- 7<&- 8>&- 9<&- &
    clients="$clients $!"
}

# mirror COMMAND...: what the client of the mirror is to do. `said` has its answer.
mirror() {
    echo "$*" >&6 || return 1
    read -r said <&7
    echo "$said"
    case $said in ok*) return 0 ;; esac
    return 1
}

# alone COMMAND...: the same for the client of the volume with one copy.
alone() {
    echo "$*" >&8 || return 1
    read -r said <&9
    echo "$said"
    case $said in ok*) return 0 ;; esac
    return 1
}

# tell NAME COMMAND...: a check whose answer is worth reading.
tell() {
    said=
    check "$@"
    echo "     $said"
}

# clients VOLUME: one on the mirror, one on the other.
clients() {
    client mirror mirror $((seed += 1))
    exec 6>/run/mirror.in 7</run/mirror.out
    client alone "$1" $((seed += 1))
    exec 8>/run/alone.in 9</run/alone.out
    check "the mirror is filled" mirror fill
    check "$1 is filled" alone fill
}

no_clients() {
    exec 6>&- 7<&- 8>&- 9<&-
    wait $clients
    clients=
}

probe() {
    rm -f /run/probe.stop
    vhost_late probe /run/volund/$1.sock 127.0.0.1:9847 /run/probe.stop $others emulated >/run/probe.log 2>&1 6>&- 7<&- 8>&- 9<&- &
    prober=$!
}

# probed NAME: nobody else noticed.
probed() {
    touch /run/probe.stop
    wait $prober
    check "$1" [ $? = 0 ]
    sed 's/^/     /' /run/probe.log
}

# whole: the disk is back, and the mirror has both copies again.
whole() {
    check "the replica is rebuilt" wait_for 60 replicas InSync 2
    tell "no write is lost or mixed up" mirror verify
    tell "no answered buffer was touched by then" mirror patterns
    check "both copies are equal" equal
}

# held POOL OTHER: a disk answers nothing for three times io_timeout.
held() {
    echo "--- $1 is held for three times io_timeout"
    clients alone-$1
    probe alone-$2
    sleep 1
    check "hold $1" hold $1
    mirror burst >/dev/null
    alone burst >/dev/null
    tell "$1 held: the client goes on" mirror answers $patience
    mirror overwrite >/dev/null
    tell "$1 held: the same blocks are overwritten" mirror answers $patience
    tell "$1 held: no answered buffer is touched" mirror patterns
    check "$1 held: its replica is left behind" wait_for 10 replicas InSync 1
    tell "$1 held: a volume with one copy waits" alone silence $((io_timeout * 2000))
    check "release $1" release $1
    tell "$1 released: it gets its answers" alone answers
    tell "$1 released: with its data" alone verify
    tell "$1 released: and its buffers as they were" alone patterns
    tell "$1 released: no answered buffer is touched" mirror patterns
    probed "$1 held and released: nobody else waits"
    whole
    no_clients
}

# killed POOL OTHER: the same, and the daemon is killed and started meanwhile.
killed() {
    echo "--- $1 is held, and the daemon killed and started again meanwhile"
    clients alone-$1
    check "hold $1" hold $1
    mirror burst >/dev/null
    alone burst >/dev/null
    tell "$1 held: the client goes on" mirror answers $patience
    mirror overwrite >/dev/null
    tell "$1 held: the same blocks are overwritten" mirror answers $patience
    alone silence 500 >/dev/null
    file=/$1/pool/replicas/$(uuid_in $1) dead=$daemon
    began=$(date +%s)
    kill -9 $daemon
    usleep 300000
    ps -o pid,stat,comm | grep -w "$daemon" | sed 's/^/     after kill -9: /'
    mark=$(wc -l </run/volund.log)
    start
    if wait_for $((io_timeout * 3)) sh -c 'volund status --runtime-dir /run/volund'; then
        echo "     the daemon runs again after $(($(date +%s) - began)) s, $1 still held"
    else
        echo "     the daemon does not run while $1 is held"
    fi
    sleep $io_timeout
    check "$1 held: its replica is not in use" replicas InSync 1
    check "$1 held: I/O of the killed daemon has the lock of its replica" locked_by $dead $file
    refuse "$1 held: no replica comes back" logged "a replica is back"
    check "release $1" release $1
    check "the sockets are there" wait_for 60 started mirror alone-a alone-b
    check "the mirror's client connects again" wait_for 30 mirror connect
    check "so does the other" wait_for 30 alone connect
    tell "$1 released: no answered buffer is touched" mirror patterns
    tell "nor of the other" alone patterns
    tell "no write of the other is lost or mixed up" alone verify
    whole
    no_clients
}

# logged TEXT: the daemon says so since it was started again.
logged() {
    sed "1,${mark}d" /run/volund.log | grep -F "$1"
}

# locked_by PROCESS FILE: the kernel's list of locks names it.
locked_by() {
    grep "FLOCK .*WRITE $1 .*:$(stat -c %i "$2") " /proc/locks || { cat /proc/locks && return 1; }
}

# load: two clients write, read and verify all along, one of them is fio.
load() {
    rm -f /run/load.stop /run/load.state
    vhost_blocks run /run/volund/mirror.sock --bytes 16MiB --seed $((seed += 1)) --jobs 2 --until /run/load.stop \
        --state /run/load.state >/run/load.log 2>&1 &
    loader=$!
    fio --name=verify --filename=/dev/volund/fio --ioengine=libaio --direct=1 --iodepth=16 --bs=4k --size=16m \
        --rw=randwrite --verify=crc32c --verify_backlog=128 --verify_fatal=1 --time_based --runtime=8 \
        --output-format=terse --terse-version=3 >/run/fio.log 2>&1 &
    verifier=$!
}

# loaded NAME
loaded() {
    touch /run/load.stop
    wait $loader
    check "$1" [ $? = 0 ]
    sed 's/^/     /' /run/load.log
    wait $verifier
    check "$1, fio" [ $? = 0 ]
    awk -F';' '/^3;/ { printf "     fio: verified %d reads, %d writes, error %s\n", $6 / 4, $47 / 4, $5; next } { print "     " $0 }' /run/fio.log
}

# with_fio: the configuration gets a mirror for fio.
with_fio() {
    {
        cat /etc/volund/node.toml
        printf '[volume.fio]\nsize = "64MiB"\nreplicas = ["a", "b"]\nexport = { ublk = {} }\n'
        printf 'io_timeout = "%ss"\ndegraded_wait = "2s"\n' $io_timeout
    } >/run/node.toml
    mv /run/node.toml /etc/volund/node.new && mv /etc/volund/node.new /etc/volund/node.toml
}

# flaky POOL NUMBER: its disk is slow, then fails one second in three, first its reads, then its writes.
flaky() {
    sectors=$((1024 * MiB)) at=$(($2 * 1024 * MiB))
    echo "--- $1 is slow"
    load
    check "$1: 20 ms a read, 50 ms a write" table $1 "0 $sectors delay $disk $at 20 $disk $at 50"
    sleep 8
    loaded "$1 slow: every block is as it should be"
    check "$1 slow: its replica is in use" replicas InSync 2
    check "$1 is as fast as it was" table $1 "$(linear $1 $2)"
    echo "--- $1 is flaky"
    load
    check "$1: reads fail now and then" table $1 "0 $sectors flakey $disk $at 2 1 1 error_reads"
    sleep 8
    loaded "$1 flaky, reads: every block is as it should be"
    check "$1 reads well again" table $1 "$(linear $1 $2)"
    check "the replica is rebuilt" wait_for 60 replicas InSync 2
    check "both copies are equal" equal
    load
    check "$1: writes fail now and then" table $1 "0 $sectors flakey $disk $at 2 1 1 error_writes"
    sleep 8
    loaded "$1 flaky, writes: every block is as it should be"
    check "$1 writes well again" table $1 "$(linear $1 $2)"
    echo "     $(replicas InSync 2 && echo "the replica is back" || echo "the replica is not back: its filesystem may have given up")"
}

check "a disk in memory" memory_disk
check "device-mapper answers" dmsetup version
check "map a" map a "$(linear a 0)"
check "map b" map b "$(linear b 1)"
check "map state" map state "$(linear state 2)"
check "mkfs a" mkfs.ext4 -q -F /dev/mapper/a
check "mkfs b" mkfs.xfs -q -f /dev/mapper/b
check "mkfs state" mkfs.xfs -q -f /dev/mapper/state
check "mount a" mount -t ext4 /dev/mapper/a /a
check "mount b" mount -t xfs /dev/mapper/b /b
check "mount state" mount -t xfs /dev/mapper/state /state
{
    echo "version = 1"
    for pool in a b; do
        printf '[pool.%s]\npath = "/%s/pool"\nreserve = "64MiB"\n' $pool $pool
        printf '[volume.alone-%s]\nsize = "64MiB"\npool = "%s"\nexport = { vhost-user = {} }\n' $pool $pool
    done
    printf '[volume.mirror]\nsize = "64MiB"\nreplicas = ["a", "b"]\nexport = { vhost-user = {} }\n'
    printf 'io_timeout = "%ss"\ndegraded_wait = "2s"\n' $io_timeout
} >/etc/volund/node.toml
seed=0
start
check "the sockets appear" wait_for 60 started mirror alone-a alone-b
held b a
held a b
killed b a
killed a b
check "a mirror for fio" with_fio
check "its device is there" wait_for 60 test -b /dev/volund/fio
flaky b 1
[ "$failures" = 0 ] || show_log
[ "$failures" = 0 ] || cat /run/client.log
dmesg | grep -i -E 'BUG|WARNING|hung' | tail -n 10
finish
