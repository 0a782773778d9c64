#!/bin/sh
# Run a command as a service of a systemd that is process 1, of namespaces of its own: processes, mounts,
# network, control groups. Nothing of this host's units runs there, and what the command writes is gone with it.
#
#     sh tests/systemd/boot.sh SECONDS COMMAND [ARGUMENT...]
#
# Prints what the command printed, when it has ended. The exit status is the command's; 124: no end within
# SECONDS; 125: systemd didn't come so far. Needs root.
set -eu

if [ "${1:-}" = inside ]; then
    work=$2
    new=$work/new
    mount --make-rprivate /
    mount -t tmpfs -o mode=755 memory "$work/memory"
    mkdir "$work/memory/upper" "$work/memory/work"
    mount -t overlay -o "lowerdir=/,upperdir=$work/memory/upper,workdir=$work/memory/work" overlay "$new"
    mount -t proc proc "$new/proc"
    mount -t sysfs sysfs "$new/sys"
    mount -t cgroup2 cgroup "$new/sys/fs/cgroup"
    mount --rbind /dev "$new/dev"
    mount -t tmpfs -o mode=755 run "$new/run"
    mkdir -p "$new/run/systemd/system" "$new/run/lock" "$new/run/job"
    mount --bind "$work/job" "$new/run/job"
    # A system of nothing but the job, the journal and what the job starts.
    rm -rf "$new"/etc/systemd/system/* "$new"/lib/systemd/system-generators/* "$new"/lib/systemd/system/*.wants
    printf '%s\n' [Unit] DefaultDependencies=no \
        'Wants=systemd-journald.socket systemd-journald.service job.service' >"$new/run/systemd/system/job.target"
    printf '%s\n' [Unit] DefaultDependencies=no After=systemd-journald.service [Service] \
        'ExecStart=/bin/sh /run/job/job' StandardInput=null StandardOutput=file:/run/job/out \
        StandardError=file:/run/job/out 'ExecStopPost=systemctl --force exit' \
        LimitNOFILE=20000 >"$new/run/systemd/system/job.service"
    cd "$new"
    mkdir -p run/old
    pivot_root . run/old
    umount -l /run/old
    export container=relayd-test
    exec /lib/systemd/systemd --unit=job.target --log-target=journal
fi

limit=$1
shift
work=$(mktemp -d)
mkdir "$work/memory" "$work/new" "$work/job"
group=$(findmnt -t cgroup2 -n -o TARGET | head -n 1)/relayd-systemd-$$
tidy() {
    echo $$ >"${group%/*}/cgroup.procs"
    find "$group" -depth -type d -exec rmdir {} +
    rm -rf "$work"
}
mkdir "$group"
trap tidy EXIT
echo $$ >"$group/cgroup.procs" # so that the group is the root of what systemd sees
{
    printf 'ip link set lo up\ncd %s || exit 125\nexport PATH=%s HOME=%s RELAYD_VM=systemd PYTHONDONTWRITEBYTECODE=1\n' \
        "$PWD" "$PATH" "${HOME:-/root}"
    [ -z "${RELAYD_RESTARTS:-}" ] || printf 'export RELAYD_RESTARTS=%s\n' "$RELAYD_RESTARTS"
    [ -z "${CI:-}" ] || printf 'export CI=%s\n' "$CI"
    for word in "$@"; do printf "'%s' " "$word"; done
    printf '\necho $? >/run/job/status\n'
} >"$work/job/job"
status=0
timeout --signal=KILL "$limit" unshare --mount --pid --fork --kill-child --uts --ipc --net --cgroup \
    sh "$0" inside "$work" >"$work/console" 2>&1 || status=$?
[ ! -f "$work/job/out" ] || cat "$work/job/out"
if [ -s "$work/job/status" ]; then exit "$(cat "$work/job/status")"; fi
tail -n 20 "$work/console" >&2
[ "$status" -ne 137 ] || exit 124
exit 125
