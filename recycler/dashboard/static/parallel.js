// Parallel coordinates on a canvas: one line a trial, one axis an objective or member. Drag along an axis to brush it.

import { palette } from "./chart.js";
import { Density, paint, sized } from "./density.js";
import { extent } from "./table.js";

const TOP = 34, BOTTOM = 26, SIDE = 58, GRAB = 26;

export class Parallel {
  /** `onrange(axis name, [low, high] or null)`. */
  constructor(canvas, onrange) {
    this.canvas = canvas;
    this.onrange = onrange;
    canvas.addEventListener("pointerdown", (event) => this.#down(event));
    canvas.addEventListener("pointermove", (event) => this.#move(event));
    canvas.addEventListener("pointerup", (event) => this.#up(event));
    new ResizeObserver(() => this.table && this.draw()).observe(canvas);
  }

  render({ table, rows, axes, role, ranges, chosen }) {
    Object.assign(this, { table, rows, axes, role, ranges, chosen });
    this.columns = axes.map((axis) => table.values(axis, role));
    this.spans = this.columns.map((column) => extent(column, rows));
    this.layer = null;
  }

  #place(index) { return this.axes.length < 2 ? SIDE : SIDE + (index * (this.width - 2 * SIDE)) / (this.axes.length - 1); }
  #height(share) { return this.high - BOTTOM - share * (this.high - TOP - BOTTOM); }

  /** Draws all; lines that `mask` leaves out are pale. They come from a layer that is drawn once, so a brush draws only what is in it. */
  draw(mask = this.mask ?? null) {
    this.mask = mask;
    const wide = this.canvas.clientWidth, high = this.canvas.clientHeight, scale = devicePixelRatio || 1, colours = palette();
    if (!this.layer || this.width !== wide || this.high !== high || this.theme !== colours) Object.assign(this, { width: wide, high, theme: colours, layer: null });
    sized(this.canvas, Math.round(wide * scale), Math.round(high * scale));
    const pen = this.canvas.getContext("2d", { willReadFrequently: true }), bright = this.rows.filter((row) => row !== this.chosen && (!mask || mask[row]));
    const layers = [{ density: this.#density(bright.filter((row) => !this.table.front[row]), scale), colour: mask ? colours.accent : colours.soft, alpha: bright.length > 500 ? 0.12 : 0.5 }];
    if (mask) layers.unshift({ density: this.layer ??= this.#density(this.rows, scale), colour: colours.line, alpha: this.rows.length > 500 ? 0.12 : 0.5 });
    paint(pen, this.canvas.width, this.canvas.height, layers);
    pen.setTransform(scale, 0, 0, scale, 0, 0);
    this.#lines(pen, bright.filter((row) => this.table.front[row]), colours.accent, 0.95, 1.6);
    if (this.rows.includes(this.chosen)) this.#lines(pen, [this.chosen], colours.bad, 1, 3);
    this.#axes(pen, colours);
  }

  #density(rows, scale) {
    const density = new Density(this.canvas.width, this.canvas.height), places = this.axes.map((_, index) => this.#place(index) * scale);
    const tall = (this.high - TOP - BOTTOM) * scale, floor = (this.high - BOTTOM) * scale;
    for (let axis = 1; axis < places.length; axis += 1) {
      const [left, right] = [this.columns[axis - 1], this.columns[axis]], [low, high] = this.spans[axis - 1], [least, most] = this.spans[axis], up = tall / (high - low), rise = tall / (most - least);
      for (const row of rows) {
        const from = floor - (left[row] - low) * up, to = floor - (right[row] - least) * rise;
        if (from === from && to === to) density.line(places[axis - 1], from, places[axis], to); // NaN is not itself: no score, no line
      }
    }
    return density;
  }

  #lines(pen, rows, colour, alpha, width) {
    pen.strokeStyle = colour; pen.globalAlpha = alpha; pen.lineWidth = width;
    const places = this.axes.map((_, index) => this.#place(index)), tall = this.high - TOP - BOTTOM, floor = this.high - BOTTOM;
    pen.beginPath();
    for (const row of rows) {
      let open = false;
      for (let axis = 0; axis < places.length; axis += 1) {
        const value = this.columns[axis][row], [low, high] = this.spans[axis];
        if (Number.isNaN(value)) { open = false; continue; }
        const y = floor - ((value - low) / (high - low)) * tall;
        if (open) pen.lineTo(places[axis], y); else pen.moveTo(places[axis], y);
        open = true;
      }
    }
    pen.stroke();
    pen.globalAlpha = 1;
  }

  #axes(pen, colours) {
    pen.font = "12px system-ui, sans-serif"; pen.textAlign = "center"; pen.lineWidth = 1;
    const room = ((this.width - 2 * SIDE) / Math.max(1, this.axes.length - 1)) - 6;
    this.axes.forEach((axis, index) => {
      const x = this.#place(index), [low, high] = this.spans[index];
      pen.strokeStyle = colours.ink; pen.fillStyle = colours.ink;
      pen.beginPath(); pen.moveTo(x, TOP); pen.lineTo(x, this.high - BOTTOM); pen.stroke();
      pen.fillText(shortened(pen, axis.name, index && index < this.axes.length - 1 ? Math.max(room, 60) : 2 * SIDE - 4), x, 12);
      pen.fillStyle = colours.soft;
      pen.fillText(high.toPrecision(3), x, 27); pen.fillText(low.toPrecision(3), x, this.high - 10);
      const range = this.ranges.get(axis.name);
      if (!range) return;
      const [from, to] = range.map((value) => this.#height(Math.min(1, Math.max(0, (value - low) / (high - low)))));
      pen.fillStyle = colours.accent; pen.globalAlpha = 0.45; pen.fillRect(x - 7, to, 14, from - to); pen.globalAlpha = 1;
    });
  }

  #at(event) {
    const box = this.canvas.getBoundingClientRect();
    return [event.clientX - box.left, event.clientY - box.top];
  }

  #value(index, y) {
    const share = Math.min(1, Math.max(0, (this.high - BOTTOM - y) / (this.high - TOP - BOTTOM))), [low, high] = this.spans[index];
    return low + share * (high - low);
  }

  #down(event) {
    if (!this.axes) return;
    const [x, y] = this.#at(event), index = this.axes.findIndex((_, candidate) => Math.abs(this.#place(candidate) - x) < GRAB);
    if (index < 0) return;
    this.canvas.setPointerCapture(event.pointerId);
    this.drag = { index, y };
  }

  #move(event) {
    if (!this.drag) return;
    const y = this.#at(event)[1];
    if (Math.abs(y - this.drag.y) < 4) return;
    const ends = [this.#value(this.drag.index, y), this.#value(this.drag.index, this.drag.y)].sort((a, b) => a - b);
    this.drag.moved = true;
    this.onrange(this.axes[this.drag.index].name, ends);
  }

  #up() {
    if (this.drag && !this.drag.moved) this.onrange(this.axes[this.drag.index].name, null);
    this.drag = null;
  }
}

/** The name without its middle where it is too long for `room` pixels. */
function shortened(pen, name, room) {
  let kept = name;
  for (let length = name.length - 1; length > 4 && pen.measureText(kept).width > room; length -= 1) kept = `${name.slice(0, Math.floor(length / 2))}…${name.slice(-Math.floor(length / 2))}`;
  return kept;
}
