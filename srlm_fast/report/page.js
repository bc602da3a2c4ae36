"use strict";
// The theme: the reader's choice is remembered where the browser lets a page keep something.
const root = document.documentElement;
const remembered = {
  get: (key) => { try { return localStorage.getItem(key); } catch { return null; } },
  set: (key, value) => { try { localStorage.setItem(key, value); } catch { /* not allowed here */ } },
};
const THEME = "srlm_fast-theme";
if (["light", "dark"].includes(remembered.get(THEME))) root.dataset.theme = remembered.get(THEME);
const themeButton = document.getElementById("theme");
const showTheme = () => {
  themeButton.textContent = getComputedStyle(root).colorScheme === "dark" ? "Light" : "Dark";
};
themeButton.addEventListener("click", () => {
  root.dataset.theme = getComputedStyle(root).colorScheme === "dark" ? "light" : "dark";
  remembered.set(THEME, root.dataset.theme);
  showTheme();
});
showTheme();
// What scrolls sideways can be reached and scrolled by keys.
const reachable = () => {
  for (const box of document.querySelectorAll(".scroll")) {
    const scrolls = box.scrollWidth > box.clientWidth;
    if (!scrolls) { box.removeAttribute("tabindex"); box.removeAttribute("role"); box.removeAttribute("aria-label"); continue; }
    box.tabIndex = 0;
    box.setAttribute("role", "group");
    box.setAttribute("aria-label", "scrolls sideways");
  }
};
addEventListener("resize", reachable);
document.addEventListener("toggle", reachable, true);
reachable();
