"""The books of list and watch: nothing known is lost, nothing is missed, whatever the API server answers."""

from __future__ import annotations

import json

import pytest

from relayd.coordination.kubernetes.api_error import ApiError
from relayd.coordination.kubernetes.listing import Listing
from relayd.coordination.kubernetes.resources import Peer


def peer(name: str, version: int, **spec: object) -> dict[str, object]:
    return {"metadata": {"name": name, "uid": f"uid-{name}", "resourceVersion": str(version)}, "spec": spec}


def listed(*items: dict[str, object], version: int = 10, more: str = "") -> bytes:
    metadata = {"resourceVersion": str(version), "continue": more}
    return json.dumps({"metadata": metadata, "items": items}).encode()


def event(kind: str, item: object) -> bytes:
    return json.dumps({"type": kind, "object": item}).encode()


def gone() -> dict[str, object]:
    return {"kind": "Status", "code": 410, "reason": "Expired", "message": "too old resource version"}


@pytest.fixture
def listing() -> Listing[Peer]:
    made = Listing(Peer)
    assert made.listed(listed(peer("a", 3), peer("b", 4))) == ""
    return made


def test_the_first_list_comes_from_the_servers_cache() -> None:
    assert Listing(Peer).list_query() == {"resourceVersion": "0"}


def test_a_list_is_taken_whole_or_not_at_all(listing: Listing[Peer]) -> None:
    assert listing.listed(listed(peer("c", 5), version=20, more="next")) == "next"
    assert set(listing.known) == {"a", "b"}
    assert listing.list_query("next")["continue"] == "next"
    assert listing.listed(listed(peer("d", 6), version=20)) == ""
    assert set(listing.known) == {"c", "d"}


def test_pages_of_a_list_that_failed_are_not_mixed_with_the_next(listing: Listing[Peer]) -> None:
    listing.listed(listed(peer("c", 5), more="next"))
    listing.list_query()
    listing.listed(listed(peer("d", 6)))
    assert set(listing.known) == {"d"}


def test_a_watch_goes_on_from_the_last_event(listing: Listing[Peer]) -> None:
    assert listing.watch_query() == {"resourceVersion": "10", "allowWatchBookmarks": "true"}
    assert listing.event(event("ADDED", peer("c", 11)))
    assert listing.event(event("MODIFIED", peer("a", 12, endpoint="192.0.2.1:1")))
    assert listing.event(event("DELETED", peer("b", 13)))
    assert listing.watch_query()["resourceVersion"] == "13"
    assert set(listing.known) == {"a", "c"}
    assert listing.known["a"].spec.endpoint == "192.0.2.1:1"


def test_a_bookmark_moves_the_version_and_nothing_else(listing: Listing[Peer]) -> None:
    assert not listing.event(event("BOOKMARK", {"metadata": {"resourceVersion": "99"}}))
    assert listing.resource_version == "99"
    assert set(listing.known) == {"a", "b"}


def test_what_is_being_deleted_is_gone_whoever_holds_that_up(listing: Listing[Peer]) -> None:
    """A node that was taken over may put a finalizer into its own resource, and would stay for ever."""
    held = peer("b", 11)
    held["metadata"] |= {"deletionTimestamp": "2026-01-01T00:00:00Z", "finalizers": ["x/y"]}  # type: ignore[operator]
    assert listing.event(event("MODIFIED", held))
    assert set(listing.known) == {"a"}
    listing.listed(listed(peer("a", 12), held))
    assert set(listing.known) == {"a"}
    assert listing.event(event("DELETED", held))


@pytest.mark.parametrize("levels", [10, 1100, 9000])
def test_what_a_node_reports_may_be_nested_as_deep_as_the_server_takes_it(
    listing: Listing[Peer], levels: int
) -> None:
    """Its own agent may write what it likes into its status; the others must not end of it."""
    deep = '[{"a":' * levels + '"}]{["' + "}]" * levels
    item = json.dumps(peer("deep", 11, endpoint="192.0.2.1:1")).replace(
        '"spec"', f'"status": {{"x": {deep}}}, "spec"'
    )
    assert listing.event(f'{{"type": "ADDED", "object": {item}}}'.encode())
    assert listing.known["deep"].spec.endpoint == "192.0.2.1:1"
    known = json.dumps(peer("a", 12))
    listing.listed(f'{{"metadata": {{"resourceVersion": "12"}}, "items": [{item}, {known}]}}'.encode())
    assert set(listing.known) == {"deep", "a"}
    assert listing.known["deep"].spec.endpoint == "192.0.2.1:1"


def test_a_list_of_nothing_in_particular_is_none(listing: Listing[Peer]) -> None:
    with pytest.raises(ValueError, match="without a resourceVersion"):
        listing.listed(b'{"kind": "Status", "metadata": {}, "status": "Success"}')
    assert set(listing.known) == {"a", "b"}


def test_a_status_that_is_reported_changes_nothing(listing: Listing[Peer]) -> None:
    reported = peer("a", 11) | {"status": {"lastReportedAt": "2026-01-01T00:00:00Z"}}
    assert not listing.event(event("MODIFIED", reported))
    assert listing.known["a"].metadata.resourceVersion == "11", "a later write must name it"


def test_after_gone_a_list_is_asked_of_etcd_and_what_was_known_stays(listing: Listing[Peer]) -> None:
    with pytest.raises(ApiError):
        listing.event(event("ERROR", gone()))
    assert listing.resource_version == ""
    assert set(listing.known) == {"a", "b"}
    assert "resourceVersion" not in listing.list_query()
    listing.listed(listed(peer("b", 50), version=51))
    assert set(listing.known) == {"b"}
    assert listing.list_query() == {"resourceVersion": "0"}


def test_another_error_loses_no_place(listing: Listing[Peer]) -> None:
    with pytest.raises(ApiError):
        listing.event(event("ERROR", {"code": 500, "reason": "InternalError", "message": "etcd"}))
    assert listing.resource_version == "10"


def test_a_resource_that_cant_be_read_is_left_out_and_told_of(listing: Listing[Peer]) -> None:
    assert listing.event(event("ADDED", peer("bad", 11, allowedIPs="10.0.0.0/8")))
    assert set(listing.known) == {"a", "b"}
    assert "allowedIPs" in listing.problems["bad"]
    assert listing.event(event("MODIFIED", peer("bad", 12, allowedIPs=["10.0.0.0/8"])))
    assert listing.problems == {}
    assert listing.event(event("MODIFIED", peer("bad", 13, endpoint=5)))
    assert "bad" not in listing.known
    assert listing.event(event("DELETED", peer("bad", 14)))
    assert listing.problems == {}


@pytest.mark.parametrize(
    "line", [b"", b"nonsense", b"[]", b'{"type": "ADDED"}', b'{"type": 1, "object": {}}']
)
def test_a_line_that_is_no_event_is_an_error(listing: Listing[Peer], line: bytes) -> None:
    with pytest.raises(ValueError, match=r"JSON|Expected|missing|malformed|truncated"):
        listing.event(line)
