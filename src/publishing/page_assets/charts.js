// The charts of a comparison's page. Each is a function from the data to Plotly's traces and layout, or to null where
// it makes no sense for these runs; choices.js has those of searches and races.
"use strict";

const MOST_LINES = 400; // of settings, in a chart of all factors
const SERIES = 7; // colours of settings, the best first; page.css has them for either scheme
const choices = { cost: null, key: null, seeds: false };

const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
const grey = () => css("--series-rest");
const series = (i) => (i < SERIES ? css(`--series-${i}`) : grey());
const colorOf = (setting) => series(state.data.settings.indexOf(setting));
const isFaded = (setting) => state.selected.size > 0 && !isSelected(setting);
const isPhone = () => matchMedia("(max-width: 40rem)").matches;

// Plotly reads some HTML in its labels.
const label = (text) => String(text ?? "").replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");
const short = (text, most = 60) => label(text.length > most ? `${text.slice(0, most - 1)}…` : text);

// Accuracies are drawn in percent.
const scaled = (value) => (value === null || value === undefined ? null : state.data.percent ? 100 * value : value);
const metricTitle = () => label(state.data.metric) + (state.data.percent ? ", %" : "");
const valued = (data) => data.settings.filter((setting) => setting.values[data.metric]);
const valueOf = (setting) => setting.values[state.data.metric].value;
const named = (color, text, mark = "●") => ({ color, text, mark }); // an entry of a chart's legend

function transparent(color, alpha) {
  const [r, g, b] = [1, 3, 5].map((i) => parseInt(color.slice(i, i + 2), 16));
  return `rgba(${r},${g},${b},${alpha})`;
}

// The ends of intervals as Plotly wants them: distances from the values.
function bars(rows, value) {
  const distance = (end) => rows.map((row) => (row[end] === null ? 0 : Math.abs(scaled(row[end]) - scaled(row[value]))));
  return { type: "data", symmetric: false, array: distance("high"), arrayminus: distance("low"), color: grey() };
}

function learningCurves(data) {
  const traces = [], drawn = prominent(data).filter(({ curve }) => curve && curve.epoch.length > 1);
  const draw = (value) => (data.curves.percent ? 100 * value : value);
  for (const setting of drawn) {
    const { curve } = setting, color = colorOf(setting), name = short(setting.name, 45);
    const look = { mode: "lines", opacity: isFaded(setting) ? 0.2 : 1 };
    const hover = (of) => `${of}<br>epoch %{x}: %{y:.2f}<extra></extra>`;
    if (curve.low) {
      traces.push({
        ...look, x: [...curve.epoch, ...[...curve.epoch].reverse()], hoverinfo: "skip",
        y: [...curve.high.map(draw), ...curve.low.map(draw).reverse()],
        fill: "toself", fillcolor: transparent(color, isFaded(setting) ? 0.03 : 0.15), line: { width: 0 },
      });
    }
    traces.push({
      ...look, x: curve.epoch, y: curve.mean.map(draw), line: { color, width: 2 }, meta: foldersOf(setting),
      hovertemplate: hover(name),
    });
    if (!choices.seeds && !isSelected(setting)) continue;
    for (const run of setting.runs.map((i) => data.runs[i]).filter(({ curve }) => curve)) {
      traces.push({
        ...look, x: run.curve.map((_, i) => i + 1), y: run.curve.map(draw), line: { color, width: 1, dash: "dot" },
        meta: [run.folder], hovertemplate: hover(`${name}, seed ${label(run.seed)}`),
      });
    }
  }
  const epochs = Math.max(0, ...drawn.map(({ curve }) => curve.epoch.length));
  return traces.length && [traces, {
    names: drawn.toReversed().map((setting) => named(colorOf(setting), setting.name)),
    xaxis: { title: { text: "epoch" }, ...(epochs <= 10 ? { dtick: 1 } : { nticks: 8, tickformat: "d" }) },
    yaxis: { title: { text: label(data.curves.metric) + (data.curves.percent ? ", %" : "") } },
  }];
}

// The best settings and the selected ones; drawn last to first, so that the best lies on top.
function prominent(data) {
  const [first, rest] = [valued(data).slice(0, SERIES), valued(data).slice(SERIES)];
  return [...first, ...rest.filter(isSelected).slice(0, SERIES)].reverse();
}

function seedsOption() {
  const box = element("input", { type: "checkbox", "data-id": "seeds", onchange: (event) => choose("seeds", event.target.checked) });
  box.checked = choices.seeds;
  return element("label", {}, box, " single seeds");
}

