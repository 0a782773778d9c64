"""What a start loads, and what it doesn't: packets wait for it, and memory is for agents."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

STARTS = {
    "serve": "relayd.commands.serve, relayd.process, relayd.relay.server",
    "agent": "relayd.commands.agent, relayd.process, relayd.agent.running",
}

LATER = {"rich", "httpcore", "prometheus_client", "cryptography", "relayd.coordination.kubernetes.client"}
"""Prometheus' client comes with the first scrape; certificates and the cluster with settings that ask for
them."""

LATER_OF = {
    # HTTP's protocol comes with the first connection; the rest is for agents, or for nobody.
    "serve": LATER | {"h11", "asyncio", "pyroute2", "relayd.observe.page", "relayd.wire.sealed"},
    "agent": LATER | {"relayd.observe.page", "pyroute2.ndb", "pyroute2.ipdb"},
}


@pytest.mark.parametrize("start", STARTS)
def test_a_start_loads_only_what_it_needs(start: str) -> None:
    program = f"import json, sys; import {STARTS[start]}; print(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert not LATER_OF[start] & set(json.loads(done.stdout))
