"""Follows one collection of resources: lists it, watches it, and goes on whatever happens to the API server.

`listing` keeps the books; here is only the network. What was known stays known through all of it.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Generic, TypeVar

import trio

from relayd.backoff import CAP_S, Backoff
from relayd.coordination.kubernetes.api_error import ApiError, UnreachableError
from relayd.coordination.kubernetes.client import ApiClient
from relayd.coordination.kubernetes.listing import GONE, Listing
from relayd.coordination.kubernetes.resources import Resource
from relayd.errors import RelaydError
from relayd.observe import log

WATCH_S = (240.0, 480.0)
"""A watch asks the server to end it after a time in between, as client-go does: connections move to other
servers by and by, and not all at once."""

RELIST_S = 2.0
"""After 410 Gone a list comes within this, at random: the server is there, and with it all others' lists."""

AWAY_CAP_S = 5.0
"""Between two tries while the API server is away, at random: what was deleted meanwhile is heard of within
this once it is back. A thousand agents with three tries each make 1,200 dials a second, each of them one
packet and a reset."""

R = TypeVar("R", bound=Resource)


class Follower(Generic[R]):
    """One collection."""

    def __init__(
        self,
        client: ApiClient,
        path: str,
        kind: type[R],
        *,
        only: str = "",
        changed: Callable[[], None],
        uniform: Callable[[float, float], float] = random.uniform,
    ) -> None:
        """`only`: the one resource of this name. `changed` is called after whatever could matter."""
        self._client, self._path, self._changed, self._uniform = client, path, changed, uniform
        self._query = {"fieldSelector": f"metadata.name={only}"} if only else {}
        self._log = log.get(resource=path.rpartition("/")[2])
        self.listing = Listing(kind)
        self.problem = ""
        """Why there is no watch now; empty: there is."""
        self.refused: ApiError | None = None
        """What the API server said to the last list or watch, if that was no."""

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Follow until cancelled. Ready at once: the API server may be away."""
        backoff, was_away, relisted = Backoff(self._uniform), False, False
        task_status.started()
        while True:
            began = trio.current_time()
            watching_since: list[float] = []
            wait_s, expired, away = 0.0, False, False
            try:
                if not self.listing.resource_version:
                    await self._list()
                await self._watch(watching_since)
                if trio.current_time() - began >= 1.0:
                    continue  # it was ended in its time
            except (ApiError, UnreachableError, ValueError) as error:
                wait_s = self._failed(error)
                away = isinstance(error, UnreachableError)
                expired = isinstance(error, ApiError) and error.status == GONE
            if expired and not relisted:  # whatever came before, that it was away for one, is over
                relisted = True
                await trio.sleep(max(wait_s, self._uniform(0.0, RELIST_S)))
                continue
            relisted = False
            if away is not was_away:  # one that starts says no for seconds, however long it was away
                backoff, was_away = Backoff(self._uniform, cap_s=AWAY_CAP_S if away else CAP_S), away
            useful_s = trio.current_time() - watching_since[0] if watching_since else 0.0
            with trio.move_on_after(max(wait_s, backoff.failed(useful_s))):
                if not away:
                    await trio.sleep_forever()
                # Of this process' followers the first to find it back tells the others.
                await self._client.back()

    async def _list(self) -> None:
        continue_ = ""
        while True:
            query = {**self._query, **self.listing.list_query(continue_)}
            continue_ = self.listing.listed(await self._client.request("GET", self._path, query=query))
            if not continue_:
                break
        self.refused = None
        self._changed()

    async def _watch(self, since: list[float]) -> None:
        timeout_s = self._uniform(*WATCH_S)
        query = {**self._query, **self.listing.watch_query()}
        async with self._client.watch(self._path, query, timeout_s) as lines:
            since.append(trio.current_time())
            if self.problem:
                self._log.info("kubernetes.followed", version=self.listing.resource_version)
            self.problem, self.refused = "", None
            self._changed()
            async for line in lines:
                if self.listing.event(line):
                    self._changed()

    def _failed(self, error: RelaydError | ValueError) -> float:
        """-> seconds to wait at least"""
        wait_s = 0.0
        if isinstance(error, ApiError):
            self.listing.failed(error)
            self.refused, wait_s = error, error.retry_after_s
            if error.status == GONE:
                self._log.info("kubernetes.expired", reason=str(error))
                self.problem = str(error)
                self._changed()
                return wait_s
        problem = str(error)
        if problem != self.problem:
            self._log.warning("kubernetes.lost", reason=problem)
        self.problem = problem
        self._changed()
        return wait_s
