"""What goes wrong between us and the API server."""

from __future__ import annotations

import msgspec

from relayd.coordination.kubernetes.decoding import decode
from relayd.errors import RelaydError

MAX_RETRY_AFTER_S = 60.0
"""An API server asks for a second, or some. One that asks for a day, by mistake, is asked again."""


class ApiError(RelaydError):
    """The API server said no. `status` is HTTP's, `reason` its own word ("Expired", "AlreadyExists")."""

    def __init__(self, status: int, reason: str, message: str, *, retry_after_s: float = 0.0) -> None:
        self.status, self.reason, self.retry_after_s = status, reason, retry_after_s
        super().__init__(f"the API server says {status} {reason}: {message}".rstrip(": "))


class UnreachableError(RelaydError):
    """The API server doesn't answer, or not in HTTP."""


class _Details(msgspec.Struct):
    retryAfterSeconds: int = 0  # noqa: N815 - the API's word


class _Status(msgspec.Struct):
    """The API's own kind of answer to what failed."""

    code: int = 0
    reason: str = ""
    message: str = ""
    details: _Details | None = None


def error_of(body: bytes, status: int = 0, retry_after: str = "") -> ApiError:
    """What an answer with HTTP's `status` says, or what a watch's ERROR event carries.

    `retry_after`: its header of that name, in seconds. What refuses for want of room (priority and fairness)
    says it there alone.
    """
    try:
        said = decode(body, _Status)
    except ValueError:  # a proxy in between, in its own words
        said = _Status(message=body[:200].decode(errors="replace"))
    wait_s = float(said.details.retryAfterSeconds if said.details is not None else 0)
    if retry_after.isascii() and retry_after.isdigit():
        wait_s = max(wait_s, float(retry_after))
    return ApiError(
        status or said.code or 500,
        said.reason,
        said.message.strip(),
        retry_after_s=min(wait_s, MAX_RETRY_AFTER_S),
    )
