// The page wired together: what the visitor does on the left, who is told on the right.
//
//     picture or model -> one request -> answer -> spans and colours -> stage, list, charts
//     threshold or class ----------------------> which are shown    -> stage, list, counts      (no request)
//
// The request asks for all scores from FLOOR on, so the threshold can move without another one.

import { Trouble, asksForKey, fetchModels, segment, segmentAddress } from "./api.js";
import { Stage } from "./canvas.js";
import { ScoreChart, drawStages } from "./charts.js";
import { assignColours, cssColour } from "./colours.js";
import { Lines } from "./lines.js";
import { InstanceList } from "./list.js";
import { watchPictures } from "./pictures.js";
import { watchPointers } from "./pointer.js";
import { readSpans } from "./rle.js";
import { count, describe, milliseconds } from "./words.js";

const FLOOR = 0.05;
const $ = (id) => document.getElementById(id);

let models = [];
let picture = null; // { blob, name, address?, bitmap? }
let answered = null; // { answer, text, address } of the picture, once it is there
let instances = []; // of the answer, with `spans` and `colour`
let shown = []; // by instance: does it pass the filters
let hovered = -1;
let running = null; // AbortController of the request on its way

const stage = new Stage($("canvas"));
const scores = new ScoreChart($("scores"));
const lines = new Lines();
const list = new InstanceList($("list"), { pick, point: hover });
watchPointers($("canvas"), stage, { hover, pick: (index) => list.pick(index) });
watchPictures(choose, complain, say);

// ---- a picture, and the answer to it

async function choose(chosen) {
  running?.abort();
  picture = chosen;
  forget();
  chosen.bitmap = await createImageBitmap(chosen.blob).catch(() => null); // some the server reads and no browser shows
  if (chosen !== picture) return;
  stage.clear();
  if (chosen.bitmap) stage.showPicture(chosen.bitmap, chosen.bitmap);
  $("desk").classList.toggle("empty", !chosen.bitmap);
  await send();
}

async function send() {
  const model = models[$("model").value];
  if (!picture || !model) return;
  running?.abort();
  const mine = (running = new AbortController());
  const address = segmentAddress(model, { score_threshold: lowest(model) });
  $("trouble").hidden = true;
  $("desk").classList.add("waiting");
  say(`Segmenting ${picture.name} …`);
  try {
    const result = await segment(address, picture.blob, mine.signal);
    if (mine === running) take(result, address, lowest(model));
  } catch (error) {
    if (mine === running) complain(error);
  } finally {
    if (mine === running) $("desk").classList.remove("waiting");
  }
}

function take({ text, answer, stages, requestId, roundTrip }, address, low) {
  answered = { answer, text, address };
  const colours = assignColours(answer.instances);
  instances = answer.instances.map((each, i) => ({ ...each, colour: colours[i], spans: readSpans(each.segmentation) }));
  stage.showPicture(picture.bitmap, answer.image);
  stage.setInstances(instances);
  list.setInstances(instances);
  scores.setScores(instances.map((each) => each.score), low);
  $("threshold").min = low;
  listClasses();
  drawStages($("stage-bar"), $("stage-legend"), stages);
  const total = milliseconds(stages.reduce((sum, { ms }) => sum + ms, 0));
  $("total").textContent = `${total} in the server, ${milliseconds(roundTrip)} with the way there and back`;
  $("request-id").textContent = `Request ${requestId}.`;
  $("desk").classList.remove("empty");
  $("desk").classList.add("answered");
  $("save-json").disabled = $("save-png").disabled = false;
  filter();
}

/** The answer on the screen is no longer that of the picture. */
function forget() {
  answered = null;
  instances = shown = [];
  hovered = -1;
  stage.setInstances([]);
  list.setInstances([]);
  scores.setScores([], FLOOR);
  $("tip").hidden = true;
  $("shown-count").textContent = $("request-id").textContent = "";
  $("classes").textContent = "as found in the picture";
  $("desk").classList.remove("answered");
  $("save-json").disabled = $("save-png").disabled = true;
  writeLines();
}

function complain(error) {
  if (error.name === "AbortError") return;
  const known = error instanceof Trouble;
  if (!known) console.error(error);
  const { title, message, code, requestId, retryAfter, again } = known
    ? error
    : { title: "This page stumbled", message: "That is a bug in it; the console says more.", again: true };
  $("trouble-title").textContent = title;
  const later = `${message.replace(/\.?$/, ".")} Try again in ${retryAfter} s.`;
  $("trouble-detail").textContent = retryAfter ? later : message;
  $("trouble-code").textContent = code ?? "";
  $("trouble-id").textContent = requestId ? `· request ${requestId}` : "";
  $("again").hidden = !again;
  $("trouble").hidden = false;
  say("");
}

// ---- what is shown of it

function listClasses() {
  const counts = new Map();
  for (const { category } of instances) counts.set(category, (counts.get(category) ?? 0) + 1);
  const labels = [...counts].map(([name, number]) => {
    const label = document.createElement("label");
    const box = Object.assign(document.createElement("input"), { type: "checkbox", checked: true, value: name });
    label.append(box, ` ${name} `, Object.assign(document.createElement("small"), { textContent: count(number) }));
    return label;
  });
  $("classes").replaceChildren(...(labels.length ? labels : ["none found"]));
}

function chosenClasses() {
  return [...$("classes").querySelectorAll("input:checked")].map((box) => box.value);
}

