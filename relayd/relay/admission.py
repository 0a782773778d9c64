"""Who is let in, and who gives way. Pure: keys, tokens and `now` in, decisions out.

Proof is good -> Gate.admit -> claim -> GRANT, DISPLACE, ASK or WAIT
a connection is displaced -> Displacements.record -> whether two agents share one key
"""

from __future__ import annotations

import hmac
from collections import OrderedDict
from dataclasses import dataclass, field
from enum import Enum
from hashlib import blake2b

from relayd.errors import ConfigError
from relayd.keys import PublicKey
from relayd.secret_file import lines_of
from relayd.tokens import check_token
from relayd.wire.identity import NO_TOKEN, WRONG_TOKEN
from relayd.wire.relay_handshake import NotAdmittedError

FLAPPING_S = 30.0
"""Two displacements of one key within this are no restart and no roaming (PROTOCOL.md, part 2)."""

CALM_S = 300.0
"""For this long after the last one, every displacement of such a key is told of. Two agents that have been
told pause FLAPPING_S before they come back, so their displacements are farther apart than that."""

LIVED_S = 6.0
"""A holder that was heard within this lived when it was displaced: who is silent for 5.5 s is asked. An agent
that comes back from a fault has been silent for longer."""

TURNS = 3
"""So many displacements of living holders, none longer than CALM_S after the one before, are two agents that
pause in between. One that moves from network to network seldom does so as often: the worst is a warning."""

MAX_KEYS = 65_536
"""Keys that are remembered, by each of the two memories below: some 10 MB at most. The oldest go first."""


# Who is let in --------------------------------------------------------------------------------------------


def _digest(token: bytes) -> bytes:
    """Of one length for all, so that a comparison doesn't tell how long the right one is."""
    return blake2b(token, digest_size=32, person=b"relayd token").digest()


@dataclass(frozen=True, slots=True)
class Gate:
    """What a key must bring. Each lock that is fitted must open: a key that was taken off the list stays
    out though it knows the token, and one on the list does too without the token."""

    tokens: tuple[str, ...] = field(default=(), repr=False)
    """Any of them will do: while the token is being changed, the old one and the new one."""

    allowed: frozenset[PublicKey] | None = None
    """None: there is no list. An empty one lets nobody in."""

    open: bool = False
    """Any key that is proved, whatever else is set."""

    _digests: tuple[bytes, ...] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        """Raises ValueError when there is neither a token nor a list and it isn't open, or for a token that
        can't be one."""
        if not self.open and not self.tokens and self.allowed is None:
            raise ValueError("nobody can be let in: neither a token nor a list of keys, and not open to all")
        object.__setattr__(self, "_digests", tuple(_digest(check_token(t).encode()) for t in self.tokens))

    def admit(self, key: PublicKey, token: bytes) -> str:
        """What lets in `key`, which is proved, for the log. Raises NotAdmittedError saying why not."""
        if self.open:
            return "open"
        self._check_list(key)
        if not self._digests:
            return "list"
        if not token:
            raise NotAdmittedError(NO_TOKEN)
        if not self._knows(token):
            raise NotAdmittedError(WRONG_TOKEN)
        return "token" if self.allowed is None else "list and token"

    def admit_bare(self, key: PublicKey) -> str:
        """The same for a bare Register under the policy `optional`: it has no way to bring a token, but a
        list holds for it too."""
        if not self.open:
            self._check_list(key)
        return "unproved"

    def still_admits(self, key: PublicKey) -> bool:
        """Whether a key that is in may stay: not when it was taken off the list. (Tokens are asked for once,
        at the door: changing them disconnects nobody.)"""
        return self.open or self.allowed is None or key in self.allowed

    def _check_list(self, key: PublicKey) -> None:
        if self.allowed is not None and key not in self.allowed:
            raise NotAdmittedError(f"key {key} is not on this relay's list")

    def _knows(self, token: bytes) -> bool:
        """Compare with each token in constant time, and with all of them whichever it is."""
        digest = _digest(token)
        matches = 0
        for known in self._digests:
            matches += hmac.compare_digest(known, digest)
        return matches > 0


