// The dashboard. What it shows comes from /v1/events/stream: everything first, then the sections that have changed.
// Every text from the cluster becomes a text node: nothing here makes markup of strings.

import { colourOf, curve, drawStream, isFailure } from "./draw.js";

const byId = (id) => document.getElementById(id);
const state = { runs: [], nodes: [], datasets: [], jobs: [], models: [], sync: [], events: [], curves: {}, kernels: {}, traffic: {}, backlog: null, cluster: null };
const RUNS_MAX = 5000, RETRY_MAX_S = 10;
let offset = 0; // of the node's clock to ours
let heardAt = 0, isHeld = false, held = [], hits = [], retryS = 1, rates = new Map();

// --- Elements ---------------------------------------------------------------------------------------------------

function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name === "style") Object.assign(made.style, value);
    else made.setAttribute(name, value);
  }
  for (const child of children.flat()) if (child !== null && child !== undefined) made.append(child);
  return made;
}

const cell = (content, kind = "") => element("td", kind ? { class: kind } : {}, content === null || content === undefined ? "–" : content);
const pill = (text, grade) => element("span", { class: `pill ${grade}` }, text);
const replace = (id, ...children) => byId(id).replaceChildren(...children.flat().filter((child) => child !== null));
const empty = (text) => element("p", { class: "empty" }, text);

function table(id, heads, rows, nothing) {
  if (!rows.length) return replace(id, element("tbody", {}, element("tr", {}, element("td", { class: "empty" }, nothing))));
  const names = heads.map(([name, kind]) => element("th", { scope: "col", class: kind || "" }, name));
  return replace(id, element("thead", {}, element("tr", {}, names)), element("tbody", {}, rows));
}

// --- Words ------------------------------------------------------------------------------------------------------

const count = (value) => Number(value).toLocaleString("en");
const number = (value) => (value === null || value === undefined ? "–" : Math.abs(value) >= 1e5 || (value !== 0 && Math.abs(value) < 1e-3) ? value.toExponential(2) : String(Number(value.toPrecision(5))));
function bytes(value) {
  for (const unit of ["B", "KiB", "MiB", "GiB", "TiB"]) {
    if (value < 1024 || unit === "TiB") return `${unit === "B" ? value : value.toFixed(1)} ${unit}`;
    value /= 1024;
  }
}
function span(seconds) {
  if (seconds < 0.001) return `${(seconds * 1e6).toFixed(0)} µs`;
  if (seconds < 1) return `${(seconds * 1000).toFixed(seconds < 0.01 ? 1 : 0)} ms`;
  if (seconds < 100) return `${seconds.toFixed(1)} s`;
  if (seconds < 6000) return `${(seconds / 60).toFixed(0)} min`;
  return seconds < 172800 ? `${(seconds / 3600).toFixed(0)} h` : `${(seconds / 86400).toFixed(0)} d`;
}
const now = () => Date.now() + offset;
const time = (ms) => new Date(ms).toLocaleTimeString([], { hour12: false });
const GRADES = { active: "good", full: "good", done: "good", training: "good", draining: "warn", cordoned: "warn", degraded: "warn", paused: "warn", warning: "warn", away: "bad", lost: "bad", failed: "bad", error: "bad" };
const grade = (word) => GRADES[word] || "";

// --- Panels -----------------------------------------------------------------------------------------------------

