"""The image as a container engine makes and runs it: python -m tests.container.engine

`make image` builds it by podman, on what debootstrap makes of its base (kept in the cache, as the engine's
layers are). Then a relay and two agents run from it, as the README says, in a network of namespaces: the
relay read-only and without a capability, the agents beside wireguard-go with the two that they need. A ping
goes through; the relay is replaced by a new container on the same volume; the cleanup leaves nothing.

Needs root, podman, runc, debootstrap, a network. What it can't show: the base image's own content, and
another processor.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from contextlib import ExitStack
from dataclasses import replace
from ipaddress import IPv4Interface, IPv4Network
from pathlib import Path

import relayd
from relayd.demo.lab import Lab, Node
from relayd.demo.process import Process
from relayd.demo.tunnel import Tunnel, join
from relayd.errors import HostError
from relayd.join import JoinString
from tests.container.build import base_of, say
from tests.container.dockerfile import Stage, stages
from tests.container.podman import BUILD_S, Podman

ROOT = Path(__file__).parents[2]
IMAGE = f"localhost/relayd:{relayd.__version__}"
START_S = 60.0

HARDENED = ("--read-only", "--read-only-tmpfs=false", "--cap-drop=all", "--security-opt=no-new-privileges")
AGENT = ("--user=0", *HARDENED, "--cap-add=NET_ADMIN", "--cap-add=NET_RAW")
PLACES = ("--volume=/var/lib/wirekube:/var/lib/wirekube", "--volume=/run/relayd:/run/relayd")
WIREGUARD_GO = "--volume=/run/wireguard:/run/wireguard"


def main() -> int:
    """Build, look, run. The exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.container.engine",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--cache", type=Path, default=Path("~/.cache/relayd/container"), metavar="DIR")
    cache: Path = parser.parse_args().cache.expanduser().resolve()
    podman = Podman(cache / "podman")
    last = build(podman, cache)
    look(podman, last)
    with ExitStack() as stack:
        stack.callback(podman.remove_cgroups)
        run(podman, stack.enter_context(Lab()), stack)
    say("built, inspected, relayed, replaced, cleaned up")
    return 0


def build(podman: Podman, cache: Path) -> Stage:
    """By `make image`. The Dockerfile's last stage."""
    found = stages(ROOT / "Dockerfile", {})
    for base in {stage.base for stage in found}:
        if not podman.has(f"docker.io/library/{base}"):
            podman.run("import", str(base_of(base, cache)), f"docker.io/library/{base}", timeout_s=BUILD_S)
    say(f"make image ENGINE=podman, on {found[-1].base}")
    command = ["make", "image", f"ENGINE={podman}", f"ARGS={' '.join(podman.build_options())}"]
    done = subprocess.run(
        command,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=BUILD_S,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    return found[-1]


def look(podman: Podman, stage: Stage) -> None:
    """The engine understood what the file says."""
    image = podman.inspect(IMAGE)
    config = image["Config"]
    ((user,), (stop,), (entry,)) = (stage.all(word) for word in ("USER", "STOPSIGNAL", "ENTRYPOINT"))
    assert (config["User"], config["StopSignal"]) == (user.rest, stop.rest), config
    assert config["Entrypoint"] == json.loads(entry.rest), config
    assert config["Labels"]["org.opencontainers.image.version"] == relayd.__version__, config
    assert image["Healthcheck"]["Test"] == ["CMD", "relayd", "status", "--json"], image
    say(f"  {image['Size'] >> 20} MiB, {len(image['RootFS']['Layers'])} layers, {image['Architecture']}")


def run(podman: Podman, lab: Lab, stack: ExitStack) -> None:
    """A relay and two agents of the image; `stack` has what is to be removed."""
    middle, a, b = (lab.node(name) for name in ("relay", "a", "b"))
    for node, network in ((a, "192.0.2.0/24"), (b, "198.51.100.0/24")):
        lab.wire(middle, node, IPv4Network(network))
    addresses = (IPv4Interface("198.18.0.1/24"), IPv4Interface("198.18.0.2/24"))
    tunnels = [Tunnel(*end, userspace=True) for end in zip((a, b), addresses, strict=True)]
    join(*tunnels)
    for node in (middle, a, b):  # each host's own
        node.run("sh", "-c", "mount -t tmpfs tmpfs /var/lib && mkdir /var/lib/wirekube /run/relayd")
        node.run("umount", "/sys")  # the host's is below it, with the cgroups that an engine wants
        stack.callback(podman.remove, node, node.name)
    middle.run("chown", "65532:65532", "/var/lib/wirekube", "/run/relayd")

    relay = start_relay(podman, middle)
    told = told_to_join(podman, middle)
    status = podman.inside(middle, middle.name, "cat", "/proc/1/status")
    for fact in ("Uid:\t65532", "CapBnd:\t0000000000000000", "NoNewPrivs:\t1"):
        assert fact in status, status
    agents = [start_agent(podman, node, told, middle) for node in (a, b)]
    ping(a, tunnels[1], agents)

    podman.stop(middle, middle.name)
    assert relay.wait(START_S) == 0, relay.output()
    start_relay(podman, middle)
    assert told_to_join(podman, middle) == told, "a new container on the same volume is the same relay"
    ping(b, tunnels[0], agents)

    for node, agent in zip((a, b), agents, strict=True):
        podman.stop(node, node.name)
        assert agent.wait(START_S) == 0, agent.output()
        cleanup = [*AGENT, *PLACES, WIREGUARD_GO]
        done = podman.start(node, f"{node.name}-cleanup", cleanup, IMAGE, "cleanup", "--interface", "wg0")
        assert done.wait(START_S) == 0, done.output()
        say(f"  {node.name}: {done.output().strip().splitlines()[-1]}")


def start_relay(podman: Podman, node: Node) -> Process:
    """As the image starts by itself, and healthy by its own health check."""
    relay = podman.start(node, node.name, [*HARDENED, *PLACES], IMAGE)
    healthy(podman, node, relay)
    return relay


def start_agent(podman: Podman, node: Node, told: JoinString, relay: Node) -> Process:
    """Beside the node's wg0; it reaches the relay at the address that it has on their wire."""
    told = replace(told, host=str(relay.addresses[node.name]))
    options = [*AGENT, *PLACES, WIREGUARD_GO]
    agent = podman.start(
        node, node.name, options, IMAGE, "agent", "--relay", told.format(), "--interface", "wg0"
    )
    healthy(podman, node, agent)
    return agent


def healthy(podman: Podman, node: Node, process: Process) -> None:
    """Wait until the image's health check finds it so."""
    deadline = time.monotonic() + START_S
    while not podman.healthy(node, node.name):
        assert process.returncode() is None, process.output()
        assert time.monotonic() < deadline, f"not healthy: {process.output()}"


def told_to_join(podman: Podman, node: Node) -> JoinString:
    """What the relay's container says when it is asked."""
    command = ("relayd", "serve", "--show-join", "--host", "relay.invalid")
    return JoinString.parse(podman.inside(node, node.name, *command).strip())


def ping(node: Node, to: Tunnel, agents: list[Process]) -> None:
    """A first one, and then ten that must all come back."""
    try:
        node.run("ping", "-n", "-c1", "-w30", str(to.address.ip), timeout_s=START_S)
        node.run("ping", "-n", "-c10", "-i0.1", "-W5", str(to.address.ip), timeout_s=START_S)
    except HostError as error:
        raise AssertionError("\n".join([str(error), *(agent.output() for agent in agents)])) from error


if __name__ == "__main__":
    sys.exit(main())
