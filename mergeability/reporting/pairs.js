"use strict";

// The table of all pairs, and the card of one pair, from one embedded JSON.
(() => {
  const source = document.getElementById("pairs-data");
  if (!source) return;
  const data = JSON.parse(source.textContent);
  const { known, percentile, similar, parse, filtered, sorted } = pairMath;
  const PAGE = 25;
  const SIMILAR = 5;

  const names = data.a.map((a, place) => `${data.tasks[a]} + ${data.tasks[data.b[place]]}`);
  const find = (id) => document.getElementById(id);
  const number = (value, digits = 3) => {
    if (!known(value)) return "–";
    if (typeof value === "string") return value;
    if (value !== 0 && (Math.abs(value) < 0.001 || Math.abs(value) >= 1e5)) return value.toExponential(2);
    return Number.isInteger(value) && Math.abs(value) >= 1000 ? String(value) : value.toFixed(digits);
  };

  function element(tag, text, properties = {}) {
    const made = document.createElement(tag);
    if (text !== undefined) made.textContent = text;
    for (const [key, value] of Object.entries(properties)) made.setAttribute(key, value);
    return made;
  }

  // Sets of columns: key, title, [heading, values].
  function best(columns) {
    return names.map((_, place) => {
      const own = columns.filter(([, values]) => known(values[place]));
      return own.length ? own.reduce((one, two) => (two[1][place] > one[1][place] ? two : one))[0] : null;
    });
  }
  function mean(columns) {
    return names.map((_, place) => {
      const own = columns.map(([, values]) => values[place]).filter(known);
      return own.length ? own.reduce((sum, value) => sum + value, 0) / own.length : null;
    });
  }
  const sets = [];
  for (const [target, title] of data.targets) {
    const columns = Object.entries(data.outcomes[target]);
    const more = columns.length > 1 ? [["mean", mean(columns)], ["best method", best(columns)]] : [];
    sets.push([target, title, [...columns, ...more]]);
  }
  for (const [target, methods] of Object.entries(data.predicted)) {
    sets.push([`predicted-${target}`, `predicted ${data.names[target]}`, Object.entries(methods).map(([method, one]) => [method, one.value])]);
  }
  if (Object.keys(data.metrics).length) sets.push(["metrics", "metrics", Object.entries(data.metrics)]);
  if (Object.keys(data.evidence).length) sets.push(["evidence", "other evidence", Object.entries(data.evidence)]);
  if (!sets.length) sets.push(["none", "names", []]);

  // What conditions of the filter may name; the first set that has a name counts.
  const columns = new Map();
  for (const [, , own] of sets) {
    for (const [name, values] of own) if (!columns.has(name.toLowerCase())) columns.set(name.toLowerCase(), values);
  }

  const state = { set: 0, sort: null, descending: false, page: 0, places: names.map((_, place) => place) };
  const table = find("pair-table");

  function headers() {
    const row = element("tr");
    ["pair", ...sets[state.set][2].map(([name]) => name)].forEach((name, at) => {
      const cell = element("th", undefined, { scope: "col" });
      const sort = state.sort === at ? (state.descending ? "descending" : "ascending") : "none";
      cell.setAttribute("aria-sort", sort);
      const button = element("button", name, { type: "button" });
      button.addEventListener("click", () => {
        // Numbers are most often wanted largest first.
        [state.descending, state.sort] = state.sort === at ? [!state.descending, at] : [at > 0, at];
        state.page = 0;
        update();
        table.tHead.rows[0].cells[at].firstChild.focus();
      });
      cell.append(button);
      row.append(cell);
    });
    table.tHead.replaceChildren(row);
  }

  function row(place) {
    const made = element("tr");
    const head = element("th", undefined, { scope: "row" });
    const open = element("button", names[place], { type: "button", class: "open", "aria-haspopup": "dialog" });
    open.addEventListener("click", () => show(place));
    head.append(open);
    made.append(head, ...sets[state.set][2].map(([, values]) => element("td", number(values[place]))));
    return made;
  }

  const order = () => {
    if (state.sort === null) return state.places;
    return sorted(state.places, state.sort === 0 ? names : sets[state.set][2][state.sort - 1][1], state.descending);
  };

  function update() {
    const places = order();
    const pages = Math.max(1, Math.ceil(places.length / PAGE));
    state.page = Math.min(state.page, pages - 1);
    const first = state.page * PAGE;
    headers();
    table.tBodies[0].replaceChildren(...places.slice(first, first + PAGE).map(row));
    const last = Math.min(first + PAGE, places.length);
    const which = places.length ? `${first + 1} to ${last} of ` : "";
    find("pair-place").textContent = `${which}${places.length.toLocaleString("en")} pair${places.length === 1 ? "" : "s"}`;
    find("pair-previous").disabled = state.page === 0;
    find("pair-next").disabled = state.page === pages - 1;
  }

  function filter() {
    const asked = parse(find("pair-filter").value, columns);
    state.places = filtered(names, asked);
    state.page = 0;
    const kept = state.places.length === names.length ? "" : `${state.places.length} of ${names.length} pairs. `;
    find("pair-status").textContent = kept + asked.unknown.map((name) => `No column is called ${name}.`).join(" ");
    update();
  }

  // The card of one pair.
  const dialog = find("pair-card");
  function termed(name) {
    const anchor = tools.anchor(name);
    if (!anchor) return document.createTextNode(name);
    const link = element("a", name, { class: "term", href: `#${anchor}` });
    link.addEventListener("click", () => dialog.close());
    return link;
  }

  function listing(caption, headings, rows) {
    const box = element("div", undefined, { class: "table" });
    const scroll = element("div", undefined, { class: "scroll", tabindex: "0", role: "region", "aria-label": caption });
    const made = element("table");
    made.append(element("caption", caption, { class: "hidden-text" }), element("thead"), element("tbody"));
    const head = element("tr");
    head.append(...headings.map((heading) => element("th", heading, { scope: "col" })));
    made.tHead.append(head);
    for (const [name, ...cells] of rows) {
      const line = element("tr");
      const first = element("th", undefined, { scope: "row" });
      first.append(name);
      line.append(first, ...cells.map((cell) => {
        const one = element("td");
        one.append(cell);
        return one;
      }));
      made.tBodies[0].append(line);
    }
    scroll.append(made);
    box.append(scroll);
    tools.ofTable(box);
    return box;
  }

  function accuracies(place) {
    const [a, b] = [data.tasks[data.a[place]], data.tasks[data.b[place]]];
    const found = [];
    for (const [target, title] of data.targets) {
      const rows = [];
      for (const [method, values] of Object.entries(data.outcomes[target])) {
        if (!known(values[place])) continue;
        const [own, other] = data.parts[target]?.[method] ?? [];
        const guess = data.predicted[target]?.[method];
        rows.push([termed(method), number(own?.[place]), number(other?.[place]), number(values[place]), ...interval(guess, place)]);
      }
      if (!rows.length) continue;
      const foretold = Object.keys(data.predicted[target] ?? {}).length > 0;
      const headings = ["method", a, b, "mean", ...(foretold ? ["predicted", "interval"] : [])];
      const name = title[0].toUpperCase() + title.slice(1);
      found.push(element("h3", name), listing(`${name} of ${names[place]}`, headings, rows.map((row) => (foretold ? row : row.slice(0, 4)))));
    }
    return found;
  }

  function interval(guess, place) {
    const value = guess?.value[place];
    const [low, high] = [guess?.low?.[place], guess?.high?.[place]];
    return [number(value), known(low) && known(high) ? `${number(low)} to ${number(high)}` : "–"];
  }

  function predictions(place) {
    const rows = [];
    for (const [target, methods] of Object.entries(data.predicted)) {
      for (const [method, guess] of Object.entries(methods)) {
        const measured = known(data.outcomes[target]?.[method]?.[place]);
        if (!measured && known(guess.value[place])) rows.push([termed(method), data.names[target], ...interval(guess, place)]);
      }
    }
    const by = Object.keys(data.predicted).length ? [element("p", data.predicted_by, { class: "note" })] : [];
    if (!rows.length) return by;
    return [element("h3", "Predicted, not measured"), listing(`Predictions for ${names[place]}`, ["method", "outcome", "predicted", "interval"], rows), ...by];
  }

  function meter(share) {
    const made = element("span", share === null ? "–" : `${Math.round(share)}`);
    if (share === null) return made;
    const outer = element("span", undefined, { class: "meter", "aria-hidden": "true" });
    const inner = element("i");
    inner.style.width = `${share}%`;
    outer.append(inner);
    made.append(outer);
    return made;
  }

  function ranked(title, group, place) {
    const rows = Object.entries(group)
      .filter(([, values]) => known(values[place]))
      .map(([name, values]) => [termed(name), number(values[place], 4), meter(percentile(values, place))]);
    if (!rows.length) return [];
    return [element("h3", title), listing(`${title} of ${names[place]}`, ["name", "value", `percentile among ${names.length} pairs`], rows)];
  }

  const overall = data.targets.length ? mean(Object.entries(data.outcomes[data.targets[0][0]])) : [];

  function neighbours(place) {
    const near = similar(Object.values(data.metrics), place, SIMILAR);
    if (!near.length) return [];
    const list = element("ul", undefined, { class: "similar" });
    for (const [other, distance] of near) {
      const item = element("li");
      const first = overall[other];
      const outcome = known(first) ? `, mean ${data.targets[0][1]} ${number(first)}` : "";
      const button = element("button", `${names[other]} (distance ${number(distance, 2)}${outcome})`, { type: "button" });
      button.addEventListener("click", () => show(other));
      item.append(button);
      list.append(item);
    }
    return [element("h3", "Similar pairs, by standardised metrics"), list];
  }

  function layers(place) {
    const lowest = data.layers?.lowest[place];
    if (!lowest?.length) return [];
    const rows = lowest.map(([layer, cosine]) => [data.layers.names[layer], number(cosine)]);
    return [element("h3", "Layers with the lowest cosine of the task vectors"), listing(`Layers of ${names[place]}`, ["layer", "cosine"], rows)];
  }

  function show(place) {
    find("pair-card-title").textContent = names[place];
    const body = find("pair-card-body");
    body.replaceChildren(
      ...accuracies(place), ...predictions(place), ...ranked("Metrics", data.metrics, place),
      ...ranked("Other evidence", data.evidence, place), ...layers(place), ...neighbours(place),
    );
    if (!dialog.open) dialog.showModal();
    dialog.scrollTop = 0;
  }
  find("pair-card-close").addEventListener("click", () => dialog.close());
  dialog.addEventListener("click", (event) => event.target === dialog && dialog.close());

  // A click on a cell of a heat map of pairs opens the card. Plotly was given escaped names.
  const escaped = (name) => name.replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;");
  const places = new Map();
  names.forEach((_, place) => {
    const [a, b] = [escaped(data.tasks[data.a[place]]), escaped(data.tasks[data.b[place]])];
    for (const key of [`${a} + ${b}`, `${b} + ${a}`]) places.set(key, place);
  });
  for (const anchor of ["outcomes", "merges", "metrics", "layers"]) {
    const block = document.querySelector(`[data-figures="${anchor}-figures"]`);
    block?.addEventListener("drawn", () => {
      for (const box of block.querySelectorAll(".plot")) {
        if (box.dataset.opens || !box.on) continue;
        box.dataset.opens = "yes";
        box.on("plotly_click", ({ points: [{ x, y }] }) => {
          const place = places.get(x) ?? places.get(`${y} + ${x}`);
          if (place !== undefined) show(place);
        });
      }
    });
  }

  const choice = find("pair-columns");
  sets.forEach(([, title], at) => choice.append(element("option", title, { value: at })));
  choice.addEventListener("change", () => {
    Object.assign(state, { set: Number(choice.value), sort: null, page: 0 });
    update();
  });
  find("pair-filter").addEventListener("input", filter);
  const turn = (by) => () => {
    state.page += by;
    update();
  };
  find("pair-previous").addEventListener("click", turn(-1));
  find("pair-next").addEventListener("click", turn(1));
  find("pair-pager").append(
    tools.bar(
      tools.button("CSV", "Save as CSV: the pairs that the filter keeps", () => save(sets[state.set][2])),
    ),
  );
  function save(own) {
    const rows = order().map((place) => [data.tasks[data.a[place]], data.tasks[data.b[place]], ...own.map(([, values]) => values[place])]);
    tools.save(`pairs ${sets[state.set][1]}`, [["task_a", "task_b", ...own.map(([name]) => name)], ...rows]);
  }
  update();
})();