const panels = {
  cluster() {
    const { cluster } = state;
    if (!cluster) return;
    byId("root").textContent = cluster.root;
    document.title = `zkd ${cluster.root}`;
    byId("where").textContent = `seen by ${cluster.by}${cluster.zookeeper ? `, ZooKeeper ${cluster.zookeeper}` : ""}${cluster.session === "connected" ? "" : ` (${cluster.session})`}`;
    const { counts } = cluster, here = state.nodes.filter((node) => node.state !== "away").length;
    const tiles = [
      ["nodes", count(here), state.nodes.length > here ? `${state.nodes.length - here} away` : ""],
      ["leader", cluster.leader || "nobody", cluster.leader ? `epoch ${cluster.epoch}` : ""],
      ["slots in use", `${count(counts.used)} / ${count(counts.slots)}`, ""],
      ["tasks", count(counts.tasks), "waiting or running"],
      ["runs ended", count(rate()), "a second"],
      ["results", count(counts.results), "kept"],
      ["dead", count(counts.dead), counts.dead ? "zkd get dead" : ""],
      ["schedules", count(counts.schedules), ""],
    ];
    replace("tiles", tiles.map(([name, value, more]) => element("div", {}, element("dt", {}, name), element("dd", {}, value, " ", element("small", {}, more)))));
  },
  nodes() {
    const rows = state.nodes.map((node) => {
      const used = node.used || 0, slots = node.slots || 0, running = node.running || [];
      const doing = running.slice(0, 3).map((run) => `${run.id} ${run.kernel}${run.progress !== undefined && run.progress !== null ? ` ${Math.round(run.progress * 100)} %` : ""}${run.note ? ` (${run.note})` : ""}`).join("; ");
      const bar = element("div", { class: "bar slots", title: `${used} of ${slots}` }, element("i", { class: "running", style: { width: `${slots ? (100 * used) / slots : 0}%` } }));
      const away = node.state === "away", silent = !away && node.heard_ms && now() - node.heard_ms > 20000;
      return element("tr", {},
        cell([node.node, node.leads ? element("span", { title: "leads" }, " ★") : ""], "w"), cell([pill(node.state, grade(node.state)), silent ? [" ", pill("silent", "warn")] : ""]),
        cell([`${used} / ${slots}`, bar]), cell(count(node.queued || 0), "n"), cell(count(node.done || 0), "n wide"), cell(count(node.failed || 0), "n wide"),
        cell(node.memory_bytes ? bytes(node.memory_bytes) : null, "n wide"), cell(node.load_1m === undefined ? null : node.load_1m.toFixed(2), "n wide"),
        cell(node.uptime_s ? span(node.uptime_s) : null, "n wide"), cell([node.zone || "", Object.entries(node.labels || {}).map(([name, value]) => ` ${name}=${value}`)], "wide"), cell(doing || (away ? node.heard_ms ? `last heard ${time(node.heard_ms)}` : "" : "idle"), "dim what"));
    });
    table("nodes-table", [["node"], ["state"], ["slots in use"], ["queued", "n"], ["done", "n wide"], ["failed", "n wide"], ["memory", "n wide"], ["load", "n wide"], ["up", "n wide"], ["zone, labels", "wide"], ["what runs"]], rows, "No node is here. Start one: zkd daemon.");
  },
  backlog() {
    const { backlog } = state;
    const groups = (backlog && backlog.groups) || [];
    const phases = Object.entries((backlog && backlog.phases) || {}).map(([name, tasks]) => `${count(tasks)} ${name}`).join(", ");
    replace("queues-body",
      phases ? element("p", { class: "why" }, phases) : null,
      groups.map((group) => [
        element("div", { class: "row" }, element("strong", {}, group.wants), element("span", { class: "pill" }, `${count(group.count)} ${group.count === 1 ? "task" : "tasks"}`)),
        element("p", { class: "why" }, `${group.example}: ${group.why}`)]).flat(),
      groups.length ? null : empty(backlog ? "Nothing waits." : state.cluster && state.cluster.leader ? "The leader has not been heard yet." : "Nobody leads."));
  },
  kernels() {
    const waiting = (state.backlog && state.backlog.kernels) || {}, running = {};
    for (const node of state.nodes) for (const run of node.running || []) running[run.kernel] = (running[run.kernel] || 0) + 1;
    const names = [...new Set([...Object.keys(state.kernels), ...Object.keys(waiting), ...Object.keys(running)])];
    const rows = names.map((name) => {
      const ended = state.kernels[name] || {}, done = ended.done || 0;
      const failed = Object.entries(ended).reduce((sum, [status, each]) => (status === "done" || status === "drain" ? sum : sum + each), 0);
      const there = Object.values(waiting[name] || {}).reduce((sum, each) => sum + each, 0), runs = Math.max(running[name] || 0, 0);
      return { name, done, failed, runs, waits: Math.max(0, there - runs) };
    }).sort((a, b) => b.runs + b.waits - a.runs - a.waits || b.done + b.failed - a.done - a.failed).slice(0, 15);
    replace("kernels-body", rows.map((row) => {
      const all = row.done + row.failed + row.runs + row.waits || 1;
      const part = (kind, value) => element("i", { class: kind, style: { width: `${(100 * value) / all}%` } });
      const words = [[row.done, "done"], [row.failed, "failed"], [row.runs, "running"], [row.waits, "waiting"]].filter(([value]) => value).map(([value, word]) => `${count(value)} ${word}`).join(", ");
      return [element("div", { class: "row" }, element("span", {}, element("i", { class: "pill", style: { background: colourOf(row.name), width: "10px", height: "10px", padding: 0, marginRight: "6px" } }), row.name), element("span", { class: "dim" }, words)),
        element("div", { class: "bar", role: "img", "aria-label": words }, part("done", row.done), part("failed", row.failed), part("running", row.runs), part("waiting", row.waits))];
    }).flat(), rows.length ? null : empty("No run has ended since the nodes started."));
  },
  datasets() {
    replace("datasets-body", state.datasets.map((set) => {
      const words = set.store ? `in ${set.store}` : `${set.full || 0} full${set.degraded ? `, ${set.degraded} degraded` : ""}${set.lost ? `, ${set.lost} lost` : ""}, ${set.replicas} ${set.replicas === 1 ? "copy" : "copies"}`;
      const cells = [...(set.map || "")].map((each) => element("i", { class: each === "." ? "ce" : each === "0" ? "c0" : Number(each) < set.replicas ? "c1" : "" }));
      return [element("h3", {}, `${set.name}@${set.version} `, pill(set.health, grade(set.health))),
        element("div", { class: "row dim" }, element("span", {}, `${count(set.rows)} rows, ${bytes(set.size)}, ${count(set.parts)} parts`), element("span", {}, words)),
        element("div", { class: "map", role: "img", "aria-label": `part map of ${set.name}: ${words}` }, cells)];
    }).flat(), state.datasets.length ? null : empty("No datasets. zkd data put FILE makes one."));
  },
  jobs() {
    replace("jobs-body", state.jobs.slice(0, 12).map((job) => {
      const points = state.curves[job.id] || [], how = job.error || job.reason || (job.coordinator ? `by ${job.coordinator}` : "");
      const losses = `round ${count(job.round || 0)}, loss ${number(job.loss)}${job.held_loss === undefined || job.held_loss === null ? "" : `, held out ${number(job.held_loss)}`}${job.rows_s ? `, ${count(Math.round(job.rows_s))} rows/s` : ""}`;
      return [element("h3", {}, `${job.id} `, pill(job.phase || "waiting", grade(job.phase)), job.desired && job.desired !== "run" ? [" ", pill(`to ${job.desired}`, "warn")] : ""),
        element("div", { class: "row dim" }, element("span", {}, `${job.model || "?"} on ${job.dataset || "?"}`), element("span", {}, losses)),
        how ? element("p", { class: "why" }, how) : "", points.length > 1 ? curve(points) : ""];
    }).flat(), state.jobs.length ? null : empty("No training jobs. zkd train start MODEL DATASET."));
  },
  models() {
    const rows = state.models.flatMap((model) => {
      const aliases = Object.entries(model.aliases || {}), requests = Object.entries(state.traffic).filter(([name]) => name === model.name || name.startsWith(`${model.name}@`));
      const said = requests.map(([name, value]) => `${name}: ${count(value)}`).join(", ");
      const points = aliases.map(([name, at]) => element("div", {}, `${name} → ${at.version}`, at.canary ? ` (${at.shadow ? "shadow" : "canary"} ${at.canary}, ${at.percent} %)` : ""));
      return element("tr", {}, cell(model.name), cell(count(model.latest || 0), "n"), cell(count(model.versions || 0), "n"), cell(points.length ? points : null), cell(said || null));
    });
    table("models-table", [["model"], ["newest", "n"], ["versions", "n"], ["aliases"], ["requests"]], rows, "No models are registered.");
  },
  sync() {
    const { cluster } = state;
    const rows = state.sync.map((each) => element("tr", {}, cell(each.kind), cell(each.name), cell(count(each.members), "n")));
    replace("sync-body", element("p", { class: "why" }, cluster && cluster.leader ? `${cluster.leader} leads, epoch ${cluster.epoch}.` : "Nobody leads."),
      rows.length ? element("table", {}, element("thead", {}, element("tr", {}, element("th", {}, "kind"), element("th", {}, "name"), element("th", { class: "n" }, "holders and waiters"))), element("tbody", {}, rows)) : empty("No locks, barriers or elections are in use."));
  },
  events() {
    const least = byId("grade").value;
    const shown = state.events.filter((event) => least === "info" || (event.grade || "info") !== "info").slice(-150).reverse();
    const rows = shown.map((event) => element("tr", {}, cell(time(event.at_ms), "w"), cell(pill(event.event, grade(event.grade))), cell(event.of), cell(event.text, "dim what")));
    table("events-table", [["time"], ["event"], ["of"], ["what"]], rows, "Nothing has happened while somebody looked.");
  },
};
// What a panel is drawn from, where that is more than the section of its name.
const DRAWN_FROM = { nodes: ["nodes", "cluster", "kernels"], backlog: ["backlog", "kernels"], curves: ["jobs"], traffic: ["models"], cluster: ["cluster", "sync", "backlog"] };

