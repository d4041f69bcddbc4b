// Parallel coordinates on a canvas: one line a trial, one axis an objective or member. Drag along an axis to brush it.

import { palette } from "./chart.js";
import { extent, valueOf } from "./model.js";

const TOP = 34, BOTTOM = 26, SIDE = 58, GRAB = 26;

export class Parallel {
  /** `onrange(axis name, [low, high] or null)`. */
  constructor(canvas, onrange) {
    this.canvas = canvas;
    this.onrange = onrange;
    canvas.addEventListener("pointerdown", (event) => this.#down(event));
    canvas.addEventListener("pointermove", (event) => this.#move(event));
    canvas.addEventListener("pointerup", (event) => this.#up(event));
    new ResizeObserver(() => this.trials && this.draw()).observe(canvas);
  }

  render({ trials, axes, role, front, brush, chosen }) {
    Object.assign(this, { trials, axes, role, front, brush, chosen });
    this.spans = axes.map((axis) => extent(trials, axis, role));
    this.rows = trials.map((trial) => axes.map((axis, index) => {
      const value = valueOf(trial, axis, role);
      return value === null ? NaN : (value - this.spans[index][0]) / (this.spans[index][1] - this.spans[index][0]);
    }));
    this.draw();
  }

  #place(index) { return this.axes.length < 2 ? SIDE : SIDE + (index * (this.width - 2 * SIDE)) / (this.axes.length - 1); }
  #height(share) { return this.high - BOTTOM - share * (this.high - TOP - BOTTOM); }

  draw() {
    const box = this.canvas.getBoundingClientRect(), scale = devicePixelRatio || 1;
    this.width = box.width; this.high = box.height;
    this.canvas.width = Math.round(box.width * scale); this.canvas.height = Math.round(box.height * scale);
    const pen = this.canvas.getContext("2d"), colours = palette();
    pen.scale(scale, scale);
    const groups = { out: [], in: [], front: [], chosen: [] };
    this.trials.forEach((trial, index) => {
      if (trial.trial === this.chosen) groups.chosen.push(index);
      else if (!this.brush.empty && !this.brush.passes(trial, this.axes, this.role)) groups.out.push(index);
      else groups[this.front.has(trial.trial) ? "front" : "in"].push(index);
    });
    this.#lines(pen, groups.out, colours.line, 0.5, 1);
    this.#lines(pen, groups.in, this.brush.empty ? colours.soft : colours.accent, this.trials.length > 500 ? 0.25 : 0.5, 1);
    this.#lines(pen, groups.front, colours.accent, 0.95, 1.6);
    this.#lines(pen, groups.chosen, colours.bad, 1, 3);
    this.#axes(pen, colours);
  }

  #lines(pen, indices, colour, alpha, width) {
    pen.strokeStyle = colour; pen.globalAlpha = alpha; pen.lineWidth = width;
    pen.beginPath();
    for (const index of indices) {
      let open = false;
      this.rows[index].forEach((share, axis) => {
        if (Number.isNaN(share)) { open = false; return; }
        if (open) pen.lineTo(this.#place(axis), this.#height(share)); else pen.moveTo(this.#place(axis), this.#height(share));
        open = true;
      });
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
      const range = this.brush.ranges.get(axis.name);
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
