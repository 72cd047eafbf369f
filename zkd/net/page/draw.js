// Draws: the task stream on a canvas, training curves as SVG. Knows nothing of where the numbers come from.

const PALETTE = ["#1f77b4", "#2ca02c", "#9467bd", "#17a2b8", "#bc8f00", "#8c6d5a", "#e377c2", "#5b7fff", "#00a087", "#6b8e23", "#c46a1b", "#708090"];
const ROW = 14, GAP = 6, TOP = 6, AXIS = 18;
const SVG = "http://www.w3.org/2000/svg";

const colours = new Map();

// The same in every browser, but for kernels that would share one while others are free.
export function colourOf(kernel) {
  if (!colours.has(kernel)) {
    let hash = 2166136261;
    for (const letter of kernel) hash = Math.imul(hash ^ letter.codePointAt(0), 16777619);
    const taken = new Set(colours.values()), from = (hash >>> 0) % PALETTE.length;
    const order = PALETTE.map((_, step) => PALETTE[(from + step) % PALETTE.length]);
    colours.set(kernel, order.find((colour) => !taken.has(colour)) || order[0]);
  }
  return colours.get(kernel);
}

export const isFailure = (status) => status !== "done" && status !== "running";

// Runs, each in the first row of its node that was free when it began.
export function laidOut(runs, nodes, from, now) {
  const rows = new Map(nodes.map((node) => [node.node, { slots: node.slots || 2, ends: [] }]));
  const bars = [];
  for (const run of runs.slice().sort((a, b) => a.start - b.start)) {
    if (run.end < from || run.start > now) continue;
    if (!rows.has(run.node)) continue;
    const { slots, ends } = rows.get(run.node);
    let row = ends.findIndex((end) => end <= run.start + 1);
    if (row < 0) row = ends.length < slots ? ends.length : ends.indexOf(Math.min(...ends));
    ends[row] = run.end;
    bars.push({ ...run, row });
  }
  return { bars, rows };
}

export function drawStream(canvas, runs, nodes, seconds, now) {
  const style = getComputedStyle(document.documentElement);
  const ink = (name) => style.getPropertyValue(name).trim();
  const from = now - seconds * 1000;
  const { bars, rows } = laidOut(runs, nodes, from, now);
  const width = canvas.clientWidth || 600, left = Math.min(110, width * 0.22);
  let height = TOP;
  const tops = new Map();
  for (const [name, { slots }] of rows) {
    tops.set(name, height);
    height += Math.min(slots, 16) * ROW + GAP;
  }
  height += AXIS;
  const ratio = window.devicePixelRatio || 1;
  if (canvas.width !== Math.round(width * ratio) || canvas.height !== Math.round(height * ratio)) {
    canvas.width = Math.round(width * ratio);
    canvas.height = Math.round(height * ratio);
    canvas.style.height = `${height}px`;
  }
  const pen = canvas.getContext("2d");
  pen.setTransform(ratio, 0, 0, ratio, 0, 0);
  pen.clearRect(0, 0, width, height);
  pen.font = "11px system-ui, sans-serif";
  pen.textBaseline = "middle";
  const x = (at) => left + ((at - from) / (now - from)) * (width - left);
  const hits = [];
  for (const [name, { slots }] of rows) {
    const shown = Math.min(slots, 16);
    pen.fillStyle = ink("--dim");
    pen.fillText(fitted(pen, name, left - 8), 0, tops.get(name) + (shown * ROW) / 2);
    pen.fillStyle = ink("--idle");
    for (let row = 0; row < shown; row++) pen.fillRect(left, tops.get(name) + row * ROW, width - left, ROW - 2);
  }
  for (const bar of bars) {
    if (bar.row >= 16) continue;
    const y = tops.get(bar.node) + bar.row * ROW, start = Math.max(left, x(bar.start));
    const length = Math.max(1.5, x(Math.min(bar.end, now)) - start);
    pen.globalAlpha = bar.status === "running" ? 0.55 : 1;
    pen.fillStyle = isFailure(bar.status) ? ink("--fail") : colourOf(bar.kernel);
    pen.fillRect(start, y, length, ROW - 2);
    if (isFailure(bar.status)) { // not by colour alone
      pen.fillStyle = ink("--ink");
      pen.fillRect(start, y + ROW - 4, length, 2);
    }
    pen.globalAlpha = 1;
    hits.push({ x: start, y, w: length, h: ROW - 2, bar });
  }
  pen.fillStyle = ink("--dim");
  const step = [1, 2, 5, 10, 30, 60, 300, 600].find((each) => (seconds / each) * 60 <= width - left) || 600;
  for (let ago = 0; ago < seconds; ago += step) {
    const at = x(now - ago * 1000), text = ago === 0 ? "now" : ago % 60 ? `-${ago} s` : `-${ago / 60} min`;
    pen.textAlign = ago === 0 ? "right" : "center";
    if (at > left + 16) pen.fillText(text, at, height - AXIS / 2);
  }
  pen.textAlign = "left";
  return { hits, bars };
}

function fitted(pen, text, width) {
  if (pen.measureText(text).width <= width) return text;
  while (text.length > 1 && pen.measureText(`${text}…`).width > width) text = text.slice(0, -1);
  return `${text}…`;
}

// Mean losses over rounds; logarithmic where they span much.
export function curve(points) {
  const svg = document.createElementNS(SVG, "svg");
  svg.setAttribute("class", "curve");
  svg.setAttribute("viewBox", "0 0 400 120");
  svg.setAttribute("preserveAspectRatio", "none");
  svg.setAttribute("role", "img");
  const losses = points.flatMap(([, loss, held]) => [loss, held]).filter((value) => value !== null);
  if (!losses.length) return svg;
  const low = Math.min(...losses), high = Math.max(...losses), isLog = low > 0 && high / low > 20;
  const scale = isLog ? Math.log10 : (value) => value;
  const [bottom, top] = [scale(low), scale(high)], first = points[0][0], last = points[points.length - 1][0];
  const x = (round) => 4 + ((round - first) / Math.max(1, last - first)) * 392;
  const y = (value) => 108 - ((scale(value) - bottom) / (top - bottom || 1)) * 98;
  for (const at of [10, 59, 108]) {
    const line = svg.appendChild(document.createElementNS(SVG, "line"));
    for (const [key, value] of Object.entries({ x1: 0, x2: 400, y1: at, y2: at })) line.setAttribute(key, value);
  }
  for (const [name, index] of [["loss", 1], ["held", 2]]) {
    const there = points.filter((point) => point[index] !== null);
    if (!there.length) continue;
    const path = svg.appendChild(document.createElementNS(SVG, "path"));
    path.setAttribute("class", name);
    path.setAttribute("d", there.map((point, at) => `${at ? "L" : "M"}${x(point[0]).toFixed(1)} ${y(point[index]).toFixed(1)}`).join(""));
  }
  svg.setAttribute("aria-label", `mean loss from ${losses[0].toPrecision(4)} in round ${first} to ${losses[losses.length - 1].toPrecision(4)} in round ${last}`);
  return svg;
}
