"""Every setting of a relay and of an agent, one line each.

A line here and a field with its default in `types` are all that a setting takes: its flag, its variable, its
key in the file and what help, man page and completion say about it come from these tables.
"""

from __future__ import annotations

from functools import partial

from relayd import marks
from relayd.config import kinds, net_values, values
from relayd.config.kinds import Kind
from relayd.config.setting import Key, Role, Setting
from relayd.config.types import HTTP_ADDRESS, AgentConfig, RelayConfig

# At least the largest frame, and no more than a host can spare for a receiver that doesn't read.
_QUEUE_BYTES = kinds.number(65540, 1 << 30, "bytes", metavar="BYTES")
_QUEUE_AGE = kinds.number(1, 60_000, "milliseconds", metavar="MS")
_DURATION = kinds.duration(0.1, 3600)
_PER_S = Kind(values.positive(1e6), "N", values.number_from_text)
_RATE = kinds.or_off(Kind(values.positive(1e12), "N", values.number_from_text))
_COUNT = kinds.number(1, 1_000_000, "connections")
_LISTEN = kinds.several(
    net_values.listen_address,
    "ADDR:PORT",
    example=f"0.0.0.0:{marks.RELAY_PORT}",
    empty="there is no address to accept connections on",
)
_CONTROL = "the socket that relayd status asks"
_HTTP = kinds.or_off(kinds.HTTP)
_HTTP_HELP = "serve metrics, health and the status page here"
_HTTP_DEFAULT = f"{HTTP_ADDRESS}, or the next free port"
_HTTP_NAMES = kinds.several(net_values.host_name, "NAME", example="gateway.example.net")
_HTTP_NAMES_HELP = "host names by which that may be asked, beside IP addresses and this host's own name"
_LOG = "how to log; auto: for people on a terminal"
_QUEUE_BYTES_HELP = "a receiver that falls behind loses its oldest frames past this many bytes"
_QUEUE_AGE_HELP = "and those that have waited longer than this, in milliseconds"

_API_HELP = "the cluster's API server"
_API_VARIABLES = ("WIREKUBE_KUBE_APISERVER",)
_API_DEFAULT = "the pod's environment"
_API_TOKEN_HELP = "the file with the token that the API server knows this process by"
_API_CA_HELP = "the file with the CAs that its certificate is checked by"

# One for each heading in the help of `relayd serve`.
_relay = partial(Setting, "relay", "relay")
_who = partial(Setting, "relay", "who is let in")
_tls = partial(Setting, "relay", "TLS")
_door = partial(Setting, "relay", "connections")
_queues = partial(Setting, "relay", "queues")

