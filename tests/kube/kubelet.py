"""A stand-in for kubelet, as far as `kubectl logs` asks one: its server with the logs of containers that ran.

    python -m tests.kube.kubelet DIR      serves DIR/NAMESPACE/POD/CONTAINER on PORT, with DIR/kubelet.pem

(The API server doesn't check its certificate unless it is told whose to trust.)
"""

from __future__ import annotations

import ssl
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import trustme

from relayd.demo.lab import Node
from relayd.demo.process import Process
from tests.helpers.netns import write
from tests.kube.control_plane import NAMESPACE, ControlPlane

PORT = 10250
LOGS = "/run/kubelet"


class Kubelet:
    """The one of a node, and the pods that it ran."""

    def __init__(self, cluster: ControlPlane, node: Node, name: str) -> None:
        """`name` is the Node resource's."""
        self.cluster, self.node, self.name = cluster, node, name
        node.run("mkdir", "-p", LOGS)
        certificate = trustme.CA().issue_cert("kubelet")
        pem = certificate.private_key_pem.bytes() + certificate.cert_chain_pems[0].bytes()
        write(node, f"{LOGS}/kubelet.pem", pem.decode())
        self.process: Process = node.start(sys.executable, "-m", "tests.kube.kubelet", LOGS)
        self.process.wait_for_output("serving", 20.0)
        status = cluster.get("node", name)["status"]
        # Not as InternalIP: that is what agents take for the node's own.
        reached = {"type": "ExternalIP", "address": str(node.addresses["api"])}
        addresses = [one for one in status.get("addresses", ()) if one["type"] != "ExternalIP"]
        endpoint = {"kubeletEndpoint": {"Port": PORT}}
        patch = {"status": {"addresses": [*addresses, reached], "daemonEndpoints": endpoint}}
        cluster.patch("node", name, patch, "--subresource=status")

    def ran(self, job: dict[str, Any], said: str, *, ok: bool) -> None:
        """Tell the API of a Job's pod that has run here, as its controller and kubelet do; keep its log."""
        template, name = job["spec"]["template"], f"{job['metadata']['name']}-x"
        (container,) = template["spec"]["containers"]
        metadata = {"name": name, "namespace": NAMESPACE, "labels": template["metadata"]["labels"]}
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": template["spec"]}
        self.cluster.apply(pod)
        phase = {"status": {"phase": "Succeeded" if ok else "Failed"}}
        self.cluster.patch("pod", name, phase, "-n", NAMESPACE, "--subresource=status")
        self.node.run("mkdir", "-p", f"{LOGS}/{NAMESPACE}/{name}")
        write(self.node, f"{LOGS}/{NAMESPACE}/{name}/{container['name']}", said)


class _Logs(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        _, kind, *rest = urlsplit(self.path).path.split("/")
        file = Path(LOGS, *rest)
        found = kind == "containerLogs" and len(rest) == 3 and file.is_file()
        body = file.read_bytes() if found else b"no such container\n"
        self.send_response(200 if found else 404)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def main() -> None:
    server = ThreadingHTTPServer(("0.0.0.0", PORT), _Logs)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(f"{sys.argv[1]}/kubelet.pem")
    server.socket = context.wrap_socket(server.socket, server_side=True)
    print("serving", flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
