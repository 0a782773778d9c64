"""The join string: all that an agent needs to know of a relay, in one line.

    relayd://HOST:PORT?key=KEY&token=TOKEN
    relayds://HOST:PORT?key=KEY&token=TOKEN&pin=PIN      over TLS

KEY is the relay's own public key, which the agent pins. TOKEN lets the agent in; a relay with a list of keys
or open to all has none. PIN is the SHA-256 of the certificate's SubjectPublicKeyInfo (as in RFC 7469,
section 2.4), for a certificate that nobody else vouches for. Keys and pins are written in url-safe base64
without padding; standard base64, percent-encoded or not, is understood too.
"""

from __future__ import annotations

import base64
import binascii
import re
from dataclasses import dataclass, field
from ipaddress import IPv6Address
from typing import Self
from urllib.parse import quote, unquote

from relayd.endpoints import is_host_name, split_host_port
from relayd.keys import KEY_BYTES, PublicKey
from relayd.tokens import check_token

PLAIN = "relayd"
TLS = "relayds"

PIN_BYTES = 32

MAX_CHARACTERS = 2048
"""A host name of 253, two keys of 43 and a token of 256, percent-encoded, have 1,200."""

MAX_PORT_DIGITS = 5

_EXAMPLE = "relayd://relay.example.net:3478?key=...&token=..."


