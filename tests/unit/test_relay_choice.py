"""relay_choice: which relay is whose. Values in, addresses out."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from relayd.agent.relay_choice import (
    GONE_CAP_S,
    GONE_S,
    GRACE_S,
    Condition,
    LinkSeen,
    PeerRoute,
    homes,
    order,
)
from relayd.keys import PublicKey

RELAYS = tuple(f"relay{number}.example.net:3478" for number in range(4))
keys = st.binary(min_size=32, max_size=32).map(PublicKey)


def node(number: int) -> PublicKey:
    return PublicKey(number.to_bytes(32, "big"))


def links(**conditions: Condition) -> dict[str, LinkSeen]:
    """`a=UP` and so on, all since 0."""
    return {name: LinkSeen(condition, 0.0) for name, condition in conditions.items()}


@given(keys, st.permutations(RELAYS))
def test_everybody_ranks_alike_in_whichever_order_relays_are_named(key: PublicKey, named: list[str]) -> None:
    assert order(key, named) == order(key, RELAYS)
    assert sorted(order(key, named)) == sorted(RELAYS)


@given(keys, st.sampled_from(RELAYS))
def test_one_relay_less_changes_nothing_about_the_others(key: PublicKey, gone: str) -> None:
    left = tuple(relay for relay in RELAYS if relay != gone)
    assert order(key, left) == tuple(relay for relay in order(key, RELAYS) if relay != gone)


def test_relays_get_equal_shares_and_one_more_takes_its_share_alone() -> None:
    count = 4000
    before = [order(node(number), RELAYS[:3])[0] for number in range(count)]
    after = [order(node(number), RELAYS)[0] for number in range(count)]
    for share in Counter(after).values():
        assert abs(share - count / 4) < count / 40
    moved = [(old, new) for old, new in zip(before, after, strict=True) if old != new]
    assert {new for _, new in moved} == {RELAYS[3]}
    assert abs(len(moved) - count / 4) < count / 40


def test_home_is_the_first_that_works() -> None:
    up, down, idle = Condition.UP, Condition.DOWN, Condition.IDLE
    assert homes("abc", links(a=up, b=up, c=idle), 9.0) == ("a",)
    assert homes("abc", links(a=down, b=up, c=idle), 9.0) == ("a", "b")
    assert homes("abc", links(a=down, b=down, c=down), 9.0) == ("a", "b", "c")
    assert homes("abc", links(a=idle, b=idle, c=idle), 9.0) == ("a",)


def test_a_relay_that_drains_is_left_and_carries_until_its_nodes_are_elsewhere() -> None:
    seen = {"a": LinkSeen(Condition.DRAINING, 10.0, carries_until=16.0), "b": LinkSeen(Condition.UP, 0.0)}
    assert homes("ab", seen, 10.0) == ("a", "b"), "the next one at once"
    route = PeerRoute("ab")
    assert route.choose(seen, 15.9) == "a", "others need the time to get there"
    assert route.choose(seen, 16.0) == "b"


def test_a_relay_that_takes_too_long_is_no_longer_waited_for() -> None:
    seen = links(a=Condition.CONNECTING, b=Condition.IDLE)
    assert homes("ab", seen, GRACE_S - 0.1) == ("a",)
    assert homes("ab", seen, GRACE_S) == ("a", "b")


def test_a_peers_frames_go_to_its_home_and_on_when_it_is_absent_there() -> None:
    seen = links(a=Condition.UP, b=Condition.UP, c=Condition.IDLE)
    route = PeerRoute("abc")
    assert route.choose(seen, 0.0) == "a"
    route.gone("a", 1.0)
    assert route.choose(seen, 1.0) == "b"
    route.gone("b", 2.0)
    assert route.choose(seen, 2.0) == "c"
    assert route.choose(seen, 1.0 + GONE_S) == "a"


def test_a_relay_that_keeps_saying_absent_is_asked_ever_less() -> None:
    seen = links(a=Condition.UP, b=Condition.UP)
    route = PeerRoute("ab")
    now, waits = 0.0, []
    for _ in range(6):
        route.gone("a", now)
        route.gone("a", now + 0.1)  # one for each frame that was under way
        began = now
        while route.choose(seen, now) != "a":
            now += 1.0
        waits.append(now - began)
    assert waits == [GONE_S, 60.0, 120.0, 240.0, GONE_CAP_S, GONE_CAP_S]


def test_a_peer_that_nobody_has_is_looked_for_where_that_was_said_longest_ago() -> None:
    seen = links(a=Condition.UP, b=Condition.UP)
    route = PeerRoute("ab")
    route.gone("a", 0.0)
    route.gone("b", 1.0)
    assert route.choose(seen, 2.0) == "a"


def test_a_relay_that_is_down_is_passed_over() -> None:
    route = PeerRoute("ab")
    assert route.choose(links(a=Condition.DOWN, b=Condition.IDLE), 9.0) == "b"
    assert route.choose(links(a=Condition.DOWN, b=Condition.DOWN), 9.0) == "a"


@given(st.lists(st.tuples(st.sampled_from("abc"), st.floats(0, 1000)), max_size=30), st.floats(0, 2000))
def test_there_is_always_a_choice(absences: list[tuple[str, float]], now: float) -> None:
    route = PeerRoute("abc")
    for relay, at in sorted(absences, key=lambda one: one[1]):
        route.gone(relay, at)
    assert route.choose(links(a=Condition.UP, b=Condition.DOWN, c=Condition.IDLE), now) in "ac"


def test_what_is_held_against_a_relay_goes_on_in_the_next_process() -> None:
    route = PeerRoute(RELAYS)
    route.gone(RELAYS[0], 100.0)
    links = {relay: LinkSeen(Condition.UP, 0.0) for relay in RELAYS}
    assert route.choose(links, 110.0) == RELAYS[1]
    ((relay, left_s, held_s),) = route.held(110.0)
    assert (relay, left_s, held_s) == (RELAYS[0], GONE_S - 10.0, GONE_S)
    after = PeerRoute(RELAYS)
    after.hold(relay, 500.0 + left_s, held_s)
    assert after.choose(links, 500.0) == RELAYS[1]
    assert after.choose(links, 500.0 + left_s) == RELAYS[0]
    after.gone(RELAYS[0], 500.0 + left_s)
    assert after.held(500.0 + left_s) == [(RELAYS[0], 2 * GONE_S, 2 * GONE_S)]
    assert route.held(1000.0) == []
