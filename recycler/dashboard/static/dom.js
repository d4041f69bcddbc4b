// Elements from plain data. Text only ever becomes a text node, so nothing that is shown can be markup.

/** An element: `h("a", {href, class, onclick, "aria-label"}, child, ...)`; strings and numbers become text. */
export function h(tag, attributes = {}, ...children) {
  const element = tag === "svg" || tag === "path" ? document.createElementNS("http://www.w3.org/2000/svg", tag) : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name === "value" || name === "checked" || name === "disabled" || name === "selected") element[name] = value;
    else element.setAttribute(name, value === true ? "" : String(value));
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined).map((child) => (child instanceof Node ? child : document.createTextNode(String(child)))));
  return element;
}

/** Puts `children` in place of what `element` holds. */
export function fill(element, ...children) {
  element.replaceChildren(...children.flat().filter((child) => child !== null && child !== undefined));
}

/** A line for people, read out by screen readers. */
export function notice(text) {
  document.getElementById("notice").textContent = text;
}

export function select(label, options, value, onchange, id) {
  return h("label", {}, label, h("select", { id, onchange: (event) => onchange(event.target.value) }, options.map(([key, name]) => h("option", { value: key, selected: key === value }, name))));
}

export function checkbox(label, checked, onchange, id) {
  return h("label", {}, h("input", { type: "checkbox", id, checked, onchange: (event) => onchange(event.target.checked) }), label);
}

/** A score with its error; what a merge costs has none. */
export const figure = (score, digits = 3) => (score && score.value !== null ? (score.n === 0 && !score.stderr ? exactly(score.value) : `${score.value.toFixed(digits)} ± ${(score.stderr ?? 0).toFixed(digits)}`) : "–");
export const exactly = (value) => `${Number(value.toPrecision(4))}`;

export function duration(seconds) {
  if (seconds === null || seconds === undefined) return "–";
  if (seconds < 90) return `${Math.round(seconds)} s`;
  return seconds < 5400 ? `${Math.round(seconds / 60)} min` : `${(seconds / 3600).toFixed(1)} h`;
}

/** What a trial is called. */
export function trialName(trial) {
  const kinds = { member: `member ${trial.label}`, base: `base ${trial.label}`, uniform_soup: "uniform soup", greedy_soup: "greedy step", merge: trial.label || "merge" };
  return `${trial.trial} · ${kinds[trial.kind] ?? trial.kind}`;
}

export const bytes = (number) => (number < 1e6 ? `${(number / 1e3).toFixed(1)} kB` : number < 1e9 ? `${(number / 1e6).toFixed(1)} MB` : `${(number / 1e9).toFixed(2)} GB`);
