// Any two objectives against each other: all merges grey, the front joined, members and soups beside them.

import { clearSelections, draw, escapeForPlotly, highlight } from "./chart.js";
import { Cloud } from "./cloud.js";
import { h } from "./dom.js";
import { cornersOf } from "./model.js";
import { extent } from "./table.js";

const CLOUD_LIMIT = 800, STILL = 4, ROOM = 0.05;
const KINDS = [
  ["merges", (table, row) => !table.front[row] && (table.kinds[row] === "merge" || table.kinds[row] === "greedy_soup"), { symbol: "circle", size: 7 }, "soft"],
  ["front", (table, row) => table.front[row], { symbol: "circle", size: 11 }, "accent"],
  ["members", (table, row) => table.kinds[row] === "member", { symbol: "diamond", size: 11 }, 1],
  ["uniform soup", (table, row) => table.kinds[row] === "uniform_soup", { symbol: "square", size: 11 }, 2],
  ["greedy soup", (table, row) => table.numbers[row] === table.greedy, { symbol: "triangle-up", size: 12 }, 3],
  ["base", (table, row) => table.kinds[row] === "base", { symbol: "x", size: 10 }, 4],
];

export class Scatter {
  /** `onbrush(list of shapes)`, `onchoose(trial number)`. `wrapper` comes to hold the chart and the canvas behind it. */
  constructor(wrapper, { onbrush, onchoose }) {
    this.element = h("div", { class: "chart", id: "scatter", role: "group", "aria-label": "Scatter of two objectives; the table below holds the same trials" });
    this.tip = h("div", { class: "tip", hidden: true });
    const canvas = h("canvas", { class: "behind", id: "cloud", "aria-hidden": "true" });
    wrapper.append(canvas, this.element, this.tip);
    this.cloud = new Cloud(canvas, this.element);
    this.traces = [];
    this.handlers = { onbrush, onchoose };
    wrapper.addEventListener("pointermove", (event) => this.#hover(event));
    wrapper.addEventListener("pointerleave", () => { this.tip.hidden = true; });
    wrapper.addEventListener("pointerdown", (event) => { this.down = [event.clientX, event.clientY]; });
    wrapper.addEventListener("pointerup", (event) => {
      const row = this.down && Math.hypot(event.clientX - this.down[0], event.clientY - this.down[1]) < STILL ? this.cloud.at(event) : null;
      if (row !== null) this.handlers.onchoose(this.table.numbers[row]);
    });
  }

  async render({ table, rows, x, y, role, bars, chosen, shapes }) {
    Object.assign(this, { table, rows, x, y, role });
    const across = table.columns[role][x], up = table.columns[role][y];
    this.traces = KINDS.map(([, belongs]) => rows.filter((row) => belongs(table, row)));
    const cloud = this.traces[0].length > CLOUD_LIMIT ? this.traces[0] : [];
    this.cloud.show(cloud, across, up);
    const whole = this.traces;
    if (cloud.length) this.traces = [[], ...this.traces.slice(1)];
    const figure = (own) => (colours) => this.#figure(own, { across, up, bars, chosen, shapes, colours, transparent: cloud.length > 0 && own !== whole });
    await draw(this.element, figure(this.traces), figure(whole));
    this.#listen();
    this.cloud.draw();
  }

  #figure(groups, { across, up, bars, chosen, shapes, colours, transparent }) {
    const { table, rows, x, y, role } = this, error = (own, name) => ({ type: "data", array: own.map((row) => table.errors(name, role)[row] || 0), visible: bars, thickness: 1, width: 2 });
    const traces = KINDS.map(([name, , marker, colour], index) => {
      const own = groups[index], shade = typeof colour === "number" ? colours.series[colour] : colours[colour];
      return { type: "scatter", mode: "markers", name, x: own.map((row) => across[row]), y: own.map((row) => up[row]), customdata: own.map((row) => table.numbers[row]), text: own.map((row) => escapeForPlotly(table.name(row))),
        hovertemplate: "%{text}<br>%{x:.4f}, %{y:.4f}<extra></extra>", marker: { ...marker, color: shade, opacity: name === "merges" ? 0.55 : 1 }, unselected: { marker: { opacity: 0.12 } },
        ...(index ? { error_x: { ...error(own, x), color: shade }, error_y: { ...error(own, y), color: shade } } : {}) };
    });
    const ring = chosen === null ? [] : [chosen], stairs = this.#staircase();
    traces.push({ type: "scatter", mode: "markers", name: "chosen", showlegend: false, hoverinfo: "skip", x: ring.map((row) => across[row]), y: ring.map((row) => up[row]), marker: { symbol: "circle-open", size: 20, color: colours.bad, line: { width: 3 } } });
    traces.push({ type: "scatter", mode: "lines", name: "best so far", hoverinfo: "skip", x: stairs.map((row) => across[row]), y: stairs.map((row) => up[row]), line: { shape: this.#sign(x) < 0 ? "hv" : "vh", color: colours.accent, width: 1.5, dash: "dot" } });
    const range = (column) => { const [low, high] = extent(column, rows), room = ROOM * (high - low); return [low - room, high + room]; };
    const line = { color: colours.ink, width: 1, dash: "dot" }, selections = shapes.map((corners) => ({ type: "path", path: `M${corners.map((corner) => corner.join(",")).join("L")}Z`, line }));
    return { traces, layout: { dragmode: this.element.layout?.dragmode ?? "select", uirevision: `${x} ${y} ${role}`, selectionrevision: selections.map((shape) => shape.path).join(), selections, ...(transparent ? { plot_bgcolor: "rgba(0,0,0,0)", paper_bgcolor: "rgba(0,0,0,0)" } : {}),
      xaxis: { title: { text: escapeForPlotly(x) }, range: range(across) }, yaxis: { title: { text: escapeForPlotly(y) }, range: range(up) } } };
  }

  /** Dims what the mask leaves out; null shows all. */
  show(mask) {
    this.cloud.draw(mask);
    const indices = this.traces.map((own) => (mask ? own.flatMap((row, index) => (mask[row] ? [index] : [])) : null));
    return highlight(this.element, [...indices, null, null]);
  }

  clear() { return clearSelections(this.element); }

  #sign(name) { return this.table.objectives.find((o) => o.name === name)?.direction === "minimize" ? -1 : 1; }

  /** Rows that no other beats on these two objectives alone, from low x to high. */
  #staircase() {
    const across = this.table.columns[this.role][this.x], up = this.table.columns[this.role][this.y], sx = this.#sign(this.x), sy = this.#sign(this.y), best = [];
    for (const row of [...this.rows].sort((a, b) => sx * (across[b] - across[a]) || sy * (up[b] - up[a]))) if (!best.length || sy * (up[row] - up[best.at(-1)]) > 0) best.push(row);
    return best.sort((a, b) => across[a] - across[b]);
  }

  #hover(event) {
    const row = this.cloud.at(event);
    this.tip.hidden = row === null || event.buttons > 0;
    if (this.tip.hidden) return;
    const box = this.cloud.canvas.getBoundingClientRect();
    this.tip.textContent = `${this.table.name(row)}: ${this.cloud.across[row].toFixed(4)}, ${this.cloud.up[row].toFixed(4)}`;
    this.tip.style.left = `${event.clientX - box.left + 12}px`;
    this.tip.style.top = `${event.clientY - box.top + 12}px`;
  }

  #listen() {
    if (this.listening) return;
    this.listening = true;
    this.element.on("plotly_selected", (event) => { if (event) this.handlers.onbrush(cornersOf(this.element.layout.selections ?? [])); });
    this.element.on("plotly_deselect", () => this.handlers.onbrush([]));
    this.element.on("plotly_relayout", () => this.cloud.draw());
    this.element.on("plotly_relayouting", () => this.cloud.draw());
    this.element.on("plotly_click", (event) => { const point = event.points.find((p) => p.curveNumber < KINDS.length); if (point) this.handlers.onchoose(this.table.numbers[this.traces[point.curveNumber][point.pointIndex]]); });
  }
}
