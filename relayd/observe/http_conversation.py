"""HTTP/1.1 on one connection, by h11: read a request head, have it answered, send; again, or close.

(h11 rather than hypercorn and starlette: five paths and no bodies need no framework, which would cost a
relay 9 MiB and 150 ms of its start.) This module is loaded by the first connection (`observe.http_server`).
"""

from __future__ import annotations

import time

import h11
import trio

from relayd.observe.http_server import Answer, AnswerTo, Client, Request, Unsent, plain_text

MAX_HEAD_BYTES = 8192
"""Of a request: browsers send less than 2 KiB without cookies."""

MAX_UNSENT_BYTES = 8 << 20
"""Answers that clients haven't taken yet, all together. A status of ten thousand connections has 4 MiB."""

REQUEST_S = 5.0
"""From the first byte of a request, or the connection's begin, to its last one."""

IDLE_S = 75.0
"""Between two requests: Prometheus asks every 15 to 60 s, and keeps its connection meanwhile."""

ANSWER_S = 15.0
"""For a client to take an answer: a phone on a bad line is served, a stopped one not for long."""

LINGER_S = 1.0
"""For an error to arrive before the connection closes: closing with bytes unread sends a reset."""

READ_BYTES = 16 << 10

_TOO_MUCH = plain_text(413, "a request here has no body", headers=(("Connection", "close"),))
_RETRY = (("Retry-After", "5"),)
_HEADERS = (
    ("Cache-Control", "no-store"),
    ("X-Content-Type-Options", "nosniff"),
    ("Referrer-Policy", "no-referrer"),
    ("Cross-Origin-Resource-Policy", "same-origin"),
)
"""Of every answer. No CORS header is among them, so that another site's page can't read one."""


class Conversation:
    """One connection's."""

    def __init__(self, stream: trio.SocketStream, client: Client, unsent: Unsent) -> None:
        self._stream, self._client, self._unsent = stream, client, unsent
        self._http = h11.Connection(h11.SERVER, max_incomplete_event_size=MAX_HEAD_BYTES)

    async def run(self, answer_to: AnswerTo) -> None:
        """Requests and their answers, until one side has enough. Raises trio.BrokenResourceError."""
        idle_s = REQUEST_S
        while True:
            self._client.waiting = True
            try:
                request = await self._next_request(idle_s)
            except h11.RemoteProtocolError as error:
                hint = int(error.error_status_hint)
                await self._refuse(plain_text(hint, f"not a request for this server: {error}"))
                return
            if request is None:
                return
            self._client.waiting = False
            if request.has_body:
                await self._send(_TOO_MUCH, with_body=request.method != "HEAD")
                await self._linger()
                return
            answer = await answer_to(request)
            if self._unsent.bytes and self._unsent.bytes + len(answer.body) > MAX_UNSENT_BYTES:
                answer = plain_text(503, "too many answers wait for their readers", headers=_RETRY)
            await self._send(answer, with_body=request.method != "HEAD")
            if self._http.our_state is not h11.DONE:
                return
            self._http.start_next_cycle()
            self._client.begins_to_wait()
            idle_s = IDLE_S

    async def _send(self, answer: Answer, *, with_body: bool) -> None:
        """Send an answer within ANSWER_S; a client that doesn't take it loses its connection."""
        headers = [
            ("Date", time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime())),
            ("Content-Type", answer.content_type),
            ("Content-Length", str(len(answer.body))),
            *_HEADERS,
            *answer.headers,
        ]
        parts = [self._http.send(h11.Response(status_code=answer.status, headers=headers)) or b""]
        if with_body:  # as it is, without a copy: several may be sending the same
            parts += self._http.send_with_data_passthrough(h11.Data(answer.body)) or []
        self._http.send(h11.EndOfMessage())
        self._unsent.bytes += len(answer.body)
        try:
            with trio.move_on_after(ANSWER_S) as scope:
                for part in parts:
                    await self._stream.send_all(part)
        finally:
            self._unsent.bytes -= len(answer.body)
        if scope.cancelled_caught:
            raise trio.BrokenResourceError(f"the answer was not taken within {ANSWER_S:g} s")

    async def _refuse(self, answer: Answer) -> None:
        """The last words on a connection whose bytes make no sense."""
        if self._http.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
            return
        await self._send(answer, with_body=True)
        await self._linger()

    async def _linger(self) -> None:
        """Let what was said arrive before the connection closes."""
        with trio.move_on_after(LINGER_S):
            await self._stream.send_eof()
            while await self._stream.receive_some(READ_BYTES):
                pass

    async def _next_request(self, idle_s: float) -> Request | None:
        """The next request; None: the client has none any more, or took too long.

        `idle_s` is what it may take to begin. Raises h11.RemoteProtocolError for nonsense.
        """
        head: h11.Request | None = None
        with trio.move_on_after(idle_s) as scope:
            while True:
                event = self._http.next_event()
                if event is h11.NEED_DATA:
                    data = await self._stream.receive_some(READ_BYTES)
                    if idle_s > REQUEST_S:  # it has begun
                        scope.deadline, idle_s = trio.current_time() + REQUEST_S, REQUEST_S
                    self._http.receive_data(data)
                elif isinstance(event, h11.Request):
                    head = event
                elif head is not None and isinstance(event, h11.Data | h11.EndOfMessage):
                    return _request(head, has_body=isinstance(event, h11.Data))
                else:  # ConnectionClosed, or PAUSED after something that is no HTTP any more
                    return None
        return None


def _request(head: h11.Request, *, has_body: bool) -> Request:
    """h11 lets through ASCII only, and one Host at the most."""
    host = next((value for name, value in head.headers if name == b"host"), b"")
    return Request(
        head.method.decode("ascii"), head.target.decode("ascii"), host.decode("latin-1"), has_body=has_body
    )
