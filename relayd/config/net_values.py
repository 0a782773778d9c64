"""Values that name something on a network: interfaces, keys, addresses, hosts, relays.

Each reader is one of those of `values`: any object in, the typed value out, or WrongError. No name is
looked up.
"""

from __future__ import annotations

import re
from dataclasses import replace
from ipaddress import IPv4Interface, IPv4Network, IPv6Interface, IPv6Network, ip_address, ip_interface

from relayd import marks
from relayd.config.types import HTTP_ADDRESS
from relayd.config.values import WrongError, many, quoted, text
from relayd.endpoints import Endpoint, is_host_name, split_host_port
from relayd.join import JoinString
from relayd.keys import PublicKey
from relayd.wire.frames import MAX_PAYLOAD

MAX_PEER_NAME = 63
"""Characters, as of a label of DNS: more has no room in a table on a terminal."""

MIN_MTU = 576
"""What every IPv4 host takes (RFC 791, section 3.1). Tunnels under IPv4 links that small exist."""

MIN_MTU_IPV6 = 1280
"""RFC 8200, section 5. Linux takes IPv6 off an interface that has less."""

WIREGUARD_BYTES = 32
"""A transport message around its packet: 16 of header, 16 of tag (WireGuard paper, section 5.4.6)."""

MAX_MTU = MAX_PAYLOAD - WIREGUARD_BYTES
"""A packet that is larger can't be relayed: its datagram would not fit one frame."""


def interface_name(value: object) -> str:
    """What Linux and wg-quick both take as the name of an interface."""
    name = text(value)
    if not re.fullmatch(r"[A-Za-z0-9_=+.-]{1,15}", name) or name in {".", ".."}:
        raise WrongError(f"{name!r} can't name an interface", "1 to 15 of A-Z a-z 0-9 _ = + . -")
    return name


def public_key(value: object) -> PublicKey:
    """A key as `wg` writes it. The error never quotes the text: it might be a private key."""
    written = quoted(value)
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


def peer_name(value: object) -> str:
    """What people call a peer: a label of metrics, a column of a table."""
    name = text(value)
    if not name.isprintable() or not name.strip() or len(name) > MAX_PEER_NAME:
        raise WrongError(
            f"{name!r} can't name a peer", f"up to {MAX_PEER_NAME} characters that can be printed"
        )
    return name


def server_url(value: object) -> str:
    """The URL of an API server: https, a host, perhaps a port and a path before the API's own."""
    written = text(value).strip()
    hint = "for example https://192.0.2.10:6443"
    shape = re.fullmatch(r"https://([^/\s?#@]+)((?:/[!-~]*)?)", written)
    if shape is None or re.search("[?#]", shape[2]):
        raise WrongError(f"{written!r} is not the URL of an API server", hint)
    has_port = re.search(r"(^[^][:]*|\]):[^]:]*$", shape[1]) is not None
    try:
        server = relay_address(shape[1] if has_port else f"{shape[1]}:443")
    except WrongError as error:
        raise WrongError(f"{written!r} is not the URL of an API server: {error.problem}", hint) from None
    return f"https://{server.removesuffix(':443')}{shape[2]}".rstrip("/")


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


def http_address(value: object) -> str:
    """Likewise, where a slip isn't to open it to the world."""
    return listen_address(value, example=HTTP_ADDRESS)


def listen_address(value: object, *, example: str = f"0.0.0.0:{marks.RELAY_PORT}") -> str:
    """An address to accept connections on, in its canonical form; port 0: any free one."""
    written = text(value).strip()
    usual = example.rpartition(":")[0]
    if written.isascii() and written.isdigit():
        raise WrongError(f"{written!r} is a port without an address", f"did you mean {usual}:{written}?")
    host, port = _host_port(written, example)
    endpoint = _literal(host, port)
    if endpoint is None:
        stands_for = {"localhost": "127.0.0.1", "*": "0.0.0.0"}.get(host, usual)
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
        no_port = re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", written) is not None
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
