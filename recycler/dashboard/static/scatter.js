// Any two objectives against each other: all merges grey, the front joined, members and soups beside them.

import { draw, highlight } from "./chart.js";
import { trialName } from "./dom.js";

const KINDS = [
  ["merges", (trial, front) => !front.has(trial.trial) && (trial.kind === "merge" || trial.kind === "greedy_soup"), { symbol: "circle", size: 7 }, "soft"],
  ["front", (trial, front) => front.has(trial.trial), { symbol: "circle", size: 11 }, "accent"],
  ["members", (trial) => trial.kind === "member", { symbol: "diamond", size: 11 }, 1],
  ["uniform soup", (trial) => trial.kind === "uniform_soup", { symbol: "square", size: 11 }, 2],
  ["greedy soup", (trial, _front, greedy) => trial.trial === greedy, { symbol: "triangle-up", size: 12 }, 3],
  ["base", (trial) => trial.kind === "base", { symbol: "x", size: 10 }, 4],
];

export class Scatter {
  /** `onbrush(numbers or null)`, `onchoose(number)`. */
  constructor(element, { onbrush, onchoose }) {
    this.element = element;
    this.traces = [];
    this.handlers = { onbrush, onchoose };
  }

  async render({ data, front, greedy, x, y, role, dominated, bars, chosen }) {
    const point = (trial, name) => trial.scores[role]?.[name];
    const there = data.trials.filter((trial) => point(trial, x)?.value != null && point(trial, y)?.value != null);
    const better = data.objectives.find((o) => o.name === x)?.direction;
    this.traces = KINDS.map(([, belongs]) => there.filter((trial) => belongs(trial, front, greedy)));
    if (!dominated) this.traces[0] = [];
    const stairs = staircase(there, data.objectives, x, y, point);
    const ring = there.filter((trial) => trial.trial === chosen);
    await draw(this.element, (colours) => {
      const error = (trials, name) => ({ type: "data", array: trials.map((trial) => point(trial, name).stderr ?? 0), visible: bars, thickness: 1, width: 2 });
      const traces = KINDS.map(([name, , marker, colour], index) => {
        const own = this.traces[index], shade = typeof colour === "number" ? colours.series[colour] : colours[colour];
        return { type: "scatter", mode: "markers", name, x: own.map((t) => point(t, x).value), y: own.map((t) => point(t, y).value), customdata: own.map((t) => t.trial),
          text: own.map((t) => escapeForPlotly(trialName(t))), hovertemplate: "%{text}<br>%{x:.4f}, %{y:.4f}<extra></extra>", marker: { ...marker, color: shade, opacity: name === "merges" ? 0.55 : 1 },
          unselected: { marker: { opacity: 0.12 } }, ...(index ? { error_x: { ...error(own, x), color: shade }, error_y: { ...error(own, y), color: shade } } : {}) };
      });
      traces.push({ type: "scatter", mode: "markers", name: "chosen", showlegend: false, hoverinfo: "skip", x: ring.map((t) => point(t, x).value), y: ring.map((t) => point(t, y).value), marker: { symbol: "circle-open", size: 20, color: colours.bad, line: { width: 3 } } });
      traces.push({ type: "scatter", mode: "lines", name: "best so far", hoverinfo: "skip", x: stairs.map((t) => point(t, x).value), y: stairs.map((t) => point(t, y).value), line: { shape: better === "minimize" ? "hv" : "vh", color: colours.accent, width: 1.5, dash: "dot" } });
      return { traces, layout: { dragmode: "select", xaxis: { title: { text: escapeForPlotly(x) } }, yaxis: { title: { text: escapeForPlotly(y) } } } };
    });
    this.#listen();
  }

  /** Dims what `passes` refuses; null shows all. */
  show(passes) {
    const indices = this.traces.map((own) => (passes ? own.flatMap((trial, index) => (passes(trial) ? [index] : [])) : null));
    return highlight(this.element, [...indices, null, null]);
  }

  #listen() {
    if (this.listening) return;
    this.listening = true;
    const numbers = (event) => new Set(event.points.filter((p) => p.curveNumber < KINDS.length).map((p) => this.traces[p.curveNumber][p.pointIndex].trial));
    this.element.on("plotly_selected", (event) => { if (event) this.handlers.onbrush(event.points.length || event.range || event.lassoPoints ? numbers(event) : null); });
    this.element.on("plotly_deselect", () => this.handlers.onbrush(null));
    this.element.on("plotly_click", (event) => { const point = event.points.find((p) => p.curveNumber < KINDS.length); if (point) this.handlers.onchoose(this.traces[point.curveNumber][point.pointIndex].trial); });
  }
}

/** Trials that no other beats on these two objectives alone, from low x to high. */
function staircase(trials, objectives, x, y, point) {
  const sign = (name) => (objectives.find((o) => o.name === name)?.direction === "minimize" ? -1 : 1);
  const best = [];
  for (const trial of [...trials].sort((a, b) => sign(x) * (point(b, x).value - point(a, x).value) || sign(y) * (point(b, y).value - point(a, y).value))) {
    if (!best.length || sign(y) * (point(trial, y).value - point(best.at(-1), y).value) > 0) best.push(trial);
  }
  return best.sort((a, b) => point(a, x).value - point(b, x).value);
}

/** Plotly reads a few tags in text; names must not be read so. */
export function escapeForPlotly(text) {
  return String(text).replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");
}
