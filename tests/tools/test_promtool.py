"""Metrics, alert rules and the dashboard's queries, as Prometheus' own tool judges them."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from relayd.observe.exposition import Exporter
from tests.helpers.observed import agent_status, relay_status
from tests.helpers.promtool import promtool
from tests.unit.test_monitoring import RULES, queries, rules

GAUGES_OF_WIREKUBE = {
    f"wirekube_{name}_total"
    for name in ("direct_peers", "relayed_peers", "peers", "peer_bytes_sent", "peer_bytes_received")
}
"""Named by others, and kept (docs/metrics.md): the one thing that promtool may complain of."""


@pytest.mark.parametrize("status", [relay_status(), agent_status()], ids=["relay", "agent"])
def test_what_is_exposed_is_as_prometheus_wants_it(status: dict[str, Any]) -> None:
    text = Exporter().render(status, status["peers"]).decode()
    code, said = promtool("check", "metrics", stdin=text)
    assert code in (0, 3), said  # 3: it reads them, and has something to say about names
    complaints = {tuple(line.split(" ", 1)) for line in said.splitlines()}
    suffix = 'non-counter metrics should not have "_total" suffix'
    assert complaints <= {(name, suffix) for name in GAUGES_OF_WIREKUBE}


def test_promtool_would_find_a_mistake() -> None:
    assert promtool("check", "metrics", stdin="relayd_x{a=b} 1\n")[0] != 0


def test_the_rules_are_rules() -> None:
    code, said = promtool("check", "rules", str(RULES))
    assert (code, f"{len(rules())} rules found" in said) == (0, True), said


def test_the_dashboards_queries_are_expressions(tmp_path: Path) -> None:
    """As recording rules, with Grafana's variables filled in."""
    filled = [re.sub(r"\$__rate_interval", "1m", query).replace("$job", ".*") for query in queries()]
    groups = [
        {
            "name": "dashboard",
            "rules": [
                {"record": f"query:{number}", "expr": query.replace("$instance", ".*")}
                for number, query in enumerate(filled)
            ],
        }
    ]
    path = tmp_path / "queries.json"
    path.write_text(json.dumps({"groups": groups}))  # JSON is YAML
    code, said = promtool("check", "rules", str(path))
    assert code == 0, said


@dataclass(frozen=True)
class Case:
    """One alert: series (one value a minute, in promtool's notation) that set it off, and its labels then."""

    series: dict[str, str]
    labels: dict[str, str] = field(default_factory=dict)
    minutes: int = 30


AT = 'job="relayd", instance="a:9478"'
ON = {"job": "relayd", "instance": "a:9478"}
PEER = f'{AT}, source="n", peer="p"'
INFO = {f"relayd_info{{{AT}}}": "1x60"}
DROPS = "relayd_dropped_frames_total"

CASES = {
    "RelaydDown": Case({f"up{{{AT}}}": "0x60"}, ON),
    "RelaydNotReady": Case({f"relayd_ready{{{AT}}}": "0x60"}, ON),
    "RelaydRestarting": Case(
        INFO | {f"process_start_time_seconds{{{AT}}}": "1 60 120 180 240 300x60"}, ON, 10
    ),
    "RelaydDropsForSlowReceivers": Case({f'{DROPS}{{{AT}, reason="full"}}': "0+900x60"}, ON),
    "RelaydQueueDelayHigh": Case(
        {
            f'relayd_queue_delay_seconds_bucket{{{AT}, le="0.1"}}': "0+900x60",
            f'relayd_queue_delay_seconds_bucket{{{AT}, le="0.5"}}': "0+1000x60",
            f'relayd_queue_delay_seconds_bucket{{{AT}, le="+Inf"}}': "0+1000x60",
            f"relayd_queue_delay_seconds_count{{{AT}}}": "0+1000x60",
        },
        ON,
    ),
    "RelaydLoopHeldUp": Case({f"relayd_loop_lag_max_seconds{{{AT}}}": "0.4x60"}, ON),
    "RelaydFewDescriptorsLeft": Case(
        INFO | {f"process_open_fds{{{AT}}}": "900x60", f"process_max_fds{{{AT}}}": "1000x60"}, ON
    ),
    "RelaydRefusesConnections": Case(
        {f'relayd_refused_connections_total{{{AT}, reason="key in use"}}': "0+30x60"},
        ON | {"reason": "key in use"},
    ),
    "RelaydFramesForAbsentAgents": Case(
        {
            f'{DROPS}{{{AT}, reason="absent"}}': "0+600x60",
            f"relayd_received_frames_total{{{AT}}}": "0+3000x60",
        },
        ON,
        40,
    ),
    "RelaydAgentWithoutRelay": Case({f'relayd_link_connected{{{AT}, relay="r:3478"}}': "0x60"}, ON),
    "RelaydPeersUnreachable": Case({f"relayd_unreachable_peers{{{AT}}}": "2x60"}, ON),
    "RelaydPeerDoesNotAnswer": Case(
        {
            f"wirekube_peer_last_handshake_seconds{{{PEER}}}": "400+60x60",
            f"wirekube_peer_bytes_sent_total{{{PEER}}}": "0+148x60",
        },
        ON | {"source": "n", "peer": "p"},
    ),
    "RelaydPathUnsteady": Case(
        {f"relayd_peer_path_changes_total{{{PEER}}}": "0+1x60"}, ON | {"source": "n", "peer": "p"}, 40
    ),
    "RelaydInterfaceLost": Case({f"relayd_interface_up{{{AT}}}": "0x60"}, ON),
    "RelaydClusterUnknown": Case({f"relayd_cluster_current{{{AT}}}": "0x60"}, ON),
    "RelaydHostProblem": Case({f"relayd_host_problems{{{AT}}}": "1x60"}, ON),
    "RelaydProxyRefused": Case({f"relayd_proxy_renewals_total{{{AT}}}": "0+1x60"}, ON),
    "RelaydPeersPastTheLimit": Case({f"relayd_peers_without_series{{{AT}}}": "5x60"}, ON),
}

