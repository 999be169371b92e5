"use strict";

// Buttons of all pages: the theme, tables as CSV, figures as images, text to copy; and what printing needs.
const tools = (() => {
  const slug = (text) => text.toLowerCase().replace(/[^\p{L}\p{N}]+/gu, "-").replace(/^-|-$/g, "").slice(0, 60) || "table";

  // The definition of a metric, method or predictor on this page, also of one with the suffix of its scale.
  function anchor(name) {
    const found = [name, name.replace(/_(tuned|unlabelled)$/, "")].map(
      (one) => `term-${(one.toLowerCase().match(/[\p{L}\p{N}]+/gu) ?? []).join("-")}`,
    );
    return found.find((one) => document.getElementById(one));
  }

  function button(caption, label, pressed) {
    const made = document.createElement("button");
    made.type = "button";
    made.textContent = caption;
    made.setAttribute("aria-label", label);
    made.addEventListener("click", pressed);
    return made;
  }

  function download(name, url) {
    const link = document.createElement("a");
    link.href = url;
    link.download = name;
    document.body.append(link);
    link.click();
    link.remove();
  }

  // As the CSV files of a run: text that a spreadsheet would compute starts with an apostrophe.
  function cell(value) {
    if (value === null || value === undefined) return "";
    if (typeof value === "number") return String(value);
    const text = /^'*[=+\-@\t\r]/.test(value) && (value.trim() === "" || Number.isNaN(Number(value))) ? `'${value}` : value;
    return /[",\n\r]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
  }
  const csv = (rows) => rows.map((row) => row.map(cell).join(",")).join("\n") + "\n";

  function save(name, rows) {
    const url = URL.createObjectURL(new Blob([csv(rows)], { type: "text/csv" }));
    download(`${slug(name)}.csv`, url);
    setTimeout(() => URL.revokeObjectURL(url), 1000);
  }

  const shown = (table) => [...table.rows].map((row) => [...row.cells].map((one) => (one.textContent === "–" ? "" : one.textContent.trim())));

  function bar(...buttons) {
    const made = document.createElement("div");
    made.className = "tools";
    made.append(...buttons);
    return made;
  }

  function ofTable(box) {
    const table = box.querySelector("table");
    const caption = table.caption?.textContent ?? document.title;
    box.append(bar(button("CSV", `Save as CSV: ${caption}`, () => save(caption, shown(table)))));
  }

  function ofFigure(box) {
    const described = box.querySelector(".plot").getAttribute("aria-label") ?? "figure";
    const one = (format) =>
      button(format.toUpperCase(), `Save as ${format.toUpperCase()}: ${described}`, async () =>
        download(`${slug(described)}.${format}`, await plots.image(box.querySelector(".plot"), format)),
      );
    box.append(bar(one("svg"), one("png")));
  }

  async function copy(button) {
    const before = button.textContent;
    try {
      await navigator.clipboard.writeText(button.dataset.copy);
      button.textContent = "Copied";
    } catch {
      // Pages that are opened as files may not write to the clipboard in some browsers.
      window.prompt("Copy this text:", button.dataset.copy);
    }
    setTimeout(() => (button.textContent = before), 1500);
  }

  // A link may lead into a part that is folded.
  function unfold() {
    const target = document.getElementById(decodeURIComponent(location.hash.slice(1)));
    if (!target) return;
    for (let one = target; one; one = one.parentElement) if (one.tagName === "DETAILS") one.open = true;
    target.scrollIntoView({ behavior: "instant" });
  }

  function start() {
    theme.button(document.getElementById("theme"));
    document.querySelectorAll("div.table:not(.live)").forEach((box) => box.querySelector("table") && ofTable(box));
    document.querySelectorAll("[data-copy]").forEach((one) => {
      one.hidden = false;
      one.addEventListener("click", () => copy(one));
    });
    addEventListener("hashchange", unfold);
    if (location.hash) unfold();
    let closed = [];
    addEventListener("beforeprint", () => {
      theme.print(true);
      closed = [...document.querySelectorAll("details:not([open]):not(.raw)")];
      closed.forEach((one) => (one.open = true));
    });
    addEventListener("afterprint", () => {
      theme.print(false);
      closed.forEach((one) => (one.open = false));
    });
  }

  return { start, anchor, ofFigure, ofTable, button, bar, save, csv };
})();
