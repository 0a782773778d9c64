"""One run of the virtual machine: QEMU, the daemon that shares the host's files, the guest's three pipes."""

from __future__ import annotations

import contextlib
import ctypes
import os
import selectors
import shlex
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from tests.kernel.image import Kernel, VmError, program

TIMED_OUT, FAILED = 124, 125
"""Exit statuses that are not the command's own: out of time; no machine, or it ended without a status."""

VIRTIOFSD = ("/usr/libexec/virtiofsd", "/usr/lib/qemu/virtiofsd", "/usr/lib/virtiofsd")
"""Debian 12 has it in qemu-system-common, later releases in the package virtiofsd."""

SHARE_START_S = 10.0

LAST_WORDS_S = 30.0
"""So long before its time is up the guest is asked to tell its console what goes on in it."""

MODULES = ("wireguard", "veth", "tun")
"""Loaded before the command; others load on demand. /dev/net/tun is there only because tun is loaded."""

# Speed under emulation: mitigations, init_on_alloc, norandmaps, psi, cryptomgr.notests, rcu_expedited, tsc.
# The end of the machine on any fault: panic, oops (with -no-reboot). QEMU before 8.0 finds translated code by
# its virtual address too: with random ones, each program has libc translated anew (`true`: 115 ms, not 25).
KERNEL_OPTIONS = (
    "console=ttyS0 panic=-1 oops=panic quiet loglevel=4 mitigations=off init_on_alloc=0 nokaslr norandmaps "
    "audit=0 psi=0 apparmor=0 selinux=0 cryptomgr.notests rcupdate.rcu_expedited=1 nowatchdog "
    "no_timer_check tsc=reliable random.trust_cpu=1 8250.nr_uarts=1 i8042.noaux i8042.nokbd"
)

SYSTEMD_OPTIONS = (
    "systemd.show_status=1 systemd.journald.forward_to_console=1 systemd.journald.max_level_console=notice"
)
"""What it does is on the console, whose end is shown where a run has none."""

CPU = {"tcg": "Nehalem,+rdrand", "kvm": "host"}
"""Emulating wide vectors is slow: WireGuard in the guest makes 57 Mbit/s on `max` and 186 on Nehalem."""

STEADY = ("-accel", "tcg,thread=single", "-icount", "shift=0,sleep=on")
"""A processor of exactly 1,000 million instructions a second, and a clock to which that is so: one that takes
the host ten seconds to emulate is slow to watch, and sees itself do in one second what others do in one. What
has deadlines meets them or doesn't, whatever else the host does. Waiting takes as long as anywhere."""

_PR_SET_PDEATHSIG = 1  # prctl(2)


@dataclass(frozen=True, kw_only=True)
class Job:
    """What to run, and in what machine."""

    command: Sequence[str]
    directory: Path
    environment: Mapping[str, str]
    layer: Path
    """A directory that is laid over the root."""
    out: Path | None = None
    """A directory of the host that the guest may write to, at the same path."""
    timeout_s: float = 1140.0
    memory_mib: int = 1024
    processors: int = 2
    accelerator: str = "tcg"
    steady: bool = False
    """Whether time in it is counted in instructions (`STEADY`)."""
    systemd: bool = False
    """Whether systemd is process 1, and runs the command as a service; else there is only the command."""


@dataclass
class Outcome:
    """How a run ended. `marks`: (stage, seconds since its start)."""

    status: int
    reason: str = ""
    console: str = ""
    marks: list[tuple[str, float]] = field(default_factory=list)


def run(job: Job, kernel: Kernel, initrd: Path, cache: Path, stdout: IO[bytes], stderr: IO[bytes]) -> Outcome:
    """Boot, run the command, pass its output on as it comes. Nothing is left running. Raises VmError."""
    started = time.monotonic()
    with contextlib.ExitStack() as stack:
        work = _work_directory(stack, cache)
        _write_job(job, work)
        pipes = [socket.socketpair() for _ in range(3)]
        for pair in pipes:
            for end in pair:
                stack.callback(end.close)
        shares = [_share(stack, work, "host", Path("/"), writable=False)]
        # Not as a part of the other: overlayfs takes no layer that is inside another one.
        shares.append(_share(stack, work, "layer", job.layer, writable=False))
        if job.out is not None:
            shares.append(_share(stack, work, "out", job.out, writable=True))
        theirs = [end for _, end in pipes]
        argv = _qemu(job, kernel, initrd, work, [end.fileno() for end in theirs], shares)
        machine = _start(stack, argv, work / "qemu.log", pass_fds=[end.fileno() for end in theirs])
        for end in theirs:
            end.close()
        outcome = _Conversation([end for end, _ in pipes], (stdout, stderr), started).hold(job.timeout_s)
        if outcome.status in (TIMED_OUT, FAILED):
            machine.kill()
            machine.wait()
            outcome.console = _tail(work / "console") + _tail(work / "qemu.log")
        return outcome


