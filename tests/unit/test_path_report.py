"""What is told of a peer's path, as values and in words."""

from __future__ import annotations

import io
import json
from typing import Any

from relayd.paths import report
from relayd.peer_view import in_words, print_peers
from tests.helpers.path_network import Network


def direct_network() -> Network:
    network = Network(3, "port_restricted", "full_cone")
    network.start()
    for node in network.nodes:
        network.send_traffic(node, 0.05)
    network.run(10.0)
    return network


def told(network: Network) -> dict[str, Any]:
    """As it comes out of the control socket."""
    assert network.a.path is not None
    loaded: dict[str, Any] = json.loads(json.dumps(report.summary(network.a.path, network.now)))
    return loaded


def test_a_direct_peer_is_told_with_its_round_trips_and_what_became_of_each_candidate() -> None:
    network = direct_network()
    summary = told(network)
    assert (summary["state"], summary["ice_state"], summary["changes"]) == ("direct", "connected", 1)
    assert 30 < summary["round_trip_ms"]["direct"] < 60
    assert 50 < summary["round_trip_ms"]["relay"] < 80
    first, *others = summary["candidates"]
    assert first["state"] == "valid"
    assert {one["state"] for one in others} <= {"failed", "checking", "waiting"}
    assert summary["waits_s"] is None


def test_a_peer_that_is_left_alone_is_told_so() -> None:
    network = Network(3, "none", "none", agents=(True, False))
    network.start()
    network.run(5.0)
    summary = told(network)
    assert (summary["state"], summary["talks"]) == ("left alone", False)


def test_a_failed_path_is_told_with_the_wait_and_the_history_in_words() -> None:
    network = direct_network()
    for way in network.ways.values():
        way.cut = True
    network.run(5.0)
    summary = told(network)
    assert summary["state"] in ("relay", "probing")
    assert summary["waits_s"] > 0
    assert network.a.path is not None
    lines = in_words(report.history(network.a.path, network.now))
    assert any("direct by 203.0.113.2" in line for line in lines)
    assert any("on the relay, because: " in line for line in lines)


def test_who_has_no_history_is_told_why() -> None:
    assert in_words([]) == [
        "nothing has happened yet: the peer's agent hasn't been heard of, or doesn't look for paths"
    ]


def test_a_person_sees_path_round_trips_and_candidates() -> None:
    network = direct_network()
    peer = {
        "key": "A" * 43 + "=",
        "path": "direct",
        "endpoint": "203.0.113.2:1",
        "reason": "a full-size Ping was answered",
        "handshake_age_s": 3.0,
        "rx_bytes": 1,
        "tx_bytes": 2,
        "paths": told(network),
        "history": [
            {"ago_s": 1.0, "state": "direct", "endpoint": "203.0.113.2:1", "why": "it\x1b[31m works"}
        ],
    }
    for why in (False, True):
        out = io.StringIO()
        print_peers([peer], why=why, file=out, columns=100)
        shown = out.getvalue()
        assert "path       direct, by 203.0.113.2:1" in shown
        assert ("CANDIDATE" in shown) is not why
        assert ("because" in shown) is why
        assert "\x1b" not in shown


def test_a_peer_of_an_agent_that_does_not_look_is_shown_all_the_same() -> None:
    out = io.StringIO()
    print_peers([{"key": "k", "path": "relay", "paths": None}], why=False, file=out, columns=80)
    assert "no addresses of the peer were tried" in out.getvalue()


def test_looking_for_a_better_path_does_not_make_the_present_one_younger() -> None:
    network = Network(3, "symmetric", "symmetric")
    network.start()
    network.run(20.0)
    summary = told(network)
    assert summary["since_s"] < 15.0 < summary["path_since_s"]  # rounds of checks begin and end