function rate() {
  const from = now() - 10000;
  return (state.runs.filter((run) => run.end > from).length / 10).toFixed(1);
}

// --- The stream of tasks ----------------------------------------------------------------------------------------

function takeRuns(told) {
  for (const [node, , id, kernel, status, attempt, ended, wait, took] of told) {
    state.runs.push({ node, id, kernel, status, attempt, wait, took, start: ended - took * 1000, end: ended });
  }
  if (state.runs.length > RUNS_MAX) state.runs.splice(0, state.runs.length - RUNS_MAX);
}

function drawRuns() {
  const ended = new Set(state.runs.map((run) => `${run.id}\n${run.attempt}`)), at = now();
  const running = state.nodes.flatMap((node) => (node.running || []).filter((run) => !ended.has(`${run.id}\n${run.attempt}`)).map((run) => (
    { node: node.node, id: run.id, kernel: run.kernel, status: "running", attempt: run.attempt, start: node.heard_ms - run.run_s * 1000, end: at })));
  const seconds = Number(byId("window").value), from = at - seconds * 1000;
  const busy = new Set(state.runs.filter((run) => run.end > from).map((run) => run.node)); // who has gone has left runs
  const shown = state.nodes.filter((node) => node.state !== "away" || busy.has(node.node)).slice(0, 24);
  const drawn = drawStream(byId("stream-canvas"), state.runs.concat(running), shown, seconds, at);
  hits = drawn.hits;
  return drawn.bars;
}

