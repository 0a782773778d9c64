"""G17 and G1 on a live relay: what one sender or one reader does, the others don't feel."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from pathlib import Path

import pytest

from relayd.wire import frames
from tests.helpers.identities import BOB
from tests.security.relays import Agent, key_number, relay

OTHERS = 20
PAYLOAD = 1400
FRAME = PAYLOAD + 37


class Flood(threading.Thread):
    """One sender that sends as much as its socket takes."""

    def __init__(self, agent: Agent, frame: bytes) -> None:
        super().__init__()
        self._agent, self._data = agent, frame * 40
        self._over = threading.Event()

    def run(self) -> None:
        self._agent.sock.settimeout(0.2)
        while not self._over.is_set():
            with contextlib.suppress(TimeoutError):
                self._agent.sock.sendall(self._data)

    def stop(self) -> None:
        self._over.set()
        self.join()


def test_g17_one_key_at_line_rate_leaves_the_others_their_share_of_a_shared_destination(
    tmp_path: Path,
) -> None:
    """The destination reads so much a second, a fraction of what one sender offers. The others ask for half
    of a fair share each, and get more than 80 % of it (all but what is lost while the queue fills)."""
    with relay(tmp_path, "--queue-age-ms", "500") as running, contextlib.ExitStack() as stack:
        target = stack.enter_context(Agent(running, BOB))
        target.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 16)
        greedy = stack.enter_context(Agent(running, key_number(0)))
        others = [stack.enter_context(Agent(running, key_number(number))) for number in range(1, OTHERS + 1)]
        flood = Flood(greedy, frames.encode_data(BOB.public(), bytes(PAYLOAD)))
        link_bytes_s = 8 << 20
        share_frames_s = link_bytes_s / (OTHERS + 1) / FRAME
        pace_s, seconds = 0.02, 4.0
        each = max(1, round(share_frames_s * pace_s / 2))
        flood.start()
        try:
            got: dict[bytes, int] = {}
            offered, read_bytes, held = 0, 0, b""
            started = time.monotonic()
            target.sock.setblocking(False)
            step = 0
            while (now := time.monotonic() - started) < seconds:
                while step * pace_s <= now:
                    step += 1
                    if now > 1.0:  # the queue is full by then
                        offered += each
                        for one in others:
                            one.sock.sendall(frames.encode_data(BOB.public(), bytes(PAYLOAD)) * each)
                allowed = int(now * link_bytes_s) - read_bytes
                if allowed > 0:
                    with contextlib.suppress(BlockingIOError):
                        data = target.sock.recv(min(allowed, 262_144))
                        read_bytes += len(data)
                        held += data
                while len(held) >= 4 and len(held) >= (size := 4 + int.from_bytes(held[:4], "big")):
                    if held[4] == frames.DATA:
                        got[held[5:37]] = got.get(held[5:37], 0) + 1
                    held = held[size:]
                time.sleep(0.001)
        finally:
            flood.stop()
        least = min(got.get(one.key.public().raw, 0) for one in others)
        print(f"offered {offered} each, least {least}, greedy {got.get(greedy.key.public().raw, 0)}")
        assert got[greedy.key.public().raw] > 2 * offered, "it was no flood"
        # What is on its way when the time is up is no loss: half a second's worth at most.
        assert least > 0.8 * offered - 0.5 * each / pace_s


@pytest.mark.parametrize("stopped", [0, 1])
def test_g1_a_reader_that_stops_costs_the_others_nothing(tmp_path: Path, stopped: int) -> None:
    """`stopped` 0 is the control, in the same run's place."""
    with relay(tmp_path) as running, contextlib.ExitStack() as stack:
        target = stack.enter_context(Agent(running, BOB))
        target.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        live = [stack.enter_context(Agent(running, key_number(number))) for number in range(50)]
        sender = stack.enter_context(Agent(running, key_number(1000)))
        flood = Flood(sender, frames.encode_data(BOB.public(), bytes(PAYLOAD)))
        if stopped:
            flood.start()
        try:
            times = sorted(one.round_trip_s() for _ in range(20) for one in live)
        finally:
            if stopped:
                flood.stop()
        print(f"p50 {times[500] * 1e3:.2f} ms, p99 {times[990] * 1e3:.2f} ms")
        assert len(times) == 1000
