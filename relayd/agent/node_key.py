"""The key of an interface that relayd makes: in the state directory, unless the configuration names another
file.
"""

from __future__ import annotations

import secrets

import msgspec

from relayd.config import AgentConfig
from relayd.keys import KEY_BYTES, PrivateKey
from relayd.secret_file import read_or_make


def with_key(config: AgentConfig) -> AgentConfig:
    """`config` with its interface's key, which is made at the first start of all.

    Of two agents that start at once one makes it, and both have the same. Raises ConfigError for a file that
    holds no key (it is never written to), HostError when it can't be read or made.
    """
    owned = config.owned
    if owned is None or owned.private_key is not None:
        return config
    key = read_or_make(owned.private_key_file, make=_new_key, parse=_parse_key)
    return msgspec.structs.replace(config, owned=msgspec.structs.replace(owned, private_key=key))


def _new_key() -> str:
    """As `wg genkey` makes one: clamped (RFC 7748, section 5)."""
    raw = bytearray(secrets.token_bytes(KEY_BYTES))
    raw[0] &= 248
    raw[31] = raw[31] & 127 | 64
    return PrivateKey(bytes(raw)).to_base64()


def _parse_key(text: str) -> PrivateKey:
    try:
        key = PrivateKey.from_base64(text)
    except ValueError as error:
        raise ValueError(f"holds no WireGuard key: {error}") from None
    if not any(key.raw):
        raise ValueError("holds no WireGuard key: all zeros")
    return key
