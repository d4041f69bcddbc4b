// What is known of one trial: scores, weights, recipe; export it, with the command line that does the same.

import { getJob, postJob } from "./api.js";
import { bytes, figure, fill, h, notice, trialName } from "./dom.js";
import { whyPanel } from "./why.js";

const POLL_MS = 1000;

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
      h("div", { class: "bar" }, h("button", { type: "button", class: "main", id: "export", disabled: trial.state !== "SCORED", onclick: () => this.#export(trial.trial) }, `Export trial ${trial.trial}`),
        h("button", { type: "button", id: "recipe", onclick: () => this.#recipe(trial.trial) }, "Recipe and card")), this.after);
  }

  async #recipe(number) {
    try {
      const found = await getJob(`/trials/${number}/recipe`);
      if (this.number === number) fill(this.after, h("h3", {}, "recipe.yaml"), h("pre", { tabindex: "0" }, found.recipe), h("h3", {}, "Model card"), h("pre", { tabindex: "0" }, found.card), h("h3", {}, "The same by hand"), h("pre", { tabindex: "0" }, found.command));
    } catch (error) { notice(error.message); }
  }

  async #export(number) {
    const after = this.after;
    const tell = (found) => fill(after, h("p", { id: "export-state", class: found.state === "failed" ? "bad" : found.state === "done" ? "good" : "" },
      found.state === "done" ? `Exported${found.verified ? " and verified: the weights are the ones that were scored" : ""}; ${bytes(found.num_bytes)}, weights ${found.weights_digest.slice(0, 16)}` : `Export ${found.state}. ${found.reason}`), h("h3", {}, "The same by hand"), h("pre", { id: "export-command", tabindex: "0" }, found.command));
    try {
      let found = await postJob("/export", { trial: String(number) });
      tell(found);
      while (found.state === "running") {
        await new Promise((done) => setTimeout(done, POLL_MS));
        found = await getJob(`/exports/${found.id}`);
        tell(found);
      }
    } catch (error) { notice(error.message); }
  }
}
