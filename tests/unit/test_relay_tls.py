"""TLS at the relay: the certificate, its reload, the pin; and that what holds for plain connections holds
here."""

from __future__ import annotations

import hashlib
import socket
import ssl
import stat
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import trio
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from cryptography.x509.oid import NameOID

from relayd.config import RelayConfig
from relayd.errors import ConfigError, HostError
from relayd.join import JoinString
from relayd.relay import reload, tls_door
from relayd.relay.tls import load_tls
from relayd.wire import frames
from relayd.wire.identity_frames import CHALLENGE
from tests.helpers.identities import ALICE, BOB
from tests.helpers.running_relay import SOON_S, Client, Running, relay

A, B = ALICE.public(), BOB.public()


def unverified() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


@asynccontextmanager
async def over_tls(running: Running, source: str = "127.0.0.1") -> AsyncIterator[tuple[Client, bytes]]:
    """A connection, and the SHA-256 of the public key that the relay showed."""
    async with running.connection(source) as plain:
        stream = trio.SSLStream(plain.stream, unverified(), https_compatible=True)
        with trio.fail_after(SOON_S):
            await stream.do_handshake()
        certificate = x509.load_der_x509_certificate(stream.getpeercert(binary_form=True))
        shown = certificate.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        yield Client(stream), hashlib.sha256(shown).digest()  # type: ignore[arg-type]


