"""prometheus_client without the HTTP client and servers that it brings along.

Importing it imports urllib.request, http.server and wsgiref, for functions that nobody calls here: 1 MiB of a
relay's memory, and three quarters of the time of its first scrape, which holds the event loop up. So while it
is imported, modules that have nothing in them stand in their places.
"""

from __future__ import annotations

import sys
from types import ModuleType

_LEFT_OUT = ("urllib.request", "http.server", "wsgiref.simple_server")


class _Nothing(ModuleType):
    """A module in which every name is a class without anything in it: to be inherited from, never used."""

    def __getattr__(self, name: str) -> type:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {})


_stand_ins = {name: _Nothing(name) for name in _LEFT_OUT if name not in sys.modules}
sys.modules.update(_stand_ins)
try:
    from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
    from prometheus_client.metrics_core import Metric as Family
finally:
    for _name in _stand_ins:
        del sys.modules[_name]

__all__ = [
    "CollectorRegistry",
    "CounterMetricFamily",
    "Family",
    "GaugeMetricFamily",
    "HistogramMetricFamily",
    "ProcessCollector",
    "generate_latest",
]
