"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const HEIGHT = 240, LEFT = 54, RIGHT = 22, TOP = 8, BOTTOM = 24;
let looking = null;

function add(parent, name, attributes = {}, text = "") {
  const svg = name !== "span" && name !== "i" && name !== "b";
  const node = svg ? document.createElementNS("http://www.w3.org/2000/svg", name) : document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  node.textContent = text;
  parent.append(node);
  return node;
}

function number(value, scale) {
  if (scale === "share") return (100 * value).toFixed(2) + " %";
  if (value !== 0 && (Math.abs(value) < 1e-3 || Math.abs(value) >= 1e6)) return value.toExponential(2).replace(/\.?0+e/, "e");
  return String(Number(value.toPrecision(4)));
}

function place(value, unit) {
  if (unit !== "seconds") return unit + " " + value.toLocaleString("en");
  return value < 120 ? value.toFixed(1) + " s" : (value / 60).toFixed(1) + " min";
}

function ticks(low, high, most) {
  const rough = (high - low) / most, power = 10 ** Math.floor(Math.log10(rough));
  const step = power * [1, 2, 5, 10].find((m) => power * m >= rough);
  const found = [];
  for (let i = Math.ceil(low / step - 1e-9); i * step <= high + step * 1e-9; i++) found.push(i * step);
  return found;
}

function logTicks(low, high) {
  for (const marks of [[1, 2, 3, 5, 7], [1, 2, 5], [1, 3], [1]]) {
    const found = [];
    for (let e = Math.floor(low); e <= high; e++)
      for (const m of marks) if (e + Math.log10(m) >= low && e + Math.log10(m) <= high) found.push(m * 10 ** e);
    if (found.length <= 7 && found.length > 1) return found;
  }
  const all = ticks(low, high, 5);
  return all.map((e) => Number((10 ** e).toPrecision(2)));
}

function nearest(xs, x) {
  let low = 0, high = xs.length - 1;
  while (high - low > 1) {
    const middle = (low + high) >> 1;
    if (xs[middle] < x) low = middle; else high = middle;
  }
  return Math.abs(xs[low] - x) <= Math.abs(xs[high] - x) ? low : high;
}

const drawn = [...document.querySelectorAll(".chart")].map((figure) => {
  const panel = data.panels[figure.dataset.panel];
  return {figure, panel, legend: figure.querySelector(".legend")};
});
const ends = {};
for (const {panel} of drawn)
  for (const {x} of panel.curves) {
    const end = (ends[panel.x] ??= [Infinity, -Infinity]);
    end[0] = Math.min(end[0], x[0]);
    end[1] = Math.max(end[1], x[x.length - 1]);
  }

function draw(chart) {
  const {figure, panel} = chart, width = Math.max(240, figure.clientWidth);
  chart.svg?.remove();
  if (!panel.curves.length) { chart.legend.textContent = "nothing recorded yet"; return; }
  const svg = chart.svg = add(figure, "svg", {viewBox: `0 0 ${width} ${HEIGHT}`, height: HEIGHT, tabindex: 0,
    role: "img", "aria-label": panel.title + ": " + panel.curves.map((c) => c.name).join(", ")});
  const log = panel.scale === "log" && panel.curves.every((c) => c.values.every((v) => v > 0));
  const level = (v) => (log ? Math.log10(v) : v);
  let low = Infinity, high = -Infinity;
  for (const c of panel.curves) for (const v of c.values) { low = Math.min(low, level(v)); high = Math.max(high, level(v)); }
  if (!log && low > 0 && low < 0.5 * high) low = 0;
  if (!(high > low)) { const r = log ? 0.1 : Math.abs(high) * 0.1 || 1; low -= r; high += r; }
  const room = (high - low) * 0.04;
  high += panel.scale === "share" && high <= 1 ? Math.min(room, Math.max(0, 1 - high) + 0.01) : room;
  if (low !== 0) low -= room;
  let [first, last] = ends[panel.x];
  if (!(last > first)) { first -= 0.5; last += 0.5; }
  const X = (x) => LEFT + (x - first) / (last - first) * (width - LEFT - RIGHT);
  const Y = (v) => TOP + (high - level(v)) / (high - low) * (HEIGHT - TOP - BOTTOM);
  chart.X = X;
  chart.at = (pixel) => first + (pixel - LEFT) / (width - LEFT - RIGHT) * (last - first);
  for (const v of log ? logTicks(low, high) : ticks(low, high, 5)) {
    add(svg, "line", {class: "grid", x1: LEFT, x2: width - RIGHT, y1: Y(v), y2: Y(v)});
    const text = panel.scale === "share" ? Number((100 * v).toPrecision(4)) + " %" : number(v);
    add(svg, "text", {x: LEFT - 6, y: Y(v) + 4, "text-anchor": "end"}, text);
  }
  for (const x of ticks(first, last, Math.max(2, Math.floor(width / 110)))) {
    if (panel.x === "step" && !Number.isInteger(x)) continue;
    add(svg, "text", {x: X(x), y: HEIGHT - 6, "text-anchor": "middle"},
      panel.x === "seconds" ? (last < 120 ? x + " s" : Number((x / 60).toPrecision(3)) + " min") : x.toLocaleString("en"));
  }
  for (const c of panel.curves) {
    const color = `var(--c${c.color % 7})`;
    if (c.look !== "points" || c.x.length > 1)
      add(svg, "path", {class: c.look, stroke: color, "stroke-dasharray": c.color < 7 ? "none" : "5 3",
        d: c.x.map((x, i) => `${i ? "L" : "M"}${X(x).toFixed(1)} ${Y(c.values[i]).toFixed(1)}`).join("")});
    if ((c.look === "points" && c.x.length <= 200) || c.x.length === 1)
      c.x.forEach((x, i) => add(svg, "circle", {cx: X(x), cy: Y(c.values[i]), r: 3, fill: color}));
  }
  chart.cross = add(svg, "line", {class: "cross", y1: TOP, y2: HEIGHT - BOTTOM, visibility: "hidden"});
}

