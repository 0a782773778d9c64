"""What the load is pointed at: a relay of this tree, one that runs already, or a control."""

from __future__ import annotations

import hashlib
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from bench.connections import raise_file_limit
from bench.load import require_loopback
from bench.model import BenchError, Wire

READY_WITHIN_S = 15.0
STOP_WITHIN_S = 5.0
LISTENING_EVERY_S = 0.005
FILES_FOR_MANY = 10_500
"""Open files of a process that is to hold 10,000 connections."""
_ROOT = Path(__file__).resolve().parent.parent
_CONTROL_SOURCE = Path(__file__).with_name("control") / "main.go"


@dataclass(frozen=True, slots=True)
class Address:
    """Where a target listens, and the process that does; pid 0: unknown."""

    host: str
    port: int
    pid: int


class Target(Protocol):
    """Something that can be measured."""

    name: str
    wire: Wire

    def running(self) -> Iterator[Address]:
        """For as long as the generator is held. Raises BenchError when it does not start."""


def free_port() -> int:
    """A TCP port of the loopback address that was free a moment ago, for UDP too."""
    with socket.socket() as tcp, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
        tcp.bind(("127.0.0.1", 0))
        port = int(tcp.getsockname()[1])
        udp.bind(("127.0.0.1", port))
        return port


@contextmanager
def started(
    command: list[str], *, cpu: int, env: dict[str, str] | None = None, may_end: bool = False
) -> Iterator[subprocess.Popen[bytes]]:
    """A process bound to one core, ended on the way out. Its standard error is shown when it fails or, unless
    `may_end`, ends by itself."""
    raise_file_limit(FILES_FOR_MANY)  # inherited
    before = os.sched_getaffinity(0)
    with tempfile.TemporaryFile() as errors:
        if cpu >= 0:
            os.sched_setaffinity(0, {cpu})  # inherited, so that no thread starts elsewhere
        try:
            process = subprocess.Popen(
                command,
                cwd=_ROOT,
                env={**os.environ, "PYTHONPATH": str(_ROOT), **(env or {})},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=errors,
            )
        finally:
            os.sched_setaffinity(0, before)
        try:
            yield process
            if process.poll() is not None and not may_end:
                raise BenchError(f"it ended by itself, with status {process.returncode}")
        except BenchError as error:
            errors.seek(0)
            said = errors.read()[-2000:].decode(errors="replace").strip()
            if process.poll() is None or not said:
                raise
            raise BenchError(f"{error}; {Path(command[0]).name} said: {said}") from error
        finally:
            end(process)


def end(process: subprocess.Popen[bytes]) -> None:
    """Terminate, and kill what doesn't listen."""
    process.terminate()
    try:
        process.wait(STOP_WITHIN_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    if process.stdout is not None:
        process.stdout.close()


def await_listening(process: subprocess.Popen[bytes], port: int) -> None:
    """Until the port accepts. (A connection that closes before its first frame is a health probe.)"""
    deadline = time.monotonic() + READY_WITHIN_S
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise BenchError(f"the process ended at once, with status {process.returncode}")
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        except OSError:
            time.sleep(LISTENING_EVERY_S)
    raise BenchError(f"nothing listened on port {port} within {READY_WITHIN_S:.0f} s")


@dataclass(frozen=True, slots=True)
class OwnRelay:
    """`relayd serve` of this tree, as the real process, fresh for each measurement."""

    cpu: int
    auth: str = "optional"
    """Most rows speak a bare Register: they measure frames, and have no keys to prove."""
    name: str = "relay"
    wire: Wire = "relay"

    @contextmanager
    def running(self) -> Iterator[Address]:
        """See Target."""
        port = free_port()
        with tempfile.TemporaryDirectory(prefix="relayd-bench-") as folder:
            command = [
                *(sys.executable, "-c", "import sys; from relayd.cli import main; sys.exit(main())"),
                *("serve", "--listen", f"127.0.0.1:{port}", "--control", f"{folder}/relay.sock"),
                # The load comes from a handful of addresses, faster than agents do.
                *("--log", "json", "--auth", self.auth, "--open", "--state", f"{folder}/state"),
                *("--accepts-s", "1e6", "--accepts-per-address-s", "1e6"),
                *("--max-connections-per-address", "100000"),
            ]
            with started(command, cpu=self.cpu) as process:
                assert process.stdout is not None
                await_listening(process, port)
                yield Address("127.0.0.1", port, process.pid)


@dataclass(frozen=True, slots=True)
class ForeignRelay:
    """A relay that somebody else started; it is measured as it is, one run after the other."""

    address: Address
    cpu: int = -1
    """The core that it is bound to; -1: none, or not known."""
    name: str = "relay"
    wire: Wire = "relay"

    @contextmanager
    def running(self) -> Iterator[Address]:
        """See Target."""
        require_loopback(self.address.host)
        yield self.address


@dataclass(frozen=True, slots=True)
class Control:
    """A plain TCP forwarder, fresh for each measurement: it pairs connections in the order they come."""

    command: tuple[str, ...]
    cpu: int
    name: str
    separator: str
    wire: Wire = "forward"

    @contextmanager
    def running(self) -> Iterator[Address]:
        """See Target."""
        port = free_port()
        address = [f"127.0.0.1{self.separator}{port}"] if self.separator == ":" else ["127.0.0.1", str(port)]
        with started([*self.command, *address], cpu=self.cpu, env={"GOMAXPROCS": "1"}) as process:
            assert process.stdout is not None
            if process.stdout.readline() != b"listening\n":
                process.wait(READY_WITHIN_S)
                raise BenchError("the control did not start")
            yield Address("127.0.0.1", port, process.pid)


def python_control(cpu: int) -> Control:
    """The forwarder that is always there."""
    return Control((sys.executable, "-m", "bench.forwarder"), cpu, "control (python epoll)", " ")


def go_control(cpu: int) -> Control | None:
    """The Go forwarder, built into a cache outside the tree; None where there is no Go.

    Raises BenchError when it doesn't build.
    """
    go = shutil.which("go") or shutil.which("/usr/local/go/bin/go")
    if go is None:
        return None
    source = _CONTROL_SOURCE.read_bytes()
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "relayd" / "bench"
    binary = cache / f"control-{hashlib.sha256(source).hexdigest()[:16]}"
    if not binary.exists():
        cache.mkdir(parents=True, exist_ok=True)
        fresh = binary.with_suffix(f".{os.getpid()}")
        built = subprocess.run(
            [go, "build", "-o", str(fresh), str(_CONTROL_SOURCE)],
            env={**os.environ, "GOTOOLCHAIN": "local", "GOFLAGS": "", "CGO_ENABLED": "0"},
            capture_output=True,
            timeout=180,
            check=False,
        )
        if built.returncode:
            raise BenchError(f"the control does not build: {built.stderr.decode(errors='replace')}")
        fresh.replace(binary)
    return Control((str(binary),), cpu, "control (go io.Copy)", ":")


def control_of(choice: str, cpu: int) -> list[Control]:
    """The controls for `--control auto|go|python|both|none`. Raises BenchError."""
    if choice == "none":
        return []
    if choice == "python":
        return [python_control(cpu)]
    found = go_control(cpu)
    if choice == "go" and found is None:
        raise BenchError("--control go: no go on the path")
    if choice == "both":
        return [*([found] if found else []), python_control(cpu)]
    return [found or python_control(cpu)]
