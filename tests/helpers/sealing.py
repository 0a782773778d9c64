"""Sealed messages with everything drawn beforehand, so that a test is the same each time."""

from __future__ import annotations

from itertools import count

from relayd.wire.sealed import Channel
from tests.helpers.identities import ALICE, BOB, drawn

ALICE_TO_BOB = Channel.between(ALICE, BOB.public())
BOB_TO_ALICE = Channel.between(BOB, ALICE.public())
NONCE = bytes(range(24))
TXID = bytes(range(12))
SESSION, OTHER_SESSION = drawn("session", 8), drawn("other session", 8)


class Draws:
    """Random bytes that are the same in each run."""

    def __init__(self, name: str) -> None:
        self._name, self._numbers = name, count()

    def __call__(self, size: int) -> bytes:
        """The next `size` bytes."""
        return drawn(f"{self._name} {next(self._numbers)}", size)
