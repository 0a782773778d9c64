"""Strangers, floods and recordings: what is dropped before anybody acts on it, and what it costs."""

from __future__ import annotations

import pytest

from relayd.keys import PublicKey
from relayd.token_bucket import TokenBucket
from relayd.wire import sealed
from relayd.wire.sealed_inbox import MESSAGES_BURST, MESSAGES_PER_S, Opened, SealedInbox
from relayd.wire.sealed_messages import CallMeMaybe, Candidates, PathChanged, Ping
from relayd.wire.sealed_session import MAX_RETIRED, Freshness, SealedSession
from tests.helpers.identities import ALICE, BOB, MALLORY, drawn
from tests.helpers.sealing import ALICE_TO_BOB, NONCE, TXID, Draws


def inbox_of_bob(*peers: PublicKey) -> SealedInbox:
    inbox = SealedInbox(BOB, draw=Draws("bob"))
    inbox.set_peers(peers or [ALICE.public()])
    return inbox


def test_a_peers_message_is_opened() -> None:
    inbox = inbox_of_bob()
    assert inbox.open_untrusted(ALICE_TO_BOB.seal(Ping(TXID), NONCE), 0.0) == Opened(
        ALICE.public(), Ping(TXID)
    )
    assert not inbox.drops


def test_an_unknown_key_is_dropped_before_any_cryptography(monkeypatch: pytest.MonkeyPatch) -> None:
    inbox = inbox_of_bob()

    def never(*_: object) -> bytes:
        raise AssertionError("computed something for a stranger")

    stranger = sealed.Channel.between(MALLORY, BOB.public()).seal(Ping(TXID), NONCE)
    monkeypatch.setattr(sealed, "shared_key_untrusted", never)
    monkeypatch.setattr(sealed, "open_untrusted", never)
    assert inbox.open_untrusted(stranger, 0.0) is None
    assert inbox.drops == {"unknown_key": 1}


def test_a_peers_flood_is_cut_to_its_rate_and_hurts_no_other_peer() -> None:
    inbox = inbox_of_bob(ALICE.public(), MALLORY.public())
    flood = sealed.Channel.between(MALLORY, BOB.public()).seal(Ping(TXID), NONCE)
    seconds = 10
    taken = sum(inbox.open_untrusted(flood, step / 1000) is not None for step in range(seconds * 1000))
    assert MESSAGES_PER_S * seconds <= taken <= MESSAGES_PER_S * seconds + MESSAGES_BURST
    assert inbox.drops == {"rate": seconds * 1000 - taken}
    assert inbox.open_untrusted(ALICE_TO_BOB.seal(Ping(TXID), NONCE), float(seconds)) is not None


def test_what_others_send_in_a_peers_name_takes_nothing_of_its_rate() -> None:
    inbox = inbox_of_bob()
    forged = bytearray(ALICE_TO_BOB.seal(Ping(TXID), NONCE))
    forged[-1] ^= 1
    for step in range(10 * int(MESSAGES_BURST)):
        assert inbox.open_untrusted(bytes(forged), step / 1000) is None
    assert inbox.open_untrusted(ALICE_TO_BOB.seal(Ping(TXID), NONCE), 0.6) is not None
    assert inbox.drops == {"malformed": 10 * int(MESSAGES_BURST)}


def test_what_a_relay_repeats_all_the_time_takes_nothing_of_what_is_heard_directly() -> None:
    inbox = inbox_of_bob()
    recorded = ALICE_TO_BOB.seal(Ping(TXID), NONCE)
    for now in (0.0, 0.001, 1.0):
        while inbox.open_untrusted(recorded, now, relayed=True) is not None:
            pass
        assert inbox.open_untrusted(ALICE_TO_BOB.seal(Ping(TXID), NONCE), now) is not None


def test_what_does_not_open_is_counted() -> None:
    inbox = inbox_of_bob()
    datagram = bytearray(ALICE_TO_BOB.seal(Ping(TXID), NONCE))
    datagram[-1] ^= 1
    assert inbox.open_untrusted(bytes(datagram), 0.0) is None
    assert inbox.open_untrusted(b"something else", 0.0) is None
    assert inbox.drops == {"malformed": 2}


def test_peers_come_and_go() -> None:
    inbox = inbox_of_bob()
    datagram = ALICE_TO_BOB.seal(Ping(TXID), NONCE)
    inbox.set_peers([MALLORY.public()])
    assert inbox.open_untrusted(datagram, 0.0) is None
    with pytest.raises(KeyError):
        inbox.seal(ALICE.public(), Ping(TXID))
    inbox.set_peers([ALICE.public()])
    assert inbox.open_untrusted(datagram, 0.0) is not None


