"""Other people's STUN: their servers asked by us, ours by their client. coturn (RFC 5780, two addresses) and
the classic stund (RFC 3489), each behind NATs of several kinds; a metadata service; a DNS that is dead.
"""

from __future__ import annotations

import http.server
import json
import os
import socket
import threading
from collections.abc import Iterator
from ipaddress import IPv4Interface
from typing import Any

import pytest
import trio

from relayd.agent.discovery import cloud
from relayd.agent.discovery.cloud import NoMetadataError, aws_public_address
from relayd.agent.discovery.relay_probes import RelayProbes
from relayd.agent.discovery.stun_servers import RESOLVE_S, Resolver, StunServer
from relayd.demo.host import check_programs
from relayd.demo.lab import RELAYD, Node
from relayd.demo.process import Process
from relayd.demo.tunnel import Tunnel
from relayd.endpoints import Endpoint
from relayd.errors import HostError
from relayd.keys import PublicKey
from relayd.wire.frames import encode_register
from tests.helpers.inside import inside
from tests.helpers.natlab import Internet, Nat, Site
from tests.helpers.netns import wait_until, write

PORT = 51820
ANSWER_S = 60.0
SITES = {
    "public": ((), "open", "endpoint-independent"),
    "fullcone": ((Nat.FULL_CONE,), "cone", "endpoint-independent"),
    "addrres": ((Nat.ADDRESS_RESTRICTED,), "cone", "address-dependent"),
    "portres": ((Nat.PORT_RESTRICTED,), "port-restricted-cone", "address-and-port-dependent"),
    "sym": ((Nat.SYMMETRIC,), "symmetric", "address-and-port-dependent"),
}


@pytest.fixture(scope="module")
def net() -> Iterator[Internet]:
    try:
        check_programs(["turnserver", "turnutils_natdiscovery", "stund"])
    except HostError as error:
        pytest.skip(str(error))
    with Internet(
        [Site(name, nats) for name, (nats, _, _) in SITES.items()],
        public=("relay", "two", "coturn", "classic", "old"),
    ) as made:
        relay = made.host("relay").relayd("serve", "--open", "--log", "json", "--http", "off")
        addresses = [made.address("two"), made.second_address("two")]
        both = made.host("two").relayd(
            "serve", "--open", "--log", "json", "--http", "off",
            *("--listen", f"{addresses[0]}:3478", "--listen", f"{addresses[1]}:3478"),
        )  # fmt: skip
        start_coturn(made)
        start_classic(made)
        old = made.host("old").relayd(
            "serve", "--auth", "optional", "--stun-port", "off", "--log", "json", "--http", "off"
        )
        for one in (relay, old, both):
            one.wait_for_output("relay.started", 30.0)
        for number, name in enumerate(SITES):
            Tunnel(made.host(name), IPv4Interface(f"10.99.0.{number + 1}/24"), port=PORT, userspace=True)
        yield made


def start_coturn(net: Internet) -> None:
    host = net.host("coturn")
    addresses = [net.address("coturn"), net.second_address("coturn")]
    write(host, "/run/turn.conf", "")
    process = host.start(
        "turnserver", "-c", "/run/turn.conf", "--stun-only", "--no-tcp", "--no-tls", "--no-dtls", "--no-cli",
        *(f"--listening-ip={address}" for address in addresses),
        "--log-file=stdout", "--simple-log", "--pidfile=/run/turn.pid", "--db=/run/turn.db",
    )  # fmt: skip
    wait_listening(host, process, 3479)


def start_classic(net: Internet) -> None:
    host = net.host("classic")
    process = host.start("stund", "-h", str(net.address("classic")), "-a", str(net.second_address("classic")))
    wait_listening(host, process, 3479)


def wait_listening(host: Node, process: Process, port: int) -> None:
    def listens() -> bool:
        assert process.returncode() is None, process.last_words()
        return f":{port} " in host.run("ss", "-lnu")

    wait_until(listens, f"{process.title} listens")


def asked(net: Internet, server: str) -> dict[str, dict[str, Any]]:
    """All sites ask one server at the same time."""
    to = f"{net.address(server)}:3478"
    running = {
        name: net.host(name).start(*RELAYD, "stun", to, "--interface", "wg0", "--json") for name in SITES
    }
    found = {}
    for name, process in running.items():
        wait_until(lambda one=process: one.returncode() is not None, f"{name} has its answer", ANSWER_S)  # type: ignore[misc]
        [found[name]] = json.loads(process.output().splitlines()[-1])["versions"]
        net.lab.discard(process)
    return found


@pytest.fixture(scope="module", params=["coturn", "two"])
def by_two_addresses(net: Internet, request: pytest.FixtureRequest) -> dict[str, dict[str, Any]]:
    return asked(net, request.param)


@pytest.fixture(scope="module")
def by_classic(net: Internet) -> dict[str, dict[str, Any]]:
    return asked(net, "classic")


@pytest.mark.parametrize("name", SITES)
def test_a_server_with_two_addresses_tells_mapping_and_filtering_apart(
    by_two_addresses: dict[str, dict[str, Any]], name: str
) -> None:
    _, nat, filtering = SITES[name]
    said = by_two_addresses[name]
    assert (said["nat"], said["filtering"]) == (nat, filtering)
    assert len({one["server"] for one in said["asked"]}) == 4, "both addresses, both ports"


