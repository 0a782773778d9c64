"""direct_endpoints: what the relay took the place of, remembered across lives."""

from __future__ import annotations

from pathlib import Path

import pytest
from structlog.testing import capture_logs

from relayd.agent.direct_endpoints import MAX_GONE, DirectEndpoints
from relayd.endpoints import Endpoint
from relayd.kernel.device import Peer
from relayd.keys import PublicKey

KEY = PublicKey(b"p" * 32)
FIRST, SECOND = Endpoint.parse("192.0.2.7:51820"), Endpoint.parse("[2001:db8::7]:51820")
PROXY = Endpoint.parse("127.64.1.2:22347")


def peer(endpoint: Endpoint | None) -> Peer:
    return Peer(KEY, endpoint, (), None, 0, 0, 0)


async def known(directory: Path, *notes: tuple[Endpoint | None, Endpoint | None]) -> Endpoint | None:
    """What the next life knows after these (endpoint of the peer, endpoint given up)."""
    memory = DirectEndpoints(directory, "wg0")
    for has, given_up in notes:
        memory.note(peer(has), given_up)
        await memory.save([KEY])
    return DirectEndpoints(directory, "wg0").endpoints[KEY]


async def test_the_last_direct_endpoint_is_what_counts(tmp_path: Path) -> None:
    assert await known(tmp_path, (FIRST, FIRST)) == FIRST
    # In the next life it is on the relay already: no news.
    assert await known(tmp_path, (PROXY, None)) == FIRST
    assert await known(tmp_path, (PROXY, FIRST)) == FIRST
    # It roamed to another, and the relay took over again.
    assert await known(tmp_path, (PROXY, SECOND)) == SECOND


async def test_that_there_was_none_is_remembered_until_there_is_one(tmp_path: Path) -> None:
    assert await known(tmp_path, (None, None)) is None
    assert await known(tmp_path, (None, None), (SECOND, SECOND)) == SECOND
    assert await known(tmp_path, (None, None)) == SECOND


async def test_what_is_known_already_is_not_written_again(tmp_path: Path) -> None:
    memory = DirectEndpoints(tmp_path, "wg0")
    memory.note(peer(FIRST), FIRST)
    await memory.save([KEY])
    memory.path.unlink()
    memory.note(peer(PROXY), FIRST)
    await memory.save([KEY])
    assert not memory.path.exists()


async def test_of_peers_that_are_gone_the_last_thousand_are_remembered(tmp_path: Path) -> None:
    memory = DirectEndpoints(tmp_path, "wg0")
    keys = [PublicKey(number.to_bytes(32, "big")) for number in range(MAX_GONE + 50)]
    for key in keys:
        memory.note(Peer(key, FIRST, (), None, 0, 0, 0), FIRST)
    await memory.save(keys)
    assert len(memory.endpoints) == len(keys), "all of these are there"
    memory.note(peer(SECOND), SECOND)
    await memory.save([keys[0], KEY])
    kept = DirectEndpoints(tmp_path, "wg0").endpoints
    assert set(kept) == {keys[0], *keys[50:], KEY}


@pytest.mark.parametrize("text", ["", "{", '{"endpoints": {"x": "y"}}', '{"endpoints": [1]}'])
async def test_a_file_that_means_nothing_is_told_and_counts_as_none(tmp_path: Path, text: str) -> None:
    (tmp_path / "endpoints-wg0.json").write_text(text)
    with capture_logs() as lines:
        assert DirectEndpoints(tmp_path, "wg0").endpoints == {}
    assert [line["log_level"] for line in lines] == ["warning"]


async def test_a_directory_that_cannot_be_written_is_told_once(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    memory = DirectEndpoints(tmp_path / "file", "wg0")
    with capture_logs() as lines:
        for endpoint in (FIRST, SECOND):
            memory.note(peer(endpoint), endpoint)
            await memory.save([KEY])
    assert [line["event"] for line in lines if line["event"] == "endpoints.unsaved"] == ["endpoints.unsaved"]
    assert memory.endpoints[KEY] == SECOND
