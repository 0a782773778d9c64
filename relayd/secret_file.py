"""A secret of the process's own, in a file of its state directory: made once, read ever after.

    read -> there: check who may read it, and what is in it
         -> not there: write a file beside it, sync it, link it to the name that counts, read that

The link is the moment at which the secret exists: whole, on the disk, and the only one. Of two processes
that start at once one finds the name taken, and reads the other's secret.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import secrets
import shlex
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

from relayd.errors import ConfigError, HostError
from relayd.keys import KEY_BYTES, PrivateKey
from relayd.tokens import MADE_BYTES, token_of

RELAY_KEY = "relay.key"
RELAY_TOKEN = "relay.token"

MAX_BYTES = 64 << 10
"""Two hundred tokens of the longest kind."""

T = TypeVar("T")


def relay_key(state_dir: Path) -> PrivateKey:
    """The relay's own key, in `wg genkey`'s form; made when there is none.

    Raises ConfigError for a file that holds no key or that others can read, HostError when it can't be read
    or written.
    """
    return private_key(state_dir / RELAY_KEY)


def private_key(path: Path, *, make: Callable[[], str] | None = None) -> PrivateKey:
    """The WireGuard key in the file at `path`, in `wg genkey`'s form; made when there is none (by `new_key`).

    Raises ConfigError and HostError as `read_or_make` does.
    """
    return read_or_make(path, make=make or new_key, parse=_parse_key)


def new_token() -> str:
    """What a token file holds at first."""
    return token_of(secrets.token_bytes(MADE_BYTES))


def read_or_make(path: Path, *, make: Callable[[], str], parse: Callable[[str], T]) -> T:
    """What `parse` makes of the text in the file at `path`; a line from `make` is written when there is none.

    `parse` raises ValueError (turned into a ConfigError that names the file) or ConfigError. A file that is
    there is never written to, whatever is in it. Raises HostError when it can't be read or written.
    """
    text = _read(path)
    if text is None:
        _write_new(path, make() + "\n")
        text = _read(path)
        if text is None:
            raise HostError(f"{path} was removed as soon as it was made")
    return _parsed(
        path, text, parse, "put back the right one, or move it away: without the file a new one is made"
    )


def read_secret(path: Path, *, parse: Callable[[str], T]) -> T:
    """As `read_or_make`, for a file that is somebody else's to make. Raises HostError when there is none."""
    text = _read(path)
    if text is None:
        raise HostError(f"{path} is not there")
    return _parsed(path, text, parse, "")


def _parsed(path: Path, text: str, parse: Callable[[str], T], hint: str) -> T:
    try:
        return parse(text)
    except ConfigError:
        raise
    except ValueError as error:
        raise ConfigError(str(error), source=str(path), hint=hint) from None


def read_lines(path: Path) -> list[tuple[int, str]]:
    """What a file of secrets says, as `lines_of` has it. It is checked as those that are made here are.

    Raises ConfigError, also when it isn't there or says nothing, and HostError when it can't be read.
    """
    text = _read(path)
    if text is None:
        raise ConfigError("does not exist", source=str(path))
    lines = list(lines_of(text))
    if not lines:
        raise ConfigError("is empty", source=str(path))
    return lines


def lines_of(text: str) -> Iterator[tuple[int, str]]:
    """What a text says, line by line: (number from 1, the line without comment and blanks)."""
    for number, line in enumerate(text.removeprefix("\N{ZERO WIDTH NO-BREAK SPACE}").split("\n"), start=1):
        # A token may have # within; a comment begins the line or follows a blank.
        if line := re.sub(r"(^|\s)#.*", "", line).strip():
            yield number, line


def new_key() -> str:
    """As `wg genkey` makes one: clamped (RFC 7748, section 5)."""
    raw = bytearray(secrets.token_bytes(KEY_BYTES))
    raw[0] &= 248
    raw[31] = raw[31] & 127 | 64
    return PrivateKey(bytes(raw)).to_base64()


def _parse_key(text: str) -> PrivateKey:
    try:
        key = PrivateKey.from_base64(text)
    except ValueError as error:
        raise ValueError(f"holds no WireGuard key: {error}") from None
    if not any(key.raw):
        raise ValueError("holds no WireGuard key: all zeros")
    return key


def _read(path: Path) -> str | None:
    """The text; None when there is no such file."""
    try:
        # Not blocking: opening a FIFO would wait for a writer.
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise HostError(f"cannot read {path}: {error.strerror}") from error
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            raise ConfigError("is not a regular file", source=str(path))
        if status.st_mode & stat.S_IRWXO:
            # As for the agent's private key: others are refused, a group is how Kubernetes hands it over.
            mode = stat.S_IMODE(status.st_mode)
            raise ConfigError(
                f"is open to every user (mode {mode:04o})",
                source=str(path),
                hint=f"chmod 600 {shlex.quote(str(path))}; others may have read it: better a new one",
            )
        if status.st_uid not in (0, os.geteuid()):
            raise ConfigError(
                f"belongs to user {status.st_uid}, who chose what is in it",
                source=str(path),
                hint="it has to be this user's, or root's",
            )
        try:
            raw = os.read(fd, MAX_BYTES + 1)
        except OSError as error:
            raise HostError(f"cannot read {path}: {error.strerror}") from error
    finally:
        os.close(fd)
    if len(raw) > MAX_BYTES:
        raise ConfigError(f"is longer than {MAX_BYTES} bytes", source=str(path))
    return raw.decode(errors="replace")


def _write_new(path: Path, text: str) -> None:
    """Make the file, whole or not at all. When it is there by now, it stays as it is."""
    directory = path.parent
    beside = directory / f".{path.name}.{secrets.token_hex(8)}"
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        if directory.stat().st_mode & stat.S_IWOTH:
            raise ConfigError(
                "can be written by every user, who could put another secret in place",
                source=str(directory),
                hint=f"chmod 700 {shlex.quote(str(directory))}",
            )
        try:
            fd = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            with open(fd, "wb") as file:
                file.write(text.encode())
                file.flush()
                os.fsync(fd)
            with contextlib.suppress(FileExistsError):  # another process was faster
                os.link(beside, path)
        finally:
            beside.unlink(missing_ok=True)
        _sync(directory)
    except OSError as error:
        hint = {
            errno.EROFS: "the file system is read-only: give --state a directory that can be written",
            errno.EACCES: "give --state a directory that this user can write",
            errno.EPERM: "its file system has no hard links: give --state another",
            errno.EOPNOTSUPP: "its file system has no hard links: give --state another",
            errno.ENOSPC: "the file system is full",
        }.get(error.errno or 0, "see --state")
        raise HostError(f"cannot make {path}: {error.strerror} ({hint})") from error


def _sync(directory: Path) -> None:
    """A name is on the disk when its directory is (fsync(2))."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
