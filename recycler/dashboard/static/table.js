// All trials of a job as columns: what the Front page draws from. No drawing here.

import { trialName } from "./dom.js";

const numbers = (column) => Float64Array.from(column, (value) => value ?? NaN);

export class Table {
  /** From the document of GET /table. */
  constructor(document) {
    const { objectives, members, front, knee, greedy, cursor, trial, kind, state, labels, scores, weights } = document;
    Object.assign(this, { objectives, members, knee, greedy, cursor, kinds: kind, states: state, labels });
    this.size = trial.length;
    this.numbers = Int32Array.from(trial);
    this.rowOf = new Map(trial.map((number, row) => [number, row]));
    this.frontNumbers = front;
    this.front = new Uint8Array(this.size);
    for (const number of front) this.front[this.rowOf.get(number)] = 1;
    this.columns = { search: {}, holdout: {} };
    this.errorColumns = { search: {}, holdout: {} };
    for (const role of ["search", "holdout"]) {
      for (const { name } of objectives) {
        this.columns[role][name] = numbers(scores[role][name].value);
        this.errorColumns[role][name] = numbers(scores[role][name].stderr);
      }
    }
    this.weights = Object.fromEntries(members.map((name) => [name, numbers(weights[name])]));
  }

  /** Objectives first, then at most `limit` members. */
  axes(limit = 8) {
    return [...this.objectives.map(({ name, direction }) => ({ kind: "objective", name, direction })), ...this.members.slice(0, limit).map((name) => ({ kind: "weight", name }))];
  }

  /** A column over all rows: an objective's score in the role, or a member's mean weight over groups; NaN where there is none. */
  values(axis, role) { return axis.kind === "objective" ? this.columns[role][axis.name] : this.weights[axis.name]; }

  errors(name, role) { return this.errorColumns[role][name]; }

  name(row) { return trialName({ trial: this.numbers[row], kind: this.kinds[row], label: this.labels[this.numbers[row]] ?? "" }); }

  /** Rows with all scores of the role; without `dominated` only front, members, soups and base. */
  shown(role, dominated) {
    const columns = this.objectives.map(({ name }) => this.columns[role][name]), rows = [];
    for (let row = 0; row < this.size; row += 1) {
      if (columns.every((column) => !Number.isNaN(column[row])) && (dominated || this.front[row] || this.kinds[row] !== "merge")) rows.push(row);
    }
    return rows;
  }

  /** The best row of the front by the weighted sum of scores scaled to 0 (worst of the front) and 1 (best); null without one. */
  preferred(shares, role) {
    const rows = this.frontNumbers.map((number) => this.rowOf.get(number)).filter((row) => this.objectives.every(({ name }) => !Number.isNaN(this.columns[role][name][row])));
    const total = shares.reduce((a, b) => a + b, 0) || 1, sums = rows.map(() => 0);
    this.objectives.forEach(({ name, direction }, index) => {
      const column = rows.map((row) => (direction === "minimize" ? -1 : 1) * this.columns[role][name][row]), low = Math.min(...column), high = Math.max(...column);
      column.forEach((value, at) => { sums[at] += (shares[index] / total) * (high > low ? (value - low) / (high - low) : 1); });
    });
    const order = rows.map((row, at) => [row, sums[at]]).sort((a, b) => b[1] - a[1] || this.numbers[a[0]] - this.numbers[b[0]]);
    return order.length ? order[0][0] : null;
  }
}

/** [low, high] of a column over some rows, never empty. */
export function extent(column, rows) {
  let low = Infinity, high = -Infinity;
  for (const row of rows) {
    if (column[row] < low) low = column[row];
    if (column[row] > high) high = column[row];
  }
  return low > high ? [0, 1] : low === high ? [low - 0.5, high + 0.5] : [low, high];
}
