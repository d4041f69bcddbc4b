// The trials as a table: what screen readers and keyboards use where others use the charts.

import { exactly, fill, h } from "./dom.js";

const STEP = 100;
const figure = (value, error, exact) => (Number.isNaN(value) ? "–" : exact ? exactly(value) : `${value.toFixed(3)} ± ${(error || 0).toFixed(3)}`);

export class Listing {
  /** `onchoose(number)`, `onmark(number)`, `onsort(key)`. */
  constructor(element, count, handlers) {
    Object.assign(this, { element, count, handlers, limit: STEP });
    element.addEventListener("click", (event) => {
      const chosen = event.target.closest("[data-choose]"), sort = event.target.closest("[data-sort]");
      if (chosen) handlers.onchoose(+chosen.dataset.choose);
      else if (sort) handlers.onsort(sort.dataset.sort);
      else if (event.target.closest("[data-more]")) { this.limit += STEP; this.show(this.mask); }
    });
    element.addEventListener("change", (event) => { if (event.target.dataset.mark) handlers.onmark(+event.target.dataset.mark); });
  }

  render({ table, rows, axes, role, sort, chosen, marked }) {
    Object.assign(this, { table, role, sort, chosen, marked });
    const key = sort.replace(/^-/, ""), axis = axes.find((candidate) => candidate.name === key), sign = sort.startsWith("-") ? -1 : 1, numbers = table.numbers;
    const column = axis && table.values(axis, role), rank = (row) => (table.front[row] ? 0 : table.kinds[row] === "merge" ? 2 : 1);
    this.rows = [...rows].sort(column ? (a, b) => sign * (column[a] - column[b]) || numbers[a] - numbers[b] : (a, b) => rank(a) - rank(b) || numbers[a] - numbers[b]);
  }

  /** Lists the rows that the mask passes, the first of them. */
  show(mask = null) {
    this.mask = mask;
    const { table, role } = this, passing = mask ? this.rows.filter((row) => mask[row]) : this.rows, focused = document.activeElement?.closest?.("#table [data-choose], #table [data-mark], #table [data-sort]");
    const head = ({ name }) => h("th", { scope: "col", class: "num", "aria-sort": this.sort === name ? "ascending" : this.sort === `-${name}` ? "descending" : "none" }, h("button", { type: "button", "data-sort": name }, name));
    fill(this.element, h("table", {}, h("thead", {}, h("tr", {}, ["compare", "trial", "what"].map((name) => h("th", { scope: "col" }, name)), table.objectives.map(head), h("th", { scope: "col" }, "mean weights"))),
      h("tbody", {}, passing.slice(0, this.limit).map((row) => this.#line(row, role)))), passing.length > this.limit ? h("button", { type: "button", "data-more": "1" }, `${STEP} more`) : null);
    const kept = focused && ["choose", "mark", "sort"].map((name) => focused.dataset[name] && `[data-${name}="${CSS.escape(focused.dataset[name])}"]`).find(Boolean);
    if (kept) this.element.querySelector(kept)?.focus();
    this.count.textContent = `${passing.length} of ${this.rows.length} trials${passing.length > this.limit ? `; the first ${this.limit} are listed` : ""}${mask ? " pass the brush." : ". Drag in the scatter or along an axis to brush."}`;
  }

  #line(row, role) {
    const { table } = this, number = table.numbers[row];
    return h("tr", { "data-trial": number, "aria-selected": row === this.chosen ? "true" : "false" },
      h("td", {}, h("input", { type: "checkbox", "data-mark": number, "aria-label": `compare trial ${number}`, checked: this.marked.has(number) })),
      h("td", {}, h("button", { type: "button", "data-choose": number }, table.name(row))),
      h("td", {}, table.front[row] ? `front${table.knee === number ? ", knee" : ""}` : table.greedy === number ? "greedy soup" : ""),
      table.objectives.map(({ name, exact }) => h("td", { class: "num" }, figure(table.columns[role][name][row], table.errorColumns[role][name][row], exact))),
      h("td", { class: "weighed" }, table.members.filter((name) => table.weights[name][row]).map((name) => `${name} ${table.weights[name][row].toFixed(2)}`).join(" ")));
  }
}
