"""reconcile.plan: which peers go to the relay, and why. Values in, values out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from ipaddress import IPv4Address

from relayd.agent.reconcile import RELAY_TRY_CAP_S, RELAY_TRY_S, TRY_S, Path, PeerPath, Surroundings, plan
from relayd.endpoints import Endpoint
from relayd.kernel.wireguard import Interface, Peer
from relayd.keys import PublicKey
from relayd.paths.patience import Patience
from relayd.paths.verdict import Verdict

KEY = PublicKey(b"p" * 32)
OWN = PublicKey(b"o" * 32)
PORT = 22347
LOOPBACK = IPv4Address("127.64.0.7")
PROXY = Endpoint(LOOPBACK, PORT)
DIRECT = Endpoint.parse("192.0.2.9:51820")
WALL = 1_700_000_000.0


def peer(endpoint: Endpoint | None, *, handshake_age_s: float | None = None, tx_bytes: int = 0) -> Peer:
    handshake_at = None if handshake_age_s is None else WALL - handshake_age_s
    return Peer(
        key=KEY,
        endpoint=endpoint,
        allowed_ips=(),
        handshake_at=handshake_at,
        rx_bytes=0,
        tx_bytes=tx_bytes,
        keepalive_s=0,
    )


def interface(*peers: Peer) -> Interface:
    return Interface("wg0", OWN, 51820, 0, {one.key: one for one in peers})


def around(now: float = 0.0, *, relay_connected: bool = True, wall_step_s: float = 0.0) -> Surroundings:
    return Surroundings(
        loopbacks={KEY: LOOPBACK},
        proxy_port=PORT,
        relay_connected=relay_connected,
        patience=Patience(),
        now=now,
        wall_now=WALL + now + wall_step_s,
    )


def decide(
    one: Peer, before: Mapping[PublicKey, PeerPath] | None = None, at: Surroundings | None = None
) -> dict[PublicKey, PeerPath]:
    return plan(interface(one), before or {}, at or around())


def test_a_mesh_may_give_a_direct_endpoint_more_time() -> None:
    patient = Patience(try_s=3 * TRY_S)
    paths = decide(peer(DIRECT, tx_bytes=0))
    paths = decide(peer(DIRECT, tx_bytes=148), paths, replace(around(1.0), patience=patient))
    at = replace(around(1.0 + 3 * TRY_S - 0.1), patience=patient)
    paths = decide(peer(DIRECT, tx_bytes=296), paths, at)
    assert paths[KEY].path is Path.DIRECT
    paths = decide(peer(DIRECT, tx_bytes=444), paths, replace(around(1.0 + 3 * TRY_S), patience=patient))
    assert paths[KEY].path is Path.RELAY


def test_peer_without_endpoint_goes_to_the_relay() -> None:
    decided = decide(peer(None))[KEY]
    assert (decided.path, decided.reason, decided.set_endpoint) == (Path.RELAY, "no endpoint", PROXY)


def test_peer_without_endpoint_goes_to_the_proxy_even_while_the_relay_is_away() -> None:
    assert decide(peer(None), at=around(relay_connected=False))[KEY].set_endpoint == PROXY


def test_peer_on_its_loopback_endpoint_is_not_written_again() -> None:
    paths = decide(peer(None))
    for now in (1.0, 2.0, 500.0):
        paths = decide(peer(PROXY, handshake_age_s=3.0), paths, around(now))
        assert paths[KEY].set_endpoint is None
        assert (paths[KEY].path, paths[KEY].reason) == (Path.RELAY, "no endpoint")


def test_loopback_endpoint_found_at_start_is_kept_as_it_is() -> None:
    decided = decide(peer(PROXY, handshake_age_s=400.0))[KEY]
    assert (decided.path, decided.set_endpoint) == (Path.RELAY, None)


def test_loopback_endpoint_of_another_port_or_address_is_corrected() -> None:
    for wrong in (Endpoint(LOOPBACK, PORT + 1), Endpoint.parse(f"127.64.9.9:{PORT}")):
        assert decide(peer(wrong, handshake_age_s=1.0))[KEY].set_endpoint == PROXY


def test_live_direct_endpoint_is_left_alone() -> None:
    paths: dict[PublicKey, PeerPath] = {}
    for now in range(0, 170, 10):
        paths = decide(peer(DIRECT, handshake_age_s=5.0, tx_bytes=now), paths, around(float(now)))
        assert (paths[KEY].path, paths[KEY].set_endpoint) == (Path.DIRECT, None)


def test_loopback_endpoint_that_is_not_ours_is_somebody_elses_proxy() -> None:
    decided = decide(peer(Endpoint.parse("127.0.0.1:51821"), handshake_age_s=5.0))[KEY]
    assert (decided.path, decided.set_endpoint) == (Path.DIRECT, None)


def test_stale_endpoint_that_is_tried_in_vain_goes_to_the_relay() -> None:
    paths = decide(peer(DIRECT, handshake_age_s=200.0, tx_bytes=1000))
    assert paths[KEY].path is Path.DIRECT
    paths = decide(peer(DIRECT, handshake_age_s=200.0, tx_bytes=1148), paths, around(1.0))
    assert (paths[KEY].path, paths[KEY].reason) == (Path.DIRECT, "trying")
    paths = decide(peer(DIRECT, handshake_age_s=200.0, tx_bytes=1148), paths, around(1.0 + TRY_S - 0.1))
    assert paths[KEY].path is Path.DIRECT
    paths = decide(peer(DIRECT, handshake_age_s=200.0, tx_bytes=1296), paths, around(1.0 + TRY_S))
    assert (paths[KEY].path, paths[KEY].reason) == (Path.RELAY, "no handshake for 180 s")
    assert paths[KEY].set_endpoint == PROXY


def test_session_that_goes_stale_under_traffic_goes_to_the_relay() -> None:
    paths: dict[PublicKey, PeerPath] = {}
    went_at = None
    for now in range(240):
        one = peer(DIRECT, handshake_age_s=0.0, tx_bytes=1000 + now * 148)
        paths = decide(one, paths, around(float(now)))
        if paths[KEY].path is Path.RELAY:
            went_at = now
            break
    assert went_at == 180 + TRY_S


def test_session_that_a_clock_set_forward_makes_look_old_is_left_alone_while_it_is_answered() -> None:
    paths: dict[PublicKey, PeerPath] = {}
    for now in range(100):  # plain WireGuard: until the next handshake, 120 s after the last
        one = peer(DIRECT, handshake_age_s=5.0, tx_bytes=1000 + now * 148)
        paths = decide(replace(one, rx_bytes=now * 96), paths, around(float(now), wall_step_s=1e9))
        assert (paths[KEY].path, paths[KEY].set_endpoint) == (Path.DIRECT, None)


def test_a_peer_that_reaches_us_and_is_not_reached_goes_to_the_relay() -> None:
    """Its initiations come, one in 5 s, and what answers them is lost on the way."""
    paths: dict[PublicKey, PeerPath] = {}
    for now in range(60):
        one = peer(DIRECT, handshake_age_s=200.0, tx_bytes=1000 + now // 5 * 92)
        paths = decide(replace(one, rx_bytes=now // 5 * 148), paths, around(float(now)))
        if paths[KEY].path is Path.RELAY:
            break
    assert TRY_S <= now <= TRY_S + 6


def test_idle_direct_endpoint_is_left_alone_however_old_its_session() -> None:
    paths: dict[PublicKey, PeerPath] = {}
    for now in range(0, 3600, 60):
        paths = decide(peer(DIRECT, handshake_age_s=170.0, tx_bytes=5000), paths, around(float(now)))
        assert (paths[KEY].path, paths[KEY].set_endpoint) == (Path.DIRECT, None)
    assert paths[KEY].reason == "idle"


def test_idle_direct_endpoint_that_answers_when_tried_stays_direct() -> None:
    paths = decide(peer(DIRECT, handshake_age_s=900.0, tx_bytes=0))
    paths = decide(peer(DIRECT, handshake_age_s=900.0, tx_bytes=148), paths, around(1.0))
    assert paths[KEY].reason == "trying"
    paths = decide(peer(DIRECT, handshake_age_s=-1.5, tx_bytes=1000), paths, around(2.0))
    assert (paths[KEY].path, paths[KEY].reason) == (Path.DIRECT, "session")
    paths = decide(peer(DIRECT, handshake_age_s=-1.5, tx_bytes=9000), paths, around(100.0))
    assert paths[KEY].path is Path.DIRECT


def test_configured_endpoint_has_its_chance_before_the_relay() -> None:
    paths = decide(peer(DIRECT))
    assert (paths[KEY].path, paths[KEY].reason) == (Path.DIRECT, "untried")
    paths = decide(peer(DIRECT, tx_bytes=148), paths, around(1.0))
    paths = decide(peer(DIRECT, tx_bytes=444), paths, around(1.0 + TRY_S))
    assert (paths[KEY].path, paths[KEY].reason) == (Path.RELAY, "direct endpoint never answered")


def test_new_direct_endpoint_has_its_own_time_to_answer() -> None:
    other = Endpoint.parse("[2001:db8::9]:51820")
    paths = decide(peer(DIRECT, tx_bytes=0))
    paths = decide(peer(DIRECT, tx_bytes=148), paths, around(1.0))
    paths = decide(peer(other, tx_bytes=296), paths, around(2.0))
    paths = decide(peer(other, tx_bytes=444), paths, around(3.0))
    paths = decide(peer(other, tx_bytes=444), paths, around(3.0 + TRY_S - 0.1))
    assert paths[KEY].path is Path.DIRECT
    paths = decide(peer(other, tx_bytes=444), paths, around(3.0 + TRY_S))
    assert paths[KEY].path is Path.RELAY


def test_no_direct_endpoint_is_given_up_while_the_relay_is_away() -> None:
    """With the node's uplink down both paths fail; the direct one gets its time once the relay is back."""
    paths: dict[PublicKey, PeerPath] = {}
    for now in range(600):
        one = peer(DIRECT, handshake_age_s=200.0, tx_bytes=now)
        paths = decide(one, paths, around(float(now), relay_connected=False))
        assert paths[KEY].path is Path.DIRECT
    assert paths[KEY].reason == "relay away"
    paths = decide(peer(DIRECT, handshake_age_s=200.0, tx_bytes=1000), paths, around(600.0))
    assert paths[KEY].reason == "trying"
    paths = decide(peer(DIRECT, handshake_age_s=200.0, tx_bytes=1000), paths, around(600.0 + TRY_S))
    assert paths[KEY].path is Path.RELAY


