"""The relay with real sockets on loopback: what agents see of it, and what it says of itself."""

from __future__ import annotations

import socket
import struct
from contextlib import closing
from ipaddress import IPv4Address
from pathlib import Path

import pytest
import trio

from relayd.config import RelayConfig
from relayd.endpoints import Endpoint
from relayd.errors import HostError
from relayd.keys import PublicKey
from relayd.netio.poller import Poller
from relayd.relay import contest
from relayd.relay.server import serve
from relayd.relay.udp import NatProber
from relayd.wire import frames
from relayd.wire.frames import NatProbe
from relayd.wire.identity import REPLACED
from tests.helpers.running_relay import relay

A, B, C = (PublicKey(bytes([number]) * 32) for number in (10, 11, 12))


async def test_data_goes_to_its_key_and_comes_from_the_senders(tmp_path: Path) -> None:
    async with relay(tmp_path) as running, running.agent(A) as a, running.agent(B) as b:
        await a.send(*(frames.encode_data(B, bytes([number])) for number in range(5)))
        assert [await b.frame() for _ in range(5)] == [frames.encode_data(A, bytes([n])) for n in range(5)]
        await b.send(frames.encode_hint(A))
        assert await a.frame() == frames.encode_hint(B)


async def test_frames_arrive_whole_however_the_stream_is_cut(tmp_path: Path) -> None:
    stream = b"".join(frames.encode_data(B, bytes(size)) for size in (0, 1, 1452, 3, frames.MAX_PAYLOAD))
    async with relay(tmp_path) as running, running.agent(A) as a, running.agent(B) as b:
        for byte in stream[:150]:
            await a.send(bytes([byte]))
        await a.send(stream[150:])
        for size in (0, 1, 1452, 3, frames.MAX_PAYLOAD):
            assert await b.frame() == frames.encode_data(A, bytes(size))


async def test_register_and_data_in_one_segment_is_fine(tmp_path: Path) -> None:
    async with relay(tmp_path) as running, running.connection() as a:
        echo = frames.encode_data(A, b"early")
        await a.send(frames.encode_register(A), echo)
        assert await a.frame() == echo


async def test_g23_unknown_and_short_frames_are_skipped_and_counted(tmp_path: Path) -> None:
    async with relay(tmp_path) as running, running.agent(A) as a:
        await a.send(
            frames.encode(0x77, b"?"),
            frames.encode(0x10, b"?" * 50),
            frames.KEEPALIVE_FRAME,
            frames.encode(frames.DATA, b"no key"),
            frames.encode_data(C, b"absent"),
            frames.encode(frames.NAT_PROBE, b"\x7f"),
        )
        await a.echo(A)
        status = await running.status()
        assert status["unknown_frames"] == 2
        assert status["drops"] == {"absent": 1, "short": 1, "full": 0, "old": 0, "memory": 0}
        assert status["nat_probes"] == {"refused_malformed": 1}


@pytest.mark.parametrize("length", [0, 65537, 0xFFFFFFFF])
async def test_broken_frame_ends_that_connection_with_an_error_and_no_other(
    tmp_path: Path, length: int
) -> None:
    async with relay(tmp_path) as running, running.agent(A) as a, running.agent(B) as b:
        await a.send(frames.encode_data(B, b"before"), length.to_bytes(4, "big"))
        assert await b.frame() == frames.encode_data(A, b"before")
        error = await a.frame()
        assert error[4] == frames.ERROR
        assert f"length {length} " in frames.decode_error_untrusted(error[5:])
        assert await a.frame() == b""
        await b.echo(B)


@pytest.mark.parametrize(
    "first",
    [
        frames.KEEPALIVE_FRAME,
        frames.encode_data(A, b"x"),
        frames.encode(frames.REGISTER, b"x" * 33),
        b"GET / HTTP/1.1\r\n",
    ],
)
async def test_first_frame_must_be_register(tmp_path: Path, first: bytes) -> None:
    async with relay(tmp_path) as running, running.connection() as client:
        await client.send(first)
        error = await client.frame()
        assert error[4] == frames.ERROR
        assert "must be Register" in frames.decode_error_untrusted(error[5:])
        assert await client.frame() == b""


