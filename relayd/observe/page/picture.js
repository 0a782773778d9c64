// An agent's peers and their ways: this node on the left, the relay above, a row for each peer on the right.

const ROW = 40;
const TOP = 66; // the relay stands above
const MOST_OF_A_PATH = 6; // rows; past that, the last stands for the rest

class Picture {
  constructor() {
    this.node = draw("svg", { class: "picture", role: "img" });
    this.legend = make("div", { class: "legend", "aria-hidden": "true" },
      legendOf("direct", "straight"), legendOf("relay", "by the relay"), legendOf("none", "no way"));
    this.section = make("section", { class: "panel" },
      make("div", { class: "head" }, make("h2", {}, "Ways"), this.legend), this.node);
    this.last = "";
    new ResizeObserver(() => this.redraw()).observe(this.section);
  }

  show(status) {
    this.status = status;
    this.peers = status.peers;
    this.all = total(status.paths);
    this.redraw();
  }

  redraw() {
    const width = Math.floor(this.node.clientWidth || this.section.clientWidth - 32);
    if (!this.status || width < 100) return;
    const look = JSON.stringify([width, this.status.relay.state, this.status.relay.address, this.status.interface,
      roundTrip(this.status.relay.round_trip_ms), this.status.paths, this.peers.map((peer) => [peer.key, peer.name, peer.path, roundTrip(peer.round_trip_ms)])]);
    if (look === this.last) return;
    this.last = look;
    this.paint(width);
  }

  paint(width) {
    const { status } = this;
    const rows = this.rows();
    const narrow = width < 520;
    const up = status.relay.state === "connected";
    const self = { x: 22, y: Math.max(150, TOP + (rows.length * ROW) / 2) };
    const relay = { x: Math.round(width * (narrow ? 0.38 : 0.42)), y: 34 };
    const peerX = Math.round(width * (narrow ? 0.6 : 0.7));
    const height = Math.max(TOP + rows.length * ROW + 4, self.y + 58);
    const wires = [];
    const marks = [];
    const link = [self, { x: self.x, y: relay.y + 40 }, { x: relay.x - 60, y: relay.y }, relay];
    wires.push(wire(up ? "relay" : "none", ...link));
    if (!up) marks.push(cross(...link));
    rows.forEach((row, index) => {
      const at = { x: peerX, y: TOP + 20 + index * ROW };
      const straight = [self, { x: (self.x + peerX) / 2, y: self.y }, { x: (self.x + peerX) / 2, y: at.y }, at];
      const around = [relay, { x: relay.x + 10, y: at.y }, { x: relay.x + 50, y: at.y }, at];
      const way = row.path === "direct" ? straight : around;
      wires.push(wire(row.many ? `${row.path} many` : row.path, ...way));
      if (row.path === "none") marks.push(cross(...way));
      marks.push(draw("circle", { class: "dot", cx: at.x, cy: at.y, r: row.many ? 9 : 6 }));
      const below = row.path === "none" ? "no way" : roundTrip(row.round_trip_ms);
      marks.push(draw("text", { class: row.many || row.name ? "" : "mono", x: at.x + 14, y: at.y + (below ? -1 : 5) },
        fitted(row.many ? `${count(row.many)} more` : row.name || short(row.key), width - at.x - 16)));
      if (below) marks.push(draw("text", { class: row.path === "none" ? "muted bad" : "muted", x: at.x + 14, y: at.y + 14 }, below));
    });
    marks.push(draw("circle", { class: "node", cx: relay.x, cy: relay.y, r: 11 }));
    marks.push(draw("text", { x: relay.x + 19, y: relay.y - 4 }, "relay"));
    marks.push(draw("text", { class: up ? "muted" : "muted bad", x: relay.x + 19, y: relay.y + 12 },
      up ? roundTrip(status.relay.round_trip_ms) : linkWord(status.relay)));
    marks.push(draw("circle", { class: "node self", cx: self.x, cy: self.y, r: 11 }));
    marks.push(draw("text", { x: self.x - 12, y: self.y + 29 }, "this node"));
    marks.push(draw("text", { class: "muted", x: self.x - 12, y: self.y + 45 }, fitted(status.interface, 110)));
    this.node.setAttribute("viewBox", `0 0 ${width} ${height}`);
    this.node.setAttribute("height", height);
    this.node.setAttribute("aria-label",
      `${inWords(status.paths)}; the relay is ${linkWord(status.relay)}. The table below has the same.`);
    this.node.replaceChildren(...wires, ...marks);
  }

  /** A row for each peer, those without a way first; of many on one path some, and one row for the rest. */
  rows() {
    return ["none", "relay", "direct"].flatMap((path) => {
      const peers = this.peers.filter((peer) => peer.path === path);
      const all = this.status.paths[path] || 0;
      const named = all > MOST_OF_A_PATH ? peers.slice(0, MOST_OF_A_PATH - 1) : peers;
      return all > named.length ? [...named, { path, many: all - named.length }] : named;
    });
  }
}

const roundTrip = (value) => (value == null ? "" : milliseconds(value));
/** As much of a name as `width` pixels hold. */
function fitted(name, width) {
  const most = Math.max(4, Math.floor(width / 7.4));
  return name.length <= most ? name : `${name.slice(0, most - 1)}…`;
}

const spot = ({ x, y }) => `${x.toFixed(1)} ${y.toFixed(1)}`;

/** A cubic Bezier curve between the first point and the last. */
function wire(look, from, one, other, to) {
  return draw("path", { class: `wire ${look}`, d: `M${spot(from)}C${spot(one)} ${spot(other)} ${spot(to)}` });
}

/** A cross in the middle of the same curve. */
function cross(from, one, other, to) {
  const middle = (axis) => (from[axis] + 3 * one[axis] + 3 * other[axis] + to[axis]) / 8;
  const [x, y] = [middle("x"), middle("y")];
  return draw("path", { class: "cut", d: `M${x - 5} ${y - 5}l10 10m0 -10l-10 10` });
}

function legendOf(look, text) {
  return make("span", {}, draw("svg", { class: "picture", viewBox: "0 0 30 10" }, wire(look, { x: 1, y: 5 }, { x: 10, y: 5 }, { x: 20, y: 5 }, { x: 29, y: 5 })), text);
}

function inWords(paths) {
  const parts = [[paths.direct, "direct"], [paths.relay, "by the relay"], [paths.none, "without a way"]];
  return parts.filter(([many]) => many).map(([many, how]) => `${count(many)} ${how}`).join(", ") || "no peers";
}
