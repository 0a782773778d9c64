"""The agent's connections across its own end: to its relay, and the socket on `lo`.

    connected -> facts into the ledger, socket into the manager's store         (manager.handover)
    end       -> what each connection is in the middle of -> the state file
    start     -> the same relay, the same key: the connection goes on, in mid-frame if need be

Frames and datagrams that come meanwhile wait in the kernel's buffers: a relayed tunnel sees a pause.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from hashlib import blake2b

import msgspec

from relayd.keys import PublicKey
from relayd.manager.handover import Carried, Handover
from relayd.manager.manager import Manager
from relayd.netio.outbox import Outbox
from relayd.observe import log
from relayd.wire.identity import Welcomed
from relayd.wire.identity_frames import Welcome

FORMAT = b"agent 1"
"""Of Facts and State. Another number whenever one of them is read differently: the next process then closes
what it can't read instead of guessing."""

LOOPBACK = "@lo"
"""In the store: the socket that WireGuard talks to."""

ADDRESS_BYTES = 16

MAX_WELCOME_BYTES = 320
"""Of a Welcome that is kept; what else Facts hold fits beside it."""


class Facts(msgspec.Struct, frozen=True, array_like=True):
    """What is known of a connection since it was connected, and outlives a killed process."""

    address: bytes
    """A hash of the relay's address: names may be longer than there is room."""
    own_key: bytes
    relay_key: bytes
    """Empty: the relay has proved nothing, and that was allowed."""
    trust: str
    welcome: bytes
    """As the relay's handshake had it, empty without one."""
    connected_at: float
    """Monotonic seconds, which go on from process to process until the host reboots."""

    def proved_key(self) -> PublicKey | None:
        """The relay's; None: it has proved none."""
        return PublicKey(self.relay_key) if self.relay_key else None

    def decoded_welcome(self) -> Welcome:
        """What the relay said of itself; the defaults where it couldn't be kept."""
        return msgspec.msgpack.decode(self.welcome, type=Welcome) if self.welcome else Welcome()


def facts_of(address: str, own_key: PublicKey, proved: Welcomed | None, *, connected_at: float) -> Facts:
    """Of a connection that has just been connected."""
    welcome = msgspec.msgpack.encode(proved.welcome) if proved is not None else b""
    return Facts(
        address=address_hash(address),
        own_key=own_key.raw,
        relay_key=proved.relay_key.raw if proved is not None else b"",
        trust=proved.trust.value if proved is not None else "",
        welcome=welcome if len(welcome) <= MAX_WELCOME_BYTES else b"",
        connected_at=connected_at,
    )


class State(msgspec.Struct, frozen=True, array_like=True):
    """What else belongs to it when the agent ends in order."""

    partial: bytes
    """The beginning of a frame that has been read."""
    rest: bytes
    """The end of one that is half written."""
    queued: list[tuple[float, bytes]]
    """Runs of whole frames that wait: for how long already, and their bytes."""


@dataclass(frozen=True, slots=True)
class Resumed:
    """A connection that an earlier process has left, as this one goes on with it."""

    slot: int
    bytes_out: int
    partial: bytes
    rest: bytes
    queued: list[tuple[float, bytes]]
    """Runs of whole frames, and since when they wait: monotonic seconds."""


def resumed_of(one: Carried, state: State | None) -> Resumed:
    """What of a connection goes on; no `state`: it was between two frames when its process was killed."""
    now = time.monotonic()
    if state is None:
        return Resumed(one.slot, one.bytes_out, b"", b"", [])
    queued = [(now - age_s, data) for age_s, data in state.queued]
    return Resumed(one.slot, one.bytes_out, state.partial, state.rest, queued)


def address_hash(address: str) -> bytes:
    """HOST:PORT, in as many bytes as Facts has room for."""
    return blake2b(address.encode(), digest_size=ADDRESS_BYTES).digest()


class Absence(msgspec.Struct, frozen=True, array_like=True):
    """What a relay said of a peer, which it doesn't say to every frame: so it must not be forgotten."""

    key: bytes
    relay: str
    left_s: float
    """For how long it still counts."""
    held_s: float
    """For how long it was to."""


class _Shared(msgspec.Struct, frozen=True, array_like=True):
    """What belongs to no one connection."""

    address: str = ""
    """The home relay's."""
    queued: list[tuple[float, bytes]] = []
    """Frames that wait for a connection to it: for how long already, and their bytes."""
    absent: list[Absence] = []


