"use strict";

// Filters, and panels that are drawn again when they come near the screen.
(() => {
  const content = JSON.parse(document.getElementById("dashboard-data").textContent);
  const data = makeData(content, statistics);
  const panels = makePanels(data, statistics, parts, content.style);
  const { element } = parts;

  const near = new Set();
  const stale = new Map();
  function refresh(id) {
    if (!near.has(id) || !stale.get(id)) return;
    stale.set(id, false);
    updates[id]();
  }
  const redraw = (id) => {
    stale.set(id, true);
    refresh(id);
  };
  const updates = Object.fromEntries(Object.entries(panels).map(([id, make]) => [id, make(() => redraw(id))]));

  const status = document.getElementById("status");
  function changed() {
    const [runs, trainings] = [data.shownRuns().length, data.shownTrainings().length];
    status.textContent = `${runs} of ${data.runs.length} analyses and ${trainings} of ${data.trainings.length} training runs are shown.`;
    Object.keys(updates).forEach(redraw);
  }

  // A group of check boxes; one with a single value is only named.
  function group(facet) {
    const fieldset = element("fieldset");
    fieldset.append(element("legend", facet.caption));
    const buttons = element("div", undefined, "all");
    const list = element("div", undefined, "values");
    const boxes = facet.values.map((value) => {
      const label = element("label");
      const box = Object.assign(element("input"), { type: "checkbox", checked: !facet.excluded.has(value) });
      box.addEventListener("change", () => {
        facet.excluded[box.checked ? "delete" : "add"](value);
        changed();
      });
      label.append(box, element("span", value));
      list.append(label);
      return box;
    });
    for (const [caption, checked] of [["all", true], ["none", false]]) {
      const button = Object.assign(element("button", caption), { type: "button" });
      button.setAttribute("aria-label", `${facet.caption}: ${caption}`);
      button.addEventListener("click", () => {
        boxes.forEach((box) => (box.checked = checked));
        facet.excluded = new Set(checked ? [] : facet.values);
        changed();
      });
      buttons.append(button);
    }
    if (facet.values.length > 2) fieldset.append(buttons);
    fieldset.append(list);
    return fieldset;
  }

  const filters = document.getElementById("filters");
  for (const facet of data.facets) {
    if (facet.values.length > 1) filters.append(group(facet));
    if (facet.name === "task" && facet.values.length > 1) {
      const label = element("label", "Pairs with ", "pairs-with");
      const select = element("select");
      for (const [value, caption] of [["both", "both tasks chosen"], ["either", "at least one chosen"]]) {
        select.append(Object.assign(element("option", caption), { value }));
      }
      select.addEventListener("change", () => {
        data.choice.pairs = select.value;
        changed();
      });
      label.append(select);
      filters.append(label);
    }
  }
  const alone = data.facets.filter((facet) => facet.values.length === 1 && !["age", "variant", "other"].includes(facet.name));
  const common = alone.map((facet) => `${facet.caption.toLowerCase()} ${facet.values[0]}`).join(", ");
  if (common) filters.append(element("p", `The same for all: ${common}.`, "note"));
  document.getElementById("filter-box").open = window.innerWidth > 900;

  const waiting = new IntersectionObserver(
    (entries) => {
      for (const { target, isIntersecting } of entries) {
        near[isIntersecting ? "add" : "delete"](target.id);
        if (isIntersecting) refresh(target.id);
      }
    },
    { rootMargin: "400px" },
  );
  tools.start();
  Object.keys(updates).forEach((id) => waiting.observe(document.getElementById(id)));
  changed();
})();
