// Plotly with this page's colours; the only file that knows Plotly.

const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
const drawn = new Map();

export const palette = () => ({ ink: colour("ink"), soft: colour("soft"), line: colour("line"), accent: colour("accent"), good: colour("good"), bad: colour("bad"), card: colour("card"),
  series: ["#4c8fd6", "#d98a1f", "#3ba272", "#b15fc4", "#d1574f", "#6f7cc9", "#8c8c3a", "#3aa3a8"] });

/** Draws or redraws; `make(palette)` gives {traces, layout}. Redrawn when the theme changes. */
export async function draw(element, make) {
  const colours = palette();
  const { traces, layout } = make(colours);
  const axis = { gridcolor: colours.line, zerolinecolor: colours.line, linecolor: colours.soft };
  drawn.set(element, make);
  await globalThis.Plotly.react(element, traces, {
    paper_bgcolor: colours.card, plot_bgcolor: colours.card, font: { color: colours.ink, family: "system-ui, sans-serif", size: 13 }, margin: { l: 62, r: 14, t: 14, b: 48 }, hovermode: "closest",
    uirevision: "keep", selectionrevision: "keep", legend: { orientation: "h", y: 1.02, yanchor: "bottom" }, ...layout, xaxis: { ...axis, ...layout.xaxis }, yaxis: { ...axis, ...layout.yaxis },
  }, { displaylogo: false, responsive: true, modeBarButtons: [["toImage", "zoom2d", "pan2d", "select2d", "lasso2d", "resetScale2d"]], toImageButtonOptions: { format: "svg" }, scrollZoom: false });
}

addEventListener("themechange", () => { for (const [element, make] of drawn) if (element.isConnected) draw(element, make); });

/** Moves only which points are bright: one list of indices a trace, or null for all. */
export function highlight(element, indices) {
  return globalThis.Plotly.restyle(element, { selectedpoints: indices }, indices.map((_, trace) => trace));
}
