"""Addresses on loopback, one per key, the same after every restart."""

from __future__ import annotations

import json
import os
import stat
from ipaddress import IPv4Address
from itertools import count
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from relayd.agent.loopback import FILE_NAME, LoopbackAddresses, derive
from relayd.keys import PublicKey
from relayd.marks import PROXY_NETWORK


def key(number: int) -> PublicKey:
    return PublicKey(number.to_bytes(32, "big"))


def colliding() -> tuple[PublicKey, PublicKey]:
    """Two keys whose first choice is the same: among some 2,000 random ones there is a pair."""
    seen: dict[IPv4Address, PublicKey] = {}
    for number in count():
        first = seen.setdefault(derive(key(number)), key(number))
        if first != key(number):
            return first, key(number)
    raise AssertionError("unreachable")


FIRST, SECOND = colliding()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state" / FILE_NAME


def test_the_address_of_a_key_is_fixed_for_ever() -> None:
    """Another hash in a later version leaves every kernel endpoint pointing nowhere after an upgrade."""
    assert derive(key(1)) == IPv4Address("127.83.69.227")
    assert derive(key(1), 1) == IPv4Address("127.66.211.210")


def test_a_thousand_keys_have_addresses_of_their_own_in_the_network(path: Path) -> None:
    addresses = LoopbackAddresses(path)
    given = {addresses.address_of(key(number)) for number in range(1000)}
    assert len(given) == 1000
    assert all(address in PROXY_NETWORK for address in given)


def test_without_a_collision_nothing_is_written(path: Path) -> None:
    assert LoopbackAddresses(path).address_of(FIRST) == derive(FIRST)
    assert not path.parent.exists()


def test_of_two_colliding_keys_the_first_has_its_choice_and_the_other_the_next(path: Path) -> None:
    addresses = LoopbackAddresses(path)
    assert addresses.address_of(FIRST) == derive(FIRST)
    assert addresses.address_of(SECOND) == derive(SECOND, 1)
    assert addresses.address_of(FIRST) == derive(FIRST)


@pytest.mark.parametrize("order", [(FIRST, SECOND), (SECOND, FIRST), (SECOND,)])
def test_both_sides_of_a_collision_keep_their_addresses_whatever_comes_back(
    path: Path, order: tuple[PublicKey, ...]
) -> None:
    before = LoopbackAddresses(path)
    expected = {FIRST: before.address_of(FIRST), SECOND: before.address_of(SECOND)}
    after = LoopbackAddresses(path)
    assert {one: after.address_of(one) for one in order} == {one: expected[one] for one in order}


def test_a_remembered_address_is_nobody_elses_even_before_its_key_is_asked_for(path: Path) -> None:
    path.parent.mkdir()
    taken = derive(FIRST)
    path.write_text(json.dumps({"version": 1, "addresses": {str(key(7)): str(taken)}}))
    assert LoopbackAddresses(path).address_of(FIRST) == derive(FIRST, 1)


def test_the_file_is_the_owners_only_and_leaves_nothing_beside_it(path: Path) -> None:
    old_umask = os.umask(0)
    try:
        addresses = LoopbackAddresses(path)
        addresses.address_of(FIRST)
        addresses.address_of(SECOND)
    finally:
        os.umask(old_umask)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert list(path.parent.iterdir()) == [path]


def test_what_a_killed_process_left_of_a_write_is_in_nobodys_way(path: Path) -> None:
    path.parent.mkdir()
    path.with_suffix(".new").write_text("{")
    addresses = LoopbackAddresses(path)
    addresses.address_of(FIRST)
    second = addresses.address_of(SECOND)
    assert LoopbackAddresses(path).address_of(SECOND) == second


ONE = str(key(1))
TWO = str(key(2))


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "[]",
        '{"version": 1}',
        '{"version": 2, "addresses": {}}',
        '{"version": 1, "addresses": {"short": "127.64.0.1"}}',
        f'{{"version": 1, "addresses": {{"{ONE}": "127.64.0.256"}}}}',
        f'{{"version": 1, "addresses": {{"{ONE}": "10.0.0.1"}}}}',
        f'{{"version": 1, "addresses": {{"{ONE}": "127.64.0.1", "{TWO}": "127.64.0.1"}}}}',
        "\udcff",
    ],
)
def test_a_malformed_file_is_put_aside_and_told_of_and_the_tunnel_lives(path: Path, content: str) -> None:
    path.parent.mkdir()
    path.write_text(content, errors="surrogateescape")
    with capture_logs() as lines:
        addresses = LoopbackAddresses(path)
    assert [line["event"] for line in lines] == ["loopback.malformed"]
    assert path.with_suffix(".bad").read_text(errors="surrogateescape") == content
    assert addresses.address_of(FIRST) == derive(FIRST)
    assert addresses.address_of(SECOND) == derive(SECOND, 1)
    assert json.loads(path.read_text())["version"] == 1


def test_a_directory_that_cannot_be_written_is_told_of_once_and_the_tunnel_lives(tmp_path: Path) -> None:
    in_the_way = tmp_path / "state"
    in_the_way.write_text("a file")
    with capture_logs() as lines:
        addresses = LoopbackAddresses(in_the_way / FILE_NAME)
        addresses.address_of(FIRST)
        assert addresses.address_of(SECOND) == derive(SECOND, 1)
    assert [line["event"] for line in lines] == [
        "loopback.unreadable",
        "loopback.collided",
        "loopback.unsaved",
    ]
