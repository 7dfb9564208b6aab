// Drawing with SVG: a plot has two scales, a grid, whatever is put into it, and a line that follows the pointer.

const NAMESPACE = document.getElementById("svg").namespaceURI;

function element(name, attributes = {}, text = "") {
  const made = document.createElementNS(NAMESPACE, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  if (text !== "") made.textContent = text;
  return made;
}

function html(name, className = "", text = "") {
  const made = document.createElement(name);
  if (className) made.className = className;
  if (text !== "") made.textContent = text;
  return made;
}

// Round numbers for an axis: 1, 2 or 5 times a power of ten, about `wanted` of them.
function linearTicks(low, high, wanted) {
  const rough = (high - low) / wanted || 1;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((factor) => factor * power).find((size) => size >= rough * 0.999);
  const ticks = [];
  for (let k = Math.ceil(low / step - 1e-9); k * step <= high + 1e-9 * step; k++) ticks.push(Number((k * step).toPrecision(12)));
  return ticks;
}

function logTicks(low, high) {
  if (high / low < 4) return linearTicks(low, high, 5);
  const fine = high / low < 20 ? [1, 1.5, 2, 3, 5, 7] : high / low < 150 ? [1, 2, 5] : [1];
  const ticks = [];
  for (let power = Math.floor(Math.log10(low)); power <= Math.ceil(Math.log10(high)); power++)
    for (const factor of fine) ticks.push(Number((factor * 10 ** power).toPrecision(6)));
  return ticks.filter((tick) => tick >= low * 0.999 && tick <= high * 1.001);
}

// A scale turns a value into a place. `log` scales keep ratios.
function scale({ low, high, log = false }, from, to) {
  const bend = log ? Math.log : (value) => value;
  const a = bend(low), b = bend(high);
  const place = (value) => from + ((bend(value) - a) / (b - a || 1)) * (to - from);
  place.back = (at) => {
    const t = a + ((at - from) / (to - from)) * (b - a);
    return log ? Math.exp(t) : t;
  };
  return place;
}

// Limits of an axis of milliseconds that hold all of `values`, with some air.
function logLimits(values) {
  const real = values.filter((value) => value > 0);
  const low = Math.min(...real), high = Math.max(...real);
  return { low: low / Math.max(1.15, (high / low) ** 0.04), high: high * Math.max(1.15, (high / low) ** 0.06), log: true };
}

// Adds a plot to `parent` and draws it again whenever its width changes.
//   x, y      {low, high, log, ticks, label(value)}
//   draw      (plot) => ..., plot being {svg, x, y, width, height, add}
//   tip       (value of x) => {at, text} for the pointer, or null
function plot(parent, { height, x, y, draw, tip, right = 46 }) {
  const box = html("div", "plot");
  parent.append(box);
  const left = 52, top = 8, bottom = 24;
  let drawn = 0;
  function paint() {
    const width = Math.max(260, box.clientWidth);
    if (width === drawn) return;
    drawn = width;
    box.replaceChildren();
    const svg = element("svg", { viewBox: `0 0 ${width} ${height}`, height, role: "img" });
    const add = (name, attributes, text) => svg.appendChild(element(name, attributes, text));
    const px = scale(x, left, width - right), py = scale(y, height - bottom, top);
    for (const tick of y.ticks) {
      add("line", { class: "grid", x1: left, x2: width - right, y1: py(tick), y2: py(tick) });
      add("text", { x: left - 8, y: py(tick) + 4, "text-anchor": "end" }, y.label(tick));
    }
    for (const tick of x.ticks) add("text", { x: px(tick), y: height - 6, "text-anchor": "middle" }, x.label(tick));
    draw({ svg, x: px, y: py, width, height, add, top, left, right: width - right, bottom: height - bottom });
    box.append(svg);
    if (tip) follow(box, svg, px, tip, { top, bottom: height - bottom, left, right: width - right });
  }
  new ResizeObserver(paint).observe(box);
  paint();
}

function follow(box, svg, px, tip, { top, bottom, left, right }) {
  const line = svg.appendChild(element("line", { class: "cross", y1: top, y2: bottom, visibility: "hidden" }));
  const label = html("div", "tip");
  label.hidden = true;
  box.append(label);
  svg.addEventListener("pointermove", (event) => {
    const at = event.clientX - svg.getBoundingClientRect().left;
    const found = at >= left - 4 && at <= right + 4 ? tip(px.back(at)) : null;
    label.hidden = !found;
    line.setAttribute("visibility", found ? "visible" : "hidden");
    if (!found) return;
    const place = px(found.at);
    line.setAttribute("x1", place);
    line.setAttribute("x2", place);
    label.textContent = found.text;
    label.style.top = `${top}px`;
    if (place > (left + right) / 2) Object.assign(label.style, { left: "", right: `${box.clientWidth - place + 10}px` });
    else Object.assign(label.style, { right: "", left: `${place + 10}px` });
  });
  svg.addEventListener("pointerleave", () => {
    label.hidden = true;
    line.setAttribute("visibility", "hidden");
  });
}

// An SVG path through points; a null breaks the line.
function path(points) {
  let pen = "M", out = "";
  for (const point of points) {
    if (!point) { pen = "M"; continue; }
    out += `${pen}${point[0].toFixed(1)} ${point[1].toFixed(1)}`;
    pen = "L";
  }
  return out;
}

// Names at the right end of lines, pushed apart so that all can be read.
function endLabels(p, labels) {
  labels.sort((a, b) => a.y - b.y);
  let above = -Infinity;
  for (const label of labels) {
    const y = Math.max(label.y, above + 13);
    p.add("text", { class: `name ${label.className}`, x: p.right + 6, y: y + 4 }, label.text);
    above = y;
  }
}
