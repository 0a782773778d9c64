"""Connections that outlive the process: into the manager's descriptor store, and out of it again.

    admit     the socket goes into the store, its facts into the ledger, which is in the store too
    save      at the end: what else belongs to the connections (halves of frames) goes into a state file
    adopt     the next process takes them out: each with its facts and state, or closes them

A process that ended in order leaves a state file, and the ledger names it. One that was killed leaves none:
connections between two frames live on, the others are closed, as nobody knows where in the stream they are.

What is closed is shut down, too: the store holds a duplicate, so that closing ours alone tells nobody.
"""

from __future__ import annotations

import mmap
import os
import secrets
import socket
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass

import msgspec
import trio

from relayd.manager.ledger import Entry, Ledger, LedgerError, bytes_written, cookie_of
from relayd.manager.manager import Manager
from relayd.observe import log

PREFIX = "@"
LEDGER, STATE = PREFIX + "ledger", PREFIX + "state"
"""Names in the store. A connection's is the prefix and its slot in hexadecimal: short, see `ledger.SLOTS`."""

MAX_STATE_BYTES = 1 << 30
"""A state file that says to be larger isn't one: no host has that much memory to spare for queues."""

OTHERS = 8
"""Places in the store for what isn't a connection: ledger, state, the agent's socket on lo."""

SETTLE_S = 2.0
"""How long the end waits for the manager to take the state."""


class _State(msgspec.Struct, frozen=True, array_like=True):
    """What stands in a state file."""

    format: bytes
    id: int
    shared: bytes
    connections: dict[int, bytes]


@dataclass(frozen=True, slots=True)
class Carried:
    """A connection that lives on."""

    slot: int
    sock: socket.socket
    facts: bytes
    bytes_out: int
    """Bytes written into it since it was admitted, as the kernel knows."""
    state: bytes | None
    """None: its process was killed while it was between two frames."""


