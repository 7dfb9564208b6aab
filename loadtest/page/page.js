// The report, read from the element "data" and laid out from top to bottom.

const report = JSON.parse(document.getElementById("data").textContent);
const result = report.result;
const STAGES = ["#8894a1", "#3f83c8", "#63b3c9", "#d3aa35", "#1a9c88", "#9c6fc4", "#d9793f"];
const cards = document.getElementById("cards");
const ms = (value) => (value == null ? "–" : value >= 1000 ? `${(value / 1000).toFixed(2)} s` : `${value.toFixed(value < 10 ? 2 : value < 100 ? 1 : 0)} ms`);
const shortMs = (value) => (value >= 1000 ? `${value / 1000} s` : `${value} ms`);
const rate = (value) => (value == null ? "–" : value >= 100 ? value.toFixed(0) : value >= 10 ? value.toFixed(1) : value.toFixed(2));
const percent = (value) => `${value === 0 ? "0" : value < 0.01 ? "< 0.01" : value < 10 ? value.toFixed(2) : value.toFixed(0)} %`;
const capital = (text) => text.charAt(0).toUpperCase() + text.slice(1);

function card(title, words, wide = false) {
  const made = html("section", wide ? "card wide" : "card");
  made.append(html("h2", "", title));
  if (words) made.append(html("p", "soft small", words));
  cards.append(made);
  return made;
}

function table(parent, head, rows, wordColumns = [], best = -1) {
  const made = html("table");
  const fill = (row, cells, kind) => cells.forEach((cell, column) => row.append(html(kind, wordColumns.includes(column) ? "words" : "", String(cell))));
  fill(made.createTHead().insertRow(), head, "th");
  const body = made.createTBody();
  rows.forEach((cells, number) => {
    const row = body.insertRow();
    if (number === best) row.className = "best";
    fill(row, cells, "td");
  });
  const scroll = html("div", "scroll");
  scroll.append(made);
  parent.append(scroll);
}

const settingsOf = (trial) => Object.entries(trial.settings).map(([key, value]) => `${key}=${value}`).join(" ") || "the server's defaults";

function heading() {
  document.getElementById("title").textContent = report.tuning ? `Best: ${settingsOf(report.tuning.best)}` : report.search
    ? report.search.rate ? `${rate(report.search.rate)} images/s is the most that holds the promise` : "No rate holds the promise" : capital(report.load);
  const parts = [report.model && `model ${report.model}`, report.target, report.pictures && `${report.pictures.count} picture${report.pictures.count > 1 ? "s" : ""}`, report.finished_at.replace("T", " ").replace("Z", " UTC")];
  document.getElementById("subtitle").textContent = parts.filter(Boolean).join("  ·  ");
  const verdict = document.getElementById("verdict");
  const words = report.wrong_answers ? "wrong answers" : report.promise
    ? `promise ${report.fine ? "held" : "broken"}: 99 % within ${ms(report.promise.p99_ms)}` : report.fine ? "all answers right" : "no right answer";
  verdict.textContent = report.promise || !report.fine || !(result && result.failures.length) ? words : "no promise was set";
  verdict.classList.add(report.fine ? (verdict.textContent.startsWith("no ") ? "none" : "good") : "bad");
  const notes = [];
  if (report.interrupted) notes.push("Stopped before the end: this is what was measured until then.");
  if (result) {
    if (!report.search) for (const reason of result.unsteady_because) notes.push(`Not steady: ${reason}.`);
    if (result.out_of_requests) notes.push("Cut short: there were more requests to send than --max-requests allows.");
    if (result.client_cores > 0.8) notes.push("The load tester was busy itself: latencies hold its own delays.");
  }
  for (const note of notes) document.getElementById("notes").append(html("li", "", note));
}

