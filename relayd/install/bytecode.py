"""Python's bytecode of what relayd's services load, written when they are installed.

To a service all of the disk is read-only (ProtectSystem=strict), so that it can't keep the bytecode of
modules that were installed without (`uv pip install`, `pip install --no-compile`, a source tree): each start
would compile them anew, which takes longer than all the rest of it, and packets wait for a restart to end.
"""

from __future__ import annotations

import os
import subprocess
import sys

LOADED = ("relayd.commands.serve", "relayd.relay.server", "relayd.commands.agent", "relayd.agent.running")
"""With these all that a relay and an agent load before they are ready."""

COMPILE_S = 120.0
"""For some 500 modules, on a machine that has other things to do."""

# Importing writes bytecode where there is none that fits. Modules of which that was just written are counted.
_IMPORT = """
import importlib, os, sys, time
begun = time.time()
for name in sys.argv[1:]:
    importlib.import_module(name)
paths = [getattr(module, "__cached__", None) for module in list(sys.modules.values())]
print(sum(1 for path in paths if path and os.path.exists(path) and os.stat(path).st_mtime >= begun - 1e-2))
"""

_ELSEWHERE = ("PYTHONDONTWRITEBYTECODE", "PYTHONPYCACHEPREFIX")
"""Variables by which it would be written nowhere, or where a service doesn't look."""


def compile_services() -> int:
    """Write what is missing, for the interpreter that runs now. -> how many modules it was

    0 as well where it can't be written, or the installation isn't whole: services start all the same."""
    environ = {name: value for name, value in os.environ.items() if name not in _ELSEWHERE}
    environ["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
    try:
        done = subprocess.run(
            [sys.executable, "-c", _IMPORT, *LOADED],
            capture_output=True,
            text=True,
            check=False,
            env=environ,
            timeout=COMPILE_S,
        )
    except subprocess.TimeoutExpired:
        return 0
    return int(done.stdout) if done.returncode == 0 else 0
