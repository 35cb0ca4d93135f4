"use strict";
// Tables are sorted by a click on a column's title: upwards, downwards, as they were. Lines of totals stay last.
(() => {
  const UNITS = { B: 1, kB: 1e3, MB: 1e6, GB: 1e9, TB: 1e12, s: 1, min: 60, h: 3600 };

  // The number that a cell begins with, in the unit behind it; NaN for words, which are compared as such.
  const valueOf = (cell) => {
    const text = cell.textContent.trim().replace(/\u2212/g, "-").replace(/,(?=\d{3})/g, "");
    const found = /^([+-]?\d+(?:\.\d+)?(?:e[+-]?\d+)?)(?:\s*([A-Za-z]+)\b)?/.exec(text);
    return found ? Number(found[1]) * (UNITS[found[2]] ?? 1) : NaN;
  };

  const compare = (one, other) => {
    const [a, b] = [valueOf(one), valueOf(other)];
    if (Number.isNaN(a) || Number.isNaN(b)) {
      return Number.isNaN(a) - Number.isNaN(b) || one.textContent.localeCompare(other.textContent);
    }
    return a - b;
  };

  const sort = (table, original, column, direction) => {
    const last = original.filter((row) => row.classList.contains("total"));
    const rows = original.filter((row) => !row.classList.contains("total"));
    if (direction !== 0) rows.sort((one, other) => direction * compare(one.cells[column], other.cells[column]));
    table.tBodies[0].append(...rows, ...last);
  };

  for (const table of document.querySelectorAll("table")) {
    const original = [...table.tBodies[0].rows];
    const titles = [...table.tHead.rows[0].cells];
    if (original.length < 2 || original.some((row) => row.cells.length !== titles.length)) continue;
    titles.forEach((title, column) => {
      const button = document.createElement("button");
      button.type = "button";
      button.append(...title.childNodes);
      title.append(button);
      button.addEventListener("click", () => {
        const direction = { none: 1, ascending: -1, descending: 0 }[title.ariaSort ?? "none"];
        for (const other of titles) other.removeAttribute("aria-sort");
        if (direction !== 0) title.ariaSort = direction > 0 ? "ascending" : "descending";
        sort(table, original, column, direction);
      });
    });
  }
})();