def test_the_shared_key_is_computed_once_a_peer(monkeypatch: pytest.MonkeyPatch) -> None:
    inbox = inbox_of_bob()
    computed = []
    original = sealed.Channel.between

    def counted(*arguments: object) -> object:
        computed.append(arguments)
        return original(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(sealed.Channel, "between", counted)
    for _ in range(5):
        inbox.open_untrusted(ALICE_TO_BOB.seal(Ping(TXID), NONCE), 0.0)
        inbox.seal(ALICE.public(), Ping(TXID))
    assert len(computed) == 1


def test_no_two_messages_have_one_nonce() -> None:
    inbox = inbox_of_bob()
    nonces = {inbox.seal(ALICE.public(), Ping(TXID))[40:64] for _ in range(100)}
    assert len(nonces) == 100


# Replay ---------------------------------------------------------------------------------------------------


class Node:
    """One end's session with the other."""

    def __init__(self, life: str) -> None:
        self.session = SealedSession(drawn(life, 8))

    def says(self, path: str = "relay") -> PathChanged:
        session = self.session
        return PathChanged(
            generation=session.next_generation(),
            session=session.own,
            yours=session.yours,
            path="relay" if path == "relay" else "direct",
        )

    def hears(self, message: PathChanged | Candidates | CallMeMaybe) -> Freshness:
        return self.session.judge(message)


def introduced(a: Node, b: Node) -> None:
    """Both have heard from each other."""
    b.hears(a.says())
    assert a.hears(b.says()) is Freshness.FRESH
    assert b.hears(a.says()) is Freshness.FRESH


def test_what_names_our_session_is_fresh_and_the_first_word_is_a_hint() -> None:
    a, b = Node("a1"), Node("b1")
    assert b.hears(a.says()) is Freshness.HINT
    introduced(a, b)


def test_a_map_that_is_sent_again_is_old() -> None:
    a, b = Node("a1"), Node("b1")
    introduced(a, b)
    first, second = a.says(), a.says()
    assert b.hears(second) is Freshness.FRESH
    assert b.hears(second) is Freshness.OLD
    assert b.hears(first) is Freshness.OLD


def test_nothing_recorded_before_our_start_is_fresh() -> None:
    a, before = Node("a1"), Node("b1")
    introduced(a, before)
    recorded = [a.says() for _ in range(3)]
    b = Node("b2")  # it starts anew, and a is replayed to it
    assert all(b.hears(one) is not Freshness.FRESH for one in recorded)
    a.hears(b.says())
    assert b.hears(a.says()) is Freshness.FRESH
    assert all(b.hears(one) is not Freshness.FRESH for one in recorded)


def test_nothing_recorded_of_a_peers_former_life_is_fresh() -> None:
    a, b = Node("a1"), Node("b1")
    introduced(a, b)
    recorded = [a.says() for _ in range(100)]
    again = Node("a2")
    assert b.hears(again.says()) is Freshness.HINT  # nobody can tell yet
    introduced(again, b)
    assert all(b.hears(one) is Freshness.OLD for one in recorded)
    assert b.hears(again.says()) is Freshness.FRESH


def test_both_ends_restarted_find_each_other_through_a_replayer() -> None:
    a, b = Node("a1"), Node("b1")
    introduced(a, b)
    old = a.says(), b.says()
    a, b = Node("a2"), Node("b2")
    for _ in range(3):  # whoever is in between puts old words before each new one
        assert b.hears(old[0]) is not Freshness.FRESH
        assert a.hears(old[1]) is not Freshness.FRESH
        b.hears(a.says())
        a.hears(b.says())
    assert b.hears(a.says()) is Freshness.FRESH
    assert a.hears(b.says()) is Freshness.FRESH


def test_the_memory_of_former_lives_is_bounded() -> None:
    b = Node("b1")
    for life in range(MAX_RETIRED * 2):
        introduced(Node(f"a{life}"), b)
    assert len(b.session._retired) == MAX_RETIRED


# The bucket -----------------------------------------------------------------------------------------------


def test_a_bucket_gives_its_burst_and_then_its_rate() -> None:
    bucket = TokenBucket(rate_per_s=2.0, burst=3.0)
    assert [bucket.try_take(1.0, 100.0) for _ in range(4)] == [True, True, True, False]
    assert [bucket.try_take(1.0, 101.0) for _ in range(3)] == [True, True, False]
    assert [bucket.try_take(1.0, 1000.0) for _ in range(4)] == [True, True, True, False]
    assert not bucket.try_take(1.0, 999.0)  # a clock that goes back gives nothing
