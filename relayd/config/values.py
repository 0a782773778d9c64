"""From a value as TOML, a flag or the environment has it to one of its own type, or a reason why not.

A reader takes any object and returns the typed value, or raises `WrongError`; it knows nothing of files and
lines. No reader touches the host: no name is looked up, no file opened.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Hashable
from dataclasses import replace
from datetime import date, time
from difflib import get_close_matches
from ipaddress import IPv4Interface, IPv4Network, IPv6Interface, IPv6Network, ip_address, ip_interface
from pathlib import Path
from typing import Any, TypeVar

from relayd import marks
from relayd.config.types import LogMode
from relayd.endpoints import Endpoint, is_host_name, split_host_port
from relayd.join import JoinString
from relayd.keys import PublicKey
from relayd.wire.frames import MAX_PAYLOAD

Reader = Callable[[object], Any]
Value = TypeVar("Value", bound=Hashable)

MIN_MTU = 576
"""What every IPv4 host takes (RFC 791, section 3.1). Tunnels under IPv4 links that small exist."""

MIN_MTU_IPV6 = 1280
"""RFC 8200, section 5. Linux takes IPv6 off an interface that has less."""

WIREGUARD_BYTES = 32
"""A transport message around its packet: 16 of header, 16 of tag (WireGuard paper, section 5.4.6)."""

MAX_MTU = MAX_PAYLOAD - WIREGUARD_BYTES
"""A packet that is larger can't be relayed: its datagram would not fit one frame."""

MAX_SOCKET_PATH_BYTES = 107
"""`sun_path` has 108 with the closing NUL (unix(7))."""

_TYPES = {
    bool: "a boolean",
    int: "an integer",
    float: "a float",
    str: "a string",
    list: "an array",
    dict: "a table",
}


class WrongError(Exception):
    """A value can't be taken. `at` leads from the value to the part of it that is wrong."""

    def __init__(self, problem: str, hint: str = "", *, at: tuple[int, ...] = ()) -> None:
        super().__init__(problem)
        self.problem, self.hint, self.at = problem, hint, at


def type_name(value: object) -> str:
    """What TOML calls the type of `value`, with its article."""
    if isinstance(value, date | time):
        return "a date or time"
    return _TYPES.get(type(value), f"a {type(value).__name__}")


def text(value: object) -> str:
    """A string that says something. A key is refused unquoted: it may be a private one, misplaced."""
    written = _text(value)
    if re.fullmatch(r"[A-Za-z0-9+/]{40,44}=", written.strip()):
        raise WrongError(
            "is a key", "a private key goes into a file of its own, which private_key_file names"
        )
    return written


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise WrongError(f"is {type_name(value)}, not a string", "put it in quotes")
    if not value.strip():
        raise WrongError("is empty")
    return value


def _each(value: object, what: str) -> list[object]:
    """The elements of an array, or of one string with commas or blanks between them."""
    if isinstance(value, str):
        return list(re.split(r"[,\s]+", text(value).strip(", \t\r\n")))
    if isinstance(value, list | tuple):
        return list(value)
    raise WrongError(f"is {type_name(value)}, not an array of strings", f'for example ["{what}"]')


def many(
    read: Callable[[object], Value], example: str, *, empty: str = ""
) -> Callable[[object], tuple[Value, ...]]:
    """A reader of an array (or of a string with commas) of what `read` takes, each once.

    `empty` says what is wrong with none at all; "" allows it.
    """

    def read_many(value: object) -> tuple[Value, ...]:
        first: dict[Value, int] = {}
        for index, element in enumerate(_each(value, example)):
            try:
                item = read(element)
            except WrongError as wrong:
                raise WrongError(wrong.problem, wrong.hint, at=(index, *wrong.at)) from None
            if first.setdefault(item, index) != index:
                raise WrongError(
                    f"{item} is here twice", f"element {first[item] + 1} is the same", at=(index,)
                )
        if empty and not first:
            raise WrongError(empty, f'for example ["{example}"]')
        return tuple(first)

    return read_many


