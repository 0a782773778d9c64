"""G8 on the relay's side: an agent's packets vanish, and its connection is found dead, busy or idle."""

from __future__ import annotations

import sys
import time
from ipaddress import IPv4Network

from relayd.demo.lab import Lab, Node
from relayd.demo.stage import CONTROL_RELAY
from tests.helpers.netns import drop_packets, status_of, wait_until

IDLE_S, BUSY_S = 15.0, 10.0
"""What is promised."""

CLIENT = """
import socket, sys, threading, time
from types import SimpleNamespace
from relayd.join import JoinString
from relayd.wire import frames
from tests.security.relays import Agent, key_number

relay = SimpleNamespace(join=JoinString.parse(sys.argv[1]))
agent = Agent(relay, key_number(int(sys.argv[2])), host=relay.join.host, source="")
agent.sock.settimeout(None)

def send(key):
    while True:
        agent.sock.sendall(frames.encode_data(key, bytes(100)))
        time.sleep(0.05)

for number in sys.argv[3:]:
    threading.Thread(target=send, args=(key_number(int(number)).public(),), daemon=True).start()
while True:
    agent.frame()
"""
"""A proved connection that answers Pings, and sends to the keys that it is told."""


def test_g8_a_half_open_connection_is_found_in_time_idle_and_busy(lab: Lab) -> None:
    relay, idle, busy, good = (lab.node(name) for name in ("g8-relay", "g8-idle", "g8-busy", "g8-good"))
    for number, node in enumerate((idle, busy, good)):
        lab.wire(relay, node, IPv4Network(f"10.9.{number}.0/24"))
    serving = relay.relayd("serve", "--open", "--state", "/run/relay-state", "--http", "off")
    wait_until(lambda: status_of(relay, CONTROL_RELAY), "the relay answers")
    join = next(line for line in serving.output().splitlines() if line.startswith("relayd://"))
    for number, node in enumerate((idle, busy, good)):
        host = f"relayd://{relay.addresses[node.name]}:3478?{join.partition('?')[2]}"
        to = ["1"] if node is good else []
        node.start(sys.executable, "-c", CLIENT, host, str(number), *to)
    wait_until(lambda: len(connected(relay)) == 3, "all are connected")
    drop_packets(relay, *(f"ip saddr {node.addresses[relay.name]}" for node in (idle, busy)))
    dropped_at = time.monotonic()
    found: dict[str, float] = {}
    while len(found) < 2 and time.monotonic() - dropped_at < IDLE_S + BUSY_S:
        there = connected(relay)
        for node in (idle, busy):
            if str(node.addresses[relay.name]) not in there:
                found.setdefault(node.name, time.monotonic() - dropped_at)
        time.sleep(0.1)
    print(found)
    assert found[idle.name] <= IDLE_S
    assert found[busy.name] <= BUSY_S
    assert str(good.addresses[relay.name]) in connected(relay)


def connected(relay: Node) -> set[str]:
    """The addresses that the relay has connections from."""
    status = status_of(relay, CONTROL_RELAY)
    return {peer["address"].rpartition(":")[0] for peer in status["peers"]} if status else set()