@dataclass(frozen=True, slots=True)
class JoinString:
    """A relay's address, and what the agent and the relay know each other by."""

    host: str
    """A DNS name or an address; IPv6 without brackets."""

    port: int
    key: PublicKey | None = None
    """The relay's key; None: the agent trusts the first one that it sees."""

    token: str = field(default="", repr=False)
    """Empty: none."""

    tls: bool = False
    pin: bytes | None = None
    """SHA-256 of the TLS certificate's public key; None: the certificate is checked as usual."""

    one_of: str = ""
    """HOST:PORT of a name that stands for several relays with one key, of which this is one; empty: it stands
    for itself."""

    def __post_init__(self) -> None:
        """Raises ValueError saying what is wrong."""
        _check_host(self.host)
        if not 1 <= self.port <= 65535:
            raise ValueError(f"port {self.port} can't be reached, 1 to 65535 can")
        if self.token:
            check_token(self.token)
        if self.pin is not None and not self.tls:
            raise ValueError(f"pin= is for TLS: {TLS}://")
        if self.pin is not None and len(self.pin) != PIN_BYTES:
            raise ValueError(f"pin= is {len(self.pin)} bytes long, a SHA-256 has {PIN_BYTES}")
        if self.key is not None and not any(self.key.raw):
            raise ValueError("key= is all zeros")

    @classmethod
    def parse(cls, text: str) -> Self:
        """Raises ValueError saying what is wrong, quoting neither a key nor a token."""
        text = text.strip()
        if len(text) > MAX_CHARACTERS:
            raise ValueError(f"{len(text)} characters long, a join string has {MAX_CHARACTERS} at most")
        if not text.isascii() or not text.isprintable() or " " in text:
            raise ValueError("a join string has no blanks, and nothing but ASCII: was it cut or wrapped?")
        scheme, separator, rest = text.partition("://")
        if not separator or scheme.lower() not in (PLAIN, TLS):
            raise ValueError(f"a join string begins with {PLAIN}:// or {TLS}://, as in {_EXAMPLE}")
        if "#" in rest:
            raise ValueError("a join string has no #")
        address, _, query = rest.partition("?")
        if "@" in address:
            raise ValueError("a join string names no user before its host")
        address, slash, path = address.partition("/")
        if slash and path:
            raise ValueError("a join string has no path behind its port")
        host, port = _host_and_port(address)
        given = _parameters(query)
        key = given.get("key")
        return cls(
            host=host,
            port=port,
            key=PublicKey(_decode_32("key", key)) if key is not None else None,
            token=given.get("token", ""),
            tls=scheme.lower() == TLS,
            pin=_decode_32("pin", given["pin"]) if "pin" in given else None,
        )

    @property
    def address(self) -> str:
        """HOST:PORT, IPv6 in brackets."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def known_as(self) -> str:
        """HOST:PORT by which its key is remembered."""
        return self.one_of or self.address

    @property
    def shown_pin(self) -> str:
        """The pin as it is written after `pin=`; empty: none. It is no secret."""
        return format_pin(self.pin) if self.pin is not None else ""

    def format(self) -> str:
        """The line, its secrets included. A shell wants it in quotes, for its `&`."""
        parameters: list[str] = []
        if self.key is not None:
            parameters.append(f"key={_encode(self.key.raw)}")
        if self.token:
            parameters.append(f"token={quote(self.token, safe='')}")
        if self.pin is not None:
            parameters.append(f"pin={format_pin(self.pin)}")
        query = f"?{'&'.join(parameters)}" if parameters else ""
        return f"{TLS if self.tls else PLAIN}://{self.address}{query}"

    def __str__(self) -> str:
        """For logs: without the token."""
        return f"{TLS if self.tls else PLAIN}://{self.address}"


def format_pin(pin: bytes) -> str:
    """As it stands in a join string."""
    return _encode(pin)


def _host_and_port(address: str) -> tuple[str, int]:
    """Raises ValueError, which quotes nothing that may be a part of the query."""
    _, colon, rest = address.rpartition(":")
    if re.search(r"[=&]", address) or (colon and len(rest) > MAX_PORT_DIGITS and "]" not in rest):
        raise ValueError(f"host and port end where the parameters begin, with a ?, as in {_EXAMPLE}")
    return split_host_port(address)


def _parameters(query: str) -> dict[str, str]:
    given: dict[str, str] = {}
    for part in query.split("&") if query else []:
        name, equals, value = part.partition("=")
        if name not in ("key", "token", "pin"):
            # A part without = may be half a token.
            shown = f"{name!r}" if equals and re.fullmatch(r"[a-z_]{1,16}", name) else "a parameter"
            raise ValueError(
                f"{shown} is not known: key=, token= and pin= are (join strings need quotes in a shell)"
            )
        if name in given:
            raise ValueError(f"{name}= is there twice")
        if re.search(r"%(?![0-9A-Fa-f]{2})", value):
            raise ValueError(f"{name}= has a % without two hexadecimal digits behind it")
        try:
            given[name] = unquote(value, errors="strict")
        except UnicodeDecodeError:
            raise ValueError(f"{name}= is not text once it is decoded") from None
        if not given[name]:
            raise ValueError(f"{name}= is empty")
    return given


def _encode(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def _decode_32(name: str, text: str) -> bytes:
    """Base64 of 32 bytes, either alphabet, padded or not, and no second spelling of the same bytes."""
    bare = text.translate(str.maketrans("-_", "+/")).removesuffix("=")
    try:
        raw = base64.b64decode(bare + "=" * (-len(bare) % 4), validate=True)
    except (binascii.Error, ValueError) as error:
        raise ValueError(f"{name}= is not base64: {error}") from None
    if len(raw) != KEY_BYTES:
        raise ValueError(f"{name}= is {len(raw)} bytes long, it has {KEY_BYTES}: was the line cut?")
    if base64.b64encode(raw).decode().rstrip("=") != bare:
        raise ValueError(f"{name}= ends in a character that can't be right")
    return raw


def _check_host(host: str) -> None:
    """An address or a DNS name. Whether somebody answers there is not asked."""
    if ":" in host:
        try:
            if "%" in host:  # link-local: what the zone is called differs from host to host
                raise ValueError
            IPv6Address(host)
        except ValueError:
            raise ValueError(f"{host!r} is not an IPv6 address") from None
    elif not is_host_name(host):
        raise ValueError(f"{host!r} is not a host name or an address")
