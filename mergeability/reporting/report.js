"use strict";

// Figures behind drop-down menus, drawn when they come near.
(() => {
  const read = (id) => JSON.parse(document.getElementById(id).textContent);

  // Parts that several figures have in common are written once.
  function whole(part, shared) {
    if (Array.isArray(part)) return part.map((inner) => whole(inner, shared));
    if (part === null || typeof part !== "object") return part;
    if ("shared" in part) return whole(shared[part.shared], shared);
    return Object.fromEntries(Object.entries(part).map(([key, inner]) => [key, whole(inner, shared)]));
  }

  // Lead from what is chosen to its definition.
  function define(block) {
    const note = block.querySelector(".defined");
    const chosen = [...block.querySelectorAll("select")].flatMap((select) => {
      const anchor = tools.anchor(select.value);
      return anchor ? [Object.assign(document.createElement("a"), { href: `#${anchor}`, textContent: select.selectedOptions[0].textContent })] : [];
    });
    note.hidden = !chosen.length;
    note.replaceChildren("Definitions: ", ...chosen.flatMap((link, place) => (place ? [", ", link] : [link])));
  }

  function refresh(block, content) {
    const choice = [...block.querySelectorAll("select")].map((select) => select.value).join("|");
    const shown = choice in content.figures && whole(content.figures[choice], content.shared);
    block.querySelector(".empty").hidden = Boolean(shown);
    block.querySelectorAll(".figure").forEach((figure, position) => {
      figure.hidden = !shown;
      if (!shown) return;
      const box = figure.querySelector(".plot");
      plots.draw(box, shown[position]);
      if (!figure.querySelector(".tools")) tools.ofFigure(figure);
    });
    define(block);
    block.dispatchEvent(new CustomEvent("drawn"));
  }

  function start(block) {
    if (block.dataset.started) return;
    block.dataset.started = "yes";
    const content = read(block.dataset.figures);
    for (const select of block.querySelectorAll("select")) {
      select.addEventListener("change", () => refresh(block, content));
    }
    refresh(block, content);
  }

  tools.start();
  // Figures far down the page wait until they come near: a report of 20 tasks has hundreds of choices.
  const waiting = new IntersectionObserver(
    (entries) => {
      for (const entry of entries) {
        if (!entry.isIntersecting) continue;
        waiting.unobserve(entry.target);
        start(entry.target);
      }
    },
    { rootMargin: "600px" },
  );
  const blocks = document.querySelectorAll(".block");
  blocks.forEach((block) => waiting.observe(block));
  addEventListener("beforeprint", () => blocks.forEach(start));
})();
