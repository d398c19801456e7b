// The charts of a comparison's page. Each is a function from the data to Plotly's traces and layout, in order below.
"use strict";

const COLORS = ["#0072B2", "#D55E00", "#009E73", "#E69F00", "#56B4E9", "#CC79A7", "#8250df"]; // Okabe and Ito's
const GREY = "#8c8c8c";
const choices = { cost: null, seeds: false };

const style = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
const colorOf = (setting) => COLORS[state.data.settings.indexOf(setting)] ?? GREY;
const faded = (setting) => state.selected.size > 0 && !isSelected(setting);
// Plotly reads some HTML in its labels.
const label = (text) => String(text ?? "").replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");
const short = (text, most = 60) => label(text.length > most ? `${text.slice(0, most - 1)}…` : text);
const scaled = (value) => (value === null || value === undefined ? null : state.data.percent ? 100 * value : value);
const metricTitle = () => label(state.data.metric) + (state.data.percent ? ", %" : "");

function transparent(color, alpha) {
  const [r, g, b] = [1, 3, 5].map((i) => parseInt(color.slice(i, i + 2), 16));
  return `rgba(${r},${g},${b},${alpha})`;
}

// Draw all charts that make sense for these runs; one that is gone leaves the page.

const CHARTS = [
  { id: "curves", title: "Learning curves", make: learningCurves, options: seedsOption },
  { id: "heat", title: "Two factors", make: heatMap },
  { id: "parallel", title: "All factors", make: parallelCoordinates, wide: true },
  { id: "cost", title: "Against cost", make: againstCost, options: costOptions },
  { id: "effects", title: "Effects, the other factors held fixed", make: effects },
  { id: "power", title: "What more seeds would tell", make: power },
  { id: "trials", title: "Trials of the search", make: trials },
  { id: "importance", title: "How much each key matters", make: importance },
  { id: "race", title: "Rounds of the race", make: race },
];

function drawCharts() {
  const drawn = CHARTS.map((chart) => [chart, chart.make(state.data)]);
  for (const [chart, made] of drawn) { // all places first, as their number decides how wide each is
    if (!made) byId(`chart-${chart.id}`)?.remove();
    else if (!byId(`chart-${chart.id}`)) insertSection(chart);
  }
  for (const [chart, made] of drawn.filter(([, made]) => made)) {
    const section = byId(`chart-${chart.id}`), options = section.querySelector(".options");
    options.replaceChildren(...(chart.options ? chart.options(state.data) : []));
    const [traces, layout] = made;
    const axis = { gridcolor: style("--line"), zerolinecolor: style("--line"), linecolor: style("--line"), automargin: true };
    const div = section.querySelector(".chart");
    Plotly.react(div, traces, {
      margin: { l: 55, r: 15, t: 10, b: 45 }, hovermode: "closest", showlegend: false, dragmode: false, uirevision: chart.id,
      paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", font: { color: style("--text"), size: 12 },
      ...layout, xaxis: { ...axis, ...layout.xaxis }, yaxis: { ...axis, ...layout.yaxis },
    }, { responsive: true, displaylogo: false, displayModeBar: false });
    if (!div.dataset.listens) {
      div.dataset.listens = "true";
      div.on("plotly_click", ({ points }) => { const folders = points[0]?.data.meta?.[points[0].pointIndex] ?? points[0]?.data.meta; choose(folders); });
      div.on("plotly_selected", (event) => { if (event?.points.length) select(event.points.flatMap((point) => point.data.meta?.[point.pointIndex] ?? [])); });
    }
  }
  drawPictures(state.data);
}

function choose(folders) {
  if (Array.isArray(folders)) toggle(folders.flat());
}

function insertSection(chart) {
  const section = element("section", { id: `chart-${chart.id}`, "aria-labelledby": `heading-${chart.id}`, class: chart.wide ? "wide" : null },
    element("header", {}, element("h2", { id: `heading-${chart.id}` }, chart.title), element("span", { class: "options" })),
    element("div", { class: "chart", role: "img", "aria-label": `${chart.title}; the figures are in the table of settings and in comparison.csv` }));
  const after = CHARTS.slice(CHARTS.indexOf(chart) + 1).map((next) => byId(`chart-${next.id}`)).find(Boolean);
  byId("charts").insertBefore(section, after ?? byId("images"));
}

