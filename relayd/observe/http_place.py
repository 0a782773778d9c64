"""Where HTTP is served: at an address, or nowhere; and what a reload changes of that.

HttpPlace.use (from SIGHUP) -> run: closes the listener, opens another one, or the old one again
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack

import trio

from relayd.errors import HostError
from relayd.observe import log
from relayd.observe.http_server import AnswerTo, HttpServer, open_http

Names = tuple[str, ...]

KEPT, NOWHERE = "it is served where it was before", "it is served nowhere, until the next reload"
"""What it means that an address can't be listened on."""


class HttpPlace:
    """One process's. Listens from the start, and answers when it runs."""

    def __init__(self, address: str | None, names: Names = ()) -> None:
        """`address` as `open_http` takes it, which says what is raised; `names` are host names by which
        requests may call this host."""
        self._wanted = (address, names)
        self._changed = trio.Event()
        self._stack = ExitStack()
        self._server: HttpServer | None = open_http(address, self._stack)

    @property
    def address(self) -> str | None:
        """Where it is served now; None: nowhere."""
        return self._server.address if self._server is not None else None

    def use(self, address: str | None, names: Names) -> None:
        """Serve there from now on. Where that can't be, the log says so, and it stays where it was."""
        if (address, names) != self._wanted:
            self._wanted = (address, names)
            self._changed.set()

    def close(self) -> None:
        """Listen no more."""
        self._stack.close()
        self._server = None

    async def run(
        self,
        answer_of: Callable[[Names], AnswerTo],
        *,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Serve until cancelled; `answer_of` gives what answers requests by these names."""
        status: trio.TaskStatus[None] = task_status
        while True:
            at, names = self._wanted
            async with trio.open_nursery() as nursery:
                if self._server is not None:
                    await nursery.start(self._server.run, answer_of(names))
                status.started()
                status = trio.TASK_STATUS_IGNORED
                await self._changed.wait()
                nursery.cancel_scope.cancel()
            self._changed = trio.Event()
            self._move(at)

    def _move(self, before: str | None) -> None:
        """What served until now has closed its listener: open another one."""
        address, names = self._wanted
        if self._open(address, KEPT if address != before else NOWHERE):
            if address != before:
                log.get().info("http.moved", http=self.address)
        elif address != before:
            self._wanted = (before, names)
            self._open(before, NOWHERE)

    def _open(self, address: str | None, otherwise: str) -> bool:
        self.close()
        try:
            self._server = open_http(address, self._stack)
        except HostError as error:
            log.get().error("http.refused", reason=str(error), meaning=otherwise)
            return False
        return True