function drawLegend(bars) {
  const kernels = new Map();
  let failures = 0;
  for (const bar of bars) {
    if (isFailure(bar.status)) failures += 1;
    kernels.set(bar.kernel, (kernels.get(bar.kernel) || 0) + 1);
  }
  const most = [...kernels].sort((a, b) => b[1] - a[1]).slice(0, 8);
  const swatch = (colour) => element("i", { style: { background: colour } });
  replace("stream-legend", most.map(([kernel, runs]) => element("li", {}, swatch(colourOf(kernel)), `${kernel} ${count(runs)}`)), failures ? element("li", {}, swatch("var(--fail)"), `not done ${count(failures)}`) : null, bars.length ? null : element("li", { class: "dim" }, "No run in this window."));
}

byId("stream-canvas").addEventListener("pointermove", (event) => {
  const hit = hits.findLast(({ x, y, w, h }) => event.offsetX >= x - 1 && event.offsetX <= x + w + 1 && event.offsetY >= y && event.offsetY <= y + h);
  byId("stream-tip").textContent = hit ? `${hit.bar.id}  ${hit.bar.kernel}  ${hit.bar.status}  attempt ${hit.bar.attempt} on ${hit.bar.node}, ${span((hit.bar.end - hit.bar.start) / 1000)}${hit.bar.wait ? `, waited ${span(hit.bar.wait)} there` : ""}` : "";
});