RELAY = Role(
    "relay",
    "serve",
    RelayConfig,
    (
        _relay("listen", _LISTEN, "accept agents here; may be repeated", common=True),
        _relay("control", kinds.SOCKET, _CONTROL),
        _relay("http", _HTTP, _HTTP_HELP, default=_HTTP_DEFAULT, common=True, live=True),
        _relay("http_names", _HTTP_NAMES, _HTTP_NAMES_HELP, live=True),
        _relay("state_dir", kinds.DIRECTORY, "where its key and its token are kept", word="state"),
        _relay("log", kinds.LOG, _LOG, common=True, live=True),
        _relay(
            "stun_port",
            kinds.or_off(kinds.number(0, 65535, "a port, or 0", metavar="PORT")),
            "a second UDP port for STUN, to tell apart how NATs filter; 0 is the one after that of listen",
        ),
        _who(
            "auth",
            kinds.AUTH,
            "whether agents have to prove their keys; optional: not for a key that nobody has proved",
            live=True,
        ),
        _who("open", kinds.SWITCH, "let in every agent that proves its own key", common=True, live=True),
        _who(
            "token_file",
            kinds.FILE,
            "tokens that let an agent in, one a line, the newest first",
            default="relay.token in the state directory",
            common=True,
            live=True,
        ),
        _who(
            "allow_list",
            kinds.FILE,
            "public keys that are let in, one a line",
            default="none",
            common=True,
            live=True,
        ),
        _tls(
            "tls_cert",
            kinds.FILE,
            "its certificate, with the chain behind it (PEM)",
            default="none",
            common=True,
            live=True,
        ),
        _tls("tls_key", kinds.FILE, "the certificate's key (PEM)", default="none", common=True, live=True),
        _tls(
            "tls_self_signed",
            kinds.SWITCH,
            "make a certificate, which the join string pins",
            common=True,
            live=True,
        ),
        _tls("tls_only", kinds.SWITCH, "refuse agents that don't speak TLS", live=True),
        _who(
            "admit",
            kinds.choice("kubernetes"),
            "let in the keys of a cluster's WireKubePeers",
            default="none",
            common=True,
        ),
        _who("api_server", kinds.SERVER, _API_HELP, variables=_API_VARIABLES, default=_API_DEFAULT),
        _who("api_token_file", kinds.FILE, _API_TOKEN_HELP),
        _who("api_ca_file", kinds.FILE, _API_CA_HELP),
        _who(
            "host",
            kinds.HOST,
            "the host that the join string names",
            default="this host's own address",
            common=True,
        ),
        _door("silence_s", _DURATION, "close a connection that has sent nothing for this long", live=True),
        _door("register_timeout_s", _DURATION, "close a connection that isn't admitted by then", live=True),
        _door("max_unregistered", _COUNT, "connections that may wait to be admitted, all in all", live=True),
        _door("max_unregistered_per_address", _COUNT, "as many from one address", live=True),
        _queues("queue_bytes", _QUEUE_BYTES, _QUEUE_BYTES_HELP, live=True),
        _queues("queue_age_ms", _QUEUE_AGE, _QUEUE_AGE_HELP, live=True),
        _door("max_connections", _COUNT, "connections in all", live=True),
        _door("max_connections_per_address", _COUNT, "connections from one address", live=True),
        _door("accepts_s", _PER_S, "connections taken in per second; the rest wait", live=True),
        _door(
            "accepts_per_address_s",
            _PER_S,
            "and from one address; what is more than that is closed unheard",
            live=True,
        ),
        _queues(
            "rate_bytes_s", _RATE, "bytes per second that one key may send", default=kinds.OFF, live=True
        ),
        _queues(
            "rate_frames_s", _RATE, "frames per second that one key may send", default=kinds.OFF, live=True
        ),
        _queues(
            "memory_bytes",
            kinds.number(1 << 20, 1 << 40, "bytes", metavar="BYTES"),
            "what all queues together may take up, at most half of the memory that there is",
            live=True,
        ),
        _queues(
            "stalled_s",
            kinds.duration(1, 3600),
            "close a connection that has taken no byte for this long",
            live=True,
        ),
        _door(
            "drain_s",
            kinds.duration(0, 3600),
            "how long to go on for agents that have been asked to connect elsewhere, after SIGTERM",
            live=True,
        ),
        _queues(
            "round_bytes",
            kinds.number(
                4096, 384 << 10, "bytes", metavar="BYTES"
            ),  # what the data plane's arena has room for
            "at most this much is read from one connection before the others have their turn",
            live=True,
        ),
    ),
)

# And in that of `relayd agent`.
_agent = partial(Setting, "agent", "agent")
_of_relay = partial(Setting, "relay", "relay")
_paths = partial(Setting, "agent", "direct paths")
_timing = partial(Setting, "agent", "timing")
_agent_queues = partial(Setting, "agent", "queues")
_cluster = partial(Setting, "kubernetes", "kubernetes")

