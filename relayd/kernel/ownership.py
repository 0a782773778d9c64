"""An interface that relayd makes: whose it is when there is one already, and how it is kept as it should be.

    what is there under the name                         at start
    nothing                                              made
    something that isn't WireGuard                       refused
    WireGuard with our key                               used as it is; only what is wrong is written
    WireGuard, another key, made by relayd               torn down and made anew, and said so
    WireGuard without key and peers, made by relayd      configured: a start was interrupted
    a userspace WireGuard without key and peers          configured: its process was started for us
    any other WireGuard                                  refused

Who made an interface stands in its alias, which lives as long as it does, whatever becomes of files. For the
moment between making it and naming it, a file says beforehand that we are about to.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import Enum
from pathlib import Path

import msgspec
import trio

from relayd import marks
from relayd.errors import HostError
from relayd.kernel import discover, hints, links
from relayd.kernel.device import NO_KEY, Changes, Interface, PeerSettings, WireGuard, plan
from relayd.kernel.host_rules import Applied
from relayd.kernel.netlink import NetlinkWireGuard
from relayd.kernel.state_dir import made_file, read_json, write_json
from relayd.kernel.uapi import UserspaceWireGuard
from relayd.kernel.wireguard import ensure_interface, open_wireguard
from relayd.keys import PrivateKey, PublicKey
from relayd.observe import log

UNDO_TIMEOUT_S = 10.0
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


@dataclass(frozen=True, slots=True, kw_only=True)
class Owned:
    """An interface of ours, as it should be."""

    name: str
    private_key: PrivateKey
    listen_port: int
    mtu: int
    addresses: tuple[links.Address, ...]
    peers: tuple[PeerSettings, ...]


class Start(Enum):
    """What to do about an interface."""

    MAKE = "make"
    USE = "use"
    MAKE_ANEW = "make anew"


class _Made(msgspec.Struct, forbid_unknown_fields=True):
    """The content of the file that says: in this life of the machine, we are about to make it."""

    boot: str
    version: int = 1


def decide(
    link: links.Link | None, interface: Interface | None, own: PublicKey, *, about_to_make: bool
) -> Start:
    """The table above. `interface` is what WireGuard says of `link`; None: nothing.

    `about_to_make`: the file says that an interface of this name was being made, since the machine booted.
    Raises HostError for what isn't ours.
    """
    if link is None:
        return Start.MAKE
    if interface is None:
        raise hints.other_kind(link.name, link.kind, [])
    if interface.public_key == own:
        return Start.USE
    blank = interface.public_key == NO_KEY and not interface.peers
    if link.kind != "wireguard":
        if blank:
            return Start.USE
        raise hints.process_has_other_key(link.name, str(interface.public_key))
    if blank and (about_to_make or link.alias == links.MADE_HERE):
        return Start.USE
    if link.alias == links.MADE_HERE:
        return Start.MAKE_ANEW
    raise hints.not_ours(link.name, str(interface.public_key))


def belongs_to_relayd(
    link: links.Link, interface: Interface, own: PublicKey | None, *, about_to_make: bool = False
) -> bool:
    """Whether cleanup may remove it: a kernel's WireGuard that has our alias, our key, or our mark; or none
    yet, where a start was killed in between (`about_to_make` is as in `decide`).

    `own` is the key in the state directory, None when there is none (any more).
    """
    if link.kind != "wireguard":
        return False
    if about_to_make and interface.public_key == NO_KEY and not interface.peers:
        return True
    return link.alias == links.MADE_HERE or interface.public_key == own or interface.fwmark == marks.FWMARK


async def look(name: str) -> tuple[links.Link | None, Interface | None]:
    """The link `name`, and what WireGuard says of it; None for what there isn't. Raises HostError."""
    link = await links.find(name)
    if link is None:
        return None, None
    if link.kind == "wireguard":
        return link, await NetlinkWireGuard(name).dump()
    if link.kind == "tun" and name in await discover.wireguard_names():
        return link, await UserspaceWireGuard(name).dump()
    return link, None


@dataclass(frozen=True, slots=True, kw_only=True)
class Opened:
    """An interface, and whether it was made for that."""

    wireguard: WireGuard
    made: bool

    async def undo(self) -> None:
        """After a start that failed: what was made goes again, what was there stays."""
        self.wireguard.close()
        if self.made:
            with trio.CancelScope(shield=True, deadline=trio.current_time() + UNDO_TIMEOUT_S):
                await links.remove(self.wireguard.name)


