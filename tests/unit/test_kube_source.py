"""The source of an agent in a cluster, whose API server is away: from memory, and what a reload changes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import trio

from relayd.coordination.kubernetes.client import Access, ApiClient
from relayd.coordination.kubernetes.memory import ClusterMemory
from relayd.coordination.kubernetes.source import KubernetesSource
from relayd.join import JoinString
from tests.helpers.running_relay import SOON_S
from tests.unit.test_kube_mesh import ME, mesh, peer


async def _forget(_memory: ClusterMemory) -> None:
    await trio.lowlevel.checkpoint()


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
