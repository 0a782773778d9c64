"""Every mistake in a configuration has one error: which line, which key, what, and what would be right."""

from __future__ import annotations

from pathlib import Path

import pytest

from relayd.keys import PublicKey
from tests.helpers.config_files import (
    KEY_A,
    KEY_B,
    OWN,
    agent_error,
    change,
    with_private_key,
)

OTHER = PublicKey(b"\xcc" * 32)


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """Where AGENT finds its private key."""
    return with_private_key(tmp_path)


AGENT_MISTAKES = {
    # text that is changed, what it becomes: line, key, problem, hint
    "unknown key of a peer": (
        'allowed_ips = "10.0.0.3',
        'allowed_ip = "10.0.0.3',
        (19, "peer[2].allowed_ip", "unknown key", "did you mean allowed_ips?"),
    ),
    "wg-quick's spelling": (
        "persistent_keepalive",
        "PersistentKeepalive",
        (15, "peer[1].PersistentKeepalive", "unknown key", "did you mean persistent_keepalive?"),
    ),
    "unknown key, nothing like it": (
        "mtu",
        "xyzzy",
        (9, "interface.xyzzy", "unknown key", "one of name, private_key_file, listen_port, address, mtu"),
    ),
    "key that has to be quoted": (
        "mtu",
        '"m t\\nu"',
        (9, r'interface."m t\nu"', "unknown key", "did you mean mtu?"),
    ),
    "unknown table": ("[agent]", "[agents]", (21, "agents", "unknown key", "did you mean agent?")),
    "a private key in the file": (
        "private_key_file",
        "private_key",
        (6, "interface.private_key", "unknown key", "did you mean private_key_file?"),
    ),
    "a relay's setting": ('address = "r', 'listen = "r', (2, "relay.listen", "unknown key", "relayd serve")),
    "base64 that is none": (
        str(KEY_A),
        "?" * 44,
        (12, "peer[1].public_key", "not a WireGuard key: not base64", "44 characters of base64"),
    ),
    "a key that is too short": (
        str(KEY_B),
        "qqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqg==",
        (18, "peer[2].public_key", "not a WireGuard key: 31 bytes long", "44 characters of base64"),
    ),
    "a key that wg would not print": (
        str(KEY_A),
        str(KEY_A)[:-2] + "r=",
        (12, "peer[1].public_key", "last character", "44 characters"),
    ),
    "a key of zeros": (str(KEY_A), "A" * 43 + "=", (12, "peer[1].public_key", "all zeros", "wg pubkey")),
    "a key that is no text": (
        f'"{KEY_A}"',
        "7",
        (12, "peer[1].public_key", "is an integer, not a string", "put it in quotes"),
    ),
    "the same key twice": (
        str(KEY_B),
        str(KEY_A),
        (18, "peer[2].public_key", "the same key as peer[1], line 11", "one [[peer]] a key"),
    ),
    "a name that another has": (
        "persistent_keepalive = 25",
        f'name = "b"\n[[peer]]\npublic_key = "{OTHER}"\nallowed_ips = "192.0.2.0/24"\nname = "b"',
        (19, "peer[2].name", "the same name as peer[1], line 11", "one peer's"),
    ),
    "a name that nobody can read": (
        "persistent_keepalive = 25",
        'name = "b\\u0007"',
        (15, "peer[1].name", "can't name a peer", "can be printed"),
    ),
    "our own key": (
        str(KEY_B),
        str(OWN.public()),
        (18, "peer[2].public_key", "this node's own key", "another node"),
    ),
    "a network that another has": (
        "10.9.0.0/16",
        "192.168.7.9/32",
        (
            19,
            "peer[2].allowed_ips[2]",
            "192.168.7.9/32 overlaps 192.168.7.0/24 of peer[1], line 11",
            "one peer",
        ),
    ),
    "a network around another's": (
        "10.9.0.0/16",
        "fd00::/16",
        (19, "peer[2].allowed_ips[2]", "fd00::/16 overlaps fd00::2/128 of peer[1], line 11", "one peer"),
    ),
    "our own address": (
        "10.9.0.0/16",
        "10.0.0.1/32",
        (19, "peer[2].allowed_ips[2]", "10.0.0.1/32 is this node's own address", "other node"),
    ),
    "bits past the prefix": (
        '"192.168.7.0/24"',
        '\n\n"192.168.7.9/24"',
        (
            15,
            "peer[1].allowed_ips[3]",
            "bits set past its prefix",
            "did you mean 192.168.7.0/24, or 192.168.7.9/32?",
        ),
    ),
    "no allowed IPs": (
        '"10.0.0.3, 10.9.0.0/16"',
        "[]",
        (19, "peer[2].allowed_ips", "gets no traffic", '["10.0.0.2/32"]'),
    ),
    "allowed IPs that are none": (
        "192.168.7.0/24",
        "192.168.7.0/33",
        (13, "peer[1].allowed_ips[3]", "not an IP address with a prefix length", "ADDRESS/PREFIX"),
    ),
    "a netmask": (
        "192.168.7.0/24",
        "192.168.7.0/255.255.255.0",
        (13, "peer[1].allowed_ips[3]", "not a prefix length", "ADDRESS/PREFIX"),
    ),
    "a network twice": (
        "192.168.7.0/24",
        "10.0.0.2",
        (13, "peer[1].allowed_ips[3]", "10.0.0.2/32 is here twice", "element 1"),
    ),
    "a host name as endpoint": (
        "[2001:db8::2]:51820",
        "vpn.example.net:51820",
        (14, "peer[1].endpoint", "'vpn.example.net' is not an IP address", "host names are not taken"),
    ),
    "an endpoint without port": (
        "[2001:db8::2]:51820",
        "192.0.2.9",
        (14, "peer[1].endpoint", "has no port", "did you mean 192.0.2.9:51820?"),
    ),
    "IPv6 without brackets": (
        "[2001:db8::2]:51820",
        "2001:db8::2:51820",
        (14, "peer[1].endpoint", "an IPv6 address goes in brackets", "192.0.2.1:51820"),
    ),
    "an endpoint's port": (
        "[2001:db8::2]:51820",
        "192.0.2.9:65536",
        (14, "peer[1].endpoint", "'65536' is not a port", "192.0.2.1:51820"),
    ),
    "an endpoint's port of 0": (
        "[2001:db8::2]:51820",
        "192.0.2.9:0",
        (14, "peer[1].endpoint", "port 0", "1 to"),
    ),
    "an endpoint of ours": (
        "2001:db8::2",
        "::1",
        (14, "peer[1].endpoint", "is loopback", "reaches the relay"),
    ),
    "an endpoint that is nobody's": (
        "2001:db8::2",
        "ff02::1",
        (14, "peer[1].endpoint", "one host", "IP:PORT"),
    ),
    "an endpoint with a zone": (
        "2001:db8::2",
        "fe80::1%eth0",
        (14, "peer[1].endpoint", "zone", "link-local"),
    ),
    "a keepalive out of range": (
        "= 25",
        "= 65536",
        (15, "peer[1].persistent_keepalive", "65536", "0 to 65535"),
    ),
    "a port out of range": (
        "51821",
        "65536",
        (7, "interface.listen_port", "65536 is out", "a port: 1 to 65535"),
    ),
    "a port of 0": ("51821", "0", (7, "interface.listen_port", "0 is out of range", "a port: 1 to 65535")),
    "a port in quotes": (
        "51821",
        '"51821"',
        (7, "interface.listen_port", "is a string, not an integer", "write 51821 without quotes"),
    ),
    "a port that is true": (
        "51821",
        "true",
        (7, "interface.listen_port", "is a boolean, not an integer", "1 to 65535"),
    ),
    "a port with a fraction": ("51821", "1.0", (7, "interface.listen_port", "is a float", "1 to 65535")),
    "a port of twenty digits": (
        "51821",
        "9" * 20,
        (7, "interface.listen_port", "it is out of range", "1 to"),
    ),
    "the proxy's port": (
        "51821",
        "22348",
        (7, "interface.listen_port", "22348 is the port of the agent's own socket", "proxy_port in [agent]"),
    ),
    "an MTU too small": ("1380", "575", (9, "interface.mtu", "575 is out of range", "an MTU: 576 to 65471")),
    "an MTU too large": (
        "1380",
        "65472",
        (9, "interface.mtu", "65472 is out of range", "an MTU: 576 to 65471"),
    ),
    "an MTU too small for IPv6": ("1380", "1279", (9, "interface.mtu", "1279 is too small", "at least 1280")),
    "an address that is none": (
        "10.0.0.1/24",
        "10.0.0/24",
        (8, "interface.address[1]", "not an IP address", "10.0.0.1/24"),
    ),
    "an address that is a date": (
        '["10.0.0.1/24", "fd00::1/64"]',
        "1979-05-27",
        (8, "interface.address", "is a date or time, not an array of strings", '["10.0.0.1/24"]'),
    ),
    "a name too long": ('"wg0"', '"sixteen-letters_"', (5, "interface.name", "can't name", "1 to 15")),
    "a name that is a path": ('"wg0"', '"../wg0"', (5, "interface.name", "can't name", "1 to 15")),
    "no address": (
        'address = ["10.0.0.1/24", "fd00::1/64"]\n',
        "",
        (4, "interface.address", "missing", 'address = ["10.0.0.1/24"]'),
    ),
    "no public key": (f'public_key = "{KEY_B}"\n', "", (17, "peer[2].public_key", "missing", "wg pubkey")),
    "no relay": (
        'address = "relay.example.net:3478"\n',
        "",
        (1, "relay.address", "no relay is named", "--relay RELAY, RELAYD_RELAY, or address in [relay]"),
    ),
    "a relay without port": (
        "relay.example.net:3478",
        "relay.example.net",
        (2, "relay.address", "has no port", "did you mean relay.example.net:3478?"),
    ),
    "a relay that is a URL": (
        "relay.example.net:3478",
        "https://relay.example.net:3478",
        (2, "relay.address", "begins with relayd://", "relayd serve --show-join"),
    ),
    "a relay that no name can be": (
        "relay.example.net",
        "relay..example",
        (2, "relay.address", "host name", "HOST:"),
    ),
    "a relay of too few numbers": (
        "relay.example.net",
        "10.1",
        (2, "relay.address", "not an IPv4 address", "HOST:"),
    ),
    "a relay that is everywhere": (
        "relay.example.net",
        "0.0.0.0",
        (2, "relay.address", "one host", "HOST:PORT"),
    ),
    "a relay's port of 0": ("net:3478", "net:0", (2, "relay.address", "port 0", "1 to 65535")),
    "a way to log": (
        '"json"',
        '"jason"',
        (25, "agent.log", "'jason' is not a way to log", "did you mean json?"),
    ),
    "no number of seconds": ("2.5", "nan", (26, "agent.echo_s", "is out of range", "seconds: 0.1 to 3600")),
    "seconds in quotes": ("2.5", '"2.5"', (26, "agent.echo_s", "is a string, not a number", "0.1 to 3600")),
    "an empty path": ('"state"', '""', (22, "agent.state_dir", "is empty", "")),
    "a path with a NUL": ('"state"', '"a\\u0000b"', (22, "agent.state_dir", "NUL", "")),
    "a socket's path": (
        "/run/relayd/other.sock",
        "/run/" + "x" * 103,
        (23, "agent.control", "108 bytes long", "at most 107"),
    ),
    "an interface of its own and another": (
        'state_dir = "state"',
        'interface = "wg1"',
        (22, "agent.interface", "describes an interface of its own", "[interface] name"),
    ),
    "an unclosed string": ('"wg0"', '"wg0', (5, "", "not valid TOML: Illegal character", "")),
    "a key twice": ("mtu = 1380", "name = 'x'", (9, "", "not valid TOML: Cannot overwrite a value", "")),
}


