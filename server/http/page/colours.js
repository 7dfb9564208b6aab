// Which colour an instance gets: far in hue from those beside it, and always the same for the same answer.
//
// An instance looks only at those with a better score, so hiding weak ones changes nobody's colour.

// Around the wheel, light enough for a dark field and strong enough for a stained section.
export const PALETTE = [
  [255, 82, 82], [255, 138, 51], [255, 196, 37], [222, 231, 49], [150, 224, 62], [62, 207, 98], [24, 211, 164],
  [34, 205, 226], [64, 160, 255], [98, 116, 255], [150, 96, 255], [208, 90, 250], [255, 84, 208], [255, 92, 142],
];

const WEIGHTS = PALETTE.map((_, a) => PALETTE.map((_, b) => likeness(a, b)));

/**
 * @param {{bbox: number[]}[]} instances best score first
 * @returns {number[]} indices into PALETTE
 */
export function assignColours(instances) {
  const xs = instances.map(({ bbox }) => bbox[0] + bbox[2] / 2);
  const ys = instances.map(({ bbox }) => bbox[1] + bbox[3] / 2);
  const chosen = [];
  for (let i = 0; i < instances.length; i++) {
    const near = new Float64Array(PALETTE.length); // how much of each colour is around
    for (let j = 0; j < i; j++) {
      const distance = (xs[i] - xs[j]) ** 2 + (ys[i] - ys[j]) ** 2;
      near[chosen[j]] += 1 / (distance * distance + 1);
    }
    let best = i % PALETTE.length; // where nothing is near, all colours take their turn
    let least = Infinity;
    for (let turn = 0; turn < PALETTE.length; turn++) {
      const colour = (i * 5 + turn) % PALETTE.length;
      const clash = near.reduce((sum, amount, other) => sum + amount * WEIGHTS[colour][other], 0);
      if (clash < least) [best, least] = [colour, clash];
    }
    chosen.push(best);
  }
  return chosen;
}

/** For CSS. */
export function cssColour(index) {
  return `rgb(${PALETTE[index].join(" ")})`;
}

/** For an outline that is still one on a fill without any transparency. */
export function lighter(colour) {
  return colour.map((value) => Math.round(value + (255 - value) * 0.3));
}

/** As a canvas stores it, on the little-endian machines that browsers run on: 0xAABBGGRR. */
export function pixelColour([red, green, blue], opacity) {
  return ((Math.round(opacity * 255) << 24) | (blue << 16) | (green << 8) | red) >>> 0;
}

/** 1 for the same colour, less and less around the wheel. */
function likeness(a, b) {
  const apart = Math.abs(a - b);
  return Math.exp(-Math.min(apart, PALETTE.length - apart));
}
