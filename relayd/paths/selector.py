"""Relay or direct: one peer's path, and every reason to change it.

    not ours --> RELAY <--> PROBING --> DIRECT --> RELAY
                    `--------------------^ '--> DIRECT (another endpoint)

Not ours is a peer that doesn't speak with us, or that can't be pinged from and at WireGuard's port: its
endpoint is its own (`agent.reconcile` has the rules of plain WireGuard). All else is the table RULES below,
in order; the first rule that holds is the change. Evidence comes from `pathfinder`, which also sends what is
asked for here.

What is taken for evidence of a direct path is an answer to a Ping on that very pair, and the kernel's receive
counter less what the relay brought. What comes by the relay says nothing of it.

One end leads (the holder of the greater key): it alone promotes of its own accord, and so one pair is
chosen and not two. The other follows: its word PathChanged, or its packets. Both may demote, and say so,
because a path that is dead one way is dead."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from math import inf

from relayd.endpoints import Endpoint
from relayd.paths.damping import Damping
from relayd.paths.evidence import Evidence
from relayd.paths.patience import USUAL

SILENT_S = USUAL.silent_s
"""Without an answer to any Ping, while something is sent; a mesh may have another."""

ASKED_S = 2.0
"""... and so long after the first that stayed unanswered, at the tempo of `keepalive.FAST_S`; with another
silence as much of it."""

HURRIED_S = 1.0
"""Likewise after an address changed: then it is the likely outcome."""

MIN_UNANSWERED = 4
"""Pings in a row: a machine that stood still for seconds must not take it for the path's silence."""

SWITCH_AT_SILENCE_S = 0.6
"""Without an answer on the present pair, while another one is valid."""

SETTLE_S = 0.3
"""A valid pair waits for one of higher priority that is still being checked: a LAN is found a round trip
later than the way over the NAT, or sooner."""

GRACE_S = 1.5
"""The kernel roamed to a direct endpoint of its own accord: so long it may stay there without an answer."""

CROSSED_S = 0.6
"""The peer's word of another path than ours may have crossed our own word of it: so soon after our own change
it isn't followed. Two ways of 300 ms: then it has taken it back, or says it again."""

FORGOTTEN_S = 10.0
"""After so long a peer that still is direct by its last word, from before our demotion, was never reached by
ours: a pair that works again is taken as it says."""

LATE_S = 2.0
"""After a demotion the peer's direct packets still come for a moment; they move nothing."""

HISTORY = 50
"""Changes remembered, for `relayd status PEER --why`."""


class State(Enum):
    """The way that the peer's packets go, and whether a better one is being looked for."""

    RELAY = "relay"
    PROBING = "probing"
    DIRECT = "direct"


@dataclass(frozen=True, slots=True)
class Change:
    """One entry of the history."""

    at: float
    state: State
    endpoint: Endpoint | None
    reason: str