def parse_allow_list(text: str, *, source: str) -> frozenset[PublicKey]:
    """The keys in an allow-list: one a line in `wg`'s base64, the rest of a line after `#` is a comment.

    Raises ConfigError with `source` and the line, never quoting it: it might be a private key.
    """
    keys: set[PublicKey] = set()
    for number, line in lines_of(text):
        try:
            key = PublicKey.from_base64(line)
        except ValueError as error:
            problem = f"not a WireGuard key: {error}"
        else:
            if str(key) == line and any(key.raw):
                keys.add(key)
                continue
            # Two bits of the last character belong to nothing, and `wg` too refuses what sets them.
            problem = "not a WireGuard key: " + ("all zeros" if str(key) == line else "its last character")
        hint = "one public key a line, as `wg pubkey` prints it; comments after #"
        raise ConfigError(problem, source=source, line=number, hint=hint)
    return frozenset(keys)


def parse_tokens(text: str, *, source: str) -> tuple[str, ...]:
    """The tokens in a token file: one a line, comments as in an allow-list, the newest first (the join string
    shows that one). Raises ConfigError with `source` and the line, never quoting it."""
    tokens: list[str] = []
    for number, line in lines_of(text):
        try:
            token = check_token(line)
        except ValueError as error:
            raise ConfigError(str(error), source=source, line=number) from None
        if token not in tokens:
            tokens.append(token)
    if not tokens:
        raise ConfigError("holds no token", source=source, hint="one a line; without the file one is made")
    return tuple(tokens)


# Who gives way --------------------------------------------------------------------------------------------


class Verdict(Enum):
    """What becomes of a connection that wants a key."""

    GRANT = "grant"
    """Nobody holds it."""

    DISPLACE = "displace"
    """It gets the key at once; the holder is told that it was replaced."""

    ASK = "ask"
    """The holder is asked with RelayProbe, and displaced when it stays silent."""

    WAIT = "wait"
    """Nothing is routed until it proves the key: an unproved one never takes a key that was proved."""


def claim(*, proved: bool, holder_proved: bool | None, proved_before: bool) -> Verdict:
    """Decide between a newcomer and the holder of its key (PROTOCOL.md, part 2, "Who gives way").

    `holder_proved` is None when nobody holds the key; `proved_before`: somebody has proved it to this relay,
    connected now or not.
    """
    match proved, holder_proved:
        case True, None:
            return Verdict.GRANT
        case True, _:
            return Verdict.DISPLACE
        case False, True:
            return Verdict.WAIT
        case _ if proved_before:
            return Verdict.WAIT
        case False, None:
            return Verdict.GRANT
    return Verdict.ASK


class ProvedKeys:
    """Keys that were proved to this relay, connected or not: a bare Register is not enough for them, else a
    stranger would take a key over in the second between its agent's two connections."""

    def __init__(self, max_keys: int = MAX_KEYS) -> None:
        self._keys: OrderedDict[PublicKey, None] = OrderedDict()
        self._max_keys = max_keys

    def __contains__(self, key: PublicKey) -> bool:
        return key in self._keys

    def add(self, key: PublicKey) -> None:
        """It was proved just now."""
        self._keys[key] = None
        self._keys.move_to_end(key)
        if len(self._keys) > self._max_keys:
            self._keys.popitem(last=False)


@dataclass(frozen=True, slots=True)
class _Last:
    at: float
    flapping: bool
    turns: int
    """Displacements of living holders so far, none longer than CALM_S after the one before."""


class Displacements:
    """When each key was displaced last, to tell two agents with one key from an agent that came back."""

    def __init__(self, max_keys: int = MAX_KEYS) -> None:
        self._last: OrderedDict[PublicKey, _Last] = OrderedDict()
        self._max_keys = max_keys

    def __len__(self) -> int:
        return len(self._last)

    def record(self, key: PublicKey, now: float, *, silent_s: float) -> bool:
        """A connection with `key` is displaced that was heard `silent_s` seconds ago. -> whether both are to
        be told by Health, and the log: it was displaced within FLAPPING_S before, or while it lived TURNS
        times, or has been told and not been calm for CALM_S since."""
        last = self._last.pop(key, None)
        turns = int(silent_s < LIVED_S)
        flapping = False
        if last is not None and now - last.at < CALM_S:
            turns += last.turns
            flapping = last.flapping or now - last.at < FLAPPING_S or turns >= TURNS
        self._last[key] = _Last(now, flapping, turns)
        while len(self._last) > self._max_keys:
            self._last.popitem(last=False)
        return flapping

    def forget(self, now: float) -> None:
        """Drop what is too long ago to matter. To be called now and then."""
        while self._last:
            key, oldest = next(iter(self._last.items()))
            if now - oldest.at < CALM_S:
                break
            del self._last[key]
