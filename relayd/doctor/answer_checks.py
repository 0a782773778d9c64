"""Whether what answers at a relay's address is the relay, and lets the agent in. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from relayd.doctor.facts import Reach, RelayFacts
from relayd.doctor.finding import Finding
from relayd.wire.identity import NO_TOKEN, TLS_ONLY, WRONG_TOKEN, Trust

SHOW_JOIN = "relayd serve --show-join   # on the relay's host, with its flags: the line that its agents need"
STAYS_AWAY = "the agent doesn't connect to it"
SOMEBODY_ELSE = "another relay, a new key of the same one, or somebody in between"


def answer(relay: RelayFacts, asked: Reach) -> Iterator[Finding]:
    """One finding, of a relay that was asked."""
    peer, words = asked.peer, asked.words
    match asked.echo:
        case "welcomed":
            yield _welcomed(asked)
        case "returned" if relay.insecure and not relay.pinned:
            yield Finding(
                "relay",
                "ok",
                f"{peer} is a relay: a frame to ourselves came back",
                meaning="it doesn't prove who it is, which --insecure-relay allows",
            )
        case "returned" if relay.pinned:
            text = f"{peer} is a relay that doesn't prove who it is, and its key is pinned"
            yield Finding("relay", "error", text, meaning=STAYS_AWAY, command=SHOW_JOIN)
        case "returned":
            yield Finding(
                "relay",
                "error",
                f"{peer} is a relay that doesn't prove who it is",
                meaning=STAYS_AWAY,
                command="relayd agent --insecure-relay ...   # where nobody can stand in between",
            )
        case "challenged":
            yield Finding(
                "relay",
                "error",
                f"{peer} is a relay, and doesn't answer the proof that it asked for",
                meaning="it hangs, or something between swallows what is sent",
                command="relayd status   # on the relay's host",
            )
        case "wrong key":
            meaning = f"{SOMEBODY_ELSE}: {STAYS_AWAY}"
            yield Finding("relay", "error", f"{peer}: {words}", meaning=meaning, command=SHOW_JOIN)
        case "unproved":
            meaning = f"somebody in between, or not a relay: {STAYS_AWAY}"
            yield Finding("relay", "error", f"{peer}: {words}", meaning=meaning, command=SHOW_JOIN)
        case "TLS failed":
            yield Finding("relay", "error", f"{peer}: {words}", meaning=STAYS_AWAY, command=SHOW_JOIN)
        case "refused":
            yield _refused(relay, asked)
        case "closed":
            yield Finding(
                "relay",
                "warning",
                f"{peer} closed the connection as soon as a key was registered",
                meaning="not a relay, or one that is full or lets no stranger in",
                command="relayd status   # on the relay's host",
            )
        case "silent":
            yield Finding(
                "relay",
                "error",
                f"{peer} accepts TCP and gives no frame back",
                meaning="not a relay; or it hangs, or something between swallows what is sent",
                command=f"relayd status   # on the relay's host; is {relay.address} the right port?",
            )


def _welcomed(asked: Reach) -> Finding:
    assert asked.key is not None
    peer, key = asked.peer, asked.key.short()
    match asked.trust:
        case Trust.PINNED:
            return Finding("relay", "ok", f"{peer} has proved the pinned key {key}, and lets us in")
        case Trust.CHANGED:
            assert asked.previous is not None
            return Finding(
                "relay",
                "warning",
                f"{peer} has proved key {key}, and the relay there had {asked.previous.short()} before",
                meaning=f"{SOMEBODY_ELSE}: the agent goes on, and warns; a pinned key leaves no doubt",
                command=SHOW_JOIN,
            )
        case Trust.REMEMBERED:
            return Finding("relay", "ok", f"{peer} has proved key {key}, as before, and lets us in")
    return Finding(
        "relay",
        "ok",
        f"{peer} has proved key {key}, and lets us in; none is pinned",
        meaning="the agent trusts the first key that it sees: a join string with key= leaves no doubt",
    )


def _refused(relay: RelayFacts, asked: Reach) -> Finding:
    peer, words = asked.peer, asked.words
    if words in (NO_TOKEN, WRONG_TOKEN, TLS_ONLY):
        meaning = "it lets no agent in with this join string"
        return Finding("relay", "error", f"{peer} says: {words}", meaning=meaning, command=SHOW_JOIN)
    shown = (
        f" and shows the pinned key {asked.key.short()}," if asked.key is not None and relay.pinned else ","
    )
    return Finding(
        "relay",
        "ok",
        f"{peer} is a relay{shown} and lets no stranger in: {words}",
        meaning="asked with a throwaway key; the agent's own may well be known there",
    )
