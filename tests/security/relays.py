"""`relayd serve` as a process of its own, looked at from outside; and agents that are no more than a
socket."""

from __future__ import annotations

import contextlib
import itertools
import os
import resource
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from relayd.join import JoinString
from relayd.keys import PrivateKey
from relayd.wire import frames
from relayd.wire.identity import Welcomed
from relayd.wire.identity_frames import PING, encode_pong
from tests.helpers.identities import agent_side, private

SOON_S = 20.0
"""Bound of each wait for something that happens at once on an idle machine."""

SOURCES = 200
"""Addresses of 127.0.0.0/8 that a crowd comes from: fifty connections each, below what one address may
have."""

_names = itertools.count()


class RelayProcess:
    """A running relay."""

    def __init__(self, directory: Path, *flags: str, port: int = 0) -> None:
        """`port` 0: any free one."""
        self.log = directory / "log"
        places = ["--control", str(directory / "c.sock"), "--state", str(directory / "state")]
        at = ["--listen", f"127.0.0.1:{port}", "--host", "127.0.0.1"]
        command = [sys.executable, "-m", "relayd", "serve", *at]
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [*command, *places, "--http", "off", "--log", "json", *flags],
                stdout=subprocess.PIPE,
                stderr=log,
            )
        assert self.process.stdout is not None
        line = self.process.stdout.readline().decode()
        assert line, self.log.read_text()
        self.join = JoinString.parse(line)

    @property
    def pid(self) -> int:
        return self.process.pid

    def status_kib(self, name: str) -> int:
        """VmRSS, VmHWM (proc_pid_status(5))."""
        for line in Path(f"/proc/{self.pid}/status").read_text().splitlines():
            if line.startswith(f"{name}:"):
                return int(line.split()[1])
        raise AssertionError(name)

    def descriptors(self) -> int:
        return len(os.listdir(f"/proc/{self.pid}/fd"))

    def stop(self) -> int:
        """SIGTERM. -> exit status"""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(SOON_S)

    def kill(self) -> None:
        """SIGKILL, and let go of it."""
        self.process.kill()
        self.process.wait()
        if self.process.stdout is not None:
            self.process.stdout.close()

    def said(self) -> str:
        return self.log.read_text()


@contextlib.contextmanager
def relay(directory: Path, *flags: str) -> Iterator[RelayProcess]:
    """A relay that must be alive, and say nothing of a bug, at the end."""
    running = RelayProcess(directory, *flags)
    try:
        yield running
        assert running.process.poll() in (None, 0), running.said()[-4000:]
        assert "Traceback" not in running.said(), running.said()[-4000:]
    finally:
        running.kill()


class Agent:
    """A proved connection, blocking."""

    def __init__(
        self,
        relay: RelayProcess,
        key: PrivateKey,
        *,
        tls: bool = False,
        host: str = "127.0.0.1",
        source: str = "127.0.0.1",
    ) -> None:
        self.key = key
        self._held = b""
        plain = socket.create_connection((host, relay.join.port), SOON_S, source_address=(source, 0))
        self.sock: socket.socket = plain
        if tls:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
            self.sock = context.wrap_socket(plain)
        try:
            handshake = agent_side(f"process {next(_names)}", key=key, token=relay.join.token)
            self.sock.sendall(handshake.hello())
            while True:
                frame = self.frame()
                step = handshake.on_frame(frame[4], frame[5:], 0.0)
                if step.send:
                    self.sock.sendall(step.send)
                if step.outcome is not None:
                    assert isinstance(step.outcome, Welcomed), step.outcome
                    return
        except BaseException:
            self.sock.close()
            raise

    def frame(self) -> bytes:
        """The next frame that isn't a Ping, which is answered. Raises EOFError at the end of the stream."""
        while True:
            while len(self._held) < 4 or len(self._held) < 4 + int.from_bytes(self._held[:4], "big"):
                part = self.sock.recv(262_144)
                if not part:
                    raise EOFError
                self._held += part
            size = 4 + int.from_bytes(self._held[:4], "big")
            frame, self._held = self._held[:size], self._held[size:]
            if frame[4] != PING:
                return frame
            self.sock.sendall(encode_pong(frame[5:]))

    def round_trip_s(self) -> float:
        """Data to its own key and back."""
        echo = frames.encode_data(self.key.public(), os.urandom(16))
        started = time.monotonic()
        self.sock.sendall(echo)
        while self.frame() != echo:
            pass
        return time.monotonic() - started

    def __enter__(self) -> Agent:
        return self

    def __exit__(self, *_: object) -> None:
        self.sock.close()


def key_number(number: int) -> PrivateKey:
    """One of many keys."""
    return private(f"number {number}")


def allow_descriptors(wanted: int) -> bool:
    """Let this process, and those that it starts, open so many files. -> whether that is allowed"""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft >= wanted:
        return True
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, max(hard, wanted)))
    except (ValueError, PermissionError):
        return False
    return True


def connect_many(port: int, count: int) -> Iterator[socket.socket]:
    """`count` connections, not waited for, from SOURCES addresses."""
    for number in range(count):
        sock = socket.socket()
        sock.setsockopt(socket.IPPROTO_IP, socket.IP_BIND_ADDRESS_NO_PORT, 1)
        sock.bind((f"127.0.1.{1 + number % SOURCES}", 0))
        sock.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            sock.connect(("127.0.0.1", port))
        yield sock
