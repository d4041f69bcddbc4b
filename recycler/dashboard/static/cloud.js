// Thousands of points behind a Plotly chart, on a canvas: drawn anew in a few milliseconds, where SVG takes a tenth of a second.

import { palette } from "./chart.js";
import { Density, paint, sized, stampOf } from "./density.js";

const RADIUS = 3.5, REACH = 9;

export class Cloud {
  /** `canvas` lies behind `chart`, in one wrapper; the chart's plot area must be transparent. */
  constructor(canvas, chart) {
    this.canvas = canvas;
    this.chart = chart;
    this.rows = [];
    new ResizeObserver(() => this.draw()).observe(canvas);
  }

  /** Points by row: `across` and `up` are whole columns. */
  show(rows, across, up) { Object.assign(this, { rows, across, up }); }

  /** Draws the points, bright where `mask` says so; `null` makes all bright. Without argument: as before. */
  draw(mask = this.mask ?? null) {
    this.mask = mask;
    const scale = devicePixelRatio || 1, wide = this.canvas.clientWidth, high = this.canvas.clientHeight;
    sized(this.canvas, Math.round(wide * scale), Math.round(high * scale));
    const place = this.rows.length ? this.#places() : null;
    if (!place) { this.canvas.getContext("2d").clearRect(0, 0, this.canvas.width, this.canvas.height); return; }
    const pale = new Density(this.canvas.width, this.canvas.height), bright = new Density(this.canvas.width, this.canvas.height), stamp = stampOf(RADIUS * scale);
    const box = [place.left, place.top, place.left + place.wide, place.top + place.high].map((edge) => Math.round(edge * scale));
    for (const row of this.rows) (!mask || mask[row] ? bright : pale).dot(place.x(this.across[row]) * scale, place.y(this.up[row]) * scale, stamp, box);
    const colour = palette().soft;
    paint(this.canvas.getContext("2d", { willReadFrequently: true }), this.canvas.width, this.canvas.height, [{ density: pale, colour, alpha: 0.1 }, { density: bright, colour, alpha: 0.5 }]);
  }

  /** The row of the point under the pointer, or null. */
  at(event) {
    const place = this.rows.length ? this.#places() : null, box = this.canvas.getBoundingClientRect(), x = event.clientX - box.left, y = event.clientY - box.top;
    let found = null, best = REACH ** 2;
    if (!place || x < place.left || x > place.left + place.wide || y < place.top || y > place.top + place.high) return null;
    for (const row of this.rows) {
      const far = (place.x(this.across[row]) - x) ** 2 + (place.y(this.up[row]) - y) ** 2;
      if (far < best && (!this.mask || this.mask[row])) { best = far; found = row; }
    }
    return found;
  }

  /** From data to pixels, by the chart's own plot area and ranges. */
  #places() {
    const area = this.chart.querySelector(".nsewdrag")?.getBoundingClientRect(), box = this.canvas.getBoundingClientRect();
    const across = this.chart.layout?.xaxis?.range, up = this.chart.layout?.yaxis?.range;
    if (!area || !across || !up) return null;
    const left = area.left - box.left, top = area.top - box.top, wide = area.width, high = area.height;
    return { left, top, wide, high, x: (value) => left + ((value - across[0]) / (across[1] - across[0])) * wide, y: (value) => top + high - ((value - up[0]) / (up[1] - up[0])) * high };
  }
}