async def test_health_probe_leaves_no_log_line(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    async with relay(tmp_path) as running:
        async with running.connection():
            pass
        async with running.agent(A):
            pass
        assert (await running.status())["refused"] == {}
    said = capfd.readouterr()
    assert (said.out + said.err).count("agent.registered") == 1
    assert "refused" not in said.out + said.err


async def test_silent_connection_is_closed_after_its_time(tmp_path: Path) -> None:
    async with relay(tmp_path, register_timeout_s=0.05) as running, running.connection() as client:
        assert await client.frame() == b""
        assert (await running.status())["refused"] == {"never registered": 1}


async def test_oldest_goes_when_too_many_wait_at_the_door(tmp_path: Path) -> None:
    async with relay(tmp_path, max_unregistered=3, max_unregistered_per_address=2) as running:
        async with (
            running.connection("127.0.0.2") as first,
            running.connection("127.0.0.2") as second,
            running.connection("127.0.0.2") as third,
        ):
            assert await first.frame() == b""
            async with running.connection("127.0.0.3") as fourth, running.connection("127.0.0.4") as fifth:
                assert await second.frame() == b""
                for key, client in ((A, third), (B, fourth), (C, fifth)):
                    await client.send(frames.encode_register(key))
                    await client.echo(key)
        assert (await running.status())["refused"] == {"too many at the door": 2}


async def test_newcomer_does_not_displace_a_holder_that_answers(tmp_path: Path) -> None:
    async with (
        relay(tmp_path, register_timeout_s=0.5) as running,
        running.agent(A) as holder,
        running.connection() as newcomer,
    ):
        await newcomer.send(frames.encode_register(A))
        probe = await holder.frame()
        assert probe[4] == frames.RELAY_PROBE
        await holder.send(probe)
        error = await newcomer.frame()
        assert "alive" in frames.decode_error_untrusted(error[5:])
        assert await newcomer.frame() == b""
        await holder.echo(A)


async def test_silent_holder_gives_way_and_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contest, "PROBE_S", 0.05)
    async with relay(tmp_path) as running, running.agent(A) as holder, running.connection() as newcomer:
        await newcomer.send(frames.encode_register(A))
        await newcomer.echo(A)
        assert (await holder.frame())[4] == frames.RELAY_PROBE
        assert frames.decode_error_untrusted((await holder.frame())[5:]) == REPLACED
        assert await holder.frame() == b""
        await newcomer.echo(A)


async def test_newcomer_gets_in_at_once_when_the_holder_leaves(tmp_path: Path) -> None:
    async with relay(tmp_path) as running, running.connection() as newcomer:
        async with running.agent(A) as holder:
            await newcomer.send(frames.encode_register(A))
            assert (await holder.frame())[4] == frames.RELAY_PROBE
        await newcomer.echo(A)


async def test_silent_agent_is_closed(tmp_path: Path) -> None:
    async with relay(tmp_path, silence_s=0.0) as running, running.agent(A) as a:
        assert await a.frame() == b""


async def test_reader_that_stops_loses_its_own_frames_and_nobody_elses(tmp_path: Path) -> None:
    """G1 in small: more than all queues can hold goes to a reader that doesn't read."""
    async with relay(tmp_path) as running, running.agent(A) as a, running.agent(B) as b, running.agent(C):
        burst = frames.encode_data(C, bytes(60_000))
        for _ in range(200):
            await a.send(burst, frames.encode_data(B, b"live"))
            assert await b.frame() == frames.encode_data(A, b"live")
        status = await running.status()
        peers = {peer["key"]: peer for peer in status["peers"]}  # type: ignore[attr-defined]
        drops = peers[str(C)]["drops"]
        assert drops["full"] + drops["old"] > 0
        assert peers[str(C)]["queued_bytes"] <= running.config.queue_bytes + 60_037
        assert peers[str(B)]["drops"] == {"absent": 0, "short": 0, "full": 0, "old": 0, "memory": 0}