HEALTHY = INFO | {
    f"up{{{AT}}}": "1x60",
    f"relayd_ready{{{AT}}}": "1x60",
    f"process_start_time_seconds{{{AT}}}": "1 1 500x60",  # one restart is none to tell of
    f"process_open_fds{{{AT}}}": "500x60",
    f"process_max_fds{{{AT}}}": "1000x60",
    f"relayd_loop_lag_max_seconds{{{AT}}}": "0.02x60",
    f"relayd_received_frames_total{{{AT}}}": "0+60000x60",
    f'{DROPS}{{{AT}, reason="full"}}': "0+60x60",
    f'{DROPS}{{{AT}, reason="absent"}}': "0+600x60",
    f'{DROPS}{{{AT}, reason="queue_full"}}': "0+60x60",
    f'relayd_queue_delay_seconds_bucket{{{AT}, le="0.1"}}': "0+1000x60",
    f'relayd_queue_delay_seconds_bucket{{{AT}, le="0.5"}}': "0+1000x60",
    f'relayd_queue_delay_seconds_bucket{{{AT}, le="+Inf"}}': "0+1000x60",
    f"relayd_queue_delay_seconds_count{{{AT}}}": "0+1000x60",
    f'relayd_refused_connections_total{{{AT}, reason="never registered"}}': "0+6x60",
    f'relayd_link_connected{{{AT}, relay="r:3478"}}': "1x60",
    f'relayd_link_connected{{{AT}, relay="s:3478"}}': "0x60",
    f"relayd_unreachable_peers{{{AT}}}": "0x60",
    f"relayd_interface_up{{{AT}}}": "1x60",
    f"relayd_host_problems{{{AT}}}": "0x60",
    f"relayd_peer_path_changes_total{{{PEER}}}": "0+1x4 5x60",
    f"relayd_cluster_current{{{AT}}}": "1x60",
    f"relayd_proxy_renewals_total{{{AT}}}": "1x60",
    f"relayd_peers_without_series{{{AT}}}": "0x60",
    # Idle, and old for that: nobody has sent anything.
    f"wirekube_peer_last_handshake_seconds{{{PEER}}}": "400+60x60",
    f"wirekube_peer_bytes_sent_total{{{PEER}}}": "148x60",
}


def run(tmp_path: Path, series: dict[str, str], alerts: list[dict[str, Any]]) -> tuple[int, str]:
    """`promtool test rules` with these series."""
    test = {
        "rule_files": [str(RULES)],
        "evaluation_interval": "1m",
        "tests": [
            {
                "interval": "1m",
                "input_series": [{"series": name, "values": values} for name, values in series.items()],
                "alert_rule_test": alerts,
            }
        ],
    }
    path = tmp_path / "test.json"
    path.write_text(json.dumps(test))
    return promtool("test", "rules", str(path))


def test_every_alert_has_a_case() -> None:
    assert sorted(CASES) == sorted(rule["alert"] for rule in rules())


@pytest.mark.parametrize("alert", sorted(CASES))
def test_an_alert_goes_off(alert: str, tmp_path: Path) -> None:
    case = CASES[alert]
    (rule,) = (rule for rule in rules() if rule["alert"] == alert)
    expected = {"exp_labels": case.labels | rule["labels"], "exp_annotations": rule["annotations"]}
    alerts = [{"eval_time": f"{case.minutes}m", "alertname": alert, "exp_alerts": [expected]}]
    if "for" in rule:  # and not at once
        alerts.append({"eval_time": "0m", "alertname": alert, "exp_alerts": []})
    code, said = run(tmp_path, case.series, alerts)
    assert code == 0, said


def test_no_alert_goes_off_for_what_is_healthy(tmp_path: Path) -> None:
    alerts = [
        {"eval_time": f"{minute}m", "alertname": rule["alert"], "exp_alerts": []}
        for rule in rules()
        for minute in (5, 30, 55)
    ]
    code, said = run(tmp_path, HEALTHY, alerts)
    assert code == 0, said