class Handover:
    """The store of one process. Does nothing, and adopts nothing, without a manager."""

    def __init__(self, manager: Manager, format_: bytes) -> None:
        """Takes what the manager passed of an earlier process's. `format_` (at most 8 bytes) names the form
        of facts and state: what is of another form is closed."""
        self._notifier = manager.notifier
        self._format = format_
        self.closed: Counter[str] = Counter()
        """Connections of the earlier process that couldn't live on, by reason."""
        self.shared = b""
        """What the earlier process saved for all connections together."""
        self.in_order = False
        """Whether the earlier process left a state."""
        self._sockets: dict[int, list[socket.socket]] = {}
        """What was passed, by slot. More than one where the manager never heard that an earlier one was
        forgotten."""
        self._free: list[int] = []
        self.ledger, state = self._begin(manager)
        self.carried = self._adopt(state)
        """The connections that live on, non-blocking. The others have been closed, and counted."""
        taken = {one.slot for one in self.carried}
        room = self.ledger.slots - 1
        if manager.store_limit is not None:
            room = max(0, min(room, manager.store_limit - OTHERS))
        self._free = [slot for slot in range(room, 0, -1) if slot not in taken]

    @property
    def enabled(self) -> bool:
        """Whether there is a manager, which may keep what it is given."""
        return self._notifier.connected

    # Taking over ------------------------------------------------------------------------------------------

    def _begin(self, manager: Manager) -> tuple[Ledger, _State | None]:
        """Open what was passed, note the sockets. -> the ledger from now on, the state that belongs to it"""
        ledger: Ledger | None = None
        problem = ""
        state_fd = -1
        for one in manager.take(prefix=PREFIX):
            if one.name == LEDGER and ledger is None:
                try:
                    ledger = Ledger.open(one.fd, self._format)
                    continue
                except LedgerError as error:
                    problem = str(error)
            elif one.name == STATE and state_fd < 0:
                state_fd = one.fd
                continue
            elif (slot := _slot_of(one.name)) is not None:
                with suppress(OSError):  # no socket, or not open: nothing that could be adopted
                    self._sockets.setdefault(slot, []).append(socket.socket(fileno=one.fd))
                    continue
            with suppress(OSError):
                os.close(one.fd)
            self._notifier.remove(one.name)
        state = self._read_state(state_fd, ledger) if state_fd >= 0 else None
        if ledger is not None:
            # From here on the state is used up: whoever is killed next leaves a ledger without one.
            ledger.state_id = 0
        if state_fd >= 0:
            os.close(state_fd)
            self._notifier.remove(STATE)
        self.in_order = state is not None
        if state is not None:
            self.shared = state.shared
        if ledger is None:
            if self._sockets:
                log.get().warning(
                    "handover.refused",
                    connections=len(self._sockets),
                    reason=f"the earlier process's ledger is {problem or 'missing'}",
                )
            self._notifier.remove(LEDGER)
            for slot, socks in self._sockets.items():
                for sock in socks:
                    self._shut(slot, sock, "unknown_format")
            self._sockets.clear()
            if not self.enabled:
                return Ledger.unshared(self._format), None
            ledger = Ledger.create(self._format)
            self._notifier.store(LEDGER, ledger.fd, poll=False)
        return ledger, state

    def _read_state(self, fd: int, ledger: Ledger | None) -> _State | None:
        """None: it isn't the one that the ledger names, or can't be read."""
        if ledger is None or not ledger.state_id:
            return None
        try:
            size = os.fstat(fd).st_size
            if not 0 < size <= MAX_STATE_BYTES:
                raise ValueError(f"{size} bytes")
            with mmap.mmap(fd, size, access=mmap.ACCESS_READ) as content:
                state = msgspec.msgpack.decode(content, type=_State)
            if state.id != ledger.state_id or state.format != self._format:
                raise ValueError("not the one that the ledger names")
        except (OSError, ValueError, msgspec.DecodeError) as error:
            log.get().warning("handover.state_unreadable", reason=str(error))
            return None
        return state

    def _adopt(self, state: _State | None) -> list[Carried]:
        carried = []
        for slot in sorted(self._sockets):
            entry = self.ledger.read(slot)
            sock = self._only(slot, self._sockets[slot], entry)
            try:
                problem = self._problem(slot, sock, entry, state)
                written = bytes_written(sock)
            except OSError:
                problem = "broken"
            if problem or entry is None:
                self._drop(slot, sock, problem)
                continue
            sock.setblocking(False)
            mine = state.connections[slot] if state is not None else None
            carried.append(Carried(slot, sock, entry.facts, written - entry.base, mine))
        kept = {one.slot for one in carried}
        for slot in range(1, self.ledger.slots):
            if slot not in kept and self.ledger.read(slot) is not None:
                self.ledger.clear(slot)  # the store gave the socket up by itself: it has hung up
        self._sockets.clear()
        return carried

    def _only(self, slot: int, socks: list[socket.socket], entry: Entry | None) -> socket.socket:
        """Of several in one slot, the one that the ledger means, if any; the others are closed."""
        if len(socks) == 1:
            return socks[0]
        mine = next((sock for sock in socks if entry is not None and _has(sock, entry.cookie)), socks[0])
        for sock in socks:
            if sock is mine:
                continue
            if entry is not None and _has(sock, entry.cookie):
                sock.close()  # the same once more, which lives on
            else:
                self._shut(slot, sock, "unknown")
        # A name stands for all that there is of it.
        self._notifier.remove(name_of(slot))
        self._notifier.store(name_of(slot), mine.fileno())
        return mine

    def _problem(self, slot: int, sock: socket.socket, entry: Entry | None, state: _State | None) -> str:
        """Why the connection can't live on; "" if it can. Raises OSError: it is broken."""
        if entry is None or cookie_of(sock) != entry.cookie:
            return "unknown"
        if state is not None:
            return "" if slot in state.connections else "not_saved"
        if self.ledger.received[slot] or bytes_written(sock) - entry.base != self.ledger.sent[slot]:
            return "mid_frame"
        return ""

    def refuse(self, one: Carried, reason: str) -> None:
        """Close one of `carried`, for a reason of the caller's own."""
        self._drop(one.slot, one.sock, reason)
        self._free.append(one.slot)

    def _drop(self, slot: int, sock: socket.socket, reason: str) -> None:
        self._shut(slot, sock, reason)
        self.ledger.clear(slot)

    def _shut(self, slot: int, sock: socket.socket, reason: str) -> None:
        self.closed[reason] += 1
        with suppress(OSError):  # it has ended already
            sock.shutdown(socket.SHUT_RDWR)
        sock.close()
        self._notifier.remove(name_of(slot))

    # Handing over -----------------------------------------------------------------------------------------

    def admit(self, sock: socket.socket, facts: bytes, *, bytes_out: int = 0) -> int:
        """Keep a connection from now on. -> its slot; 0: there is no manager, or no room.

        `bytes_out`: what the caller has counted of the bytes written so far, between two frames. Raises
        OSError when the socket is broken, ValueError when the facts are too many.
        """
        if not self.enabled or not self._free:
            return 0
        base = bytes_written(sock) - bytes_out
        slot = self._free.pop()
        self.ledger.write(slot, Entry(cookie_of(sock), base, facts))
        self.ledger.sent[slot] = bytes_out
        self._notifier.store(name_of(slot), sock.fileno())
        return slot

    def update(self, slot: int, facts: bytes) -> None:
        """Other facts of a connection that stays."""
        if slot:
            self.ledger.update(slot, facts)

    def forget(self, slot: int) -> None:
        """A connection has ended, or shall not live on."""
        if slot:
            self._notifier.remove(name_of(slot))
            self.ledger.clear(slot)
            self._free.append(slot)

    def save(self, connections: Mapping[int, bytes], *, shared: bytes = b"") -> bool:
        """The end: leave the state of `connections` by slot. Nothing may be read from or written to them
        after that. Whether the manager has it: else they live on as after a kill."""
        if not self.enabled:
            return False
        state = _State(self._format, secrets.randbits(63) | 1, shared, dict(connections))
        fd = os.memfd_create("relayd-state", os.MFD_CLOEXEC)
        try:
            with os.fdopen(os.dup(fd), "wb") as file:
                file.write(msgspec.msgpack.encode(state))
            self._notifier.store(STATE, fd, poll=False)
            if not self._notifier.settle(SETTLE_S):
                return False
        finally:
            os.close(fd)
        self.ledger.state_id = state.id
        return True

    def close(self) -> None:
        """Let go of the ledger; what the manager has stays there."""
        self.ledger.close()


def ended_in_order(error: BaseException | None) -> bool:
    """Whether what a process did was cancelled, and nothing else ended it: after a bug nobody knows what
    state its connections are in. `error`: what came out of it."""
    if isinstance(error, BaseExceptionGroup):
        return error.split(trio.Cancelled)[1] is None
    return isinstance(error, trio.Cancelled)


def name_of(slot: int) -> str:
    """A connection's name in the store."""
    return f"{PREFIX}{slot:x}"


def _slot_of(name: str) -> int | None:
    """None: no connection's, as `name_of` would have it."""
    try:
        slot = int(name.removeprefix(PREFIX), 16)
    except ValueError:
        return None
    return slot if name_of(slot) == name else None


def _has(sock: socket.socket, cookie: int) -> bool:
    try:
        return cookie_of(sock) == cookie
    except OSError:
        return False
