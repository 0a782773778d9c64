"""What a metric is: a name, a kind, and where the status has its figure."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

NODE = "node"
"""A label that is this node's name, whatever the status says."""

Status = Mapping[str, Any]
Peers = Sequence[Status]
Number = float | int | bool | None
Value = Number | Mapping[str, Any]
"""One figure, None when there is none now; or one for each value of the metric's only label."""


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric of a process."""

    name: str
    """As it is exposed: a counter's ends in `_total`."""
    kind: str
    """`counter`, `gauge` or `histogram`."""
    help: str
    value: Callable[[Status, Peers], Value]
    label: str = ""
    """NODE; or another one, of which `value` has a figure for each value."""


@dataclass(frozen=True, slots=True)
class PeerMetric:
    """One metric of each peer of an agent; labels `source` (this node) and `peer`, and perhaps one more."""

    name: str
    kind: str
    help: str
    value: Callable[[Status], Number]
    label: str = ""
    label_value: Callable[[Status], str] = str


def at(*path: str) -> Callable[[Status, Peers], Any]:
    """What the status has there. Raises KeyError when it has no such place."""

    def read(status: Status, _peers: Peers) -> Any:
        value: Any = status
        for part in path:
            value = value[part]
        return value

    return read


def milliseconds(*path: str) -> Callable[[Status, Peers], Number]:
    """The same in seconds."""
    read = at(*path)

    def value(status: Status, peers: Peers) -> Number:
        found = read(status, peers)
        return None if found is None else found / 1e3

    return value


def on(*paths: str) -> Callable[[Status, Peers], Number]:
    """How many peers are on one of these paths."""
    return lambda _status, peers: sum(peer["path"] in paths for peer in peers)
