"""What a relay keeps to be known by and to let agents in: its key, its tokens, its list; and the join string.

STATE/relay.key      made at the first start, 0600
STATE/relay.token    likewise, unless there is another lock: a list of keys, a token file, or none at all
"""

from __future__ import annotations

import contextlib
import socket
from dataclasses import dataclass, field
from pathlib import Path

from relayd.config import RelayConfig
from relayd.endpoints import Endpoint
from relayd.errors import ConfigError, HostError
from relayd.join import JoinString
from relayd.keys import PublicKey
from relayd.relay.admission import Gate, parse_allow_list, parse_tokens
from relayd.relay.tls import Tls, TlsFiles, load_tls
from relayd.secret_file import (
    RELAY_TOKEN,
    new_token,
    read_or_make,
    read_secret,
    relay_key,
)
from relayd.wire.relay_handshake import RelayIdentity

MAX_LIST_BYTES = 8 << 20
"""An allow-list of some 180,000 keys."""


@dataclass(frozen=True, slots=True)
class AdmissionFiles:
    """Where it stands who is let in. None: there is no such lock."""

    tokens: Path | None
    tokens_are_ours: bool
    """Whether the token file is made when it isn't there."""
    allowed: Path | None
    open: bool
    cluster: bool = False
    """Whether the list of keys is a cluster's, and none of a file's. Nobody is on it at first."""

    @classmethod
    def of(cls, config: RelayConfig) -> AdmissionFiles:
        """A token of the relay's own making is the lock where the configuration names no other."""
        if config.token_file:
            tokens, ours = Path(config.token_file), False
        elif config.allow_list or config.open or config.admit:
            tokens, ours = None, False
        else:
            tokens, ours = Path(config.state_dir) / RELAY_TOKEN, True
        allowed = Path(config.allow_list) if config.allow_list else None
        return cls(tokens, ours, allowed, config.open, cluster=config.admit is not None)

    @property
    def paths(self) -> tuple[Path, ...]:
        """The files that there are to watch."""
        return tuple(path for path in (self.tokens, self.allowed) if path is not None)

    def read(self, *, make: bool) -> Gate:
        """The gate that they describe now; with `make` a first token is made. Reads files: it may block.

        Raises ConfigError with the file and the line for what is wrong in one, HostError for one that can't
        be read.
        """
        tokens: tuple[str, ...] = ()
        if self.tokens is not None:
            source = str(self.tokens)

            def parse(text: str) -> tuple[str, ...]:
                return parse_tokens(text, source=source)

            if make and self.tokens_are_ours:
                tokens = read_or_make(self.tokens, make=new_token, parse=parse)
            else:
                tokens = read_secret(self.tokens, parse=parse)
        allowed = frozenset[PublicKey]() if self.cluster else None
        if self.allowed is not None:
            allowed = parse_allow_list(_read_list(self.allowed), source=str(self.allowed))
        return Gate(tokens=tokens, allowed=allowed, open=self.open)


@dataclass(frozen=True, slots=True)
class Credentials:
    """What was read at start."""

    identity: RelayIdentity
    files: AdmissionFiles
    gate: Gate = field(repr=False)
    tls: Tls | None


def load_credentials(config: RelayConfig) -> Credentials:
    """Read them; what isn't there yet is made. Raises ConfigError and HostError."""
    files = AdmissionFiles.of(config)
    # The files that an operator wrote are looked at first: nothing is made for a start that fails.
    gate = files.read(make=True)
    return Credentials(RelayIdentity.of(relay_key(Path(config.state_dir))), files, gate, load_tls(config))


def join_string(config: RelayConfig, credentials: Credentials, port: int) -> JoinString:
    """What an agent needs to know of this relay, which listens on `port`."""
    return joined(config, credentials.identity.public, credentials.gate, port)


def joined(config: RelayConfig, key: PublicKey, gate: Gate, port: int) -> JoinString:
    """Likewise, of a relay with this key and this gate. Of TLS it needs its own certificate at the most."""
    tokens = () if gate.open else gate.tokens
    tls = TlsFiles.of(config)
    return JoinString(
        host=config.host or _own_host(config),
        port=port,
        key=key,
        token=tokens[0] if tokens else "",
        tls=tls is not None,
        pin=tls.pin() if tls is not None and tls.self_signed else None,
    )


def _own_host(config: RelayConfig) -> str:
    """The first address that is listened on, the one from which this host reaches others, or its name."""
    for text in config.listen:
        address = Endpoint.parse(text).address
        if not address.is_unspecified:
            return str(address)
    for family, far in ((socket.AF_INET, "192.0.2.1"), (socket.AF_INET6, "2001:db8::1")):
        # Connecting a datagram socket sends nothing: it only asks the kernel which address would be used.
        with contextlib.suppress(OSError), socket.socket(family, socket.SOCK_DGRAM) as sock:
            sock.connect((far, 9))
            return str(sock.getsockname()[0])
    return socket.gethostname()


def _read_list(path: Path) -> str:
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_LIST_BYTES + 1)
    except OSError as error:
        raise HostError(f"cannot read {path}: {error.strerror}") from error
    if len(raw) > MAX_LIST_BYTES:
        raise ConfigError(f"is longer than {MAX_LIST_BYTES} bytes", source=str(path))
    return raw.decode(errors="replace")
