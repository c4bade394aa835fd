"use strict";

function cellValue(row, column) {
  const text = row.cells[column].dataset.value;
  if (text === undefined || text === "") return null;
  const number = Number(text);
  return Number.isNaN(number) ? text : number;
}

function compareCells(first, second) {
  if (typeof first === "number" && typeof second === "number") return first - second;
  return String(first).localeCompare(String(second), undefined, { numeric: true });
}

function sortBy(header, descending) {
  const column = header.cellIndex;
  const table = header.closest("table");
  for (const body of table.tBodies) {
    const rows = Array.from(body.rows, (row, place) => ({ row, place, value: cellValue(row, column) }));
    rows.sort((a, b) => {
      if (a.value === null || b.value === null) return (a.value === null) - (b.value === null) || a.place - b.place;
      const order = compareCells(a.value, b.value);
      return (descending ? -order : order) || a.place - b.place;
    });
    body.append(...rows.map((entry) => entry.row));
  }
  for (const other of header.parentElement.cells) {
    if (other.hasAttribute("aria-sort")) other.setAttribute("aria-sort", "none");
  }
  header.setAttribute("aria-sort", descending ? "descending" : "ascending");
}

function makeSortable(header) {
  header.querySelector("button").addEventListener("click", () => {
    const now = header.getAttribute("aria-sort");
    const descending = now === "none" ? header.dataset.first === "descending" : now === "ascending";
    sortBy(header, descending);
  });
}

function makeFilter(form) {
  const panel = document.getElementById(form.dataset.filters);
  const told = form.querySelector("output");
  const apply = () => {
    const wanted = Array.from(form.querySelectorAll("select"), (select) => [select.name, select.value]);
    for (const part of panel.querySelectorAll("[data-filtered]")) {
      part.hidden = !wanted.every(([name, value]) => value === "" || part.dataset[name] === value);
    }
    const sections = Array.from(panel.querySelectorAll("details[data-filtered]"));
    const shown = sections.filter((section) => !section.hidden).length;
    told.textContent = shown === sections.length ? "" : `${shown} of ${sections.length} shown; ranks are among all`;
  };
  form.addEventListener("change", apply);
  apply();
}

function makeTabs(list) {
  const tabs = Array.from(list.querySelectorAll('[role="tab"]'));
  const panelOf = (tab) => document.getElementById(tab.getAttribute("aria-controls"));
  const choose = (chosen) => {
    for (const tab of tabs) {
      tab.setAttribute("aria-selected", String(tab === chosen));
      tab.tabIndex = tab === chosen ? 0 : -1;
      panelOf(tab).hidden = tab !== chosen;
    }
  };
  const follow = () => {
    const target = document.getElementById(decodeURIComponent(location.hash.slice(1)));
    const tab = target && tabs.find((candidate) => panelOf(candidate).contains(target));
    if (!tab) return;
    choose(tab);
    for (let part = target; part; part = part.parentElement) if (part.tagName === "DETAILS") part.open = true;
    target.scrollIntoView();
  };
  list.addEventListener("click", (event) => {
    const tab = event.target.closest('[role="tab"]');
    if (!tab) return;
    choose(tab);
    history.replaceState(null, "", `#${tab.getAttribute("aria-controls")}`);
  });
  list.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    const ends = { Home: 0, End: tabs.length - 1 }[event.key];
    if (step === undefined && ends === undefined) return;
    event.preventDefault();
    const place = ends ?? (tabs.indexOf(document.activeElement) + step + tabs.length) % tabs.length;
    tabs[place].focus();
    choose(tabs[place]);
  });
  list.hidden = false;
  choose(tabs[0]);
  follow();
  addEventListener("hashchange", follow);
}

function openTarget() {
  const target = document.getElementById(decodeURIComponent(location.hash.slice(1)));
  for (let part = target; part; part = part.parentElement) if (part.tagName === "DETAILS") part.open = true;
}

document.querySelectorAll("th[aria-sort]").forEach(makeSortable);
document.querySelectorAll("form[data-filters]").forEach(makeFilter);
document.querySelectorAll('[role="tablist"]').forEach(makeTabs);
addEventListener("hashchange", openTarget);
openTarget();
document.documentElement.classList.add("live");
