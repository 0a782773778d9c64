"""The configuration of an agent that takes its mesh from a Kubernetes cluster: needs, mistakes."""

from __future__ import annotations

from pathlib import Path

import pytest

from relayd.config import load_agent
from relayd.errors import ConfigError

CLUSTER = {"KUBERNETES_SERVICE_HOST": "10.96.0.1", "NODE_NAME": "node-a"}


def test_a_pods_environment_is_all_that_an_agent_of_a_cluster_needs() -> None:
    config = load_agent(None, {"kubernetes": True}, environ=CLUSTER | {"WIREKUBE_INTERFACE": "wk0"})
    assert (config.kubernetes, config.node_name, config.interface) == (True, "node-a", "wk0")
    wirekubes = CLUSTER | {"WIREKUBE_KUBE_APISERVER": "https://192.0.2.1:6443/"}
    assert load_agent(None, {"kubernetes": True}, environ=wirekubes).api_server == "https://192.0.2.1:6443"


@pytest.mark.parametrize(
    "url",
    [
        "https://api",
        "https://api:8443/k8s/clusters/c-1",
        "https://[2001:db8::1]",
        "https://[2001:db8::1]:6443",
    ],
)
def test_an_api_server_is_taken_as_it_is_written(url: str) -> None:
    assert load_agent(None, {"kubernetes": True, "api_server": url}, environ=CLUSTER).api_server == url


@pytest.mark.parametrize(
    ("environ", "flags", "complaint"),
    [
        ({"KUBERNETES_SERVICE_HOST": "10.96.0.1"}, {}, "no node is named"),
        ({"NODE_NAME": "a"}, {}, "nothing says where the API server is"),
        (CLUSTER | {"NODE_NAME": "Node A"}, {}, "NODE_NAME: 'Node A' can't name a node"),
        (CLUSTER, {"api_server": "http://192.0.2.1"}, "not the URL of an API server"),
        (CLUSTER, {"api_server": "https://a b"}, "not the URL of an API server"),
        (CLUSTER, {"api_server": "https://a:https"}, "'https' is not a port"),
        (CLUSTER, {"api_server": "https://a:99999"}, "'99999' is not a port"),
        (CLUSTER, {"api_server": "https://2001:db8::1"}, "in brackets"),
        (CLUSTER, {"api_server": "https://h\u00f6st:6443"}, "not a host name"),
    ],
)
def test_what_an_agent_of_a_cluster_lacks_is_said(
    environ: dict[str, str], flags: dict[str, str], complaint: str
) -> None:
    with pytest.raises(ConfigError, match=complaint):
        load_agent(None, {"kubernetes": True, **flags}, environ=environ)


def test_a_file_that_describes_what_the_cluster_says_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "agent.toml"
    file.write_text('[kubernetes]\nenabled = true\n\n[[peer]]\npublic_key = "x"\nallowed_ips = []\n')
    with pytest.raises(ConfigError, match="the cluster's resources say that") as caught:
        load_agent(file, {}, environ=CLUSTER)
    assert caught.value.line == 4