def whole(low: int, high: int, what: str) -> Callable[[object], int]:
    """A reader of integers from `low` to `high`; `what` names them in errors."""

    def read_whole(value: object) -> int:
        if isinstance(value, bool) or not isinstance(value, int):
            digits = isinstance(value, str) and value.isascii() and value.isdigit()
            hint = f"write {value} without quotes" if digits else f"{what}: {low} to {high}"
            raise WrongError(f"is {type_name(value)}, not an integer", hint)
        if not low <= value <= high:
            # An integer of TOML can have thousands of digits.
            shown = str(value) if abs(value) < 10**18 else "it"
            raise WrongError(f"{shown} is out of range", f"{what}: {low} to {high}")
        return value

    return read_whole


def positive(high: float) -> Callable[[object], float]:
    """A number above 0, up to `high`."""

    def read(value: object) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise WrongError(f"is {type_name(value)}, not a number")
        if not 0 < value <= high:  # false for nan too
            raise WrongError(f"{value} is not above 0 and at most {high:g}")
        return float(value)

    return read


def seconds(low: float, high: float) -> Callable[[object], float]:
    """A reader of durations in seconds, whole or not."""

    def read_seconds(value: object) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise WrongError(f"is {type_name(value)}, not a number", f"seconds: {low:g} to {high:g}")
        if (isinstance(value, float) and math.isnan(value)) or not low <= value <= high:
            raise WrongError("is out of range", f"seconds: {low:g} to {high:g}")
        return float(value)

    return read_seconds


def log_mode(value: object) -> LogMode:
    """`auto`, `console` or `json`."""
    word = text(value)
    match word:
        case "auto" | "console" | "json":
            return word
    raise WrongError(f"{word!r} is not a way to log", suggestion(word, ("auto", "console", "json")))


def yes_or_no(value: object) -> bool:
    """A boolean."""
    if not isinstance(value, bool):
        raise WrongError(f"is {type_name(value)}, not a boolean", "true or false, without quotes")
    return value


def whole_from_text(written: str) -> int:
    """What a flag or a variable says, where the file has an integer."""
    try:
        return int(written)
    except ValueError:
        raise WrongError(f"{written!r} is not a whole number") from None


def number_from_text(written: str) -> float:
    """Likewise a number, whole or not."""
    try:
        return float(written)
    except ValueError:
        raise WrongError(f"{written!r} is not a number") from None


def yes_or_no_from_text(written: str) -> bool:
    """Likewise a boolean, in the spellings that people use."""
    match written.strip().lower():
        case "true" | "yes" | "on" | "1":
            return True
        case "false" | "no" | "off" | "0":
            return False
    raise WrongError(f"{written!r} is neither true nor false", "true or false")


def suggestion(word: str, known: tuple[str, ...]) -> str:
    """`did you mean X?` when one of `known` looks like `word`, a list of them otherwise.

    Spelling counts, case and separators don't: `AllowedIPs` is how wg-quick writes `allowed_ips`.
    """
    plain = {re.sub(r"[^a-z0-9]", "", name.lower()): name for name in known}
    close = get_close_matches(re.sub(r"[^a-z0-9]", "", word.lower()), list(plain), n=1, cutoff=0.6)
    return f"did you mean {plain[close[0]]}?" if close else f"one of {', '.join(known)}"


def interface_name(value: object) -> str:
    """What Linux and wg-quick both take as the name of an interface."""
    name = text(value)
    if not re.fullmatch(r"[A-Za-z0-9_=+.-]{1,15}", name) or name in {".", ".."}:
        raise WrongError(f"{name!r} can't name an interface", "1 to 15 of A-Z a-z 0-9 _ = + . -")
    return name


def public_key(value: object) -> PublicKey:
    """A key as `wg` writes it. The error never quotes the text: it might be a private key."""
    written = _text(value)
    hint = "a public key is 44 characters of base64, as `wg pubkey` prints it"
    try:
        key = PublicKey.from_base64(written)
    except ValueError as error:
        raise WrongError(f"not a WireGuard key: {error}", hint) from None
    if str(key) != written.strip():
        # The last character carries two bits that belong to nothing; `wg` refuses them too (encoding.c).
        raise WrongError("not a WireGuard key: its last character can't be right", hint)
    if not any(key.raw):
        raise WrongError("not a WireGuard key: all zeros", hint)
    return key


