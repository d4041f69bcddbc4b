// State of the Front page as plain data: what stands in the address, and the brush. No drawing here.

const MAX_CORNERS = 60;
const short = (value) => +value.toPrecision(6);

/** State of the page in the address: everything a link should bring back. */
export function readHash(defaults) {
  const given = new URLSearchParams(location.hash.slice(1));
  return Object.fromEntries(Object.entries(defaults).map(([key, value]) => [key, given.get(key) ?? value]));
}

export function writeHash(state, defaults) {
  const kept = Object.entries(state).filter(([key, value]) => value !== "" && value !== null && value !== defaults[key]);
  history.replaceState(null, "", `#${new URLSearchParams(kept)}`);
}

/** Shapes of the scatter (boxes and lassos, lists of corners [x, y]) and one interval an axis; a trial is in when one shape and all intervals hold it. */
export class Brush {
  constructor() { this.shapes = []; this.ranges = new Map(); }

  get empty() { return !this.shapes.length && !this.ranges.size; }

  clear() { this.shapes = []; this.ranges.clear(); }

  /** One byte a row, 1 for what passes; null when nothing is brushed. `x`, `y` are the axes that shapes were drawn on. */
  mask(table, axes, role, x, y) {
    if (this.empty) return null;
    const mask = new Uint8Array(table.size).fill(1);
    for (const [name, [low, high]] of this.ranges) {
      const axis = axes.find((candidate) => candidate.name === name), column = axis && table.values(axis, role);
      if (column) for (let row = 0; row < mask.length; row += 1) if (!(column[row] >= low && column[row] <= high)) mask[row] = 0;
    }
    if (this.shapes.length) {
      const across = table.columns[role][x], up = table.columns[role][y];
      for (let row = 0; row < mask.length; row += 1) if (mask[row] && !this.shapes.some((corners) => inside(corners, across[row], up[row]))) mask[row] = 0;
    }
    return mask;
  }

  rangesText() { return [...this.ranges].map(([name, range]) => `${encodeURIComponent(name)}:${range.map(short).join(":")}`).join("|"); }

  shapesText() { return this.shapes.map((corners) => corners.flat().map(short).join(",")).join("|"); }

  static fromText(ranges, shapes) {
    const brush = new Brush();
    for (const part of ranges.split("|").filter(Boolean)) {
      const [name, low, high] = part.split(":");
      if (!Number.isNaN(+low) && !Number.isNaN(+high)) brush.ranges.set(decodeURIComponent(name), [+low, +high]);
    }
    for (const part of shapes.split("|").filter(Boolean)) {
      const flat = part.split(",").map(Number);
      if (flat.length >= 6 && flat.length % 2 === 0 && flat.every(Number.isFinite)) brush.shapes.push(flat.flatMap((_, index) => (index % 2 ? [] : [[flat[index], flat[index + 1]]])));
    }
    return brush;
  }
}

/** Corners of Plotly's selections: a box has four, a lasso as many as its path, thinned out. */
export function cornersOf(selections) {
  return selections.map((shape) => {
    if (shape.type === "rect") return [[shape.x0, shape.y0], [shape.x1, shape.y0], [shape.x1, shape.y1], [shape.x0, shape.y1]];
    const corners = shape.path.replace(/[MZ]/g, "").split("L").map((pair) => pair.split(",").map(Number)), step = Math.ceil(corners.length / MAX_CORNERS);
    return corners.filter((_, index) => index % step === 0);
  }).filter((corners) => corners.length > 2 && corners.flat().every(Number.isFinite));
}

/** Whether a point lies in a polygon: rays cross its border an odd number of times; the border of a box is inside. */
function inside(corners, x, y) {
  let odd = false;
  for (let index = 0, last = corners.length - 1; index < corners.length; last = index, index += 1) {
    const [ax, ay] = corners[index], [bx, by] = corners[last];
    if (ay > y !== by > y && x < ((bx - ax) * (y - ay)) / (by - ay) + ax) odd = !odd;
  }
  return odd;
}
