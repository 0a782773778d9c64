"""Requests to the API server, as a pod or an operator's machine makes them.

httpcore is what httpx is made of: the part that speaks HTTP over connections that we make ourselves
(`stream`). kr8s would be shorter to use, but it spins on 410 Gone, and neither it nor httpx lets a socket be
marked before it connects. Bodies are decoded by the caller, from bytes: Go's JSON leaves U+0085 as it is, at
which a line iterator over text would split.
"""

from __future__ import annotations

import ssl
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol, cast
from urllib.parse import quote, urlencode, urlsplit

import httpcore
import msgspec
import trio

from relayd.config.types import SERVICE_ACCOUNT
from relayd.coordination.kubernetes.api_error import UnreachableError, error_of
from relayd.coordination.kubernetes.stream import MarkedBackend
from relayd.observe import log

CONNECT_S = 10.0
REQUEST_S = 20.0
"""For an answer; an API server that is starting takes seconds."""

WATCH_SLACK_S = 30.0
"""Past the time after which a watch is to be ended by the server."""

MAX_ANSWER_BYTES = 64 << 20
"""A page of a list has 500 resources of some KiB."""

JSON, MERGE, APPLY = "application/json", "application/merge-patch+json", "application/apply-patch+yaml"

ACCOUNT = Path(SERVICE_ACCOUNT)


@dataclass(frozen=True, slots=True, kw_only=True)
class Access:
    """Where the API server is, and how it knows us."""

    servers: tuple[str, ...]
    """URLs, the one to be used first; the others while that doesn't answer."""

    token_file: Path | None = ACCOUNT / "token"
    """Read again for each request: it is rotated. None: none is sent."""

    ca_file: Path | None = ACCOUNT / "ca.crt"
    """None: the host's own CAs."""

    headers: Mapping[str, str] = field(default_factory=dict)


class ApiClient:
    """One API server. Every call is bounded in time, watches by the time that they ask for."""

    def __init__(self, access: Access) -> None:
        self._access, self._told = access, access.servers
        self._backend = MarkedBackend()
        self._pool: httpcore.AsyncConnectionPool | None = None
        self._ca_stamp: object = None
        self._away = False
        self._back = trio.Event()
        self.requests = 0

    @property
    def server(self) -> str:
        """The URL in use."""
        return self._access.servers[0]

    def prefer(self, server: str) -> None:
        """Use this URL from now on ("": none before others); those that this process was told stay for when
        it doesn't answer."""
        servers = tuple(dict.fromkeys((*filter(None, [server]), *self._told)))
        if self._access.servers != servers and servers:
            log.get().info("kubernetes.server", url=servers[0])
            self._access = replace(self._access, servers=servers)

    async def request(
        self,
        method: str,
        path: str,
        *,
        body: Any = None,
        kind: str = JSON,
        query: Mapping[str, str] | None = None,
    ) -> bytes:
        """The answer's body. Raises ApiError and UnreachableError."""
        content = b"" if body is None else msgspec.json.encode(body)
        async with self._answer(method, path, content, kind, query or {}, REQUEST_S) as response:
            return await _read(response)

    @asynccontextmanager
    async def watch(
        self, path: str, query: Mapping[str, str], timeout_s: float
    ) -> AsyncIterator[AsyncIterator[bytes]]:
        """The lines of a watch that the server ends after `timeout_s`. Raises as `request`, also later."""
        query = {**query, "watch": "1", "timeoutSeconds": str(round(timeout_s))}
        patience_s = timeout_s + WATCH_SLACK_S
        async with (
            self._answer("GET", path, b"", JSON, query, patience_s) as response,
            aclosing(_lines(response)) as lines,
        ):
            yield lines

    async def back(self) -> None:
        """Wait until an API server that didn't answer has answered somebody: a wait meant to last."""
        await self._back.wait()

    async def aclose(self) -> None:
        """Close all connections."""
        if self._pool is not None:
            await self._pool.aclose()
            self._pool = None

    @asynccontextmanager
    async def _answer(
        self, method: str, path: str, content: bytes, kind: str, query: Mapping[str, str], read_s: float
    ) -> AsyncIterator[httpcore.Response]:
        server = self.server
        url = f"{server}{path}" + (f"?{urlencode(query, quote_via=quote)}" if query else "")
        timeout = {"connect": CONNECT_S, "write": REQUEST_S, "read": read_s, "pool": CONNECT_S}
        self.requests += 1
        try:
            async with (await self._connections()).stream(
                method,
                url,
                headers=self._headers(content, kind),
                content=content,
                extensions={"timeout": timeout},
            ) as response:
                self._answered()
                if not 200 <= response.status < 300:  # nor is a redirect followed: who knows where to
                    named = {name.lower(): value for name, value in response.headers}
                    after = named.get(b"retry-after", b"").decode("ascii", "replace")
                    raise error_of(await _read(response), response.status, after)
                yield response
        except (
            httpcore.NetworkError,
            httpcore.TimeoutException,
            httpcore.ProtocolError,
            ssl.SSLError,
        ) as error:
            self._turn_from(server)
            text = str(error) or type(error).__name__
            raise UnreachableError(f"the API server {server} doesn't answer: {text}") from error

    def _turn_from(self, server: str) -> None:
        """It didn't answer: the next one's turn, unless somebody else has found that out already."""
        self._away = True
        first, *others = self._access.servers
        if server == first:
            self._access = replace(self._access, servers=(*others, first))

    def _answered(self) -> None:
        if self._away:
            self._away = False
            self._back.set()
            self._back = trio.Event()

    def _headers(self, content: bytes, kind: str) -> list[tuple[bytes, bytes]]:
        headers = {"Host": urlsplit(self.server).netloc, "Accept": JSON, "User-Agent": "relayd"}
        if content:
            headers |= {"Content-Type": kind, "Content-Length": str(len(content))}
        headers |= self._access.headers
        token_file = self._access.token_file
        if token_file is not None:
            try:
                headers["Authorization"] = f"Bearer {token_file.read_text('ascii', 'strict').strip()}"
            except (OSError, ValueError) as error:
                raise UnreachableError(f"cannot read the token in {token_file}: {error}") from error
        return [(name.encode(), value.encode("ascii")) for name, value in headers.items()]

    async def _connections(self) -> httpcore.AsyncConnectionPool:
        """The pool, made anew when the CA's file has changed."""
        ca_file = self._access.ca_file
        try:
            stamp = None if ca_file is None else ca_file.stat().st_mtime_ns
            if self._pool is None or stamp != self._ca_stamp:
                context = ssl.create_default_context(cafile=None if ca_file is None else str(ca_file))
                old, self._pool = (
                    self._pool,
                    httpcore.AsyncConnectionPool(
                        context,
                        network_backend=self._backend,
                        keepalive_expiry=60.0,
                        max_keepalive_connections=2,
                    ),
                )
                self._ca_stamp = stamp
                if old is not None:  # not before: others, meanwhile, would make pools that nobody closes
                    await old.aclose()
        except (OSError, ssl.SSLError) as error:
            raise UnreachableError(f"cannot use the CA in {ca_file}: {error}") from error
        return self._pool


