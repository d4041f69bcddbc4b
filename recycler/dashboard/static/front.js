// Front: scatter, parallel coordinates and table of one job's trials; a brush in one shows in all.

import { firstTrials, follow, getJob, job } from "./api.js";
import { Detail } from "./detail.js";
import { checkbox, figure, fill, h, notice, select, trialName } from "./dom.js";
import { axesOf, Brush, nonDominated, preferred, readHash, valueOf, writeHash } from "./model.js";
import { Parallel } from "./parallel.js";
import { Scatter } from "./scatter.js";

const TABLE_ROWS = 200, LIVE_MS = 300;
const DEFAULTS = { x: "", y: "", role: "search", rest: "1", bars: "1", trial: "", sort: "", compare: "", prefer: "", ranges: "" };
const state = readHash(DEFAULTS);
let brush = Brush.fromText(state.ranges), data, axes, probability = {}, greedy = null, pendingFrame = 0;

const place = { scatter: h("div", { class: "chart", id: "scatter", role: "group", "aria-label": "Scatter of two objectives; the table below holds the same trials" }), canvas: h("canvas", { id: "parallel", role: "img", "aria-label": "Parallel coordinates; the number fields below brush the same axes" }),
  tools: h("div", { class: "bar" }), ranges: h("details"), table: h("div", { class: "scroll", id: "table", tabindex: "0", role: "region", "aria-label": "Trials" }), count: h("p", { id: "count", class: "soft", "aria-live": "polite" }), sliders: h("div"), detail: h("div"), marked: h("div", { class: "bar" }) };
const detail = new Detail(place.detail);
const scatter = new Scatter(place.scatter, { onbrush: (points) => { brush.points = points; brushed(); }, onchoose: choose });
const parallel = new Parallel(place.canvas, (name, range) => { if (range) brush.ranges.set(name, range); else brush.ranges.delete(name); brushed(); });

const trialOf = (number) => data.trials.find((trial) => trial.trial === number);
const chosen = () => (state.trial === "" ? null : trialOf(+state.trial));
const shownTrials = () => data.trials.filter((trial) => trial.state === "SCORED" && data.objectives.every((o) => trial.scores[state.role]?.[o.name]) && (state.rest === "1" || data.front.includes(trial.trial) || trial.kind !== "merge"));
const marked = () => state.compare.split(",").filter(Boolean).map(Number);

function save() { state.ranges = brush.toText(); writeHash(state, { ...DEFAULTS, x: data.objectives[0].name, y: data.objectives[1].name }); }

/** After a brush moved: only brightness changes, at most once a frame. */
function brushed() {
  if (pendingFrame) return;
  pendingFrame = requestAnimationFrame(() => {
    pendingFrame = 0;
    const start = performance.now();
    parallel.draw();
    table();
    scatter.show(brush.empty ? null : (trial) => brush.passes(trial, axes, state.role));
    performance.measure("brush", { start, end: performance.now() });
    save();
  });
}

function choose(number) {
  state.trial = String(number);
  draw();
}

async function draw() {
  const start = performance.now(), front = new Set(data.front), trials = shownTrials();
  if (!trials.length) { notice(state.role === "holdout" ? "No trial has holdout scores yet: they come when the budget is spent." : "No trial is scored yet."); } else notice("");
  parallel.render({ trials, axes, role: state.role, front, brush, chosen: chosen()?.trial });
  table();
  detail.show(chosen(), data, probability[state.trial]);
  save();
  await scatter.render({ data, front, greedy, x: state.x, y: state.y, role: state.role, dominated: state.rest === "1", bars: state.bars === "1", chosen: chosen()?.trial });
  if (!brush.empty) await scatter.show((trial) => brush.passes(trial, axes, state.role));
  performance.measure("draw", { start, end: performance.now() });
}