def test_relayed_peer_that_roams_to_a_direct_endpoint_is_direct() -> None:
    paths = decide(peer(None))
    paths = decide(peer(PROXY, handshake_age_s=5.0), paths, around(1.0))
    paths = decide(peer(DIRECT, handshake_age_s=5.0), paths, around(2.0))
    assert (paths[KEY].path, paths[KEY].set_endpoint) == (Path.DIRECT, None)


def test_direct_peer_that_roams_to_the_relay_says_so() -> None:
    paths = decide(peer(DIRECT, handshake_age_s=5.0))
    paths = decide(peer(PROXY, handshake_age_s=5.0), paths, around(1.0))
    assert (paths[KEY].path, paths[KEY].reason, paths[KEY].set_endpoint) == (Path.RELAY, "roamed", None)


def given_up() -> tuple[dict[PublicKey, PeerPath], float]:
    """A peer whose stale direct endpoint was tried in vain, and the time at which it went to the relay."""
    paths = decide(peer(DIRECT, handshake_age_s=200.0, tx_bytes=0))
    paths = decide(peer(DIRECT, handshake_age_s=200.0, tx_bytes=148), paths, around(1.0))
    paths = decide(peer(DIRECT, handshake_age_s=200.0, tx_bytes=296), paths, around(1.0 + TRY_S))
    assert paths[KEY].set_endpoint == PROXY
    return paths, 1.0 + TRY_S


