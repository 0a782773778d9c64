// A table of peers: sorted by a heading's button, filtered, rows kept while their peer is there.

/** A column: {name, title, value: what to sort by, find: text to search, show: how, number,
 *  place: on a phone, nil: whether a phone may leave it out}. */
const MANY = 1000; // rows; more than that nobody reads, and a phone can't draw

class PeerTable {
  constructor({ title, caption, columns, sortBy, limit, onMore }) {
    this.columns = columns;
    this.sortBy = sortBy;
    this.descending = true;
    this.rows = new Map();
    this.peers = [];
    this.filter = make("input", { type: "search", autocomplete: "off", spellcheck: "false" });
    this.filter.addEventListener("input", () => this.render());
    this.headings = columns.map((column) => this.heading(column));
    this.body = make("tbody", { role: "rowgroup" });
    this.note = make("p", { class: "none", role: "status" });
    this.table = make("table", { role: "table" }, make("caption", { class: "quiet" }, caption),
      make("thead", { role: "rowgroup" }, make("tr", { role: "row" }, ...this.headings)), this.body);
    this.more = make("button", { type: "button", hidden: "" }, "Show more");
    this.more.addEventListener("click", onMore);
    this.limit = limit;
    this.find = make("label", {}, "Find", this.filter);
    this.node = make("section", { class: "panel" },
      make("div", { class: "head" }, make("h2", {}, title), this.find),
      this.table, this.note, this.more);
  }

  heading(column) {
    const attributes = { scope: "col", role: "columnheader", class: column.number ? "num" : null };
    const button = make("button", { type: "button" }, column.title);
    button.addEventListener("click", () => {
      this.descending = this.sortBy === column.name ? !this.descending : Boolean(column.number);
      this.sortBy = column.name;
      this.render();
    });
    return make("th", attributes, button);
  }

  show(peers, all) {
    this.peers = peers;
    this.all = all;
    this.render();
  }

  render() {
    const wanted = this.filter.value.trim().toLowerCase();
    const column = this.columns.find((one) => one.name === this.sortBy);
    const direction = this.descending ? -1 : 1;
    const shown = this.peers
      .filter((peer) => !wanted || this.columns.some((one) => one.find && one.find(peer).toLowerCase().includes(wanted)))
      .sort((one, other) => {
        const [a, b] = [column.value(one), column.value(other)];
        const order = a < b ? -1 : a > b ? 1 : 0;
        return order * direction || (one.key < other.key ? -1 : 1);
      });
    this.headings.forEach((heading, index) => {
      if (this.columns[index].name === this.sortBy) heading.setAttribute("aria-sort", this.descending ? "descending" : "ascending");
      else heading.removeAttribute("aria-sort");
    });
    const keys = new Set(shown.map((peer) => peer.key));
    for (const [key, row] of this.rows) {
      if (!keys.has(key)) {
        row.node.remove();
        this.rows.delete(key);
      }
    }
    shown.forEach((peer, at) => {
      const row = this.rows.get(peer.key) || this.add(peer.key);
      this.columns.forEach((one, index) => {
        one.show(row.cells[index], peer);
        if (one.nil) row.cells[index].classList.toggle("nil", one.nil(peer)); // a phone leaves it out
      });
      if (this.body.children[at] !== row.node) this.body.insertBefore(row.node, this.body.children[at] || null);
    });
    this.table.hidden = this.find.hidden = this.peers.length === 0;
    this.explain(shown.length, wanted);
  }

  explain(shown, wanted) {
    const cut = this.all > this.peers.length;
    this.more.hidden = !cut || this.limit() >= MANY;
    if (this.all === 0) say(this.note, this.nothing || "None.");
    else if (wanted && shown === 0) say(this.note, `Nothing here has “${wanted}” in it.`);
    else if (cut) say(this.note, `The ${count(this.peers.length)} that carried most, of ${count(this.all)}.`);
    else say(this.note, "");
  }

  add(key) {
    const cells = this.columns.map((column) => make("td", {
      role: "cell",
      class: [column.number ? "num" : "", column.place || ""].join(" ").trim() || null,
      "data-name": column.place === "wide" || column.place === "whole" ? null : column.title,
    }));
    const row = { node: make("tr", { role: "row" }, ...cells), cells };
    this.rows.set(key, row);
    return row;
  }
}

/** Fills a cell with text, and perhaps a smaller second line; `look` is the first one's class. */
function put(cell, text, below = null, look = "") {
  if (!cell.firstChild) cell.append(make("span"), make("span", { class: "small" }));
  const [first, second] = cell.children;
  say(first, text);
  dress(first, look);
  say(second, below || "");
  second.hidden = !below;
}
