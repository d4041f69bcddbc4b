// Front: scatter, matrix, parallel coordinates and table of one job's trials; a brush in one shows in all.

import { firstOf, follow, getJob, job, jobPath } from "./api.js";
import { Detail } from "./detail.js";
import { checkbox, fill, h, notice, select } from "./dom.js";
import { Listing } from "./listing.js";
import { Matrix } from "./matrix.js";
import { Brush, readHash, writeHash } from "./model.js";
import { Parallel } from "./parallel.js";
import { Scatter } from "./scatter.js";
import { Table } from "./table.js";

const LIVE_MS = 300, MAX_MARKED = 4;
const DEFAULTS = { x: "", y: "", role: "search", rest: "1", bars: "1", trial: "", sort: "", compare: "", prefer: "", ranges: "", area: "" };
const state = readHash(DEFAULTS);
const brush = Brush.fromText(state.ranges, state.area);
let table, axes, pending = 0;

const place = { scatter: h("div", { class: "layers" }), matrix: h("canvas", { id: "matrix", role: "img", "aria-label": "Every pair of objectives; the selects x and y choose one" }),
  canvas: h("canvas", { id: "parallel", role: "img", "aria-label": "Parallel coordinates; the number fields below brush the same axes" }),
  tools: h("div", { class: "bar" }), ranges: h("details"), table: h("div", { class: "scroll", id: "table", tabindex: "0", role: "region", "aria-label": "Trials" }),
  count: h("p", { id: "count", class: "soft", "aria-live": "polite" }), sliders: h("div"), detail: h("div"), marked: h("div", { class: "bar" }) };
const detail = new Detail(place.detail, choose);
const scatter = new Scatter(place.scatter, { onbrush: (shapes) => { brush.shapes = shapes; brushed(); }, onchoose: choose });
const matrix = new Matrix(place.matrix, (x, y) => setPair(x, y));
const parallel = new Parallel(place.canvas, (name, range) => { if (range) brush.ranges.set(name, range); else brush.ranges.delete(name); brushed(); });
const listing = new Listing(place.table, place.count, { onchoose: choose, onmark: mark, onsort: (key) => { state.sort = state.sort === `-${key}` ? key : `-${key}`; list(); listing.show(mask()); save(); } });

const marked = () => state.compare.split(",").filter(Boolean).map(Number);
const chosenRow = () => (state.trial === "" ? null : table.rowOf.get(+state.trial) ?? null);
const shown = () => table.shown(state.role, state.rest === "1");
const mask = () => brush.mask(table, axes, state.role, state.x, state.y);

function save() {
  Object.assign(state, { ranges: brush.rangesText(), area: brush.shapesText() });
  writeHash(state, { ...DEFAULTS, x: table.objectives[0].name, y: table.objectives[1].name });
}

function setPair(x, y) {
  Object.assign(state, { x, y });
  brush.shapes = [];
  tools();
  draw();
}

/** After a brush moved: only brightness changes, at most once a frame. */
function brushed() {
  if (pending) return;
  pending = requestAnimationFrame(async () => {
    pending = 0;
    const start = performance.now(), bright = mask();
    await scatter.show(bright); // the charts before the table: a changed table makes the browser lay out the page when a chart asks for its size
    parallel.draw(bright);
    if (table.objectives.length > 2) matrix.draw(bright);
    listing.show(bright);
    performance.measure("brush", { start, end: performance.now() });
    save();
  });
}

function choose(number) {
  state.trial = String(number);
  draw();
}

const list = () => listing.render({ table, rows: shown(), axes, role: state.role, sort: state.sort, chosen: chosenRow(), marked: new Set(marked()) });

async function draw() {
  const start = performance.now(), rows = shown(), bright = mask(), { role, x, y } = state;
  notice(rows.length ? "" : role === "holdout" ? "No trial has holdout scores yet: they come when the budget is spent." : "No trial is scored yet.");
  list();
  listing.show(bright);
  parallel.render({ table, rows, axes, role, ranges: brush.ranges, chosen: chosenRow() });
  parallel.draw(bright);
  if (table.objectives.length > 2) { matrix.render({ table, rows, role, x, y }); matrix.draw(bright); }
  detail.show(chosenRow() === null ? null : +state.trial, table);
  save();
  performance.measure("usable", { start: 0, end: performance.now() });
  await scatter.render({ table, rows, x, y, role, bars: state.bars === "1", chosen: rows.includes(chosenRow()) ? chosenRow() : null, shapes: brush.shapes });
  if (bright) await scatter.show(bright); else scatter.cloud.draw(null);
  performance.measure("draw", { start, end: performance.now() });
}

