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
agent = Agent(relay, key_number(int(sys.argv[2])), host=relay.join.host, source="", tls=sys.argv[3] == "tls")
agent.sock.settimeout(None)

def send(key):
    while True:
        agent.sock.sendall(frames.encode_data(key, bytes(100)))
        time.sleep(0.05)

for number in sys.argv[4:]:
    threading.Thread(target=send, args=(key_number(int(number)).public(),), daemon=True).start()
while True:
    agent.frame()
"""
"""A proved connection that answers Pings, and sends to the keys that it is told."""


def test_g8_a_half_open_connection_is_found_in_time_idle_and_busy(lab: Lab) -> None:
    relay, good = lab.node("g8-relay"), lab.node("g8-good")
    bounds = {lab.node("g8-idle"): IDLE_S, lab.node("g8-busy"): BUSY_S, lab.node("g8-tls"): BUSY_S}
    nodes = (*bounds, good)
    for number, node in enumerate(nodes):
        lab.wire(relay, node, IPv4Network(f"10.9.{number}.0/24"))
    options = ("--open", "--state", "/run/relay-state", "--http", "off", "--tls-self-signed")
    serving = relay.relayd("serve", *options)
    wait_until(lambda: status_of(relay, CONTROL_RELAY), "the relay answers")
    join = next(line for line in serving.output().splitlines() if line.startswith("relayd"))
    for number, node in enumerate(nodes):
        host = f"relayds://{relay.addresses[node.name]}:3478?{join.partition('?')[2]}"
        to = ["1", "2"] if node is good else []
        kind = "tls" if node.name == "g8-tls" else "plain"
        node.start(sys.executable, "-c", CLIENT, host, str(number), kind, *to)
    wait_until(lambda: len(connected(relay)) == 4, "all are connected")
    drop_packets(relay, *(f"ip saddr {node.addresses[relay.name]}" for node in bounds))
    dropped_at = time.monotonic()
    found: dict[Node, float] = {}
    while len(found) < len(bounds) and time.monotonic() - dropped_at < IDLE_S + BUSY_S:
        there = connected(relay)
        for node in bounds:
            if str(node.addresses[relay.name]) not in there:
                found.setdefault(node, time.monotonic() - dropped_at)
        time.sleep(0.1)
    for node, bound_s in bounds.items():
        print(node.name, found.get(node))
        assert found[node] <= bound_s
    assert str(good.addresses[relay.name]) in connected(relay)


def connected(relay: Node) -> set[str]:
    """The addresses that the relay has connections from."""
    status = status_of(relay, CONTROL_RELAY)
    return {peer["address"].rpartition(":")[0] for peer in status["peers"]} if status else set()
