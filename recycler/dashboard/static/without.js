// What the front would be worth without a member, by the search's own model, and how to find out for certain.

import { getJob } from "./api.js";
import { fill, h, notice } from "./dom.js";

const percent = (value) => `${(100 * value).toFixed(1)} %`;

/** Asks for the estimates, which takes seconds, and shows them in `place`. */
export async function showWithout(place) {
  fill(place, h("p", { class: "soft", role: "status" }, "The model is being fitted…"));
  try {
    const found = await getJob("/pool/without");
    if (found.reason) { fill(place, h("p", { class: "soft" }, `No estimate yet: ${found.reason}.`)); return; }
    const after = h("div", { "aria-live": "polite" });
    fill(place, table(found, after), h("p", { class: "soft" }, `Estimated from ${found.num_trials} trials, with 90 % intervals: the volume of the best merges that the model knows without the member, against that of all. A search without it might do better.`), after);
  } catch (error) { notice(error.message); }
}

function table(found, after) {
  const line = (member) => h("tr", {}, h("th", { scope: "row" }, member.name), h("td", { class: "num" }, member.loss === null ? "–" : percent(member.loss)), h("td", { class: "num" }, member.loss === null ? "–" : `${percent(member.low)} to ${percent(member.high)}`),
    h("td", {}, member.try ? h("button", { type: "button", "data-confirm": member.name, onclick: () => confirm(member, found.commands, after) }, "Confirm…") : h("span", { class: "soft" }, "nothing to try")));
  return h("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "Without each member" }, h("table", { id: "without" }, h("thead", {}, h("tr", {}, ["without", "volume lost", "90 % interval", "for certain"].map((name) => h("th", { scope: "col" }, name)))), h("tbody", {}, found.members.map(line))));
}

/** The merge that would show it, what the model predicts of it, and the commands that score it beside the run. */
function confirm(member, commands, after) {
  const told = Object.entries(member.try.predicted).map(([name, { value, stderr }]) => `${name} ${value.toFixed(3)} ± ${stderr.toFixed(3)}`).join("; ");
  const file = URL.createObjectURL(new Blob([member.try.recipe], { type: "application/yaml" }));
  fill(after, h("h3", {}, `The best merge without ${member.name}`), h("p", {}, `The model predicts ${told}.`), h("p", { class: "soft" }, "A running driver takes no merges from outside, so it is scored beside the run, on the same items: save the recipe, then"),
    h("pre", { id: "confirm-commands", tabindex: "0" }, commands.join("\n")), h("p", {}, h("a", { href: file, download: "without.yaml" }, "Save without.yaml")), h("pre", { tabindex: "0", id: "confirm-recipe" }, member.try.recipe));
}
