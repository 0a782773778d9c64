"""Which interface a command means that names none."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from relayd.kernel import discover


@pytest.mark.parametrize(
    ("there", "with_agent", "meant"),
    [
        ([], [], "wire_kube"),
        (["wg0"], [], "wg0"),
        (["wg0", "wg1"], [], "wire_kube"),
        (["wg0", "wire_kube"], [], "wire_kube"),
        (["wg0", "wire_kube"], ["wg0"], "wg0"),
        (["wg1"], ["wg0"], "wg0"),
        (["wg0", "wg1"], ["wg1", "wg2"], "wg1"),
        (["wg0", "wg1"], ["wg0", "wg1"], "wire_kube"),
        (["wg0"], ["wg1", "wg2"], "wg0"),
    ],
    ids=str,
)
async def test_it_is_the_agents_or_the_usual_or_the_only_one(
    there: list[str], with_agent: list[str], meant: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def names() -> list[str]:
        return there

    monkeypatch.setattr(discover, "wireguard_names", names)
    monkeypatch.setattr(discover, "agent_control", lambda name: f"{tmp_path}/agent-{name}.sock")
    (tmp_path / "agent-wg3.sock").touch()  # no socket
    sockets = [socket.socket(socket.AF_UNIX) for _ in with_agent]
    for name, sock in zip(with_agent, sockets, strict=True):
        sock.bind(f"{tmp_path}/agent-{name}.sock")
        sock.close()
    assert await discover.usual_interface() == meant