def network(value: object) -> IPv4Network | IPv6Network:
    """One of WireGuard's allowed IPs: a network, or an address for itself alone."""
    interface = _interface(value, "10.0.0.2/32")
    found = interface.network
    if interface.ip != found.network_address:
        alone = f"{interface.ip}/{interface.max_prefixlen}"
        raise WrongError(f"{value!r} has bits set past its prefix", f"did you mean {found}, or {alone}?")
    return found


def interface_address(value: object) -> IPv4Interface | IPv6Interface:
    """An address of the interface, with the prefix of its network."""
    interface = _interface(value, "10.0.0.1/24")
    if interface.ip.is_multicast or interface.ip.is_unspecified:
        raise WrongError(f"{value!r} is not an address that a host can have", "for example 10.0.0.1/24")
    return interface


def _interface(value: object, example: str) -> IPv4Interface | IPv6Interface:
    written = text(value).strip()
    slash, prefix = written.partition("/")[1:]
    hint = f"ADDRESS/PREFIX, for example {example}"
    if slash and not (
        prefix.isascii() and prefix.isdigit()
    ):  # Python would take a netmask here, `wg` doesn't
        raise WrongError(f"{written!r}: {prefix!r} is not a prefix length", hint)
    if "%" in written:
        raise WrongError(f"{written!r} has a zone", "write the address without %")
    try:
        return ip_interface(written)
    except ValueError:
        raise WrongError(f"{written!r} is not an IP address with a prefix length", hint) from None


def node_name(value: object) -> str:
    """What Kubernetes takes as the name of a node: a DNS subdomain (RFC 1123)."""
    name = text(value)
    if len(name) > 253 or not re.fullmatch(r"[a-z0-9]([a-z0-9.-]*[a-z0-9])?", name):
        hint = "1 to 253 of a-z 0-9 . -, as `kubectl get node` has it"
        raise WrongError(f"{name!r} can't name a node", hint)
    return name


def server_url(value: object) -> str:
    """The URL of an API server: https, a host, perhaps a port and a path before the API's own."""
    written = text(value).strip()
    if re.fullmatch(r"https://[^/\s?#@]+(/[^\s?#]*)?", written) is None:
        hint = "for example https://192.0.2.10:6443"
        raise WrongError(f"{written!r} is not the URL of an API server", hint)
    return written.rstrip("/")


def peer_endpoint(value: object) -> Endpoint:
    """Where a peer's WireGuard is: an address, never a name."""
    written = text(value).strip()
    host, port = _host_port(written, "192.0.2.1:51820")
    endpoint = _literal(host, port)
    if endpoint is None:
        raise WrongError(
            f"{host!r} is not an IP address",
            "IP:PORT; host names are not taken, WireGuard would keep their first address for ever; "
            "without an endpoint the peer starts on the relay",
        )
    if port == 0:
        raise WrongError("port 0 can't be reached", "1 to 65535")
    if endpoint.address.is_unspecified or endpoint.address.is_multicast:
        raise WrongError(f"{host!r} is not the address of one host", "IP:PORT")
    if endpoint.is_loopback():
        raise WrongError(f"{host!r} is loopback", "those addresses are how WireGuard reaches the relay")
    return endpoint


def host_name(value: object) -> str:
    """A DNS name, in lower case and without a last dot."""
    written = text(value).strip()
    if not is_host_name(written):
        raise WrongError(f"{written!r} is not a host name", "for example gateway.example.net")
    return written.lower().rstrip(".")


def listen_address(value: object) -> str:
    """An address to accept connections on, in its canonical form; port 0: any free one."""
    written = text(value).strip()
    host, port = _host_port(written, f"0.0.0.0:{marks.RELAY_PORT}")
    endpoint = _literal(host, port)
    if endpoint is None:
        stands_for = {"localhost": "127.0.0.1", "*": "0.0.0.0"}.get(host, "0.0.0.0")
        raise WrongError(f"{host!r} is not an IP address", f"ADDRESS:PORT, for example {stands_for}:{port}")
    if endpoint.address.is_multicast:
        raise WrongError(f"{host!r} is a multicast address", f"ADDRESS:PORT, for example 0.0.0.0:{port}")
    return str(endpoint)


