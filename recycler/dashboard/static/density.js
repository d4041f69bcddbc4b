// Thousands of lines and dots, pixel by pixel: how often each pixel is hit decides how opaque it is. Where a canvas strokes
// five thousand anti-aliased lines in a tenth of a second, this takes a few milliseconds, and what lies on top of what still shows.

const PARTS = 4, MOST = 4095; // a pixel at a dot's edge is hit by quarters

/** How often each pixel of `wide` x `high` is hit, in quarters. */
export class Density {
  constructor(wide, high) { Object.assign(this, { wide, high, hits: new Uint16Array(wide * high) }); }

  /** A line between two points, in pixels; one pixel wide, clipped above and below. */
  line(x0, y0, x1, y1) {
    const { wide, high, hits } = this, steps = Math.max(1, Math.ceil(Math.max(Math.abs(x1 - x0), Math.abs(y1 - y0)))), dx = (x1 - x0) / steps, dy = (y1 - y0) / steps;
    for (let step = 0, x = x0, y = y0; step < steps; step += 1, x += dx, y += dy) {
      const column = x | 0, row = y | 0;
      if (column >= 0 && column < wide && row >= 0 && row < high) hits[row * wide + column] += PARTS;
    }
  }

  /** A dot of `stamp` (see `stampOf`) at a point, within the box [left, top, right, bottom]. */
  dot(x, y, stamp, box) {
    const { wide, hits } = this, column = Math.round(x), row = Math.round(y);
    for (let index = 0; index < stamp.length; index += 3) {
      const across = column + stamp[index], down = row + stamp[index + 1];
      if (across >= box[0] && across < box[2] && down >= box[1] && down < box[3]) hits[down * wide + across] += stamp[index + 2];
    }
  }
}

/** Offsets and coverage in quarters, [dx, dy, parts, ...], of a disc of `radius` pixels. */
export function stampOf(radius) {
  const reach = Math.ceil(radius), stamp = [];
  for (let dy = -reach; dy <= reach; dy += 1) {
    for (let dx = -reach; dx <= reach; dx += 1) {
      const parts = Math.round(PARTS * Math.min(1, Math.max(0, radius + 0.5 - Math.hypot(dx, dy))));
      if (parts) stamp.push(dx, dy, parts);
    }
  }
  return stamp;
}

/** Paints layers {density, colour "#rrggbb", alpha of one hit}, the later over the earlier, in place of what the canvas holds. */
export function paint(pen, wide, high, layers) {
  const image = pen.createImageData(wide, high), data = image.data;
  for (const { density: { hits }, colour, alpha } of layers) {
    const [red, green, blue] = rgb(colour), opaque = new Float32Array(MOST + 1).map((_, parts) => 1 - (1 - alpha) ** (parts / PARTS));
    for (let pixel = 0; pixel < hits.length; pixel += 1) {
      if (!hits[pixel]) continue;
      const own = opaque[Math.min(hits[pixel], MOST)], place = 4 * pixel, below = (data[place + 3] / 255) * (1 - own), all = own + below;
      data[place] = (red * own + data[place] * below) / all;
      data[place + 1] = (green * own + data[place + 1] * below) / all;
      data[place + 2] = (blue * own + data[place + 2] * below) / all;
      data[place + 3] = 255 * all;
    }
  }
  pen.putImageData(image, 0, 0);
}

/** Gives a canvas its size in pixels; nothing happens where it has it, since a new size costs a new buffer. */
export function sized(canvas, wide, high) {
  if (canvas.width !== wide) canvas.width = wide;
  if (canvas.height !== high) canvas.height = high;
}

function rgb(colour) {
  const digits = colour.slice(1), whole = digits.length === 3 ? [...digits].map((digit) => digit + digit).join("") : digits;
  return [0, 2, 4].map((start) => parseInt(whole.slice(start, start + 2), 16));
}
