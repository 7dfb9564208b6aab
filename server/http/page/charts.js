// Two small charts made of plain elements: how the scores lie along the slider, and where the server's time went.

import { milliseconds } from "./words.js";

const BARS = 48;

/** Bars over the range of the slider, as high as the number of scores that fall there. */
export class ScoreChart {
  #bars = [];
  #low;

  constructor(box) {
    this.#bars = Array.from({ length: BARS }, () => document.createElement("i"));
    box.replaceChildren(...this.#bars);
  }

  /** @param {number[]} scores @param {number} low where the slider begins; it ends at 1 */
  setScores(scores, low) {
    this.#low = low;
    const counts = new Array(BARS).fill(0);
    for (const score of scores) {
      const bar = Math.floor(((score - low) / (1 - low)) * BARS);
      counts[Math.min(Math.max(bar, 0), BARS - 1)]++;
    }
    const most = Math.max(1, ...counts);
    for (const [index, bar] of this.#bars.entries()) {
      bar.style.height = counts[index] ? `${8 + 92 * Math.sqrt(counts[index] / most)}%` : "0";
    }
  }

  setThreshold(threshold) {
    const first = ((threshold - this.#low) / (1 - this.#low)) * BARS;
    for (const [index, bar] of this.#bars.entries()) bar.classList.toggle("below", index + 0.5 < first);
  }
}

/**
 * The stages in a row, each as wide as its time, and a legend with the numbers.
 *
 * @param {HTMLElement} bar
 * @param {HTMLElement} legend a list
 * @param {{name: string, ms: number}[]} stages
 */
export function drawStages(bar, legend, stages) {
  const parts = stages.map(({ name, ms }) => {
    const part = document.createElement("i");
    part.className = `stage-${name}`;
    part.style.flexGrow = ms;
    part.title = `${name} ${milliseconds(ms)}`;
    return part;
  });
  const lines = stages.map(({ name, ms }) => {
    const line = document.createElement("li");
    const key = Object.assign(document.createElement("i"), { className: `stage-${name}` });
    const value = Object.assign(document.createElement("b"), { textContent: milliseconds(ms) });
    line.append(key, `${name} `, value);
    return line;
  });
  bar.replaceChildren(...parts);
  legend.replaceChildren(...lines);
}