@pytest.mark.parametrize("mistake", AGENT_MISTAKES)
def test_a_mistake_has_line_key_problem_and_hint(mistake: str, directory: Path) -> None:
    old, new, (line, key, problem, hint) = AGENT_MISTAKES[mistake]
    error = agent_error(directory, change(old, new))
    assert (error.source, error.line, error.key) == (str(directory / "relayd.toml"), line, key)
    assert problem in error.problem
    assert hint in error.hint
    assert str(error).startswith(f"{directory}/relayd.toml:{line}: ")


@pytest.mark.parametrize(
    ("text", "line", "key", "problem", "hint"),
    [
        ('relay = { address = "a:1", port = 1 }', 1, "relay.port", "unknown key", "one of address"),
        ("relay.address = 'a:1'\nagent.logs = 1", 2, "agent.logs", "unknown key", "did you mean log?"),
        ('relay = "a:1"', 1, "relay", "is a string, not a table", "write [relay] on a line of its own"),
        (
            "[relay]\naddress='a:1'\n[peer]\nx=1",
            3,
            "peer",
            "a table, not an array of tables",
            "write [[peer]]",
        ),
        ("peer = [\n1]\n[relay]\naddress='a:1'\n", 2, "peer[1]", "is an integer, not a table", "[[peer]]"),
        (
            "[relay]\naddress='a:1'\n[[interface]]\n",
            3,
            "interface",
            "is an array, not a table",
            "[interface]",
        ),
        ("[relay]\naddress='a:1'\n[[peer]]\n", 3, "peer[1].public_key", "missing", "public_key ="),
        (
            f"[relay]\naddress='a:1'\n\n[[peer]]\npublic_key='{KEY_A}'\nallowed_ips='10.0.0.1'\n",
            4,
            "peer[1]",
            "there is no [interface] for it",
            "add [interface]",
        ),
        ("", None, "relay.address", "no relay is named", "--relay RELAY"),
        (
            "[relay]\naddress='a:1'\ninterface='wg0'",
            3,
            "relay.interface",
            "unknown key",
            "it goes under [agent]",
        ),
        (
            "[relay]\naddress='a:1'\n[agent]\nname='wg0'",
            4,
            "agent.name",
            "unknown key",
            "it goes under [interface] or [[peer]]",
        ),
        ("address = 'a:1'", 1, "address", "unknown key", "it goes under [relay] or [interface]"),
        (
            "[relay]\naddress='a:1'\n[kubernetes]\nenabled=true",
            4,
            "kubernetes.enabled",
            "no node is named",
            "NODE_NAME",
        ),
    ],
)
def test_a_wrong_shape_has_line_key_problem_and_hint(
    text: str, line: int | None, key: str, problem: str, hint: str, directory: Path
) -> None:
    error = agent_error(directory, text)
    assert (error.line, error.key) == (line, key)
    assert problem in error.problem
    assert hint in error.hint
