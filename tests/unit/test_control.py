"""The control socket: real Unix sockets, on both ends."""

from __future__ import annotations

import json
import os
import socket
import stat
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from relayd.errors import ConfigError, HostError, RelaydError
from relayd.keys import PrivateKey, PublicKey
from relayd.observe import control
from relayd.observe.control import NobodyAnswersError, ask, quick, serve_control

STATUS: Mapping[str, object] = {"role": "relay", "key": PublicKey(bytes(32)), "drops": {"full": 3}}


@asynccontextmanager
async def served(path: Path, status: Mapping[str, object] = STATUS) -> AsyncIterator[None]:
    async with trio.open_nursery() as nursery:
        await nursery.start(serve_control, str(path), {"status": quick(lambda: status)})
        yield
        nursery.cancel_scope.cancel()


async def raw(path: Path, request: bytes, *, end: bool = False) -> bytes:
    """What comes back for these bytes, until the other end closes."""
    async with await trio.open_unix_socket(path) as stream:
        await stream.send_all(request)
        if end:
            await stream.send_eof()
        return b"".join([part async for part in stream])


def left_in(directory: Path) -> list[str]:
    return os.listdir(directory)


def leaf(error: BaseException) -> BaseException:
    while isinstance(error, BaseExceptionGroup):
        (error,) = error.exceptions
    return error


async def test_answers_what_it_is_asked_with_values_as_text(tmp_path: Path) -> None:
    async with served(tmp_path / "a.sock"):
        answer = await ask(str(tmp_path / "a.sock"), "status")
    assert answer == {"role": "relay", "key": str(PublicKey(bytes(32))), "drops": {"full": 3}}


async def test_one_line_of_json_each_way(tmp_path: Path) -> None:
    async with served(tmp_path / "a.sock"):
        answer = await raw(tmp_path / "a.sock", b'{"ask": "status"}\n')
        unterminated = await raw(tmp_path / "a.sock", b'{"ask": "status"}', end=True)
    assert answer.endswith(b"}\n")
    assert answer.count(b"\n") == 1
    assert unterminated == answer


async def test_private_key_does_not_get_out(tmp_path: Path) -> None:
    async with served(tmp_path / "a.sock", {"key": PrivateKey(b"k" * 32)}):
        assert await ask(str(tmp_path / "a.sock"), "status") == {"key": "<hidden>"}


async def test_only_its_owner_may_connect_and_a_missing_directory_is_made_private(tmp_path: Path) -> None:
    path = tmp_path / "run" / "relayd" / "a.sock"
    before = os.umask(0)
    try:
        async with served(path):
            assert stat.S_IMODE(path.stat().st_mode) == 0o600
            assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    finally:
        os.umask(before)


async def test_removed_when_it_stops(tmp_path: Path) -> None:
    async with served(tmp_path / "a.sock"):
        assert (tmp_path / "a.sock").is_socket()
    assert left_in(tmp_path) == []


async def test_anothers_socket_in_its_place_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "a.sock"
    with socket.socket(socket.AF_UNIX) as other:
        async with served(path):
            path.unlink()
            other.bind(str(path))
        assert path.is_socket()


async def test_stale_socket_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "a.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
        dead.listen()
    async with served(path):
        assert (await ask(str(path), "status"))["role"] == "relay"


async def test_second_process_is_refused_and_told_where_the_first_answers(tmp_path: Path) -> None:
    path = tmp_path / "a.sock"
    async with served(path):
        with pytest.raises(HostError, match="another process answers at") as caught:
            await serve_control(str(path), {})
        assert str(path) in str(caught.value)
        assert (await ask(str(path), "status"))["role"] == "relay"  # the first one goes on


async def test_process_that_stands_still_counts_as_alive(tmp_path: Path) -> None:
    path = tmp_path / "a.sock"
    with socket.socket(socket.AF_UNIX) as stopped, socket.socket(socket.AF_UNIX) as waiting:
        stopped.bind(str(path))
        stopped.listen(0)  # accepts nothing; the first connection fills its backlog
        waiting.connect(str(path))
        with pytest.raises(HostError, match="another process answers"):
            await serve_control(str(path), {})


async def test_of_two_that_start_at_once_over_a_stale_socket_one_wins(tmp_path: Path) -> None:
    path = tmp_path / "a.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    refused: list[BaseException] = []

    async def start() -> None:
        try:
            await serve_control(str(path), {"status": quick(lambda: STATUS)}, task_status=ready)
        except HostError as error:
            refused.append(error)
            seen.set()

    class Ready:
        count = 0

        def started(self, value: None = None) -> None:
            self.count += 1

    ready, seen = Ready(), trio.Event()
    with trio.fail_after(5):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(start)
            nursery.start_soon(start)
            await seen.wait()
            assert (await ask(str(path), "status"))["role"] == "relay"
            nursery.cancel_scope.cancel()
    assert (ready.count, len(refused)) == (1, 1)


async def test_file_in_the_way_is_not_deleted(tmp_path: Path) -> None:
    (tmp_path / "a.sock").write_text("precious")
    with pytest.raises(HostError, match="is not a socket"):
        await serve_control(str(tmp_path / "a.sock"), {})
    assert (tmp_path / "a.sock").read_text() == "precious"


async def test_place_that_can_not_be_used_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(HostError, match="/file: not a directory"):
        await serve_control(str(tmp_path / "file" / "a.sock"), {})
    with pytest.raises(ConfigError, match="107 bytes") as caught:
        await serve_control(str(tmp_path / ("x" * 100)), {})
    assert caught.value.exit_status == 2