def test_direct_endpoint_is_tried_again_when_the_relay_does_not_answer_either() -> None:
    """Plain WireGuard on a peer that was rebooting: it isn't on the relay, and must be found again."""
    paths, then = given_up()
    paths = decide(peer(PROXY, handshake_age_s=200.0, tx_bytes=444), paths, around(then + 1))
    paths = decide(peer(PROXY, handshake_age_s=200.0, tx_bytes=592), paths, around(then + RELAY_TRY_S))
    assert paths[KEY].path is Path.RELAY
    paths = decide(peer(PROXY, handshake_age_s=200.0, tx_bytes=592), paths, around(then + 1 + RELAY_TRY_S))
    assert (paths[KEY].path, paths[KEY].set_endpoint) == (Path.DIRECT, DIRECT)
    assert paths[KEY].reason == "relay didn't answer either"
    again = then + 1 + RELAY_TRY_S
    paths = decide(peer(DIRECT, handshake_age_s=200.0, tx_bytes=740), paths, around(again + 1))
    assert (paths[KEY].path, paths[KEY].set_endpoint) == (Path.DIRECT, None)
    paths = decide(peer(DIRECT, handshake_age_s=200.0, tx_bytes=888), paths, around(again + TRY_S))
    assert (paths[KEY].path, paths[KEY].set_endpoint) == (Path.RELAY, PROXY)
    assert paths[KEY].given_up == DIRECT


