"""The file with the interface's private key: who may read it, and what is in it."""

from __future__ import annotations

import os
import shlex
import stat
from pathlib import Path

from relayd.config.values import WrongError
from relayd.keys import PrivateKey

MAX_BYTES = 4096
"""A key has 45 with its newline."""


def read_private_key(path: Path) -> PrivateKey:
    """The key in the file at `path`, in `wg genkey`'s form. Raises WrongError, never quoting the contents.

    A file that others than its owner and group may read is refused: a key that somebody else may have read
    is no longer a key, and a warning in a log changes nothing about that. The group is let through, because
    that is how systemd and Kubernetes hand a secret to a service that isn't root.
    """
    try:
        # Not blocking: opening a FIFO would wait for a writer. No effect on a regular file.
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        raise WrongError(
            f"{str(path)!r} does not exist", f"(umask 077; wg genkey > {shlex.quote(str(path))}) makes one"
        ) from None
    except OSError as error:
        raise WrongError(f"cannot read {str(path)!r}: {error.strerror}") from error
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            raise WrongError(f"{str(path)!r} is not a regular file")
        if status.st_mode & stat.S_IRWXO:
            mode = stat.S_IMODE(status.st_mode)
            raise WrongError(
                f"{str(path)!r} is open to every user (mode {mode:04o})",
                f"chmod 600 {shlex.quote(str(path))}",
            )
        try:
            raw = os.read(fd, MAX_BYTES)
        except OSError as error:
            raise WrongError(f"cannot read {str(path)!r}: {error.strerror}") from error
    finally:
        os.close(fd)
    try:
        key = PrivateKey.from_base64(raw.decode("ascii", errors="replace"))
    except ValueError as error:
        raise WrongError(
            f"{str(path)!r} holds no WireGuard key: {error}", "44 characters of base64, as `wg genkey` prints"
        ) from None
    if not any(key.raw):
        raise WrongError(f"{str(path)!r} holds no WireGuard key: all zeros", "`wg genkey` makes one")
    return key
