"""podman with a storage of its own: images and containers that no other podman of this host sees."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from relayd.demo.lab import Node
from relayd.demo.process import Process

BUILD_S = 1200.0
COMMAND_S = 60.0

HOSTS_TRUST = "/etc/pip.conf"

LIMITS = ("--ulimit", "nofile=4096:4096", "--ulimit", "nproc=4096:4096")
"""podman raises both otherwise, which it may not where it is in a container itself."""

CGROUP = "relayd-container-test"
"""Below it the containers' cgroups are."""


class Podman:
    """One storage. Containers run in nodes of a laboratory, whose network is their host's network."""

    def __init__(self, directory: Path) -> None:
        """`directory` keeps images (and so the layers of the last build) until it is removed."""
        directory.mkdir(parents=True, exist_ok=True)
        places = [f"--root={directory}/storage", f"--runroot={directory}/run", f"--tmpdir={directory}/tmp"]
        # Where systemd isn't process 1, or old and new cgroups are mixed, podman's own choice doesn't go.
        choices = ["--cgroup-manager=cgroupfs", "--runtime=runc", "--events-backend=none"]
        self.argv = ["podman", *places, *choices]
        self._directory = directory

    def __str__(self) -> str:
        """As a shell is told it: ENGINE of `make image`."""
        return shlex.join(self.argv)

    def run(self, *arguments: str, timeout_s: float = COMMAND_S) -> str:
        """A command on the host, to its end. Its output; AssertionError when it fails."""
        command = [*self.argv, *arguments]
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout_s, check=False)
        assert done.returncode == 0, f"podman {shlex.join(arguments)}: {done.stderr}"
        return done.stdout

    def has(self, image: str) -> bool:
        """Whether `image` is in the storage."""
        command = [*self.argv, "image", "exists", image]
        return subprocess.run(command, timeout=COMMAND_S, check=False).returncode == 0

    def build_options(self) -> list[str]:
        """What a build needs to reach packages as this host does: its network, and whom pip trusts here."""
        options = ["--network=host", "--format=docker"]
        if trusted := os.environ.get("PIP_CERT"):
            settings = self._directory / "pip.conf"
            settings.write_text(f"[global]\ncert = {HOSTS_TRUST}.crt\n")
            options += [f"--volume={settings}:{HOSTS_TRUST}:ro", f"--volume={trusted}:{HOSTS_TRUST}.crt:ro"]
        return options

    def inspect(self, image: str) -> dict[str, Any]:
        """All that the engine knows of an image."""
        (found,) = json.loads(self.run("image", "inspect", image))
        assert isinstance(found, dict)
        return found

    def start(self, node: Node, name: str, options: Sequence[str], image: str, *command: str) -> Process:
        """A container, of that name, whose host is `node`; it is removed when it ends."""
        ours = [*LIMITS, "--cgroups=no-conmon", f"--cgroup-parent=/{CGROUP}"]
        flags = ["--rm", f"--name={name}", "--network=host", "--no-healthcheck", *ours, *options]
        return node.start(*self.argv, "run", *flags, image, *command)

    def inside(self, node: Node, name: str, *command: str) -> str:
        """A command in a container that runs. Raises HostError when it fails."""
        return node.run(*self.argv, "exec", name, *command, timeout_s=COMMAND_S)

    def healthy(self, node: Node, name: str) -> bool:
        """Whether a container's health check succeeds, run now."""
        command = node.argv(*self.argv, "exec", name, "relayd", "status", "--json")
        return subprocess.run(command, capture_output=True, timeout=COMMAND_S, check=False).returncode == 0

    def stop(self, node: Node, name: str) -> None:
        """By the image's stop signal. Raises HostError when it fails."""
        node.run(*self.argv, "stop", "--time=15", name, timeout_s=COMMAND_S)

    @staticmethod
    def remove_cgroups() -> None:
        """What the engine leaves of them, when all containers are gone."""
        for left in Path("/sys/fs/cgroup").glob(f"**/{CGROUP}"):
            left.rmdir()

    def remove(self, node: Node, name: str) -> None:
        """Whether it runs or not, and whether there is one."""
        node.run(*self.argv, "rm", "--force", "--ignore", "--time=0", name, timeout_s=COMMAND_S)