def test_turns_on_the_relay_grow_longer_while_nobody_answers() -> None:
    paths, then = given_up()
    at_relay: list[float] = []
    since, endpoint = then, PROXY
    for second in range(1, 3000):
        now = then + second
        paths = decide(peer(endpoint, handshake_age_s=200.0, tx_bytes=444 + second), paths, around(now))
        written = paths[KEY].set_endpoint
        if written == DIRECT:
            at_relay.append(now - since)
        elif written == PROXY:
            since = now
        endpoint = written or endpoint
    assert at_relay[:5] == [16.0, 31.0, 61.0, 121.0, 241.0]
    assert set(at_relay[5:]) == {RELAY_TRY_CAP_S + 1}


def test_relay_that_answers_keeps_the_peer() -> None:
    paths, then = given_up()
    for second in range(1, 600):
        one = peer(PROXY, handshake_age_s=-then, tx_bytes=444 + second)
        paths = decide(one, paths, around(then + second % 170))
        assert (paths[KEY].path, paths[KEY].set_endpoint) == (Path.RELAY, None)


def test_idle_relayed_peer_stays_on_the_relay() -> None:
    quiet, then = given_up()
    for second in range(1, 3600, 10):
        quiet = decide(peer(PROXY, handshake_age_s=200.0, tx_bytes=296), quiet, around(then + second))
        assert (quiet[KEY].path, quiet[KEY].set_endpoint) == (Path.RELAY, None)


def test_a_wall_clock_that_jumps_makes_no_session_stale() -> None:
    paths = decide(peer(DIRECT, handshake_age_s=10.0))
    for now in range(1, 60):
        one = peer(DIRECT, handshake_age_s=10.0, tx_bytes=now)
        paths = decide(one, paths, around(float(now), wall_step_s=86_400.0))
        assert paths[KEY].reason == "session"


def test_a_handshake_of_the_future_is_of_now() -> None:
    decided = decide(peer(DIRECT, handshake_age_s=-3600.0), at=around(50.0))[KEY]
    assert decided.handshake_at == 50.0


