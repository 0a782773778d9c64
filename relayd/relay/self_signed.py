"""A certificate that nobody vouches for: agents know it by the pin in the join string."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import NameOID

from relayd.errors import ConfigError
from relayd.relay.tls import CERTIFICATE, KEY
from relayd.secret_file import read_or_make

VALID_YEARS = 50
"""The pin says whose it is, and nothing else is looked at: it need not end before the relay does. And clocks
may be years off: it begins at the epoch."""

_BEGIN = datetime(1970, 1, 2, tzinfo=UTC)


def make_self_signed(state_dir: Path, *, host: str | None) -> None:
    """Make key and certificate, each unless it is there. Raises ConfigError and HostError."""
    key = read_or_make(state_dir / KEY, make=_new_key, parse=_parse_key)

    def make() -> str:
        return _certificate(key, host)

    read_or_make(state_dir / CERTIFICATE, make=make, parse=lambda text: _check(text, key))


def _new_key() -> str:
    key = ec.generate_private_key(ec.SECP256R1())
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode().strip()


def _parse_key(text: str) -> ec.EllipticCurvePrivateKey:
    try:
        key = load_pem_private_key(text.encode(), password=None)
    except (ValueError, TypeError) as error:
        raise ValueError(f"holds no private key: {error}") from None
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise ValueError("holds another kind of key than relayd makes: --tls-key takes any")
    return key


def _certificate(key: ec.EllipticCurvePrivateKey, host: str | None) -> str:
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "relayd relay")])
    builder = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(_BEGIN)
        .not_valid_after(datetime.now(UTC) + timedelta(days=365 * VALID_YEARS))
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
    )
    if host is not None:
        builder = builder.add_extension(x509.SubjectAlternativeName([_general_name(host)]), critical=False)
    return builder.sign(key, hashes.SHA256()).public_bytes(Encoding.PEM).decode().strip()


def _general_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _check(text: str, key: ec.EllipticCurvePrivateKey) -> None:
    try:
        certificate = x509.load_pem_x509_certificate(text.encode())
    except ValueError as error:
        raise ValueError(f"holds no certificate: {error}") from None
    if certificate.public_key() != key.public_key():
        raise ConfigError(f"is of another key than {KEY}", source=CERTIFICATE, hint="remove one of the two")
