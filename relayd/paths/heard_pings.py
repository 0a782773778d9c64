"""Which Pings were heard already: a recorded one, sent again, is no sign of the peer."""

from __future__ import annotations

from collections import OrderedDict

MAX_HEARD = 256
"""Pings remembered, so that a recorded one counts once."""


class HeardPings:
    """The newest of one peer's, by their transaction ids."""

    def __init__(self) -> None:
        self._txids: OrderedDict[bytes, None] = OrderedDict()

    def is_new(self, txid: bytes) -> bool:
        """Whether it is the first with this id; it is remembered."""
        if txid in self._txids:
            return False
        self._txids[txid] = None
        if len(self._txids) > MAX_HEARD:
            self._txids.popitem(last=False)
        return True
