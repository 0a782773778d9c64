"""What goes wrong between us and the API server."""

from __future__ import annotations

import msgspec

from relayd.errors import RelaydError


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


def error_of(body: bytes, status: int = 0) -> ApiError:
    """What an answer with HTTP's `status` says, or what a watch's ERROR event carries."""
    try:
        said = msgspec.json.decode(body, type=_Status)
    except ValueError:  # a proxy in between, in its own words
        said = _Status(message=body[:200].decode(errors="replace"))
    wait_s = said.details.retryAfterSeconds if said.details is not None else 0
    return ApiError(status or said.code or 500, said.reason, said.message, retry_after_s=float(wait_s))
