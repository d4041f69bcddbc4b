// Progress of one job: state, cost, hypervolume, failures, exports, log; stop, resume, duplicate.

import { firstOf, follow, getJob, jobPath, postJob } from "./api.js";
import { draw } from "./chart.js";
import { duration, fill, h, notice, trialName } from "./dom.js";

const facts = h("div"), chart = h("div", { class: "chart low", role: "group", "aria-label": "Hypervolume after each trial" }), failures = h("div"), exports = h("div"), latest = h("ol", { id: "latest", "aria-label": "Latest trials" });
const log = h("pre", { tabindex: "0", "aria-label": "End of the driver's log" });
const stop = h("button", { type: "button", onclick: () => act("/stop", "Stopping: scored trials are kept.") }, "Stop");
const resume = h("button", { type: "button", onclick: () => act("/resume", "Going on.") }, "Resume");
const duplicate = h("button", { type: "button", onclick: copy }, "Duplicate");
const recent = [];

async function act(path, words) {
  try { await postJob(path); notice(words); show(await getJob()); } catch (error) { notice(error.message); }
}

async function copy() {
  const { text } = await getJob("/source");
  if (!text) return notice("This run has no job file.");
  sessionStorage.setItem("recycler-duplicate", text);
  location.assign("/");
}

function show(job) {
  const closed = job.trials.SCORED + job.trials.FAILED;
  fill(facts, h("p", {}, h("span", { class: "badge", "data-state": job.state, id: "state" }, job.state), ` ${job.reason}`),
    h("progress", { max: job.expected_trials || 1, value: closed, "aria-label": "trials done" }),
    h("dl", {}, ...[["trials", `${closed} of ${job.expected_trials ?? "?"}`], ["failed", job.trials.FAILED], ["time left", duration(job.eta_seconds)], ["elapsed", duration(job.elapsed_seconds)],
      ["tokens", job.num_tokens.toLocaleString("en")], ["worker time", duration(job.worker_seconds)], ["objectives", job.objectives.map((o) => `${o.name} (${o.direction})`).join(", ")]]
      .flatMap(([name, value]) => [h("dt", {}, name), h("dd", { "data-fact": name }, value)])));
  stop.disabled = !job.running;
  resume.disabled = job.running || !job.resumable || job.state === "finished";
  const curve = job.hypervolume;
  if (curve.length) draw(chart, (colours) => ({
    traces: [{ x: [...curve.map((p) => p.trial), Math.max(closed - 1, curve.at(-1).trial)], y: [...curve.map((p) => p.hypervolume), curve.at(-1).hypervolume], mode: "lines", line: { shape: "hv", color: colours.accent, width: 2 }, hovertemplate: "trial %{x}: %{y:.4g}<extra></extra>" }],
    layout: { xaxis: { title: { text: "trial" } }, yaxis: { title: { text: "hypervolume (search)" } }, showlegend: false } }));
}

function showTrial(trial) {
  recent.unshift(trial);
  fill(latest, recent.slice(0, 8).map((entry) => h("li", { "data-trial": entry.trial }, `${trialName(entry)}: ${entry.failure ? `failed (${entry.failure.reason})` : Object.entries(entry.scores.search).map(([name, score]) => `${name} ${score.value?.toFixed(3)}`).join(", ")}`)));
}

async function showExports() {
  const found = (await getJob("/exports")).exports;
  fill(exports, found.length ? h("ul", {}, found.map((entry) => h("li", {}, `${entry.id}: ${entry.state} ${entry.reason}`, h("pre", {}, entry.command)))) : h("p", { class: "soft" }, "Nothing exported yet: choose a trial on the Front page."));
}

fill(document.getElementById("page"), h("div", { class: "split" },
  h("div", { class: "stack" }, h("section", { class: "card" }, facts, h("div", { class: "bar" }, stop, resume, duplicate, h("a", { href: jobPath("/trials.csv"), download: true }, "Trials as CSV"))), h("section", { class: "card" }, h("h2", {}, "Hypervolume"), chart)),
  h("div", { class: "stack" }, h("section", { class: "card" }, h("h2", {}, "Latest"), latest, failures), h("section", { class: "card" }, h("h2", {}, "Exports"), exports), h("section", { class: "card" }, h("h2", {}, "Driver"), log))));

async function told(status) {
  show(status);
  const source = await getJob("/source");
  log.textContent = source.log || source.command || "No log: this run was started by hand.";
}

try {
  told(await getJob());
  const { trials, cursor } = await firstOf("/trials", told);
  trials.filter((trial) => trial.state !== "PENDING").slice(-8).forEach(showTrial);
  follow(cursor, { trial: showTrial, status: told });
  await showExports();
  document.body.dataset.ready = "1";
} catch (error) { notice(error.message); }
