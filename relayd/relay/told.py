"""What each part of a relay is told by the configuration, at the start and by each reload. Pure."""

from __future__ import annotations

from typing import Any

from relayd.config import RelayConfig
from relayd.relay.bounds import Bounds
from relayd.relay.rates import KeyRates

KEEPALIVES_IN_SILENCE = 3
"""Two of them may be lost on the way before a connection counts as silent."""

MIN_KEEPALIVE_S = 1.0
"""What a Welcome can ask for at the least."""


def bounds_of(config: RelayConfig, *, available_bytes: int) -> Bounds:
    """What connections may take up on a host with so much memory: half of it at the most."""
    return Bounds(
        round_bytes=config.round_bytes,
        queue_bytes=config.queue_bytes,
        queue_age_s=config.queue_age_ms / 1000,
        memory_bytes=min(config.memory_bytes, available_bytes // 2),
        rates=KeyRates(config.rate_bytes_s, config.rate_frames_s),
        stalled_s=config.stalled_s,
    )


def greeting_of(config: RelayConfig) -> dict[str, Any]:
    """What of a Greeter is `config`'s to say."""
    return {
        "proof_required": config.auth == "required",
        "timeout_s": config.register_timeout_s,
        "keepalive_s": max(MIN_KEEPALIVE_S, config.silence_s / KEEPALIVES_IN_SILENCE),
    }


def gate_of(config: RelayConfig) -> tuple[object, ...]:
    """What decides where it stands who is let in."""
    return config.open, config.token_file, config.allow_list


def tls_of(config: RelayConfig) -> tuple[object, ...]:
    """What decides which certificate there is, and for whom."""
    return config.tls_cert, config.tls_key, config.tls_self_signed, config.tls_only
