"""The way to the relay: not through the tunnel, and a relay at its end. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from relayd import marks
from relayd.doctor.facts import HostFacts, Reach, RelayFacts
from relayd.doctor.finding import Finding
from relayd.doctor.ours import ip
from relayd.kernel.host_rules import loop, mark_rule

MARK = f"{marks.FWMARK:#x}"


def routes(facts: HostFacts) -> Iterator[Finding]:
    """The proof: asked with the mark, the kernel sends the relay's packets past the tunnel."""
    relay = facts.relay
    if relay is None:
        yield Finding(
            "route",
            "ok",
            "not looked at: no relay is named",
            meaning="--relay HOST:PORT, or the agent's configuration by --config",
        )
        return
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
    """What came of connecting, with the mark and without, and of one frame to oneself."""
    relay = facts.relay
    if relay is None or relay.unmarked is None:
        return
    with_mark, without = relay.marked, relay.unmarked
    if with_mark is None:
        yield Finding(
            "relay",
            "warning",
            "not tried with the mark: this process may not mark",
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
    yield from _echo(relay, asked)


def _echo(relay: RelayFacts, asked: Reach) -> Iterator[Finding]:
    if asked.echo == "returned":
        yield Finding("relay", "ok", f"{asked.peer} is a relay: a frame to ourselves came back")
    elif asked.echo == "challenged":
        yield Finding("relay", "ok", f"{asked.peer} is a relay: it asks for a proof of our key")
    elif asked.echo == "refused":
        yield Finding(
            "relay",
            "ok",
            f"{asked.peer} is a relay, and lets no stranger in: {asked.words}",
            meaning="asked with a throwaway key; the agent's own key or token may well be known there",
        )
    elif asked.echo == "closed":
        yield Finding(
            "relay",
            "warning",
            f"{asked.peer} closed the connection as soon as a key was registered",
            meaning="not a relay, or one that is full or lets no stranger in",
            command="relayd status   # on the relay's host",
        )
    elif asked.echo == "silent":
        yield Finding(
            "relay",
            "error",
            f"{asked.peer} accepts TCP and gives no frame back",
            meaning="not a relay; or it hangs, or something between swallows what is sent",
            command=f"relayd status   # on the relay's host; is {relay.address} the right port?",
        )


def _host(relay: RelayFacts) -> str:
    return relay.address.rpartition(":")[0].strip("[]")
