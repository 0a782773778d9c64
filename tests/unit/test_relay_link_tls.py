"""relay_link over TLS: the same frames, and only to whom the certificate or the pin vouches for."""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import trio
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from trio.testing import MockClock

from relayd.agent.link_settings import LinkSettings
from relayd.agent.relay_tls import pin_of
from relayd.join import JoinString, format_pin
from relayd.wire.frames import BIMODAL_HINT, DATA, encode_data, encode_hint
from relayd.wire.identity_frames import PING, Welcome
from tests.helpers.identities import GATE, RELAY, TOKEN
from tests.helpers.link_rig import PEER, SECURE, running, welcomed
from tests.helpers.tiny_relay import TinyRelay, settle, until
from tests.helpers.tls import HOST, authority, server_context

ROOMY = LinkSettings(queue_age_s=3600.0, queue_bytes=64 << 20)


@pytest.fixture
def trusted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The system's authorities are the test's own."""
    path = tmp_path / "authorities.pem"
    authority().cert_pem.write_to_path(str(path))
    monkeypatch.setenv("SSL_CERT_FILE", str(path))


@pytest.fixture
async def relay() -> AsyncIterator[TinyRelay]:
    with TinyRelay(tls=server_context(HOST)) as made:
        yield made


def join(relay: TinyRelay, host: str = HOST, pin: bytes | None = None) -> JoinString:
    return JoinString(host, relay.join.port, key=RELAY.public, token=TOKEN, tls=True, pin=pin)


@pytest.mark.usefixtures("trusted")
async def test_frames_go_both_ways_over_tls(mock_clock: MockClock, relay: TinyRelay) -> None:
    async with running(relay, SECURE, join=join(relay)) as rig:
        session = await welcomed(relay, rig)
        await session.deliver(PEER, b"to the agent")
        await until(lambda: rig.delivered == [(PEER.raw, b"to the agent")])
        rig.send(encode_data(PEER, b"to the relay"))
        assert await session.expect(DATA) == PEER.raw + b"to the relay"


@pytest.mark.usefixtures("trusted")
async def test_a_flood_each_way_arrives_whole_and_in_order(mock_clock: MockClock, relay: TinyRelay) -> None:
    """More than a socket's buffers, a record and one read hold."""
    count = 4000
    async with running(relay, ROOMY, join=join(relay)) as rig:
        session = await welcomed(relay, rig)
        frames = [encode_data(PEER, index.to_bytes(4, "big") * 350) for index in range(count)]
        for first in range(0, count, 64):
            rig.send(*frames[first : first + 64])
        rig.send(encode_hint(PEER))
        numbers = []
        while (frame := await session.next_frame()) is not None and frame[0] != BIMODAL_HINT:
            if frame[0] == DATA:
                numbers.append(int.from_bytes(frame[1][32:36], "big"))
        assert numbers == list(range(count))
        assert rig.link.drops() == {}
        await session.send(b"".join(frames))
        await until(lambda: len(rig.delivered) == count)
        assert [int.from_bytes(payload[:4], "big") for _, payload in rig.delivered] == list(range(count))


@pytest.mark.usefixtures("trusted")
async def test_a_certificate_for_another_host_is_refused(mock_clock: MockClock, relay: TinyRelay) -> None:
    await refused(relay, join(relay, host="other.example.net"), "Hostname mismatch")


async def test_a_certificate_that_nobody_vouches_for_is_refused(
    mock_clock: MockClock, relay: TinyRelay
) -> None:
    await refused(relay, join(relay), "the relay's certificate: unable to get local issuer certificate")


async def test_the_pinned_key_is_enough_and_another_one_is_not(mock_clock: MockClock) -> None:
    context = server_context("whoever.example.net")
    with TinyRelay(tls=context) as relay:
        await refused(
            relay, join(relay, pin=bytes(32)), f"and the join string says pin={format_pin(bytes(32))}"
        )
    with TinyRelay(tls=context) as relay:
        pinned = join(relay, pin=pin_of(certificate_of(context)))
        async with running(relay, SECURE, join=pinned) as rig:
            await welcomed(relay, rig)


