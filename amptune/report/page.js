"use strict";
(() => {
  // Numbers carry data-sort; a cell without a number goes last whichever way the column is sorted.
  const compare = (a, b, sign) => {
    const x = a.dataset.sort, y = b.dataset.sort;
    if (x === undefined) return sign * a.textContent.localeCompare(b.textContent, "en", { numeric: true });
    if (x === "" || y === "") return (x === "") - (y === "");
    return sign * (Number(x) - Number(y));
  };

  const sort = (table, column, header) => {
    const ascending = header.getAttribute("aria-sort") !== "ascending";
    for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
    header.setAttribute("aria-sort", ascending ? "ascending" : "descending");
    const rows = [...table.tBodies[0].rows];
    rows.sort((a, b) => compare(a.cells[column], b.cells[column], ascending ? 1 : -1));
    table.tBodies[0].append(...rows);
  };

  const filter = (table, words, status) => {
    const wanted = words.toLowerCase().split(/\s+/).filter(Boolean);
    const rows = [...table.tBodies[0].rows];
    for (const row of rows) {
      const text = row.textContent.toLowerCase();
      row.hidden = !wanted.every((word) => text.includes(word));
    }
    status.textContent = `${rows.filter((row) => !row.hidden).length} of ${rows.length} shown`;
  };

  const addFilter = (table) => {
    const input = document.createElement("input");
    input.type = "search";
    input.placeholder = table.dataset.example || "Filter: blocks.0 bf16";
    input.setAttribute("aria-label", `Filter the table: ${table.caption.textContent}`);
    const status = document.createElement("span");
    status.className = "muted";
    status.setAttribute("role", "status");
    input.addEventListener("input", () => filter(table, input.value, status));
    const box = document.createElement("div");
    box.className = "filter";
    box.append(input, status);
    table.parentElement.before(box);
  };

  for (const table of document.querySelectorAll("table.sortable")) {
    [...table.tHead.rows[0].cells].forEach((header, column) => {
      const button = document.createElement("button");
      button.type = "button";
      button.textContent = header.textContent;
      button.addEventListener("click", () => sort(table, column, header));
      header.replaceChildren(button);
    });
    if (table.tBodies[0].rows.length > 8) addFilter(table);
  }
  document.documentElement.dataset.script = "ready";
})();
