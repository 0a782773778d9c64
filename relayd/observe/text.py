"""Values as text that is safe to show: in logs, in answers on the control socket, on a terminal."""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from ipaddress import (
    IPv4Address,
    IPv4Interface,
    IPv4Network,
    IPv6Address,
    IPv6Interface,
    IPv6Network,
)
from pathlib import PurePath

from relayd.endpoints import Endpoint
from relayd.keys import PrivateKey, PublicKey

HIDDEN = "<hidden>"
SECRET_NAMES = frozenset({"private_key", "preshared_key", "psk", "token", "secret", "password"})
"""Facts by these names are hidden whatever their type: a raw key may pass as bytes or as base64 text."""

_AS_STR = (
    PublicKey,
    Endpoint,
    IPv4Address,
    IPv6Address,
    IPv4Network,
    IPv6Network,
    IPv4Interface,
    IPv6Interface,
    PurePath,
)


def printable(text: str) -> str:
    """`text` with control characters escaped: strangers' words must not move an operator's cursor."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def plain(value: object) -> object:
    """`value` made of str, int, float, bool, None, lists and dicts only. Secrets come out as `<hidden>`."""
    if isinstance(value, str) and not isinstance(value, Enum):
        return printable(value)
    if value is None or type(value) in (bool, int, float):
        return value
    if isinstance(value, PrivateKey):
        return HIDDEN
    if isinstance(value, _AS_STR):
        return str(value)
    if isinstance(value, Enum):
        return plain(value.value)
    if isinstance(value, Mapping):
        return {str(plain(key)): named(str(plain(key)), inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [plain(inner) for inner in value]
    if isinstance(value, (bytes, bytearray, memoryview)):
        return bytes(value).hex()
    if isinstance(value, BaseException):
        return printable(f"{type(value).__name__}: {value}" if str(value) else type(value).__name__)
    return printable(str(value))


def named(name: str, value: object) -> object:
    """`plain(value)`, unless `name` says that it is a secret. A number is none: it counts something."""
    secret = name in SECRET_NAMES and value is not None and not isinstance(value, int | float)
    return HIDDEN if secret else plain(value)