async def open_owned(wanted: Owned, state_dir: Path) -> Opened:
    """At start: the interface, made if need be, and as `wanted` says. Raises HostError.

    A peer that has a session keeps its endpoint, and so does one that is on the relay. An interface that was
    made here goes again when the rest fails.
    """
    link, interface = await look(wanted.name)
    own = wanted.private_key.public()
    start = decide(link, interface, own, about_to_make=about_to_make(state_dir, wanted.name))
    logger = log.get(interface=wanted.name)
    if start is Start.MAKE_ANEW and interface is not None:
        logger.warning(
            "interface.torn_down",
            reason="it has another key; it was made by relayd, and is made anew",
            key_before=interface.public_key,
            key=own,
        )
        await links.remove(wanted.name)
    elif start is Start.USE and link is not None:
        logger.info("interface.reused", public_key=own)
        if link.kind == "wireguard" and interface is not None and interface.public_key == NO_KEY:
            await links.mark_as_ours(wanted.name)
    if start is not Start.USE:
        try:
            write_json(state_dir / made_file(wanted.name), _Made(boot=_boot()))
        except HostError as error:  # a full disk: it is for a kill in the next millisecond, and no more
            logger.warning("state.unwritable", reason=str(error))
    made = await ensure_interface(wanted.name, mtu=wanted.mtu, addresses=wanted.addresses)
    try:
        wireguard = await open_wireguard(wanted.name)
        try:
            await configure(wanted, wireguard)
        except BaseException:
            wireguard.close()
            raise
    except BaseException:
        if made:
            with trio.CancelScope(shield=True, deadline=trio.current_time() + UNDO_TIMEOUT_S):
                await links.remove(wanted.name)
        raise
    return Opened(wireguard=wireguard, made=made)


async def keep_owned(wanted: Owned, state_dir: Path, *, endpoints: bool = False) -> Applied:
    """While the agent runs: put right what differs. -> what was, and what of it couldn't be

    Peers' endpoints are left alone, or with `endpoints` set where there is no session and no relay.
    Raises HostError when the interface can't be read or made, also when the name has been given to another
    one meanwhile: nothing that leads into it should be written then.
    """
    done = Applied()
    link, interface = await look(wanted.name)
    own = wanted.private_key.public()
    if decide(link, interface, own, about_to_make=False) is Start.MAKE:
        (await open_owned(wanted, state_dir)).wireguard.close()
        done.written.append(f"interface {wanted.name}")
        return done
    assert link is not None  # or there would be nothing to use
    assert interface is not None
    written = []
    before = await links.addresses_of(wanted.name)
    if not link.is_up:
        written.append(f"interface {wanted.name} up")
    if link.mtu != wanted.mtu:
        written.append(f"mtu {wanted.mtu}")
    written += [f"address {address}" for address in wanted.addresses if address not in before]
    written += [f"no address {address}" for address in before if address not in wanted.addresses]
    try:
        if written:
            await ensure_interface(wanted.name, mtu=wanted.mtu, addresses=wanted.addresses)
        done.written += written
    except HostError as error:
        done.problems.append(str(error))
    try:
        if _changes(wanted, interface, endpoints=endpoints) != Changes():
            wireguard = await open_wireguard(wanted.name)
            try:
                await configure(wanted, wireguard, endpoints=endpoints)
            finally:
                wireguard.close()
            done.written.append("key, port, mark or peers")
    except HostError as error:
        done.problems.append(str(error))
    return done


def _changes(wanted: Owned, current: Interface, *, endpoints: bool) -> Changes:
    return plan(
        current,
        wanted.private_key,
        listen_port=wanted.listen_port,
        fwmark=marks.FWMARK,
        peers=settings_for(wanted.peers, current, endpoints=endpoints),
        now=time.time(),
    )


async def configure(wanted: Owned, wireguard: WireGuard, *, endpoints: bool = True) -> bool:
    """Key, port, mark and peers. -> was anything written? Raises HostError.

    Endpoints of peers that are on the relay stay; with `endpoints` off, all that there are.
    """
    current = await wireguard.dump()
    return await wireguard.configure(
        wanted.private_key,
        listen_port=wanted.listen_port,
        fwmark=marks.FWMARK,
        peers=settings_for(wanted.peers, current, endpoints=endpoints),
    )


def settings_for(peers: Sequence[PeerSettings], current: Interface, *, endpoints: bool) -> list[PeerSettings]:
    """`peers`, without an endpoint where the one that the interface has is to stay."""
    settings = []
    for peer in peers:
        known = current.peers.get(peer.key)
        has = None if known is None else known.endpoint
        keep = has is not None and (not endpoints or has.address in marks.PROXY_NETWORK)
        settings.append(replace(peer, endpoint=None) if keep else peer)
    return settings


def _boot() -> str:
    try:
        return BOOT_ID.read_text().strip()
    except OSError as error:
        raise HostError(f"cannot read {BOOT_ID}: {error.strerror}") from error


def about_to_make(state_dir: Path, name: str) -> bool:
    """Whether an interface of this name was being made since the machine booted. Raises HostError."""
    made = read_json(state_dir / made_file(name), _Made)
    return made is not None and made.boot == _boot()
