"""A laboratory: nodes that are network namespaces, wired together by veth, with processes in them.

    with Lab() as lab:
        a, b = lab.node("a"), lab.node("b")
        lab.wire(a, b, IPv4Network("192.0.2.0/24"))     # a is 192.0.2.1, b is 192.0.2.2
        a.run("ping", "-c1", "192.0.2.2")
        server = b.start("iperf3", "-s")

Nothing of it has a name on the host. A node is one process (its holder) with a network and a mount
namespace of its own, in which /run is a fresh tmpfs: control sockets, /var/run/wireguard and state are the
node's alone, equal interface names don't clash, and no file is left anywhere. When its processes are gone,
the kernel takes the namespaces, their interfaces and their mounts away. So tearing down is killing what was
started; should this process be killed first, the kernel kills the rest (PR_SET_PDEATHSIG, prctl(2)), and
what escapes that (`ping`: a program with file capabilities loses the setting, execve(2)) ends by itself or by
the next laboratory's sweep(): every process carries the owner's pid and start time in its environment.

Calls block, each for some ten milliseconds and never longer than its time-out. Start processes from the
main thread: the kernel takes the end of the starting *thread* for the death of the parent.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from types import TracebackType
from typing import Self

from relayd.demo.host import SEARCH_PATH, check_programs, check_root, program
from relayd.demo.process import Process
from relayd.errors import HostError

MARK = "RELAYD_LAB"
"""The environment variable, PID:STARTTIME:NUMBER, by which sweep() knows a laboratory's processes."""

PROGRAMS = ("ip", "nsenter", "setpriv", "unshare")
COMMAND_S = 10.0
"""A command of set-up takes milliseconds; more than this means that it hangs."""

# /sys as the namespace sees it (else /sys/class/net shows the host's interfaces), as `ip netns exec` does it.
# A new namespace copies the host's forwarding switches: here nobody forwards unless told to.
_HOLD = """
set -e
mount -t tmpfs -o mode=0755 relayd-lab /run
mkdir -m 0755 /run/wireguard
[ /var/run -ef /run ] || mount --bind /run /var/run
mount -t sysfs sysfs /sys || true
echo 0 > /proc/sys/net/ipv4/ip_forward
echo 0 > /proc/sys/net/ipv6/conf/all/forwarding 2>/dev/null || true
ip link set lo up
echo ready
exec sleep infinity
"""


def start_time(pid: int) -> str:
    """When a process started, in clock ticks since boot (proc(5), field 22); empty when there is none."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:  # it ended
        return ""
    state, *fields = stat.rpartition(")")[2].split()
    return "" if state in "ZX" else fields[18]


_numbers = itertools.count(1)


def new_mark() -> str:
    """What the processes of a new laboratory carry: the owner's pid and start time, as a pid is reused."""
    return f"{os.getpid()}:{start_time(os.getpid())}:{next(_numbers)}"


def _mark_of(pid: int) -> str:
    try:
        environment = Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:  # it ended
        return ""
    for item in environment.split(b"\0"):
        name, _, value = item.partition(b"=")
        if name == MARK.encode():
            return value.decode(errors="replace")
    return ""


def _alive(mark: str) -> bool:
    pid, _, rest = mark.partition(":")
    return pid.isdigit() and start_time(int(pid)) == rest.partition(":")[0]


def sweep(mark: str | None = None) -> int:
    """Kill what laboratories of dead processes left, or all that carries `mark`. How many there were."""
    killed = 0
    for entry in os.listdir("/proc"):
        if not entry.isdigit() or int(entry) == os.getpid():
            continue
        try:
            handle = os.pidfd_open(int(entry))  # from here on the number can't become another process
        except OSError:  # it ended
            continue
        try:
            found = _mark_of(int(entry))
            if found and (found == mark if mark is not None else not _alive(found)):
                signal.pidfd_send_signal(handle, signal.SIGKILL)
                select.select([handle], [], [], 1.0)
                killed += 1
        except ProcessLookupError:  # it ended between the two calls
            continue
        finally:
            os.close(handle)
    return killed