def test_peers_come_and_go_with_the_interface() -> None:
    other = PublicKey(b"q" * 32)
    two = interface(peer(None), replace(peer(DIRECT, handshake_age_s=1.0), key=other))
    at = replace(around(), loopbacks={KEY: LOOPBACK, other: IPv4Address("127.64.0.8")})
    paths = plan(two, {}, at)
    assert {key: path.path for key, path in paths.items()} == {KEY: Path.RELAY, other: Path.DIRECT}
    assert plan(interface(peer(None)), paths, at).keys() == {KEY}


# Peers whose agents talk with ours --------------------------------------------------------------------------


def follow(
    one: Peer, verdict: Verdict | None, before: Mapping[PublicKey, PeerPath] | None = None, now: float = 0.0
) -> PeerPath:
    verdicts = {} if verdict is None else {KEY: verdict}
    return plan(interface(one), before or {}, replace(around(now), verdicts=verdicts))[KEY]


def test_a_verdict_is_the_decision_whatever_the_session() -> None:
    for age_s in (1.0, 1000.0, None):
        decided = follow(peer(None, handshake_age_s=age_s), Verdict(True, DIRECT, "answered"))
        assert (decided.path, decided.reason, decided.set_endpoint) == (Path.DIRECT, "answered", DIRECT)
        decided = follow(peer(DIRECT, handshake_age_s=age_s), Verdict(False, None, "silent"))
        assert (decided.path, decided.reason, decided.set_endpoint) == (Path.RELAY, "silent", PROXY)


def test_what_the_kernel_has_already_is_not_written() -> None:
    assert follow(peer(DIRECT), Verdict(True, DIRECT, "")).set_endpoint is None
    assert follow(peer(PROXY), Verdict(False, None, "")).set_endpoint is None


def test_a_late_relayed_packet_is_answered_by_setting_the_direct_endpoint_again() -> None:
    assert follow(peer(PROXY, handshake_age_s=1.0), Verdict(True, DIRECT, "")).set_endpoint == DIRECT


def test_an_endpoint_that_may_stay_for_a_moment_stays() -> None:
    kept = follow(peer(DIRECT), Verdict(False, DIRECT, "checking"))
    assert (kept.path, kept.set_endpoint) == (Path.RELAY, None)
    assert follow(peer(PROXY), Verdict(False, DIRECT, "checking")).set_endpoint is None
    elsewhere = Endpoint.parse("192.0.2.10:51820")
    assert follow(peer(elsewhere), Verdict(False, DIRECT, "checking")).set_endpoint == PROXY


def test_the_direct_endpoint_that_the_relay_took_the_place_of_is_remembered() -> None:
    first = follow(peer(DIRECT), Verdict(False, None, "silent"))
    assert first.given_up == DIRECT
    assert follow(peer(PROXY), Verdict(False, None, "silent"), {KEY: first}).given_up == DIRECT


def test_link_local_endpoints_are_one_with_and_without_their_zone() -> None:
    scoped, plain = Endpoint.parse("[fe80::1%eth0]:51820"), Endpoint.parse("[fe80::1]:51820")
    assert follow(peer(plain), Verdict(True, scoped, "")).set_endpoint is None
    assert follow(peer(scoped), Verdict(True, scoped, "")).set_endpoint is None


def test_without_a_verdict_the_rules_of_plain_wireguard_go_on() -> None:
    assert follow(peer(DIRECT, handshake_age_s=1000.0), None).reason == "idle"
    was_ours = follow(peer(DIRECT, handshake_age_s=1000.0, tx_bytes=1), Verdict(True, DIRECT, "answered"))
    later = follow(peer(DIRECT, handshake_age_s=1000.0, tx_bytes=2), None, {KEY: was_ours}, now=1.0)
    assert (later.path, later.reason) == (Path.DIRECT, "trying")
