// Making and changing the document. All text goes in as text: nothing here, and nothing that uses it, parses markup.

const SVG = "http://www.w3.org/2000/svg";

function fill(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes || {})) {
    if (value !== null && value !== undefined) node.setAttribute(name, value);
  }
  node.append(...children.filter((child) => child !== null));
  return node;
}

const make = (name, attributes, ...children) => fill(document.createElement(name), attributes, children);
const draw = (name, attributes, ...children) => fill(document.createElementNS(SVG, name), attributes, children);
const byId = (id) => document.getElementById(id);

/** Sets text only when it changes, so that a selection and a screen reader aren't disturbed. */
function say(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

function dress(node, className) {
  if (node.getAttribute("class") !== className) node.setAttribute("class", className);
}

/** What a tile shows: a figure with its unit, a line or two below, a sparkline. */
class Tile {
  constructor(title, series) {
    this.value = make("span");
    this.unit = make("span", { class: "unit" });
    this.figure = make("p", { class: "figure" }, this.value, this.unit);
    this.more = make("div", { class: "more" });
    this.spark = series ? new Spark(series) : null;
    this.node = make("section", { class: "tile" }, make("h2", {}, title), this.figure, this.more,
      this.spark && this.spark.node);
  }

  show([value, unit], mood = "") {
    say(this.value, value);
    say(this.unit, unit || "");
    dress(this.figure, `figure ${mood}`.trim());
  }

  /** Lines of text; a line may begin with the key of a series. */
  explain(...lines) {
    const key = lines.join("\n");
    if (this.explained === key) return;
    this.explained = key;
    this.more.replaceChildren(...lines.map((line) => {
      const [, series, text] = /^(?:\[([12])\])?(.*)$/.exec(line);
      return make("div", {}, series ? make("span", { class: `key-${series}` }) : "", text);
    }));
  }
}

/** Names with a total and a rate each, those that are zero left out. */
class Figures {
  constructor(title, nothing, meanings = {}) {
    this.meanings = meanings;
    this.empty = make("p", { class: "none" }, nothing);
    this.rows = new Map();
    this.list = make("dl", { class: "list", hidden: "" });
    this.node = make("section", { class: "panel" }, make("h2", {}, title), this.empty, this.list);
  }

  /** `entries`: [name, total, per second or null, whether that is bad]. */
  show(entries) {
    const shown = entries.filter(([, value]) => value);
    this.empty.hidden = shown.length > 0;
    this.list.hidden = shown.length === 0;
    const names = new Set(shown.map(([name]) => name));
    for (const [name, row] of this.rows) {
      if (!names.has(name)) {
        row.node.remove();
        this.rows.delete(name);
      }
    }
    for (const [name, value, rate, hot] of shown) {
      let row = this.rows.get(name);
      if (!row) {
        row = { value: make("dd"), rate: make("dd", { class: "rate" }) };
        const meaning = this.meanings[name];
        row.node = make("div", {}, make("dt", {}, meaning || name), row.value, row.rate);
        this.rows.set(name, row);
        this.list.append(row.node);
      }
      say(row.value, count(value));
      say(row.rate, rate == null ? "" : perSecond(rate));
      dress(row.rate, hot && rate > 0 ? "rate hot" : "rate");
    }
  }
}
