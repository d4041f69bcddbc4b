// Export one trial: dtype, destination, the card as it will be written, and the command line that does the same.

import { getJob, job, postJob } from "./api.js";
import { bytes, fill, h, notice, select } from "./dom.js";

const POLL_MS = 1000;
let places = null; // {root, dtypes}, asked for once a page: a service does not change its mind

/** The form of trial `trial`; what comes of it is shown in `after`. */
export function exportForm(trial, after) {
  const chosen = { dtype: "", destination: "" }, where = h("div", { class: "bar" }), scored = trial.state === "SCORED";
  const query = () => new URLSearchParams(Object.entries(chosen).filter(([, value]) => value));
  const changed = () => { if (after.querySelector("#card")) preview(); };
  async function preview() {
    try {
      const told = await getJob(`/trials/${trial.trial}/recipe?${query()}`);
      fill(after, h("h3", {}, "Goes to"), h("p", { id: "export-to" }, told.to), dtypeNote(told), h("h3", {}, "recipe.yaml"), h("pre", { tabindex: "0" }, told.recipe), h("h3", {}, "Model card"), h("pre", { id: "card", tabindex: "0" }, told.card), command(told));
    } catch (error) { notice(error.message); }
  }
  async function start() {
    notice("");
    try {
      let found = await postJob("/export", { trial: String(trial.trial), ...Object.fromEntries(query()) });
      tell(after, found);
      while (found.state === "running" && after.isConnected) {
        await new Promise((done) => setTimeout(done, POLL_MS));
        found = await getJob(`/exports/${found.id}`);
        tell(after, found);
      }
    } catch (error) { notice(error.message); }
  }
  fillPlaces(where, chosen, trial, changed);
  return h("section", { "aria-label": "Export" }, h("h3", {}, "Export"), where,
    h("div", { class: "bar" }, h("button", { type: "button", class: "main", id: "export", disabled: !scored, onclick: start }, `Export trial ${trial.trial}`), h("button", { type: "button", id: "recipe", onclick: preview }, "Preview recipe and card")));
}

async function fillPlaces(where, chosen, trial, changed) {
  try { places ??= await getJob("/exports"); } catch (error) { notice(error.message); return; }
  const set = (key) => (value) => { chosen[key] = value; changed(); };
  const name = h("input", { id: "destination", "aria-label": `name below ${places.root}`, placeholder: `${job}/trial-${trial.trial}`, onchange: (event) => set("destination")(event.target.value.trim()) });
  fill(where, select("dtype", [["", "as scored"], ...places.dtypes.map((dtype) => [dtype, dtype])], chosen.dtype, set("dtype"), "dtype"),
    places.root === null ? h("span", { class: "soft" }, "into the run's folder") : h("label", {}, `to ${places.root}/`, name, h("span", { class: "soft" }, "(empty: into the run's folder)")));
}

const command = (told) => h("div", {}, h("h3", {}, "The same by hand"), h("pre", { id: "export-command", tabindex: "0" }, told.command));
const dtypeNote = (told) => (told.as_scored ? null : h("p", { class: "soft" }, `In ${told.dtype} nothing was scored: the card says so, and there is no digest to verify against.`));

function tell(after, found) {
  const verified = found.verified ? " and verified: the weights are the ones that were scored" : "";
  fill(after, h("p", { id: "export-state", class: found.state === "failed" ? "bad" : found.state === "done" ? "good" : "" },
    found.state === "done" ? `Exported${verified}; ${bytes(found.num_bytes)}, weights ${found.weights_digest.slice(0, 16)}` : `Export ${found.state}. ${found.reason}`), h("p", { id: "export-to" }, found.to), dtypeNote(found), command(found));
}