async def _read(response: httpcore.Response) -> bytes:
    parts, size = [], 0
    async with aclosing(_stream(response)) as stream:
        async for part in stream:
            size += len(part)
            if size > MAX_ANSWER_BYTES:
                raise UnreachableError(f"an answer of more than {MAX_ANSWER_BYTES >> 20} MiB")
            parts.append(part)
    return b"".join(parts)


async def _lines(response: httpcore.Response) -> AsyncGenerator[bytes, None]:
    rest = b""
    async with aclosing(_stream(response)) as stream:
        async for part in stream:
            *lines, rest = (rest + part).split(b"\n")
            if len(rest) > MAX_ANSWER_BYTES:
                raise UnreachableError("a line of a watch without an end")
            for line in lines:
                if line:
                    yield line


def _stream(response: httpcore.Response) -> AsyncGenerator[bytes, None]:
    """Its body as it comes: an async generator, whatever httpcore's types say."""
    return cast(AsyncGenerator[bytes, None], response.aiter_stream())


class Settings(Protocol):
    """The part of a relay's and an agent's configuration that says where the API server is."""

    @property
    def api_server(self) -> str | None: ...
    @property
    def api_token_file(self) -> str: ...
    @property
    def api_ca_file(self) -> str: ...


def access_of(settings: Settings, environ: Mapping[str, str]) -> Access:
    """As a process was told."""
    return Access(
        servers=servers_of(environ, settings.api_server or ""),
        token_file=Path(settings.api_token_file),
        ca_file=Path(settings.api_ca_file),
    )


def servers_of(environ: Mapping[str, str], *first: str) -> tuple[str, ...]:
    """The URLs to try: `first`, as far as they say something, then the pod's own environment."""
    urls = [url.rstrip("/") for url in first if url]
    host, port = environ.get("KUBERNETES_SERVICE_HOST"), environ.get("KUBERNETES_SERVICE_PORT", "443")
    if host:
        urls.append(f"https://[{host}]:{port}" if ":" in host else f"https://{host}:{port}")
    return tuple(dict.fromkeys(urls))
