"""/metrics: what is exposed, that the page which explains it has all of it, and that it stays bounded."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import trio
from prometheus_client.parser import text_string_to_metric_families

from relayd.config import RelayConfig
from relayd.observe.control import ask
from relayd.observe.exposition import Exporter
from relayd.observe.metrics import AGENT, MAX_PEERS, PEER, RELAY
from relayd.relay.counters import OUTBOX_COUNTERS, PORT_COUNTERS
from relayd.relay.door_limits import FULL, TOO_FAST, TOO_MANY_HERE
from relayd.relay.refusals import KEY_IN_USE, NEVER_REGISTERED, NO_DESCRIPTORS
from relayd.relay.server import serve
from relayd.relay.tls_door import TOO_MANY
from relayd.wire.identity import BEFORE_PROOF, Refusal
from tests.helpers.http import http_get
from tests.helpers.observed import agent_peer, agent_status, relay_status
from tests.helpers.status_page import undocumented, unexposed

PAGE = Path(__file__).parents[2] / "docs" / "metrics.md"
PROCESS = {
    "process_cpu_seconds_total",
    "process_max_fds",
    "process_open_fds",
    "process_resident_memory_bytes",
    "process_start_time_seconds",
    "process_virtual_memory_bytes",
}
"""prometheus_client's own, read from /proc."""


def exposed(status: dict[str, Any]) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    """The samples: (name, labels) -> value."""
    text = Exporter().render(status, status["peers"]).decode()
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def value(status: dict[str, Any], name: str, **labels: str) -> float:
    return exposed(status)[name, tuple(sorted(labels.items()))]


@pytest.mark.parametrize("status", [relay_status(), agent_status()], ids=["relay", "agent"])
def test_every_metric_of_a_role_is_exposed(status: dict[str, Any]) -> None:
    status["peers"] = [peer | {"round_trip_ms": 2.0} for peer in status["peers"]]
    tables = RELAY if status["role"] == "relay" else (*AGENT, *PEER)
    expected = {
        name
        for metric in tables
        for name in (
            [f"{metric.name}_{part}" for part in ("bucket", "count", "sum")]
            if metric.kind == "histogram"
            else [metric.name]
        )
    }
    assert {name for name, _ in exposed(status)} == expected | PROCESS


def test_counters_are_the_status_own() -> None:
    status = relay_status(3)
    assert value(status, "relayd_connections") == 3
    assert value(status, "relayd_dropped_frames_total", reason="full") == 6
    assert value(status, "relayd_refused_connections_total", reason="never registered") == 3
    assert value(status, "relayd_received_bytes_total") == 10_000_000
    assert value(status, "relayd_loop_lag_max_seconds") == 0.0115


def test_the_queue_delay_is_a_cumulative_histogram_in_seconds() -> None:
    status = relay_status()
    name = "relayd_queue_delay_seconds"
    assert value(status, f"{name}_bucket", le="0.002") == 0
    assert value(status, f"{name}_bucket", le="0.005") == 9
    assert value(status, f"{name}_bucket", le="0.2") == 9
    assert value(status, f"{name}_bucket", le="0.5") == 10
    assert value(status, f"{name}_bucket", le="+Inf") == 10
    assert value(status, f"{name}_count") == 10
    assert value(status, f"{name}_sum") == pytest.approx(0.327)


def test_peers_have_their_path_their_age_and_their_bytes() -> None:
    status = agent_status(("direct", "relay", "none"))
    keys = [peer["key"] for peer in status["peers"]]

    def of(number: int, name: str, **labels: str) -> float:
        return value(status, name, source="vm", peer=keys[number], **labels)

    assert [of(n, "wirekube_peer_transport_mode") for n in range(3)] == [1, 2, 0]
    assert [of(n, "wirekube_peer_connected", nat_type="unknown") for n in range(3)] == [1, 1, 0]
    assert of(0, "wirekube_peer_last_handshake_seconds") == 12
    assert of(1, "wirekube_peer_bytes_received_total") == 123_456_789
    with pytest.raises(KeyError):
        of(2, "wirekube_peer_last_handshake_seconds")  # never: no number stands for that
    assert value(status, "wirekube_direct_peers_total") == 1
    assert value(status, "wirekube_relayed_peers_total") == 2
    assert value(status, "relayd_unreachable_peers") == 1
    assert value(status, "relayd_ready") == 0


def test_a_peer_with_a_name_has_that_as_its_label() -> None:
    status = agent_status(("direct", "relay"))
    status["peers"][0]["name"] = "branch office"
    key = status["peers"][1]["key"]
    assert value(status, "wirekube_peer_transport_mode", source="vm", peer="branch office") == 1
    assert value(status, "wirekube_peer_transport_mode", source="vm", peer=key) == 2


def test_the_nodes_nat_has_the_label_that_wirekubes_dashboards_know() -> None:
    status = agent_status()
    assert value(status, "wirekube_node_nat_type", node="vm") == 3
    assert value(status | {"discovery": None}, "wirekube_node_nat_type", node="vm") == 0


@pytest.mark.parametrize("status", [relay_status(), agent_status()], ids=["relay", "agent"])
def test_the_statuses_of_the_tests_are_like_real_ones(status: dict[str, Any]) -> None:
    assert undocumented(status) == set()
    assert unexposed(status) <= {"paths"}


def test_a_field_that_nobody_explains_is_found() -> None:
    assert undocumented(relay_status(1, novelty=1)) == {"novelty"}
    assert unexposed(relay_status(1, novelty=1)) == {"novelty"}
    status = agent_status(("direct",))
    status["relay"]["novelty"] = status["peers"][0]["oddity"] = 1
    assert undocumented(status) == {"novelty", "oddity"}