def _work_directory(stack: contextlib.ExitStack, cache: Path) -> Path:
    """A directory for this run's files, of a path that the guest can see."""
    for old in cache.glob("job-*"):  # left by a run that was killed
        if not Path("/proc", old.name.split("-")[1]).exists():
            shutil.rmtree(old, ignore_errors=True)
    return Path(stack.enter_context(tempfile.TemporaryDirectory(prefix=f"job-{os.getpid()}-", dir=cache)))


def _write_job(job: Job, work: Path) -> None:
    lines = [f"cd {shlex.quote(str(job.directory))} || exit {FAILED}"]
    lines += [f"export {name}={shlex.quote(value)}" for name, value in job.environment.items()]
    lines += [f"exec {shlex.join(job.command)}", ""]
    (work / "job").write_text("\n".join(lines))
    (work / "modules").write_text("\n".join(MODULES) + "\n")
    command = Path(__file__).with_name("guest") / "command.sh"
    (work / "command.sh").write_bytes(command.read_bytes())


def _start(
    stack: contextlib.ExitStack, argv: list[str], log: Path, *, pass_fds: Sequence[int] = ()
) -> subprocess.Popen[bytes]:
    """A process that ends with this run, also if this one is killed: the kernel then kills it."""
    libc = ctypes.CDLL(None)
    with log.open("wb") as output:
        process = subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            pass_fds=pass_fds,
            start_new_session=True,  # Ctrl-C is for us alone; we end it in order
            preexec_fn=lambda: libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL),  # noqa: PLW1509 (no threads here)
        )
    stack.callback(process.wait)
    stack.callback(process.kill)
    return process


def _share(
    stack: contextlib.ExitStack, work: Path, tag: str, source: Path, *, writable: bool
) -> tuple[str, Path]:
    """Share a directory of the host by virtiofs. -> (tag, socket for QEMU)"""
    if os.geteuid() != 0:
        raise VmError("sharing files with the virtual machine needs root")
    daemon = program("virtiofsd", *VIRTIOFSD)
    path, log = work / f"{tag}.sock", work / f"{tag}.log"
    cache = "auto" if writable else "always"
    if "/qemu/" in daemon:  # the C daemon of QEMU 7; its default sandbox cannot share / (pivot_root: EBUSY)
        options = ["-o", f"source={source},cache={cache},xattr,sandbox=chroot,log_level=err"]
    else:  # its successor
        options = [
            f"--shared-dir={source}",
            f"--cache={cache}",
            "--xattr",
            "--sandbox=chroot",
            "--log-level=error",
        ]
    process = _start(stack, [daemon, f"--socket-path={path}", *options], log)
    deadline = time.monotonic() + SHARE_START_S
    while not path.exists():
        if process.poll() is not None or time.monotonic() > deadline:
            raise VmError(f"{daemon} does not start: {_tail(log) or 'it says nothing'}")
        time.sleep(0.01)
    return tag, path


