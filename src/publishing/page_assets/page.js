// The page of a comparison: the table of settings, the selected runs, and live updates; charts.js draws the charts.
// Names come from other people's files, so they are only ever set as text, never as HTML.
"use strict";

const state = {
  data: JSON.parse(document.getElementById("data").textContent),
  selected: new Set(), // runs' folders, which stay the same when the page is updated
  open: new Set(), // names of the settings whose seeds are listed
  filter: "",
  sort: null, // {column, descending}; null: as ranked
};
const MOST_ROWS = 300, MOST_DETAILS = 12;
const byId = (id) => document.getElementById(id);

// Put new children into an element; what had the focus has it again.
function redraw(container, ...children) {
  const focused = container.contains(document.activeElement) ? document.activeElement.dataset.id : undefined;
  container.replaceChildren(...children);
  if (focused) container.querySelector(`[data-id="${CSS.escape(focused)}"]`)?.focus({ preventScroll: true });
}

function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (value !== false && value !== null && value !== undefined) made.setAttribute(name, value === true ? "" : value);
  }
  made.append(...children.filter((child) => child !== null && child !== undefined));
  return made;
}

// Numbers as people read them.

function format(value, kind) {
  if (value === null || value === undefined) return "";
  if (typeof value !== "number") return String(value);
  if (kind === "percent") return (100 * value).toFixed(2);
  if (kind === "points") return `${value < 0 ? "−" : "+"}${(100 * Math.abs(value)).toFixed(2)}`;
  if (kind === "count") return engineering(value, ["", " k", " M", " G", " T"]);
  if (kind === "bytes") return engineering(value, [" B", " kB", " MB", " GB", " TB"]);
  if (kind === "seconds") return value < 10 ? value.toFixed(1) : Math.round(value).toLocaleString("en");
  return Number.isInteger(value) ? String(value) : String(+value.toPrecision(4));
}

function engineering(value, units) {
  let size = Math.abs(value), unit = 0;
  while (size >= 1000 && unit < units.length - 1) { size /= 1000; unit += 1; }
  return `${value < 0 ? "−" : ""}${+size.toPrecision(3)}${units[unit]}`;
}

function formatEstimate(estimate, { kind, is_cost: isCost }) {
  if (!estimate) return "";
  const margin = isCost || estimate.low === null ? "" : ` ± ${format((estimate.high - estimate.low) / 2, kind)}`;
  return format(estimate.value, kind) + margin;
}

// What is shown, in which order.

function columns() {
  const { keys, columns: values, settings } = state.data;
  const key = (entry, i) => ({ name: entry.name, title: entry.key, of: (setting) => setting.levels[i], text: (setting) => format(setting.levels[i]) });
  const value = (entry) => ({
    name: entry.name, title: entry.key,
    of: (setting) => setting.values[entry.key]?.value ?? null,
    text: (setting) => formatEstimate(setting.values[entry.key], entry),
    ofRun: (run) => format(run.values[entry.key], entry.kind),
  });
  const name = { name: "setting", title: "setting", of: (setting) => setting.name, text: (setting) => setting.name };
  const count = { name: "n", title: "completed runs", of: (setting) => setting.n, text: (setting) => String(setting.n) };
  const chance = {
    name: "P(best)", title: "probability that this setting is the best",
    of: (setting) => setting.probability_best, text: (setting) => (setting.probability_best === null ? "" : `${Math.round(100 * setting.probability_best)} %`),
  };
  const failed = {
    name: "without result", title: "runs that failed, were stopped or are not finished",
    of: (setting) => setting.runs.length - setting.n,
    text: (setting) => counts(setting.runs.map((i) => state.data.runs[i].status).filter((status) => status !== "completed")),
  };
  return [
    ...(keys.length ? keys.map(key) : [name]), count, ...values.map(value),
    ...(settings.some((setting) => setting.probability_best !== null) ? [chance] : []),
    ...(settings.some((setting) => setting.runs.length > setting.n) ? [failed] : []),
  ];
}

