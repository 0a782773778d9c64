"""A crowd of real agents' links loses its relay at one moment, and comes back (G12), on loopback."""

from __future__ import annotations

import os
import socket
import time
from collections import deque
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import trio

from relayd.agent.link_settings import LinkSettings
from relayd.agent.relay_link import RelayLink
from relayd.coordination.model import RelayAddress
from relayd.netio.poller import Poller
from relayd.wire.runs import Run
from tests.helpers.identities import private
from tests.security.relays import SOON_S, SOURCES, RelayProcess

LINKS = int(os.environ.get("RELAYD_LINKS", "300"))
"""A thousand are promised, and were tried; the arithmetic is shown for them under a clock of its own
(tests/unit/test_backoff_spread.py)."""

AWAY_S = 3.0
DIALS_A_SECOND = 100
BACK_S = 60.0


class Crowd:
    """The links, in this process, and when each has dialled."""

    def __init__(self, relay: RelayProcess) -> None:
        self.poller = Poller()
        self.dialled: list[float] = []
        self.links = [
            RelayLink(
                self.poller,
                relay.join,
                private(f"one of a crowd, {number}"),
                _nothing,
                LinkSettings(),
                agents=lambda: LINKS,
                dial=partial(self._dial, f"127.0.1.{1 + number % SOURCES}"),
            )
            for number in range(LINKS)
        ]

    async def _dial(
        self, source: str, relay: RelayAddress, *, timeout_s: float, **_more: object
    ) -> socket.socket:
        self.dialled.append(time.monotonic())
        sock = trio.socket.socket()
        try:
            await sock.bind((source, 0))
            with trio.fail_after(timeout_s):
                await sock.connect((relay.host, relay.port))
        except BaseException:
            sock.close()
            raise
        return socket.socket(fileno=sock.detach())

    def connected(self) -> int:
        return sum(link.connected for link in self.links)

    async def until(self, count: int, within_s: float) -> float:
        """Wait until so many are connected. -> seconds that it took"""
        began = time.monotonic()
        with trio.fail_after(within_s):
            while self.connected() != count:  # noqa: ASYNC110 (links tell nobody)
                await trio.sleep(0.05)
        return time.monotonic() - began


def _nothing(_buffer: bytearray, _runs: Sequence[Run], _now: float) -> None:
    """Frames: there are none."""


def most_in_a_second(moments: Sequence[float]) -> int:
    window: deque[float] = deque()
    most = 0
    for moment in moments:
        window.append(moment)
        while window[0] <= moment - 1:
            window.popleft()
        most = max(most, len(window))
    return most


async def test_g12_a_crowd_comes_back_to_a_relay_that_was_killed_without_a_rush(tmp_path: Path) -> None:
    relay = RelayProcess(tmp_path)
    crowd = Crowd(relay)
    try:
        async with trio.open_nursery() as nursery:
            await nursery.start(crowd.poller.run)
            for link in crowd.links:
                nursery.start_soon(link.run)
            await crowd.until(LINKS, 3 * SOON_S)
            crowd.dialled.clear()
            relay.kill()
            await crowd.until(0, SOON_S)
            await trio.sleep(AWAY_S)
            relay = await trio.to_thread.run_sync(lambda: RelayProcess(tmp_path, port=relay.join.port))
            back_s = await crowd.until(LINKS, BACK_S)
            nursery.cancel_scope.cancel()
    finally:
        relay.kill()
        crowd.poller.close()
    most = most_in_a_second(crowd.dialled)
    print(
        f"{LINKS} links: {len(crowd.dialled)} dials, at most {most} a second, all back after {back_s:.1f} s"
    )
    assert len(crowd.dialled) >= LINKS
    assert most <= DIALS_A_SECOND
