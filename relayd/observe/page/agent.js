// The page of an agent.

const DROPS_AGENT = {
  queue_full: "relay too slow: the queue was full",
  queue_old: "relay too slow: waited too long",
  not_connected: "there was no relay",
  link_lost: "queued when the relay was lost",
  own_key: "from the relay, under our own key",
  short_data: "from the relay, without a whole key",
  malformed: "from the relay, malformed",
  stray_pong: "from the relay, an answer to nothing",
  before_proof: "from the relay, before it proved its key",
  late: "relayed, of a peer that has just gone direct",
  sealed_unknown_key: "from an agent that is no peer of ours",
  sealed_rate: "from a peer's agent that sends too many messages",
  sealed_malformed: "from a peer's agent, forged or malformed",
  unknown_key: "from the relay, of no peer of ours",
  empty: "from the relay, empty",
  stranger: "from a program that isn't WireGuard",
  unknown_address: "WireGuard sent to no peer's address",
  too_long: "too long for a frame",
  receive_buffer_full: "WireGuard sent faster than the agent reads",
  receive_failed: "failed to receive from WireGuard",
  wireguard_buffer_full: "WireGuard's buffer was full",
  wireguard_port_closed: "nothing listens on WireGuard's port",
  wireguard_send_refused: "the host's firewall refused it",
  wireguard_send_failed: "failed to send to WireGuard",
};

const LINK_WORDS = { waiting: "away", dialing: "being dialled", registering: "greeted" };
const linkWord = (relay) => LINK_WORDS[relay.state] || relay.state;

/** Why it is on that path, and what the relay said of it in the last minute. */
function reasonOf(peer) {
  const gone = peer.relay_gone;
  return gone && gone.age_s < 60 ? `${peer.reason}; ${gone.reason}` : peer.reason;
}

const PATH_WORDS = { direct: "direct", relay: "relay", none: "no way" };

class AgentPage {
  constructor(more, limit) {
    this.peers = new Tile("Peers", 0);
    this.share = new Bar(["direct", "relay", "none"]);
    this.peers.node.append(this.share.node);
    this.link = new Tile("Relay", 1);
    this.traffic = new Tile("Tunnel traffic", 2);
    this.drops = new Tile("Drops", 1);
    this.picture = new Picture();
    this.reasons = new Figures("Dropped frames", "No frame was dropped.", DROPS_AGENT);
    this.relay = new Figures("From the relay, besides data", "Nothing yet.");
    this.table = new PeerTable({
      title: "Peers",
      caption: "Peers and their paths",
      sortBy: "path",
      limit,
      onMore: more,
      columns: [
        { name: "key", title: "Peer", value: (p) => p.name || p.key, find: (p) => `${p.key} ${p.name || ""} ${p.endpoint || ""}`, place: "wide",
          show: (cell, p) => put(cell, p.name || short(p.key), p.endpoint || "no endpoint", p.name ? "" : "mono") },
        { name: "path", title: "Path", value: (p) => ({ none: 2, relay: 1, direct: 0 })[p.path] ?? 3, place: "wide", find: (p) => p.path,
          show: (cell, p) => put(cell, PATH_WORDS[p.path] || p.path, reasonOf(p), `badge ${p.path in PATH_WORDS ? p.path : ""}`) },
        { name: "trip", title: "Round trip", number: true, value: (p) => p.round_trip_ms ?? -1,
          show: (cell, p) => put(cell, milliseconds(p.round_trip_ms)) },
        { name: "age", title: "Handshake", number: true, value: (p) => p.handshake_age_s ?? Infinity,
          show: (cell, p) => put(cell, p.handshake_age_s == null ? "never" : duration(p.handshake_age_s)) },
        { name: "in", title: "In", number: true, value: (p) => p.in ?? 0,
          show: (cell, p) => put(cell, bits(p.in), bytes(p.rx_bytes)) },
        { name: "out", title: "Out", number: true, value: (p) => p.out ?? 0,
          show: (cell, p) => put(cell, bits(p.out), bytes(p.tx_bytes)) },
      ],
    });
    this.table.nothing = "The interface has no peers.";
    this.node = make("div", {},
      make("div", { class: "tiles" }, this.peers.node, this.link.node, this.traffic.node, this.drops.node),
      this.picture.section, this.table.node,
      make("div", { class: "panels" }, this.reasons.node, this.relay.node));
  }