// E.g. "1 failed, 2 running".
function counts(words) {
  return [...new Set(words)].sort().map((word) => `${words.filter((other) => other === word).length} ${word}`).join(", ");
}

function compare(a, b) {
  const missing = (value) => value === null || value === undefined || value === "";
  if (missing(a) || missing(b)) return missing(a) - missing(b);
  return typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b), "en", { numeric: true });
}

function shownSettings() {
  const words = state.filter.toLowerCase().split(/\s+/).filter(Boolean);
  const text = (setting) => {
    const levels = state.data.keys.flatMap((entry, i) => [`${entry.name}=${setting.levels[i]} `, `${entry.key}=${setting.levels[i]} `]);
    return `${levels.join("")}${setting.name} ${setting.runs.map((i) => state.data.runs[i].status).join(" ")} `.toLowerCase();
  };
  const shown = state.data.settings.filter((setting) => words.every((word) => text(setting).includes(word.includes("=") ? `${word} ` : word)));
  if (!state.sort) return shown;
  const column = columns().find((entry) => entry.name === state.sort.column);
  if (!column) return shown;
  const sign = state.sort.descending ? -1 : 1;
  const missing = (setting) => column.of(setting) === null;
  return [...shown].sort((a, b) => missing(a) - missing(b) || sign * compare(column.of(a), column.of(b)));
}

// Selection: a set of runs, changed from the table and from every chart.

const foldersOf = (setting) => setting.runs.map((i) => state.data.runs[i].folder);
const isSelected = (setting) => foldersOf(setting).some((folder) => state.selected.has(folder));

function toggle(folders) {
  const all = folders.every((folder) => state.selected.has(folder));
  for (const folder of folders) all ? state.selected.delete(folder) : state.selected.add(folder);
  show();
}

function select(folders) {
  state.selected = new Set(folders);
  show();
}

// The table.

function drawTable() {
  const table = byId("settings"), all = columns(), shown = shownSettings();
  const head = element("tr", {}, ...all.map((column) => {
    const active = state.sort?.column === column.name;
    const direction = active ? (state.sort.descending ? "descending" : "ascending") : "none";
    const mark = active ? (state.sort.descending ? " ▾" : " ▴") : "";
    return element("th", { scope: "col", "aria-sort": direction, title: column.title },
      element("button", { type: "button", "data-id": `sort ${column.name}`, onclick: () => sortBy(column.name) }, column.name + mark));
  }));
  const rows = shown.slice(0, MOST_ROWS).flatMap((setting) => [settingRow(setting, all), ...seedRows(setting, all)]);
  redraw(table, element("thead", {}, head), element("tbody", {}, ...rows));
  const more = byId("more");
  more.hidden = shown.length <= MOST_ROWS;
  more.textContent = `${shown.length - MOST_ROWS} more settings: sort or filter to see them.`;
}

function sortBy(column) {
  const { sort } = state;
  if (sort?.column !== column) state.sort = { column, descending: true };
  else state.sort = sort.descending ? { column, descending: false } : null;
  drawTable();
}

function settingRow(setting, all) {
  const open = state.open.has(setting.name);
  const unfold = element("button", {
    class: "unfold", type: "button", "data-id": `unfold ${setting.name}`, "aria-expanded": String(open), "aria-label": `Seeds of ${setting.name}`,
    onclick: (event) => {
      event.stopPropagation();
      open ? state.open.delete(setting.name) : state.open.add(setting.name);
      drawTable();
    },
  }, open ? "▾" : "▸");
  const swatch = element("span", { class: "swatch", style: `background:${colorOf(setting)}`, "aria-hidden": "true" });
  const cells = all.map((column, i) => element("td", {}, ...(i ? [] : [unfold, swatch]), column.text(setting)));
  return tableRow(foldersOf(setting), isSelected(setting), "", cells);
}

function seedRows(setting, all) {
  if (!state.open.has(setting.name)) return [];
  return setting.runs.map((i) => {
    const run = state.data.runs[i], name = `seed ${run.seed}${run.status === "completed" ? "" : `, ${run.status}`}`;
    const cells = all.map((column, place) => element("td", {}, place ? (column.ofRun?.(run) ?? "") : name));
    return tableRow([run.folder], state.selected.has(run.folder), `seed ${run.status}`, cells);
  });
}