@pytest.mark.parametrize("name", SITES)
def test_a_classic_server_tells_the_filtering(by_classic: dict[str, dict[str, Any]], name: str) -> None:
    _, nat, filtering = SITES[name]
    said = by_classic[name]
    if nat == "symmetric":
        # One address at one port answers us: pystun3 finds a symmetric NAT, and asks no more about it.
        assert "symmetric" in said["filtering_by"].lower()
        return
    assert "classic server" in said["filtering_by"]
    assert said["filtering"] == filtering


def test_coturns_client_finds_out_the_same_from_our_relay(net: Internet) -> None:
    """turnutils_natdiscovery asks for mapping and filtering (RFC 5780), here as far as a second port goes."""
    relay = str(net.address("relay"))
    said = {}
    for name in ("portres", "sym"):
        host = net.host(name)
        said[name] = host.run(
            "sh", "-c", f"turnutils_natdiscovery -m -f -p 3478 {relay} 2>&1 || true", timeout_s=60
        )
        assert str(net.address(name)) in said[name], said[name]
        assert "Other addr" in said[name], said[name]
        assert f"{relay}:3479" in said[name], said[name]


@pytest.mark.parametrize("name", SITES)
def test_a_relay_without_a_second_port_tells_the_filtering_by_its_probes(net: Internet, name: str) -> None:
    relay = Endpoint.parse(f"{net.address('old')}:3478")
    with inside(net.host(name)), socket.create_connection((str(relay.address), 3478), timeout=5) as agent:
        agent.sendall(encode_register(PublicKey(os.urandom(32))))
        probes = RelayProbes(lambda: relay, lambda request: agent.sendall(request.encode()))
        filtering, by = trio.run(probes.find, relay)
    assert by == f"the probes of {relay}"
    expected = {"public": "not by port", "fullcone": "not by port", "addrres": "not by port"}
    assert filtering.value == expected.get(name, "address-and-port-dependent")


# The metadata service ---------------------------------------------------------------------------------------


class Metadata(http.server.BaseHTTPRequestHandler):
    """As AWS's: no token, no answer."""

    public = "198.51.100.77"

    def do_PUT(self) -> None:
        self._say(200 if self.headers["x-aws-ec2-metadata-token-ttl-seconds"] else 400, "the token")

    def do_GET(self) -> None:
        if self.headers["x-aws-ec2-metadata-token"] != "the token":
            self._say(401, "")
        else:
            self._say(200 if self.public else 404, self.public)

    def _say(self, status: int, text: str) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


@pytest.fixture
def metadata(net: Internet) -> Iterator[Node]:
    host = net.host("portres")
    host.ip(f"addr add {cloud.ADDRESS}/32 dev lo")
    with inside(host):
        server = http.server.HTTPServer((cloud.ADDRESS, 80), Metadata)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield host
    server.shutdown()
    thread.join()
    server.server_close()
    host.ip(f"addr del {cloud.ADDRESS}/32 dev lo")


def test_aws_metadata_is_asked_with_a_token(metadata: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    with inside(metadata):
        assert str(trio.run(aws_public_address)) == "198.51.100.77"
        monkeypatch.setattr(Metadata, "public", "")
        with pytest.raises(NoMetadataError, match="status 404"):
            trio.run(aws_public_address)
        monkeypatch.setattr(Metadata, "public", "<html>a captive portal</html>")
        with pytest.raises(NoMetadataError, match="not AWS's"):
            trio.run(aws_public_address)


def test_a_metadata_service_that_is_not_there_costs_a_second_and_no_more(net: Internet) -> None:
    host = net.host("portres")
    host.run(
        "nft", "-f", "-",
        stdin="add table ip dead\nadd chain ip dead out { type filter hook output priority 0; }\n"
        f"add rule ip dead out ip daddr {cloud.ADDRESS} tcp dport 80 drop\n",
    )  # fmt: skip
    host.ip(f"addr add {cloud.ADDRESS}/32 dev lo")
    with inside(host), pytest.raises(NoMetadataError, match="within 1 s"):
        trio.run(aws_public_address)
    host.ip(f"addr del {cloud.ADDRESS}/32 dev lo")
    host.run("nft", "delete", "table", "ip", "dead")


# G15 --------------------------------------------------------------------------------------------------------


def test_g15_a_dns_that_is_dead_costs_some_seconds_and_then_the_last_known_address_is_used(
    net: Internet,
) -> None:
    """The name server's address swallows every packet. The loop goes on meanwhile."""
    good = Endpoint.parse(f"{net.address('relay')}:3478")
    alive = True

    async def look(host: str, port: int, **more: Any) -> list[tuple[Any, ...]]:
        if alive:
            return [(2, 2, 17, "", (str(good.address), port))]
        return await trio.socket.getaddrinfo(host, port, **more)

    async def go() -> tuple[list[Endpoint], int]:
        nonlocal alive
        resolver, server = Resolver(look), StunServer.parse("stun.example.net")
        assert await resolver.resolve(server) == [good]
        alive, ticks = False, 0
        async with trio.open_nursery() as nursery:

            async def tick() -> None:
                nonlocal ticks
                while True:
                    await trio.sleep(0.05)
                    ticks += 1

            nursery.start_soon(tick)
            found = await resolver.resolve(server)
            with pytest.raises(OSError, match=r"no answer|not known|failure"):
                await resolver.resolve(StunServer.parse("other.example.net"))
            nursery.cancel_scope.cancel()
        return found, ticks

    with inside(net.host("portres")):
        found, ticks = trio.run(go)
    assert found == [good]
    assert ticks > RESOLVE_S / 0.05 / 4, "name look-ups did not block"
