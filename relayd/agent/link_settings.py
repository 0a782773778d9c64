"""What a link to a relay is told by the configuration: how patient it is, and how much it keeps."""

from __future__ import annotations

from dataclasses import dataclass

from relayd.agent.link_state import PROBE_S
from relayd.config import AgentConfig
from relayd.netio.outbox import MAX_AGE_S, MAX_BYTES


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkSettings:
    """Durations in seconds, sizes in bytes; `AgentConfig` says what they are for."""

    dial_timeout_s: float = 10.0
    keepalive_s: float = 25.0
    probe_s: float = PROBE_S
    queue_bytes: int = MAX_BYTES
    queue_age_s: float = MAX_AGE_S
    insecure: bool = False
    """Whether a relay need not prove who it is. Where its key is pinned, it must all the same."""

    @classmethod
    def of(cls, config: AgentConfig) -> LinkSettings:
        """What `config` says about links."""
        return cls(
            dial_timeout_s=config.dial_timeout_s,
            keepalive_s=config.keepalive_s,
            probe_s=config.echo_s,
            queue_bytes=config.queue_bytes,
            queue_age_s=config.queue_age_ms / 1e3,
            insecure=config.insecure_relay,
        )
