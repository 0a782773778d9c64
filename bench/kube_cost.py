"""What agents cost an API server: requests, events and bytes of real ones, counted by the server itself.

A mesh of NODES agents, two of them relayed, in namespaces (root is needed). Counted are their start, and
CALM_S in which nothing happens; then what one event of a node weighs whose status is as long as one gets.
What a thousand would cost is worked out of that: docs/kubernetes.md has the table.
"""

from __future__ import annotations

import json
import os
import re
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from bench.model import BenchError
from relayd.coordination.kubernetes import report
from relayd.demo.lab import Lab
from relayd.errors import HostError
from tests.kube.build import default_cache
from tests.kube.control_plane import PROGRAM, ControlPlane
from tests.kube.nodes import MESH, Nodes
from tests.kube.objects import mesh

NAME = "kube-cost"
NODES = 3
SETTLED_S = 75.0
"""After the start: what is found out, and published, in the first minute."""

CALM_S = 600.0
"""Ten heartbeats, and two watches of each kind."""

START_S = 60.0
LARGE = 1000

_LINE = re.compile(r"(\w+)\{([^}]*)\} (\S+)")
_LABEL = re.compile(r'(\w+)="([^"]*)"')
_RESOURCES = ("wirekubepeers", "wirekubemeshes", "nodes")


@dataclass(frozen=True, slots=True)
class Counted:
    """What a server has counted so far."""

    requests: Counter[tuple[str, str]]
    """By verb and resource, with "/status" behind it."""

    events: float
    """WireKubePeers' events sent to watchers."""

    event_bytes: float

    def since(self, before: Counted) -> Counted:
        """What came after `before`."""
        return Counted(
            self.requests - before.requests,
            self.events - before.events,
            self.event_bytes - before.event_bytes,
        )


def read(metrics: str) -> Counted:
    """Of a kube-apiserver's /metrics."""
    requests: Counter[tuple[str, str]] = Counter()
    events = event_bytes = 0.0
    for name, text, value in _LINE.findall(metrics):
        labels = dict(_LABEL.findall(text))
        resource = labels.get("resource", "")
        if name == "apiserver_request_total" and resource in _RESOURCES:
            behind = "/status" if labels.get("subresource") == "status" else ""
            requests[labels["verb"], resource + behind] += round(float(value))
        elif resource == "wirekubepeers" or labels.get("kind") == "WireKubePeer":
            if name == "apiserver_watch_events_total":
                events += float(value)
            elif name == "apiserver_watch_events_sizes_sum":
                event_bytes += float(value)
    return Counted(requests, events, event_bytes)


@dataclass(frozen=True, slots=True)
class Cost:
    """What was counted, of NODES agents and one relay."""

    start: Counted
    calm: Counted
    calm_s: float
    resource_bytes: int
    long_event_bytes: int

    def __str__(self) -> str:
        minutes = self.calm_s / 60
        writes = sum(count for (verb, _), count in self.calm.requests.items() if verb in ("PATCH", "APPLY"))
        watches = sum(count for (verb, _), count in self.calm.requests.items() if verb == "WATCH")
        each = writes / NODES / minutes
        events_s = each / 60 * LARGE**2
        per_event = self.calm.event_bytes / self.calm.events if self.calm.events else 0.0
        lines = [
            f"{NAME}: {NODES} agents and a relay",
            f"  at the start, by verb: {_told(self.start.requests)}",
            f"  calm, {self.calm_s:.0f} s, by verb: {_told(self.calm.requests)}",
            f"  writes: {each:.2f} a minute and agent; watches that ended in their time: "
            f"{watches / NODES / minutes:.2f} a minute and agent",
            f"  events: {self.calm.events / max(1, writes):.2f} for each write to {NODES + 1} watchers, of "
            f"{per_event:.0f} bytes; with {report.MAX_CONNECTIONS} connections {self.long_event_bytes}",
            f"  a resource in a list: {self.resource_bytes} bytes",
            f"  {LARGE} agents, calm: {each * LARGE / 60:.0f} writes/s, {events_s:.0f} events/s, "
            f"{events_s * self.long_event_bytes / 1e6:.0f} MB/s; "
            f"all lists at a start of all: {self.long_event_bytes * LARGE**2 / 1e9:.1f} GB",
        ]
        return "\n".join(lines)


def _told(requests: Counter[tuple[str, str]]) -> str:
    return ", ".join(f"{verb} {what} {count}" for (verb, what), count in sorted(requests.items()))


def measure(calm_s: float = CALM_S) -> Cost:
    """Once; takes `calm_s` and two minutes. Raises BenchError where it can't be measured."""
    if not os.environ.get(PROGRAM) and not list(default_cache().glob("cluster-*")):
        raise BenchError(f"{NAME}: skipped: the cluster program isn't built (python -m tests.kube.build)")
    try:
        with Lab() as lab:
            return _measured(lab, calm_s)
    except HostError as error:
        raise BenchError(f"{NAME}: {error}") from error


def _measured(lab: Lab, calm_s: float) -> Cost:
    cluster = ControlPlane(lab)
    cluster.install()
    nodes = Nodes(lab, cluster)
    nodes.start_relay()
    cluster.apply(mesh(**MESH))

    def counted() -> Counted:
        return read(cluster.kubectl("get", "--raw", "/metrics"))

    before = counted()
    for name in nodes.named:
        nodes.start(name).wait_for_output('"agent.started"', START_S)
    time.sleep(SETTLED_S)
    start = counted().since(before)
    before, began = counted(), time.monotonic()
    time.sleep(calm_s)
    calm, took_s = counted().since(before), time.monotonic() - began
    one = cluster.get("wkpeer", "b", "--show-managed-fields")
    for name in nodes.named:
        nodes.stop(name)
    return Cost(start, calm, took_s, _size(one), _long_event(cluster, "b", one["status"]))


def _size(one: object) -> int:
    """Of a resource, as the API server sends it."""
    return len(json.dumps(one, separators=(",", ":")))


def _long_event(cluster: ControlPlane, name: str, own: Mapping[str, object]) -> int:
    """Bytes of an event of the node `name` once its status is as in a large mesh: what its agent would report
    if it had LARGE peers. `own` is the status that it has."""
    peers = [
        report.PeerFacts(
            name=f"node-{n:04}", path="relay", handshake_at=time.time(), rx_bytes=10**9, tx_bytes=10**9
        )
        for n in range(LARGE)
    ]
    status = report.Reporter().due(
        report.Facts(peers=peers, relay_connected=True), now=0.0, wall_now=time.time()
    )
    assert status is not None  # nothing was written before
    kept = {key: value for key, value in own.items() if key not in status}
    body = json.dumps(report.body(name, {**status, **kept}))
    cluster.kubectl(
        "apply", "--server-side", "--subresource=status", "--force-conflicts",
        "--field-manager", report.MANAGER, "-f", "-", stdin=body,
    )  # fmt: skip
    return _size({"type": "MODIFIED", "object": cluster.get("wkpeer", name, "--show-managed-fields")})