function selectOption(choice, name, entries, chosen) {
  const options = entries.map(([value, text]) => element("option", { value, selected: value === chosen }, text));
  const select = element("select", { "data-id": choice, onchange: (event) => choose(choice, event.target.value) }, ...options);
  return element("label", {}, `${name} `, select);
}

const levelsOf = (data, i) => [...new Set(data.settings.map((setting) => setting.levels[i]))].sort(compare);

function heatMap(data) {
  if (data.keys.length !== 2) return null;
  const [down, across] = [levelsOf(data, 0), levelsOf(data, 1)];
  if (Math.min(down.length, across.length) < 2) return null;
  const at = (y, x) => valued(data).find(({ levels }) => levels[0] === y && levels[1] === x);
  const cells = down.map((y) => across.map((x) => at(y, x)));
  const trace = {
    type: "heatmap", x: across.map(label), y: down.map(label), xgap: 2, ygap: 2, showscale: false,
    z: cells.map((row) => row.map((setting) => (setting ? scaled(valueOf(setting)) : null))),
    meta: cells.map((row) => row.map((setting) => (setting ? foldersOf(setting) : []))),
    colorscale: "Cividis", reversescale: data.lower, texttemplate: "%{z:.4~g}",
    hovertemplate: "%{y}, %{x}: %{z:.4~g}<extra></extra>",
  };
  const axis = (i) => ({ type: "category", title: { text: label(data.keys[i].name) }, showgrid: false });
  const marks = cells.flatMap((row, y) => row.flatMap((setting, x) => (setting && isSelected(setting)
    ? [{ type: "rect", x0: x - 0.48, x1: x + 0.48, y0: y - 0.47, y1: y + 0.47, line: { color: css("--failed"), width: 3 } }] : [])));
  return [[trace], { xaxis: axis(1), yaxis: axis(0), shapes: marks }];
}

function parallelCoordinates(data) {
  if (data.keys.length < 3) return null;
  const axes = data.keys.map((key, i) => ({ name: key.name, levels: levelsOf(data, i), of: (setting) => setting.levels[i] }));
  const settings = valued(data), values = settings.map(valueOf);
  const [low, high] = [Math.min(...values), Math.max(...values)];
  const share = (value, least, most) => (most > least ? (value - least) / (most - least) : 0.5);
  const place = (axis, level) => share(axis.levels.indexOf(level), 0, axis.levels.length - 1);
  // The best and the selected settings have a line each; the others share one, as many lines take long to draw.
  const single = prominent(data), others = settings.slice(0, MOST_LINES).filter((setting) => !single.includes(setting));
  const line = (settings, look) => ({
    ...look, mode: "lines+markers", marker: { size: 5 }, hovertemplate: "%{text}<extra></extra>",
    x: settings.flatMap(() => [...axes.keys(), axes.length, null]),
    y: settings.flatMap((setting) => [...axes.map((axis) => place(axis, axis.of(setting))), share(valueOf(setting), low, high), null]),
    meta: settings.flatMap((setting) => Array(axes.length + 2).fill(foldersOf(setting))),
    text: settings.flatMap((setting) => Array(axes.length + 2).fill(`${short(setting.name, 80)}: ${metricText(valueOf(setting))}`)),
  });
  const traces = [
    line(others, { line: { color: grey(), width: 1.3 }, opacity: state.selected.size ? 0.08 : 0.35 }),
    ...single.map((setting) => line([setting], {
      line: { color: colorOf(setting), width: isSelected(setting) ? 3 : 1.5 }, opacity: isFaded(setting) ? 0.15 : 0.9,
    })),
  ];
  const note = (x, y, text) => ({ x, y, text, showarrow: false, xanchor: "left", xshift: 6, font: { size: 11 } });
  const levels = (axis) => axis.levels.filter((_, j) => j % Math.ceil(axis.levels.length / 12) === 0);
  const notes = axes.flatMap((axis, i) => levels(axis).map((level) => note(i, place(axis, level), short(format(level), 20))));
  const ends = [low, high].map((value) => note(axes.length, share(value, low, high), metricText(value)));
  return [traces, {
    annotations: [...notes, ...ends], margin: { l: 20, r: 60, t: 10, b: 45 }, yaxis: { visible: false, range: [-0.06, 1.06] },
    xaxis: {
      tickvals: [...axes.keys(), axes.length], range: [-0.1, axes.length + 0.2],
      ticktext: [...axes.map((axis) => short(axis.name, isPhone() ? 10 : 20)), label(data.metric)],
    },
  }];
}