class AgentHandover:
    """The store of one agent. Does nothing without a manager."""

    def __init__(self, manager: Manager) -> None:
        """Takes what the manager passed of an earlier agent's."""
        self._notifier = manager.notifier
        self._loopback = manager.take(prefix=LOOPBACK)
        self.store = Handover(manager, FORMAT)
        self._left = list(self.store.carried)
        self._states: dict[int, bytes] = {}
        self._shared = _Shared()
        if self.store.shared:
            with suppress(msgspec.DecodeError):  # of a version that left it in another form
                self._shared = msgspec.msgpack.decode(self.store.shared, type=_Shared)
        self.absent = self._shared.absent
        """Which relays had said of which peers that they aren't there."""

    # The socket on lo -------------------------------------------------------------------------------------

    def take_loopback(self, port: int) -> socket.socket | None:
        """The earlier process's socket, if it stands on `port`; None: there is none that fits."""
        fits: socket.socket | None = None
        for one in self._loopback:
            try:
                sock = socket.socket(fileno=one.fd)
            except OSError:  # not a socket, or not even open
                with suppress(OSError):
                    os.close(one.fd)
                continue
            if fits is None and _is_loopback(sock, port):
                sock.setblocking(False)
                fits = sock
            else:
                sock.close()
        if self._loopback and fits is None:
            self._notifier.remove(LOOPBACK)
        self._loopback = []
        return fits

    def keep_loopback(self, sock: socket.socket) -> None:
        """The socket that stands on the port from now on."""
        self._notifier.remove(LOOPBACK)
        self._notifier.store(LOOPBACK, sock.fileno(), poll=False)

    # Connections ------------------------------------------------------------------------------------------

    def admit(self, sock: socket.socket, facts: Facts, *, bytes_out: int) -> int:
        """Keep a connection that has just written whole frames. -> its slot; 0: it isn't kept"""
        try:
            return self.store.admit(sock, msgspec.msgpack.encode(facts), bytes_out=bytes_out)
        except (OSError, ValueError) as error:  # broken, as the next read says; or a Welcome without end
            log.get().debug("handover.not_kept", reason=str(error))
            return 0

    def take(self, address: str, own_key: PublicKey) -> list[tuple[Carried, Facts, State | None]]:
        """The connections to the relay at `address` for our key, newest first; they are the caller's."""
        mine = []
        for one in list(self._left):
            try:
                facts = msgspec.msgpack.decode(one.facts, type=Facts)
                state = msgspec.msgpack.decode(one.state, type=State) if one.state is not None else None
            except msgspec.DecodeError:
                self._left.remove(one)
                self.store.refuse(one, "unreadable")
                continue
            if facts.address == address_hash(address) and facts.own_key == own_key.raw:
                self._left.remove(one)
                mine.append((one, facts, state))
        return sorted(mine, key=lambda found: found[1].connected_at, reverse=True)

    def has(self, address: str, *, own_key: PublicKey) -> bool:
        """Whether there is a connection to the relay at `address` for our key, that nobody took yet."""
        for one in self._left:
            with suppress(msgspec.DecodeError):  # `take` closes it
                facts = msgspec.msgpack.decode(one.facts, type=Facts)
                if facts.address == address_hash(address) and facts.own_key == own_key.raw:
                    return True
        return False

    def take_waiting(self, address: str, outbox: Outbox) -> None:
        """Put what waited for a connection to the relay at `address` into `outbox`, which is empty. Once."""
        if self._shared.address != address:
            return
        now = time.monotonic()
        outbox.restore(b"", [(now - age_s, data) for age_s, data in self._shared.queued])
        self._shared = _Shared()

    def refuse_rest(self) -> None:
        """Close what nobody took: another relay's, another key's."""
        for one in self._left:
            self.store.refuse(one, "not_ours")
        self._left = []

    def suspended(self, slot: int, *, partial: bytes, outbox: Outbox) -> None:
        """A connection stands still from now on: this is what it is in the middle of."""
        rest, queued = _aged(outbox)
        self._states[slot] = msgspec.msgpack.encode(State(partial=partial, rest=rest, queued=queued))

    def close(self) -> None:
        """Let go of it; what the manager has stays there."""
        self.store.close()

    def save(self, address: str, waiting: Outbox, absent: Sequence[Absence] = ()) -> int:
        """Hand over what has been suspended, what waits for a connection to the home relay at `address`, and
        who is absent where: the agent's end. -> how many connections the manager has now"""
        _, queued = _aged(waiting)
        shared = msgspec.msgpack.encode(_Shared(address, queued, list(absent)))
        saved = self.store.save(self._states, shared=shared)
        return len(self._states) if saved else 0


def _aged(outbox: Outbox) -> tuple[bytes, list[tuple[float, bytes]]]:
    now = time.monotonic()
    rest, runs = outbox.snapshot()
    return rest, [(max(0.0, now - since), data) for since, data in runs]


def _is_loopback(sock: socket.socket, port: int) -> bool:
    try:
        device = sock.getsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, 16).rstrip(b"\0")
        return (
            sock.family == socket.AF_INET
            and sock.type == socket.SOCK_DGRAM
            and device == b"lo"
            and sock.getsockname()[1] == port
        )
    except OSError:
        return False