def _qemu(
    job: Job,
    kernel: Kernel,
    initrd: Path,
    work: Path,
    ports: Sequence[int],
    shares: Sequence[tuple[str, Path]],
) -> list[str]:
    accelerator = {"tcg": "tcg,thread=multi"}.get(job.accelerator, job.accelerator)
    speed = STEADY if job.steady else ("-accel", accelerator)
    variables = f"VM_JOB={work} VM_MODULES={kernel.modules} VM_OUT={job.out or ''}"
    variables += f" VM_SYSTEMD={'1' if job.systemd else ''}"
    options = f"{KERNEL_OPTIONS} {SYSTEMD_OPTIONS}" if job.systemd else KERNEL_OPTIONS
    argv = [program("qemu-system-x86_64"), "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"]
    argv += ["-machine", "pc,usb=off,vmport=off", *speed, "-cpu", CPU[job.accelerator]]
    argv += ["-smp", str(job.processors), "-m", str(job.memory_mib)]
    argv += ["-kernel", str(kernel.image), "-initrd", str(initrd), "-append", f"{options} {variables}"]
    argv += ["-chardev", f"file,id=console,path={work / 'console'}", "-serial", "chardev:console"]
    argv += ["-device", "virtio-serial-pci"]
    for number, descriptor in enumerate(ports, 1):
        argv += ["-chardev", f"socket,id=port{number},fd={descriptor}"]
        argv += ["-device", f"virtserialport,chardev=port{number},nr={number}"]
    # vhost-user needs memory that the daemon can map too.
    argv += ["-object", f"memory-backend-memfd,id=memory,size={job.memory_mib}M,share=on"]
    argv += ["-numa", "node,memdev=memory"]
    for tag, path in shares:
        argv += ["-chardev", f"socket,id=share-{tag},path={path}"]
        argv += ["-device", f"vhost-user-fs-pci,chardev=share-{tag},tag={tag}"]
    return argv


class _Conversation:
    """Reads the guest's stdout, stderr and status until it has told its exit status, or is gone."""

    def __init__(
        self, ends: Sequence[socket.socket], sinks: tuple[IO[bytes], IO[bytes]], started: float
    ) -> None:
        self._outputs = dict(zip(ends[:2], sinks, strict=True))
        self._status_end = ends[2]
        self._started = started
        self._exit: int | None = None
        self._rest = b""
        self._marks: list[tuple[str, float]] = []

    def hold(self, timeout_s: float) -> Outcome:
        """Until the end, or for at most `timeout_s` since the start of the run."""
        with selectors.DefaultSelector() as selector:
            for end in (*self._outputs, self._status_end):
                selector.register(end, selectors.EVENT_READ)
            next_s, asked = timeout_s - LAST_WORDS_S, False
            while selector.get_map() and self._exit is None:
                left = next_s - (time.monotonic() - self._started)
                if left <= 0 and asked:
                    return Outcome(TIMED_OUT, f"no end after {timeout_s:g} s", marks=self._marks)
                if left <= 0:
                    with contextlib.suppress(ConnectionError):  # gone: the next read says so
                        self._status_end.send(b"what goes on?\n")
                    next_s, asked = timeout_s, True
                    continue
                ready = {key.fd for key, _ in selector.select(left)}
                for end in (*self._outputs, self._status_end):
                    if end.fileno() in ready and not self._take(end):
                        selector.unregister(end)
        for end, sink in self._outputs.items():  # what was written before the status, and not yet read
            end.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                while data := _received(end):
                    _pass_on(sink, data)
        if self._exit is None:
            return Outcome(FAILED, "the machine ended without telling an exit status", marks=self._marks)
        self._marks.append(("end", time.monotonic() - self._started))
        return Outcome(self._exit, marks=self._marks)

    def _take(self, end: socket.socket) -> bool:
        """Read one piece of what came. -> is there more to come?"""
        data = _received(end)
        if end is self._status_end:
            self._take_status(data)
        else:
            _pass_on(self._outputs[end], data)
        return bool(data)

    def _take_status(self, data: bytes) -> None:
        *lines, self._rest = (self._rest + data).split(b"\n")
        for word, value, *more in (line.decode(errors="replace").split() for line in lines if line):
            if word == "mark":
                guest_s = f" (guest {more[0]} s)" if more else ""
                self._marks.append((f"{value}{guest_s}", time.monotonic() - self._started))
            elif word == "exit":
                self._exit = int(value)


def _received(end: socket.socket) -> bytes:
    """b"" also for a connection that QEMU's end reset."""
    try:
        return end.recv(65536)
    except ConnectionError:
        return b""


def _pass_on(sink: IO[bytes], data: bytes) -> None:
    sink.write(data)
    sink.flush()


def _tail(path: Path, lines: int = 120) -> str:
    if not path.exists():
        return ""
    return "".join(path.read_text(errors="replace").splitlines(keepends=True)[-lines:])