def certificate(directory: Path, name: str) -> dict[str, object]:
    """A certificate of its own key, as `tls_cert` and `tls_key`."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .sign(key, hashes.SHA256())
    )
    (directory / "key.pem").write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    (directory / "cert.pem").write_bytes(made.public_bytes(Encoding.PEM))
    return {"tls_cert": str(directory / "cert.pem"), "tls_key": str(directory / "key.pem")}


async def test_self_signed_is_pinned_by_the_join_string(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    for _ in range(2):  # and is the same at the next start
        async with relay(tmp_path, auth="required", tls_self_signed=True) as running:
            join = JoinString.parse(capfd.readouterr().out.splitlines()[-1])
            assert join.tls
            async with over_tls(running) as (client, pin):
                assert pin == join.pin
                await client.prove(ALICE, token=join.token, pin=join.key)
                await client.echo(A)
    for name in ("relay-tls.key", "relay-tls.pem"):
        assert stat.S_IMODE((tmp_path / "state" / name).stat().st_mode) == 0o600


async def test_one_port_speaks_both_and_they_reach_each_other(tmp_path: Path) -> None:
    async with (
        relay(tmp_path, auth="required", tls_self_signed=True) as running,
        over_tls(running) as (a, _),
        running.proved(BOB) as b,
    ):
        await a.prove(ALICE, token=running.token)
        big = frames.encode_data(B, bytes(60_000))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(a.send, big * 20)
            assert [await b.frame() for _ in range(20)] == [frames.encode_data(A, bytes(60_000))] * 20
        back = frames.encode_data(A, bytes(60_000))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(b.send, back * 10)
            assert [await a.frame() for _ in range(10)] == [frames.encode_data(B, bytes(60_000))] * 10
        peers = (await running.status())["peers"]
        addresses = {peer["key"]: peer["address"] for peer in peers}  # type: ignore[attr-defined]
        assert addresses[str(A)].startswith("127.0.0.1:")


async def test_tls_only_refuses_plain_frames_and_says_why(tmp_path: Path) -> None:
    async with (
        relay(tmp_path, tls_self_signed=True, tls_only=True) as running,
        running.connection() as plain,
        over_tls(running) as (client, _),
    ):
        await plain.send(frames.encode_register(A))
        assert "relayds://" in await plain.error()
        await client.prove(ALICE, token=running.token)


async def test_refusal_and_displacement_are_told_over_tls_too(tmp_path: Path) -> None:
    async with (
        relay(tmp_path, auth="required", tls_self_signed=True) as running,
        over_tls(running) as (a, _),
        over_tls(running) as (second, _),
        over_tls(running) as (m, _),
    ):
        await a.prove(ALICE, token=running.token)
        await second.prove(ALICE, token=running.token)
        assert "replaced" in await a.error()
        with trio.fail_after(SOON_S):
            assert await a.frame() == b""
        await m.send(frames.encode_register(B))
        await m.any_frame()
        await m.send(frames.encode(0x31, bytes(200)))
        assert "no proof of key" in await m.error()
        await second.echo(A)


async def test_agent_that_leaves_leaves_nothing_behind(tmp_path: Path) -> None:
    async with relay(tmp_path, auth="required", tls_self_signed=True) as running:
        async with over_tls(running) as (a, _):
            await a.prove(ALICE, token=running.token)
        with trio.fail_after(SOON_S):
            while (await running.status())["connections"]:  # noqa: ASYNC110
                await trio.sleep(0.02)


async def test_new_certificate_is_shown_when_the_files_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(reload, "LOOK_S", 0.02)
    monkeypatch.setattr(reload, "SETTLE_S", 0.02)
    settings: Any = certificate(tmp_path, "one")
    async with (
        relay(tmp_path, **settings) as running,
        over_tls(running) as (a, first),
    ):
        await a.prove(ALICE, token=running.token)
        certificate(tmp_path, "two")
        with trio.fail_after(SOON_S):
            while True:
                async with over_tls(running) as (_, shown):
                    if shown != first:
                        break
        await a.echo(A)
        (tmp_path / "cert.pem").write_text("nonsense")
        with trio.fail_after(SOON_S):
            while "tls.kept" not in capfd.readouterr().out:  # noqa: ASYNC110
                await trio.sleep(0.02)
        async with over_tls(running) as (_, still):
            assert still == shown


def test_files_that_are_not_a_certificate_and_its_key_are_told(tmp_path: Path) -> None:
    settings = certificate(tmp_path, "one")
    config = RelayConfig(**settings)  # type: ignore[arg-type]
    (tmp_path / "key.pem").write_text("nonsense")
    with pytest.raises(ConfigError, match=r"cert\.pem: not a certificate with its key"):
        load_tls(config)
    (tmp_path / "key.pem").unlink()
    with pytest.raises(HostError, match=r"cannot read .*key.pem"):
        load_tls(config)


@pytest.mark.parametrize("first", [b"\x16\x03\x01\x00\x05nonsense", b"\x16"])
async def test_garbage_that_looks_like_tls_ends_that_connection_and_no_other(
    tmp_path: Path, first: bytes
) -> None:
    async with (
        relay(tmp_path, tls_self_signed=True, register_timeout_s=1.0) as running,
        running.proved(ALICE) as a,
        running.connection() as m,
    ):
        await m.send(first)
        with trio.fail_after(SOON_S):
            while await m.stream.receive_some(4096):
                pass
        await a.echo(A)


async def test_too_many_tls_connections_at_the_door_push_out_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tls_door, "SEATS_PER_PLACE", 2)
    async with relay(tmp_path, tls_self_signed=True) as running:
        async with (
            over_tls(running, "127.0.0.2") as (first, _),
            over_tls(running, "127.0.0.2"),
            over_tls(running, "127.0.0.2"),
            over_tls(running, "127.0.0.3") as (a, _),
        ):
            assert await first.frame() == b""
            await a.prove(ALICE, token=running.token)
        assert (await running.status())["refused"][tls_door.TOO_MANY] == 1  # type: ignore[index]


async def test_who_says_hello_and_nothing_else_pushes_out_nobody_in_mid_handshake(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tls_door, "SEATS", 4)
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = unverified().wrap_bio(incoming, outgoing)
    with suppress(ssl.SSLWantReadError):
        tls.do_handshake()
    hello = outgoing.read()
    async with relay(tmp_path, tls_self_signed=True) as running, AsyncExitStack() as stack:
        a = await stack.enter_async_context(running.connection())
        await a.send(hello)
        with trio.fail_after(SOON_S):
            incoming.write(await a.stream.receive_some(65536))
        # A flood that has all turns to come, and gets none in time.
        monkeypatch.setattr(tls_door, "BEGUN_AT_ONCE", 0)
        for number in range(20):
            one = await stack.enter_async_context(running.connection(f"127.0.1.{1 + number}"))
            await one.send(hello)
        with trio.fail_after(SOON_S):
            while (await running.status())["refused"] != {tls_door.TOO_MANY: 16}:  # noqa: ASYNC110
                await trio.sleep(0.02)
        with suppress(ssl.SSLWantReadError):
            tls.do_handshake()
        tls.write(frames.encode_register(A))
        await a.send(outgoing.read())
        with trio.fail_after(SOON_S):
            incoming.write(await a.stream.receive_some(65536))
        assert tls.read(5)[4] == CHALLENGE
        monkeypatch.undo()


async def test_reader_that_stops_is_closed_over_tls_too(tmp_path: Path) -> None:
    async with (
        relay(tmp_path, tls_self_signed=True, stalled_s=1.0) as running,
        running.proved(ALICE) as a,
        over_tls(running) as (b, _),
    ):
        await b.prove(BOB, token=running.token)
        inner: socket.socket = b.stream.transport_stream.socket  # type: ignore[attr-defined]
        inner.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        with trio.fail_after(SOON_S):
            while (await running.status())["connections"] == 2:
                await a.send(frames.encode_data(B, bytes(60_000)) * 5)