function sorted(trials) {
  const key = state.sort.replace(/^-/, ""), axis = axes.find((candidate) => candidate.name === key), sign = state.sort.startsWith("-") ? -1 : 1;
  if (axis) return trials.sort((a, b) => sign * (valueOf(a, axis, state.role) - valueOf(b, axis, state.role)) || a.trial - b.trial);
  const front = new Set(data.front), rank = (trial) => (front.has(trial.trial) ? 0 : trial.kind === "merge" ? 2 : 1);
  return trials.sort((a, b) => rank(a) - rank(b) || a.trial - b.trial);
}

function table() {
  const passing = sorted(shownTrials().filter((trial) => brush.passes(trial, axes, state.role))), front = new Set(data.front), picked = new Set(marked());
  const head = (name, key) => h("th", { scope: "col", class: "num", "aria-sort": state.sort === key ? "ascending" : state.sort === `-${key}` ? "descending" : "none" }, h("button", { type: "button", onclick: () => { state.sort = state.sort === `-${key}` ? key : `-${key}`; table(); save(); } }, name));
  const rows = passing.slice(0, TABLE_ROWS).map((trial) => h("tr", { "data-trial": trial.trial, "aria-selected": String(trial.trial) === state.trial ? "true" : "false" },
    h("td", {}, h("input", { type: "checkbox", "aria-label": `compare trial ${trial.trial}`, checked: picked.has(trial.trial), onchange: () => mark(trial.trial) })),
    h("td", {}, h("button", { type: "button", "data-choose": trial.trial, onclick: () => { choose(trial.trial); place.table.querySelector(`[data-choose="${trial.trial}"]`)?.focus(); } }, trialName(trial))),
    h("td", {}, front.has(trial.trial) ? `front${data.knee === trial.trial ? ", knee" : ""}` : trial.trial === greedy ? "greedy soup" : ""),
    data.objectives.map(({ name }) => h("td", { class: "num" }, figure(trial.scores[state.role][name]))),
    h("td", {}, Object.values(trial.weights).map((row) => Object.entries(row).map(([name, weight]) => `${name} ${weight.toFixed(2)}`).join(" ")).join("; "))));
  fill(place.table, h("table", {}, h("thead", {}, h("tr", {}, h("th", { scope: "col" }, "compare"), h("th", { scope: "col" }, "trial"), h("th", { scope: "col" }, "what"), data.objectives.map(({ name }) => head(name, name)), h("th", { scope: "col" }, "weights"))), h("tbody", {}, rows)));
  place.count.textContent = `${passing.length} of ${shownTrials().length} trials${passing.length > TABLE_ROWS ? `; the first ${TABLE_ROWS} are listed` : ""}${brush.empty ? ". Drag in the scatter or along an axis to brush." : " pass the brush."}`;
}

function mark(number) {
  const now = marked().includes(number) ? marked().filter((other) => other !== number) : [...marked(), number].slice(-4);
  state.compare = now.join(",");
  showMarked(); table(); save();
  place.table.querySelector(`[aria-label="compare trial ${number}"]`)?.focus();
}

function showMarked() {
  fill(place.marked, marked().length >= 2 ? h("a", { id: "compare-link", href: `/jobs/${encodeURIComponent(job)}/compare#trials=${marked().join(",")}` }, `Compare trials ${marked().join(", ")}`) : h("span", { class: "soft" }, "Tick 2 to 4 trials to compare them."));
}

function tools() {
  const names = data.objectives.map((o) => [o.name, `${o.name} (${o.direction})`]);
  const set = (key) => (value) => { state[key] = value === true ? "1" : value === false ? "0" : value; draw(); };
  fill(place.tools, select("x", names, state.x, set("x"), "x"), select("y", names, state.y, set("y"), "y"), select("scores", [["search", "search"], ["holdout", "holdout"]], state.role, set("role"), "role"),
    checkbox("dominated", state.rest === "1", set("rest"), "rest"), checkbox("error bars", state.bars === "1", set("bars"), "bars"),
    h("button", { type: "button", id: "clear", onclick: () => { brush.clear(); ranges(); brushed(); globalThis.Plotly.relayout(place.scatter, { selections: [] }); } }, "Clear brush"));
}

