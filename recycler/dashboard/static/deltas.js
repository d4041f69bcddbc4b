// How far each member is from the base, layer by layer: measured on demand by the service, beside everything else.

import { getJob, postJob } from "./api.js";
import { draw, escapeForPlotly } from "./chart.js";
import { fill, h, notice } from "./dom.js";

const POLL_MS = 1000;

/** Shows the profile in `place`, or a button that has it measured. */
export async function showDeltas(place) {
  try { await tell(place, await getJob("/pool/deltas")); } catch (error) { notice(error.message); }
}

async function tell(place, found) {
  if (found.state === "done") { await drawn(place, found.profile); return; }
  const begin = async () => { try { await tell(place, await postJob("/pool/deltas")); } catch (error) { notice(error.message); } };
  if (found.state === "running") {
    fill(place, h("p", { id: "deltas-state", role: "status" }, "The members' weights are being read…"));
    setTimeout(() => place.isConnected && showDeltas(place), POLL_MS);
    return;
  }
  fill(place, found.state === "failed" ? h("p", { id: "deltas-state", class: "bad" }, `It failed: ${found.reason}`) : null,
    h("div", { class: "bar" }, h("button", { type: "button", id: "measure", onclick: begin }, "Measure the deltas"), h("span", { class: "soft" }, "reads a sample of every tensor of every member; kept with the run")), h("h3", {}, "The same by hand"), h("pre", { tabindex: "0" }, found.command));
}

async function drawn(place, profile) {
  const names = profile.members.map((member) => member.name), layers = profile.members[0]?.layers.map((_, layer) => layer) ?? [];
  const chart = h("div", { class: "chart low", id: "deltas", role: "group", "aria-label": "Mean size of the delta by layer and member; the table below holds the same figures" });
  const swap = ({ proposed_swap: { bottom, top } }) => (bottom || top ? `layer_swap might take bottom ${bottom}, top ${top}` : "–");
  fill(place, chart, h("p", { class: "soft" }, `Mean |delta| to ${profile.base} by layer${profile.sample ? `, from ${profile.sample.toLocaleString("en")} elements of each tensor` : ""}; brighter is farther.`),
    h("details", {}, h("summary", {}, "As a table"), h("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "Deltas by layer" }, h("table", { id: "delta-table" }, h("thead", {}, h("tr", {}, ["member", "mean", "p99", "norm / base", "ends", ...layers.map((layer) => `layer ${layer}`)].map((name) => h("th", { scope: "col" }, name)))),
      h("tbody", {}, profile.members.map((member) => h("tr", {}, h("th", { scope: "row" }, member.name), [member.mean, member.p99, member.relative_norm].map((value) => h("td", { class: "num" }, value.toPrecision(3))), h("td", {}, swap(member)), member.layers.map((value) => h("td", { class: "num" }, value.toExponential(1))))))))));
  await draw(chart, (colours) => ({ traces: [{ type: "heatmap", x: layers, y: names.map(escapeForPlotly), z: profile.members.map((member) => member.layers), colorscale: [[0, colours.card], [1, colours.accent]], hovertemplate: "%{y}, layer %{x}: %{z:.3g}<extra></extra>", colorbar: { tickformat: ".1e", thickness: 12 } }],
    layout: { xaxis: { title: { text: "layer" }, dtick: Math.max(1, Math.ceil(layers.length / 16)) }, yaxis: { type: "category", automargin: true, autorange: "reversed" } } }));
}