def test_a_handshake_that_is_just_over_counts() -> None:
    status = agent_status(())
    status["peers"] = [agent_peer(1, handshake_age_s=0.0), agent_peer(2, handshake_age_s=180.0)]
    connected = [figure for (name, _), figure in exposed(status).items() if name == "wirekube_peer_connected"]
    assert connected == [1, 0]


def test_series_are_bounded_and_what_is_left_out_is_counted() -> None:
    status = agent_status(("direct",) * (MAX_PEERS + 5))
    assert value(status, "relayd_peers_without_series") == 5
    assert value(status, "wirekube_peers_total") == MAX_PEERS + 5
    names = [name for name, _ in exposed(status)]
    assert names.count("wirekube_peer_transport_mode") == MAX_PEERS


def test_a_strange_reason_is_a_label_and_no_line_of_its_own() -> None:
    reason = 'a "quoted" \\ reason\nrelayd_connections 666'
    status = relay_status(3, drops={reason: 1})
    assert value(status, "relayd_dropped_frames_total", reason=reason) == 1
    assert value(status, "relayd_connections") == 3


def test_a_relay_has_no_series_that_its_agents_can_multiply() -> None:
    assert len(exposed(relay_status(10))) == len(exposed(relay_status(1000)))


async def test_a_running_relay_serves_what_its_counters_say(tmp_path: Path) -> None:
    """Over HTTP, from a real relay: its status has all that the tables read."""
    config = RelayConfig(
        listen=("127.0.0.1:0",),
        control=str(tmp_path / "relay.sock"),
        http="127.0.0.1:0",
        state_dir=str(tmp_path),
    )
    async with trio.open_nursery() as nursery:
        await nursery.start(serve, config)
        status = await ask(config.control, "status")
        body = await http_get(status["http"], "/metrics")
        assert json.loads(await http_get(status["http"], "/status")).keys() == status.keys()
        nursery.cancel_scope.cancel()
    assert undocumented(status) == set(), "a row in docs/status.md"
    assert unexposed(status) == set(), "a line in relayd/observe/metrics.py, and its row in docs/metrics.md"
    families = {family.name for family in text_string_to_metric_families(body.decode())}
    assert families >= {metric.name.removesuffix("_total") for metric in RELAY}


def test_what_prometheus_client_does_without_is_whole_for_others() -> None:
    code = (
        "import sys; from relayd.observe.exposition import Exporter; Exporter()\n"
        "assert 'http.server' not in sys.modules and 'urllib.request' not in sys.modules\n"
        "import urllib.request, http.server, wsgiref.simple_server\n"
        "assert urllib.request.Request('http://a/').host == 'a' and http.server.HTTPServer.server_bind\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_the_page_has_every_metric_as_it_is_and_no_other() -> None:
    rows = re.findall(r"^\| `(\w+)` \| (\w+) \| ([^|]*) \| ([^|]*) \|$", PAGE.read_text(), re.MULTILINE)
    documented = {name: (kind, labels.strip(), text.strip()) for name, kind, labels, text in rows}
    tables = {metric.name: metric for metric in (*RELAY, *AGENT)}
    expected = {
        name: (metric.kind, f"`{metric.label}`" if metric.label else "", metric.help)
        for name, metric in tables.items()
    } | {
        metric.name: (
            metric.kind,
            ", ".join(f"`{label}`" for label in ("source", "peer", metric.label) if label),
            metric.help,
        )
        for metric in PEER
    }
    assert {name: row for name, row in documented.items() if name not in PROCESS} == expected
    assert documented.keys() >= PROCESS
    assert len(rows) == len(documented), "a metric has two rows"


SOURCES = Path(__file__).parents[2] / "relayd"


def sources(*names: str) -> str:
    return "".join((SOURCES / name).read_text() for name in names)


def agents_drops() -> set[str]:
    """The reasons by which an agent counts what is lost, as its modules have them."""
    of_link = sources("agent/relay_session.py", "agent/relay_leg.py", "agent/link_tally.py")
    of_proxy = sources("agent/wg_proxy.py")
    found = set(re.findall(r'(?:drops|dropped|total)\["(\w+)"\]', of_link + of_proxy))
    found |= set(re.findall(r'"(wireguard_\w+)"', of_proxy)) | set(re.findall(r"(queue_\w+)=", of_link))
    sealed = re.findall(r'drops\["(\w+)"\]', sources("wire/sealed_inbox.py"))
    return found | {f"sealed_{reason}" for reason in sealed} | {"unknown_key", "empty", BEFORE_PROOF}


def relays_refusals() -> set[str]:
    literal = re.findall(r'(?:refused\[|_evict\(.*, )"([^"]+)"', sources("relay/doorway.py"))
    of_handshake = (Refusal.PROTOCOL, Refusal.TIMEOUT, Refusal.BAD_PROOF, Refusal.NOT_ADMITTED)
    at_the_door = (TOO_FAST, TOO_MANY_HERE, FULL, TOO_MANY, NO_DESCRIPTORS, KEY_IN_USE, NEVER_REGISTERED)
    return {*literal, *at_the_door, *(refusal.value for refusal in of_handshake)}


def test_the_page_says_what_every_reason_means() -> None:
    explained = set(re.findall(r"`([^`]+)`", PAGE.read_text().partition("## Why connections are refused")[2]))
    drops = {
        name.removeprefix("dropped_") for name in (*PORT_COUNTERS, *OUTBOX_COUNTERS) if "dropped_" in name
    }
    assert len(agents_drops()) > 20
    assert agents_drops() | drops | relays_refusals() <= explained


def test_the_status_page_has_words_for_every_drop() -> None:
    words = set(re.findall(r"^  (\w+): ", sources("observe/page/agent.js"), re.MULTILINE))
    assert agents_drops() <= words
