"""Restarts of the relay that no agent notices: a real process, and a manager that keeps its sockets."""

from __future__ import annotations

import signal
import socket
import ssl
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from random import Random

import pytest
import trio

from relayd.keys import PrivateKey
from relayd.observe.control import ask
from relayd.secret_file import RELAY_TOKEN
from relayd.wire.frames import DATA, encode_data
from relayd.wire.identity_frames import DRAIN
from tests.helpers.fake_manager import FakeManager
from tests.helpers.frame_traffic import SOON_S, Agent, Traffic

BACK_S = 2.0
"""As promised, from the end of a connection on; it takes milliseconds where nobody else wants the CPU."""

RELAYD = [sys.executable, "-m", "relayd"]


class ManagedRelay:
    """The service, and where it is."""

    def __init__(self, directory: Path, *more: str) -> None:
        self.tcp, self.udp = socket.create_server(("127.0.0.1", 0)), socket.socket(type=socket.SOCK_DGRAM)
        self.address: tuple[str, int] = self.tcp.getsockname()
        self.udp.bind(self.address)
        self.control = str(directory / "relay.sock")
        self._state = directory / "state"
        argv = [
            *RELAYD, "serve", "--control", self.control, "--http", "off",
            "--state", str(self._state), *more,
        ]  # fmt: skip
        self.manager = FakeManager(argv, directory, listeners={"tcp": self.tcp, "udp": self.udp})

    @property
    def token(self) -> str:
        return (self._state / RELAY_TOKEN).read_text().strip()

    def keeps(self, connections: int) -> None:
        """Wait until the manager has so many of them."""
        store = self.manager.store
        store.wait(lambda: len(store.kept) == connections + 1, f"{connections} kept")  # and the ledger

    def close(self) -> None:
        self.tcp.close()
        self.udp.close()


@pytest.fixture
def relay(tmp_path: Path) -> Iterator[ManagedRelay]:
    relay = ManagedRelay(tmp_path)
    with relay.manager:
        relay.manager.start()
        yield relay
    relay.close()


def test_g10_a_restart_loses_no_connection_and_no_frame(relay: ManagedRelay) -> None:
    with Traffic(relay.address, relay.token, count=50, every_s=0.02) as traffic:
        relay.keeps(50)
        for _ in range(3):
            time.sleep(0.3)
            assert relay.manager.restart(signal.SIGTERM) == 0
            traffic.check()
        time.sleep(0.3)
        seen = traffic.stop()
    print(seen)
    assert (seen.lost, seen.garbled, seen.closed) == (0, 0, 0), relay.manager.output()
    assert seen.received == seen.sent > 1000


def test_g10_a_restart_in_the_middle_of_frames_goes_on_where_it_was(relay: ManagedRelay) -> None:
    with Traffic(
        relay.address, relay.token, count=50, every_s=0.02, torn=True, payload_bytes=1400
    ) as traffic:
        relay.keeps(50)
        for _ in range(3):
            time.sleep(0.3)
            assert relay.manager.restart(signal.SIGTERM) == 0
        time.sleep(0.3)
        seen = traffic.stop()
    assert (seen.lost, seen.garbled, seen.closed) == (0, 0, 0), relay.manager.output()
    assert seen.received == seen.sent > 500


def test_g10_a_kill_loses_only_connections_in_mid_frame_and_none_gets_out_of_step(
    relay: ManagedRelay,
) -> None:
    with Traffic(relay.address, relay.token, count=50, every_s=0.02) as traffic:
        relay.keeps(50)
        for _ in range(3):
            time.sleep(0.3)
            assert relay.manager.restart(signal.SIGKILL) == -signal.SIGKILL
        time.sleep(0.3)
        seen = traffic.stop()
    print(seen)
    assert seen.garbled == 0
    # Whole frames in one write each: none is ever half read. A write may be cut short by the kill itself.
    assert seen.closed <= 5, relay.manager.output()
    assert seen.received > 1000