class Selector:
    """One peer's state. `step` is all that changes it."""

    def __init__(self, now: float) -> None:
        self.silent_s = SILENT_S
        """As `Patience` has it."""
        self.ours = False
        """Whether the state is a decision; if not, the endpoint is the kernel's, the peer's, and
        WireGuard's."""
        self.state = State.RELAY
        self.endpoint: Endpoint | None = None
        """With DIRECT."""
        self.reason = "the peer's agent hasn't been heard of"
        self.since = now
        self.path_since = now
        """When the packets began to go the way that they go: looking for a better one changes nothing of
        it."""
        self.relayed_because = self.reason
        """Why the relay is the path, or was last: probing is no reason."""
        self.damping = Damping()
        self.history: deque[Change] = deque(maxlen=HISTORY)
        self.changes = 0
        """Between relay and direct; probing isn't one."""
        self.strayed_at = inf
        """Since when the kernel holds a direct endpoint that isn't ours to have; inf: it doesn't."""
        self.direct_since = -inf
        """When the present or last direct state began, on whatever endpoint."""
        self.demoted_at = -inf

    def step(self, e: Evidence) -> Change | None:
        """Apply the first rule that holds. The change, if that was one."""
        if e.kernel is None or self.state is State.DIRECT:
            self.strayed_at = inf
        elif self.strayed_at == inf:
            self.strayed_at = e.now
        for rule in RULES:
            if rule.ours is self.ours and self.state in rule.states:
                outcome = rule.holds(self, e)
                if outcome is not None:
                    return self._change(rule, outcome, e)
        return None

    def tolerates(self, e: Evidence) -> bool:
        """On the relay: whether the kernel may keep the direct endpoint that it roamed to, for now."""
        return e.now - self.demoted_at > LATE_S and e.now - self.strayed_at < GRACE_S

    def silent(self, e: Evidence, for_s: float, asked_for_s: float) -> bool:
        """Whether the present direct pair has answered nothing for so long, of what it was asked
        meanwhile."""
        last = max(e.answered_at, self.since if self.state is State.DIRECT else -inf)
        asked_s = e.now - e.unanswered_since
        return e.unanswered >= MIN_UNANSWERED and e.now - last >= for_s and asked_s >= asked_for_s

    def _change(self, rule: Rule, outcome: Outcome, e: Evidence) -> Change:
        was_direct = self.ours and self.state is State.DIRECT
        is_direct = rule.ours_then and rule.to is State.DIRECT
        if is_direct and not was_direct:
            self.direct_since = e.now
        if is_direct is not was_direct:
            self.path_since = e.now
        if was_direct and rule.failure and not e.hurried:
            self.damping.failed(e.now - self.direct_since, e.now)
        if was_direct and not is_direct:
            self.demoted_at = e.now
        if was_direct is not is_direct and rule.counts:
            self.changes += 1
        self.ours, self.state = rule.ours_then, rule.to
        self.endpoint = outcome.endpoint
        self.reason, self.since = outcome.reason, e.now
        if self.state is State.RELAY:
            self.relayed_because = outcome.reason
        change = Change(e.now, self.state, self.endpoint, self.reason)
        self._remember(change)
        return change

    def _remember(self, change: Change) -> None:
        """Checks that end as the last ones did are no news."""
        history = self.history
        if len(history) > 1 and history[-1].state is State.PROBING:
            before = history[-2]
            if (before.state, before.reason) == (change.state, change.reason):
                history.pop()
                return
        history.append(change)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a rule that holds says."""

    reason: str
    endpoint: Endpoint | None = None


# Each of these is one reason. They see the selector as it is, and return None when they don't hold.

Holds = Callable[[Selector, Evidence], Outcome | None]


def _stranger(s: Selector, e: Evidence) -> Outcome | None:
    if not e.able:
        return Outcome("one end can't be pinged at WireGuard's port: its endpoint is left alone", e.kernel)
    # While there is a session, a direct path may outlive the agents at both ends.
    if not e.talks and (s.state is not State.DIRECT or not e.session):
        return Outcome("the peer's agent doesn't answer: its endpoint is left alone", e.kernel)
    return None


def _begins_on_relay(s: Selector, e: Evidence) -> Outcome | None:
    if e.able and e.talks and e.kernel is None:
        return Outcome("no direct endpoint answered yet")
    return None


def _begins_direct(s: Selector, e: Evidence) -> Outcome | None:
    if e.able and e.talks and e.kernel is not None and e.kernel_answered:
        return Outcome("WireGuard's endpoint answers Pings", e.kernel)
    return None


def _begins_dead(s: Selector, e: Evidence) -> Outcome | None:
    if not (e.able and e.talks and e.kernel is not None) or e.now - e.relay_answered_at > SILENT_S:
        return None
    # Where there is no session nothing can be lost, and WireGuard tries every 5 s only.
    if not e.session and (e.kernel_failed or e.kernel_unanswered):
        return Outcome(f"{e.kernel} has no session and answers no Ping; the relay does")
    if e.kernel_failed and e.sent_at > e.heard_at and e.now - e.heard_at > SILENT_S:
        return Outcome(f"nothing received from {e.kernel}, and it answers no Ping; the relay does")
    return None


def _roamed(s: Selector, e: Evidence) -> Outcome | None:
    if e.kernel is None or e.now - s.demoted_at <= LATE_S:
        return None
    if any(pair.remote == e.kernel for pair in e.valid):
        return Outcome("the peer's packets come from there, and a full-size Ping was answered", e.kernel)
    return None


def _called(s: Selector, e: Evidence) -> Outcome | None:
    word = e.word
    if word is None or not word.direct:
        return None
    since_s = e.now - s.demoted_at
    if since_s < (CROSSED_S if word.at > s.demoted_at else FORGOTTEN_S):
        return None
    if word.at <= s.demoted_at and e.now < s.damping.until:
        return None
    if any(pair.remote == word.remote for pair in e.valid):
        return Outcome("the peer went there, and a full-size Ping was answered", word.remote)
    return None


def _promoted(s: Selector, e: Evidence) -> Outcome | None:
    if not e.leads or e.now < s.damping.until or not e.valid:
        return None
    best = e.valid[0]
    if best.may_get_better and e.now - best.valid_at < SETTLE_S:
        return None
    return Outcome("a full-size Ping was answered", best.remote)


def _checking(s: Selector, e: Evidence) -> Outcome | None:
    return Outcome("checking the peer's addresses") if e.checking else None


def _gave_up(s: Selector, e: Evidence) -> Outcome | None:
    if e.checking or (e.valid and (e.leads or e.now < s.damping.until)):
        return None
    if e.valid:
        return Outcome("a direct pair is valid; the peer leads")
    return Outcome(e.why_not or "no address of the peer answered")


def _damped(s: Selector, e: Evidence) -> Outcome | None:
    if e.checking or not e.valid or e.now >= s.damping.until:
        return None
    return Outcome(f"a direct pair is valid, but failed {s.damping.failures} times of late: waiting")


def _told_relay(s: Selector, e: Evidence) -> Outcome | None:
    word = e.word
    if word is not None and not word.direct and word.at - s.since > CROSSED_S:
        return Outcome("the peer went to the relay: it hears nothing from us")
    return None


def _strayed(s: Selector, e: Evidence) -> Outcome | None:
    if e.kernel is not None and e.kernel != s.endpoint:
        return Outcome("the peer's packets come from there now", e.kernel)
    return None


def _followed(s: Selector, e: Evidence) -> Outcome | None:
    word = e.word
    if word is None or not word.direct or word.remote in (None, s.endpoint) or word.at <= s.since:
        return None
    if any(pair.remote == word.remote for pair in e.valid):
        return Outcome("the peer went there, and a full-size Ping was answered", word.remote)
    return None


def _switched(s: Selector, e: Evidence) -> Outcome | None:
    if not e.leads or not s.silent(e, SWITCH_AT_SILENCE_S, SWITCH_AT_SILENCE_S):
        return None
    for pair in e.valid:
        if pair.remote != s.endpoint and pair.valid_at > e.unanswered_since:
            return Outcome(f"{s.endpoint} doesn't answer any more, this does", pair.remote)
    return None


def _unheard(s: Selector, e: Evidence, for_s: float) -> bool:
    """Whether the kernel sent something, heard nothing directly, and the relay could do better."""
    return (
        e.sent_at > e.heard_at
        and e.now - e.sent_at <= SILENT_S
        and e.now - max(e.heard_at, s.since) >= for_s
        and e.relay_answered_at > e.unanswered_since
    )


def _died(s: Selector, e: Evidence) -> Outcome | None:
    asked_s = ASKED_S * s.silent_s / SILENT_S
    if not e.hurried and s.silent(e, s.silent_s, asked_s) and _unheard(s, e, asked_s):
        return Outcome(
            f"no answer and nothing received from {s.endpoint} for {s.silent_s:g} s; the relay answers"
        )
    return None


def _moved_away(s: Selector, e: Evidence) -> Outcome | None:
    if e.hurried and s.silent(e, HURRIED_S, HURRIED_S / 2) and _unheard(s, e, HURRIED_S / 2):
        return Outcome(f"an address changed, and {s.endpoint} doesn't answer any more; the relay does")
    return None


@dataclass(frozen=True, slots=True)
class Rule:
    """One line of the table."""

    ours: bool
    states: frozenset[State]
    holds: Holds
    to: State
    ours_then: bool = True
    failure: bool = False
    """Whether the direct path is to blame, and damped."""
    counts: bool = True
    """Whether it is a change of path; finding out what there is isn't."""


