"""The paths that are served, and to whom."""

from __future__ import annotations

import json
import os
from functools import partial
from typing import Any

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from relayd.keys import PrivateKey
from relayd.observe.http_server import Answer, Request
from relayd.observe.http_site import Site
from relayd.observe.telling import Telling
from tests.helpers.observed import Watched, agent_status, relay_status


async def get(
    path: str,
    status: dict[str, Any] | None = None,
    *,
    host: str = "127.0.0.1:9478",
    method: str = "GET",
    names: tuple[str, ...] = (),
) -> Answer:
    watched = Watched(status if status is not None else relay_status())
    site = Site(watched, Telling(watched), names)
    return await site.answer(Request(method, path, host))


async def test_status_is_what_relayd_status_json_prints() -> None:
    status = relay_status(3)
    answer = await get("/status", status)
    assert (answer.status, answer.content_type) == (200, "application/json")
    assert json.loads(answer.body) == status
    assert answer.body.endswith(b"}\n")


@pytest.mark.parametrize("peers", [0, 1, 2, 3000])
async def test_status_has_all_peers_however_many(peers: int) -> None:
    status = relay_status(peers)
    assert json.loads((await get("/status", status)).body) == status


async def test_status_may_be_asked_for_some_peers_only() -> None:
    answer = json.loads((await get("/status?peers=2", relay_status(5))).body)
    assert (answer["connections"], len(answer["peers"])) == (5, 2)
    assert json.loads((await get("/status?peers=0", relay_status(5))).body)["peers"] == []


@pytest.mark.parametrize("asked", ["x", "-1", "1e3", "10000000000000000000", "\u0664"])
async def test_a_number_of_peers_that_is_none_is_refused(asked: str) -> None:
    assert (await get(f"/status?peers={asked}")).status == 400


async def test_no_secret_gets_out() -> None:
    secret = PrivateKey(b"\x11" * 32)
    status = relay_status(0, odd=secret, token="t0p-secret", more={"private_key": "abc", "psk": b"def"})
    body = (await get("/status", status)).body.decode()
    assert secret.to_base64() not in body
    for name in ("t0p-secret", "abc", "646566"):
        assert name not in body


async def test_health_says_that_it_lives() -> None:
    assert (await get("/healthz")).status == 200


async def test_a_relay_that_drains_is_not_ready() -> None:
    assert (await get("/readyz")).status == 200
    answer = await get("/readyz", relay_status(draining=True))
    assert answer.status == 503
    assert b"draining" in answer.body


async def test_an_agent_is_ready_while_every_peer_has_a_way() -> None:
    assert (await get("/readyz", agent_status(("direct", "relay")))).status == 200
    lost = await get("/readyz", agent_status(("direct", "none", "none")))
    assert lost.status == 503
    assert b"no way to 2 peers: " in lost.body


async def test_where_the_mesh_has_no_relay_a_peer_without_a_way_is_not_the_agents_fault() -> None:
    alone = agent_status(("direct", "none"), relay={"state": "none"})
    assert (await get("/readyz", alone)).status == 200


async def test_an_agent_without_its_interface_is_not_ready_and_says_why() -> None:
    answer = await get("/readyz", agent_status((), interface_problem="wg0: no such interface"))
    assert answer.status == 503
    assert b"no such interface" in answer.body


async def test_nothing_can_be_changed() -> None:
    for method in ("POST", "PUT", "DELETE", "OPTIONS", "TRACE", "get"):
        answer = await get("/status", method=method)
        assert answer.status == 405
        assert ("Allow", "GET, HEAD") in answer.headers


@pytest.mark.parametrize(
    "path", ["/nothing", "/../etc/passwd", "/status/", "//status", "*", "/%00", "http://["]
)
async def test_other_paths_are_not_there(path: str) -> None:
    assert (await get(path)).status in (400, 404)


@pytest.mark.parametrize(
    "host",
    [
        "localhost:9478",
        "LOCALHOST",
        "relay.localhost:1",
        "127.0.0.1:9478",
        "192.0.2.7",
        "[::1]:9478",
        "[fe80::1%25eth0]:9478",
        "gateway.example.net:9478",
        "gateway.example.net.",
        "",
        os.uname().nodename,
    ],
)
async def test_a_host_that_is_ours_is_answered(host: str) -> None:
    assert (await get("/status", host=host, names=("gateway.example.net",))).status == 200


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "evil.example:9478",
        "localhost.evil.example",
        "127.0.0.1.evil.example",
        "gateway.example.net.evil.example",
        "evil.example@127.0.0.1.evil.example",
        "[::1",
        "127.0.0.1:9478:x.example",
        "\xff",
        "a b",
    ],
)
async def test_another_name_is_not(host: str) -> None:
    answer = await get("/status", host=host, names=("gateway.example.net",))
    assert answer.status == 421
    assert b"peers" not in answer.body


@settings(max_examples=300, deadline=None)
@given(
    st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), max_size=60),
    st.text(st.characters(max_codepoint=0xFF), max_size=40),
)
def test_any_path_and_host_is_answered(path: str, host: str) -> None:
    """An exception here would end the process. h11 lets these characters through, and no others."""
    for target in (path, f"/status?{path}", f"//{path}", f"http://{path}/status"):
        answer = trio.run(partial(get, target, host=host))
        assert answer.status in (200, 400, 404, 421)