class Node:
    """A machine of the laboratory. Made by Lab.node()."""

    def __init__(self, lab: Lab, name: str) -> None:
        self.name = name
        self.addresses: dict[str, IPv4Address] = {}
        """Other node -> own address on the wire to it. The interface is called to-OTHER."""
        self._lab = lab
        unshare = ["unshare", "--net", "--mount", "--propagation", "private", "sh", "-c", _HOLD]
        self.holder = lab.launch(f"{name} (namespace)", [program("setpriv"), "--pdeathsig", "KILL", *unshare])
        deadline = time.monotonic() + COMMAND_S
        while "ready" not in self.holder.output():
            if self.holder.returncode() is not None or time.monotonic() > deadline:
                raise HostError(
                    f"this process may not make namespaces ({self.holder.output().strip() or 'no answer'}): "
                    "it needs CAP_SYS_ADMIN (in a container: docker run --privileged)"
                )
            time.sleep(0.005)

    @property
    def pid(self) -> int:
        """The process that holds the namespaces: `nsenter -t PID -m -n` goes in."""
        return self.holder.pid

    def path(self, inside: str) -> Path:
        """Where the host sees a file of the node, such as /run/relayd/relay.sock (symlinks not followed)."""
        return Path(f"/proc/{self.pid}/root") / inside.lstrip("/")

    def argv(self, *command: str) -> list[str]:
        """The command line that runs `command` in the node; the process keeps its pid throughout."""
        return self._enter(program("setpriv"), "--pdeathsig", "KILL", *command)

    def _enter(self, *command: str) -> list[str]:
        return [program("nsenter"), f"--target={self.pid}", "--net", "--mount", "--", *command]

    def run(self, *command: str, stdin: str = "", timeout_s: float = COMMAND_S) -> str:
        """Run a command to its end. Its output. Raises HostError when it fails or takes too long."""
        return self._lab.run(self._enter(*command), stdin=stdin, timeout_s=timeout_s)

    def start(
        self, *command: str, environment: Mapping[str, str] | None = None, pipe: bool = False
    ) -> Process:
        """Start a process that the laboratory ends at the latest. With `pipe` its output comes as a pipe."""
        return self._lab.launch(
            f"{self.name}: {command[0]}", self.argv(*command), environment=environment, pipe=pipe
        )

    def relayd(self, *arguments: str) -> Process:
        """Start `relayd ARGUMENTS`: this very program, by this very interpreter."""
        return self._lab.launch(f"{self.name}: relayd {arguments[0]}", self.argv(*RELAYD, *arguments))

    def ip(self, *lines: str) -> None:
        """Several `ip` commands in one process. Raises HostError with the line that failed."""
        self.run("ip", "-batch", "-", stdin="".join(f"{line}\n" for line in lines))


RELAYD = (sys.executable, "-m", "relayd")


class Lab:
    """A set of nodes, and everything that was started in them."""

    def __init__(self) -> None:
        check_root()
        check_programs(PROGRAMS)
        sweep()
        # No RELAYD_* setting of the caller's may change what the nodes do.
        kept = {key: value for key, value in os.environ.items() if not key.startswith("RELAYD_")}
        source = str(Path(__file__).resolve().parents[2])
        paths = [source, *filter(None, [kept.get("PYTHONPATH")])]
        self._environment = kept | {
            MARK: new_mark(),
            "PATH": SEARCH_PATH,
            "PYTHONPATH": os.pathsep.join(paths),
            "LC_ALL": "C",
        }
        self.nodes: dict[str, Node] = {}
        self._processes: list[Process] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Kill all that was started. Twice is no error."""
        for process in self._processes:
            process.kill()
        for process in self._processes:
            process.close()
        self._processes.clear()
        self.nodes.clear()
        sweep(self._environment[MARK])  # what its processes started by themselves

    def node(self, name: str) -> Node:
        """A new machine, with nothing but `lo`. Raises HostError when the host allows no namespaces."""
        node = self.nodes[name] = Node(self, name)
        return node

    def wire(self, left: Node, right: Node, network: IPv4Network) -> None:
        """A cable. `left` gets the network's first address, `right` its second; see Node.addresses."""
        ends = list(zip((left, right), (right, left), list(network.hosts())[:2], strict=True))
        # (Not the bare name: `ip link add a type` reads "a" as the keyword "address".)
        left.ip(f"link add to-{right.name} type veth peer name to-{left.name} netns {right.pid}")
        for node, other, address in ends:
            node.addresses[other.name] = address
            node.ip(
                f"addr add {address}/{network.prefixlen} dev to-{other.name}", f"link set to-{other.name} up"
            )

    def run(self, argv: list[str], *, stdin: str = "", timeout_s: float = COMMAND_S) -> str:
        """Run a command of the host to its end. Raises as Node.run()."""
        # A session of its own: Ctrl-C in a terminal goes to everybody in the foreground, and set-up and
        # tear-down must not lose their commands to it.
        try:
            done = subprocess.run(
                argv, input=stdin, capture_output=True, text=True, timeout=timeout_s, check=False,
                env=self._environment, start_new_session=True,
            )  # fmt: skip
        except subprocess.TimeoutExpired as error:
            raise HostError(f"`{' '.join(argv)}` did not end in {timeout_s:g} s") from error
        if done.returncode:
            said = (done.stderr or done.stdout).strip() or f"exit status {done.returncode}"
            raise HostError(f"`{' '.join(argv)}` failed: {said}")
        return done.stdout

    def launch(
        self, title: str, argv: list[str], *, environment: Mapping[str, str] | None = None, pipe: bool = False
    ) -> Process:
        """Start a process of the host, to be ended with the laboratory."""
        process = Process(title, argv, self._environment | dict(environment or {}), pipe=pipe)
        self._processes.append(process)
        return process

    def processes(self) -> list[Process]:
        """All that was started and not discarded, oldest first; nodes' holders too."""
        return list(self._processes)

    def discard(self, process: Process) -> None:
        """Kill one process and forget it: for those that come and go while the laboratory stays."""
        process.kill()
        process.close()
        with contextlib.suppress(ValueError):  # forgotten before
            self._processes.remove(process)
