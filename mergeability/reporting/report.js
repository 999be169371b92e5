"use strict";
(() => {
  const read = (id) => JSON.parse(document.getElementById(id).textContent);

  function refresh(block, figures) {
    const choice = [...block.querySelectorAll("select")].map((select) => select.value).join("|");
    const shown = figures[choice];
    const empty = block.querySelector(".empty");
    empty.hidden = Boolean(shown);
    block.querySelectorAll(".plot").forEach((box, position) => {
      box.hidden = !shown;
      if (shown) plots.draw(box, shown[position]);
    });
  }

  function start(block) {
    const figures = read(block.dataset.figures);
    for (const select of block.querySelectorAll("select")) {
      select.addEventListener("change", () => refresh(block, figures));
    }
    refresh(block, figures);
  }

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
  document.querySelectorAll(".block").forEach((block) => waiting.observe(block));
})();
