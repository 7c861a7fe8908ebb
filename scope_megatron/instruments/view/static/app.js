// The page: runs, curves, time line, health, configuration; it asks again every two seconds.

import { Chart } from "./chart.js";
import { ResponseBrowser } from "./responses.js";
import { ask, make, textBlock } from "./text.js";

const COLORS = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8c6bb1", "#7f7f7f"];
const PHASES = ["rollout", "verify", "deal", "score", "train", "sync"].map((name) => "time/" + name);
// headings of the curves: the first part of a metric's name belongs to one of them
const HEADINGS = {
  "training": ["eval", "reward", "loss", "path", "grad_norm", "lr", "update"],
  "signal": ["perplexity", "weight", "entropy"],
  "responses and engine": ["rollout", "tokens", "mismatch", "sync"],
  "seconds": ["time", "overlap", "sampling", "balance"],
  "memory, by tenant": ["memory"],
};
const MARKS = { resume: "#0072b2", fail: "#d00", stop: "#d55e00", skip: "#cc00cc", hang: "#d00", start: "#999" };
const EVERY_MS = 2000;

const at = (id) => document.getElementById(id);
const state = { runs: [], off: new Set(), charts: new Map(), range: null, tab: "curves", series: new Map(), traced: new Map() };
const browser = new ResponseBrowser();
const seen = new IntersectionObserver((entries) => {
  for (const entry of entries) {
    const item = state.charts.get(entry.target.dataset.name);
    if (item) { item.visible = entry.isIntersecting; }
  }
  drawCurves();
}, { rootMargin: "300px" });

function headingOf(name) {
  const first = name.split("/")[0];
  return Object.keys(HEADINGS).find((heading) => HEADINGS[heading].includes(first)) ?? "more";
}

function layOut() {
  const names = [...new Set(state.runs.flatMap((run) => run.metrics))];
  const wanted = at("match").value.trim().toLowerCase();
  const plan = JSON.stringify([names, wanted]);
  if (plan === state.plan) return;
  state.plan = plan; state.charts.clear(); seen.disconnect();
  const parts = [];
  for (const heading of [...Object.keys(HEADINGS), "more"]) {
    const place = (name) => (HEADINGS[heading] ?? []).indexOf(name.split("/")[0]);
    const mine = names.filter((name) => headingOf(name) === heading && name.toLowerCase().includes(wanted))
      .sort((a, b) => place(a) - place(b) || a.localeCompare(b));
    if (!mine.length) continue;
    const grid = make("div", { class: "grid" });
    if (heading === "seconds") add(grid, "phases over time", PHASES.filter((name) => names.includes(name)), true);
    // memory/PHASE/TENANT_gib: one chart a phase, tenants one above the other
    const phases = [...new Set(mine.filter((name) => name.match(/^memory\/.+\/.+/)).map((name) => name.split("/")[1]))];
    for (const phase of phases) add(grid, `GiB in ${phase}`, mine.filter((name) => name.startsWith(`memory/${phase}/`)), true);
    for (const name of mine) if (!phases.includes(name.split("/")[1]) || heading !== "memory, by tenant") add(grid, name, [name], false);
    parts.push(make("h2", {}, heading), grid);
  }
  at("charts").replaceChildren(...parts);
}

function add(grid, title, names, stacked) {
  const chart = new Chart(title, zoom);
  chart.element.dataset.name = title;
  state.charts.set(title, { chart, names, stacked, visible: false });
  grid.append(chart.element);
  seen.observe(chart.element);
}

function zoom(first, last) {
  state.range = first === null ? null : [first, last];
  at("unzoom").disabled = first === null;
  state.series.clear();
  drawCurves();
}

async function drawCurves() {
  const items = [...state.charts.values()].filter((item) => item.visible);
  const shownRuns = state.runs.map((run, i) => ({ run, i })).filter(({ i }) => !state.off.has(i));
  await Promise.all(shownRuns.map(async ({ run, i }) => {
    const needed = [...new Set(items.flatMap((item) => item.names))].filter((name) => run.metrics.includes(name))
      .filter((name) => state.series.get(`${i} ${name}`)?.version !== run.version);
    for (let from = 0; from < needed.length; from += 80) {
      const range = state.range ? [["first", state.range[0]], ["last", state.range[1]]] : [];
      const names = needed.slice(from, from + 80);
      const range_ = JSON.stringify(state.range);
      const found = await ask("/api/curves", [["run", i], ...names.map((name) => ["name", name]), ...range]);
      if (range_ !== JSON.stringify(state.range)) return;
      for (const name of names) state.series.set(`${i} ${name}`, { version: run.version, ...found.series[name] });
    }
  }));
  const smooth = Number(at("smooth").value);
  const marks = at("marks").checked ? shownRuns.flatMap(({ run }) => run.events.filter((e) => MARKS[e.kind] && e.step)).map((e) => ({ step: e.step, color: MARKS[e.kind] })) : [];
  for (const item of items) {
    const runs = item.stacked ? shownRuns.slice(0, 1) : shownRuns;
    const curves = runs.flatMap(({ run, i }) => item.names.map((name, n) => ({
      label: item.stacked ? name.split("/").pop().replace("_gib", "") : run.name,
      color: COLORS[(item.stacked ? n : i) % COLORS.length],
      ...(state.series.get(`${i} ${name}`) ?? { step: [], mean: [] }),
    })));
    item.chart.set(curves, { marks, smooth: item.stacked ? 0 : smooth, range: state.range, stacked: item.stacked });
  }
  document.body.dataset.drawn = String(state.runs.map((run) => run.step));
}

