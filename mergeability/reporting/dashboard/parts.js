"use strict";

// Parts of panels. All names are set as text, and escaped where Plotly reads HTML.
const parts = (() => {
  const MOST_ROWS = 100;
  // Plotly keeps categories as keys of an object, where names such as __proto__ have meanings of their own.
  const escaped = (name) =>
    name.replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;") + (name in {} ? "\u200b" : "");
  const number = (value, digits = 3) =>
    value === null || value === undefined || Number.isNaN(value) ? "–" : value.toFixed(digits);
  const plural = (count, word) => `${count.toLocaleString("en")} ${word}${count === 1 ? "" : "s"}`;
  // Write the cells of a heat map in one notation, chosen by the largest magnitude, so that they can be compared.
  const cells = (largest) => {
    const digits = largest >= 100 ? 0 : largest >= 10 ? 1 : largest >= 0.5 ? 2 : 3;
    const one = (value) => (largest < 0.005 ? value.toExponential(1) : (value.toFixed(digits) * 1).toFixed(digits));
    return (row) => row.map((value) => (value === null ? "" : one(value)));
  };

  function element(tag, text, kind) {
    const made = document.createElement(tag);
    if (text !== undefined) made.textContent = text;
    if (kind) made.className = kind;
    return made;
  }

  // A drop-down whose options may change; what was chosen stays if it still can be.
  function choice(parent, caption, changed) {
    const label = element("label", `${caption} `);
    const select = document.createElement("select");
    label.append(select);
    parent.append(label);
    select.addEventListener("change", changed);
    return {
      get value() {
        return select.value;
      },
      offer(options, first) {
        const before = select.value;
        const made = [];
        const groups = new Map();
        for (const [value, text, group] of options) {
          const option = element("option", text);
          option.value = value;
          if (!group) made.push(option);
          else {
            if (!groups.has(group)) {
              const one = document.createElement("optgroup");
              one.label = group;
              groups.set(group, one);
              made.push(one);
            }
            groups.get(group).append(option);
          }
        }
        select.replaceChildren(...made);
        const known = options.map(([value]) => value);
        select.value = known.includes(before) ? before : (first ?? known[0] ?? "");
        label.hidden = !options.length;
      },
    };
  }

  // Columns are [heading, is it text]; a cell is text, or {href, text}.
  function table(box, caption, columns, rows, marked = []) {
    const all = box.dataset.all === "yes";
    const made = element("table");
    made.append(element("caption", caption, "hidden-text"));
    const head = element("tr");
    for (const [heading, isText] of columns) {
      const cell = element("th", heading, isText ? "text" : "");
      cell.scope = "col";
      head.append(cell);
    }
    made.append(element("thead"), element("tbody"));
    made.tHead.append(head);
    rows.slice(0, all ? rows.length : MOST_ROWS).forEach((row, place) => {
      const line = element("tr", undefined, marked[place] ? "baseline" : "");
      row.forEach((value, column) => {
        const cell = element("td", undefined, columns[column][1] ? "text" : "");
        if (value?.href) {
          const link = element("a", value.text);
          link.href = value.href;
          cell.append(link);
        } else cell.textContent = value.text ?? value;
        line.append(cell);
      });
      made.tBodies[0].append(line);
    });
    const scroll = element("div", undefined, "scroll");
    Object.assign(scroll, { tabIndex: 0, role: "region", ariaLabel: caption });
    scroll.append(made);
    box.replaceChildren(scroll);
    tools.ofTable(box);
    if (!all && rows.length > MOST_ROWS) {
      const more = element("button", `Show all ${plural(rows.length, "row")}`);
      more.type = "button";
      more.addEventListener("click", () => {
        box.dataset.all = "yes";
        table(box, caption, columns, rows, marked);
        box.querySelector(".scroll").focus();
      });
      box.append(more);
    }
  }

  const time = (one) => one.finished_at.slice(0, 16).replace("T", " ") || "–";

  // Columns are [heading, is it text, cell of a row]; one that is empty in every row is left out.
  function fill(box, caption, columns, rows) {
    const found = columns.map(([, , cell]) => rows.map(cell));
    const kept = columns.map((_, at) => at).filter((at) => found[at].some((value) => value !== "–"));
    table(box, caption, kept.map((at) => columns[at]), rows.map((_, row) => kept.map((at) => found[at][row])));
  }

  function draw(box, figure, described) {
    box.hidden = !figure;
    if (!figure) return;
    box.setAttribute("role", "img");
    box.setAttribute("aria-label", described);
    // Rows of the legend above a figure on a narrow screen take room that is the figure's.
    const shown = figure.data.filter((trace) => trace.showlegend !== false).length;
    const rows = Math.ceil((shown * 110) / Math.max(box.clientWidth, 300));
    const height = (figure.layout.height ?? 420) + 19 * Math.max(0, rows - 1);
    plots.draw(box, { data: figure.data, layout: { ...figure.layout, height } });
    if (box.parentElement && !box.parentElement.querySelector(".tools")) tools.ofFigure(box.parentElement);
  }

  function panel(id) {
    const section = document.getElementById(id);
    const find = (kind) => [...section.querySelectorAll(kind)];
    return {
      controls: find(".controls")[0],
      plots: find(".plot"),
      tables: find(".table"),
      note(text) {
        const note = find(".said")[0];
        note.textContent = text;
        note.hidden = !text;
      },
    };
  }

  return { escaped, number, plural, cells, element, choice, table, time, fill, draw, panel };
})();