def test_g10_a_kill_in_the_middle_of_frames_closes_those_and_they_are_back(relay: ManagedRelay) -> None:
    with Traffic(relay.address, relay.token, count=50, every_s=0.2, torn=True) as traffic:
        relay.keeps(50)
        time.sleep(1)
        assert relay.manager.restart(signal.SIGKILL) == -signal.SIGKILL
        time.sleep(1)
        seen = traffic.stop()
    print(seen)
    assert seen.garbled == 0
    assert 5 <= seen.closed < 50, relay.manager.output()
    assert "mid_frame" in relay.manager.output()
    # They dial at once, into the backlog of the socket that the manager keeps; each is let in again.
    assert len(seen.back_s) == seen.closed
    assert max(seen.back_s) < BACK_S


def test_what_the_manager_keeps_is_carried_on_while_others_are_asked_to_move(tmp_path: Path) -> None:
    """TLS connections can't be kept: SIGTERM drains them, beside those that can."""
    relay = ManagedRelay(tmp_path, "--tls-self-signed", "--drain-s", "60")
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    tls.check_hostname, tls.verify_mode = False, ssl.CERT_NONE
    with relay.manager:
        relay.manager.start()
        kept, other, moving = (Agent(index, PrivateKey(bytes([8, index] * 16))) for index in range(3))
        for agent in (kept, other):
            agent.connect(relay.address, relay.token)
        moving.connect(relay.address, relay.token, tls=tls)
        relay.keeps(2)
        assert relay.manager.process is not None
        relay.manager.process.send_signal(signal.SIGTERM)
        assert frame_of(moving, DRAIN)
        # The relay works on, for both, until the one has moved.
        for number in range(3):
            send(kept, moving, number)
            assert frame_of(moving, DATA)[-1] == number
            send(moving, kept, number)
            assert frame_of(kept, DATA)[-1] == number
        assert not relay.manager.ended()
        assert moving.sock is not None
        moving.sock.close()
        relay.manager.store.wait(relay.manager.ended, "the process ends when nobody is to be moved any more")
        assert relay.manager.process.returncode == 0, relay.manager.output()
        relay.manager.start()
        send(kept, other, 7)
        assert frame_of(other, DATA)[-1] == 7
        status = trio.run(ask, relay.control, "status")
        assert (status["resumed"], status["not_resumed"]) == (2, {}), relay.manager.output()
        assert "relay.drained" in relay.manager.output()
        for agent in (kept, other):
            assert agent.sock is not None
            agent.sock.close()
    relay.close()


RELOADS = 60

SETTINGS = (
    "tls_self_signed = true",
    "rate_frames_s = 5000",
    "rate_bytes_s = 5000000",
    "queue_bytes = 70000",
    "round_bytes = 8192",
    "max_connections = 10",
    "memory_bytes = 2000000",
    'auth = "optional"',
    "no_such_setting = 1",
)


def test_reloads_under_traffic_lose_no_connection_and_no_frame(tmp_path: Path) -> None:
    config = tmp_path / "relay.toml"
    config.write_text("[relay]\n")
    relay = ManagedRelay(tmp_path, "--config", str(config), "--log", "json")
    draw = Random(1)
    with relay.manager:
        relay.manager.start()
        with Traffic(relay.address, relay.token, count=50, every_s=0.02) as traffic:
            assert relay.manager.process is not None
            heard = relay.manager.store.heard
            for number in range(RELOADS):
                chosen = [one for one in SETTINGS if draw.random() < 0.4]
                config.write_text("\n".join(["[relay]", *chosen, ""]))
                relay.manager.process.send_signal(signal.SIGHUP)
                relay.manager.store.wait(lambda: heard.count("READY=1") > number + 1, "the reload is over")  # noqa: B023
                traffic.check()
            seen = traffic.stop()
        output = relay.manager.output()
    relay.close()
    assert (seen.lost, seen.garbled, seen.closed) == (0, 0, 0), output
    assert seen.received == seen.sent
    assert output.count('"relay.reload_requested"') == RELOADS
    for event in ("relay.reloaded", "relay.config_refused", "tls.reloaded"):
        assert event in output


