"""The source of an agent in a cluster: what it makes of an API server that lags, lies, or is away."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import msgspec
import pytest
import trio
from trio.testing import MockClock

from relayd.coordination.kubernetes import own_peer, resources
from relayd.coordination.kubernetes.api_error import ApiError
from relayd.coordination.kubernetes.client import Access, ApiClient
from relayd.coordination.kubernetes.memory import ClusterMemory
from relayd.coordination.kubernetes.notebook import WRITE_EVERY_S, Notebook
from relayd.coordination.kubernetes.own_peer import Identity
from relayd.coordination.kubernetes.source import (
    CORRECT_EVERY_S,
    LOOKS_AT_ONCE,
    LOOKS_PER_S,
    KubernetesSource,
)
from relayd.errors import HostError
from relayd.join import JoinString
from tests.helpers.kube_resources import ME, mesh, node, peer
from tests.helpers.running_relay import SOON_S

OWN = own_peer.path_of(ME.name)
WAS_THERE = ClusterMemory(node_name=ME.name, identity=Identity(mesh="mesh", peer="uid-a"))


class Server:
    """An API server in memory. What it lists needn't be what it has."""

    server = "https://api"

    def __init__(self, *peers: resources.Peer) -> None:
        self.lists: dict[str, list[Any]] = {
            resources.MESHES: [mesh()],
            resources.PEERS: list(peers),
            resources.NODES: [],
        }
        self.has: dict[str, resources.Peer] = {}
        self.answers: list[bytes] = []
        """To writes; the last one stays."""
        self.written: list[str] = []
        self.bodies: list[dict[str, Any]] = []
        self.refuses: ApiError | None = None
        """What it says to writes."""
        self.refuses_nodes = 0
        """So often."""
        self.answers_writes = True
        self.tell, self._told = trio.open_memory_channel[bytes](10)
        """What watches of the peers bring; others bring nothing."""
        self._silence = trio.open_memory_channel[bytes](0)

    async def request(self, method: str, path: str, *, body: object = None, **_: object) -> bytes:
        await trio.lowlevel.checkpoint()
        if method != "GET":
            self.written.append(f"{method} {path}")
            self.bodies.append(cast(dict[str, Any], body))
            if not self.answers_writes:
                await trio.sleep_forever()
            if self.refuses is not None:
                raise self.refuses
            return self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if path == resources.NODES and self.refuses_nodes:
            self.refuses_nodes -= 1
            raise ApiError(403, "Forbidden", "its rights aren't known yet")
        if path in self.lists:
            return msgspec.json.encode(
                {"metadata": {"resourceVersion": "7"}, "items": [_plain(one) for one in self.lists[path]]}
            )
        if path not in self.has:
            raise ApiError(404, "NotFound", path)
        return msgspec.json.encode(_plain(self.has[path]))

    @asynccontextmanager
    async def watch(self, path: str, *_: object) -> AsyncIterator[AsyncIterator[bytes]]:
        await trio.lowlevel.checkpoint()
        yield self._told if path == resources.PEERS else self._silence[1]

    async def back(self) -> None:
        await trio.sleep_forever()

    def prefer(self, url: str) -> None:
        """There is but one."""


def _plain(one: Any) -> dict[str, Any]:
    return cast(dict[str, Any], json.loads(msgspec.json.encode(one)))


async def _forget(_memory: ClusterMemory) -> None:
    await trio.lowlevel.checkpoint()


def source_of(server: Server, remembered: ClusterMemory | None = None) -> KubernetesSource:
    return KubernetesSource(cast(ApiClient, server), ME, remembered=remembered, remember=_forget)


async def test_relays_of_a_nodes_own_configuration_change_while_it_runs(tmp_path: Path) -> None:
    nobody = Access(servers=("https://127.0.0.1:1",), token_file=None, ca_file=tmp_path / "none")
    client = ApiClient(nobody)
    remembered = ClusterMemory(node_name=ME.name, mesh=mesh(), peers=[peer("a", 0)])
    source = KubernetesSource(client, ME, remembered=remembered, remember=_forget, grace_s=0.0)
    async with trio.open_nursery() as nursery:
        await nursery.start(source.run)
        with trio.fail_after(SOON_S):
            before = await source.snapshot()
            source.use(replace(ME, relays=(JoinString("relay.example.net", 3478),)))
            after = await source.changed(before)
        assert before.relays != after.relays
        assert [relay.host for relay in after.relays] == ["relay.example.net"]
        nursery.cancel_scope.cancel()
    await client.aclose()


def test_an_api_server_that_can_be_none_takes_no_turn() -> None:
    """It is remembered, and would be asked first at each start, for ever."""
    client = ApiClient(Access(servers=("https://192.0.2.1",), token_file=None, ca_file=None))
    remembered = ClusterMemory(node_name=ME.name, mesh=mesh(apiServerURL="https://api:port"))
    KubernetesSource(client, ME, remembered=remembered, remember=_forget)
    assert client.server == "https://192.0.2.1"


