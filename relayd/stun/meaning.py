"""What a NAT's kind means for direct paths, in words. Pure."""

from __future__ import annotations

from relayd.agent.discovery.stun_look import Look
from relayd.paths.nat_class import Mapping, NatType, Verdict

_MEANS = {
    NatType.OPEN: "Nothing translates. Every peer whose UDP gets out reaches this host directly.",
    NatType.CONE: "Direct paths to every peer whose UDP gets out, those behind symmetric NATs too.",
    NatType.PORT_RESTRICTED_CONE: "Direct paths to every peer but those behind symmetric NATs; to those by "
    "guessing ports, where theirs can be guessed, and through the relay else.",
    NatType.SYMMETRIC: "Direct paths to peers that are open or behind a cone NAT. Others are reached through "
    "the relay, unless ports can be guessed.",
}


def meaning(look: Look) -> str:
    """In a sentence or two."""
    verdict = look.verdict
    if not any(asked.mapped is not None for asked in look.asked):
        return (
            "No server answered: UDP doesn't get out here, or none of them is there. Until one answers, "
            "peers are reached through the relay, and on the same network."
        )
    if verdict.nat is NatType.UNKNOWN:
        return (
            "One server at one port can't tell what kind of NAT this is: name a second one, or a relay, "
            "which answers at two ports."
        )
    text = _MEANS[verdict.nat]
    if verdict.nat is NatType.PORT_RESTRICTED_CONE and not verdict.translated:
        text = "Nothing translates, but a firewall lets only answers in. " + text
    if verdict.prediction is not None:
        text += " This one's ports follow each other, so they can."
    return text


def mapping_words(verdict: Verdict) -> str:
    """How the NAT maps, and how sure that is."""
    words = verdict.mapping.value
    if verdict.mapping is Mapping.INDEPENDENT and verdict.one_server:
        words += ", as far as one address can tell"
    if not verdict.translated and verdict.mapped is not None:
        words = "none, the address is this host's own"
    elif verdict.keeps_port:
        words += ", keeps the port"
    if verdict.prediction is not None:
        words += f", ports {verdict.prediction.step:+d}"
    return words


def lifetime_words(look: Look) -> str:
    """How long a mapping lives without traffic."""
    if look.lifetime is None:
        return "unknown: no server that answered can send to another port"
    if look.lifetime.dead_s is None:
        return f"{look.lifetime.alive_s:g} s and longer"
    return f"{look.lifetime.alive_s:g} s, less than {look.lifetime.dead_s:g} s"
