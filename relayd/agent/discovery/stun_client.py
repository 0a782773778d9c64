"""Asks STUN servers: a question, repeated until it is answered or given up. Over whatever can send."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

import trio

from relayd.endpoints import Endpoint
from relayd.errors import RemoteProtocolError
from relayd.netio.raw_udp import Address, Datagram
from relayd.observe import log
from relayd.paths.candidates import is_usable
from relayd.wire import stun

REPEAT_S = (0.0, 0.5, 1.5)
"""When a question is sent, counted from the first time: RFC 8489, section 6.2.1, but for how often. The seven
times of its default take 40 s; whoever lost three of three won't be missed."""

GIVE_UP_S = 3.0

Draw = Callable[[int], bytes]


class Sender(Protocol):
    """A socket for both IP versions: SharedPort."""

    def send(self, payload: bytes, to: Endpoint, *, source: Address | None = None) -> None:
        """Send one datagram without waiting. Raises OSError."""


class NoAnswerError(Exception):
    """The text says why: nothing came, it can't be sent, or the server refused."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What a server answered, and how it came."""

    said: stun.BindingAnswer
    source: Endpoint
    """Where it came from: not who was asked, if another source was asked for."""
    local: Address
    """The own address that it came to."""
    round_trip_s: float
    """From the last time that the question was sent."""

    @property
    def mapped(self) -> Endpoint:
        """Where the server saw the question come from."""
        assert self.said.mapped is not None, "ask() gives successes only"
        return self.said.mapped


@dataclass(slots=True)
class _Question:
    server: Endpoint
    came: trio.Event = field(default_factory=trio.Event)
    answer: stun.BindingAnswer | None = None
    datagram: Datagram | None = None
    came_at: float = math.inf


class StunClient:
    """Questions on their way. Give it every STUN message that comes in, by `on_datagram`."""

    def __init__(self, sender: Sender, draw: Draw = os.urandom) -> None:
        """`draw` gives random bytes."""
        self._sender, self._draw = sender, draw
        self._waiting: dict[bytes, _Question] = {}

    def on_datagram(self, datagram: Datagram) -> None:
        """A STUN message came in. What nobody asked for is ignored."""
        question = self._waiting.get(datagram.payload[8:20])
        if question is None or question.answer is not None:
            return
        try:
            answer = stun.decode_answer_untrusted(datagram.payload)
            if answer.mapped is not None:
                _check_untrusted(answer.mapped, question.server)
        except RemoteProtocolError as error:
            log.get().debug("stun.malformed_answer", server=str(datagram.source), error=str(error))
            return
        question.answer, question.datagram = answer, datagram
        question.came_at = trio.current_time()
        question.came.set()

    async def ask(
        self,
        server: Endpoint,
        *,
        change_ip: bool = False,
        change_port: bool = False,
        give_up_s: float = GIVE_UP_S,
    ) -> Answer:
        """One answer. Raises NoAnswerError."""
        transaction = self._draw(stun.TRANSACTION_BYTES)
        request = stun.encode_request(transaction, change_ip=change_ip, change_port=change_port)
        question = self._waiting[transaction] = _Question(server)
        begun = sent_at = trio.current_time()
        try:
            for number in range(len(REPEAT_S)):
                try:
                    self._sender.send(request, server)
                except OSError as error:
                    raise NoAnswerError(error.strerror or str(error)) from error
                sent_at = trio.current_time()
                last = number + 1 == len(REPEAT_S)
                until = begun + (give_up_s if last else min(REPEAT_S[number + 1], give_up_s))
                with trio.move_on_at(until):
                    await question.came.wait()
                    break
        finally:
            del self._waiting[transaction]
        if question.answer is None or question.datagram is None:
            raise NoAnswerError(f"no answer within {give_up_s:g} s")
        if question.answer.error:
            raise NoAnswerError(f"refused with error {question.answer.error}")
        return Answer(
            said=question.answer,
            source=question.datagram.source,
            local=question.datagram.local,
            round_trip_s=max(0.0, question.came_at - sent_at),
        )


def _check_untrusted(mapped: Endpoint, server: Endpoint) -> None:
    """Raise RemoteProtocolError for what can't be where `server` saw a question come from. It would be told
    to all peers, and published: they drop a whole list of candidates for a port 0 in it.
    """
    address, here = mapped.address, server.is_loopback() and mapped.is_loopback()
    if address.version != server.address.version or not mapped.port or not (here or is_usable(address)):
        raise RemoteProtocolError(f"a question can't have come from {mapped}")
