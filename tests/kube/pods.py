"""Containers of config/'s pods as processes in a node of the laboratory, as kubelet would run them.

Arguments, environment, user, capabilities, read-only root, mounts and probes are those of the object in the
API; of the rest (images, cgroups, seccomp) there is nothing here. A pod has the node's network.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import relayd
from relayd.demo.lab import RELAYD, Node
from relayd.demo.process import Process
from tests.helpers.netns import write
from tests.kube.control_plane import ADDRESS, NAMESPACE, PORT, ControlPlane

TREE = str(Path(relayd.__file__).resolve().parents[1])
"""Where relayd is imported from."""

ACCOUNT = "/run/secrets/kubernetes.io/serviceaccount"
"""/var/run is /run in a node."""

SERVICE = {"KUBERNETES_SERVICE_HOST": str(ADDRESS), "KUBERNETES_SERVICE_PORT": str(PORT)}
"""As in every pod. (There is no kube-proxy: the Service's address is the server's own.)"""

_ASK = """
import sys, urllib.error, urllib.request
try:
    print(urllib.request.urlopen(sys.argv[1], timeout=float(sys.argv[2])).status)
except urllib.error.HTTPError as error:
    print(error.code)
except OSError:
    print(0)
"""

_RUN = """
set -e
mount -o remount,bind,ro /
exec "$@"
"""


def probe(node: Node, container: dict[str, Any], kind: str, *, pod_ip: str) -> int:
    """What a container's HTTP probe is answered; 0: nothing. As kubelet asks, from the node."""
    asked = container[kind]["httpGet"]
    port = asked["port"]
    if isinstance(port, str):
        (port,) = (one["containerPort"] for one in container["ports"] if one["name"] == port)
    url = f"http://{asked.get('host', pod_ip)}:{port}{asked['path']}"
    return int(node.run(sys.executable, "-c", _ASK, url, str(container[kind].get("timeoutSeconds", 1))))


class Pod:
    """The one container of a workload's pod. Volumes outlive it; another one can be started on them."""

    def __init__(
        self, cluster: ControlPlane, node: Node, workload: str, *, name: str, node_name: str
    ) -> None:
        """`workload`: as kubectl takes it ("deployment/wirekube-relay"). `node_name`: of the resource."""
        self.cluster, self.node, self.name, self.node_name = cluster, node, name, node_name
        spec = cluster.get(workload, "-n", NAMESPACE)["spec"]["template"]["spec"]
        self.spec: dict[str, Any] = spec
        (self.container,) = spec["containers"]
        self._account(spec["serviceAccountName"])
        self._volumes()

    def _account(self, account: str) -> None:
        """What kubelet projects."""
        self.node.run("mkdir", "-p", ACCOUNT)
        write(
            self.node,
            f"{ACCOUNT}/token",
            self.cluster.pod_token(self.node_name, account=account, pod=self.name),
        )
        write(self.node, f"{ACCOUNT}/ca.crt", self.cluster.ca)
        write(self.node, f"{ACCOUNT}/namespace", NAMESPACE)
        self.node.run("chmod", "-R", "a+rX", "/run/secrets")

    def _volumes(self) -> None:
        """An empty one for each directory that the container may write to, with fsGroup's rights."""
        group = self.spec.get("securityContext", {}).get("fsGroup", 0)
        # (A directory of the host that isn't there can't be mounted on, and none is made for a test.)
        self.node.run("mount", "-t", "tmpfs", "-o", "mode=0755", "relayd-lab", "/var/lib")
        names = {one["name"]: one for one in self.spec["volumes"]}
        for mount in self.container["volumeMounts"]:
            path, volume = mount["mountPath"], names[mount["name"]]
            if "emptyDir" in volume or path in ("/var/lib/wirekube", "/run/relayd"):
                self.node.run("mkdir", "-p", path)
                options = f"mode=2770,gid={group}" if "emptyDir" in volume else "mode=0755"
                # What runs may be below it: a checkout in /tmp.
                hidden = [place for place in (TREE, sys.prefix) if Path(place).is_relative_to(path)]
                for number, place in enumerate(hidden):
                    self.node.run("mkdir", "-p", f"/run/seen{number}")
                    self.node.run("mount", "--bind", place, f"/run/seen{number}")
                self.node.run("mount", "-t", "tmpfs", "-o", options, "relayd-lab", path)
                for number, place in enumerate(hidden):
                    self.node.run("mkdir", "-p", place)
                    self.node.run("mount", "--bind", f"/run/seen{number}", place)

    def start(self) -> Process:
        """Run the container's command."""
        settings = {**self.spec.get("securityContext", {}), **self.container["securityContext"]}
        caps = "".join(f",+{one.lower()}" for one in settings["capabilities"].get("add", ()))
        assert settings["readOnlyRootFilesystem"] is True
        assert settings["allowPrivilegeEscalation"] is False
        user = settings["runAsUser"]
        as_user = ["setpriv", "--no-new-privs", f"--bounding-set=-all{caps}", "--inh-caps=-all"]
        if user:
            assert settings["runAsNonRoot"] is True
            group = str(settings["runAsGroup"])
            as_user = ["setpriv", "--no-new-privs", "--reuid", str(user), "--regid", group, "--clear-groups"]
            # The interpreter may be below a home directory that nobody else may enter: to read, and no more.
            as_user += ["--inh-caps=-all,+dac_read_search", "--ambient-caps=-all,+dac_read_search"]
            as_user += ["--bounding-set=-all,+dac_read_search"]
        return self.node.start(
            "unshare", "--mount", "--propagation", "private", "sh", "-c", _RUN, "sh", *as_user,
            *RELAYD, *self.container["args"],
            environment={
                **SERVICE, "HOME": "/nonexistent", "PYTHONDONTWRITEBYTECODE": "1", **self._environment(),
            },
        )  # fmt: skip

    def _environment(self) -> dict[str, str]:
        fields = {
            "spec.nodeName": self.node_name,
            "metadata.name": self.name,
            "metadata.namespace": NAMESPACE,
        }
        made = {}
        for one in self.container.get("env", ()):
            made[one["name"]] = one.get("value") or fields[one["valueFrom"]["fieldRef"]["fieldPath"]]
        return made

    def probe(self, kind: str, *, pod_ip: str = "127.0.0.1") -> int:
        """See the function."""
        return probe(self.node, self.container, kind, pod_ip=pod_ip)
