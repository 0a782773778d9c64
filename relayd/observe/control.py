"""The control socket: how `relayd status` asks a running process on the same host.

A Unix socket with mode 0600. A connection carries one request and one answer, each one line of JSON:

    {"ask": "status"}            -> {"role": "agent", ...}
    {"ask": "weather"}           -> {"error": "..."}

Who may connect is decided by the file's mode alone; everything else a client does wrong costs it its own
connection, within bounded sizes and times.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import socket
import stat
from collections.abc import Awaitable, Callable, Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import trio

from relayd.errors import ConfigError, HostError, RelaydError
from relayd.observe import log
from relayd.observe.text import plain

Answer = Callable[[], Awaitable[bytes]]
"""Gives one line of JSON with its newline. It holds nobody up: what takes long is done in portions."""

Answers = Mapping[str, Answer]
"""What can be asked, and who answers."""

MAX_REQUEST_BYTES = 4096
MAX_ANSWER_BYTES = 64 << 20
"""Ten thousand connections take about 4 MiB; more than this is not an answer of ours."""
MAX_PATH_BYTES = 107
"""unix(7): sun_path has 108 bytes, one of them the closing zero."""
MAX_CLIENTS = 16
REQUEST_TIMEOUT_S = 5.0
ANSWER_TIMEOUT_S = 10.0
LOCK_TIMEOUT_S = 2.0


class NobodyAnswersError(RelaydError):
    """No process answers on a control socket."""


async def serve_control(
    path: str, answers: Answers, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
) -> None:
    """Answer on the Unix socket `path` until cancelled, then remove it.

    A missing directory is made with mode 0700. A socket that a dead process left is replaced. Raises
    HostError when a live process answers there, or the place can't be used; ConfigError for a path that
    is too long for a socket.
    """
    with await _bind(path) as sock:
        ours = os.stat(path)
        try:
            await _serve(sock, answers, task_status)
        finally:
            _remove(path, ours)


async def _serve(sock: socket.socket, answers: Answers, task_status: trio.TaskStatus[None]) -> None:
    places = trio.CapacityLimiter(MAX_CLIENTS)

    async def converse(stream: trio.SocketStream) -> None:
        with trio.move_on_after(REQUEST_TIMEOUT_S + ANSWER_TIMEOUT_S):
            async with places:
                await _converse(stream, answers)

    listener = trio.SocketListener(trio.socket.from_stdlib_socket(sock))
    await trio.serve_listeners(converse, [listener], task_status=_Plain(task_status))


class _Plain:
    """Passes `started()` on without the listeners, which are nobody's business."""

    def __init__(self, task_status: trio.TaskStatus[None]) -> None:
        self._task_status = task_status

    def started(self, value: object = None) -> None:
        """As `trio.TaskStatus.started`."""
        self._task_status.started()


async def _converse(stream: trio.SocketStream, answers: Answers) -> None:
    """One request, one answer."""
    try:
        with trio.move_on_after(REQUEST_TIMEOUT_S) as reading:
            line = await _read_line(stream, MAX_REQUEST_BYTES)
        if reading.cancelled_caught:
            answer = _line({"error": f"no request within {REQUEST_TIMEOUT_S:g} s"})
        elif line is None:
            answer = _line({"error": f"a request is one line of at most {MAX_REQUEST_BYTES} bytes"})
        elif not line:
            return  # somebody looked whether we live
        else:
            answer = await _answer(line, answers)
        with trio.move_on_after(ANSWER_TIMEOUT_S):
            await stream.send_all(answer)
    except trio.BrokenResourceError as error:
        log.get().debug("control.abandoned", error=error.__cause__ or error)


def quick(read: Callable[[], Mapping[str, object]]) -> Answer:
    """An answer that takes no time."""

    async def answer() -> bytes:
        await trio.lowlevel.checkpoint()
        return _line(read())

    return answer


def _line(answer: Mapping[str, object]) -> bytes:
    return json.dumps(plain(answer)).encode() + b"\n"


async def _answer(line: bytes, answers: Answers) -> bytes:
    try:
        request = json.loads(line)
    except (ValueError, RecursionError) as error:
        return _line({"error": f"not JSON: {error}"})
    name = request.get("ask") if isinstance(request, dict) else None
    if not isinstance(name, str) or name not in answers:
        return _line({"error": f"can't answer {name!r}, but: {', '.join(sorted(answers))}"})
    return await answers[name]()


async def _read_line(stream: trio.SocketStream, limit_bytes: int) -> bytes | None:
    """Up to the newline (not included) or the end of the stream; None when it is longer than allowed."""
    data = bytearray()
    while True:
        part = await stream.receive_some(65536)
        end = part.find(b"\n")
        data += part if end < 0 else part[:end]
        if len(data) > limit_bytes:
            return None
        if end >= 0 or not part:
            return bytes(data)


