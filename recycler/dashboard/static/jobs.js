// Jobs: one card a job, and the form that submits one.

import { get, post, told } from "./api.js";
import { duration, fill, h, notice } from "./dom.js";

const REFRESH_MS = 3000, VALIDATE_MS = 400;
const list = h("div", { class: "grid", id: "jobs" });

function spark(curve) {
  if (curve.length < 2) return null;
  const last = curve.at(-1), high = last.hypervolume || 1, low = curve[0].hypervolume, wide = last.trial - curve[0].trial || 1;
  const steps = curve.map((point, index) => {
    const x = ((point.trial - curve[0].trial) / wide) * 100, y = 42 - ((point.hypervolume - low) / (high - low || 1)) * 38;
    return index ? `H${x.toFixed(2)}V${y.toFixed(2)}` : `M${x.toFixed(2)} ${y.toFixed(2)}`;
  });
  return h("svg", { class: "spark", viewBox: "0 0 100 46", preserveAspectRatio: "none", role: "img", "aria-label": `Hypervolume rose from ${low.toPrecision(3)} to ${high.toPrecision(3)}` }, h("path", { d: steps.join("") }));
}

function card(job) {
  const closed = job.trials.SCORED + job.trials.FAILED;
  const path = `/jobs/${encodeURIComponent(job.id)}`;
  return h("section", { class: "card", "data-job": job.id, "aria-label": `Job ${job.id}` },
    h("div", { class: "bar" }, h("h2", {}, h("a", { href: path }, job.id)), h("span", { class: "badge", "data-state": job.state }, job.state)),
    h("p", { class: "soft" }, job.reason),
    job.expected_trials ? h("progress", { max: job.expected_trials, value: closed, "aria-label": `${closed} of ${job.expected_trials} trials` }) : null,
    spark(job.hypervolume),
    h("dl", {}, h("dt", {}, "trials"), h("dd", {}, `${closed} of ${job.expected_trials ?? "?"}${job.trials.FAILED ? `, ${job.trials.FAILED} failed` : ""}`),
      h("dt", {}, "time left"), h("dd", {}, duration(job.eta_seconds)),
      h("dt", {}, "cost"), h("dd", {}, `${job.num_tokens.toLocaleString("en")} tokens, ${duration(job.worker_seconds)} of workers`),
      h("dt", {}, "hypervolume"), h("dd", {}, job.hypervolume.length ? job.hypervolume.at(-1).hypervolume.toPrecision(4) : "–")),
    h("div", { class: "bar" }, [["front", "Front"], ["compare", "Compare"], ["pool", "Pool"]].map(([tab, name]) => h("a", { href: `${path}/${tab}`, "aria-label": `${name} of ${job.id}` }, name))));
}

let shown = "";
async function refresh() {
  const { jobs } = await get("/api/v1/jobs");
  const text = JSON.stringify(jobs);
  if (text === shown) return;
  shown = text;
  const focused = document.activeElement?.closest?.("#jobs a")?.getAttribute("href");
  fill(list, jobs.length ? jobs.map(card) : h("p", { class: "soft" }, "No runs here yet. Submit a job below, or run one: recycler run job.yaml --dir RUN"));
  if (focused) [...list.querySelectorAll("a")].find((link) => link.getAttribute("href") === focused)?.focus();
}

function form() {
  const text = h("textarea", { id: "job-text", spellcheck: "false", "aria-describedby": "problems", placeholder: "version: 1\nname: math-and-code\npool: checkpoints/*\n…" });
  const id = h("input", { id: "job-id", pattern: "[a-z0-9][a-z0-9._\\-]{0,62}", placeholder: "the job's name" });
  const problems = h("ul", { id: "problems", role: "status" }), button = h("button", { type: "submit", class: "main", disabled: true }, "Submit");
  const tell = (lines, className) => fill(problems, lines.map((line) => h("li", { class: className }, line)));
  let timer = 0;
  const check = async () => {
    button.disabled = true;
    if (!text.value.trim()) return tell([]);
    try {
      const found = await post("/api/v1/validate", { text: text.value });
      if (found.problems.length) return tell(found.problems.map(told), "bad");
      tell([`${found.name}: the file is well formed`], "good");
      button.disabled = false;
    } catch (error) { tell(error.message.split("\n"), "bad"); }
  };
  text.addEventListener("input", () => { clearTimeout(timer); timer = setTimeout(check, VALIDATE_MS); });
  const drop = async (event) => {
    event.preventDefault();
    text.classList.remove("drop");
    const file = event.dataTransfer.files[0];
    if (file && file.size < 500_000) { text.value = await file.text(); check(); }
  };
  text.addEventListener("dragover", (event) => { event.preventDefault(); text.classList.add("drop"); });
  text.addEventListener("dragleave", () => text.classList.remove("drop"));
  text.addEventListener("drop", drop);
  const duplicate = sessionStorage.getItem("recycler-duplicate");
  if (duplicate) { sessionStorage.removeItem("recycler-duplicate"); text.value = duplicate; check(); }
  const submit = async (event) => {
    event.preventDefault();
    try {
      const made = await post("/api/v1/jobs", { text: text.value, id: id.value || null });
      notice(`Job ${made.id} is ${made.state}.`);
      refresh();
    } catch (error) { tell(error.message.split("\n"), "bad"); }
  };
  return h("details", { class: "card", open: Boolean(duplicate) }, h("summary", {}, "Submit a job"), h("form", { onsubmit: submit },
    h("p", { class: "soft" }, "Write or drop a job file; it is checked as you type. Its paths are relative to the folder that is served."),
    h("label", { for: "job-text" }, "Job file"), text, problems, h("div", { class: "bar" }, h("label", {}, "Id", id), button)));
}

fill(document.getElementById("page"), h("div", { class: "stack" }, list, form()));
const loop = async () => {
  try { if (!document.hidden) await refresh(); document.body.dataset.ready = "1"; } catch (error) { notice(error.message); }
  setTimeout(loop, REFRESH_MS);
};
loop();
