// The parts of a browser that the dashboard's scripts use, so that they run in Node; what they draw and write is kept.
"use strict";

class Element {
  constructor(tag) {
    Object.assign(this, { tagName: tag, children: [], dataset: {}, style: {}, attributes: {}, listeners: {}, own: "", clientWidth: 800 });
  }
  set textContent(text) {
    [this.own, this.children] = [String(text), []];
  }
  get textContent() {
    return this.own + this.children.map((child) => (child instanceof Element ? child.textContent : child)).join("");
  }
  append(...children) {
    this.children.push(...children);
  }
  replaceChildren(...children) {
    this.children = children;
  }
  setAttribute(name, value) {
    this.attributes[name] = value;
  }
  addEventListener(name, listener) {
    this.listeners[name] = listener;
  }
  click() {
    if (this.type === "checkbox") this.checked = !this.checked;
    (this.listeners.click ?? this.listeners.change)();
  }
  focus() {}
  showModal() {
    this.open = true;
  }
  close() {
    this.open = false;
  }
  get rows() {
    return this.all().filter((child) => child.tagName === "tr");
  }
  get cells() {
    return this.children;
  }
  get firstChild() {
    return this.children[0];
  }
  get tHead() {
    return this.children.find((child) => child.tagName === "thead");
  }
  get tBodies() {
    return this.children.filter((child) => child.tagName === "tbody");
  }
  all() {
    return this.children.flatMap((child) => (child instanceof Element ? [child, ...child.all()] : []));
  }
  matches(query) {
    return query[0] === "." ? (this.className ?? "").split(" ").includes(query.slice(1)) : this.tagName === query;
  }
  querySelectorAll(query) {
    return this.all().filter((one) => one.matches(query));
  }
  querySelector(query) {
    return this.querySelectorAll(query)[0];
  }
}

const byId = new Map();
const drawn = new Map();
const document = {
  createElement: (tag) => new Element(tag),
  getElementById: (id) => byId.get(id),
};
const window = { innerWidth: 1440 };
const theme = { dark: false, follow() {} };
const tools = { start() {}, ofTable() {}, ofFigure() {} };
const Plotly = { react: (box, data, layout) => drawn.set(box, { data, layout }) };
class IntersectionObserver {
  constructor(seen) {
    this.seen = seen;
  }
  observe(target) {
    this.seen([{ target, isIntersecting: true }]);
  }
}

// The room that the table of pairs and the card of one pair need, with what their scripts use of others.
const saved = [];
function pairPage(content) {
  for (const name of ["table", "filter", "columns", "status", "place", "previous", "next", "pager", "card", "card-title", "card-body", "card-close"]) {
    byId.set(`pair-${name}`, new Element("div"));
  }
  byId.set("pairs-data", new Element("script"));
  byId.get("pairs-data").textContent = content;
  byId.get("pair-table").append(new Element("thead"), new Element("tbody"));
  byId.get("pair-filter").value = "";
  Object.assign(document, { querySelector: () => null, createTextNode: (text) => text });
  Object.assign(tools, {
    anchor: () => undefined,
    save: (name, rows) => saved.push(rows),
    bar: (...buttons) => buttons[0],
    button(caption, label, pressed) {
      const made = new Element("button");
      made.addEventListener("click", pressed);
      return made;
    },
  });
}
const cellsOf = (id) => byId.get(id).rows.map((row) => row.cells.map((cell) => cell.textContent));

// Lay out a page: sections with room for controls, a sentence, plots and tables.
function page(content, sections) {
  for (const id of ["dashboard-data", "filters", "status", "filter-box"]) byId.set(id, new Element("div"));
  byId.get("dashboard-data").textContent = content;
  for (const [id, plots, tables] of sections) {
    const section = Object.assign(new Element("section"), { id });
    const room = [["controls", 1], ["said", 1], ["plot", plots], ["table", tables]];
    for (const [kind, count] of room) {
      for (let i = 0; i < count; i += 1) section.append(Object.assign(new Element("div"), { className: kind }));
    }
    byId.set(id, section);
  }
}

// What is on the page: for each section its figures, its sentence and the rows of its table.
function shown() {
  return Object.fromEntries(
    [...byId].filter(([, one]) => one.tagName === "section").map(([id, section]) => {
      const plots = section.querySelectorAll(".plot").filter((plot) => !plot.hidden && drawn.has(plot));
      const note = section.querySelector(".said");
      return [id, {
        figures: plots.map((plot) => drawn.get(plot)),
        said: note.hidden ? "" : note.textContent,
        rows: section.querySelectorAll(".table").filter((one) => !one.hidden)
          .flatMap((one) => one.querySelectorAll("tr")).map((row) => row.children.map((cell) => cell.textContent)),
        options: section.querySelectorAll("select").map((select) => select.querySelectorAll("option").map((one) => one.value)),
      }];
    }),
  );
}
