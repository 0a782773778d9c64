"""`--admit kubernetes`: who is let in are the cluster's WireKubePeers, as they come and go.

    follower (list and watch of the peers) -> their keys -> Guard.restrict -> others are turned out

The keys that were known stay good while the API server is away, and are remembered for a start in that time.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from pathlib import Path

import msgspec
import trio

from relayd.config import RelayConfig
from relayd.coordination.kubernetes import resources
from relayd.coordination.kubernetes.client import ApiClient, access_of
from relayd.coordination.kubernetes.follower import Follower
from relayd.errors import HostError
from relayd.kernel.state_dir import read_json, write_json
from relayd.keys import PublicKey
from relayd.observe import log
from relayd.relay.guard import Guard
from relayd.services import Service

FILE_NAME = "admitted.json"
GRACE_S = 5.0
"""For the API server at a start; then the keys that were remembered take their place, if there are any."""

SETTLE_S = 0.1
"""After a change, for those that come with it."""

REMEMBER_EVERY_S = 10.0
"""Between two writes to the disk."""


class _Memory(msgspec.Struct, forbid_unknown_fields=True):
    """The file's content: keys in base64."""

    keys: list[str]
    version: int = 1


class ClusterAdmission:
    """The peers' keys, for one relay."""

    def __init__(self, config: RelayConfig, guard: Guard, environ: Mapping[str, str] = os.environ) -> None:
        """Nobody is let in until it is known who may be."""
        self._guard, self._path = guard, Path(config.state_dir) / FILE_NAME
        self._news, self._known = trio.Event(), trio.Event()
        self._peers: Follower[resources.Peer] = Follower(
            ApiClient(access_of(config, environ)), resources.PEERS, resources.Peer, changed=self._wake
        )
        self._keys: frozenset[PublicKey] = frozenset()
        self._log = log.get()
        guard.restrict(self._keys)

    @property
    def service(self) -> Service:
        """Ready once it is known who is let in, however long the API server takes."""
        return Service(name="admission", run=self.run, ready_within_s=math.inf)

    @property
    def problem(self) -> str:
        """Why nobody new is let in; empty: all is well."""
        return self._peers.problem

    @property
    def awaited(self) -> str:
        """Why nobody at all is; empty: it is known who may be."""
        return "" if self._known.is_set() else self._peers.problem or "the API server hasn't answered yet"

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Follow the peers until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._peers.run)
            nursery.start_soon(self._keep_memory)
            nursery.start_soon(self._use_memory_after_grace)
            nursery.start_soon(self._follow)
            await self._known.wait()
            task_status.started()

    def _wake(self) -> None:
        self._news.set()

    async def _follow(self) -> None:
        while True:
            await self._news.wait()
            await trio.sleep(SETTLE_S)
            self._news = trio.Event()
            if self._peers.listing.complete:
                self._admit(self._keys_now())

    def _keys_now(self) -> frozenset[PublicKey]:
        keys = set()
        for peer in self._peers.listing.known.values():
            try:
                keys.add(PublicKey.from_base64(peer.spec.publicKey))
            except ValueError:  # not yet filled in, or nonsense: nobody can prove it
                continue
        return frozenset(keys)

    def _admit(self, keys: frozenset[PublicKey]) -> None:
        if keys != self._keys or not self._known.is_set():
            added, removed = len(keys - self._keys), len(self._keys - keys)
            self._log.info("admission.changed", keys=len(keys), added=added, removed=removed)
        if keys != self._keys:
            self._keys = keys
            self._guard.restrict(keys)
        self._known.set()

    async def _use_memory_after_grace(self) -> None:
        await trio.sleep(GRACE_S)
        if self._known.is_set():
            return
        memory = await trio.to_thread.run_sync(read_json, self._path, _Memory)
        if memory is None:
            return
        try:
            keys = frozenset(map(PublicKey.from_base64, memory.keys))
        except ValueError as error:
            self._log.warning("admission.memory_malformed", file=str(self._path), reason=str(error))
            return
        if not self._known.is_set():
            self._log.warning("admission.from_memory", reason=self._peers.problem or "no answer yet")
            self._admit(keys)

    async def _keep_memory(self) -> None:
        await self._known.wait()
        written: frozenset[PublicKey] | None = None
        while True:
            keys = self._keys
            if keys != written:
                memory = _Memory(keys=sorted(map(str, keys)))
                try:
                    await trio.to_thread.run_sync(write_json, self._path, memory)
                except HostError as error:
                    if written is None:
                        self._log.warning("admission.unsaved", reason=str(error))
                written = keys
            await trio.sleep(REMEMBER_EVERY_S)