/** The filters, applied to the answer that is here. */
function filter() {
  const threshold = Number($("threshold").value);
  $("threshold-value").textContent = threshold.toFixed(2);
  scores.setThreshold(threshold);
  if (answered) {
    const wanted = new Set(chosenClasses());
    shown = instances.map(({ score, category }) => score >= threshold && wanted.has(category));
    stage.setShown(shown);
    list.setShown(shown);
    if (hovered >= 0 && !shown[hovered]) hover(-1);
    const { image, truncated } = answered.answer;
    const number = count(shown.filter(Boolean).length);
    const cut = truncated ? " The server cut its answer at its size limit." : "";
    const blind = picture.bitmap ? "" : " This browser cannot show the picture itself, so the masks stand alone.";
    $("shown-count").textContent = number;
    say(`${number} of ${count(instances.length)} instances in ${image.width} × ${image.height} pixels.${cut}${blind}`);
  }
  writeLines();
}

function hover(index, point) {
  hovered = index;
  if (index >= 0) light(index, point);
  else light(list.picked);
}

function pick(index) {
  if (index >= 0) stage.reveal(index);
  light(index);
}

/** Light an instance up and say what it is, at `point` or above the instance. */
function light(index, point) {
  stage.light(index);
  const tip = $("tip");
  tip.hidden = !shown[index];
  if (tip.hidden) return;
  const { category, score, area } = describe(instances[index]);
  const [swatch, name, facts] = tip.children;
  swatch.style.background = cssColour(instances[index].colour);
  name.textContent = category;
  facts.textContent = `${score} · ${area}`;
  const at = point ?? stage.place(index);
  const half = tip.offsetWidth / 2 + 4;
  const above = at.y - tip.offsetHeight - 12;
  tip.style.left = `${Math.min(Math.max(at.x, half), $("canvas").clientWidth - half)}px`;
  tip.style.top = `${above < 4 ? at.y + 24 : above}px`;
}

function say(text) {
  $("status").textContent = text;
}

// ---- what is done with it

/** The request as it was sent; or, if wanted, with the filters as they stand. */
function writeLines() {
  const model = models[$("model").value];
  if (!model) return;
  const parameters = { score_threshold: lowest(model) };
  if ($("filtered").checked) {
    parameters.score_threshold = $("threshold").value;
    const wanted = chosenClasses();
    if (wanted.length && wanted.length < $("classes").children.length) parameters.classes = wanted.join(",");
  }
  lines.show(segmentAddress(model, parameters), picture ?? { name: "picture.png" });
}

function save(blob, ending) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = `${picture.name.replace(/\.[^.]*$/, "")}.${ending}`;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}

// ---- models

async function loadModels() {
  const before = models[$("model").value]?.key;
  const found = await fetchModels();
  models = found.map((model) => ({
    ...model,
    key: `${model.name}/${model.version}`,
    alone: found.filter(({ name }) => name === model.name).length === 1,
  }));
  const options = models.map((model, index) => {
    const label = (model.alone ? model.name : model.key) + (model.state === "ready" ? "" : ` (${model.state})`);
    return Object.assign(new Option(label, index), { disabled: model.state === "failed" });
  });
  const same = models.findIndex(({ key }) => key === before);
  const ready = models.findIndex(({ state }) => state === "ready");
  $("model").replaceChildren(...options);
  $("model").value = Math.max(0, same >= 0 ? same : ready);
  $("model").disabled = models.length === 0;
  showModel();
  if (models.some(({ state }) => state === "loading")) setTimeout(() => loadModels().catch(complain), 1000);
}

let thresholdOf = ""; // the model whose default the slider was last set to

function showModel() {
  const nothing = { state: "empty", reason: "no model is loaded" };
  const { key, version, state, reason, engine, defaults, manifest } = models[$("model").value] ?? nothing;
  const facts = $("model-facts");
  const ready = state === "ready";
  facts.textContent = ready ? `version ${version} · ${engine} · ${manifest.precision}` : `${state}: ${reason}`;
  facts.className = state;
  if (defaults && thresholdOf !== key) {
    thresholdOf = key;
    $("threshold").min = Math.min(FLOOR, defaults.score_threshold);
    $("threshold").value = defaults.score_threshold;
  }
  filter();
}

/** What is asked for: everything the slider can reach. */
function lowest(model) {
  return Math.min(FLOOR, model.defaults?.score_threshold ?? FLOOR);
}

// ---- controls

const acts = {
  again: async () => {
    $("trouble").hidden = true;
    await loadModels();
    await send();
  },
  "save-json": () => save(new Blob([answered.text], { type: "application/json" }), "json"),
  "save-png": async () => save(await stage.toPng(), "overlay.png"),
  "zoom-in": () => stage.zoom(1.6),
  "zoom-out": () => stage.zoom(1 / 1.6),
  "zoom-fit": () => stage.fit(),
};
for (const [id, act] of Object.entries(acts)) {
  $(id).addEventListener("click", async () => {
    try {
      await act();
      light(list.picked);
    } catch (error) {
      complain(error);
    }
  });
}
$("threshold").addEventListener("input", filter);
$("classes").addEventListener("change", filter);
$("filtered").addEventListener("change", writeLines);
$("opacity").addEventListener("input", () => {
  stage.setOpacity(Number($("opacity").value));
  $("opacity-value").textContent = `${Math.round($("opacity").value * 100)} %`;
});
$("model").addEventListener("change", () => {
  forget();
  showModel();
  send();
});

async function tellOfKeys() {
  lines.keyed = await asksForKey();
  writeLines();
}

stage.setOpacity(Number($("opacity").value));
loadModels().then(tellOfKeys).catch(complain);
