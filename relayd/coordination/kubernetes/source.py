"""The mesh as the cluster's resources say: a `Source` that also keeps this node's own resource.

    followers (meshes, peers, this node) -> view -> own_peer: make it, put it right, or accept its deletion
                                                 -> mesh.meaning -> snapshot(), changed()
                                                 -> remembered on the disk

While the API server is away everything stays as it is, for as long as it takes. At a start, what was
remembered takes its place after GRACE_S.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from math import inf
from typing import Any

import msgspec
import trio

from relayd.coordination.kubernetes import own_peer, resources
from relayd.coordination.kubernetes.api_error import ApiError, UnreachableError
from relayd.coordination.kubernetes.client import MERGE, ApiClient
from relayd.coordination.kubernetes.decoding import decode
from relayd.coordination.kubernetes.follower import Follower
from relayd.coordination.kubernetes.memory import ClusterMemory
from relayd.coordination.kubernetes.mesh import (
    INTERNAL_IP,
    Discovered,
    Meaning,
    Self,
    View,
    api_server,
    meaning,
    own_allowed_ips,
    own_endpoint,
)
from relayd.coordination.kubernetes.notebook import Notebook, Remember
from relayd.coordination.kubernetes.own_peer import Identity, Own
from relayd.coordination.model import Mesh
from relayd.observe import log
from relayd.token_bucket import TokenBucket

GRACE_S = 5.0
"""For the API server at a start; then what was remembered takes its place."""

SETTLE_S = 0.05
"""After a change, for those that come with it: a thousand peers that join are one change of the mesh."""

LOOKS_PER_S, LOOKS_AT_ONCE = 2.0, 20.0
"""Each takes 40 ms of CPU among a thousand peers: one that changes all the time mustn't have all of it."""

CORRECT_EVERY_S = 10.0
"""Between two corrections of the node's own resource."""

FIRST_CORRECTION_S = 1.0
"""Of a start, for the first one: it usually takes some milliseconds."""

DEFAULT_MESH = "default"


