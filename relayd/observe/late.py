"""Modules that are loaded when somebody needs them first, while packets are being carried."""

from __future__ import annotations

import sys
from importlib import import_module

import trio


async def loaded(module: str) -> None:
    """Load `module` in a thread, if nobody has: importing it afterwards takes no time.

    The event loop has its turn every few milliseconds meanwhile (`sys.setswitchinterval`)."""
    if module not in sys.modules:
        await trio.to_thread.run_sync(import_module, module)
