"""A site that is served from a thread of the test's own, for clients that block: browsers, promtool."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager

import trio

from relayd.observe.http_place import HttpPlace
from relayd.observe.http_site import serve_http
from relayd.observe.observed import Observed
from relayd.observe.telling import Telling

SOON_S = 10.0


class Served:
    """Where it is, and a way to stall it."""

    def __init__(self, address: str, token: trio.lowlevel.TrioToken) -> None:
        self.url = f"http://{address}"
        self._token = token

    def stall(self, resume: threading.Event) -> None:
        """Hold its event loop up until `resume` is set: it accepts connections still, and says nothing."""
        self._token.run_sync_soon(resume.wait, SOON_S * 6)


@contextmanager
def served(observed: Observed, *, port: int = 0) -> Iterator[Served]:
    """Serve `observed` on a port of loopback (0: any) until the end of the block."""
    ready: queue.Queue[tuple[str, trio.lowlevel.TrioToken, trio.CancelScope]] = queue.Queue()

    async def serve() -> None:
        with closing(HttpPlace(f"127.0.0.1:{port}")) as place, trio.CancelScope() as scope:
            assert place.address is not None
            ready.put((place.address, trio.lowlevel.current_trio_token(), scope))
            await serve_http(place, observed, Telling(observed))

    thread = threading.Thread(target=trio.run, args=(serve,), daemon=True)
    thread.start()
    address, token, scope = ready.get(timeout=SOON_S)
    try:
        yield Served(address, token)
    finally:
        token.run_sync_soon(scope.cancel)
        thread.join(SOON_S)
        assert not thread.is_alive()
