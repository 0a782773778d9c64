"""UDP through a tunnel in one direction, as a video or a log has it: nothing ever comes back inside of it."""

from __future__ import annotations

import socket
import struct
import threading
import time
from ipaddress import IPv4Address
from itertools import pairwise
from typing import Self

from relayd.demo.lab import Node
from tests.helpers.inside import inside

PORT = 5000
EVERY_S = 0.01
_NUMBER = struct.Struct("!I")
_LATE_S = 0.5
"""What was sent last has arrived by then."""


class OneWay:
    """Numbered datagrams from one node to another, every 10 ms, while it is open."""

    def __init__(self, source: Node, destination: Node, to: IPv4Address) -> None:
        """`to` is the destination's address in the tunnel."""
        with inside(destination):
            self._in = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        with inside(source):
            self._out = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._in.bind((str(to), PORT))
        self._in.settimeout(0.1)
        self._out.connect((str(to), PORT))
        self._stop = threading.Event()
        self.sent: dict[int, float] = {}
        """Number -> when, in seconds of time.time()."""
        self.arrived: list[tuple[int, float]] = []
        self._sender = threading.Thread(target=self._send)
        self._receiver = threading.Thread(target=self._receive)

    def __enter__(self) -> Self:
        self._receiver.start()
        self._sender.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._sender.join()
        self._receiver.join()
        self._out.close()
        self._in.close()

    def _send(self) -> None:
        number = 0
        while not self._stop.is_set():
            self._out.send(_NUMBER.pack(number))
            self.sent[number] = time.time()
            number += 1
            time.sleep(EVERY_S)

    def _receive(self) -> None:
        stop_at = float("inf")
        while time.time() < stop_at:
            if self._stop.is_set():
                stop_at = min(stop_at, time.time() + _LATE_S)
            try:
                data = self._in.recv(100)
            except TimeoutError:
                continue
            self.arrived.append((_NUMBER.unpack(data)[0], time.time()))

    def silences(self, at_least_s: float = 0.5) -> list[tuple[float, float]]:
        """(when it began, seconds) of each time in which nothing arrived."""
        times = sorted(at for _, at in self.arrived)
        return [(a, b - a) for a, b in pairwise(times) if b - a >= at_least_s]

    def lost(self, since: float) -> list[int]:
        """Numbers sent since then that never arrived. To be asked when it is closed."""
        arrived = {number for number, _ in self.arrived}
        return [number for number, at in self.sent.items() if at >= since and number not in arrived]
