"use strict";
(() => {
  const filter = document.getElementById("filter");
  const published = document.getElementById("published");
  const shown = document.getElementById("shown");
  const ofAlgorithms = [...document.querySelectorAll("[data-algorithm]")];
  const algorithms = [...document.querySelectorAll("#algorithms option")].map((each) => each.value);

  // A word that is the name of an algorithm means that one: "Fish" is not "Fishr".
  function isWanted(name, words) {
    const isMeant = (word) => {
      const isName = algorithms.some((each) => each.toLowerCase() === word);
      return isName ? name.toLowerCase() === word : name.toLowerCase().includes(word);
    };
    return words.length === 0 || words.some(isMeant);
  }

  function applyFilter() {
    const words = filter.value.toLowerCase().split(/[\s,]+/).filter(Boolean);
    for (const each of ofAlgorithms) each.hidden = !isWanted(each.dataset.algorithm, words);
    const count = algorithms.filter((name) => isWanted(name, words)).length;
    shown.value = words.length ? `${count} of ${algorithms.length} algorithms` : `all ${algorithms.length} algorithms`;
  }

  // The number that a cell begins with, past signs of an interval or a bound.
  function numberOf(text) {
    const found = /^[<[(]?([+-]?[\d,]*\.?\d+(?:e[+-]?\d+)?)/i.exec(text);
    return found ? Number(found[1].replaceAll(",", "")) : NaN;
  }

  function compare(a, b, direction) {
    const [x, y] = [numberOf(a), numberOf(b)];
    if (Number.isNaN(x) && Number.isNaN(y)) return direction * a.localeCompare(b);
    if (Number.isNaN(x) || Number.isNaN(y)) return Number.isNaN(x) - Number.isNaN(y);
    return direction * (x - y);
  }

  function sortBy(button) {
    const header = button.closest("th");
    const table = header.closest("table");
    const place = header.cellIndex;
    const textOf = (row) => (row.cells[place].firstElementChild ?? row.cells[place]).textContent.trim();
    const rows = [...table.tBodies[0].rows];
    const isNumeric = rows.some((row) => !Number.isNaN(numberOf(textOf(row))));
    const first = isNumeric ? "descending" : "ascending";
    const second = isNumeric ? "ascending" : "descending";
    const order = header.getAttribute("aria-sort") === first ? second : first;
    for (const other of table.querySelectorAll("th[aria-sort]")) other.setAttribute("aria-sort", "none");
    header.setAttribute("aria-sort", order);
    const direction = order === "ascending" ? 1 : -1;
    rows.sort((one, another) => compare(textOf(one), textOf(another), direction));
    table.tBodies[0].append(...rows);
  }

  function refresh(seconds) {
    const refreshing = document.getElementById("refreshing");
    const key = `domainbed:${location.pathname}`;
    const kept = JSON.parse(sessionStorage.getItem(key) ?? "{}");
    filter.value = kept.filter ?? "";
    refreshing.checked = kept.refreshing ?? true;
    published.checked = kept.published ?? true;
    setInterval(() => {
      if (!refreshing.checked || document.hidden) return;
      sessionStorage.setItem(key, JSON.stringify({ filter: filter.value, refreshing: true, published: published.checked }));
      location.reload();
    }, 1000 * seconds);
  }

  function tellOfScrolling() {
    for (const each of document.querySelectorAll(".scroll")) {
      each.classList.toggle("scrolls", each.scrollWidth > each.clientWidth);
    }
  }

  // A page of paper is narrower than most screens, and does not scroll.
  const paperWidth = 960; // pixels within the margins of A4 and of Letter, landscape
  const longTable = 100; // rows, or gaps; they are printed only if somebody opened them
  const undo = [];

  // A copy with the first column and those from `begin` to `end`.
  function partOf(table, begin, end) {
    const part = table.cloneNode(true);
    for (const row of part.rows) {
      let place = 0;
      for (const cell of [...row.cells]) {
        const [first, last] = [place, (place += cell.colSpan)];
        if (first === 0) continue;
        const kept = Math.min(last, end) - Math.max(first, begin);
        if (kept <= 0) cell.remove();
        else if (kept < cell.colSpan) cell.colSpan = kept;
      }
    }
    return part;
  }

  // Where the parts of a table end that are not wider than paper, at best between groups.
  function endsOfParts(table) {
    const names = [...table.tHead.rows].at(-1).cells;
    const [first, ...widths] = [...names].map((cell) => cell.offsetWidth);
    const sum = (begin, end) => widths.slice(begin - 1, end - 1).reduce((a, b) => a + b, first);
    const groups = table.tHead.rows.length > 1 ? [...table.tHead.rows[0].cells].slice(1) : [];
    const ends = [];
    let [begin, groupEnd] = [1, 1];
    for (const span of groups.length ? groups.map((group) => group.colSpan) : widths.map(() => 1)) {
      const groupBegin = groupEnd;
      groupEnd += span;
      if (sum(begin, groupEnd) <= paperWidth) continue;
      if (begin < groupBegin) ends.push((begin = groupBegin));
      for (let end = begin + 1; end <= groupEnd; end++) {
        if (end - begin > 1 && sum(begin, end) > paperWidth) ends.push((begin = end - 1));
      }
    }
    return [...ends, groupEnd];
  }

  function fitToPaper(table) {
    const ends = endsOfParts(table);
    if (ends.length === 1) return;
    const parts = ends.map((end, number) => partOf(table, ends[number - 1] ?? 1, end));
    for (const part of parts) part.dataset.part = "true";
    table.after(...parts);
    table.hidden = true;
    undo.push(() => {
      table.hidden = false;
      for (const part of parts) part.remove();
    });
  }

  function preparePrint() {
    document.documentElement.classList.add("printing");
    undo.push(() => document.documentElement.classList.remove("printing"));
    for (const each of document.querySelectorAll("details:not([open])")) {
      if (each.querySelectorAll("tbody tr, dd").length > longTable) continue;
      each.open = true;
      undo.push(() => (each.open = false));
    }
    document.querySelectorAll("table").forEach(fitToPaper);
  }

  for (const button of document.querySelectorAll(".sortable th button")) {
    button.addEventListener("click", () => sortBy(button));
  }
  filter.addEventListener("input", applyFilter);
  filter.form.addEventListener("submit", (event) => event.preventDefault());
  const showPublished = () => document.body.classList.toggle("no-published", !published.checked);
  published.addEventListener("change", showPublished);
  published.closest("label").hidden = document.querySelector(".published") === null;
  addEventListener("resize", tellOfScrolling);
  document.addEventListener("toggle", tellOfScrolling, true);
  addEventListener("beforeprint", preparePrint);
  addEventListener("afterprint", () => {
    while (undo.length) undo.pop()();
  });
  const seconds = Number(document.body.dataset.refresh);
  if (seconds) refresh(seconds);
  applyFilter();
  showPublished();
  tellOfScrolling();
})();
