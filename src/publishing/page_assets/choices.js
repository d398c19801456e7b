// What a search or a race has chosen: trials over time and by key, importances beside chance, rounds, as search.json and
// race.json have them; and the test images that are won and lost, as images.json has them.
"use strict";

const foldersOfIds = (data, ids) => data.runs.filter((run) => ids.includes(run.id)).map((run) => run.folder);
const settingOfIds = (data, ids) => data.settings[data.runs.find((run) => ids.includes(run.id))?.setting];

// Trials at chance level would press all others together: they are drawn on the chart's edge.
function limits(data, trials) {
  const values = trials.map((trial) => trial.value).sort((a, b) => (data.lower ? a - b : b - a));
  const distances = values.map((value) => Math.abs(value - values[0]));
  const far = 4 * distances[Math.floor(distances.length / 2)] || distances.at(-1);
  const farthest = Math.max(...distances.filter((distance) => distance <= far)) || 0.01 * Math.abs(values[0]) || 1;
  const ends = [values[0] + 0.08 * farthest * (data.lower ? -1 : 1), values[0] + 1.16 * farthest * (data.lower ? 1 : -1)];
  return ends.sort((a, b) => a - b);
}

// Traces of the trials, over a number of each.
function trialTraces(data, trials, x) {
  const [low, high] = limits(data, trials), edge = 0.02 * (high - low);
  const groups = [["completed", "circle", series(0)], ["pruned", "x", series(1)]];
  return groups.map(([status, symbol, color]) => {
    const rows = trials.filter((trial) => trial.status === status), folders = rows.map(({ runs }) => foldersOfIds(data, runs));
    const isChosen = (i) => !state.selected.size || folders[i].some((folder) => state.selected.has(folder));
    return {
      x: rows.map(x), y: rows.map(({ value }) => scaled(Math.min(Math.max(value, low + edge), high - edge))), mode: "markers",
      meta: folders,
      marker: { symbol, color, size: 8, opacity: rows.map((_, i) => (isChosen(i) ? 0.9 : 0.2)) },
      error_y: { ...bars(rows, "value"), thickness: 1, width: 0, visible: rows.some((row) => row.low < row.high) },
      text: rows.map((row) => [`trial ${row.number}: ${metricText(row.value)}`, ...paramsText(row)].join("<br>")),
      hovertemplate: "%{text}<extra></extra>",
    };
  });
}

const paramsText = (trial) => Object.entries(trial.params).map(([key, value]) => short(`${key}=${format(value)}`));
const trialsOf = (data) => (data.search?.trials ?? []).filter((trial) => trial.value !== null);

function trialsLayout(data, trials, xaxis) {
  const pruned = trials.some((trial) => trial.status === "pruned") ? [named(series(1), "pruned, its best epoch until then", "✖")] : [];
  const names = [named(series(0), "completed"), ...pruned];
  return { names, xaxis, yaxis: { title: { text: metricTitle() }, range: limits(data, trials).map(scaled) } };
}

function searchTrials(data) {
  const trials = trialsOf(data), completed = trials.filter((trial) => trial.status === "completed");
  if (!trials.length) return null;
  const better = data.lower ? Math.min : Math.max;
  const best = completed.map((_, i) => better(...completed.slice(0, i + 1).map((trial) => trial.value)));
  const front = {
    x: completed.map((trial) => trial.number), y: best.map(scaled), mode: "lines", line: { shape: "hv", color: grey() },
    hoverinfo: "skip",
  };
  const traces = [front, ...trialTraces(data, trials, (trial) => trial.number)];
  const layout = trialsLayout(data, trials, { title: { text: "trial" }, tickformat: "d", nticks: 8 });
  return [traces, { ...layout, names: [...layout.names, named(grey(), "best so far", "━")] }];
}

const chosenKey = (data) => data.search.keys.find(({ key }) => key === choices.key) ?? data.search.keys[0];

function trialsByKey(data) {
  const trials = trialsOf(data);
  if (!trials.length) return null;
  const { key, is_log: isLog, choices: values } = chosenKey(data);
  const category = { type: "category", categoryorder: "array", categoryarray: values?.map((value) => short(String(value), 20)) };
  const axis = values ? category : isLog ? logAxis(trials.map(({ params }) => params[key])) : {};
  const traces = trialTraces(data, trials, ({ params }) => (values ? short(String(params[key]), 20) : params[key]));
  return [traces, trialsLayout(data, trials, { title: { text: label(key) }, ...axis })];
}

const keyOption = (data) => selectOption("key", "key", data.search.keys.map(({ key }) => [key, key]), chosenKey(data).key);

function keyImportance(data) {
  const rows = (data.search?.keys ?? []).filter((row) => row.importance !== null).reverse();
  const keys = rows.map((row) => short(row.key, 40)), hover = (of) => `%{y}, ${of}: %{x:.0%}<extra></extra>`;
  const importance = {
    type: "bar", orientation: "h", y: keys, x: rows.map((row) => row.importance), width: 0.5,
    marker: { color: rows.map((row) => (row.importance > row.by_chance ? series(0) : grey())) }, hovertemplate: hover("these trials"),
  };
  const chance = {
    y: keys, x: rows.map((row) => row.by_chance), mode: "markers",
    marker: { symbol: "line-ns", size: 26, line: { width: 3, color: series(1) } }, hovertemplate: hover("by chance, at most"),
  };
  const layout = rowsLayout(rows, "share of the variance", { tickformat: ".0%", rangemode: "tozero" });
  const names = [named(series(0), "more than chance"), named(grey(), "not more than chance"), named(series(1), "most by chance, with shuffled results", "┃")];
  return rows.length && [[importance, chance], { ...layout, names }];
}

function raceRounds(data) {
  const rows = [...(data.race?.settings ?? [])].reverse();
  const colorOfRow = (row) => { const setting = settingOfIds(data, row.runs); return setting ? colorOf(setting) : grey(); };
  const behind = (row) => (row.behind ? `, ${row.behind} behind` : "");
  const trace = {
    type: "bar", orientation: "h", y: rows.map((row) => short(row.name, isPhone() ? 24 : 45)), x: rows.map((row) => row.seeds), width: 0.6,
    marker: { color: rows.map((row) => transparent(colorOfRow(row), row.is_dropped ? 0.45 : 1)) },
    text: rows.map((row) => label(row.outcome)), textposition: "auto", meta: rows.map(({ runs }) => foldersOfIds(data, runs)),
    hovertext: rows.map((row) => label(`${row.name}: ${row.value}${behind(row)}; ${row.outcome}`)), hovertemplate: "%{hovertext}<extra></extra>",
  };
  const rounds = { tickvals: data.race?.rounds, range: [0, 1.04 * Math.max(1, ...rows.map((row) => row.seeds))] };
  return rows.length && [[trace], rowsLayout(rows, "seeds; a line for each round", rounds)];
}

// The test images that the best setting and each factor win and lose.
function drawPictures(images) {
  byId("images").hidden = !images;
  byId("images-legend").textContent = images ? `${images.legend}.` : "";
  byId("pictures").replaceChildren(...(images?.rows ?? []).flatMap((row) => [
    element("h3", {}, row.title),
    element("ul", { class: "pictures" }, ...row.images.map(({ src, caption }) => element("li", {},
      element("img", { src, alt: `test image of ${caption[0]}` }), ...caption.map((line) => element("span", {}, line))))),
  ]));
}
