"""Which of the host's rules are ours, and whether the host is set up at all. Pure."""

from __future__ import annotations

from collections.abc import Iterable

from relayd.doctor.facts import HostFacts
from relayd.kernel.host_rules import is_mark_rule, is_table_rule
from relayd.kernel.routing import LOCAL, TO_TABLE, Rule


def our_rules(rules: Iterable[Rule]) -> list[Rule]:
    """Both kinds, both families."""
    return [rule for rule in rules if is_mark_rule(rule) or is_table_rule(rule)]


def local_priority(rules: Iterable[Rule], version: int) -> int:
    """Of the rule for local addresses, which some CNIs move to 100; 0 when there is none."""
    found = [
        rule.priority
        for rule in rules
        if rule.version == version and rule.action == TO_TABLE and rule.table == LOCAL
    ]
    return min(found, default=0)


def is_set_up(facts: HostFacts) -> bool:
    """Whether an agent has set this host up, and something of that still stands."""
    return facts.agent_runs or bool(our_rules(facts.routing.rules) or facts.routing.routes)


def owns_interface(facts: HostFacts) -> bool:
    """Whether it was set up for an interface that relayd made: another one keeps its own routes."""
    rules = (is_table_rule(rule) for rule in facts.routing.rules)
    return any(rules) or bool(facts.routing.routes)


def ip(version: int) -> str:
    """The command for this family."""
    return "ip" if version == 4 else "ip -6"
