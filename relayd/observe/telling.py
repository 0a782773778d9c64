"""The status of a process as JSON text, made in portions, so that ten thousand peers hold nobody up.

    observed.summary() and peers() -> a few milliseconds' work at a time -> one line of JSON

One text is made at a time, and whoever asks for the same while it is being made gets the same: a crowd that
asks costs no more than one, and holds one text in memory.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, field
from functools import partial

import trio

from relayd.observe.control import Answers
from relayd.observe.observed import Observed
from relayd.observe.text import plain

PORTION_S = 0.002
"""Work between two turns of other tasks: what a frame may wait for it."""

BUSIEST = 200
"""Peers in a short status: more than anybody reads on a terminal."""


@dataclass(slots=True)
class _Making:
    """A text that is being made."""

    done: trio.Event = field(default_factory=trio.Event)
    text: bytes | None = None
    """None at the end: its maker was cancelled."""


class Telling:
    """What one process tells of itself."""

    def __init__(self, observed: Observed) -> None:
        self._observed = observed
        self._makings: dict[int | None, _Making] = {}
        self._turn = trio.Lock()

    def answers(self) -> Answers:
        """For the control socket: the whole, and a short one for who asks again and again."""
        return {"status": self.text, "busiest": partial(self.text, BUSIEST)}

    async def text(self, limit: int | None = None) -> bytes:
        """The status with all peers, or with the `limit` busiest, as one line with its newline."""
        while True:
            making = self._makings.get(limit)
            if making is None:
                return await self._lead(limit)
            await making.done.wait()
            if making.text is not None:
                return making.text

    async def _lead(self, limit: int | None) -> bytes:
        making = self._makings[limit] = _Making()
        try:
            async with self._turn:
                making.text = await self._make(limit)
        finally:
            del self._makings[limit]
            making.done.set()
        return making.text

    async def _make(self, limit: int | None) -> bytes:
        parts = [json.dumps(plain(self._observed.summary()))[:-1], ', "peers": [']
        until = time.perf_counter() + PORTION_S
        separator = ""
        for peer in self._observed.peers(limit):
            parts += [separator, json.dumps(plain(peer))]
            separator = ", "
            if time.perf_counter() > until:
                await trio.lowlevel.checkpoint()
                until = time.perf_counter() + PORTION_S
        parts.append("]}\n")
        return "".join(parts).encode()