// The best settings and the selected ones; drawn last to first, so that the best lies on top.
function prominent(data, most = 7) {
  const valued = data.settings.filter((setting) => setting.values[data.metric]);
  const first = valued.slice(0, most);
  return [...first, ...valued.slice(most).filter(isSelected).slice(0, most)].reverse();
}

function learningCurves(data) {
  const traces = [];
  for (const setting of prominent(data)) {
    const { curve } = setting;
    if (!curve || curve.epoch.length < 2) continue;
    const color = colorOf(setting), alpha = faded(setting) ? 0.2 : 1, meta = foldersOf(setting), name = short(setting.name);
    if (curve.low) {
      traces.push({
        x: [...curve.epoch, ...[...curve.epoch].reverse()], y: [...curve.high.map(scaled), ...curve.low.map(scaled).reverse()],
        fill: "toself", fillcolor: transparent(color, 0.15 * alpha), line: { width: 0 }, hoverinfo: "skip", type: "scatter", mode: "lines",
      });
    }
    traces.push({ x: curve.epoch, y: curve.mean.map(scaled), line: { color, width: 2 }, opacity: alpha, mode: "lines", meta, name,
      hovertemplate: `${name}<br>epoch %{x}: %{y:.2f}<extra></extra>` });
    if (!choices.seeds && !isSelected(setting)) continue;
    for (const run of setting.runs.map((i) => data.runs[i]).filter((run) => run.curve)) {
      traces.push({ x: curve.epoch.slice(0, run.curve.length), y: run.curve.map(scaled), line: { color, width: 1, dash: "dot" }, mode: "lines",
        meta: [run.folder], opacity: alpha, hovertemplate: `${name}, seed ${label(run.seed)}<br>epoch %{x}: %{y:.2f}<extra></extra>` });
    }
  }
  return traces.length ? [traces, { xaxis: { title: { text: "epoch" }, tickformat: "d", nticks: 8 }, yaxis: { title: { text: metricTitle() } } }] : null;
}

function seedsOption() {
  const box = element("input", { type: "checkbox", onchange: (event) => { choices.seeds = event.target.checked; drawCharts(); } });
  box.checked = choices.seeds;
  return [element("label", {}, box, " single seeds")];
}

const levelsOf = (data, i) => [...new Set(data.settings.map((setting) => setting.levels[i]))].sort(compare);

function heatMap(data) {
  if (data.keys.length !== 2) return null;
  const [down, across] = [levelsOf(data, 0), levelsOf(data, 1)];
  if (Math.min(down.length, across.length) < 2) return null;
  const at = (y, x) => data.settings.find((setting) => setting.levels[0] === y && setting.levels[1] === x && setting.values[data.metric]);
  const cells = down.map((y) => across.map((x) => at(y, x)));
  const z = cells.map((row) => row.map((setting) => (setting ? scaled(setting.values[data.metric].value) : null)));
  const trace = {
    type: "heatmap", x: across.map(label), y: down.map(label), z, meta: cells.flat().map((setting) => (setting ? foldersOf(setting) : [])),
    colorscale: "Cividis", reversescale: data.lower, showscale: false, xgap: 2, ygap: 2,
    texttemplate: "%{z:.2f}", hovertemplate: "%{y}, %{x}: %{z:.2f}<extra></extra>",
  };
  const axis = (i) => ({ type: "category", title: { text: label(data.keys[i].name) }, showgrid: false });
  return [[trace], { xaxis: axis(1), yaxis: axis(0) }];
}

