"""Record what a relay in the field answers: `python -m tests.interop.record HOST:PORT`.

Writes `recorded.json`. Run it in a network namespace of its own, with an address that isn't loopback:

    ip netns add field && ip -n field link set lo up && ip -n field addr add 198.51.100.1/32 dev lo
"""

from __future__ import annotations

import json
import sys

from relayd.endpoints import split_host_port
from tests.interop.exchanges import EXCHANGES, RECORDED, nat_probe, play


def main() -> None:
    """Play all exchanges against the relay that the one argument names."""
    host, port = split_host_port(sys.argv[1])
    recorded = {exchange.name: play(exchange, host, port) for exchange in [*EXCHANGES, nat_probe(host)]}
    RECORDED.write_text(json.dumps(recorded, indent=1) + "\n")


if __name__ == "__main__":
    main()