function ranges() {
  const change = (name, low, high) => { if (low.value === "" && high.value === "") brush.ranges.delete(name); else brush.ranges.set(name, [low.value === "" ? -Infinity : +low.value, high.value === "" ? Infinity : +high.value]); brushed(); };
  fill(place.ranges, h("summary", {}, "Brush by numbers"), h("div", { class: "bar" }, axes.map(({ name }) => {
    const [low, high] = ["from", "to"].map((end, index) => h("input", { type: "number", step: "any", "aria-label": `${name} ${end}`, value: Number.isFinite(brush.ranges.get(name)?.[index]) ? brush.ranges.get(name)[index] : "" }));
    low.onchange = high.onchange = () => change(name, low, high);
    return h("label", {}, name, low, "to", high);
  })));
}

function sliders() {
  const shares = state.prefer ? state.prefer.split(",").map(Number) : data.objectives.map(() => 50);
  const told = h("p", { id: "preferred", "aria-live": "polite" });
  const move = () => {
    const pick = preferred(data.trials.filter((t) => data.front.includes(t.trial) && data.objectives.every((o) => t.scores[state.role][o.name])), data.objectives, shares, state.role), total = shares.reduce((a, b) => a + b, 0) || 1;
    state.prefer = shares.join(",");
    if (!pick) return;
    told.textContent = `Best for ${data.objectives.map((o, i) => `${Math.round((100 * shares[i]) / total)} % ${o.name}`).join(", ")}: trial ${pick.trial}`;
    choose(pick.trial);
  };
  fill(place.sliders, h("h2", {}, "Preference"), data.objectives.map((o, index) => h("label", { class: "slider" }, h("span", {}, o.name), h("input", { type: "range", min: 0, max: 100, value: shares[index], "aria-label": `how much ${o.name} matters`, oninput: (event) => { shares[index] = +event.target.value; move(); } }))), told);
}

/** Trials that arrive while the page is open; drawn in bunches. */
let timer = 0, rest = 0, late = false, stale = true;
function arrived(entry) {
  const index = data.trials.findIndex((trial) => trial.trial === entry.trial);
  if (index < 0) data.trials.push(entry); else data.trials[index] = entry;
  stale = true;
  if (timer) { late = true; return; }
  timer = setTimeout(async () => {
    const start = performance.now();
    data.front = nonDominated(data.trials, data.objectives);
    await draw();
    rest = 4 * (performance.now() - start);
    timer = 0;
    if (late) { late = false; arrived(entry); }
  }, Math.max(LIVE_MS, rest));
}

async function more() {
  if (!stale || !data.front.length) return;
  stale = false;
  const found = await getJob("/front");
  probability = Object.fromEntries(found.front.map((entry) => [entry.trial, entry.probability]));
  greedy = found.baselines.find((entry) => entry.kind === "greedy_soup")?.trial ?? null;
  draw();
}

async function start() {
  data = await firstTrials((status) => notice(status.state === "starting" ? "The driver is starting." : ""));
  axes = axesOf(data);
  const names = data.objectives.map((o) => o.name);
  if (!names.includes(state.x)) state.x = names[0];
  if (!names.includes(state.y)) state.y = names[1];
  if (!["search", "holdout"].includes(state.role)) state.role = "search";
  if (state.trial === "" && data.knee !== null) state.trial = String(data.knee);
  fill(document.getElementById("page"), h("div", { class: "split" },
    h("div", { class: "stack" }, h("section", { class: "card" }, place.tools, place.scatter), h("section", { class: "card" }, h("h2", {}, "Objectives and weights"), place.canvas, place.ranges), h("section", { class: "card" }, h("h2", {}, "Trials"), place.count, place.marked, place.table)),
    h("div", { class: "stack" }, h("section", { class: "card" }, place.sliders), h("section", { class: "card" }, place.detail))));
  tools(); ranges(); sliders(); showMarked();
  await draw();
  document.body.dataset.ready = "1";
  follow(data.cursor, { trial: arrived, holdout: arrived, end: more });
  await more();
}

try { await start(); } catch (error) { notice(error.message); }
addEventListener("hashchange", () => location.reload());
