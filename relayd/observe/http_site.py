"""What is served over HTTP: which path answers what, and whom. Reads the process, never changes it.

    GET /          the status page                    GET /healthz   200: the event loop turns
    GET /status    the JSON of `relayd status`        GET /readyz    200: it does what it is for; else 503
    GET /metrics   for Prometheus

`/status?peers=N` has the N busiest peers only, for pages that ask every other second.

Requests must name a host that is ours: an IP address, localhost, the host's own name or a configured one.
Otherwise a web page elsewhere could have its own name resolve to this address, and read the answers in a
visitor's browser (DNS rebinding). Nothing in an answer is a secret, but peers' keys and addresses are in it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from functools import partial
from ipaddress import ip_address
from typing import TYPE_CHECKING
from urllib.parse import parse_qs, urlsplit

import trio

from relayd.observe.health import not_ready
from relayd.observe.http_place import HttpPlace
from relayd.observe.http_server import Answer, Request, plain_text
from relayd.observe.late import loaded
from relayd.observe.observed import Observed
from relayd.observe.telling import Telling

if TYPE_CHECKING:
    from relayd.observe.exposition import Exporter

MAX_PEERS_ASKED = 100_000
PEERS_IN_LOOP = 20
"""With so many peers, making the metrics takes 3 ms."""
_HOST = re.compile(r"(\[[^\[\]]*\]|[^:@\[\]]*)(?::[0-9]*)?")
"""A Host header: a name or an address, IPv6 in brackets, and perhaps a port (RFC 9110, section 7.2)."""
_PATHS = "there is: / /status /metrics /healthz /readyz"


async def serve_http(
    place: HttpPlace,
    observed: Observed,
    telling: Telling,
    *,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve `observed` until cancelled, at `place`. The rest is Site's."""
    await place.run(lambda names: Site(observed, telling, names).answer, task_status=task_status)


class Site:
    """The paths of one process."""

    def __init__(self, observed: Observed, telling: Telling, names: Iterable[str] = ()) -> None:
        """`names` are host names that requests may be made to, besides the host's own."""
        self._observed, self._telling = observed, telling
        self._names = {"localhost", os.uname().nodename.lower(), *(name.lower() for name in names)}
        self._exporter: Exporter | None = None

    async def answer(self, request: Request) -> Answer:
        """The answer to any request."""
        if request.method not in ("GET", "HEAD"):
            return plain_text(405, "here is nothing to change", headers=(("Allow", "GET, HEAD"),))
        if not self._is_ours(request.host):
            return plain_text(421, "this process isn't known by that name (http_names may add one)")
        try:
            url = urlsplit(request.target)
            query = parse_qs(url.query, max_num_fields=8)
        except ValueError as error:
            return plain_text(400, f"not a path of this server: {error}")
        match url.path:
            case "/":
                from relayd.observe import page  # its files are read once somebody wants to see it

                return page.answer()
            case "/status":
                return await self._status(query.get("peers", [""])[-1])
            case "/metrics":
                return await self._metrics()
            case "/healthz":
                return plain_text(200, "ok")
            case "/readyz":
                return self._ready()
        return plain_text(404, _PATHS)

    def _is_ours(self, host: str) -> bool:
        """Whether a Host header names us. None at all comes from old scripts, and from no browser."""
        if not host:
            return True
        match = _HOST.fullmatch(host)
        if match is None:
            return False
        name = match[1].lower().strip("[]").rstrip(".")
        if name in self._names or name.endswith(".localhost"):
            return True
        try:
            ip_address(name.partition("%")[0])
        except ValueError:
            return False
        return True

    async def _status(self, asked: str) -> Answer:
        limit = None
        if asked:
            if not (asked.isascii() and asked.isdigit() and int(asked[:7]) <= MAX_PEERS_ASKED):
                return plain_text(400, f"peers={asked[:20]!r} is not a number up to {MAX_PEERS_ASKED}")
            limit = int(asked)
        return Answer(200, "application/json", await self._telling.text(limit))

    async def _metrics(self) -> Answer:
        """prometheus_client is imported when it is needed first: most relays are never scraped."""
        await loaded("relayd.observe.exposition")
        from relayd.observe.exposition import Exporter

        peers: list[Mapping[str, object]] = []
        summary = self._observed.summary()
        if summary["role"] == "agent":
            peers = list(self._observed.peers())
        if self._exporter is None:
            self._exporter = Exporter()
        render = partial(self._exporter.render, summary, peers)
        # Of a thousand peers there are 10,000 lines. A thread for a few would cost more than it saves.
        body = await trio.to_thread.run_sync(render) if len(peers) > PEERS_IN_LOOP else render()
        return Answer(200, Exporter.CONTENT_TYPE, body)

    def _ready(self) -> Answer:
        summary = self._observed.summary()
        reasons = not_ready(summary, self._observed.peers() if summary["role"] == "agent" else ())
        return plain_text(503, *reasons) if reasons else plain_text(200, "ok")
