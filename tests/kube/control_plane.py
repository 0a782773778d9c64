"""A Kubernetes control plane in a node of the laboratory: etcd, kube-apiserver with RBAC, and kubectl.

There are no controllers. Nothing makes pods out of DaemonSets, removes what an ownerReference points from, or
gives namespaces their default ServiceAccount: a test that needs such an effect writes it itself.
"""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

from relayd.demo.lab import Lab, Node
from relayd.demo.process import Process
from tests.kube.build import build, default_cache

ADDRESS = IPv4Address("192.0.2.1")
PORT = 6443
URL = f"https://{ADDRESS}:{PORT}"

START_S = 120.0
"""6 s on an idle machine."""

KUBECTL_S = 60.0

ROOT = Path(__file__).parents[2]
DIR = "/run/cluster"
KUBECONFIG = f"{DIR}/kubeconfig"
NAMESPACE = "wirekube-system"

PROGRAM = "TEST_CLUSTER"
"""The variable that names the program, when the caller has built it."""


class ControlPlane:
    """Reached at URL from every node that has a route to ADDRESS."""

    def __init__(self, lab: Lab, *arguments: str) -> None:
        """`arguments` are more flags for kube-apiserver."""
        self.lab = lab
        self.program = Path(os.environ.get(PROGRAM) or build(default_cache()))
        self.node: Node = lab.node("api")
        self.node.ip(f"addr add {ADDRESS}/32 dev lo")
        self._arguments = arguments
        self._process: Process | None = None
        self.start()

    def start(self) -> None:
        """Also again after `kill`: the same cluster, at the same address."""
        self._process = self.node.start(
            str(self.program), "serve", "--dir", DIR, "--address", str(ADDRESS), "--port", str(PORT), "--",
            *self._arguments,
        )  # fmt: skip
        self._process.wait_for_output('"kubeconfig"', START_S)

    def kill(self) -> None:
        """SIGKILL, as a crash; what is in etcd stays."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()
        self.lab.discard(self._process)
        self._process = None

    @contextmanager
    def away(self) -> Iterator[None]:
        """Killed within the block, and there again after it."""
        self.kill()
        try:
            yield
        finally:
            self.start()
            self.established()

    def compact(self) -> None:
        """Let etcd forget old revisions."""
        self.node.run(str(self.program), "compact", "--dir", DIR)

    @property
    def ca(self) -> str:
        """The CA's certificate."""
        return self.node.path(f"{DIR}/pki/ca.crt").read_text()

    def argv(self, *arguments: str) -> list[str]:
        """A kubectl command, as the administrator, to be run in the node."""
        return [
            str(self.program), "kubectl", "--kubeconfig", KUBECONFIG, "--cache-dir", "/run/kubectl",
            *arguments,
        ]  # fmt: skip

    def kubectl(self, *arguments: str, stdin: str = "") -> str:
        """Its output. Raises HostError with what it complained of."""
        return self.node.run(*self.argv(*arguments), stdin=stdin, timeout_s=KUBECTL_S)

    def shell(self, script: str) -> str:
        """A script as docs/ has it, run at the top of the source tree, with `kubectl` the one of `argv`."""
        words = " ".join(self.argv())
        wrapper = f'kubectl() {{ {words} "$@"; }}\nset -e\ncd {ROOT}\n'
        return self.node.run("sh", "-c", wrapper + script, timeout_s=KUBECTL_S)

    def get(self, *arguments: str) -> Any:
        """What `kubectl get ARGUMENTS` says, decoded."""
        return json.loads(self.kubectl("get", "-o", "json", *arguments))

    def apply(self, *objects: Mapping[str, Any]) -> None:
        """`kubectl apply` of objects."""
        self.kubectl("apply", "-f", "-", stdin="\n---\n".join(json.dumps(one) for one in objects))

    def patch(self, kind: str, name: str, patch: object, *more: str) -> None:
        """A merge patch."""
        self.kubectl("patch", kind, name, "--type=merge", "-p", json.dumps(patch), *more)

    def as_agent(self, token: str, *arguments: str, stdin: str = "") -> str:
        """kubectl with nothing but a token. Raises HostError with what it was refused for."""
        return self.node.run(
            str(self.program), "kubectl", "--kubeconfig", "/dev/null", "--cache-dir", "/run/kubectl",
            "--server", URL, "--certificate-authority", f"{DIR}/pki/ca.crt", "--token", token, *arguments,
            stdin=stdin, timeout_s=KUBECTL_S,
        )  # fmt: skip

    def pod_token(self, node: str, *, account: str = "wirekube-agent", pod: str = "") -> str:
        """The token of a pod of `account` on `node`, both made if need be, as kubelet would project it.

        Deleting the pod (`account-node` unless named) ends the token.
        """
        pod = pod or f"{account}-{node}"
        if not self.kubectl("get", "node", node, "--ignore-not-found"):
            self.apply({"apiVersion": "v1", "kind": "Node", "metadata": {"name": node}})
        self.apply(
            {
                "apiVersion": "v1",
                "kind": "Pod",
                "metadata": {"name": pod, "namespace": NAMESPACE},
                "spec": {
                    "nodeName": node,
                    "serviceAccountName": account,
                    "containers": [{"name": "relayd", "image": "relayd"}],
                },
            }
        )
        bound = ("--bound-object-kind=Pod", f"--bound-object-name={pod}")
        return self.kubectl("create", "token", account, "-n", NAMESPACE, *bound).strip()

    def delete_pod(self, pod: str) -> None:
        """At once, as no kubelet is there to say that it has ended."""
        self.kubectl("delete", "pod", pod, "-n", NAMESPACE, "--force", "--grace-period=0")

    def install(self) -> None:
        """`kubectl apply -k config/`, and wait until the resources can be used."""
        self.kubectl("apply", "--server-side", "-k", str(ROOT / "config"))
        self.established()

    def established(self) -> None:
        """Wait until the custom resources are served."""
        crds = [f"crd/wirekube{kind}.wirekube.io" for kind in ("meshes", "peers")]
        self.kubectl("wait", "--for=condition=Established", "--timeout=30s", *crds)
        self.eventually("get", "wirekubepeers,wirekubemeshes")  # for a moment after that it says 429

    def eventually(self, *arguments: str, timeout_s: float = 30.0) -> str:
        """The output of a kubectl command, once it succeeds."""
        deadline = time.monotonic() + timeout_s
        while True:
            done = subprocess.run(
                self.node.argv(*self.argv(*arguments)), capture_output=True, text=True, check=False
            )
            if done.returncode == 0:
                return done.stdout
            if time.monotonic() > deadline:
                raise TimeoutError(f"kubectl {' '.join(arguments)}: {done.stderr}")
            time.sleep(0.1)
