#!/bin/sh
# Runs the files of the image as a container would, without a container engine: try.sh IMAGE CONFIG PHOTO [ROOTFS]
#
# A root file system that is read-only, the user 10001 without privileges, an empty environment, a network of its own, and
# the command line of the chart's all-in-one pod. IMAGE is what layout.sh wrote, CONFIG the pod's sightline.toml. System
# libraries are those of ROOTFS, or of this machine. Needs root. Prints the verdict; ends with 0 when the process
# also stopped by itself when asked to.
set -eu
image=${1:?image} config=${2:?config} photo=${3:?photo} rootfs=${4:-}
if [ "${SIGHTLINE_TRY_INSIDE:-}" != yes ]; then
    exec env SIGHTLINE_TRY_INSIDE=yes unshare --mount --net --pid --fork --mount-proc --kill-child "$0" "$@"
fi
unset SIGHTLINE_TRY_INSIDE

mount --make-rprivate /
root=$(mktemp -d)
mount -t tmpfs -o mode=755 tmpfs "$root"
mkdir -p "$root/proc" "$root/tmp" "$root/opt" "$root/etc/sightline" "$root/var/lib/sightline" "$root/photo"
for folder in usr bin sbin lib lib64; do
    if [ -L "${rootfs}/$folder" ]; then
        cp -P "${rootfs}/$folder" "$root/$folder"
    elif [ -d "${rootfs}/$folder" ]; then
        mkdir "$root/$folder"
        mount --rbind "${rootfs}/$folder" "$root/$folder"
    fi
done
mount --bind "$image/opt" "$root/opt"
mount -t proc proc "$root/proc"
cp "$config" "$root/etc/sightline/sightline.toml"
cp "$photo" "$root/photo/photo.jpg"
chmod 644 "$root/etc/sightline/sightline.toml" "$root/photo/photo.jpg"
# The volumes of the pod.
mount -t tmpfs -o size=64m,mode=1777 tmpfs "$root/tmp"
mount -t tmpfs -o size=256m,uid=10001,gid=10001,mode=750 tmpfs "$root/var/lib/sightline"
mount -o remount,ro "$root"
ip link set lo up

inside() {
    exec env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin setpriv --no-new-privs chroot --userspec=10001:10001 "$root" \
        /usr/bin/env -i PATH=/opt/sightline/bin "$@"
}
if (inside /usr/bin/touch /opt/sightline/x) 2>/dev/null || (inside /usr/bin/touch /x) 2>/dev/null; then
    echo "try.sh: the root file system is writable" >&2
    exit 1
fi
inside sightline serve ratelimiter classifier stats ingest --config /etc/sightline/sightline.toml &
server=$!
tries=0
until verdict=$(inside sightline classify --json --endpoint http://127.0.0.1:7401 /photo/photo.jpg 2>/dev/null); do
    tries=$((tries + 1))
    if [ $tries -gt 120 ] || ! kill -0 $server 2>/dev/null; then
        echo "try.sh: no verdict" >&2
        exit 1
    fi
    sleep 0.5
done
# Which libtorch it runs on: the image's.
grep -q 'opt/sightline/.*lib/libtorch_cpu.so' /proc/$server/maps
printf '%s\n' "$verdict"
kill -TERM $server
wait $server
