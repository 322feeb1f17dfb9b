"use strict";
(() => {
  const root = document.documentElement;
  const remembered = { get() { try { return localStorage.getItem("theme"); } catch { return null; } },
    set(value) { try { localStorage.setItem("theme", value); } catch { /* pages opened from disk may have no storage */ } } };
  const dark = () => root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  if (remembered.get()) root.dataset.theme = remembered.get();
  document.getElementById("theme").addEventListener("click", () => {
    root.dataset.theme = dark() ? "light" : "dark";
    remembered.set(root.dataset.theme);
  });

  const contents = document.querySelector("nav details");
  if (matchMedia("(max-width: 1099px)").matches) contents.open = false;

  const number = (cell) => {
    const text = cell.dataset.sort ?? cell.textContent.trim().replace(/,/g, "").replace(/^</, "");
    return /^[-+]?[\d.]/.test(text) ? parseFloat(text) : NaN;
  };
  const compare = (a, b) => {
    const [x, y] = [number(a), number(b)];
    if (!Number.isNaN(x) && !Number.isNaN(y)) return x - y;
    if (Number.isNaN(x) !== Number.isNaN(y)) return Number.isNaN(x) ? 1 : -1;
    return a.textContent.localeCompare(b.textContent, undefined, { numeric: true });
  };
  const sort = (table, column, head) => {
    const down = head.getAttribute("aria-sort") === "ascending";
    for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", down ? "descending" : "ascending");
    const rows = Array.from(table.tBodies[0].rows);
    rows.sort((a, b) => (down ? -1 : 1) * compare(a.cells[column], b.cells[column]));
    table.tBodies[0].append(...rows);
    table.classList.add("sorted");
  };
  for (const table of document.querySelectorAll("table.sortable"))
    Array.from(table.tHead.rows[0].cells).forEach((head, column) =>
      head.firstElementChild.addEventListener("click", () => sort(table, column, head)));

  const csv = (table) => Array.from(table.rows, (row) => Array.from(row.cells, (cell) => {
    const text = cell.textContent.trim();
    return /[",\n]/.test(text) ? `"${text.replace(/"/g, '""')}"` : text;
  }).join(",")).join("\n") + "\n";
  const copy = async (text) => {
    try { await navigator.clipboard.writeText(text); return true; } catch { /* no clipboard access: use the older way below */ }
    const area = document.createElement("textarea");
    area.value = text;
    document.body.append(area);
    area.select();
    const done = document.execCommand("copy");
    area.remove();
    return done;
  };
  for (const button of document.querySelectorAll("button.copy"))
    button.addEventListener("click", async () => {
      const done = await copy(csv(button.closest(".table").querySelector("table")));
      button.textContent = done ? "Copied" : "Cannot copy here";
      setTimeout(() => { button.textContent = "Copy as CSV"; }, 1500);
    });

  addEventListener("beforeprint", () => { for (const each of document.querySelectorAll("main details")) each.open = true; });
})();
