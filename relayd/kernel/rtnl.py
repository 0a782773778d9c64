"""Calls to the kernel by netlink, made safe for trio: one worker thread, one socket, one deadline a call.

pyroute2's core is asyncio's. Its blocking form keeps an event loop and a socket per thread that ever used
it, and a call that the kernel doesn't answer blocks for ever. So each call gets an event loop of its own in
a worker thread (a fraction of a millisecond), which ends, and closes its sockets, with the call or with
the deadline, whichever is first.
"""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Awaitable, Callable
from functools import partial
from typing import TypeVar

import trio

from relayd.errors import HostError
from relayd.kernel import hints
from relayd.kernel.pyroute import NetlinkError

DEADLINE_S = 5.0
"""The kernel answers in microseconds; loading a module first can take a second."""

_Result = TypeVar("_Result")


async def call(attempt: str, function: Callable[[], Awaitable[_Result]]) -> _Result:
    """Run asyncio's `function` in a worker thread; what goes wrong is told as "cannot `attempt`".

    Not to be cancelled half-way: what was begun is finished, or fails at the deadline. Raises HostError;
    errnos that the caller gives a meaning of its own are to be caught inside `function`.
    """
    return await trio.to_thread.run_sync(partial(_blocking, attempt, function))


def _blocking(attempt: str, function: Callable[[], Awaitable[_Result]]) -> _Result:
    async def bounded() -> _Result:
        async with asyncio.timeout(DEADLINE_S):
            return await function()

    try:
        return asyncio.run(bounded())
    except TimeoutError as error:
        raise hints.no_answer(attempt, "the kernel", DEADLINE_S) from error
    except NetlinkError as error:
        raise failure(attempt, error.code) from error
    except OSError as error:  # the socket itself: no netlink in a sandbox, no descriptors left
        raise failure(attempt, error.errno or errno.EIO) from error


def failure(attempt: str, code: int) -> HostError:
    """The HostError for a plain errno."""
    if code in (errno.EPERM, errno.EACCES):
        return hints.lacks_capability(attempt)
    return hints.refused(attempt, code)