function mark(number) {
  state.compare = (marked().includes(number) ? marked().filter((other) => other !== number) : [...marked(), number].slice(-MAX_MARKED)).join(",");
  showMarked(); list(); listing.show(mask()); save();
}

function showMarked() {
  fill(place.marked, marked().length >= 2 ? h("a", { id: "compare-link", href: `/jobs/${encodeURIComponent(job)}/compare#trials=${marked().join(",")}` }, `Compare trials ${marked().join(", ")}`) : h("span", { class: "soft" }, "Tick 2 to 4 trials to compare them."),
    h("span", { class: "soft" }, "Download all as"), ["csv", "parquet"].map((kind) => h("a", { href: jobPath(`/trials.${kind}`), download: true }, kind.toUpperCase())), h("a", { href: jobPath("/report.html"), download: true }, "HTML report"));
}

function tools() {
  const names = table.objectives.map((o) => [o.name, `${o.name} (${o.direction})`]);
  const set = (key) => (value) => { state[key] = value === true ? "1" : value === false ? "0" : value; draw(); };
  fill(place.tools, select("x", names, state.x, (value) => setPair(value, state.y), "x"), select("y", names, state.y, (value) => setPair(state.x, value), "y"), select("scores", [["search", "search"], ["holdout", "holdout"]], state.role, set("role"), "role"),
    checkbox("dominated", state.rest === "1", set("rest"), "rest"), checkbox("error bars", state.bars === "1", set("bars"), "bars"),
    h("button", { type: "button", id: "clear", onclick: () => { brush.clear(); ranges(); brushed(); scatter.clear(); } }, "Clear brush"));
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
  const shares = state.prefer ? state.prefer.split(",").map(Number) : table.objectives.map(() => 50);
  const told = h("p", { id: "preferred", "aria-live": "polite" });
  const move = () => {
    const row = table.preferred(shares, state.role), total = shares.reduce((a, b) => a + b, 0) || 1;
    state.prefer = shares.join(",");
    if (row === null) return;
    told.textContent = `Best for ${table.objectives.map((o, i) => `${Math.round((100 * shares[i]) / total)} % ${o.name}`).join(", ")}: trial ${table.numbers[row]}`;
    choose(table.numbers[row]);
  };
  fill(place.sliders, h("h2", {}, "Preference"), table.objectives.map((o, index) => h("label", { class: "slider" }, h("span", {}, o.name), h("input", { type: "range", min: 0, max: 100, value: shares[index], "aria-label": `how much ${o.name} matters`, oninput: (event) => { shares[index] = +event.target.value; move(); } }))), told);
}

/** Trials that arrive while the page is open: the columns are read anew, in bunches, and seldom where that is slow. */
let timer = 0, rest = 0, late = false;
function arrived() {
  if (timer) { late = true; return; }
  timer = setTimeout(async () => {
    const start = performance.now();
    late = false;
    try { table = new Table(await getJob("/table")); await draw(); } catch (error) { notice(error.message); }
    rest = 4 * (performance.now() - start);
    timer = 0;
    if (late) arrived();
  }, Math.max(LIVE_MS, rest));
}

async function start() {
  table = new Table(await firstOf("/table", () => notice("The driver is starting.")));
  axes = table.axes();
  const names = table.objectives.map((o) => o.name);
  if (!names.includes(state.x)) state.x = names[0];
  if (!names.includes(state.y)) state.y = names[1];
  if (!["search", "holdout"].includes(state.role)) state.role = "search";
  if (state.trial === "" && table.knee !== null) state.trial = String(table.knee);
  fill(document.getElementById("page"), h("div", { class: "split" },
    h("div", { class: "stack" }, h("section", { class: "card" }, place.tools, place.scatter), h("section", { class: "card" }, h("h2", {}, "Objectives and weights"), place.canvas, place.ranges), names.length > 2 ? h("section", { class: "card" }, h("h2", {}, "Pairs of objectives"), place.matrix) : null,
      h("section", { class: "card" }, h("h2", {}, "Trials"), place.count, place.marked, place.table)),
    h("div", { class: "stack" }, h("section", { class: "card" }, place.sliders), h("section", { class: "card" }, place.detail))));
  tools(); ranges(); sliders(); showMarked();
  await draw();
  document.body.dataset.ready = "1";
  follow(table.cursor, { trial: arrived, holdout: arrived });
}

try { await start(); } catch (error) { notice(error.message); }
addEventListener("hashchange", () => location.reload());
