#!/bin/sh
# Boots systemd in the Debian tree $1, in namespaces of its own; everything ends with the process that this becomes.
# $2 names the control groups for it. A third argument means that the outer half is done.
set -eu
tree=$1
group=$2
if [ $# -eq 2 ]; then
    # Groups of its own, so that this systemd sees and moves nobody else's processes.
    for mount in $(awk '$3 ~ /^cgroup2?$/ { print $2 }' /proc/mounts); do
        mkdir "$mount/$group"
        if [ -e "$mount/cpuset.cpus" ]; then
            cat "$mount/cpuset.cpus" > "$mount/$group/cpuset.cpus"
            cat "$mount/cpuset.mems" > "$mount/$group/cpuset.mems"
        fi
        echo $$ > "$mount/$group/cgroup.procs"
    done
    exec unshare --pid --mount --uts --ipc --cgroup --fork --kill-child "$0" "$tree" "$group" inner
fi
mount --make-rprivate /
mount --bind "$tree" "$tree"
mount -t proc proc "$tree/proc"
mount -t sysfs sysfs "$tree/sys"
mount -t tmpfs tmpfs "$tree/run"
mount -t tmpfs -o mode=755 tmpfs "$tree/dev"
for node in null zero full random urandom tty; do
    : > "$tree/dev/$node"
    mount --bind "/dev/$node" "$tree/dev/$node"
done
mkdir "$tree/dev/shm" "$tree/dev/pts"
mount -t tmpfs tmpfs "$tree/dev/shm"
mount -t devpts -o newinstance devpts "$tree/dev/pts"
cd "$tree"
mkdir -p old
pivot_root . old
umount --lazy /old
exec env --ignore-environment container=other PATH=/usr/sbin:/usr/bin:/sbin:/bin /lib/systemd/systemd
