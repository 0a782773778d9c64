"""A node's status: what is in it, and how seldom it is written."""

from __future__ import annotations

import json
from dataclasses import replace

from relayd.coordination.kubernetes.report import (
    CHANGE_EVERY_S,
    HEARTBEAT_S,
    MAX_CONNECTIONS,
    Facts,
    PeerFacts,
    Reporter,
    port_prediction,
    rfc3339,
)

WALL = 1_800_000_000.0


def peer(name: str, path: str = "direct", *, age_s: float | None = 10, rx: int = 1, tx: int = 2) -> PeerFacts:
    handshake_at = None if age_s is None else WALL - age_s
    return PeerFacts(name=name, path=path, handshake_at=handshake_at, rx_bytes=rx, tx_bytes=tx)


def facts(*peers: PeerFacts, relay: bool = True) -> Facts:
    return Facts(peers=peers, relay_connected=relay)


def test_what_a_status_says() -> None:
    told = replace(
        facts(peer("b"), peer("c", "relay", age_s=3), peer("d", "none", age_s=None)),
        relay_latency_ms=0.2,
        endpoint_method="manual",
    )
    status = Reporter().due(told, now=0, wall_now=WALL)
    assert status is not None
    conditions = {one["type"]: one for one in status.pop("conditions")}
    assert status == {
        "connected": True,
        "lastHandshake": rfc3339(WALL - 3),
        "lastReportedAt": rfc3339(WALL),
        "bytesReceived": 3,
        "bytesSent": 6,
        "connections": {"b": "direct", "c": "relay"},
        "relayLatencyMs": 1,
        "endpointDiscoveryMethod": "manual",
    }
    assert conditions["Ready"]["message"] == "1 direct, 1 relayed, 1 without a path"
    assert conditions["Configured"]["status"] == "True"


def test_what_a_symmetric_nat_gives_next_as_wirekube_puts_it() -> None:
    assert port_prediction([40001, 40003, 40006]) == {
        "basePort": 40006,
        "increment": 2,
        "jitter": 1,
        "samplePorts": [40001, 40003, 40006],
    }
    assert port_prediction([40006, 40003, 40001])["increment"] == -2, "towards zero, as Go divides"
    assert port_prediction([40001]) == port_prediction([]) == {}


def test_ports_of_a_symmetric_nat_and_the_engine_are_told_and_ask_for_no_write() -> None:
    told = replace(facts(), mapped_ports=[5, 7], bind_mode="userspace")
    reporter = Reporter()
    status = reporter.due(told, now=0, wall_now=WALL)
    assert status is not None
    assert (status["bindMode"], status["portPrediction"]["basePort"]) == ("userspace", 7)
    reporter.written(told, now=0, wall_now=WALL)
    moved = replace(told, mapped_ports=[9, 11])
    assert reporter.due(moved, now=CHANGE_EVERY_S + 1, wall_now=WALL) is None


def test_a_node_with_neither_relay_nor_session_is_not_connected() -> None:
    for told, connected in (
        (facts(peer("b", age_s=None), relay=False), False),
        (facts(peer("b", age_s=500), relay=False), False),
        (facts(peer("b", age_s=100), relay=False), True),
        (facts(relay=True), True),
    ):
        status = Reporter().due(told, now=0, wall_now=WALL)
        assert status is not None
        assert status["connected"] is connected


def test_counters_wait_for_the_heartbeat_and_changes_for_ten_seconds() -> None:
    reporter = Reporter()
    first = facts(peer("b"))
    assert reporter.due(first, now=0, wall_now=WALL)
    reporter.written(first, now=0, wall_now=WALL)
    busier = facts(peer("b", rx=10**9, age_s=1))
    assert reporter.due(busier, now=HEARTBEAT_S - 1, wall_now=WALL) is None
    assert reporter.due(busier, now=HEARTBEAT_S, wall_now=WALL)
    other = facts(peer("b", "relay"))
    assert reporter.due(other, now=CHANGE_EVERY_S - 1, wall_now=WALL) is None
    assert reporter.due(other, now=CHANGE_EVERY_S, wall_now=WALL)


def test_a_change_that_went_back_is_not_written() -> None:
    reporter = Reporter()
    first = facts(peer("b"))
    reporter.written(first, now=0, wall_now=WALL)
    assert reporter.due(facts(peer("b", "relay")), now=5, wall_now=WALL) is None
    assert reporter.due(first, now=20, wall_now=WALL) is None


def test_a_refused_write_is_tried_again_no_sooner_than_a_change() -> None:
    reporter = Reporter()
    reporter.refused(now=0)
    assert reporter.due(facts(), now=CHANGE_EVERY_S - 1, wall_now=WALL) is None
    assert reporter.due(facts(), now=CHANGE_EVERY_S, wall_now=WALL)


def test_a_condition_keeps_its_time_until_it_turns() -> None:
    reporter = Reporter()

    def ready(at: float, relay: bool) -> str:
        status = reporter.due(facts(relay=relay), now=at, wall_now=WALL + at)
        assert status is not None
        return str(status["conditions"][0]["lastTransitionTime"])

    assert ready(0, relay=True) == ready(100, relay=True) == rfc3339(WALL)
    assert ready(200, relay=False) == rfc3339(WALL + 200)


def test_in_a_mesh_of_a_thousand_a_status_stays_small() -> None:
    many = [peer(f"node-{n:04}.example.net", "relay" if n % 40 == 0 else "direct") for n in range(1000)]
    status = Reporter().due(facts(*many), now=0, wall_now=WALL)
    assert status is not None
    assert len(status["connections"]) == MAX_CONNECTIONS
    assert list(status["connections"].values()).count("relay") == 25, "those come first"
    assert len(json.dumps(status)) < 2048


def test_fields_that_the_cluster_does_not_know_are_left_out() -> None:
    status = Reporter(unknown={"lastReportedAt"}).due(facts(), now=0, wall_now=WALL)
    assert status is not None
    assert "lastReportedAt" not in status


def test_checks_of_relayed_peers_cause_no_writes() -> None:
    reporter, told = Reporter(), replace(facts(peer("b", "relay")), ice_state="checking")
    assert reporter.due(told, now=0, wall_now=WALL) is not None
    reporter.written(told, now=0, wall_now=WALL)
    for state in ("failed", "checking", "relay"):
        told = replace(told, ice_state=state)
        assert reporter.due(told, now=CHANGE_EVERY_S + 1, wall_now=WALL) is None
    later = reporter.due(told, now=HEARTBEAT_S, wall_now=WALL)
    assert later is not None
    assert later["iceState"] == "relay", "it goes along with the heartbeat"
    direct = replace(told, ice_state="connected")
    assert reporter.due(direct, now=CHANGE_EVERY_S + 1, wall_now=WALL) is not None
