// What is known of one trial: scores, weights, why it is on the front or not; export it.

import { getJob } from "./api.js";
import { figure, fill, h, notice, trialName } from "./dom.js";
import { exportForm } from "./exporting.js";
import { whyPanel } from "./why.js";

export function weightBars(trial, members) {
  return Object.entries(trial.weights).map(([group, row]) => {
    const high = Math.max(1, ...Object.values(row).map(Math.abs));
    const shown = members.filter((name) => row[name]);
    return h("div", {}, h("h3", {}, `weights: ${group}`), h("div", { class: "weights" }, shown.length ? shown.flatMap((name) => [
      h("span", {}, name), h("meter", { min: 0, max: high, value: Math.abs(row[name]), "aria-label": `${name} ${row[name].toFixed(3)}` }), h("span", {}, row[name].toFixed(3))]) : h("span", { class: "soft" }, "all zero: the base")));
  });
}

export class Detail {
  /** `onchoose(number)`. */
  constructor(element, onchoose) { Object.assign(this, { element, onchoose, number: null, stamp: null, after: null }); }

  /** Shows trial `number`; what is known of it is asked for, unless a later one was chosen meanwhile. `null` shows nothing. */
  async show(number, table) {
    if (number === null) { this.number = null; fill(this.element, h("p", { class: "soft" }, "Choose a point, a row, or move a slider.")); return; }
    if (this.number === number && this.stamp === table.cursor) return;
    Object.assign(this, { number, stamp: table.cursor, after: this.number === number ? this.after : h("div", { "aria-live": "polite" }) });
    fill(this.element, h("h2", { id: "chosen" }, table.name(table.rowOf.get(number))));
    try {
      const trial = await getJob(`/trials/${number}`);
      if (this.number === number) this.#fill(trial, table);
    } catch (error) { notice(error.message); }
  }

  #fill(trial, table) {
    fill(this.element, h("h2", { id: "chosen" }, trialName(trial)),
      h("dl", { class: "narrow" }, table.objectives.flatMap(({ name }) => [h("dt", {}, name), h("dd", {}, `${figure(trial.scores.search[name])} search`, h("br"), `${figure(trial.scores.holdout[name])} holdout`)])),
      whyPanel(trial.why, this.onchoose), weightBars(trial, table.members),
      exportForm(trial, this.after), this.after);
  }
}