AGENT = Role(
    "agent",
    "agent",
    AgentConfig,
    (
        _of_relay(
            "relays",
            kinds.RELAYS,
            "the relay: HOST:PORT, or the join string that `relayd serve` prints, in quotes",
            key="address",
            word="relay",
            variables=("WIREKUBE_RELAY_ADDR",),
            common=True,
            live=True,
        ),
        _of_relay(
            "relay_file",
            kinds.FILE,
            "a file of join strings: flags can be seen by others",
            key="file",
            common=True,
            live=True,
        ),
        _of_relay(
            "insecure_relay",
            kinds.SWITCH,
            "let a relay without a key= do without proving who it is, as those that can't have to",
            key="insecure",
            live=True,
        ),
        _agent(
            "interface",
            kinds.INTERFACE,
            "the WireGuard interface",
            variables=("WIREKUBE_INTERFACE",),
            common=True,
        ),
        Setting(
            "kubernetes",
            "agent",
            "kubernetes",
            kinds.SWITCH,
            "take interface, peers and relay from a cluster",
            key="enabled",
            common=True,
        ),
        _agent("state_dir", kinds.DIRECTORY, "where its memory is kept", word="state", common=True),
        _agent("control", kinds.SOCKET, _CONTROL, default="/run/relayd/agent-INTERFACE.sock", common=True),
        _agent("http", _HTTP, _HTTP_HELP, default=_HTTP_DEFAULT, common=True, live=True),
        _agent("http_names", _HTTP_NAMES, _HTTP_NAMES_HELP, live=True),
        _agent("log", kinds.LOG, _LOG, common=True, live=True),
        _agent(
            "proxy_port", kinds.PORT, "the agent's port on lo, where WireGuard sends what is for the relay"
        ),
        _paths(
            "endpoints",
            kinds.several(net_values.peer_endpoint, "IP:PORT", example="203.0.113.5:51820"),
            "where this host's WireGuard is reached, where you know it; may be repeated",
            default="found out",
            live=True,
        ),
        _paths(
            "stun",
            kinds.several(net_values.stun_server, "HOST:PORT", example="stun.example.net:3478"),
            "STUN servers to ask beside the relay, which is one; may be repeated",
            default="the relay alone",
            live=True,
        ),
        _paths(
            "port_mapping",
            kinds.SWITCH,
            "where there is a NAT, have the gateway map WireGuard's port, by PCP, NAT-PMP or UPnP",
            live=True,
        ),
        _paths(
            "aws_metadata",
            kinds.choice("auto", "always", "never"),
            "ask AWS for this host's public address; auto: where it looks like one of theirs",
            live=True,
        ),
        _paths(
            "direct_paths",
            kinds.SWITCH,
            "look for direct paths together with the peers' agents, and take those that work",
        ),
        _paths(
            "candidate_interfaces",
            kinds.several(net_values.interface_name, "NAME", example="eth0"),
            "interfaces whose addresses peers are told",
            default="all that lead somewhere, and no bridges, overlays or tunnels",
            live=True,
        ),
        _paths(
            "nat_hold_s",
            kinds.duration(1, 600),
            "between two datagrams on an idle direct path behind a NAT, to hold its mapping",
            live=True,
        ),
        _paths(
            "birthday",
            kinds.SWITCH,
            "between a symmetric and a port-restricted NAT, where both ends have it: look for a path by 256 "
            "sockets at the one and 2,000 random ports from the other, for 20 s at a time",
            live=True,
        ),
        _paths(
            "measure_nat_lifetime",
            kinds.SWITCH,
            "find out for how long the NAT keeps an idle mapping, and hold by that; takes a minute",
            live=True,
        ),
        _timing("keepalive_s", _DURATION, "between two signs of life to the relay", live=True),
        _timing("echo_s", _DURATION, "between two asks whether the relay lives", live=True),
        _timing("dial_timeout_s", _DURATION, "for one attempt to reach the relay", live=True),
        _timing(
            "fresh_handshake_s", _DURATION, "a peer whose last handshake is older has no session", live=True
        ),
        _timing("reconcile_s", _DURATION, "between two looks at the interface", live=True),
        _agent_queues("queue_bytes", _QUEUE_BYTES, _QUEUE_BYTES_HELP, live=True),
        _agent_queues("queue_age_ms", _QUEUE_AGE, _QUEUE_AGE_HELP, live=True),
        _cluster("node_name", kinds.NODE, "this node's name in it", variables=("NODE_NAME",)),
        _cluster("api_server", kinds.SERVER, _API_HELP, variables=_API_VARIABLES, default=_API_DEFAULT),
        _cluster("api_token_file", kinds.FILE, _API_TOKEN_HELP),
        _cluster("api_ca_file", kinds.FILE, _API_CA_HELP),
    ),
    tables=("interface", "peer"),
)

ROLES = (RELAY, AGENT)

INTERFACE_KEYS = {
    "name": Key(kinds.INTERFACE, "the interface to make"),
    "private_key_file": Key(
        kinds.FILE, "the file with its key, one line as `wg genkey` prints it; without, the agent makes one"
    ),
    "listen_port": Key(kinds.PORT, "WireGuard's own UDP port"),
    "address": Key(
        kinds.several(net_values.interface_address, "ADDRESS/PREFIX", example="10.0.0.1/24"),
        "this node's addresses in the tunnel, each with its network's prefix",
        'address = ["10.0.0.1/24"]',
    ),
    "mtu": Key(kinds.number(net_values.MIN_MTU, net_values.MAX_MTU, "an MTU", metavar="BYTES"), "its MTU"),
}
"""Of [interface]: an interface that the agent makes and keeps."""

PEER_KEYS = {
    "public_key": Key(
        Kind(net_values.public_key, "KEY"), "the peer's key", 'public_key = "<what wg pubkey prints>"'
    ),
    "allowed_ips": Key(
        kinds.several(
            net_values.network,
            "ADDRESS/PREFIX",
            example="10.0.0.2/32",
            empty="a peer without allowed IPs gets no traffic",
        ),
        "the addresses behind it",
        'allowed_ips = ["10.0.0.2/32"]',
    ),
    "endpoint": Key(
        Kind(net_values.peer_endpoint, "IP:PORT"), "where it can be reached directly; without, by the relay"
    ),
    "persistent_keepalive": Key(
        kinds.number(0, 65535, "seconds, 0 is off", metavar="SECONDS"),
        "between packets that keep a NAT on the way open; 0 is off",
    ),
    "name": Key(
        Kind(net_values.peer_name, "NAME"), "what status, page and metrics call it; without, its key"
    ),
}
"""Of each [[peer]] of that interface."""
