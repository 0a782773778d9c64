"""Which connections live: who has said nothing is asked, and who doesn't answer is gone. Pure.

    silent for ASK_AFTER_S              asked (Ping), if it knows how to answer
    silent for BUSY_S, bytes to ack     dead: its host takes nothing
    silent for IDLE_S                   dead
    one that can't be asked             dead after the silence that the configuration allows

A half-open connection is found in 10 s when there is something to send, and in 12 s when there isn't, half a
second of the look's own interval included; the promise is 10 and 15. Five seconds for an answer are three
retransmissions.
"""

from __future__ import annotations

from enum import Enum

ASK_AFTER_S = 5.5
BUSY_S = 9.0
IDLE_S = 11.0


class Judgement(Enum):
    """What to do about a connection."""

    LIVES = "lives"
    ASK = "ask"
    """Send it a Ping."""

    DEAD = "dead"
    ASK_KERNEL = "ask the kernel"
    """Dead if bytes to it are unacknowledged."""


def judge(*, silent_s: float, asked: bool, answers: bool, silence_s: float) -> Judgement:
    """About one that has been silent for `silent_s`. `asked`: since it was heard last; `answers`: it knows
    Ping; `silence_s`: how long the others may be silent."""
    if silent_s >= silence_s:
        return Judgement.DEAD
    if not answers or silent_s < ASK_AFTER_S:
        return Judgement.LIVES
    if not asked:
        return Judgement.ASK
    if silent_s >= IDLE_S:
        return Judgement.DEAD
    return Judgement.ASK_KERNEL if silent_s >= BUSY_S else Judgement.LIVES
