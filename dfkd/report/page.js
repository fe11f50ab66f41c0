"use strict";
// Functions of every page: a click on a table's head sorts it, figures are saved as SVG and tables as CSV. The page is
// complete without scripts.
const dfkd = {
  /** Return the number at the start of a cell's text, or `NaN`. */
  number(text) {
    const found = text.replace(/[\s,%]/g, "").replace("\u2212", "-").match(/^[+-]?\d+(\.\d+)?(e[+-]?\d+)?/i);
    return found ? Number(found[0]) : NaN;
  },

  /** Sort a table's rows by a column. In a column of numbers, cells without a number come last. */
  sort(table, column, descending) {
    const rows = [...table.tBodies[0].rows].map((row) => {
      const cell = row.cells[column];
      const text = cell ? cell.textContent : "";
      return { row, text, value: dfkd.number(text) };
    });
    const numeric = rows.some((r) => !Number.isNaN(r.value)) && rows.every((r) => !Number.isNaN(r.value) || r.text.length < 2);
    const sign = descending ? -1 : 1;
    rows.sort((a, b) => {
      if (!numeric) return sign * a.text.localeCompare(b.text, undefined, { numeric: true });
      if (Number.isNaN(a.value) || Number.isNaN(b.value)) return Number.isNaN(a.value) - Number.isNaN(b.value);
      return sign * (a.value - b.value);
    });
    for (const { row } of rows) table.tBodies[0].append(row);
    [...table.tHead.rows[0].cells].forEach((cell, k) => {
      if (k === column) cell.setAttribute("aria-sort", descending ? "descending" : "ascending");
      else cell.removeAttribute("aria-sort");
    });
  },

  /** Return a table as CSV. Text that looks like a formula to a spreadsheet gets a leading quote. */
  csv(table) {
    const safe = (text) => (/^[=@+\-]/.test(text) && Number.isNaN(Number(text.replace(/[,%\s]/g, ""))) && text !== "-" ? "'" + text : text);
    const quoted = (text) => (/[",\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text);
    const line = (row) => [...row.cells].map((cell) => quoted(safe(cell.textContent.trim()))).join(",");
    return [...table.rows].map(line).join("\n") + "\n";
  },

  /** Return a chart as a separate SVG file, with its size and its styles on the page. */
  svg(chart) {
    const box = chart.getBoundingClientRect();
    const copy = chart.cloneNode(true);
    const kept = ["fill", "fill-opacity", "stroke", "stroke-width", "stroke-dasharray", "font-size", "font-family", "text-anchor", "paint-order", "vector-effect", "opacity"];
    const from = [chart, ...chart.querySelectorAll("*")];
    [copy, ...copy.querySelectorAll("*")].forEach((element, k) => {
      if (!("style" in element) || ["title", "desc"].includes(element.tagName)) return;
      const style = getComputedStyle(from[k]);
      element.setAttribute("style", kept.map((name) => `${name}:${style.getPropertyValue(name)}`).join(";"));
    });
    const left = parseFloat(getComputedStyle(chart).paddingLeft); // the labels of the y axis are there
    const whole = document.createElementNS(chart.namespaceURI, "svg");
    for (const [name, length] of Object.entries({ width: box.width, height: box.height })) whole.setAttribute(name, Math.round(length));
    whole.style.background = getComputedStyle(document.body).backgroundColor;
    for (const [name, length] of Object.entries({ x: left, width: box.width - left, height: box.height })) copy.setAttribute(name, Math.round(length));
    copy.setAttribute("overflow", "visible");
    whole.append(copy);
    return new XMLSerializer().serializeToString(whole);
  },

  download(name, text, type) {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([text], { type }));
    link.download = name;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10000);
  },

  fileName(text) {
    return text.toLowerCase().replace(/[^a-z0-9]+/g, "-").replace(/^-|-$/g, "").slice(0, 60) || "dfkd";
  },

  button(text, action) {
    const made = document.createElement("button");
    made.type = "button";
    made.textContent = text;
    made.addEventListener("click", action);
    return made;
  },

  ready() {
    for (const table of document.querySelectorAll("table")) {
      [...table.tHead.rows[0].cells].forEach((cell, column) => {
        const name = cell.textContent;
        if (!name) return; // a column of bars
        cell.replaceChildren(dfkd.button(name, () => dfkd.sort(table, column, cell.getAttribute("aria-sort") === "ascending" ? true : cell.getAttribute("aria-sort") !== "descending" && !cell.matches(":first-child"))));
      });
      const words = table.caption ? table.caption.textContent : "table";
      table.closest(".scroll").after(dfkd.button("Save as CSV", () => dfkd.download(`${dfkd.fileName(words)}.csv`, dfkd.csv(table), "text/csv")));
      table.closest(".scroll").nextSibling.className = "save";
    }
    for (const figure of document.querySelectorAll("figure")) {
      const chart = figure.querySelector(":scope > svg[role=img]");
      if (!chart) continue;
      const name = chart.getAttribute("aria-label") || "figure";
      figure.append(dfkd.button("Save as SVG", () => dfkd.download(`${dfkd.fileName(name)}.svg`, dfkd.svg(chart), "image/svg+xml")));
      figure.lastChild.className = "save";
    }
    for (const block of document.querySelectorAll("pre.copied")) {
      block.after(dfkd.button("Copy", () => navigator.clipboard.writeText(block.textContent)));
      block.nextSibling.className = "save";
    }
  },
};
document.addEventListener("DOMContentLoaded", dfkd.ready);
