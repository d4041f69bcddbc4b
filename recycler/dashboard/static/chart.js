// Plotly with this page's colours; the only file that knows Plotly.

const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
const drawn = new Map();
let known = null, loading = null;

/** Colours of the theme; read once a theme, since reading them makes the browser lay out the page. */
export function palette() {
  known ??= { ...Object.fromEntries(["ink", "soft", "line", "accent", "good", "bad", "card"].map((name) => [name, colour(name)])),
    series: ["#4c8fd6", "#d98a1f", "#3ba272", "#b15fc4", "#d1574f", "#6f7cc9", "#8c8c3a", "#3aa3a8"] };
  return known;
}

/** Plotly, whose script is read ahead and run on the first call only, after the browser has painted: running it takes a second on a busy machine. */
export function plotly() {
  loading ??= new Promise((done, fail) => {
    const script = document.createElement("script");
    Object.assign(script, { src: document.getElementById("plotly").href, onload: () => done(globalThis.Plotly), onerror: () => fail(new Error("Plotly could not be loaded; reload the page")) });
    const begin = () => document.head.append(script);
    if (document.hidden) begin(); else requestAnimationFrame(() => setTimeout(begin));
  });
  return loading;
}

function framed({ traces, layout }) {
  const colours = palette(), axis = { gridcolor: colours.line, zerolinecolor: colours.line, linecolor: colours.soft };
  return { data: traces, layout: {
    paper_bgcolor: colours.card, plot_bgcolor: colours.card, font: { color: colours.ink, family: "system-ui, sans-serif", size: 13 }, margin: { l: 62, r: 14, t: 14, b: 48 }, hovermode: "closest",
    uirevision: "keep", legend: { orientation: "h", y: 1.02, yanchor: "bottom" }, ...layout, xaxis: { ...axis, ...layout.xaxis }, yaxis: { ...axis, ...layout.yaxis } } };
}

/** Draws or redraws; `make(palette)` gives {traces, layout}. Redrawn when the theme changes. `whole`, where given, is drawn into downloads instead. */
export async function draw(element, make, whole = make) {
  drawn.set(element, make);
  const Plotly = await plotly(), { data, layout } = framed(make(palette()));
  const download = (format) => ({ name: `Download ${format.toUpperCase()}`, icon: Plotly.Icons.camera, click: () => Plotly.downloadImage({ ...framed(whole(palette())) }, { format, width: 1000, height: 640, scale: format === "png" ? 2 : 1, filename: document.title.replace(/\W+/g, "-") }) });
  await Plotly.react(element, data, layout, { displaylogo: false, responsive: true, scrollZoom: false, modeBarButtons: [[download("png"), download("svg"), "zoom2d", "pan2d", "select2d", "lasso2d", "resetScale2d"]] });
}

addEventListener("themechange", () => { known = null; for (const [element, make] of drawn) if (element.isConnected) draw(element, make); });

/** Moves only which points are bright: one list of indices a trace, or null for all. */
export async function highlight(element, indices) {
  return (await plotly()).restyle(element, { selectedpoints: indices }, indices.map((_, trace) => trace));
}

export async function clearSelections(element) { return (await plotly()).relayout(element, { selections: [] }); }

/** Plotly reads a few tags in text; names must not be read so. */
export function escapeForPlotly(text) {
  return String(text).replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");
}