class KubernetesSource:
    """One node's view of its cluster."""

    def __init__(
        self,
        client: ApiClient,
        own: Self,
        *,
        remembered: ClusterMemory | None,
        remember: Remember,
        grace_s: float = GRACE_S,
        uniform: Callable[[float, float], float] = random.uniform,
    ) -> None:
        """`remembered` is what `remember` was given in a life before; another node's counts as nothing."""
        if remembered is not None and remembered.node_name != own.name:
            remembered = None
        self._client, self._own, self._grace_s = client, own, grace_s
        self._notebook = Notebook(remembered or ClusterMemory(node_name=own.name), remember)
        self._news, self._meant, self._uncorrected = trio.Event(), trio.Event(), trio.Event()
        self._log = log.get(node=own.name)

        def follower(path: str, kind: type[Any], only: str = "") -> Follower[Any]:
            return Follower(client, path, kind, only=only, changed=self._wake, uniform=uniform)

        self.meshes: Follower[resources.Mesh] = follower(resources.MESHES, resources.Mesh)
        self.peers: Follower[resources.Peer] = follower(resources.PEERS, resources.Peer)
        self.node: Follower[resources.Node] = follower(resources.NODES, resources.Node, own.name)
        self._is_stale, self._correct_at = False, 0.0
        self._meaning: Meaning | None = None
        self._server_url = ""
        if self._memory.mesh is not None:
            self._use_server(self._memory.mesh)
        self.problem = ""
        """Why there is no mesh, or an old one; empty: it is the cluster's."""
        self._own_problem = ""  # why the node's own resource isn't as it should be
        self.endpoint_method = ""
        """How the endpoint in the resource is known, as far as this agent knows."""
        self.discovered = Discovered()
        """What discovery says is this node's endpoint."""
        self._unsure = ""  # the endpoint that was published in this life for want of a better one

    # --- Source ---

    async def snapshot(self) -> Mesh:
        """The mesh, once there is one: a wait that is meant to last."""
        while self._meaning is None:
            await self._meant.wait()
        return self._meaning.mesh

    async def changed(self, seen: Mesh) -> Mesh:
        """See Source."""
        while self._meaning is None or self._meaning.mesh == seen:
            await self._meant.wait()
        return self._meaning.mesh

    # --- what others ask ---

    @property
    def _memory(self) -> ClusterMemory:
        return self._notebook.memory

    @property
    def removed(self) -> bool:
        """Whether this node's resource was deleted under it."""
        return self._memory.removed

    @property
    def meaning(self) -> Meaning | None:
        """What the resources mean, None before the first time."""
        return self._meaning

    @property
    def is_current(self) -> bool:
        """Whether the API server answers, and is followed."""
        return not (self.meshes.problem or self.peers.problem) and self.peers.listing.complete

    def discover(self, found: Discovered) -> None:
        """Discovery has found this node's endpoint. With none in it: the last one stays."""
        if found.endpoint and found != self.discovered:
            self.discovered = found
            self._wake()

    def use(self, own: Self) -> None:
        """The node's own configuration says other things of it from now on."""
        self._own = own
        self._wake()

    def problems(self) -> list[str]:
        """What an operator should know, a line each."""
        lines = [self.problem, self.meshes.problem or self.peers.problem or self.node.problem]
        lines += [self._own_problem, self._notebook.problem]
        if self.removed:
            lines.append(
                f"WireKubePeer {self._own.name} was deleted: this node has no part in the mesh. `relayd "
                f"cleanup` takes the rest off it; to bring it back, make the resource again"
            )
        if self._meaning is not None:
            lines += self._meaning.problems
        bad = self.peers.listing.problems | self.meshes.listing.problems
        lines += [f"{name} can't be read: {why}" for name, why in sorted(bad.items())[:5]]
        return [line for line in dict.fromkeys(lines) if line]

    def status(self) -> dict[str, object]:
        """For `relayd status`."""
        return {
            "node": self._own.name,
            "api_server": self._client.server,
            "current": self.is_current,
            "removed": self.removed,
            "peers": len(self._view().peers),
            "problems": self.problems(),
        }

    # --- the task ---

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Follow the cluster until cancelled. Ready at once: the API server may be away."""
        async with trio.open_nursery() as nursery:
            for follower in (self.meshes, self.peers, self.node):
                await nursery.start(follower.run)
            nursery.start_soon(self._notebook.run)
            nursery.start_soon(self._use_memory_after_grace)
            nursery.start_soon(self._keep_correct)
            task_status.started()
            looks = TokenBucket(LOOKS_PER_S, LOOKS_AT_ONCE, trio.current_time())
            while True:
                await self._look()
                again_at = self._correct_at if self._correct_at > trio.current_time() else inf
                with trio.move_on_at(again_at):
                    await self._news.wait()
                await trio.sleep(max(SETTLE_S, looks.take(1.0, trio.current_time())))
                self._news = trio.Event()

    def _wake(self) -> None:
        self._news.set()

    async def _use_memory_after_grace(self) -> None:
        await trio.sleep(self._grace_s)
        self._is_stale = True
        self._wake()

    async def _look(self) -> None:
        """Do what there is to do about the cluster as it is known now."""
        have_all = self._have_all()
        if have_all:
            view = self._view()
            if view.mesh is not None:
                self._use_server(view.mesh)
            if view.mesh is not None and not await self._keep_own(view, view.mesh):
                return  # its own resource isn't there yet: its address isn't settled
        elif not (self._is_stale and self._memory.mesh is not None):
            return
        self._understand(self._view(), "" if have_all else "from memory: the API server was never reached")

    def _use_server(self, mesh: resources.Mesh) -> None:
        """Turn to the API server that the mesh names, once: when it doesn't answer, the client has others."""
        url, _ = api_server(mesh.spec)
        if url != self._server_url:
            self._client.prefer(url)
        self._server_url = url

    def _understand(self, view: View, problem: str) -> None:
        try:
            meant = meaning(view, self._own, removed=self.removed)
        except ValueError as error:
            if str(error) != self.problem:
                self._log.error("mesh.unusable", reason=str(error))
            self.problem = str(error)
            return
        self.problem = problem
        self._notebook.note(
            msgspec.structs.replace(
                self._memory, mesh=view.mesh, peers=list(view.peers.values()), node=view.node
            )
        )
        before, self._meaning = self._meaning, meant
        for line in meant.problems:
            if before is None or line not in before.problems:
                self._log.warning("mesh.problem", problem=line)
        if before is None or before.mesh != meant.mesh:
            self._meant.set()
            self._meant = trio.Event()

    def _have_all(self) -> bool:
        """Whether the cluster is known. A node that may not be read is done without, but not at once: a
        server that starts refuses everybody, and the resource is to be the node's."""
        node = self.node
        may_not = self._is_stale and node.refused is not None and node.refused.status == 403
        node_known = node.listing.complete or may_not
        return self.meshes.listing.complete and self.peers.listing.complete and node_known

    def _view(self) -> View:
        if not self._have_all():
            known = self._memory
            peers = {peer.metadata.name: peer for peer in known.peers}
            return View(mesh=known.mesh, peers=peers, node=known.node)
        meshes = self.meshes.listing.known
        # One that is called otherwise will do when it is the only one.
        mesh = meshes.get(DEFAULT_MESH) or (next(iter(meshes.values())) if len(meshes) == 1 else None)
        return View(
            mesh=mesh,
            peers=self.peers.listing.known,
            node=self.node.listing.known.get(self._own.name),
        )

    # --- this node's own resource ---

    async def _keep_own(self, view: View, mesh: resources.Mesh) -> bool:
        """-> whether it is there, or accepted that it isn't"""
        peer = view.peers.get(self._own.name)
        if peer is None and self._own.name in self.peers.listing.problems:
            return True  # it is there, and can't be read, which `problems` tells
        node_uid = view.node.metadata.uid if view.node is not None else ""
        before = self._memory.identity
        match own_peer.decide(peer, before, mesh_uid=mesh.metadata.uid, node_uid=node_uid):
            case Own.REMOVED:
                if self.removed:
                    return True
                if not await self._is_gone():
                    return False
                self._log.error(
                    "peer.deleted", peer=self._own.name, hint="routing stops; it is not made again"
                )
                await self._notebook.note_now(msgspec.structs.replace(self._memory, removed=True))
                return True
            case Own.MAKE:
                return await self._make(view)
            case Own.KEEP:
                assert peer is not None
                if self.removed:
                    self._log.warning("peer.restored", peer=self._own.name)
                identity = Identity(mesh.metadata.uid, node_uid or before.node, peer.metadata.uid)
                if self.removed or identity != before:
                    await self._notebook.note_now(
                        msgspec.structs.replace(self._memory, removed=False, identity=identity)
                    )
                if self._meaning is None:  # a start that fails has put it right, all the same
                    with trio.move_on_after(FIRST_CORRECTION_S):
                        await self._correct(view, peer)
                self._uncorrected.set()
                return True

    async def _is_gone(self) -> bool:
        """Ask for the resource by its name. A list may come from a server that lags behind (resourceVersion
        0: the cache of one that is cut off from etcd), and for it the node would cut its tunnels."""
        try:
            body = await self._client.request("GET", own_peer.path_of(self._own.name))
            peer = decode(body, resources.Peer)
        except (ApiError, UnreachableError, ValueError) as error:
            if isinstance(error, ApiError) and error.status in (403, 404):  # may not ask: believe the list
                return True
            self._not_written("peer.not_read", error)
            return False
        if peer.is_gone:
            return True
        self._log.warning("peer.listed_late", peer=self._own.name)
        self.peers.listing.known.setdefault(peer.metadata.name, peer)
        self._wake()
        return False

    async def _make(self, view: View) -> bool:
        if trio.current_time() < self._correct_at:
            return False
        try:
            endpoint, method = own_endpoint(view, self._own.name, self.discovered, unsure=self._unsure)
            made = own_peer.new_peer(
                self._own.name,
                view.node,
                public_key=str(self._own.private_key.public()),
                endpoint=endpoint,
                allowed_ips=own_allowed_ips(view, self._own.name),
            )
            body = await self._client.request("POST", resources.PEERS, body=made)
            peer = decode(body, resources.Peer)
        except (ApiError, UnreachableError, ValueError) as error:
            self._not_written("peer.not_made", error)
            return False
        # The watch brings it, too: but what comes first must not find it missing again.
        self.peers.listing.known.setdefault(peer.metadata.name, peer)
        self._written(endpoint, method)
        self._log.info("peer.made", peer=self._own.name, allowed_ips=list(peer.spec.allowedIPs))
        self._wake()
        return False

    def _written(self, endpoint: str, method: str) -> None:
        """The resource is right, and has this endpoint now, known by this method; "": the one that it had."""
        self._own_problem = ""
        if not endpoint:
            return
        self.endpoint_method = method
        self._unsure = (
            endpoint
            if method == INTERNAL_IP
            or self.discovered == Discovered(endpoint=endpoint, method=method, sure=False)
            else ""
        )

    async def _keep_correct(self) -> None:
        """By itself: a server that takes its time for a write holds up nothing that it tells meanwhile."""
        while True:
            await self._uncorrected.wait()
            self._uncorrected = trio.Event()
            view = self._view()
            if view.mesh is not None and (peer := view.peers.get(self._own.name)) is not None:
                await self._correct(view, peer)

    async def _correct(self, view: View, peer: resources.Peer) -> None:
        if trio.current_time() < self._correct_at:
            return
        try:
            endpoint, method = own_endpoint(view, self._own.name, self.discovered, unsure=self._unsure)
            patch = own_peer.correction(
                peer,
                public_key=str(self._own.private_key.public()),
                endpoint=endpoint,
                allowed_ips=own_allowed_ips(view, self._own.name),
            )
            if patch is None:
                self._written(endpoint, method)
                return
            path = own_peer.path_of(self._own.name)
            body = await self._client.request("PATCH", path, body=patch, kind=MERGE)
            corrected = decode(body, resources.Peer)
        except (ApiError, UnreachableError, ValueError) as error:
            self._not_written("peer.not_corrected", error)
            self._wake()  # to a look at `_correct_at`
            return
        self._written(endpoint, method)
        self._correct_at = trio.current_time() + CORRECT_EVERY_S
        if self.peers.listing.known.get(peer.metadata.name) is peer:  # there may be newer news of it
            self.peers.listing.known[peer.metadata.name] = corrected
        self._log.info("peer.corrected", peer=self._own.name, fields=sorted(patch.get("spec", {})))
        self._wake()

    def _not_written(self, event: str, error: Exception) -> None:
        self._correct_at = trio.current_time() + CORRECT_EVERY_S
        if str(error) != self._own_problem:
            self._log.error(event, reason=str(error))
        self._own_problem = str(error)
