// The last minutes as a line. Decoration: the figure beside it says the same, so it is hidden from screen readers.

const KEPT = 150; // samples: five minutes of one every other second

class Spark {
  constructor(series) {
    this.series = Array.from({ length: series }, () => []);
    this.area = draw("path", { class: "area" });
    this.lines = this.series.map((_, index) => draw("path", { class: index ? "second" : "first" }));
    this.node = draw("svg", { class: "spark", viewBox: "0 0 100 100", preserveAspectRatio: "none", "aria-hidden": "true" },
      draw("path", { class: "base", d: "M0 100H100" }), this.area, ...this.lines);
  }

  add(...values) {
    this.series.forEach((samples, index) => {
      samples.push(Math.max(0, values[index] ?? 0));
      if (samples.length > KEPT) samples.shift();
    });
    const top = Math.max(1e-9, ...this.series.flat()) * 1.08;
    this.series.forEach((samples, index) => {
      const step = 100 / (KEPT - 1);
      const from = 100 - (samples.length - 1) * step;
      const points = samples.map((value, at) => `${(from + at * step).toFixed(2)} ${(100 - (value / top) * 100).toFixed(1)}`);
      const line = `M${points.join("L")}`;
      this.lines[index].setAttribute("d", line);
      if (index === 0) this.area.setAttribute("d", `${line}L100 100L${from.toFixed(2)} 100Z`);
    });
  }

  clear() {
    this.series.forEach((samples) => samples.splice(0));
  }
}

/** How something divides into kinds, each a class. Decoration too. */
class Bar {
  constructor(kinds) {
    this.parts = kinds.map((kind) => [kind, draw("rect", { class: kind, height: 10, y: 0 })]);
    this.node = draw("svg", { class: "bar", viewBox: "0 0 100 10", preserveAspectRatio: "none", "aria-hidden": "true" },
      draw("rect", { class: "rail", width: 100, height: 10 }), ...this.parts.map(([, part]) => part));
  }

  show(of) {
    const all = this.parts.reduce((sum, [kind]) => sum + of(kind), 0) || 1;
    let from = 0;
    for (const [kind, part] of this.parts) {
      const width = (of(kind) / all) * 100;
      part.setAttribute("x", from);
      part.setAttribute("width", Math.max(0, width - (width && from + width < 100 ? 0.8 : 0)));
      from += width;
    }
  }
}
