"""Where runs go, who holds a key, and what is counted when there is nowhere to go."""

from __future__ import annotations

from relayd.keys import PublicKey
from relayd.relay.switch import Port, Switch
from relayd.wire import frames
from relayd.wire.runs import Run, scan

A, B, C = (PublicKey(bytes([number]) * 32) for number in (10, 11, 12))


def switch_with(*keys: PublicKey) -> tuple[Switch[Port], list[Port]]:
    switch: Switch[Port] = Switch()
    ports = [Port(key) for key in keys]
    for port in ports:
        assert switch.replace(port) is None
    return switch, ports


def send(switch: Switch[Port], source: Port, stream: bytes) -> list[tuple[int, bytes]]:
    """Let `source` send `stream`; returns the frames that went to control."""
    buffer = bytearray(stream)
    runs: list[Run] = []
    assert scan(buffer, 0, len(buffer), source.key.raw, runs) == len(buffer)
    control: list[tuple[int, bytes]] = []
    switch.forward(source, memoryview(buffer), runs, lambda kind, frame: control.append((kind, bytes(frame))))
    return control


def test_data_arrives_under_the_senders_key_in_order() -> None:
    switch, (a, b, c) = switch_with(A, B, C)
    data = [frames.encode_data(key, payload) for key, payload in ((B, b"1"), (C, b"2"), (B, b"3"), (B, b"4"))]
    assert send(switch, a, b"".join(data)) == []
    assert b"".join(b.pending) == b"".join(frames.encode_data(A, payload) for payload in (b"1", b"3", b"4"))
    assert b"".join(c.pending) == frames.encode_data(A, b"2")
    assert switch.touched == [b, c]
    assert (a.frames_in, b.frames_out, c.frames_out) == (4, 3, 1)


def test_data_to_ones_own_key_comes_back() -> None:
    switch, (a,) = switch_with(A)
    echo = frames.encode_data(A, b"echo")
    send(switch, a, echo)
    assert b"".join(a.pending) == echo


def test_hint_is_forwarded_with_the_senders_key() -> None:
    switch, (a, b) = switch_with(A, B)
    send(switch, a, frames.encode_hint(B))
    assert b"".join(b.pending) == frames.encode_hint(A)


def test_data_to_an_absent_key_is_dropped_and_counted() -> None:
    switch, (a,) = switch_with(A)
    assert send(switch, a, frames.encode_data(B, b"x") * 7) == []
    assert a.dropped_absent == 7
    assert switch.touched == []


def test_frames_without_a_key_go_to_control_whole() -> None:
    switch, (a,) = switch_with(A)
    short = frames.encode(frames.DATA, b"short")
    unknown = frames.encode(0x77, b"?" * 40)
    assert send(switch, a, frames.KEEPALIVE_FRAME + short + unknown) == [
        (frames.KEEPALIVE, frames.KEEPALIVE_FRAME),
        (frames.DATA, short),
        (0x77, unknown),
    ]


def test_who_takes_a_key_is_told_who_had_it() -> None:
    switch, (older,) = switch_with(A)
    newer = Port(A)
    assert switch.replace(newer) is older
    assert switch.replace(newer) is None
    assert switch.holder(A) is newer


def test_displaced_port_does_not_take_its_successor_out() -> None:
    switch, (older,) = switch_with(A)
    newer = Port(A)
    switch.replace(newer)
    switch.leave(older)
    assert switch.holder(A) is newer
    assert len(switch) == 1