const metricText = (value) => format(value, state.data.percent ? "percent" : "number");

const costs = (data) => data.columns.filter(({ key, is_cost }) => is_cost && key !== data.metric
  && new Set(data.settings.map((setting) => setting.values[key]?.value ?? null)).size > 1);
const chosenCost = (data) => costs(data).find(({ key }) => key === choices.cost) ?? costs(data)[0];

function againstCost(data) {
  const cost = chosenCost(data), settings = valued(data).filter(({ values }) => cost && values[cost.key]).reverse();
  if (!settings.length) return null;
  const estimates = settings.map((setting) => setting.values[data.metric]);
  const trace = {
    x: settings.map((setting) => setting.values[cost.key].value), y: estimates.map(({ value }) => scaled(value)), mode: "markers",
    error_y: { ...bars(estimates, "value"), thickness: 1, width: 0, visible: settings.length <= 60 },
    marker: { size: 9, color: settings.map(colorOf), opacity: settings.map((setting) => (isFaded(setting) ? 0.15 : 0.9)) },
    meta: settings.map(foldersOf), text: settings.map((setting) => short(setting.name, 80)),
    hovertemplate: "%{text}<br>%{x:.3s}: %{y:.2f}<extra></extra>",
  };
  return [[trace], {
    dragmode: matchMedia("(pointer: fine)").matches ? "select" : false,
    xaxis: { title: { text: label(cost.name) }, ...logAxis(settings.map((setting) => setting.values[cost.key].value), cost.kind) },
    yaxis: { title: { text: metricTitle() }, ...(data.percent ? { maxallowed: 100, minallowed: 0 } : {}) },
  }];
}

// A logarithmic axis where values differ by more than a factor of five, with the ticks 1, 2, 5, 10, … or 1, 10, …
function logAxis(values, kind) {
  const [low, high] = [Math.min(...values), Math.max(...values)];
  if (!(low > 0 && high > 5 * low)) return { tickformat: "~s" };
  const steps = high > 200 * low ? [1] : [1, 2, 5], powers = [...Array(40).keys()].map((i) => i - 20);
  const ticks = powers.flatMap((power) => steps.map((step) => Number(`${step}e${power}`)));
  const shown = ticks.filter((tick) => tick >= 0.9 * low && tick <= 1.1 * high);
  return { type: "log", tickvals: shown, ticktext: shown.map((tick) => format(tick, kind)) };
}

const costOption = (data) => selectOption("cost", "cost", costs(data).map(({ key, name }) => [key, name]), chosenCost(data).key);

function effects(data) {
  const rows = data.effects.slice(0, 20).reverse();
  const trace = {
    x: rows.map((row) => scaled(row.estimate)), y: rows.map((row) => short(row.name, isPhone() ? 28 : 45)), mode: "markers",
    error_x: { ...bars(rows, "estimate"), thickness: 1.5, width: 4 },
    marker: { size: 9, color: rows.map((row) => (row.is_significant ? series(0) : grey())) },
    text: rows.map((row) => (row.is_significant ? "significant" : "not significant")),
    hovertemplate: "%{y}: %{x:+.2f}, %{text}<extra></extra>",
  };
  const title = `change of ${label(data.metric)}${data.percent ? ", points" : ""}`;
  return rows.length && [[trace], rowsLayout(rows, title, { rangemode: "tozero", zeroline: true, zerolinewidth: 2, zerolinecolor: css("--muted") })];
}

// The layout of a chart with a row for each of its names.
function rowsLayout(rows, title, xaxis = {}) {
  return {
    height: 80 + 34 * Math.max(3, rows.length), margin: { l: 10, r: 15, t: 10, b: 45 },
    xaxis: { title: { text: title }, ...xaxis }, yaxis: { type: "category", showgrid: false },
  };
}

function power(data) {
  const plans = data.power.slice(0, 4);
  const traces = plans.flatMap((plan, i) => {
    const line = { color: series(i) }, seen = scaled(Math.abs(plan.seen)), hover = (text) => `${text}: %{y:.2f}<extra></extra>`;
    return [
      { x: plan.seeds, y: plan.detectable.map(scaled), mode: "lines", line, hovertemplate: hover(`${short(plan.question)}<br>%{x} seeds`) },
      { x: [plan.seeds[0], plan.seeds.at(-1)], y: [seen, seen], mode: "lines", line: { ...line, dash: "dot" }, hovertemplate: hover("difference seen") },
    ];
  });
  return plans.length && [traces, {
    names: plans.map((plan, i) => named(series(i), plan.question)),
    xaxis: { title: { text: "new seeds of each setting" }, ...logAxis(plans.flatMap((plan) => plan.seeds)) },
    yaxis: { title: { text: `smallest difference found${data.percent ? ", points" : ""}` }, rangemode: "tozero" },
  }];
}

