"""Which loopback address stands for which peer: derived from its public key, so the same after any restart.

The kernel keeps the endpoint of a relayed peer while the agent is away; it stays true only if the agent
gives the peer the same address when it comes back. So the address is a hash of the key. Two keys of a
thousand peers share one in a tenth of all meshes: then the later one gets the next hash, and because
that depends on who else was there, both are remembered in a file. All other addresses need no memory.

The file helps and is never needed: without it, everything is derived anew, and at worst one of two
colliding peers gets another address, which the next reconciliation tells the kernel.
"""

from __future__ import annotations

import contextlib
from hashlib import blake2b
from ipaddress import IPv4Address
from pathlib import Path

import msgspec

from relayd.errors import HostError
from relayd.kernel.state_dir import LOOPBACK, LOOPBACK_BAD, write_json
from relayd.keys import PublicKey
from relayd.marks import PROXY_NETWORK
from relayd.observe import log

FILE_NAME = LOOPBACK

ATTEMPTS = 1000
"""Hashes tried for one key. Were half of the four million addresses taken, ten would do nearly always."""


class _Memory(msgspec.Struct, forbid_unknown_fields=True):
    """The file's content: address by base64 key."""

    version: int
    addresses: dict[str, str]


def derive(key: PublicKey, attempt: int = 0) -> IPv4Address:
    """The address for `key` when the first `attempt` choices are taken.

    All of PROXY_NETWORK is good: the only broadcast addresses of `lo` are the ends of 127.0.0.0/8.
    """
    digest = blake2b(key.raw, digest_size=8, salt=attempt.to_bytes(2, "big"), person=b"relayd lo").digest()
    return PROXY_NETWORK[int.from_bytes(digest, "big") % PROXY_NETWORK.num_addresses]


class LoopbackAddresses:
    """The addresses given so far. What was given stays, for as long as the process lives."""

    def __init__(self, path: Path) -> None:
        """`path` is the file that remembers collisions; it and its directory need not exist.

        A file that can't be read or understood is put aside, told of in the log, and done without.
        """
        self._path = path
        self._log = log.get(file=str(path))
        self._write_failed = False
        self._remembered = self._load()
        self._holders: dict[IPv4Address, PublicKey] = {a: key for key, a in self._remembered.items()}
        self._given: dict[PublicKey, IPv4Address] = dict(self._remembered)

    def address_of(self, key: PublicKey) -> IPv4Address:
        """The address of `key`, in PROXY_NETWORK, no other key's. Raises HostError when none is free."""
        address = self._given.get(key)
        if address is not None:
            return address
        collided: list[PublicKey] = []
        for attempt in range(ATTEMPTS):
            address = derive(key, attempt)
            holder = self._holders.setdefault(address, key)
            if holder == key:
                break
            collided.append(holder)
        else:
            raise HostError(f"peer {key.short()}: no loopback address is free, {len(self._given)} are in use")
        self._given[key] = address
        if collided:
            self._log.info("loopback.collided", peer=key.short(), address=str(address))
            self._remembered[key] = address
            for other in collided:
                self._remembered[other] = self._given[other]
            self._save()
        return address

    def _load(self) -> dict[PublicKey, IPv4Address]:
        try:
            memory = msgspec.json.decode(self._path.read_bytes(), type=_Memory)
            if memory.version != 1:
                raise ValueError(f"version {memory.version}, this program knows 1")
            addresses: dict[PublicKey, IPv4Address] = {}
            for text, address in memory.addresses.items():
                addresses[PublicKey.from_base64(text)] = IPv4Address(address)
            if len(set(addresses.values())) < len(addresses):
                raise ValueError("one address for two keys")
            if strange := next((a for a in addresses.values() if a not in PROXY_NETWORK), None):
                raise ValueError(f"{strange} is not in {PROXY_NETWORK}")
        except FileNotFoundError:
            return {}
        except OSError as error:
            self._log.warning("loopback.unreadable", error=error.strerror)
            return {}
        except ValueError as error:  # msgspec's errors are ValueErrors
            kept = self._path.with_name(LOOPBACK_BAD)
            with contextlib.suppress(OSError):  # a read-only directory: the next start says the same again
                self._path.replace(kept)
            self._log.warning("loopback.malformed", error=str(error), kept=str(kept))
            return {}
        return addresses

    def _save(self) -> None:
        """Replace the file in one step. When that fails, the log says so once and the addresses hold on."""
        memory = _Memory(version=1, addresses={str(key): str(a) for key, a in self._remembered.items()})
        try:
            write_json(self._path, memory)
        except HostError as error:
            if not self._write_failed:
                self._log.warning("loopback.unsaved", error=str(error))
            self._write_failed = True
        else:
            self._write_failed = False
