"""One peer: what is said to it, what is heard from it, and what follows for its path.

    sealed messages, kernel reads, own addresses, time  ->  Pathfinder  ->  messages to be sent, a Verdict

Pure: `agent.path_prober` has the sockets and the clock, tests have a simulated network. Who drives it calls
`act` after each event, and by `next_at` at the latest."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from ipaddress import IPv4Address
from math import inf

from relayd.endpoints import Endpoint
from relayd.keys import PublicKey
from relayd.paths.acquaintance import SHARES_PORT, Acquaintance, Local
from relayd.paths.announcement import REPEATS, Announcement, Send
from relayd.paths.candidates import from_wire
from relayd.paths.checklist import ANSWER_S, Checklist, PairState
from relayd.paths.counters import Counters, KernelView
from relayd.paths.evidence import Evidence, PeerWord, ValidPair
from relayd.paths.heard_pings import HeardPings
from relayd.paths.keepalive import Beat
from relayd.paths.patience import USUAL, Patience
from relayd.paths.rounds import ROUND_GAP_S, Rounds
from relayd.paths.selector import Selector, State
from relayd.paths.verdict import Verdict
from relayd.wire.sealed_messages import (
    CallMeMaybe,
    Candidates,
    Message,
    PathChanged,
    Ping,
    Pong,
    PortPrediction,
    Stamped,
)
from relayd.wire.sealed_session import Freshness

HURRY_S = 5.0
"""After an address changed, at either end, a path that falls silent has likely gone with it."""

DECIDE_S = 0.25
"""Between two decisions while a clock runs against the present path."""

NOWHERE = Endpoint(IPv4Address(0), 0)
"""What a Pong says when the Ping came through the relay."""


class Pathfinder:
    """One peer's path. Times are monotonic seconds."""

    def __init__(
        self,
        own: PublicKey,
        peer: PublicKey,
        *,
        session: bytes,
        local: Local,
        draw: Callable[[int], bytes],
        now: float,
        known: Iterable[Endpoint] = (),
        patience: Patience = USUAL,
    ) -> None:
        """`session`: this process's. `draw` gives random bytes. `known`: endpoints of the peer that somebody
        wrote down (a configuration, an earlier life)."""
        self.peer = peer
        self.leads = own.raw > peer.raw
        self.agent = Acquaintance(session, draw)
        self.checklist = Checklist(full_body_bytes=local.full_body_bytes, draw=draw)
        self.selector = Selector(now)
        self.counters = Counters()
        self.beat = Beat()
        self.replayed = 0
        """Pings that had been heard before, and maps that were old."""
        self._local, self._known = local, tuple(known)
        self._view: KernelView | None = None
        self._arrived = False
        """Whether WireGuard was seen with the direct endpoint that was decided on: only then, when it has
        another one, did it roam."""
        self._word: PeerWord | None = None
        self._announcement: Announcement | None = None
        self._rounds = Rounds()
        self._hurried_until = -inf
        self._renew = False
        self._decided_at = now
        self._heard_pings = HeardPings()
        self.be_patient(patience)

    def be_patient(self, patience: Patience) -> None:
        """These times count from now on."""
        self.selector.silent_s = patience.silent_s
        self._rounds.cap(patience.recheck_cap_s)

    # What happens -------------------------------------------------------------------------------------------

    def saw(self, view: KernelView, now: float) -> bool:
        """The kernel was read. Whether there is anything to act on."""
        if view.endpoint is not None:
            view = replace(view, endpoint=self.checklist.known(view.endpoint))
        before, self._view = self._view, view
        self.counters.saw(view, now)
        endpoint = view.endpoint
        if endpoint is not None and endpoint == self.selector.endpoint:
            self._arrived = True
        elif endpoint is not None and (before is None or before.endpoint != endpoint):
            pair = self.checklist.meet(endpoint, now, method="WireGuard")
            if self.able:  # what authenticated packets come from is worth a Ping at once
                self.checklist.trigger(pair, now)
        if before is None or before.endpoint != endpoint or before.session != view.session:
            return True
        moved = before.rx_bytes != view.rx_bytes or before.tx_bytes != view.tx_bytes
        return self.selector.strayed_at < inf or (self.direct and (moved or self.doubtful(now)))

    def doubtful(self, now: float) -> bool:
        """Whether the present direct path owes an answer: what the kernel received is worth a look."""
        return self.direct and self.beat.doubtful(now, round_trip_s=self.round_trip_s)

    def was_set(self, endpoint: Endpoint | None) -> None:
        """WireGuard has been given this direct endpoint, or (None) the proxy's."""
        if self._view is not None:
            self._view = replace(self._view, endpoint=endpoint)
        if endpoint is not None and endpoint == self.selector.endpoint:
            self._arrived = True
            self._renew = False

    def relay_is(self, connected: bool, now: float) -> None:
        """The link to the relay came or went."""
        if connected and not self.agent.connected:
            self._rounds.wanted = True
        self.agent.relay_is(connected, now)

    def localize(self, local: Local, now: float, *, moved: bool = False) -> None:
        """What is known of this end changed; `moved`: its addresses did."""
        self._local = local
        self.checklist.full_body_bytes = local.full_body_bytes
        if moved:
            self._rounds.wanted = True
            self._hurried_until = now + HURRY_S
            self.checklist.invalidate()
            self.selector.damping.forgive()
            self._renew = self.direct
            self.beat.hurry()
            if self.direct:  # our packets come from elsewhere now
                self._announcement = Announcement(direct=True, next_at=now)

    def heard(self, message: Message, source: Endpoint | None, now: float) -> list[Send]:
        """The peer says `message`, from `source` or (None) through the relay. What is answered at once."""
        self.agent.heard_at = now
        if isinstance(message, Ping):
            return self._heard_ping(message, source, now)
        if isinstance(message, Pong):
            self._heard_pong(message, source, now)
            return []
        return self._heard_map(message, source, now)

    def _heard_ping(self, ping: Ping, source: Endpoint | None, now: float) -> list[Send]:
        if not self._heard_pings.is_new(ping.txid):
            self.replayed += 1
            return []
        if source is not None:
            pair = self.checklist.meet(source, now, method="its Ping")
            if self.able:
                self.checklist.trigger(pair, now)
        return [Send(Pong(ping.txid, source or NOWHERE, ping.body_bytes), source)]

    def _heard_pong(self, pong: Pong, source: Endpoint | None, now: float) -> None:
        if source is None:
            if not self.agent.pong(pong, now):
                self.checklist.lost += 1
            return
        pair = self.checklist.answered(pong, source, now)
        if pair is not None:
            self.agent.note_answered()
            if self.direct and pair.remote == self.selector.endpoint:
                self.beat.answered(now)
                self._hurried_until = -inf

    def _heard_map(self, message: Stamped, source: Endpoint | None, now: float) -> list[Send]:
        new_life = message.session != self.agent.session.yours
        freshness = self.agent.session.judge(message)
        fresh = freshness is Freshness.FRESH
        if freshness is Freshness.OLD:
            self.replayed += 1
            return []
        if isinstance(message, Candidates):
            self._heard_candidates(message, fresh=fresh, now=now)
        elif isinstance(message, PortPrediction):
            self.checklist.predict(message.endpoints(), now)
        elif fresh:
            self._heard_path(message, source, now)
        if not fresh:
            answer = self.agent.answer_hint(self._local, now, new_life=new_life)
            return [Send(one) for one in answer]
        if new_life and self.direct:
            self._announcement = Announcement(direct=True, next_at=now)
        return []

    def _heard_candidates(self, message: Candidates, *, fresh: bool, now: float) -> None:
        local = self._local
        found = from_wire(message.candidates, own=local.own, links=local.links, now=now)
        before = bool(self.checklist.pairs)
        new = self.checklist.set_remote(found, now)
        if fresh:
            self.agent.features = frozenset(message.features)
        if new:
            self._rounds.wanted = True
            if before and self.direct and self.selector.endpoint not in {one.endpoint for one in found}:
                self._hurried_until = now + HURRY_S
        if isinstance(message, CallMeMaybe) and self.able and now - self.checklist.round_at > ROUND_GAP_S:
            self._rounds.wanted = False
            self._start_checks(now)

    def _heard_path(self, message: PathChanged, source: Endpoint | None, now: float) -> None:
        direct = message.path == "direct"
        remote = (source or message.mine_endpoint()) if direct else None
        if remote is not None:
            remote = self.checklist.known(remote)
        self._word = PeerWord(direct, remote, now)
        if remote is not None and remote != self.selector.endpoint and self.able:
            self.checklist.trigger(self.checklist.meet(remote, now, method="its word"), now)
        if self._announcement is not None and (
            self._announcement.direct is direct or self._announcement.sent
        ):
            self._announcement = None  # it knows; or it knew, and went on to something else

    # What follows -------------------------------------------------------------------------------------------

    @property
    def able(self) -> bool:
        """Whether both ends can be pinged at WireGuard's port, as far as is known."""
        return self._local.shares_port and SHARES_PORT in (self.agent.features or ())

    @property
    def direct(self) -> bool:
        """Whether the peer's packets go directly, because that was decided here."""
        return self.selector.ours and self.selector.state is State.DIRECT

    def act(self, now: float) -> list[Send]:
        """Decide, and say what is to be said now."""
        out: list[Send] = []
        if now >= self._round_at:
            out += self._begin_round(now)
        out += [Send(one) for one in self.agent.introduce(self._local, now)]
        if now >= self._relay_ping_at:
            out.append(Send(self.agent.ping(now)))
        self._decide(now)
        out += self._announce(now)
        out += [Send(probe.ping, probe.to) for probe in self.checklist.due(now)]
        if now >= self._beat_at(now):
            out += self._beat_now(now)
        return out

    def next_at(self, now: float) -> float:
        """When to `act` next, if nothing happens."""
        times = [
            self.checklist.next_at,
            self._beat_at(now),
            self._round_at,
            self._relay_ping_at,
            self.agent.call_at,
        ]
        if self._announcement is not None:
            times.append(self._announcement.next_at)
        if self.selector.strayed_at < inf or self.doubtful(now) or self.checklist.valid(now):
            times.append(self._decided_at + DECIDE_S)
        return min(times)

    def verdict(self, now: float) -> Verdict | None:
        """Where the peer's packets are to go. None: that isn't ours to say."""
        selector = self.selector
        if not selector.ours:
            return None
        if selector.state is State.DIRECT:
            return Verdict(True, selector.endpoint, selector.reason, self._renew)
        if self._view is None or self._view.endpoint is None:
            return Verdict(False, None, selector.relayed_because)
        evidence = self._evidence(now)
        kept = evidence.kernel if evidence.kernel is not None and selector.tolerates(evidence) else None
        return Verdict(False, kept, selector.relayed_because)

    def _decide(self, now: float) -> None:
        self._decided_at = now
        if self._view is None:
            return  # nobody knows yet what there is to be decided about
        for _ in range(3):  # it becomes ours, it is promoted, it turns out to be elsewhere
            was_direct, endpoint = self.direct, self.selector.endpoint
            if self.selector.step(self._evidence(now)) is None:
                return
            if self.direct and (not was_direct or self.selector.endpoint != endpoint):
                self._arrived = self._view is not None and self._view.endpoint == self.selector.endpoint
                pair = self.checklist.pairs.get(self.selector.endpoint or NOWHERE)
                self.beat.begin(pair.answered_at if pair is not None else -inf)
                self._announcement = Announcement(direct=True, next_at=now)
            elif was_direct and not self.direct:
                self.beat.end()
                self._announcement = None
                if self.selector.ours:
                    told = self._word is not None and not self._word.direct
                    once = REPEATS if told else 0
                    self._announcement = Announcement(direct=False, next_at=now, sent=once)
                    self._rounds.wanted = True

    def _evidence(self, now: float) -> Evidence:
        view, checklist, agent, beat = self._view, self.checklist, self.agent, self.beat
        kernel = view.endpoint if view is not None else None
        if self.direct and not self._arrived:
            kernel = self.selector.endpoint  # it will be
        pair = checklist.pairs.get(kernel) if kernel is not None else None
        # What was valid before the path failed is what failed.
        valid = [one for one in checklist.valid(now) if one.valid_at > self.selector.demoted_at]
        return Evidence(
            now=now,
            able=self.able,
            talks=agent.talks(now),
            leads=self.leads,
            relay_answered_at=agent.answered_at if agent.connected else -inf,
            checking=checklist.checking,
            valid=tuple(
                ValidPair(one.remote, one.valid_at, one.priority, checklist.may_get_better(one))
                for one in valid
            ),
            why_not="" if valid else checklist.why_not(),
            kernel=kernel,
            kernel_answered=pair is not None and now - pair.answered_at <= ANSWER_S,
            kernel_failed=pair is not None and pair.state is PairState.FAILED and pair.sent > 0,
            session=view is not None and view.session,
            answered_at=beat.answered_at,
            unanswered=beat.unanswered,
            unanswered_since=beat.unanswered_since,
            sent_at=self.counters.sent_at,
            heard_at=self.counters.heard_at,
            hurried=now < self._hurried_until,
            word=self._word,
        )

    # Rounds -------------------------------------------------------------------------------------------------

    @property
    def _round_at(self) -> float:
        """When the next round of checks is due; inf: none is, as things are."""
        if not self.able:
            return inf
        return self._rounds.due_at(
            self.checklist.round_at,
            direct=self.direct,
            damped_until=self.selector.damping.until,
            unanswered_since=self.beat.unanswered_since,
        )

    def _begin_round(self, now: float) -> list[Send]:
        """By our own decision: the peer is called to do the same."""
        self._rounds.begun()
        self._start_checks(now)
        if not self.agent.connected:
            return []
        return [Send(one) for one in self.agent.tell(self._local, CallMeMaybe, now)]

    def _start_checks(self, now: float) -> None:
        for endpoint in self._known:
            self.checklist.meet(endpoint, now, method="configured")
        self.checklist.start_round(now)

    # The present path ---------------------------------------------------------------------------------------

    @property
    def round_trip_s(self) -> float | None:
        """On the present direct pair."""
        pair = self.checklist.pairs.get(self.selector.endpoint or NOWHERE) if self.direct else None
        return pair.round_trip_s if pair is not None else None

    @property
    def _relay_ping_at(self) -> float:
        doubtful_at = self.beat.doubtful_at(self.round_trip_s)
        return self.agent.ping_at(direct=self.direct, doubtful_at=doubtful_at)

    def _beat_at(self, now: float) -> float:
        active, hold_s = self.counters.active(now), self._local.hold_s
        return self.beat.next_at(now, active=active, hold_s=hold_s, round_trip_s=self.round_trip_s)

    def _beat_now(self, now: float) -> list[Send]:
        endpoint = self.selector.endpoint
        if endpoint is None:
            return []
        self.checklist.meet(endpoint, now, method="WireGuard")
        probe = self.checklist.probe(endpoint, now)
        self.beat.sent(now)
        self.agent.note_asked(now)
        return [Send(probe.ping, probe.to)]

    def _announce(self, now: float) -> list[Send]:
        current, endpoint = self._announcement, self.selector.endpoint
        if current is None or now < current.next_at:
            return []
        pair = self.checklist.pairs.get(endpoint) if endpoint is not None else None
        return current.say(
            self.agent.session,
            endpoint=endpoint,
            seen_as=pair.seen_as if pair is not None else None,
            by_relay=self.agent.connected,
            now=now,
        )
