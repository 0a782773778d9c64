"""The agent's state directory: which files relayd keeps there, how they are written, and who is using it.

Every process that works with the directory holds a shared lock on it; `cleanup` wants it for itself. The lock
is on the directory, so that there is no file for it to be left behind, and the kernel lets go of it when the
process ends, however it ends.
"""

from __future__ import annotations

import errno
import fcntl
import fnmatch
import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import msgspec

from relayd.config import KEY_FILE
from relayd.config.types import STATE_DIR
from relayd.errors import HostError
from relayd.observe import log

SYSCTLS = "sysctls.json"
CLEAN_STATE_DONE = "clean-state.done"
LOOPBACK = "loopback.json"
LOOPBACK_BAD = "loopback.bad"
RELAYS = "relays.json"
CLUSTER = "cluster.json"
"""What was known of the cluster, and that this node's resource was deleted, if it was."""

_OF_ALL = (KEY_FILE, SYSCTLS, CLEAN_STATE_DONE, LOOPBACK, LOOPBACK_BAD, RELAYS, CLUSTER)
_BEING_WRITTEN = ".{name}.*"
"""What a process that was killed while it wrote leaves; `relayd.secret_file` names its files alike."""

Memory = TypeVar("Memory", bound=msgspec.Struct)


def made_file(interface: str) -> str:
    """Name of the file that says, before an interface is made, that it will be."""
    return f"made-{interface}.json"


def endpoints_file(interface: str) -> str:
    """Name of the file with the direct endpoints that the relay took the place of."""
    return f"endpoints-{interface}.json"


def is_ours(name: str, interface: str) -> bool:
    """Whether a file of this name is kept by relayd for `interface`, or for all of the node's."""
    kept = (*_OF_ALL, made_file(interface), endpoints_file(interface))
    return any(name == one or fnmatch.fnmatchcase(name, _BEING_WRITTEN.format(name=one)) for one in kept)


def read_json(path: Path, kind: type[Memory]) -> Memory | None:
    """What was remembered. None: nothing was, or it can't be understood, which the log then tells."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=kind)
    except FileNotFoundError:
        return None
    except OSError as error:
        log.get().warning("state.unreadable", file=str(path), error=error.strerror)
    except ValueError as error:  # msgspec's errors are ValueErrors
        log.get().warning("state.malformed", file=str(path), error=str(error))
    return None


def write_json(path: Path, memory: msgspec.Struct) -> None:
    """Replace the file in one step, mode 0600; its directory is made (0700) if need be. Raises HostError."""
    beside = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        try:
            descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            with open(descriptor, "wb") as file:
                file.write(msgspec.json.format(msgspec.json.encode(memory)) + b"\n")
                file.flush()
                os.fsync(file.fileno())
            beside.replace(path)
        finally:
            beside.unlink(missing_ok=True)
    except OSError as error:
        raise HostError(f"cannot write {path}: {error.strerror} (see --state)") from error


class InUseError(HostError):
    """Another process works with the state directory."""


@contextmanager
def held(directory: Path, *, alone: bool) -> Iterator[None]:
    """Work with the state directory: `alone`, or beside others. Made (0700, and so it gets where somebody has
    made it for us, as kubelet does) unless `alone`.

    Raises InUseError when others' work excludes ours, HostError when the directory can't be had. A directory
    that isn't there is nobody's, and `alone` it needs no lock.
    """
    descriptor = _locked(directory, alone=alone)
    try:
        if descriptor is not None and not alone:
            _close_to_others(descriptor, directory)
        yield
    finally:
        if descriptor is not None:
            os.close(descriptor)


def _locked(directory: Path, *, alone: bool) -> int | None:
    """A descriptor of the directory, locked; None: there is no such directory."""
    while True:
        if not alone:
            try:
                directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            except OSError as error:
                raise HostError(f"cannot make {directory}: {error.strerror} (see --state)") from error
        try:
            descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except FileNotFoundError:
            if alone:
                return None
            continue  # a cleanup has just taken it away
        except OSError as error:
            raise HostError(f"cannot use {directory}: {error.strerror} (see --state)") from error
        try:
            _lock(descriptor, directory, alone=alone)
            # Between the two calls a cleanup may have taken it away: a lock on that keeps nobody out.
            if _is_at(descriptor, directory):
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


def _close_to_others(descriptor: int, directory: Path) -> None:
    """What is in it is its owner's alone anyway; but not a directory that has another purpose, too."""
    try:
        found = os.fstat(descriptor)
        is_ours_alone = directory == Path(STATE_DIR) or not os.listdir(descriptor)
        if found.st_uid == os.geteuid() and found.st_mode & (stat.S_IRWXG | stat.S_IRWXO) and is_ours_alone:
            os.fchmod(descriptor, stat.S_IRWXU)
    except OSError as error:
        log.get().warning("state.open", directory=str(directory), error=error.strerror)


def _lock(descriptor: int, directory: Path, *, alone: bool) -> None:
    try:
        fcntl.flock(descriptor, (fcntl.LOCK_EX if alone else fcntl.LOCK_SH) | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno != errno.EWOULDBLOCK:
            raise HostError(f"cannot lock {directory}: {error.strerror}") from error
        who = "an agent is using it" if alone else "a cleanup is at work there"
        raise InUseError(f"{directory}: {who}") from error


def _is_at(descriptor: int, directory: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(directory))
    except FileNotFoundError:
        return False
