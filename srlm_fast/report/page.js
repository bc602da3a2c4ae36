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
