// Every pair of objectives as a small scatter; a click makes that pair the large one. Brushes show here too.

import { palette } from "./chart.js";
import { extent } from "./table.js";

const EDGE = 6, LABEL = 20;

export class Matrix {
  /** `onpair(x name, y name)`. */
  constructor(canvas, onpair) {
    this.canvas = canvas;
    canvas.addEventListener("click", (event) => { const cell = this.#cellAt(event); if (cell) onpair(cell.x, cell.y); });
    new ResizeObserver(() => this.table && this.draw(this.mask)).observe(canvas);
    addEventListener("themechange", () => this.table && this.draw(this.mask));
  }

  render({ table, rows, role, x, y }) {
    Object.assign(this, { table, rows, role, x, y });
    this.names = table.objectives.map((o) => o.name);
    this.spans = this.names.map((name) => extent(table.columns[role][name], rows));
    this.canvas.style.height = `${Math.min(150 * (this.names.length - 1), 620)}px`;
  }

  /** Cells below the diagonal: column `a` against row `b`, b after a. */
  * #cells() {
    const count = this.names.length - 1, wide = this.canvas.clientWidth / count, high = this.canvas.clientHeight / count;
    for (let b = 1; b <= count; b += 1) for (let a = 0; a < b; a += 1) yield { a, b, x: this.names[a], y: this.names[b], left: a * wide, top: (b - 1) * high, wide, high };
  }

  draw(mask = null) {
    this.mask = mask;
    const scale = devicePixelRatio || 1, colours = palette();
    this.canvas.width = Math.round(this.canvas.clientWidth * scale);
    this.canvas.height = Math.round(this.canvas.clientHeight * scale);
    const pen = this.canvas.getContext("2d");
    pen.scale(scale, scale);
    pen.font = "11px system-ui, sans-serif";
    for (const cell of this.#cells()) {
      const current = (cell.x === this.x && cell.y === this.y) || (cell.x === this.y && cell.y === this.x);
      pen.globalAlpha = 1;
      pen.strokeStyle = current ? colours.accent : colours.line;
      pen.lineWidth = current ? 2 : 1;
      pen.strokeRect(cell.left + 2, cell.top + 2, cell.wide - 4, cell.high - 4);
      pen.fillStyle = colours.ink;
      pen.fillText(`${cell.x} →  ${cell.y} ↑`, cell.left + EDGE, cell.top + 15, cell.wide - 2 * EDGE);
      this.#points(pen, cell, mask, colours);
    }
  }

  #points(pen, cell, mask, colours) {
    const [across, up] = [cell.a, cell.b].map((index) => this.table.columns[this.role][this.names[index]]), [[x0, x1], [y0, y1]] = [this.spans[cell.a], this.spans[cell.b]];
    const sx = (cell.wide - 2 * EDGE - 4) / (x1 - x0), sy = (cell.high - EDGE - LABEL - 4) / (y1 - y0), bottom = cell.top + cell.high - EDGE;
    for (const layer of [0, 1, 2]) {  // out of the brush, in it, the front
      pen.fillStyle = layer === 2 ? colours.accent : colours.soft;
      pen.globalAlpha = [0.12, 0.5, 1][layer];
      const side = layer === 2 ? 4 : 2.5;
      for (const row of this.rows) {
        const bright = !mask || mask[row];
        if ((bright ? (this.table.front[row] ? 2 : 1) : 0) === layer) pen.fillRect(cell.left + EDGE + (across[row] - x0) * sx, bottom - (up[row] - y0) * sy - side, side, side);
      }
    }
  }

  #cellAt(event) {
    const box = this.canvas.getBoundingClientRect(), x = event.clientX - box.left, y = event.clientY - box.top;
    return [...this.#cells()].find((cell) => x >= cell.left && x < cell.left + cell.wide && y >= cell.top && y < cell.top + cell.high) ?? null;
  }
}
