#!/bin/busybox sh
# First process of the virtual machine, in the initrd. Mounts the host's files, read-only, under a layer of more
# of them and an overlay in memory, and goes on there with command.sh. From the kernel's command line come, as variables:
# VM_JOB (directory with the job, a path of the host), VM_MODULES (lib/modules/VERSION, likewise),
# VM_OUT (a directory of the host that may be written, or empty) and VM_SYSTEMD (systemd is to be process 1, and
# runs command.sh as a service; or empty).
b=/bin/busybox
fail() { echo "init: $*" >/dev/console; $b poweroff -f; }

$b mount -t proc proc /proc
$b mount -t sysfs sys /sys
$b mount -t devtmpfs dev /dev
for module in $($b cat /early); do
    $b insmod "/modules/$module" || echo "init: insmod $module failed" >/dev/console
done
exec 3<>/dev/vport0p3 || fail "no status port"
read -r up rest </proc/uptime
echo "mark init $up" >&3

$b mount -t virtiofs -o ro host /host || fail "cannot mount the host's files"
$b mount -t virtiofs -o ro layer /layer || fail "cannot mount the layer"
$b mount -t tmpfs -o mode=755 memory /upper
$b mkdir /upper/files /upper/work
over=lowerdir=/layer:/host,upperdir=/upper/files,workdir=/upper/work
$b mount -t overlay -o $over overlay /new || fail "no overlay"
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
[ -n "$VM_SYSTEMD" ] || exec $b switch_root /new /run/vm/busybox sh /run/vm/command.sh

# A system of nothing but the job, the journal and what the job starts: this host's units are not ours to run.
# Services look into /etc at each start, and here write to it: it is a copy, which nothing changes from below.
$b mount -t tmpfs -o mode=755 etc /new/etc
$b cp -a /host/etc/. /new/etc/
$b rm -f /new/.dockerenv # by which systemd would take this for a container
units=/new/run/systemd/system
$b mkdir -p $units
$b rm -rf /new/etc/systemd/system/* /new/lib/systemd/system-generators/* /new/lib/systemd/system/*.wants
printf '[Unit]\nDefaultDependencies=no\nWants=systemd-journald.socket systemd-journald.service vm.service\n' \
    >$units/vm.target
printf '%s\n' [Unit] DefaultDependencies=no After=systemd-journald.service [Service] \
    'ExecStart=/run/vm/busybox sh /run/vm/command.sh' StandardInput=null StandardOutput=null StandardError=null \
    LimitNOFILE=1048576 >$units/vm.service
exec 3>&-
exec $b switch_root /new /lib/systemd/systemd --unit=vm.target
