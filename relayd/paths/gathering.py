"""Evidence for the selector, put together from all that is known of a peer's paths at one moment."""

from __future__ import annotations

from math import inf

from relayd.endpoints import Endpoint
from relayd.paths.acquaintance import Acquaintance
from relayd.paths.checklist import ANSWER_S, Checklist
from relayd.paths.counters import Counters
from relayd.paths.evidence import Evidence, PeerWord, ValidPair
from relayd.paths.keepalive import Beat


def gather(
    *,
    now: float,
    able: bool,
    leads: bool,
    kernel: Endpoint | None,
    session: bool,
    hurried: bool,
    word: PeerWord | None,
    demoted_at: float,
    agent: Acquaintance,
    checklist: Checklist,
    beat: Beat,
    counters: Counters,
) -> Evidence:
    """What is known `now` (monotonic seconds). `kernel`: WireGuard's direct endpoint; `demoted_at`: when the
    last direct path was left. What was valid before that is what failed."""
    pair = checklist.pairs.get(kernel) if kernel is not None else None
    valid = [one for one in checklist.valid(now) if one.valid_at > demoted_at]
    return Evidence(
        now=now,
        able=able,
        talks=agent.talks(now),
        leads=leads,
        relay_answered_at=agent.answered_at if agent.connected else -inf,
        checking=checklist.checking,
        valid=tuple(
            ValidPair(one.remote, one.valid_at, one.priority, checklist.may_get_better(one)) for one in valid
        ),
        why_not="" if valid else checklist.why_not(),
        kernel=kernel,
        kernel_answered=pair is not None and now - pair.answered_at <= ANSWER_S,
        kernel_failed=pair is not None and pair.has_failed,
        kernel_unanswered=pair is not None and pair.is_unanswered,
        session=session,
        answered_at=beat.answered_at,
        unanswered=beat.unanswered,
        unanswered_since=beat.unanswered_since,
        sent_at=counters.sent_at,
        heard_at=counters.heard_at,
        hurried=hurried,
        word=word,
    )
