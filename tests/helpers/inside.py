"""Run a test's own code in a node of the laboratory: sockets that are made there stay there."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager

from relayd.demo.lab import Node

_CLONE_NEWNET = 0x40000000  # linux/sched.h
_libc = ctypes.CDLL(None, use_errno=True)


def _enter(descriptor: int) -> None:
    if _libc.setns(descriptor, _CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


@contextmanager
def inside(node: Node) -> Iterator[None]:
    """This thread is in the node's network namespace meanwhile; /sys and /run stay the host's."""
    with inside_path(f"/proc/{node.pid}/ns/net"):
        yield


@contextmanager
def inside_path(namespace: str) -> Iterator[None]:
    """As `inside`, for a namespace that has a name: /run/netns/NAME, as `ip netns add` makes it."""
    back = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        there = os.open(namespace, os.O_RDONLY | os.O_CLOEXEC)
        try:
            _enter(there)
        finally:
            os.close(there)
        try:
            yield
        finally:
            _enter(back)
    finally:
        os.close(back)
