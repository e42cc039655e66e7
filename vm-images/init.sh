#!/bin/sh
# PID 1 of a test guest: loads the modules, waits for the port to the host, runs /test.sh and tells the host its result.
# The host reads the line "RESULT <nonce> <failures>"; whatever comes before "INIT <nonce>" may be tried again.
export PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs dev /dev 2>/dev/null
mkdir -p /dev/shm
mount -t tmpfs tmp /tmp
mount -t tmpfs run /run
ln -sf /proc/self/fd /dev/fd
while read -r module; do
    # Parameters may follow the name.
    insmod $module 2>>/run/insmod.log || echo "init: $module did not load" >/dev/console
done </modules/order
nonce=$(sed -n 's/.*volund.nonce=\([0-9a-f]*\).*/\1/p' /proc/cmdline)

# Ports appear some time after their driver; their names stand in sysfs.
port=
tries=0
while [ -z "$port" ] && [ "$tries" -lt 300 ]; do
    for name in /sys/class/virtio-ports/*/name; do
        if [ -e "$name" ] && [ "$(cat "$name")" = volund ]; then
            port=/dev/$(basename "$(dirname "$name")")
        fi
    done
    [ -n "$port" ] || usleep 100000
    tries=$((tries + 1))
done
[ -n "$port" ] || { echo "init: no port to the host" >/dev/console; poweroff -f; }

exec 3<>"$port"
echo "INIT $nonce" >&3
sh /test.sh >&3 2>&3 <&3
echo "RESULT $nonce $?" >&3
# The host ends the machine as soon as it has read the line.
while :; do sleep 60; done
