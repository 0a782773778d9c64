"""What decides over marked packets: policy rules, the firewall's rules, Kubernetes' chains. Pure."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass

from relayd import marks
from relayd.doctor import mark_users as users
from relayd.doctor.facts import FirewallDump, HostFacts
from relayd.doctor.finding import Finding
from relayd.doctor.ours import ip, is_set_up, local_priority
from relayd.kernel.firewall import KUBE_PROXY, KUBELET, Chain
from relayd.kernel.host_rules import is_mark_rule, is_table_rule, mark_rule
from relayd.kernel.routing import RoutingState, Rule

MARK = f"{marks.FWMARK:#x}"

# --- our own policy rules ---


def policy(facts: HostFacts) -> Iterator[Finding]:
    """The rule for marked packets and the one for our table: in this order, after the local table's."""
    if facts.routing_problem:
        yield Finding(
            "rules",
            "warning",
            f"can't be read: {facts.routing_problem}",
            meaning="whether marked packets stay out of the tunnel is not known",
            command="ip rule; ip -6 rule",
        )
        return
    faults = [fault for version in facts.routing.versions for fault in _faults(facts.routing, version)]
    yield from faults
    mine = [rule for rule in facts.routing.rules if is_mark_rule(rule)]
    if faults:
        return
    if mine:
        places = ", ".join(f"IPv{rule.version} at {rule.priority}" for rule in mine)
        yield Finding("rules", "ok", f"marked packets go by the main table: {places}")
    else:
        yield Finding(
            "rules", "ok", "none of ours yet; an agent that owns its interface makes them as it starts"
        )


def _faults(routing: RoutingState, version: int) -> Iterator[Finding]:
    rules = [rule for rule in routing.rules if rule.version == version]
    for_mark = [rule for rule in rules if is_mark_rule(rule)]
    for_table = [rule for rule in rules if is_table_rule(rule)]
    local, wanted = local_priority(rules, version), mark_rule(routing, version)
    add = f"{ip(version)} rule add priority {wanted.priority} {_selector(wanted)}"
    if for_table and min((rule.priority for rule in for_mark), default=1 << 32) > for_table[0].priority:
        yield Finding(
            "rules",
            "error",
            f"IPv{version}: table {marks.TABLE} is asked at {for_table[0].priority}, and no rule before it "
            "sends marked packets to main",
            meaning="the tunnel's own packets can go into the tunnel, again and again",
            command=add,
        )
    early = [rule for rule in for_mark if rule.priority <= local]
    if early:
        yield Finding(
            "rules",
            "error",
            f"IPv{version}: the rule for marked packets (at {early[0].priority}) comes before the local "
            f"table's (at {local})",
            meaning="WireGuard's packets to the agent on lo leave by the default route instead",
            command=f"{add}\n{ip(version)} rule del priority {early[0].priority} {_selector(wanted)}",
        )
    for what, found in (("for marked packets", for_mark), (f"to table {marks.TABLE}", for_table)):
        if len(found) > 1 and not early:
            yield Finding(
                "rules",
                "warning",
                f"IPv{version}: {len(found)} rules {what}",
                meaning="one is enough; while there are more, removing one changes nothing",
                command="\n".join(
                    f"{ip(version)} rule del priority {rule.priority} {_selector(rule)}" for rule in found[1:]
                ),
            )


def _selector(rule: Rule) -> str:
    return f"fwmark {MARK} lookup main" if is_mark_rule(rule) else f"lookup {rule.table}"


# --- others' rules about marks ---


def mark_users(facts: HostFacts) -> Iterator[Finding]:
    """Rules of others that look at bits of our mark: first those that take our packets for theirs."""
    harmless: list[users.MarkUser] = []
    for rule in facts.routing.rules:
        user = None if is_mark_rule(rule) else users.of_policy(rule)
        if user is None:
            continue
        if user.collides and not _comes_after_ours(rule, facts.routing):
            yield _collision_of_policy(rule, user)
        else:
            harmless.append(user)
    for dump in facts.firewalls:
        spared = _spares_marked(dump)
        kube_proxys = f"{dump.program} {KUBE_PROXY.table} {KUBE_PROXY.keeps_from}"
        exempt = any(
            chain.exemption == KUBE_PROXY and chain.program == dump.program for chain in facts.kube_chains
        )
        for user in users.of_firewall(dump):
            if exempt and user.place == kube_proxys:
                continue  # a finding of its own
            if user.collides and not (spared and _is_nat(user)):
                yield _collision_in_firewall(dump, user)
            else:
                harmless.append(user)
    for unread in facts.unread_firewalls:
        yield Finding(
            "marks",
            "warning",
            f"{unread.program} does not tell its rules: {unread.reason}",
            meaning="who else uses the mark there is not known",
            command=f"sudo {unread.program} list ruleset" if unread.program == "nft"
            else f"sudo {unread.program}-save",
        )  # fmt: skip
    if harmless:
        yield Finding(
            "marks",
            "ok",
            f"{len(harmless)} more rule{'' if len(harmless) == 1 else 's'} of others look at bits of {MARK}, "
            "and leave our packets alone",
            meaning="\n".join(_told(user) for user in harmless),
        )
    else:
        yield Finding("marks", "ok", f"no other rule looks at bits of {MARK}")


