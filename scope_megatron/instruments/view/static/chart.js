// A chart on a canvas: curves of several runs, hover, zoom by dragging, smoothing, event marks.

import { make, shown } from "./text.js";

const LEFT = 52, RIGHT = 8, TOP = 6, BOTTOM = 20;

/** Exponential moving average, unbiased at the start (as TensorBoard's). */
export function smoothed(values, weight) {
  if (!weight) return values;
  let last = 0, norm = 0;
  return values.map((value) => {
    last = last * weight + (1 - weight) * value;
    norm = norm * weight + (1 - weight);
    return last / norm;
  });
}

export function ticks(low, high, count = 4) {
  const span = high - low || Math.abs(high) || 1;
  const rough = span / count, power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((m) => m * power).find((s) => s >= rough);
  const out = [];
  for (let t = Math.ceil(low / step) * step; t <= high + step * 1e-9; t += step) out.push(Math.abs(t) < step * 1e-9 ? 0 : t);
  return out;
}

export class Chart {
  /** `zoomed(first, last)` is told what was dragged over; null: everything. */
  constructor(title, zoomed) {
    this.canvas = make("canvas", { role: "img", "aria-label": title });
    this.tip = make("div", { class: "tip", hidden: "" });
    this.legend = make("div", { class: "legend" });
    this.element = make("div", { class: "chart" }, make("h3", {}, title), this.canvas, this.legend, this.tip);
    this.curves = []; this.marks = []; this.stacked = false; this.range = null;
    this.zoomed = zoomed;
    this.canvas.addEventListener("mousemove", (event) => this.hover(event));
    this.canvas.addEventListener("mouseleave", () => { this.tip.hidden = true; this.draw(); });
    this.canvas.addEventListener("mousedown", (event) => { this.from = event.offsetX; });
    this.canvas.addEventListener("mouseup", (event) => {
      const a = this.from; this.from = undefined;
      if (a !== undefined && Math.abs(event.offsetX - a) > 5) {
        const [first, last] = [this.step(Math.min(a, event.offsetX)), this.step(Math.max(a, event.offsetX))];
        this.zoomed(Math.floor(first), Math.ceil(last));
      }
    });
    this.canvas.addEventListener("dblclick", () => this.zoomed(null));
  }

  /** curves: [{label, color, step, mean, low, high}]; marks: [{step, color}]; range: [first, last] or null. */
  set(curves, { marks = [], smooth = 0, range = null, stacked = false } = {}) {
    this.marks = marks; this.range = range; this.stacked = stacked;
    this.curves = curves.filter((c) => c.step.length).map((c) => ({ ...c, line: smoothed(c.mean, smooth) }));
    if (stacked) this.stack();
    const labels = curves.length > 1 ? this.curves : [];
    this.legend.replaceChildren(...labels.map((c) => {
      const dot = make("span", { class: "dot" });
      dot.style.background = c.color; dot.style.display = "inline-block"; dot.style.marginRight = "4px";
      return make("span", {}, dot, c.label);
    }));
    this.draw();
  }

  stack() {
    const under = new Map();
    for (const curve of this.curves) {
      curve.floor = curve.step.map((step) => under.get(step) ?? 0);
      curve.top = curve.line.map((value, i) => curve.floor[i] + value);
      curve.step.forEach((step, i) => under.set(step, curve.top[i]));
    }
  }

  bounds() {
    let [x0, x1, y0, y1] = [Infinity, -Infinity, Infinity, -Infinity];
    for (const c of this.curves) {
      x0 = Math.min(x0, c.step[0]); x1 = Math.max(x1, c.step[c.step.length - 1]);
      for (const v of this.stacked ? c.top : c.line) { if (v < y0) y0 = v; if (v > y1) y1 = v; }
    }
    if (this.range) [x0, x1] = this.range;
    if (this.stacked) y0 = 0;
    if (y0 === y1) { const pad = Math.abs(y0) * 0.1 || 0.5; y0 -= pad; y1 += pad; }
    if (x0 === x1) { x0 -= 0.5; x1 += 0.5; }
    const room = (y1 - y0) * 0.04;
    return { x0, x1, y0: this.stacked ? 0 : y0 - room, y1: y1 + room };
  }

  step(pixel) {
    const { x0, x1 } = this.view;
    return x0 + ((pixel - LEFT) / (this.width - LEFT - RIGHT)) * (x1 - x0);
  }

