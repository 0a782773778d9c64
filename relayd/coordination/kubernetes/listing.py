"""What is known of one collection of resources: the bookkeeping of list and watch, without the requests.

    list (whole) -> watch from its resourceVersion -> events and bookmarks move that on
                 -> the server ends the watch, or the connection breaks: watch again from where it was
                 -> 410 Gone: list again; what was known stays known until the new list is there

https://kubernetes.io/docs/reference/using-api/api-concepts/#efficient-detection-of-changes
"""

from __future__ import annotations

from typing import Generic, TypeVar

import msgspec

from relayd.coordination.kubernetes.api_error import ApiError, error_of
from relayd.coordination.kubernetes.decoding import decode
from relayd.coordination.kubernetes.resources import Meta, Resource

PAGE = 500
"""Resources of one page. The API server reads a page that isn't from its cache as one range of etcd."""

GONE = 410
R = TypeVar("R", bound=Resource)


class _ListMeta(msgspec.Struct):
    resourceVersion: str = ""  # noqa: N815
    continue_: str = msgspec.field(default="", name="continue")


class _List(msgspec.Struct):
    metadata: _ListMeta
    items: list[msgspec.Raw] = []


class _Event(msgspec.Struct):
    type: str
    object: msgspec.Raw


class _Named(msgspec.Struct):
    """What even a resource that can't be understood has."""

    metadata: Meta


def content(resource: Resource) -> Resource:
    """The resource without what every write of its status changes."""
    meta = msgspec.structs.replace(resource.metadata, resourceVersion="")
    return msgspec.structs.replace(resource, metadata=meta)


class Listing(Generic[R]):
    """One collection."""

    def __init__(self, kind: type[R]) -> None:
        self._kind = kind
        self.known: dict[str, R] = {}
        """By name."""
        self.problems: dict[str, str] = {}
        """Resources that are left out, by name, and why."""
        self.resource_version = ""
        """Where a watch goes on from; empty: a list has to come first."""
        self.complete = False
        """Whether there was ever a whole list."""
        self._pages: list[msgspec.Raw] = []
        self._expired = False

    def list_query(self, continue_: str = "") -> dict[str, str]:
        """The query of a list, or of its next page.

        The first list ever comes from the API server's cache: a thousand agents that start at once cost etcd
        nothing. After 410 Gone it must be newer than what is known, so it comes from etcd.
        """
        if continue_:
            return {"limit": str(PAGE), "continue": continue_}
        self._pages = []
        return {"limit": str(PAGE)} if self._expired else {"resourceVersion": "0"}

    def listed(self, body: bytes) -> str:
        """Take in a page. -> what the next page's query continues with; "" when the list is whole now.

        Raises ValueError when it is no list.
        """
        page = decode(body, _List)
        self._pages += page.items
        if page.metadata.continue_:
            return page.metadata.continue_
        if not page.metadata.resourceVersion:  # it would be a list of nothing
            raise ValueError("a list without a resourceVersion")
        self.known, self.problems = {}, {}
        for raw in self._pages:
            self._put(raw)
        self._pages = []
        self.resource_version = page.metadata.resourceVersion
        self.complete, self._expired = True, False
        return ""

    def watch_query(self) -> dict[str, str]:
        """The query of a watch, but for its time."""
        return {"resourceVersion": self.resource_version, "allowWatchBookmarks": "true"}

    def event(self, line: bytes) -> bool:
        """Take in a line of a watch. -> whether something changed

        Raises ApiError for an ERROR event (after 410 the next thing is a list), ValueError for no event.
        """
        event = decode(line, _Event)
        if event.type == "ERROR":
            error = error_of(bytes(event.object))
            self.failed(error)
            raise error
        meta = decode(event.object, _Named).metadata
        if event.type == "DELETED":
            self.known.pop(meta.name, None)
            self.problems.pop(meta.name, None)
            changed = True
        elif event.type in ("ADDED", "MODIFIED"):
            before = self.known.get(meta.name)
            self._put(event.object)
            after = self.known.get(meta.name)
            # A status that is reported moves the version and nothing that matters here.
            changed = before is None or after is None or content(before) != content(after)
        else:
            changed = False  # a bookmark
        self.resource_version = meta.resourceVersion
        return changed

    def failed(self, error: ApiError) -> None:
        """A list or a watch was answered with an error."""
        if error.status == GONE:
            self.resource_version, self._expired = "", True

    def _put(self, raw: msgspec.Raw) -> None:
        meta = decode(raw, _Named).metadata
        try:
            resource = decode(raw, self._kind)
            self.problems.pop(meta.name, None)
            if resource.is_gone:
                self.known.pop(meta.name, None)
            else:
                self.known[meta.name] = resource
        except msgspec.ValidationError as error:
            self.known.pop(meta.name, None)
            self.problems[meta.name] = str(error)