def send(agent: Agent, to: Agent, number: int) -> None:
    assert agent.sock is not None
    agent.sock.settimeout(SOON_S)
    agent.sock.sendall(encode_data(to.public, bytes([number])))


def frame_of(agent: Agent, kind: int) -> bytes:
    """The next frame of this kind; others are let pass."""
    assert agent.sock is not None
    agent.sock.settimeout(SOON_S)
    while True:
        while len(agent.held) < 4 or len(agent.held) < 4 + int.from_bytes(agent.held[:4], "big"):
            part = agent.sock.recv(1 << 16)
            assert part, "the relay has closed"
            agent.held += part
        size = 4 + int.from_bytes(agent.held[:4], "big")
        frame, agent.held = bytes(agent.held[:size]), agent.held[size:]
        if frame[4] == kind:
            return frame


SILENCE_S = 3.0
"""After it, nothing more comes."""


class Stalled:
    """A sender, and a receiver that doesn't read: frames fill its socket, and then wait in the relay."""

    def __init__(self, relay: ManagedRelay) -> None:
        self.sender, self.receiver = (Agent(index, PrivateKey(bytes([9, index] * 16))) for index in (0, 1))
        for agent in (self.sender, self.receiver):
            agent.connect(relay.address, relay.token)
        assert self.receiver.sock is not None
        self.receiver.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        self._number = 0

    def fill(self, relay: ManagedRelay) -> None:
        """Send until something waits in the relay."""
        assert self.sender.sock is not None
        while not (trio.run(ask, relay.control, "status"))["queued_bytes"]:
            for _ in range(50):
                payload = self._number.to_bytes(8, "big") + bytes(1200)
                self._number += 1
                self.sender.sock.setblocking(True)
                self.sender.sock.sendall(encode_data(self.receiver.public, payload))

    def read(self) -> tuple[list[int], bytes]:
        """Read until the relay says nothing more for a while, or has closed. -> numbers, what is left over"""
        assert self.receiver.sock is not None
        self.receiver.sock.settimeout(SILENCE_S)
        held, numbers = b"", []
        with suppress(TimeoutError):
            while part := self.receiver.sock.recv(1 << 16):
                held += part
                while len(held) >= 4 and len(held) >= (size := 4 + int.from_bytes(held[:4], "big")):
                    if held[4] == DATA:
                        numbers.append(int.from_bytes(held[37:45], "big"))
                    held = held[size:]
        return numbers, held

    def close(self) -> None:
        for agent in (self.sender, self.receiver):
            assert agent.sock is not None
            agent.sock.close()


@pytest.fixture
def stalled(relay: ManagedRelay) -> Iterator[Stalled]:
    stalled = Stalled(relay)
    yield stalled
    stalled.close()


def test_g10_a_queue_and_a_half_written_frame_outlive_a_restart(
    relay: ManagedRelay, stalled: Stalled
) -> None:
    stalled.fill(relay)
    assert relay.manager.restart(signal.SIGTERM) == 0
    numbers, rest = stalled.read()
    # In order, from the first one on; at the end of the queue what had waited for too long may be missing.
    assert rest == b""
    assert numbers == sorted(set(numbers))
    assert numbers[:20] == list(range(20))
    assert '"after": "stop"' in relay.manager.output()


def test_g10_a_kill_closes_a_connection_with_a_half_written_frame(
    relay: ManagedRelay, stalled: Stalled
) -> None:
    stalled.fill(relay)
    assert relay.manager.restart(signal.SIGKILL) == -signal.SIGKILL
    numbers, _ = stalled.read()
    assert numbers == list(range(len(numbers)))
    status = trio.run(ask, relay.control, "status")
    assert (status["resumed"], status["not_resumed"]) == (1, {"mid_frame": 1}), relay.manager.output()