def _comes_after_ours(rule: Rule, routing: RoutingState) -> bool:
    """Whether marked packets have gone to main before they meet `rule`."""
    own = [one.priority for one in routing.rules if one.version == rule.version and is_mark_rule(one)]
    return rule.priority > min(own, default=mark_rule(routing, rule.version).priority)


def _told(user: users.MarkUser) -> str:
    bits = f"{user.value:#x}/{user.mask:#x}"
    owner = f" ({user.owner})" if user.owner else ""
    return f"{bits} in {user.place}{owner}: {user.text}"


def _collision_of_policy(rule: Rule, user: users.MarkUser) -> Finding:
    return Finding(
        "marks",
        "warning",
        f"{user.place}: {user.text}",
        meaning=_mistaken(user),
        command=f"{ip(rule.version)} rule del priority {rule.priority}   # if nobody needs it; else have its "
        f"owner use bits that {MARK} has not",
    )


def _is_nat(user: users.MarkUser) -> bool:
    return " nat " in user.place or " kube-proxy " in user.place


def _mistaken(user: users.MarkUser) -> str:
    same = marks.FWMARK & user.mask
    return f"{MARK} & {user.mask:#x} is {same:#x}: the rule takes our packets for marked by its owner"


def _collision_in_firewall(dump: FirewallDump, user: users.MarkUser) -> Finding:
    owner = f" ({user.owner})" if user.owner else ""
    if user.kind == "set":
        meaning = f"bits of {MARK} change before the packet is routed: it may go into the tunnel"
    elif _is_nat(user):
        meaning = (
            f"{_mistaken(user)}. Relayed datagrams on lo get another source port, which the agent refuses; "
            "direct tunnels leave by another port than peers know"
        )
    else:
        meaning = _mistaken(user)
    return Finding(
        "marks",
        "warning",
        f"{user.place}{owner}: {user.text}",
        meaning=meaning,
        command=_way_round(dump, user),
    )


def _way_round(dump: FirewallDump, user: users.MarkUser) -> str:
    if dump.program == "nft":
        _, family, table, chain = user.place.split(" ", 3)
        return f"nft insert rule {family} {table} {chain} meta mark {MARK} return"
    if user.kind == "test":
        table, chain = user.place.split(" ")[1:]
        if _is_nat(user):
            return f"{dump.program} -t nat -I POSTROUTING 1 -m mark --mark {MARK} -j ACCEPT"
        return f"{dump.program} -t {table} -I {chain} 1 -m mark --mark {MARK} -j RETURN"
    return f"{dump.program} -t mangle -I OUTPUT 1 -m mark --mark {MARK} -j RETURN"


def _spares_marked(dump: FirewallDump) -> bool:
    """Whether marked packets leave before anybody's nat rules are asked."""
    accept = re.compile(rf"-A POSTROUTING .*-m mark --mark {MARK}(/0xffffffff)? .*-j (ACCEPT|RETURN)")
    for line in dump.text.splitlines():
        if line.startswith("-A POSTROUTING ") and " -j KUBE" in line:
            return False
        if accept.match(line):
            return True
    return False


# --- kubelet's chain, and kube-proxy's ---


@dataclass(frozen=True, slots=True)
class _Words:
    """What findings say of an exemption."""

    check: str
    place: str
    right: str
    otherwise: str


_WORDS = {
    KUBELET: _Words(
        "kube-firewall",
        f"first in {marks.FIREWALL_CHAIN}",
        "once and first",
        "kubelet's rule drops what a CNI rewrote on its way to the agent on lo",
    ),
    KUBE_PROXY: _Words(
        "kube-proxy",
        f"before the jump to {marks.NAT_CHAIN}",
        "once and before it",
        f"{MARK} & 0x4000 is 0x4000: kube-proxy takes our packets for its own. Relayed datagrams on lo get "
        "another source port, which the agent refuses; direct tunnels leave by another port than peers know",
    ),
}


def kubernetes(facts: HostFacts) -> Iterator[Finding]:
    """What kubelet drops and kube-proxy rewrites: our exemptions must stand before that."""
    for exemption, words in _WORDS.items():
        chains = [chain for chain in facts.kube_chains if chain.exemption == exemption]
        if not chains:
            yield Finding(
                words.check, "ok", f"no chain {exemption.keeps_from}: nothing to make an exception in"
            )
        for chain in chains:
            yield _exemption(chain, words, set_up=is_set_up(facts))


def _exemption(chain: Chain, words: _Words, *, set_up: bool) -> Finding:
    one, program = chain.exemption, chain.program
    insert = f"{program} -t {one.table} -I {one.chain} {chain.place} {shlex.join(one.spec)}"
    delete = f"{program} -t {one.table} -D {one.chain} {shlex.join(one.spec)}"
    if chain.is_right:
        return Finding(words.check, "ok", f"{program}: the exception stands {words.place}")
    if chain.ours:
        return Finding(
            words.check,
            "warning",
            f"{program}: the exception in {one.chain} stands at {', '.join(map(str, chain.ours))} of "
            f"{chain.length} rules, not {words.right}",
            meaning="what stands before it decides first; a copy survives when one is removed",
            command="\n".join([*[delete] * len(chain.ours), insert]),
        )
    if set_up:
        return Finding(
            words.check,
            "error",
            f"{program}: the chain {one.keeps_from} has no exception for {MARK}",
            meaning=words.otherwise,
            command=insert,
        )
    return Finding(
        words.check,
        "ok",
        f"{program} has a chain {one.keeps_from}; the agent puts its exception in front as it starts",
    )