// A row that selects its runs when it is clicked, or at Enter and Space.
function tableRow(folders, isChosen, kind, cells) {
  const onkeydown = (event) => {
    if (event.target !== event.currentTarget || !["Enter", " "].includes(event.key)) return;
    event.preventDefault();
    toggle(folders);
  };
  const id = `row ${kind} ${folders[0]}`, onclick = () => toggle(folders);
  return element("tr", { class: kind, tabindex: 0, "data-id": id, "aria-selected": String(isChosen), onclick, onkeydown }, ...cells);
}

// The selected runs.

function drawDetails() {
  const runs = state.data.runs.filter((run) => state.selected.has(run.folder));
  byId("details").hidden = !runs.length;
  byId("clear").hidden = !runs.length;
  byId("selected").textContent = runs.length ? `${runs.length} of ${state.data.runs.length} runs selected` : "Select rows or points to follow their runs.";
  byId("runs").replaceChildren(...runs.slice(0, MOST_DETAILS).map(runArticle),
    ...(runs.length > MOST_DETAILS ? [element("p", {}, `… and ${runs.length - MOST_DETAILS} more`)] : []));
}

function runArticle(run) {
  const setting = state.data.settings[run.setting];
  const values = state.data.columns.map((column) => [column.name, format(run.values[column.key], column.kind)]).filter(([, text]) => text);
  const href = (file) => [run.folder, file].filter(Boolean).join("/").split("/").map(encodeURIComponent).join("/");
  const links = run.files.flatMap((file) => [element("a", { href: href(file) }, file), " "]);
  return element("article", {},
    element("h3", {}, `${setting ? setting.name : run.name}, seed ${run.seed}`),
    element("p", { class: run.status }, `${run.status}${run.reason ? `: ${run.reason}` : ""}`),
    element("p", {}, values.map(([name, text]) => `${name} ${text}`).join(" · ")),
    run.notes ? element("p", {}, run.notes) : null,
    element("p", {}, ...links),
    run.log.length ? element("pre", {}, run.log.join("\n")) : null,
    run.command ? element("pre", {}, run.command) : null);
}

// Everything.

function drawText() {
  const { data } = state;
  document.title = data.title;
  byId("title").textContent = data.title;
  byId("answer").replaceChildren(...data.answer.map((line) => element("p", {}, line)));
  byId("caveats").replaceChildren(...[...data.caveats, ...(data.search?.lines ?? [])].map((line) => element("li", {}, line)));
  byId("caveats-section").hidden = !byId("caveats").children.length;
  drawPictures(data.images);
  byId("progress").hidden = !data.progress;
  byId("progress").textContent = data.progress ?? "";
  byId("config").replaceChildren(element("tbody", {}, ...Object.entries(data.shared).map(([key, value]) =>
    element("tr", {}, element("th", { scope: "row" }, key), element("td", {}, format(value))))));
}

function show() {
  drawTable();
  drawDetails();
  drawCharts();
}

function update(data) {
  if (data.written === state.data.written) return;
  state.data = data;
  const folders = new Set(data.runs.map((run) => run.folder));
  state.selected = new Set([...state.selected].filter((folder) => folders.has(folder)));
  drawText();
  show();
}

// A page opened from disk may not read files, but it may load a script: compare.py --watch writes one that calls `update`.
const live = location.pathname.replace(/\.html$/, ".live.js");

function poll() {
  const next = () => { script.remove(); if (state.data.progress) setTimeout(poll, 3000); };
  const script = element("script", { src: `${live}?${Date.now()}`, onload: next, onerror: () => script.remove() });
  document.body.append(script);
}

byId("filter").addEventListener("input", (event) => { state.filter = event.target.value; drawTable(); });
byId("clear").addEventListener("click", () => select([]));
document.addEventListener("keydown", (event) => { if (event.key === "Escape") select([]); });
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => show());
drawText();
show();
if (state.data.is_watched) setTimeout(poll, 3000);
