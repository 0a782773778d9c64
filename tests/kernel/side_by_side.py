"""Runs the kernel tier in the virtual machine, two halves at once, for a host whose cores are idle:

    python -m tests.kernel.vm -- python -m tests.kernel.side_by_side

Emulation gives each of the machine's processors a core of the host, and a test keeps one of them busy. So
modules that make network namespaces of their own run beside those that use the machine's first one. The
second half's output follows the first one's.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.kernel.vm import INSIDE

IN_NAMESPACES = ("test_adopted.py", "test_agent_lifecycle.py")
"""They have namespaces `a` and `b`, in turn, and nothing in the first one."""

NO_TESTS = 5  # pytest's exit status


def main() -> int:
    """The exit status: pytest's, of the half that failed, if one did. Arguments are both pytests'."""
    if os.environ.get(INSIDE) != "1":
        print("this is for the virtual machine: python -m tests.kernel.vm", file=sys.stderr)
        return 2
    here = Path(__file__).parent
    modules = sorted(here.glob("test_*.py"))
    first = [path for path in modules if path.name in IN_NAMESPACES]
    command = [sys.executable, "-m", "pytest", *sys.argv[1:]]
    with tempfile.TemporaryFile("w+") as output:
        second = subprocess.Popen(
            [*command, *map(str, (path for path in modules if path not in first))],
            stdout=output, stderr=subprocess.STDOUT,
        )  # fmt: skip
        try:
            status = subprocess.run([*command, *map(str, first)], check=False).returncode
            statuses = {status, second.wait()}
        finally:
            second.kill()
            second.wait()
        output.seek(0)
        print(output.read(), flush=True)
    return max(statuses - {NO_TESTS}, default=NO_TESTS)


if __name__ == "__main__":
    sys.exit(main())