_ANY = frozenset(State)
_ON_RELAY = frozenset((State.RELAY, State.PROBING))
_RELAY, _PROBING, _DIRECT = (frozenset((state,)) for state in State)

RULES: tuple[Rule, ...] = (
    # whose      in what state  reason            then
    Rule(False, _ANY, _begins_on_relay, State.RELAY, counts=False),
    Rule(False, _ANY, _begins_direct, State.DIRECT, counts=False),
    Rule(False, _ANY, _begins_dead, State.RELAY),
    Rule(True, _DIRECT, _stranger, State.DIRECT, ours_then=False, counts=False),
    Rule(True, _ON_RELAY, _stranger, State.RELAY, ours_then=False, counts=False),
    Rule(True, _ON_RELAY, _roamed, State.DIRECT),
    Rule(True, _ON_RELAY, _called, State.DIRECT),
    Rule(True, _ON_RELAY, _promoted, State.DIRECT),
    Rule(True, _RELAY, _checking, State.PROBING),
    Rule(True, _PROBING, _damped, State.RELAY),
    Rule(True, _PROBING, _gave_up, State.RELAY),
    Rule(True, _DIRECT, _told_relay, State.RELAY, failure=True),
    Rule(True, _DIRECT, _strayed, State.DIRECT),
    Rule(True, _DIRECT, _followed, State.DIRECT),
    Rule(True, _DIRECT, _switched, State.DIRECT),
    Rule(True, _DIRECT, _moved_away, State.RELAY),
    Rule(True, _DIRECT, _died, State.RELAY, failure=True),
)
