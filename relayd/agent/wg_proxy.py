"""The proxy between the host's WireGuard and the relay: datagrams on `lo` one way, frames the other.

    WireGuard -> a peer's loopback address -> Data frames for that peer's key -> send_frames (the relay link)
    relay link -> deliver: runs of Data frames -> WireGuard's port, from that peer's loopback address

It runs inside the poller's task and never waits: what the kernel doesn't take is dropped and counted.
"""

from __future__ import annotations

import os
import socket
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from errno import EAGAIN, ECONNREFUSED, EINVAL, EIO, ENOBUFS, EOPNOTSUPP, EPERM
from ipaddress import IPv4Address
from select import EPOLLIN

from relayd.agent.initiations import INITIATION_BYTES, Initiations
from relayd.agent.proxy_needs import HandOver, SendFrames, Watcher
from relayd.agent.relayed_peer import RelayedPeer
from relayd.endpoints import Endpoint
from relayd.keys import PublicKey
from relayd.netio import mmsg
from relayd.netio.datagrams import DatagramSocket
from relayd.netio.receive_slots import SLOTS, ReceiveSlots
from relayd.netio.send_batch import SendBatch
from relayd.observe import log
from relayd.wire.frames import DATA, HEADER, KEYED_BYTES
from relayd.wire.runs import Run

FULL_DATAGRAM = 1452
"""What WireGuard sends for a full packet at its default MTU of 1420: the slots' first guess, no more."""

BATCHES_A_ROUND = 4
"""Batches read before other sockets get their turn: some 300 us of work."""

RENEW_EVERY_S = 1.0
"""Between two new sockets while the kernel refuses: a rule that stays would have us make nothing else."""

CALM_S = 5.0
"""Without a refusal for so long, sending is allowed again: a single datagram may slip through before."""

BATCHES_TO_SAVE = 128
"""Batches read from a socket that is given up: more than its buffer holds."""

PAUSE_S = 0.005
"""How long WireGuard's datagrams stay in the socket's buffer, which has room for some 20 ms of them at full
speed, while the link's queue is half full. On one core with a relay that waits for its turn, the queue
would overflow meanwhile. No longer: a link that stands still must drop its oldest, not we our newest."""

HOLD_BACK_S = 2.0
"""After a peer went direct its relayed packets are late ones, for so long; more would be those of a peer that
goes on by the relay, and must not lose them."""

HEADS = 4096
"""Headers kept, by peer and length."""

_SEGMENTING_ERRORS = (EIO, EINVAL, EOPNOTSUPP)
_REASONS = {
    EAGAIN: "wireguard_buffer_full",
    ENOBUFS: "wireguard_buffer_full",
    ECONNREFUSED: "wireguard_port_closed",
    EPERM: "wireguard_send_refused",
}