function parallelCoordinates(data) {
  if (data.keys.length < 3) return null;
  const axes = data.keys.map((key, i) => ({ name: key.name, levels: levelsOf(data, i), of: (setting) => setting.levels[i] }));
  const valued = data.settings.filter((setting) => setting.values[data.metric]);
  const values = valued.map((setting) => setting.values[data.metric].value);
  const [low, high] = [Math.min(...values), Math.max(...values)];
  const place = (value) => (high > low ? (value - low) / (high - low) : 0.5);
  const at = (axis, setting) => (axis.levels.length > 1 ? axis.levels.indexOf(axis.of(setting)) / (axis.levels.length - 1) : 0.5);
  const traces = valued.slice(0, 400).reverse().map((setting) => {
    const value = setting.values[data.metric].value;
    return {
      x: [...axes.keys(), axes.length], y: [...axes.map((axis) => at(axis, setting)), place(value)], mode: "lines+markers",
      line: { color: colorOf(setting), width: isSelected(setting) ? 3 : 1.3 }, marker: { size: 5 }, meta: foldersOf(setting),
      opacity: faded(setting) ? 0.08 : colorOf(setting) === GREY ? 0.35 : 0.9,
      hovertemplate: `${short(setting.name, 80)}: ${format(value, data.percent ? "percent" : "number")}<extra></extra>`,
    };
  });
  const ticks = axes.flatMap((axis, i) => axis.levels.slice(0, 12).map((level, j) => ({
    x: i, y: axis.levels.length > 1 ? j / (axis.levels.length - 1) : 0.5, text: short(String(level), 20), showarrow: false, xanchor: "left", xshift: 6, font: { size: 11 },
  })));
  const ends = [low, high].map((value, y) => ({ x: axes.length, y, text: format(value, data.percent ? "percent" : "number"), showarrow: false, xanchor: "left", xshift: 6 }));
  return [traces, {
    annotations: [...ticks, ...ends], margin: { l: 20, r: 60, t: 10, b: 45 }, yaxis: { visible: false, range: [-0.06, 1.06] },
    xaxis: { tickvals: [...axes.keys(), axes.length], ticktext: [...axes.map((axis) => short(axis.name, 20)), label(data.metric)], range: [-0.1, axes.length + 0.2] },
  }];
}

const costs = (data) => data.columns.filter(({ key, kind }) => kind !== "percent" && key !== data.metric
  && new Set(data.settings.map((setting) => setting.values[key]?.value ?? null)).size > 1);

function againstCost(data) {
  const cost = costs(data).find(({ key }) => key === choices.cost) ?? costs(data)[0];
  if (!cost) return null;
  const settings = data.settings.filter((setting) => setting.values[data.metric] && setting.values[cost.key]).reverse();
  const value = (setting) => setting.values[data.metric];
  const trace = {
    x: settings.map((setting) => setting.values[cost.key].value), y: settings.map((setting) => scaled(value(setting).value)), mode: "markers",
    error_y: {
      symmetric: false, array: settings.map((setting) => (value(setting).high === null ? 0 : scaled(value(setting).high - value(setting).value))),
      arrayminus: settings.map((setting) => (value(setting).low === null ? 0 : scaled(value(setting).value - value(setting).low))), thickness: 1, width: 0, color: GREY,
      visible: settings.length <= 60,
    },
    marker: { size: 9, color: settings.map(colorOf), opacity: settings.map((setting) => (faded(setting) ? 0.15 : 0.9)) }, meta: settings.map(foldersOf),
    text: settings.map((setting) => short(setting.name, 80)), hovertemplate: "%{text}<br>%{x:.3s}: %{y:.2f}<extra></extra>",
  };
  return [[trace], { dragmode: matchMedia("(pointer: fine)").matches ? "select" : false, xaxis: { title: { text: label(cost.name) }, type: "log" }, yaxis: { title: { text: metricTitle() } } }];
}

function costOptions(data) {
  const options = costs(data).map(({ key, name }) => element("option", { value: key, selected: key === choices.cost ? "" : null }, name));
  return [element("label", {}, "cost ", element("select", { onchange: (event) => { choices.cost = event.target.value; drawCharts(); } }, ...options))];
}

function intervals(rows, names) {
  return {
    x: rows.map((row) => scaled(row.estimate)), y: names, mode: "markers", orientation: "h", marker: { size: 9, color: rows.map((row) => (row.is_significant ? COLORS[0] : GREY)) },
    error_x: {
      symmetric: false, array: rows.map((row) => (row.high === null ? 0 : scaled(row.high - row.estimate))), arrayminus: rows.map((row) => (row.low === null ? 0 : scaled(row.estimate - row.low))),
      thickness: 1.5, width: 4, color: GREY,
    },
    hovertemplate: "%{y}: %{x:+.2f}<extra></extra>",
  };
}

function effects(data) {
  const rows = data.effects.slice(0, 20).reverse();
  if (!rows.length) return null;
  const title = `change of ${label(data.metric)}${data.percent ? ", points" : ""}; bars are 95 % intervals`;
  return [[intervals(rows, rows.map((row) => short(row.name, 45)))], { xaxis: { title: { text: title }, zeroline: true, zerolinewidth: 2 }, yaxis: { type: "category" }, margin: { l: 10, r: 15, t: 10, b: 45 } }];
}