async def test_a_certificate_that_only_openssl_can_read_is_refused_and_ends_nothing(
    mock_clock: MockClock, tmp_path: Path
) -> None:
    """OpenSSL doesn't mind a version 4, which there isn't; with a pin nothing else looks at it before us."""
    key = ec.generate_private_key(ec.SECP256R1())
    shown = certificate(key, HOST).replace(bytes.fromhex("a003020102"), bytes.fromhex("a003020103"), 1)
    with pytest.raises(OSError, match="can't be read"):
        pin_of(shown)
    file = tmp_path / "shown.pem"
    private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    file.write_bytes(ssl.DER_cert_to_PEM_cert(shown).encode() + private)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(file)
    with TinyRelay(tls=context) as relay:
        await refused(
            relay, join(relay, pin=bytes(32)), "certificate can't be read: 3 is not a valid X509 version"
        )


def test_a_pin_is_the_keys_and_outlives_its_certificates() -> None:
    """RFC 7469: a relay that renews its certificate keeps its join strings."""
    key = ec.generate_private_key(ec.SECP256R1())
    one, other = (certificate(key, name) for name in ("one.example.net", "other.example.net"))
    assert one != other
    assert pin_of(one) == pin_of(other) != pin_of(certificate(ec.generate_private_key(ec.SECP256R1()), "one"))


def certificate(key: ec.EllipticCurvePrivateKey, name: str) -> bytes:
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    now = datetime.now(UTC)
    builder = x509.CertificateBuilder(subject, subject, key.public_key(), x509.random_serial_number())
    signed = builder.not_valid_before(now).not_valid_after(now + timedelta(days=1)).sign(key, hashes.SHA256())
    return signed.public_bytes(Encoding.DER)


def certificate_of(context: ssl.SSLContext) -> bytes:
    """The certificate that a server with `context` shows, by a handshake in memory."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    anything = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    anything.check_hostname, anything.verify_mode = False, ssl.CERT_NONE
    client = anything.wrap_bio(to_client, to_server)
    server = context.wrap_bio(to_server, to_client, server_side=True)
    for side in (client, server, client):
        try:
            side.do_handshake()
        except ssl.SSLWantReadError:
            continue
    certificate = client.getpeercert(binary_form=True)
    assert certificate is not None
    return certificate


async def test_a_relay_that_speaks_no_tls_is_told_as_such(mock_clock: MockClock) -> None:
    with TinyRelay() as relay:
        async with running(relay, SECURE, join=join(relay)) as rig:
            session = await relay.accept()
            await session.send(b"SSH-2.0-OpenSSH_9.2\r\n")
            await until(lambda: rig.link.status()["state"] == "waiting")
            assert "TLS: " in str(rig.link.status()["reason"])


async def test_a_relay_that_stalls_within_the_handshake_is_left(mock_clock: MockClock) -> None:
    with TinyRelay() as relay:
        async with running(relay, SECURE, join=join(relay)) as rig:
            await relay.accept()
            await settle()
            mock_clock.jump(10.0)
            await until(lambda: rig.link.status()["state"] == "waiting")
            assert rig.link.status()["reason"] == "TLS: no answer within 10 s"


@pytest.mark.usefixtures("trusted")
async def test_a_tls_relay_must_prove_itself_all_the_same(mock_clock: MockClock, relay: TinyRelay) -> None:
    async with running(relay, SECURE, join=replace(join(relay), key=PEER)) as rig:
        session = await relay.accept()
        with pytest.raises((AssertionError, trio.BrokenResourceError)):
            await session.admit(RELAY.private, GATE.admit, Welcome())
        await until(lambda: rig.link.status()["state"] == "waiting")
        assert "is pinned" in str(rig.link.status()["reason"])


@pytest.mark.usefixtures("trusted")
async def test_a_silent_tls_relay_is_found(mock_clock: MockClock, relay: TinyRelay) -> None:
    async with running(relay, SECURE, join=join(relay)) as rig:
        session = await welcomed(relay, rig)
        for _ in range(24):
            await settle()
            mock_clock.jump(0.5)
        await until(lambda: rig.link.status()["state"] == "waiting")
        assert await session.expect(PING)


async def refused(relay: TinyRelay, join: JoinString, why: str) -> None:
    """The link says why it doesn't talk to this relay, and has not said its key."""
    async with running(relay, SECURE, join=join) as rig:
        session = await relay.accept()
        with pytest.raises((trio.BrokenResourceError, AssertionError)):
            await session.expect(0x01)
        await until(lambda: rig.link.status()["state"] == "waiting")
        assert why in str(rig.link.status()["reason"])