def host(value: object) -> str:
    """A DNS name or an address that others reach, without a port."""
    written = text(value).strip()
    bare = written[1:-1] if written.startswith("[") and written.endswith("]") else written
    try:
        found = ip_address(bare)
    except ValueError:
        if not is_host_name(bare):
            raise WrongError(
                f"{written!r} is not a host name or an address", 'as in "relay.example.net", without a port'
            ) from None
        return bare
    if found.is_unspecified:
        raise WrongError(f"{written!r} is no address that anybody can reach")
    return str(found)


def relays(value: object) -> tuple[JoinString, ...]:
    """An array of what `relay` takes, or one of them; a flag or a variable has commas between them."""
    try:
        return many(relay, "relayd://relay.example.net:3478?key=...&token=...", empty="no relay is named")(
            value
        )
    except WrongError as wrong:
        if isinstance(value, str) and "," not in value:  # the one that there is needs no number
            raise WrongError(wrong.problem, wrong.hint) from None
        raise


def relay(value: object) -> JoinString:
    """A relay: its join string, or HOST:PORT alone. The error quotes neither a key nor a token."""
    written = text(value).strip()
    if "://" not in written and "?" not in written:
        address = relay_address(written)
        return JoinString(*split_host_port(address))
    try:
        joined = JoinString.parse(written)
    except ValueError as error:
        raise WrongError(str(error), "the line that `relayd serve --show-join` prints, in quotes") from None
    host, port = split_host_port(relay_address(joined.address))  # one spelling of an address, and not any one
    return replace(joined, host=host, port=port)


def relay_address(value: object) -> str:
    """HOST:PORT of a relay, in its canonical form. HOST is a name or an address."""
    written = text(value).strip()
    example = f"relay.example.net:{marks.RELAY_PORT}"
    if "://" in written:
        raise WrongError(f"{written!r} is a URL", f"HOST:PORT, for example {example}")
    host, port = _host_port(written, example)
    if port == 0:
        raise WrongError("port 0 can't be reached", "1 to 65535")
    endpoint = _literal(host, port)
    if endpoint is not None:
        if endpoint.address.is_unspecified or endpoint.address.is_multicast:
            raise WrongError(f"{host!r} is not the address of one host", f"HOST:PORT, for example {example}")
        return str(endpoint)
    if not is_host_name(host):
        raise WrongError(f"{host!r} is not a host name", f"HOST:PORT, for example {example}")
    if re.fullmatch(r"[0-9.]+", host):  # the C library would take 10.1 for 10.0.0.1
        raise WrongError(f"{host!r} is not an IPv4 address", f"HOST:PORT, for example {example}")
    return f"{host}:{port}"


def stun_server(value: object) -> str:
    """HOST or HOST:PORT of a STUN server, in its canonical form, with its port."""
    written = text(value).strip()
    if re.fullmatch(r"\[[^]]*\]|[^:]+", written):
        written = f"{written}:{marks.RELAY_PORT}"
    return relay_address(written)


def _host_port(written: str, example: str) -> tuple[str, int]:
    try:
        return split_host_port(written)
    except ValueError as error:
        no_port = re.fullmatch(r"[A-Za-z0-9._-]+", written) is not None
        hint = (
            f"did you mean {written}:{example.rpartition(':')[2]}?" if no_port else f"for example {example}"
        )
        raise WrongError(str(error), hint) from None


def _literal(host: str, port: int) -> Endpoint | None:
    """The endpoint when `host` is an address, None when it isn't one."""
    if "%" in host:
        raise WrongError(f"{host!r} has a zone", "link-local addresses are not taken")
    try:
        return Endpoint.parse(f"[{host}]:{port}" if ":" in host else f"{host}:{port}")
    except ValueError:
        return None


def file_path(value: object) -> Path:
    """The name of a file or a directory, there or not."""
    written = text(value)
    if "\0" in written:
        raise WrongError("has a NUL character, no file name can")
    return Path(written)


def check_socket_path(path: Path) -> None:
    """Raise WrongError when no Unix socket can have this path."""
    size = len(os.fsencode(path))
    if size > MAX_SOCKET_PATH_BYTES:
        raise WrongError(f"{size} bytes long", f"a socket's path has at most {MAX_SOCKET_PATH_BYTES}")