async def test_directory_somebody_keeps_locked_is_an_error_in_time(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    import fcntl

    holder = os.open(tmp_path, os.O_RDONLY)
    try:
        fcntl.flock(holder, fcntl.LOCK_EX)
        with pytest.raises(HostError, match="another process has locked it"):
            await serve_control(str(tmp_path / "a.sock"), {})
    finally:
        os.close(holder)


@pytest.mark.parametrize(
    ("request_bytes", "complaint"),
    [
        (b"status\n", "not JSON"),
        (b"\xff\xfe\n", "not JSON"),
        (b"[" * 4000 + b"\n", "not JSON"),
        (b"{}\n", "can't answer None, but: status"),
        (b"[1]\n", "can't answer None, but: status"),
        (b'{"ask": ["status"]}\n', "can't answer ['status'], but: status"),
        (b'{"ask": "weather"}\n', "can't answer 'weather', but: status"),
        (b"x" * (control.MAX_REQUEST_BYTES + 1) + b"\n", "one line of at most 4096 bytes"),
        (b"x" * 60_000, "one line of at most 4096 bytes"),
    ],
)
async def test_bad_request_gets_an_error_and_others_their_answers(
    tmp_path: Path, request_bytes: bytes, complaint: str
) -> None:
    async with served(tmp_path / "a.sock"):
        answer = json.loads(await raw(tmp_path / "a.sock", request_bytes))
        assert complaint in answer["error"]
        assert (await ask(str(tmp_path / "a.sock"), "status"))["role"] == "relay"


async def test_client_that_says_nothing_is_let_go_in_time(tmp_path: Path, autojump_clock: MockClock) -> None:
    async with served(tmp_path / "a.sock"):
        start = trio.current_time()
        answer = json.loads(await raw(tmp_path / "a.sock", b""))
        assert answer == {"error": "no request within 5 s"}
        assert trio.current_time() - start == control.REQUEST_TIMEOUT_S


async def test_client_that_never_reads_its_answer_is_let_go_in_time(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    path = tmp_path / "a.sock"
    async with served(path, {"text": "x" * (8 << 20)}), await trio.open_unix_socket(path) as stream:
        await stream.send_all(b'{"ask": "status"}\n')
        await trio.sleep(control.REQUEST_TIMEOUT_S + control.ANSWER_TIMEOUT_S + 1)
        got = 0
        try:
            async for part in stream:
                got += len(part)
        except trio.BrokenResourceError:
            pass
        assert 0 < got < 8 << 20


async def test_clients_who_come_and_go_do_no_harm(tmp_path: Path) -> None:
    path = tmp_path / "a.sock"
    async with served(path, {"text": "x" * (1 << 20)}):
        for request in (b"", b'{"ask"', b'{"ask": "status"}\n'):
            async with await trio.open_unix_socket(path) as stream:
                await stream.send_all(request)
        assert len((await ask(str(path), "status"))["text"]) == 1 << 20


async def test_nobody_there_is_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(NobodyAnswersError, match="there is no such socket") as caught:
        await ask(str(tmp_path / "a.sock"), "status")
    assert caught.value.exit_status == 1
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(tmp_path / "b.sock"))
    with pytest.raises(NobodyAnswersError, match="the one that made the socket is gone"):
        await ask(str(tmp_path / "b.sock"), "status")


async def test_process_that_stands_still_is_not_waited_for(tmp_path: Path, autojump_clock: MockClock) -> None:
    with socket.socket(socket.AF_UNIX) as stopped:
        stopped.bind(str(tmp_path / "a.sock"))
        stopped.listen()
        with pytest.raises(NobodyAnswersError, match="within 5 s; is it stopped"):
            await ask(str(tmp_path / "a.sock"), "status")


@pytest.mark.parametrize("reply", [b"", b"hello\n", b"[]\n", b"\xff\n"])
async def test_what_is_not_relayd_is_found_out(tmp_path: Path, reply: bytes) -> None:
    listener = trio.socket.socket(trio.socket.AF_UNIX)
    await listener.bind(str(tmp_path / "a.sock"))
    listener.listen()

    async def other() -> None:
        connection, _ = await listener.accept()
        with connection:
            await connection.recv(4096)
            await connection.send(reply)

    with listener, trio.fail_after(5):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(other)
            with pytest.raises(NobodyAnswersError, match="speaks otherwise"):
                await ask(str(tmp_path / "a.sock"), "status")


async def test_unanswerable_question_raises_the_process_own_words(tmp_path: Path) -> None:
    async with served(tmp_path / "a.sock"):
        with pytest.raises(RelaydError, match="can't answer 'weather', but: status"):
            await ask(str(tmp_path / "a.sock"), "weather")


async def test_error_in_an_answer_is_a_bug_and_ends_the_server(tmp_path: Path) -> None:
    def broken() -> Mapping[str, object]:
        raise ZeroDivisionError

    async def serve_and_ask() -> None:
        async with trio.open_nursery() as nursery:
            await nursery.start(serve_control, str(tmp_path / "a.sock"), {"status": quick(broken)})
            with pytest.raises(NobodyAnswersError):
                await ask(str(tmp_path / "a.sock"), "status")

    with pytest.raises(BaseExceptionGroup) as caught:
        await serve_and_ask()
    assert isinstance(leaf(caught.value), ZeroDivisionError)
    assert left_in(tmp_path) == []
