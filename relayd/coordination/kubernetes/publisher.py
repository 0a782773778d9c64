"""Writes this node's status into its resource, by server-side apply with a field manager of its own."""

from __future__ import annotations

import re
import time
from collections.abc import Callable

import trio

from relayd.coordination.kubernetes import own_peer, report
from relayd.coordination.kubernetes.api_error import ApiError, UnreachableError
from relayd.coordination.kubernetes.client import APPLY, ApiClient
from relayd.coordination.kubernetes.report import Facts, Reporter
from relayd.observe import log

LOOK_S = 2.0
"""Between two looks whether there is something to report."""

_UNDECLARED = re.compile(r"\.status\.(\w+): field not declared in schema")


class Publisher:
    """One node's reports."""

    def __init__(
        self,
        client: ApiClient,
        name: str,
        facts: Callable[[], Facts | None],
        *,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        """`facts` says what there is to report; None: nothing, as there is no resource to put it in."""
        self._client, self._name, self._facts, self._wall_clock = client, name, facts, wall_clock
        self._reporter = Reporter()
        self._log = log.get(peer=name)
        self.problem = ""
        """Why the last write failed; empty: it didn't."""
        self.writes = 0

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Report until cancelled."""
        task_status.started()
        while True:
            await self.look()
            await trio.sleep(LOOK_S)

    async def look(self) -> None:
        """Write, if it is time to."""
        facts = self._facts()
        if facts is None:
            return
        now, wall_now = trio.current_time(), self._wall_clock()
        status = self._reporter.due(facts, now=now, wall_now=wall_now)
        if status is None:
            return
        try:
            await self._client.request(
                "PATCH",
                f"{own_peer.path_of(self._name)}/status",
                body=report.body(self._name, status),
                kind=APPLY,
                # Forced: what an older agent, or a person, has written to these fields is out of date.
                query={"fieldManager": report.MANAGER, "force": "true"},
            )
        except (ApiError, UnreachableError) as error:
            self._failed(error, now)
            return
        self.writes += 1
        self._reporter.written(facts, now=now, wall_now=wall_now)
        if self.problem:
            self._log.info("status.written")
        self.problem = ""

    def _failed(self, error: ApiError | UnreachableError, now: float) -> None:
        undeclared = set(_UNDECLARED.findall(str(error))) - self._reporter.unknown
        if undeclared:  # WireKube's own definitions, of an older version
            self._reporter.unknown |= undeclared
            self._log.info("status.fields_unknown", fields=sorted(undeclared))
            return
        self._reporter.refused(now)
        if str(error) != self.problem:
            self._log.warning("status.not_written", reason=str(error))
        self.problem = str(error)
