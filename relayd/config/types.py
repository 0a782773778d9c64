"""What a relay and an agent are told: frozen values, checked when they were read, with every default."""

from __future__ import annotations

from ipaddress import IPv4Interface, IPv4Network, IPv6Interface, IPv6Network
from pathlib import Path
from typing import Literal

from msgspec import Struct

from relayd import marks
from relayd.endpoints import Endpoint
from relayd.join import JoinString
from relayd.keys import PrivateKey, PublicKey
from relayd.paths.patience import Patience

LogMode = Literal["auto", "console", "json"]
"""`auto`: for people when standard error is a terminal, fields when it is systemd's journal, else JSON."""

Auth = Literal["required", "optional"]
"""`required`: nothing is routed from or to a connection before its Proof. `optional`: a bare Register is
enough for a key that nobody has proved."""

RUN_DIR = "/run/relayd"
STATE_DIR = "/var/lib/wirekube"
SERVICE_ACCOUNT = "/var/run/secrets/kubernetes.io/serviceaccount"
"""Where a pod finds its token and the cluster's CA."""

KEY_FILE = "privatekey"
"""In the state directory: the interface's key, when the configuration names no file."""

RELAY_CONTROL = f"{RUN_DIR}/relay.sock"

HTTP_ADDRESS = "127.0.0.1:9478"
"""Of relays and agents alike. While its port is taken the next free one is: several on a host go well."""

QUEUE_BYTES = 1 << 20
"""A receiver that falls behind loses its oldest frames past this many bytes, relay and agent alike."""

QUEUE_AGE_MS = 500
"""And those that waited longer: the flows inside recover sooner from a gap than from stale packets."""


class RelayConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """All that `relayd serve` is told. Durations end in their unit, sizes are bytes."""

    listen: tuple[str, ...] = (f"0.0.0.0:{marks.RELAY_PORT}", f"[::]:{marks.RELAY_PORT}")
    """Addresses to accept on, `Endpoint.parse` takes each; port 0 means any free one."""

    control: str = RELAY_CONTROL
    """Unix socket that `relayd status` asks."""

    http: str | None = HTTP_ADDRESS
    """Where metrics, health and the status page are served; None: nowhere."""

    http_names: tuple[str, ...] = ()
    """Host names by which that may be asked, besides the host's own, localhost and IP addresses."""

    state_dir: str = STATE_DIR
    """Where the relay's key is kept, and its token; both are made at the first start."""

    auth: Auth = "required"
    open: bool = False
    """Any key that is proved is let in."""

    token_file: str | None = None
    """Tokens that let an agent in, one a line. None: `relay.token` in the state directory, unless there is
    another lock."""

    admit: str | None = None
    """"kubernetes": the keys of a cluster's WireKubePeers, in place of an allow-list."""

    api_server: str | None = None
    """URL; None: the pod's environment says it. This and the next two are for `admit`."""

    api_token_file: str = f"{SERVICE_ACCOUNT}/token"
    api_ca_file: str = f"{SERVICE_ACCOUNT}/ca.crt"
    allow_list: str | None = None
    """File of public keys that are let in, one a line; None: there is no list."""

    tls_cert: str | None = None
    """PEM file with the relay's certificate and those between it and a root. None: no TLS, or
    `tls_self_signed`."""

    tls_key: str | None = None
    """PEM file with its key."""

    tls_self_signed: bool = False
    """Make key and certificate in the state directory; the join string pins the key."""

    tls_only: bool = False
    """Refuse agents that don't speak TLS. (Else every port speaks both: the first byte tells.)"""

    host: str | None = None
    """The host in the join string; None: the address that this host knows of itself."""

    log: LogMode = "auto"
    queue_bytes: int = QUEUE_BYTES
    queue_age_ms: int = QUEUE_AGE_MS
    silence_s: float = 75.0
    """A connection that sent nothing for this long is closed: three keepalives (PROTOCOL.md, part 1)."""

    register_timeout_s: float = 10.0
    """From accept to admission: an agent across the world and on a lossy link needs two."""

    max_unregistered: int = 1024
    """Connections that may wait to be admitted at one time: all agents of a large mesh that come back at once
    take turns. Past that the oldest is closed."""

    max_unregistered_per_address: int = 64
    """As many from one IPv4 address or one IPv6 network of 64 bits: agents behind one NAT."""

    stun_port: int | None = 0
    """The second UDP port, from which NATs are told apart (RFC 5780); 0: the one after that of `listen`."""

    max_connections: int = 65_536
    """All in all; a connection costs 1 KiB here, and about 4 in the kernel."""

    max_connections_per_address: int = 4096
    """From one IPv4 address or one IPv6 network of 64 bits: a site's agents behind one NAT."""

    accepts_s: float = 5000.0
    """Connections taken in a second: a core makes some 3,000 whole handshakes. The rest wait in the
    kernel."""

    accepts_per_address_s: float = 250.0
    """As many from one address, four seconds' worth at once: a site that comes back after an outage. The rest
    are closed unheard."""

    rate_bytes_s: float | None = None
    """What one key may send in the long run, per second. None: as much as it can; a relay is the operator's
    own as a rule, and the others have their share of a queue and their turn to be read all the same."""

    rate_frames_s: float | None = None
    """Likewise, in frames."""

    memory_bytes: int = 256 << 20
    """All queues together, and what their bookkeeping takes: 256 full ones. Past it the largest shrinks
    first. On a host or in a control group with less memory it is half of that."""

    stalled_s: float = 30.0
    """A connection that takes no byte of what waits for it for so long is closed: its host may be overloaded
    or suspended, and a frame of its own would cost it more than it costs us to wait."""

    drain_s: float = 5.0
    """After SIGTERM, agents are asked to connect elsewhere, and their frames are carried for this much
    longer: time for two dials and a backoff, and less than a service manager waits."""

    round_bytes: int = 256 << 10
    """At most this much is read from one connection before the others have their turn."""


class InterfaceConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A WireGuard interface that the agent makes and keeps as the file says."""

    name: str = marks.DEFAULT_INTERFACE
    private_key_file: Path
    private_key: PrivateKey | None
    """What that file held when the configuration was read. Its repr hides the key. None: the file is the one
    in the state directory, and isn't there yet; the agent makes it."""

    listen_port: int = marks.DEFAULT_LISTEN_PORT
    address: tuple[IPv4Interface | IPv6Interface, ...]
    mtu: int = marks.DEFAULT_MTU


class PeerConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One peer of that interface."""

    public_key: PublicKey
    allowed_ips: tuple[IPv4Network | IPv6Network, ...]
    endpoint: Endpoint | None = None
    """Where it can be reached directly; None: nobody knows, it starts on the relay."""

    persistent_keepalive: int = 0
    """Seconds; 0: off, as `wg` has it."""

    name: str = ""
    """What people call it, in the status and as a label of metrics; "": its key."""


class AgentConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """All that `relayd agent` is told. Durations end in their unit, sizes are bytes."""

    relays: tuple[JoinString, ...] = ()
    """Where they are, and what the agent and they know each other by. None: a command that needs none."""

    relay_file: str | None = None
    """The file that some of them were read from."""

    insecure_relay: bool = False
    """Whether a relay without a pinned key may do without proving who it is (those of part 1 can't)."""

    interface: str = marks.DEFAULT_INTERFACE
    owned: InterfaceConfig | None = None
    """How to make the interface; None: it exists, and is used as it is."""

    peers: tuple[PeerConfig, ...] = ()
    """Empty unless `owned`: an interface that exists has its own."""

    control: str = ""
    """Unix socket that `relayd status` asks; "": `control_path` says which."""

    state_dir: str = STATE_DIR
    clean_state: bool = False
    """At this start, remove what an owned interface has on the host, and build it anew; the key stays."""

    clean_state_once: bool = False
    """Likewise, unless the last start did it too: for a setting that stays set through restarts."""

    http: str | None = HTTP_ADDRESS
    """As of a relay."""

    http_names: tuple[str, ...] = ()
    endpoints: tuple[Endpoint, ...] = ()
    """Where this host's WireGuard is reached, as far as somebody knows."""

    stun: tuple[str, ...] = ()
    """STUN servers beside the relay, which is one; HOST:PORT each."""

    port_mapping: bool = True
    """Have the gateway map WireGuard's port, by PCP, NAT-PMP or UPnP, where there is a NAT."""

    aws_metadata: Literal["auto", "always", "never"] = "auto"
    """Ask AWS's metadata service for this host's public address; auto: where it looks like one of AWS's."""

    proxy_port: int = marks.PROXY_PORT
    log: LogMode = "auto"
    queue_bytes: int = QUEUE_BYTES
    queue_age_ms: int = QUEUE_AGE_MS
    keepalive_s: float = 25.0
    """A relay that hears nothing for 75 s closes (PROTOCOL.md, part 1)."""

    echo_s: float = 8.0
    """Between two questions whether the relay lives; two that stay unanswered for a quarter of it: it
    doesn't."""

    dial_timeout_s: float = 10.0
    fresh_handshake_s: float = marks.HANDSHAKE_FRESH_S
    """A peer whose last handshake is older has no session, and goes to the relay."""

    direct_paths: bool = True
    """Off: a direct endpoint is what WireGuard has, and nothing is sent or heard on its port."""

    candidate_interfaces: tuple[str, ...] = ()
    """Empty: all whose addresses may mean something elsewhere (`paths.candidates.is_virtual`)."""

    nat_hold_s: float = 10.0
    """Mappings of the most forgetful NATs in the field live for 20 to 30 s."""

    birthday: bool = False
    """Meet peers by random ports where nothing else is left (`paths.birthday`)."""

    measure_nat_lifetime: bool = False
    """Once known, it takes the place of `nat_hold_s` (`paths.keepalive.hold_s`)."""

    reconcile_s: float = 1.0
    """Between two looks at the interface. A peer that went silent waits this much longer, no more."""

    kubernetes: bool = False
    """Interface, peers and relay are a cluster's resources; then `relay`, `interface` and `owned` may be left
    out, and what they say wins over the resources."""

    node_name: str | None = None
    """This node's name in the cluster. Never None with `kubernetes`."""

    api_server: str | None = None
    """URL; None: the pod's environment says it."""

    api_token_file: str = f"{SERVICE_ACCOUNT}/token"
    api_ca_file: str = f"{SERVICE_ACCOUNT}/ca.crt"

    @property
    def patience(self) -> Patience:
        """The times of its paths, as far as no mesh says otherwise."""
        return Patience(fresh_handshake_s=self.fresh_handshake_s)

    @property
    def control_path(self) -> str:
        """Where the control socket is: one per interface, so that two agents on a host don't collide."""
        return self.control or agent_control(self.interface)


class HostConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a command needs to know that undoes on a host what an agent did."""

    interface: str = marks.DEFAULT_INTERFACE
    interface_named: bool = False
    """Whether somebody named it, or it is the usual one."""

    control: str = ""
    state_dir: str = STATE_DIR

    @property
    def control_path(self) -> str:
        """As of the agent."""
        return self.control or agent_control(self.interface)


def agent_control(interface: str) -> str:
    """The control socket of an agent that was told no other."""
    return f"{RUN_DIR}/agent-{interface}.sock"
