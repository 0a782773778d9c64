"""The way to each relay: not through the tunnel, and a relay at its end. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from relayd import marks
from relayd.doctor.answer_checks import answer
from relayd.doctor.facts import HostFacts, RelayFacts
from relayd.doctor.finding import Finding
from relayd.doctor.ours import ip
from relayd.kernel.host_rules import loop, mark_rule

MARK = f"{marks.FWMARK:#x}"


def routes(facts: HostFacts) -> Iterator[Finding]:
    """The proof: asked with the mark, the kernel sends the relay's packets past the tunnel."""
    if not facts.relays:
        yield Finding(
            "route",
            "ok",
            "not looked at: no relay is named",
            meaning="--relay HOST:PORT, or the agent's configuration by --config",
        )
    for relay in facts.relays:
        yield from _routes(facts, relay)


def _routes(facts: HostFacts, relay: RelayFacts) -> Iterator[Finding]:
    if relay.problem:
        yield Finding(
            "route",
            "error",
            f"{relay.address}: {relay.problem}",
            meaning="the agent can't find the relay",
            command=f"getent ahosts {_host(relay)}",
        )
    for proof in relay.proofs:
        version = proof.address.version
        show = f"{ip(version)} route get {proof.address} mark {MARK}"
        why = loop(facts.interface, facts.routing, proof.marked, version)
        by_tunnel = proof.marked is not None and proof.marked.device == facts.interface
        if why:
            rule = mark_rule(facts.routing, version)
            yield Finding(
                "route",
                "error",
                f"{proof.address} with the mark goes {why}: a loop",
                meaning="the connection that carries the tunnel would go through the tunnel",
                command=f"{ip(version)} rule add priority {rule.priority} fwmark {MARK} lookup main\n"
                f"{show}   # through {facts.interface} still: it is the main table's route",
            )
        elif proof.marked is None or by_tunnel:
            unmarked = "" if proof.unmarked is None or by_tunnel else f", without it {proof.unmarked}"
            # One family of two is often not there at all; that matters when no other is left.
            alone = all(one.marked in (None, proof.marked) for one in relay.proofs)
            yield Finding(
                "route",
                "error" if alone or unmarked else "warning",
                f"{proof.address} with the mark: the main table has no way there{unmarked}",
                meaning="the agent can't reach the relay at this address",
                command=show,
            )
        else:
            aside = "" if proof.unmarked == proof.marked else f"; without it {proof.unmarked or 'nowhere'}"
            yield Finding("route", "ok", f"{proof.address} with the mark goes {proof.marked}{aside}")


def reach(facts: HostFacts) -> Iterator[Finding]:
    """What came of connecting to each relay, with the mark and without, and of asking it."""
    for relay in facts.relays:
        yield from _reach(relay)


def _reach(relay: RelayFacts) -> Iterator[Finding]:
    if relay.unmarked is None:
        return
    with_mark, without = relay.marked, relay.unmarked
    if with_mark is None:
        yield Finding(
            "relay",
            "warning",
            f"{relay.address}: not tried with the mark: this process may not mark",
            meaning="with it packets can take another way than without",
            command="sudo relayd check",
        )
    elif with_mark.peer and not without.peer:
        yield Finding(
            "relay",
            "ok",
            f"{relay.address} answers with the mark, and doesn't without ({without.problem})",
            meaning="the agent marks; only other programs on this host can't reach it",
        )
    elif with_mark.peer:
        yield Finding("relay", "ok", f"{relay.address} accepts TCP, with the mark and without")
    elif without.peer:
        yield Finding(
            "relay",
            "error",
            f"{relay.address} accepts TCP without the mark, and not with it ({with_mark.problem})",
            meaning="a rule sends marked packets elsewhere, or drops them: see rules and marks above",
            command=f"ip rule; ip route get {without.peer.rpartition(':')[0].strip('[]')} mark {MARK}",
        )
    if not any(way is not None and way.peer for way in (with_mark, without)):
        yield Finding(
            "relay",
            "error",
            f"{relay.address} can't be reached: {(with_mark or without).problem}",
            meaning="no relay runs there, or a firewall stands between",
            command=f"nc -vz {_host(relay)} {relay.address.rpartition(':')[2]}\n"
            "systemctl status relayd   # on the relay's host",
        )
        return
    asked = with_mark if with_mark is not None and with_mark.peer else without
    yield from answer(relay, asked)


def _host(relay: RelayFacts) -> str:
    return relay.address.rpartition(":")[0].strip("[]")
