"""Services: the long-lived tasks of a process, by name, with readiness and a restart policy.

A service is an async function in trio's own shape, `run(*, task_status)`: it calls
`task_status.started()` when it is useful, and then runs until it is cancelled. `supervise()` starts
them one after the other, each only when the one before is useful (as `nursery.start` does), and is
itself such a function, so that services nest.

What happens when one fails:

- before it was useful for the first time: the error passes out. A process that can't begin says why.
- later, with errors of its own `retry` list and no others: it is started again after a wait by
  `relayd.backoff`; the log says so, and the others go on undisturbed.
- with anything else, or by returning: that is a bug, and it ends the process with a traceback.

See trio's `_highlevel_serve_listeners.py` for the shape, and STYLE's rule "bugs end the process; only
listed transient errors are retried" for the policy.
"""

from __future__ import annotations

import math
import random
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import trio

from relayd.backoff import Backoff
from relayd.errors import RelaydError
from relayd.observe import log

READY_WITHIN_S = 60.0
"""Long enough for a name that resolves slowly and ten seconds' dial; short of systemd's 90 s for a start."""


class Run(Protocol):
    """A service's function."""

    def __call__(self, *, task_status: trio.TaskStatus[None]) -> Awaitable[None]:
        """Run until cancelled; call `task_status.started()` once, when useful."""


class NotReadyError(RelaydError):
    """A service did not become useful in its time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Service:
    """One long-lived task.

    `name` is for the log and for trio's task tree. `retry` lists the errors after which it is started
    again; an empty list means that any error ends the process. `ready_within_s` bounds each start, in
    seconds (`math.inf`: it may take for ever, as waiting for an interface to appear does).
    """

    name: str
    run: Run
    retry: tuple[type[Exception], ...] = ()
    ready_within_s: float = READY_WITHIN_S


class _Readiness:
    """The `task_status` of one run: notes when the service became useful, and lifts the start's deadline."""

    def __init__(self, scope: trio.CancelScope, first: trio.TaskStatus[None] | None) -> None:
        self._scope, self._first = scope, first
        self.since_s: float | None = None

    def started(self, value: None = None) -> None:
        """Called by the service, once. Raises RuntimeError when called twice, as trio's own does."""
        if self.since_s is not None:
            raise RuntimeError("a service called started() twice")
        self.since_s = trio.current_time()
        self._scope.deadline = math.inf
        if self._first is not None:
            self._first.started()

    def useful_for_s(self) -> float:
        """Seconds of useful life so far, 0 when it never was useful."""
        return 0.0 if self.since_s is None else trio.current_time() - self.since_s


async def supervise(
    services: Sequence[Service],
    *,
    uniform: Callable[[float, float], float] = random.uniform,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Run `services` until cancelled; `task_status.started()` when all of them are useful.

    `uniform` draws the jitter of the waits. Raises what a service raises that isn't to be retried, in an
    exception group as a nursery does, and NotReadyError for one that took too long to start.
    """
    async with trio.open_nursery() as nursery:
        for service in services:
            await nursery.start(_keep, service, Backoff(uniform), name=service.name)
        task_status.started()


async def _keep(service: Service, backoff: Backoff, *, task_status: trio.TaskStatus[None]) -> None:
    """Run one service, again and again as its policy says."""
    logger = log.get(service=service.name)
    first: trio.TaskStatus[None] | None = task_status
    while True:
        failure: Exception | None = None
        with trio.CancelScope(deadline=trio.current_time() + service.ready_within_s) as scope:
            readiness = _Readiness(scope, first)
            try:
                await service.run(task_status=readiness)
            except* service.retry as group:
                # Anything in the group that isn't listed, Cancelled too, passes out of this statement.
                failure = group
            else:
                raise RuntimeError(f"service {service.name!r} ended by itself")
        if readiness.since_s is not None:
            first = None
        if failure is None:  # only the deadline leads here
            failure = NotReadyError(f"{service.name} was not ready within {service.ready_within_s:g} s")
            if not isinstance(failure, service.retry):
                raise failure
        if first is not None:
            raise failure
        wait_s = backoff.failed(readiness.useful_for_s())
        logger.warning("service.failed", error=_text(failure), retry_in_s=round(wait_s, 3))
        await trio.sleep(wait_s)
        logger.info("service.restarted", failures=backoff.failures)


def _text(error: BaseException) -> str:
    """An exception, or the exceptions of a group, in one line."""
    if isinstance(error, BaseExceptionGroup):
        return "; ".join(dict.fromkeys(_text(inner) for inner in error.exceptions))
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
