"""TLS at the relay: the certificate, and connections of which the data plane sees the plain text.

    a byte that begins a ClientHello -> TLS handshake -> a pair of sockets: one end is the connection that the
    doorway and the data plane see, the other is pumped to and from the TLS stream by two tasks

So what holds for plain connections holds for these: limits, queues, fairness, liveness are in one place, and
a data plane that polls sockets has sockets to poll. It costs two descriptors and a copy more; correct first.
"""

from __future__ import annotations

import hashlib
import os
import ssl
from dataclasses import dataclass
from pathlib import Path

from relayd.config import RelayConfig
from relayd.errors import ConfigError, HostError

KEY = "relay-tls.key"
CERTIFICATE = "relay-tls.pem"
"""In the state directory, when they are of the relay's own making."""


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """Where certificate and key are."""

    certificate: Path
    key: Path
    self_signed: bool

    @classmethod
    def of(cls, config: RelayConfig) -> TlsFiles | None:
        """None: no TLS. (That the settings go together was seen when they were read.)"""
        if config.tls_self_signed:
            state = Path(config.state_dir)
            return cls(state / CERTIFICATE, state / KEY, self_signed=True)
        if config.tls_cert is None or config.tls_key is None:
            return None
        return cls(Path(config.tls_cert), Path(config.tls_key), self_signed=False)

    @property
    def paths(self) -> tuple[Path, ...]:
        """To watch."""
        return (self.certificate, self.key)

    def load(self) -> ssl.SSLContext:
        """A context with what is in the files now. Reads them: it may block.

        Raises ConfigError for what isn't a certificate and its key, HostError when one can't be read."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        # A resumed session saves nothing that counts for a connection that lasts for days.
        context.num_tickets = 0
        context.options |= ssl.OP_NO_TICKET
        for path in self.paths:
            try:
                path.open("rb").close()
            except OSError as error:
                who = f" (for user {os.geteuid()})" if isinstance(error, PermissionError) else ""
                raise HostError(f"cannot read {path}: {error.strerror}{who}") from error
        try:
            # Never asks for a passphrase: a relay starts without anybody there.
            context.load_cert_chain(self.certificate, self.key, password=lambda: b"")
        except (ssl.SSLError, OSError, ValueError) as error:
            raise ConfigError(
                f"not a certificate with its key: {getattr(error, 'reason', None) or error}",
                source=str(self.certificate),
                hint=f"PEM, the chain after the certificate; the key, without a passphrase, in {self.key}",
            ) from error
        return context

    def pin(self) -> bytes:
        """SHA-256 of the certificate's public key (RFC 7469, section 2.4). Raises as `load` does."""
        # Imported where it is needed: a relay without TLS has no use for its 5 MB.
        from cryptography import x509
        from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

        try:
            certificate = x509.load_pem_x509_certificate(self.certificate.read_bytes())
        except OSError as error:
            raise HostError(f"cannot read {self.certificate}: {error.strerror}") from error
        except ValueError as error:
            raise ConfigError(f"not a certificate: {error}", source=str(self.certificate)) from error
        spki = certificate.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        return hashlib.sha256(spki).digest()


@dataclass(frozen=True, slots=True)
class Tls:
    """What the relay speaks TLS with."""

    files: TlsFiles
    context: ssl.SSLContext
    only: bool
    """Whether agents that don't speak TLS are refused."""


def tls_paths(config: RelayConfig) -> tuple[Path, ...]:
    """The files to watch."""
    files = TlsFiles.of(config)
    return files.paths if files is not None else ()


def load_tls(config: RelayConfig) -> Tls | None:
    """None: no TLS. A self-signed certificate is made where there is none. Reads files: it may block. Raises
    ConfigError and HostError."""
    files = TlsFiles.of(config)
    if files is None:
        return None
    if files.self_signed:
        from relayd.relay.self_signed import make_self_signed

        make_self_signed(Path(config.state_dir), host=config.host)
    return Tls(files, files.load(), only=config.tls_only)