// All of them, in order.

const CHARTS = [
  { id: "race", title: "Rounds of the race", make: raceRounds, note: "Pale: dropped, or could not be run." },
  { id: "trials", title: "Trials of the search", make: searchTrials },
  { id: "keys", title: "Trials by key", make: trialsByKey, option: keyOption },
  { id: "importance", title: "How much each key matters", make: keyImportance },
  { id: "curves", title: "Learning curves", make: learningCurves, option: seedsOption, note: "Bands go from the lowest to the highest seed." },
  { id: "heat", title: "Two factors", make: heatMap },
  { id: "parallel", title: "All factors", make: parallelCoordinates, isWide: true },
  { id: "cost", title: "Against cost", make: againstCost, option: costOption, note: "Bars are 95 % intervals." },
  { id: "effects", title: "Effects, the other factors held fixed", make: effects, sentences: (data) => data.interactions, note: "Bars are 95 % intervals; grey: not significant." },
  { id: "power", title: "Power analysis", make: power, note: "Found in 4 of 5 studies. Dotted: the difference seen." },
];

function drawCharts() {
  const drawn = CHARTS.map((chart) => [chart, chart.make(state.data)]);
  for (const [chart, made] of drawn) { // all places first, as their number decides how wide each is
    if (!made) byId(`chart-${chart.id}`)?.remove();
    else if (!byId(`chart-${chart.id}`)) insertSection(chart);
  }
  for (const [chart, made] of drawn) if (made) drawChart(chart, ...made);
}

function drawChart(chart, traces, layout) {
  const section = byId(`chart-${chart.id}`), div = section.querySelector(".chart");
  redraw(section.querySelector(".option"), ...(chart.option ? [chart.option(state.data)] : []));
  section.querySelector(".legend").replaceChildren(...(layout.names ?? []).map(({ color, text, mark }) =>
    element("li", {}, element("span", { class: "mark", style: `color:${color}`, "aria-hidden": "true" }, mark), text)));
  section.querySelector(".sentences").replaceChildren(...(chart.sentences?.(state.data) ?? []).map((text) => element("li", {}, text)));
  const axis = { gridcolor: css("--line"), zerolinecolor: css("--line"), linecolor: css("--line"), automargin: true };
  const axes = { xaxis: { ...axis, ...layout.xaxis }, yaxis: { ...axis, ...layout.yaxis } };
  div.style.height = layout.height ? `${layout.height}px` : "";
  div.setAttribute("aria-label", [chart.title, layout.yaxis?.title?.text, layout.xaxis?.title?.text].filter(Boolean).join("; "));
  Plotly.react(div, traces, {
    margin: { l: 55, r: 15, t: 10, b: 45 }, hovermode: "closest", showlegend: false, dragmode: false, uirevision: chart.id,
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", font: { color: css("--text"), size: 12 }, ...layout, ...axes,
  }, { responsive: true, displaylogo: false, displayModeBar: false });
  if (div.dataset.listens) return;
  div.dataset.listens = "true";
  div.on("plotly_click", ({ points }) => toggle(pointed(points[0])));
  div.on("plotly_selected", (event) => { if (event?.points.length) select(event.points.flatMap(pointed)); });
}

// The folders of a point's runs: meta lists them for the whole line, for each point, or for each cell.
function pointed({ data, pointIndex }) {
  const meta = data.meta ?? [];
  return typeof meta[0] === "string" ? meta : [pointIndex].flat().reduce((part, i) => part?.[i], meta) ?? [];
}

function insertSection(chart) {
  const heading = element("h2", { id: `heading-${chart.id}` }, chart.title), option = element("span", { class: "option" });
  const section = element("section", { id: `chart-${chart.id}`, "aria-labelledby": heading.id, class: chart.isWide && "wide" },
    element("header", {}, heading, option), element("div", { class: "chart", role: "img" }), element("ul", { class: "legend" }),
    chart.note ? element("p", { class: "note" }, chart.note) : null, element("ul", { class: "sentences" }));
  const next = CHARTS.slice(CHARTS.indexOf(chart) + 1).map(({ id }) => byId(`chart-${id}`)).find(Boolean);
  byId("charts").insertBefore(section, next ?? null);
}

function choose(choice, value) {
  choices[choice] = value;
  drawCharts();
}