function tiles() {
  const add = (value, unit, words, bad = false) => {
    const made = html("div", bad ? "tile bad" : "tile");
    const number = html("b", "", value);
    if (unit) number.append(html("small", "", ` ${unit}`));
    made.append(number, html("span", "soft small", words));
    document.getElementById("tiles").append(made);
  };
  const split = (value) => ms(value).split(" ");
  add(...split(result.latency_ms.p50), "median latency");
  add(...split(result.latency_ms.p99), "p99 latency", report.promise && result.latency_ms.p99 > report.promise.p99_ms);
  add(...split(result.latency_ms.max), "slowest right answer");
  add(rate(result.throughput_per_s), "/s", report.settings.mode === "closed" ? "right answers" : `right answers, of ${rate(result.offered_per_s)}/s asked for`);
  add(...percent(result.error_percent).split(/ (?=%)/), `failed, of ${result.good + result.failures.reduce((sum, failure) => sum + failure.count, 0)}`, result.failures.length > 0);
  if (report.alone) add(...split(report.alone.median_ms), "a picture alone");
}

function latencyOverTime() {
  const { due_s, latency_ms, kind, kinds, of } = report.points;
  const good = latency_ms.filter((_, i) => kind[i] === 0);
  if (!good.length) return;
  const limits = logLimits(report.promise ? [...good, report.promise.p99_ms] : good);
  const end = Math.max(...due_s, ...result.slices.map((piece) => piece.start_s + piece.seconds)) || 1;
  const shown = due_s.length < of ? `${due_s.length} of ${of} requests are drawn, all the slowest among them. ` : "";
  const where = card("Latency over time", `One dot for each request, at the moment it was due; lines join the percentiles of ${seconds(result.slices)}. ${shown}${kinds.length > 1 ? "Red crosses failed." : ""}`, true);
  plot(where, {
    height: 320,
    x: { low: 0, high: end, ticks: linearTicks(0, end, 10), label: (s) => `${s} s` },
    y: { ...limits, ticks: logTicks(limits.low, limits.high), label: shortMs },
    draw(p) {
      if (result.warmup_s) {
        p.add("rect", { class: "warm", x: p.left, y: p.top, width: p.x(Math.min(end, result.warmup_s)) - p.left, height: p.bottom - p.top });
        p.add("text", { x: p.left + 8, y: p.bottom - 12 }, "warm-up, not counted");
      }
      if (report.promise) {
        const y = p.y(report.promise.p99_ms);
        p.add("path", { class: "line dashed alarm", d: `M${p.left} ${y}H${p.right}` });
      }
      let dots = "", crosses = "";
      due_s.forEach((s, i) => {
        const x = p.x(s).toFixed(1), y = p.y(Math.min(Math.max(latency_ms[i], limits.low), limits.high)).toFixed(1);
        if (kind[i] === 0) dots += `M${x} ${y}h0`;
        else crosses += `M${x} ${y}m-3-3l6 6m0-6l-6 6`;
      });
      p.add("path", { class: "dots", d: dots, style: `stroke-width: ${due_s.length < 400 ? 6 : 4}px` });
      p.add("path", { class: "crosses", d: crosses });
      const labels = [];
      for (const name of ["p50", "p90", "p99"]) {
        const points = result.slices.map((piece) => (piece[`${name}_ms`] == null ? null : [p.x(middle(piece)), p.y(piece[`${name}_ms`])]));
        p.add("path", { class: `line ${name}`, d: path(points) });
        const last = points.filter(Boolean).at(-1);
        if (last) labels.push({ y: last[1], text: name, className: name });
      }
      if (report.promise) labels.push({ y: p.y(report.promise.p99_ms), text: "promise", className: "alarm" });
      endLabels(p, labels);
    },
    right: 60,
    tip: (s) => sliceTip(s, (piece) => `${piece.good} right, ${piece.failed} failed\np50 ${ms(piece.p50_ms)}\np90 ${ms(piece.p90_ms)}\np99 ${ms(piece.p99_ms)}\nmax ${ms(piece.max_ms)}`),
  });
}

const middle = (piece) => piece.start_s + piece.seconds / 2;