  draw() {
    const ratio = window.devicePixelRatio || 1, box = this.canvas.getBoundingClientRect();
    if (!box.width || !this.curves.length) return;
    this.width = box.width; this.height = box.height;
    this.canvas.width = Math.round(box.width * ratio); this.canvas.height = Math.round(box.height * ratio);
    const pen = this.canvas.getContext("2d");
    pen.scale(ratio, ratio);
    const v = (this.view = this.bounds()), style = getComputedStyle(document.body);
    const X = (x) => LEFT + ((x - v.x0) / (v.x1 - v.x0)) * (this.width - LEFT - RIGHT);
    const Y = (y) => this.height - BOTTOM - ((y - v.y0) / (v.y1 - v.y0)) * (this.height - TOP - BOTTOM);
    pen.font = "11px system-ui, sans-serif"; pen.fillStyle = style.getPropertyValue("--soft"); pen.strokeStyle = style.getPropertyValue("--line");
    pen.lineWidth = 1; pen.textAlign = "right"; pen.textBaseline = "middle";
    for (const t of ticks(v.y0, v.y1)) { pen.beginPath(); pen.moveTo(LEFT, Y(t)); pen.lineTo(this.width - RIGHT, Y(t)); pen.stroke(); pen.fillText(shown(t, 2), LEFT - 6, Y(t)); }
    pen.textAlign = "center"; pen.textBaseline = "top";
    for (const t of ticks(v.x0, v.x1, 5)) if (Number.isInteger(t)) pen.fillText(String(t), X(t), this.height - BOTTOM + 5);
    pen.save(); pen.beginPath(); pen.rect(LEFT, 0, this.width - LEFT - RIGHT, this.height - BOTTOM); pen.clip();
    for (const mark of this.marks) { pen.strokeStyle = mark.color; pen.setLineDash([3, 3]); pen.beginPath(); pen.moveTo(X(mark.step), TOP); pen.lineTo(X(mark.step), this.height - BOTTOM); pen.stroke(); }
    pen.setLineDash([]);
    for (const c of this.curves) this.stacked ? area(pen, c, X, Y) : line(pen, c, X, Y);
    pen.restore();
  }

  hover(event) {
    if (!this.view) return;
    const step = this.step(event.offsetX);
    const rows = this.curves.map((c) => {
      let i = c.step.findIndex((s) => s >= step);
      if (i < 0) i = c.step.length - 1;
      if (i > 0 && step - c.step[i - 1] < c.step[i] - step) i -= 1;
      return { label: c.label, step: c.step[i], value: c.line[i], low: c.low?.[i], high: c.high?.[i] };
    });
    if (!rows.length) return;
    this.tip.replaceChildren(make("div", {}, `step ${rows[0].step}`), ...rows.map((row) => {
      const range = row.low === undefined ? "" : ` (${shown(row.low)} to ${shown(row.high)})`;
      return make("div", {}, `${row.label}: ${shown(row.value, 4)}${range}`);
    }));
    this.tip.hidden = false;
    const right = event.offsetX > this.width / 2;
    this.tip.style.left = right ? "" : `${event.offsetX + 24}px`;
    this.tip.style.right = right ? `${this.width - event.offsetX + 24}px` : "";
    this.tip.style.top = "34px";
    this.draw();
    const pen = this.canvas.getContext("2d");
    pen.strokeStyle = "#888"; pen.beginPath(); pen.moveTo(event.offsetX, TOP); pen.lineTo(event.offsetX, this.height - BOTTOM); pen.stroke();
    if (this.from !== undefined) { pen.fillStyle = "rgba(0,114,178,.18)"; pen.fillRect(Math.min(this.from, event.offsetX), TOP, Math.abs(event.offsetX - this.from), this.height - TOP - BOTTOM); }
  }
}

function line(pen, c, X, Y) {
  if (c.low) {
    pen.globalAlpha = 0.18; pen.fillStyle = c.color; pen.beginPath();
    c.step.forEach((s, i) => pen.lineTo(X(s), Y(c.high[i])));
    for (let i = c.step.length - 1; i >= 0; i--) pen.lineTo(X(c.step[i]), Y(c.low[i]));
    pen.fill(); pen.globalAlpha = 1;
  }
  pen.strokeStyle = c.color; pen.lineWidth = 1.6; pen.beginPath();
  c.step.forEach((s, i) => pen.lineTo(X(s), Y(c.line[i])));
  pen.stroke();
  if (c.step.length < 30) for (let i = 0; i < c.step.length; i++) { pen.fillStyle = c.color; pen.beginPath(); pen.arc(X(c.step[i]), Y(c.line[i]), 2.2, 0, 7); pen.fill(); }
}

function area(pen, c, X, Y) {
  pen.fillStyle = c.color; pen.beginPath();
  c.step.forEach((s, i) => pen.lineTo(X(s), Y(c.top[i])));
  for (let i = c.step.length - 1; i >= 0; i--) pen.lineTo(X(c.step[i]), Y(c.floor[i]));
  pen.fill();
}