function read(chart, x) {
  const {panel, legend} = chart;
  if (!panel.curves.length) return;
  const near = panel.curves.map((c) => (x === null ? c.x.length - 1 : nearest(c.x, x)));
  legend.textContent = "";
  const at = x === null ? null : panel.curves.map((c, i) => c.x[near[i]]).reduce((a, b) => Math.abs(b - x) < Math.abs(a - x) ? b : a);
  if (x !== null) add(legend, "b", {class: "at"}, place(at, panel.x));
  panel.curves.forEach((c, i) => {
    const entry = add(legend, "span");
    add(entry, "i", {class: c.look, style: `background: var(--c${c.color % 7}); opacity: ${c.look === "pale" ? 0.45 : 1}`});
    const where = x !== null && c.x[near[i]] !== at ? ` (${place(c.x[near[i]], panel.x)})` : "";
    entry.append(c.name + " ");
    add(entry, "b", {}, number(c.values[near[i]], panel.scale));
    entry.append(where);
  });
  if (x === null) { chart.cross.setAttribute("visibility", "hidden"); return; }
  chart.cross.setAttribute("visibility", "visible");
  for (const end of ["x1", "x2"]) chart.cross.setAttribute(end, chart.X(at));
}

function look(x, unit) {
  looking = x;
  for (const chart of drawn) if (unit === undefined || chart.panel.x === unit) read(chart, x);
}

function all() {
  for (const chart of drawn) { draw(chart); read(chart, null); listen(chart); }
}

function listen(chart) {
  const {svg, panel} = chart;
  if (!panel.curves.length) return;
  svg.addEventListener("pointermove", (event) => {
    const box = svg.getBoundingClientRect();
    look(chart.at((event.clientX - box.left) * svg.viewBox.baseVal.width / box.width), panel.x);
  });
  svg.addEventListener("pointerleave", () => look(null));
  svg.addEventListener("blur", () => look(null));
  svg.addEventListener("keydown", (event) => {
    const move = {ArrowLeft: -1, ArrowRight: 1}[event.key];
    if (!move) return;
    event.preventDefault();
    const xs = panel.curves[0].x, now = looking === null ? xs.length - 1 : nearest(xs, looking);
    look(xs[Math.min(xs.length - 1, Math.max(0, now + move * (event.shiftKey ? 10 : 1)))], panel.x);
  });
}

all();
let width = innerWidth;
addEventListener("resize", () => { if (width !== innerWidth) { width = innerWidth; all(); } });

if (data.reload) {
  const note = document.getElementById("written"), loaded = Date.now();
  setInterval(() => {
    const age = Math.round(Date.now() / 1000 - data.written);
    if (note && age >= 0) note.textContent = age < 120 ? `written ${age} s ago` : `written ${Math.round(age / 60)} minutes ago`;
    if (Date.now() - loaded > 1000 * data.reload && looking === null && !document.hidden) location.reload();
  }, 1000);
}
