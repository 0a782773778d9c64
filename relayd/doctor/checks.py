"""From what was seen of a host to what it means: each check is a function from facts to findings. Pure.

A host that no agent has been started on yet lacks all that the agent sets up, and that is no fault: such
findings are `ok` until something of ours is there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from relayd.doctor import firewall_checks, host_checks, relay_checks
from relayd.doctor.facts import HostFacts
from relayd.doctor.finding import Finding

Check = Callable[[HostFacts], Iterator[Finding]]

CHECKS: tuple[Check, ...] = (
    host_checks.capabilities,
    host_checks.wireguard,
    host_checks.ports,
    host_checks.buffers,
    host_checks.reverse_path,
    firewall_checks.policy,
    firewall_checks.mark_users,
    firewall_checks.kubernetes,
    relay_checks.routes,
    relay_checks.reach,
    host_checks.state,
    host_checks.leftovers,
    host_checks.clock,
)


def judge(facts: HostFacts) -> list[Finding]:
    """All findings, in the order in which a person would look."""
    return [finding for check in CHECKS for finding in check(facts)]
