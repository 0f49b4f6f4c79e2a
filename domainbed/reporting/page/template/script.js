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
  const paperWidth = 690; // pixels within the margins of A4
  const paperLetters = 12; // pixels
  const legible = 0.75; // of the size of other letters; a table of less is cut at its groups
  const longTable = 100; // rows, or gaps; they are printed only if somebody opened them
  const undo = [];

  function partsByGroup(table) {
    let begin = 1;
    return [...table.tHead.rows[0].cells].slice(1).map((group, number) => {
      const part = table.cloneNode(true);
      const end = begin + group.colSpan;
      for (const row of part.rows) {
        const isHead = row === part.tHead.rows[0];
        const [first, last] = isHead ? [number + 1, number + 2] : [begin, end];
        [...row.cells].forEach((cell, place) => {
          if (place > 0 && (place < first || place >= last)) cell.remove();
        });
      }
      begin = end;
      return part;
    });
  }

  function fitToPaper(table) {
    const letters = parseFloat(getComputedStyle(document.documentElement).fontSize);
    const ratio = paperWidth / ((table.offsetWidth * paperLetters) / letters);
    if (ratio >= 1) return;
    if (ratio < legible && table.tHead.rows.length > 1 && !table.dataset.part) {
      const parts = partsByGroup(table);
      for (const part of parts) part.dataset.part = "true";
      table.after(...parts);
      table.hidden = true;
      undo.push(() => {
        table.hidden = false;
        for (const part of parts) part.remove();
      });
      parts.forEach(fitToPaper);
    } else {
      table.style.zoom = ratio;
      undo.push(() => (table.style.zoom = ""));
    }
  }

  function preparePrint() {
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
