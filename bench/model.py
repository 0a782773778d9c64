"""What a measurement is told and what it says: the types that cross between the bench's processes as JSON."""

from __future__ import annotations

from typing import Literal

import msgspec

Mode = Literal["bulk", "paced", "flood", "idle", "agents", "stun", "handshakes", "silent"]
Wire = Literal["relay", "forward"]


class BenchError(Exception):
    """The bench can't go on, or what it measured broke a rule of the protocol. The text is for a person."""


class Spec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One measurement, complete. Rates are frames per second over all pairs; sizes are of the payload."""

    mode: Mode
    host: str = "127.0.0.1"
    port: int = 0
    pid: int = 0
    """The process whose CPU time and memory are read; 0: none is known."""
    pids: tuple[int, ...] = ()
    """More processes of the same system under test (the agents); their CPU time and memory are added."""
    wire: Wire = "relay"
    """`relay`: Register first, keys are rewritten. `forward`: connection 2k is copied to 2k+1, untouched."""
    cpu: int = -1
    """The load's core; -1: not pinned."""
    relay_cpu: int = -1
    """The core to which the processes under test are bound; -1: not known."""
    pairs: int = 1
    payload: int = 1452
    burst: int = 1
    """Frames in one write (paced and flood)."""
    rate: float = 0.0
    seconds: float = 3.0
    warmup: float = 0.4
    window: int = 256 * 1024
    """Bulk: most bytes of frames in flight per sender."""
    receivers: int = 1
    """Bulk: receivers of each sender, addressed in random order."""
    extra_rate: float = 0.0
    """Paced: frames per second to one more pair, which is left out of latency and loss."""
    stalled: bool = False
    """Paced: the receiver of that one more pair never reads."""
    connections: int = 0
    """Idle: how many are held."""
    wireguard_ports: tuple[int, int] = (0, 0)
    """Agents: the UDP ports at which the load stands for the WireGuard of the one and of the other. It
    sends from the first to `host` and `port`, which is the first agent's address for the second."""
    source: tuple[str, int] = ("", 0)
    """Agents: where the second agent's datagrams must come from: its address for the first."""


class Latency(msgspec.Struct, frozen=True, kw_only=True):
    """Microseconds from when a frame was due to be sent until it was read, over `count` frames."""

    count: int
    p50: float
    p99: float
    p999: float
    max: float
    curve: list[tuple[float, float]] = []
    """(percent, microseconds), for the plot."""


class Generator(msgspec.Struct, frozen=True, kw_only=True):
    """How the load itself fared."""

    cpu_share: float
    """CPU seconds per second of its one core, polling included."""
    busy_share: float
    """The same without the rounds of the loop in which there was nothing to do."""
    late_p99_us: float = 0.0
    """How late frames left it, at the 99th percentile (paced); 0 elsewhere."""
    waited_share: float = 0.0
    """Share of the time it was ready to run and something else had its core: other work on the machine."""
    was_limit: bool = False
    """The load, and not what was measured, set the figure."""


class Step(msgspec.Struct, frozen=True, kw_only=True):
    """One rate that a search tried."""

    rate: float
    passed: bool
    reason: str
    """Why it failed; empty when it passed."""
    frames_per_s: float


class Measurement(msgspec.Struct, frozen=True, kw_only=True):
    """What one run of the load found. Figures that the mode has not are 0 or None."""

    elapsed_s: float
    frames: int = 0
    """Received in the measured time."""
    frames_per_s: float = 0.0
    gbit_per_s: float = 0.0
    """Of payload."""
    sent: int = 0
    """Whole run, warm-up and drain included."""
    received: int = 0
    lost: int = 0
    unsent: int = 0
    """Frames that were due and could not be sent by the end."""
    backpressure: int = 0
    """Writes that were refused or cut short because the other side did not read."""
    drain_s: float = 0.0
    """From the end of sending until the last frame was there."""
    checked: int = 0
    """Frames that were compared byte for byte."""
    latency: Latency | None = None
    cpu_share: float | None = None
    """CPU seconds per second of the process that was measured."""
    frames_per_cpu_s: float | None = None
    waited_share: float | None = None
    """Share of the time its threads were ready to run and did not: another one's turn, or a stranger's."""
    foreign_share: float | None = None
    """Share of its core's time that went to processes other than those measured."""
    memory_kib: int | None = None
    """Peak resident memory of the process during the run."""
    memory_before_kib: int | None = None
    """Resident before the first connection."""
    pss_per_connection_kib: float | None = None
    rss_per_connection_kib: float | None = None
    generator: Generator | None = None
    steps: list[Step] = []
    notes: list[str] = []


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """All repeats of one scenario for one target."""

    scenario: str
    target: str
    """`relay`, or which control: `control (go io.Copy)`, `control (python epoll)`."""
    variant: str = ""
    """What sets runs of one scenario apart: `stalled` or `all read`."""
    runs: list[Measurement]
    error: str = ""


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """One run of the bench: the JSON file."""

    format: int = 1
    version: str = ""
    started: str = ""
    machine: dict[str, str] = {}
    relay: str = ""
    control: str = ""
    quick: bool = False
    results: list[Result]