  about(status) {
    return `interface ${status.interface}, key ${status.public_key}`;
  }

  notices(status) {
    const lost = status.paths.none || 0;
    return [
      status.interface_problem && ["bad", `Interface ${status.interface}: ${status.interface_problem}`],
      lost && ["bad", `No way to ${plural(lost, "peer", "peers")}: the relay is ${linkWord(status.relay)}` +
        `${status.relay.reason ? ` (${status.relay.reason})` : ""}.`],
      status.mesh_problem && ["warn", `After a restart only: ${status.mesh_problem}`],
      status.cluster && !status.cluster.current && ["warn", `What is known of the cluster isn't current: ${status.cluster.api_server} doesn't answer.`],
      ...((status.cluster && status.cluster.problems) || []).map((problem) => ["warn", `In the cluster: ${problem}`]),
      status.relay.health && ["warn", `The relay says: ${status.relay.health}`],
      status.relay.draining && ["plain", "The relay is about to stop: the agent goes to another one, or comes back to it."],
      ...(status.host_problems || []).map((problem) => ["warn", `On this host: ${problem}`]),
    ].filter(Boolean);
  }

  show(status, rates, before) {
    const on = (path) => status.paths[path] || 0;
    const lost = on("none");
    this.peers.show([count(total(status.paths)), ""], lost ? "bad" : "");
    this.share.show(on);
    this.peers.explain(`${count(on("direct"))} direct, ${count(on("relay"))} by the relay`,
      lost ? `${count(lost)} without a way` : "all can be reached");

    const { relay } = status;
    const up = relay.state === "connected";
    this.link.show([up && relay.round_trip_ms != null ? milliseconds(relay.round_trip_ms).replace(" ms", "") : linkWord(relay),
      up && relay.round_trip_ms != null ? "ms round trip" : ""], up ? "" : "bad");
    this.link.explain(relay.address, up ? `connected for ${duration(relay.connected_s)}${relay.trust ? `, key ${relay.trust}` : ""}`
      : relay.reason || "");
    this.link.spark.add(up ? relay.round_trip_ms : 0);

    const sum = (name) => (s) => s.peers.reduce((all, peer) => all + (peer[name] || 0), 0);
    const [into, out] = [rates.of(sum("rx_bytes")), rates.of(sum("tx_bytes"))];
    this.traffic.show(bitsParts(out ?? 0));
    this.traffic.explain("[1]out", `[2]in ${bits(into ?? 0)}`);
    this.traffic.spark.add(out, into);

    const dropping = rates.of((s) => total(s.drops));
    this.drops.show(dropping ? [perSecond(dropping).replace("/s", ""), "/s"] : ["0", "/s"], dropping ? "bad" : "");
    const p99 = rates.delay(0.99);
    this.drops.explain(`${count(total(status.drops))} since the start`,
      p99 === null ? "" : `waiting for the relay: up to ${milliseconds(p99)}`);
    this.drops.spark.add(dropping);

    this.picture.show(status);
    this.reasons.show(rates.entries("drops").map((entry) => [...entry, true]));
    this.relay.show([
      ["dials", relay.dials, rates.of((s) => s.relay.dials)],
      ...Object.entries(relay.received).map(([name, value]) => [name.replaceAll("_", " "), value, null]),
    ]);
    this.table.show(peersWithRates(status, before, rates), total(status.paths));
  }
}

function peersWithRates(status, before, rates) {
  const known = new Map(((before && before.peers) || []).map((peer) => [peer.key, peer]));
  return status.peers.map((peer) => {
    const then = known.get(peer.key);
    const per = (name) => (then && rates.seconds !== null ? Math.max(0, (peer[name] - then[name]) / rates.seconds) : null);
    return { ...peer, in: per("rx_bytes"), out: per("tx_bytes") };
  });
}
