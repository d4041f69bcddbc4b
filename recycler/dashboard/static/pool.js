// Pool: the members, their own scores, how the front uses them, and what it is worth without each.

import { getJob, job } from "./api.js";
import { draw, escapeForPlotly } from "./chart.js";
import { showDeltas } from "./deltas.js";
import { figure, fill, h, notice } from "./dom.js";
import { showWithout } from "./without.js";

function table(pool) {
  const loss = (member) => (member.hypervolume_without === null || !pool.hypervolume ? "–" : `${member.hypervolume_without.toPrecision(4)} (${(100 * (member.hypervolume_without / pool.hypervolume - 1)).toFixed(1)} %)`);
  return h("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "Members" }, h("table", { id: "members" },
    h("thead", {}, h("tr", {}, ["member", ...pool.objectives.map((o) => `${o.name} (${o.direction})`), "in front trials", "mean weight there", "volume without it", "where"].map((name) => h("th", { scope: "col" }, name)))),
    h("tbody", {}, pool.members.map((member) => h("tr", {}, h("th", { scope: "row" }, member.name), pool.objectives.map((o) => h("td", { class: "num" }, figure(member.scores?.search[o.name]))),
      h("td", { class: "num" }, `${member.front_uses} of ${pool.num_front}`, member.front_trials.length ? h("div", { class: "targets" }, member.front_trials.slice(0, 6).map((number) => [h("a", { href: `/jobs/${encodeURIComponent(job)}/front#trial=${number}`, "aria-label": `trial ${number} on the front` }, number), " "]).flat()) : null), h("td", { class: "num" }, member.mean_weight.toFixed(3)), h("td", { class: "num" }, loss(member)), h("td", { class: "soft" }, member.location))))));
}

/** Cosines of the members' deltas: a table for reading, shaded for the eye. */
function similarity(pool) {
  if (!pool.similarity) return h("p", { class: "soft" }, "The similarity of deltas is measured when a search over a pool on disk begins.");
  const { cosines, relative_length: lengths } = pool.similarity, names = pool.members.map((m) => m.name);
  const cell = (value) => h("td", { class: "num shade", style: value === null ? null : `--share: ${Math.round(100 * Math.abs(value))}%` }, value === null ? "–" : value.toFixed(2));
  return h("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "Similarity of deltas" }, h("table", { id: "similarity" }, h("thead", {}, h("tr", {}, ["member", "length of delta", ...names].map((name) => h("th", { scope: "col" }, name)))),
    h("tbody", {}, names.map((name, row) => h("tr", {}, h("th", { scope: "row" }, name), h("td", { class: "num" }, `${(100 * lengths[row]).toPrecision(3)} % of the base`), cosines[row].map(cell))))));
}

/** What the files beside the weights say of each checkpoint. */
function origins(pool) {
  const all = [...(pool.base ? [{ ...pool.base, name: `${pool.base.name} (base)` }] : []), ...pool.members], facts = [...new Set(all.flatMap((one) => Object.keys(one.lineage)))];
  if (!facts.length) return h("p", { class: "soft" }, "The files beside the weights say nothing, or lie elsewhere.");
  return h("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "Lineage" }, h("table", { id: "lineage" }, h("thead", {}, h("tr", {}, ["checkpoint", ...facts].map((name) => h("th", { scope: "col" }, name)))),
    h("tbody", {}, all.map((one) => h("tr", {}, h("th", { scope: "row" }, one.name), facts.map((fact) => h("td", {}, one.lineage[fact] ?? "–")))))));
}

const section = (title, ...children) => h("section", { class: "card" }, h("h2", {}, title), ...children);

try {
  const pool = await getJob("/pool"), chart = h("div", { class: "chart low", role: "group", "aria-label": "Weights of the members in the front" }), without = h("div"), deltas = h("div");
  fill(document.getElementById("page"), h("div", { class: "stack" }, section(`${pool.members.length} members${pool.base ? `, trained from ${pool.base.name}` : ""}`, table(pool), h("p", { class: "soft" }, pool.note)), section("Mean weight in the front's trials", chart),
    section("What leaving one out would cost", without), section("Cosines of the members' deltas", similarity(pool)), section("Deltas by layer", deltas), section("Lineage, as their own files tell it", origins(pool))));
  await draw(chart, (colours) => ({ traces: [{ type: "bar", x: pool.members.map((m) => escapeForPlotly(m.name)), y: pool.members.map((m) => m.mean_weight), marker: { color: colours.accent } }], layout: { xaxis: { type: "category" }, yaxis: { title: { text: "weight" } }, showlegend: false } }));
  await showDeltas(deltas);
  document.body.dataset.ready = "1";
  await showWithout(without);
} catch (error) { notice(error.message); }
