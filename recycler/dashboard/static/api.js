// The API of this server, and nothing else: no request leaves the machine.

export const job = document.body.dataset.job;
const REOPEN_MS = 5000, WAIT_MS = 2000;
const base = `/api/v1/jobs/${encodeURIComponent(job)}`;

/** A problem as one line: where, the thing, the cause, the remedy. */
export const told = (problem) => `${problem.where ? `${problem.where}: ` : ""}${problem.thing}: ${problem.cause}. ${problem.remedy}`;

/** Raised for an answer that is not 2xx; `problems` as the server told them. */
export class ApiError extends Error {
  constructor(status, problems) {
    super(problems.map(told).join("\n"));
    this.status = status;
    this.problems = problems;
  }
}

async function read(answer) {
  const document = await answer.json().catch(() => ({}));
  if (!answer.ok) throw new ApiError(answer.status, document.problems ?? [{ thing: "server", cause: `answered ${answer.status}`, remedy: "", where: "" }]);
  return document;
}

export const get = async (path) => read(await fetch(path, { headers: { Accept: "application/json" } }));
export const post = async (path, body = {}) => read(await fetch(path, { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) }));
export const getJob = (path = "") => get(base + path);
export const postJob = (path, body) => post(base + path, body);
export const jobPath = (path) => base + path;

/** The job's trials (`/trials`) or their columns (`/table`); waits while its driver has not opened the ledger yet, telling `waiting` the status. */
export async function firstOf(path, waiting) {
  if (document.body.dataset.ledger) return getJob(path);
  for (;;) { // the status is asked first: a browser logs every 404 as an error
    const status = await getJob();
    if (status.state !== "starting") return getJob(path);
    waiting(status);
    await new Promise((done) => setTimeout(done, WAIT_MS));
  }
}

/** Follows a job's events; `handlers` by kind: trial, holdout, status, end. Opens again by itself, without loss. */
export function follow(cursor, handlers) {
  let last = cursor;
  const again = () => setTimeout(open, REOPEN_MS);
  const open = () => {
    const source = new EventSource(`${base}/events?after=${encodeURIComponent(last)}`);
    for (const kind of ["trial", "holdout", "status", "end"]) {
      source.addEventListener(kind, (event) => {
        if (event.lastEventId) last = event.lastEventId;
        handlers[kind]?.(JSON.parse(event.data));
        if (kind === "end") { source.close(); again(); }
      });
    }
    source.onerror = () => { if (source.readyState === EventSource.CLOSED) again(); };
  };
  open();
}
