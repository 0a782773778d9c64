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
from relayd.paths.acquaintance import BIRTHDAY, SHARES_PORT, Acquaintance, Local
from relayd.paths.announcement import Send
from relayd.paths.birthday import Birthday, Turn
from relayd.paths.candidates import from_wire
from relayd.paths.checklist import Checklist
from relayd.paths.counters import Counters, KernelView
from relayd.paths.evidence import Evidence
from relayd.paths.gathering import gather
from relayd.paths.heard_pings import HeardPings
from relayd.paths.keepalive import Beat
from relayd.paths.patience import USUAL, Patience
from relayd.paths.rounds import ROUND_GAP_S, Rounds
from relayd.paths.selector import Selector, State
from relayd.paths.verdict import Verdict
from relayd.paths.words import Words
from relayd.wire.sealed_messages import (
    CallMeMaybe,
    Candidates,
    FindPort,
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
        turn: Turn | None = None,
    ) -> None:
        """`session`: this process's. `draw` gives random bytes. `known`: endpoints of the peer that somebody
        wrote down (a configuration, an earlier life). `turn`: of all pathfinders in a process."""
        self.peer = peer
        self.leads = own.raw > peer.raw
        self.agent = Acquaintance(session, draw)
        self.checklist = Checklist(full_body_bytes=local.full_body_bytes, draw=draw)
        self.selector = Selector(now)
        self.counters = Counters()
        self.beat = Beat()
        self.birthday = Birthday(turn or Turn(), draw, self.agent, self.checklist)
        self.replayed = 0
        """Pings that had been heard before, and maps that were old."""
        self._local, self._known = local, tuple(known)
        self._view: KernelView | None = None
        self._arrived = False
        """Whether WireGuard was seen with the direct endpoint decided on: only from there it may roam."""
        self._words, self._rounds = Words(), Rounds()
        self._hurried_until = self._met_at = -inf
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

    def opened(self, count: int, now: float) -> list[Send]:
        """So many sockets have sent for the birthday method's attempt. What is to be said now."""
        return self.birthday.opened(count, self._local, now)

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
            self.birthday.forgive()
            self._renew = self.direct
            self.beat.hurry()
            if self.direct:  # our packets come from elsewhere now
                self._words.went_direct(now)

    def heard(self, message: Message, source: Endpoint | None, now: float) -> list[Send]:
        """The peer says `message`, from `source` or (None) through the relay. What is answered at once."""
        self.agent.heard_at = now
        if source is not None and self._words.peers is not None and source == self._words.peers.remote:
            self._met_at = now
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
            method = BIRTHDAY if source.is_loopback() else "its Ping"  # by a carrier, see `birthday`
            pair = self.checklist.meet(source, now, method=method)
            # A path that holds has Pings of ours: to each of the peer's, two more would go, one of full size.
            if self.able and (source != self.selector.endpoint or not self.direct or self.doubtful(now)):
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
        answer: list[Message] = []
        if freshness is Freshness.OLD:
            self.replayed += 1
            return []
        if isinstance(message, Candidates):
            answer = self._heard_candidates(message, fresh=fresh, now=now)
        elif isinstance(message, PortPrediction):
            down = self._local.prediction is not None and not self.leads
            to = [one for one in message.endpoints() if self._local.may_ping(one.address)]
            self.checklist.predict(to, now, down=down)
        elif isinstance(message, FindPort):
            if fresh and self.able and not self.direct:
                self.birthday.heard(message, self._local, now)
        elif fresh:
            self._heard_path(message, source, now)
        if not fresh:
            answer = self.agent.answer_hint(self._local, now, new_life=new_life)
        elif new_life and self.direct:
            self._words.went_direct(now)
        return [Send(one) for one in answer]

    def _heard_candidates(self, message: Candidates, *, fresh: bool, now: float) -> list[Message]:
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
            if self.direct:
                self._words.called(now)
            return self.agent.tell_prediction(self._local)  # what it heard before is a round old
        return []

    def _heard_path(self, message: PathChanged, source: Endpoint | None, now: float) -> None:
        direct = message.path == "direct"
        remote = (source or message.mine_endpoint()) if direct else None
        if remote is not None:
            remote = self.checklist.known(remote)
            met = source is not None or remote in self.checklist.pairs
            remote = remote if met or self._local.may_ping(remote.address) else None
        self._words.heard(direct=direct, remote=remote, now=now)
        if remote is not None and remote != self.selector.endpoint and self.able:
            self.checklist.trigger(self.checklist.meet(remote, now, method="its word"), now)

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
        by_relay, to = self.agent.connected, self.selector.endpoint
        out += self._words.say(self.agent.session, self.checklist, endpoint=to, by_relay=by_relay, now=now)
        out += [Send(probe.ping, probe.to) for probe in self.checklist.due(now)]
        out += self.birthday.act(self._local, now, able=self.able, direct=self.direct)
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
            self.birthday.next_at,
            self._words.next_at,
        ]
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
                self._words.went_direct(now)
            elif was_direct and not self.direct:
                self.beat.end()
                self._words.left_alone()
                if self.selector.ours:
                    self._words.went_to_relay(now)
                    self._rounds.wanted = True
            elif self.selector.ours and self.selector.state is State.RELAY:
                self._words.stays_on_relay(self._met_at, now)

    def _evidence(self, now: float) -> Evidence:
        view = self._view
        kernel = view.endpoint if view is not None else None
        return gather(
            now=now,
            able=self.able,
            leads=self.leads,
            kernel=self.selector.endpoint if self.direct and not self._arrived else kernel,  # it will be
            session=view is not None and view.session,
            hurried=now < self._hurried_until,
            word=self._words.peers,
            demoted_at=self.selector.demoted_at,
            agent=self.agent,
            checklist=self.checklist,
            beat=self.beat,
            counters=self.counters,
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
        told = self.agent.tell(self._local, CallMeMaybe, now) if self.agent.connected else []
        return [Send(one) for one in told]

    def _start_checks(self, now: float) -> None:
        for endpoint in self._known:
            self.checklist.meet(endpoint, now, method="configured")
        self.checklist.start_round(now, kernel=self._view.endpoint if self._view is not None else None)

    # The present path ---------------------------------------------------------------------------------------

    @property
    def round_trip_s(self) -> float | None:
        """On the present direct pair."""
        pair = self.checklist.pairs.get(self.selector.endpoint or NOWHERE) if self.direct else None
        return pair.round_trip_s if pair is not None else None

    @property
    def _relay_ping_at(self) -> float:
        doubtful_at = self.beat.doubtful_at(self.round_trip_s)
        view = self._view
        if not self.selector.ours and self.able and view is not None and view.endpoint and not view.session:
            pair = self.checklist.pairs.get(view.endpoint)
            if pair is not None and pair.has_failed:  # would the relay do better? That is all that is missing
                doubtful_at = pair.failed_at
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
