"""Removes from a host what the inventory lists (see `host_rules`), and nothing else.

It looks, removes, and looks again, until a look finds nothing, for at most ROUNDS: duplicates, and what
somebody else puts back meanwhile, are seen. What fails is told, and doesn't keep the rest from going.
Whatever is there or not at the beginning, also after a removal that was interrupted, the end is the same.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import trio

from relayd.config import KEY_FILE
from relayd.errors import HostError
from relayd.kernel import hints, links, ownership
from relayd.kernel.device import Interface
from relayd.kernel.firewall import Chain, Firewall
from relayd.kernel.host_rules import is_mark_rule, is_table_rule
from relayd.kernel.routing import Routing, RoutingChanges
from relayd.kernel.state_dir import SYSCTLS, is_ours
from relayd.kernel.sysctls import Sysctls
from relayd.keys import PrivateKey, PublicKey

ROUNDS = 5
MAX_KEY_BYTES = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """One thing of the inventory that is there, and how it goes."""

    kind: str
    """"firewall", "route", "rule", "interface", "sysctl" or "file"."""

    what: str
    remove: Callable[[], Awaitable[None]]

    def __str__(self) -> str:
        return self.what


@dataclass(slots=True)
class Outcome:
    """What came of it. `left` and `failed` are empty when all is gone."""

    removed: list[Item] = field(default_factory=list)
    left: list[Item] = field(default_factory=list)
    """There at the last look. Of a dry run: all that there is."""

    failed: list[str] = field(default_factory=list)
    """Why; one line each."""

    kept: list[str] = field(default_factory=list)
    """What looks like relayd's and isn't, and why it was left alone."""

    @property
    def is_clean(self) -> bool:
        """Whether nothing is left."""
        return not self.left and not self.failed


class InterfaceDevice:
    """The interface as cleanup sees it; tests have one in memory."""

    async def look(self, name: str) -> tuple[links.Link | None, Interface | None]:
        """See ownership.look."""
        return await ownership.look(name)

    async def remove(self, name: str) -> None:
        """See links.remove."""
        await links.remove(name)


class Cleanup:
    """Everything that relayd added for one interface, or for several of its own."""

    def __init__(
        self,
        interface: str,
        state_dir: Path,
        *,
        routing: Routing,
        sysctls: Sysctls,
        firewall: Firewall,
        device: InterfaceDevice | None = None,
        others: Sequence[str] = (),
        controls: Sequence[Path] = (),
        with_files: bool = True,
    ) -> None:
        """`others` are more interfaces. `controls` are sockets that killed agents leave. `with_files` off:
        they and all that is in `state_dir` stay, for a rebuild of the same node."""
        self._controls = controls
        self._interfaces, self._state_dir, self._with_files = (interface, *others), state_dir, with_files
        self._routing, self._sysctls, self._firewall = routing, sysctls, firewall
        self._device = device or InterfaceDevice()
        # The files go, too: what they say is read before that.
        self._own_key = _public_key(state_dir / KEY_FILE)
        self._about_to_make = {name: ownership.about_to_make(state_dir, name) for name in self._interfaces}
        self._kept: dict[str, str] = {}

    async def run(
        self, *, dry_run: bool = False, told: Callable[[Item], None] = lambda item: None
    ) -> Outcome:
        """Remove it all; `told` is called for each thing that went, or that would go."""
        outcome = Outcome()
        if dry_run:
            outcome.left = await self._look(outcome.failed)
            for item in outcome.left:
                told(item)
        else:
            await self._remove_all(outcome, told)
        outcome.kept = list(self._kept.values())
        return outcome

    async def _remove_all(self, outcome: Outcome, told: Callable[[Item], None]) -> None:
        for _ in range(ROUNDS):
            failed: list[str] = []
            outcome.failed, outcome.left = failed, await self._look(failed)
            if not outcome.left:
                return
            progress = False
            for item in outcome.left:
                try:
                    await item.remove()
                except HostError as error:
                    failed.append(str(error))
                else:
                    progress = True
                    outcome.removed.append(item)
                    told(item)
            if not progress:
                return
        outcome.failed = []
        outcome.left = await self._look(outcome.failed)

    # --- what is there ---

    async def _look(self, failed: list[str]) -> list[Item]:
        """What there is, in the order in which it should go: traffic that is let through first, keys last.

        What can't be looked at goes to `failed`.
        """
        found: list[Item] = []
        self._kept.clear()
        sources = [self._in_firewall(), self._in_routing(), self._links(), self._switches()]
        if self._with_files:
            sources.append(self._files())
        for source in sources:
            try:
                found += [item async for item in source]
            except HostError as error:
                failed.append(str(error))
        return found

    async def _in_firewall(self) -> AsyncIterator[Item]:
        for chain in await self._firewall.chains():
            for _ in chain.ours:

                async def remove(chain: Chain = chain) -> None:
                    await self._firewall.delete(chain)

                yield Item(kind="firewall", what=str(chain), remove=remove)

    async def _in_routing(self) -> AsyncIterator[Item]:
        state = await self._routing.read()
        for route in state.routes:
            change = RoutingChanges(remove_routes=(route,))
            yield Item(kind="route", what=str(route), remove=self._write(change))
        for rule in state.rules:
            if is_table_rule(rule) or is_mark_rule(rule):
                change = RoutingChanges(remove_rules=(rule,))
                yield Item(kind="rule", what=str(rule), remove=self._write(change))

    def _write(self, changes: RoutingChanges) -> Callable[[], Awaitable[None]]:
        async def write() -> None:
            await self._routing.write(changes)

        return write

    async def _links(self) -> AsyncIterator[Item]:
        for name in self._interfaces:
            link, interface = await self._device.look(name)
            if link is None:
                continue
            if interface is None:
                self._kept[name] = str(hints.other_kind(name, link.kind, []))
                continue
            if not ownership.belongs_to_relayd(
                link, interface, self._own_key, about_to_make=self._about_to_make[name]
            ):
                self._kept[name] = f"{name} is WireGuard that relayd didn't make: it was left alone"
                if interface.public_key == self._own_key:  # run by a process: it goes with that
                    self._kept[name] = (
                        f"{name} is run by a userspace WireGuard, with our key: end that process"
                    )
                continue

            async def remove(name: str = name) -> None:
                await self._device.remove(name)

            yield Item(kind="interface", what=f"interface {name}", remove=remove)

    async def _switches(self) -> AsyncIterator[Item]:
        for old in self._sysctls.changed():

            async def restore(old: object = old) -> None:
                self._sysctls.restore(old)  # type: ignore[arg-type]  # bound early, for the loop

            yield Item(kind="sysctl", what=f"{old} (as it was)", remove=restore)

    async def _files(self) -> AsyncIterator[Item]:
        await trio.lowlevel.checkpoint()
        ours, others, removable = self._list()
        for path in ours:
            yield Item(kind="file", what=f"file {path}", remove=self._later(self._unlink, path))
        if others:
            self._kept[str(self._state_dir)] = (
                f"{self._state_dir} has other things in it: {', '.join(others)}"
            )
        elif removable:
            yield Item(
                kind="file",
                what=f"directory {self._state_dir}",
                remove=self._later(self._rmdir, self._state_dir),
            )

    def _list(self) -> tuple[list[Path], list[str], bool]:
        """-> files of ours, names of others, and whether the state directory itself may go"""
        directory = self._state_dir
        try:
            ours = [path for path in self._controls if path.is_socket()]
        except PermissionError as error:
            raise HostError(f"cannot look at {error.filename}: {error.strerror}") from error
        try:
            names = sorted(os.listdir(directory))
        except FileNotFoundError:
            return ours, [], False
        except OSError as error:
            raise HostError(f"cannot look into {directory}: {error.strerror}") from error
        # The memory of the old values goes last: what it lists has been restored by then.
        names.sort(key=lambda name: name == SYSCTLS)
        of_ours = {name for name in names if any(is_ours(name, one) for one in self._interfaces)}
        ours += [directory / name for name in names if name in of_ours]
        others = [name for name in names if name not in of_ours]
        # Of a mount (a volume in a container) only what is in it can go.
        return ours, others, not os.path.ismount(directory) and not directory.is_symlink()

    @staticmethod
    def _later(function: Callable[[Path], None], path: Path) -> Callable[[], Awaitable[None]]:
        async def go() -> None:
            await trio.lowlevel.checkpoint()
            try:
                function(path)
            except FileNotFoundError:
                return
            except OSError as error:
                raise HostError(f"cannot remove {path}: {error.strerror}") from error

        return go

    def _unlink(self, path: Path) -> None:
        if path.name == SYSCTLS and self._sysctls.changed():
            raise HostError(f"{path} is kept: it has the old values of sysctls that couldn't be restored")
        path.unlink()

    def _rmdir(self, path: Path) -> None:
        path.rmdir()


def _public_key(path: Path) -> PublicKey | None:
    """The public key of the key file, None when there is none that could be read."""
    try:
        with path.open("rb") as file:
            return PrivateKey.from_base64(
                file.read(MAX_KEY_BYTES).decode("ascii", "replace").strip()
            ).public()
    except (OSError, ValueError):
        return None


def items_as_json(items: list[Item]) -> list[dict[str, str]]:
    """For --json."""
    return [{"kind": item.kind, "what": item.what} for item in items]