class WgProxy:
    """One socket on `lo` for all peers. All calls belong to the poller's thread.

    `drops` counts what was lost, by reason:

        stranger                 from a port on this host that isn't WireGuard's
        unknown_address          WireGuard sent to a loopback address of no peer
        too_long                 longer than a Data frame can be
        receive_buffer_full      the kernel had no room in the socket's buffer (SO_RXQ_OVFL)
        unknown_key              the relay sent for a key that isn't a peer's
        empty                    a Data frame without payload
        wireguard_buffer_full    EAGAIN or ENOBUFS towards WireGuard
        wireguard_port_closed    ECONNREFUSED: nothing listens on WireGuard's port
        wireguard_send_refused   EPERM: a firewall or a BPF hook of the host
        late                     relayed packets of a peer that has just gone direct, held back where they
                                 can't be handed over as from its direct endpoint
        wireguard_send_failed    any other error of the kernel's; `last_error` has its text
        receive_failed           an error that waited on the socket, maybe the trace of a datagram
    """

    def __init__(
        self,
        watcher: Watcher,
        sock: DatagramSocket,
        *,
        wireguard_port: int,
        peers: Mapping[PublicKey, IPv4Address],
        send_frames: SendFrames,
        congested: Callable[[], bool] = lambda: False,
        hand_over: HandOver | None = None,
        segmenting: bool = True,
    ) -> None:
        """`sock` belongs to the proxy from now on; it listens at once. While `congested()`, nothing is read
        for PAUSE_S at a time."""
        self._watcher, self._sock, self._send_frames = watcher, sock, send_frames
        self._congested, self._hand_over = congested, hand_over
        self._paused_until = 0.0
        self.pauses = 0
        """Times that reading was put off because the link was congested."""
        self._slots = ReceiveSlots(KEYED_BYTES, fitted=FULL_DATAGRAM, never=INITIATION_BYTES)
        self.initiations = Initiations(send_frames)
        self._batch = SendBatch(segmenting=segmenting)
        self._by_key: dict[bytes, RelayedPeer] = {}
        self._by_address: dict[int, RelayedPeer] = {}
        self._heads: dict[int, bytes] = {}
        self._bulk_peer: RelayedPeer | None = None
        self._drops: Counter[str] = Counter()
        self._log = log.get(port=sock.port)
        self._refused_at = -CALM_S
        self._renewed_at = -RENEW_EVERY_S
        self.refused = False
        """Whether the kernel refuses our datagrams (EPERM), and sockets are renewed because of it."""
        self.renewals = 0
        """Sockets that took the place of one that was refused."""
        self._segmenting_refused = False
        self.last_error = ""
        self.set_wireguard_port(wireguard_port)
        self.set_peers(peers)
        watcher.add(sock.fileno(), self._on_readable)
        watcher.after_batch.append(self._resume)

    @property
    def port(self) -> int:
        """The UDP port, the same for every peer's endpoint."""
        return self._sock.port

    @property
    def segmenting(self) -> bool:
        """Whether runs go to WireGuard by UDP_SEGMENT; False once this host has shown that it can't."""
        return self._batch.segmenting

    def fileno(self) -> int:
        """The socket's descriptor; another one after a renewal."""
        return self._sock.fileno()

    @property
    def peers(self) -> Mapping[PublicKey, RelayedPeer]:
        """The peers by their keys, with what went through for each."""
        return {peer.key: peer for peer in self._by_key.values()}

    def drops(self) -> dict[str, int]:
        """What was lost so far, by reason."""
        drops = dict(self._drops)
        if self._slots.kernel_drops:
            drops["receive_buffer_full"] = self._slots.kernel_drops
        return drops

    def set_wireguard_port(self, port: int) -> None:
        """WireGuard listens on `port` now: datagrams come from there and go there."""
        self._wireguard = mmsg.source_word(port)
        if self._hand_over is not None:
            self._hand_over.port = port
        self._batch.aim(mmsg.NAME.pack(socket.AF_INET, socket.htons(port), IPv4Address("127.0.0.1").packed))
        self._slots.forget()

    def set_peers(self, peers: Mapping[PublicKey, IPv4Address]) -> None:
        """The peers from now on, and their loopback addresses. Those that stay keep their counters."""
        kept = self._by_key
        if {peer.key: peer.address for peer in kept.values()} == peers:
            return  # told again every second: the batches may go on repeating
        self._by_key, self._by_address = {}, {}
        for key, address in peers.items():
            peer = kept.get(key.raw)
            if peer is None or peer.address != address:
                peer = RelayedPeer(key, address)
            self._by_key[key.raw] = peer
            self._by_address[mmsg.word_of(address)] = peer
        self._heads.clear()
        self._slots.forget()

    def set_direct(self, key: PublicKey, endpoint: Endpoint | None) -> None:
        """The peer is sent to at `endpoint` now: what still comes for it through the relay is given to
        WireGuard as from there. None: the relay is its path again."""
        peer = self._by_key.get(key.raw)
        if peer is not None and peer.direct != endpoint:
            peer.direct, peer.direct_at = endpoint, self._watcher.now

    def peer_gone(self, key: PublicKey, reason: int, now: float) -> None:
        """A relay says that frames for `key` are lost there, and why. Of strangers nothing is noted."""
        peer = self._by_key.get(key.raw)
        if peer is not None:
            peer.gone_count += 1
            peer.gone_reason, peer.gone_at = reason, now

    def close(self) -> None:
        """Give the port and the memory back."""
        self._watcher.after_batch.remove(self._resume)
        self._watcher.remove(self._sock.fileno())
        self._sock.close()
        self._slots.close()

    # From WireGuard to the relay.

    def _on_readable(self, _mask: int) -> None:
        try:
            for _ in range(BATCHES_A_ROUND):
                if self._take_batch(self._sock.fileno()) < SLOTS:
                    return
                if self._congested():
                    self._pause()
                    return
        except OSError as error:
            self._receive_failed(error)

    def _pause(self) -> None:
        """Leave the datagrams where they are for a moment, once: after it, a batch is read in any case."""
        self.pauses += 1
        self._paused_until = self._watcher.now + PAUSE_S
        self._watcher.modify(self._sock.fileno(), 0)

    def _resume(self) -> None:
        """After each batch of events: read again when the pause is over, or the reason for it."""
        if self._paused_until and (self._watcher.now >= self._paused_until or not self._congested()):
            self._paused_until = 0.0
            self._watcher.modify(self._sock.fileno(), EPOLLIN)

    def _take_batch(self, fd: int) -> int:
        """Read one batch and send it on; return how many datagrams it had. Raises OSError."""
        slots = self._slots
        count = slots.receive(fd)
        if not count:
            return 0
        peer = self._bulk_peer
        if peer is not None and slots.repeats(count):
            frames = slots.stretch(0, count)
            peer.tx_frames += count
            peer.tx_bytes += count * slots.fitted
            self._send_frames((frames,), len(frames))
        else:
            self._sort(count)
        return count

    def _sort(self, count: int) -> None:
        """A batch that isn't like the last: look at each datagram."""
        slots = self._slots
        lengths, sources, destinations, flags = slots.columns(count)
        fitted, wireguard = slots.fitted, self._wireguard
        by_address, heads = self._by_address, self._heads
        runs: list[memoryview] = []
        total = 0
        first = 0  # slots from here to the current one hold a run of fitted frames
        for slot, (length, source, destination, flag) in enumerate(
            zip(lengths, sources, destinations, flags, strict=True)
        ):
            peer = by_address.get(destination)
            if source != wireguard or peer is None or flag:
                self._drop(source, flag)
            else:
                peer.tx_frames += 1
                peer.tx_bytes += length
                head = heads.get(destination << 16 | length) or self._head(destination, peer, length)
                total += KEYED_BYTES + length
                if length == fitted:
                    slots.set_head(slot, head)
                    continue
            if first < slot:
                runs.append(slots.stretch(first, slot))
            first = slot + 1
            if source == wireguard and peer is not None and not flag:
                runs.append(frame := slots.frame(slot, length, head))
                if length == INITIATION_BYTES:
                    self.initiations.note(peer.key.raw, frame, peer, self._watcher.now)
        if first < count:
            runs.append(slots.stretch(first, count))
        if runs:
            self._send_frames(runs, total)
        if first == 0 and destinations.count(destinations[0]) == count:
            self._bulk_peer = by_address[destinations[0]]
            slots.remember(count)
        else:
            slots.refit(lengths)

    def _head(self, destination: int, peer: RelayedPeer, length: int) -> bytes:
        if len(self._heads) >= HEADS:
            self._heads.clear()
        head = HEADER.pack(KEYED_BYTES - 4 + length, DATA) + peer.key.raw
        self._heads[destination << 16 | length] = head
        return head

    def _drop(self, source: int, flag: int) -> None:
        """Count one datagram that isn't sent on."""
        if source != self._wireguard:
            self._drops["stranger"] += 1
        elif flag:
            self._drops["too_long"] += 1
        else:
            self._drops["unknown_address"] += 1

    # From the relay to WireGuard.

    def deliver(self, buffer: bytearray, runs: Sequence[Run], now: float) -> None:
        """Give WireGuard the payloads of `runs`, Data frames in `buffer`, each from its peer's address.

        Anything but Data for a known key is dropped and counted. `now` is monotonic seconds.
        """
        payloads = mmsg.address_of(buffer) + KEYED_BYTES
        by_key, add = self._by_key, self._batch.add
        for kind, key, start, stop, size in runs:
            peer = by_key.get(key)
            payload = size - KEYED_BYTES
            count = (stop - start) // size
            if peer is None or kind != DATA or payload <= 0:
                self._drops["unknown_key" if peer is None or kind != DATA else "empty"] += count
                continue
            peer.rx_frames += count
            peer.rx_bytes += count * payload
            if peer.direct is not None and self._deliver_direct(peer, buffer, start, stop, size, now):
                continue
            added = add(peer.source, payloads + start, payload, size, count)
            while added < count:
                self._flush(now)
                added += add(peer.source, payloads + start + added * size, payload, size, count - added)
        if self._batch:
            self._flush(now)

    def _deliver_direct(
        self, peer: RelayedPeer, buffer: bytearray, start: int, stop: int, size: int, now: float
    ) -> bool:
        """Relayed packets of a peer that is direct. Whether they are dealt with."""
        source, hand_over = peer.direct, self._hand_over
        if source is not None and hand_over is not None and hand_over.can(source):
            view = memoryview(buffer)
            for at in range(start, stop, size):
                if not hand_over.hand_over(view[at + KEYED_BYTES : at + size], source):
                    self._drops["late"] += 1
            return True
        if now - peer.direct_at < HOLD_BACK_S:
            self._drops["late"] += (stop - start) // size
            return True
        return False

    def _flush(self, now: float) -> None:
        batch = self._batch
        while error := batch.flush(self._sock.fileno()):
            if error == EPERM:
                if self._renew(now, "send"):
                    continue  # the same message again, from the new socket
            elif error in _SEGMENTING_ERRORS and batch.blocked_by_segmenting():
                failed = batch.send_singly(self._sock.fileno())
                if failed:
                    self._drops["wireguard_send_failed"] += failed
                    self.last_error = os.strerror(error)
                if not batch.segmenting and not self._segmenting_refused:
                    self._segmenting_refused = True
                    self._log.warning("proxy.segmenting_refused", error=os.strerror(error))
                continue
            reason = _REASONS.get(error)
            if reason is None:
                reason, self.last_error = "wireguard_send_failed", os.strerror(error)
            self._drops[reason] += batch.skip()
        if self.refused and now - self._refused_at >= CALM_S:
            self.refused = False
            self._log.info("proxy.allowed", renewals=self.renewals)

    # When the kernel refuses.

    def _receive_failed(self, error: OSError) -> None:
        """An error that waited on the socket. It is cleared now; the datagrams come with the next event."""
        if error.errno == EPERM:
            self._renew(self._watcher.now, "receive")
            return
        self.last_error = error.strerror or str(error)
        reason = _REASONS.get(error.errno or 0, "receive_failed")
        self._drops[reason] += 1

    def _renew(self, now: float, doing: str) -> bool:
        """EPERM: a hook of the host is against this socket. Whether a new one stands on the port now."""
        self._refused_at = now
        if not self.refused:
            self.refused = True
            self._log.warning("proxy.refused", doing=doing)
        if now - self._renewed_at < RENEW_EVERY_S:
            return False
        self._renewed_at = now
        try:
            old = self._sock.renew()
        except OSError as error:
            self.last_error = f"no new socket: {error.strerror}"
            return False
        self.renewals += 1
        self._watcher.remove(old.fileno())
        self._paused_until = 0.0
        self._watcher.add(self._sock.fileno(), self._on_readable)
        try:
            for _ in range(BATCHES_TO_SAVE):
                if self._take_batch(old.fileno()) < SLOTS:
                    break
        except OSError as error:  # refused for reading too: what is left in it is lost
            self.last_error = error.strerror or str(error)
        finally:
            old.close()
            self._slots.socket_changed()
        return True
