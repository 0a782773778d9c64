"""Relays that are known by one name, as the replicas behind a headless Service: each of its addresses is one.

Relays share nothing, so two agents that are connected to two replicas of one name would not reach each other
unless they know of both, and by the same names. So the name is looked up here, and its addresses go to the
pool: every EVERY_S, and soon after a relay is lost or says that a peer is absent, as the set may be another.
A look-up that fails changes nothing.
"""

from __future__ import annotations

import socket
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from functools import partial
from ipaddress import ip_address

import trio

from relayd.join import JoinString
from relayd.observe import log

EVERY_S = 30.0
"""A replica that was added is known everywhere after this; one that goes is missed sooner."""

SOON_S = 2.0
"""Between two look-ups at the least: cluster DNS caches for five seconds or more."""

RESOLVE_S = 3.0
"""For a name server to answer. A start waits so long for it, and goes on without."""

MAX_RELAYS = 32
"""Of one name; of more, all agents take the same ones. A name server that lies can't name thousands."""

Resolve = Callable[[JoinString], Awaitable[Sequence[str]]]
"""The addresses of a name, MAX_RELAYS at most. Raises OSError."""


async def addresses_of(relay: JoinString) -> Sequence[str]:
    """Of one family, so that a relay isn't named twice: IPv4 where there is any. Raises OSError."""
    try:
        entries = await trio.socket.getaddrinfo(relay.host, relay.port, type=socket.SOCK_STREAM)
    except UnicodeError as error:
        raise OSError(f"{relay.host!r} is not a host name: {error}") from error
    found = {ip_address(str(entry[4][0])) for entry in entries}
    version = min((one.version for one in found), default=4)
    return sorted(str(one) for one in found if one.version == version)[:MAX_RELAYS]


class RelaySets:
    """The names, what they stand for now, and the task that keeps it true."""

    def __init__(
        self,
        use: Callable[[Sequence[JoinString]], None],
        *,
        connected: Callable[[], bool],
        resolve: Resolve = addresses_of,
    ) -> None:
        """`use` is given all relays when they change. `connected`: whether any of them has let us in."""
        self._use, self._connected, self._resolve = use, connected, resolve
        self._fixed: tuple[JoinString, ...] = ()
        self._known: dict[JoinString, tuple[JoinString, ...]] = {}
        self._news, self._soon = trio.Event(), trio.Event()
        self.problem = ""
        """Why a name couldn't be looked up at the last try; empty: all could."""

    @property
    def relays(self) -> tuple[JoinString, ...]:
        """All relays, as far as they are known. A name that was never looked up stands for itself: its link
        says why it isn't connected."""
        return (*self._fixed, *(one for name, found in self._known.items() for one in found or (name,)))

    def follow(self, fixed: Sequence[JoinString], names: Sequence[JoinString]) -> None:
        """These are the relays, and the names of sets, from now on."""
        known = {name: self._known.get(name, ()) for name in names}
        if tuple(fixed) == self._fixed and known == self._known:
            return
        self._fixed, self._known = tuple(fixed), known
        self._news.set()
        self._use(self.relays)

    def look_soon(self) -> None:
        """Something hints at another set."""
        self._soon.set()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Keep it true until cancelled. Ready when each name has been looked up once, or RESOLVE_S has
        passed."""
        await self._look()
        task_status.started()
        while True:
            self._news, self._soon = trio.Event(), trio.Event()
            if not self._known:
                await self._news.wait()
            else:
                with trio.move_on_after(EVERY_S):
                    await self._wait_for_hint()
            await self._look()

    async def _wait_for_hint(self) -> None:
        async with trio.open_nursery() as nursery:

            async def until(event: trio.Event, *, after_s: float = 0.0) -> None:
                await trio.sleep(after_s)
                await event.wait()
                nursery.cancel_scope.cancel()

            nursery.start_soon(until, self._news)
            nursery.start_soon(partial(until, self._soon, after_s=SOON_S))
            while True:
                await trio.sleep(SOON_S)
                if not self._connected():
                    nursery.cancel_scope.cancel()

    async def _look(self) -> None:
        """Look all names up. What isn't answered stays as it was."""
        problems: list[str] = []

        async def one(name: JoinString) -> None:
            try:
                found = await self._resolve(name)
            except OSError as error:
                problems.append(f"{name.host}: {error.strerror or error}")
                return
            if name in self._known and found:
                self._known[name] = tuple(
                    replace(name, host=address, one_of=name.address) for address in found
                )

        before = self.relays
        with trio.move_on_after(RESOLVE_S) as timely:
            async with trio.open_nursery() as nursery:
                for name in self._known:
                    nursery.start_soon(one, name)
        if timely.cancelled_caught:
            problems.append("the name server doesn't answer")
        problem = "; ".join(problems)
        if problem != self.problem:
            (log.get().warning if problem else log.get().info)("relay.names", problem=problem)
        self.problem = problem
        if self.relays != before:
            log.get().info("relay.set", relays=[one.address for one in self.relays])
            self._use(self.relays)
