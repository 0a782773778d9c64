"""Look-ups of names that hold up nothing but look-ups of names.

getaddrinfo() blocks, so trio runs it in a thread, and one that was given up goes on until the resolver has
had enough: a minute with dead name servers (resolv.conf(5): 5 s, twice, for each of them). By default these
threads are of the same 40 as all others, so an agent of some relays by name would soon have none left to
write down what it must before it may set an endpoint.
"""

from __future__ import annotations

import socket
from functools import partial
from typing import Any

import trio

LOOK_UPS = 16
"""At a time, those that were given up and haven't ended included."""


class Names(trio.abc.HostnameResolver):
    """For `trio.socket.set_custom_hostname_resolver`, which holds for one `trio.run`."""

    def __init__(self) -> None:
        self._limiter = trio.CapacityLimiter(LOOK_UPS)

    async def getaddrinfo(
        self, host: bytes | None, port: Any, family: int = 0, type: int = 0, proto: int = 0, flags: int = 0
    ) -> Any:
        """As the socket module's. Raises gaierror."""
        look = partial(socket.getaddrinfo, host, port, family, type, proto, flags)
        return await trio.to_thread.run_sync(look, abandon_on_cancel=True, limiter=self._limiter)

    async def getnameinfo(self, sockaddr: Any, flags: int) -> tuple[str, str]:
        """Likewise."""
        look = partial(socket.getnameinfo, sockaddr, flags)
        return await trio.to_thread.run_sync(look, abandon_on_cancel=True, limiter=self._limiter)
