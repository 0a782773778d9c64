// The page of a relay.

const DROPS_RELAY = {
  absent: "sent to a key that isn't connected",
  short: "without a whole key",
  full: "receiver too slow: its queue was full",
  old: "receiver too slow: waited too long",
  memory: "all queues together were full",
};

class RelayPage {
  constructor(more, limit) {
    this.connections = new Tile("Connections", 1);
    this.traffic = new Tile("Traffic", 2);
    this.queues = new Tile("Queued", 1);
    this.drops = new Tile("Drops", 1);
    this.reasons = new Figures("Dropped frames", "No frame was dropped.", DROPS_RELAY);
    this.door = new Figures("At the door", "Nobody has come yet.");
    this.besides = new Figures("Besides frames", "Nothing yet.");
    this.table = new PeerTable({
      title: "Agents",
      caption: "Connected agents",
      sortBy: "out",
      limit,
      onMore: more,
      columns: [
        { name: "key", title: "Key", value: (p) => p.key, find: (p) => `${p.key} ${p.address}`, place: "whole",
          show: (cell, p) => put(cell, short(p.key), p.proved === false ? `${p.address}, without a proof` : p.address, "mono") },
        { name: "since", title: "Connected", number: true, place: "wide since", value: (p) => p.connected_s,
          show: (cell, p) => put(cell, duration(p.connected_s)) },
        { name: "in", title: "In", number: true, value: (p) => p.in ?? 0,
          show: (cell, p) => put(cell, bits(p.in), bytes(p.bytes_in)) },
        { name: "out", title: "Out", number: true, value: (p) => p.out ?? 0,
          show: (cell, p) => put(cell, bits(p.out), bytes(p.bytes_out)) },
        { name: "queued", title: "Queued", number: true, place: "half", value: (p) => p.queued_bytes, nil: (p) => !p.queued_bytes,
          show: (cell, p) => put(cell, bytes(p.queued_bytes)) },
        { name: "drops", title: "Drops", number: true, place: "half", value: (p) => total(p.drops), nil: (p) => !total(p.drops),
          show: (cell, p) => put(cell, count(total(p.drops)), null, p.dropping ? "hot" : "") },
      ],
    });
    this.table.nothing = "No agent is connected.";
    this.node = make("div", {},
      make("div", { class: "tiles" }, this.connections.node, this.traffic.node, this.queues.node, this.drops.node),
      make("div", { class: "panels three" }, this.reasons.node, this.door.node, this.besides.node),
      this.table.node);
  }

  about(status) {
    return `listens on ${status.listen.join(", ")}`;
  }

  notices(status) {
    return [
      status.admission_awaited && ["bad", `Nobody is let in yet: ${status.admission_awaited}`],
      status.admission_problem && ["warn", `Who is let in is as it was: ${status.admission_problem}`],
    ].filter(Boolean);
  }

  show(status, rates, before) {
    const refused = total(status.refused);
    this.connections.show([count(status.connections), ""]);
    this.connections.explain(`${count(status.unregistered)} on their way in`, `${count(refused)} refused so far`);
    this.connections.spark.add(status.connections);

    const [into, out] = [rates.of((s) => s.bytes_in), rates.of((s) => s.bytes_out)];
    this.traffic.show(bitsParts(out ?? 0));
    this.traffic.explain(`[1]out, ${perSecond(rates.of((s) => s.frames_out))} frames`.replace("/s frames", " frames/s"),
      `[2]in ${bits(into ?? 0)}`);
    this.traffic.spark.add(out, into);

    const p99 = rates.delay(0.99);
    this.queues.show(bytesParts(status.queued_bytes), status.backlogged ? "warn" : "");
    this.queues.explain(status.backlogged ? `${plural(status.backlogged, "agent takes", "agents take")} too little` : "all agents keep up",
      p99 === null ? (status.queued_bytes ? "what waits isn't taken" : "nothing waits") : `99 % of what waited: up to ${milliseconds(p99)}`);
    this.queues.spark.add(status.queued_bytes);

    const dropping = rates.of((s) => total(s.drops));
    this.drops.show(dropping ? [perSecond(dropping).replace("/s", ""), "/s"] : ["0", "/s"], dropping ? "bad" : "");
    this.drops.explain(`${count(total(status.drops))} since the start`);
    this.drops.spark.add(dropping);

    this.reasons.show(rates.entries("drops").map((entry) => [...entry, true]));
    this.door.show([
      ["came in", status.accepted, rates.of((s) => s.accepted)],
      ...rates.entries("admitted").map(([name, value, rate]) => [name === "unproved" ? "let in without a proof" : `let in: ${name}`, value, rate]),
      ["taken over from the process before", status.resumed, null],
      ...Object.entries(status.not_resumed || {}).map(([name, value]) => [`not taken over: ${name}`, value, null]),
      ...rates.entries("refused").map(([name, value, rate]) => [`refused: ${name}`, value, rate, true]),
    ]);
    this.besides.show([
      ...rates.entries("nat_probes").map(([name, value, rate]) => [`NAT probes: ${name.replaceAll("_", " ")}`, value, rate]),
      ...Object.entries(status.stun || {}).filter(([name]) => name !== "ports")
        .map(([name, value]) => [`STUN: ${name.replaceAll("_", " ")}`, value, rates.of((s) => (s.stun || {})[name])]),
      ["reading paused: more than a key may send", status.pauses, rates.of((s) => s.pauses), true],
      ["frames of unknown types", status.unknown_frames, rates.of((s) => s.unknown_frames)],
    ]);
    this.table.show(withRates(status, before, rates), status.connections);
  }
}

/** The peers, with what each moved a second since the last answer. */
function withRates(status, before, rates) {
  const known = new Map(((before && before.peers) || []).map((peer) => [peer.key, peer]));
  return status.peers.map((peer) => {
    const then = known.get(peer.key);
    // Another connection of the same key begins at zero.
    const same = then && rates.seconds !== null && peer.bytes_in >= then.bytes_in && peer.bytes_out >= then.bytes_out;
    return {
      ...peer,
      in: same ? (peer.bytes_in - then.bytes_in) / rates.seconds : null,
      out: same ? (peer.bytes_out - then.bytes_out) / rates.seconds : null,
      dropping: same && total(peer.drops) > total(then.drops),
    };
  });
}
