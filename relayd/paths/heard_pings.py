"""Which Pings were heard already: a recorded one, sent again, is no sign of the peer."""

from __future__ import annotations

from collections import OrderedDict

MAX_HEARD = 64
"""Pings remembered, so that a recorded one counts once: three seconds' worth of what is taken from a peer, in
8 KiB. Who has recorded more can send the oldest again, however many are remembered."""


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