// --- Live -------------------------------------------------------------------------------------------------------

function take(name, told) {
  heardAt = Date.now();
  offset = told.at_ms - heardAt;
  if (name === "all") state.runs = [];
  if (told.runs) takeRuns(told.runs);
  const changed = new Set();
  for (const section of Object.keys(told)) {
    if (section === "runs" || section === "at_ms") continue;
    state[section] = told[section];
    for (const panel of DRAWN_FROM[section] || [section]) changed.add(panel);
  }
  changed.add("cluster");
  for (const panel of changed) if (panels[panel]) panels[panel]();
}

function show(word, text) {
  const link = byId("link");
  if (link.dataset.state !== word || link.textContent !== text) {
    link.dataset.state = word;
    link.textContent = text;
  }
  document.body.classList.toggle("stale", word === "lost");
}

function connect() {
  const source = new EventSource("/v1/events/stream");
  for (const name of ["all", "some"]) {
    source.addEventListener(name, (event) => {
      retryS = 1;
      const told = JSON.parse(event.data);
      if (isHeld) held.push([name, told]);
      else take(name, told);
      if (held.length > 600) held.shift();
      show(isHeld ? "paused" : "live", isHeld ? "paused" : "live");
    });
  }
  // A browser tries again by itself only where the connection broke, not where the node answered with an error.
  source.addEventListener("error", () => {
    show("lost", heardAt ? `no answer since ${time(heardAt)}, trying again` : "no answer, trying again");
    source.close();
    setTimeout(connect, retryS * 1000);
    retryS = Math.min(RETRY_MAX_S, retryS * 2);
  });
}

function hold() {
  isHeld = !isHeld;
  byId("hold").setAttribute("aria-pressed", String(isHeld));
  if (!isHeld) for (const [name, told] of held.splice(0)) take(name, told);
  show(isHeld ? "paused" : "live", isHeld ? "paused" : "live");
}

function move(step) {
  const sections = [...document.querySelectorAll("main section")];
  const at = sections.findIndex((section) => section.contains(document.activeElement));
  go(sections[Math.max(0, Math.min(sections.length - 1, at + step))]);
}

function go(section) {
  section.focus({ preventScroll: true });
  section.scrollIntoView();
}

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.target.matches("select, input")) return;
  const sections = document.querySelectorAll("main section");
  if (event.key >= "1" && event.key <= "9" && sections[event.key - 1]) go(sections[event.key - 1]);
  else if (event.key === "j") move(1);
  else if (event.key === "k") move(-1);
  else if (event.key === "p") hold();
  else return;
  event.preventDefault();
});
byId("hold").addEventListener("click", hold);
byId("grade").addEventListener("change", panels.events);

let drawnAt = 0, legendAt = 0;
const isCalm = matchMedia("(prefers-reduced-motion: reduce)");
function frame(at) {
  if (!isHeld && at - drawnAt > (isCalm.matches ? 1000 : 100)) {
    const bars = drawRuns();
    drawnAt = at;
    if (at - legendAt > 1000) {
      drawLegend(bars);
      panels.cluster();
      legendAt = at;
    }
  }
  requestAnimationFrame(frame);
}

for (const panel of Object.values(panels)) panel();
connect();
requestAnimationFrame(frame);
