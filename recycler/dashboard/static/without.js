// What the front would be worth without a member: by the search's own model, and for certain by a job of its own.

import { getJob, job, postJob } from "./api.js";
import { fill, h, notice } from "./dom.js";

const POLL_MS = 3000;
const percent = (value) => `${(100 * value).toFixed(1)} %`;

/** Asks for the estimates, which takes seconds, and shows them in `place`; follows the jobs that leave a member out. */
export async function showWithout(place) {
  fill(place, h("p", { class: "soft", role: "status" }, "The model is being fitted…"));
  const rows = h("div"), after = h("div", { "aria-live": "polite" });
  let told = "";
  const show = async () => {
    const found = await getJob("/pool/without"), text = JSON.stringify(found.members.map((member) => member.job));
    const note = found.reason ? `No estimate yet: ${found.reason}.` : `Estimated from ${found.num_trials} trials, with 90 % intervals: the volume of the best merges that the model knows without the member, against that of all. A search without it might do better, and a job of its own tells.`;
    if (!told) fill(place, rows, h("p", { class: "soft" }, note), after);
    if (text !== told) fill(rows, table(found, after, show));
    told = text;
    if (found.members.some((member) => isAtWork(member.job))) setTimeout(() => place.isConnected && show().catch((error) => notice(error.message)), POLL_MS);
  };
  try { await show(); } catch (error) { notice(error.message); }
}

const isAtWork = (other) => Boolean(other) && ["running", "starting"].includes(other.state);

function table(found, after, refresh) {
  const line = (member) => h("tr", { "data-without": member.name }, h("th", { scope: "row" }, member.name), h("td", { class: "num" }, member.loss === null ? "–" : percent(member.loss)), h("td", { class: "num" }, member.loss === null ? "–" : `${percent(member.low)} to ${percent(member.high)}`), h("td", {}, certain(member, found.commands, after, refresh)));
  return h("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "Without each member" }, h("table", { id: "without" }, h("thead", {}, h("tr", {}, ["without", "volume lost", "90 % interval", "for certain"].map((name) => h("th", { scope: "col" }, name)))), h("tbody", {}, found.members.map(line))));
}

/** What the job without the member has found, how far it is, or the button that leads to it. */
function certain(member, commands, after, refresh) {
  const other = member.job, ask = h("button", { type: "button", "data-confirm": member.name, onclick: () => confirm(member, commands, after, refresh) }, "Confirm…");
  if (!other) return ask;
  const link = h("a", { href: `/jobs/${encodeURIComponent(other.id)}` }, other.id);
  if (other.outcome) {
    const said = Object.entries(other.outcome).filter(([, found]) => found).map(([role, found]) => h("div", {}, `${found.lost === null ? "–" : percent(found.lost)} on ${role}: ${found.without.toPrecision(4)} of ${found.hypervolume.toPrecision(4)}`));
    return [...said, h("div", { class: "soft" }, link)];
  }
  return [h("div", {}, isAtWork(other) ? `${other.state}, ${other.closed} of ${other.expected_trials ?? "?"} trials` : `${other.state}: ${other.reason}`), h("div", { class: "soft" }, link), isAtWork(other) ? null : ask];
}

/** What would be started, and the cheaper look at one merge. */
function confirm(member, commands, after, refresh) {
  const start = async () => {
    try { const other = await postJob("/pool/without", { member: member.name }); fill(after, h("p", { role: "status" }, `Job ${other.id} is ${other.state}.`)); await refresh(); } catch (error) { notice(error.message); }
  };
  fill(after, h("h3", {}, `Without ${member.name}, for certain`), h("p", {}, `A job of its own searches the rest of the pool: the same suites, objectives, space, budget and seed. All trials of ${job} that gave ${member.name} no weight count there at no cost.`),
    h("div", { class: "bar" }, h("button", { type: "button", class: "main", id: "leave-out", onclick: start }, "Start that job")), h("h3", {}, "The same by hand"), h("pre", { tabindex: "0", id: "without-command" }, member.command), member.try ? one(member, commands) : null);
}

/** The merge that the model likes best without the member, and the commands that score it beside the run. */
function one(member, commands) {
  const told = Object.entries(member.try.predicted).map(([name, { value, stderr }]) => `${name} ${value.toFixed(3)} ± ${stderr.toFixed(3)}`).join("; ");
  const file = URL.createObjectURL(new Blob([member.try.recipe], { type: "application/yaml" }));
  return h("details", {}, h("summary", {}, "Or score one merge alone"), h("p", {}, `Of the best balanced merge without ${member.name} the model predicts ${told}. Save the recipe, then`),
    h("pre", { id: "confirm-commands", tabindex: "0" }, commands.join("\n")), h("p", {}, h("a", { href: file, download: "without.yaml" }, "Save without.yaml")), h("pre", { tabindex: "0", id: "confirm-recipe" }, member.try.recipe));
}
