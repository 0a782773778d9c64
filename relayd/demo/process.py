"""A process of the laboratory: started, watched, ended; what it printed is kept in a file without a name."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Mapping

END_S = 5.0
"""How long a killed process may take to be gone: only one stuck in the kernel takes longer."""


class Process:
    """Output goes to an unnamed temporary file (O_TMPFILE), or with `pipe` to the descriptor `out`."""

    def __init__(self, title: str, argv: list[str], environment: Mapping[str, str], *, pipe: bool) -> None:
        self.title = title
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 (closed by close())
        # A session of its own: a terminal's Ctrl-C reaches the owner alone, who then ends it in order.
        self._popen = subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE if pipe else self._log,
            stderr=self._log,
            env=dict(environment),
            start_new_session=True,
        )
        self.out = self._popen.stdout.fileno() if self._popen.stdout is not None else -1

    @property
    def pid(self) -> int:
        """The process's number on the host."""
        return self._popen.pid

    def returncode(self) -> int | None:
        """None while it runs; then its exit status, or the negative number of the signal that killed it."""
        return self._popen.poll()

    def output(self) -> str:
        """What it has printed so far (only to stderr, with `pipe`)."""
        size = os.fstat(self._log.fileno()).st_size
        return os.pread(self._log.fileno(), size, 0).decode(errors="replace")

    def last_words(self, lines: int = 3) -> str:
        """The end of what it printed, for an error message."""
        return " / ".join(self.output().strip().splitlines()[-lines:])

    def send_signal(self, number: signal.Signals) -> None:
        """No error when it has ended already."""
        self._popen.send_signal(number)

    def terminate(self) -> None:
        """SIGTERM."""
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """SIGKILL."""
        self.send_signal(signal.SIGKILL)

    def wait(self, timeout_s: float = END_S) -> int:
        """Its exit status. Raises TimeoutError when it goes on running."""
        try:
            return self._popen.wait(timeout_s)
        except subprocess.TimeoutExpired as error:
            raise TimeoutError(f"{self.title} has not ended after {timeout_s:g} s") from error

    def wait_for_output(self, text: str, timeout_s: float) -> None:
        """Wait until it has printed `text`. Raises TimeoutError, also when it ended without saying it."""
        deadline = time.monotonic() + timeout_s
        while text not in self.output():
            if self.returncode() is not None:
                if text in self.output():
                    return
                raise TimeoutError(f"{self.title} ended ({self.returncode()}): {self.last_words()}")
            if time.monotonic() > deadline:
                raise TimeoutError(
                    f"{self.title} has not said {text!r} in {timeout_s:g} s: {self.last_words()}"
                )
            time.sleep(0.01)

    def close(self) -> None:
        """Wait for the end of a killed process, and let its output go."""
        with contextlib.suppress(TimeoutError):  # stuck in the kernel: it is killed, no more can be done
            self.wait()
        if self._popen.stdout is not None:
            self._popen.stdout.close()
        self._log.close()
