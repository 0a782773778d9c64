"""A relay as a process, and everything that connections can do to it, in any order."""

from __future__ import annotations

import contextlib
import secrets
import socket
import struct
import tempfile
import time
from pathlib import Path

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from relayd.wire import frames
from tests.helpers.identities import ALICE, BOB, agent_side
from tests.security.relays import SOON_S, Agent, RelayProcess, key_number

AT_MOST = 12


class Doorway(RuleBasedStateMachine):
    """Strangers come, say anything and go; a good pair must never notice, and nothing may stay behind."""

    relay: RelayProcess

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory(prefix="relayd-fuzz-")
        self.relay = RelayProcess(Path(self.folder.name), "--tls-self-signed", "--auth", "optional")
        self.good = [Agent(self.relay, key) for key in (ALICE, BOB)]
        self.descriptors = self.relay.descriptors()
        self.strangers: list[socket.socket] = []

    @precondition(lambda self: len(self.strangers) < AT_MOST)
    @rule(source=st.integers(1, 3))
    def come(self, source: int) -> None:
        sock = socket.create_connection(
            ("127.0.0.1", self.relay.join.port), SOON_S, source_address=(f"127.0.3.{source}", 0)
        )
        sock.setblocking(False)
        self.strangers.append(sock)

    def say(self, which: int, data: bytes) -> None:
        if self.strangers:
            with contextlib.suppress(OSError):  # thrown out already
                self.strangers[which % len(self.strangers)].send(data)

    @rule(which=st.integers(0, AT_MOST), data=st.binary(min_size=1, max_size=5000))
    def say_anything(self, which: int, data: bytes) -> None:
        self.say(which, data)

    @rule(which=st.integers(0, AT_MOST), key=st.sampled_from([ALICE, BOB, key_number(1)]))
    def register(self, which: int, key: object) -> None:
        self.say(which, frames.encode_register(key.public()))  # type: ignore[attr-defined]

    @rule(which=st.integers(0, AT_MOST), kind=st.integers(0, 255), body=st.binary(max_size=300))
    def say_a_frame(self, which: int, kind: int, body: bytes) -> None:
        self.say(which, frames.encode(kind, body))

    @rule(which=st.integers(0, AT_MOST), length=st.sampled_from([0, 1, 33, 4097, 65536, 65537, 2**32 - 1]))
    def announce(self, which: int, length: int) -> None:
        self.say(which, length.to_bytes(4, "big"))

    @rule(which=st.integers(0, AT_MOST), to=st.sampled_from([ALICE, BOB]))
    def send_data(self, which: int, to: object) -> None:
        self.say(which, frames.encode_data(to.public(), b"from a stranger"))  # type: ignore[attr-defined]

    @rule(which=st.integers(0, AT_MOST), cut=st.integers(0, 400))
    def prove_what_cannot_be_proved(self, which: int, cut: int) -> None:
        agent = agent_side("thief", key=ALICE, token=self.relay.join.token)
        challenge = frames.encode(0x30, b"\x01\x00" + BOB.public().raw + secrets.token_bytes(32))
        proof = agent.on_frame(challenge[4], challenge[5:], 0.0).send
        self.say(which, proof[: len(proof) - cut] or proof)

    @rule(which=st.integers(0, AT_MOST), reset=st.booleans())
    def go(self, which: int, reset: bool) -> None:
        if self.strangers:
            sock = self.strangers.pop(which % len(self.strangers))
            if reset:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            sock.close()

    @rule(which=st.integers(0, AT_MOST))
    def stop_sending(self, which: int) -> None:
        if self.strangers:
            with contextlib.suppress(OSError):
                self.strangers[which % len(self.strangers)].shutdown(socket.SHUT_WR)

    @rule()
    def come_as_a_good_agent(self) -> None:
        with Agent(self.relay, key_number(2)) as agent:
            agent.round_trip_s()

    @invariant()
    def the_good_pair_notices_nothing(self) -> None:
        for one in self.good:
            one.round_trip_s()

    def teardown(self) -> None:
        try:
            for sock in self.strangers:
                sock.close()
            until = time.monotonic() + SOON_S
            while self.relay.descriptors() > self.descriptors and time.monotonic() < until:
                time.sleep(0.02)
            assert self.relay.descriptors() <= self.descriptors
            assert self.relay.stop() == 0
            assert "Traceback" not in self.relay.said()
        finally:
            for one in self.good:
                one.sock.close()
            self.relay.process.kill()
            self.relay.process.wait()
            if self.relay.process.stdout is not None:
                self.relay.process.stdout.close()
            self.folder.cleanup()


TestDoorway = Doorway.TestCase
TestDoorway.settings = settings(max_examples=4, stateful_step_count=25, deadline=None, database=None)