# --- binding and removing ---


async def _bind(path: str) -> socket.socket:
    """A socket that listens at `path` with mode 0600, in place of a dead process's one if need be."""
    if not path or len(os.fsencode(path)) > MAX_PATH_BYTES:
        raise ConfigError(
            f"{path!r} can't be a Unix socket's path", key="control", hint=f"1 to {MAX_PATH_BYTES} bytes"
        )
    directory = Path(path).parent
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        # Ours alone when we make it: 0700. One that exists (systemd's RuntimeDirectory=) is left as it is.
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        with trio.fail_after(LOCK_TIMEOUT_S), await _locked(directory):
            await _clear(path)
            sock.bind(path)
            # Nobody can connect between these lines: it doesn't listen yet.
            os.chmod(path, 0o600)
            sock.listen()
    except trio.TooSlowError as error:
        sock.close()
        raise HostError(f"{directory}: another process has locked it for {LOCK_TIMEOUT_S:g} s") from error
    except OSError as error:
        sock.close()
        why = "not a directory" if isinstance(error, FileExistsError) else error.strerror
        problem = f"can't make the control socket {path}: {directory}: {why}"
        raise HostError(f"{problem} (run as root, or name another path with --control)") from error
    except BaseException:
        sock.close()
        raise
    return sock


async def _locked(directory: Path) -> Any:
    """A lock on `directory`, so that of two processes that start at once one sees the other's socket.

    On the directory itself: a lock file would be one more thing left on the host.
    """
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                await trio.sleep(0.02)
            else:
                return _closing(descriptor)
    except BaseException:
        os.close(descriptor)
        raise


@contextmanager
def _closing(descriptor: int) -> Generator[None]:
    try:
        yield
    finally:
        os.close(descriptor)


async def _clear(path: str) -> None:
    """Remove a dead process's socket. Raises HostError when a live one has it, or it is no socket at all."""
    try:
        mode = os.lstat(path).st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise HostError(f"{path} is in the way and is not a socket; name another path with --control")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as probe:
        # Not awaited: a Unix socket connects, refuses or (EAGAIN: its backlog is full) does neither, at once.
        outcome = probe.connect_ex(path)
    if outcome in (0, errno.EAGAIN):
        raise HostError(f"another process answers at {path}: stop it, or name another path with --control")
    if outcome != errno.ECONNREFUSED:
        raise OSError(outcome, os.strerror(outcome))
    os.unlink(path)
    log.get().info("control.replaced", path=path, reason="left by a process that is gone")


def _remove(path: str, ours: os.stat_result) -> None:
    """Remove our socket, unless somebody has put another in its place."""
    try:
        now = os.lstat(path)
        if (now.st_dev, now.st_ino) == (ours.st_dev, ours.st_ino):
            os.unlink(path)
    except FileNotFoundError:
        return
    except OSError as error:
        log.get().warning("control.left", path=path, error=error)


# --- the client ---


async def ask(path: str, what: str, *, timeout_s: float = REQUEST_TIMEOUT_S) -> dict[str, Any]:
    """The answer of the process at `path`, given within `timeout_s` seconds.

    Raises NobodyAnswersError, HostError where the socket may not be used, and RelaydError with the process's
    own words when it has no answer to that.
    """
    request = json.dumps({"ask": what}).encode() + b"\n"
    nobody = f"no relayd process answers at {path}"
    try:
        with trio.fail_after(timeout_s):
            async with await trio.open_unix_socket(path) as stream:
                await stream.send_all(request)
                line = await _read_line(stream, MAX_ANSWER_BYTES)
        answer = json.loads(line or b"")
    except trio.TooSlowError as error:
        raise NobodyAnswersError(f"{nobody} within {timeout_s:g} s; is it stopped?") from error
    except PermissionError as error:
        raise HostError(f"{path}: {error.strerror} (ask as root, or as the process's own user)") from error
    except FileNotFoundError as error:
        raise NobodyAnswersError(f"{nobody}: there is no such socket") from error
    except ConnectionRefusedError as error:
        raise NobodyAnswersError(f"{nobody}: the one that made the socket is gone") from error
    except (OSError, trio.BrokenResourceError) as error:
        raise NobodyAnswersError(f"{nobody}: {error.__cause__ or error}") from error
    except ValueError as error:
        raise NobodyAnswersError(f"{nobody}: what is there speaks otherwise") from error
    if not isinstance(answer, dict):
        raise NobodyAnswersError(f"{nobody}: what is there speaks otherwise")
    if "error" in answer:
        raise RelaydError(f"{path}: {answer['error']}")
    return answer