// "each second", or how long most slices are.
function seconds(pieces) {
  const usual = pieces.length ? pieces.at(-1).seconds : 1;
  return Math.round(usual) <= 1 ? "each second" : `each ${Math.round(usual)} seconds`;
}

function sliceTip(s, words) {
  const piece = result.slices.find((one) => s >= one.start_s && s < one.start_s + one.seconds);
  const number = (value) => Number(value.toFixed(2));
  return piece ? { at: middle(piece), text: `${number(piece.start_s)}–${number(piece.start_s + piece.seconds)} s${piece.measured ? "" : ", warm-up"}\n${words(piece)}` } : null;
}

function percentileCurve() {
  if (report.curve.length < 2) return;
  const where = card("Percentiles", "Read: so many percent of the right answers came within so long. Each step to the right is ten times rarer.");
  const rarity = (p) => 1 / (1 - p / 100);
  const rarest = Math.max(...report.curve.map(([p]) => rarity(p)), 10);
  const limits = logLimits([...report.curve.map(([, value]) => value), ...(report.promise ? [report.promise.p99_ms] : [])]);
  const names = [0, 50, 90, 99, 99.9, 99.99, 99.999].filter((p) => rarity(p) <= rarest * 1.05);
  plot(where, {
    height: 260,
    x: { low: 1, high: rarest, log: true, ticks: names.map(rarity), label: (r) => `${Number((100 * (1 - 1 / r)).toFixed(3))}` },
    y: { ...limits, ticks: logTicks(limits.low, limits.high), label: shortMs },
    right: 16,
    draw(p) {
      if (report.promise) {
        const y = p.y(report.promise.p99_ms), x = p.x(Math.min(100, rarest));
        p.add("path", { class: "line dashed alarm", d: `M${p.left} ${y}H${x}V${p.bottom}` });
      }
      p.add("path", { class: "line p50", d: path(report.curve.map(([q, value]) => [p.x(rarity(q)), p.y(value)])) });
      for (const name of ["p50", "p90", "p99"]) {
        const q = Number(name.slice(1));
        if (rarity(q) > rarest) continue;
        const x = p.x(rarity(q)), y = p.y(result.latency_ms[name]);
        p.add("circle", { class: `dot ${name}`, cx: x, cy: y, r: 5 });
        p.add("text", { class: `name ${name}`, x: x - 8, y: y - 8, "text-anchor": "end" }, ms(result.latency_ms[name]));
      }
    },
    tip: (r) => {
      const [q, value] = report.curve.reduce((best, one) => (Math.abs(Math.log(rarity(one[0]) / r)) < Math.abs(Math.log(rarity(best[0]) / r)) ? one : best));
      return { at: rarity(q), text: `${Number(q.toFixed(4))} %\nwithin ${ms(value)}` };
    },
  });
}

