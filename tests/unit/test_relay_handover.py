"""Who of an earlier relay's agents is served on, and who isn't: relays in this process, one by one."""

from __future__ import annotations

import os
import socket
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio

from relayd.config import RelayConfig
from relayd.keys import PrivateKey, PublicKey
from relayd.manager.manager import Manager
from relayd.manager.notifier import Notifier
from relayd.manager.passed import Passed
from relayd.observe.control import ask
from relayd.relay import handover
from relayd.relay.server import serve
from relayd.secret_file import RELAY_TOKEN
from relayd.wire import frames
from tests.helpers.fake_manager import Store
from tests.helpers.identities import private
from tests.helpers.running_relay import SOON_S, Client

ALICE = private("alice")
BARE = PublicKey(bytes([11]) * 32)


class Service:
    """A relay's sockets and store, from process to process."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.store = Store(str(directory / "notify"))
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.address: tuple[str, int] = self.listener.getsockname()

    def close(self) -> None:
        self.store.close()
        self.listener.close()

    @property
    def token(self) -> str:
        return (self.directory / "state" / RELAY_TOKEN).read_text().strip()

    @asynccontextmanager
    async def relay(self, *, killed: bool = False, **settings: Any) -> AsyncIterator[None]:
        """The next process. It ends in order, or as if `killed`: without a word."""
        self.store.take()
        kept = [Passed("tcp", os.dup(self.listener.fileno()))]
        kept += [Passed(name, os.dup(fd)) for name, fd in self.store.kept]
        manager = Manager(Notifier(self.store.address), kept)
        config = RelayConfig(
            control=self.control,
            http=None,
            **{"state_dir": str(self.directory / "state"), "stun_port": None, **settings},
        )
        async with trio.open_nursery() as nursery:
            await nursery.start(serve, config, manager)
            with trio.fail_after(SOON_S):
                yield
            self.store.take()
            if killed:
                manager.notifier.close()
            with ThreadPoolExecutor(1) as reader:
                heard = self.store.heard.count("BARRIER=1")
                if not killed:
                    reader.submit(
                        self.store.wait, lambda: self.store.heard.count("BARRIER=1") > heard, "a barrier"
                    )
                nursery.cancel_scope.cancel()
                with trio.CancelScope(shield=True, deadline=trio.current_time() + SOON_S):
                    while nursery.child_tasks:  # noqa: ASYNC110 (the store's reader must outlive them)
                        await trio.sleep(0.01)
        manager.close()

    @property
    def control(self) -> str:
        return str(self.directory / "relay.sock")

    async def status(self) -> dict[str, Any]:
        return dict(await ask(self.control, "status"))

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[Client]:
        stream = await trio.open_tcp_stream(*self.address)
        async with stream:
            yield Client(stream)


@pytest.fixture
def service(tmp_path: Path) -> Any:
    service = Service(tmp_path)
    yield service
    service.close()


@pytest.mark.parametrize("killed", [False, True])
async def test_a_proved_agent_is_served_on(service: Service, killed: bool) -> None:
    async with service.connection() as client:
        async with service.relay(killed=killed):
            await client.prove(ALICE, token=service.token)
            await client.echo(ALICE.public())
        async with service.relay():
            await client.echo(ALICE.public())
            status = await service.status()
            assert (status["resumed"], status["not_resumed"]) == (1, {})
            (peer,) = status["peers"]
            assert peer["proved"]
            assert peer["frames_in"] == (1 if killed else 2)
            # And it holds its key as before: nobody takes it without a proof.
            async with service.connection() as stranger:
                await stranger.send(frames.encode_register(ALICE.public()))
                await client.echo(ALICE.public())


async def test_half_a_frame_is_finished_by_the_next_process(service: Service) -> None:
    frame = frames.encode_data(ALICE.public(), b"half and half")
    async with service.connection() as client:
        async with service.relay():
            await client.prove(ALICE, token=service.token)
            await client.echo(ALICE.public())
            await client.send(frame[:20])
            while (await service.status())["bytes_in"] < len(frame) + 20 - 1:  # noqa: ASYNC110
                await trio.sleep(0.01)
        async with service.relay():
            await client.send(frame[20:])
            assert await client.frame() == frame


@pytest.mark.parametrize("version", [b"relay 0", b"relay 99"])
async def test_a_version_that_cannot_read_the_state_closes_says_so_and_goes_on(
    service: Service, version: bytes, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Back to an old one, and on to one that is to come."""
    async with AsyncExitStack() as stack:
        client = await stack.enter_async_context(service.connection())
        async with service.relay():
            await client.prove(ALICE, token=service.token)
            await client.echo(ALICE.public())
        monkeypatch.setattr(handover, "FORMAT", version)
        async with service.relay():
            assert await client.frame() == b""
            assert (await service.status())["not_resumed"] == {"unknown_format": 1}
            assert "of another version" in capsys.readouterr().out
            again = await stack.enter_async_context(service.connection())
            await again.prove(ALICE, token=service.token)
        async with service.relay():
            await again.echo(ALICE.public())


@pytest.mark.parametrize("policy", ["optional", "required"])
async def test_an_unproved_agent_is_served_on_where_that_is_enough(service: Service, policy: str) -> None:
    async with service.connection() as client:
        async with service.relay(auth="optional"):
            await client.send(frames.encode_register(BARE))
            await client.echo(BARE)
        async with service.relay(auth=policy):
            if policy == "optional":
                await client.echo(BARE)
                return
            assert await client.frame() == b""
            assert (await service.status())["not_resumed"] == {"unproved": 1}


async def test_an_agent_that_is_not_on_the_list_any_more_is_closed(service: Service) -> None:
    allowed = service.directory / "allowed"
    allowed.write_text(f"{ALICE.public()}\n")
    async with service.connection() as client:
        async with service.relay(allow_list=str(allowed)):
            await client.prove(ALICE, token="")
            await client.echo(ALICE.public())
        allowed.write_text(f"{private('bob').public()}\n")
        async with service.relay(allow_list=str(allowed)):
            assert await client.frame() == b""
            assert (await service.status())["not_resumed"] == {"not_admitted": 1}


def _key(number: int) -> PrivateKey:
    return private(f"agent {number}")


async def test_agents_find_each_other_after_it(service: Service) -> None:
    one, other = _key(1), _key(2)
    async with service.connection() as first, service.connection() as second:
        async with service.relay():
            await first.prove(one, token=service.token)
            await second.prove(other, token=service.token)
        async with service.relay():
            await first.send(frames.encode_data(other.public(), b"still there?"))
            assert await second.frame() == frames.encode_data(one.public(), b"still there?")