function power(data) {
  const traces = data.power.slice(0, 4).flatMap((row, i) => [
    { x: row.seeds, y: row.detectable.map(scaled), mode: "lines", line: { color: COLORS[i] }, name: short(row.question, 50), hovertemplate: `${short(row.question)}<br>%{x} seeds: %{y:.2f}<extra></extra>` },
    { x: [row.seeds[0], row.seeds[row.seeds.length - 1]], y: [scaled(Math.abs(row.seen)), scaled(Math.abs(row.seen))], mode: "lines", line: { color: COLORS[i], dash: "dot" }, showlegend: false, hovertemplate: "difference seen: %{y:.2f}<extra></extra>" },
  ]);
  if (!traces.length) return null;
  const unit = data.percent ? ", points" : "";
  return [traces, { showlegend: true, legend: { orientation: "h", y: -0.25 }, xaxis: { title: { text: "new seeds of each setting" }, type: "log" }, yaxis: { title: { text: `difference found in 4 of 5 studies${unit}` }, rangemode: "tozero" } }];
}

function trials(data) {
  if (!data.search) return null;
  const { trials: rows } = data.search;
  const pruned = rows.filter((row) => row.status === "pruned"), ended = rows.filter((row) => row.value !== null && row.status !== "pruned");
  let best = null;
  const front = ended.map((row) => (best = best === null || (data.lower ? row.value < best : row.value > best) ? row.value : best));
  const points = (some, name, symbol, color) => ({ x: some.map((row) => row.number), y: some.map((row) => scaled(row.value)), mode: "markers", name, marker: { symbol, color, size: 8 }, meta: some.map((row) => [row.folder]), text: some.map((row) => short(row.name, 80)), hovertemplate: "trial %{x}: %{y:.2f}<br>%{text}<extra></extra>" });
  return [[
    { x: ended.map((row) => row.number), y: front.map(scaled), mode: "lines", line: { shape: "hv", color: GREY }, name: "best so far", hoverinfo: "skip" },
    points(ended, "finished", "circle", COLORS[0]), points(pruned, "pruned", "x", COLORS[1]),
  ], { showlegend: true, legend: { orientation: "h", y: -0.25 }, xaxis: { title: { text: "trial" } }, yaxis: { title: { text: metricTitle() } } }];
}

function importance(data) {
  const rows = [...(data.search?.importance ?? [])].reverse();
  if (!rows.length) return null;
  return [[
    { type: "bar", orientation: "h", y: rows.map((row) => short(row.key, 40)), x: rows.map((row) => row.share), marker: { color: COLORS[0] }, name: "these trials", hovertemplate: "%{y}: %{x:.0%}<extra></extra>" },
    { type: "bar", orientation: "h", y: rows.map((row) => short(row.key, 40)), x: rows.map((row) => row.noise), marker: { color: GREY }, name: "shuffled results, 95 % are below", hovertemplate: "%{y}: %{x:.0%}<extra></extra>" },
  ], { showlegend: true, legend: { orientation: "h", y: -0.25 }, xaxis: { tickformat: ".0%", title: { text: "share of the variance" } }, yaxis: { type: "category" } }];
}

function race(data) {
  const rows = [...(data.race ?? [])].reverse();
  if (!rows.length) return null;
  return [[{ type: "bar", orientation: "h", y: rows.map((row) => short(row.name, 45)), x: rows.map((row) => row.seeds), marker: { color: rows.map((row) => (row.dropped ? GREY : COLORS[0])) },
    text: rows.map((row) => (row.dropped ? `dropped in round ${row.dropped}` : "in question")), hovertemplate: "%{y}: %{x} seeds, %{text}<extra></extra>" }],
  { xaxis: { title: { text: "seeds" } }, yaxis: { type: "category" } }];
}

// The test images that the best setting and each factor win and lose, as images.png and images.csv have them.
function drawPictures(data) {
  byId("images")?.remove();
  if (!data.images) return;
  byId("charts").append(element("section", { id: "images", class: "wide" }, element("h2", {}, "Images won and lost"),
    ...data.images.lines.map((line) => element("p", {}, line)),
    data.images.picture ? element("img", { src: data.images.picture, alt: "Test images that settings win and lose, with their classes" }) : null));
}
