"""Dashboard and alert rules: what they ask for exists, and each alert has its paragraph."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from relayd.observe.metrics import AGENT, PEER, RELAY

ROOT = Path(__file__).parents[2]
DASHBOARD = ROOT / "config" / "grafana" / "relayd.json"
RULES = ROOT / "config" / "prometheus" / "relayd.rules.yml"
RUNBOOK = ROOT / "docs" / "runbook.md"

PROCESS = {"process_cpu_seconds_total", "process_resident_memory_bytes", "process_open_fds"} | {
    "process_max_fds",
    "process_start_time_seconds",
}
FIELDS = {"relay.mode", "relay.provider", "relay.managed"}
"""Of a WireKubeMesh: no events."""

LABELS = {"way", "outcome", "job", "instance", "reason", "by", "le", "source", "peer"}
"""What queries may group by: Prometheus' own, a histogram's, and those of the tables."""


def exposed() -> set[str]:
    """The names of samples."""
    names = set(PROCESS) | {"up"}
    for metric in (*RELAY, *AGENT, *PEER):
        if metric.kind == "histogram":
            names |= {f"{metric.name}_{part}" for part in ("bucket", "count", "sum")}
        else:
            names.add(metric.name)
    return names


def asked(query: str) -> set[str]:
    """The metrics that a PromQL expression names: words that are no function, label or keyword."""
    bare = re.sub(r'"[^"]*"|\[[^]]*\]', "", query)
    bare = re.sub(r"\b(by|on|without|ignoring)\s*\([^)]*\)", "", bare)
    bare = re.sub(r"\{[^}]*\}", "", bare)
    return set(re.findall(r"\b[a-z_][a-z0-9_]*\b(?!\s*\()", bare)) - {"and", "or", "unless", "by", "on"}


def grouped_by(query: str) -> set[str]:
    groups = re.findall(r"\b(?:by|on)\s*\(([^)]*)\)", query)
    return {label.strip() for group in groups for label in group.split(",")}


def rules() -> list[dict[str, Any]]:
    return [rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]]


def panels() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(DASHBOARD.read_text())["panels"]
    return found


def queries() -> list[str]:
    """Of the dashboard: panels, annotations and variables."""
    dashboard = json.loads(DASHBOARD.read_text())
    found = [target["expr"] for panel in panels() for target in panel.get("targets", [])]
    found += [one["expr"] for one in dashboard["annotations"]["list"] if "expr" in one]
    for variable in dashboard["templating"]["list"]:
        if variable["type"] == "query":
            found.append(re.sub(r"label_values\((.*), \w+\)", r"\1", variable["query"]["query"]))
    return found


@pytest.mark.parametrize("query", sorted({*queries(), *(rule["expr"] for rule in rules())}))
def test_what_a_query_names_is_exposed(query: str) -> None:
    assert asked(query), query
    assert asked(query) <= exposed()
    assert grouped_by(query) <= LABELS


def test_the_tests_own_reading_of_queries() -> None:
    query = 'sum by (le) (rate(relayd_x_bucket{a="b_c", d=~"$e"}[5m])) > 0.1 and on (job) up == 1e3'
    assert asked(query) == {"relayd_x_bucket", "up"}
    assert grouped_by(query) == {"le", "job"}


def test_the_dashboard_shows_every_metric_that_counts() -> None:
    """Not all: what a panel would show nothing of is left to whoever looks for it."""
    left_out = {
        "wirekube_peer_ice_state",
        "relayd_cluster_current",
        "relayd_mesh_waits_for_restart",
        "relayd_nat_type",
        "relayd_link_proved",
        "relayd_peer_gone",
        "relayd_reading_pauses_total",
        "relayd_stun_datagrams_total",
        "relayd_admission_problem",
        "relayd_not_resumed_connections_total",
        "relayd_resumed_connections_total",
        "relayd_accepted_connections_total",
        "relayd_interface_up",
        "relayd_link_dials_total",
        "relayd_link_received_total",
        "relayd_nat_probes_total",
        "relayd_peers_without_series",
        "relayd_proxy_renewals_total",
        "relayd_queue_delay_seconds_count",
        "relayd_queue_delay_seconds_sum",
        "relayd_ready",
        "relayd_received_frames_total",
        "relayd_unknown_frames_total",
        "up",
        "wirekube_peer_bytes_received_total",
        "wirekube_node_nat_type",
        "wirekube_peer_connected",
    }
    shown = {name for query in queries() for name in asked(query)}
    assert exposed() - shown == left_out


def test_the_dashboard_is_one_that_grafana_reads() -> None:
    dashboard = json.loads(DASHBOARD.read_text())
    assert dashboard["schemaVersion"] >= 36
    assert dashboard["uid"] == "relayd"
    identifiers = [panel["id"] for panel in panels()]
    assert len(set(identifiers)) == len(identifiers)
    for panel in panels():
        assert panel["type"] in {"row", "stat", "timeseries", "table"}
        references = [target["refId"] for target in panel.get("targets", [])]
        assert len(set(references)) == len(references)
        assert panel["type"] == "row" or references
        assert panel["title"]


def test_no_two_panels_overlap() -> None:
    taken: dict[tuple[int, int], str] = {}
    for panel in panels():
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        for x in range(place["x"], place["x"] + place["w"]):
            for y in range(place["y"], place["y"] + place["h"]):
                assert taken.setdefault((x, y), panel["title"]) == panel["title"]


def test_every_alert_has_its_paragraph_and_every_paragraph_its_alert() -> None:
    alerts = [rule["alert"] for rule in rules()]
    assert len(set(alerts)) == len(alerts)
    paragraphs = re.findall(r"^### (\w+)\n\n(?=\S)", RUNBOOK.read_text(), re.MULTILINE)
    assert sorted(paragraphs) == sorted(alerts)
    for rule in rules():
        assert rule["annotations"]["runbook"] == f"docs/runbook.md#{rule['alert'].lower()}"
        assert rule["annotations"]["summary"].endswith(".")
        assert rule["labels"]["severity"] in {"critical", "warning", "info"}


def test_what_the_runbook_names_is_exposed() -> None:
    named = set(re.findall(r"\b(?:relayd|wirekube|process)_[a-z_]+\b", RUNBOOK.read_text()))
    assert named <= exposed()


@pytest.mark.parametrize("page", ["runbook.md", "systemd.md", "node-management.md", "kubernetes.md"])
def test_events_that_a_page_names_are_logged(page: str) -> None:
    text = (ROOT / "docs" / page).read_text()
    nouns = "relay|agent|peer|tls|admission|http|handover|interface|link|path"
    named = set(re.findall(rf"`(?:RELAYD_EVENT=)?((?:{nouns})\.[a-z_]+)`", text)) - FIELDS
    source = "".join(path.read_text() for path in (ROOT / "relayd").rglob("*.py"))
    # (`f"{self._name}.reloaded"`: a noun that is not said there.)
    unknown = [
        event for event in named if not re.search(rf'"{event}"|}}\.{event.partition(".")[2]}"', source)
    ]
    assert unknown == []


# --- the example for the Prometheus Operator ---


def test_the_example_finds_the_pods_and_the_alerts_find_its_jobs() -> None:
    workloads = {
        resource["metadata"]["name"]: resource["spec"]["template"]
        for path in ("agent/daemonset.yaml", "relay/deployment.yaml")
        for resource in yaml.safe_load_all((ROOT / "config" / path).read_text())
        if "template" in resource["spec"]
    }
    down = next(rule for rule in rules() if rule["alert"] == "RelaydDown")
    job_of = re.search(r'job=~"([^"]+)"', down["expr"])
    assert job_of is not None
    monitors = list(yaml.safe_load_all((ROOT / "config" / "examples" / "monitoring.yaml").read_text()))
    assert len(monitors) == len(workloads)
    for monitor in monitors:
        labels = monitor["spec"]["selector"]["matchLabels"]
        (pod,) = (one for one in workloads.values() if labels.items() <= one["metadata"]["labels"].items())
        (endpoint,) = monitor["spec"]["podMetricsEndpoints"]
        ports = {port["name"] for container in pod["spec"]["containers"] for port in container["ports"]}
        assert endpoint["port"] in ports
        (job,) = (one["replacement"] for one in endpoint["relabelings"] if one["targetLabel"] == "job")
        assert re.fullmatch(job_of[1], job)
