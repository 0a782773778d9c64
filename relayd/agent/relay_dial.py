"""A TCP connection to a relay: every address of its name, marked before the first packet leaves.

As `trio.open_tcp_stream` (src/trio/_highlevel_open_tcp_stream.py), which makes its sockets itself and so
leaves no moment to mark them before connect(): an unmarked SYN could go into the tunnel that this very
connection is to carry. Addresses are tried one after the other, the next one as soon as the last one
failed or was silent for STAGGER_S ("happy eyeballs", RFC 8305); the first that answers wins.
"""

from __future__ import annotations

import math
import os
import socket
from contextlib import ExitStack
from typing import Any, TypeAlias

import trio

from relayd import marks
from relayd.coordination.model import RelayAddress
from relayd.endpoints import Endpoint
from relayd.kernel import hints
from relayd.netio.tcp import set_options
from relayd.netio.tls_socket import TlsSocket

STAGGER_S = 0.25
"""Head start of an address over the next one: the connection attempt delay of RFC 8305, section 5."""

RESOLVE_S = 3.0
"""For a name to be looked up where an address is known that was right: a resolver that is dead takes 5 to
30 s to say so (resolv.conf(5))."""

MAX_ADDRESSES = 16
"""Of one name. More would not have their turn within a dial's deadline."""

USER_TIMEOUT_MS = 10_000
"""Bytes that stay unacknowledged for this long mean that the relay is gone (tcp(7))."""

Target: TypeAlias = tuple[int, Any]
"""An address family and an address as connect() takes it."""


async def dial(
    relay: RelayAddress, *, timeout_s: float, spare: Endpoint | None = None, spare_first: bool = False
) -> socket.socket:
    """A connected, marked, non-blocking socket, within `timeout_s` seconds, name look-up included.

    `spare` is where the relay was last: tried behind what the name leads to, or (`spare_first`) before it,
    and alone when nobody says within RESOLVE_S where that is. Raises OSError saying what each address
    answered, and HostError when the socket can't be marked.
    """
    try:
        with trio.fail_after(timeout_s):
            return await connect_first(await _targets(relay, spare, spare_first=spare_first))
    except trio.TooSlowError as error:
        raise TimeoutError(f"no answer within {timeout_s:g} s") from error
    except UnicodeError as error:  # from the IDNA codec: an empty label, or one of more than 63 bytes
        raise OSError(f"{relay.host!r} is not a host name: {error}") from error


async def _targets(relay: RelayAddress, spare: Endpoint | None, *, spare_first: bool) -> list[Target]:
    """Where to connect to. Raises OSError when that isn't known."""
    found: list[Target] = []
    with trio.move_on_after(RESOLVE_S if spare is not None else math.inf):
        try:
            entries = await trio.socket.getaddrinfo(relay.host, relay.port, type=socket.SOCK_STREAM)
            found = interleave([(int(entry[0]), entry[4]) for entry in entries])
        except socket.gaierror as error:
            if spare is None:
                raise OSError(f"{relay.host}: {error.strerror}") from error  # its text begins "[Errno -3]"
        except (OSError, UnicodeError):
            if spare is None:
                raise
    if spare is not None:
        family = socket.AF_INET if spare.address.version == 4 else socket.AF_INET6
        known: Target = (int(family), (str(spare.address), spare.port))
        found = [one for one in found if one[1][:2] != known[1]]
        found.insert(0 if spare_first else len(found), known)
    return found


def interleave(targets: list[Target]) -> list[Target]:
    """Families in turn, the resolver's first choice first (RFC 8305, section 4): one that goes nowhere costs
    one stagger and not one per address. Duplicates are left out.
    """
    queues: dict[int, list[Target]] = {}
    for target in targets:
        queue = queues.setdefault(target[0], [])
        if target not in queue:
            queue.append(target)
    longest = max(map(len, queues.values()), default=0)
    mixed = [queue[turn] for turn in range(longest) for queue in queues.values() if turn < len(queue)]
    return mixed[:MAX_ADDRESSES]


async def connect_first(targets: list[Target]) -> socket.socket:
    """The first of `targets` that accepts; the others are closed. Without a deadline: the caller has one."""
    problems: list[str] = []
    winner: socket.socket | None = None

    async def attempt(sock: socket.socket, address: Any, failed: trio.Event) -> None:
        nonlocal winner
        try:
            await trio.socket.from_stdlib_socket(sock).connect(address)
        except OSError as error:
            problems.append(f"{_show(address)}: {_reason(error)}")
            failed.set()
            return
        if winner is None:
            winner = sock
            nursery.cancel_scope.cancel()

    with ExitStack() as losers:
        # All sockets first: a mark that is refused is one HostError then, not a group out of the nursery.
        attempts: list[tuple[socket.socket, Any]] = []
        for family, address in targets:
            try:
                attempts.append((losers.enter_context(marked_socket(family)), address))
            except OSError as error:  # no such family in this kernel, no more descriptors
                problems.append(f"{_show(address)}: {_reason(error)}")
        async with trio.open_nursery() as nursery:
            for sock, address in attempts:
                failed = trio.Event()
                nursery.start_soon(attempt, sock, address, failed)
                with trio.move_on_after(STAGGER_S):
                    await failed.wait()
        if winner is None:
            raise OSError("; ".join(problems) or "the name has no address")
        kept = socket.socket(fileno=winner.detach())
    kept.setblocking(False)
    return kept


def marked_socket(family: int) -> socket.socket:
    """A TCP socket with mark and options, not connected yet. Raises OSError, and HostError for the mark."""
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        marks.set_mark(sock)
        set_options(sock, user_timeout_ms=USER_TIMEOUT_MS)
    except PermissionError as error:
        sock.close()
        raise hints.lacks_capability("mark the relay connection") from error
    except OSError:
        sock.close()
        raise
    return sock


def peer_of(sock: socket.socket | TlsSocket) -> Endpoint:
    """The address that a connected socket ended up with. Raises OSError when it is gone already."""
    host, port = sock.getpeername()[:2]
    return Endpoint.parse(f"[{host}]:{port}" if ":" in host else f"{host}:{port}")


def _reason(error: OSError) -> str:
    """The kernel's words alone: trio puts the address, which is said already, into `strerror`."""
    return os.strerror(error.errno) if error.errno else str(error)


def _show(address: Any) -> str:
    host, port = address[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
