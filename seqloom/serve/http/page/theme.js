// Light or dark: as the system has it until the reader chooses; the choice is remembered.
// Loaded before the page is drawn, so that it never flashes in the wrong light.
"use strict";
{
  const root = document.documentElement, name = "seqloom.theme";
  const remembered = () => { try { return localStorage.getItem(name); } catch { return null; } };
  if (["light", "dark"].includes(remembered())) root.dataset.theme = remembered();
  document.addEventListener("DOMContentLoaded", () => {
    document.getElementById("theme").addEventListener("click", () => {
      const system = matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light";
      root.dataset.theme = (root.dataset.theme ?? system) === "dark" ? "light" : "dark";
      try { localStorage.setItem(name, root.dataset.theme); } catch { /* then for this visit only */ }
    });
  });
}