function drawRuns() {
  at("runs").replaceChildren(...state.runs.map((run, i) => {
    const dot = make("span", { class: "dot" });
    dot.style.background = COLORS[i % COLORS.length];
    const steps = run.steps ? `${run.step}/${run.steps}` : run.step;
    return make("button", { type: "button", class: "chip" + (state.off.has(i) ? " off" : ""), title: run.directory,
      onclick: () => { state.off.has(i) ? state.off.delete(i) : state.off.add(i); drawRuns(); drawCurves(); } },
    dot, run.name, make("span", { class: "state" }, `${run.state}, step ${steps}`));
  }));
  const count = state.runs.reduce((sum, run) => sum + run.advice.length, 0);
  at("health-count").textContent = count ? `(${count})` : "";
}

function drawHealth() {
  const parts = state.runs.flatMap((run) => [make("h2", {}, run.name), ...(run.advice.length ? run.advice.map((item) =>
    make("div", { class: `advice ${item.level}` }, textBlock(item.text, 2000, ""), make("div", { class: "hint" }, `${item.rule} · ${item.source}`)))
    : [make("p", { class: "hint" }, "Nothing to say: no rule found anything, or there are too few steps.")]),
  ...Object.entries(run.nonfinite).map(([name, n]) => make("div", { class: "advice warning" }, `${name} was not finite at ${n} steps`))]);
  at("health").replaceChildren(...parts);
}

async function drawTimeline() {
  const pictures = await Promise.all(state.runs.map((run, i) => tracedStep(i).catch(() => null)));
  at("timeline").replaceChildren(...state.runs.flatMap((run, i) => [make("h2", {}, run.name), ...(pictures[i] ? [pictures[i]] : []), make("table", {},
    make("tr", {}, ...["step", "what", "when", ""].map((t) => make("th", {}, t))),
    ...run.events.slice(-2000).map((event) => {
      const cell = make("td", {}, event.kind);
      cell.style.color = MARKS[event.kind] ?? "";
      const when = event.time ? new Date(event.time * 1000).toLocaleString() : "";
      return make("tr", {}, make("td", {}, String(event.step)), cell, make("td", {}, when), make("td", {}, textBlock(event.text ?? "", 400, "")));
    }))]));
}

// What each rank did in a step, where the run has a trace: a picture, and which step.
async function tracedStep(i) {
  const steps = await ask("/api/traced", [["run", i]]);
  if (!steps.length) return null;
  const chosen = steps.includes(state.traced.get(i)) ? state.traced.get(i) : steps[steps.length - 1];
  const address = (step) => `/api/timeline?run=${i}&step=${step}`;
  const picture = make("img", { src: address(chosen), alt: "what each rank did in a step" });
  const choice = make("select", { onchange: () => { state.traced.set(i, Number(choice.value)); picture.src = address(choice.value); } },
    ...steps.map((step) => make("option", { value: step }, String(step))));
  choice.value = String(chosen);
  return make("div", { class: "traced" }, make("label", {}, "what each rank did in step ", choice), picture);
}

async function drawConfig() {
  const rows = await ask("/api/config");
  const several = state.runs.length > 1;
  rows.sort((a, b) => Number(b.differs) - Number(a.differs));
  at("config").replaceChildren(make("table", {}, make("tr", {}, make("th", {}, "setting"), ...state.runs.map((run) => make("th", {}, run.name))),
    ...rows.map((row) => make("tr", { class: several && row.differs ? "differs" : "" }, make("td", {}, row.key),
      ...row.values.map((value) => make("td", {}, textBlock(value ?? "–", 300, "")))))),
  make("p", { class: "hint" }, rows.length ? "" : "No config.yaml is in the run's directory."));
}

function showTab(name) {
  state.tab = name;
  for (const section of document.querySelectorAll("main > section")) section.hidden = section.id !== name;
  for (const button of document.querySelectorAll("nav button")) button.classList.toggle("on", button.dataset.tab === name);
  refreshTab(true);
}

function refreshTab(changed) {
  if (state.tab === "curves") drawCurves();
  if (!changed) return;
  if (state.tab === "responses") browser.refresh();
  if (state.tab === "timeline") drawTimeline();
  if (state.tab === "health") drawHealth();
  if (state.tab === "config") drawConfig();
}

async function refresh() {
  try {
    const before = JSON.stringify(state.runs.map((run) => [run.version, run.responses, run.state, run.events.length]));
    state.runs = await ask("/api/runs");
    at("problem").hidden = true;
    browser.setRuns(state.runs);
    layOut(); drawRuns();
    if (!state.warm) {
      state.warm = true; // once the curves are there, have the index of responses read
      setTimeout(() => state.runs.forEach((run, i) => ask("/api/responses", [["run", i]]).catch(() => {})), 300);
    }
    refreshTab(before !== JSON.stringify(state.runs.map((run) => [run.version, run.responses, run.state, run.events.length])));
  } catch (error) {
    at("problem").textContent = `the server does not answer: ${error.message}`;
    at("problem").hidden = false;
  }
  setTimeout(refresh, EVERY_MS);
}

for (const button of document.querySelectorAll("nav button")) button.addEventListener("click", () => showTab(button.dataset.tab));
at("smooth").addEventListener("input", drawCurves);
at("marks").addEventListener("change", drawCurves);
at("match").addEventListener("input", () => { layOut(); drawCurves(); });
at("unzoom").addEventListener("click", () => zoom(null));
window.addEventListener("resize", drawCurves);
refresh();
