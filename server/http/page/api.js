// The server's answers, and its refusals in words.

/** A whole address from one relative to the page, which may lie below a prefix, and whose own may hold a password. */
export function resolve(path) {
  return new URL(path, location.origin + location.pathname).href;
}

/** Something went wrong, said for a person; `again` tells whether the same request may succeed later. */
export class Trouble extends Error {
  constructor(title, detail, { code = "", requestId = "", retryAfter = 0, again = false } = {}) {
    super(detail);
    Object.assign(this, { title, code, requestId, retryAfter, again });
  }
}

/** What is loaded, as `GET /v1/models` lists it. */
export async function fetchModels() {
  const response = await ask(resolve("v1/models"));
  return (await unlessBroken(response.json())).models;
}

/** Whether the server asks for a key, as it does with whoever has not given the browser one. */
export async function asksForKey() {
  const response = await unlessBroken(fetch(resolve("v1/models"), { credentials: "omit" }));
  return response.status === 401;
}

/** A picture that lies beside the page. */
export async function fetchSample(name) {
  const response = await ask(resolve(`page/${name}`));
  return unlessBroken(response.blob());
}

/** Where pictures for a model go; the version is named only where there are several. */
export function segmentAddress(model, parameters) {
  const version = model.alone ? "" : `/versions/${model.version}`;
  const query = new URLSearchParams(parameters).toString().replaceAll("%2C", ",");
  return resolve(`v1/models/${encodeURIComponent(model.name)}${version}/segment?${query}`);
}

/**
 * Send one picture.
 *
 * @returns {{text: string, answer: object, stages: {name: string, ms: number}[], requestId: string, roundTrip: number}}
 */
export async function segment(address, picture, signal) {
  const began = performance.now();
  const headers = { "Content-Type": "application/octet-stream" }; // the server looks at the bytes, not at this
  const response = await ask(address, { method: "POST", body: picture, headers, signal });
  const text = await unlessBroken(response.text());
  return {
    text,
    answer: JSON.parse(text),
    stages: readStages(response.headers.get("server-timing") ?? ""),
    requestId: response.headers.get("x-request-id") ?? "",
    roundTrip: performance.now() - began,
  };
}

/** `decode;dur=1.9, queue;dur=0.4` -> [{name: "decode", ms: 1.9}, ...] */
export function readStages(header) {
  const entries = header.split(",").map((entry) => entry.trim().match(/^([\w-]+);dur=([\d.]+)$/));
  return entries.filter(Boolean).map(([, name, ms]) => ({ name, ms: Number(ms) }));
}

async function ask(address, options) {
  const response = await unlessBroken(fetch(address, options));
  if (response.ok) return response;
  throw await readTrouble(response);
}

/** The browser tells a refused, a cut and a lost connection in one word, and so do we. */
async function unlessBroken(promise) {
  try {
    return await promise;
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Trouble(
      "No answer came",
      "The connection to the server broke, or could not be made. Is the server still running? Then try again. " +
        "A file far above the size limit can be cut off like this too.",
      { again: true },
    );
  }
}

const TITLES = {
  overloaded: "The server is busy",
  rate_limited: "Too many requests",
  request_timeout: "The picture came too slowly",
  not_ready: "The model is not ready",
  draining: "The server is shutting down",
  deadline_exceeded: "The server ran out of time",
};

async function readTrouble(response) {
  const retryAfter = Number(response.headers.get("retry-after")) || 0;
  const requestId = response.headers.get("x-request-id") ?? "";
  let problem;
  try {
    problem = await response.json();
  } catch {
    problem = {};
  }
  const { status } = response;
  const { code = `HTTP ${status}`, detail = `The answer was ${status} without an explanation.` } = problem;
  const title = TITLES[code] ?? (status < 500 ? "The server refused this" : "The server failed");
  return new Trouble(title, detail, {
    code,
    requestId: problem.request_id ?? requestId,
    retryAfter,
    again: status >= 500 || status === 429 || status === 408,
  });
}
