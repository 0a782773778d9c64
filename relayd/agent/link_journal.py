"""What a link writes to the log about itself and its relay: changes, each once, and the relay's own texts at
a pace that the relay doesn't choose."""

from __future__ import annotations

import trio

from relayd.agent.relay_leg import RelayLeg
from relayd.observe import log
from relayd.wire.identity import Trust, Welcomed

LINES_EVERY_S = 30.0
"""Between two log lines with one and the same text of the relay's: it chooses the texts, not the pace."""

MOST_LINES = 10
"""With any texts of its, in so long."""


class LinkJournal:
    """The lines of one link."""

    def __init__(self, relay: str) -> None:
        """`relay` is its address, a fact of every line."""
        self._log = log.get(relay=relay)
        self._said = log.Throttle(
            self._log, every_s=LINES_EVERY_S, by=("text",), clock=trio.current_time, most=MOST_LINES
        )

    # Connections

    def dial_failed(self, reason: str) -> None:
        """There is no way to the relay."""
        self._log.warning("link.dial_failed", reason=reason)

    def register_failed(self, reason: str) -> None:
        """There is one, and it came to nothing."""
        self._log.warning("link.register_failed", reason=reason)

    def connected(self, leg: RelayLeg, proved: Welcomed | None, *, dials: int) -> None:
        """`leg` carries frames now; `dials`: how many there were so far."""
        round_trip_s = leg.session.round_trip_s
        self._log.info(
            "link.connected",
            endpoint=_endpoint(leg),
            relay_key=proved.relay_key.short() if proved is not None else None,
            trust=proved.trust.value if proved is not None else "unproved",
            round_trip_ms=round(round_trip_s * 1e3, 3) if round_trip_s is not None else None,
            dials=dials,
        )

    def resumed(self, leg: RelayLeg, *, after: str) -> None:
        """An earlier process's connection goes on; `after` says how that process ended."""
        self._log.info("link.resumed", endpoint=_endpoint(leg), after=after)

    def lost(self, leg: RelayLeg, reason: str, *, meant: bool) -> None:
        """A connection has ended. `meant`: nobody needs to look at why."""
        say = self._log.info if meant else self._log.warning
        say("link.lost", reason=reason, connected_s=round(trio.current_time() - leg.connected_at, 3))

    def displaced(self, reason: str, *, retry_in_s: float) -> None:
        """Somebody else is there with our key."""
        self._log.error("link.displaced", reason=reason, retry_in_s=round(retry_in_s, 3))

    # What the relay says

    def key_shown(self, proved: Welcomed) -> None:
        """The key that the relay has proved, where nobody could have known it."""
        trust, key = proved.trust, proved.relay_key.short()
        if trust is Trust.FIRST:
            self._log.info("relay.key_trusted", key=key, reason="the first that this address showed")
        elif trust is Trust.CHANGED:
            self._log.warning(
                "relay.key_changed",
                key=key,
                previous=proved.previous,
                reason="another relay, a new key of the same one, or somebody in between: pin the right one",
            )

    def unproved(self, reason: str) -> None:
        """It hasn't shown who it is."""
        self._said.warning("relay.unproved", text=reason)

    def complained(self, text: str) -> None:
        """Its Error."""
        self._said.warning("relay.complained", text=text)

    def health(self, text: str) -> None:
        """Its Health; empty: it is well."""
        if text:
            self._said.warning("relay.unwell", text=text)
        else:
            self._said.info("relay.well", text="")

    def drains(self, seconds: int) -> None:
        """It goes, in so many seconds."""
        self._log.info("relay.drains", seconds=seconds)


def _endpoint(leg: RelayLeg) -> str | None:
    return str(leg.endpoint) if leg.endpoint is not None else None