async def test_reset_by_one_agent_disturbs_no_other(tmp_path: Path) -> None:
    async with relay(tmp_path) as running, running.agent(A) as a, running.agent(B) as b:
        b.stream.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        await b.stream.aclose()
        await a.send(frames.encode_data(B, b"into the void"))
        await a.echo(A)


def datagrams_at(sock: socket.socket) -> list[tuple[bytes, int]]:
    """What has arrived on a UDP socket: (payload, source port)."""
    got = []
    try:
        while True:
            data, (_, port) = sock.recvfrom(100)
            got.append((data, port))
    except BlockingIOError:
        return got


async def test_g16_nat_probe_answers_from_the_bound_port_and_from_a_fresh_one(tmp_path: Path) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        sock.setblocking(False)
        async with relay(tmp_path) as running, running.agent(A) as a:
            request = frames.NatProbe(IPv4Address("127.0.0.1"), sock.getsockname()[1]).encode()
            await a.send(request)
            await a.echo(A)
            got = dict(datagrams_at(sock))
            # On the wire, with the headers of IP and of TCP or UDP, no answer is longer than its request.
            assert all(len(answer) + 20 + 8 <= len(request) + 20 + 20 for answer in got)
            assert got[b"WIREKUBE_NAT_VERIFY"] == running.port
            assert got[b"WIREKUBE_NAT_PROBE"] != running.port
            assert len(got) == 2


@pytest.mark.parametrize(
    "target", ["127.0.0.2", "0.0.0.0", "255.255.255.255", "224.0.0.1", "169.254.1.1", "192.0.2.1"]
)
async def test_g16_nat_probe_to_any_other_address_is_refused(tmp_path: Path, target: str) -> None:
    async with relay(tmp_path) as running, running.agent(A) as a:
        await a.send(
            frames.NatProbe(IPv4Address(target), 9).encode(),
            frames.NatProbe(IPv4Address("127.0.0.1"), 0).encode(),
        )
        await a.echo(A)
        assert (await running.status())["nat_probes"] == {"refused_not_requester": 2}


async def test_g16_nat_probes_are_rate_limited(tmp_path: Path) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        async with relay(tmp_path) as running, running.agent(A) as a:
            await a.send(frames.NatProbe(IPv4Address("127.0.0.1"), sock.getsockname()[1]).encode() * 1000)
            await a.echo(A)
            counted = (await running.status())["nat_probes"]
            assert counted["sent"] < 200  # type: ignore[index]
            assert counted["sent"] + counted["refused_rate"] == 1000  # type: ignore[index]


def test_g16_who_asks_for_probes_all_the_time_leaves_the_others_theirs() -> None:
    poller = Poller()  # whose clock stands still
    with closing(poller), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        prober = NatProber(poller, [sock])
        for address, times in (("127.0.0.1", 1000), ("127.0.0.2", 1)):
            sent = prober.counts["sent"]
            for _ in range(times):
                prober.probe(NatProbe(IPv4Address(address), 9), Endpoint.parse(f"{address}:1"))
            assert prober.counts["sent"] > sent


async def test_taken_address_is_an_error_that_says_so(tmp_path: Path) -> None:
    async with relay(tmp_path) as running:
        other = RelayConfig(
            listen=running.config.listen,
            control=str(tmp_path / "other.sock"),
            state_dir=running.config.state_dir,
            http=None,
        )
        with pytest.raises(HostError, match="another process listens there"):
            await serve(other)


async def test_agents_see_an_end_of_stream_when_the_relay_stops(tmp_path: Path) -> None:
    async with trio.open_nursery() as nursery:
        async with relay(tmp_path) as running:
            context = running.agent(A)
            a = await context.__aenter__()
        assert await a.frame() == b""
        await context.__aexit__(None, None, None)
        nursery.cancel_scope.cancel()
