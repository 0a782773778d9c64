"""The public address that a cloud's metadata service knows: AWS's instance metadata service, version 2.

The address is mapped to the instance one to one, every port. Asked for only where the machine looks like one
of AWS's: 169.254.169.254 is any link's neighbour elsewhere.
"""

from __future__ import annotations

import socket
from ipaddress import IPv4Address
from pathlib import Path

import h11
import trio

from relayd import marks
from relayd.observe import log

ADDRESS, PORT = "169.254.169.254", 80
LIMIT_S = 1.0
"""For both questions. It is the hypervisor that answers: in a millisecond, or not at all."""

TOKEN_S = 60
MAX_BYTES = 4096
"""Of an answer: a token has 56 bytes, an address 15."""

_TOKEN = "/latest/api/token"
_PUBLIC = "/latest/meta-data/public-ipv4"

SIGNS = {
    "/sys/devices/virtual/dmi/id/sys_vendor": "Amazon EC2",
    "/sys/devices/virtual/dmi/id/board_vendor": "Amazon EC2",
    "/sys/hypervisor/uuid": "ec2",
}
"""File -> how it begins on an AWS machine (Nitro ones, and Xen's before them)."""


class NoMetadataError(Exception):
    """The text says why."""


def looks_like_aws(root: Path = Path("/")) -> bool:
    """Whether the machine is one of AWS's. `root` stands for the file system, for tests."""
    for name, beginning in SIGNS.items():
        try:
            if (root / name.lstrip("/")).read_text().startswith(beginning):
                return True
        except (OSError, UnicodeDecodeError):  # no such file: not this kind of machine
            continue
    return False


async def aws_public_address() -> IPv4Address:
    """The instance's public IPv4 address. Raises NoMetadataError."""
    try:
        with trio.fail_after(LIMIT_S):
            lifetime = ("x-aws-ec2-metadata-token-ttl-seconds", str(TOKEN_S))
            token = await _call("PUT", _TOKEN, lifetime)
            text = await _call("GET", _PUBLIC, ("x-aws-ec2-metadata-token", token.decode("latin-1")))
            return IPv4Address(text.decode("ascii").strip())
    except trio.TooSlowError as error:
        raise NoMetadataError(f"no answer within {LIMIT_S:g} s") from error
    except OSError as error:
        raise NoMetadataError(error.strerror or str(error)) from error
    except trio.BrokenResourceError as error:  # what trio makes of an OSError in a stream
        raise NoMetadataError(f"the connection broke: {error.__cause__ or error}") from error
    except (ValueError, h11.RemoteProtocolError, h11.LocalProtocolError) as error:
        raise NoMetadataError(f"what answers at {ADDRESS} is not AWS's metadata service: {error}") from error


async def _call(method: str, target: str, header: tuple[str, str]) -> bytes:
    """The body of a 200. Raises OSError, ValueError, h11's errors, NoMetadataError for another status."""
    connection = h11.Connection(h11.CLIENT, max_incomplete_event_size=MAX_BYTES)
    body = b""
    with trio.socket.socket(socket.AF_INET, socket.SOCK_STREAM) as sock:
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, marks.FWMARK)
        except PermissionError:
            log.get().debug("metadata.unmarked", reason="no CAP_NET_ADMIN")
        await sock.connect((ADDRESS, PORT))
        stream = trio.SocketStream(sock)
        headers = [("host", ADDRESS), ("connection", "close"), ("content-length", "0"), header]
        request = connection.send(h11.Request(method=method, target=target, headers=headers))
        await stream.send_all((request or b"") + (connection.send(h11.EndOfMessage()) or b""))
        while True:
            event = connection.next_event()
            if event is h11.NEED_DATA:
                connection.receive_data(await stream.receive_some(MAX_BYTES))
            elif isinstance(event, h11.Response):
                if event.status_code != 200:
                    raise NoMetadataError(f"{target}: status {event.status_code}")
            elif isinstance(event, h11.Data):
                body += event.data
                if len(body) > MAX_BYTES:
                    raise ValueError("its answer has no end")
            elif isinstance(event, h11.EndOfMessage):
                return body
            else:
                raise ValueError(f"its connection ended: {event!r}")
