"""That what a real process says of itself is all documented, and all that it counts is exposed."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from relayd.observe.exposition import collect

PAGE = Path(__file__).parents[2] / "docs" / "status.md"

NO_FIGURES = {"role", "uptime_s", "http", "peers", "listen", "public_key", "listen_port", "proxy_port"}
NO_FIGURES |= {
    "interface",
    "paths",
    "patience",
    "relay_names_problem",
}  # relayd_link_connected tells what comes of that
"""Fields of a status that no metric could be made of, or that are one in other words."""


class Watched(dict[str, Any]):
    """A status that remembers what was read of it."""

    def __init__(self, status: Mapping[str, Any]) -> None:
        super().__init__(status)
        self.read: set[str] = set()

    def __getitem__(self, name: str) -> Any:
        self.read.add(name)
        return super().__getitem__(name)

    def get(self, name: str, default: Any = None) -> Any:
        self.read.add(name)
        return super().get(name, default)


def undocumented(status: Mapping[str, Any]) -> set[str]:
    """The fields of a status, of its peers and of its relay that docs/status.md doesn't name."""
    named = set()
    for row in re.findall(r"^\| (`[^|]*) \|", PAGE.read_text(), re.MULTILINE):
        named |= set(re.findall(r"`(\w+)`", row))
    fields = set(status)
    for part in (*status["peers"], status.get("relay")):
        fields |= set(part or ())
    return fields - named


def unexposed(status: Mapping[str, Any]) -> set[str]:
    """The fields of a status that no metric reads: a counter deserves one (a line in observe/metrics.py)."""
    watched = Watched(status)
    peers: Sequence[Mapping[str, Any]] = status["peers"]
    for _family in collect(watched, peers, source="test"):
        pass
    return set(status) - watched.read - NO_FIGURES