function rateOverTime() {
  const pieces = result.slices;
  if (!pieces.length) return;
  const end = pieces.at(-1).start_s + pieces.at(-1).seconds;
  const asked = pieces.map((piece) => piece.due / piece.seconds);
  const high = Math.max(...asked, ...pieces.map((piece) => piece.finished_per_s), 1) * 1.1;
  const anyFailed = pieces.some((piece) => piece.failed);
  const where = card("Rate over time", `Images a second: asked for, answered right${anyFailed ? ", failed" : ""}.`);
  const ticks = linearTicks(0, high, 5);
  plot(where, {
    height: 150,
    x: { low: 0, high: end, ticks: linearTicks(0, end, 6), label: (s) => `${s} s` },
    y: { low: 0, high, ticks, label: (value) => `${value}` },
    right: 56,
    draw(p) {
      const curve = (values) => pieces.map((piece, i) => [p.x(middle(piece)), p.y(values[i])]);
      const right = curve(pieces.map((piece) => piece.finished_per_s));
      p.add("path", { class: "area", d: `${path(right)}L${right.at(-1)[0]} ${p.bottom}L${right[0][0]} ${p.bottom}Z` });
      p.add("path", { class: "line dashed plain", d: path(curve(asked)) });
      p.add("path", { class: "line p50", d: path(right) });
      const labels = [{ y: p.y(asked.at(-1)), text: "asked", className: "plain" }, { y: right.at(-1)[1], text: "right", className: "p50" }];
      if (anyFailed) {
        const failed = curve(pieces.map((piece) => piece.failed / piece.seconds));
        p.add("path", { class: "line alarm", d: path(failed) });
        labels.push({ y: failed.at(-1)[1], text: "failed", className: "alarm" });
      }
      endLabels(p, labels);
    },
    tip: (s) => sliceTip(s, (piece) => `asked ${rate(piece.due / piece.seconds)}/s\nright ${rate(piece.finished_per_s)}/s\nfailed ${rate(piece.failed / piece.seconds)}/s`),
  });
  where.append(html("p", "soft small", "Due and not answered yet: where this grows, more comes in than goes out."));
  const most = Math.max(...pieces.map((piece) => piece.outstanding), 1) * 1.15;
  plot(where, {
    height: 96,
    x: { low: 0, high: end, ticks: [], label: String },
    y: { low: 0, high: most, ticks: linearTicks(0, most, 3).filter(Number.isInteger), label: String },
    right: 56,
    draw(p) {
      const points = pieces.map((piece) => [p.x(Math.min(end, piece.start_s + piece.seconds)), p.y(piece.outstanding)]);
      p.add("path", { class: "line p90", d: path(points) });
      endLabels(p, [{ y: points.at(-1)[1], text: "waiting", className: "p90" }]);
    },
    tip: (s) => sliceTip(s, (piece) => `${piece.outstanding} unanswered`),
  });
}

function serverSide() {
  if (!result.server) return;
  const { answers, mean_ms, mean_batch_size } = result.server;
  const stages = Object.entries(mean_ms).filter(([stage]) => stage !== "total");
  const total = stages.reduce((sum, [, value]) => sum + value, 0);
  const batch = mean_batch_size ? ` Images ran in batches of ${mean_batch_size} on average.` : "";
  const where = card("Where the server's time goes", `Means of ${answers} answers, as the server counts: ${ms(mean_ms.total ?? total)}.${batch}`, true);
  const bar = html("div", "stack"), key = html("ul", "key");
  stages.forEach(([stage, value], i) => {
    const colour = STAGES[i % STAGES.length];
    const part = html("span"), entry = html("li"), swatch = html("i");
    part.style.cssText = `flex: ${value} 0 0; background: ${colour}`;
    part.title = `${stage} ${ms(value)}`;
    swatch.style.background = colour;
    entry.append(swatch, `${stage} ${ms(value)}`);
    bar.append(part);
    key.append(entry);
  });
  where.append(bar, key);
}

function searchSteps() {
  const { steps } = report.search;
  if (!steps.length) return;
  const where = card("The search", "Every rate that was tried, and its p99; full dots held the promise.", true);
  const seen = steps.filter((step) => step.p99_ms);
  if (seen.length) {
    const limits = logLimits([...seen.map((step) => step.p99_ms), report.promise.p99_ms]);
    const rates = seen.map((step) => step.rate);
    const low = Math.min(...rates) / 1.2, high = Math.max(...rates) * 1.2;
    plot(where, {
      height: 240,
      x: { low, high, log: true, ticks: logTicks(low, high), label: (value) => `${value}/s` },
      y: { ...limits, ticks: logTicks(limits.low, limits.high), label: shortMs },
      right: 60,
      draw(p) {
        const y = p.y(report.promise.p99_ms);
        p.add("path", { class: "line dashed alarm", d: `M${p.left} ${y}H${p.right}` });
        endLabels(p, [{ y, text: "promise", className: "alarm" }]);
        for (const step of seen) p.add("circle", { class: `dot ${step.held ? "p50" : "alarm hollow"}`, cx: p.x(step.rate), cy: p.y(step.p99_ms), r: 6 });
      },
      tip: (value) => {
        const step = seen.reduce((best, one) => (Math.abs(Math.log(one.rate / value)) < Math.abs(Math.log(best.rate / value)) ? one : best));
        return { at: step.rate, text: `${rate(step.rate)}/s ${step.held ? "holds" : "breaks"}\np99 ${ms(step.p99_ms)}\n${step.within_percent.toFixed(1)} % in time` };
      },
    });
  }
  const words = (step) => (step.held ? "holds" : "breaks") + (step.confirming ? ", confirming" : "") + (step.gave_up ? ", given up early" : "");
  table(where, ["rate", "promise", "p50", "p99", "in time", "failed"], steps.map((step) => [`${rate(step.rate)}/s`, words(step), ms(step.p50_ms), ms(step.p99_ms), `${step.within_percent.toFixed(1)} %`, Object.entries(step.errors).map(([kind, count]) => `${count} ${kind}`).join(", ") || "0"]), [1], steps.findLastIndex((step) => step.held && step.rate === report.search.rate));
}

