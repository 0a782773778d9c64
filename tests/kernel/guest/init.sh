#!/bin/busybox sh
# First process of the virtual machine, in the initrd. Mounts the host's files, read-only, under an overlay
# in memory, and goes on there with command.sh. From the kernel's command line come, as variables:
# VM_JOB (directory with the job, a path of the host), VM_MODULES (lib/modules/VERSION, likewise) and
# VM_OUT (a directory of the host that may be written, or empty).
b=/bin/busybox
fail() { echo "init: $*" >/dev/console; $b poweroff -f; }

$b mount -t proc proc /proc
$b mount -t sysfs sys /sys
$b mount -t devtmpfs dev /dev
for module in $($b cat /early); do
    $b insmod "/modules/$module" || echo "init: insmod $module failed" >/dev/console
done
exec 3>/dev/vport0p3 || fail "no status port"
read -r up rest </proc/uptime
echo "mark init $up" >&3

$b mount -t virtiofs -o ro host /host || fail "cannot mount the host's files"
$b mount -t tmpfs -o mode=755 memory /upper
$b mkdir /upper/files /upper/work
$b mount -t overlay -o lowerdir=/host,upperdir=/upper/files,workdir=/upper/work overlay /new || fail "no overlay"
for directory in proc sys dev run lib/modules; do $b mkdir -p "/new/$directory"; done
$b mount -t proc proc /new/proc
$b mount -t sysfs sys /new/sys
$b mount --move /dev /new/dev
$b mount -t tmpfs -o mode=755 run /new/run
$b mkdir -p /new/dev/pts /new/dev/shm /new/run/lock /new/run/netns /new/run/wireguard /new/run/vm
$b mount -t devpts -o mode=620,ptmxmode=666 pts /new/dev/pts
$b mount -t tmpfs shm /new/dev/shm
$b mount -t cgroup2 cgroup /new/sys/fs/cgroup 2>/dev/null
for link in fd: stdin:/0 stdout:/1 stderr:/2; do
    $b ln -sfn "/proc/self/fd${link#*:}" "/new/dev/${link%:*}"
done
if [ -n "$VM_OUT" ]; then $b mount -t virtiofs out "/new$VM_OUT" || fail "cannot mount $VM_OUT"; fi
$b cp -a "/host$VM_JOB/." /bin/busybox /new/run/vm/
$b mount -t tmpfs modules /new/lib/modules
$b mkdir "/new/lib/modules/$($b uname -r)"
$b mount -o bind "/host$VM_MODULES" "/new/lib/modules/$($b uname -r)"
exec $b switch_root /new /run/vm/busybox sh /run/vm/command.sh
