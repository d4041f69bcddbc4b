// Thousands of points behind a Plotly chart, on a canvas: drawn anew in a few milliseconds, where SVG takes a tenth of a second.

import { palette } from "./chart.js";

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
    this.canvas.width = Math.round(wide * scale);
    this.canvas.height = Math.round(high * scale);
    const place = this.rows.length ? this.#places() : null;
    if (!place) return;
    const pen = this.canvas.getContext("2d"), dot = this.#dot(scale), half = RADIUS + 0.5;
    pen.scale(scale, scale);
    pen.beginPath();
    pen.rect(place.left, place.top, place.wide, place.high);
    pen.clip();
    for (const bright of mask ? [0, 1] : [1]) {
      pen.globalAlpha = bright ? 0.5 : 0.1;
      for (const row of this.rows) if (!mask || mask[row] === bright) pen.drawImage(dot, place.x(this.across[row]) - half, place.y(this.up[row]) - half, 2 * half, 2 * half);
    }
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

  #dot(scale) {
    const dot = document.createElement("canvas"), half = RADIUS + 0.5;
    dot.width = dot.height = Math.ceil(2 * half * scale);
    const pen = dot.getContext("2d");
    pen.scale(scale, scale);
    pen.fillStyle = palette().soft;
    pen.beginPath();
    pen.arc(half, half, RADIUS, 0, 2 * Math.PI);
    pen.fill();
    return dot;
  }
}
