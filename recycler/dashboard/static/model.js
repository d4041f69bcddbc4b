// Trials, objectives, brushes and preferences as plain data: what the Front page knows. No drawing here.

/** State of the page in the address: everything a link should bring back. */
export function readHash(defaults) {
  const given = new URLSearchParams(location.hash.slice(1));
  return Object.fromEntries(Object.entries(defaults).map(([key, value]) => [key, given.get(key) ?? value]));
}

export function writeHash(state, defaults) {
  const kept = Object.entries(state).filter(([key, value]) => value !== "" && value !== null && value !== defaults[key]);
  history.replaceState(null, "", `#${new URLSearchParams(kept)}`);
}

/** Value of a trial on an axis: an objective's score in the role, or a member's mean weight over groups. */
export function valueOf(trial, axis, role) {
  if (axis.kind === "objective") return trial.scores[role]?.[axis.name]?.value ?? null;
  const groups = Object.values(trial.weights);
  return groups.reduce((sum, row) => sum + (row[axis.name] ?? 0), 0) / (groups.length || 1);
}

/** Objectives first, then at most `limit` members. */
export function axesOf(data, limit = 8) {
  return [...data.objectives.map((o) => ({ kind: "objective", name: o.name, direction: o.direction })), ...data.members.slice(0, limit).map((name) => ({ kind: "weight", name }))];
}

export function extent(trials, axis, role) {
  let low = Infinity, high = -Infinity;
  for (const trial of trials) {
    const value = valueOf(trial, axis, role);
    if (value !== null) { low = Math.min(low, value); high = Math.max(high, value); }
  }
  return low > high ? [0, 1] : low === high ? [low - 0.5, high + 0.5] : [low, high];
}

/** Brushes: a set of numbers from the scatter, and one interval an axis; a trial is in when it passes all. */
export class Brush {
  constructor() { this.points = null; this.ranges = new Map(); }
  get empty() { return this.points === null && this.ranges.size === 0; }
  passes(trial, axes, role) {
    if (this.points !== null && !this.points.has(trial.trial)) return false;
    for (const [name, [low, high]] of this.ranges) {
      const axis = axes.find((candidate) => candidate.name === name);
      const value = axis ? valueOf(trial, axis, role) : null;
      if (axis && (value === null || value < low || value > high)) return false;
    }
    return true;
  }
  clear() { this.points = null; this.ranges.clear(); }
  toText() { return [...this.ranges].map(([name, range]) => `${encodeURIComponent(name)}:${range.map((v) => +v.toPrecision(6)).join(":")}`).join("|"); }
  static fromText(text) {
    const brush = new Brush();
    for (const part of text.split("|").filter(Boolean)) {
      const [name, low, high] = part.split(":");
      if (Number.isFinite(+low) && Number.isFinite(+high)) brush.ranges.set(decodeURIComponent(name), [+low, +high]);
    }
    return brush;
  }
}

/** Better first: the front's trials by the weighted sum of scores scaled to 0 (worst of the front) and 1 (best). */
export function preferred(front, objectives, shares, role) {
  const total = shares.reduce((a, b) => a + b, 0) || 1;
  const scaled = objectives.map((objective) => {
    const values = front.map((trial) => trial.scores[role][objective.name]?.value ?? NaN).map((value) => (objective.direction === "minimize" ? -value : value));
    const low = Math.min(...values), high = Math.max(...values);
    return values.map((value) => (high > low ? (value - low) / (high - low) : 1));
  });
  const points = front.map((trial, index) => [trial, scaled.reduce((sum, column, o) => sum + (shares[o] / total) * column[index], 0)]);
  return points.sort((a, b) => b[1] - a[1] || a[0].trial - b[0].trial)[0]?.[0] ?? null;
}

/** Numbers of the non-dominated among `trials` by search score; equal points stay together, equal recipes keep the first. */
export function nonDominated(trials, objectives) {
  const rows = trials.filter((trial) => trial.state === "SCORED").map((trial) => ({ trial, row: objectives.map((o) => (o.direction === "minimize" ? -1 : 1) * trial.scores.search[o.name].value) }));
  rows.sort((a, b) => { for (let k = 0; k < objectives.length; k += 1) if (a.row[k] !== b.row[k]) return b.row[k] - a.row[k]; return a.trial.trial - b.trial.trial; });
  const front = [], recipes = new Set();
  for (const { trial, row } of rows) {
    const recipe = JSON.stringify([trial.method, trial.weights, trial.options]);
    const dominated = front.some((other) => other.row.every((value, k) => value >= row[k]) && other.row.some((value, k) => value > row[k]));
    if (!dominated && !recipes.has(recipe)) { front.push({ trial, row }); recipes.add(recipe); }
  }
  return front.map(({ trial }) => trial.trial);
}
