// Compare 2 to 4 trials: scores, paired differences with errors, weights, and the items that flipped with both outputs.

import { getJob } from "./api.js";
import { draw, escapeForPlotly } from "./chart.js";
import { figure, fill, h, notice, select, trialName } from "./dom.js";
import { readHash, writeHash } from "./model.js";

const DEFAULTS = { trials: "", role: "search" };
const state = readHash(DEFAULTS);
const out = h("div", { class: "stack", id: "comparison" });

const signed = (value) => `${value > 0 ? "+" : ""}${value.toFixed(4)}`;

function verdict(paired, direction) {
  if (!paired) return h("span", { class: "soft" }, "no common items");
  if (!paired.distinguishable) return h("span", { class: "soft" }, "not distinguishable");
  const better = (paired.difference > 0) === (direction === "maximize");
  return h("span", { class: better ? "good" : "bad" }, better ? "▲ better" : "▼ worse");
}

function differences(found) {
  const known = Object.fromEntries(found.objectives.map((o) => [o.name, o]));
  return h("section", { class: "card" }, h("h2", {}, `Differences to trial ${found.reference} (${found.role})`), h("p", { class: "soft" }, found.note), h("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "Differences" }, h("table", {},
    h("thead", {}, h("tr", {}, ["trial", "objective", "score difference", "paired difference ± stderr", "95 % interval", "p", "items", "verdict"].map((name) => h("th", { scope: "col" }, name)))),
    h("tbody", {}, found.against.flatMap((other) => other.objectives.map(({ objective, score_difference: difference, paired }) => h("tr", { "data-objective": objective, "data-trial": other.trial },
      h("td", {}, other.trial), h("td", {}, objective), h("td", { class: "num" }, signed(difference)), h("td", { class: "num" }, paired ? `${signed(paired.difference)} ± ${paired.stderr.toFixed(4)}` : "–"),
      h("td", { class: "num" }, paired ? `${signed(paired.low)} to ${signed(paired.high)}` : "–"), h("td", { class: "num" }, paired ? paired.p_value.toPrecision(2) : "–"), h("td", { class: "num" }, paired?.n ?? "–"), h("td", {}, verdict(known[objective].exact ? { difference, distinguishable: difference !== 0 } : paired, known[objective].direction)))))))));
}

function scores(found) {
  return h("section", { class: "card" }, h("h2", {}, "Scores"), h("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "Scores" }, h("table", {}, h("thead", {}, h("tr", {}, h("th", { scope: "col" }, "objective"), found.trials.map((trial) => h("th", { scope: "col" }, trialName(trial))))),
    h("tbody", {}, found.objectives.map((o) => h("tr", {}, h("th", { scope: "row" }, `${o.name} (${o.direction})`), found.trials.map((trial) => h("td", { class: "num" }, figure(trial.scores[found.role][o.name], 4)))))))));
}

function weights(found) {
  const element = h("div", { class: "chart low", role: "group", "aria-label": "Weights by member and group" });
  const section = h("section", { class: "card" }, h("h2", {}, "Weights"), element);
  const make = (colours) => {
    const names = found.trials.flatMap((trial) => Object.keys(trial.weights).map((group) => [trial, group]));
    const label = (trial, group) => escapeForPlotly(Object.keys(trial.weights).length > 1 ? `${trial.trial}: ${group}` : `trial ${trial.trial}`);
    return { traces: found.members.map((member, index) => ({ type: "bar", name: escapeForPlotly(member), x: names.map(([trial, group]) => label(trial, group)), y: names.map(([trial, group]) => trial.weights[group][member] ?? 0), marker: { color: colours.series[index % colours.series.length], pattern: { shape: ["", "/", "x", ".", "-"][Math.floor(index / 4) % 5] } } })),
      layout: { barmode: "group", xaxis: { type: "category" }, yaxis: { title: { text: "weight" } } } };
  };
  queueMicrotask(() => draw(element, make));
  return section;
}

function flips(found) {
  const told = (items, other) => items.map((item) => h("details", { "data-item": item.item }, h("summary", {}, item.item), item.prompt ? h("div", {}, h("h3", {}, "question"), h("pre", { tabindex: "0" }, item.prompt), h("h3", {}, "right answer"), h("pre", {}, item.gold)) : null, h("div", { class: "sides" }, h("div", {}, h("h3", {}, `trial ${found.reference}`), h("pre", {}, item.reference_output || "(no text)")), h("div", {}, h("h3", {}, `trial ${other}`), h("pre", {}, item.output || "(no text)")))));
  return found.against.flatMap((other) => other.objectives.filter((o) => o.flips).map(({ objective, flips: f }) => h("section", { class: "card", "data-flips": objective },
    h("h2", {}, `${objective}: flips from trial ${found.reference} to ${other.trial}`), h("p", {}, `${f.num_gained} now right, ${f.num_lost} now wrong; ${f.num_both} right in both, ${f.num_neither} in neither; ${f.p_value === null ? "items come in clusters: the paired interval above is the test" : `McNemar p = ${f.p_value.toPrecision(2)}`}`),
    h("h3", { class: "good" }, `Now right (${f.num_gained})`), told(f.gained, other.trial), h("h3", { class: "bad" }, `Now wrong (${f.num_lost})`), told(f.lost, other.trial))));
}

async function show() {
  writeHash(state, DEFAULTS);
  notice("");
  if (!state.trials) return fill(out, h("p", { class: "soft" }, "Write 2 to 4 trial numbers above, or tick them on the Front page. The first is the reference."));
  try {
    const found = await getJob(`/compare?trials=${encodeURIComponent(state.trials.replace(/\s/g, ""))}&role=${state.role}`);
    fill(out, scores(found), differences(found), weights(found), flips(found));
  } catch (error) { fill(out); notice(error.message); }
}

const input = h("input", { id: "trials", value: state.trials, placeholder: "3,17", inputmode: "numeric" });
fill(document.getElementById("page"), h("form", { class: "bar", onsubmit: (event) => { event.preventDefault(); state.trials = input.value; show(); } }, h("label", {}, "Trials", input),
  select("items", [["search", "search"], ["holdout", "holdout"]], state.role, (role) => { state.role = role; show(); }, "role"), h("button", { type: "submit", class: "main" }, "Compare")), out);
if (!state.trials) {
  const { front, knee } = await getJob("/trials").catch(() => ({ front: [], knee: null }));
  if (front.length > 1) { state.trials = [knee, ...front.filter((number) => number !== knee)].slice(0, 2).join(","); input.value = state.trials; }
}
await show();
document.body.dataset.ready = "1";