function tuning() {
  const { trials, best } = report.tuning;
  const where = card("Settings that were tried", `The highest rate with 99 % right within ${ms(report.promise.p99_ms)}; the best in bold.`, true);
  const most = Math.max(...trials.map((trial) => trial.rate), 1e-9);
  for (const trial of trials) {
    const isBest = JSON.stringify(trial) === JSON.stringify(best);
    const row = html("div", "scroll"), bar = html("div", "stack");
    row.append(html(isBest ? "b" : "span", "small", `${settingsOf(trial)}: ${trial.rate ? `${rate(trial.rate)}/s` : "none"}${trial.why ? ` (${trial.why})` : ""}`));
    const part = html("span");
    part.style.cssText = `width: ${(100 * trial.rate) / most}%; background: var(${isBest ? "--p50" : "--p90"})`;
    bar.style.cssText = "height: 12px; margin: 2px 0 10px";
    bar.append(part);
    row.append(bar);
    where.append(row);
  }
}

function tables() {
  if (result) {
    if (result.failures.length)
      table(card("What failed", "", true), ["kind", "status", "how many", "after (median)", "p95", "the first one said"], result.failures.map((failure) => [failure.kind, failure.status || "no answer", failure.count, ms(failure.median_ms), ms(failure.p95_ms), failure.why]), [0, 5]);
    const latency = Object.entries(result.latency_ms);
    table(card("Latency of right answers", "Nearest rank, from all of them, since the moment each was due."), ["", "latency"], [...latency.map(([name, value]) => [name, ms(value)]), ["mean", ms(result.mean_ms)]]);
  }
  const where = card("How this was measured", "");
  const list = html("dl");
  const add = (name, value) => value != null && value !== "" && list.append(html("dt", "", name), html("dd", "", String(value)));
  add("load", report.load);
  if (result) {
    add("measured", `${result.window_s.toFixed(1)} s after ${result.warmup_s} s of warm-up`);
    add("requests", `${result.requests}, ${result.connections} connections at most${result.resent ? `, ${result.resent} sent again` : ""}`);
    add("this tester", `${(result.client_cpu_ms ?? 0).toFixed(3)} ms of processor time a request, ${(100 * result.client_cores).toFixed(0)} % of a core; p99 of sending late ${ms(result.late_ms.p99)}`);
  }
  if (report.pictures) add("pictures", report.pictures.from);
  add("machine", `${report.machine.cores} cores, ${report.machine.processor}, ${report.machine.system}, Python ${report.machine.python}`);
  add("settings", Object.entries(report.settings).map(([name, value]) => `${name} ${Array.isArray(value) ? value.join(":") : value}`).join(", "));
  where.append(list);
}

heading();
if (report.tuning) tuning();
if (report.search) searchSteps();
if (result) {
  tiles();
  latencyOverTime();
  percentileCurve();
  rateOverTime();
  serverSide();
}
tables();