async def test_a_list_that_lags_behind_removes_nobody(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    server = Server(peer("b", 1, allowedIPs=["10.100.0.2/32"]))
    server.has[OWN] = peer("a", 0, allowedIPs=["10.100.0.1/32"])
    server.answers = [msgspec.json.encode(_plain(server.has[OWN]))]
    source = source_of(server, WAS_THERE)
    await nursery.start(source.run)
    with trio.fail_after(SOON_S):
        seen = await source.snapshot()
    assert not source.removed
    assert [one.name for one in seen.peers] == ["b"]
    assert not [line for line in server.written if line.startswith("POST")]


async def test_a_resource_that_is_gone_removes_the_node(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    source = source_of(Server(peer("b", 1, allowedIPs=["10.100.0.2/32"])), WAS_THERE)
    await nursery.start(source.run)
    with trio.fail_after(SOON_S):
        seen = await source.snapshot()
    assert source.removed
    assert not seen.peers


@pytest.mark.parametrize(("refusals", "owners"), [(2, 1), (10**9, 0)])
async def test_a_resource_is_its_nodes_own_also_where_rights_take_a_moment(
    nursery: trio.Nursery, autojump_clock: MockClock, refusals: int, owners: int
) -> None:
    server = Server()
    server.lists[resources.NODES] = [node("10.0.0.5")]
    server.refuses_nodes = refusals
    server.answers = [msgspec.json.encode(_plain(peer("a", 0, allowedIPs=["10.100.0.1/32"])))]
    source = source_of(server)
    await nursery.start(source.run)
    with trio.fail_after(60):
        await source.snapshot()
    assert server.written[0].startswith("POST")
    assert len(server.bodies[0]["metadata"].get("ownerReferences", [])) == owners


async def test_a_write_that_takes_its_time_holds_up_no_news(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    """A webhook may take 30 s over it; a peer that was deleted must be gone within two."""
    gone = peer("b", 1, allowedIPs=["10.100.0.2/32"])
    server = Server(peer("a", 0, allowedIPs=[]), gone)
    server.answers_writes = False
    source = source_of(server)
    await nursery.start(source.run)
    with trio.fail_after(SOON_S):
        seen = await source.snapshot()
        assert [one.name for one in seen.peers] == ["b"]
        while not server.written:
            await trio.testing.wait_all_tasks_blocked(0.1)
        await server.tell.send(msgspec.json.encode({"type": "DELETED", "object": _plain(gone)}))
        assert (await source.changed(seen)).peers == ()


async def test_a_peer_that_changes_all_the_time_is_looked_at_now_and_then(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    own = peer("a", 0, allowedIPs=["10.100.0.1/32"])
    server = Server(own)
    server.answers = [msgspec.json.encode(_plain(own))]
    source = source_of(server)
    await nursery.start(source.run)
    with trio.fail_after(SOON_S):
        await source.snapshot()
    looks, before = 0, source.meaning
    for number in range(600):
        flapping = peer("b", 1, allowedIPs=["10.100.0.2/32"], endpoint=f"192.0.2.1:{number + 1}")
        await server.tell.send(msgspec.json.encode({"type": "MODIFIED", "object": _plain(flapping)}))
        await trio.sleep(0.1)
        looks, before = looks + (source.meaning is not before), source.meaning
    assert 60 * LOOKS_PER_S <= looks <= LOOKS_AT_ONCE + 60 * LOOKS_PER_S + 1
    await trio.sleep(1)
    assert source.meaning is not None
    assert [str(one.endpoint) for one in source.meaning.mesh.peers] == ["192.0.2.1:600"], (
        "the last one counts"
    )


async def test_a_correction_that_is_refused_is_told_until_it_is_taken(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    server = Server(peer("a", 0, allowedIPs=[]))
    server.refuses = ApiError(403, "Forbidden", "the agent of node a may not")
    server.answers = [msgspec.json.encode(_plain(peer("a", 0, allowedIPs=["10.100.0.1/32"])))]
    source = source_of(server)
    await nursery.start(source.run)
    await trio.sleep(3 * CORRECT_EVERY_S + 1)
    assert any("may not" in line for line in source.problems())
    assert 2 <= len(server.written) <= 4
    server.refuses = None
    await trio.sleep(CORRECT_EVERY_S + 1)
    assert source.problems() == []


@pytest.mark.parametrize("garbage", [b"<html>not what you asked for</html>", b"{}", b"[1]"])
async def test_an_answer_to_a_write_that_cannot_be_read_is_told_and_tried_again(
    nursery: trio.Nursery, autojump_clock: MockClock, garbage: bytes
) -> None:
    server = Server(peer("b", 1, allowedIPs=["10.100.0.2/32"]))
    server.answers = [garbage, msgspec.json.encode(_plain(peer("a", 0, allowedIPs=["10.100.0.1/32"])))]
    source = source_of(server)
    await nursery.start(source.run)
    await trio.sleep(1.0)
    assert source.problems()
    assert server.written == [f"POST {resources.PEERS}"]
    began = trio.current_time()
    with trio.fail_after(2 * CORRECT_EVERY_S):
        await source.snapshot()
    assert trio.current_time() - began <= CORRECT_EVERY_S + 1
    assert source.problems() == []


async def test_what_the_disk_did_not_take_is_written_once_it_does(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    """That a node was removed is nowhere else: it would make its resource anew after a restart."""
    full, disk = True, list[ClusterMemory]()

    async def write(memory: ClusterMemory) -> None:
        await trio.lowlevel.checkpoint()
        if full:
            raise HostError("cannot write: No space left on device")
        disk.append(memory)

    notebook = Notebook(WAS_THERE, write)
    nursery.start_soon(notebook.run)
    removed = msgspec.structs.replace(WAS_THERE, removed=True)
    await notebook.note_now(removed)
    assert "No space" in notebook.problem
    full = False
    await trio.sleep(2 * WRITE_EVERY_S)
    assert disk == [removed]
    assert notebook.problem == ""
    await trio.sleep(2 * WRITE_EVERY_S)
    assert len(disk) == 1, "and then it is written"
