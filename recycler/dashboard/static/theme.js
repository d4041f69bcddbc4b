// Runs before the page is painted: the theme that was chosen here, or the system's.
const chosen = (() => { try { return localStorage.getItem("recycler-theme"); } catch { return null; } })();
const dark = chosen ? chosen === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
document.documentElement.dataset.theme = dark ? "dark" : "light";

addEventListener("DOMContentLoaded", () => {
  const button = document.getElementById("theme");
  const show = () => button.setAttribute("aria-pressed", String(document.documentElement.dataset.theme === "dark"));
  show();
  button.addEventListener("click", () => {
    const theme = document.documentElement.dataset.theme === "dark" ? "light" : "dark";
    document.documentElement.dataset.theme = theme;
    try { localStorage.setItem("recycler-theme", theme); } catch { /* private window: the choice lasts for this page */ }
    show();
    dispatchEvent(new Event("themechange"));
  });
});
