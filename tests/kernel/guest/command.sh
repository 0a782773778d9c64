# Second half of the start, in the host's files: loads modules, runs the job, tells its exit status on the
# status port (descriptor 3), and turns the machine off.
b=/run/vm/busybox
cd /run/vm || exit 1
[ -n "$INVOCATION_ID" ] && exec 3<>/dev/vport0p3 # a service of systemd, which closed what init.sh had opened
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
mark() { read -r up rest </proc/uptime; echo "mark $1 $up" >&3; }

$b ip link set lo up
$b hostname vm
for module in $($b cat modules); do
    /sbin/modprobe "$module" || echo "command: modprobe $module failed" >/dev/console
done
mark command
# The host asks, when its patience is nearly at an end. What is on the console then it shows.
last_words() {
    read -r _ <&3 || return
    exec >/dev/console 2>&1
    echo "command: asked what goes on here: processes, systemd's jobs, the journal's end"
    $b ps -o pid,ppid,stat,args | $b grep -v '\[' | $b cut -c 1-200
    [ -n "$INVOCATION_ID" ] || return
    $b timeout 10 systemctl --no-pager list-jobs
    $b timeout 10 journalctl --no-pager -n 40 -o short-monotonic _TRANSPORT=journal + _TRANSPORT=stdout
}
last_words & words=$!
# A virtio port can be opened once: the job's own reopening of /dev/stdout must find a pipe.
$b mkfifo out err
$b cat out >/dev/vport0p1 & copy_out=$!
$b cat err >/dev/vport0p2 & copy_err=$!
# The host's shell, not busybox: busybox prefers its own applets (its `ip` is a poor one) over PATH.
$b setsid /bin/sh ./job >out 2>err </dev/null 3>&-
status=$?
mark done
kill $words 2>/dev/null
# A daemon that was left behind may hold the pipes: the copiers get two seconds, no more.
tries=0
while [ $tries -lt 20 ] && { kill -0 $copy_out || kill -0 $copy_err; } 2>/dev/null; do
    $b usleep 100000
    tries=$((tries + 1))
done
echo "exit $status" >&3
$b sync
$b poweroff -f
