"""The load generator's process: `python -m bench.load` reads a Spec as JSON, and writes a Measurement.

It does one measurement and ends; a run that hangs is ended by its own alarm. Exit status 1 and a text
on standard error when a connection fails, or a frame arrives twice, out of order or changed.
"""

from __future__ import annotations

import ipaddress
import os
import signal
import sys

import msgspec

from bench.agent_load import run_agents
from bench.bulk import run_bulk
from bench.doors import run_handshakes, run_silent
from bench.flood import run_flood
from bench.idle import run_idle
from bench.model import BenchError, Measurement, Spec
from bench.paced import run_paced
from bench.stun_load import run_stun

GRACE_S = 45
"""On top of warm-up and measured time: connecting (10,000 of them, too), registering and draining."""


def require_loopback(host: str) -> None:
    """Raises BenchError for every address but this machine's own: this is a load generator."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError as error:
        raise BenchError(f"{host} is not an address; the target must be a loopback address") from error
    if not address.is_loopback:
        raise BenchError(f"{host} is not a loopback address; load is only put on this machine")


def run(spec: Spec) -> Measurement:
    """Do what `spec` says, in this process. Raises BenchError; OSError when a measured process ends."""
    require_loopback(spec.host)
    if spec.cpu >= 0:
        os.sched_setaffinity(0, {spec.cpu})
    pids = tuple(pid for pid in (spec.pid, *spec.pids) if pid)
    match spec.mode:
        case "bulk":
            return run_bulk(spec, pids)
        case "paced":
            return run_paced(spec, pids)
        case "flood":
            return run_flood(spec, pids)
        case "idle":
            return run_idle(spec, pids)
        case "handshakes":
            return run_handshakes(spec, pids)
        case "silent":
            return run_silent(spec, pids)
        case "agents":
            return run_agents(spec, pids)
        case "stun":
            return run_stun(spec, pids)


def main() -> None:
    """Entry point."""
    spec = msgspec.json.decode(sys.stdin.buffer.read(), type=Spec)
    signal.alarm(int(spec.warmup + spec.seconds) + GRACE_S)
    try:
        result = run(spec)
    except BenchError as error:
        sys.exit(str(error))
    except OSError as error:
        sys.exit(f"the measurement broke: {error}")
    sys.stdout.buffer.write(msgspec.json.encode(result))


if __name__ == "__main__":
    main()
