"use strict";

// Light or dark: what the reader chose on this page or an earlier one, or else what the system prefers.
const theme = (() => {
  const KEY = "mergeability-theme";
  const root = document.documentElement;
  const system = matchMedia("(prefers-color-scheme: dark)");
  const changed = [];
  let printing = false;

  // Browsers refuse storage to some pages that are opened as files.
  function stored() {
    try {
      return localStorage.getItem(KEY);
    } catch {
      return null;
    }
  }
  const chosen = () => root.dataset.theme ?? (system.matches ? "dark" : "light");

  function apply(name) {
    root.dataset.theme = name;
    changed.forEach((follow) => follow());
  }
  function choose(name) {
    try {
      localStorage.setItem(KEY, name);
    } catch {
      // The choice holds for this page.
    }
    apply(name);
  }

  apply(stored() ?? (system.matches ? "dark" : "light"));
  system.addEventListener("change", () => stored() ?? apply(system.matches ? "dark" : "light"));

  return {
    get dark() {
      return chosen() === "dark" && !printing;
    },
    follow: (one) => changed.push(one),
    print(now) {
      printing = now;
      if (chosen() === "dark") changed.forEach((follow) => follow());
    },
    button(button) {
      const show = () => {
        button.textContent = chosen() === "dark" ? "Light theme" : "Dark theme";
      };
      button.addEventListener("click", () => choose(chosen() === "dark" ? "light" : "dark"));
      changed.push(show);
      show();
      button.hidden = false;
    },
  };
})();
