"""/metrics: from the tables of `metrics` and a status to the page that Prometheus reads."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from relayd.observe.metric import NODE, Metric, PeerMetric, Peers, Status, Value
from relayd.observe.metrics import AGENT, MAX_PEERS, PEER, RELAY
from relayd.observe.prometheus import (
    CollectorRegistry,
    CounterMetricFamily,
    Family,
    GaugeMetricFamily,
    HistogramMetricFamily,
    ProcessCollector,
    generate_latest,
)


class Exporter:
    """Makes the page. Its own registry: what else in the process may use prometheus_client is not on it."""

    CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

    def __init__(self) -> None:
        self._source = os.uname().nodename
        self._process = CollectorRegistry()
        ProcessCollector(registry=self._process)

    def render(self, status: Status, peers: Peers) -> bytes:
        """The metrics of a process with this status. `peers` counts for an agent only."""
        registry = CollectorRegistry()
        registry.register(_Once(collect(status, peers, source=self._source)))
        return generate_latest(registry) + generate_latest(self._process)


class _Once:
    """A collector of families that are there already."""

    def __init__(self, families: Iterable[Family]) -> None:
        self._families = families

    def describe(self) -> list[Family]:
        """Nothing: else prometheus_client collects to find out."""
        return []

    def collect(self) -> Iterable[Family]:
        """All of them."""
        return self._families


def collect(status: Status, peers: Peers, *, source: str) -> Iterator[Family]:
    """The metric families of a relay or an agent. `source` names this node, unless its cluster does."""
    source = str((status.get("cluster") or {}).get("node") or source)
    for metric in RELAY if status["role"] == "relay" else AGENT:
        value = metric.value(status, peers)
        yield _family(metric, {source: value} if metric.label == NODE else value)
    if status["role"] == "agent":
        listed = peers[:MAX_PEERS]
        for one in PEER:
            yield _peer_family(one, listed, source)


_FAMILIES: dict[str, type[CounterMetricFamily | GaugeMetricFamily]] = {
    "counter": CounterMetricFamily,
    "gauge": GaugeMetricFamily,
}


def _family(metric: Metric, value: Value) -> Family:
    if metric.kind == "histogram":
        assert isinstance(value, Mapping)
        return _histogram(metric, value)
    family = _FAMILIES[metric.kind](metric.name, metric.help, labels=[metric.label] if metric.label else [])
    if isinstance(value, Mapping):
        for label, figure in value.items():
            family.add_metric([label], float(figure))
    elif value is not None:
        family.add_metric([], float(value))
    return family


def _histogram(metric: Metric, value: Mapping[str, Any]) -> Family:
    """From `netio.delays.Delays.status`."""
    buckets, total = [], 0
    for bound_ms, frames in zip([*value["bounds_ms"], None], value["frames"], strict=True):
        total += frames
        buckets.append(("+Inf" if bound_ms is None else f"{bound_ms / 1e3:g}", float(total)))
    family = HistogramMetricFamily(metric.name, metric.help)
    family.add_metric([], buckets, sum_value=value["sum_ms"] / 1e3)
    return family


def _peer_family(metric: PeerMetric, peers: Peers, source: str) -> Family:
    labels = ["source", "peer", *([metric.label] if metric.label else [])]
    family = _FAMILIES[metric.kind](metric.name, metric.help, labels=labels)
    for peer in peers:
        figure = metric.value(peer)
        if figure is not None:
            more = [metric.label_value(peer)] if metric.label else []
            family.add_metric([source, str(peer.get("name") or peer["key"]), *more], float(figure))
    return family
