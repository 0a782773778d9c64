"""The agents' path, put together: a relay and two agents on one core, the load at both ends.

load -> UDP -> agent -> TCP -> relay -> TCP -> agent -> UDP -> load
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from bench.model import BenchError, Spec
from bench.targets import Address, free_port, started


@dataclass(frozen=True, slots=True)
class _Node:
    """A running agent, and its loopback endpoint for the other one."""

    process: subprocess.Popen[bytes]
    address: str
    port: int


@contextmanager
def _node(relay: Address, own: int, peer: int, wireguard_port: int, cpu: int) -> Iterator[_Node]:
    host = f"[{relay.host}]" if ":" in relay.host else relay.host
    command = [
        *(sys.executable, "-m", "bench.agent_node", f"{host}:{relay.port}"),
        *(str(own), str(peer), str(wireguard_port)),
    ]
    with started(command, cpu=cpu) as process:
        assert process.stdout is not None
        match process.stdout.readline().decode().split():  # it says so, or ends, within its own limit
            case ["ready", address, port]:
                yield _Node(process, address, int(port))
            case _:
                process.wait(15)
                raise BenchError("an agent did not start")


@contextmanager
def agents(spec: Spec, relay: Address, cpu: int) -> Iterator[Spec]:
    """Two agents on core `cpu` that know each other; `spec`, aimed at them. Raises BenchError."""
    ports = free_port(), free_port()
    with ExitStack() as stack:
        near = stack.enter_context(_node(relay, 0, 1, ports[0], cpu))
        far = stack.enter_context(_node(relay, 1, 0, ports[1], cpu))
        yield Spec(
            mode="agents",
            host=near.address,
            port=near.port,
            pid=relay.pid,
            pids=(near.process.pid, far.process.pid),
            cpu=spec.cpu,
            relay_cpu=spec.relay_cpu,
            payload=spec.payload,
            rate=spec.rate,
            seconds=spec.seconds,
            warmup=spec.warmup,
            wireguard_ports=ports,
            source=(far.address, far.port),
        )
