// Why a trial is on the front or not, in sentences; every number comes from the service.

import { h } from "./dom.js";

const signed = (value) => `${value > 0 ? "+" : ""}${value.toFixed(3)}`;
const percent = (value) => `${(100 * value).toFixed(value < 0.1 ? 1 : 0)} %`;
const listed = (differences) => Object.entries(differences).map(([name, value]) => `${name} ${signed(value)}`).join(", ");

function standing(why) {
  const sure = why.probability === null || why.probability === undefined ? "" : ` Counting the errors of all scores, it is non-dominated with probability ${percent(why.probability)}.`;
  if (why.on_front) return `On the front${why.knee ? ", at its knee" : ""}: no other trial is at least as good on every objective${why.picked_by === "posterior" ? ", by the posterior of all trials" : ""}.${why.share_of_volume === null ? "" : ` Without it the front would cover ${percent(why.share_of_volume)} less.`}${sure}`;
  return why.dominators.length ? `Not on the front.${sure}` : `Equal to a trial before it.${sure}`;
}

function against(entry) {
  const told = Object.entries(entry.objectives).map(([name, found]) => h("li", { class: found.better === null ? "soft" : found.better ? "good" : "bad" }, `${found.better === null ? "≈" : found.better ? "▲" : "▼"} ${name} ${signed(found.difference)}${found.stderr ? ` ± ${found.stderr.toFixed(3)}` : ""}`));
  return h("details", {}, h("summary", {}, `Against ${entry.name} (trial ${entry.trial})`), h("ul", {}, told));
}

/** `onchoose(number)` is called by the links to other trials. */
export function whyPanel(why, onchoose) {
  if (!why) return null;
  const gaps = Object.entries(why.holdout_gap);
  return h("section", { id: "why", "aria-label": "Why" }, h("h3", {}, "Why"), h("p", {}, standing(why)),
    why.dominators.map((other) => h("p", {}, h("button", { type: "button", onclick: () => onchoose(other.trial) }, `trial ${other.trial}`), ` is at least as good everywhere: ${listed(other.differences)}.`)),
    gaps.length ? h("p", {}, `Holdout minus search: ${listed(Object.fromEntries(gaps))}.`) : null, why.against.map(against));
}
