// Numbers as a person reads them.

const whole = new Intl.NumberFormat("en");

export function count(number) {
  return whole.format(number);
}

export function milliseconds(ms) {
  if (ms >= 1000) return `${(ms / 1000).toFixed(2)} s`;
  return `${ms >= 100 ? ms.toFixed(0) : ms.toFixed(1)} ms`;
}

/** Class, score and area of an instance, each a short text. */
export function describe({ category, score, area }) {
  return { category, score: score.toFixed(3), area: `${count(area)} px` };
}
